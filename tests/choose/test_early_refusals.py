"""What `map` would refuse is said before the work: classes that recipes need, and budgets below the router's top-k."""

from pathlib import Path

import numpy as np
import pytest

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.fields import COUNT
from trimoe.calibrate.text.calibration import CalibrationSet
from trimoe.choose.choose import choose
from trimoe.choose.dropmap import DropMap
from trimoe.choose.floor import refusing_recipes
from trimoe.choose.recipe import load_recipe, names
from trimoe.choose.select import make_map
from trimoe.errors import CalibrationError, MapError, StatsError, TrimoeError, UsageError
from trimoe.model.tiny import path as bundled
from trimoe.model.tiny.tasks import generate
from trimoe.quantize.quantize import quantize

FIELDS = ("tc", COUNT, "wnorm", "reap_sum", "ean_sum", "recon_rank")


def stats_of(classes: tuple[str, ...], routed: int = 0) -> ExpertStats:
    """Two layers of 32 experts; each of 1,000 tokens per class is sent to `routed` experts, if that is given."""
    rng = np.random.default_rng(0)
    fields = {name: rng.random((len(classes), 2, 32)) + 1 for name in FIELDS}
    if routed:
        fields["routed"] = np.full((len(classes), 2, 32), routed * 1000 / 32)
    tokens = {"tokens": dict.fromkeys(classes, 1000)} if routed else {}
    positions = {name: {"text": 1000} for name in classes}
    return ExpertStats(classes, fields, {"model": "m", "positions": positions, **tokens})


@pytest.mark.parametrize(
    "classes",
    [
        ("targeted_a",),
        ("targeted_a", "targeted_code"),
        ("generic_mine",),
        ("generic_code",),
        ("code",),
        ("generic_math", "targeted_a"),
        ("generic_code", "targeted_a"),
        ("my work",),
    ],
)
def test_the_warning_names_exactly_the_recipes_that_refuse(classes: tuple[str, ...]) -> None:
    stats, refused = stats_of(classes), []
    for name in names():
        try:
            make_map(stats, load_recipe(name))
        except TrimoeError:
            refused.append(name)
    assert refusing_recipes(classes) == refused


def test_the_set_for_own_prompts_fits_every_recipe(tmp_path: Path) -> None:
    (tmp_path / "my-prompts.jsonl").write_text('{"prompt": "What is 2 + 2?"}\n')
    chosen = CalibrationSet.load("my-prompts", data=tmp_path)
    assert [text.asks for text in chosen.texts()["generic_code"]] == [256]
    assert refusing_recipes(chosen.classes) == []


@pytest.mark.parametrize("top_k", [1, 4, 8])
def test_fewer_experts_than_the_router_chooses_are_refused(top_k: int) -> None:
    stats = stats_of(("generic_code", "targeted_a"), routed=top_k)
    assert choose(stats, recipe="reap", keep=top_k).metadata["keep"] == top_k
    for keep in {1, top_k - 1} - {0, top_k}:
        with pytest.raises(MapError, match=f"at least {top_k} kept"):
            choose(stats, recipe="reap", keep=keep)


def test_a_few_masked_tokens_do_not_change_the_top_k() -> None:
    stats = stats_of(("generic_code",), routed=4)
    stats.fields["routed"] *= 0.97
    with pytest.raises(MapError, match="at least 4 kept"):
        choose(stats, recipe="reap", keep=3)


def test_statistics_without_token_counts_are_left_to_prune() -> None:
    assert choose(stats_of(("generic_code",)), recipe="reap", keep=1).metadata["keep"] == 1


def test_what_is_no_statistics_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "set.yaml").write_text("name: x\n")
    for name, words in (
        ("no.safetensors", "not found"),
        ("no.json", "not found"),
        ("no.yaml", "not found"),
        ("set.yaml", "is not a statistics file"),
        ("", "is not a statistics file"),
    ):
        with pytest.raises(StatsError, match=words):
            choose(tmp_path / name, recipe="reap")


@pytest.mark.parametrize(
    ("name", "actual"), [("none.safetensors", "no such file"), ("folder", "a directory"), ("set.yaml", "a YAML file")]
)
def test_what_is_no_statistics_file_is_named_with_the_way_to_one(tmp_path: Path, name: str, actual: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "set.yaml").write_text("name: a\n")
    with pytest.raises(StatsError, match="trimoe calibrate MODEL --set SET") as caught:
        choose(tmp_path / name, recipe="reap", keep=4)
    assert caught.value.actual == actual


def test_rows_or_a_model_in_place_of_a_set_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(CalibrationError, match=r"(?s)holds rows, not a calibration set.*path: rows.jsonl"):
        CalibrationSet.load(tmp_path / "rows.jsonl")
    with pytest.raises(CalibrationError, match=r"(?s)is a directory, not a calibration set.*--set SET.yaml"):
        CalibrationSet.load(tmp_path)


@pytest.mark.parametrize(("domain", "split"), [("code", "test"), ("code", "held-out"), ("music", "train")])
def test_an_unknown_split_or_domain_is_refused_at_once(domain: str, split: str) -> None:
    with pytest.raises(UsageError, match=r"there is no (split|domain)"):
        generate(domain, split, 1)


@pytest.mark.parametrize(("typed", "meant"), [("Q4_KM", "Q4_K_M"), ("q4_k_m", "Q4_K_M"), ("IQ3M", "IQ3_M")])
def test_a_misspelt_tier_is_refused_before_llamacpp_is_looked_for(
    typed: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("TRIMOE_CACHE", str(tmp_path))
    monkeypatch.delenv("TRIMOE_LLAMACPP", raising=False)
    with pytest.raises(UsageError, match=f"did you mean {meant}?"):
        quantize(bundled(), out=tmp_path / "out", tiers=typed)


@pytest.mark.parametrize("name", ["model", "stats.safetensors", "model.gguf"])
def test_another_file_in_place_of_a_map_says_what_goes_first(name: str, tmp_path: Path) -> None:
    place = tmp_path / name
    place.mkdir() if name == "model" else place.write_bytes(b"x")
    with pytest.raises(MapError, match="is not a drop map") as refused:
        DropMap.load(place)
    assert "trimoe prune MODEL MAP.json" in str(refused.value)
