"""Costs of a measured mix: KL divergence of the model with only one group of tensors quantized, per type.

llama-quantize makes a file in which one group has the type and everything else stays as in the base, with the imatrix
and the fallbacks of the final file; llama-perplexity compares it with the base on a text. The base is also compared
with itself (its stored probabilities have 16 bits), and that cost is subtracted. Measurements are an artifact with an
identity: each is written as soon as it is made, and a rerun resumes; measurements of other inputs are refused.
Not measured: interactions between groups. The final mix is measured as a whole.
"""

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.errors import BadInput, Refused
from trimoe.io.atomic import require_space
from trimoe.io.canonical import sha256_json
from trimoe.io.jsonfile import read_json, write_json
from trimoe.io.progress import Progress
from trimoe.llamacpp.children import bound
from trimoe.llamacpp.tools import LlamaCpp, last_lines
from trimoe.model.gguf.file import open_gguf
from trimoe.quantize.ladder.dynamic import map_text
from trimoe.quantize.ladder.sources import Base
from trimoe.quantize.mix.options import Group, Option
from trimoe.quantize.perplexity import Reference

ITSELF = "base"


@dataclass
class Costs:
    """KL divergence (nats per token) by (group, stored types): llama.cpp's mean, and the mean of each chunk."""

    identity: dict[str, Any]
    means: dict[str, float]
    chunks: dict[str, list[float]]

    def of(self, group: Group, option: Option) -> float:
        """Cost of the option beyond the base's own storage error, at least 0."""
        return max(0.0, self.means[key_of(group, option)] - self.means[ITSELF])

    def sum_of(self, chosen: Sequence[tuple[Group, Option]]) -> np.ndarray:
        """Predicted KL divergence of each chunk for all these choices together, if costs add up."""
        own = np.array(self.chunks[ITSELF])
        return own + sum((np.array(self.chunks[key_of(g, o)]) - own for g, o in chosen), np.zeros(len(own)))

    @property
    def sha256(self) -> str:
        """Hash of identity and means."""
        return sha256_json({"identity": self.identity, "means": self.means})


def key_of(group: Group, option: Option) -> str:
    """Name of a measurement: types as stored, because fallbacks make some requests equal."""
    return f"{group.name} {'+'.join(sorted(set(option.dtypes)))} {sha256_json(list(option.dtypes))[:8]}"


def load_costs(path: Path, identity: dict[str, Any]) -> Costs:
    """The measurements at `path`; empty if there is no file. Raises `BadInput` for measurements of other inputs."""
    if not path.exists():
        return Costs(identity, {}, {})
    data = read_json(path, "measurements of a mix")
    if not isinstance(data, dict) or set(data) != {"identity", "means", "chunks"}:
        raise BadInput(
            f"{path} holds no measurements of a mix",
            expected="identity, means, chunks",
            remedy="remove the file, or choose another -o",
        )
    if data["identity"] != identity:
        changed = sorted(k for k in {*data["identity"], *identity} if data["identity"].get(k) != identity.get(k))
        raise BadInput(
            f"the measurements in {path} belong to other inputs",
            expected="the same " + ", ".join(changed),
            actual="it differs",
            remedy="remove the file, or choose another -o",
        )
    return Costs(identity, data["means"], data["chunks"])


def measure_costs(
    tools: LlamaCpp,
    base: Base,
    groups: Sequence[Group],
    text: Path,
    path: Path,
    identity: dict[str, Any],
    *,
    imatrix: Path | None,
    threads: int,
    progress: Progress,
) -> Costs:
    """Measure every group and type that is still missing; all of them are kept at `path`."""
    costs = load_costs(path, identity)
    missing = [(g, o) for g in groups for o in g.options if key_of(g, o) not in costs.means]
    if not missing and ITSELF in costs.means:
        return costs
    require_space(path, base.path.stat().st_size)
    total = len(missing) + 1
    progress(0, total, "logits of the base")
    reference = Reference(
        tools, base.path, text, chunks=identity["chunks"], context=identity["context"], threads=threads
    )
    with reference, tempfile.TemporaryDirectory(prefix=".mix-", dir=path.parent) as name:
        folder = Path(name)
        if ITSELF not in costs.means:
            _note(costs, ITSELF, reference, base.path, path)
        for done, (group, option) in enumerate(missing, 1):
            progress(done, total, f"{group.name} as {option.wanted}")
            file = _quantized(tools, base, group, option, folder, imatrix, threads)
            _note(costs, key_of(group, option), reference, file, path)
            file.unlink()
    return costs


def _note(costs: Costs, key: str, reference: Reference, file: Path, path: Path) -> None:
    found = reference.compare(file)
    costs.means[key], costs.chunks[key] = found.values["kld"] + 0.0, [round(float(c), 7) + 0.0 for c in found.chunks]
    write_json(path, {"identity": costs.identity, "means": costs.means, "chunks": costs.chunks}, overwrite=True)


def _quantized(
    tools: LlamaCpp, base: Base, group: Group, option: Option, folder: Path, imatrix: Path | None, threads: int
) -> Path:
    """The base with one group quantized. llama-quantize applies the first line that matches."""
    kept = group.tensors[0].dtype
    lines, out = folder / "types.txt", folder / "one.gguf"
    lines.write_text(map_text([*group.overrides(option.wanted), (".*", kept.lower())]))
    words = [
        str(tools.program("llama-quantize")),
        *(["--imatrix", str(imatrix.absolute())] if imatrix else []),
        "--tensor-type-file",
        str(lines),
        str(base.path.absolute()),
        str(out),
        "Q8_0",
        str(threads),
    ]
    answer = subprocess.run(bound(words), capture_output=True, encoding="utf-8", errors="replace", check=False)
    if answer.returncode != 0:
        raise BadInput(
            f"llama-quantize cannot quantize {group.name} to {option.wanted}",
            expected="status 0",
            actual=last_lines(answer.stderr),
            remedy="leave this type out of --mix-types",
        )
    _check(out, group, option)
    return out


def _check(file: Path, group: Group, option: Option) -> None:
    """Raise `Refused` unless exactly the tensors of the group have changed."""
    want = dict(zip((t.name for t in group.tensors), option.dtypes, strict=True))
    for name, info in open_gguf(file).index.items():
        expected = want.get(name)
        if (expected or info.dtype) != info.dtype or (expected is None and info.dtype not in ("F32", "F16", "BF16")):
            raise Refused(
                f"tensor {name} is not as planned while measuring {group.name}",
                expected=str(expected),
                actual=info.dtype,
                remedy="use the pinned release (trimoe llamacpp install)",
            )
