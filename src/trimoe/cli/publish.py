"""`trimoe publish`: a folder to the hub, or Modelfiles and tags for ollama."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trimoe.cli.parts.common import emit, json_option, progress, require_extra, show_size
from trimoe.errors import UsageError

if TYPE_CHECKING:
    from trimoe.publish.hub import Plan

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--to", "target", type=click.Choice(["hub", "ollama"]), required=True, help="Where it goes.")
@click.option("--repo", metavar="ORG/NAME", help="The repository on the hub, or the model's name for ollama.")
@click.option("--dry-run", is_flag=True, help="Say what would be done with every file, and do nothing.")
@click.option("--force", is_flag=True, help="Replace a README on the hub that was not put there from FOLDER.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@json_option
def publish(
    folder: Path, target: str, repo: str | None, dry_run: bool, force: bool, private: bool, as_json: bool
) -> None:
    """Publish a model to the hub or to ollama.

    FOLDER is a pruned checkpoint, a folder of GGUF files, or an NVFP4 checkpoint.

    To the hub: sends what the hub does not have by hash; a rerun after a kill sends the rest. What the manifests mark
    as not publishable (a healing that made it worse, files that failed or had no check, a refused audit) is refused
    with exit code 5. The login is HF_TOKEN or `hf auth login`; no option takes a token.

    To ollama: writes Modelfile.TIER beside every NAME-TIER.gguf; with --repo each is then created, pushed, verified and
    removed again, one by one. The tag is the tier, latest is Q4_K_M.

    \b
    Examples:
      trimoe publish pruned --to hub --repo me/gemma-98e --dry-run
      trimoe publish ggufs --to hub --repo me/gemma-98e-GGUF
      trimoe publish ggufs --to ollama
      trimoe publish ggufs --to ollama --repo me/gemma-98e
    """
    if repo is not None and not NAME.fullmatch(repo):
        raise UsageError(f"--repo {repo!r} is no name on the hub", expected="ORG/NAME")
    if target == "hub":
        _to_hub(folder, repo, dry_run, force, private, as_json)
    elif force or private:
        raise UsageError("--force and --private are for the hub", remedy="leave them out")
    else:
        _to_ollama(folder, repo, dry_run, as_json)


def _to_hub(folder: Path, repo: str | None, dry_run: bool, force: bool, private: bool, as_json: bool) -> None:
    from trimoe.publish import hub

    if repo is None:
        raise UsageError("--to hub needs --repo", expected="ORG/NAME")
    require_extra("hub", "publish --to hub")
    with progress("publish") as tell:
        made = hub.plan(folder, repo, force=force, dry_run=dry_run, progress=tell)
        address = None if dry_run else hub.publish(made, private=private, progress=tell)
    sent = sum(step.file.size for step in made.uploads)
    body = {
        "repo": repo,
        "endpoint": made.endpoint or None,
        "repo_exists": made.exists,
        "dry_run": dry_run,
        "bytes_to_send": sent,
        "files": [step.as_dict() for step in made.steps],
        "url": address,
    }
    end = f"nothing was sent; {show_size(sent)} would be" if dry_run else f"{show_size(sent)} sent: {address}"
    if made.exists is None:
        end += "\nthe hub was not reached: what it has already is not known"
    emit(body, "\n".join([*_lines(made), end]), as_json)


def _to_ollama(folder: Path, repo: str | None, dry_run: bool, as_json: bool) -> None:
    from trimoe.publish import ollama

    if repo is not None and not dry_run:
        ollama.require_ollama()
    with progress("publish") as tell:
        pushes = ollama.plan(folder, repo, progress=tell)
        if not dry_run:
            ollama.write(folder, pushes)
            if repo is not None:
                ollama.push(folder, repo, pushes, progress=tell)
    lines = [
        f"{push.made.name}  from {push.made.gguf.name}  tag {push.tag}: "
        + ("only written" if repo is None else "pushed before" if push.action == "same" else "push")
        for push in pushes
    ]
    body = {"repo": repo, "dry_run": dry_run, "tags": [push.as_dict() for push in pushes]}
    end = "nothing was written or pushed" if dry_run else f"Modelfiles are in {folder}"
    emit(body, "\n".join([*lines, end]), as_json)


def _lines(made: "Plan") -> list[str]:
    wide = max(len(step.file.name) for step in made.steps)
    return [
        f"{step.action:<9}  {step.file.name:<{wide}}  {show_size(step.file.size):>8}  {step.reason}"
        for step in made.steps
    ]


COMMANDS = [publish]
