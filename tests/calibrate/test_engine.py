"""The engine against the naive oracle, and what must not change its results."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.measure_oracle import oracle
from trimoe.calibrate import layerwise
from trimoe.calibrate.engine import Options, calibrate, measure, prepare, tokenised
from trimoe.calibrate.forward import experts
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.fields import COACTIVATION, COUNT, MAXIMA, MEAN_VECTOR, NEURON_CONTRIBUTION, NEURONS, SUMS
from trimoe.calibrate.stats.result import shards_of
from trimoe.calibrate.text.calibration import CalibrationSet, Windows
from trimoe.errors import BadInput, CalibrationError, CheckpointError
from trimoe.model.checkpoint import open_checkpoint

COUNTS = ("tc", "cc", "runner_up", "tokens", COUNT, COACTIVATION)
EXTRAS = {"coactivation": True, "neurons": True}


def windows_of_set(model: Path, chosen: Path, shards: int = 16) -> Windows:
    return tokenised(open_checkpoint(model), CalibrationSet.load(chosen), shards)


def run(model: Path, windows: Windows, **options: object) -> ExpertStats:
    return measure(open_checkpoint(model), windows, Options(**EXTRAS | options), "t")  # type: ignore[arg-type]


def arrays(stats: ExpertStats) -> dict[str, np.ndarray]:
    return {**stats.fields, **stats.wide}


def assert_alike(one: ExpertStats, other: ExpertStats, tolerance: float) -> None:
    """Counts equal, everything else within a relative tolerance."""
    totals = (*SUMS, COUNT, *MAXIMA, MEAN_VECTOR, COACTIVATION, NEURONS)
    for name in totals:
        if name in COUNTS:
            assert (arrays(one)[name] == arrays(other)[name]).all(), name
        else:
            np.testing.assert_allclose(arrays(one)[name], arrays(other)[name], rtol=tolerance, err_msg=name)


def test_equals_the_naive_oracle(random_model: Path, small_set: Path) -> None:
    windows = windows_of_set(random_model, small_set)
    stats = run(random_model, windows)
    assert max(len(w.tokens) for w in windows.windows) == 40
    assert len({len(w.tokens) for w in windows.windows}) > 5
    expected = oracle(random_model, windows, 8)
    assert expected.pop(NEURON_CONTRIBUTION) is not None  # it leaves prompts out: tests/calibrate/test_positions.py
    assert set(expected) == {*SUMS, COUNT, *MAXIMA, MEAN_VECTOR, COACTIVATION, NEURONS}
    for name, wanted in expected.items():
        if name in COUNTS:
            assert (arrays(stats)[name] == wanted).all(), name
        else:
            scale = 1e-5 * np.abs(wanted) + (1e-5 if "logit" in name else 0)
            assert (np.abs(arrays(stats)[name] - wanted) <= scale).all(), name
    diagonal = np.diagonal(stats.wide[COACTIVATION], axis1=2, axis2=3)
    assert (diagonal == stats.field("tc")).all()


def test_the_grouped_product_of_accelerators_gives_the_same(
    random_model: Path, small_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = windows_of_set(random_model, small_set)
    one = run(random_model, windows)
    calls: list[int] = []

    def grouped(*args: object) -> object:
        calls.append(1)
        return experts._grouped(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(experts, "_one_by_one", grouped)
    assert_alike(one, run(random_model, windows), 1e-5)
    assert calls


@pytest.mark.parametrize("changes", [{"batch_tokens": 1}, {"batch_tokens": 64}, {"batch_tokens": 100000}])
@pytest.mark.parametrize("threads", [1, 2])
def test_batching_does_not_matter(random_model: Path, small_set: Path, changes: dict[str, int], threads: int) -> None:
    windows = windows_of_set(random_model, small_set)
    torch.set_num_threads(threads)
    try:
        assert_alike(run(random_model, windows, batch_tokens=200), run(random_model, windows, **changes), 1e-6)
    finally:
        torch.set_num_threads(1)


def test_shard_count_does_not_matter(random_model: Path, small_set: Path) -> None:
    one = run(random_model, windows_of_set(random_model, small_set))
    assert_alike(one, run(random_model, windows_of_set(random_model, small_set, 3), shards=3), 1e-12)


def test_the_order_of_documents_does_not_matter(random_model: Path, small_set: Path) -> None:
    windows = windows_of_set(random_model, small_set)
    shuffled = replace(windows, windows=tuple(np.random.default_rng(3).permutation(np.array(windows.windows, object))))
    assert [w.document for w in shuffled.windows] != [w.document for w in windows.windows]
    assert_alike(run(random_model, windows), run(random_model, shuffled), 1e-6)


def test_shards_add_up_and_hold_whole_documents(random_model: Path, small_set: Path) -> None:
    stats = run(random_model, windows_of_set(random_model, small_set, 4), shards=4)
    parts = shards_of(stats)
    assert len(parts) == 4
    for name in SUMS:
        assert (sum(p.field(name) for p in parts) == stats.field(name)).all()
    assert sum(bool(p.field("tc").sum()) for p in parts) > 1


def test_file_is_deterministic_and_loads(random_model: Path, small_set: Path, tmp_path: Path) -> None:
    options = Options(coactivation=True, neurons=True)
    stats = calibrate(random_model, small_set, tmp_path / "a", **vars(options))
    calibrate(random_model, small_set, tmp_path / "b", **vars(options))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = ExpertStats.load(tmp_path / "a")
    assert loaded.metadata == json.loads(json.dumps(stats.metadata))
    assert loaded.classes == stats.classes
    assert loaded.metadata["model"] == open_checkpoint(random_model).fingerprint
    assert sum(loaded.metadata["tokens"].values()) * 2 <= loaded.field("tc")[:, 0].sum()
    assert loaded.wide[NEURONS].shape == (2, 3, 8, 16)
    assert (loaded.wide[COACTIVATION] == stats.wide[COACTIVATION]).all()
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(BadInput, match="exists"):
        calibrate(random_model, small_set, tmp_path / "a")


def test_weight_counts_a_document_that_often(random_model: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "some text to be routed"}))

    def one(weight: int, times: int) -> ExpertStats:
        path = tmp_path / f"s{weight}{times}.yaml"
        source = f"    - {{kind: jsonl, path: t.jsonl, weight: {weight}}}\n"
        path.write_text(f"name: w\nclasses:\n  a:\n{source * times}")
        return run(random_model, windows_of_set(random_model, path))

    thrice, weighted = one(1, 3), one(3, 1)
    for name in {*SUMS, COACTIVATION, NEURONS, MEAN_VECTOR} - {"cc"}:
        np.testing.assert_allclose(arrays(thrice)[name], arrays(weighted)[name], rtol=1e-6, atol=1e-9, err_msg=name)
    for name in ("cc", COUNT):
        assert (thrice.field(name) == 3 * weighted.field(name)).all()


def test_classes_and_weights_may_share_a_batch(random_model: Path, tmp_path: Path) -> None:
    """The same document in three classes with three weights goes through the layer in one batch."""
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "some text to be routed"}))
    rows = "\n".join(f"  c{w}: [{{kind: jsonl, path: t.jsonl, weight: {w}}}]" for w in (1, 2, 5))
    (tmp_path / "set.yaml").write_text(f"name: w\nclasses:\n{rows}\n")
    windows = windows_of_set(random_model, tmp_path / "set.yaml")
    assert len(prepare(random_model, tmp_path / "set.yaml").batches) == 1
    stats = run(random_model, windows)
    for name in ("tc", "wnorm", "reap_sum", "logit_sqsum", NEURONS, COACTIVATION):
        array = arrays(stats)[name]
        assert array[0].any()
        for i, weight in ((1, 2), (2, 5)):
            np.testing.assert_allclose(array[i], weight * array[0], rtol=1e-6, err_msg=name)
    for name in (*MAXIMA, MEAN_VECTOR, COUNT):
        np.testing.assert_allclose(stats.field(name)[1], stats.field(name)[0], rtol=1e-6, err_msg=name)


def test_accidents_are_masked_and_counted(random_model: Path, small_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = windows_of_set(random_model, small_set)
    clean = run(random_model, windows)

    class Broken(layerwise.LayerModel):
        def embed(self, tokens: np.ndarray) -> object:
            hidden = super().embed(tokens)
            hidden[0, 0] = float("nan")
            hidden[0, -1, 0] = 2e6
            return hidden

    monkeypatch.setattr(layerwise, "LayerModel", Broken)
    stats = run(random_model, windows, batch_tokens=1, recon=0)
    masked = stats.metadata["masked_tokens"]
    assert masked["generic_chat"][0] >= len([w for w in windows.windows if w.category == 0])
    assert all(np.isfinite(array).all() for array in arrays(stats).values())
    assert stats.metadata["nonfinite"]["generic_chat"] > 0
    assert stats.field("tc").sum() < clean.field("tc").sum()
    counted = {
        c: sum(int(w.counted.sum()) * w.weight for w in windows.windows if w.category == i)
        for i, c in enumerate(windows.classes)
    }
    assert stats.field("tokens")[0, 0, 0] + masked["generic_chat"][0] == counted["generic_chat"]


def test_outputs_that_overflow_are_masked_and_counted(
    random_model: Path, small_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An expert whose output is infinite for a token loses that pair, and nothing else becomes infinite."""
    windows = windows_of_set(random_model, small_set)
    clean = run(random_model, windows)
    original = experts._linear

    def overflowing(module: object, name: str, x: torch.Tensor, expert: int) -> torch.Tensor:
        out = original(module, name, x, expert)
        if name == "down_proj" and expert == 3:
            out[0] = float("inf")
        return out

    monkeypatch.setattr(experts, "_linear", overflowing)
    stats = run(random_model, windows)
    assert sum(stats.metadata["masked_outputs"]["generic_chat"]) > 0
    assert stats.field("tc")[0, 0, 3] < clean.field("tc")[0, 0, 3]
    assert (stats.field("tc")[:, 0, :3] == clean.field("tc")[:, 0, :3]).all()
    assert all(np.isfinite(array).all() for array in arrays(stats).values())


