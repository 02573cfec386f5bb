"""llama.cpp for the tests that run it. `make test` builds it once, into a cache outside of the checkout."""

from pathlib import Path

import pytest

from trimoe.errors import MissingPrerequisite
from trimoe.llamacpp.tools import LlamaCpp, locate, run_converter
from trimoe.model.tiny import path as bundled


@pytest.fixture(scope="session")
def llamacpp() -> LlamaCpp:
    """The programs in the cache (or $TRIMOE_LLAMACPP); tests are skipped where nobody has built them."""
    try:
        tools = locate()
        tools.program("trimoe-masked-logits")
    except MissingPrerequisite as exc:
        pytest.skip(f"{exc.subject}: run `make llamacpp`")
    return tools


@pytest.fixture(scope="session")
def base(llamacpp: LlamaCpp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model in BF16, from llama.cpp's converter."""
    path = tmp_path_factory.mktemp("base") / "tiny-BF16.gguf"
    run_converter(llamacpp, bundled(), path)
    return path
