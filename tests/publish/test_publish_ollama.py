"""Modelfiles and pushes to ollama. The program is a stand-in that records its calls and injects faults: ollama itself
is in no package registry that the tests may use."""

import json
import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from trimoe.cli.main import main
from trimoe.io.jsonfile import write_json
from trimoe.model import tiny

STAND_IN = """#!/bin/sh
echo "$@" >> "{log}"
case "$1" in
  create) test -f "$4" && grep -q "^FROM ./" "$4" || exit 1; echo success ;;
  push) case "$2" in *:{bad}) echo "uploading"; exit {code};; esac
    printf 'pushing manifest\\nsuccess\\n\\nsee\\n\\thttps://ollama.com/%s\\n' "${{2%%:*}}" ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "files"
    path.mkdir()
    for tier, rows in (("Q8_0", 96), ("Q4_K_M", 64), ("Q2_K", 32)):
        writer = gguf.GGUFWriter(path / f"small-it-{tier}.gguf", "gemma4")
        writer.add_context_length(4096)
        writer.add_chat_template((tiny.path() / "chat_template.jinja").read_text())
        writer.add_add_bos_token(tier != "Q2_K")
        writer.add_tensor("token_embd.weight", np.zeros((rows, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str = "none", code: int = 0) -> Path:
    program, log = tmp_path / "bin" / "ollama", tmp_path / "calls.txt"
    program.parent.mkdir(exist_ok=True)
    program.write_text(STAND_IN.format(log=log, bad=bad, code=code))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return log


def test_modelfiles_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(folder), "--to", "ollama", "--dry-run", "--json"]) == 0
    tags = [row["tag"] for row in json.loads(capsys.readouterr().out)["tags"]]
    assert tags == ["Q2_K", "Q4_K_M", "Q8_0", "latest"]
    assert not list(folder.glob("Modelfile*"))
    assert main(["publish", str(folder), "--to", "ollama"]) == 0
    assert {f.name for f in folder.glob("Modelfile*")} == {"Modelfile.Q2_K", "Modelfile.Q4_K_M", "Modelfile.Q8_0"}
    text = (folder / "Modelfile.Q4_K_M").read_text()
    assert "FROM ./small-it-Q4_K_M.gguf" in text
    assert "<bos>" not in text
    assert 'TEMPLATE """<bos>' in (folder / "Modelfile.Q2_K").read_text()  # its header says that none is added
    assert main(["publish", str(folder), "--to", "ollama"]) == 0
    (folder / "Modelfile.Q4_K_M").write_text(text + "PARAMETER seed 1\n")
    assert main(["publish", str(folder), "--to", "ollama"]) == 3
    assert (folder / "Modelfile.Q4_K_M").read_text().endswith("seed 1\n")


def test_pushes_in_order_and_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = stand_in(tmp_path, monkeypatch)
    words = ["publish", str(folder), "--to", "ollama", "--repo", "me/small"]
    assert main(words) == 0
    expected = []
    for tag, file in (("Q2_K", "Q2_K"), ("Q4_K_M", "Q4_K_M"), ("Q8_0", "Q8_0"), ("latest", "Q4_K_M")):
        expected += [f"create me/small:{tag} -f Modelfile.{file}", f"push me/small:{tag}", f"rm me/small:{tag}"]
    assert log.read_text().splitlines() == expected
    assert main(words) == 0
    assert log.read_text().splitlines() == expected


@pytest.mark.parametrize(("code", "exit_code"), [(0, 5), (1, 4)])
def test_a_push_that_is_not_confirmed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, exit_code: int
) -> None:
    log = stand_in(tmp_path, monkeypatch, bad="Q4_K_M", code=code)
    words = ["publish", str(folder), "--to", "ollama", "--repo", "me/small"]
    assert main(words) == exit_code
    assert log.read_text().splitlines()[-1] == "push me/small:Q4_K_M"  # not removed, and nothing after it
    stand_in(tmp_path, monkeypatch)
    log.unlink()
    assert main(words) == 0
    assert "create me/small:Q2_K" not in log.read_text()
    assert log.read_text().startswith("create me/small:Q4_K_M")


def test_what_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["publish", str(folder), "--to", "ollama"]
    assert main([*words, "--repo", "me/small"]) == 4
    assert not list(folder.glob("Modelfile*"))
    assert main([*words, "--force"]) == 2
    assert main([*words, "--repo", "no-name"]) == 2
    write_json(folder / "ladder.json", {"files": [{"file": "small-it-Q2_K.gguf", "smoke": {"failed": "loops"}}]})
    assert main(words) == 5
