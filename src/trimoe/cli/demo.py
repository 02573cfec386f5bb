"""`trimoe demo`: the whole story on the bundled model, a table, and a page to look at."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimoe.cli.parts.common import emit, json_option, progress
from trimoe.cli.parts.sandbox import policy_of, sandbox_options

if TYPE_CHECKING:
    from trimoe.pipeline import Story
    from trimoe.report.data import Duel, PageData


@click.command()
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Work directory; a rerun continues there.",
)
@click.option(
    "--drop-fraction",
    type=click.FloatRange(0, 0.85, min_open=True),
    default=0.25,
    show_default=True,
    help="Share of each layer's experts to drop.",
)
@click.option("--methods", default="", help="Recipes to compare, separated by commas; default: the seven of the demo.")
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

    Writes OUT/report.html (opens without a network), OUT/runs.db, the statistics, maps and cut models.

    \b
    Examples:
      trimoe demo
      trimoe demo --out half --drop-fraction 0.5
      trimoe demo --out quick --limit 20 --methods v5-coder,random-0
    """
    from trimoe import pipeline
    from trimoe.report import page
    from trimoe.sandbox import require_sandbox, using
    from trimoe.story_page import page_data

    chosen = [m.strip() for m in methods.split(",") if m.strip()] or list(pipeline.METHODS)
    with using(policy_of(sandbox, sandbox_image, unsafe_no_sandbox)), progress("demo") as tell:
        require_sandbox()  # before minutes of work: the demo runs generated code at its end
        story = pipeline.run_story(
            out,
            methods=chosen,
            drop_fraction=drop_fraction,
            limit=limit,
            progress=lambda step, done, total, note: tell(done, total, f"{step} {note}"),
        )
    report = out / "report.html"
    data = page_data(story)
    page.write_page(data, report)
    emit(_as_json(story, data, report), _as_text(story, data, report), as_json)
    return 0


def _as_json(story: "Story", data: "PageData", report: Path) -> dict[str, Any]:
    certificates = {
        n: {"status": c.status, "max_logit_difference": c.max_logit_difference} for n, c in story.certificates.items()
    }
    return {
        "keep": story.keep,
        "experts": story.model.num_experts,
        "certificates": certificates,
        "comparison": story.comparison.as_dict(),
        "overall": [asdict(row) for row in story.overall.values()],
        "duels": [asdict(duel) for duel in data.duels],
        "report": str(report),
        "seconds": {k: round(v, 1) for k, v in story.seconds.items()},
    }


def _as_text(story: "Story", data: "PageData", report: Path) -> str:
    """The table: accuracy in percent with its 95 % interval, and the paired difference over all items."""
    from rich.console import Console
    from rich.table import Table

    from trimoe.story_page import marked

    table = Table(title=f"{story.keep} of {story.model.num_experts} experts kept; accuracy in % with 95 % interval")
    table.add_column("method", no_wrap=True)
    benches = list(dict.fromkeys(row.bench for row in story.comparison.rows))
    for bench in benches:
        table.add_column(bench.removeprefix("tiny-"), justify="right")
    for title in ("all", "against base, all items", "MB"):
        table.add_column(title, justify="right", no_wrap=True)
    cells = {(row.name, row.bench): row for row in story.comparison.rows}
    for name, total in story.overall.items():
        shown = [*(cells[name, bench] for bench in benches), total]
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
    worst = max((c.max_logit_difference or 0.0 for c in story.certificates.values()), default=0.0)
    times = ", ".join(f"{k} {v:.0f} s" for k, v in story.seconds.items())
    proof = f"All {len(story.certificates)} cuts proven; largest logit difference to the masked original {worst:.1e}."
    tests = ["On the same items (exact McNemar; Holm over these tests):", *map(_duel, data.duels)]
    marks = [f"! {mark}" for mark in marked(story)]
    return capture.get() + "\n".join([*marks, *tests, proof, f"Times: {times}.", f"Look at {report}"])


def _duel(duel: "Duel") -> str:
    d = duel.difference
    where = f" in {duel.domain}" if duel.domain else ""
    holm = "" if d.p_holm is None else f", Holm {d.p_holm:.1g}"
    low, high = 100 * d.low, 100 * d.high
    pair = f"{duel.first} minus {duel.second}{where}"
    return f"  {pair:<36} {100 * d.points:+5.1f} [{low:+.1f},{high:+.1f}] p={d.p:.1g}{holm}"


COMMANDS = [demo]
