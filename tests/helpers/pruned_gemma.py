"""One random model and its prune for all certificate tests; each test damages a copy."""

import shutil
from pathlib import Path

import pytest

from helpers.certify_models import write_gemma4
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune

CERTIFY_MAP = DropMap({0: (1, 4), 1: (0, 7)}, 8)


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma 4 in float32, one file."""
    return write_gemma4(tmp_path_factory.mktemp("gemma") / "base")


@pytest.fixture(scope="session")
def drop_map() -> DropMap:
    """Drops two experts of eight in each of the two layers."""
    return CERTIFY_MAP


@pytest.fixture(scope="session")
def cut(gemma: Path, drop_map: DropMap, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`gemma` pruned by `drop_map`; not to be changed."""
    out = tmp_path_factory.mktemp("cut") / "pruned"
    prune(gemma, drop_map, out)
    return out


@pytest.fixture
def pruned(cut: Path, tmp_path: Path) -> Path:
    """A copy of the pruned model that a test may damage."""
    return Path(shutil.copytree(cut, tmp_path / "pruned"))
