"""A killed or interrupted cut goes on where it stood, and ends with the bytes of an undisturbed one."""

import filecmp
import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.hand_made import gemma_arrays, gemma_config, write_checkpoint
from helpers.signals import count_calls, signal_at
from trimoe.choose.dropmap import DropMap
from trimoe.choose.narrowing import Narrowing
from trimoe.cli.main import main
from trimoe.cut.prune import prune
from trimoe.errors import CheckpointError, Refused
from trimoe.io import copying, hashing
from trimoe.model.checkpoint import open_checkpoint

MAP = DropMap({0: (1, 4), 1: (0, 7)}, 8)
_NEURONS = {layer: {e: tuple(range(e, 40 + e)) for e in MAP.keep(layer)} for layer in MAP.drop}
NARROWER = DropMap(MAP.drop, 8, narrow=Narrowing(_NEURONS, 48))
LEFT = ".out.partial"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hand-made Gemma 4 of about 100 KB in two files, and marks on that scale."""
    monkeypatch.setattr(hashing, "PIECE", 256)
    monkeypatch.setattr(hashing, "AHEAD", 500)
    monkeypatch.setattr(hashing, "MARK", 1024)
    monkeypatch.setattr(copying, "CHUNK", 700)
    monkeypatch.setattr(copying, "SMALL", 64)
    monkeypatch.setattr(copying, "ENTRIES", 900)
    arrays = gemma_arrays(hidden=32, width=48)
    return write_checkpoint(tmp_path / "in", arrays, gemma_config(hidden=32, width=48), [i % 2 for i in range(16)])


def stop_after(steps: int) -> object:
    """A progress callback that interrupts, as Ctrl-C does."""
    calls = iter(range(steps))

    def progress(done: int, total: int, note: str) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    return progress


def same(one: Path, two: Path) -> None:
    """The same files with the same bytes."""
    names = sorted(p.name for p in one.iterdir())
    assert names == sorted(p.name for p in two.iterdir())
    assert all(filecmp.cmp(one / name, two / name, shallow=False) for name in names)


@pytest.mark.parametrize("drop_map", [MAP, NARROWER], ids=["experts", "narrower"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupted_cut_goes_on(source: Path, tmp_path: Path, jobs: int, drop_map: DropMap) -> None:
    options = {"max_shard": 40_000, "jobs": jobs}
    whole = prune(source, drop_map, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        prune(source, drop_map, tmp_path / "out", progress=stop_after(40), **options)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / LEFT).is_dir()
    report = prune(source, drop_map, tmp_path / "out", **options)
    assert report.bytes_resumed > 10_000
    assert jobs > 1 or report.bytes_resumed < whole.bytes_after, "threads may run ahead of what progress has seen"
    assert not (tmp_path / LEFT).exists()
    same(tmp_path / "out", tmp_path / "whole")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_leftover_ends_in_the_same_bytes(source: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Interrupted several times; between the runs files and journal of the leftover are damaged at random."""
    options = {"max_shard": data.draw(st.sampled_from([20_000, 5_000_000]), "max_shard"), "jobs": 1}
    cut = data.draw(st.sampled_from(["experts", "narrower"]), "cut")
    drop_map = {"experts": MAP, "narrower": NARROWER}[cut]
    work, whole = tmp_path / "work", tmp_path / f"{cut}{options['max_shard']}"
    shutil.rmtree(work, ignore_errors=True)
    if not whole.exists():
        prune(source, drop_map, whole, **options)
    for _ in range(data.draw(st.integers(1, 3), "interrupts")):
        try:
            prune(
                source, drop_map, work / "out", progress=stop_after(data.draw(st.integers(0, 200), "steps")), **options
            )
        except KeyboardInterrupt:
            pass
        else:
            break
        files = sorted(p for p in (work / LEFT).rglob("*") if p.is_file() and p.name != "identity")
        for file in data.draw(st.lists(st.sampled_from(files), max_size=2, unique=True), "damaged") if files else ():
            content = bytearray(file.read_bytes())
            kind = data.draw(st.sampled_from(["flip", "cut", "extend", "empty", "remove"]), "damage")
            if kind == "flip" and content:
                content[data.draw(st.integers(0, len(content) - 1), "at")] ^= data.draw(st.integers(1, 255), "mask")
            elif kind == "cut":
                del content[data.draw(st.integers(0, len(content)), "length") :]
            elif kind == "extend":
                content += data.draw(st.binary(min_size=1, max_size=50), "tail")
            elif kind == "empty":
                content.clear()
            file.write_bytes(content)
            if kind == "remove":
                file.unlink()
    if not (work / "out").exists():
        prune(source, drop_map, work / "out", **options)
    same(work / "out", whole)
    assert [p.name for p in work.iterdir()] == ["out"]


