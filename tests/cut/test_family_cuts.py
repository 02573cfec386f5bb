"""Every family: cut, load, certify, recover the map; and what is peculiar to it, damaged, is found and named."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.certify_models import edit_json, flip_byte
from helpers.families import EXPERTS, MADE, Made
from trimoe.calibrate.engine import calibrate
from trimoe.certify.certify import certify
from trimoe.certify.infer import infer_map
from trimoe.choose.dropmap import DropMap
from trimoe.choose.recipe import load_recipe
from trimoe.choose.select import make_map
from trimoe.cut.prune import prune
from trimoe.errors import CheckpointError, MapError
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.safetensors import TensorInfo, read_bytes
from trimoe.model.shards import read_index

Checkpoints = Callable[[Made], Path]
EVERY = pytest.mark.parametrize("made", MADE, ids=lambda made: made.name)


def named(name: str) -> Made:
    return next(made for made in MADE if made.name == name)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory, family_checkpoint: Checkpoints) -> Checkpoints:
    """The checkpoint of a family pruned by its map; not to be changed."""
    folder = tmp_path_factory.mktemp("cut")

    def pruned(made: Made) -> Path:
        out = folder / made.name
        if not out.exists():
            sharding = {"max_shard": "source"} if made.shards > 1 else {}
            prune(family_checkpoint(made), DropMap(made.drop, EXPERTS), out, **sharding)
        return out

    return pruned


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.json"
    file.write_text(
        json.dumps(["def add(a, b): return a + b  # 12345", "The quick brown fox jumps.", "Wie spät ist es?"])
    )
    return file


def load(path: Path) -> tuple[Any, dict[str, Any]]:
    """The model as a user loads it, and what did not fit."""
    import torch
    from transformers import AutoModelForCausalLM, Mxfp4Config

    config = json.loads((path / "config.json").read_text())
    options = {"quantization_config": Mxfp4Config(dequantize=True)} if "quantization_config" in config else {}
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True, **options)
    return model, {kind: set(map(str, keys)) for kind, keys in info.items() if keys}


@EVERY
def test_a_cut_loads_without_a_key_out_of_place(made: Made, family_checkpoint: Checkpoints, cut: Checkpoints) -> None:
    model, wrong = load(cut(made))
    stacks = [p for n, p in model.named_parameters() if n.endswith("experts.down_proj")]
    assert [len(stack) for stack in stacks] == [EXPERTS - 3] * len(made.moe_layers)
    if made.bare:
        assert not wrong
    else:  # a vision tower or a drafting block, for which this class has no use in the original either
        assert set(wrong) == {"unexpected_keys"}
        assert wrong == load(family_checkpoint(made))[1]


@EVERY
def test_a_cut_is_proven_and_its_map_recovered(
    made: Made, family_checkpoint: Checkpoints, cut: Checkpoints, prompts: Path, tmp_path: Path
) -> None:
    base, pruned = family_checkpoint(made), cut(made)
    certificate = certify(base, pruned, prompts=prompts, output=tmp_path / "certificate.json")
    assert certificate.proven, [(c.name, c.detail, [str(f) for f in c.findings]) for c in certificate.checks]
    assert certificate.check("logits").numbers["masked_share"] > 0.1, "the mask was hardly needed"
    result = infer_map(base, pruned)
    assert result.exact
    assert result.map is not None
    assert result.map.drop == made.drop


@EVERY
def test_damage_to_what_is_peculiar_is_found_and_named(
    made: Made, family_checkpoint: Checkpoints, cut: Checkpoints, tmp_path: Path
) -> None:
    base, layer = family_checkpoint(made), made.moe_layers[-1]
    for number, ending in enumerate(made.peculiar):
        pruned = Path(shutil.copytree(cut(made), tmp_path / str(number)))
        index = read_index(pruned)
        [name] = [n for n in index if f"layers.{layer}." in n and n.endswith(ending) and not n.startswith("mtp.")]
        flip_byte(index[name], index[name].nbytes - 1)
        certificate = certify(base, pruned, logits=False)
        assert certificate.status == "refuted"
        [finding] = certificate.check("cut").findings
        kept = [e for e in range(EXPERTS) if e not in made.drop[layer]]
        assert (finding.tensor, finding.layer, finding.expert) == (name, layer, kept[-1])
        result = infer_map(base, pruned)
        assert result.map is not None
        assert result.map.drop == made.drop
        assert [change.tensor for change in result.changes] == [name]


@EVERY
def test_a_scaled_tensor_is_named_with_its_factor(
    made: Made, family_checkpoint: Checkpoints, cut: Checkpoints, tmp_path: Path
) -> None:
    base, pruned = family_checkpoint(made), Path(shutil.copytree(cut(made), tmp_path / "pruned"))
    untouched = read_index(base).keys() - open_checkpoint(base).expert_tensors.keys()
    dense = [name for name in sorted(untouched) if name.endswith("down_proj.weight") and "layers" in name]
    name = (dense or [name for name in sorted(untouched) if name.endswith(("o_proj.weight", "out_proj.weight"))])[-1]
    info = read_index(pruned)[name]
    with info.file.open("r+b") as handle:
        handle.seek(info.start)
        handle.write((np.frombuffer(read_bytes(info), "<f4") * np.float32(1.2)).tobytes())
    result = infer_map(base, pruned)
    assert result.map is not None
    assert result.map.drop == made.drop
    assert [change.tensor for change in result.changes] == [name]
    assert result.scaled == {name: pytest.approx(1.2, abs=5e-4)}


def test_the_map_of_a_prune_that_lost_its_drafting_block(
    family_checkpoint: Checkpoints, cut: Checkpoints, tmp_path: Path
) -> None:
    """Whoever prunes with transformers loses it, because it is not loaded."""
    from safetensors.torch import load_file, save_file

    made = named("qwen3_next")
    pruned = Path(shutil.copytree(cut(made), tmp_path / "pruned"))
    tensors = load_file(pruned / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if not n.startswith("mtp.")}
    save_file(kept, pruned / "model.safetensors", {"format": "pt"})
    result = infer_map(family_checkpoint(made), pruned)
    assert result.map is not None
    assert result.map.drop == made.drop
    assert {str(change).split()[1].split(".")[0] for change in result.changes} == {"mtp"}


@pytest.mark.parametrize("name", ["deepseek_v3", "minimax_m2", "ernie4_5_moe", "glm4_moe"])
def test_a_correction_left_as_it_was_is_found_by_the_logits_too(
    name: str, family_checkpoint: Checkpoints, cut: Checkpoints, prompts: Path, tmp_path: Path
) -> None:
    """The two lines of proof are independent: dropping the last entries instead of the map's changes the choice."""
    made = named(name)
    base, pruned = family_checkpoint(made), Path(shutil.copytree(cut(made), tmp_path / "pruned"))
    original = read_index(base)
    for target, info in read_index(pruned).items():
        if target.endswith("e_score_correction_bias"):
            with info.file.open("r+b") as handle:
                handle.seek(info.start)
                handle.write(read_bytes(original[target])[: info.nbytes])
    certificate = certify(base, pruned, prompts=prompts, keep_going=True)
    assert certificate.check("logits").status == "failed"
    assert {f.tensor for f in certificate.check("cut").findings} >= {
        t for t in original if t.endswith("e_score_correction_bias") and f"layers.{made.moe_layers[-1]}." in t
    }


