"""Models for perf/prune.py with real Gemma 4 layer shapes: a BF16 checkpoint and a GGUF file with the types of Q4_K_M.

Values are one seeded random MiB, repeated with a running stamp, so no two blocks of 1 MiB are equal.
"""

import json
import random
import struct
from pathlib import Path
from typing import BinaryIO

from trimoe.model.safetensors import header_bytes, nbytes_of

HIDDEN, WIDTH, DENSE, EXPERTS, TOP_K = 2816, 704, 2112, 128, 8
QUERIES, KEYS = 16 * 256, 8 * 256
Shapes = dict[str, tuple[int, ...]]

# ggml types: name -> (number, values per block, bytes per block)
_GGML = {"F32": (0, 1, 4), "Q5_0": (6, 32, 22), "Q4_K": (12, 256, 144)}
_ALIGNMENT = 32


def checkpoint_shapes(layer: int) -> Shapes:
    """Tensors of one layer of gemma-4-26B-A4B: experts, router, dense FFN, attention."""
    prefix = f"model.language_model.layers.{layer}."
    shapes: Shapes = {
        "experts.gate_up_proj": (EXPERTS, 2 * WIDTH, HIDDEN),
        "experts.down_proj": (EXPERTS, HIDDEN, WIDTH),
        "router.proj.weight": (EXPERTS, HIDDEN),
        "router.per_expert_scale": (EXPERTS,),
        "router.scale": (HIDDEN,),
        "input_layernorm.weight": (HIDDEN,),
        "mlp.gate_proj.weight": (DENSE, HIDDEN),
        "mlp.up_proj.weight": (DENSE, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, DENSE),
        "self_attn.q_proj.weight": (QUERIES, HIDDEN),
        "self_attn.k_proj.weight": (KEYS, HIDDEN),
        "self_attn.v_proj.weight": (KEYS, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, QUERIES),
    }
    return {prefix + name: shape for name, shape in sorted(shapes.items())}


def make_checkpoint(folder: Path, size: int) -> int:
    """A checkpoint of about `size` bytes in shards of two layers; returns its number of layers."""
    layers = max(1, round(size / sum(nbytes_of("BF16", shape) for shape in checkpoint_shapes(0).values())))
    folder.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    starts = range(0, layers, 2)
    for number, start in enumerate(starts, 1):
        name = f"model-{number:05d}-of-{len(starts):05d}.safetensors"
        entries = {
            n: ("BF16", s) for i in range(start, min(start + 2, layers)) for n, s in checkpoint_shapes(i).items()
        }
        with (folder / name).open("wb") as handle:
            handle.write(header_bytes(entries, {"format": "pt"}))
            _fill(handle, sum(nbytes_of(*entry) for entry in entries.values()))
        weight_map |= dict.fromkeys(entries, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    text = {
        "model_type": "gemma4_text",
        "hidden_size": HIDDEN,
        "moe_intermediate_size": WIDTH,
        "num_experts": EXPERTS,
        "top_k_experts": TOP_K,
        "num_hidden_layers": layers,
    }
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma4", "text_config": text}, indent=2))
    return layers


def gguf_tensors(layer: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensors of one layer as llama-quantize writes them for Q4_K_M: rows of 704 and 2112 fall back to Q5_0."""
    prefix = f"blk.{layer}."
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        "ffn_gate_up_exps.weight": ("Q4_K", (EXPERTS, 2 * WIDTH, HIDDEN)),
        "ffn_down_exps.weight": ("Q5_0", (EXPERTS, HIDDEN, WIDTH)),
        "ffn_down_exps.scale": ("F32", (EXPERTS,)),
        "ffn_gate_inp.weight": ("F32", (EXPERTS, HIDDEN)),
        "ffn_gate_inp.scale": ("F32", (HIDDEN,)),
        "attn_norm.weight": ("F32", (HIDDEN,)),
        "ffn_gate.weight": ("Q4_K", (DENSE, HIDDEN)),
        "ffn_up.weight": ("Q4_K", (DENSE, HIDDEN)),
        "ffn_down.weight": ("Q5_0", (HIDDEN, DENSE)),
        "attn_q.weight": ("Q4_K", (QUERIES, HIDDEN)),
        "attn_k.weight": ("Q4_K", (KEYS, HIDDEN)),
        "attn_v.weight": ("Q4_K", (KEYS, HIDDEN)),
        "attn_output.weight": ("Q4_K", (HIDDEN, QUERIES)),
    }
    return {prefix + name: tensor for name, tensor in tensors.items()}


def make_gguf(file: Path, size: int) -> int:
    """A GGUF (version 3) of about `size` bytes; returns its number of layers."""
    layers = max(1, round(size / sum(_padded(_bytes(*t)) for t in gguf_tensors(0).values())))
    tensors = {name: tensor for i in range(layers) for name, tensor in gguf_tensors(i).items()}
    counts = {"block_count": layers, "expert_count": EXPERTS, "expert_used_count": TOP_K, "embedding_length": HIDDEN}
    keys = [_text("general.architecture") + struct.pack("<I", 8) + _text("gemma4")]
    keys += [_text(f"gemma4.{key}") + struct.pack("<II", 4, value) for key, value in counts.items()]
    parts, offset = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys)), *keys], 0
    for name, (kind, shape) in tensors.items():
        parts.append(_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1]))
        parts.append(struct.pack("<IQ", _GGML[kind][0], offset))
        offset += _padded(_bytes(kind, shape))
    header = b"".join(parts)
    with file.open("wb") as handle:
        handle.write(header.ljust(_padded(len(header)), b"\0"))
        _fill(handle, offset)
    return layers


def _bytes(kind: str, shape: tuple[int, ...]) -> int:
    _, values, size = _GGML[kind]
    count = 1
    for length in shape:
        count *= length
    return count // values * size


def _padded(size: int) -> int:
    return size + -size % _ALIGNMENT


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _fill(handle: BinaryIO, left: int) -> None:
    block = bytearray(random.Random(0).randbytes(1 << 20))
    while left:
        block[:8] = (handle.tell() << 20 | 1).to_bytes(8, "little")
        left -= handle.write(memoryview(block)[:left])
