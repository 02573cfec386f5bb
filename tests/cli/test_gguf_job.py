"""The whole job from one quantized GGUF file: no checkpoint, no safetensors model and no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.llamacpp import llamacpp
from trimoe.cli.main import main
from trimoe.llamacpp.tools import LlamaCpp, run_converter
from trimoe.model import tiny

__all__ = ["llamacpp"]

SET = """
name: work
window: 192
classes:
  generic_math: [{kind: tiny, domain: math, count: 12}]
  targeted_code: [{kind: tiny, domain: code, count: 24}]
"""


@pytest.mark.slow
def test_calibrate_map_prune_certify(llamacpp: LlamaCpp, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    full, model, imatrix = (tmp_path / name for name in ("full.gguf", "q8.gguf", "imatrix.gguf"))
    run_converter(llamacpp, tiny.path(), full, "f32")
    text = tmp_path / "text.txt"
    text.write_text("def add(a, b):\n    return a + b\n\n" * 400)
    for command in (
        [llamacpp.program("llama-quantize"), full, model, "Q8_0", "1"],
        [llamacpp.program("llama-imatrix"), "-m", model, "-f", text, "-o", imatrix, "-c", "128", "--chunks", "4"],
    ):
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
    full.unlink()
    work, stats, drop = tmp_path / "work.yaml", tmp_path / "stats.safetensors", tmp_path / "map.json"
    pruned, less = tmp_path / "pruned.gguf", tmp_path / "imatrix-pruned.gguf"
    work.write_text(SET)

    # In a process of its own, to see that nothing loads torch.
    code = "import sys; sys.modules['torch'] = None; from trimoe.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = ["calibrate", str(model), "--set", str(work), "-o", str(stats)]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "0 masked" in done.stdout
    assert main(["map", str(stats), "--keep", "24", "-o", str(drop)]) == 0
    cut = ["--imatrix", str(imatrix), "--imatrix-out", str(less)]
    assert main(["prune", str(model), str(drop), "-o", str(pruned), *cut]) == 0
    capsys.readouterr()
    assert main(["certify", str(model), str(pruned), "--map", str(drop)]) == 0
    assert "ok  logits" in capsys.readouterr().out
    requantized = tmp_path / "requantized.gguf"
    command = ["--imatrix", str(less), "--allow-requantize", str(pruned), str(requantized), "Q4_K_M", "1"]
    subprocess.run([str(llamacpp.program("llama-quantize")), *command], check=True, capture_output=True)
    assert requantized.stat().st_size < pruned.stat().st_size


@pytest.mark.slow
def test_dry_run_and_status(llamacpp: LlamaCpp, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    model, work, stats = tmp_path / "model.gguf", tmp_path / "work.yaml", tmp_path / "stats.safetensors"
    run_converter(llamacpp, tiny.path(), model, "f32")
    work.write_text(SET)
    command = ["calibrate", str(model), "--set", str(work), "-o", str(stats)]
    assert main([*command, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["batches"] > 1
    assert 0 < plan["mapped"] < model.stat().st_size
    assert main([*command, "--status"]) == 0
    assert "no calibration" in capsys.readouterr().out
    assert main([*command, "--ram", "0.01GB"]) == 4
    assert "--ram of at least" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [model, work]
