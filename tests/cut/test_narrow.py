"""Narrower experts: the cut model is the original with the removed neurons' activations multiplied by 0."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.certify_models import Tensors, edit_json, edit_tensors
from helpers.families import MADE, Made
from trimoe.certify.certify import certify
from trimoe.certify.infer import infer_map
from trimoe.choose.dropmap import DropMap
from trimoe.choose.narrowing import Narrowing
from trimoe.cut.prune import prune
from trimoe.errors import CheckpointError, MapError
from trimoe.io.copying import Copier
from trimoe.model import tiny
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.model.files import METADATA
from trimoe.model.neurons import cannot_narrow, expert_width, neuron_unit
from trimoe.model.safetensors import read_array

Checkpoints = Callable[[Made], Path]
Edit = Callable[[np.ndarray], np.ndarray]


def narrow_map(checkpoint: Checkpoint, keep: int, width: int, seed: int = 0) -> DropMap:
    """A random map that keeps `keep` experts of `width` neurons."""
    rng = random.Random(seed)
    experts, whole, unit = checkpoint.num_experts, expert_width(checkpoint), neuron_unit(checkpoint)
    drop, neurons = {}, {}
    for layer in checkpoint.moe_layers:
        kept = sorted(rng.sample(range(experts), keep))
        drop[layer] = tuple(e for e in range(experts) if e not in kept)
        groups = {e: sorted(rng.sample(range(whole // unit), width // unit)) for e in kept}
        neurons[layer] = {e: tuple(g * unit + i for g in chosen for i in range(unit)) for e, chosen in groups.items()}
    return DropMap(drop, experts, narrow=Narrowing(neurons, whole))


def narrower_width(checkpoint: Checkpoint) -> int | None:
    """A width that this model's experts can have, if there is one."""
    whole, unit, shared = expert_width(checkpoint), neuron_unit(checkpoint), 1
    if checkpoint.hf.narrow and checkpoint.hf.narrow.shared_count:
        shared = checkpoint.setting(checkpoint.hf.narrow.shared_count) or 0
    widths = [w for w in range(unit, whole, unit) if not shared or shared * whole % w == 0]
    return max(widths, default=None)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.json"
    file.write_text(json.dumps(["def add(a, b): return a + b  # 12345", "The quick brown fox jumps."]))
    return file


@pytest.mark.parametrize("made", MADE, ids=lambda made: made.name)
def test_a_narrower_model_is_proven_or_refused_with_the_reason(
    made: Made, family_checkpoint: Checkpoints, prompts: Path, tmp_path: Path
) -> None:
    base = open_checkpoint(family_checkpoint(made))
    out = tmp_path / "narrow"
    if reason := cannot_narrow(base):
        every = {layer: dict.fromkeys(range(base.num_experts), (0,)) for layer in base.moe_layers}
        nothing = DropMap(dict.fromkeys(base.moe_layers, ()), base.num_experts, narrow=Narrowing(every, 2))
        with pytest.raises(CheckpointError) as refused:
            prune(base.path, nothing, out)
        assert refused.value.actual == reason
        assert not out.exists()
        return
    width = narrower_width(base)
    if width is None:
        pytest.skip(f"{made.name} is one block of {neuron_unit(base)} neurons wide")
    drop_map = narrow_map(base, base.num_experts - 2, width)
    report = prune(base.path, drop_map, out)
    assert report.bytes_after < base.nbytes
    narrow = open_checkpoint(out)
    assert (expert_width(narrow), narrow.num_experts) == (width, base.num_experts - 2)
    certificate = certify(base.path, out, prompts=prompts, output=tmp_path / "certificate.json")
    assert certificate.proven, [(c.name, c.detail, [str(f) for f in c.findings]) for c in certificate.checks]
    found = infer_map(base.path, out)
    assert found.exact, found
    assert found.map is not None
    assert (found.map.drop, found.map.narrow) == (drop_map.drop, drop_map.narrow)


@pytest.fixture(scope="module")
def bundled() -> Checkpoint:
    return open_checkpoint(tiny.path())