def test_the_leftover_of_another_cut_is_not_used(source: Path, tmp_path: Path) -> None:
    other = DropMap({0: (1, 4), 1: (0, 6)}, 8)
    for first, options in ((other, {}), (MAP, {"max_shard": 20_000}), (MAP, {"max_shard": "source"})):
        with pytest.raises(KeyboardInterrupt):
            prune(source, first, tmp_path / "out", progress=stop_after(40), **options)
        assert prune(source, MAP, tmp_path / "out").bytes_resumed == 0
        if not (tmp_path / "whole").exists():
            prune(source, MAP, tmp_path / "whole")
        same(tmp_path / "out", tmp_path / "whole")
        shutil.rmtree(tmp_path / "out")


def test_a_source_that_was_written_since_is_not_continued(source: Path, tmp_path: Path) -> None:
    """The same content is not enough: a source that was written to is another one until its bytes are read again."""
    with pytest.raises(KeyboardInterrupt):
        prune(source, MAP, tmp_path / "out", progress=stop_after(40))
    shard = next(source.glob("*.safetensors"))
    times = shard.stat()
    with shard.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))  # a tool that keeps the time of modification
    assert prune(source, MAP, tmp_path / "out").bytes_resumed == 0
    prune(source, MAP, tmp_path / "whole")
    same(tmp_path / "out", tmp_path / "whole")


def test_a_small_file_of_the_killed_run_does_not_stay(source: Path, tmp_path: Path) -> None:
    (source / "merges.txt").write_text("a b")
    with pytest.raises(KeyboardInterrupt):
        prune(source, MAP, tmp_path / "out", progress=stop_after(40))
    for name in ("merges.txt", "model-00009-of-00009.safetensors"):
        (tmp_path / LEFT / name).write_text("old")
    (source / "merges.txt").unlink()
    assert prune(source, MAP, tmp_path / "out").bytes_resumed > 0
    assert not (tmp_path / "out" / "merges.txt").exists()
    assert not (tmp_path / "out" / "model-00009-of-00009.safetensors").exists()


