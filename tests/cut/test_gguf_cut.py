"""Cutting GGUF models: numpy on the bytes as the gguf package reads them is the oracle, for every type and layout."""

import errno
import json
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import xxhash

from helpers.gguf_models import EXPERTS, LAYERS, WIDTH, read_oracle, write_imatrix, write_model
from helpers.signals import TESTS
from trimoe.certify.certify import certify
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import BadInput, CheckpointError, MapError, MissingPrerequisite, UsageError
from trimoe.io import atomic as artifact
from trimoe.io import copying, hashing
from trimoe.model.gguf.file import open_gguf
from trimoe.model.gguf.format import TYPES
from trimoe.model.gguf.header import read_gguf
from trimoe.model.gguf.imatrix import open_imatrix
from trimoe.model.gguf.model import open_gguf_model

MAP = DropMap({0: (1, 4), 1: (0, 7), 2: (2, 3)}, EXPERTS)
KNOWN_TO_THE_ORACLE = {kind.name for kind in gguf.GGML_QUANT_SIZES}
IN_FILES = sorted(
    {name for name, *_ in TYPES.values() if name in KNOWN_TO_THE_ORACLE}
    - {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"}
)


def check_cut(before: Path, after: Path, drop_map: DropMap, arch: str) -> None:
    """Every tensor and key of `after` against numpy on `before`; both read by the gguf package."""
    cut = set(open_gguf_model(before).expert_tensors)
    (tensors, keys), (found, found_keys) = read_oracle(before), read_oracle(after)
    assert list(found) == list(tensors)
    for name, (kind, rows) in tensors.items():
        want = rows
        if name in cut:
            layer = int(name.split(".")[1])
            want = np.delete(rows.reshape(EXPERTS, -1), list(drop_map.drop[layer]), axis=0)
            want = want.reshape(len(found[name][1]), -1)
        assert found[name][0] == kind
        np.testing.assert_array_equal(found[name][1], want, err_msg=name)
    ignored = {"GGUF.tensor_count", "GGUF.kv_count", f"{arch}.expert_count", *(k for k in found_keys if "split" in k)}
    assert {k: v for k, v in found_keys.items() if k not in ignored} == {
        k: v for k, v in keys.items() if k not in ignored
    }
    assert found_keys[f"{arch}.expert_count"] == EXPERTS - len(next(iter(drop_map.drop.values())))


@pytest.mark.parametrize("dtype", IN_FILES)
def test_every_quantization_type(dtype: str, tmp_path: Path) -> None:
    before = write_model(tmp_path / "before.gguf", dtype=dtype)
    report = prune(before, MAP, tmp_path / "after.gguf")
    check_cut(before, tmp_path / "after.gguf", MAP, "qwen3moe")
    assert (report.experts_before, report.experts_after, report.layers) == (EXPERTS, EXPERTS - 2, LAYERS)
    assert report.bytes_after == open_gguf(tmp_path / "after.gguf").nbytes < report.bytes_before


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("gemma4", {"fused": True, "extra": ("ffn_down_exps.scale",)}),
        ("gpt-oss", {}),
        ("deepseek2", {"shared": True, "dense": (0,), "extra": ("exp_probs_b.bias",)}),
        ("glm4moe", {"shared": True, "extra": ("exp_probs_b.bias",), "alignment": 64}),
        ("qwen3next", {"shared": True}),
        ("ernie4_5-moe", {"extra": ("[1,E]exp_probs_b.bias",)}),
        ("llama", {"extra": ("ffn_up_exps.scale", "ffn_up_exps.input_scale"), "dtype": "NVFP4"}),
    ],
)
def test_every_kind_of_companion(arch: str, options: dict, tmp_path: Path) -> None:
    drop = {layer: ids for layer, ids in MAP.drop.items() if layer not in options.get("dense", ())}
    before = write_model(tmp_path / "before.gguf", arch, **options)
    prune(before, DropMap(drop, EXPERTS), tmp_path / "after.gguf")
    check_cut(before, tmp_path / "after.gguf", DropMap(drop, EXPERTS), arch)


