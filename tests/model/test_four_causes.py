"""Why a checkpoint cannot be used: four causes, four messages, four remedies, each of them true."""

from pathlib import Path

import pytest

from helpers import quantized as q
from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import open_checkpoint

GPTQ = {"quant_method": "gptq", "bits": 4}


def _codes(name: str, out: int, ins: int) -> q.Entries:
    """A quantizer that trimoe does not know (AQLM's names)."""
    return {name + "codes": ("I16", (out, ins // 8, 1)), name + "codebooks": ("F16", (1, 256, 1, 8))}


def _renamed(entries: q.Entries, old: str, new: str) -> q.Entries:
    return {name.replace(old, new): entry for name, entry in entries.items()}


def _without(entries: q.Entries, end: str) -> q.Entries:
    gone = next(name for name in entries if name.endswith(end))
    return {name: entry for name, entry in entries.items() if name != gone}


CASES = {
    "family": (
        q.qwen(q.plain),
        {**q.qwen_config(None), "model_type": "something", "num_experts_per_tok": None, "k": 2},
        "describe the family",
    ),
    "layout": (_renamed(q.qwen(q.plain), "mlp.experts.", "mlp.all_experts."), q.qwen_config(None), "convert it"),
    "quantization": (
        q.qwen(_codes),
        q.qwen_config({"quant_method": "aqlm"}),
        "use the unquantized checkpoint, a GGUF file, or a checkpoint of one of these quantizers",
    ),
    "download": (_without(q.qwen(q.gptq), "experts.3.up_proj.scales"), q.qwen_config(GPTQ), "download it again"),
}


@pytest.mark.parametrize("cause", CASES)
def test_the_remedy_is_that_of_the_cause(cause: str, tmp_path: Path) -> None:
    entries, config, remedy = CASES[cause]
    folder = q.write(tmp_path / "model", entries, config)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert remedy in caught.value.remedy
    others = [other for name, (_, _, other) in CASES.items() if name != cause]
    assert not [other for other in others if other in caught.value.remedy]


def test_an_unknown_quantization_is_named_with_those_that_are_known(tmp_path: Path) -> None:
    entries, config, _ = CASES["quantization"]
    with pytest.raises(CheckpointError, match="the quantization aqlm is unknown in this form") as caught:
        open_checkpoint(q.write(tmp_path / "model", entries, config))
    assert "gptq" in caught.value.expected
    assert "quark" in caught.value.expected
