"""The domain `format`: instructions about the form of a reply; any reply that follows them passes."""

import random
from typing import Any

from trimoe.model.tiny.item import Item
from trimoe.model.tiny.words import WORDS


def make(rng: random.Random) -> Item:
    """One of eight instructions. `check` holds what the scorer needs to verify any valid reply."""
    kind = rng.choice(["letter", "upper", "json", "lines", "count", "wrap", "numbered", "pairs"])
    n, word = rng.randint(2, 5), rng.choice(WORDS)
    initials = [c for c in "bcfghlmoprstw" if sum(w[0] == c for w in WORDS) >= 3]
    check: dict[str, Any] = {"kind": kind, "n": n}
    if kind in ("letter", "upper"):
        letter, n = rng.choice(initials), rng.randint(2, 3)
        words = rng.sample([w for w in WORDS if w[0] == letter], n)
        check |= {"n": n, "letter": letter}
        if kind == "letter":
            prompt, answer = f"List {n} words that start with {letter}, with commas between.", ", ".join(words)
        else:
            prompt = f"List {n} words that start with {letter}, in capitals, with slashes between."
            answer = "/".join(words).upper()
    elif kind == "json":
        size = rng.randint(10, 99)
        prompt, answer = f"Give JSON with name {word} and size {size}.", f'{{"name": "{word}", "size": {size}}}'
        check |= {"value": {"name": word, "size": size}}
    elif kind == "lines":
        prompt, answer = f"Write the word {word} {n} times, one a line.", "\n".join([word] * n)
        check |= {"word": word}
    elif kind == "count":
        start = rng.randint(2, 40)
        answer = "-".join(str(v) for v in range(start, start + n + 1))
        prompt = f"Count from {start} to {start + n} with dashes."
        check |= {"start": start}
    elif kind == "wrap":
        left, right = rng.choice([("<", ">"), ("[", "]"), ("{", "}"), ("*", "*")])
        words = rng.sample(WORDS, 2)
        prompt = f"Put {words[0]} and {words[1]} each between {left} and {right}."
        answer = " ".join(f"{left}{w}{right}" for w in words)
        check |= {"left": left, "right": right, "words": words}
    elif kind == "numbered":
        words = rng.sample(WORDS, 3)
        prompt = f"Make a numbered list of {words[0]}, {words[1]}, {words[2]}."
        answer = "\n".join(f"{i}. {w}" for i, w in enumerate(words, 1))
        check |= {"words": words}
    else:
        words = rng.sample(WORDS, 2)
        prompt = f"Write {words[0]} = {words[1]} as an arrow and close with END."
        answer = f"{words[0]} -> {words[1]} END"
        check |= {"words": words}
    return Item("format", prompt, answer, check)
