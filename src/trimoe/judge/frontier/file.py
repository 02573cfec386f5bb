"""The CSV of a ladder: one file per line, measured (`run` names a run) or published (`score` is given).

Columns: model, tier, and size_gb or bytes or file; run, or score in percent with n and source; params in billions.
Invariants: unknown columns are refused; a row is one kind or the other; every number must be finite and possible.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

from trimoe.errors import BadInput, Refused
from trimoe.judge.frontier.frontier import GB, Point
from trimoe.judge.gather import Read, gather
from trimoe.judge.runs import require_same

COLUMNS = {"model", "tier", "size_gb", "bytes", "file", "params", "run", "bench", "score", "n", "source"}


MOST = 1e15  # a petabyte, in bytes


def read_ladder(path: Path, logs: list[Path], bench: str, *, alone: bool = True) -> list[Point]:
    """The file's points of one bench, in its order; a row without a bench is of the one asked for, which a published
    one can be only if no other bench is asked for (`alone`).

    Raises `BadInput` naming the line, `Refused` when measured runs differ in engine, sampler or stack.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, strict=True)
            names = set(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise BadInput(f"ladder {path} is not readable", expected="a CSV file", actual=str(exc)) from exc
    if len(names) < len(reader.fieldnames or ()):
        raise BadInput(
            f"ladder {path} has a column twice", expected="each once", actual=", ".join(reader.fieldnames or ())
        )
    if unknown := names - COLUMNS:
        raise BadInput(
            f"ladder {path} has unknown columns",
            expected=", ".join(sorted(COLUMNS)),
            actual=", ".join(sorted(map(str, unknown))),
            remedy="see docs/howto/ladder.md",
        )
    if not {"model", "tier"} <= names:
        raise BadInput(
            f"ladder {path} lacks columns", expected="model, tier and a size", actual=", ".join(sorted(names))
        )
    runs = gather(logs) if logs else {}
    points: list[Point] = []
    used: list[Read] = []
    seen: set[tuple[str, str, bool]] = set()
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
        if cells.get("score") and not cells.get("bench") and not alone:
            raise BadInput(
                f"{where}: of which bench is this score?",
                expected="a column bench",
                actual="several are asked for",
                remedy="say it in the file, or ask for one --bench",
            )
        if told := [key for key in ("n", "source") if cells.get("run") and cells.get(key)]:
            raise BadInput(f"{where}: {told[0]} is not asked of a measured file", expected="nothing: the log says it")
        name_of = (cells["model"], cells["tier"], bool(cells.get("run")))
        if name_of in seen or not any(name_of[:2]):
            raise BadInput(
                f"{where}: model and tier name no file of their own",
                expected="each file once, with a name",
                actual=f"{cells['model']} {cells['tier']}",
            )
        seen.add(name_of)
        if name := cells.get("run"):
            read = runs.get((name, bench))
            if read is None:
                raise BadInput(
                    f"{where}: no run named {name} on {bench}",
                    expected="a run in the given logs",
                    remedy="name the run log, or correct the name",
                )
            if read.score is None:
                raise Refused(f"{where}: run {name} could not be scored", remedy="run eval again")
            if used:
                require_same(used[0].run, read.run)
                if used[0].answers.keys() != read.answers.keys():
                    raise Refused(
                        f"{where}: runs {used[0].run.name} and {name} did not answer the same items",
                        expected="runs that are complete",
                        remedy="run eval again: it goes on",
                    )
            used.append(read)
            points.append(
                Point(
                    cells["model"],
                    cells["tier"],
                    size,
                    read.score,
                    "measured",
                    len(read.answers),
                    params and params * 1e9,
                    f"run {name}",
                    read,
                )
            )
        else:
            score, n = _number(cells, "score", where), _number(cells, "n", where)
            if n is not None and (n < 1 or n != int(n)):
                raise BadInput(f"{where}: n is no number of items", expected="a whole number from 1", actual=cells["n"])
            if score is None or not 0 <= score <= 100:
                raise BadInput(f"{where}: score is not in percent", expected="0 to 100", actual=cells["score"])
            points.append(
                Point(
                    cells["model"],
                    cells["tier"],
                    size,
                    score / 100,
                    "published",
                    int(n) if n else None,
                    params and params * 1e9,
                    cells.get("source", ""),
                )
            )
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
    if not 0 <= value <= MOST or "_" in text:  # not a number is in no range
        raise BadInput(f"{where}: {key} is not a number", expected=f"0 to {MOST:g}", actual=text[:40])
    return value
