"""Prune: the right bytes, in every layout; nothing written when refused; nothing half-written when killed."""

import errno
import filecmp
import json
import os
import shutil
import subprocess
import sys
from collections import Counter, namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.hand_made import (
    TEST_FAMILIES,
    Arrays,
    gemma_arrays,
    gemma_config,
    per_expert_arrays,
    per_expert_config,
    transposed_arrays,
    transposed_config,
    write_checkpoint,
)
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import BadInput, CheckpointError, MapError, MissingPrerequisite, TrimoeError
from trimoe.io import atomic as artifact
from trimoe.io import copying, hashing
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.family.file import extra_families
from trimoe.model.safetensors import ITEM_BITS, read_bytes
from trimoe.model.shards import read_index

GEMMA_MAP = DropMap({0: (1, 4), 1: (0, 7)}, 8)


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    """A hand-made Gemma 4: 2 layers, 8 experts, top-2."""
    return write_checkpoint(tmp_path / "base", gemma_arrays(), gemma_config())


def expected_cut(arrays: Arrays, drop: dict[int, tuple[int, ...]], experts: int, layout: str) -> Arrays:
    """The cut by numpy slicing, from the names alone; independent of the code under test."""
    result: Arrays = {}
    for name, array in arrays.items():
        parts = name.split(".")
        layer = int(parts[parts.index("layers") + 1]) if "layers" in parts else -1
        keep = [e for e in range(experts) if e not in drop.get(layer, ())]
        if layout == "per_expert" and "experts" in parts:
            at = parts.index("experts") + 1
            if int(parts[at]) in keep:
                parts[at] = str(keep.index(int(parts[at])))
                result[".".join(parts)] = array
        elif layout == "transposed" and name.endswith("router.weight"):
            result[name] = array[:, keep]
        elif ".experts." in name or (("router." in name or ".gate." in name) and not name.endswith("router.scale")):
            result[name] = array[keep]
        else:
            result[name] = array
    return result


LAYOUTS = {
    "stacked": (gemma_arrays, gemma_config, 8, (0, 1)),
    "per_expert": (per_expert_arrays, per_expert_config, 6, (1, 2)),
    "transposed": (transposed_arrays, transposed_config, 7, (0, 1)),
}


