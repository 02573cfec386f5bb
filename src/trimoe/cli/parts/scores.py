"""The table of scores that `trimoe eval` and `trimoe rescore` print."""

from collections.abc import Sequence

from trimoe.evaluate.log.summary import RunSummary


def scores_text(runs: Sequence[RunSummary]) -> str:
    """One line per run: correct of scored, score with its 95 % interval, token limits, causes of the misses; marks.

    The flags on token limits are explained below the table.
    """
    lines = [line for run in runs for line in _lines(run)]
    flags = {run.ceilings["verdict"] for run in runs if run.ceilings and run.score is not None}
    meanings = {
        "CLEAN": "CLEAN: no reply was cut at a token limit.",
        "CAPPED": "CAPPED: replies were cut at a token limit, so the score may be too low.",
    }
    return "\n".join([*lines, *(text for flag, text in meanings.items() if flag in flags)])


def _counts(run: RunSummary) -> str:
    """Correct of scored; of all rows where some are not scored, so that 80 of 100 does not read as 80 of 80."""
    scored = run.n - run.unscored
    return f"{run.correct:>4}/{scored:<4}" if run.score is not None else f"{run.correct} right of {scored} scored:"


def _lines(run: RunSummary) -> list[str]:
    from trimoe.judge.statistics.paired import wilson

    low, high = wilson(run.correct, run.n - run.unscored)
    score = (
        "no score" if run.score is None else f"{100 * run.score:5.1f} %  (95 %: {100 * low:.1f} to {100 * high:.1f})"
    )
    if run.parts:
        score += "  " + ", ".join(f"{k} {'-' if v is None else f'{100 * v:.1f}'}" for k, v in run.parts.items())
    misses = ", ".join(f"{count} {cause}" for cause, count in run.causes.items() if cause != "correct")
    limits = "limits unknown" if run.ceilings is None else run.ceilings["verdict"]
    if run.score is None:
        limits = ""  # how replies ended says nothing about a score that there is not
    fields = [f"{run.bench:<12} {_counts(run)} {score}", limits, misses]
    lines = ["  ".join(filter(None, fields))]
    if run.score is None and run.unscored:
        lines.append(f"  {run.unscored} of {run.n} rows are not scored; run the same command again to retry them")
    if run.ceilings and run.ceilings["verdict"] == "CAPPED":
        hit, capped, tax = (run.ceilings[key] for key in ("hit", "capped", "tax_pp"))
        replies = f"{capped} {'reply' if capped == 1 else 'replies'}"
        lines.append(f"  {replies} hit the limit ({hit}), which costs at most {tax:.1f} points of the score")
    return [*lines, *(f"  ! {mark}" for mark in run.marks)]
