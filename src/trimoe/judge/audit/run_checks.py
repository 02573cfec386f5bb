"""Checks of a single run, one row each, in reading order."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trimoe.evaluate.log.marks import Flag, Mark
from trimoe.evaluate.log.records import Run, Scored
from trimoe.judge.audit.check import Check
from trimoe.judge.audit.rules import Rules, Thresholds
from trimoe.judge.measures import Measures


def run_checks(
    run: Run,
    samples: Sequence[Scored],
    m: Measures,
    limits: Thresholds,
    r: Rules,
    leaks: Mapping[str, Any] | None,
    code: bool,
) -> Iterator[Check]:
    """Every check of one run; `code` also looks for the data set's own solutions in the replies."""
    if m.n == 0:
        yield Check("NO_SAMPLES", r.levels["NO_SAMPLES"], "the run holds no samples")
        return
    yield from _whole(run, m, limits, r)
    yield from _content(m, limits, r)
    yield from _length(m, limits, r)
    yield from _text(m, limits, r)
    if code:
        yield _verbatim(m, limits, r)
    yield _leaks(run, samples, leaks, limits, r)


def mark_checks(marks: Sequence[Mark], known: bool, r: Rules) -> Iterator[Check]:
    """The score's caveats, one row each: what was switched off, ignored, unverified or left out; one row if nothing."""
    if not marks:
        yield (
            Check("MARKS", "ok", "nothing was switched off, ignored or left out")
            if known
            else Check("MARKS", "not checked", "the log does not say how the replies were made")
        )
    for mark in marks:
        yield Check(mark.flag, r.levels[mark.flag], f"{_MEANING[mark.flag]}: {mark.text}")


_MEANING: Mapping[Flag, str] = {
    "NO_SANDBOX": "generated code ran without a sandbox",
    "NO_PREFLIGHT": "the server was not checked before the run",
    "UNVERIFIED": "the server did not report settings that the score depends on",
    "GUARD_IGNORED": "a guard paused the run and was overruled",
    "LEFT_OUT": "rows failed and the score leaves them out",
    "RECOVERED": "the log was damaged, and rows may be missing",
    "PAUSED": "the run is not finished: it stopped and was not continued",
    "NOT_COMPARED": "the record does not show that these are the bench's questions",
    "OTHER_PROMPTS": "the recorded prompts are not the bench's",
    "OTHER_ROWS": "the file held more than the bench's rows",
    "PROGRAMS": "the record has extracted programs, so extraction is not judged",
    "STATED": "the protocol's extraction and the replies' final statements disagree",
    "REPEATS": "the score is pass@1, averaged over repeated replies",
}


def _share(flag: str, docs: tuple[str, ...], n: int, limit: float, what: str, r: Rules, some: str = "") -> Check:
    """A check of a share: `flag` fires above the limit; below it `some` fires if there is any item."""
    share = len(docs) / n
    text = f"{len(docs)} of {n} {what} ({100 * share:.1f} %, at most {100 * limit:g} %)"
    level = r.levels[flag] if share > limit else r.levels[some] if some and docs else "ok"
    return Check(flag if share > limit or not (some and docs) else some, level, text, share, limit, docs)


def _whole(run: Run, m: Measures, limits: Thresholds, r: Rules) -> Iterator[Check]:
    rows = run.spec.get("rows")
    if not isinstance(rows, int):
        yield Check("PARTIAL", "not checked", f"{m.n} samples; the bench does not say how many there are")
    elif m.n > rows:
        text = f"{m.n} items were answered, and the bench has {rows}: they are not the bench's rows; import them again"
        yield Check("SURPLUS", r.levels["SURPLUS"], text, m.n, rows)
    elif m.n < rows:
        yield Check("PARTIAL", r.levels["PARTIAL"], f"{m.n} of {rows} items were answered", m.n, rows)
    else:
        yield Check("PARTIAL", "ok", f"all {rows} items were answered", m.n, rows)
    yield _share("UNSCORED", m.unscored, m.n, limits.unscored, "samples could not be scored", r, "UNSCORED_SOME")
    if m.scored and not m.correct:
        yield Check("ZERO", r.levels["ZERO"], f"0 of {m.scored} are right: compare raw and extracted text first", 0.0)
    elif not m.scored:
        yield Check("ZERO", r.levels["ZERO"], "nothing is scored, so there is no score")
    else:
        yield Check("ZERO", "ok", f"{m.correct} of {m.scored} are right", m.correct / m.scored)


def _content(m: Measures, limits: Thresholds, r: Rules) -> Iterator[Check]:
    yield _share("EMPTY", m.empty, m.n, limits.empty, "replies are empty", r, "EMPTY_SOME")
    what = f"replies under {limits.short_chars} characters missed"
    yield _share("EMPTY_FAIL", m.short_failures, m.n, limits.short_failures, what, r)


