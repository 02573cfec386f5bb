"""The changes that healing makes to tensors, as pure functions from bytes to bytes of the same length.

A factor is a float32 number. Its product with a bf16, fp16 or fp32 value is exact in double precision, so there is one
rounding, to nearest even, in the tensor's own type; factor 1 gives the same bytes. Subnormal results are kept. A factor
that makes a value infinite is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from trimoe.errors import BadInput, CheckpointError
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.quant import Rule
from trimoe.model.safetensors import TensorInfo

METHODS = ("shared-alpha", "expert-scale", "router")
FLOATS = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class Edit:
    """One changed tensor. `apply` maps any run of whole values; `factor` is the factor on the weight (None: another
    change, described by `note`)."""

    info: TensorInfo
    layer: int | None
    apply: Callable[[bytes, int], bytes]
    """(bytes, offset in the tensor) -> bytes."""
    factor: float | None = None
    note: str = ""

    def whole(self, data: bytes) -> bytes:
        """The whole tensor."""
        return self.apply(data, 0)


def decode(data: bytes, dtype: str) -> np.ndarray:
    """The values as float64."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.frombuffer(data, "<f2" if dtype == "F16" else "<f4").astype(np.float64)


def encode(values: np.ndarray, dtype: str) -> bytes:
    """float64 values as bytes of a type, rounded once to nearest, ties to even."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype != "BF16":
            return bytes(values.astype("<f2" if dtype == "F16" else "<f4").tobytes())
        # Round to odd in float32 first: two roundings to nearest could end on the wrong side of a tie.
        near = values.astype(np.float32)
        odd = np.where(np.abs(near.astype(np.float64)) > np.abs(values), np.nextafter(near, np.float32(0)), near)
    bits = odd.view(np.uint32) | (odd.astype(np.float64) != values).astype(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF).astype(np.uint32)) >> 16
    return bytes(rounded.astype("<u2").tobytes())


def scaled(data: bytes, dtype: str, factor: float, name: str, *, divide: bool = False) -> bytes:
    """`data` times (or divided by) the float32 nearest to `factor`. Raises `BadInput` if a finite value overflows."""
    values = decode(data, dtype)
    step = np.float64(np.float32(factor))
    result = encode(values / step if divide else values * step, dtype)
    if bool((np.isfinite(values) & ~np.isfinite(decode(result, dtype))).any()):
        raise BadInput(
            f"tensor {name} times {factor:g} is beyond the range of {dtype}",
            expected="finite weights",
            remedy="choose a factor nearer to 1",
        )
    return result


def scaling(info: TensorInfo, layer: int | None, factor: float, *, divide: bool = False) -> Edit:
    """The edit that scales a whole tensor."""

    def apply(data: bytes, _: int) -> bytes:
        return scaled(data, info.dtype, factor, info.name, divide=divide)

    return Edit(info, layer, apply, factor, "stored as a divisor, which becomes smaller" if divide else "")


def replacing(info: TensorInfo, layer: int, content: bytes, note: str) -> Edit:
    """The edit that replaces a tensor's bytes."""
    return Edit(info, layer, lambda data, at: content[at : at + len(data)], None, note)


def factor_edits(model: Checkpoint, method: str, alpha: float, on: str = "down") -> list[Edit]:
    """The edits that put a factor on the tensors of a method, one per layer with experts.

    Raises `CheckpointError` if the family has no such tensor, or if it is quantized without a single float factor.
    """
    found = []
    for layer in model.moe_layers:
        name = _name(model, method, layer, on)
        if name in model.index and model.index[name].dtype in FLOATS:
            found.append(scaling(model.index[name], layer, alpha))
            continue
        info, divide = _quantized_factor(model, name)
        found.append(scaling(info, layer, alpha, divide=divide))
    return found


def _name(model: Checkpoint, method: str, layer: int, on: str) -> str:
    hf, prefix = model.hf, model.prefix.replace("{L}", str(layer))
    if method == "expert-scale":
        if "per_expert_scale" not in hf.roles:
            raise _without(model, "per_expert_scale", "shared-alpha or router")
        return model.role_name("per_expert_scale", layer)
    suffix = hf.shared_gain if on == "gain" else hf.shared_down
    if suffix is None:
        what = "norm behind its shared FFN" if on == "gain" else "FFN that runs beside the experts"
        raise _without(model, what, "router" if on != "gain" else "--on down")
    return prefix + suffix


def _without(model: Checkpoint, what: str, instead: str) -> CheckpointError:
    return CheckpointError(
        f"family {model.family.name} has no {what}",
        expected="a family that has one",
        actual=model.family.note or model.family.name,
        remedy=f"use {instead}",
    )


def _quantized_factor(model: Checkpoint, name: str) -> tuple[TensorInfo, bool]:
    """The one float that scales a quantized weight, and whether it divides."""
    base = name.removesuffix("weight")
    rules: tuple[Rule, ...] = () if model.quant is None else model.quant.module
    for rule in rules:
        if not rule.fits(base, model.index):
            continue
        info = model.index.get(base + rule.factor) if rule.factor is not None else None
        if info is not None and prod(info.shape) == 1 and info.dtype == "F32":
            return info, rule.factor_divides
    stored = model.index.get(name)
    raise CheckpointError(
        f"tensor {name} cannot be scaled by one number",
        expected="BF16, F16 or F32, or NVFP4 with its fp32 scale",
        actual=f"{stored.dtype}" if stored else "no such tensor",
        remedy="heal the unquantized checkpoint and quantize the result",
    )
