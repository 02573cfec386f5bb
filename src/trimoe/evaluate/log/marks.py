"""The caveats shown with a score: checks that were disabled or not possible, guards ignored, rows left out.

Invariants: marks come from the run's events and results, so running the same command again with other options does not
remove one; a pause ends when the run is continued. A guard counts as ignored only if it would have paused the run.
Not guaranteed: marks of imported runs say only what the import could not compare, because their record does not say
how they were made.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trimoe.evaluate.log.reader import LogReader
from trimoe.evaluate.log.records import Run

Flag = Literal[
    "NO_SANDBOX",
    "NO_PREFLIGHT",
    "UNVERIFIED",
    "GUARD_IGNORED",
    "LEFT_OUT",
    "PAUSED",
    "RECOVERED",
    "NOT_COMPARED",
    "OTHER_PROMPTS",
    "OTHER_ROWS",
    "PROGRAMS",
    "REPEATS",
    "STATED",
]
OVERRULED = "guard overruled"  # event: an ignored guard would have paused the run
MADE = ("generating", "asking")  # events of runs made by trimoe
PAUSED = "paused"  # event: a guard or a changed server stopped the run
CONCLUDED = "concluded"  # event: a paused run ended without a pause, although nothing was missing
# Preflight findings that a score depends on and that cannot be seen in the replies.
UNVERIFIED = ("model", "context", "thinking", "thinking budget", "special tokens")


@dataclass(frozen=True)
class Mark:
    """One caveat; `text` is shown in tables."""

    flag: Flag
    text: str


def marks_of(log: LogReader, run: Run) -> list[Mark]:
    """Marks on how the replies of a run were generated and judged, oldest first."""
    return marks_of_events(log.events(run))


def marks_of_events(events: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Mark]:
    """The same from a run's events (kind, detail), oldest first."""
    found: dict[Mark, None] = {}
    pause: Mark | None = None
    for kind, detail in events:
        if kind == PAUSED:
            pause = _pause(detail)
        elif kind in (*MADE, OVERRULED, CONCLUDED, "scored by lm-eval"):
            pause = None
        if kind in (*MADE, "rescoring"):
            found |= dict.fromkeys(_of_event(detail))
        elif kind == "recovered":
            found[Mark("RECOVERED", "recovered from a damaged log")] = None
        elif kind == "imported":
            found |= dict.fromkeys(_of_import(detail))
        elif kind == OVERRULED:
            found[Mark("GUARD_IGNORED", f"guard {detail['guard']} ignored")] = None
    return [*([pause] if pause else []), *found]


def shown_marks(log: LogReader, run: Run) -> list[Mark]:
    """Marks of a stored run, including rows left out of its score and rows with a second opinion, for readers that
    compute no result themselves."""
    left = max((result.errors for result in log.results(run) if result.score is not None), default=0)
    other = log.stated(run)
    return [*marks_of(log, run), *([left_out(left)] if left else []), *([stated(other)] if other else [])]


def left_out(rows: int) -> Mark:
    """The mark for rows that could not be scored and were excluded from the score."""
    return Mark("LEFT_OUT", f"{rows} unscored rows left out")


def stated(rows: int) -> Mark:
    """The mark for rows whose final statement disagrees with what the protocol's extraction took or credited."""
    return Mark("STATED", f"{rows} state another final answer")


def was_made_here(log: LogReader, run: Run) -> bool:
    """Whether trimoe made the run, so that the log says how."""
    return any(kind in MADE for kind, _ in log.events(run))


def is_paused(log: LogReader, run: Run) -> bool:
    """Whether the last thing that happened to a run is a pause."""
    return any(mark.flag == "PAUSED" for mark in marks_of(log, run))


def _pause(detail: Mapping[str, Any]) -> Mark:
    why = f"by guard {detail['guard']}" if "guard" in detail else "because the server changed"
    return Mark("PAUSED", f"paused {why}, no valid score")


def _of_import(detail: Mapping[str, Any]) -> list[Mark]:
    marks, rows = [], detail.get("matched")
    if not isinstance(rows, Mapping):
        marks.append(Mark("NOT_COMPARED", "rows not compared with the bench"))  # imported by an earlier version
    else:
        total, sure = rows["rows"], rows["compared"]
        if sure < total:
            what = "questions" if sure + rows["only_answers_compared"] == total else "rows"
            marks.append(Mark("NOT_COMPARED", f"{total - sure} of {total} {what} not compared with the bench"))
        if rows["other_prompts"]:
            marks.append(Mark("OTHER_PROMPTS", f"{rows['other_prompts']} prompts in other words than the bench's"))
        if rows["left_out"]:
            marks.append(Mark("OTHER_ROWS", f"{rows['left_out']} rows of the file are not of the bench"))
    if detail.get("programs"):
        marks.append(Mark("PROGRAMS", "programs were recorded, not replies"))
    if repeats := detail.get("repeats"):
        marks.append(Mark("REPEATS", f"mean of {repeats['epochs']} replies per row"))
    return marks


def _of_event(detail: Mapping[str, Any]) -> list[Mark]:
    marks = []
    if (detail.get("sandbox") or {}).get("engine") == "none":
        marks.append(Mark("NO_SANDBOX", "no sandbox"))
    if detail.get("missing") == 0:
        return marks  # nothing was missing, so preflight and guards were not needed
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
