"""`trimoe publish`: uploads a folder to the hub, or writes Modelfiles and pushes tags to ollama."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from trimoe.cli.parts.common import emit, json_option, progress, require_extra, show_size

if TYPE_CHECKING:
    from trimoe.publish.publish import Tags, Upload


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--to", "target", type=click.Choice(["hub", "ollama"]), required=True, help="Where to publish.")
@click.option("--repo", metavar="ORG/NAME", help="The repository on the hub, or the model's name for ollama.")
@click.option("--dry-run", is_flag=True, help="Show what would be done with every file; send nothing.")
@click.option("--force", is_flag=True, help="Replace a README on the hub that was not uploaded from FOLDER.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--allow-uncertified", is_flag=True, help="Publish a pruned model without a valid certificate.")
@json_option
def publish(
    folder: Path,
    target: Literal["hub", "ollama"],
    repo: str | None,
    dry_run: bool,
    force: bool,
    private: bool,
    allow_uncertified: bool,
    as_json: bool,
) -> None:
    """Publish a model to the hub or to ollama.

    FOLDER is a pruned checkpoint, a folder of GGUF files, or an NVFP4 checkpoint.

    To the hub: files that the hub already has, by hash, are not sent again, so a rerun after a kill sends the rest.
    A folder that its manifests mark as not publishable (healing that did not help, files that failed or lack a check,
    a refused audit) is refused with exit code 5, as is a pruned model without a certificate that is proven and of
    exactly these files. The login is HF_TOKEN or `hf auth login`; no option takes a token.

    To ollama: writes Modelfile.TIER beside every NAME-TIER.gguf. With --repo, each tag is created, pushed, verified
    and removed locally, one at a time. The tag is the tier; `latest` is Q4_K_M.

    \b
    Examples:
      trimoe publish pruned --to hub --repo me/gemma-98e --dry-run
      trimoe publish ggufs --to hub --repo me/gemma-98e-GGUF
      trimoe publish ggufs --to ollama
      trimoe publish ggufs --to ollama --repo me/gemma-98e
    """
    if target == "hub":
        require_extra("hub", "publish --to hub")
    from trimoe.publish.publish import Upload
    from trimoe.publish.publish import publish as run

    with progress("publish") as report:
        done = run(
            folder,
            target,
            repo=repo,
            dry_run=dry_run,
            force=force,
            private=private,
            allow_uncertified=allow_uncertified,
            progress=report,
        )
    emit(done.as_dict(), _uploaded(done) if isinstance(done, Upload) else _pushed(folder, done), as_json)


def _uploaded(done: "Upload") -> str:
    steps = done.plan.steps
    wide = max(len(step.file.name) for step in steps)
    lines = [
        f"{step.action:<9}  {step.file.name:<{wide}}  {show_size(step.file.size):>8}  {step.reason}" for step in steps
    ]
    size = show_size(done.nbytes)
    lines.append(f"dry run: {size} would be sent" if done.url is None else f"{size} sent: {done.url}")
    if done.plan.exists is None:
        lines.append("the hub could not be reached, so files that it already has are counted as well")
    return "\n".join(lines)


def _pushed(folder: Path, done: "Tags") -> str:
    actions = {"same": "pushed before", "push": "would be pushed" if done.dry_run else "pushed"}
    lines = [
        f"{push.made.name}  from {push.made.gguf.name}  tag {push.tag}: "
        + ("Modelfile only" if done.repo is None else actions[push.action])
        for push in done.pushes
    ]
    lines.append("dry run: nothing was written or pushed" if done.dry_run else f"Modelfiles are in {folder}")
    return "\n".join(lines)


COMMANDS = [publish]
