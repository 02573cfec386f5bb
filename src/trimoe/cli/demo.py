"""`trimoe demo`: the whole story on the bundled model, a table, and a page to look at."""

from pathlib import Path
from typing import Any

import click

from trimoe.cli.common import emit, json_option, progress


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
@json_option
def demo(out: Path, drop_fraction: float, methods: str, limit: int | None, as_json: bool) -> int:
    """Prune the bundled, trained model seven ways, prove every cut, and show what each cost.

    Writes OUT/report.html (opens without a network), OUT/runs.db, the statistics, maps and cut models.

    \b
    Examples:
      trimoe demo
      trimoe demo --out half --drop-fraction 0.5
      trimoe demo --out quick --limit 20 --methods v5-coder,random-0
    """
    from trimoe import pipeline
    from trimoe.judge.report import page
    from trimoe.judge.story_page import page_data

    chosen = [m.strip() for m in methods.split(",") if m.strip()] or list(pipeline.METHODS)
    with progress("demo") as tell:
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
    emit(_as_json(story, report), _as_text(story, report), as_json)
    return 0


def _as_json(story: Any, report: Path) -> dict[str, Any]:
    certificates = {
        n: {"status": c.status, "max_logit_difference": c.max_logit_difference} for n, c in story.certificates.items()
    }
    return {
        "keep": story.keep,
        "experts": story.model.num_experts,
        "certificates": certificates,
        "comparison": story.comparison.as_json(),
        "report": str(report),
        "seconds": {k: round(v, 1) for k, v in story.seconds.items()},
    }


def _as_text(story: Any, report: Path) -> str:
    """The table: accuracy in percent with its 95 % interval, and the paired difference over all items."""
    from rich.console import Console
    from rich.table import Table

    comparison = story.comparison
    table = Table(title=f"{story.keep} of {story.model.num_experts} experts kept; accuracy in % with 95 % interval")
    table.add_column("method")
    for bench in comparison.benches:
        table.add_column(bench.removeprefix("tiny-"), justify="right")
    for title in ("all", "paired difference, all", "size"):
        table.add_column(title, justify="right")
    for name in comparison.names:
        row = [name]
        for bench in [*comparison.benches, "all"]:
            cell = comparison.cells[name, bench]
            row.append(f"{100 * cell.accuracy:.1f} [{100 * cell.low:.0f},{100 * cell.high:.0f}]")
        total = comparison.cells[name, "all"]
        if name == comparison.base:
            row.append("")
        else:
            row.append(
                f"{100 * total.difference:+.1f} [{100 * total.difference_low:+.1f},"
                f"{100 * total.difference_high:+.1f}] p={total.p:.1g}"
            )
        path = story.models.get(name, story.model.path)
        row.append(f"{sum(f.stat().st_size for f in path.glob('*.safetensors')) / 1e6:.2f} MB")
        table.add_row(*row)
    console = Console(width=170, no_color=True)
    with console.capture() as capture:
        console.print(table)
    worst = max(c.max_logit_difference or 0.0 for c in story.certificates.values())
    times = ", ".join(f"{k} {v:.0f} s" for k, v in story.seconds.items())
    return (
        f"{capture.get()}All {len(story.certificates)} cuts proven: largest logit difference to the masked original "
        f"{worst:.1e}.\nTimes: {times}.\nLook at {report}"
    )


COMMANDS = [demo]
