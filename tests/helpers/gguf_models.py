"""Small GGUF models for tests, written by the gguf package (an implementation that is not ours) with random bytes.

They have llama.cpp's names and right shapes but no vocabulary worth the name, so they are for byte surgery only; models
that llama.cpp runs come from its own converter.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

EXPERTS, LAYERS, HIDDEN, WIDTH = 8, 3, 256, 512


def write_model(
    path: Path,
    arch: str = "qwen3moe",
    *,
    dtype: str = "Q4_K",
    dense: Sequence[int] = (),
    extra: Sequence[str] = (),
    layers: int = LAYERS,
    experts: int = EXPERTS,
    shared: bool = False,
    fused: bool = False,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
    drop: Sequence[str] = (),
    alignment: int | None = None,
) -> Path:
    """A model of `layers` layers; `dense` ones have no experts. `extra` are names after blk.N. of one value per expert,
    `drop` names of tensors to leave out."""
    import gguf

    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, arch)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_name(f"a small {arch}")
    writer.add_block_count(layers)
    writer.add_embedding_length(HIDDEN)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(2)
    writer.add_token_list(["<s>", "a", "ü", "b"])
    writer.add_token_scores([0.5, -1.0, 2.0, 3.0])
    writer.add_token_types([1, 1, 1, 6])
    writer.add_bool("a.bool", True)
    for key, value in (metadata or {}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)

    def put(name: str, shape: tuple[int, ...], kind: str = "F32") -> None:
        if name in drop:
            return
        number = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[number]
        raw = rng.integers(0, 256, (*shape[:-1], shape[-1] // block * size), np.uint8)
        writer.add_tensor(name, raw, raw_dtype=number)

    put("token_embd.weight", (4, HIDDEN), "Q8_0")
    for layer in range(layers):
        base = f"blk.{layer}."
        put(base + "attn_norm.weight", (HIDDEN,))
        put(base + "attn_k_norm.weight", (experts,))  # as long as the expert axis, and not on it
        put(base + "attn_q.weight", (HIDDEN, HIDDEN), "Q6_K")
        if layer in dense:
            put(base + "ffn_down.weight", (HIDDEN, WIDTH), dtype)
            continue
        put(base + "ffn_gate_inp.weight", (experts, HIDDEN))
        if fused:
            put(base + "ffn_gate_up_exps.weight", (experts, 2 * WIDTH, HIDDEN), dtype)
        else:
            put(base + "ffn_gate_exps.weight", (experts, WIDTH, HIDDEN), dtype)
            put(base + "ffn_up_exps.weight", (experts, WIDTH, HIDDEN), dtype)
        put(base + "ffn_down_exps.weight", (experts, HIDDEN, WIDTH), dtype)
        if arch == "gemma4":
            put(base + "ffn_gate_inp.scale", (HIDDEN,))
        if arch == "gpt-oss":
            put(base + "ffn_gate_inp.bias", (experts,))
            for part, width in (("gate", WIDTH), ("up", WIDTH), ("down", HIDDEN)):
                put(f"{base}ffn_{part}_exps.bias", (experts, width))
        if shared:
            put(base + "ffn_up_shexp.weight", (WIDTH, HIDDEN), dtype)
            put(base + "ffn_gate_inp_shexp.weight", (HIDDEN,))
        for name in extra:
            # "[1,E]NAME" is a vector as some converters write it
            put(base + name.removeprefix("[1,E]"), (1, experts) if name.startswith("[1,E]") else (experts,))
    put("output_norm.weight", (HIDDEN,))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_oracle(path: Path) -> tuple[dict[str, tuple[str, np.ndarray]], dict[str, Any]]:
    """Tensors (type name, raw bytes with the slowest axis first) and metadata, as the gguf package reads them."""
    import gguf

    reader = gguf.GGUFReader(path)
    tensors = {}
    for tensor in reader.tensors:
        rows = int(tensor.shape[-1]) if len(tensor.shape) else 1
        raw = np.frombuffer(np.ascontiguousarray(tensor.data).tobytes(), np.uint8)
        tensors[tensor.name] = (tensor.tensor_type.name, raw.reshape(rows, -1))
    return tensors, {key: field.contents() for key, field in reader.fields.items()}


def write_imatrix(path: Path, model: Path, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """An imatrix as llama-imatrix writes it, for every weight of two or three dimensions; returns sums and counts."""
    import gguf

    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.kv_data[0].pop("general.architecture")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a.txt", "b.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    entries = {}
    for tensor in gguf.GGUFReader(model).tensors:
        if len(tensor.shape) < 2 or tensor.name == "token_embd.weight":
            continue
        matrices = int(tensor.shape[2]) if len(tensor.shape) == 3 else 1
        sums = rng.random((matrices, int(tensor.shape[0])), np.float32)
        counts = rng.integers(0, 900, (matrices, 1)).astype(np.float32)
        entries[tensor.name] = (sums, counts)
    for name, (sums, counts) in sorted(entries.items()):
        # llama.cpp leaves away the axis of one matrix
        writer.add_tensor(name + ".in_sum2", sums if len(sums) > 1 else sums[0])
        writer.add_tensor(name + ".counts", counts if len(counts) > 1 else counts[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return entries
