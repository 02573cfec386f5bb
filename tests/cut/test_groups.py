"""Routing in groups: maps that drop equally many of every group are exact, all others are refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.families import EXPERTS, MADE, Made
from trimoe.calibrate.engine import calibrate
from trimoe.certify.certify import certify
from trimoe.choose.choose import choose
from trimoe.choose.dropmap import DropMap
from trimoe.choose.recipe import load_recipe, names
from trimoe.cut.prune import prune
from trimoe.errors import MapError, RecipeError
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.groups import Groups

Checkpoints = Callable[[Made], Path]


def grouped(name: str, **settings: object) -> Made:
    made = next(m for m in MADE if m.name == name)
    changes = {"n_group": 2, "topk_group": 1, **settings}
    return replace(made, name=f"{name}-groups", settings=made.settings | changes)


GROUPED = [
    grouped("deepseek_v3"),
    grouped("glm4_moe", num_experts_per_tok=2),
    grouped("deepseek_v2", topk_method="group_limited_greedy"),
]
EVERY = pytest.mark.parametrize("made", GROUPED, ids=lambda made: made.name)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.json"
    file.write_text(json.dumps(["def add(a, b): return a + b  # 12345", "The quick brown fox jumps."]))
    return file


@EVERY
def test_a_balanced_cut_is_proven(made: Made, family_checkpoint: Checkpoints, prompts: Path, tmp_path: Path) -> None:
    base = open_checkpoint(family_checkpoint(made))
    assert base.groups is not None
    assert base.groups.count == 2
    half = EXPERTS // 2
    drop = {layer: ((layer % half), half + (layer + 1) % half) for layer in base.moe_layers}
    prune(base.path, DropMap(drop, EXPERTS), tmp_path / "cut")
    certificate = certify(base.path, tmp_path / "cut", prompts=prompts, output=tmp_path / "certificate.json")
    assert certificate.proven, [(c.name, c.detail, [str(f) for f in c.findings]) for c in certificate.checks]


@EVERY
def test_an_unbalanced_map_is_refused(made: Made, family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    base = open_checkpoint(family_checkpoint(made))
    drop = DropMap(dict.fromkeys(base.moe_layers, (0, 1)), EXPERTS)
    with pytest.raises(MapError, match="routing in groups") as refused:
        prune(base.path, drop, tmp_path / "cut")
    assert refused.value.actual == "its 2 groups lose 2, 0 experts"
    assert not (tmp_path / "cut").exists()


def test_an_unbalanced_cut_would_differ(family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """The reason for the refusal: made by hand, such a model chooses other experts."""
    import torch
    from transformers import AutoModelForCausalLM

    made = replace(grouped("deepseek_v2", topk_method="group_limited_greedy"), name="unbalanced")
    base = family_checkpoint(made)
    plain = tmp_path / "plain"
    plain.mkdir()
    config = json.loads((base / "config.json").read_text())
    for file in base.iterdir():
        (plain / file.name).write_bytes(file.read_bytes())
    (plain / "config.json").write_text(json.dumps(config | {"n_group": 1}))
    drop = dict.fromkeys(open_checkpoint(base).moe_layers, (0, 1))
    prune(plain, DropMap(drop, EXPERTS), tmp_path / "cut")  # without groups the map is accepted
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    (tmp_path / "cut" / "config.json").write_text(json.dumps(config | {"n_group": 2}))
    tokens = torch.arange(3, 60)[None]
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", dtype=torch.float32)
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for layer, ids in drop.items():
        whole.model.layers[layer].mlp.gate.weight.data[list(ids)] = -1e9  # as good as never chosen
    with torch.no_grad():
        assert (cut(tokens).logits - whole(tokens).logits).abs().max() > 1e-3


@EVERY
def test_every_recipe_balances_the_groups(made: Made, family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    base = family_checkpoint(made)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog " * 60)
    (tmp_path / "set.yaml").write_text("name: t\nwindow: 64\nclasses:\n  generic_a: [{kind: text, path: text.txt}]\n")
    stats = calibrate(base, tmp_path / "set.yaml", tmp_path / "stats.safetensors")
    model = open_checkpoint(base)
    assert stats.metadata["groups"]["count"] == 2
    for name in names():
        recipe = load_recipe(name)
        if recipe.class_min or recipe.criterion == "recon":
            continue
        drop = choose(stats, recipe=name, keep=EXPERTS - 2)
        assert model.groups is not None
        for ids in drop.drop.values():
            assert model.groups.fault(ids, EXPERTS, model.top_k) is None
    pinned = {layer: list(choose(stats, recipe="reap", keep=EXPERTS - 2).drop[layer]) for layer in model.moe_layers}
    forced = choose(stats, recipe="reap", keep=EXPERTS - 2, force_keep=pinned)
    for layer, ids in forced.drop.items():
        assert not set(ids) & set(pinned[layer])
        assert model.groups.fault(ids, EXPERTS, model.top_k) is None
    with pytest.raises(MapError, match="not equally many in each of 2 groups"):
        choose(stats, recipe="reap", keep=EXPERTS - 3)
    with pytest.raises(RecipeError, match="class_min"):
        choose(stats, recipe="reap", keep=EXPERTS - 2, class_min={"generic_a": 1})


@given(
    count=st.integers(1, 8),
    size=st.integers(1, 8),
    chosen=st.integers(1, 8),
    scored=st.integers(1, 3),
    top_k=st.integers(1, 8),
    data=st.data(),
)
def test_what_is_accepted_leaves_equal_groups(
    count: int, size: int, chosen: int, scored: int, top_k: int, data: st.DataObject
) -> None:
    groups, experts = Groups(count, min(chosen, count), scored), count * size
    lost = data.draw(st.integers(0, size))
    even = [g * size + i for g in range(count) for i in data.draw(st.permutations(range(size)))[:lost]]
    fits = size - lost >= scored and groups.chosen * (size - lost) >= top_k
    assert (groups.fault(even, experts, top_k) is None) == fits
    if count > 1 and lost > 0:
        assert "lose" in str(groups.fault(even[1:], experts, top_k))
