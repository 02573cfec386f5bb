"""Records and text files: JSON lines, CSV, Parquet, plain text, and the columns of a record that become a document.

Invariants: lines end at \\n only (U+2028 and U+0085 are content); files are read line by line, whatever their size;
every error names the file and the line. UTF-8 only; a byte order mark at the start is skipped.
"""

import csv
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.errors import CalibrationError, MissingPrerequisite
from trimoe.io.datafile import Data
from trimoe.io.expand import TooLarge, lines, opened, whole

Message = dict[str, str]
"""{"role": "user" | "assistant" | "system", "content": text}."""


@dataclass(frozen=True)
class Record:
    """One record of a source. `where` names it in messages, `number` is its index in the source, from 0."""

    where: str
    number: int
    row: dict[str, Any]


class Fields(Data, frozen=True, kw_only=True):
    """Names of the columns: `text`, or `prompt` with or without `completion` or `reply`, or `messages`."""

    text: str | None = None
    """Column with plain text."""
    prompt: str | None = None
    """Column with the user's turn."""
    completion: str | None = None
    """Column with the answer to `prompt`."""
    reply: str | None = None
    """Column with a model's raw output after `prompt`; the template does not change it."""
    messages: str | None = None
    """Column with a whole chat: a list of {role, content}."""

    def __post_init__(self) -> None:
        if sum(v is not None for v in (self.text, self.prompt, self.messages)) != 1:
            raise ValueError("give exactly one of text, prompt, messages")
        if (self.completion or self.reply) and self.prompt is None:
            raise ValueError("completion and reply need prompt")
        if self.completion and self.reply:
            raise ValueError("give completion (rendered by the template) or reply (raw), not both")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line of a file, plain or gzipped. Raises `CalibrationError`."""
    try:
        with opened(path) as handle:
            for number, line in enumerate(lines(handle), 1):
                yield number, _decode(line, path, number).removesuffix("\n").removesuffix("\r")
    except (OSError, EOFError, zlib.error, TooLarge) as exc:
        raise _unreadable(path, str(exc)) from exc


def read_text(path: Path) -> str:
    """A whole text file, plain or gzipped. Raises `CalibrationError`."""
    try:
        data = whole(path)
    except (OSError, EOFError, zlib.error, TooLarge) as exc:
        raise _unreadable(path, str(exc)) from exc
    return _decode(data, path, 1)


def read_records(path: Path) -> Iterator[Record]:
    """Each record of a file by its name: .csv with a header, .parquet, else JSON lines; any but Parquet gzipped too.

    Raises `CalibrationError` naming the line or row, `MissingPrerequisite` for Parquet without pyarrow.
    """
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    return _read_csv(path) if kind == "csv" else _read_parquet(path) if kind == "parquet" else read_jsonl(path)


def _read_csv(path: Path) -> Iterator[Record]:
    # A quoted field may hold line ends, so they stay on the lines.
    rows = csv.DictReader(f"{line}\n" for _, line in read_lines(path))
    try:
        for count, row in enumerate(rows):
            if None in row or None in row.values():
                raise CalibrationError(
                    f"line {rows.line_num} of {path} has another number of fields than the header",
                    expected=", ".join(rows.fieldnames or ())[:200],
                    actual=f"{sum(value is not None for value in row.values())} fields",
                    remedy="correct the line; quote fields that hold a comma or a line end",
                )
            yield Record(f"line {rows.line_num} of {path.name}", count, row)
    except csv.Error as exc:
        raise CalibrationError(f"{path} is not CSV", expected="a header and rows", actual=str(exc)[:100]) from exc


def _read_parquet(path: Path) -> Iterator[Record]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as exc:
        raise MissingPrerequisite(
            f"{path.name} needs the package pyarrow", actual=str(exc), remedy="pip install 'trimoe[data]'"
        ) from exc
    try:
        count = 0
        with ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                for row in batch.to_pylist():
                    yield Record(f"row {count} of {path.name}", count, row)
                    count += 1
    except (OSError, ArrowException) as exc:
        raise CalibrationError(
            f"cannot read {path}", expected="a Parquet file", actual=str(exc)[:200], remedy="check the file"
        ) from exc


def read_jsonl(path: Path) -> Iterator[Record]:
    """Each line's object; blank lines are skipped. Raises `CalibrationError` naming the line."""
    count = 0
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise CalibrationError(
                f"line {number} of {path} is not JSON",
                expected="one JSON object per line",
                actual=line[:100],
                remedy="correct the line",
            ) from exc
        if not isinstance(row, dict):
            raise CalibrationError(
                f"line {number} of {path} is not an object", expected="one JSON object per line", actual=line[:100]
            )
        yield Record(f"line {number} of {path.name}", count, row)
        count += 1


def column(record: Record, name: str) -> Any:
    """A column of a record. Raises `CalibrationError` if it is missing."""
    if name not in record.row:
        raise CalibrationError(
            f"{record.where} has no field {name!r}",
            expected=name,
            actual=", ".join(sorted(record.row))[:200],
            remedy="correct `fields` of this source",
        )
    return record.row[name]


def string(record: Record, name: str) -> str:
    """A column that must be text. Raises `CalibrationError`."""
    return checked(column(record, name), f"field {name!r} of {record.where}")


def checked(value: Any, what: str) -> str:
    """`value` if it is a non-empty string that UTF-8 can encode. Raises `CalibrationError`."""
    if not isinstance(value, str) or not value:
        raise CalibrationError(f"{what} is not text", expected="a non-empty string", actual=repr(value)[:100])
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise CalibrationError(
            f"{what} contains half a surrogate pair",
            expected="Unicode text",
            actual=str(exc)[:100],
            remedy="correct the record: a character was cut in two",
        ) from exc
    return value


def messages_of(value: Any, what: str) -> list[Message]:
    """A chat [{role, content}, ...] without its other keys. Raises `CalibrationError`."""
    good = (
        isinstance(value, list)
        and value
        and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
        )
    )
    if not good:
        raise CalibrationError(
            f"{what} is not a chat", expected="[{role, content}, ...], each a text", actual=repr(value)[:100]
        )
    for message in value:
        if message["content"]:
            checked(message["content"], what)
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _decode(data: bytes, path: Path, number: int) -> str:
    try:
        return data.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as exc:
        line = number + data.count(b"\n", 0, exc.start)
        raise CalibrationError(
            f"{path} is not UTF-8",
            expected="UTF-8 text",
            actual=f"byte 0x{data[exc.start]:02x} in line {line}",
            remedy=f"convert it, for example: iconv -f latin1 -t utf-8 {path.name}",
        ) from exc


def _unreadable(path: Path, why: str) -> CalibrationError:
    return CalibrationError(
        f"cannot read {path}",
        expected="a text file, plain or gzipped",
        actual=why[:200],
        remedy="check the path in the set file",
    )
