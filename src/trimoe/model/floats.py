"""A quantized checkpoint as floats: its own values in float32, in a temporary directory that transformers loads.

transformers is not asked to dequantize: version 5.23 leaves NVFP4 experts of Gemma 4 at random and ignores a scale of
Qwen3's, without an error. Here the values are decoded tensor by tensor, and experts that a quantizer took apart are
stacked again. Decoded: NVFP4 with weights only, in the layouts of Model Optimizer and compressed-tensors.
Invariants: what is not decoded is refused by name; memory holds one tensor or stack; the source is only read.
Not guaranteed: that a server with 4-bit kernels computes the same last bits.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimoe.errors import CheckpointError
from trimoe.io.atomic import require_space
from trimoe.io.jsonfile import read_json
from trimoe.model.checkpoint import Checkpoint, open_checkpoint, scopes_of
from trimoe.model.files import copy_files, other_files, write_index
from trimoe.model.nvfp4 import BLOCK, dequantize
from trimoe.model.quant import Quant, all_quants, method_of
from trimoe.model.safetensors import TensorInfo, header_bytes, nbytes_of, read_array, read_bytes

_FLOATS = ("F64", "F32", "F16", "BF16")
# name of the codes, of the factor of the whole matrix, and whether the factor divides
_LAYOUTS = (("weight", "weight_scale_2", False), ("weight_packed", "weight_global_scale", True))
_SHARD = 4 << 30  # bytes of a file


class NotFloats(Exception):
    """Internal: why a checkpoint has no float values here."""


@dataclass(frozen=True)
class _Entry:
    """A tensor to write: its name, type, shape, and its bytes when asked for."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], bytes]


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
        _entries(open_checkpoint(folder), str(method))
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
        expected="float32, float16 or bfloat16 weights, NVFP4 with weights only, or MXFP4",
        actual=reason,
        remedy="use the unquantized checkpoint, or a server that reads this layout, such as --engine vllm",
    )


@contextmanager
def as_floats(folder: Path) -> Iterator[Path]:
    """A directory with the checkpoint's values as floats: itself, or a temporary one. Raises `NotFloats`."""
    quant, method = quant_beside(folder)
    if method is None or (quant is not None and quant.runs):
        yield folder
        return
    checkpoint = open_checkpoint(folder)
    entries = _entries(checkpoint, method)
    with tempfile.TemporaryDirectory(prefix="trimoe-floats-") as temporary:
        target = Path(temporary) / folder.resolve().name
        target.mkdir()
        require_space(target, sum(nbytes_of(entry.dtype, entry.shape) for entry in entries))
        _write(checkpoint, entries, quant, target)
        yield target


def _write(checkpoint: Checkpoint, entries: list[_Entry], quant: Quant | None, target: Path) -> None:
    groups: list[list[_Entry]] = [[]]
    size = 0
    for entry in entries:
        nbytes = nbytes_of(entry.dtype, entry.shape)
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
    write_index(target, shard_of, sum(nbytes_of(entry.dtype, entry.shape) for entry in entries))
    config = json.loads(json.dumps(checkpoint.config))
    for scope in scopes_of(config):
        scope.pop("quantization_config", None)
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    settings = set(quant.files) if quant else set()
    others = other_files(checkpoint.path, checkpoint.index)[0]
    copy_files([o for o in others if o.name not in settings and o.suffix != ".safetensors"], checkpoint.path, target)


def _entries(checkpoint: Checkpoint, method: str) -> list[_Entry]:
    """Every tensor of the float checkpoint. Raises `NotFloats` naming the first that has no decoder."""
    index = checkpoint.index
    plain: dict[str, _Entry] = {}
    used: set[str] = set()
    for name, info in index.items():
        for codes, factor, divides in _LAYOUTS:
            base = name.removesuffix(f".{codes}")
            if info.dtype == "U8" and base != name and f"{base}.{factor}" in index:
                plain[f"{base}.weight"] = _decoded(base, info, index, factor, divides)
                used |= {name, f"{base}.weight_scale", f"{base}.{factor}"}
    for name, info in index.items():
        if name in used:
            continue
        if info.dtype not in _FLOATS or name.rpartition(".")[2] in _companions(method):
            raise NotFloats(f"{method}: no decoder for {name} ({info.dtype})")
        plain[name] = _Entry(name, info.dtype, info.shape, lambda info=info: read_bytes(info))  # type: ignore[misc]
    if not used:
        raise NotFloats(f"{method} is named by the settings, but no weight is stored as NVFP4")
    return list(_stacked(checkpoint, plain).values())


