"""`trimoe calibrate` in forked children that kill themselves with SIGKILL at random calls; prints what happened.

Usage: kill_driver.py KILLS SEED MODEL SET OUT. The libraries are imported once and inherited, so that a child is in its
first layer within a fraction of a second; the driver itself computes nothing, so there are no threads to lose.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

import torch
import transformers.models.gemma4.modeling_gemma4  # noqa: F401 inherited by the children

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.signals import count_calls, signal_at
from trimoe.calibrate import engine  # noqa: F401
from trimoe.calibrate.state import read_marks, state_path
from trimoe.cli.main import main


def run_child(arguments: list[str], kill_at: int = 0, after_layer: bool = False) -> tuple[int, int]:
    """Run the command in a child that kills itself at call `kill_at`, counted from the start or after its first layer.

    Returns the wait status and the calls of a child that was left alone.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        torch.set_num_threads(1)
        if after_layer:
            signal_at(1, function="trimoe.calibrate.state:RunState.commit", later=kill_at)
        elif kill_at:
            signal_at(kill_at)
        calls = (lambda: 0) if kill_at else count_calls()
        code = main(arguments)
        os.write(writer, str(calls()).encode())
        os._exit(code)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as counted:
        return status, int(counted.read() or 0)


def run(kills: int, seed: int, model: str, chosen: str, out: Path) -> dict[str, object]:
    """Kill the command `kills` times at random calls, starting it again each time, then let it end."""
    rng = random.Random(seed)
    arguments = ["calibrate", model, "--set", chosen, "-o", str(out)]
    whole = out.with_name("whole")
    status, calls = run_child([*arguments[:-1], str(whole)])
    assert status == 0
    done, finished, at_layer, partial = 0, 0, [], 0
    while done < kills:
        after_layer = rng.random() < 0.5
        status, _ = run_child(arguments, rng.randrange(1, calls // 10 if after_layer else calls), after_layer)
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
    assert run_child(arguments)[0] == 0
    assert out.read_bytes() == whole.read_bytes(), "other bytes at the end"
    assert not state_path(out).exists()
    return {
        "kills": done,
        "runs_finished": finished + 1,
        "layers_kept_at_each_kill": at_layer,
        "partial_files_seen": partial,
        "calls": calls,
    }


if __name__ == "__main__":
    seen = run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], Path(sys.argv[5]))
    sys.stdout.write(json.dumps(seen) + "\n")
