"""Logs of Inspect (`inspect eval`): `.json`, and `.eval`, a zip file with one JSON file per sample.

Inspect keeps the question but not the row of the data set, so each sample is found among the bench's rows by its text.
"""

import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from trimoe.bench.bench import Bench, Doc
from trimoe.errors import BenchError
from trimoe.evaluate.recorded.record import Place, Recorded, counted
from trimoe.io.expand import LARGEST

LAYOUT = "an Inspect log (samples with id, epoch, input, output)"
_RIGHT = {"C": True, "I": False, 1: True, 0: False}  # True and 1.0 are equal to 1
_SHORTEST = 12  # characters of a question that is searched for inside a prompt


class _Part(msgspec.Struct):
    type: str = "text"
    text: str = ""
    reasoning: str = ""


class _Message(msgspec.Struct):
    content: str | list[_Part]
    role: str = "user"


class _Choice(msgspec.Struct):
    message: _Message
    stop_reason: str = ""


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Output(msgspec.Struct):
    choices: list[_Choice] = msgspec.field(default_factory=list)
    usage: _Usage | None = None


class _Score(msgspec.Struct):
    value: Any = None


class _Sample(msgspec.Struct):
    id: int | str
    epoch: int
    input: str | list[_Message]
    output: _Output
    scores: dict[str, _Score] | None = None
    error: dict[str, Any] | None = None


def samples_of(file: Path, document: Any) -> Iterator[tuple[Place, Any]]:
    """The samples of a `.json` log."""
    samples = document.get("samples")
    if not isinstance(samples, list) or not samples:
        Place(file, "as a whole").refuse(LAYOUT, "no samples: the log is of a run that stored none", "run again")
    return ((Place(file, f"sample {number}"), sample) for number, sample in enumerate(samples, 1))


def zipped_samples(file: Path) -> Iterator[tuple[Place, Any]]:
    """The samples of a `.eval` log."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = [one for one in archive.infolist() if one.filename.startswith("samples/")]
            if sum(one.file_size for one in members) > LARGEST:
                Place(file, "as a whole").refuse(LAYOUT, f"samples of more than {LARGEST} bytes")
            for one in sorted(members, key=lambda member: member.filename):
                yield Place(file, one.filename), json.loads(archive.read(one))
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as exc:
        raise BenchError(
            f"{file} is not readable as an Inspect log",
            expected="a zip file with samples/*.json",
            actual=str(exc),
            remedy="write it again with `inspect log convert FILE --to json --output-dir DIR`",
        ) from exc


def read(rows: Iterable[tuple[Place, Any]], bench: Bench, docs: Sequence[Doc]) -> Iterator[Recorded]:
    """The first choice of every sample. `docs` are the rows of the bench, among which the questions are searched."""
    known: dict[str, Doc] = {}
    for place, row in rows:
        one = place.typed(row, _Sample, LAYOUT)
        asked = one.input if isinstance(one.input, str) else _text(one.input[-1]) if one.input else ""
        doc = known.get(asked) or _doc(place, asked, bench, docs)
        known[asked] = doc
        if one.error or not one.output.choices:
            problem = str((one.error or {}).get("message") or "the sample has no reply")[:200]
            yield Recorded(doc.doc_id, "", prompt=doc.prompt, epoch=one.epoch, error=problem)
            continue
        choice, usage = one.output.choices[0], one.output.usage or _Usage()
        reasoning = _reasoning(choice.message)
        yield Recorded(
            doc.doc_id,
            _text(choice.message),
            prompt=asked,
            finish_reason={"max_tokens": "length"}.get(choice.stop_reason, choice.stop_reason),
            prompt_tokens=counted(usage.input_tokens),
            reply_tokens=counted(usage.output_tokens),
            verdict=_verdict(one),
            reasoning=reasoning,
            reasoning_field="reasoning" if reasoning else "",
            reasoning_tokens=counted(usage.reasoning_tokens),
            epoch=one.epoch,
        )


def _doc(place: Place, asked: str, bench: Bench, docs: Sequence[Doc]) -> Doc:
    if not docs:
        place.refuse(
            f"{LAYOUT} together with the bench's rows",
            "Inspect keeps no row of the data set, and the rows of the bench are not here",
            "add --data DIR with the bench's data set",
        )
    text = asked.strip()
    found = [doc for doc in docs if doc.prompt.strip() == text]
    if not found and len(text) >= _SHORTEST:
        found = [doc for doc in docs if text in doc.prompt or doc.prompt.strip() in text]
    if len(found) != 1:
        place.refuse(
            LAYOUT,
            f"field input: {len(found)} rows of {bench.name} have this question: {text[:80]!r}",
            "check --bench; a question in other words than the bench's cannot be matched",
        )
    return found[0]


def _verdict(one: _Sample) -> bool | None:
    values = [score.value for score in (one.scores or {}).values()]
    known = [value for value in values if isinstance(value, str | int | float | bool) and value in _RIGHT]
    return _RIGHT[known[0]] if len(values) == 1 and known else None


def _text(message: _Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if part.type == "text")


def _reasoning(message: _Message) -> str:
    if isinstance(message.content, str):
        return ""
    return "\n".join(part.reasoning for part in message.content if part.type == "reasoning")
