"""A certificate is verified before a folder is published: refuted, incomplete, stale, missing, of another base."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from helpers.gguf_models import EXPERTS, write_model
from trimoe.certify.certificate import Certificate, ModelIdentity
from trimoe.certify.certify import certify
from trimoe.choose.dropmap import DropMap
from trimoe.cli.main import main
from trimoe.cut.prune import prune
from trimoe.errors import Refused
from trimoe.io.jsonfile import write_json
from trimoe.publish import hub
from trimoe.publish.card import write_card
from trimoe.publish.certified import certification
from trimoe.publish.publish import publish

MAP = DropMap({0: (1, 4), 1: (0, 7), 2: (2, 3)}, EXPERTS)


def proven(place: Path) -> None:
    """Give a certificate without its logit check the verdict that it would have with it."""
    content = json.loads(place.read_text())
    content["status"] = "proven"
    content["checks"] = [check for check in content["checks"] if check["status"] != "not_run"]
    write_json(place, content, overwrite=True)


@pytest.fixture
def certified(gemma: Path, drop_map: DropMap, tmp_path: Path) -> Path:
    prune(gemma, drop_map, tmp_path / "small")
    certify(gemma, tmp_path / "small", logits=False)
    proven(tmp_path / "small" / "certificate.json")
    return tmp_path / "small"


@pytest.fixture
def certified_gguf(tmp_path: Path) -> Path:
    folder = tmp_path / "ggufs"
    folder.mkdir()
    base = write_model(tmp_path / "base.gguf")
    prune(base, MAP, folder / "small.gguf")
    certify(base, folder / "small.gguf", logits=False)
    proven(folder / "small.gguf.certificate.json")
    return folder


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def _refuted(folder: Path) -> None:
    place = folder / "certificate.json"
    content = json.loads(place.read_text())
    content["status"], content["checks"][0]["status"] = "refuted", "failed"
    write_json(place, content, overwrite=True)


def _incomplete(folder: Path) -> None:
    place = folder / "certificate.json"
    content = json.loads(place.read_text())
    content["status"], content["checks"][0]["status"] = "incomplete", "not_run"
    write_json(place, content, overwrite=True)


def _other_base(folder: Path) -> None:
    place = folder / "certificate.json"
    content = json.loads(place.read_text())
    content["base"]["fingerprint"] = "0" * 64
    write_json(place, content, overwrite=True)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (lambda f: flip(f / "model.safetensors"), "model.safetensors is not the file that was checked"),
    "config": (lambda f: (f / "config.json").write_text((f / "config.json").read_text() + " "), "config.json is not"),
    "code": (lambda f: (f / "modeling.py").write_text("pass"), "modeling.py is not covered"),
    "second weights": (lambda f: shutil.copy(f / "model.safetensors", f / "x.bin"), "x.bin is not covered"),
    "no certificate": (lambda f: (f / "certificate.json").unlink(), "has no certificate"),
    "no JSON": (lambda f: (f / "certificate.json").write_text("{"), "is unusable"),
    "refuted": (_refuted, "refuted (readable)"),
    "incomplete": (_incomplete, "incomplete (readable not run)"),
    "another base": (_other_base, "another original"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_not_certified_is_not_published(certified: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert certification(certified).proven
    change, words = CHANGES[name]
    change(certified)
    found = certification(certified)
    assert not found.proven
    assert words in "; ".join(found.problems)
    monkeypatch.setattr(hub, "_remote", lambda repo, required: ("", None))  # as if the hub were not reached
    with pytest.raises(Refused, match="is not certified") as caught:
        publish(certified, "hub", repo="me/small", dry_run=True)
    assert words in caught.value.actual
    with pytest.raises(Refused, match="is not certified"):
        write_card(certified, logs=[], base="b", names=["n"], base_model="a/b", repo="me/small", licence="mit")
    publish(certified, "hub", repo="me/small", dry_run=True, allow_uncertified=True)


def test_a_certified_folder_is_published(certified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_remote", lambda repo, required: ("", None))
    (certified / "README.md").write_text("a card")
    (certified / "README.numbers.json").write_text("{}")
    publish(certified, "hub", repo="me/small", dry_run=True)


def test_gguf_files_need_one_each(certified_gguf: Path, tmp_path: Path) -> None:
    assert certification(certified_gguf).proven
    flip(certified_gguf / "small.gguf")
    assert "small.gguf is not the file that was checked" in certification(certified_gguf).problems[0]
    flip(certified_gguf / "small.gguf")
    prune(tmp_path / "base.gguf", MAP, certified_gguf / "other.gguf")
    assert certification(certified_gguf).problems == ("other.gguf has no certificate",)
    with pytest.raises(Refused, match="is not certified"):
        publish(certified_gguf, "ollama", dry_run=True)


def test_other_models_need_none_and_must_not_have_a_wrong_one(tmp_path: Path, certified: Path) -> None:
    (tmp_path / "ladder").mkdir()
    (tmp_path / "ladder" / "small-Q8_0.gguf").write_bytes(b"x")
    found = certification(tmp_path / "ladder")
    assert (found.proven, found.problems) == (False, ())
    shutil.copy(certified / "certificate.json", tmp_path / "ladder" / "certificate.json")
    assert "is not the file that was checked" in certification(tmp_path / "ladder").problems[0]


def test_check_verifies_a_certificate_alone(certified: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify", "--check", str(certified)]) == 0
    assert "VALID: proven, and all" in capsys.readouterr().out
    flip(certified / "model.safetensors")
    assert main(["certify", "--check", str(certified), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["valid"], found["status"]) == (False, "proven")
    assert [finding["subject"] for finding in found["stale"]] == ["model.safetensors is not the file that was checked"]
    flip(certified / "model.safetensors")
    _incomplete(certified)
    assert main(["certify", "--check", str(certified)]) == 1
    assert "NOT PROVEN" in capsys.readouterr().out
    (certified / "certificate.json").unlink()
    assert main(["certify", "--check", str(certified)]) == 3
    assert main(["certify", "--check", str(certified), "more"]) == 2
    assert main(["certify", str(certified)]) == 2


def test_a_certificate_of_no_files_is_stale(certified_gguf: Path) -> None:
    made = Certificate.load(certified_gguf / "small.gguf.certificate.json")
    assert made.stale(certified_gguf / "small.gguf") == []
    empty = msgspec.structs.replace(made, pruned=ModelIdentity(fingerprint=None, num_experts=6))
    assert [finding.subject for finding in empty.stale(certified_gguf / "small.gguf")] == [
        "the certificate names no files"
    ]
