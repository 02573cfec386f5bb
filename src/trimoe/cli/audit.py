"""`trimoe audit`: whether each score of a run log is fit to publish."""

from pathlib import Path

import click

from trimoe.bench.cause import Ceilings
from trimoe.cli.parts.common import emit, json_option
from trimoe.judge.audit.audit import audit as audit_log
from trimoe.judge.audit.result import RunAudit
from trimoe.judge.text import safe, some

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@click.argument("log", metavar="RUNS.db", type=click.Path(path_type=Path))
@click.option("--run", "name", metavar="NAME", help="Audit only the runs of this name (default: all).")
@click.option("--pair", nargs=2, metavar="BASE VARIANT", help="Also compare a variant's replies with its base's.")
@click.option("--stats", type=FILE, help="Statistics file whose leak check (calibrate --leak-check) is reported.")
@click.option(
    "--recorded",
    type=FILE,
    metavar="FILE.json",
    help="Recorded scores of the unpruned model, {name: {bench: percent}}; a drift refuses.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of local data sets, to find replies that repeat a data set's own solution.",
)
@json_option
def audit(
    log: Path,
    name: str | None,
    pair: tuple[str, str] | None,
    stats: Path | None,
    recorded: Path | None,
    data: Path | None,
    as_json: bool,
) -> int:
    """Report whether each score is fit to publish.

    A score is publishable, publishable with notes, or refused. The checks look for empty, cut, looping, duplicated and
    drifting replies, leaked chat-template text, leaks of the calibration set, and a reference model whose score moved.
    CLEAN means that no check fired. Exit code 1 when any run is refused.

    \b
    Examples:
      trimoe audit runs.db
      trimoe audit runs.db --run v5-coder --data data --json
      trimoe audit runs.db --pair base v5-coder --stats stats.safetensors
    """
    made = audit_log(log, name=name, pair=pair or None, stats=stats, recorded=recorded, data=data)
    emit(made.as_dict(), "" if as_json else "\n\n".join(map(_text, made)) or "the log holds no runs", as_json)
    return 1 if made.refused else 0


def _limits(c: Ceilings | None) -> str:
    if c is None:
        return "tokens not counted, so not known"
    return c.verdict + (f" at {c.hit}, costs at most {c.tax_pp:.2f} points" if c.capped else "")


def _text(one: RunAudit) -> str:
    m = one.measures
    score = "not scored" if one.score is None else f"score {100 * one.score:.2f} %"
    interval = f"95 % {100 * one.low:.1f} to {100 * one.high:.1f}" if m.scored else ""
    of = f" of {one.expected}" if one.expected is not None and one.expected != one.n else ""
    verbatim = "not checked" if m.verbatim is None else str(len(m.verbatim))
    p10, p50, p90 = m.chars
    lines = [
        f"{safe(one.bench)}  {safe(one.name)}: {one.verdict.upper()}  [{' '.join(one.flags)}]",
        f"  n {one.n}{of}, {score}" + (f" ({interval})" if interval else ""),
        f"  empty {len(m.empty)}, fenced {m.fenced}, chars p10/p50/p90 {p10:.0f}/{p50:.0f}/{p90:.0f}, "
        f"own solution verbatim {verbatim}",
        f"  limits: {_limits(m.ceilings)}",
    ]
    for level in ("refused", "notes", "not checked"):
        lines += [
            f"  {level}: {c.text}" + (f": {some(c.docs)}" if c.docs else "") for c in one.checks if c.level == level
        ]
    passed = [c.flag for c in one.checks if c.level == "ok"]
    lines.append(f"  passed: {', '.join(passed) or 'nothing'}")
    if m.failures:
        split = ", ".join(f"{count} {kind}" for kind, count in m.split.items() if count)
        lines.append(f"  {len(m.failures)} failures ({split}):")
        lines += [f"    {safe(i, 60)}: {cause}" + (f" ({safe(d, 90)})" if d else "") for i, cause, d in m.failures[:10]]
        if len(m.failures) > 10:
            lines.append(f"    and {len(m.failures) - 10} more (all with --json)")
    return "\n".join(lines)


COMMANDS = [audit]
