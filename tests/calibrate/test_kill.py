"""Twenty SIGKILLs at random calls of real processes; the final file equals that of an undisturbed run."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_leave_no_trace(make_model: Callable[..., Path], long_set: Path, tmp_path: Path) -> None:
    kinds = ["sliding_attention"] * 9 + ["full_attention"]
    model = make_model(num_hidden_layers=10, layer_types=kinds, hidden_size=128, moe_intermediate_size=64)
    driver = Path(__file__).parents[1] / "helpers" / "kill_driver.py"
    done = subprocess.run(
        [sys.executable, str(driver), "20", "7", str(model), str(long_set), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    assert seen["kills"] == 20
    assert len(set(seen["layers_kept_at_each_kill"])) >= 4, "the kills must meet the run at different layers"
