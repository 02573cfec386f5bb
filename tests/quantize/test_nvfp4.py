"""NVFP4 checkpoints: Model Optimizer's bytes, cutting before or after, resuming, sizes, and what is refused."""

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from helpers.families import EXPERTS, MADE, Made
from helpers.families import write as write_family
from helpers.nvfp4_digests import digests
from trimoe.certify.certify import certify
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import BadInput, CheckpointError, MissingPrerequisite, Refused, UsageError
from trimoe.io.atomic import RESUME
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.nvfp4 import dequantize
from trimoe.model.safetensors import TensorInfo, header_bytes, read_array, read_bytes
from trimoe.model.shards import read_index
from trimoe.model.tiny import path as bundled
from trimoe.quantize.nvfp4 import matrices as nvfp4_matrices
from trimoe.quantize.nvfp4 import write as nvfp4_write
from trimoe.quantize.nvfp4.codes import bits_of
from trimoe.quantize.nvfp4.plan import plan_nvfp4, wildcards
from trimoe.quantize.nvfp4.quantize import quantize_nvfp4, verify
from trimoe.quantize.nvfp4.rules import LAYOUTS, parse_rules
from trimoe.quantize.nvfp4.rules import rules as nvfp4_rules
from trimoe.quantize.nvfp4.sizes import predict

RECORDED = json.loads((Path(__file__).parent / "data" / "nvfp4_bundled.json").read_text())


def wide(settings: Any) -> Any:
    """A family's settings with every width a multiple of 16."""
    if isinstance(settings, dict):
        return {
            key: 32
            if key.startswith(("intermediate_size", "shared_expert_intermediate")) and value == 24
            else wide(value)
            for key, value in settings.items()
        }
    return settings


def weights_of(folder: Path) -> dict[str, bytes]:
    """Every file that says or holds something of the weights."""
    names = {"config.json", "hf_quant_config.json"}
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name in names or ".safetensors" in f.name}


