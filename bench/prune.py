"""Prune against `cp`: time and memory on a generated checkpoint of real Gemma 4 layer shapes.

    python bench/prune.py DIR [--gib 4] [--runs 5] [--cold] [--json]

Each round deletes the output, waits for the disk, and runs alternately `trimoe prune` (the whole command in a child
process, 30 of 128 experts dropped), the same with `--sync`, and `cp --reflink=never` of a file of the output's size
(plain, and followed by `sync FILE`). Medians are compared; peak memory is the child's own maximum resident set. The
input is read before every run, or with `--cold` dropped from the page cache. Everything below DIR/trimoe-bench is
removed at the end.
"""

import argparse
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trimoe.model.safetensors import header_bytes, nbytes_of

HIDDEN, WIDTH, EXPERTS, DROPPED, TOP_K = 2816, 704, 128, 30, 8
Entries = dict[str, tuple[str, tuple[int, ...]]]


def layer_entries(layer: int) -> Entries:
    """Tensors of one layer with the shapes of gemma-4-26B-A4B: the experts, the router, the dense FFN, attention."""
    prefix = f"model.language_model.layers.{layer}."
    shapes: dict[str, tuple[int, ...]] = {
        "experts.gate_up_proj": (EXPERTS, 2 * WIDTH, HIDDEN),
        "experts.down_proj": (EXPERTS, HIDDEN, WIDTH),
        "router.proj.weight": (EXPERTS, HIDDEN),
        "router.per_expert_scale": (EXPERTS,),
        "router.scale": (HIDDEN,),
        "input_layernorm.weight": (HIDDEN,),
        "mlp.gate_proj.weight": (2112, HIDDEN),
        "mlp.up_proj.weight": (2112, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, 2112),
        "self_attn.q_proj.weight": (16 * 256, HIDDEN),
        "self_attn.k_proj.weight": (8 * 256, HIDDEN),
        "self_attn.v_proj.weight": (8 * 256, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, 16 * 256),
    }
    return {prefix + name: ("BF16", shape) for name, shape in sorted(shapes.items())}


