"""The engine against the naive oracle, and what must not change its results."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from measure_oracle import oracle

from trimoe.errors import BadInput, CheckpointError
from trimoe.measure.accumulate import MAXIMA, MEAN_VECTOR, SUMS
from trimoe.measure.calibration import CalibrationSet
from trimoe.measure.engine import Options, calibrate, measure, tokenised
from trimoe.measure.result import shards_of
from trimoe.measure.stats import ExpertStats
from trimoe.model.checkpoint import open_checkpoint

COUNTS = ("tc", "cc", "runner_up", "tokens")


@pytest.fixture
def small_set(tmp_path: Path) -> Path:
    """Documents of 3 to 150 tokens (windows of 40), two classes, one weighted and one measured in part."""
    rows = [{"q": "2+2?" * n, "a": f"It is {n}."} for n in range(1, 9)]
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    texts = ["abc", "The quick brown fox jumps. " * 5, "x = [i for i in range(10)]"]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    path = tmp_path / "set.yaml"
    path.write_text(
        """
name: small
window: 40
classes:
  generic_chat:
    - {kind: jsonl, path: chats.jsonl, fields: {prompt: q, completion: a}}
  targeted_text:
    - {kind: jsonl, path: texts.jsonl, weight: 3}
    - {kind: jsonl, path: chats.jsonl, fields: {prompt: q, completion: a}, count_before: "<end>", limit: 4}
"""
    )
    return path


def run(model: Path, chosen: Path, **options: object) -> ExpertStats:
    checkpoint = open_checkpoint(model)
    settings = Options(**options)  # type: ignore[arg-type]
    return measure(checkpoint, tokenised(checkpoint, CalibrationSet.load(chosen), settings.shards), settings, "t")


def test_equals_the_naive_oracle(random_model: Path, small_set: Path) -> None:
    stats = run(random_model, small_set)
    windows = tokenised(open_checkpoint(random_model), CalibrationSet.load(small_set), 16)
    assert max(len(w.tokens) for w in windows.windows) == 40
    assert len({len(w.tokens) for w in windows.windows}) > 5
    expected = oracle(random_model, windows, 8)
    assert set(expected) == {*SUMS, *MAXIMA, MEAN_VECTOR}
    for name, wanted in expected.items():
        if name in COUNTS:
            assert (stats.field(name) == wanted).all(), name
        else:
            scale = 1e-5 * np.abs(wanted) + (1e-5 if "logit" in name else 0)
            assert (np.abs(stats.field(name) - wanted) <= scale).all(), name


@pytest.mark.parametrize("changes", [{"batch_tokens": 1}, {"batch_tokens": 100000}, {"shards": 3}])
def test_batching_and_shards_do_not_matter(random_model: Path, small_set: Path, changes: dict[str, int]) -> None:
    one, other = run(random_model, small_set, batch_tokens=200), run(random_model, small_set, **changes)
    for name in (*SUMS, *MAXIMA, MEAN_VECTOR):
        if name in COUNTS:
            assert (one.field(name) == other.field(name)).all(), name
        elif "logit" in name:
            np.testing.assert_allclose(one.field(name), other.field(name), rtol=1e-6, atol=1e-5)
        else:
            np.testing.assert_allclose(one.field(name), other.field(name), rtol=1e-6, err_msg=name)


def test_shards_add_up_and_hold_whole_documents(random_model: Path, small_set: Path) -> None:
    stats = run(random_model, small_set, shards=4)
    parts = shards_of(stats)
    assert len(parts) == 4
    for name in SUMS:
        assert (sum(p.field(name) for p in parts) == stats.field(name)).all()
    assert sum(bool(p.field("tc").sum()) for p in parts) > 1


def test_file_is_deterministic_and_loads(random_model: Path, small_set: Path, tmp_path: Path) -> None:
    stats = calibrate(random_model, small_set, tmp_path / "a")
    calibrate(random_model, small_set, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = ExpertStats.load(tmp_path / "a")
    assert loaded.metadata == json.loads(json.dumps(stats.metadata))
    assert loaded.classes == stats.classes
    assert loaded.metadata["model"] == open_checkpoint(random_model).fingerprint
    assert sum(loaded.metadata["tokens"].values()) * 2 <= loaded.field("tc")[:, 0].sum()
    with pytest.raises(BadInput, match="exists"):
        calibrate(random_model, small_set, tmp_path / "a")


def test_weight_counts_a_document_that_often(random_model: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "some text to be routed"}))

    def one(weight: int, times: int) -> ExpertStats:
        path = tmp_path / f"s{weight}{times}.yaml"
        source = f"    - {{kind: jsonl, path: t.jsonl, weight: {weight}}}\n"
        path.write_text(f"name: w\nclasses:\n  a:\n{source * times}")
        return run(random_model, path)

    thrice, weighted = one(1, 3), one(3, 1)
    for name in set(SUMS) - {"cc"}:
        np.testing.assert_allclose(thrice.field(name), weighted.field(name), rtol=1e-6, atol=1e-9, err_msg=name)
    assert (thrice.field("cc") == 3 * weighted.field("cc")).all()


def test_accidents_are_masked_and_counted(random_model: Path, small_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trimoe.measure import layerwise

    checkpoint = open_checkpoint(random_model)
    windows = tokenised(checkpoint, CalibrationSet.load(small_set), 16)
    clean = measure(checkpoint, windows, Options(), "t")

    class Broken(layerwise.LayerModel):
        def embed(self, tokens: object) -> object:
            hidden = super().embed(tokens)
            hidden[0, 0] = float("nan")
            hidden[0, -1, 0] = 2e6
            return hidden

    monkeypatch.setattr(layerwise, "LayerModel", Broken)
    one_batch = replace(Options(), batch_tokens=1)
    stats = measure(checkpoint, windows, one_batch, "t")
    masked = stats.metadata["masked_tokens"]
    assert masked["generic_chat"][0] >= len([w for w in windows.windows if w.category == 0])
    assert np.isfinite(stats.field("wnorm")).all()
    assert stats.metadata["nonfinite"]["generic_chat"] > 0
    assert stats.field("tc").sum() < clean.field("tc").sum()
    counted = {c: sum(int(w.counted.sum()) * w.weight for w in windows.windows if w.category == i)
               for i, c in enumerate(windows.classes)}  # fmt: skip
    assert stats.field("tokens")[0, 0, 0] + masked["generic_chat"][0] == counted["generic_chat"]


def test_nan_weights_are_refused_by_name(make_model, small_set: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = make_model(seed=9)
    target = open_checkpoint(path).expert_tensors
    info = next(t.info for t in target.values() if t.role == "down" and t.layer == 1)
    with info.file.open("r+b") as handle:
        handle.seek(info.start + 4 * 77)
        handle.write(b"\x00\x00\xc0\x7f")
    with pytest.raises(CheckpointError, match=info.name.replace(".", r"\.")):
        calibrate(path, small_set, tmp_path / "out")
    assert not (tmp_path / "out").exists()
