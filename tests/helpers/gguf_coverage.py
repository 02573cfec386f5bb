"""What trimoe does with a model of each of llama.cpp's architectures: cut, certificate, statistics."""

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from helpers.gguf_architectures import CannotBuild, builder_of, settings_of
from trimoe.calibrate.engine import calibrate
from trimoe.certify.certify import certify
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import TrimoeError
from trimoe.llamacpp.masked import MaskedLogits
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.model.gguf.model import GgufModel, open_gguf_model

PROMPTS = ("Compute 37 * 48 - 19.", "def add(a, b):", "Why is the sky blue?")
_SET = "name: s\nwindow: 64\nclasses:\n  generic_text: [{kind: text, path: text.txt}]\n"
_LIST = """
from gguf.constants import MODEL_ARCH_NAMES, MODEL_TENSOR, MODEL_TENSORS
for arch, tensors in MODEL_TENSORS.items():
    if MODEL_TENSOR.FFN_DOWN_EXP in tensors:
        print(MODEL_ARCH_NAMES[arch])
"""
_DROPPED = 4
"""One expert in this many is dropped."""


def architectures(tools: LlamaCpp) -> list[str]:
    """The architectures for which the pinned llama.cpp's gguf-py lists tensors of routed experts."""
    assert tools.converter is not None
    # In a process of its own: the gguf package of this environment is another version.
    environment = {**os.environ, "PYTHONPATH": str(tools.converter.parent / "gguf-py")}
    done = subprocess.run([sys.executable, "-c", _LIST], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.split()


def examine(architecture: str, tools: LlamaCpp) -> dict[str, Any]:
    """One row of the table. `status` is what `certify` says, refused (by trimoe) or not built; each but proven has a
    reason."""
    row: dict[str, Any] = {"architecture": architecture}
    if reason := settings_of(architecture).get("reason"):
        return row | {"status": "not built", "reason": reason}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "model.gguf"
        try:
            builder_of(architecture, tools).build(path)
        except CannotBuild as exc:
            return row | {"status": "not built", "reason": str(exc)[:200]}
        try:
            model = open_gguf_model(path)
        except TrimoeError as exc:
            if "no expert tensors" in exc.subject:
                return row | {"status": "not built", "reason": "llama.cpp's loader takes no tensors of routed experts"}
            return row | {"status": "refused", "reason": exc.subject}
        return row | _cut(model, tools, folder) | {"statistics": _measure(model, folder)}


def _cut(model: GgufModel, tools: LlamaCpp, folder: Path) -> dict[str, Any]:
    """Drop experts at random, certify, and run both without a mask as a control of the proof's power."""
    random_ids, count = random.Random(model.architecture), model.num_experts
    layers = model.moe_layers
    drop = {layer: tuple(sorted(random_ids.sample(range(count), count // _DROPPED))) for layer in layers}
    drop_map, pruned, prompts = DropMap(drop, count), folder / "pruned.gguf", folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    prune(model.path, drop_map, pruned)
    certificate = certify(model.path, pruned, map=drop_map, prompts=prompts)
    row: dict[str, Any] = {
        "status": certificate.status,
        "tensors": sorted({tensor.role for tensor in model.expert_tensors.values()}),
        "layers": [len(layers), model.num_layers],
        "max_difference": certificate.max_logit_difference,
        "without_mask": _difference(model.path, pruned, tools, folder),
    }
    if certificate.status != "proven":
        failed = [check for check in certificate.checks if check.status != "passed"]
        row["reason"] = "; ".join(f"{check.name}: {check.detail}" for check in failed)[:200]
    return row


def _difference(first: Path, second: Path, tools: LlamaCpp, folder: Path) -> float:
    """Largest difference of a logit of two models, nothing masked."""
    tokens = [[1, *(byte + 3 for byte in prompt.encode())] for prompt in PROMPTS]
    logits = []
    for number, model in enumerate((first, second)):
        out = folder / f"logits-{number}"
        out.mkdir()
        MaskedLogits(tools)(model, {"tokens": tokens}, out, None)
        logits.append(np.concatenate([np.fromfile(out / f"{i}.f32", "<f4") for i in range(len(tokens))]))
    return float(np.abs(logits[0] - logits[1]).max())


def _measure(model: GgufModel, folder: Path) -> str:
    """ "measured", or why the experts cannot be."""
    (folder / "text.txt").write_text("\n\n".join(PROMPTS * 2))
    (folder / "set.yaml").write_text(_SET)
    try:
        stats = calibrate(model.path, folder / "set.yaml", folder / "stats.st")
    except TrimoeError as exc:
        return f"{exc.subject}: {exc.actual}"[:200]
    counts = stats.field("tc").sum((0, 2))[list(stats.moe_layers)]
    expected = stats.metadata["tokens"]["generic_text"] * model.top_k
    return "measured" if np.all(counts == expected) else f"{counts.tolist()} choices instead of {expected}"
