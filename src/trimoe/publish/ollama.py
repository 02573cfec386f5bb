"""Tags for ollama from a folder of GGUF files: one Modelfile per tier, then create, push, verify, remove.

Invariants: a tag is the tier, and `latest` is Q4_K_M. A tag counts as pushed only if ollama prints "success" and the
model's address; only then is it recorded and the local copy removed. A tag recorded for the same bytes and Modelfile is
skipped. Modelfiles that a user changed are not overwritten. Not guaranteed: that nobody else pushes to the same name,
because ollama cannot list tags.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput, MissingPrerequisite, Refused
from trimoe.io.atomic import publish_file
from trimoe.io.canonical import sha256_bytes, sha256_file, sha256_json
from trimoe.io.jsonfile import read_json, write_json
from trimoe.io.progress import Progress
from trimoe.io.watch import Watch
from trimoe.publish.inventory import RECORDS, require_publishable
from trimoe.publish.modelfile import Modelfile, modelfiles

LATEST = "Q4_K_M"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


@dataclass(frozen=True)
class Push:
    """One tag. `action` is `push`, or `same` if the record says that these bytes were pushed before."""

    made: Modelfile
    tag: str
    identity: str
    action: str
    watch: Watch

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"tag": self.tag, "file": self.made.gguf.name, "modelfile": self.made.name, "action": self.action}


def plan(folder: Path, repo: str | None, *, progress: Progress) -> list[Push]:
    """Tags in push order: by size, `latest` at the end. Raises `Refused` as for the hub, and `BadInput`."""
    require_publishable(folder)
    made, pushes = modelfiles(folder), []
    recorded = _record(folder, repo) if repo else {}
    for number, one in enumerate(made):
        progress(number, len(made), one.gguf.name)
        _require_ours(folder, one)
        watch = Watch(one.gguf, "published", lambda file=one.gguf: [file])  # type: ignore[misc]
        identity = sha256_json([sha256_file(one.gguf), one.text])
        for tag in [one.tag, *(["latest"] if one.tag == LATEST else [])]:
            pushes.append(Push(one, tag, identity, "same" if recorded.get(tag) == identity else "push", watch))
    return sorted(pushes, key=lambda push: push.tag == "latest")


def write(folder: Path, pushes: list[Push]) -> None:
    """Write the Modelfiles beside their GGUF files."""
    for made in {push.made.name: push.made for push in pushes}.values():
        with publish_file(folder / made.name, overwrite=True) as temporary:
            temporary.write_text(made.text, encoding="utf-8")
    record = {push.made.name: sha256_bytes(push.made.text.encode()) for push in pushes}
    write_json(folder / RECORDS / "modelfiles.json", record, overwrite=True)


def _require_ours(folder: Path, made: Modelfile) -> None:
    path, record = folder / made.name, folder / RECORDS / "modelfiles.json"
    if path.exists():
        text = path.read_bytes()
        known = read_json(record, "record of Modelfiles").get(made.name) if record.exists() else None
        if text != made.text.encode() and sha256_bytes(text) != known:
            raise BadInput(
                f"{path} was not written by trimoe, or was changed since",
                expected="the Modelfile as trimoe wrote it",
                remedy="move it away, or create the model from it with `ollama create -f`",
            )


def require_ollama() -> str:
    """Path of the program ollama. Raises `MissingPrerequisite`."""
    found = shutil.which("ollama")
    if found is None:
        raise MissingPrerequisite(
            "pushing needs the program ollama",
            expected="ollama on PATH",
            remedy="install it from https://ollama.com/download, or leave out --repo to write Modelfiles only",
        )
    return found


def push(folder: Path, repo: str, pushes: list[Push], *, progress: Progress) -> None:
    """Create, push, verify and remove each tag in turn. A rerun resumes after the last confirmed tag.

    Raises `Refused` if ollama does not confirm a push, `MissingPrerequisite` if a command fails.
    """
    program = require_ollama()
    for one in pushes:
        one.watch.require_unchanged()
    todo = [one for one in pushes if one.action == "push"]
    for number, one in enumerate(todo):
        name = f"{repo}:{one.tag}"
        progress(number, len(todo), name)
        _run([program, "create", name, "-f", one.made.name], folder)
        one.watch.require_unchanged()  # it was copied whole now
        said = _run([program, "push", name], folder)
        if "success" not in said or f"/{repo}" not in said.replace(name, ""):
            raise Refused(
                f"ollama did not confirm {name}",
                expected='"success" and the address of the model',
                actual=said[-300:],
                remedy="run the same command again",
            )
        recorded = _record(folder, repo) | {one.tag: one.identity}
        write_json(_record_path(folder, repo), {"pushed": recorded}, overwrite=True)
        _run([program, "rm", name], folder)  # ollama deletes the blobs with the last name that uses them


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    said = _ESCAPES.sub("", done.stdout)
    if done.returncode:
        raise MissingPrerequisite(
            f"ollama {command[1]} {command[2]} failed",
            actual=said[-400:].strip(),
            remedy="start `ollama serve`; to push, add your public key at ollama.com",
        )
    return said


def _record_path(folder: Path, repo: str) -> Path:
    return folder / RECORDS / f"ollama--{repo.replace('/', '--')}.json"


def _record(folder: Path, repo: str) -> dict[str, str]:
    path = _record_path(folder, repo)
    data = read_json(path, "record of pushed tags") if path.exists() else {}
    found = data.get("pushed") if isinstance(data, dict) else None
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
