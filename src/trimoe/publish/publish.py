"""Publish a folder: upload it to the Hugging Face hub, or push its GGUF files to ollama.

Dispatches on the target; `hub` and `ollama` do the work. Everything that can be refused is refused before the first
byte is sent, and a dry run sends nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trimoe.errors import UsageError
from trimoe.io.progress import Progress, silent
from trimoe.publish import hub, ollama
from trimoe.publish.card import NAME
from trimoe.publish.certified import certification

Target = Literal["hub", "ollama"]


@dataclass(frozen=True)
class Upload:
    """What was, or in a dry run would be, uploaded to the hub. `url` is None for a dry run."""

    plan: hub.Plan
    url: str | None

    @property
    def nbytes(self) -> int:
        """Bytes of the files to send."""
        return sum(step.file.size for step in self.plan.uploads)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "repo": self.plan.repo,
            "endpoint": self.plan.endpoint or None,
            "repo_exists": self.plan.exists,
            "dry_run": self.url is None,
            "bytes_to_send": self.nbytes,
            "files": [step.as_dict() for step in self.plan.steps],
            "url": self.url,
        }


@dataclass(frozen=True)
class Tags:
    """Tags that were, or in a dry run would be, pushed to ollama. `repo` is None if only Modelfiles were written."""

    repo: str | None
    dry_run: bool
    pushes: tuple[ollama.Push, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"repo": self.repo, "dry_run": self.dry_run, "tags": [push.as_dict() for push in self.pushes]}


def publish(
    folder: Path | str,
    to: Target,
    *,
    repo: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    private: bool = False,
    allow_uncertified: bool = False,
    progress: Progress | None = None,
) -> Upload | Tags:
    """Publish `folder` under the name `repo` (ORG/NAME). A rerun sends only what is missing.

    For the hub, `force` replaces a README that was not uploaded from this folder, and `private` makes a new repository
    private. A pruned model needs a certificate that is proven and of exactly these files, unless `allow_uncertified`.
    For ollama, Modelfiles are written beside the GGUF files, and pushed if `repo` is given.

    Raises `UsageError` for a malformed name or options of the other target, `Refused` for a folder that its manifests
    mark as not publishable or that is not certified, `BadInput` for a folder without weights, `MissingPrerequisite`
    without a login, a network, huggingface_hub or the program ollama.
    """
    if repo is not None and not NAME.fullmatch(repo):
        raise UsageError(f"--repo {repo!r} is not a repository name", expected="ORG/NAME")
    path, tell = Path(folder), progress or silent
    if to == "hub":
        if repo is None:
            raise UsageError("publishing to the hub needs a repository", expected="--repo ORG/NAME")
        certification(path, status_only=True).require(path, allow_uncertified)
        plan = hub.plan(path, repo, force=force, dry_run=dry_run, progress=tell)
        hashes = {step.file.name: step.digest.sha256 for step in plan.steps if step.digest}
        certification(path, hashes).require(path, allow_uncertified)
        return Upload(plan, None if dry_run else hub.upload(plan, private=private, progress=tell))
    if force or private:
        raise UsageError("--force and --private apply to the hub only", remedy="leave them out")
    if repo is not None and not dry_run:
        ollama.require_ollama()
    certification(path).require(path, allow_uncertified)
    pushes = ollama.plan(path, repo, progress=tell)
    if not dry_run:
        ollama.write(path, pushes)
        if repo is not None:
            ollama.push(path, repo, pushes, progress=tell)
    return Tags(repo, dry_run, tuple(pushes))
