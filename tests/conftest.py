"""Shared fixtures. Reference data lies beside the checkout and is not part of the project."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.families import Made, write

pytest_plugins = ["helpers.pruned_gemma"]

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data folder; tests that need it are skipped where a checkout stands alone."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("the reference data is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def family_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Made], Path]:
    """The random checkpoint of a family, made when it is first asked for; not to be changed."""
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("families")

    def checkpoint(made: Made) -> Path:
        path = folder / made.name
        return path if path.exists() else write(made, path)

    return checkpoint