def _companions(method: str) -> set[str]:
    """Names of scales and the like of a scheme: a tensor left over with such a name belongs to a weight not decoded."""
    quant = next((quant for quant in all_quants() if method in (*quant.methods, quant.name)), None)
    rules = quant.module if quant else ()
    return {suffix for rule in rules for suffix in (*rule.required, *rule.optional)} - {"bias", "weight"}


def _decoded(base: str, info: TensorInfo, index: dict[str, TensorInfo], factor: str, divides: bool) -> _Entry:
    scales, whole = index.get(f"{base}.weight_scale"), index[f"{base}.{factor}"]
    rows, columns = (*info.shape, 0)[0], 2 * (*info.shape, 0, 0)[1]
    fits = len(info.shape) == 2 and scales is not None and scales.shape == (rows, columns // BLOCK)
    if not fits or scales is None or scales.dtype != "F8_E4M3" or whole.dtype != "F32" or whole.nbytes != 4:
        raise NotFloats(f"{info.name} has no scales of NVFP4 beside it")

    def data() -> bytes:
        value = np.float32(read_array(whole).reshape(-1)[0])
        packed = np.frombuffer(read_bytes(info), np.uint8).reshape(info.shape)
        blocks = np.frombuffer(read_bytes(scales), np.uint8).reshape(scales.shape)
        return dequantize(packed, blocks, np.float32(1) / value if divides else value).tobytes()

    return _Entry(f"{base}.weight", "F32", (rows, columns), data)


def _stacked(checkpoint: Checkpoint, entries: dict[str, _Entry]) -> dict[str, _Entry]:
    """The entries with experts in stacks, in families whose model classes have stacks under other names."""
    into = checkpoint.family.nvfp4.unstack if checkpoint.family.nvfp4 else None
    if into is None:
        return entries
    single = checkpoint.hf.layouts[into]
    roles = next((roles for roles in checkpoint.hf.layouts.values() if {"gate_up", "down"} <= roles.keys()), None)
    if roles is None:
        return entries
    out = dict(entries)
    for layer in checkpoint.moe_layers:
        prefix = checkpoint.prefix.replace("{L}", str(layer))
        for role, parts in (("gate_up", ("gate", "up")), ("down", ("down",))):
            names = [
                [prefix + single[part].tensor.replace("{E}", str(expert)) for part in parts]
                for expert in range(checkpoint.num_experts)
            ]
            if names[0][0] not in out:
                continue
            pieces = [[out.pop(name) for name in row] for row in names]
            transposed = roles[role].shape[1][-1] == single[parts[0]].shape[1][-1]
            made = _stack(prefix + roles[role].tensor, pieces, transposed)
            out[made.name] = made
    return out


def _stack(name: str, pieces: list[list[_Entry]], transposed: bool) -> _Entry:
    """One stack [experts, rows, columns] of the experts' matrices; the parts of one expert below each other."""
    shapes = {(piece.dtype, piece.shape) for row in pieces for piece in row}
    if len(shapes) != 1 or next(iter(shapes))[0] != "F32":
        raise NotFloats(f"the experts of {name} are quantized in different ways")
    rows, columns = pieces[0][0].shape
    shape = (
        (len(pieces), columns, rows * len(pieces[0])) if transposed else (len(pieces), rows * len(pieces[0]), columns)
    )

    def data() -> bytes:
        out = np.empty(shape, np.float32)
        for expert, row in enumerate(pieces):
            whole = np.concatenate([np.frombuffer(piece.data(), np.float32).reshape(piece.shape) for piece in row])
            out[expert] = whole.T if transposed else whole
        return out.tobytes()

    return _Entry(name, "F32", shape, data)
