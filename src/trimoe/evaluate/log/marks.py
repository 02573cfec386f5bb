"""What a reader must know of how a run was made: checks that were switched off or could not be made, rows left out.

Invariants: read from the run's events and results, so a mark cannot be taken off by running the same command again
with other options; once is enough. A guard counts as ignored when it would have paused the run.
Not guaranteed: marks of runs that others made (imports), whose log says nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trimoe.evaluate.log.run_log import Run, RunLog

Flag = Literal["NO_SANDBOX", "NO_PREFLIGHT", "UNVERIFIED", "GUARD_IGNORED", "LEFT_OUT"]
OVERRULED = "guard overruled"  # event: a guard would have paused the run, and was ignored
MADE = ("generating", "asking")  # events of a run that was made here
UNVERIFIED = (
    "model",
    "context",
    "thinking",
    "thinking budget",
)  # findings that a score depends on and a reader cannot see


@dataclass(frozen=True)
class Mark:
    """One remark; `text` is what tables show."""

    flag: Flag
    text: str


def marks_of(log: RunLog, run: Run) -> list[Mark]:
    """Marks of how the replies of a run were made and judged, in the order they came up."""
    return marks_of_events(log.events(run))


def marks_of_events(events: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Mark]:
    """The same from a run's events, oldest first: (kind, detail)."""
    found: dict[Mark, None] = {}
    for kind, detail in events:
        if kind in (*MADE, "rescoring"):
            found |= dict.fromkeys(_of_event(detail))
        elif kind == OVERRULED:
            found[Mark("GUARD_IGNORED", f"guard {detail['guard']} ignored")] = None
    return list(found)


def shown_marks(log: RunLog, run: Run) -> list[Mark]:
    """The same, and the rows that a stored score leaves out: for readers of a log that make no result of their own."""
    left = max((result.errors for result in log.results(run) if result.score is not None), default=0)
    return marks_of(log, run) + ([left_out(left)] if left else [])


def left_out(rows: int) -> Mark:
    """Rows that could not be scored and were excluded from the score."""
    return Mark("LEFT_OUT", f"{rows} unscored rows left out")


def was_made_here(log: RunLog, run: Run) -> bool:
    """Whether the log says how the run was made."""
    return any(kind in MADE for kind, _ in log.events(run))


def _of_event(detail: Mapping[str, Any]) -> list[Mark]:
    marks = []
    if (detail.get("sandbox") or {}).get("engine") == "none":
        marks.append(Mark("NO_SANDBOX", "no sandbox"))
    if detail.get("missing") == 0:
        return marks  # nothing was asked for: neither preflight nor guards were needed
    preflight = detail.get("preflight")
    if preflight is False:
        marks.append(Mark("NO_PREFLIGHT", "no preflight"))
    elif isinstance(preflight, Mapping):
        marks += [
            Mark("UNVERIFIED", f"{name} unverified")
            for name in UNVERIFIED
            if (preflight.get(name) or {}).get("status") == "unverified"
        ]
    return marks
