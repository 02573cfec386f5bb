"""What other people's code makes of our files, and what the loss does to the model's predictions."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.nvfp4 import dequantize
from trimoe.model.safetensors import header_bytes, read_array, read_bytes
from trimoe.model.shards import read_index
from trimoe.model.tiny import path as bundled
from trimoe.model.tiny.tasks import DOMAINS, generate
from trimoe.quantize.nvfp4.codes import floats
from trimoe.quantize.nvfp4.plan import Matrix, plan_nvfp4
from trimoe.quantize.nvfp4.quantize import quantize_nvfp4


def test_compressed_tensors_reads_the_same_weights(tmp_path: Path) -> None:
    """Its own decompressor, with the scheme that our config.json describes, for every matrix."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file

    quantize_nvfp4(bundled(), tmp_path / "out", layout="compressed-tensors")
    settings = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(settings)
    assert config.format == "nvfp4-pack-quantized"
    scheme = config.config_groups["group_0"]
    assert scheme.input_activations is None
    tensors = load_file(tmp_path / "out/model.safetensors")
    modules = [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]
    assert len(modules) == 411
    for module in modules:
        parts = {name: tensors[f"{module}.{name}"] for name in ("weight_packed", "weight_scale", "weight_global_scale")}
        theirs = NVFP4PackedCompressor.decompress(parts, scheme)["weight"].float().numpy()
        packed, scales = parts["weight_packed"].numpy(), parts["weight_scale"].view(torch.uint8).numpy()
        ours = dequantize(packed, scales, np.float32(1) / parts["weight_global_scale"].numpy()[0])
        assert np.abs(theirs - ours).max() <= np.abs(ours).max() * 2**-7  # they answer in bfloat16


def rebuilt(out: Path, weights: Callable[[Matrix, np.ndarray], np.ndarray]) -> Path:
    """The bundled model in float32 with every matrix that is quantized replaced, under its old names."""
    values = {name: np.array(read_array(info)) for name, info in read_index(bundled()).items()}
    for matrix in plan_nvfp4(open_checkpoint(bundled())).matrices:
        place = values[matrix.info.name] if matrix.expert is None else values[matrix.info.name][matrix.expert]
        rows = slice(matrix.first, matrix.first + matrix.rows)
        place[rows] = weights(matrix, place[rows])
    shutil.copytree(bundled(), out)
    (out / "model.safetensors").unlink()
    head = header_bytes({name: ("F32", value.shape) for name, value in values.items()}, {"format": "pt"})
    (out / "model.safetensors").write_bytes(head + b"".join(v.astype("<f4").tobytes() for v in values.values()))
    return out


@pytest.mark.slow
def test_the_quantized_model_predicts_nearly_the_same(tmp_path: Path) -> None:
    """KL divergence of the next token on held-out chats: no more than of noise as large as the reported errors, which
    would not be so if a scale or a half of a stack were wrong anywhere."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    result = quantize_nvfp4(bundled(), tmp_path / "made")
    index, rng = read_index(tmp_path / "made"), np.random.default_rng(4)

    def back(matrix: Matrix, _: np.ndarray) -> np.ndarray:
        packed = read_array(index[f"{matrix.name}.weight"])
        scales = np.frombuffer(read_bytes(index[f"{matrix.name}.weight_scale"]), np.uint8).reshape(len(packed), -1)
        return dequantize(packed, scales, read_array(index[f"{matrix.name}.weight_scale_2"])[()])

    def noise(matrix: Matrix, original: np.ndarray) -> np.ndarray:
        one = rng.standard_normal(original.shape)
        return original + one * (result.errors[matrix.name] * np.linalg.norm(original) / np.linalg.norm(one))

    folders = {"base": bundled(), "nvfp4": rebuilt(tmp_path / "a", back), "noise": rebuilt(tmp_path / "b", noise)}
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundled())
    chats = [
        [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.answer}]
        for domain in DOMAINS
        for item in generate(domain, "heldout", 10)
    ]
    texts = [tokenizer(tokenizer.apply_chat_template(chat, tokenize=False))["input_ids"] for chat in chats]
    logs = {}
    for name, folder in folders.items():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            logits = [model(torch.tensor([ids])).logits[0] for ids in texts]
        logs[name] = torch.log_softmax(torch.cat(logits).double(), -1)
    base = logs.pop("base")
    kl = {name: float((base.exp() * (base - other)).sum(-1).mean()) for name, other in logs.items()}
    same = float((base.argmax(-1) == logs["nvfp4"].argmax(-1)).double().mean())
    print(f"KL in nats per token over {len(base)} tokens: {kl}; same first token {same:.4f}")  # noqa: T201
    assert 0 < kl["nvfp4"] < 1.25 * kl["noise"]
    assert same > 0.9


def test_floats_are_exact() -> None:
    """As torch converts them."""
    torch = pytest.importorskip("torch")
    bits = np.arange(65536, dtype=np.uint16)
    for dtype, kind in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        theirs = torch.from_numpy(bits.view(np.int16)).view(kind).float().numpy()
        assert np.array_equal(floats(bits, dtype), theirs, equal_nan=True)
