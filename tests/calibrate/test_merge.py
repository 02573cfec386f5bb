"""Merging runs: equal to one run over everything, or refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stats_file import equal, stats_of

from trimoe.calibrate.engine import Options, calibrate
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.fields import MAXIMA, MEAN_VECTOR, SUMS
from trimoe.calibrate.stats.merge import merge
from trimoe.cli.main import main
from trimoe.errors import StatsError


@given(st.integers(0, 1000), st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_sums_add_and_maxima_stay(seed: int, count: int) -> None:
    parts = [stats_of(seed + i) for i in range(count)]
    for part in parts:
        part.fields["contrib_max"] = part.fields["wnorm"].copy()
        part.wide["neuron_act"] = np.random.default_rng(seed).random((*part.shape, 5))
    merged = merge(parts)
    for name in parts[0].fields:
        whole = np.stack([p.fields[name] for p in parts])
        expected = whole.max(0) if name == "contrib_max" else whole.sum(0)
        assert np.allclose(merged.fields[name], expected, rtol=1e-15)
    assert np.allclose(merged.wide["neuron_act"], sum(p.wide["neuron_act"] for p in parts))
    backwards = merge(parts[::-1])
    for name in parts[0].fields:
        assert np.allclose(merged.fields[name], backwards.fields[name], rtol=1e-15)


def write_sets(folder: Path, batch: str = "") -> tuple[Path, Path, Path]:
    """(first part, second part, whole) of 24 documents of two classes; class c is in the second part only."""
    rows = [{"text": f"Text {i}: " + "some words and numbers 12345. " * (i % 5 + 1)} for i in range(24)]
    (folder / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    chats = [{"q": f"{i}+{i}?", "a": f"It is {2 * i}."} for i in range(12)]
    (folder / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in chats))

    def source(kind: str, part: str) -> str:
        more = {"t": "", "c": ", fields: {prompt: q, completion: a}, bench: sums, weight: 3"}[kind]
        return f"{{kind: jsonl, path: {kind}.jsonl{more}{part}}}"

    parts = {
        "one": {"a": source("t", ", limit: 8"), "b": source("c", ", limit: 5")},
        "two": {"a": source("t", ", skip: 8, limit: 9"), "b": source("c", ", skip: 5"), "c": source("t", ", skip: 17")},
        "all": {"a": source("t", ", limit: 17"), "b": source("c", ""), "c": source("t", ", skip: 17")},
    }
    for name, classes in parts.items():
        body = "".join(f"  {c}: [{s}]\n" for c, s in classes.items())
        (folder / f"{name}.yaml").write_text(f"name: {name}\nwindow: 60\nclasses:\n{body}")
    return folder / "one.yaml", folder / "two.yaml", folder / "all.yaml"


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_two_real_runs_equal_one_over_everything(random_model: Path, tmp_path: Path, batch_tokens: int) -> None:
    """Batches change no bit, so only the order of the additions differs: the last bits of sums, nothing of maxima."""
    options = Options(shards=4, batch_tokens=batch_tokens)
    one, two, whole = (
        calibrate(random_model, path, tmp_path / f"{path.stem}.stats", **vars(options)) for path in write_sets(tmp_path)
    )
    merged = merge([one, two])
    assert merged.classes == whole.classes == ("a", "b", "c")
    alone = {MEAN_VECTOR, "recon_error", "recon_rank"}  # of one run only, or not to be added
    assert set(merged.metadata["left_out"]) == alone
    assert set(merged.fields) == set(whole.fields) - alone
    for name, array in merged.fields.items():
        field = name.rpartition("/")[2]
        if field in ("tc", "cc", "runner_up", "tokens") or field in MAXIMA:
            assert (array == whole.fields[name]).all(), name
        else:
            tolerance = 1e-12
            scale = np.abs(whole.fields[name]).max() if "logit" in name else 0
            np.testing.assert_allclose(array, whole.fields[name], rtol=tolerance, atol=tolerance * scale, err_msg=name)
    assert {*SUMS, *MAXIMA} <= merged.fields.keys()
    same = whole.metadata.keys() - {"set", "set_name", "sources", "recon"}
    assert {key: merged.metadata[key] for key in same} == {key: whole.metadata[key] for key in same}
    assert sorted(merged.metadata["bench_items"]["sums"], key=int) == [str(i) for i in range(12)]
    assert merged.metadata["set"] == [one.metadata["set"], two.metadata["set"]]
    merged.save(tmp_path / "merged")
    assert equal(ExpertStats.load(tmp_path / "merged"), merged)


def test_the_norm_of_a_mean_vector_is_not_added(random_model: Path, tmp_path: Path) -> None:
    """Classes of their own keep it exactly; a class that both runs measured has none."""
    options = Options(shards=2)
    sets = write_sets(tmp_path)[:2]
    one, two = (calibrate(random_model, p, tmp_path / f"{p.stem}.stats", **vars(options)) for p in sets)
    apart = merge([one.select(["a"]), two.select(["b", "c"])])
    assert "left_out" not in apart.metadata
    wanted = np.concatenate([one.field(MEAN_VECTOR)[:1], two.field(MEAN_VECTOR)[1:]])
    assert (apart.field(MEAN_VECTOR) == wanted).all()
    with pytest.raises(StatsError, match=f"no field {MEAN_VECTOR}"):
        merge([one, two]).field(MEAN_VECTOR)
    # and merging on, the loss is not forgotten
    third = ExpertStats(
        one.classes,
        {n: a * 2 for n, a in one.fields.items() if n != MEAN_VECTOR},
        {k: v for k, v in one.metadata.items() if k != "document_hashes"},
    )
    assert merge([merge([one, two]), third]).metadata["left_out"] == [MEAN_VECTOR, "recon_error", "recon_rank"]


def test_a_document_in_two_runs_is_refused(random_model: Path, tmp_path: Path) -> None:
    first, second, whole = write_sets(tmp_path)
    for path in (first, second, whole):
        calibrate(random_model, path, tmp_path / f"{path.stem}.stats", shards=2)
    names = [str(tmp_path / f"{p.stem}.stats") for p in (first, second, whole)]
    out = tmp_path / "m"
    with pytest.raises(StatsError, match="runs 1 and 3 measured the same documents") as caught:
        merge([ExpertStats.load(Path(name)) for name in names])
    assert caught.value.actual.startswith("17 of class a")
    assert main(["stats", "merge", *names, "-o", str(out)]) == 3
    assert not out.exists()
    assert main(["stats", "merge", *names[:2], "-o", str(out)]) == 0
    # also through a merged file, and whatever the weight
    one = ExpertStats.load(Path(names[0]))
    with pytest.raises(StatsError, match="same documents"):
        merge(
            [
                ExpertStats.load(out),
                ExpertStats(one.classes, {n: 2 * a for n, a in one.fields.items() if n != MEAN_VECTOR}, one.metadata),
            ]
        )


def test_merged_metadata_keeps_the_counts() -> None:
    masked = {"class0": [1, 2, 3], "class1": [0, 0, 4]}
    one = stats_of(1, model="m", set="a", tokens={"class0": 3, "class1": 4}, windows=2, masked_tokens=masked, dtype="x")
    two = stats_of(2, model="m", set="b", tokens={"class0": 5, "class1": 6}, windows=3, masked_tokens=masked, dtype="x")
    metadata = merge([one, two]).metadata
    assert metadata["tokens"] == {"class0": 8, "class1": 10}
    assert metadata["masked_tokens"] == {"class0": [2, 4, 6], "class1": [0, 0, 8]}
    assert (metadata["model"], metadata["set"], metadata["windows"]) == ("m", ["a", "b"], 5)
    assert metadata["merged"] == [one.content_hash, two.content_hash]
    assert equal(merge([one]), one)
    three = stats_of(3, model="m", set="c", tokens={"class0": 1}, windows=1, dtype="x", leak_check={"gram": 13})
    again = merge([merge([one, two]), three]).metadata
    assert (again["set"], again["leak_check"]) == (["a", "b", "c"], [None, {"gram": 13}])
    assert again["tokens"] == {"class0": 9, "class1": 10}


def changed(**metadata: object) -> Callable[[], ExpertStats]:
    return lambda: stats_of(2, **({"model": "m", "window": 9, "dtype": "float32", "shards": 4} | metadata))  # type: ignore[arg-type]


def fewer() -> ExpertStats:
    stats = changed()()
    del stats.fields["reap_sum"]
    return stats


def wider() -> ExpertStats:
    stats = changed()()
    stats.wide["neuron_act"] = np.zeros((*stats.shape, 2))
    return stats


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (changed(model="other"), "different models"),
        (changed(model=None), "different models"),
        (changed(window=8), "different window"),
        (changed(dtype="bfloat16"), "different dtype"),
        (changed(shards=8), "different shards"),
        (changed(merge={"wnorm": "max"}), "different merge rules"),
        (changed(merge={"wnorm": "median"}), "unknown rule"),
        (changed(tokens=[1]), "counts of different forms"),
        (changed(document_hashes={"class0": 5}), "metadata of a run is damaged"),
        (changed(sources=[1]), "metadata of a run is damaged"),
        (changed(bench_items={"b": 3}), "metadata of a run is damaged"),
        (lambda: stats_of(2, (2, 3, 5), model="m"), "different shape"),
        (lambda: stats_of(2, (2, 4, 4), model="m"), "different shape"),
        (fewer, "different fields"),
        (wider, "different wide fields"),
        (lambda: stats_of(1, model="m"), "twice"),
    ],
)
def test_what_does_not_belong_together_is_not_merged(
    tmp_path: Path, other: Callable[[], ExpertStats], word: str
) -> None:
    one = stats_of(1, model="m", window=9, dtype="float32", shards=4, tokens={"class0": 3})
    with pytest.raises(StatsError, match=word):
        merge([one, other()])
    one.save(tmp_path / "one")
    other().save(tmp_path / "two")
    assert main(["stats", "merge", str(tmp_path / "one"), str(tmp_path / "two"), "-o", str(tmp_path / "m")]) == 3
    assert not (tmp_path / "m").exists()
