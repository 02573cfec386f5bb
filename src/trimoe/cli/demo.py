"""`trimoe demo`: runs the pipeline on the bundled model and shows a table and a report page."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimoe.cli.parts.common import emit, json_option, progress
from trimoe.cli.parts.sandbox import policy_of, sandbox_options

if TYPE_CHECKING:
    from trimoe.demo import Demo
    from trimoe.report.data import Duel
    from trimoe.report.story import Story


@click.command()
@click.option(
    "-o",
    "--out",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Output directory; a rerun resumes there.",
)
@click.option(
    "--drop-fraction",
    type=click.FloatRange(0, 0.85, min_open=True),
    default=0.25,
    show_default=True,
    help="Share of each layer's experts to drop.",
)
@click.option("--methods", default="", help="Recipes to compare, separated by commas. Default: all seven.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N items of each bench, for a quick look.")
@sandbox_options
@json_option
def demo(
    out: Path,
    drop_fraction: float,
    methods: str,
    limit: int | None,
    sandbox: str | None,
    sandbox_image: str | None,
    unsafe_no_sandbox: bool,
    as_json: bool,
) -> int:
    """Prune the bundled model seven ways and show what each cost.

    Every pruned model is certified and evaluated on the same items as the base. Writes OUT/report.html (which loads
    nothing from the network), OUT/runs.db, and the statistics, drop maps and pruned models.

    \b
    Examples:
      trimoe demo
      trimoe demo --out half --drop-fraction 0.5
      trimoe demo --out quick --limit 20 --methods v5-coder,random-0
    """
    from trimoe.demo import run_demo

    with progress("demo") as tell:
        made = run_demo(
            out,
            recipes=[name.strip() for name in methods.split(",") if name.strip()],
            drop_fraction=drop_fraction,
            limit=limit,
            sandbox=policy_of(sandbox, sandbox_image, unsafe_no_sandbox),
            progress=lambda step, done, total, text: tell(done, total, f"{step} {text}"),
        )
    emit(_as_json(made), _as_text(made), as_json)
    return 0


def _as_json(made: "Demo") -> dict[str, Any]:
    story = made.story
    certificates = {
        n: {"status": c.status, "max_logit_difference": c.max_logit_difference} for n, c in story.certificates.items()
    }
    return {
        "keep": story.keep,
        "experts": story.model.num_experts,
        "certificates": certificates,
        "comparison": story.comparison.as_dict(),
        "overall": [asdict(row) for row in story.overall.values()],
        "duels": [asdict(duel) for duel in made.page.duels],
        "report": str(made.report),
        "seconds": {k: round(v, 1) for k, v in story.seconds.items()},
    }


def _as_text(made: "Demo") -> str:
    """The table of scores, what its marks mean, the tests, the proofs and the page."""
    from trimoe.report.story import marked

    certificates = made.story.certificates.values()
    worst = max((c.max_logit_difference or 0.0 for c in certificates), default=0.0)
    times = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in made.story.seconds.items())
    return _table(made.story) + "\n".join(
        [
            *(f"! {mark}" for mark in marked(made.story)),
            "Paired differences in points on the same items (exact McNemar p; Holm: adjusted for all these tests):",
            *map(_duel, made.page.duels),
            f"All {len(certificates)} pruned models proven: the base with these experts masked gives the same logits, "
            f"largest difference {worst:.1e}.",
            f"Times: {times}.",
            f"Report: {made.report}",
        ]
    )


def _table(story: "Story") -> str:
    """Accuracy in percent with its 95 % interval, and the paired difference from the base over all items."""
    from rich.console import Console
    from rich.table import Table

    from trimoe.report.story import domain

    table = Table(title=f"{story.keep} of {story.model.num_experts} experts kept; accuracy in % with 95 % interval")
    table.add_column("method", no_wrap=True)
    for bench in story.benches:
        table.add_column(domain(bench), justify="right")
    for title in ("all", "against base, all items", "MB"):
        table.add_column(title, justify="right", no_wrap=True)
    cells = {(row.name, row.bench): row for row in story.comparison.rows}
    for name, total in story.overall.items():
        shown = [*(cells[name, bench] for bench in story.benches), total]
        row = [
            f"{100 * (c.score.accuracy or 0):.1f} [{100 * c.score.low:.0f},{100 * c.score.high:.0f}]"
            + " !" * bool(c.marks)
            for c in shown
        ]
        against = ""
        if (change := total.change) is not None:
            low, high = 100 * change.low, 100 * change.high
            against = f"{100 * change.difference:+.1f} [{low:+.1f},{high:+.1f}] p={change.p:.1g}"
        table.add_row(name, *row, against, f"{story.size_of(name) / 1e6:.2f}")
    console = Console(width=178, no_color=True)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def _duel(duel: "Duel") -> str:
    d = duel.difference
    where = f" in {duel.domain}" if duel.domain else ""
    holm = "" if d.p_holm is None else f", Holm {d.p_holm:.1g}"
    low, high = 100 * d.low, 100 * d.high
    pair = f"{duel.first} minus {duel.second}{where}"
    return f"  {pair:<36} {100 * d.points:+5.1f} [{low:+.1f},{high:+.1f}] p={d.p:.1g}{holm}"


COMMANDS = [demo]
