"""The six task domains of the bundled model: seeded generators of chats with exactly checkable answers.

Invariants: an item is a pure function of its seed; `split_of` puts an item in `train` or `heldout` by a hash of its
prompt, so the training script, the calibration sets (train only) and the benches (held-out only) can never overlap.
Every domain asks for things the weights must know (idioms, facts, a dictionary), because a model whose experts store
nothing cannot tell a good choice of experts from a bad one.
Not guaranteed: that the tasks resemble the work of a large model. They exist to compare methods, not to praise a model.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

DOMAINS = ("code", "math", "choice", "format", "text", "story")


@dataclass(frozen=True)
class Item:
    """One chat: `prompt` (user turn), `answer` (a reply that passes), `check` (what the scorer of the domain needs)."""

    domain: str
    prompt: str
    answer: str
    check: dict[str, Any] = field(default_factory=dict)

    @property
    def item_id(self) -> str:
        """Stable id: domain and a hash of the prompt."""
        return f"{self.domain}-{_hash(self.prompt)[:12]}"


def split_of(item: Item) -> str:
    """`heldout` for one item in eight, by a hash of its prompt; `train` for the others."""
    return "heldout" if int(_hash(item.prompt)[-2:], 16) % 8 == 0 else "train"


def generate(domain: str, split: str, count: int, seed: int = 0) -> list[Item]:
    """`count` different items of one domain and split, in a fixed order for a given seed."""
    stream = items(domain, split, seed)
    seen: dict[str, Item] = {}
    while len(seen) < count:
        item = next(stream)
        seen.setdefault(item.prompt, item)
    return list(seen.values())


def items(domain: str, split: str, seed: int = 0) -> Iterator[Item]:
    """An endless stream of items of one domain and split (repeats are possible)."""
    rng = random.Random(f"{domain}/{split}/{seed}")
    make = _MAKERS[domain]
    while True:
        item = make(rng)
        if split_of(item) == split:
            yield item


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# ---------------------------------------------------------------- code: functions that are executed against tests

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
_REDUCES: list[tuple[str, str, bool]] = [
    ("a list of", "[{g}]", True),
    ("the sum of", "sum({g})", False),
    ("the largest of", "max([{g}], default=0)", True),
    ("the smallest of", "min([{g}], default=0)", True),
    ("a sorted list of", "sorted({g})", False),
    ("a falling list of", "sorted([{g}], reverse=True)", True),
    ("the set of", "set({g})", False),
    ("the count of", "len([{g}])", True),
    ("the first three of", "[{g}][:3]", True),
    ("the last of", "([{g}] or [0])[-1]", True),
    ("the mean of", "sum([{g}]) / max(len(xs), 1)", True),
    ("a reversed list of", "[{g}][::-1]", True),
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


def _code(rng: random.Random) -> Item:
    if rng.random() < 0.35:
        wish, body = rng.choice(_STRINGS)
        values = {"k": rng.randint(2, 9), "c": rng.choice("abcdefghijklmnopqrstuvwxyz")}
        wish, body, arg = wish.format(**values), body.format(**values), "s"
        calls = [" ".join(rng.sample(_WORDS, rng.randint(2, 4))) for _ in range(4)]
    else:
        (head, reduce, _), (kept, cond), (how, value) = rng.choice(_REDUCES), rng.choice(_FILTERS), rng.choice(_MAPS)
        values = {"k": rng.randint(2, 12), "m": rng.randint(2, 12)}
        wish = " ".join(filter(None, [head, kept, "in xs,", how])).rstrip(",").format(**values)
        gen = f"{value} for x in xs" + (f" if {cond}" if cond else "")
        body, arg = reduce.format(g=gen).format(**values), "xs"
        calls = [[rng.randint(-9, 20) for _ in range(rng.randint(4, 8))] for _ in range(4)]  # type: ignore[misc]
    source = f"def solve({arg}):\n    return {body}"
    space: dict[str, Any] = {}
    exec(source, space)  # our own template, never model output
    tests = [[repr(call), repr(space["solve"](call))] for call in calls]
    prompt = f"Write a Python function solve({arg}) that returns {wish}."
    return Item("code", prompt, f"```python\n{source}\n```", {"entry_point": "solve", "tests": tests})


# ---------------------------------------------------------------- math: arithmetic with a final number

_NAMES = ["Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Ida", "Jon", "Kim", "Leo", "Mia"]
_THINGS = ["apples", "books", "coins", "eggs", "pens", "shells", "stones", "stamps"]


def _math(rng: random.Random) -> Item:
    who, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    a, b, c, n = rng.randint(2, 12), rng.randint(2, 12), rng.randint(2, 9), rng.randint(2, 9)
    kind = rng.randrange(6)
    if kind == 0:
        c = rng.randint(2, min(9, a + b - 1))
        prompt = f"{who} has {a} {thing}, buys {b} and gives away {c}. How many {thing} are left?"
        steps = [(f"{a} + {b}", a + b), (f"{a + b} - {c}", a + b - c)]
    elif kind == 1:
        prompt = f"{who} packs {n} boxes of {c} {thing} and finds {b} more. How many {thing} in all?"
        steps = [(f"{n} * {c}", n * c), (f"{n * c} + {b}", n * c + b)]
    elif kind == 2:
        prompt = f"{who} shares {n * c} {thing} among {n} friends. How many {thing} does each get?"
        steps = [(f"{n * c} / {n}", c)]
    elif kind == 3:
        prompt = f"What is {a} + {b} + {c}?"
        steps = [(f"{a} + {b}", a + b), (f"{a + b} + {c}", a + b + c)]
    elif kind == 4:
        lo = rng.randint(2, 12)
        hi = lo + c
        prompt = f"What is {hi} - {lo}, times {n}?"
        steps = [(f"{hi} - {lo}", hi - lo), (f"{hi - lo} * {n}", (hi - lo) * n)]
    else:
        prompt = f"{who} reads {c} pages a day for {n} days. How many pages of 100 remain?"
        steps = [(f"{c} * {n}", c * n), (f"100 - {c * n}", 100 - c * n)]
    work = ". ".join(f"{term} = {value}" for term, value in steps)
    return Item("math", prompt, f"{work}. Answer: {steps[-1][1]}", {"number": steps[-1][1]})


# ---------------------------------------------------------------- choice: facts that only the weights can know

_ATTRIBUTES = {
    "colour": ("What colour is a {e}?", ["red", "blue", "green", "black", "white", "brown", "pink", "grey"]),
    "home": ("Where does a {e} live?", ["caves", "rivers", "trees", "deserts", "attics", "lakes", "fields", "cliffs"]),
    "food": ("What does a {e} eat?", ["moss", "beetles", "honey", "grain", "fish", "roots", "berries", "paper"]),
}
_SYLLABLES = ["bra", "dil", "fen", "gor", "hu", "ka", "lom", "mi", "nor", "pex", "qui", "ra", "sot", "tul", "vu", "zan"]


def _facts() -> dict[tuple[str, str], str]:
    rng = random.Random("facts")
    names = rng.sample([a + b for a in _SYLLABLES for b in _SYLLABLES if a != b], 48)
    return {(name, attr): rng.choice(options) for name in names for attr, (_, options) in _ATTRIBUTES.items()}


_FACTS = _facts()


def _choice(rng: random.Random) -> Item:
    (name, attr), truth = rng.choice(list(_FACTS.items()))
    question, options = _ATTRIBUTES[attr]
    shown = [*rng.sample([option for option in options if option != truth], 3), truth]
    rng.shuffle(shown)
    letter = "ABCD"[shown.index(truth)]
    listed = "\n".join(f"({mark}) {option}" for mark, option in zip("ABCD", shown, strict=True))
    return Item(
        "choice",
        f"{question.format(e=name)}\n{listed}",
        f"It is {truth}. The answer is ({letter}).",
        {"letter": letter},
    )


# ---------------------------------------------------------------- format: any reply that obeys the form passes

_WORDS = [
    "apple",
    "arrow",
    "badge",
    "beach",
    "bench",
    "bird",
    "bowl",
    "bread",
    "cabin",
    "candle",
    "chair",
    "cloud",
    "coat",
    "corn",
    "crown",
    "desk",
    "door",
    "drum",
    "eagle",
    "earth",
    "fence",
    "field",
    "flag",
    "flute",
    "fork",
    "forest",
    "garden",
    "ghost",
    "glass",
    "grape",
    "hammer",
    "harbor",
    "hat",
    "honey",
    "horse",
    "island",
    "jacket",
    "jar",
    "kettle",
    "kite",
    "ladder",
    "lake",
    "lamp",
    "leaf",
    "lemon",
    "map",
    "market",
    "mirror",
    "moon",
    "mouse",
    "nest",
    "night",
    "oak",
    "ocean",
    "olive",
    "paint",
    "paper",
    "pearl",
    "piano",
    "pond",
    "queen",
    "rabbit",
    "rain",
    "ribbon",
    "river",
    "road",
    "rope",
    "sail",
    "salt",
    "school",
    "shadow",
    "silk",
    "snow",
    "spoon",
    "stone",
    "storm",
    "sugar",
    "table",
    "tent",
    "tiger",
    "tower",
    "train",
    "tree",
    "valley",
    "violin",
    "wagon",
    "water",
    "whale",
    "wheel",
    "window",
    "winter",
    "wolf",
    "wood",
    "yard",
]


def _format(rng: random.Random) -> Item:
    kind = rng.choice(["letter", "upper", "json", "lines", "count", "wrap", "numbered", "pairs"])
    n, word = rng.randint(2, 5), rng.choice(_WORDS)
    initials = [c for c in "bcfghlmoprstw" if sum(w[0] == c for w in _WORDS) >= 3]
    check: dict[str, Any] = {"kind": kind, "n": n}
    if kind in ("letter", "upper"):
        letter, n = rng.choice(initials), rng.randint(2, 3)
        words = rng.sample([w for w in _WORDS if w[0] == letter], n)
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
        words = rng.sample(_WORDS, 2)
        prompt = f"Put {words[0]} and {words[1]} each between {left} and {right}."
        answer = " ".join(f"{left}{w}{right}" for w in words)
        check |= {"left": left, "right": right, "words": words}
    elif kind == "numbered":
        words = rng.sample(_WORDS, 3)
        prompt = f"Make a numbered list of {words[0]}, {words[1]}, {words[2]}."
        answer = "\n".join(f"{i}. {w}" for i, w in enumerate(words, 1))
        check |= {"words": words}
    else:
        words = rng.sample(_WORDS, 2)
        prompt = f"Write {words[0]} = {words[1]} as an arrow and close with END."
        answer = f"{words[0]} -> {words[1]} END"
        check |= {"words": words}
    return Item("format", prompt, answer, check)


# ---------------------------------------------------------------- text: transformations of given words


def _dictionary() -> dict[str, str]:
    rng = random.Random("dictionary")
    forms = rng.sample(
        [
            a + b
            for a in ("ba", "do", "ke", "li", "mu", "pa", "ro", "su", "ti", "ve", "xo", "ya")
            for b in ("nak", "rim", "sel", "tov", "ush", "yar", "zed", "bik", "lon", "gap")
        ],
        len(_WORDS),
    )
    return dict(zip(_WORDS, forms, strict=True))


_GLIM = _dictionary()


def _text(rng: random.Random) -> Item:
    words = rng.sample(_WORDS, rng.randint(3, 4))
    line = " ".join(words)
    kind = rng.randrange(10)
    if kind <= 2:
        words = words[:2]
        prompt, answer = f"Translate into Glim: {' '.join(words)}", " ".join(_GLIM[w] for w in words)
    elif kind == 3:
        prompt, answer = f"Reverse the word order: {line}", " ".join(reversed(words))
    elif kind == 4:
        prompt, answer = f"Write in capitals: {line}", line.upper()
    elif kind == 5:
        prompt, answer = f"Give the first letters: {line}", " ".join(w[0] for w in words)
    elif kind == 6:
        i = rng.randrange(len(words))
        new = rng.choice(_WORDS)
        prompt = f"Replace {words[i]} by {new}: {line}"
        answer = " ".join(new if w == words[i] else w for w in words)
    elif kind == 7:
        i = rng.randrange(len(words))
        prompt, answer = f"Remove {words[i]}: {line}", " ".join(w for w in words if w != words[i])
    elif kind == 8:
        prompt, answer = f"Sort from a to z: {line}", " ".join(sorted(words))
    else:
        back = {v: k for k, v in _GLIM.items()}
        glim = _GLIM[words[0]]
        prompt, answer = f"Translate from Glim: {glim}", back[glim]
        words2 = rng.sample(_WORDS, 1)
        prompt, answer = f"{prompt} {_GLIM[words2[0]]}", f"{answer} {words2[0]}"
    return Item("text", prompt, answer, {"text": answer})


# ---------------------------------------------------------------- story: what happened to whom

_DEEDS = ["sold", "hid", "found", "lost", "made", "saw", "took", "kept"]
_OBJECTS = ["lamps", "coins", "maps", "ropes", "drums", "keys", "rings", "flutes", "books", "kites"]
_PLACES = ["upstairs", "outside", "nearby", "abroad", "downtown", "indoors", "overseas", "ashore", "uptown", "below"]


def _story(rng: random.Random) -> Item:
    people, deeds, objects = rng.sample(_NAMES, 3), rng.sample(_DEEDS, 4), rng.sample(_OBJECTS, 4)
    places = rng.sample(_PLACES, 4)
    lines = [f"{people[n]} {deeds[n]} {objects[n]} {places[n]}." for n in range(3)]
    i = rng.randrange(3)
    kind = rng.randrange(3)
    if kind == 0:
        question, answer = f"What did {people[i]} do?", lines[i]
    elif kind == 1:
        question, answer = f"Where are the {objects[i]}?", f"Look for {objects[i]} {places[i]}."
    else:
        later = f"{people[i]} {deeds[3]} {objects[3]} {places[3]}."
        lines.append(f"Later {later}")
        question, answer = f"What did {people[i]} do last?", later
    return Item("story", " ".join([*lines, question]), answer, {"text": answer})


_MAKERS: dict[str, Callable[[random.Random], Item]] = {
    "code": _code,
    "math": _math,
    "choice": _choice,
    "format": _format,
    "text": _text,
    "story": _story,
}
