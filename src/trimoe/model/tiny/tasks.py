"""Generates the bundled model's tasks: chats in six domains whose answers can be checked exactly.

Invariants: the same seed gives the same items. The training script and the calibration sets use only the split `train`,
the benches only `heldout`; `item.split_of` keeps the two disjoint.
Each domain asks for knowledge that only the weights hold (idioms, facts, a dictionary). If the experts stored no
knowledge, a good choice of experts could not be told from a bad one.
Not guaranteed: that results carry over to large models. The tasks exist to compare pruning methods.
"""

import random
from collections.abc import Callable, Iterator

from trimoe.model.tiny.domains import choice, code, format, math, story, text
from trimoe.model.tiny.item import Item, split_of

_MAKE: dict[str, Callable[[random.Random], Item]] = {
    "code": code.make,
    "math": math.make,
    "choice": choice.make,
    "format": format.make,
    "text": text.make,
    "story": story.make,
}
DOMAINS = tuple(_MAKE)


def generate(domain: str, split: str, count: int, seed: int = 0) -> list[Item]:
    """`count` distinct items of one domain and split; the order depends only on the seed."""
    stream = items(domain, split, seed)
    seen: dict[str, Item] = {}
    while len(seen) < count:
        item = next(stream)
        seen.setdefault(item.prompt, item)
    return list(seen.values())


def items(domain: str, split: str, seed: int = 0) -> Iterator[Item]:
    """An endless stream of items of one domain and split; items may repeat."""
    rng = random.Random(f"{domain}/{split}/{seed}")
    make = _MAKE[domain]
    while True:
        item = make(rng)
        if split_of(item) == split:
            yield item
