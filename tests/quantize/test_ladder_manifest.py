"""A file is reused only if it is what the manifest says and was made from the same inputs."""

import json
from pathlib import Path

import pytest

from trimoe.errors import BadInput
from trimoe.quantize.ladder.manifest import make, manifest_path, reuse, rewrite

INPUTS = {"base": "abc", "tier": "Q6_K"}


def made(path: Path) -> Path:
    with make(path, "kind", INPUTS) as output:
        output.path.write_bytes(b"content")
        output.facts["more"] = 1
    return path


def test_made_once_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "f.gguf"
    assert reuse(path, "kind", INPUTS) is None
    made(path)
    facts = reuse(path, "kind", dict(reversed(INPUTS.items())))
    assert facts is not None
    assert (facts["file_bytes"], facts["more"]) == (7, 1)
    rewrite(path, "kind", INPUTS, facts | {"more": 2})
    assert reuse(path, "kind", INPUTS) == facts | {"more": 2}


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f.gguf"
    with pytest.raises(RuntimeError), make(path, "kind", INPUTS) as output:  # noqa: PT012 the block is what fails
        output.path.write_bytes(b"half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_kill_between_manifest_and_name_is_made_again(tmp_path: Path) -> None:
    path = made(tmp_path / "f.gguf")
    path.unlink()
    assert reuse(path, "kind", INPUTS) is None
    made(path)
    assert reuse(path, "kind", INPUTS)


def test_what_is_not_trusted(tmp_path: Path) -> None:
    path = made(tmp_path / "f.gguf")
    with pytest.raises(BadInput, match=r"(?s)from other inputs.*the same tier"):
        reuse(path, "kind", INPUTS | {"tier": "Q4_K"})
    with pytest.raises(BadInput, match="from other inputs"):
        reuse(path, "other kind", INPUTS)
    path.write_bytes(b"CONTENT")
    with pytest.raises(BadInput, match="was changed"):
        reuse(path, "kind", INPUTS)
    manifest_path(path).write_text(json.dumps([1]))
    with pytest.raises(BadInput, match="from other inputs"):
        reuse(path, "kind", INPUTS)
    manifest_path(path).unlink()
    with pytest.raises(BadInput, match="has no manifest"):
        reuse(path, "kind", INPUTS)