@pytest.fixture(autouse=True)
def _hand_made_families() -> Iterator[None]:
    with extra_families(*TEST_FAMILIES):
        yield


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_equals_numpy_slicing(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    make, make_config, experts, layers = LAYOUTS[layout]
    count = data.draw(st.integers(0, experts - 2), "dropped")
    drop = {i: tuple(sorted(data.draw(st.permutations(range(experts)))[:count])) for i in layers}
    arrays = make(seed=data.draw(st.integers(0, 3)))
    shards = data.draw(st.none() | st.lists(st.integers(0, 3), min_size=len(arrays), max_size=len(arrays)), "shards")
    max_shard = data.draw(st.sampled_from(["source", 1, 200, 1000, 5_000_000_000]), "max_shard")
    small = data.draw(st.sampled_from([0, 32 << 10]), "small")  # 0: even single rows are copied one by one
    hashed, jobs = data.draw(st.booleans(), "hashed"), data.draw(st.sampled_from([1, 3]), "jobs")
    monkeypatch.setattr(copying, "SMALL", small)
    monkeypatch.setattr(hashing, "PIECE", data.draw(st.sampled_from([64, 1 << 20]), "block"))
    folder = tmp_path / "work"
    shutil.rmtree(folder, ignore_errors=True)
    source = write_checkpoint(folder / "in", arrays, make_config(), shards)
    options = {"max_shard": max_shard, "hashed": hashed, "jobs": jobs}
    report = prune(source, DropMap(drop, experts), folder / "out", **options)
    index, wanted = read_index(folder / "out"), expected_cut(arrays, drop, experts, layout)
    assert index.keys() == wanted.keys()
    for name, array in wanted.items():
        assert index[name].shape == array.shape
        assert read_bytes(index[name]) == array.tobytes(), name
        aligned = ITEM_BITS[index[name].dtype] // 8
        assert index[name].start % aligned == 0, f"{name} is not aligned"
    result = open_checkpoint(folder / "out")
    assert result.num_experts == experts - count
    assert report.bytes_after == result.nbytes
    assert report.shards == len({info.file for info in index.values()})


def test_config_is_edited_in_its_text(tmp_path: Path) -> None:
    text = (
        '{ "num_experts": 128,\n\t"text_config": {"model_type":"gemma4_text", "num_experts"  : 8, "top_k_experts": 2,\n'
        ' "note": "\\"num_experts\\": 8", "num_hidden_layers": 2, "rms_norm_eps": 1e-06, "big": 1.0E+2,\n'
        '"u": "\\u00e9é", "hidden_size": 6, "moe_intermediate_size": 4, "vision": {"num_experts": 8}}, '
        '"model_type": "gemma4"}'
    )
    folder = write_checkpoint(tmp_path / "in", gemma_arrays(prefix="model.language_model."), {})
    (folder / "config.json").write_text(text, encoding="utf-8")
    prune(folder, GEMMA_MAP, tmp_path / "out")
    wanted = text.replace('"num_experts"  : 8', '"num_experts"  : 6')
    assert (tmp_path / "out" / "config.json").read_text(encoding="utf-8") == wanted


def test_a_config_with_duplicate_keys_is_refused(gemma: Path, tmp_path: Path) -> None:
    file = gemma / "config.json"
    file.write_text(file.read_text().replace('"num_experts": 8', '"num_experts": 8, "num_experts": 8'))
    prune(gemma, GEMMA_MAP, tmp_path / "out")  # the last one counts, for every JSON reader; it is the one edited
    assert open_checkpoint(tmp_path / "out").num_experts == 6


def test_small_files_metadata_and_manifest(gemma: Path, tmp_path: Path) -> None:
    (gemma / "chat_template.jinja").write_text("{{ x }}")
    (gemma / "README.md").write_text("the original's card")
    (gemma / "pytorch_model.bin").write_bytes(b"other weights")
    (gemma / "additional_chat_templates").mkdir()
    (gemma / "additional_chat_templates" / "tools.jinja").write_text("{{ y }}")
    (gemma / "LICENSE").symlink_to(gemma / "README.md")  # hub caches are made of links
    report = prune(gemma, GEMMA_MAP, tmp_path / "out")
    out = tmp_path / "out"
    for name in ("tokenizer.json", "chat_template.jinja", "additional_chat_templates/tools.jinja", "LICENSE"):
        assert filecmp.cmp(gemma / name, out / name, shallow=False)
    assert not (out / "LICENSE").is_symlink()
    assert list(report.files_left_out) == ["README.md", "pytorch_model.bin"]
    assert report.files_left_out["pytorch_model.bin"] == "weights in another format, or an index of such weights"
    assert not (out / "README.md").exists()
    assert json.loads((out / "expert_drop_metadata.json").read_text()) == {
        "base_model": "base",
        "base_fingerprint": open_checkpoint(gemma).fingerprint,
        "original_experts": 8,
        "target_experts": 6,
        "per_layer_keep": {"0": [0, 2, 3, 5, 6, 7], "1": [1, 2, 3, 4, 5, 6]},
        "per_layer_drop": {"0": [1, 4], "1": [0, 7]},
    }
    manifest = json.loads((out / "trimoe.json").read_text())
    assert manifest["kind"] == "pruned checkpoint"
    assert manifest["inputs"]["base"] == open_checkpoint(gemma).fingerprint
    again = prune(out, DropMap({0: (0,), 1: (5,)}), tmp_path / "again")
    assert again.experts_after == 5
    record = json.loads((tmp_path / "again" / "expert_drop_metadata.json").read_text())
    assert record["previous"]["per_layer_drop"] == {"0": [1, 4], "1": [0, 7]}


def test_the_base_model_of_a_hub_cache_has_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--some-moe" / "snapshots" / "0123abcd"
    write_checkpoint(folder, gemma_arrays(), gemma_config())
    prune(folder, GEMMA_MAP, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "expert_drop_metadata.json").read_text())["base_model"] == "org/some-moe"