def rows(info: TensorInfo) -> list[bytes]:
    data, size = read_bytes(info), info.nbytes // info.shape[0]
    return [data[i : i + size] for i in range(0, len(data), size)]


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5_moe", "deepseek_v3", "glm4_moe"])
def test_drafting_blocks_are_cut_like_the_last_layer(
    name: str, family_checkpoint: Checkpoints, cut: Checkpoints, tmp_path: Path
) -> None:
    made = named(name)
    base, pruned = read_index(family_checkpoint(made)), read_index(cut(made))
    block = "mtp.layers.0." if name.startswith("qwen") else "model.layers.3."
    kept = [e for e in range(EXPERTS) if e not in made.drop[2]]
    assert {n for n in pruned if n.startswith(block)} == {
        n for n in base if n.startswith(block) and not any(f"experts.{e}." in n for e in range(len(kept), EXPERTS))
    }
    assert rows(pruned[block + "mlp.gate.weight"]) == [rows(base[block + "mlp.gate.weight"])[e] for e in kept]
    for position, expert in enumerate(kept):
        for matrix in ("gate_proj", "up_proj", "down_proj"):
            tensor = f"{block}mlp.experts.{{}}.{matrix}.weight"
            assert read_bytes(pruned[tensor.format(position)]) == read_bytes(base[tensor.format(expert)])
    assert open_checkpoint(cut(made)).draft_blocks == (block,)

    damaged = Path(shutil.copytree(cut(made), tmp_path / "pruned"))
    tensor = f"{block}mlp.experts.1.up_proj.weight"
    flip_byte(read_index(damaged)[tensor], 0)
    [finding] = certify(family_checkpoint(made), damaged, logits=False).check("cut").findings
    assert (finding.tensor, finding.position, finding.expert) == (tensor, 1, kept[1])


