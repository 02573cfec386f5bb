"""Memory and processor time of the logit certificate: layer by layer against whole models in memory.

    python perf/certify.py DIR [--layers 2,12] [--experts 128] [--keep 98] [--vocabulary 512] [--tokens 256] [--json]

Random checkpoints with the layer shapes of gemma-4-26B-A4B (1.7 GB per layer at 128 experts) are written to
DIR/trimoe-bench-certify, pruned, and removed at the end. Both ways run in the same call, each in its own process:
`peak` is its maximum resident set, mapped files included, and `cpu` its user and system time, imports included. A way
that needs more memory than is free is not run, and its predicted need is shown. Then the need of 30 layers with the
real vocabulary is predicted, and printed beside the prediction for what was measured.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.model.checkpoint import open_checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parent))
import calibrate as shapes

REAL_LAYERS, REAL_VOCABULARY = 30, 262144
AT_LEAST_LESS_MEMORY, AT_MOST_CPU = 5.0, 1.3
GAIN = 0.1
"""Of the norms after each block. With 1, rounding grows by 1.6 per random layer, until a token changes its experts."""
DEEP = 12
"""Layers from which the ratio of memory is a target: that of two layers says little."""


def make_pair(folder: Path, layers: int, options: argparse.Namespace) -> None:
    """Write `folder`/base and `folder`/pruned."""
    shapes.EXPERTS, shapes.VOCABULARY = options.experts, options.vocabulary
    shapes.make_checkpoint(folder / "base", layers, GAIN)
    rng = np.random.default_rng(0)
    dropped = options.experts - options.keep
    drop = {i: tuple(sorted(rng.choice(options.experts, dropped, replace=False).tolist())) for i in range(layers)}
    prune(folder / "base", DropMap(drop, options.experts), folder / "pruned")


def one_way(folder: Path, tokens: int, whole: bool) -> dict[str, Any]:
    """Run the logit check in this process; returns peak bytes, processor seconds and what was found."""
    from trimoe.certify import logits
    from trimoe.certify.logit_proof import LogitSettings
    from trimoe.cut.history import map_from, read_record

    base, pruned = open_checkpoint(folder / "base"), open_checkpoint(folder / "pruned")
    drop = map_from(read_record(folder / "pruned"), base.num_experts)
    assert drop is not None
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, shapes.VOCABULARY, tokens // 2).tolist() for _ in range(2)]
    logits._tokenize = lambda *_: prompts  # random weights come without a tokenizer
    started = time.monotonic()
    proof = logits.check_logits(base, folder / "pruned", pruned.index, drop, LogitSettings(prompts=[]), whole=whole)
    use = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "status": [check.status for check in proof.checks],
        "detail": proof.checks[1].detail,
        "method": proof.method,
        "max_difference": proof.max_difference,
        "peak": use.ru_maxrss * 1024,
        "cpu": use.ru_utime + use.ru_stime,
        "wall": time.monotonic() - started,
    }


def in_process(folder: Path, options: argparse.Namespace, way: str) -> dict[str, Any]:
    """Run one way in a process of its own."""
    call = [sys.executable, __file__, str(folder), "--way", way, "--tokens", str(options.tokens)]
    call += ["--vocabulary", str(options.vocabulary)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def predicted(layers: int, options: argparse.Namespace, vocabulary: int) -> dict[str, int]:
    """Bytes of weights that each way needs, from shapes alone."""
    hidden, width = shapes.HIDDEN, shapes.WIDTH
    stacks = options.experts * 3 * hidden * width
    # Attention of the wider kind (full), the dense block, and the router; norms are negligible.
    rest = hidden * (16 * 512 * 2 + 2 * 512) + 3 * hidden * shapes.DENSE + options.experts * hidden
    head = vocabulary * hidden
    largest_stored = options.experts * 2 * hidden * width * 2
    return {
        "streamed": max((stacks + rest) * 4 + largest_stored, head * 6),
        "whole": (layers * (stacks + rest) + head) * 4,
    }


def main() -> None:
    """Make the checkpoints, run both ways, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", default="2,12")
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--keep", type=int, default=98)
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=("streamed", "whole"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    shapes.VOCABULARY = options.vocabulary
    if options.way:
        print(json.dumps(one_way(options.folder, options.tokens, options.way == "whole")))
        return
    folder, rows, missed = options.folder / "trimoe-bench-certify", [], 0
    for layers in map(int, options.layers.split(",")):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            make_pair(folder, layers, options)
            ways = {way: in_process(folder, options, way) for way in ("streamed", "whole")}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        row = {"layers": layers, **ways, "predicted": predicted(layers, options, options.vocabulary)}
        ran = ways["whole"]["max_difference"] is not None
        row["less_memory"] = (ways["whole"]["peak"] if ran else row["predicted"]["whole"]) / ways["streamed"]["peak"]
        row["cpu"] = ways["streamed"]["cpu"] / ways["whole"]["cpu"] if ran else None
        missed += (layers >= DEEP and row["less_memory"] < AT_LEAST_LESS_MEMORY) or (row["cpu"] or 0) > AT_MOST_CPU
        rows.append(row)
        if not options.json:
            _print(row, ran)
    real = predicted(REAL_LAYERS, argparse.Namespace(experts=128), REAL_VOCABULARY)
    if options.json:
        print(json.dumps({"rows": rows, "predicted_26b": real}))
    else:
        print(
            f"predicted weights, {REAL_LAYERS} layers and the real vocabulary: {_gb(real['streamed'])} layer by layer,"
            f" {_gb(real['whole'])} whole"
        )
    sys.exit(1 if missed else 0)


def _print(row: dict[str, Any], ran: bool) -> None:
    one, two, plan = row["streamed"], row["whole"], row["predicted"]
    print(f"{row['layers']} layers")
    print(
        f"  layer by layer  {_gb(one['peak'])} peak ({_gb(plan['streamed'])} predicted), {one['cpu']:.0f} s cpu,"
        f" {one['status']}, difference {one['max_difference']:.3g}"
    )
    if ran:
        print(
            f"  whole           {_gb(two['peak'])} peak ({_gb(plan['whole'])} predicted), {two['cpu']:.0f} s cpu,"
            f" {two['status']}, difference {two['max_difference']:.3g}"
        )
        print(f"  {row['less_memory']:.1f} times less memory, {row['cpu']:.2f} times the cpu time", flush=True)
    else:
        print(f"  whole           not run: {two['detail']}")
        print(f"  {row['less_memory']:.1f} times less memory than predicted for the whole", flush=True)


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


if __name__ == "__main__":
    main()
