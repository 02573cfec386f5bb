"""The guard that keeps MultiPL-E out of calibration sets, because its licence forbids use as training data.

Rows are recognised by their identity (name of the data set, row layout), and plain text by its content: for each prompt
of the Rust, Java and JavaScript subsets, the package has a sketch of a few 8-gram hashes that occur in that prompt and
neither in HumanEval nor in several other prompts. No text of the data set is in the package.
Not guaranteed: other languages, and prompts without distinctive n-grams, are recognised by identity only.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from trimoe.calibrate.text.word_ngrams import Hashes, grams, words
from trimoe.errors import Refused

_GRAM = 8
_SKETCH = 8
"""Hashes per prompt: the smallest ones, so that the choice does not depend on their order."""
_COMMON = 3
"""An n-gram in more prompts than this is boilerplate."""
_ENOUGH = 0.5
"""A text with at least this share of a prompt's sketch contains the prompt."""

_LANGUAGES = "adb|clj|cpp|cs|d|dart|elixir|ex|go|hs|java|jl|js|lua|ml|php|pl|r|rb|rkt|rs|scala|sh|swift|ts|v"
_NAME = re.compile(
    rf"multipl[-_]e(?![a-z])|(?<![a-z])(humaneval|mbpp|multiple)[-_]({_LANGUAGES})(?![a-z0-9])", re.IGNORECASE
)
_ROW_NAME = re.compile(r"(HumanEval|mbpp)_\d+_\w+")


def refuse_name(name: str, what: str) -> None:
    """Raise `Refused` if a data set or bench of this name is MultiPL-E."""
    if _NAME.search(name):
        raise _refusal(what, f"named {name}")


def refuse_row(row: Mapping[str, Any], where: str) -> None:
    """Raise `Refused` if a record has the layout of a MultiPL-E row."""
    name = row.get("name")
    if isinstance(name, str) and _ROW_NAME.fullmatch(name) and ("language" in row or "stop_tokens" in row):
        raise _refusal(where, f"row {name}")


def refuse_text(text: str, where: str) -> None:
    """Raise `Refused` if a text contains a MultiPL-E prompt."""
    found = _match(text)
    if found:
        raise _refusal(where, f"its text contains {found}")


def sketch(rows: Iterable[Mapping[str, Any]], elsewhere: Iterable[str]) -> list[tuple[str, list[int]]]:
    """(name/language, hashes) per MultiPL-E row; n-grams of the texts `elsewhere` (HumanEval's own) are not
    distinctive."""
    known = {int(h) for text in elsewhere for h in grams(words(text), _GRAM)}
    by_row = {
        f"{row['name']}/{row['language']}": {int(h) for h in grams(words(row["prompt"]), _GRAM)} - known for row in rows
    }
    spread = Counter(h for hashes in by_row.values() for h in hashes)
    return [
        (name, sorted(h for h in hashes if spread[h] <= _COMMON)[:_SKETCH]) for name, hashes in sorted(by_row.items())
    ]


def dump(sketches: Sequence[tuple[str, list[int]]]) -> str:
    """The content of the file in the package: a line per prompt, its name and hexadecimal hashes, separated by tabs."""
    return "".join("\t".join([name, *(f"{h:016x}" for h in hashes)]) + "\n" for name, hashes in sketches)


@cache
def _known() -> tuple[list[str], Hashes, np.ndarray[Any, Any]]:
    """(names, hashes [n], number of the name that each hash belongs to [n])."""
    text = (resources.files("trimoe.calibrate.text") / "multipl_e.tsv").read_text("utf-8")
    lines = [line.split("\t") for line in text.splitlines()]
    pairs = [(int(h, 16), i) for i, (_, *hashes) in enumerate(lines) for h in hashes]
    return (
        [line[0] for line in lines],
        np.array([h for h, _ in pairs], np.uint64),
        np.array([i for _, i in pairs], np.int64),
    )


def _match(text: str) -> str | None:
    """The name of a prompt whose sketch matches the text."""
    names, hashes, owner = _known()
    found = np.isin(hashes, grams(words(text), _GRAM))
    hits = np.bincount(owner[found], minlength=len(names))
    sizes = np.bincount(owner, minlength=len(names))
    good = np.flatnonzero((hits >= 2) & (hits >= _ENOUGH * sizes))
    return names[good[0]] if len(good) else None


def _refusal(where: str, why: str) -> Refused:
    return Refused(
        f"{where} belongs to MultiPL-E",
        expected="data whose licence allows calibration",
        actual=why,
        remedy="remove it: clause 4 of its licence forbids training use; it may be used as a bench only",
    )
