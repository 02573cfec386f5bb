"""A disk that is really full: the source stays as it is, nothing stays behind, and the message says what happened."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.hand_made import gemma_arrays, gemma_config, write_checkpoint
from trimoe.choose.dropmap import DropMap
from trimoe.cli.prune import prune as command
from trimoe.cut import checkpoint as prune_module
from trimoe.cut.prune import prune
from trimoe.errors import MissingPrerequisite
from trimoe.io import hashing

MAP = DropMap({0: (1, 4), 1: (0, 7)}, 8)
SMALL = 6 << 20


def _mount(*options: str) -> str | None:
    """Mounts; returns why it cannot."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return "mounting a small disk needs root and the mount program"
    result = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    return None if result.returncode == 0 else f"a small disk cannot be mounted here: {result.stderr.strip()[:200]}"


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB in memory, or of 8 MiB in a file (ext4 with its reservation of space)."""
    place = tmp_path / "disk"
    place.mkdir()
    if request.param == "tmpfs":
        problem = _mount("-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(place))
    elif shutil.which("mkfs.ext4") is None:
        problem = "no mkfs.ext4"
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(8 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(image)], check=True)
        problem = _mount("-o", "loop", str(image), str(place))
    if problem is not None:
        pytest.skip(problem)
    try:
        shutil.rmtree(place / "lost+found", ignore_errors=True)
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """About 20 MiB in three files; a quarter of the experts less is 15 MiB, three quarters less 5 MiB."""
    arrays = gemma_arrays(hidden=128, width=1664)
    config = gemma_config(hidden=128, width=1664)
    return write_checkpoint(tmp_path / "in", arrays, config, [i % 3 for i in range(16)])


def contents(folder: Path) -> dict[str, str]:
    """Name and hash of every file."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def _no_check(path: Path, needed: int) -> None:
    """In place of the check before the cut: another program takes the space after it."""


@pytest.mark.parametrize("way", ["reserved", "written", "kernel", "threads"])
def test_a_disk_that_becomes_full(
    way: str, source: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(source)
    monkeypatch.setattr(prune_module, "require_space", _no_check)
    if way == "written":  # as on a file system that cannot reserve
        monkeypatch.setattr(hashing, "reserve", lambda fd, start, length: None)
    options = {"hashed": way != "kernel", "jobs": 3 if way == "threads" else 1, "max_shard": 2 << 20}
    with pytest.raises(MissingPrerequisite, match="became full") as caught:
        prune(source, MAP, disk / "out", **options)
    assert "No space left" in caught.value.actual
    assert list(disk.iterdir()) == []
    assert contents(source) == before
    prune(source, MAP, tmp_path / "elsewhere", **options)


def test_full_at_the_last_small_file(source: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights fit; the tokenizer does not."""
    monkeypatch.setattr(prune_module, "require_space", _no_check)
    (source / "tokenizer.json").write_bytes(b" " * SMALL)
    with pytest.raises(MissingPrerequisite, match="became full"):
        prune(source, DropMap({0: tuple(range(6)), 1: tuple(range(6))}, 8), disk / "out")
    assert list(disk.iterdir()) == []


def test_too_small_is_found_before_the_first_byte(source: Path, disk: Path, tmp_path: Path) -> None:
    MAP.save(tmp_path / "map.json")
    before = contents(source)
    with pytest.raises(MissingPrerequisite, match="not enough disk space") as caught:
        CliRunner().invoke(
            command,
            [str(source), str(tmp_path / "map.json"), "-o", str(disk / "out")],
            standalone_mode=False,
            catch_exceptions=False,
        )
    assert caught.value.exit_code == 4
    assert list(disk.iterdir()) == []
    assert contents(source) == before


def test_what_fits_is_written(source: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above fail for want of space and nothing else."""
    monkeypatch.setattr(prune_module, "require_space", _no_check)  # it wants 16 MiB more than the output has
    prune(source, DropMap({0: tuple(range(6)), 1: tuple(range(6))}, 8), disk / "out", sync=True, verify=True)
    assert json.loads((disk / "out" / "config.json").read_text())["num_experts"] == 2
