"""Rows of the benchmarks beside the checkout."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from helpers.code_rows import Rows


@pytest.fixture(scope="session")
def rows(shared: Path) -> Rows:
    """Rows of a file below the benchmarks: JSON lines, or one JSON list."""

    def read(name: str) -> list[dict[str, Any]]:
        with gzip.open(shared / "benchmarks" / name, "rt") as handle:
            text = handle.read()
        return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.split("\n") if line]

    return read
