"""Damaged headers, indexes, configs and maps: a result or one of our errors, in bounded time and memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited by way of Linux's /proc")
@pytest.mark.parametrize("count", [600, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_damaged_inputs(count: int) -> None:
    command = [sys.executable, str(Path(__file__).parents[1] / "helpers" / "fuzz.py"), str(count), str(count)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(result.stdout)
    assert report["inputs"] == count == sum(report["results"].values())
    assert report["peak_rss_mib"] < 500
    for kind in ("header", "index", "config", "map", "record", "pruned"):
        used = report["results"].get(f"{kind}: used", 0)
        refused = sum(n for name, n in report["results"].items() if name.startswith(kind)) - used
        assert refused > 0, f"no damaged {kind} was refused: nothing was tested"
        assert used > 0 or kind in ("index", "record"), (
            f"every damaged {kind} was refused: the inside was never reached"
        )
