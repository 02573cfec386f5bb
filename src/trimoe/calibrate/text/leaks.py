"""The leak check: which items of a bench share a 13-gram of words with a calibration set.

A bench item overlaps if 13 consecutive words of its question or reference solution occur in a document of the set and
are the item's own, or if its whole question occurs there. Words are the item's own if 8 of them in a row are in no
other item of the bench, or in fewer than 1 % of its items (and at most ten); everything else is boilerplate:
instructions, and the sentence patterns of generated tasks. Items that share only boilerplate are listed separately and
not counted. An item of 8 to 12 words is searched for as a whole; a shorter one is not checked. Documents declared as
bench items (passing traces) are distinguished: `undeclared` are the overlapping items that some other document overlaps
with. Invariant: the report is a function of texts and benches, not of their paths. Not guaranteed: paraphrases and
translations are not found; a passage that many items of a small bench ask about counts as boilerplate.
"""

import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.calibrate.text.word_ngrams import Hashes, grams, words
from trimoe.errors import BadInput
from trimoe.io.canonical import sha256_json
from trimoe.io.expand import whole

Numbers = np.ndarray[Any, Any]

GRAM = 13
SHORTEST = 8
COMMON = 10
RULE = (
    f"overlapping: {GRAM} words in a row shared, {SHORTEST} of them in a row in one item of the bench only or in fewer "
    f"than 1 % of its items and at most {COMMON}, or the whole question shared; boilerplate: other words shared"
)

_IDS = ("task_id", "id", "unique_id", "key", "ID", "question_id", "name", "doc_id")
_TEXTS = (
    "question",
    "problem",
    "prompt",
    "text",
    "instruction",
    "input",
    "query",
    "canonical_solution",
    "solution",
    "answer",
    "code",
    "output",
)
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


@dataclass(frozen=True)
class BenchTexts:
    """The texts of a bench: item id -> question and reference solution."""

    name: str
    items: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class SetText:
    """A document of the set: its class, its text, and whether it is declared as a bench item."""

    category: str
    text: str
    declared: bool


def identify(row: Mapping[str, Any], number: int) -> str:
    """The id a data set gives a row, or its number (from 0)."""
    for key in _IDS:
        if isinstance(row.get(key), str | int) and not isinstance(row.get(key), bool):
            return str(row[key])
    return str(number)


def read_benches(path: Path) -> list[BenchTexts]:
    """The bench in a file, or one for each JSON or JSONL file below a folder. Raises `BadInput`."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.name.endswith(_SUFFIXES) and p.is_file())
        if not files:
            raise BadInput(
                f"no bench in {path}",
                expected="files named " + ", ".join("*" + s for s in _SUFFIXES),
                remedy="give the folder with the rows of the bench",
            )
    else:
        files = [path]
    benches = []
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        items = tuple((identify(row, i), tuple(_texts(row))) for i, row in enumerate(_rows(file)))
        benches.append(BenchTexts(name.split(".json")[0], items))
    return benches


@dataclass(frozen=True)
class _Index:
    """All n-grams of a bench as aligned arrays: hash, item, length, whether it is the item's own, and whether it is
    part of the item's question (its first text that is long enough to check)."""

    hashes: Hashes
    owner: Numbers
    length: Numbers
    own: Numbers
    question: Numbers

    def of(self, chosen: Numbers) -> "_Index":
        return _Index(*(a[chosen] for a in (self.hashes, self.owner, self.length, self.own, self.question)))


def check(documents: Sequence[SetText], benches: Sequence[BenchTexts]) -> dict[str, Any]:
    """The report, JSON-ready; see the module's docstring. Memory is proportional to the words of set and benches."""
    split = [words(document.text) for document in documents]
    indexed = [_index(bench) for bench in benches]
    hits: list[dict[int, set[int]]] = [defaultdict(set) for _ in benches]  # per bench: item -> documents
    touched: list[set[int]] = [set() for _ in benches]  # per bench: items that share anything
    for n in sorted({int(n) for index in indexed for n in np.unique(index.length)}):
        mine = [np.unique(grams(sequence, n)) for sequence in split]
        document = np.repeat(np.arange(len(mine)), [len(h) for h in mine])
        every = np.concatenate(mine) if mine else np.zeros(0, np.uint64)
        order = np.argsort(every, kind="stable")
        every, document = every[order], document[order]
        for bench, index, hit, touch in zip(benches, indexed, hits, touched, strict=True):
            grams_of = index.of(index.length == n)
            found = grams_of.of(_counts(every, grams_of.hashes) > 0)
            touch.update(int(i) for i in np.unique(found.owner))
            for item, number in _pairs(found.of(found.own), every, document):
                hit[item].add(number)
            asked = grams_of.of(grams_of.question)
            for item, number in _whole(bench, asked, found, every, document, split):
                hit[item].add(number)
    return {
        "gram": GRAM,
        "common": COMMON,
        "rule": RULE,
        "documents": len(documents),
        "benches": {
            bench.name: _report(documents, bench, len(np.unique(index.owner)), hit, touch)
            for bench, index, hit, touch in zip(benches, indexed, hits, touched, strict=True)
        },
    }


