"""Shared fixtures. Reference data lies beside the checkout and is not part of the project."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data folder; tests that need it are skipped where a checkout stands alone."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("the reference data is not beside this checkout")
    return path
