"""Calibration of quantized checkpoints: the statistics of their values, layer by layer, resumable."""

import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.certify_models import edit_json
from helpers.encode import CT, SCHEMES, write_pair
from helpers.families import EXPERTS, MADE, TEXT, write
from trimoe.calibrate.engine import Options, measure
from trimoe.calibrate.layerwise import Run
from trimoe.calibrate.state import RunState
from trimoe.calibrate.stats.fields import SUMS
from trimoe.calibrate.text.calibration import Document, Windows, windows_of
from trimoe.certify.certify import certify
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.dequantize.parts import FloatTensor
from trimoe.model.dequantize.plan import float_tensors


@pytest.fixture(scope="module")
def windows() -> Windows:
    rng = np.random.default_rng(0)
    texts = [Document(c, tuple(rng.integers(3, TEXT, length).tolist())) for c, length in (("a", 40), ("b", 23))]
    return windows_of(texts, 24, 3)


@pytest.mark.parametrize("name", SCHEMES)
def test_statistics_are_those_of_the_dequantized_checkpoint(
    name: str, wide_qwen: Path, windows: Windows, tmp_path: Path
) -> None:
    scheme = SCHEMES[name]
    if scheme.oracle == CT:
        pytest.importorskip("compressed_tensors", reason="compressed-tensors is in the extra 'dev'")
    quantized, floats = write_pair(wide_qwen, scheme, tmp_path)
    have, want = (measure(open_checkpoint(p), windows, Options(shards=3), "t") for p in (quantized, floats))
    for field in SUMS:
        one, two = have.field(field), want.field(field)
        assert np.abs(one - two).max() <= 1e-5 * np.abs(two).max(), field
    plain = measure(open_checkpoint(wide_qwen), windows, Options(shards=3), "t")
    assert any(not np.allclose(plain.field(f), want.field(f), rtol=1e-5) for f in SUMS), "the values are quantized"


def test_mxfp4_statistics_are_those_of_the_floats(windows: Windows, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    made = next(made for made in MADE if made.name == "gpt_oss-mxfp4")
    folder = write(made, tmp_path / "gpt")
    floats = Path(shutil.copytree(folder, tmp_path / "floats", ignore=shutil.ignore_patterns("*.safetensors*")))
    tensors = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    for name in [name.removesuffix("_blocks") for name in tensors if name.endswith("_blocks")]:
        blocks, scales = tensors.pop(name + "_blocks"), tensors.pop(name + "_scales")
        tensors[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
    save_file(tensors, floats / "model.safetensors", {"format": "pt"})
    edit_json(floats / "config.json", lambda config: config.pop("quantization_config"))
    have, want = (measure(open_checkpoint(p), windows, Options(shards=3), "t") for p in (folder, floats))
    for field in SUMS:
        one, two = have.field(field), want.field(field)
        assert np.abs(one - two).max() <= 1e-5 * np.abs(two).max(), field


def test_a_run_that_stops_in_the_middle_resumes(wide_qwen: Path, windows: Windows, tmp_path: Path) -> None:
    quantized, _ = write_pair(wide_qwen, SCHEMES["fp8 block"], tmp_path)
    whole = measure(open_checkpoint(quantized), windows, Options(shards=3), "t")

    def stop(mark: object) -> None:
        raise KeyboardInterrupt

    run = Run(open_checkpoint(quantized), windows, Options(shards=3), "t")
    with pytest.raises(KeyboardInterrupt), RunState(tmp_path / "state", run.settings) as state:
        run.execute(state, on_layer=stop)
    again = Run(open_checkpoint(quantized), windows, Options(shards=3), "t")
    with RunState(tmp_path / "state", again.settings) as state:
        assert len(state.finished()) == 1
        resumed = again.execute(state)
    for field in SUMS:
        assert (resumed.field(field) == whole.field(field)).all()


def test_one_layer_is_decoded_at_a_time(windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded bytes that are alive at once: those of a layer and of the next one, which is read ahead."""
    made = next(made for made in MADE if made.name == "qwen3_moe")
    wide = {"hidden_size": 64, "moe_intermediate_size": 32, "intermediate_size": 64, "head_dim": 32}
    deep = replace(made, settings={**made.settings, **wide, "num_hidden_layers": 8}, moe_layers=tuple(range(8)))
    quantized, _ = write_pair(write(deep, tmp_path / "deep"), SCHEMES["fp8 block"], tmp_path)
    checkpoint = open_checkpoint(quantized)
    live = [0, 0]  # now, most
    original = FloatTensor.array

    def array(tensor: FloatTensor) -> np.ndarray:
        made = original(tensor)
        live[0] += made.nbytes
        live[1] = max(live)
        weakref.finalize(made, lambda size=made.nbytes: live.__setitem__(0, live[0] - size))
        return made

    monkeypatch.setattr(FloatTensor, "array", array)
    measure(checkpoint, windows, Options(shards=3), "t")
    decoded = {n: t.nbytes for n, t in float_tensors(checkpoint).items() if t.decode is not None}
    layers = [sum(size for n, size in decoded.items() if n.startswith(f"model.layers.{i}.")) for i in range(8)]
    assert max(layers) <= live[1] <= 2.5 * max(layers) < sum(layers) / 2


def test_a_quantization_without_a_decoder_is_named(wide_qwen: Path, windows: Windows, tmp_path: Path) -> None:
    scheme = replace(SCHEMES["gptq"], settings={"quant_method": "gptq", "bits": 3})
    quantized, _ = write_pair(wide_qwen, scheme, tmp_path)
    with pytest.raises(CheckpointError, match="is unknown in this form") as caught:
        measure(open_checkpoint(quantized), windows, Options(shards=3), "t")
    assert "GPTQ with 3 bits" in caught.value.actual


@pytest.mark.parametrize("name", ["fp8 block", "nvfp4 modelopt", "gptq", "awq", "bitsandbytes int8", "quark mxfp4"])
def test_a_quantized_cut_is_proven(name: str, wide_qwen: Path, tmp_path: Path) -> None:
    quantized, _ = write_pair(wide_qwen, SCHEMES[name], tmp_path)
    drop = DropMap(next(m for m in MADE if m.name == "qwen3_moe").drop, EXPERTS)
    prune(quantized, drop, tmp_path / "out")
    certificate = certify(quantized, tmp_path / "out", map=drop)
    assert certificate.proven, {c.name: (c.detail, c.findings) for c in certificate.checks}
    assert certificate.logit_method == "layer by layer"
