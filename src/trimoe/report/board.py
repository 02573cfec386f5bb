"""Content of a report over run logs: the comparison and the audit of the same runs, as plain typed data.

Invariants: every row of the comparison is paired with the audit of its own run; numbers come from `compare` and `audit`
unchanged; runs under different conditions are in separate groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from trimoe.errors import RunLogError
from trimoe.judge import tables
from trimoe.judge.audit.audit import audit
from trimoe.judge.audit.result import RunAudit
from trimoe.judge.compare import compare
from trimoe.judge.comparison import Comparison, Row
from trimoe.report import words
from trimoe.report.data import Difference

Claim = Literal["worse", "better", "not shown"]


@dataclass(frozen=True)
class Line:
    """One model on one bench. `change` is None for the base, and if there is no base to compare with."""

    row: Row
    audit: RunAudit
    change: Difference | None

    @property
    def claim(self) -> Claim | None:
        """Result of the paired test, adjusted for the number of rows; None without a test."""
        if self.change is None:
            return None
        if not words.clear(self.change):
            return "not shown"
        return "worse" if self.change.points < 0 else "better"


@dataclass(frozen=True)
class Group:
    """Runs of one bench under the same conditions. `settings` names them if the bench has several groups."""

    bench: str
    settings: str
    lines: tuple[Line, ...]
    base: Line | None
    """The line that the others are compared with; None if the base was not run under these conditions."""


@dataclass(frozen=True)
class Board:
    """Everything on the page except its figures."""

    title: str
    base: str
    logs: tuple[str, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]

    @property
    def lines(self) -> tuple[Line, ...]:
        """All lines in page order."""
        return tuple(line for group in self.groups for line in group.lines)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all models, without duplicates."""
        return tuple(dict.fromkeys(line.row.name for line in self.lines))

    @property
    def benches(self) -> tuple[str, ...]:
        """Names of all benches, without duplicates."""
        return tuple(dict.fromkeys(group.bench for group in self.groups))

    def verdicts(self, verdict: str) -> tuple[Line, ...]:
        """Lines whose audit has this verdict."""
        return tuple(line for line in self.lines if line.audit.verdict == verdict)

    def claims(self, claim: Claim) -> tuple[Line, ...]:
        """Lines with this test result. Runs that the audit refuses, or whose base it refuses, are excluded."""
        sound = [group for group in self.groups if group.base is not None and not _refused(group.base)]
        return tuple(line for group in sound for line in group.lines if line.claim == claim and not _refused(line))


def _refused(line: Line) -> bool:
    return line.audit.verdict == "refused"


def make_board(logs: Sequence[Path], base: str | None, title: str) -> Board:
    """Compare and audit the runs of some logs. Raises the errors of `compare` and `audit`."""
    comparison = compare(list(logs), base=base, side_by_side=True)
    audits = _audits(logs, {(row.name, row.bench) for row in comparison.rows})
    groups = []
    for (bench, column), rows in _grouped(comparison.rows).items():
        lines = tuple(_line(row, audits) for row in rows)
        own = next((line for line in lines if line.row.name == comparison.base), None)
        groups.append(Group(bench, _settings(comparison, bench, column), lines, own))
    board = Board(title, comparison.base, tuple(path.name for path in logs), tuple(groups), comparison.notes)
    return board if title else replace(board, title=_title(board))


def _title(board: Board) -> str:
    others = [name for name in board.names if name != board.base]
    few = words.listed([*others[:4], *([f"{len(others) - 4} more"] if len(others) > 4 else [])])
    return f"{few} against {board.base}" if others else f"{board.base}"


def _audits(logs: Sequence[Path], wanted: set[tuple[str, str]]) -> dict[tuple[str, str], RunAudit]:
    """(name, bench), as named by the comparison -> audit."""
    found: dict[tuple[str, str], RunAudit] = {}
    for path in logs:
        for one in audit(path):
            label = f"{one.name}@{path.stem}"
            name = label if (label, one.bench) in wanted else one.name
            found[name, one.bench] = one
    if missing := wanted - found.keys():
        name, bench = min(missing)
        raise RunLogError(
            f"the run {name} on {bench} was not audited",
            expected="every run of the report",
            remedy="run the report again; the log changed while it was read",
        )
    return found


def _grouped(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.bench, row.column), []).append(row)
    return groups


def _settings(comparison: Comparison, bench: str, column: int) -> str:
    """Empty if the bench has a single group."""
    columns = {row.column for row in comparison.rows if row.bench == bench}
    return tables.settings_of(comparison, column, columns) if len(columns) > 1 else ""


def _line(row: Row, audits: dict[tuple[str, str], RunAudit]) -> Line:
    c = row.change
    change = None if c is None else Difference(c.difference, c.low, c.high, c.p, c.p_holm, c.lost, c.gained, c.pairs)
    return Line(row, audits[row.name, row.bench], change)
