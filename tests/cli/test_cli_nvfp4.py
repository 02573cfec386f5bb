"""`trimoe quantize --tiers NVFP4A16` as a user runs it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from helpers import signals
from trimoe.cli.main import cli
from trimoe.model.tiny import path as bundled


def test_one_document_and_a_table(tmp_path: Path) -> None:
    """JSON with sizes and errors; as text the table; kept the second time; usage errors where they belong."""
    command = ["quantize", str(bundled()), "--tiers", "NVFP4A16", "-o", str(tmp_path / "out")]
    first = CliRunner().invoke(cli, [*command, "--json"])
    assert first.exit_code == 0, first.output
    data = json.loads(first.stdout)
    assert data["file_bytes"] == (tmp_path / "out/model.safetensors").stat().st_size
    assert len(data["relative_error_by_matrix"]) == data["matrices"] == 411
    again = CliRunner().invoke(cli, command)
    assert "(reused)" in again.output
    assert "experts.down_proj" in again.output
    assert (tmp_path / "out/hf_quant_config.json").is_file()


def test_a_killed_command_resumes(tmp_path: Path) -> None:
    """SIGKILL among the matrices, then the same command: the bytes of an undisturbed run."""
    arguments = ["quantize", bundled(), "--tiers", "NVFP4A16", "--max-shard", "300kB", "-o"]
    command = signals.command(
        signal.SIGKILL, 5, "trimoe.quantize.nvfp4.errors:ErrorSums.add", [*arguments, tmp_path / "out"]
    )
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / ".out.partial" / ".resume" / "errors").read_text().strip()
    for name in ("out", "straight"):
        again = [sys.executable, "-m", "trimoe", *arguments, tmp_path / name]
        subprocess.run(again, check=True, stdout=subprocess.DEVNULL)
    files = sorted(file.name for file in (tmp_path / "straight").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "out").iterdir())
    assert all((tmp_path / "out" / f).read_bytes() == (tmp_path / "straight" / f).read_bytes() for f in files)


def test_wrong_options_are_usage_errors(tmp_path: Path) -> None:
    """An unknown layout, and NVFP4's options with another tier."""
    base = ["quantize", str(bundled()), "-o", str(tmp_path / "out"), "--tiers"]
    assert CliRunner().invoke(cli, [*base, "NVFP4A16", "--layout", "nothing"]).exit_code != 0
    found = CliRunner().invoke(cli, [*base, "Q4_K_M", "--layout", "modelopt"])
    assert found.exit_code != 0
    assert not (tmp_path / "out").exists()
