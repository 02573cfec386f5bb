"""What is to be served: a checkpoint directory, a GGUF file, or the address of a running server."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trimoe.errors import BadInput
from trimoe.io.canonical import sha256_file
from trimoe.io.jsonfile import read_json
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.family.file import family_of
from trimoe.model.family.serving import Serving
from trimoe.model.gguf.file import open_gguf
from trimoe.model.gguf.model import open_gguf_model

Kind = Literal["gguf", "checkpoint", "url"]
KIND_NAMES: Mapping[Kind, str] = {
    "gguf": "a GGUF file",
    "checkpoint": "a checkpoint directory",
    "url": "an address",
}


@dataclass(frozen=True)
class Target:
    """`path` is absolute; a running server has none, but an `address`. `serving` is what the family file says."""

    kind: Kind
    name: str
    path: Path | None = None
    address: str = ""
    serving: Serving | None = None

    def fingerprint(self) -> str:
        """Content hash of the model, by which runs identify it. Reads samples; of dense models every byte."""
        assert self.path is not None
        try:
            if self.kind == "gguf":
                return open_gguf_model(self.path).fingerprint
            return open_checkpoint(self.path).fingerprint
        except BadInput:  # a dense model can be served too
            return _files_sha256(self.path)


def find_target(model: str | Path) -> Target:
    """The target that a user named. Raises `BadInput`."""
    text = str(model)
    if "://" in text:
        return Target("url", text, address=text)
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        model_type = str(read_json(path / "config.json", "the model's config").get("model_type", ""))
        return Target("checkpoint", path.resolve().name, path, serving=_serving(model_type, chat_template(path)))
    if path.is_file() and path.suffix == ".gguf":
        file = open_gguf(path)
        template = str(file.get("tokenizer.chat_template") or "")
        serving = _serving(str(file.get("general.architecture")), template)
        return Target("gguf", path.stem, path, serving=serving)
    raise BadInput(
        f"{text} cannot be served",
        expected="a checkpoint directory, a .gguf file, or an address (http://...)",
        actual="another kind of file" if path.exists() else "no such file",
        remedy="check the path",
    )


def _serving(kind: str, template: str) -> Serving | None:
    """What the family of a model type or GGUF architecture says about models with this chat template."""
    family = family_of(kind)
    return family.serving_for(template) if family else None


def chat_template(path: Path) -> str:
    """The chat template of a checkpoint directory: its own file, or the tokenizer's entry; empty without one."""
    own = path / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8", errors="replace")
    config = path / "tokenizer_config.json"
    entry = read_json(config, "the tokenizer's config").get("chat_template") if config.is_file() else None
    if isinstance(entry, list):  # several, by name
        entry = next(
            (row.get("template") for row in entry if isinstance(row, dict) and row.get("name") == "default"), ""
        )
    return entry if isinstance(entry, str) else ""


def _files_sha256(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}|{sha256_file(file)}|".encode())
    return digest.hexdigest()