def values_of(index: dict[str, TensorInfo], module: str) -> np.ndarray:
    """A module's weights, dequantized by either layout's rule."""
    scales = np.frombuffer(read_bytes(index[f"{module}.weight_scale"]), np.uint8)
    if f"{module}.weight_packed" in index:
        packed, second = (
            read_array(index[f"{module}.weight_packed"]),
            1 / read_array(index[f"{module}.weight_global_scale"])[0],
        )
    else:
        packed, second = read_array(index[f"{module}.weight"]), read_array(index[f"{module}.weight_scale_2"])[()]
    return dequantize(packed, scales.reshape(packed.shape[0], -1), np.float32(second))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled model in both layouts."""
    folder = tmp_path_factory.mktemp("nvfp4")
    for layout in LAYOUTS:
        quantize_nvfp4(bundled(), folder / layout, layout=layout)
    return {layout: folder / layout for layout in LAYOUTS}


def test_the_bundled_model_has_the_bytes_of_model_optimizers_export(made: dict[str, Path]) -> None:
    """Every tensor, and what loaders are told; recorded from its export (test_nvfp4_modelopt.py makes it again)."""
    ours = digests(made["modelopt"])
    assert ours.pop("lm_head.weight")  # tied to the embedding: they leave the copy out
    assert ours == RECORDED["digests"]
    assert json.loads((made["modelopt"] / "hf_quant_config.json").read_text()) == RECORDED["hf_quant_config"]
    config = json.loads((made["modelopt"] / "config.json").read_text())
    assert config.pop("quantization_config") == RECORDED["quantization_config"]
    assert config == json.loads((bundled() / "config.json").read_text())


def test_both_layouts_hold_the_same_numbers(made: dict[str, Path]) -> None:
    """Codes and block scales are the same bytes; the scale of a tensor is the reciprocal."""
    one, other = (read_index(made[layout]) for layout in ("modelopt", "compressed-tensors"))
    modules = [name.removesuffix(".weight_scale") for name in one if name.endswith(".weight_scale")]
    assert len(modules) == 411
    for module in modules:
        assert read_bytes(one[f"{module}.weight"]) == read_bytes(other[f"{module}.weight_packed"])
        assert read_bytes(one[f"{module}.weight_scale"]) == read_bytes(other[f"{module}.weight_scale"])
        product = read_array(one[f"{module}.weight_scale_2"]) * read_array(other[f"{module}.weight_global_scale"])
        assert product[0] == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_errors_in_the_manifest_are_those_of_the_file(made: dict[str, Path], layout: str) -> None:
    """Read back, dequantized, compared with the original, for every matrix."""
    index, source = read_index(made[layout]), read_index(bundled())
    facts = json.loads((made[layout] / "trimoe.json").read_text())["facts"]
    for module, error in facts["relative_error_by_matrix"].items():
        if ".experts." not in module:
            original = read_array(source[f"{module}.weight"])
        else:
            head, expert, kind = module.rsplit(".", 2)
            stack = read_array(source[f"{head}.{'down_proj' if kind == 'down_proj' else 'gate_up_proj'}"])[int(expert)]
            original = {"gate_proj": stack[:32], "up_proj": stack[32:], "down_proj": stack}[kind]
        difference = values_of(index, module) - original
        assert error == pytest.approx(float(np.linalg.norm(difference) / np.linalg.norm(original)), abs=2e-6)
        assert 0.05 < error < 0.12
    assert facts["relative_error"]["experts.up_proj"]["count"] == 128


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("max_shard", [5_000_000_000, 400_000])
def test_cutting_the_result_is_quantizing_the_cut(tmp_path: Path, layout: str, max_shard: int) -> None:
    """Byte for byte: every tensor and the configuration, and with one file the file. (With several, a cut puts tensors
    into other files than quantizing does, because both fill them anew.)"""
    draw = random.Random(3)
    drop = DropMap({layer: tuple(sorted(draw.sample(range(32), 9))) for layer in range(4)}, 32)
    quantize_nvfp4(bundled(), tmp_path / "whole", layout=layout, max_shard=max_shard)
    prune(tmp_path / "whole", drop, tmp_path / "cut after", max_shard=max_shard)
    prune(bundled(), drop, tmp_path / "cut before", max_shard=max_shard)
    quantize_nvfp4(tmp_path / "cut before", tmp_path / "made after", layout=layout, max_shard=max_shard)
    one, other = weights_of(tmp_path / "cut after"), weights_of(tmp_path / "made after")
    assert one.keys() == other.keys()
    assert len([name for name in one if name.endswith(".safetensors")]) == (1 if max_shard > 10**6 else 7)
    if max_shard < 10**6:
        one, other = ({n: d for n, d in files.items() if ".safetensors" not in n} for files in (one, other))
    assert all(one[name] == other[name] for name in one)
    assert digests(tmp_path / "cut after") == digests(tmp_path / "made after")
    certificate = certify(
        tmp_path / "whole", tmp_path / "made after", map=drop, logits=False, output=tmp_path / "certificate.json"
    )
    assert certificate.status == "incomplete"  # without logits; a check that fails refutes
    assert all(check.status in ("passed", "not_run") for check in certificate.checks), certificate.checks


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("max_shard", [5_000_000_000, 300_000])
def test_the_size_is_known_before(tmp_path: Path, layout: str, max_shard: int) -> None:
    """To the byte, of the model and of what it will be after a cut."""
    checkpoint = open_checkpoint(bundled())
    quantize_nvfp4(bundled(), tmp_path / "out", layout=layout, max_shard=max_shard)
    assert predict(checkpoint, layout, max_shard=max_shard).file_bytes == size_on_disk(tmp_path / "out")
    prune(bundled(), DropMap({i: tuple(range(7)) for i in range(4)}, 32), tmp_path / "cut")
    quantize_nvfp4(tmp_path / "cut", tmp_path / "small", layout=layout, max_shard=max_shard)
    assert predict(checkpoint, layout, keep=25, max_shard=max_shard).file_bytes == size_on_disk(tmp_path / "small")
    with pytest.raises(UsageError, match="33 experts"):
        predict(checkpoint, layout, keep=33)


def size_on_disk(folder: Path) -> int:
    """Bytes of the weights files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_threads_and_slices_do_not_change_a_byte(
    tmp_path: Path, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the errors."""
    monkeypatch.setattr(nvfp4_matrices, "SLICE", 1000)
    result = quantize_nvfp4(bundled(), tmp_path / "out", threads=5)
    assert weights_of(tmp_path / "out") == weights_of(made["modelopt"])
    kept = quantize_nvfp4(bundled(), made["modelopt"])
    assert kept.kept
    assert not result.kept
    assert kept.errors == pytest.approx(result.errors, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_run_is_continued(tmp_path: Path, made: dict[str, Path], seed: int) -> None:
    """Killed at a random matrix by an interrupt, which leaves what was written; the end is the same."""
    steps = random.Random(seed).randrange(450, 1200)

    def stop(done: int, total: int, note: str) -> None:
        nonlocal steps
        steps -= 1
        if steps == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_nvfp4(bundled(), tmp_path / "out", max_shard=300_000, progress=stop)
    assert (tmp_path / ".out.partial" / RESUME).is_dir()
    assert not (tmp_path / "out").exists()
    again = quantize_nvfp4(bundled(), tmp_path / "out", max_shard=300_000)
    quantize_nvfp4(bundled(), tmp_path / "straight", max_shard=300_000)
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "straight")
    assert (tmp_path / "out/trimoe.json").read_bytes() == (tmp_path / "straight/trimoe.json").read_bytes()
    assert again.errors == quantize_nvfp4(bundled(), made["modelopt"]).errors


def test_finished_files_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interrupt in the last file only matrices from there on are quantized."""
    plan = plan_nvfp4(open_checkpoint(bundled()), max_shard=300_000)

    def stop(done: int, total: int, note: str) -> None:
        if note == plan.files[-1].name:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_nvfp4(bundled(), tmp_path / "out", max_shard=300_000, progress=stop)
    done: list[str] = []
    honest = nvfp4_write.quantized
    monkeypatch.setattr(nvfp4_write, "largest_in", None)  # known from before
    monkeypatch.setattr(nvfp4_write, "quantized", lambda m, scale: done.append(m.name) or honest(m, scale))
    quantize_nvfp4(bundled(), tmp_path / "out", max_shard=300_000)
    allowed = {entry.matrix.name for file in plan.files[-2:] for entry in file.entries if entry.matrix}
    assert set(done) <= allowed
    assert len(done) < len(plan.matrices) / 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", [m for m in MADE if not m.quantized], ids=lambda made: made.name)
def test_every_family(family: Made, layout: str, tmp_path: Path) -> None:
    """Stacked, one tensor per expert, transposed: every expert is quantized, dequantizes to the original, opens again
    and is cut like the original."""
    family = replace(family, settings=wide(family.settings))
    source = write_family(family, tmp_path / "source")
    checkpoint = open_checkpoint(source)
    if family.family == "gpt_oss":
        with pytest.raises(Refused, match="NVFP4 cannot take apart"):
            quantize_nvfp4(source, tmp_path / "out", layout=layout)
        return
    result = quantize_nvfp4(source, tmp_path / "out", layout=layout)
    assert predict(checkpoint, layout).file_bytes == size_on_disk(tmp_path / "out")
    experts = [name for name in result.errors if "experts." in name and "shared" not in name]
    assert len(experts) == 3 * EXPERTS * len(family.moe_layers)
    index = read_index(tmp_path / "out")
    for matrix in plan_nvfp4(checkpoint, layout).matrices:
        original = original_of(matrix)
        error = np.linalg.norm(values_of(index, matrix.name) - original) / np.linalg.norm(original)
        assert error < 0.13
        assert result.errors[matrix.name] == pytest.approx(error, abs=1e-5)
    opened = open_checkpoint(tmp_path / "out")
    assert opened.moe_layers == family.moe_layers
    drop = DropMap(dict(family.drop), EXPERTS)
    prune(tmp_path / "out", drop, tmp_path / "cut after")
    prune(source, drop, tmp_path / "cut before")
    quantize_nvfp4(tmp_path / "cut before", tmp_path / "made after", layout=layout)
    assert weights_of(tmp_path / "cut after") == weights_of(tmp_path / "made after")


def original_of(matrix: Any) -> np.ndarray:
    """A matrix of a plan, read without its own reader: [outputs, inputs], half of a stack for gate and up."""
    whole = read_array(matrix.info)
    if matrix.expert is None:
        return whole
    one = whole[matrix.expert].T if matrix.transposed else whole[matrix.expert]
    last = matrix.name.rpartition(".")[2]
    half = len(one) // 2
    return {"gate_proj": one[:half], "w1": one[:half], "up_proj": one[half:], "w3": one[half:]}.get(last, one)


def test_matrices_that_are_fused_share_a_scale(made: dict[str, Path]) -> None:
    """As vLLM and Model Optimizer have it; others do not."""
    index = read_index(made["modelopt"])
    base = "model.layers.0"
    scales = {n: float(read_array(index[n])[()]) for n in index if n.endswith("weight_scale_2") and n.startswith(base)}
    for group in (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("experts.3.gate_proj", "experts.3.up_proj"),
    ):
        assert len({scales[f"{base}.{name}.weight_scale_2"] for name in group}) == 1
    assert len(set(scales.values())) > 50


def test_wildcards_are_those_of_model_optimizer() -> None:
    """A pattern never matches a quantized module."""
    quantized = {"model.layers.0.mlp.gate_proj", "model.layers.0.mlp.gate_up"}
    ignored = {"lm_head", "model.layers.0.mlp.gate", "model.layers.0.router.proj", "model.vision.a.b", "model.vision.c"}
    assert wildcards(ignored, quantized) == {
        "lm_head",
        "model.layers.0.mlp.gate",
        "model.layers.0.router*",
        "model.vision*",
    }
    assert wildcards({"a.b.c"}, {"a.bx"}) == {"a.b.*"}


def copied(folder: Path) -> Path:
    """The bundled model, to spoil."""
    shutil.copytree(bundled(), folder)
    os.chmod(folder, 0o755)
    for file in folder.iterdir():
        os.chmod(file, 0o644)
    return folder


def rewritten(folder: Path, name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    """One tensor of the only file replaced."""
    index = read_index(folder)
    parts = {n: (i.dtype, i.shape, read_bytes(i)) for n, i in index.items()} | {name: (dtype, shape, data)}
    head = header_bytes({n: (d, s) for n, (d, s, _) in parts.items()}, {})
    (folder / "model.safetensors").write_bytes(head + b"".join(data for _, _, data in parts.values()))


def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown layout, quantized models, rows that 16 does not divide, other types, NaN, no space, a file in the way."""
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="no NVFP4 layout gguf"):
        quantize_nvfp4(bundled(), out, layout="gguf")
    quantize_nvfp4(bundled(), tmp_path / "made")
    with pytest.raises(BadInput, match="already quantized"):
        quantize_nvfp4(tmp_path / "made", out)
    odd = copied(tmp_path / "odd")
    rewritten(odd, "model.layers.1.mlp.down_proj.weight", "BF16", (256, 56), bytes(256 * 56 * 2))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj cannot be quantized") as found:
        quantize_nvfp4(odd, out)
    assert "rows of 56" in str(found.value.actual)
    other = copied(tmp_path / "f64")
    rewritten(other, "model.layers.0.experts.down_proj", "F64", (32, 256, 32), bytes(32 * 256 * 32 * 8))
    with pytest.raises(CheckpointError, match="not a floating-point weight"):
        quantize_nvfp4(other, out)
    broken = copied(tmp_path / "nan")
    data = bytearray(read_bytes(read_index(broken)["model.layers.3.experts.gate_up_proj"]))
    data[777_770:777_772] = b"\xc0\x7f"
    rewritten(broken, "model.layers.3.experts.gate_up_proj", "BF16", (32, 64, 256), bytes(data))
    with pytest.raises(CheckpointError, match=r"layers\.3\.experts\.gate_up_proj holds NaN"):
        quantize_nvfp4(broken, out)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(MissingPrerequisite, match="not enough disk space"):
        quantize_nvfp4(bundled(), out)
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f64", "made", "nan", "odd"]
    out.mkdir()
    with pytest.raises(BadInput, match="exists already"):
        quantize_nvfp4(bundled(), out)


def test_mxfp4_is_refused_by_name(tmp_path: Path) -> None:
    """gpt-oss as published."""
    source = write_family(next(m for m in MADE if m.quantized), tmp_path / "source")
    with pytest.raises(BadInput, match="already quantized") as found:
        quantize_nvfp4(source, tmp_path / "out")
    assert "mxfp4" in str(found.value.actual)


def test_an_expert_that_stayed_unquantized_is_never_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the plan, and by what was written, each for itself."""
    checkpoint = open_checkpoint(bundled())
    plan = plan_nvfp4(checkpoint)
    rules = nvfp4_rules()
    monkeypatch.setattr(
        "trimoe.quantize.nvfp4.plan.rules", lambda: msgspec.structs.replace(rules, split={"down": ("down",)})
    )
    with pytest.raises(Refused, match="would stay BF16"):
        plan_nvfp4(checkpoint)
    monkeypatch.undo()
    shutil.copytree(bundled(), tmp_path / "fake")
    with pytest.raises(CheckpointError, match="not written as planned"):
        verify(tmp_path / "fake", plan)


def test_a_changed_result_is_not_kept(tmp_path: Path) -> None:
    """A rerun compares hashes."""
    quantize_nvfp4(bundled(), tmp_path / "out")
    file = tmp_path / "out/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="changed after it was made"):
        quantize_nvfp4(bundled(), tmp_path / "out")


def test_the_processor_is_described_for_older_loaders(tmp_path: Path) -> None:
    """preprocessor_config.json from the feature extractor of processor_config.json, if there is none."""
    source = copied(tmp_path / "source")
    parts = {
        "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor", "sampling_rate": 16000},
        "image_processor": {"image_processor_type": "Gemma4ImageProcessor"},
    }
    (source / "processor_config.json").write_text(json.dumps(parts))
    quantize_nvfp4(source, tmp_path / "out")
    assert json.loads((tmp_path / "out/preprocessor_config.json").read_text()) == parts["feature_extractor"]
    assert (tmp_path / "out/processor_config.json").read_bytes() == (source / "processor_config.json").read_bytes()
    (source / "preprocessor_config.json").write_text('{"mine": 1}')
    quantize_nvfp4(source, tmp_path / "second")
    assert json.loads((tmp_path / "second/preprocessor_config.json").read_text()) == {"mine": 1}


def test_rules_refuse_unknown_keys() -> None:
    """As every data file."""
    with pytest.raises(BadInput, match=r"(?s)rules mine\.toml.*surprise"):
        parse_rules('tier = "X"\nsurprise = 1', "mine.toml")


def test_memory_does_not_hold_a_tensor(tmp_path: Path) -> None:
    """A matrix is read in slices: the reader never returns more than `SLICE` weights at a time."""
    plan = plan_nvfp4(open_checkpoint(bundled()))
    nvfp4_matrices_slice, nvfp4_matrices.SLICE = nvfp4_matrices.SLICE, 4096
    try:
        for matrix in plan.matrices[:20]:
            parts = [part.copy() for part in nvfp4_matrices.slices(matrix)]
            assert max(part.size for part in parts) <= 4096
            whole = bits_of(read_bytes(matrix.info), "BF16", matrix.info.shape)
            one = whole if matrix.expert is None else whole[matrix.expert][matrix.first : matrix.first + matrix.rows]
            assert np.array_equal(np.concatenate(parts), one)
    finally:
        nvfp4_matrices.SLICE = nvfp4_matrices_slice