def test_metadata_keep_their_bytes_and_order(tmp_path: Path) -> None:
    before = read_gguf(write_model(tmp_path / "before.gguf", metadata={"a.number": 7, "b.text": "ü"}))
    prune(before.path, MAP, tmp_path / "after.gguf")
    after = read_gguf(tmp_path / "after.gguf")
    assert list(after.fields) == list(before.fields)
    for key, field in before.fields.items():
        if key == "qwen3moe.expert_count":
            assert after.fields[key].raw == field.raw[:-4] + struct.pack("<I", EXPERTS - 2)
        else:
            assert after.fields[key].raw == field.raw
    assert (after.version, after.alignment) == (before.version, before.alignment)


def test_same_input_same_bytes_and_a_record(tmp_path: Path) -> None:
    before = write_model(tmp_path / "before.gguf")
    for name in ("a.gguf", "b.gguf"):
        prune(before, MAP, tmp_path / name)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    names = {p.name for p in tmp_path.iterdir()} - {"before.gguf"}
    extras = {f"{n}.gguf{e}" for n in "ab" for e in ("", ".expert_drop_metadata.json", ".manifest.json")}
    assert names == extras
    record = json.loads((tmp_path / "a.gguf.expert_drop_metadata.json").read_text())
    assert record["per_layer_drop"] == {"0": [1, 4], "1": [0, 7], "2": [2, 3]}
    assert (record["base_model"], record["original_experts"], record["target_experts"]) == ("a small qwen3moe", 8, 6)
    prune(tmp_path / "a.gguf", DropMap(dict.fromkeys(range(3), (5,)), 6), tmp_path / "c.gguf")
    again = json.loads((tmp_path / "c.gguf.expert_drop_metadata.json").read_text())
    assert again["previous"] == record


def test_an_empty_map_changes_no_byte(tmp_path: Path) -> None:
    before = write_model(tmp_path / "before.gguf")
    prune(before, DropMap({0: (), 1: (), 2: ()}), tmp_path / "after.gguf")
    assert (tmp_path / "after.gguf").read_bytes() == before.read_bytes()


def test_split_models_in_every_direction(tmp_path: Path) -> None:
    """One file into parts of a size, parts into parts as they are, parts into one file: always the same tensors."""
    whole = write_model(tmp_path / "whole.gguf", dtype="Q2_K")
    empty = DropMap({0: (), 1: (), 2: ()})
    prune(whole, empty, tmp_path / "parts", max_shard=400_000)
    parts = sorted((tmp_path / "parts").glob("*.gguf"))
    assert [p.name for p in parts] == [f"whole-{i + 1:05d}-of-{len(parts):05d}.gguf" for i in range(len(parts))]
    assert len(parts) > 3
    # a single larger tensor has a file of its own
    sizes = [sum(info.nbytes for info in read_gguf(p).tensors.values()) for p in parts]
    assert all(size <= 400_000 or len(read_gguf(p).tensors) == 1 for size, p in zip(sizes, parts, strict=True))
    prune(parts[2], MAP, tmp_path / "cut")  # any part names the model
    assert [p.name for p in sorted((tmp_path / "cut").glob("*.gguf"))] == [p.name for p in parts]
    prune(parts[0], MAP, tmp_path / "cut.gguf")
    prune(whole, MAP, tmp_path / "direct.gguf")
    assert (tmp_path / "cut.gguf").read_bytes() == (tmp_path / "direct.gguf").read_bytes()
    joined, direct = open_gguf(tmp_path / "cut" / parts[0].name), open_gguf(tmp_path / "direct.gguf")
    assert list(joined.index) == list(direct.index)
    for name, info in direct.index.items():
        part = joined.index[name]
        assert part.file.read_bytes()[part.start : part.end] == info.file.read_bytes()[info.start : info.end]
    assert (tmp_path / "cut" / "expert_drop_metadata.json").exists()


def test_one_file_into_a_directory_keeps_its_name(tmp_path: Path) -> None:
    before = write_model(tmp_path / "model-Q4.gguf")
    prune(before, MAP, tmp_path / "folder")
    check_cut(before, tmp_path / "folder" / "model-Q4.gguf", MAP, "qwen3moe")
    assert certify(before, tmp_path / "folder").map.source == "metadata"


