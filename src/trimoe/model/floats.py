"""A quantized checkpoint as floats: its own values in float32, in a temporary directory that transformers loads.

transformers is not asked to dequantize: version 5.23 leaves NVFP4 experts of Gemma 4 at random and ignores a scale of
Qwen3's, without an error. Here the values are decoded tensor by tensor, and experts that a quantizer took apart are
stacked again, see `dequantize`.
Invariants: what is not decoded is refused by name; memory holds one tensor or stack; the source is only read.
Not guaranteed: that a server with 4-bit kernels computes the same last bits.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trimoe.errors import CheckpointError
from trimoe.io.atomic import require_space
from trimoe.io.jsonfile import read_json
from trimoe.model.checkpoint import Checkpoint, open_checkpoint, scopes_of
from trimoe.model.dequantize.parts import FloatTensor, NotFloats
from trimoe.model.dequantize.plan import float_tensors
from trimoe.model.files import copy_files, other_files, write_index
from trimoe.model.quant import Quant, all_quants, method_of
from trimoe.model.safetensors import header_bytes

_SHARD = 4 << 30  # bytes of a file


def quant_beside(folder: Path) -> tuple[Quant | None, str | None]:
    """The quantization that config.json or a file beside it names, and its name there; (None, None): not quantized."""
    method = method_of(read_json(folder / "config.json", "the model's config", CheckpointError))
    if method is not None:
        return next((quant for quant in all_quants() if method in quant.methods), None), method
    beside = next((q for q in all_quants() if any((folder / name).is_file() for name in q.files)), None)
    return beside, beside.name if beside else None


def why_not_floats(folder: Path) -> str | None:
    """Why a checkpoint cannot be run in this process, or None; reads headers only."""
    quant, method = quant_beside(folder)
    if method is None or (quant is not None and quant.runs):
        return None
    try:
        float_tensors(open_checkpoint(folder), weights_only=True)
    except NotFloats as exc:
        return str(exc)
    except CheckpointError as exc:
        return f"{exc.subject}"
    return None


def require_floats(folder: Path) -> None:
    """`CheckpointError` for a quantized checkpoint that cannot be run in this process."""
    if (reason := why_not_floats(folder)) is not None:
        raise refusal(folder, reason)


def refusal(folder: Path, reason: str) -> CheckpointError:
    """The error for a quantized checkpoint that does not run here."""
    return CheckpointError(
        f"{folder} is quantized and cannot be run here",
        expected="weights in a form that is decoded here, and activations that are not quantized",
        actual=reason,
        remedy="use the unquantized checkpoint, or a server that reads this layout, such as --engine vllm",
    )


@contextmanager
def as_floats(folder: Path, *, weights_only: bool = True) -> Iterator[Path]:
    """A directory with the checkpoint's values as floats: itself, or a temporary one. Raises `NotFloats`, also for
    quantized activations unless `weights_only` is False."""
    quant, method = quant_beside(folder)
    if method is None or (quant is not None and quant.runs):
        yield folder
        return
    checkpoint = open_checkpoint(folder)
    entries = list(float_tensors(checkpoint, weights_only=weights_only).values())
    with tempfile.TemporaryDirectory(prefix="trimoe-floats-") as temporary:
        target = Path(temporary) / folder.resolve().name
        target.mkdir()
        require_space(target, sum(entry.nbytes for entry in entries))
        _write(checkpoint, entries, quant, target)
        yield target


def _write(checkpoint: Checkpoint, entries: list[FloatTensor], quant: Quant | None, target: Path) -> None:
    groups: list[list[FloatTensor]] = [[]]
    size = 0
    for entry in entries:
        nbytes = entry.nbytes
        if groups[-1] and size + nbytes > _SHARD:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += nbytes
    shard_of = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05}-of-{len(groups):05}.safetensors"
        with (target / name).open("wb") as file:
            file.write(header_bytes({e.name: (e.dtype, e.shape) for e in group}, {"format": "pt"}))
            for entry in group:
                file.write(entry.data())
                shard_of[entry.name] = name
    write_index(target, shard_of, sum(entry.nbytes for entry in entries))
    config = json.loads(json.dumps(checkpoint.config))
    for scope in scopes_of(config):
        scope.pop("quantization_config", None)
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    settings = set(quant.files) if quant else set()
    others = other_files(checkpoint.path, checkpoint.index)[0]
    copy_files([o for o in others if o.name not in settings and o.suffix != ".safetensors"], checkpoint.path, target)
