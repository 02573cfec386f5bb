"""Generates the bundled model's tasks: chats in six domains whose answers can be checked exactly.

Invariants: the same seed gives the same items. The training script and the calibration sets use only the split `train`,
the benches only `heldout`; `item.split_of` keeps the two disjoint.
Each domain asks for knowledge that only the weights hold (idioms, facts, a dictionary). If the experts stored no
knowledge, a good choice of experts could not be told from a bad one.
Not guaranteed: that results carry over to large models. The tasks exist to compare pruning methods.
"""

import random
from collections.abc import Callable, Iterator

from trimoe.errors import UsageError
from trimoe.model.tiny.domains import choice, code, format, math, story, text
from trimoe.model.tiny.item import SPLITS, Item, split_of

_MAKE: dict[str, Callable[[random.Random], Item]] = {
    "code": code.make,
    "math": math.make,
    "choice": choice.make,
    "format": format.make,
    "text": text.make,
    "story": story.make,
}
DOMAINS = tuple(_MAKE)
_PATIENCE = 20_000  # repeated items in a row after which a split counts as exhausted


def generate(domain: str, split: str, count: int, seed: int = 0) -> list[Item]:
    """`count` distinct items of one domain and split; the order depends only on the seed.

    Raises `UsageError` for an unknown domain or split, and for more items than the split has.
    """
    stream = items(domain, split, seed)
    seen: dict[str, Item] = {}
    repeats = 0  # since the last new item
    while len(seen) < count:
        item = next(stream)
        repeats = 0 if item.prompt not in seen else repeats + 1
        seen.setdefault(item.prompt, item)
        if repeats > _PATIENCE:
            raise UsageError(
                f"the split {split} of {domain} has fewer items than asked for",
                expected=f"at most about {len(seen)}",
                actual=str(count),
                remedy="lower the count",
            )
    return list(seen.values())


def items(domain: str, split: str, seed: int = 0) -> Iterator[Item]:
    """An endless stream of items of one domain and split; items may repeat. Raises `UsageError` for an unknown one."""
    for what, name, known in (("domain", domain, DOMAINS), ("split", split, SPLITS)):
        if name not in known:
            raise UsageError(f"there is no {what} {name}", expected=", ".join(known), actual=name)
    return _stream(domain, split, seed)


def _stream(domain: str, split: str, seed: int) -> Iterator[Item]:
    rng = random.Random(f"{domain}/{split}/{seed}")
    make = _MAKE[domain]
    while True:
        item = make(rng)
        if split_of(item) == split:
            yield item
