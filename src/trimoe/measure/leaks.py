"""The leak check: which items of a bench share a 13-gram with a calibration set.

A bench item counts as overlapping if any 13 consecutive words of its question or of its reference solution occur in a
document of the set. An item of 8 to 12 words is looked for as a whole; a shorter one is not checked, nor are grams that
more than ten items of the bench share (instructions, boilerplate). Documents that are bench items by declaration
(passing traces) are told apart: `undeclared` are the items that some other document overlaps with.
Invariants: the report is a function of texts and benches, not of where they lie. Not guaranteed: paraphrases, and
translations, are not found.
"""

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.artifact import sha256_json
from trimoe.errors import BadInput
from trimoe.measure.grams import Hashes, grams, words

Numbers = np.ndarray[Any, Any]

GRAM = 13
SHORTEST = 8
COMMON = 10

_IDS = ("task_id", "id", "unique_id", "key", "ID", "question_id", "name", "doc_id")
_TEXTS = ("question", "problem", "prompt", "text", "instruction", "input", "query", "canonical_solution", "solution",
          "answer", "code", "output")  # fmt: skip
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


@dataclass(frozen=True)
class BenchTexts:
    """A bench as the leak check sees it: item id -> its texts (question, reference solution)."""

    name: str
    items: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class SetText:
    """A document of the set: its class, its text, and whether it is a bench item by declaration."""

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
            raise BadInput(f"no bench in {path}", expected="files named " + ", ".join("*" + s for s in _SUFFIXES),
                           remedy="name the folder that holds the bench's rows")  # fmt: skip
    else:
        files = [path]
    benches = []
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        items = tuple((identify(row, i), tuple(_texts(row))) for i, row in enumerate(_rows(file)))
        benches.append(BenchTexts(name.split(".json")[0], items))
    return benches


def check(documents: Sequence[SetText], benches: Sequence[BenchTexts]) -> dict[str, Any]:
    """The report, JSON-ready; see the module's docstring. Memory grows with the words of the set and the benches."""
    split = [words(document.text) for document in documents]
    indexed = [_index(bench) for bench in benches]
    hits: list[dict[int, set[int]]] = [defaultdict(set) for _ in benches]  # per bench: item -> documents
    for n in sorted({int(n) for _, _, length in indexed for n in np.unique(length)}):
        mine = [np.unique(grams(sequence, n)) for sequence in split]
        document = np.repeat(np.arange(len(mine)), [len(h) for h in mine])
        every = np.concatenate(mine) if mine else np.zeros(0, np.uint64)
        for (hashes, owner, length), hit in zip(indexed, hits, strict=True):
            for item, number in _pairs(hashes[length == n], owner[length == n], every, document):
                hit[item].add(number)
    return {
        "gram": GRAM,
        "common": COMMON,
        "documents": len(documents),
        "benches": {
            bench.name: _report(documents, bench, len(np.unique(index[1])), hit)
            for bench, index, hit in zip(benches, indexed, hits, strict=True)
        },
    }


def _pairs(hashes: Hashes, owner: Numbers, every: Hashes, document: Numbers) -> Iterator[tuple[int, int]]:
    """(item, document) of every gram that a bench (hashes, owner) and the set (every, document) share."""
    order = np.argsort(hashes, kind="stable")
    hashes, owner = hashes[order], owner[order]
    begin, end = np.searchsorted(hashes, every, "left"), np.searchsorted(hashes, every, "right")
    for i in np.flatnonzero(end > begin):
        for item in owner[begin[i] : end[i]]:
            yield int(item), int(document[i])


def _report(
    documents: Sequence[SetText], bench: BenchTexts, checked: int, hit: Mapping[int, set[int]]
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
        "documents": {name: len(found) for name, found in sorted(classes.items())},
    }


def _index(bench: BenchTexts) -> tuple[Hashes, Numbers, Numbers]:
    """(hashes, item of each, words of each gram) of all grams that are not boilerplate; the three are aligned."""
    parts: list[tuple[Hashes, int, int]] = []
    for number, (_, texts) in enumerate(bench.items):
        for text in texts:
            sequence = words(text)
            n = min(GRAM, len(sequence))
            if n >= SHORTEST:
                parts.append((np.unique(grams(sequence, n)), number, n))
    if not parts:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    sizes = [len(h) for h, _, _ in parts]
    hashes = np.concatenate([h for h, _, _ in parts])
    owner = np.repeat([i for _, i, _ in parts], sizes)
    length = np.repeat([n for _, _, n in parts], sizes)
    order = np.lexsort((owner, hashes))
    hashes, owner, length = hashes[order], owner[order], length[order]
    first = np.append(True, hashes[1:] != hashes[:-1])  # of a run of equal grams
    another = first | np.append(True, owner[1:] != owner[:-1])  # of an item within the run
    run = np.cumsum(first) - 1
    rare = np.bincount(run[another])[run] <= COMMON  # items that share the gram
    return hashes[rare], owner[rare], length[rare]


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
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
        lines = [line for line in text.split("\n") if line.strip()]
        value = json.loads(text) if text.lstrip()[:1] == "[" else [json.loads(line) for line in lines]
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as exc:
        raise BadInput(f"cannot read bench {path}", expected="JSON lines or a JSON list, plain or gzipped",
                       actual=str(exc)[:200], remedy="check the path given to --leak-check") from exc  # fmt: skip
    return [row if isinstance(row, dict) else {"text": row} for row in value]
