"""Shared fixtures: reference data beside the checkout, and random checkpoints of every family."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.families import MADE, Made, write

pytest_plugins = ["helpers.pruned_gemma"]

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data folder; tests that need it are skipped where it is not beside the checkout."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("the reference data is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def family_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Made], Path]:
    """Returns the random checkpoint of a family, written on first use. Tests must not change it."""
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("families")

    def checkpoint(made: Made) -> Path:
        path = folder / made.name
        return path if path.exists() else write(made, path)

    return checkpoint


@pytest.fixture(scope="session")
def wide_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-MoE whose rows are long enough for groups of 32. Tests must not change it."""
    made = next(made for made in MADE if made.name == "qwen3_moe")
    wide = {"hidden_size": 64, "moe_intermediate_size": 32, "intermediate_size": 64, "head_dim": 32}
    return write(replace(made, settings={**made.settings, **wide}), tmp_path_factory.mktemp("wide") / "qwen")
