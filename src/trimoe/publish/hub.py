"""A folder to a repository on the Hugging Face hub, through huggingface_hub.

Invariants: a file that the hub has with the same hash is not sent again, so a rerun after a kill sends the rest; every
weight file is a commit of its own, small files follow in one, README.md is in the last. A README on the hub that this
folder did not put there is kept unless forced. At the end the hub is asked again and must have every file by its hash.
The token comes from huggingface_hub (environment or login); it is in no message, record or argument.
Not guaranteed: that other people's commits in between are noticed; files on the hub that the folder lacks stay.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput, MissingPrerequisite, Refused, TrimoeError
from trimoe.io.progress import Progress
from trimoe.io.publish import read_json, write_json
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
AGAIN = "run the same command again: what arrived is not sent again"


@dataclass(frozen=True)
class Step:
    """What is done with one file: `upload`, `same` (the hub has it), `keep` (the hub's is not ours), `leave out`."""

    file: LocalFile
    action: str
    reason: str
    digest: Digest | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "file": self.file.name,
            "bytes": self.file.size,
            "action": self.action,
            "reason": self.reason,
            "sha256": self.digest.sha256 if self.digest else None,
        }


@dataclass(frozen=True)
class Plan:
    """`exists` says whether the repository is there; None when the hub could not be asked (dry run only)."""

    folder: Path
    repo: str
    endpoint: str
    exists: bool | None
    steps: tuple[Step, ...]

    @property
    def uploads(self) -> list[Step]:
        """Steps that send something."""
        return [step for step in self.steps if step.action == "upload"]


def token() -> str | None:
    """The login token: HF_TOKEN, or the hub's own login."""
    from huggingface_hub import get_token

    found = get_token()
    return str(found) if found else None


def plan(folder: Path, repo: str, *, force: bool = False, dry_run: bool = False, progress: Progress) -> Plan:
    """Everything that can be refused, then what is to do. Raises `Refused`, `BadInput`, `MissingPrerequisite`."""
    files = inventory(folder)
    require_publishable(folder)
    secret = token()
    require_no_secret(files, secret)
    if not dry_run and secret is None:
        raise MissingPrerequisite(
            "no login for the hub",
            expected="HF_TOKEN in the environment, or `hf auth login`",
            remedy="log in, or look with --dry-run",
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
                remedy="make the ladder again",
            )
        steps.append(_step(file, made, (there or {}).get(file.name), sent.get(file.name), force, there is None))
    return Plan(folder, repo, endpoint, None if there is None and endpoint == "" else there is not None, tuple(steps))


def _step(
    file: LocalFile, made: Digest, remote: dict[str, str] | None, sent: str | None, force: bool, new: bool
) -> Step:
    if remote is None:
        return Step(file, "upload", "new repository" if new else "new file", made)
    if made.sha256 == remote.get("sha256") or made.blob == remote.get("blob"):
        return Step(file, "same", "the hub has these bytes", made)
    if file.name == README and remote.get("blob") != sent:
        if not force:
            return Step(
                file, "keep", "the README on the hub was not put there from this folder; --force replaces it", made
            )
        return Step(file, "upload", "replaces a README of another origin (--force)", made)
    return Step(file, "upload", "other bytes than on the hub", made)


def publish(made: Plan, *, private: bool = False, progress: Progress) -> str:
    """Carry a plan out; returns the repository's address. A rerun after any failure goes on where it ended."""
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
                title = f"Add {names}" if len(names) < 60 else f"Add {len(group)} files"
                api.create_commit(made.repo, operations, commit_message=title)
                _remember(made, group)
        _verify(made, _tree(api, made.repo))
    return f"{made.endpoint}/{made.repo}"


def _verify(made: Plan, there: dict[str, dict[str, str]]) -> None:
    for step in made.steps:
        if step.action in ("upload", "same") and step.digest is not None:
            remote = there.get(step.file.name, {})
            if step.digest.sha256 != remote.get("sha256") and step.digest.blob != remote.get("blob"):
                raise BadInput(
                    f"the hub does not have {step.file.name} as it is here",
                    expected=f"sha256 {step.digest.sha256}",
                    actual=str(remote or "no such file"),
                    remedy="run the same command again",
                )


def _remote(repo: str, *, required: bool) -> tuple[str, dict[str, dict[str, str]] | None]:
    """(endpoint, files of the repository or None if there is none). ("", None): not reached, only if not required."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    try:
        with _readable(repo):
            try:
                return str(api.endpoint), _tree(api, repo)
            except RepositoryNotFoundError as exc:
                # Without a login the hub answers 401 to whatever it does not show, also to what does not exist.
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
    """Failures of the hub or the way to it as errors of ours, without the token."""
    # HTTPError comes from whichever client this version of huggingface_hub uses (httpx, httpx2)
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError

    try:
        yield
    except (TrimoeError, RepositoryNotFoundError) as exc:
        if isinstance(exc, TrimoeError) or exc.response.status_code != 401:
            raise
        raise _login(repo, exc) from None
    except HfHubHTTPError as exc:
        if exc.response.status_code in (401, 403):
            raise _login(repo, exc) from None
        raise MissingPrerequisite(f"the hub did not take it: {repo}", actual=_clean(exc), remedy=AGAIN) from None
    except ValueError as exc:  # the hub's check of the card's front matter; malformed answers
        raise BadInput(
            f"the hub refuses what was sent to {repo}",
            actual=_clean(exc),
            remedy="see the message; for a card, the front matter of README.md",
        ) from None
    except (HTTPError, OSError, RuntimeError) as exc:
        raise MissingPrerequisite(
            "the hub was not reached, or the connection broke", actual=_clean(exc), remedy=AGAIN
        ) from None


def _login(repo: str, exc: Exception) -> MissingPrerequisite:
    return MissingPrerequisite(
        f"the hub refuses access to {repo}",
        actual=_clean(exc),
        expected="a login with write permission",
        remedy="set HF_TOKEN or run `hf auth login`; check the name",
    )


def _clean(exc: BaseException) -> str:
    """The text of a failure and of its cause, without the token."""
    text = " / ".join(str(e) for e in (exc, exc.__cause__) if e and str(e))
    secret = token()
    return (text.replace(secret, "***") if secret else text)[:600]


def _record_path(folder: Path, repo: str) -> Path:
    return folder / RECORDS / f"{repo.replace('/', '--')}.json"


def _record(folder: Path, repo: str, endpoint: str) -> dict[str, str]:
    """File -> git blob id of what was sent to this repository from this folder."""
    path = _record_path(folder, repo)
    data = read_json(path, "record of what was published") if path.exists() else {}
    found = data.get("sent") if isinstance(data, dict) and data.get("endpoint") == endpoint else None
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _remember(made: Plan, group: list[Step]) -> None:
    sent = _record(made.folder, made.repo, made.endpoint)
    sent |= {step.file.name: step.digest.blob for step in group if step.digest}
    write_json(_record_path(made.folder, made.repo), {"endpoint": made.endpoint, "sent": sent}, overwrite=True)