@pytest.fixture(scope="module")
def cut(bundled: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("narrow") / "cut"
    prune(bundled.path, narrow_map(bundled, 24, 20), out)
    return out


DOWN, GATE_UP = "model.layers.1.experts.down_proj", "model.layers.1.experts.gate_up_proj"


def column(a: int, b: int) -> Edit:
    def swap(values: np.ndarray) -> np.ndarray:
        values[3][:, [a, b]] = values[3][:, [b, a]]
        return values

    return swap


def row(a: int, b: int) -> Edit:
    def swap(values: np.ndarray) -> np.ndarray:
        values[3][[a, b]] = values[3][[b, a]]
        return values

    return swap


def element(*index: int) -> Edit:
    def change(values: np.ndarray) -> np.ndarray:
        values[index] ^= 1
        return values

    return change


TAMPERED: dict[str, tuple[str, Edit]] = {
    "two columns of down swapped": (DOWN, column(2, 9)),
    "two rows of gate swapped": (GATE_UP, row(2, 9)),
    "two rows of up swapped": (GATE_UP, row(22, 29)),
    "a row of gate for one of up": (GATE_UP, row(2, 22)),
    "first value of down": (DOWN, element(0, 0, 0)),
    "last value of down": (DOWN, element(-1, -1, -1)),
    "first value of gate": (GATE_UP, element(0, 0, 0)),
    "last value of up": (GATE_UP, element(-1, -1, -1)),
    "two experts swapped": (DOWN, lambda values: values[[1, 0, *range(2, len(values))]]),
    "a column of zeros": (DOWN, lambda values: np.where(np.arange(values.shape[2]) == 4, 0, values)),
    "columns rotated": (DOWN, lambda values: np.roll(values, 1, axis=2)),
    "one expert's columns reversed": (
        DOWN,
        lambda values: np.concatenate([values[:5], values[5:6, :, ::-1], values[6:]]),
    ),
}


@pytest.mark.parametrize("damage", TAMPERED)
def test_a_tampered_narrower_model_is_refuted_and_the_place_named(
    damage: str, bundled: Checkpoint, cut: Path, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(cut, copy)
    name, edit = TAMPERED[damage]

    def change(tensors: Tensors) -> None:
        dtype, shape, data = tensors[name]
        values = edit(np.frombuffer(data, np.uint16).reshape(shape).copy())
        tensors[name] = (dtype, shape, np.ascontiguousarray(values).astype(np.uint16).tobytes())

    edit_tensors(copy, change)
    certificate = certify(bundled.path, copy, logits=False, output=tmp_path / "certificate.json")
    assert certificate.status == "refuted"
    found = [finding for check in certificate.checks for finding in check.findings]
    assert any(finding.tensor == name and finding.layer == 1 for finding in found), [str(f) for f in found]


@pytest.mark.parametrize(
    ("file", "edit"),
    [
        ("config.json", lambda data: data.update(moe_intermediate_size=21)),
        ("config.json", lambda data: data.update(moe_intermediate_size=32)),
        (METADATA, lambda data: data["per_layer_neurons"]["1"].update({"0": "0-19"})),
        (METADATA, lambda data: data.pop("per_layer_neurons")),
        (METADATA, lambda data: data.update(original_width=33)),
    ],
)
def test_a_false_width_or_record_is_refuted(
    file: str, edit: Callable[[dict[str, object]], object], bundled: Checkpoint, cut: Path, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(cut, copy)
    record = json.loads((copy / METADATA).read_text())
    if file == METADATA and "0" not in record["per_layer_neurons"]["1"]:
        pytest.skip("expert 0 of layer 1 was dropped")
    edit_json(copy / file, edit)
    certificate = certify(bundled.path, copy, logits=False, output=tmp_path / "certificate.json")
    assert certificate.status == "refuted"


def test_a_given_map_with_other_neurons_is_refuted(bundled: Checkpoint, cut: Path, tmp_path: Path) -> None:
    mine, other = narrow_map(bundled, 24, 20), narrow_map(bundled, 24, 20, seed=1)
    assert mine.narrow is not None
    assert other.narrow is not None
    neurons = {
        layer: {e: other.narrow.neurons[layer].get(e, ids) for e, ids in of.items()}
        for layer, of in mine.narrow.neurons.items()
    }
    changed = DropMap(mine.drop, mine.num_experts, narrow=Narrowing(neurons, 32))
    certificate = certify(bundled.path, cut, map=changed, logits=False, output=tmp_path / "certificate.json")
    assert certificate.status == "refuted"
    assert certificate.check("map").findings
    assert certificate.check("cut").findings


def test_a_model_narrowed_twice_is_proven_against_both_earlier_states(
    bundled: Checkpoint, cut: Path, prompts: Path, tmp_path: Path
) -> None:
    twice = tmp_path / "twice"
    prune(cut, narrow_map(open_checkpoint(cut), 20, 12, seed=3), twice)
    for base in (bundled.path, cut):
        certificate = certify(base, twice, prompts=prompts, output=tmp_path / "certificate.json")
        assert certificate.proven, [(c.name, [str(f) for f in c.findings]) for c in certificate.checks]


def test_the_kept_values_are_those_of_the_original(bundled: Checkpoint, cut: Path) -> None:
    narrow, drop_map = open_checkpoint(cut), narrow_map(bundled, 24, 20)
    assert drop_map.narrow is not None
    for layer in bundled.moe_layers:
        place = f"model.layers.{layer}.experts."
        old = {name: read_array(bundled.index[place + name]) for name in ("gate_up_proj", "down_proj")}
        new = {name: read_array(narrow.index[place + name]) for name in old}
        for position, expert in enumerate(drop_map.keep(layer)):
            ids = list(drop_map.narrow.of(layer, expert))
            np.testing.assert_array_equal(new["down_proj"][position], old["down_proj"][expert][:, ids])
            np.testing.assert_array_equal(new["gate_up_proj"][position][:20], old["gate_up_proj"][expert][:32][ids])
            np.testing.assert_array_equal(new["gate_up_proj"][position][20:], old["gate_up_proj"][expert][32:][ids])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), outer=st.integers(1, 9), length=st.integers(1, 40), entry=st.sampled_from([1, 2, 3, 4, 8, 24]))
def test_any_entries_of_any_block_are_copied(
    data: st.DataObject, outer: int, length: int, entry: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from trimoe.io import copying

    keep = sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1)))
    folder = tmp_path_factory.mktemp("entries")
    values = np.random.default_rng(0).integers(0, 256, (outer, length, entry), np.uint8)
    (folder / "source").write_bytes(b"abc" + values.tobytes())
    before, copying.ENTRIES = copying.ENTRIES, data.draw(st.sampled_from([1, 50, 400, 8 << 20]))
    try:
        with Copier(folder / "target") as copier:
            sizes = list(copier.append_entries(folder / "source", 3, outer, length, entry, keep))
    finally:
        copying.ENTRIES = before
    want = values[:, keep].tobytes()
    assert (folder / "target").read_bytes() == want
    assert sum(sizes) == len(want)


