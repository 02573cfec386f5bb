"""llama.cpp for the tests that run it. `make test` builds it once, into a cache outside of the checkout."""

import pytest

from trimoe.errors import MissingPrerequisite
from trimoe.quantize.llamacpp import LlamaCpp, locate


@pytest.fixture(scope="session")
def llamacpp() -> LlamaCpp:
    """The programs in the cache (or $TRIMOE_LLAMACPP); tests are skipped where nobody has built them."""
    try:
        tools = locate()
        tools.program("trimoe-masked-logits")
    except MissingPrerequisite as exc:
        pytest.skip(f"{exc.subject}: run `make llamacpp`")
    return tools
