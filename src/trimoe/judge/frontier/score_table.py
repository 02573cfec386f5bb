"""Score tables: a CSV with one file per line, measured (`run` names a run) or published (`score` is given).

Columns: model, tier, and size_gb or bytes or file; run, or score in percent with n and source; params in billions.
Invariants: unknown columns are refused; a row is of one kind; every number must be finite and possible.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from trimoe.errors import BadInput, Refused
from trimoe.io.paths import places
from trimoe.judge.frontier.points import GB, Point
from trimoe.judge.gather import Read, gather
from trimoe.judge.runs import require_same

COLUMNS = {"model", "tier", "size_gb", "bytes", "file", "params", "run", "bench", "score", "n", "source"}
LARGEST = 1e15  # of any number: a petabyte, in bytes

Row = Mapping[str, str]


def read_score_table(
    path: Path | str, logs: Sequence[Path | str], bench: str, *, only_bench: bool = True
) -> list[Point]:
    """The points of one bench, in the order of the file.

    A row without a bench belongs to the bench asked for; a published one only if no other bench is asked for
    (`only_bench`). Raises `BadInput` naming the line, `Refused` when measured runs differ in engine, sampler or stack.
    """
    path = Path(path)
    runs = {name: read for (name, of), read in (gather(logs) if logs else {}).items() if of == bench}
    points: list[Point] = []
    seen: set[tuple[str, str, bool]] = set()
    for where, row in _rows(path):
        if row.get("bench") and row["bench"] != bench:
            continue
        measured = bool(row.get("run"))
        if measured == bool(row.get("score")):
            raise BadInput(
                f"{where} must have either run or score",
                expected="run for a measured file, score for a published one",
                actual="both" if measured else "neither",
                remedy="leave one out",
            )
        if not (measured or row.get("bench") or only_bench):
            raise BadInput(
                f"{where} does not name the bench of its score",
                expected="a column bench",
                actual="several benches are asked for",
                remedy="add the bench to the file, or ask for one --bench",
            )
        identity = (row["model"], row["tier"], measured)
        if identity in seen or not any(identity[:2]):
            raise BadInput(
                f"{where}: model and tier do not name one file",
                expected="each file once, with a name",
                actual=f"{row['model']} {row['tier']}",
                remedy="list each file once",
            )
        seen.add(identity)
        point = _measured(path, where, row, runs, bench) if measured else _published(path, where, row)
        _require_comparable(where, point, points)
        points.append(point)
    if not points:
        raise BadInput(
            f"score table {path} has no row for {bench}",
            expected="at least one file",
            actual="none",
            remedy="correct --bench, or add rows",
        )
    return points


def _rows(path: Path) -> list[tuple[str, Row]]:
    """(where, cells by column) of every line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, strict=True)
            names = list(reader.fieldnames or ())
            rows = [(f"score table {path}, line {reader.line_num}", row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise BadInput(
            f"score table {path} is not readable", expected="a CSV file", actual=str(exc), remedy="check the path"
        ) from exc
    remedy = "see docs/howto/ladder.md"
    if len(set(names)) < len(names):
        raise BadInput(
            f"score table {path} has a column twice", expected="each once", actual=", ".join(names), remedy=remedy
        )
    if unknown := set(names) - COLUMNS:
        raise BadInput(
            f"score table {path} has unknown columns",
            expected=", ".join(sorted(COLUMNS)),
            actual=", ".join(sorted(map(str, unknown))),
            remedy=remedy,
        )
    if not {"model", "tier"} <= set(names):
        raise BadInput(
            f"score table {path} lacks columns",
            expected="model, tier and a size",
            actual=", ".join(sorted(names)),
            remedy=remedy,
        )
    for where, row in rows:
        if None in row or None in row.values():
            raise BadInput(
                f"{where} has a different number of cells than the header",
                expected=f"{len(names)} cells",
                actual="more" if None in row else "fewer",
                remedy="correct the line",
            )
    return [(where, {key: value.strip() for key, value in row.items()}) for where, row in rows]


def _measured(path: Path, where: str, row: Row, runs: Mapping[str, Read], bench: str) -> Point:
    if given := [key for key in ("n", "source") if row.get(key)]:
        raise BadInput(
            f"{where}: {given[0]} is not allowed for a measured file",
            expected="an empty cell",
            actual=row[given[0]],
            remedy="leave it empty: the run log has it",
        )
    size, params, name = _size(row, path.parent, where), _number(row, "params", where), row["run"]
    read = runs.get(name)
    if read is None:
        raise BadInput(
            f"{where}: no run named {name} on {bench}",
            expected="a run in the given logs",
            actual=", ".join(runs) or "no run of this bench",
            remedy="give the run log, or correct the name",
        )
    if read.score is None:
        raise Refused(
            f"{where}: run {name} has no score",
            expected="a scored run",
            actual="items not scored",
            remedy="run eval again",
        )
    weights = params and params * 1e9
    n = len(read.answers)
    return Point(row["model"], row["tier"], size, read.score, "measured", n, weights, f"run {name}", read)


def _published(path: Path, where: str, row: Row) -> Point:
    size, params = _size(row, path.parent, where), _number(row, "params", where)
    score, n = _number(row, "score", where), _number(row, "n", where)
    if n is not None and (n < 1 or n != int(n)):
        raise BadInput(
            f"{where}: n is not a number of items",
            expected="a whole number from 1",
            actual=row["n"],
            remedy="correct the cell",
        )
    if score is None or not 0 <= score <= 100:
        raise BadInput(
            f"{where}: score is not in percent", expected="0 to 100", actual=row["score"], remedy="correct the cell"
        )
    items, weights = int(n) if n else None, params and params * 1e9
    return Point(row["model"], row["tier"], size, score / 100, "published", items, weights, row.get("source", ""))


def _require_comparable(where: str, point: Point, others: Sequence[Point]) -> None:
    """Raise `Refused` unless a measured point has the conditions and items of the first measured one."""
    first = next((other.read for other in others if other.read is not None), None)
    if first is None or point.read is None:
        return
    require_same(first.run, point.read.run)
    if first.answers.keys() != point.read.answers.keys():
        raise Refused(
            f"{where}: runs {first.run.name} and {point.read.run.name} did not answer the same items",
            expected="complete runs",
            actual=f"{len(first.answers)} and {len(point.read.answers)} scored items",
            remedy="run eval again: it resumes",
        )


def _size(row: Row, folder: Path, where: str) -> int:
    """Bytes of the file, from the one size that the row gives."""
    given = [key for key in ("size_gb", "bytes", "file") if row.get(key)]
    if len(given) != 1:
        raise BadInput(
            f"{where} needs one size",
            expected="size_gb, bytes or file",
            actual=", ".join(given) or "none",
            remedy="give exactly one of them",
        )
    if given == ["file"]:
        path = places(folder, where)(Path(row["file"]))
        files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.gguf")]
        if not files:
            raise BadInput(
                f"{where}: {path} contains no weights",
                expected="a GGUF file or a checkpoint folder",
                actual="no such file",
                remedy="correct the path, which is relative to the table",
            )
        return sum(f.stat().st_size for f in files)
    number = _number(row, given[0], where)
    size = round(number * GB if given == ["size_gb"] else number) if number else 0
    if size < 1:
        raise BadInput(
            f"{where}: {given[0]} is not a size",
            expected="a positive number",
            actual=row[given[0]],
            remedy="correct the cell",
        )
    return size


def _number(row: Row, key: str, where: str) -> float | None:
    text = row.get(key, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= LARGEST or "_" in text:  # NaN is in no range
        raise BadInput(
            f"{where}: {key} is not a number", expected=f"0 to {LARGEST:g}", actual=text[:40], remedy="correct the cell"
        )
    return value
