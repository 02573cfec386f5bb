"""Small random models for the certificate's tests, and the means to damage them."""

import json
from collections.abc import Callable
from pathlib import Path

from helpers.byte_tokenizer import write_tokenizer
from trimoe.model.safetensors import TensorInfo, header_bytes, read_bytes
from trimoe.model.shards import read_index

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def write_gemma4(folder: Path, *, dtype: str = "float32", max_shard: str = "5GB", seed: int = 0) -> Path:
    """A random Gemma 4: 2 layers (one of full attention), 8 experts, top-2, with spread routing."""
    import torch
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = Gemma4TextConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        global_head_dim=16,
        layer_types=["sliding_attention", "full_attention"],
        enable_moe_block=True,
        num_experts=8,
        top_k_experts=2,
        moe_intermediate_size=16,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=259,
        max_position_embeddings=1024,
        sliding_window=64,
        num_kv_shared_layers=0,
    )
    model = Gemma4ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Larger than a fresh model's, so that an expert that is lost or swapped shows in the logits.
            parameter.copy_(torch.randn_like(parameter) * (1.0 if "router" in name else 0.3))
            if "norm" in name or "scale" in name:
                parameter.add_(1.0)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard)
    write_tokenizer(folder)
    return folder


def read_tensors(folder: Path) -> Tensors:
    """Every tensor of a single-file checkpoint with its bytes."""
    return {name: (info.dtype, info.shape, read_bytes(info)) for name, info in read_index(folder).items()}


def write_tensors(folder: Path, tensors: Tensors) -> None:
    """Write a single-file checkpoint's weights."""
    header = header_bytes({name: (dtype, shape) for name, (dtype, shape, _) in tensors.items()}, {"format": "pt"})
    (folder / "model.safetensors").write_bytes(header + b"".join(data for _, _, data in tensors.values()))


def edit_tensors(folder: Path, edit: Callable[[Tensors], None]) -> None:
    """Change the tensors of a single-file checkpoint in place."""
    tensors = read_tensors(folder)
    edit(tensors)
    write_tensors(folder, tensors)


def edit_json(file: Path, edit: Callable[[dict], None]) -> None:
    """Change a JSON file in place."""
    data = json.loads(file.read_text())
    edit(data)
    file.write_text(json.dumps(data, indent=2))


def flip_byte(info: TensorInfo, offset: int, mask: int = 1) -> None:
    """Change one byte of a tensor where it lies."""
    with info.file.open("r+b") as handle:
        handle.seek(info.start + offset)
        old = handle.read(1)[0]
        handle.seek(info.start + offset)
        handle.write(bytes([old ^ mask]))