@pytest.mark.parametrize(
    ("name", "groups"), [("deepseek_v2", 2), ("deepseek_v3", 4), ("glm4_moe", 2), ("deepseek_v3", None)]
)
def test_a_map_that_does_not_balance_the_groups_is_refused(
    name: str, groups: int | None, family_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    """Whoever leaves n_group out of DeepSeek-V3's config gets transformers' default of 8."""
    made = named(name)
    base = Path(shutil.copytree(family_checkpoint(made), tmp_path / "base"))
    edit_json(
        base / "config.json",
        lambda c: c.pop("n_group") if groups is None else c.update(n_group=groups, topk_method="group_limited_greedy"),
    )
    with pytest.raises(MapError, match="routing in groups"):
        prune(base, DropMap(made.drop, EXPERTS), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_block_scales_go_with_their_experts(family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """FP8 as DeepSeek and MiniMax publish it: each matrix with a small matrix of scales beside it."""
    import torch
    from safetensors.torch import load_file, save_file

    made = named("minimax_m2")
    base = Path(shutil.copytree(family_checkpoint(made), tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    for number, name in enumerate(n for n in list(tensors) if ".experts." in n):
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[name + "_scale_inv"] = torch.tensor([[float(number)]])
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    prune(base, DropMap(made.drop, EXPERTS), tmp_path / "out")
    for layer in made.moe_layers:
        kept = [e for e in range(EXPERTS) if e not in made.drop[layer]]
        for position, expert in enumerate(kept):
            for matrix in ("w1", "w2", "w3"):
                name = f"model.layers.{layer}.block_sparse_moe.experts.{{}}.{matrix}.weight_scale_inv"
                have = np.frombuffer(read_bytes(read_index(tmp_path / "out")[name.format(position)]), "<f4")
                assert have == tensors[name.format(expert)].numpy()
    assert infer_map(base, tmp_path / "out").exact

    missing = "model.layers.1.block_sparse_moe.experts.5.w2.weight_scale_inv"
    del tensors[missing]
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{re.escape(missing)} is missing"):
        open_checkpoint(base)


@pytest.mark.parametrize("name", ["deepseek_v3", "llama4"])
def test_from_calibration_to_a_cut_with_dense_layers(name: str, family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    made = named(name)
    base = family_checkpoint(made)
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "The quick brown fox jumps over 12 lazy dogs. " * 3}))
    chosen = "name: s\nclasses:\n  generic_text:\n    - {kind: jsonl, path: texts.jsonl}\n"
    (tmp_path / "set.yaml").write_text(chosen)
    stats = calibrate(base, tmp_path / "set.yaml", tmp_path / "stats")
    drop_map = make_map(stats, load_recipe("v4"), keep=5)
    assert list(drop_map.drop) == list(made.moe_layers)
    prune(base, drop_map, tmp_path / "out")
    assert infer_map(base, tmp_path / "out").exact


def test_a_layer_without_its_experts_is_not_taken_for_a_dense_one(
    family_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(family_checkpoint(named("deepseek_v2")), tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    for name in [n for n in tensors if n.startswith(("model.layers.2.mlp.experts.", "model.layers.2.mlp.gate."))]:
        del tensors[name]
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\.mlp\.experts\.0\.gate_proj\.weight is missing"):
        open_checkpoint(base)
