"""Greedy reconstruction: the search against a naive one, its errors against the model's own masked layers."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.families import EXPERTS, MADE, Made
from trimoe.calibrate.engine import Options, calibrate, measure
from trimoe.calibrate.forward.batching import batches_of, token_ids
from trimoe.calibrate.forward.layers import LayerModel
from trimoe.calibrate.forward.recording import masking
from trimoe.calibrate.recon.gates import Form, Gates, fit
from trimoe.calibrate.recon.greedy import search
from trimoe.calibrate.recon.sample import choose_sample
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.merge import merge
from trimoe.calibrate.text.windows import OWN, PROMPT, Document, Windows, windows_of
from trimoe.choose.choose import choose
from trimoe.errors import CalibrationError, StatsError
from trimoe.model.checkpoint import open_checkpoint

Checkpoints = Callable[[Made], Path]
MEASURED = [made for made in MADE if not made.quantized]


def naive(
    outputs: Any, gates: Gates, k: int, norm: Any, weight: np.ndarray, group: np.ndarray
) -> tuple[list[int], Any]:
    """The same search without any shortcut, in float64: every token is mixed again for every candidate."""
    outputs, score, gain = outputs.double(), gates.score.double(), (gates.score * gates.scale).double()
    experts, tokens, _ = outputs.shape

    def mixture(kept: list[int]) -> Any:
        rows = []
        for t in range(tokens):
            chosen = [e for e in gates.order[t].tolist() if e in kept][:k]
            total = {"chosen": score[t, chosen].sum(), "all": score[t, kept].sum(), "none": 1.0}[gates.form]
            rows.append(sum(gain[t, e] * outputs[e, t] for e in chosen) / total)
        return norm(torch.stack(rows)) if norm else torch.stack(rows)

    target, kept, dropped, errors = mixture(list(range(experts))), list(range(experts)), [], []
    while len(kept) > k:
        changes = {e: (mixture([x for x in kept if x != e]) - target).square().sum(1).numpy() for e in kept}
        best = min(kept, key=lambda e: float((changes[e] * weight).sum()))
        kept.remove(best)
        dropped.append(best)
        errors.append(np.bincount(group, weight * changes[best]))
    return dropped, np.array(errors)


def unit(rows: Any) -> Any:
    return rows / rows.square().mean(-1, keepdim=True).add(1e-6).sqrt()


@pytest.mark.parametrize(("form", "norm"), [("chosen", None), ("chosen", unit), ("all", None), ("none", None)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_search_equals_a_naive_one(form: Form, norm: Any, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    tokens, experts, k = 40, 9, 3
    logits = torch.randn(tokens, experts, generator=rng) * 2
    score = logits.sigmoid() if form == "none" else logits.exp()
    preference = score + torch.randn(experts, generator=rng).abs() * 0.2  # a correction of the choice alone
    scale = torch.rand(experts, generator=rng) + 0.5
    gates = Gates(score, scale, preference.argsort(1, descending=True), form)
    outputs = torch.randn(experts, tokens, 6, generator=rng)
    draws = np.random.default_rng(seed)
    weight, group = draws.integers(1, 4, tokens).astype(float), draws.integers(0, 3, tokens)
    found = search(outputs, gates, k, norm, weight, group)
    dropped, errors = naive(outputs, gates, k, norm, weight, group)
    assert found.dropped[: experts - k] == dropped
    assert sorted(found.dropped) == list(range(experts))
    np.testing.assert_allclose(found.error[: experts - k], errors, rtol=1e-4)


@pytest.fixture(scope="module")
def windows() -> Windows:
    rng = np.random.default_rng(0)

    def document(name: str, prompt: int, reply: int, weight: float = 1.0) -> Document:
        tokens = tuple(rng.integers(3, 100, prompt + reply).tolist())
        return Document(name, tokens, weight, positions=bytes([PROMPT] * prompt + [OWN] * reply))

    return windows_of([document("a", 9, 30), document("a", 4, 7, 2.0), document("b", 12, 25)], 24, 3)


def supported(made: Made, path: Path) -> bool:
    checkpoint = open_checkpoint(path)
    return checkpoint.cannot_cut is None and checkpoint.hf.routing.weight_on == "output"


@pytest.mark.parametrize("made", MEASURED, ids=lambda made: made.name)
def test_errors_are_those_of_the_models_own_masked_layer(
    made: Made, family_checkpoint: Checkpoints, windows: Windows
) -> None:
    """The router and the experts of transformers, with the dropped ones masked, change as much as the curve says."""
    path = family_checkpoint(made)
    checkpoint = open_checkpoint(path)
    if not supported(made, path):
        with pytest.raises(CalibrationError, match="cannot be reconstructed"):
            measure(checkpoint, windows, Options(shards=3, recon=40), "t")
        assert "recon_rank" not in measure(checkpoint, windows, Options(shards=3), "t").fields
        return
    stats = measure(checkpoint, windows, Options(shards=3, recon=40), "t")
    sample, model = choose_sample(windows, 40), LayerModel(checkpoint, "cpu", "float32")
    layer = made.moe_layers[0]
    rank = stats.field("recon_rank")[:, layer]
    assert (rank == rank[0]).all()
    order = np.argsort(rank[0]).tolist()
    batch = batches_of(windows, 10_000)
    model.load_embedding(np.unique(np.concatenate([[0], *(w.tokens for w in windows.windows)])))
    seen: list[Any] = []
    with torch.inference_mode():
        hidden = [model.embed(token_ids(windows, b)) for b in batch]
        for number in range(layer):
            model.load(number)
            hidden = [model.run(number, h) for h in hidden]
        model.load(layer)
        module = model.norm_after_experts(layer) or model.experts(layer)
        module.register_forward_hook(lambda module, args, output: seen.append(output.reshape(-1, output.shape[-1])))

        def outputs(dropped: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            seen.clear()
            with masking(model.router(layer), dropped, EXPERTS):
                for h in hidden:
                    model.run(layer, h)
            parts = [(out[b.places][sample.rows(b)], b, sample.rows(b)) for out, b in zip(seen, batch, strict=True)]
            category = np.concatenate([b.category[b.window[rows]] for _, b, rows in parts])
            weight = np.concatenate([b.weight[b.window[rows]] for _, b, rows in parts])
            return torch.cat([out for out, _, _ in parts]).double().numpy(), category, weight

        target, category, weight = outputs([])
        energy = np.bincount(category, weight * np.square(target).sum(1))
        for count in (1, 3, EXPERTS - made.top_k):
            change = np.square(outputs(order[:count])[0] - target).sum(1)
            share = np.bincount(category, weight * change) / energy
            have = stats.field("recon_error")[:, layer, order[count - 1]]
            np.testing.assert_allclose(have, share, rtol=2e-3, atol=1e-6)


def test_one_order_serves_every_budget(random_model: Path, windows: Windows) -> None:
    stats = measure(open_checkpoint(random_model), windows, Options(shards=3), "t")
    assert stats.metadata["recon"] == min(2000, sum(map(len, choose_sample(windows, 2000).positions.values())))
    maps = [choose(stats, recipe="recon", keep=keep) for keep in range(2, 8)]
    for fewer, more in pairwise(maps):
        assert all(set(more.drop[layer]) < set(fewer.drop[layer]) for layer in more.drop)
    for layer, ids in maps[0].drop.items():
        assert set(ids) == set(np.flatnonzero(stats.field("recon_rank")[0, layer] <= 6).tolist())


def test_batches_and_resuming_do_not_matter(random_model: Path, windows: Windows) -> None:
    one, other = (
        measure(open_checkpoint(random_model), windows, Options(shards=3, batch_tokens=n), "t") for n in (1, 1000)
    )
    assert (one.field("recon_rank") == other.field("recon_rank")).all()
    np.testing.assert_allclose(one.field("recon_error"), other.field("recon_error"), rtol=1e-4)


def test_sequential_measures_later_layers_of_the_cut_model(random_model: Path, windows: Windows) -> None:
    checkpoint = open_checkpoint(random_model)
    plain = measure(checkpoint, windows, Options(shards=3), "t")
    stats = measure(checkpoint, windows, Options(shards=3, sequential=5), "t")
    assert (stats.field("recon_rank")[:, 0] == plain.field("recon_rank")[:, 0]).all()
    assert not (stats.field("reap_sum")[:, 1] == plain.field("reap_sum")[:, 1]).all()
    made = choose(stats, recipe="recon", keep=5)
    model, batch = LayerModel(checkpoint, "cpu", "float32"), batches_of(windows, 10_000)
    model.load_embedding(np.unique(np.concatenate([[0], *(w.tokens for w in windows.windows)])))
    total = 0.0
    with torch.inference_mode():
        hidden = [model.embed(token_ids(windows, b)) for b in batch]
        for layer in range(2):
            model.load(layer)
            with masking(model.router(layer), list(made.drop[layer]), 8):
                hidden = [model.run(layer, h) for h in hidden]
        model.load(2)
        weights: list[Any] = []
        model.experts(2).register_forward_pre_hook(lambda module, args: weights.append(args[2]))
        for h, b in zip(hidden, batch, strict=True):
            model.run(2, h)
            chosen = weights.pop().reshape(*b.real.shape, -1)
            tokens = chosen.sum(-1).double().numpy()
            total += float((tokens * b.real * b.weight[:, None]).sum())
    np.testing.assert_allclose(stats.field("wsum_total")[:, 2].sum(), total, rtol=1e-5)
    with pytest.raises(StatsError, match="cut to 5"):
        choose(stats, recipe="recon", keep=6)


@pytest.mark.parametrize("options", [{"sequential": 1}, {"sequential": 8}, {"sequential": 5, "recon": 0}])
def test_impossible_budgets_are_refused(random_model: Path, windows: Windows, options: dict[str, int]) -> None:
    with pytest.raises(CalibrationError, match="one after the other"):
        measure(open_checkpoint(random_model), windows, Options(shards=3, **options), "t")


def test_a_router_of_another_form_is_refused() -> None:
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    weight, index = logits.softmax(1).topk(2)
    ones = torch.ones(6)
    assert fit(logits, logits, index, weight, ones, "softmax", 4, "x").form == "all"
    assert fit(logits, logits, index, weight / weight.sum(1, keepdim=True), ones, "softmax", 4, "x").form == "chosen"
    with pytest.raises(CalibrationError, match="its weights differ"):
        fit(logits, logits, index, weight**2, ones, "softmax", 4, "x")
    with pytest.raises(CalibrationError, match="not the experts that it chose"):
        fit(logits, logits, (index + 1) % 6, weight, ones, "softmax", 4, "x")


def test_statistics_without_it_and_merged_ones_say_so(random_model: Path, windows: Windows) -> None:
    stats = measure(open_checkpoint(random_model), windows, Options(shards=3, recon=0), "t")
    with pytest.raises(StatsError, match="recon_rank"):
        choose(stats, recipe="recon", keep=5)
    other = replace(windows, windows=windows.windows[:1], classes=("a",), documents={"a": 1}, origin={})
    parts = [measure(open_checkpoint(random_model), w, Options(shards=3, recon=20), "t") for w in (windows, other)]
    merged: ExpertStats = merge(parts)
    assert {"recon_rank", "recon_error"} <= set(merged.metadata["left_out"])


def test_the_sample_is_even_over_classes_and_of_replies_only(windows: Windows) -> None:
    sample = choose_sample(windows, 30)
    count = np.zeros(2)
    for number, at in sample.positions.items():
        window = windows.windows[number]
        assert window.positions is not None
        assert (window.positions[at] == OWN).all()
        count[window.category] += len(at)
    assert count.tolist() == [15, 15]
    assert len(choose_sample(windows, 10_000)) == sum(row["own"] for row in windows.positions().values())


def test_a_resumed_run_gives_the_same_bytes(random_model: Path, small_set: Path, tmp_path: Path) -> None:
    calibrate(random_model, small_set, tmp_path / "one", recon=30, sequential=5)
    with pytest.raises(RuntimeError, match="stop"):
        calibrate(random_model, small_set, tmp_path / "two", recon=30, sequential=5, on_layer=_stop)
    calibrate(random_model, small_set, tmp_path / "two", recon=30, sequential=5)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def _stop(mark: Any) -> None:
    raise RuntimeError("stop")
