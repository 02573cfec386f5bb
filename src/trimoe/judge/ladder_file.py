"""The CSV of a ladder: one file per line, measured (`run` names a run) or published (`score` is given).

Columns: model, tier, and size_gb or bytes or file; run, or score in percent with n and source; params in billions.
Invariants: unknown columns are refused; a row is one kind or the other; every number must be finite and possible.
"""

import csv
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from trimoe.errors import BadInput, Refused
from trimoe.judge.gather import Read, gather
from trimoe.judge.ladder import GB, Point
from trimoe.judge.runs import require_same

COLUMNS = {"model", "tier", "size_gb", "bytes", "file", "params", "run", "bench", "score", "n", "source"}


def read_ladder(path: Path, logs: list[Path], bench: str) -> list[Point]:
    """The file's points of one bench, in its order; a row without a bench is of the one asked for.

    Raises `BadInput` naming the line, `Refused` when measured runs differ in engine, sampler or stack.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, strict=True)
            names = set(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise BadInput(f"ladder {path} is not readable", expected="a CSV file", actual=str(exc)) from exc
    if unknown := names - COLUMNS:
        raise BadInput(f"ladder {path} has unknown columns", expected=", ".join(sorted(COLUMNS)),
                       actual=", ".join(sorted(map(str, unknown))), remedy="see docs/howto/ladder.md")  # fmt: skip
    if not {"model", "tier"} <= names:
        raise BadInput(f"ladder {path} lacks columns", expected="model, tier and a size",
                       actual=", ".join(sorted(names)))  # fmt: skip
    runs = gather(logs) if logs else {}
    points: list[Point] = []
    used: list[Read] = []
    for line, row in rows:
        where = f"ladder {path}, line {line}"
        if None in row or None in row.values():
            raise BadInput(f"{where} has another number of cells than the head", expected=f"{len(names)} cells")
        cells = {key: value.strip() for key, value in row.items()}
        if cells.get("bench") and cells["bench"] != bench:
            continue
        size, params = _size(cells, path.parent, where), _number(cells, "params", where)
        if bool(cells.get("run")) == bool(cells.get("score")):
            raise BadInput(f"{where} must have either run or score", expected="run: measured; score: published")
        if name := cells.get("run"):
            read = runs.get((name, bench))
            if read is None:
                raise BadInput(f"{where}: no run named {name} on {bench}", expected="a run in the given logs",
                               remedy="name the run log, or correct the name")  # fmt: skip
            if read.score is None:
                raise Refused(f"{where}: run {name} could not be scored", remedy="run eval again")
            if used:
                require_same(used[0].run, read.run)
            used.append(read)
            points.append(Point(cells["model"], cells["tier"], size, read.score, "measured", len(read.answers),
                                params and params * 1e9, f"run {name}", tuple(read.answers.items())))  # fmt: skip
        else:
            score, n = _number(cells, "score", where), _number(cells, "n", where)
            if score is None or not 0 <= score <= 100:
                raise BadInput(f"{where}: score is not in percent", expected="0 to 100", actual=cells["score"])
            points.append(Point(cells["model"], cells["tier"], size, score / 100, "published", int(n) if n else None,
                                params and params * 1e9, cells.get("source", "")))  # fmt: skip
    if not points:
        raise BadInput(f"ladder {path} has no row of {bench}", expected="at least one file")
    return points


def _size(cells: Mapping[str, str], folder: Path, where: str) -> int:
    given = [key for key in ("size_gb", "bytes", "file") if cells.get(key)]
    if len(given) != 1:
        raise BadInput(f"{where} needs one size", expected="size_gb, bytes or file", actual=", ".join(given) or "none")
    if given == ["file"]:
        path = folder / cells["file"]
        files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.gguf")]
        if not files:
            raise BadInput(f"{where}: {path} holds no weights", expected="a GGUF file or a checkpoint folder")
        return sum(f.stat().st_size for f in files)
    number = _number(cells, given[0], where)
    size = round(number * GB if given == ["size_gb"] else number) if number else 0
    if size < 1:
        raise BadInput(f"{where}: {given[0]} is no size", expected="a positive number", actual=cells[given[0]])
    return size


def _number(cells: Mapping[str, str], key: str, where: str) -> float | None:
    text = cells.get(key, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value) or value < 0:
        raise BadInput(f"{where}: {key} is not a number", expected="a finite number from 0", actual=text[:40])
    return value
