"""`trimoe serve`: the printed command, refusals, and a real server that ends with the command."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trimoe.cli.main import main
from trimoe.errors import MissingPrerequisite
from trimoe.llamacpp.tools import locate, run_converter
from trimoe.model.tiny import path as bundled
from trimoe.serve.process import fetch, listener


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_print_shows_the_command_and_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    code, data = printed(
        capsys, "serve", str(bundled()), "--engine", "vllm", "--bench", "gsm8k-100", "--port", "8000", "--print"
    )
    assert code == 0
    assert data["command"][-1] == "fp8"
    assert data["url"] == "http://127.0.0.1:8000/v1"
    assert data["body"]["thinking_token_budget"] == 12288
    assert listener(8000) is None


def test_the_printed_text_says_what_requests_must_carry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(bundled()), "--engine", "vllm", "--bench", "gsm8k-100", "--print"]) == 0
    text = capsys.readouterr().out
    assert (
        '# every request must carry {"skip_special_tokens": false, "chat_template_kwargs": {"enable_thinking": true}'
        in text
    )
    assert text.splitlines()[-1].startswith(("vllm serve", "/"))


def test_an_address_is_not_started(capsys: pytest.CaptureFixture[str]) -> None:
    code, data = printed(capsys, "serve", "http://127.0.0.1:1")
    assert (code, data["error"]) == (2, "UsageError")


def test_an_engine_that_cannot_run_here_is_a_missing_prerequisite(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    code, data = printed(capsys, "serve", str(bundled()), "--engine", "vllm")
    assert (code, data["error"]) == (4, "MissingPrerequisite")


def test_doctor_lists_every_engine(capsys: pytest.CaptureFixture[str]) -> None:
    code, data = printed(capsys, "doctor")
    assert code == 0
    assert set(data["engines"]) == {"llamacpp", "ollama", "transformers", "vllm"}


def test_lm_eval_tasks_need_a_server(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, data = printed(capsys, "eval", str(bundled()), "--lm-eval", "x", "--log", str(tmp_path / "l.db"))
    assert code in (2, 4)  # 4 where lm-eval is not installed
    code, data = printed(capsys, "eval", str(bundled()), "--lm-eval", "x", "--bench", "tiny-math", "--log", "l.db")
    assert (code, data["subject"]) == (2, "--lm-eval does not fit the other options")


def test_a_real_server_answers_and_ends_with_the_command(tmp_path: Path) -> None:
    try:
        tools = locate()
        tools.program("llama-server")
    except MissingPrerequisite as exc:
        pytest.skip(f"{exc.subject}: run `make llamacpp`")
    model = tmp_path / "tiny.gguf"
    run_converter(tools, bundled(), model, "f32")
    command = [sys.executable, "-m", "trimoe", "serve", str(model), "--bench", "tiny-math", "--json"]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    text = ""
    while not text.endswith("\n}\n"):
        line = process.stdout.readline()
        assert line, text
        text += line
    data = json.loads(text)
    port = data["operational"]["port"]
    try:
        assert fetch(f"{data['url']}/models", timeout=30)["data"][0]["id"] == "tiny"
        server = listener(port)
        assert server is not None
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
    assert code == 6
    assert listener(port) is None
    assert not Path(f"/proc/{server}").exists()