def _length(m: Measures, limits: Thresholds, r: Rules) -> Iterator[Check]:
    p10, p50, _ = m.chars
    for flag, value, limit, fires, word in (
        ("TOO_SHORT", p10, limits.p10_min, p10 < limits.p10_min, "least"),
        ("TOO_LONG", p50, limits.p50_max, p50 > limits.p50_max, "most"),
    ):
        which = "tenth percentile" if flag == "TOO_SHORT" else "median"
        text = f"the {which} of the replies has {value:.0f} characters (at {word} {limit})"
        yield Check(flag, r.levels[flag] if fires else "ok", text, value, limit)
    what = "replies were cut at a limit"
    if not m.finished:
        yield Check("LENGTH_STOPS", "not checked", "the samples have no finish reason")
    else:
        yield _share("LENGTH_STOPS", m.length_stops, m.n, limits.length_stops, what, r, "LENGTH_STOPS_SOME")
    yield _ceilings(m, r)
    share = len(m.saturated) / m.n
    text = f"{len(m.saturated)} of {m.n} replies are over {limits.saturated_chars} characters ({100 * share:.1f} %)"
    collapse = share > limits.saturated_collapse
    level = r.levels["SAT_COLLAPSE"] if collapse else "ok"
    yield Check("SAT_COLLAPSE", level, text, share, limits.saturated_collapse, m.saturated)
    text = f"{len(m.loops)} of {m.n} replies loop, in content or reasoning"
    yield Check("LOOP", r.levels["LOOP"] if m.loops else "ok", text, len(m.loops) / m.n, 0.0, m.loops)


def _ceilings(m: Measures, r: Rules) -> Check:
    c = m.ceilings
    if c is None:
        text = "tokens were not counted, so the cost of limits is unknown"
        return Check("UNCOUNTED", r.levels["UNCOUNTED"], text)
    text = (
        f"{c.capped} replies at a ceiling ({c.hit}), {c.capped_correct} of them right: costs at most {c.tax_pp:.2f} pp"
    )
    level = r.levels["CAPPED"] if c.verdict == "CAPPED" else "ok"
    return Check("CAPPED", level, text if c.capped else "no reply at a ceiling: costs nothing", c.tax_pp, 0.0)


def _text(m: Measures, limits: Thresholds, r: Rules) -> Iterator[Check]:
    named = f" ({', '.join(m.marker_names)})" if m.marker_names else ""
    yield _share(
        "MARKERS", m.markers, m.n, 0.0, f"replies contain control text of a chat template or a thought{named}", r
    )
    what = "replies drift into a script that the prompt does not have"
    yield _share("LANGUAGE", m.foreign, m.n, limits.foreign, what, r, "LANGUAGE_SOME")
    what = "replies are equal to the reply to another prompt"
    yield _share("DUPLICATES", m.duplicates, m.n, limits.duplicates, what, r, "DUPLICATES_SOME")


def _verbatim(m: Measures, limits: Thresholds, r: Rules) -> Check:
    if m.verbatim is None:
        return Check("VERBATIM", "not checked", "the data set's own solutions are not available (--data)")
    share = len(m.verbatim) / m.n
    text = f"{len(m.verbatim)} of {m.n} replies contain the data set's own solution ({100 * share:.1f} %)"
    memorised = share >= limits.verbatim
    level = r.levels["VERBATIM"] if memorised else "ok"
    more = f"; {100 * limits.verbatim:g} % or more suggests memorisation" if memorised else ""
    return Check("VERBATIM", level, text + more, share, limits.verbatim, m.verbatim)


def _leaks(run: Run, samples: Sequence[Scored], leaks: Mapping[str, Any] | None, limits: Thresholds, r: Rules) -> Check:
    """Overlap of the calibration set with the bench, and the score without the overlapping items."""
    if leaks is None:
        return Check("LEAK", "not checked", "no calibration statistics given (--stats)")
    row = leaks.get("benches", {}).get(run.bench) or leaks.get("benches", {}).get(run.bench.partition(":")[0])
    if row is None:
        names = ", ".join(leaks.get("benches", {})) or "no bench"
        return Check("LEAK", "not checked", f"the leak check of the statistics covers {names}, not {run.bench}")
    overlapping, undeclared = tuple(map(str, row["overlapping"])), tuple(map(str, row["undeclared"]))
    share = len(undeclared) / row["items"] if row["items"] else 0.0
    without = [
        s.verdict.correct for s in samples if s.verdict.correct is not None and s.sample.doc_id not in overlapping
    ]
    shared = len(row.get("boilerplate", ()))
    also = f"; {shared} others share only words common in the bench" if shared else ""
    rest = f"; without them {100 * sum(without) / len(without):.1f} % of {len(without)}" if without else ""
    if undeclared:
        flag = "LEAK" if share > limits.undeclared else "LEAK_SOME"
        text = (
            f"{len(undeclared)} of {row['items']} items share distinctive words with the calibration set and are "
            f"not declared{also}{rest}"
        )
        return Check(flag, r.levels[flag], text, share, limits.undeclared, undeclared)
    if overlapping:
        text = (
            f"{len(overlapping)} of {row['items']} items are in the calibration set on purpose: disclose it{also}{rest}"
        )
        return Check("LEAK_DECLARED", r.levels["LEAK_DECLARED"], text, 0.0, limits.undeclared, overlapping)
    checked = row["items"] - row["unchecked"]
    return Check("LEAK", "ok", f"nothing shared with the calibration set ({checked} items checked){also}", 0.0)
