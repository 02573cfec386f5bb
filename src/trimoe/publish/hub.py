"""Uploads of a folder to a Hugging Face repository, through huggingface_hub.

Invariants: a file that the hub has with the same hash is not sent again, so a rerun after a kill sends the rest. Each
weight file is one commit; the small files follow in one more, README.md among them. A README on the hub that was not
uploaded from this folder is kept unless forced. At the end the hub must have every file with the local hash. The token
comes from huggingface_hub (environment or login) and is in no message, record or argument.
Not guaranteed: that commits of others in between are noticed. Files that only the hub has stay there.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput, MissingPrerequisite, Refused, TrimoeError
from trimoe.io.hub import unreachable
from trimoe.io.jsonfile import read_json, write_json
from trimoe.io.progress import Progress
from trimoe.publish.inventory import (
    RECORDS,
    WEIGHTS,
    Digest,
    LocalFile,
    digest,
    inventory,
    recorded_sha256,
    require_no_secret,
    require_publishable,
)

README = "README.md"
AGAIN = "run the same command again; files that arrived are not sent again"


@dataclass(frozen=True)
class Step:
    """One file and its `action`: upload, same (the hub has it), keep (the hub's README stays), or leave out."""

    file: LocalFile
    action: str
    reason: str
    digest: Digest | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "file": self.file.name,
            "bytes": self.file.size,
            "action": self.action,
            "reason": self.reason,
            "sha256": self.digest.sha256 if self.digest else None,
        }


@dataclass(frozen=True)
class Plan:
    """The steps of an upload. `exists`: whether the repository does; None if the hub was not reached (dry run)."""

    folder: Path
    repo: str
    endpoint: str
    exists: bool | None
    steps: tuple[Step, ...]

    @property
    def uploads(self) -> list[Step]:
        """The steps that send a file."""
        return [step for step in self.steps if step.action == "upload"]


def token() -> str | None:
    """The login token: HF_TOKEN, or the hub's own login."""
    from huggingface_hub import get_token

    found = get_token()
    return str(found) if found else None


def plan(folder: Path, repo: str, *, force: bool = False, dry_run: bool = False, progress: Progress) -> Plan:
    """Refuse what cannot be published, then list the steps. Raises `Refused`, `BadInput`, `MissingPrerequisite`."""
    files = inventory(folder)
    require_publishable(folder)
    secret = token()
    require_no_secret(files, secret)
    if not dry_run and secret is None:
        raise MissingPrerequisite(
            "not logged in to the hub",
            expected="HF_TOKEN in the environment, or `hf auth login`",
            remedy="log in, or preview with --dry-run",
        )
    endpoint, there = _remote(repo, required=not dry_run)
    sent, recorded = _record(folder, repo, endpoint), recorded_sha256(folder)
    total, done = sum(f.size for f in files if not f.reason), 0
    steps = []
    for file in files:
        if file.reason:
            steps.append(Step(file, "leave out", file.reason))
            continue
        made = digest(file.path, file.size, lambda at, name=file.name, before=done: progress(before + at, total, name))  # type: ignore[misc]
        done += file.size
        if file.name in recorded and recorded[file.name] != made.sha256:
            raise Refused(
                f"{file.path} is not the file that was checked",
                expected=f"sha256 {recorded[file.name]}",
                actual=f"sha256 {made.sha256}",
                remedy="run `trimoe quantize` again",
            )
        steps.append(_step(file, made, (there or {}).get(file.name), sent.get(file.name), force, there is None))
    return Plan(folder, repo, endpoint, None if there is None and endpoint == "" else there is not None, tuple(steps))


def _step(
    file: LocalFile, made: Digest, remote: dict[str, str] | None, sent: str | None, force: bool, new: bool
) -> Step:
    if remote is None:
        return Step(file, "upload", "new repository" if new else "new file", made)
    if made.sha256 == remote.get("sha256") or made.blob == remote.get("blob"):
        return Step(file, "same", "the hub has the same bytes", made)
    if file.name == README and remote.get("blob") != sent:
        if not force:
            return Step(
                file, "keep", "the README on the hub was not uploaded from this folder; --force replaces it", made
            )
        return Step(file, "upload", "replaces a README of another origin (--force)", made)
    return Step(file, "upload", "differs from the file on the hub", made)


