"""Windows: documents as tokens, split into the units of measurement.

A window holds tokens of one document. Documents are never packed into a common window, so attention cannot reach from
one into another, shards and merges are by document, and per-window statistics keep their meaning. Short windows cost
little, because the engine batches windows of similar length.
Invariants: windows do not overlap, so no token is counted twice; the set's hash covers the token ids, classes, masks
and weights that are measured and nothing else (moving the files does not change it).
"""

import hashlib
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from trimoe.errors import CalibrationError
from trimoe.io.canonical import canonical_json

LongDocuments = Literal["split", "cut", "refuse"]
POSITIONS = ("text", "prompt", "own", "recorded")
"""Kinds of positions, by what the model predicts there: plain text; a prompt or a template's marker (also the last
token of a chat, after which nothing follows); the model's own reply; a recorded reply."""
TEXT, PROMPT, OWN, RECORDED = range(len(POSITIONS))


@dataclass(frozen=True)
class Document:
    """One text of a class as tokens. `counted` marks the positions whose routing is measured; None means all."""

    category: str
    tokens: tuple[int, ...]
    weight: float = 1.0
    counted: tuple[bool, ...] | None = None
    item: str | None = None
    """BENCH/ID of a bench item used on purpose."""
    where: str = ""
    positions: bytes | None = None
    """Index into `POSITIONS` of each token; None means all plain text."""

    @property
    def digest(self) -> bytes:
        """sha256 of what is measured; it also decides the bootstrap shard of the document."""
        body = struct.pack(f"<{len(self.tokens)}q", *self.tokens) + struct.pack("<d", self.weight)
        mask = bytes(self.counted) if self.counted is not None else b""
        return hashlib.sha256(self.category.encode() + b"\0" + body + b"\0" + mask).digest()

    @property
    def content_hash(self) -> str:
        """16 hex digits of the sha256 of the tokens alone, independent of weight and mask."""
        return hashlib.sha256(struct.pack(f"<{len(self.tokens)}q", *self.tokens)).hexdigest()[:16]


@dataclass(frozen=True)
class Window:
    """A run of at most `window` tokens of one document: the unit of the per-window statistics."""

    category: int
    document: int
    shard: int
    weight: float
    tokens: np.ndarray
    counted: np.ndarray
    positions: np.ndarray | None = None
    """uint8 index into `POSITIONS` of each token; None means all plain text."""


@dataclass(frozen=True)
class Windows:
    """All windows of a set, by class and in document order. `set_hash` identifies what is measured."""

    classes: tuple[str, ...]
    windows: tuple[Window, ...]
    set_hash: str
    documents: dict[str, int]
    origin: dict[str, Any] = field(default_factory=dict)
    """Facts about the set for the statistics file: documents by hash, sources, replies, overlap with benches."""

    def tokens(self) -> dict[str, int]:
        """Counted tokens per class."""
        counts = dict.fromkeys(self.classes, 0)
        for window in self.windows:
            counts[self.classes[window.category]] += int(window.counted.sum())
        return counts

    def positions(self) -> dict[str, dict[str, int]]:
        """Counted tokens per class and kind of position; kinds without any are left out."""
        counts = np.zeros((len(self.classes), len(POSITIONS)), int)
        for window in self.windows:
            kinds = np.zeros(len(window.tokens), np.uint8) if window.positions is None else window.positions
            counts[window.category] += np.bincount(kinds[window.counted], minlength=len(POSITIONS))
        return {
            name: {kind: int(n) for kind, n in zip(POSITIONS, row, strict=True) if n}
            for name, row in zip(self.classes, counts, strict=True)
        }

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of position that have counted tokens, in the order of `POSITIONS`."""
        found = {kind for row in self.positions().values() for kind in row}
        return tuple(kind for kind in POSITIONS if kind in found)

    @property
    def answered(self) -> tuple[bool, ...]:
        """Whether each class has counted positions besides prompts."""
        return tuple(bool(row.keys() - {POSITIONS[PROMPT]}) for row in self.positions().values())


def windows_of(
    documents: Sequence[Document], window: int, shards: int, long_documents: LongDocuments = "split"
) -> Windows:
    """Divide documents into windows. The content hash of a document decides its shard.

    A document longer than a window becomes several (`split`), loses everything beyond the first (`cut`), or raises
    `CalibrationError` (`refuse`).
    """
    classes = tuple(dict.fromkeys(d.category for d in documents))
    long = Counter(d.category for d in documents if len(d.tokens) > window)
    lost = {c: sum(max(0, len(d.tokens) - window) for d in documents if d.category == c) for c in long}
    if long_documents == "refuse" and long:
        first = next(d for d in documents if len(d.tokens) > window)
        raise CalibrationError(
            f"{first.where or 'a document'} of class {first.category} is longer than the window",
            expected=f"at most {window} tokens",
            actual=f"{len(first.tokens)} ({sum(long.values())} documents are too long)",
            remedy="raise `window`, shorten the documents, or set long_documents to split or cut",
        )
    if long_documents == "cut":
        documents = [_cut(d, window) for d in documents]
    digest = hashlib.sha256(canonical_json([window, list(classes)]))
    windows = []
    for number, document in enumerate(documents):
        digest.update(document.digest)
        if document.positions is not None:  # not in the document's own digest, which decides its shard
            digest.update(document.positions)
        shard = int.from_bytes(document.digest[:8], "big") % shards
        tokens = np.asarray(document.tokens, np.int64)
        counted = np.ones(len(tokens), bool) if document.counted is None else np.asarray(document.counted, bool)
        kinds = None if document.positions is None else np.frombuffer(document.positions, np.uint8)
        category = classes.index(document.category)
        for at in range(0, len(tokens), window):
            part = slice(at, at + window)
            own = None if kinds is None else kinds[part]
            windows.append(Window(category, number, shard, document.weight, tokens[part], counted[part], own))
    hashes = {name: [d.content_hash for d in documents if d.category == name] for name in classes}
    origin: dict[str, Any] = {
        "window": window,
        "document_hashes": hashes,
        "repeated_documents": _counts({name: len(h) - len(set(h)) for name, h in hashes.items()}),
        "long_documents": {long_documents: _counts(long)} if long else {},
        "cut_tokens": lost if long_documents == "cut" else {},
        "unmeasured_documents": _counts(
            Counter(d.category for d in documents if d.counted is not None and not any(d.counted))
        ),
    }
    counts = {name: len(h) for name, h in hashes.items()}
    return Windows(classes, tuple(windows), digest.hexdigest(), counts, origin)


def _cut(document: Document, window: int) -> Document:
    counted = document.counted and document.counted[:window]
    positions = document.positions and document.positions[:window]
    return replace(document, tokens=document.tokens[:window], counted=counted, positions=positions)


def _counts(counts: dict[str, int]) -> dict[str, int]:
    return {name: n for name, n in sorted(counts.items()) if n}
