"""Facts for the card of an artifact: a pruned checkpoint, a folder of GGUF files, or an NVFP4 checkpoint.

Invariants: facts come from manifests, records and file sizes only; none is guessed. Text from files is data.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from trimoe.cut.history import read_record
from trimoe.errors import BadInput, Refused
from trimoe.io.jsonfile import read_json
from trimoe.io.manifest import MANIFEST
from trimoe.judge.gather import gather
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.files import METADATA
from trimoe.model.generate import SAMPLER
from trimoe.publish.certified import Certification

Kind = Literal["pruned", "gguf", "nvfp4"]


@dataclass(frozen=True)
class Artifact:
    """An artifact and what a card may say about it.

    `files` are the weight files with their bytes, largest first; `facts` are the numbers a card may print; `recipe` is
    the resolved recipe, `map_metadata` the other metadata of the drop map, and `made` the manifest's kind.
    """

    path: Path
    kind: Kind
    files: tuple[tuple[str, int], ...]
    facts: dict[str, float | int | str]
    recipe: dict[str, Any] = field(default_factory=dict)
    map_metadata: dict[str, Any] = field(default_factory=dict)
    made: str = ""
    certified: Certification | None = None
    """What the certificates say; None if they were not verified."""

    @property
    def only_cut(self) -> bool:
        """Whether, by the manifest, experts were removed and nothing else was done."""
        return self.kind == "pruned" and self.made == "pruned checkpoint"


def read_artifact(path: Path) -> Artifact:
    """Read the facts of a folder. Raises `BadInput` if it has no weights."""
    if not path.is_dir():
        raise BadInput(f"{path} is not a folder", expected="a checkpoint or a folder of GGUF files")
    found = sorted([*path.glob("*.safetensors"), *path.glob("*.gguf")], key=lambda f: (-f.stat().st_size, f.name))
    files = tuple((f.name, f.stat().st_size) for f in found)
    if not files:
        raise BadInput(f"{path} has no weight files", expected="*.safetensors or *.gguf files")
    gguf = all(name.endswith(".gguf") for name, _ in files)
    config = {} if gguf else read_json(path / "config.json", "config")
    quantized = isinstance(config.get("quantization_config"), dict)
    facts: dict[str, float | int | str] = {"total_bytes": sum(size for _, size in files)}
    facts |= {f"bytes of {name}": size for name, size in files}
    kind: Kind = "gguf" if gguf else "nvfp4" if quantized else "pruned"
    recipe: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    made = ""
    if (path / METADATA).exists():
        record = read_record(path)
        whole = record.get("composed", record)
        facts |= {
            "original_experts": whole["original_experts"],
            "target_experts": whole["target_experts"],
            "cut_layers": len(whole["per_layer_drop"]),
        }
        facts["dropped"] = whole["original_experts"] - whole["target_experts"]
    if (path / MANIFEST).exists():
        manifest = read_json(path / MANIFEST, "manifest")
        made, inputs = str(manifest.get("kind") or ""), manifest.get("inputs") or {}
        metadata = dict(inputs.get("map_metadata") or {})
        recipe = dict(metadata.get("recipe") or {})
        if isinstance(metadata.get("keep"), int):
            facts["map_keep"] = metadata["keep"]
    if kind == "pruned":
        facts |= {"top_k": open_checkpoint(path).top_k}
    return Artifact(path, kind, files, facts, recipe, metadata, made)


def require_own_runs(artifact: Artifact, logs: Sequence[Path], names: Sequence[str]) -> None:
    """Raise `Refused` if none of the runs evaluated the card's checkpoint; runs of other models may be among them.

    Only runs of a checkpoint in this process can be told apart: servers hash what they serve in other ways.
    """
    if artifact.kind != "pruned":
        return
    runs = [read.run for (name, _), read in gather(logs).items() if name in names]
    own = open_checkpoint(artifact.path).fingerprint
    if runs and all(run.sampler.get("engine") == SAMPLER["engine"] and run.model != own for run in runs):
        raise Refused(
            f"no run evaluated {artifact.path}",
            actual=", ".join(sorted({run.model[:16] for run in runs})),
            expected=f"fingerprint {own[:16]}",
            remedy="name the run of this checkpoint",
        )


def front_matter(text: str, path: Path) -> tuple[dict[str, Any], str]:
    """(metadata, body) of a README; ({}, text) without YAML front matter. Raises `BadInput` naming `path`."""
    if not text.startswith("---\n"):
        return {}, text
    head, mark, body = text[4:].partition("\n---\n")
    if not mark:
        raise BadInput(f"{path}: the front matter has no end", expected="a line ---")
    try:
        data = yaml.safe_load(head) or {}
    except yaml.YAMLError as exc:
        raise BadInput(f"{path}: the front matter is not YAML", actual=str(exc).splitlines()[0]) from exc
    if not isinstance(data, dict):
        raise BadInput(f"{path}: the front matter is not a table", expected="key: value")
    return data, body


def licence_of(base: Path | None) -> dict[str, Any]:
    """license, license_name and license_link from the README of a base checkpoint, if it has one."""
    readme = base / "README.md" if base else None
    if readme is None or not readme.exists():
        return {}
    data, _ = front_matter(readme.read_text(encoding="utf-8"), readme)
    return {key: data[key] for key in ("license", "license_name", "license_link") if data.get(key)}
