"""Every tensor of a quantized checkpoint as floats, planned from headers: which tensors belong to a weight, and what
decodes them.

Invariants: nothing is read but headers and the state of streams; a tensor that no form explains is refused by name.
transformers is not asked to dequantize: version 5.23 leaves NVFP4 experts of Gemma 4 at random and ignores a scale of
Qwen3's, without an error.
Not guaranteed: that a server with low-precision kernels computes the same last bits.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trimoe.errors import CheckpointError
from trimoe.io.datafile import Data, load
from trimoe.io.jsonfile import read_json
from trimoe.model.checkpoint import Checkpoint, scopes_of
from trimoe.model.dequantize.parts import FLOATS, Array, FloatTensor, NotFloats, Planned
from trimoe.model.quant import all_quants, method_of
from trimoe.model.safetensors import TensorInfo

_PLAIN = (*FLOATS, "I64", "I32", "I16", "BOOL")
"""Types of tensors that are not quantized: floats, and integers such as a routing table."""


class Form(Data, frozen=True, kw_only=True):
    """How a weight is stored; forms.toml explains each key."""

    decoder: str
    main: str
    types: tuple[str, ...]
    needs: dict[str, str]
    may: dict[str, str] = msgspec.field(default_factory=dict)
    activations: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    result: str = ".weight"
    options: dict[str, Any] = msgspec.field(default_factory=dict)


class _Forms(Data, frozen=True, kw_only=True):
    form: tuple[Form, ...]
    cache_scales: tuple[str, ...]


@cache
def _forms() -> _Forms:
    file = Path(__file__).with_name("forms.toml")
    return load(_Forms, file, "forms of quantized weights", error=CheckpointError)


def forms() -> tuple[Form, ...]:
    """The forms of forms.toml."""
    return _forms().form


def is_quantized(checkpoint: Checkpoint) -> bool:
    """Whether config.json, a file beside it or the tensors' names and types say so."""
    return checkpoint.quant is not None or method_of(checkpoint.config) is not None


def float_tensors(checkpoint: Checkpoint, *, weights_only: bool = False) -> dict[str, FloatTensor]:
    """Every tensor by its name in the unquantized checkpoint. Raises `NotFloats` naming the first without a decoder.

    With `weights_only`, quantized activations are refused: without them the model would compute something else.
    """
    index = checkpoint.index
    if not is_quantized(checkpoint):
        return {name: FloatTensor(name, info.dtype, info.shape, info) for name, info in index.items()}
    settings, method = (
        settings_of(checkpoint),
        str(method_of(checkpoint.config) or getattr(checkpoint.quant, "name", "")),
    )
    plain: dict[str, FloatTensor] = {}
    used: set[str] = set()
    reasons: dict[str, str] = {}
    for form in forms():
        for name, info in index.items():
            if name in used or info.dtype not in form.types or not name.endswith(form.main):
                continue
            base = name.removesuffix(form.main)
            if not all(base + suffix in index for suffix in form.needs.values()):
                continue
            parts = {"main": info} | {r: index[base + s] for r, s in form.needs.items()}
            parts |= {role: index[base + s] for role, s in form.may.items() if base + s in index}
            try:
                shape, decode = _planned(form, parts, settings)
            except NotFloats as exc:
                reasons[name] = "; ".join(filter(None, [reasons.get(name), str(exc)]))
                continue
            plain[base + form.result] = FloatTensor(base + form.result, "F32", shape, decode=decode)
            used |= {part.name for part in parts.values()} | {base + suffix for suffix in form.unused}
            if not weights_only:
                used |= {base + suffix for suffix in form.activations}
    for name, reason in reasons.items():
        if name not in used:
            raise NotFloats(reason)
    left = companions(method)
    for name, info in index.items():
        if name in used or (not weights_only and name.rpartition(".")[2] in _forms().cache_scales):
            continue
        if info.dtype not in _PLAIN or name.rpartition(".")[2] in (*left, *_forms().cache_scales):
            raise NotFloats(f"{method}: no decoder for {name} ({info.dtype})")
        plain[name] = FloatTensor(name, info.dtype, info.shape, info)
    if not used:
        raise NotFloats(f"{method} is named by the settings, but no weight is stored in a quantized form")
    return _stacked(checkpoint, plain)


def _planned(form: Form, parts: Mapping[str, TensorInfo], settings: Mapping[str, Any]) -> Planned:
    planned: Planned = import_module(f"trimoe.model.dequantize.{form.decoder}").plan(parts, settings, **form.options)
    return planned


def companions(method: str) -> set[str]:
    """Names of scales and the like of a scheme: a tensor left over with such a name belongs to a weight not decoded."""
    quant = next((quant for quant in all_quants() if method in (*quant.methods, quant.name)), None)
    rules = quant.module if quant else ()
    return {suffix for rule in rules for suffix in (*rule.required, *rule.optional)} - {"bias", "weight"}


def settings_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The quantization settings of config.json, or of a file beside it."""
    for scope in scopes_of(checkpoint.config):
        if isinstance(scope.get("quantization_config"), dict):
            return dict(scope["quantization_config"])
    for name in (name for quant in all_quants() for name in quant.files):
        if (checkpoint.path / name).is_file():
            found = read_json(checkpoint.path / name, "quantization settings", CheckpointError)
            return dict(found) if isinstance(found, dict) else {}
    return {}


def _stacked(checkpoint: Checkpoint, tensors: dict[str, FloatTensor]) -> dict[str, FloatTensor]:
    """The tensors with experts in stacks, in families whose model classes have stacks under other names."""
    into = checkpoint.family.nvfp4.unstack if checkpoint.family.nvfp4 else None
    if into is None:
        return tensors
    single = checkpoint.hf.layouts[into]
    roles = next((roles for roles in checkpoint.hf.layouts.values() if {"gate_up", "down"} <= roles.keys()), None)
    if roles is None:
        return tensors
    out = dict(tensors)
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


def _stack(name: str, pieces: list[list[FloatTensor]], transposed: bool) -> FloatTensor:
    """One stack [experts, rows, columns] of the experts' matrices; the parts of one expert below each other."""
    shapes = {(piece.dtype, piece.shape) for row in pieces for piece in row}
    if len(shapes) != 1 or next(iter(shapes))[0] != "F32":
        raise NotFloats(f"the experts of {name} are quantized in different ways")
    rows, columns = pieces[0][0].shape
    shape = (
        (len(pieces), columns, rows * len(pieces[0])) if transposed else (len(pieces), rows * len(pieces[0]), columns)
    )

    def decode() -> Array:
        out = np.empty(shape, np.float32)
        for expert, row in enumerate(pieces):
            whole = np.concatenate([piece.array() for piece in row])
            out[expert] = whole.T if transposed else whole
        return out

    return FloatTensor(name, "F32", shape, decode=decode)
