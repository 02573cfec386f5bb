"""The domain `code`: short Python functions that are executed against tests."""

import random
from typing import Any

from trimoe.model.tiny.item import Item
from trimoe.model.tiny.words import WORDS

# Each table pairs words of the prompt with Python source. {k}, {m} and {c} are drawn; {g} is the inner generator.
_FILTERS: list[tuple[str, str]] = [
    ("the even numbers", "x % 2 == 0"),
    ("the odd numbers", "x % 2 == 1"),
    ("the numbers above {k}", "x > {k}"),
    ("the numbers below {k}", "x < {k}"),
    ("the multiples of {k}", "x % {k} == 0"),
    ("the numbers other than {k}", "x != {k}"),
    ("the negative numbers", "x < 0"),
    ("all numbers", ""),
]
_MAPS: list[tuple[str, str]] = [
    ("", "x"),
    ("plus {m}", "x + {m}"),
    ("minus {m}", "x - {m}"),
    ("times {m}", "x * {m}"),
    ("squared", "x * x"),
    ("negated", "-x"),
    ("modulo {m}", "x % {m}"),
    ("without sign", "abs(x)"),
    ("halved", "x // 2"),
]
_REDUCES: list[tuple[str, str]] = [
    ("a list of", "[{g}]"),
    ("the sum of", "sum({g})"),
    ("the largest of", "max([{g}], default=0)"),
    ("the smallest of", "min([{g}], default=0)"),
    ("a sorted list of", "sorted({g})"),
    ("a falling list of", "sorted([{g}], reverse=True)"),
    ("the set of", "set({g})"),
    ("the count of", "len([{g}])"),
    ("the first three of", "[{g}][:3]"),
    ("the last of", "([{g}] or [0])[-1]"),
    ("the mean of", "sum([{g}]) / max(len(xs), 1)"),
    ("a reversed list of", "[{g}][::-1]"),
]
_STRINGS: list[tuple[str, str]] = [
    ("s reversed", "s[::-1]"),
    ("s in capitals", "s.upper()"),
    ("the words of s", "s.split()"),
    ("the number of words in s", "len(s.split())"),
    ("the longest word of s", "max(s.split(), key=len)"),
    ("s with spaces as dashes", 's.replace(" ", "-")'),
    ("the letters of s in order", '"".join(sorted(s))'),
    ("how often {c} is in s", 's.count("{c}")'),
    ("s without {c}", 's.replace("{c}", "")'),
    ("where {c} is in s", 's.find("{c}")'),
    ("whether s starts with {c}", 's.startswith("{c}")'),
    ("whether s ends with {c}", 's.endswith("{c}")'),
    ("the words of s with {c}", '[w for w in s.split() if "{c}" in w]'),
    ("the parts of s between {c}", 's.split("{c}")'),
    ("the first {k} letters of s", "s[:{k}]"),
    ("the last {k} letters of s", "s[-{k}:]"),
    ("s written {k} times", "s * {k}"),
    ("the words of s longer than {k}", "[w for w in s.split() if len(w) > {k}]"),
    ("every letter {k} steps apart in s", "s[::{k}]"),
    ("s filled to {k}0 with zeros", "s.zfill({k}0)"),
]


def make(rng: random.Random) -> Item:
    """A function of a string `s` or of a list of integers `xs`, with four tests."""
    if rng.random() < 0.35:
        wish, body = rng.choice(_STRINGS)
        values = {"k": rng.randint(2, 9), "c": rng.choice("abcdefghijklmnopqrstuvwxyz")}
        wish, body, arg = wish.format(**values), body.format(**values), "s"
        calls = [" ".join(rng.sample(WORDS, rng.randint(2, 4))) for _ in range(4)]
    else:
        (head, reduce), (kept, cond), (how, value) = rng.choice(_REDUCES), rng.choice(_FILTERS), rng.choice(_MAPS)
        values = {"k": rng.randint(2, 12), "m": rng.randint(2, 12)}
        wish = " ".join(filter(None, [head, kept, "in xs,", how])).rstrip(",").format(**values)
        gen = f"{value} for x in xs" + (f" if {cond}" if cond else "")
        body, arg = reduce.format(g=gen).format(**values), "xs"
        calls = [[rng.randint(-9, 20) for _ in range(rng.randint(4, 8))] for _ in range(4)]  # type: ignore[misc]
    source = f"def solve({arg}):\n    return {body}"
    space: dict[str, Any] = {}
    exec(source, space)  # safe: the source comes from the templates above, never from a model
    tests = [[repr(call), repr(space["solve"](call))] for call in calls]
    prompt = f"Write a Python function solve({arg}) that returns {wish}."
    return Item("code", prompt, f"```python\n{source}\n```", {"entry_point": "solve", "tests": tests})
