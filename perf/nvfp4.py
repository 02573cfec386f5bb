"""NVFP4 quantization against NVIDIA Model Optimizer: time and memory on one layer of Gemma 4 26B's shapes (1.5 GB).

    python perf/nvfp4.py DIR --modelopt PYTHON [--experts 128] [--runs 5] [--threads 2] [--json]

PYTHON is an interpreter with nvidia-modelopt and torch (tests/helpers/modelopt_env.py makes one). Each round runs in
turn, in alternating order: `trimoe quantize --tiers NVFP4A16` (the complete command in a child process: start, reading,
both passes, hashing, writing, reading back), the same computation on matrices in memory (`trimoe, in memory`), and
Model Optimizer's NVFP4QTensor.quantize on the same expert matrices from the same file, in a warm process that writes
nothing. Reported are medians of wall and processor seconds, the median of the per-round ratios, and the command's peak
resident memory. Model Optimizer additionally needs an export, which is not counted. DIR needs 3 GB and is emptied at
the end.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.safetensors import header_bytes
from trimoe.quantize.nvfp4.codes import scale_2
from trimoe.quantize.nvfp4.matrices import largest_in, quantized
from trimoe.quantize.nvfp4.plan import Matrix, plan_nvfp4

HIDDEN, WIDTH = 2816, 704
EXPORT = Path(__file__).parents[1] / "tests" / "helpers" / "modelopt_export.py"


def make_layer(folder: Path, experts: int) -> Path:
    """A checkpoint of one layer: experts and router, random normal weights."""
    folder.mkdir(parents=True)
    prefix = "model.layers.0."
    entries: dict[str, tuple[str, tuple[int, ...]]] = {
        prefix + "experts.gate_up_proj": ("BF16", (experts, 2 * WIDTH, HIDDEN)),
        prefix + "experts.down_proj": ("BF16", (experts, HIDDEN, WIDTH)),
        prefix + "router.proj.weight": ("BF16", (experts, HIDDEN)),
        prefix + "router.scale": ("BF16", (HIDDEN,)),
        prefix + "router.per_expert_scale": ("BF16", (experts,)),
        "model.embed_tokens.weight": ("BF16", (64, HIDDEN)),
    }
    rng = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header_bytes(entries, {"format": "pt"}))
        for _, shape in entries.values():
            rest = int(np.prod(shape))
            while rest:
                count = min(rest, 1 << 22)
                values = rng.standard_normal(count, np.float32) * np.float32(0.02)
                file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())
                rest -= count
    config = {
        "model_type": "gemma4_text",
        "num_hidden_layers": 1,
        "num_experts": experts,
        "top_k_experts": 8,
        "hidden_size": HIDDEN,
        "moe_intermediate_size": WIDTH,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return folder


class Peer:
    """Model Optimizer in a long-lived process."""

    def __init__(self, python: str, file: Path, threads: int) -> None:
        self._process = subprocess.Popen(
            [python, str(EXPORT), "time", str(file), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self) -> tuple[float, float]:
        """(wall, processor) seconds of one round."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        wall, processor = json.loads(self._process.stdout.readline())
        return wall, processor

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def command(source: Path, out: Path, threads: int) -> tuple[float, float, int]:
    """(wall seconds, processor seconds, peak bytes) of the complete command."""
    shutil.rmtree(out, ignore_errors=True)
    begin = time.perf_counter()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "trimoe",
            "quantize",
            str(source),
            "--tiers",
            "NVFP4A16",
            "-o",
            str(out),
            "-t",
            str(threads),
        ],
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the command ended with {process.returncode}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def in_memory(file: Path, threads: int) -> tuple[float, float]:
    """(wall, processor) seconds of reading and quantizing every expert's matrices, as Model Optimizer does."""
    begin, used = time.perf_counter(), time.process_time()
    matrices = plan_nvfp4(open_checkpoint(file.parent)).matrices

    def work(matrix: Matrix) -> None:
        quantized(matrix, scale_2(largest_in(matrix)))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, matrices))
    return time.perf_counter() - begin, time.process_time() - used


def measure(root: Path, python: str, experts: int, runs: int, threads: int) -> dict[str, Any]:
    """Run all rounds as the module docstring describes."""
    source, out = make_layer(root / "source", experts), root / "out"
    file = source / "model.safetensors"
    size = experts * 3 * WIDTH * HIDDEN * 2
    peer = Peer(python, file, threads)
    peer.run()
    command(source, out, threads)
    found: dict[str, list[tuple[float, float]]] = {"trimoe": [], "trimoe, in memory": [], "modelopt": []}
    peak, load = 0, os.getloadavg()[0]
    for turn in range(runs):
        for name in list(found) if turn % 2 == 0 else list(found)[::-1]:
            if name == "trimoe":
                wall, processor, used = command(source, out, threads)
                peak = max(peak, used)
                found[name].append((wall, processor))
            else:
                found[name].append(peer.run() if name == "modelopt" else in_memory(file, threads))
    peer.close()
    result: dict[str, Any] = {
        "bytes": size,
        "experts": experts,
        "threads": threads,
        "runs": runs,
        "load": round(load, 2),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "numpy": np.__version__,
        "peak_rss": peak,
        "contestants": {},
    }
    for name, values in found.items():
        wall, processor = (statistics.median(v[i] for v in values) for i in (0, 1))
        ratios = [[theirs[i] / ours[i] for theirs, ours in zip(found["modelopt"], values, strict=True)] for i in (0, 1)]
        result["contestants"][name] = {
            "wall": round(wall, 3),
            "processor": round(processor, 3),
            "mb_per_second": round(size / wall / 1e6, 1),
            "times_as_fast": round(statistics.median(ratios[0]), 2),
            "lowest": round(min(ratios[0]), 2),
            "highest": round(max(ratios[0]), 2),
            "times_less_processor": round(statistics.median(ratios[1]), 2),
        }
    return result


def main() -> None:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--modelopt", required=True, help="Python that has nvidia-modelopt")
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    root = options.directory / "trimoe-bench-nvfp4"
    shutil.rmtree(root, ignore_errors=True)
    try:
        result = measure(root, options.modelopt, options.experts, options.runs, options.threads)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"{result['bytes'] / 1e9:.2f} GB of BF16, {result['threads']} threads, {result['runs']} rounds, load "
        f"{result['load']}; peak memory {result['peak_rss'] / (1 << 20):.0f} MiB"
    )
    for name, row in result["contestants"].items():
        print(
            f"{name:<18} {row['wall']:>8.2f} s {row['processor']:>8.2f} cpu s {row['mb_per_second']:>8.1f} MB/s "
            f"{row['times_as_fast']:>7.2f} times as fast ({row['lowest']} to {row['highest']}), "
            f"{row['times_less_processor']} times less processor time"
        )


if __name__ == "__main__":
    main()