@pytest.mark.parametrize(
    ("role", "layer", "at"), [("down", 1, 77), ("gate_up", 2, 0), ("router", 0, 5), ("embedding", 0, 64 * 59)]
)
def test_nan_weights_are_refused_by_name(
    make_model: Callable[..., Path], small_set: Path, tmp_path: Path, role: str, layer: int, at: int
) -> None:
    checkpoint = open_checkpoint(path := make_model(seed=9))
    by_role = {(t.role, t.layer): t.info for t in checkpoint.expert_tensors.values()}
    embedding = next(info for name, info in checkpoint.index.items() if name.endswith("embed_tokens.weight"))
    info = embedding if role == "embedding" else by_role[role, layer]
    with info.file.open("r+b") as handle:
        handle.seek(info.start + 4 * at)
        handle.write(b"\x00\x00\xc0\x7f")
    with pytest.raises(CheckpointError, match=info.name.replace(".", r"\.")):
        calibrate(path, small_set, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_class_with_fewer_tokens_than_experts_is_refused(random_model: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "short"}))
    (tmp_path / "set.yaml").write_text("name: w\nclasses:\n  a: [{kind: jsonl, path: t.jsonl}]\n")
    with pytest.raises(CalibrationError, match="class a has 5 tokens for 8 experts"):
        calibrate(random_model, tmp_path / "set.yaml", tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []


def test_chats_need_a_chat_template(make_model: Callable[..., Path], small_set: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no chat template"):
        calibrate(make_model(template=None), small_set, tmp_path / "out")


def test_a_tokenizer_of_another_model_is_refused(
    make_model: Callable[..., Path], small_set: Path, tmp_path: Path
) -> None:
    with pytest.raises(CalibrationError, match="beyond the model's vocabulary"):
        calibrate(make_model(vocab_size=60, vocab_size_per_layer_input=60), small_set, tmp_path / "out")