def test_same_input_same_bytes(gemma: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        prune(gemma, GEMMA_MAP, tmp_path / name, max_shard=300, sync=name == "two")
    same = filecmp.dircmp(tmp_path / "one", tmp_path / "two")
    assert not same.left_only
    assert not same.right_only
    assert filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", same.common_files, shallow=False)[1:] == ([], [])


def test_shards_as_in_the_source(tmp_path: Path) -> None:
    arrays = gemma_arrays()
    source = write_checkpoint(tmp_path / "in", arrays, gemma_config(), [0] * 5 + [1] * (len(arrays) - 5))
    report = prune(source, GEMMA_MAP, tmp_path / "out", max_shard="source")
    assert report.shards == 2
    before, after = read_index(source), read_index(tmp_path / "out")
    assert all(before[name].file.name == after[name].file.name for name in arrays)


def test_dry_run_writes_nothing_and_says_the_same(gemma: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    planned = prune(gemma, GEMMA_MAP, tmp_path / "out", dry_run=True)
    assert sorted(tmp_path.iterdir()) == before
    done = prune(gemma, GEMMA_MAP, tmp_path / "out")
    assert planned.bytes_after == done.bytes_after
    assert planned.files_copied == done.files_copied


def test_progress_reaches_the_total(gemma: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    report = prune(gemma, GEMMA_MAP, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert calls[-1] == (report.bytes_after, report.bytes_after, "model.safetensors")
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)


@pytest.mark.parametrize(
    ("drop_map", "message"),
    [
        (DropMap({0: (1, 1), 1: (0, 7)}), "lists an expert twice"),
        (DropMap({0: (1, 8), 1: (0, 7)}), "does not exist"),
        (DropMap({0: (-1, 3), 1: (0, 7)}), "does not exist"),
        (DropMap({0: (1, 4)}), "layers of the model"),
        (DropMap({0: (1,), 1: (2,), 2: (3,)}), "layers of the model"),
        (DropMap({0: (1, 4), 1: (7,)}), "unequal counts"),
        (DropMap({0: (0, 1, 2, 3, 4, 5, 6), 1: (0, 1, 2, 3, 4, 5, 6)}), "fewer experts than the router selects"),
        (DropMap({0: (1, 4), 1: (0, 7)}, 128), "another number of experts"),
        (DropMap({0: (1, 4), 1: (0, 7)}, 8, {"model": "f" * 64}), "another model"),
        (DropMap({}), "layers of the model"),
    ],
)
def test_a_map_that_does_not_fit(gemma: Path, tmp_path: Path, drop_map: DropMap, message: str) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MapError, match=message):
        prune(gemma, drop_map, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_map_made_for_this_model_fits(gemma: Path, tmp_path: Path) -> None:
    made = DropMap(GEMMA_MAP.drop, 8, {"model": open_checkpoint(gemma).fingerprint})
    assert prune(gemma, made, tmp_path / "out").experts_after == 6


def test_a_map_for_a_dense_layer(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "in", per_expert_arrays(), per_expert_config())
    with pytest.raises(MapError, match="layer 0, which has none"):
        prune(source, DropMap({0: (1,), 1: (1,), 2: (1,)}), tmp_path / "out")
    with pytest.raises(MapError, match="layers of the model"):
        prune(source, DropMap({0: (), 1: (1,)}), tmp_path / "out")
    assert prune(source, DropMap({0: (), 1: (1,), 2: (1,)}), tmp_path / "out").experts_after == 5


def test_a_map_that_does_not_balance_the_groups_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "in", per_expert_arrays(), per_expert_config() | {"n_group": 2})
    with pytest.raises(MapError, match="routing in groups"):
        prune(source, DropMap({1: (1,), 2: (1,)}), tmp_path / "out")


def test_output_exists(gemma: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInput, match="exists already"):
        prune(gemma, GEMMA_MAP, tmp_path / "out")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(BadInput, match="exists already"):
        prune(gemma, GEMMA_MAP, tmp_path / "link")
    assert list((tmp_path / "out").iterdir()) == []


def test_no_disk_space_is_found_before_writing(gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 1 << 20))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MissingPrerequisite, match="not enough disk space"):
        prune(gemma, GEMMA_MAP, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_that_becomes_full_leaves_nothing(gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(copying.Copier, "write", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MissingPrerequisite, match="became full"):
        prune(gemma, GEMMA_MAP, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_source_that_changes_while_it_is_copied(gemma: Path, tmp_path: Path) -> None:
    def touch(done: int, total: int, note: str) -> None:
        os.utime(gemma / "model.safetensors", ns=(done, done))

    with pytest.raises(CheckpointError, match="modified while it was copied"):
        prune(gemma, GEMMA_MAP, tmp_path / "out", progress=touch)
    assert not (tmp_path / "out").exists()

    def truncate(done: int, total: int, note: str) -> None:
        os.truncate(gemma / "model.safetensors", 100)

    write_checkpoint(tmp_path / "fresh", gemma_arrays(), gemma_config())
    shutil.copyfile(tmp_path / "fresh" / "model.safetensors", gemma / "model.safetensors")
    with pytest.raises(CheckpointError, match="ended early"):
        prune(gemma, GEMMA_MAP, tmp_path / "out", progress=truncate)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("refused", [(), ("copy_file_range",), ("copy_file_range", "sendfile")])
@pytest.mark.parametrize("answer", ["error", "zero"])
def test_fallbacks_copy_the_same_and_are_reported(
    gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: tuple[str, ...], answer: str
) -> None:
    def unsupported(*args: object, **kwargs: object) -> int:
        if answer == "zero":
            return 0
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(copying, "SMALL", 0)
    monkeypatch.setattr(copying, "CHUNK", 24)
    for name in refused:
        monkeypatch.setattr(os, name, unsupported)
    report = prune(gemma, GEMMA_MAP, tmp_path / "out", hashed=False)
    assert report.copied_by == [("copy_file_range", "sendfile", "read/write")[len(refused)]]
    wanted, index = expected_cut(gemma_arrays(), GEMMA_MAP.drop, 8, "stacked"), read_index(tmp_path / "out")
    assert all(read_bytes(index[name]) == array.tobytes() for name, array in wanted.items())


def test_two_runs_for_one_output(gemma: Path, tmp_path: Path) -> None:
    def second(done: int, total: int, note: str) -> None:
        with pytest.raises(BadInput, match="another run is writing out"):
            prune(gemma, GEMMA_MAP, tmp_path / "out")

    prune(gemma, GEMMA_MAP, tmp_path / "out", progress=second)
    assert open_checkpoint(tmp_path / "out").num_experts == 6


def test_nothing_is_left_after_an_error(gemma: Path, tmp_path: Path) -> None:
    def fail(done: int, total: int, note: str) -> None:
        raise ZeroDivisionError

    before = sorted(tmp_path.iterdir())
    for jobs in (1, 2):
        with pytest.raises(ZeroDivisionError):
            prune(gemma, GEMMA_MAP, tmp_path / "out", progress=fail, max_shard=200, jobs=jobs)
        assert sorted(tmp_path.iterdir()) == before


_KEYS = st.sampled_from(["drop", "0", "1", "-1", "01", "x"])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner),
)


@st.composite
def map_files(draw: st.DrawFn) -> object:
    """Map files for a model of two layers of eight experts; about half have one fault or more."""
    count = draw(st.integers(0, 6))
    drop: dict[str, object] = {layer: draw(st.permutations(range(8)))[:count] for layer in ("0", "1")}
    value: dict[str, object] = {"drop": drop} | draw(st.sampled_from([{}, {"num_experts": 8}, {"metadata": {"x": 1}}]))
    faults = draw(st.lists(st.sampled_from(["layer", "ids", "count", "metadata", "model", "bare"]), max_size=2))
    if "layer" in faults:
        drop[draw(_KEYS)] = draw(st.just([0]) | _JSON)
    if "ids" in faults:
        drop["1"] = draw(st.lists(st.integers(-1, 9) | st.booleans() | st.floats(0, 7), max_size=8))
    if "count" in faults:
        value["num_experts"] = draw(st.sampled_from([None, 7, 8, 9, 8.0, True, "8"]))
    if "metadata" in faults:
        value["metadata"] = draw(st.sampled_from([None, [], {}, {"model": None}, {"model": 3}]))
    if "model" in faults:
        value["metadata"] = {"model": "of another model"}
    return drop if "bare" in faults else value


def fits(value: object) -> bool:
    """The rules of a map for this model, stated a second time."""
    if not isinstance(value, dict):
        return False
    whole = "drop" in value
    drop = value["drop"] if whole else value
    metadata = value.get("metadata", {}) if whole else {}
    if not isinstance(drop, dict) or set(drop) != {"0", "1"} or not isinstance(metadata, dict):
        return False
    if whole and not (value.get("num_experts") is None or type(value["num_experts"]) is int):
        return False
    if (whole and value.get("num_experts") not in (None, 8)) or metadata.get("model") is not None:
        return False
    lists = list(drop.values())
    ids_good = all(isinstance(ids, list) and all(type(i) is int and 0 <= i < 8 for i in ids) for ids in lists)
    return ids_good and all(len(set(ids)) == len(ids) for ids in lists) and len(lists[0]) == len(lists[1]) <= 6


def test_any_map_file_is_used_or_refused(gemma: Path, tmp_path: Path) -> None:
    """Accepted exactly if it fits, with what it says; and the strategy reaches both."""
    file, outcomes = tmp_path / "map.json", Counter[bool]()

    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(value=map_files() | _JSON)
    def each(value: object) -> None:
        file.write_text(json.dumps(value))
        try:
            report = prune(gemma, DropMap.load(file), tmp_path / "out", dry_run=True)
        except TrimoeError:
            assert not fits(value)
            outcomes[False] += 1
            return
        assert fits(value)
        assert isinstance(value, dict)
        assert report.experts_before - report.experts_after == len(value.get("drop", value)["0"])
        outcomes[True] += 1

    each()
    assert min(outcomes[True], outcomes[False]) >= 30, outcomes


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Peak resident memory of the command on a 1 GiB checkpoint (sparse files: only the addresses are large)."""
    experts, hidden, width = 64, 1024, 2730
    shapes = {name: a.shape for name, a in gemma_arrays(1, experts, 4, 4).items()}
    shapes |= {
        "model.layers.0.experts.gate_up_proj": (experts, 2 * width, hidden),
        "model.layers.0.experts.down_proj": (experts, hidden, width),
        "model.layers.0.router.proj.weight": (experts, hidden),
    }
    from trimoe.model.safetensors import header_bytes, nbytes_of

    entries = {name: ("BF16", shape) for name, shape in shapes.items()}
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(gemma_config(1, experts, hidden, width)))
    header = header_bytes(entries, {})
    with (folder / "model.safetensors").open("wb") as handle:
        handle.write(header)
        handle.truncate(len(header) + sum(nbytes_of(*entry) for entry in entries.values()))
    DropMap({0: tuple(range(40))}, experts).save(tmp_path / "map.json")
    command = [
        sys.executable,
        "-m",
        "trimoe",
        "prune",
        str(folder),
        str(tmp_path / "map.json"),
        "-o",
        str(tmp_path / "out"),
    ]
    # The child reads its own high-water mark: a parent's view of it would include the parent's size before exec.
    code = (
        "import sys; from trimoe.cli.main import main; code = main(sys.argv[1:])\n"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0]); sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code, *command[3:]], check=True, capture_output=True, text=True)
    peak = int(result.stdout.split()[-1])
    assert peak < 120 * 1024, f"{peak} KiB"
    assert np.isclose((tmp_path / "out" / "model.safetensors").stat().st_size, 24 * 3 * width * hidden * 2, rtol=0.01)


def test_a_link_to_nothing_is_no_file_of_the_model(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "in", gemma_arrays(), gemma_config(), None)
    (source / "vocab.json").symlink_to(tmp_path / "blob")
    with pytest.raises(CheckpointError, match="broken link"):
        prune(source, DropMap({0: (1,), 1: (0,)}, 8), tmp_path / "out")


def test_a_link_in_the_place_of_the_unfinished_output_is_not_followed(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "in", gemma_arrays(), gemma_config(), None)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "mine").write_text("mine")
    (tmp_path / ".out.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(BadInput, match="is a link"):
        prune(source, DropMap({0: (1,), 1: (0,)}, 8), tmp_path / "out")
    assert (tmp_path / "precious" / "mine").read_text() == "mine"
    with pytest.raises(BadInput, match="cannot be made"):
        prune(source, DropMap({0: (1,), 1: (0,)}, 8), tmp_path / ("x" * 250))


def test_infinity_in_a_configuration_is_kept(tmp_path: Path) -> None:
    """Families with state-space layers have time_step_limit = [0, Infinity]."""
    source = write_checkpoint(tmp_path / "in", gemma_arrays(), gemma_config(), None)
    text = (source / "config.json").read_text()
    (source / "config.json").write_text('{"time_step_limit": [0.0, Infinity], ' + text.lstrip()[1:])
    prune(source, DropMap({0: (1,), 1: (0,)}, 8), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["time_step_limit"] == [0.0, float("inf")]
    (source / "config.json").write_bytes(text.encode("utf-16"))
    with pytest.raises(CheckpointError, match=r"cannot be edited|not readable"):
        prune(source, DropMap({0: (1,), 1: (0,)}, 8), tmp_path / "two")


def test_an_interrupt_while_the_disk_is_waited_for_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "in", gemma_arrays(), gemma_config(), None)
    drop_map = DropMap({0: (1,), 1: (0,)}, 8)

    def interrupted(path: Path) -> None:
        if path.suffix == ".safetensors":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artifact, "_sync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prune(source, drop_map, tmp_path / "out", sync=True)
    report = prune(source, drop_map, tmp_path / "out", sync=True)
    assert report.bytes_resumed == (tmp_path / "out" / "model.safetensors").stat().st_size