def make_checkpoint(folder: Path, size: int) -> int:
    """A checkpoint of about `size` bytes in shards of two layers; returns its number of layers.

    Values are one seeded random MiB repeated with a running stamp, so no two megabytes are equal.
    """
    layers = max(1, round(size / sum(nbytes_of(*entry) for entry in layer_entries(0).values())))
    folder.mkdir(parents=True)
    block = bytearray(random.Random(0).randbytes(1 << 20))
    weight_map: dict[str, str] = {}
    starts = range(0, layers, 2)
    for number, start in enumerate(starts, 1):
        name = f"model-{number:05d}-of-{len(starts):05d}.safetensors"
        entries: Entries = {}
        for layer in range(start, min(start + 2, layers)):
            entries |= layer_entries(layer)
        left = sum(nbytes_of(*entry) for entry in entries.values())
        with (folder / name).open("wb") as handle:
            handle.write(header_bytes(entries, {"format": "pt"}))
            while left:
                block[:8] = (number << 40 | left).to_bytes(8, "little")
                left -= handle.write(memoryview(block)[:left])
        weight_map |= dict.fromkeys(entries, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    text = {"model_type": "gemma4_text", "hidden_size": HIDDEN, "moe_intermediate_size": WIDTH, "num_experts": EXPERTS,
            "top_k_experts": TOP_K, "num_hidden_layers": layers}  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma4", "text_config": text}, indent=2))
    return layers


def child(command: list[str]) -> tuple[float, int]:
    """Seconds and peak resident bytes of one child process; its failure ends the benchmark."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return seconds, usage.ru_maxrss * 1024


def forget(folder: Path) -> None:
    """Drop the files of a folder from the page cache (they are clean: the disk was waited for)."""
    for file in folder.iterdir():
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def recall(folder: Path) -> None:
    """Read the files of a folder, so that a warm run does not depend on what else went through the page cache."""
    buffer = bytearray(4 << 20)
    for file in folder.iterdir():
        with file.open("rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass


def measure(root: Path, size: int, runs: int, cold: bool) -> dict[str, Any]:
    """All rounds; returns medians, ratios and the conditions."""
    source, reference = root / "source", root / "reference"
    layers = make_checkpoint(source, size)
    draw = random.Random(1)
    drop = {str(i): sorted(draw.sample(range(EXPERTS), DROPPED)) for i in range(layers)}
    (root / "map.json").write_text(json.dumps({"drop": drop, "num_experts": EXPERTS}))
    prune = [sys.executable, "-m", "trimoe", "prune", str(source), str(root / "map.json"), "-o", str(root / "out")]
    child(prune)  # also warms the interpreter's files
    out_bytes = sum(f.stat().st_size for f in (root / "out").iterdir())
    reference.mkdir()
    with (reference / "file").open("wb") as target:  # cp's input: the output's bytes in one file
        for file in sorted((root / "out").glob("*.safetensors")):
            with file.open("rb") as part:
                shutil.copyfileobj(part, target, 1 << 22)
        target.truncate(out_bytes)
    copy = ["cp", "--reflink=never", str(reference / "file"), str(root / "copy")]
    jobs: dict[str, Callable[[], tuple[float, int]]] = {
        "prune": lambda: child(prune),
        "cp": lambda: child(copy),
        "prune --sync": lambda: child([*prune, "--sync"]),
        "cp; sync FILE": lambda: child(["sh", "-c", f"cp --reflink=never '{copy[2]}' '{copy[3]}' && sync '{copy[3]}'"]),
    }
    results: dict[str, list[tuple[float, int]]] = {name: [] for name in jobs}
    for turn in range(runs):
        for name in list(jobs) if turn % 2 == 0 else list(jobs)[::-1]:  # alternated, so drift hits all alike
            shutil.rmtree(root / "out", ignore_errors=True)
            (root / "copy").unlink(missing_ok=True)
            os.sync()
            (forget if cold else recall)(source if "prune" in name else reference)
            results[name].append(jobs[name]())
    median = {name: statistics.median(seconds for seconds, _ in values) for name, values in results.items()}
    return {
        "source_bytes": sum(f.stat().st_size for f in source.iterdir()), "output_bytes": out_bytes, "layers": layers,
        "runs": runs, "cache": "cold" if cold else "warm", "cores": os.cpu_count(), "load": os.getloadavg()[0],
        "python": platform.python_version(), "kernel": platform.release(),
        "seconds": {name: [round(seconds, 3) for seconds, _ in values] for name, values in results.items()},
        "median_seconds": {name: round(value, 3) for name, value in median.items()},
        "ratio": round(median["prune"] / median["cp"], 3),
        "ratio_sync": round(median["prune --sync"] / median["cp; sync FILE"], 3),
        "peak_rss_mib": round(max(rss for _, rss in results["prune"]) / (1 << 20), 1),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    median, seconds, output = result["median_seconds"], result["seconds"], result["output_bytes"]
    lines = [f"{'command':<16}{'median s':>9}{'min s':>8}{'max s':>8}{'GB/s':>7}"]
    lines += [f"{name:<16}{median[name]:>9.2f}{min(values):>8.2f}{max(values):>8.2f}{output / median[name] / 1e9:>7.2f}"
              for name, values in seconds.items()]  # fmt: skip
    lines.append(f"prune / cp: {result['ratio']}   with the disk waited for: {result['ratio_sync']}   "
                 f"peak memory of prune: {result['peak_rss_mib']} MiB")  # fmt: skip
    lines.append(f"{result['cache']} cache, source {result['source_bytes']:,} bytes, output {output:,} bytes, "
                 f"{result['runs']} runs, {result['cores']} cores, load {result['load']:.1f}")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print, remove what was made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="a place with about 4 times the size free")
    parser.add_argument("--gib", type=float, default=4, help="size of the generated checkpoint")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="drop the source from the page cache before every run")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    root: Path = options.directory / "trimoe-bench"
    shutil.rmtree(root, ignore_errors=True)  # a leftover of a killed run
    root.mkdir(parents=True)
    try:
        result = measure(root, int(options.gib * (1 << 30)), options.runs, options.cold)
    finally:
        shutil.rmtree(root)
    print(json.dumps(result, indent=1) if options.as_json else table(result))


if __name__ == "__main__":
    main()