def test_without_hashes_a_cut_starts_over(source: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        prune(source, MAP, tmp_path / "out", progress=stop_after(40), hashed=False)
    assert not (tmp_path / LEFT).exists(), "what cannot be verified is not kept"
    with pytest.raises(KeyboardInterrupt):
        prune(source, MAP, tmp_path / "out", progress=stop_after(40))
    assert prune(source, MAP, tmp_path / "out", hashed=False).bytes_resumed == 0
    assert "files" not in json.loads((tmp_path / "out" / "trimoe.json").read_text())


def test_the_leftover_counts_as_space(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trimoe.io import atomic as artifact

    with pytest.raises(KeyboardInterrupt):
        prune(source, MAP, tmp_path / "out", progress=stop_after(80))
    held = artifact.partial_bytes(tmp_path / "out")
    assert held > 10_000
    asked = []
    monkeypatch.setattr("trimoe.cut.checkpoint.require_space", lambda path, needed: asked.append(needed))
    prune(source, MAP, tmp_path / "out")
    prune(source, MAP, tmp_path / "other")
    assert asked[1] - asked[0] == held


def test_the_manifest_says_what_was_written(source: Path, tmp_path: Path) -> None:
    import xxhash

    prune(source, MAP, tmp_path / "out", max_shard=40_000, verify=True)
    files = json.loads((tmp_path / "out" / "trimoe.json").read_text())["files"]
    assert set(files) == {p.name for p in (tmp_path / "out").glob("*.safetensors")}
    for name, facts in files.items():
        content = (tmp_path / "out" / name).read_bytes()
        assert facts == {"bytes": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}


def test_verify_finds_what_the_disk_changed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trimoe.cut import checkpoint as module

    real = module.write_shards

    def damaging(folder: Path, *args: object, **options: object) -> object:
        written = real(folder, *args, **options)
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(-5, os.SEEK_END)
            file.write(b"x")
        return written

    monkeypatch.setattr(module, "write_shards", damaging)
    with pytest.raises(Refused, match=r"model\.safetensors is not what was written"):
        prune(source, MAP, tmp_path / "out", verify=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_a_source_that_changes_after_it_was_opened(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trimoe.cut import checkpoint as module

    real = module._verify_headers

    def late(folder: Path, shards: list) -> None:
        os.utime(next(source.glob("*.safetensors")))
        real(folder, shards)

    monkeypatch.setattr(module, "_verify_headers", late)
    with pytest.raises(CheckpointError, match="modified while it was cut"):
        prune(source, MAP, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def _command(arguments: list[str], report: Path, kill_at: int = 0) -> int:
    """`trimoe` in a process of its own, forked so that imports are not paid again; returns its wait status.

    It kills itself at call `kill_at`; without one it counts its calls into REPORT.calls.
    """
    pid = os.fork()
    if pid == 0:
        try:
            calls = signal_at(kill_at) if kill_at else count_calls()
            os.dup2(os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 pytest's capture stays in the parent
            code = main(arguments)
            sys.stdout.flush()
            if calls:
                report.with_suffix(".calls").write_text(str(calls()))
            os._exit(code)
        finally:
            os._exit(99)
    return os.waitpid(pid, 0)[1]


@pytest.mark.slow
def test_thirty_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL at random calls, again and again over what the last kill left; then the same command."""
    monkeypatch.setattr(hashing, "MARK", 1 << 20)  # so that a small model has many marks
    monkeypatch.setattr(hashing, "PIECE", 64 << 10)
    monkeypatch.setattr(hashing, "AHEAD", 1 << 20)
    arrays = gemma_arrays(layers=2, experts=16, hidden=256, width=2048)  # 100 MB
    source = write_checkpoint(
        tmp_path / "in", arrays, gemma_config(2, 16, 256, 2048), [i % 4 for i in range(len(arrays))]
    )
    DropMap({0: (1, 5), 1: (0, 15)}, 16).save(tmp_path / "map.json")
    command = ["prune", str(source), str(tmp_path / "map.json"), "--json", "--max-shard", "30MB", "-o"]
    out, left, answer = tmp_path / "out", tmp_path / LEFT, tmp_path / "report.json"
    assert _command([*command, str(tmp_path / "whole")], answer) == 0
    calls = int(answer.with_suffix(".calls").read_text())
    draw, killed, resumed, begun_with_leftover = random.Random(0), 0, 0, 0
    while killed < 30:
        begun_with_leftover += any(left.glob("*.safetensors"))
        status = _command([*command, str(out)], answer, draw.randrange(1, calls))
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            killed += 1
        else:
            assert os.WEXITSTATUS(status) == 0
            resumed += json.loads(answer.read_text())["bytes_resumed"]
        if out.exists():  # finished, or killed between the rename and the exit: then it must be complete
            same(out, tmp_path / "whole")
            assert open_checkpoint(out).num_experts == 14
            shutil.rmtree(out)
    assert _command([*command, str(out)], answer) == 0
    report = json.loads(answer.read_text())
    same(out, tmp_path / "whole")
    assert begun_with_leftover >= 10
    assert resumed + report["bytes_resumed"] > 0, "no run resumed from a leftover: the test shows nothing"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "in",
        "map.json",
        "out",
        "report.calls",
        "report.json",
        "whole",
    ]
    assert np.isclose(report["bytes_after"], sum(p.stat().st_size for p in out.glob("*.safetensors")), rtol=0.01)