def test_a_record_of_another_file_is_not_carried_on(tmp_path: Path) -> None:
    before = write_model(tmp_path / "before.gguf")
    prune(before, MAP, tmp_path / "after.gguf")
    (tmp_path / "after.gguf").write_bytes(before.read_bytes())
    with pytest.raises(CheckpointError, match="does not describe how this model was pruned"):
        prune(tmp_path / "after.gguf", MAP, tmp_path / "again.gguf")


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_model(tmp_path / "before.gguf")
    write_imatrix(tmp_path / "i.gguf", before)
    names = sorted(p.name for p in tmp_path.iterdir())

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for method in ("copy_file_range", "sendfile", "write"):
        monkeypatch.setattr(os, method, full)
    for out in ("after.gguf", "parts"):
        with pytest.raises(MissingPrerequisite, match="disk became full"):
            prune(before, MAP, tmp_path / out, imatrix=tmp_path / "i.gguf", imatrix_out=tmp_path / "o.gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ({0: (1,), 1: (1,)}, "does not cover exactly"),
        ({0: (1,), 1: (1,), 2: (1,), 3: (1,)}, "does not cover exactly"),
        ({0: (1,), 1: (1,), 2: (1, 2)}, "unequal counts"),
        ({0: (8,), 1: (1,), 2: (1,)}, "does not exist"),
        (dict.fromkeys(range(3), (0, 1, 2, 3, 4, 5, 6)), "fewer experts than the router selects"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(drop: dict, message: str, tmp_path: Path) -> None:
    before = write_model(tmp_path / "before.gguf")
    with pytest.raises(MapError, match=message):
        prune(before, DropMap(drop), tmp_path / "after.gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["before.gguf"]


def test_dense_layers_drop_nothing(tmp_path: Path) -> None:
    before = write_model(tmp_path / "before.gguf", "glm4moe", dense=(0,))
    with pytest.raises(MapError, match="drops experts in layer 0, which has none"):
        prune(before, DropMap({0: (1,), 1: (1,), 2: (1,)}), tmp_path / "after.gguf")
    prune(before, DropMap({0: (), 1: (1,), 2: (6,)}), tmp_path / "after.gguf")
    check_cut(before, tmp_path / "after.gguf", DropMap({1: (1,), 2: (6,)}, EXPERTS), "glm4moe")


@pytest.mark.parametrize("named", [False, True])
def test_a_predicting_layer_follows_the_last_ordinary_one_unless_named(named: bool, tmp_path: Path) -> None:
    before = write_model(tmp_path / "before.gguf", "glm4moe", metadata={"glm4moe.nextn_predict_layers": 1})
    drop = {0: (1, 2), 1: (4, 5)} | ({2: (0, 7)} if named else {})
    prune(before, DropMap(drop), tmp_path / "after.gguf")
    check_cut(before, tmp_path / "after.gguf", DropMap({**drop, 2: drop.get(2, (4, 5))}, EXPERTS), "glm4moe")
    checks = certify(before, tmp_path / "after.gguf", map=DropMap(drop)).checks
    assert {check.status for check in checks if check.name not in ("loading", "logits")} == {"passed"}


def test_impossible_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_model(tmp_path / "before.gguf")
    with pytest.raises(UsageError, match="--max-shard"):
        prune(before, MAP, tmp_path / "after.gguf", max_shard=10**6)
    with pytest.raises(UsageError, match="belong together"):
        prune(before, MAP, tmp_path / "after.gguf", imatrix=tmp_path / "i.gguf")
    with pytest.raises(BadInput, match="exists already"):
        prune(before, MAP, before)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(MissingPrerequisite, match="disk space"):
        prune(before, MAP, tmp_path / "after.gguf")


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    before = write_model(tmp_path / "before.gguf")
    planned = prune(before, MAP, tmp_path / "after.gguf", dry_run=True)
    assert [p.name for p in tmp_path.iterdir()] == ["before.gguf"]
    done = prune(before, MAP, tmp_path / "after.gguf")
    assert (planned.bytes_after, planned.shards) == (done.bytes_after, done.shards)


def test_imatrix_is_cut_by_the_same_map(tmp_path: Path) -> None:
    before = write_model(tmp_path / "before.gguf")
    entries = write_imatrix(tmp_path / "i.gguf", before)
    prune(before, MAP, tmp_path / "after.gguf", imatrix=tmp_path / "i.gguf", imatrix_out=tmp_path / "o.gguf")
    found = open_imatrix(tmp_path / "o.gguf")
    assert list(found.entries) == sorted(entries)
    for name, (sums, counts) in entries.items():
        gone = list(MAP.drop[int(name.split(".")[1])]) if "_exps" in name else []
        np.testing.assert_array_equal(found.entries[name].read_sums(), np.delete(sums, gone, axis=0))
        np.testing.assert_array_equal(found.entries[name].read_counts(), np.delete(counts, gone, axis=0)[:, 0])
    assert read_gguf(tmp_path / "o.gguf").fields == read_gguf(tmp_path / "i.gguf").fields


def test_a_late_interrupt_is_gone_on_from_with_its_imatrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix is there before the model has its name; the same command must not stumble over it."""
    before = write_model(tmp_path / "before.gguf")
    write_imatrix(tmp_path / "i.gguf", before)
    matrices = {"imatrix": tmp_path / "i.gguf", "imatrix_out": tmp_path / "o.gguf"}

    def interrupted(*names: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artifact.os, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prune(before, MAP, tmp_path / "after.gguf", **matrices)
    assert (tmp_path / "o.gguf").exists()
    assert prune(before, MAP, tmp_path / "after.gguf", **matrices).bytes_resumed > 0
    (tmp_path / "after.gguf").unlink()
    with pytest.raises(BadInput, match="exists already"):
        prune(before, MAP, tmp_path / "after.gguf", **matrices)
    for name in ("x.gguf", "x.gguf.manifest.json", "x.gguf.expert_drop_metadata.json"):
        with pytest.raises(UsageError, match="another file of this run"):
            prune(before, MAP, tmp_path / "x.gguf", imatrix=tmp_path / "i.gguf", imatrix_out=tmp_path / name)


def test_files_of_others_beside_the_output_stay(tmp_path: Path) -> None:
    before, out = write_model(tmp_path / "before.gguf"), tmp_path / "after.gguf"
    for name in ("after.gguf.manifest.json", "after.gguf.expert_drop_metadata.json"):
        for text in ("mine", '{"a": 1}'):
            (tmp_path / name).write_text(text)
            with pytest.raises(BadInput, match="not from an earlier prune"):
                prune(before, MAP, out)
            assert (tmp_path / name).read_text() == text
        (tmp_path / name).unlink()
    prune(before, MAP, out)
    out.unlink()
    prune(before, MAP, out)  # what the first one wrote is replaced


def test_dat_imatrix_is_cut_too(tmp_path: Path) -> None:
    before = write_model(tmp_path / "before.gguf")
    name, rng = b"blk.1.ffn_down_exps.weight", np.random.default_rng(0)
    values = rng.random((EXPERTS, WIDTH), np.float32)
    head = struct.pack("<ii", 1, len(name)) + name
    tail = struct.pack("<ii", 9, 1) + b"x"
    (tmp_path / "i.dat").write_bytes(head + struct.pack("<ii", 5, values.size) + values.tobytes() + tail)
    prune(before, MAP, tmp_path / "after.gguf", imatrix=tmp_path / "i.dat", imatrix_out=tmp_path / "o.dat")
    kept = np.delete(values, [0, 7], axis=0)
    assert (tmp_path / "o.dat").read_bytes() == head + struct.pack("<ii", 5, kept.size) + kept.tobytes() + tail


def test_an_imatrix_of_another_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    before = write_model(tmp_path / "before.gguf")
    write_imatrix(tmp_path / "i.gguf", write_model(tmp_path / "other.gguf", experts=4))
    with pytest.raises(CheckpointError, match="imatrix of another model"):
        prune(before, MAP, tmp_path / "after.gguf", imatrix=tmp_path / "i.gguf", imatrix_out=tmp_path / "o.gguf")
    assert not {"after.gguf", "o.gguf"} & {p.name for p in tmp_path.iterdir()}


def test_entries_of_layers_that_the_model_does_not_have_are_carried_and_named(tmp_path: Path) -> None:
    before = write_model(tmp_path / "before.gguf")
    write_imatrix(tmp_path / "j.gguf", write_model(tmp_path / "third.gguf", layers=4))
    made = prune(before, MAP, tmp_path / "after.gguf", imatrix=tmp_path / "j.gguf", imatrix_out=tmp_path / "o.gguf")
    assert any("tensors that this model does not have (blk." in text for text in made.warnings)
    assert (tmp_path / "o.gguf").exists()


CHILD = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(TESTS)!r})
from helpers.signals import count_calls, signal_at
from trimoe.choose.dropmap import DropMap
from trimoe.io import copying
from trimoe.io import hashing
from trimoe.cut.prune import prune
base, out, number = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
calls = count_calls() if number == 0 else signal_at(number)
prune(base, DropMap(dict.fromkeys(range(3), (1, 4)), 8), out)
if calls:
    print(calls())
"""


def test_kills_leave_nothing_under_the_final_name(tmp_path: Path) -> None:
    """SIGKILL at random calls; the rerun takes over the leftover and ends with the undisturbed run's bytes."""
    base, drop = write_model(tmp_path / "base.gguf", dtype="F32"), DropMap(dict.fromkeys(range(3), (1, 4)), 8)

    def child(out: str, number: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CHILD, str(base), str(tmp_path / out), str(number)]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)

    calls = int(child("want.gguf", 0).stdout)
    want, rng, out = (tmp_path / "want.gguf").read_bytes(), random.Random(0), tmp_path / "out.gguf"
    killed, leftovers = 0, 0
    for number in (calls - 1, *(rng.randrange(1, calls) for _ in range(7))):
        status = child("out.gguf", number).returncode  # 0: a leftover was taken over, so there were fewer calls
        assert status in (0, -signal.SIGKILL)
        killed += status == -signal.SIGKILL
        leftovers += (tmp_path / ".out.gguf.partial").exists()
        assert out.exists() or status != 0
        assert not out.exists() or out.read_bytes() == want
        out.unlink(missing_ok=True)
    assert killed >= 3
    assert leftovers, "some kills must meet the writing"
    prune(base, drop, out)
    assert out.read_bytes() == want
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".partial")]


