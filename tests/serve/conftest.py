"""The bundled model as a GGUF file in fp32, and llama-server; tests are skipped where nobody has built it."""

from pathlib import Path

import pytest

from trimoe.errors import MissingPrerequisite
from trimoe.llamacpp.tools import locate, run_converter
from trimoe.model.tiny import path as bundled


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by llama.cpp's own converter."""
    try:
        tools = locate()
        tools.program("llama-server")
    except MissingPrerequisite as exc:
        pytest.skip(f"{exc.subject}: run `make llamacpp`")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    run_converter(tools, bundled(), path, "f32")
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs of servers go to the test's folder; llama.cpp is still found where it was built."""
    from trimoe.serve import start

    monkeypatch.setattr(start, "log_folder", lambda: tmp_path / "serve")
