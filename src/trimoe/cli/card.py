"""`trimoe card`: the README of a repository, from manifests and run logs."""

from pathlib import Path

import click

from trimoe.cli.parts.common import emit, json_option
from trimoe.errors import BadInput, UsageError

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--log", "logs", type=PATH, multiple=True, required=True, help="Run log (may be repeated).")
@click.option("--base", required=True, help="Name of the unpruned run that differences are paired with.")
@click.option("--run", "names", multiple=True, required=True, help="Name of a run of this artifact (may be repeated).")
@click.option("--base-model", required=True, metavar="ORG/NAME", help="The base model on the hub.")
@click.option("--repo", required=True, metavar="ORG/NAME", help="The repository that the card is for.")
@click.option("--title", help="Heading of the card (default: the repository's name).")
@click.option("--license", "licence", help="Licence id of the base model, where --base-dir has no README that says it.")
@click.option("--base-dir", type=PATH, help="The base checkpoint; the licence is taken from its README.md.")
@click.option("--tag", "tags", multiple=True, help="A further tag for the hub (may be repeated).")
@click.option("-o", "--out", type=PATH, help="The file to write (default: README.md in ARTIFACT).")
@click.option("--force", is_flag=True, help="Replace a README that was not made by trimoe.")
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
    as_json: bool,
) -> None:
    """Write the model card of a pruned or quantized model.

    ARTIFACT is a pruned checkpoint, a folder of GGUF files, or an NVFP4 checkpoint.

    Every number is asked of a run log or manifest; README.numbers.json keeps the queries. A second run replaces the
    generated sections alone. Exit 5 when the audit refuses one of the runs.

    \b
    Examples:
      trimoe card pruned --log runs.db --base base --run pruned --base-model google/gemma-4-26B-A4B-it \\
        --repo me/gemma-98e --license gemma
    """
    from trimoe.publish.card import NAME, Wish, generated, write_card
    from trimoe.publish.card import card as make_card
    from trimoe.publish.facts import licence_of, read_artifact, require_own_runs
    from trimoe.publish.numbers import Sources

    for option, value in (("--base-model", base_model), ("--repo", repo)):
        if not NAME.fullmatch(value):
            raise UsageError(f"{option} {value!r} is no name on the hub", expected="ORG/NAME")
    found = read_artifact(artifact)
    target = out or artifact / "README.md"
    try:
        existing = target.read_text(encoding="utf-8") if target.exists() else ""
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(
            f"{target} is not readable as a card",
            expected="Markdown in UTF-8",
            actual=str(exc),
            remedy="choose another -o",
        ) from exc
    if existing and not generated(existing) and not force:
        raise BadInput(
            f"{target} was not made by trimoe",
            expected="a card with trimoe's markers, or none",
            actual="a README of another origin",
            remedy="choose another -o, or give --force",
        )
    stated = {"license": licence} if licence else licence_of(base_dir)
    if base in names:
        raise UsageError(
            f"--run {base} is the base itself",
            expected="a run of the artifact",
            remedy="name the run of the smaller model",
        )
    wish = Wish(title or repo.partition("/")[2], base_model, repo, stated, tags)
    sources = Sources(list(logs), base, list(names), found.facts)
    require_own_runs(found, list(logs), names)
    text, numbers = make_card(found, sources, wish, existing if generated(existing) else "")
    write_card(target, text, numbers)
    body = {"card": str(target), "kind": found.kind, "numbers": len(numbers.asked)}
    emit(body, f"wrote {target}: {found.kind}, {len(numbers.asked)} numbers, each with its query", as_json)


COMMANDS = [card]
