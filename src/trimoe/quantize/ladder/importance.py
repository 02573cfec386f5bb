"""Importance matrices: made once by llama-imatrix, checked against the model, and gated by coverage.

Coverage gate (protocol of the reference): in no layer may more than 20 % of the experts have seen less than 20 % of the
layer's mean count; below that an expert's importances are noise. An imatrix of another model is recognised by its
tensors and refused.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trimoe.errors import BadInput, Refused
from trimoe.io.atomic import publish_file
from trimoe.llamacpp.children import bound
from trimoe.llamacpp.tools import LlamaCpp, last_lines
from trimoe.model.gguf.imatrix import Imatrix, open_imatrix, unknown_entries
from trimoe.quantize.types.sizes import DATASET_NAME, IMATRIX_NAME
from trimoe.quantize.types.tensor_types import Choice, Tensor, requires_imatrix

LOW, SHARE = 0.2, 0.2


@dataclass(frozen=True)
class Coverage:
    """Coverage of one layer: `thin` of its `experts` have less than `LOW` of the `mean` count (tokens)."""

    layer: int
    experts: int
    thin: int
    mean: float

    @property
    def share(self) -> float:
        """Share of experts with too little data."""
        return self.thin / self.experts


def coverage(imatrix: Imatrix) -> list[Coverage]:
    """Coverage per layer, from the counts of its expert tensors; empty for .dat files, which have no counts."""
    found: dict[int, Coverage] = {}
    for name, entry in imatrix.entries.items():
        if not name.startswith("blk.") or "_exps." not in name or entry.counts is None:
            continue
        counts = entry.read_counts().astype(np.float64)
        layer, mean = int(name.split(".")[1]), float(counts.mean())
        one = Coverage(layer, counts.size, int((counts < LOW * mean).sum()) if mean > 0 else counts.size, mean)
        if layer not in found or one.share > found[layer].share:
            found[layer] = one
    return [found[layer] for layer in sorted(found)]


def require_coverage(found: Sequence[Coverage]) -> None:
    """Raise `Refused` for an imatrix that starves experts."""
    if worst := [layer for layer in found if layer.share > SHARE]:
        one = max(worst, key=lambda c: c.share)
        raise Refused(
            f"the imatrix has too little data on experts in {len(worst)} of {len(found)} layers",
            expected=f"at most {SHARE:.0%} of a layer's experts under {LOW:.0%} of its mean count",
            actual=f"layer {one.layer}: {one.thin} of {one.experts} experts (mean {one.mean:.0f} tokens)",
            remedy="use a broader calibration set, or --allow-thin-imatrix",
        )


def fitted(imatrix: Imatrix, tensors: Sequence[Tensor]) -> tuple[Imatrix, tuple[str, ...]]:
    """The imatrix with the entries of this model's tensors, and the names of the others, which llama-quantize ignores.
    Raises `CheckpointError` for an imatrix of another model."""
    unknown = unknown_entries(imatrix, {tensor.name: tensor.shape for tensor in tensors})
    return replace(imatrix, entries={n: e for n, e in imatrix.entries.items() if n not in unknown}), unknown


def require_entries(choices: Sequence[Choice], file_type: str, imatrix: Imatrix | None, tier: str) -> None:
    """Raise `BadInput` for a tier at which llama-quantize would stop because an imatrix entry is missing."""
    for choice in choices:
        if requires_imatrix(choice, file_type) and (imatrix is None or choice.tensor.name not in imatrix.entries):
            raise BadInput(
                f"tier {tier} needs an imatrix",
                expected=f"an imatrix with an entry for {choice.tensor.name}",
                actual="no imatrix" if imatrix is None else f"{imatrix.path} has none",
                remedy="give --imatrix FILE or --calibration SET, or leave this tier out",
            )


def make_imatrix(
    tools: LlamaCpp, base: Path, text: str, folder: Path, *, chunks: int, context: int, threads: int
) -> Path:
    """Make `folder`/imatrix.gguf from a text, which is kept beside it. Raises `BadInput` with the tool's last lines.

    The tool runs in that folder, so that the imatrix stores the text's name without a path and sizes stay predictable.
    """
    out, dataset = folder / IMATRIX_NAME, folder / DATASET_NAME
    with publish_file(dataset, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with publish_file(out, overwrite=True) as temporary:
        command = [
            str(tools.program("llama-imatrix")),
            "-m",
            str(base.absolute()),
            "-f",
            DATASET_NAME,
            "-o",
            temporary.name,
            "--output-format",
            "gguf",
            "--parse-special",
            "--no-ppl",
            "-c",
            str(context),
            "-b",
            str(context),
            "--chunks",
            str(chunks),
            "-t",
            str(threads),
        ]
        answer = subprocess.run(
            bound(command), cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        if answer.returncode != 0 or not temporary.exists():
            raise BadInput(
                f"llama-imatrix failed on {base.name}",
                expected="a model and a long enough text",
                actual=last_lines(answer.stderr),
                remedy="see the tool's message",
            )
        open_imatrix(temporary)
    return out
