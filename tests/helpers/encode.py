"""Encoders of quantized weights, each beside the float values that its own library or the published formula gives back.

Where a library is installed it encodes and decodes (`oracle` names it). The others are written here by the published
formula, bit by bit, without the code under test; `oracle` says so.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Parts = dict[str, torch.Tensor]
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
FORMULA = "published formula, written in the tests"


@dataclass(frozen=True)
class Scheme:
    """`encode`: weight [outputs, inputs] -> tensors by suffix, and the float values that they stand for."""

    encode: Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]
    settings: dict[str, Any]
    oracle: str = FORMULA


def _words(codes: torch.Tensor, bits: int, axis: int) -> torch.Tensor:
    """Pack unsigned codes into 32-bit words along an axis, the first code in the lowest bits."""
    moved, per = codes.long().movedim(axis, -1), 32 // bits
    padded = torch.nn.functional.pad(moved, (0, -moved.shape[-1] % per))
    total = sum(padded[..., i::per] << (bits * i) for i in range(per))
    signed = torch.where(total >= 1 << 31, total - (1 << 32), total)
    return signed.to(torch.int32).movedim(-1, axis).contiguous()


def _groups(weight: torch.Tensor, size: int, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Asymmetric codes, scales and zeros [outputs, groups] of a weight."""
    grouped = weight.reshape(len(weight), -1, size)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half().float()
    zero = (-low / scale).round().clamp(1, 2**bits - 1)
    codes = (grouped / scale[..., None] + zero[..., None]).round().clamp(0, 2**bits - 1)
    return codes.reshape(weight.shape), scale, zero