@pytest.fixture
def small_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks for resuming on the scale of these models."""
    monkeypatch.setattr(hashing, "PIECE", 4096)
    monkeypatch.setattr(hashing, "AHEAD", 10000)
    monkeypatch.setattr(hashing, "MARK", 65536)
    monkeypatch.setattr(copying, "CHUNK", 10_000)


def stop_after(steps: int) -> Callable[[int, int, str], None]:
    """A progress callback that interrupts, as Ctrl-C does."""
    calls = iter(range(steps))

    def progress(done: int, total: int, note: str) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    return progress


def files_of(out: Path) -> dict[str, bytes]:
    """Name and bytes of every GGUF file of an output."""
    return {p.name: p.read_bytes() for p in ([out] if out.is_file() else out.glob("*.gguf"))}


@pytest.mark.parametrize("name", ["out.gguf", "out"])
def test_an_interrupted_cut_goes_on(name: str, small_marks: None, tmp_path: Path) -> None:
    before = write_model(tmp_path / "before.gguf", dtype="F16")
    options = {} if name.endswith(".gguf") else {"max_shard": 3_000_000}
    (tmp_path / "want").mkdir()
    prune(before, MAP, tmp_path / "want" / name, **options)
    with pytest.raises(KeyboardInterrupt):
        prune(before, MAP, tmp_path / name, progress=stop_after(150), jobs=1, **options)
    assert not (tmp_path / name).exists()
    report = prune(before, MAP, tmp_path / name, **options)
    assert 500_000 < report.bytes_resumed < report.bytes_after
    assert not list(tmp_path.glob(".*"))
    found, want = files_of(tmp_path / name), files_of(tmp_path / "want" / name)
    assert found == want


def test_a_leftover_of_another_map_is_not_continued(small_marks: None, tmp_path: Path) -> None:
    before = write_model(tmp_path / "before.gguf", dtype="F16")
    with pytest.raises(KeyboardInterrupt):
        prune(before, MAP, tmp_path / "out.gguf", progress=stop_after(150), jobs=1)
    other = DropMap({0: (0,), 1: (1,), 2: (2,)}, EXPERTS)
    assert prune(before, other, tmp_path / "out.gguf").bytes_resumed == 0
    check_cut(before, tmp_path / "out.gguf", other, "qwen3moe")


def test_hashes_are_of_what_was_written_and_read_back(tmp_path: Path) -> None:
    before = write_model(tmp_path / "before.gguf")
    prune(before, MAP, tmp_path / "a.gguf", verify=True)
    prune(before, MAP, tmp_path / "b.gguf", hashed=False)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    manifest = json.loads((tmp_path / "a.gguf.manifest.json").read_text())
    digest = xxhash.xxh3_128_hexdigest((tmp_path / "a.gguf").read_bytes())
    assert manifest["files"]["a.gguf"] == {"bytes": (tmp_path / "a.gguf").stat().st_size, "xxh3_128": digest}
    assert "files" not in json.loads((tmp_path / "b.gguf.manifest.json").read_text())
