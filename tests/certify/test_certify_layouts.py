"""The byte proof on other layouts and sizes, and the logit proof on a family with another kind of router."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers.certify_models import Tensors, edit_tensors, flip_byte, write_tensors, write_tokenizer
from trimoe.certify.certify import certify
from trimoe.certify.checkpoint import recover_experts
from trimoe.certify.compare import compare_bytes
from trimoe.certify.expected import expected_tensors
from trimoe.certify.infer import infer_map
from trimoe.certify.tensors import check_cut, check_tensors, check_untouched, first_difference
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.family.file import Family, extra_families, parse_family
from trimoe.model.family.hf import ConfigKeys, HfTensors, Role
from trimoe.model.shards import read_index

FAMILY = """
name = "qwen3_moe"
model_types = ["qwen3_moe"]
[hf]
layer_prefixes = ["model.layers.{L}.mlp."]
scopes = ["experts.", "gate."]
[hf.config]
num_layers = "num_hidden_layers"
num_experts = "num_local_experts"  # what transformers 5 saves; published files say num_experts
top_k = "num_experts_per_tok"
[hf.roles]
gate = {tensor = "experts.{E}.gate_proj.weight", shape = ["*", "*"]}
up = {tensor = "experts.{E}.up_proj.weight", shape = ["*", "*"]}
down = {tensor = "experts.{E}.down_proj.weight", shape = ["*", "*"]}
router = {tensor = "gate.weight", shape = ["E", "*"]}
"""


@pytest.fixture
def qwen(tmp_path: Path) -> Iterator[Path]:
    """A random Qwen3-MoE: one tensor per expert on disk, and a router that is not a `Linear`."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=16,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        tie_word_embeddings=False,
    )
    model = Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path / "qwen")
    write_tokenizer(tmp_path / "qwen")
    with extra_families(parse_family(FAMILY, "test")):
        yield tmp_path / "qwen"


def test_one_tensor_per_expert_and_a_custom_router(qwen: Path, tmp_path: Path) -> None:
    drop = DropMap({0: (0, 5), 1: (2, 3)}, 8)
    prune(qwen, drop, tmp_path / "out")
    certificate = certify(qwen, tmp_path / "out", map=drop)
    assert certificate.proven, [str(f) for c in certificate.checks for f in c.findings] + [
        c.detail for c in certificate.checks
    ]
    assert certificate.check("logits").numbers["masked_share"] > 0.05
    inferred = infer_map(qwen, tmp_path / "out")
    assert inferred.exact
    assert inferred.map is not None
    assert inferred.map.drop == drop.drop

    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    flip_byte(read_index(tmp_path / "out")[name], 9)
    finding = certify(qwen, tmp_path / "out", map=drop).check("cut").findings[0]
    assert (finding.tensor, finding.layer, finding.position, finding.expert, finding.offset) == (name, 1, 2, 4, 9)


def test_a_family_whose_names_change_on_loading(qwen: Path, tmp_path: Path) -> None:
    """The router is found by its values when no parameter has its name."""
    from trimoe.certify.loading import loaded
    from trimoe.certify.logit_proof import CannotCheck
    from trimoe.certify.mask import loaded_tensor
    from trimoe.model.checkpoint import open_checkpoint

    edit_tensors(qwen, lambda t: None)
    base = open_checkpoint(qwen)
    with loaded(qwen, "cpu", 0) as (model, _):
        wanted = dict(model.named_parameters())["model.layers.1.mlp.gate.weight"]
        parameters = list(model.parameters())
        model.named_parameters = lambda: [(f"renamed.{i}", p) for i, p in enumerate(parameters)]
        assert loaded_tensor(base, "router", 1, model) is wanted
        model.named_parameters = list
        with pytest.raises(CannotCheck, match=r"model\.layers\.1\.mlp\.gate\.weight"):
            loaded_tensor(base, "router", 1, model)


def _hand_made(folder: Path, axis: int, rank: int = 3) -> Checkpoint:
    """One layer, six experts on `axis` of one tensor, without any model behind it."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    shape = [6 if i == axis else i + 2 for i in range(rank)]
    tensors: Tensors = {"layer.0.w": ("F32", tuple(shape), rng.normal(size=shape).astype("<f4").tobytes())}
    write_tensors(folder, tensors)
    hf = HfTensors(
        layer_prefixes=("layer.{L}.",),
        scopes=("w",),
        config=ConfigKeys(num_layers="n", num_experts="e", top_k="k"),
        roles={"w": Role(tensor="w", shape=tuple("E" if i == axis else "*" for i in range(rank)))},
    )
    family = Family(name="hand", model_types=("hand",), hf=hf)
    return Checkpoint(folder, {}, read_index(folder), family, hf, "layer.{L}.", 1, 6, 2)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_experts_on_any_axis(axis: int, tmp_path: Path) -> None:
    base, kept = _hand_made(tmp_path / "base", axis), [0, 2, 3, 5]
    drop = DropMap({0: (1, 4)}, 6)
    _, shape, data = {
        "w": ("F32", base.index["layer.0.w"].shape, (tmp_path / "base" / "model.safetensors").read_bytes())
    }["w"]
    array = np.frombuffer(data[-int(np.prod(shape)) * 4 :], "<f4").reshape(shape)
    cut = np.take(array, kept, axis)
    (tmp_path / "out").mkdir()
    write_tensors(tmp_path / "out", {"layer.0.w": ("F32", cut.shape, cut.tobytes())})
    index, expected = read_index(tmp_path / "out"), expected_tensors(base, drop)
    assert check_tensors(expected, index).status == "passed"
    assert check_cut(expected, index, compare_bytes(expected, index)).status == "passed"
    assert recover_experts(base, index).order == {0: kept}

    moved = np.take(array, [0, 3, 2, 5], axis)
    write_tensors(tmp_path / "out", {"layer.0.w": ("F32", cut.shape, moved.tobytes())})
    index = read_index(tmp_path / "out")
    positions = {f.position for f in check_cut(expected, index, compare_bytes(expected, index)).findings}
    assert positions == {1, 2}
    assert recover_experts(base, index).reordered == [0]


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_tensors(tmp_path / name, {"layer.0.w": ("U8", (6, 8 << 20), bytes(48 << 20))})
    made = _hand_made(tmp_path / "hand", 0, rank=2)
    base = Checkpoint(tmp_path / "a", {}, read_index(tmp_path / "a"), made.family, made.hf, "layer.{L}.", 1, 6, 2)
    expected, index = expected_tensors(base, DropMap({0: ()}, 6)), read_index(tmp_path / "b")
    flip_byte(index["layer.0.w"], (48 << 20) - 1)
    tracemalloc.start()
    cut = check_cut(expected, index, compare_bytes(expected, index))
    untouched = check_untouched(expected, index, compare_bytes(expected, index))
    recover_experts(base, index)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 13 << 20
    assert untouched.status == "passed"
    assert [(f.position, f.offset) for f in cut.findings] == [(5, (48 << 20) - 1)]


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    info = _hand_made(tmp_path / "base", 0).index["layer.0.w"]
    info.file.write_bytes(info.file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="ends early"):
        first_difference(info, 0, info, 0, info.nbytes)
