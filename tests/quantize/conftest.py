"""Fixtures of the tests that run llama.cpp."""

from pathlib import Path

import pytest

from helpers.llamacpp import llamacpp
from trimoe.llamacpp.tools import LlamaCpp, run_converter
from trimoe.model.tiny import path as bundled

__all__ = ["base", "llamacpp"]


@pytest.fixture(scope="session")
def base(llamacpp: LlamaCpp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model in BF16, from llama.cpp's converter."""
    path = tmp_path_factory.mktemp("base") / "tiny-BF16.gguf"
    run_converter(llamacpp, bundled(), path)
    return path
