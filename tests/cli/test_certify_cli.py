"""`certify` and `infer-map` as a user calls them: exit codes, text, one JSON document."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.certify_models import edit_json, flip_byte, write_gemma4
from trimoe.choose.dropmap import DropMap
from trimoe.cli.certify import certify
from trimoe.cli.infer_map import infer_map
from trimoe.cut.prune import prune
from trimoe.model.shards import read_index


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A random model, its prune and the map's file."""
    folder = tmp_path_factory.mktemp("models")
    write_gemma4(folder / "base")
    drop = DropMap({0: (1, 4), 1: (0, 7)}, 8)
    drop.save(folder / "map.json")
    prune(folder / "base", drop, folder / "out")
    return str(folder / "base"), str(folder / "out"), str(folder / "map.json")


def _run(command: object, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, arguments, standalone_mode=False)  # type: ignore[arg-type]
    if result.exception is not None:
        raise result.exception
    return int(result.return_value), result.stdout


def test_proven_is_0(models: tuple[str, str, str]) -> None:
    base, out, drop = models
    code, text = _run(certify, base, out, "--map", drop)
    assert code == 0
    assert "PROVEN" in text
    assert "largest difference" in text
    code, text = _run(certify, base, out, "--json")
    assert code == 0
    data = json.loads(text)
    assert data["status"] == "proven"
    assert data["max_logit_difference"] < 1e-4


def test_unchecked_logits_are_1(models: tuple[str, str, str], tmp_path: Path) -> None:
    base, out, _ = models
    code, text = _run(certify, base, out, "--no-logits", "-o", str(tmp_path / "c.json"))
    assert code == 1
    assert "NOT CERTIFIED" in text
    assert "logits not checked" in text
    assert json.loads((tmp_path / "c.json").read_text())["status"] == "incomplete"


def test_refuted_is_1_and_says_where(models: tuple[str, str, str], tmp_path: Path) -> None:
    base, _, drop = models
    prune(base, DropMap.load(Path(drop)), tmp_path / "out")
    flip_byte(read_index(tmp_path / "out")["model.embed_tokens.weight"], 12)
    code, text = _run(certify, base, str(tmp_path / "out"))
    assert code == 1
    assert "REFUTED" in text
    assert "tensor model.embed_tokens.weight differs from the original at byte 12" in text


def test_infer_map(models: tuple[str, str, str], tmp_path: Path) -> None:
    base, out, drop = models
    code, text = _run(infer_map, base, out, "-o", str(tmp_path / "map.json"))
    assert code == 0
    assert "nothing else was changed" in text
    assert DropMap.load(tmp_path / "map.json").drop == DropMap.load(Path(drop)).drop
    prune(base, DropMap.load(Path(drop)), tmp_path / "out")
    edit_json(tmp_path / "out" / "config.json", lambda c: c.update(rms_norm_eps=0.5))
    code, text = _run(infer_map, base, str(tmp_path / "out"), "-o", str(tmp_path / "two.json"), "--json")
    assert code == 1
    data = json.loads(text)
    assert data["map"] == str(tmp_path / "two.json")
    assert "rms_norm_eps" in data["changes"][0]["subject"]


def test_infer_map_without_a_map_writes_nothing(models: tuple[str, str, str], tmp_path: Path) -> None:
    _, out, _ = models
    other = write_gemma4(tmp_path / "other", seed=3)
    code, text = _run(infer_map, str(other), out, "-o", str(tmp_path / "map.json"))
    assert code == 1
    assert "no map" in text
    assert not (tmp_path / "map.json").exists()
