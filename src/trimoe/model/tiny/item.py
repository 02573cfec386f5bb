"""One item of a tiny task, and the split it belongs to.

Invariant: the split depends on the prompt alone, so the same prompt is never in both splits.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Item:
    """One chat: `prompt` is the user's turn, `answer` a reply that passes, `check` the data that the scorer needs."""

    domain: str
    prompt: str
    answer: str
    check: dict[str, Any] = field(default_factory=dict)

    @property
    def item_id(self) -> str:
        """The domain and a hash of the prompt."""
        return f"{self.domain}-{_hash(self.prompt)[:12]}"


def split_of(item: Item) -> str:
    """`heldout` for about one prompt in eight, chosen by a hash of the prompt; `train` for the others."""
    return "heldout" if int(_hash(item.prompt)[-2:], 16) % 8 == 0 else "train"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
