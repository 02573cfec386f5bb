"""`trimoe rescore`: judge stored replies again without generating."""

from pathlib import Path

import click

from trimoe.cli.parts.common import emit, json_option, progress
from trimoe.cli.parts.sandbox import policy_of, sandbox_options
from trimoe.cli.parts.scores import scores_text
from trimoe.evaluate.rescore import rescore


@click.command("rescore")
@click.argument("db", metavar="RUNS.db", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="As for eval.")
@click.option(
    "--bench", "files", metavar="FILE.toml", multiple=True, help="File of a bench of your own that the log has runs of."
)
@sandbox_options
@json_option
def rescore_(
    db: Path,
    data: Path | None,
    files: tuple[str, ...],
    sandbox: str | None,
    sandbox_image: str | None,
    unsafe_no_sandbox: bool,
    as_json: bool,
) -> None:
    """Score stored replies again without generating.

    \b
    Examples:
      trimoe rescore runs.db
      trimoe rescore runs.db --bench tickets.toml
    """
    policy = policy_of(sandbox, sandbox_image, unsafe_no_sandbox)
    with progress("rescore") as report:
        done = rescore(db, bench=files, data=data, sandbox=policy, progress=report)
    emit(done.as_dict(), scores_text(done.runs), as_json)


COMMANDS: list[click.Command] = [rescore_]