def upload(made: Plan, *, private: bool = False, progress: Progress) -> str:
    """Carry out a plan and return the repository's URL. A rerun after a failure sends the rest."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars

    api = HfApi()
    if not sys.stderr.isatty():
        disable_progress_bars()
    with _readable(made.repo):
        if not made.exists:
            api.create_repo(made.repo, private=private or None, exist_ok=True)
        groups = [[step] for step in made.uploads if step.file.name.endswith(WEIGHTS)]
        groups.append([step for step in made.uploads if not step.file.name.endswith(WEIGHTS)])
        for number, group in enumerate(groups):
            if group:
                names = ", ".join(step.file.name for step in group)
                progress(number, len(groups), names[:80])
                operations = [CommitOperationAdd(s.file.name, str(s.file.path)) for s in group]
                for step, operation in zip(group, operations, strict=True):
                    _require_planned(step, operation.upload_info.sha256.hex())
                title = f"Add {names}" if len(names) < 60 else f"Add {len(group)} files"
                api.create_commit(made.repo, operations, commit_message=title)
                _remember(made, group)
        _verify(made, _tree(api, made.repo))
    return f"{made.endpoint}/{made.repo}"


def _require_planned(step: Step, sha256: str) -> None:
    """Raise `BadInput` if a file is not the one that was hashed and checked when the upload was planned."""
    if step.digest is None or step.digest.sha256 != sha256:
        raise BadInput(
            f"{step.file.path} was written to while the folder was published",
            expected=f"sha256 {step.digest.sha256 if step.digest else 'of the plan'}",
            actual=f"sha256 {sha256}",
            remedy=AGAIN,
        )


def _verify(made: Plan, there: dict[str, dict[str, str]]) -> None:
    for step in made.steps:
        if step.action in ("upload", "same") and step.digest is not None:
            remote = there.get(step.file.name, {})
            if step.digest.sha256 != remote.get("sha256") and step.digest.blob != remote.get("blob"):
                raise BadInput(
                    f"{step.file.name} on the hub differs from the local file",
                    expected=f"sha256 {step.digest.sha256}",
                    actual=str(remote or "no such file"),
                    remedy="run the same command again",
                )


def _remote(repo: str, *, required: bool) -> tuple[str, dict[str, dict[str, str]] | None]:
    """(endpoint, files of the repository or None if there is none); ("", None) if not reached and not `required`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    try:
        with _readable(repo):
            try:
                return str(api.endpoint), _tree(api, repo)
            except RepositoryNotFoundError as exc:
                # Without a login the hub answers 401 for private and for missing repositories alike.
                if exc.response.status_code == 401 and required:
                    raise
                return str(api.endpoint), None
    except MissingPrerequisite:
        if required:
            raise
        return "", None


def _tree(api: Any, repo: str) -> dict[str, dict[str, str]]:
    files = {}
    for item in api.list_repo_tree(repo, recursive=True):
        if getattr(item, "blob_id", None):
            lfs = item.lfs
            files[item.path] = {"blob": item.blob_id, **({"sha256": lfs.sha256} if lfs else {})}
    return files


@contextlib.contextmanager
def _readable(repo: str) -> Iterator[None]:
    """Turn failures of the hub and of the network into trimoe errors, without the token."""
    # HTTPError comes from whichever client this version of huggingface_hub uses (httpx, httpx2)
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError

    if (offline := unreachable()) is not None:
        raise MissingPrerequisite("the hub could not be reached", actual=offline, remedy=AGAIN)
    try:
        yield
    except (TrimoeError, RepositoryNotFoundError) as exc:
        if isinstance(exc, TrimoeError) or exc.response.status_code != 401:
            raise
        raise _login(repo, exc) from None
    except HfHubHTTPError as exc:
        if exc.response.status_code in (401, 403):
            raise _login(repo, exc) from None
        raise MissingPrerequisite(
            f"the hub did not accept the upload to {repo}", actual=_clean(exc), remedy=AGAIN
        ) from None
    except ValueError as exc:  # the hub's check of the card's front matter; malformed answers
        raise BadInput(
            f"the hub rejected the files for {repo}",
            actual=_clean(exc),
            remedy="correct what the message names, for a card the front matter of README.md",
        ) from None
    except (HTTPError, OSError, RuntimeError) as exc:
        raise MissingPrerequisite(
            "the hub could not be reached, or the connection broke", actual=_clean(exc), remedy=AGAIN
        ) from None


def _login(repo: str, exc: Exception) -> MissingPrerequisite:
    return MissingPrerequisite(
        f"the hub denied access to {repo}",
        actual=_clean(exc),
        expected="a login with write permission",
        remedy="set HF_TOKEN or run `hf auth login`, and check the repository's name",
    )


def _clean(exc: BaseException) -> str:
    """The message of a failure and of its cause, without the token."""
    text = " / ".join(str(e) for e in (exc, exc.__cause__) if e and str(e))
    secret = token()
    return (text.replace(secret, "***") if secret else text)[:600]


def _record_path(folder: Path, repo: str) -> Path:
    return folder / RECORDS / f"{repo.replace('/', '--')}.json"


def _record(folder: Path, repo: str, endpoint: str) -> dict[str, str]:
    """git blob id by file name, of everything sent to this repository from this folder."""
    path = _record_path(folder, repo)
    data = read_json(path, "upload record") if path.exists() else {}
    found = data.get("sent") if isinstance(data, dict) and data.get("endpoint") == endpoint else None
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _remember(made: Plan, group: list[Step]) -> None:
    sent = _record(made.folder, made.repo, made.endpoint)
    sent |= {step.file.name: step.digest.blob for step in group if step.digest}
    write_json(_record_path(made.folder, made.repo), {"endpoint": made.endpoint, "sent": sent}, overwrite=True)
