"""The table of llama.cpp's architectures: a sample is examined again, and the page's numbers hold."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.gguf_architectures import Builder, CannotBuild, settings_of
from helpers.gguf_coverage import architectures, examine
from helpers.llamacpp import llamacpp
from trimoe.llamacpp.tools import LlamaCpp

__all__ = ["llamacpp"]

TABLE = Path(__file__).parents[2] / "docs" / "reference" / "gguf-architectures.json"
SAMPLE = ("qwen3moe", "gemma4", "gpt-oss", "llama4", "qwen3next", "nemotron_h_moe", "grovemoe", "deci")


def rows() -> dict[str, dict[str, Any]]:
    return {row["architecture"]: row for row in json.loads(TABLE.read_text())["rows"]}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", SAMPLE)
def test_a_sample_is_as_the_table_says(llamacpp: LlamaCpp, architecture: str) -> None:
    recorded = rows()[architecture]
    found = examine(architecture, llamacpp)
    assert {k: v for k, v in found.items() if k != "without_mask"} == {
        k: v for k, v in recorded.items() if k != "without_mask"
    }
    if found["status"] == "proven":
        assert found["without_mask"] > 1000 * max(found["max_difference"], 1e-7)


def test_the_table_is_complete(llamacpp: LlamaCpp) -> None:
    table = json.loads(TABLE.read_text())
    assert [row["architecture"] for row in table["rows"]] == architectures(llamacpp)
    if llamacpp.info is not None:
        assert table["llama.cpp"] == llamacpp.info["release"]["commit"]


def test_every_row_is_proven_or_says_why_not() -> None:
    for row in rows().values():
        assert (row["status"] == "proven") != bool(row.get("reason")), row
    assert sum(row["status"] == "proven" for row in rows().values()) >= 40


def test_a_model_that_cannot_load_is_not_called_built(llamacpp: LlamaCpp, tmp_path: Path) -> None:
    settings = settings_of("qwen3moe") | {"expert_used_count": 9}  # of 8
    with pytest.raises(CannotBuild):
        Builder("qwen3moe", llamacpp, settings).build(tmp_path / "model.gguf")
