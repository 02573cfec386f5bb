"""Cutting twice: what is recorded, certifying against every earlier state, and getting one back."""

import filecmp
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.certify_models import edit_json, flip_byte
from helpers.hand_made import gemma_arrays, gemma_config, write_checkpoint
from trimoe.certify.certify import certify
from trimoe.certify.infer import infer_map
from trimoe.choose.combine import compose
from trimoe.choose.dropmap import DropMap
from trimoe.cli.main import main
from trimoe.cut.history import make_record, map_from, original, steps
from trimoe.cut.prune import prune
from trimoe.errors import MapError
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.files import METADATA
from trimoe.model.safetensors import read_bytes
from trimoe.model.shards import read_index

FIRST, SECOND = DropMap({0: (1, 4), 1: (0, 7)}, 8), DropMap({0: (0,), 1: (5,)}, 6)
BOTH = {0: (0, 1, 4), 1: (0, 6, 7)}


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A hand-made Gemma 4, cut once, cut twice."""
    base = write_checkpoint(tmp_path / "base", gemma_arrays(), gemma_config())
    prune(base, FIRST, tmp_path / "once")
    prune(tmp_path / "once", SECOND, tmp_path / "twice")
    return base, tmp_path / "once", tmp_path / "twice"


def record_of(folder: Path) -> dict:
    return json.loads((folder / METADATA).read_text())


def test_both_cuts_are_recorded(chain: tuple[Path, Path, Path]) -> None:
    base, once, twice = chain
    record = record_of(twice)
    assert record["base_model"] == "once"
    assert (record["original_experts"], record["target_experts"]) == (6, 5)
    assert record["previous"] == record_of(once)
    whole = record["composed"]
    assert whole["base_model"] == "base"
    assert whole["base_fingerprint"] == open_checkpoint(base).fingerprint
    assert (whole["original_experts"], whole["target_experts"]) == (8, 5)
    assert whole["per_layer_drop"] == {str(i): list(ids) for i, ids in BOTH.items()}
    assert whole["per_layer_keep"] == {"0": [2, 3, 5, 6, 7], "1": [1, 2, 3, 4, 5]}


def test_cutting_twice_is_cutting_once_by_the_composed_map(chain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, _, twice = chain
    prune(base, compose(FIRST, SECOND), tmp_path / "direct")
    for name in ("model.safetensors", "config.json"):
        assert filecmp.cmp(twice / name, tmp_path / "direct" / name, shallow=False)


def test_certified_against_every_state(chain: tuple[Path, Path, Path]) -> None:
    base, once, twice = chain
    for origin, drop in ((base, BOTH), (once, SECOND.drop)):
        certificate = certify(origin, twice, logits=False)
        assert certificate.status == "incomplete", "only the logits are missing"
        assert (certificate.map.source, certificate.map.sha256) == ("metadata", DropMap(drop).content_hash)
        assert infer_map(origin, twice).exact
    flip_byte(read_index(twice)["model.layers.1.experts.down_proj"], 3)
    assert certify(base, twice, logits=False).check("cut").findings[0].expert == 1


def test_a_state_is_made_again(chain: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base, once, twice = chain
    for undo, wanted in ((0, BOTH), (1, FIRST.drop), (2, {0: (), 1: ()})):
        out = tmp_path / f"{undo}.json"
        assert main(["map", "recorded", str(twice), "--undo", str(undo), "-o", str(out), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["cuts"] == 2 - undo
        made = DropMap.load(out)
        assert (made.drop, made.num_experts) == (wanted, 8)
        assert made.metadata["model"] == open_checkpoint(base).fingerprint
    prune(base, DropMap.load(tmp_path / "1.json"), tmp_path / "again")
    assert filecmp.cmp(once / "model.safetensors", tmp_path / "again" / "model.safetensors", shallow=False)
    with pytest.raises(MapError, match="another"):  # the state cannot come from what lacks its experts
        prune(once, DropMap.load(tmp_path / "1.json"), tmp_path / "no")
    assert main(["map", "recorded", str(twice / METADATA), "--undo", "3", "-o", str(tmp_path / "x")]) == 3
    assert "3 cuts cannot be undone" in capsys.readouterr().err
    prune(base, DropMap.load(tmp_path / "2.json"), tmp_path / "whole")
    index = read_index(tmp_path / "whole")
    assert all(read_bytes(index[name]) == read_bytes(info) for name, info in read_index(base).items())


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_chain_of_cuts(data: st.DataObject) -> None:
    """Records of up to five cuts give each state's map, and the composed one is the step by step one."""
    experts, record, cuts = 12, None, []
    left = experts
    for number in range(data.draw(st.integers(1, 5), "cuts")):
        count = data.draw(st.integers(0, left - 1), "dropped")
        drop = {i: tuple(sorted(data.draw(st.permutations(range(left)))[:count])) for i in (0, 2)}
        cuts.append(DropMap(drop, left))
        record = make_record(f"m{number}", f"f{number}", cuts[-1], record)
        left -= count
    assert record is not None
    assert [s.drop for s in steps(record)] == [c.drop for c in cuts]
    for undo in range(len(cuts) + 1):
        kept = {layer: list(range(experts)) for layer in (0, 2)}
        for cut in cuts[: len(cuts) - undo]:
            kept = {layer: [e for i, e in enumerate(ids) if i not in cut.drop[layer]] for layer, ids in kept.items()}
        made = original(record, undo)
        assert {layer: made.keep(layer) for layer in (0, 2)} == kept
        assert made.metadata["model"] == "f0"
    found = map_from(record, experts)
    assert found is not None
    assert found.drop == original(record).drop
    assert map_from(record, experts + 1) is None


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r["previous"].update(target_experts=7), "wrong expert counts"),
        (lambda r: r["composed"]["per_layer_drop"].update({"0": [0, 1, 5]}), "do not add up to all experts"),
        (
            lambda r: r["composed"].update(
                {
                    "per_layer_drop": {"0": [0, 1, 5], "1": [0, 6, 7]},
                    "per_layer_keep": {"0": [2, 3, 4, 6, 7], "1": [1, 2, 3, 4, 5]},
                }
            ),
            "not the composition of its cuts",
        ),
        (lambda r: r.update(original_experts=9), "wrong expert counts"),
        (lambda r: r.update(previous=[]), "no per_layer_drop"),
        (lambda r: r["previous"]["per_layer_drop"].pop("1"), "different layers"),
        (lambda r: r["previous"].pop("original_experts"), "wrong expert counts"),
    ],
)
def test_records_that_cannot_be_true(chain: tuple[Path, Path, Path], edit: object, message: str) -> None:
    base, _, twice = chain
    edit_json(twice / METADATA, edit)
    finding = certify(base, twice, logits=False).check("map").findings[0]
    assert message in finding.subject
    with pytest.raises(MapError, match="does not describe how this model was pruned"):
        prune(twice, DropMap({0: (0,), 1: (0,)}, 5), twice.parent / "thrice")
    assert not (twice.parent / "thrice").exists()


def test_the_record_of_another_model_is_not_taken_over(chain: tuple[Path, Path, Path]) -> None:
    base, once, _ = chain
    shutil.copyfile(once / METADATA, base / METADATA)
    with pytest.raises(MapError, match="does not describe how this model was pruned"):
        prune(base, FIRST, base.parent / "out", dry_run=True)