def gptq(bits: int = 4, v2: bool = False, order: bool = False) -> Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]:
    def encode(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        size, inputs = 32, weight.shape[1]
        shuffle = torch.randperm(inputs, generator=torch.Generator().manual_seed(1)) if order else torch.arange(inputs)
        codes, scale, zero = _groups(weight[:, shuffle], size, bits)
        group = torch.empty(inputs, dtype=torch.int32)
        group[shuffle] = torch.arange(inputs, dtype=torch.int32) // size
        back = torch.empty_like(codes)
        back[:, shuffle] = codes
        parts = {
            "qweight": _words(back.T, bits, 0),
            "qzeros": _words(zero.T - (0 if v2 else 1), bits, 1),
            "scales": scale.T.half().contiguous(),
            "g_idx": group,
        }
        return parts, (back - zero[:, group.long()]) * scale[:, group.long()]

    return encode


def awq(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    codes, scale, zero = _groups(weight, 32, 4)

    def pack(values: torch.Tensor) -> torch.Tensor:  # [rows, outputs]
        spots = values.long().reshape(len(values), -1, 8)
        ordered = torch.stack([spots[..., i] for i in (0, 2, 4, 6, 1, 3, 5, 7)], -1)
        return _words(ordered.reshape(len(values), -1), 4, 1)

    parts = {"qweight": pack(codes.T), "qzeros": pack(zero.T), "scales": scale.T.half().contiguous()}
    return parts, (codes - zero.repeat_interleave(32, 1)) * scale.repeat_interleave(32, 1)


def fp8_block(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """Blocks of 16 x 32 whose last row and column are short."""
    rows, columns = math.ceil(weight.shape[0] / 48), math.ceil(weight.shape[1] / 48)
    values, scales, back = torch.empty_like(weight).to(torch.float8_e4m3fn), torch.empty(rows, columns), weight.clone()
    for r in range(rows):
        for c in range(columns):
            part = (slice(48 * r, 48 * r + 48), slice(48 * c, 48 * c + 48))
            scales[r, c] = weight[part].abs().amax() / 448
            values[part] = (weight[part] / scales[r, c]).to(torch.float8_e4m3fn)
            back[part] = values[part].float() * scales[r, c]
    return {"weight": values, "weight_scale_inv": scales}, back


def fp8_tensor(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    scale = weight.abs().amax() / 448
    values = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale": scale, "input_scale": torch.tensor(0.5)}, values.float() * scale


def mxfp8(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    exponent = (weight.reshape(len(weight), -1, 32).abs().amax(-1) / 448).log2().ceil()
    scale = torch.exp2(exponent).repeat_interleave(32, 1)
    values = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale": (exponent + 127).to(torch.uint8)}, values.float() * scale


def _nearest(weight: torch.Tensor) -> torch.Tensor:
    return (weight[..., None] - E2M1).abs().argmin(-1)


def mxfp4(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    exponent = (weight.reshape(len(weight), -1, 32).abs().amax(-1) / 6).log2().ceil()
    scale = torch.exp2(exponent).repeat_interleave(32, 1)
    codes = _nearest(weight / scale)
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)
    return {"weight": packed, "weight_scale": (exponent + 127).to(torch.uint8)}, E2M1[codes] * scale


def nvfp4(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    whole = weight.abs().amax() / 2688
    scale = (weight.reshape(len(weight), -1, 16).abs().amax(-1) / 6 / whole).to(torch.float8_e4m3fn)
    by = scale.float().repeat_interleave(16, 1) * whole
    codes = _nearest(weight / by)
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)
    return {"weight": packed, "weight_scale": scale, "weight_scale_2": whole}, E2M1[codes] * by


def nf4(nested: bool) -> Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]:
    def encode(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        table = torch.linspace(-1, 1, 16) ** 3  # any table: it is stored
        blocks = weight.reshape(-1, 64)
        largest = blocks.abs().amax(1)
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)}
        parts: Parts = {"weight.quant_map": table}
        if nested:
            second = torch.linspace(-1, 1, 256)
            offset = float(largest.mean())
            top = (largest - offset).reshape(-1, 8).abs().amax(1)
            raw = ((largest - offset).reshape(-1, 8) / top[:, None])[..., None].sub(second).abs().argmin(-1)
            largest = (second[raw] * top[:, None]).reshape(-1) + offset
            parts |= {
                "weight.absmax": raw.reshape(-1).to(torch.uint8),
                "weight.nested_absmax": top,
                "weight.nested_quant_map": second,
            }
            state |= {"nested_blocksize": 8, "nested_offset": offset, "nested_dtype": "float32"}
        else:
            parts["weight.absmax"] = largest
        codes = (blocks / largest[:, None])[..., None].sub(table).abs().argmin(-1).reshape(-1)
        parts["weight"] = (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)[:, None]
        parts["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(
            list(json.dumps(state).encode()), dtype=torch.uint8
        )
        return parts, (table[codes].reshape(-1, 64) * largest[:, None]).reshape(weight.shape)

    return encode


def int8_rows(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    largest = weight.abs().amax(1)
    codes = (weight / largest[:, None] * 127).round().to(torch.int8)
    parts = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, codes.float() * largest[:, None] / 127


def _compressed(
    name: str, scales: Callable[[torch.Tensor], Parts], **arguments: Any
) -> Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]:
    """Encoded and decoded by compressed-tensors."""

    def encode(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**arguments), format=name)
        compressor = BaseCompressor.get_value_from_registry(name)
        parts = compressor.compress({"weight": weight, **scales(weight)}, scheme)
        back = compressor.decompress(dict(parts), scheme)["weight"].float()
        return {k: v.contiguous() for k, v in parts.items()}, back

    return encode


def _settings(name: str, bits: int) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": bits}, "format": name}
    return {"quant_method": "compressed-tensors", "format": name, "config_groups": {"group_0": group}}


def _symmetric(size: int, top: int) -> Callable[[torch.Tensor], Parts]:
    return lambda w: {"weight_scale": w.reshape(len(w), -1, size).abs().amax(2) / top}


def _asymmetric(weight: torch.Tensor) -> Parts:
    _, scale, zero = _groups(weight, 32, 4)
    return {"weight_scale": scale, "weight_zero_point": (zero - 8).to(torch.int8)}


CT = "compressed-tensors"
SCHEMES: dict[str, Scheme] = {
    "fp8 block": Scheme(fp8_block, {"quant_method": "fp8", "weight_block_size": [48, 48]}),
    "fp8 tensor": Scheme(fp8_tensor, {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "mxfp8": Scheme(mxfp8, {"quant_method": "modelopt", "quant_algo": "MXFP8"}),
    "nvfp4 modelopt": Scheme(nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "quark mxfp4": Scheme(mxfp4, {"quant_method": "quark"}),
    "quark fp8": Scheme(fp8_tensor, {"quant_method": "quark"}),
    "gptq": Scheme(gptq(), {"quant_method": "gptq", "bits": 4, "group_size": 32}),
    "gptq act order": Scheme(gptq(order=True), {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}),
    "gptq 8 bit": Scheme(gptq(8), {"quant_method": "gptq", "bits": 8, "group_size": 32}),
    "gptq v2": Scheme(gptq(v2=True), {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}),
    "auto-round": Scheme(gptq(), {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_gptq"}),
    "awq": Scheme(awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
    "bitsandbytes nf4": Scheme(nf4(False), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "bitsandbytes nf4 nested": Scheme(nf4(True), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "bitsandbytes int8": Scheme(int8_rows, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "ct int4": Scheme(
        _compressed("pack-quantized", _symmetric(16, 7), num_bits=4, type="int", strategy="group", group_size=16),
        _settings("pack-quantized", 4),
        CT,
    ),
    "ct int8": Scheme(
        _compressed("pack-quantized", _symmetric(32, 127), num_bits=8, type="int", strategy="group", group_size=32),
        _settings("pack-quantized", 8),
        CT,
    ),
    "ct int4 asymmetric": Scheme(
        _compressed(
            "pack-quantized", _asymmetric, num_bits=4, type="int", strategy="group", group_size=32, symmetric=False
        ),
        _settings("pack-quantized", 4),
        CT,
    ),
    "ct fp8": Scheme(
        _compressed(
            "float-quantized",
            lambda w: {"weight_scale": w.abs().amax(1, keepdim=True) / 448},
            num_bits=8,
            type="float",
            strategy="channel",
        ),
        _settings("float-quantized", 8),
        CT,
    ),
    "ct int8 channel": Scheme(
        _compressed(
            "int-quantized",
            lambda w: {"weight_scale": w.abs().amax(1, keepdim=True) / 127},
            num_bits=8,
            type="int",
            strategy="channel",
        ),
        _settings("int-quantized", 8),
        CT,
    ),
}


def write_pair(source: Path, scheme: Scheme, folder: Path) -> tuple[Path, Path]:
    """`source` with its experts and attention quantized, and the same values as float32."""
    from safetensors.torch import load_file, save_file

    one, two = (Path(shutil.copytree(source, folder / name)) for name in ("quantized", "floats"))
    tensors = {k: v for file in sorted(source.glob("*.safetensors")) for k, v in load_file(file).items()}
    parts: Parts = {}
    floats: Parts = {}
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            made, back = scheme.encode(tensor.float())
            parts |= {name.removesuffix("weight") + suffix: t.contiguous() for suffix, t in made.items()}
            floats[name] = back.float().contiguous()
        else:
            parts[name] = floats[name] = tensor
    for place, content in ((one, parts), (two, floats)):
        for old in [*place.glob("*.safetensors"), *place.glob("*.index.json")]:
            old.unlink()
        save_file({k: v.clone() for k, v in content.items()}, place / "model.safetensors", {"format": "pt"})
    config = json.loads((one / "config.json").read_text())
    (one / "config.json").write_text(json.dumps({**config, "quantization_config": scheme.settings}))
    return one, two
