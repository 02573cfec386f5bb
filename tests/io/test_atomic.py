"""Publishing: all or nothing, locked, and the same manifest for the same inputs."""

import json
import os
from pathlib import Path

import pytest

from trimoe.errors import BadInput, MissingPrerequisite
from trimoe.io.atomic import publish_dir, publish_file, require_space
from trimoe.io.canonical import canonical_json, sha256_bytes, sha256_file
from trimoe.io.manifest import write_manifest


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.json"
    with pytest.raises(TypeError), publish_file(target) as temporary:
        temporary.write_bytes(b"half") and temporary.write_text(None)  # type: ignore[arg-type]
    assert list(target.parent.iterdir()) == []
    with publish_file(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    with pytest.raises(BadInput, match="exists already"), publish_file(target):
        pass
    with publish_file(target, overwrite=True) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_a_directory_replaces_the_leftover_of_a_killed_run(tmp_path: Path) -> None:
    leftover = tmp_path / ".out.partial"
    (leftover / "sub").mkdir(parents=True)
    (leftover / "sub" / "old").write_text("old")
    (leftover / "link").symlink_to(tmp_path)
    with publish_dir(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []
        (folder / "new").write_text("new")
        with pytest.raises(BadInput, match="another run is writing out"), publish_dir(tmp_path / "out"):
            pass
        assert (folder / "new").exists(), "the second run took nothing away"
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["new"]


def test_a_directory_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="exists already"), publish_dir(tmp_path / "out"):
        (tmp_path / "out").mkdir()
    assert os.listdir(tmp_path) == ["out"]


def test_space_is_that_of_the_nearest_existing_folder(tmp_path: Path) -> None:
    require_space(tmp_path / "a" / "b" / "c", 1)
    with pytest.raises(MissingPrerequisite, match="not enough disk space"):
        require_space(tmp_path / "a", 1 << 60)


def test_hashes_and_manifest(tmp_path: Path) -> None:
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == sha256_bytes(b"abc")
    write_manifest(tmp_path / "f", "thing", {"x": 1})
    first = (tmp_path / "f.manifest.json").read_bytes()
    write_manifest(tmp_path / "f", "thing", {"x": 1})
    assert (tmp_path / "f.manifest.json").read_bytes() == first
    write_manifest(tmp_path, "thing", {"x": 2})
    assert json.loads((tmp_path / "trimoe.json").read_text())["identity"] != json.loads(first)["identity"]