def _counts(every: Hashes, hashes: Hashes) -> Numbers:
    """How often each hash occurs in the sorted `every`."""
    return np.searchsorted(every, hashes, "right") - np.searchsorted(every, hashes, "left")


def _pairs(index: _Index, every: Hashes, document: Numbers) -> Iterator[tuple[int, int]]:
    """(item, document) of every n-gram that a bench shares with the set (`every` and `document`, sorted)."""
    begin, end = np.searchsorted(every, index.hashes, "left"), np.searchsorted(every, index.hashes, "right")
    for item, low, high in zip(index.owner, begin, end, strict=True):
        for number in document[low:high]:
            yield int(item), int(number)


def _whole(
    bench: BenchTexts, asked: _Index, found: _Index, every: Hashes, document: Numbers, split: Sequence[list[str]]
) -> Iterator[tuple[int, int]]:
    """(item, document) where a document contains the item's whole question, boilerplate or not."""
    size = len(bench.items)
    there = np.bincount(found.owner[found.question], minlength=size)
    for item in np.flatnonzero((there > 0) & (there == np.bincount(asked.owner, minlength=size))):
        question = f" {' '.join(next(w for w in map(words, bench.items[item][1]) if len(w) >= SHORTEST))} "
        gram = asked.hashes[asked.owner == item][:1]
        low, high = np.searchsorted(every, gram, "left")[0], np.searchsorted(every, gram, "right")[0]
        for number in document[low:high]:
            if question in f" {' '.join(split[number])} ":
                yield int(item), int(number)


def _report(
    documents: Sequence[SetText], bench: BenchTexts, checked: int, hit: Mapping[int, set[int]], touched: set[int]
) -> dict[str, Any]:
    overlapping = sorted(hit)
    undeclared = [item for item in overlapping if any(not documents[d].declared for d in hit[item])]
    classes: dict[str, set[int]] = defaultdict(set)
    for found in hit.values():
        for number in found:
            classes[documents[number].category].add(number)
    ids = [name for name, _ in bench.items]
    return {
        "sha256": sha256_json([list(item) for item in bench.items]),
        "items": len(ids),
        "unchecked": len(ids) - checked,
        "overlapping": [ids[i] for i in overlapping],
        "undeclared": [ids[i] for i in undeclared],
        "boilerplate": [ids[i] for i in sorted(touched - set(hit))],
        "own_limit": own_limit(len(ids)),
        "documents": {name: len(found) for name, found in sorted(classes.items())},
    }


def own_limit(items: int) -> int:
    """The number of items of a bench in which words may occur and still be an item's own."""
    return max(1, min(COMMON, -(-items // 100) - 1))


def _index(bench: BenchTexts) -> _Index:
    split = [[w for w in map(words, texts) if len(w) >= SHORTEST] for _, texts in bench.items]
    short = [[grams(w, SHORTEST) for w in texts] for texts in split]
    held = [np.unique(np.concatenate(parts)) for parts in short if parts]
    values, counts = np.unique(np.concatenate(held) if held else np.zeros(0, np.uint64), return_counts=True)
    rare = values[counts <= own_limit(len(bench.items))]  # runs of eight words in few items
    parts: list[tuple[Hashes, Numbers, int, int, bool]] = []
    for number, texts in enumerate(split):
        for place, sequence in enumerate(texts):
            n = min(GRAM, len(sequence))
            hashes, first = np.unique(grams(sequence, n), return_index=True)
            before = np.append(0, np.cumsum(_counts(rare, short[number][place])))
            own = before[first + n - SHORTEST + 1] > before[first]  # a rare run within the n-gram
            parts.append((hashes, own, number, n, place == 0))
    if not parts:
        none = np.zeros(0, np.int64)
        return _Index(np.zeros(0, np.uint64), none, none, none.astype(bool), none.astype(bool))
    sizes = [len(p[0]) for p in parts]
    return _Index(
        np.concatenate([p[0] for p in parts]),
        np.repeat([p[2] for p in parts], sizes),
        np.repeat([p[3] for p in parts], sizes),
        np.concatenate([p[1] for p in parts]),
        np.repeat([p[4] for p in parts], sizes),
    )


def _texts(row: Mapping[str, Any]) -> Iterator[str]:
    known = [row[key] for key in _TEXTS if key in row]
    for value in known or row.values():
        yield from _strings(value)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    """Rows of JSON lines or of one JSON list; a list of plain texts gives rows of one text each."""
    try:
        text = whole(path).decode("utf-8-sig")
        lines = [line for line in text.split("\n") if line.strip()]
        value = json.loads(text) if text.lstrip()[:1] == "[" else [json.loads(line) for line in lines]
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as exc:
        raise BadInput(
            f"cannot read bench {path}",
            expected="JSON lines or a JSON list, plain or gzipped",
            actual=str(exc)[:200],
            remedy="check the path given to --leak-check",
        ) from exc
    return [row if isinstance(row, dict) else {"text": row} for row in value]
