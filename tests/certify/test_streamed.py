"""The logit comparison layer by layer against the one with whole models in memory: the same verdicts and numbers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers.certify_models import edit_json, edit_tensors
from helpers.families import EXPERTS, MADE, Made
from trimoe.calibrate.forward.layers import LayerModel
from trimoe.certify import loading
from trimoe.certify.certify import certify
from trimoe.certify.logit_proof import LogitSettings
from trimoe.certify.logits import LAYERS, check_logits
from trimoe.certify.streamed import ReferenceModel
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.shards import read_index

FLOATS = [made for made in MADE if not made.quantized]
Checkpoints = Callable[[Made], Path]
PROMPTS = [[{"role": "user", "content": "Six times seven?"}], [{"role": "user", "content": "def f(x):\n    return x"}]]


def _both(base: Path, pruned: Path, drop: DropMap, tolerance: float = 1e-4):  # type: ignore[no-untyped-def]
    settings = LogitSettings(tolerance, PROMPTS)
    return [
        check_logits(open_checkpoint(base), pruned, read_index(pruned), drop, settings, whole=whole)
        for whole in (False, True)
    ]


@pytest.mark.parametrize("made", FLOATS, ids=lambda made: made.name)
def test_a_true_cut_passes_both_ways(made: Made, family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    base, drop = family_checkpoint(made), DropMap(made.drop, EXPERTS)
    prune(base, drop, tmp_path / "out")
    layers, whole = _both(base, tmp_path / "out", drop)
    assert layers.method == LAYERS
    assert whole.method == "whole models in memory (requested)"
    assert [c.status for c in layers.checks] == [c.status for c in whole.checks] == ["passed", "passed"]
    one, two = (proof.checks[1].numbers for proof in (layers, whole))
    assert one.pop("max_hidden_difference") < 1e-5
    assert one.pop("max_layer_difference") < 1e-5
    # The routing is counted alike: the hidden states that reach the routers are the same.
    assert {k: one[k] for k in one if k != "max_difference"} == {k: two[k] for k in two if k != "max_difference"}
    assert layers.prompts == whole.prompts


@pytest.mark.parametrize("made", FLOATS, ids=lambda made: made.name)
def test_logits_are_those_of_the_whole_model(made: Made, family_checkpoint: Checkpoints) -> None:
    path = family_checkpoint(made)
    ids = torch.arange(3, 40)[None]
    with loading.loaded(path, "cpu", 0) as (model, _), torch.no_grad():
        wanted = model(input_ids=ids, use_cache=False).logits
    streamed = ReferenceModel(open_checkpoint(path), "cpu")
    with torch.no_grad():
        streamed.load_embedding(ids[0].numpy())
        hidden = streamed.embed(ids.numpy())
        streamed.free_embedding()
        for layer in range(streamed.checkpoint.num_layers):
            streamed.load(layer)
            hidden = streamed.run(layer, hidden)
            streamed.free(layer)
        streamed.load_head()
        have = streamed.logits(hidden)
    assert (have - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def _damage(folder: Path, name: str, entry: int) -> None:
    def edit(tensors: dict) -> None:
        dtype, shape, data = tensors[name]
        values = bytearray(data)
        values[entry * 4 + 2] ^= 0x40
        tensors[name] = (dtype, shape, bytes(values))

    edit_tensors(folder, edit)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.0.mlp.down_proj.weight", 0),
        ("model.layers.1.self_attn.q_proj.weight", 1),
        ("model.layers.1.experts.down_proj", 1),
    ],
)
def test_a_change_is_found_both_ways_and_located(
    name: str, layer: int, gemma: Path, pruned: Path, drop_map: DropMap
) -> None:
    _damage(pruned, name, 5)
    layers, whole = _both(gemma, pruned, drop_map)
    assert [c.status for c in layers.checks] == [c.status for c in whole.checks] == ["passed", "failed"]
    assert layers.max_difference == pytest.approx(whole.max_difference, rel=1e-3)
    assert [f.layer for f in layers.checks[1].findings if "other outputs for the same inputs" in f.subject] == [layer]


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_loading_findings_are_the_same_both_ways(damage: str, gemma: Path, pruned: Path, drop_map: DropMap) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def edit(tensors: dict) -> None:
        if damage == "missing":
            del tensors["model.norm.weight"]
        elif damage == "extra":
            tensors["model.layers.1.surprise"] = ("F32", (1,), bytes(4))
        else:
            dtype, shape, data = tensors[name]
            tensors[name] = (dtype, (shape[0] // 2, shape[1]), data[: len(data) // 2])

    edit_tensors(pruned, edit)
    layers, whole = _both(gemma, pruned, drop_map)
    assert layers.checks[0].status == whole.checks[0].status == "failed"
    assert [str(f) for f in layers.checks[0].findings] == [str(f) for f in whole.checks[0].findings]


def test_a_model_that_cannot_be_taken_apart_is_loaded_whole_and_says_so(
    gemma: Path, pruned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text model that changes hidden states between its layers, as some families do."""
    monkeypatch.setattr(LayerModel, "_patch", _patch_with_a_change(LayerModel._patch))
    certificate = certify(gemma, pruned)
    assert certificate.proven
    assert certificate.logit_method is not None
    assert certificate.logit_method.startswith("whole models in memory")
    assert "changes hidden states before layer 1" in certificate.logit_method


def _patch_with_a_change(original: Callable[[LayerModel], None]) -> Callable[[LayerModel], None]:
    def patch(model: LayerModel) -> None:
        original(model)
        hop = model.layers[1].forward
        model.layers[1].forward = lambda hidden, *args, **kwargs: hop(hidden * 2, *args, **kwargs)

    return patch


def test_rounding_is_told_from_a_layer_that_differs(gemma: Path, pruned: Path, drop_map: DropMap) -> None:
    """Exact equality is asked for, which sums in another order do not give."""
    layers, whole = _both(gemma, pruned, drop_map, tolerance=0.0)
    assert layers.checks[1].status == whole.checks[1].status == "failed"
    assert layers.checks[1].findings[-1].subject == "every layer gives the same outputs for the same inputs"


def test_the_certificate_says_that_it_ran_layer_by_layer(gemma: Path, pruned: Path) -> None:
    certificate = certify(gemma, pruned)
    assert certificate.logit_method == "layer by layer"
    assert certificate.check("logits").detail.endswith("computed layer by layer")


def test_a_pruned_model_with_another_shape_of_layers_does_not_load(
    gemma: Path, pruned: Path, drop_map: DropMap
) -> None:
    edit_json(pruned / "config.json", lambda c: c.update(num_attention_heads=4))
    layers, whole = _both(gemma, pruned, drop_map)
    assert layers.checks[0].status == whole.checks[0].status == "failed"