MALFORMED = {
    "not of every expert": (lambda data: data["narrow"]["0"].popitem(), "does not narrow exactly"),
    "unequal": (lambda data: data["narrow"]["0"].update({"31": "0-3"}), "unequal"),
    "out of range": (lambda data: data["narrow"]["0"].update({"31": "0-99"}), "malformed"),
    "no width": (lambda data: data.pop("expert_width"), "without saying how wide"),
    "another width": (lambda data: data.update(expert_width=64), "another width"),
    "twice": (lambda data: data["narrow"]["0"].update({"31": [0] * 20}), "impossible neurons"),
    "no number": (lambda data: data["narrow"]["0"].update({"31": "a-b"}), "malformed"),
    "a layer that is not there": (lambda data: data["narrow"].update({"9": {}}), "no experts"),
}


@pytest.mark.parametrize("how", MALFORMED)
def test_a_malformed_map_is_refused_before_anything_is_written(how: str, bundled: Checkpoint, tmp_path: Path) -> None:
    edit, message = MALFORMED[how]
    file = tmp_path / "map.json"
    whole = narrow_map(bundled, 32, 20)
    whole.save(file)
    assert DropMap.load(file) == whole
    edit_json(file, edit)
    with pytest.raises(MapError, match=message):
        prune(bundled.path, DropMap.load(file), tmp_path / "out")
    assert not (tmp_path / "out").exists()
