"""Runs `trimoe calibrate` in forked children and kills them with SIGKILL at random moments; prints what happened.

Usage: kill_driver.py KILLS SEED MODEL SET OUT. The libraries are imported once and inherited, so that a child is in its
first layer within a fraction of a second; the driver itself computes nothing, so there are no threads to lose.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import transformers.models.gemma4.modeling_gemma4  # noqa: F401 inherited by the children

from trimoe.calibrate import engine  # noqa: F401
from trimoe.calibrate.state import read_marks, state_path
from trimoe.cli.main import main


def start(arguments: list[str]) -> int:
    """A child that runs the command; returns its process id."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        torch.set_num_threads(1)
        os._exit(main(arguments))
    return child


def ended(child: int) -> int | None:
    """Wait status if the child is over."""
    pid, status = os.waitpid(child, os.WNOHANG)
    return status if pid else None


def run(kills: int, seed: int, model: str, chosen: str, out: Path) -> dict[str, object]:
    """Kill the command `kills` times at random moments, starting it again each time, then let it end."""
    rng = random.Random(seed)
    arguments = ["calibrate", model, "--set", chosen, "-o", str(out)]
    whole = out.with_name("whole")
    begin = time.monotonic()
    assert os.waitpid(start([*arguments[:-1], str(whole)]), 0)[1] == 0
    undisturbed = time.monotonic() - begin
    done, finished, at_layer, partial = 0, 0, [], 0
    while done < kills:
        child = start(arguments)
        until = time.monotonic() + rng.uniform(0, undisturbed)
        while (status := ended(child)) is None and time.monotonic() < until:
            time.sleep(0.002)
        if status is None:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            done += 1
            at_layer.append(len(read_marks(state_path(out))))
            partial += out.with_name(f".{out.name}.partial").exists()
            continue
        assert os.WIFEXITED(status)
        assert os.WEXITSTATUS(status) == 0, f"exit code {os.WEXITSTATUS(status)} after {done} kills"
        assert out.read_bytes() == whole.read_bytes(), f"other bytes after {done} kills"
        finished += 1
        out.unlink()
    assert os.waitpid(start(arguments), 0)[1] == 0
    assert out.read_bytes() == whole.read_bytes(), "other bytes at the end"
    assert not state_path(out).exists()
    return {
        "kills": done,
        "runs_finished": finished + 1,
        "layers_kept_at_each_kill": at_layer,
        "partial_files_seen": partial,
        "undisturbed_seconds": round(undisturbed, 2),
    }


if __name__ == "__main__":
    seen = run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], Path(sys.argv[5]))
    sys.stdout.write(json.dumps(seen) + "\n")
