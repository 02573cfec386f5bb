"""The installed llama.cpp, for tests that run its programs."""

import pytest

from trimoe.errors import MissingPrerequisite
from trimoe.llamacpp.tools import LlamaCpp, locate


@pytest.fixture(scope="session")
def llamacpp() -> LlamaCpp:
    """The programs in the cache or in $TRIMOE_LLAMACPP. Skips the test if they are not built (`make llamacpp`)."""
    try:
        tools = locate()
        tools.program("trimoe-masked-logits")
    except MissingPrerequisite as exc:
        pytest.skip(f"{exc.subject}: run `make llamacpp`")
    return tools
