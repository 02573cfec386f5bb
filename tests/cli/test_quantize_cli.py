"""plan, quantize and kld as a user calls them; what needs no llama.cpp runs without it."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.gguf_models import write_model
from trimoe.cli.main import main
from trimoe.model.tiny import path as bundled
from trimoe.quantize.ladder.spec import load_ladder_spec

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without llama.cpp."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("TRIMOE_LLAMACPP", raising=False)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    """Exit code and the one JSON document on standard output."""
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_one_tier_from_the_shipped_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    code, data = run(capsys, "plan", "gemma-4-26B-A4B", "--keep", "98", "--tier", "Q4_K_M")
    assert code == 0
    assert data["file_bytes"] == pytest.approx(13.24e9, rel=0.005)
    assert (data["keep"], data["experts"], data["exact"], data["fallback_tensors"]) == (98, 128, False, 60)
    assert sum(data["types"].values()) < data["file_bytes"]
    memory = data["memory"]
    assert memory["total"] == memory["weights"] + memory["kv_cache"] + memory["compute_estimate"]


def test_the_table_and_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    code, data = run(capsys, "plan", "gemma-4-26B-A4B", "--table")
    assert code == 0
    sizes = {row["tier"]: row["file_bytes"] for row in data["tiers"]}
    assert {"BF16", "Q2_K", "CD-Q2_K", "IQ2_XXS"} <= set(sizes)
    assert not {"CD-IQ2_K"} & set(sizes)
    assert main(["plan", "gemma-4-26B-A4B", "--keep", "98"]) == 0
    out = capsys.readouterr().out
    assert "98 of 128 experts; vocabulary estimated" in out
    assert "CD-Q4_K_M" in out
    assert "IQ2_XXS" not in out  # opt-in


def test_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--memory", "16GB", "--context", "32k", "--kv", "q8_0", "--parallel", "2")
    code, data = run(capsys, "plan", "gemma-4-26B-A4B", *options)
    assert code == 0
    assert data["fits"]
    assert all(fit["memory"]["total"] <= 16e9 for fit in data["fits"])
    assert any(fit["rival"] for fit in data["fits"] if fit["keep"] < 128)
    assert main(["plan", "gemma-4-26B-A4B", *options]) == 0
    assert "expected better than all 128 experts as" in capsys.readouterr().out
    assert main(["plan", "gemma-4-26B-A4B", "--memory", "2GB"]) == 0
    assert "0 of 135 combinations fit" in (out := capsys.readouterr().out)
    assert "the smallest, 64 experts as IQ2_XS, needs" in out


def test_nvfp4_of_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    """Published: about 13 GB for 98 experts; all of 128 in 16 bits are 51.6 GB."""
    code, data = run(capsys, "plan", "gemma-4-26B-A4B", "--keep", "98", "--tier", "NVFP4A16")
    assert (code, data["keep"], data["experts"], data["exact"]) == (0, 98, 128, False)
    assert 13.0e9 < data["file_bytes"] < 13.8e9
    assert data["memory"]["total"] == data["tensor_bytes"] + data["memory"]["kv_cache"]
    _, table = run(capsys, "plan", "gemma-4-26B-A4B", "--keep", "98")
    assert table["nvfp4"]["file_bytes"] == data["file_bytes"]
    assert main(["plan", "gemma-4-26B-A4B", "--keep", "98", "--tier", "NVFP4A16"]) == 0
    assert f"{data['file_bytes']:,} bytes in 3" in capsys.readouterr().out
    code, exact = run(capsys, "plan", str(bundled()), "--tier", "NVFP4A16", "--layout", "compressed-tensors")
    assert (code, exact["exact"], exact["layout"]) == (0, True, "compressed-tensors")


def test_plans_of_files_and_directories(capsys: pytest.CaptureFixture[str]) -> None:
    code, whole = run(capsys, "plan", str(bundled()), "--tier", "Q8_0")
    assert code == 0
    code, config = run(capsys, "plan", str(bundled() / "config.json"), "--tier", "Q8_0")
    assert code == 0
    assert config["file_bytes"] < whole["file_bytes"]  # no vocabulary counted, and no output matrix known
    write_model(Path("m.gguf"), "gemma4")
    code, error = run(capsys, "plan", "m.gguf", "--tier", "Q4_0")
    assert code == 3
    assert "m.gguf is already quantized (Q4_K, Q6_K, Q8_0)" in error["subject"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("plan", "no-such-model"), 3, "neither a path nor a model known by name"),
        (("plan", "gemma-4-26B-A4B", "--tier", "Q4_K_XXL"), 2, "there is no tier Q4_K_XXL"),
        (("plan", "gemma-4-26B-A4B", "--tier", "CD-IQ2_K"), 5, "names file mixes"),
        (("plan", "gemma-4-26B-A4B", "--tier", "Q6_K", "--table"), 2, "contradict"),
        (("plan", "gemma-4-26B-A4B", "--tier", "Q6_K", "--layout", "modelopt"), 2, "--layout is for NVFP4A16"),
        (("plan", "gemma-4-26B-A4B", "--tier", "NVFP4A16", "--layout", "x"), 2, "there is no NVFP4 layout x"),
        (("plan", "gemma-4-26B-A4B", "--tier", "NVFP4A16", "--memory", "16GB"), 2, "no --memory"),
        (("plan", "gemma-4-26B-A4B", "--tier", "NVFP4A16", "--kv", "q8_0"), 2, "cache type of llama.cpp"),
        (("plan", "gemma-4-26B-A4B", "--tier", "NVFP4A16", "--keep", "129"), 2, "129 experts cannot be kept"),
        (("plan", "no-such-model", "--tier", "NVFP4A16"), 3, "neither a path nor a model known by name"),
        (("plan", "gemma-4-26B-A4B", "--keep", "129"), 3, "--keep 129 is impossible"),
        (("plan", "gemma-4-26B-A4B", "--memory", "lots"), 2, "not a size"),
        (("plan", "gemma-4-26B-A4B", "--context", "32 pages"), 2, "not a number of tokens"),
        (("plan", "gemma-4-26B-A4B", "--kv", "q6_k"), 2, "not a cache type"),
        (("quantize", "m", "-o", "out"), 2, "nothing to make"),
        (("quantize", "m", "-o", "out", "--tiers", "Q6_K"), 4, "llama.cpp is not installed"),
        (("quantize", "m", "-o", "out", "--ladder", "none.yaml"), 3, "none.yaml cannot be read"),
        (("kld", "a.gguf", "b.gguf", "--text", "t"), 4, "llama.cpp is not installed"),
        (("kld", "a.gguf", "--text", "t"), 2, "FILES"),
    ],
)
def test_wrong_calls(arguments: tuple[str, ...], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, error = run(capsys, *arguments)
    assert found == code
    assert text in error["subject"]
    assert not Path("out").exists()


def test_the_bundled_models_example_ladder_is_valid() -> None:
    ladder = load_ladder_spec(ROOT / "examples" / "tiny" / "ladder.yaml")
    assert len(ladder.resolved()) == 6
    assert ladder.smoke is not None
