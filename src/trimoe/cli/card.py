"""`trimoe card`: writes the README of a model repository from manifests and run logs."""

from pathlib import Path

import click

from trimoe.cli.parts.common import emit, json_option

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--log", "logs", type=PATH, multiple=True, required=True, help="Run log (may be repeated).")
@click.option("--base", required=True, help="Name of the unpruned run that differences are paired with.")
@click.option("--run", "names", multiple=True, required=True, help="Name of a run of this artifact (may be repeated).")
@click.option("--base-model", required=True, metavar="ORG/NAME", help="Hub id of the base model.")
@click.option("--repo", required=True, metavar="ORG/NAME", help="Hub id of the repository that gets the card.")
@click.option("--title", help="Heading of the card. Default: the repository's name.")
@click.option("--license", "licence", help="License id of the base model, if the README in --base-dir has none.")
@click.option("--base-dir", type=PATH, help="Base checkpoint whose README.md states the license.")
@click.option("--tag", "tags", multiple=True, help="Additional tag for the hub (may be repeated).")
@click.option("-o", "--out", "--output", type=PATH, help="File to write. Default: README.md in ARTIFACT.")
@click.option("--force", is_flag=True, help="Replace a README that trimoe did not write.")
@click.option("--allow-uncertified", is_flag=True, help="Describe a pruned model without valid certificate.")
@json_option
def card(
    artifact: Path,
    logs: tuple[Path, ...],
    base: str,
    names: tuple[str, ...],
    base_model: str,
    repo: str,
    title: str | None,
    licence: str | None,
    base_dir: Path | None,
    tags: tuple[str, ...],
    out: Path | None,
    force: bool,
    allow_uncertified: bool,
    as_json: bool,
) -> None:
    """Write the model card of a pruned or quantized model.

    ARTIFACT is a pruned checkpoint, a folder of GGUF files, or an NVFP4 checkpoint.

    Every number comes from a run log or a manifest; README.numbers.json keeps the queries. A second run replaces the
    generated sections only.

    Exit 5 if the audit refuses one of the runs, or if a pruned model has no certificate that is proven and of exactly
    these files.

    \b
    Examples:
      trimoe card pruned --log runs.db --base base --run pruned --base-model google/gemma-4-26B-A4B-it \\
        --repo me/gemma-98e --license gemma
    """
    from trimoe.publish.card import write_card

    report = write_card(
        artifact,
        logs=logs,
        base=base,
        names=names,
        base_model=base_model,
        repo=repo,
        title=title,
        licence=licence,
        base_dir=base_dir,
        tags=tags,
        out=out,
        force=force,
        allow_uncertified=allow_uncertified,
    )
    text = f"wrote {report.path}: {report.kind}, {report.numbers} numbers, each with its query"
    emit(report.as_dict(), text, as_json)


COMMANDS = [card]
