"""Prune against `cp`: time and memory on generated models with real Gemma 4 layer shapes.

    python perf/prune.py DIR [--gib 1,4,8] [--format safetensors,gguf] [--cache warm,cold] [--runs 5] [--only prune,cp]
                          [--sync] [--json]

Each round deletes the output, waits for the disk, and runs in turn `trimoe prune` (the complete command in a child
process, 30 of 128 experts dropped) with and without its options, and `cp --reflink=never` of a file of the output's
size (`--only` selects contestants, for many rounds). With `--sync` both also run followed by waiting for the disk. The
order alternates from round to round. Reported are medians, the ratio of the medians, and the median of the per-round
ratios, which is steadier on a shared machine. Peak memory is the child's maximum resident set.

Before every run, other outputs are dropped from the page cache, the input is read and (cold) dropped again, and the
remaining memory is filled with the page cache of a large empty file, as on a machine that has been busy for a while.
Otherwise the host of a virtual machine reclaims free memory within seconds, and the measurement shows how fast the host
returns it: the same `cp` took between 1.2 and 4.2 s, and between 0.87 and 0.92 s with a filled cache. Everything below
DIR/trimoe-bench is removed at the end. DIR needs about 4 times the largest size.
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
from pathlib import Path
from typing import Any

from prune_models import EXPERTS, make_checkpoint, make_gguf

DROPPED = 30
Run = tuple[float, int]  # seconds, peak resident bytes


def child(command: list[str]) -> Run:
    """Run one child process. Its failure ends the benchmark."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return seconds, usage.ru_maxrss * 1024


def files_of(place: Path) -> list[Path]:
    """The files of a directory, or the file itself."""
    return sorted(p for p in place.iterdir() if p.is_file()) if place.is_dir() else [place]


def forget(place: Path) -> None:
    """Drop files from the page cache. They are clean, because the disk was waited for."""
    for file in files_of(place):
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def recall(place: Path) -> None:
    """Read files into the page cache, so that a warm run does not depend on earlier activity."""
    buffer = bytearray(4 << 20)
    for file in files_of(place):
        with file.open("rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass


def fill(filler: Path) -> None:
    """Fill free memory with the page cache of a sparse file, which uses no disk space."""
    if not filler.exists():
        with filler.open("wb") as file:
            file.truncate(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    recall(filler)


def remove(place: Path) -> None:
    """Remove a file or a directory, if it exists."""
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def make(root: Path, kind: str, size: int) -> tuple[Path, int]:
    """Make the source and its map; returns the source and its number of layers."""
    source = root / ("source.gguf" if kind == "gguf" else "source")
    layers = make_gguf(source, size) if kind == "gguf" else make_checkpoint(source, size)
    draw = random.Random(1)
    drop = {str(i): sorted(draw.sample(range(EXPERTS), DROPPED)) for i in range(layers)}
    (root / "map.json").write_text(json.dumps({"drop": drop, "num_experts": EXPERTS}))
    return source, layers


def commands(root: Path, source: Path, sync: bool) -> dict[str, list[str]]:
    """The contestants as {name: command}. The others are compared with `cp`."""
    out, copy = root / ("out.gguf" if source.is_file() else "out"), root / "copy"
    prune = [sys.executable, "-m", "trimoe", "prune", str(source), str(root / "map.json"), "-o", str(out)]
    cp = ["cp", "--reflink=never", str(root / "reference"), str(copy)]
    found = {"prune": prune, "cp": cp}
    if not source.is_file():
        found |= {
            "prune --max-shard 1GB": [*prune, "--max-shard", "1GB"],
            "prune --verify": [*prune, "--verify"],
            "prune --no-hash": [*prune, "--no-hash"],
        }
    if sync:
        both = f"cp --reflink=never '{root / 'reference'}' '{copy}' && sync '{copy}'"
        found |= {"prune --sync": [*prune, "--sync"], "cp && sync": ["sh", "-c", both]}
    return found


def measure(root: Path, kind: str, size: int, cache: str, runs: int, sync: bool, only: list[str]) -> dict[str, Any]:
    """Run all rounds of one size; returns medians, ratios and conditions."""
    source, layers = make(root, kind, size)
    jobs = {name: job for name, job in commands(root, source, sync).items() if not only or name in only}
    out, reference = Path(jobs["prune"][-1]), root / "reference"
    child(jobs["prune"])  # also warms the page cache of the interpreter
    with reference.open("wb") as target:  # cp's input: the output's bytes in one file
        for file in files_of(out):
            with file.open("rb") as part:
                shutil.copyfileobj(part, target, 1 << 22)
    results: dict[str, list[Run]] = {name: [] for name in jobs}
    load = os.getloadavg()[0]
    for turn in range(-1, runs):  # the first round is not counted: memory is not yet full
        for name in list(jobs) if turn % 2 == 0 else list(jobs)[::-1]:  # alternating, so that drift affects all equally
            remove(out)
            remove(root / "copy")
            os.sync()
            place = source if name.startswith("prune") else reference
            forget(source)
            forget(reference)
            recall(place)  # cold, too: caches below a virtual disk are then in the same state for all
            if cache == "cold":
                forget(place)
            fill(root / "filler")
            if cache == "warm":  # the filler may have evicted it; files read twice stay
                recall(place)
                recall(place)
            run = child(jobs[name])
            if turn >= 0:
                results[name].append(run)
    seconds = {name: [s for s, _ in values] for name, values in results.items()}
    median = {name: statistics.median(values) for name, values in seconds.items()}
    against = {name: "cp && sync" if name == "prune --sync" else "cp" for name in jobs if name.startswith("prune")}
    paired = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True))
        for name, other in against.items()
    }
    return {
        "format": kind,
        "cache": cache,
        "source_bytes": sum(f.stat().st_size for f in files_of(source)),
        "output_bytes": reference.stat().st_size,
        "layers": layers,
        "runs": runs,
        "median_seconds": {name: round(value, 3) for name, value in median.items()},
        "ratio": {name: round(median[name] / median[other], 3) for name, other in against.items()},
        "paired_ratio": {name: round(value, 3) for name, value in paired.items()},
        "peak_rss_mib": {name: round(max(rss for _, rss in results[name]) / (1 << 20), 1) for name in against},
        "seconds": {name: [round(s, 3) for s in values] for name, values in seconds.items()},
        "machine": {
            "cores": os.cpu_count(),
            "load_before": round(load, 1),
            "load_after": round(os.getloadavg()[0], 1),
            "python": platform.python_version(),
            "kernel": platform.release(),
        },
    }


def table(result: dict[str, Any]) -> str:
    """One result as text."""
    machine, output = result["machine"], result["output_bytes"]
    lines = [
        f"{result['format']}, {result['cache']} cache: {result['source_bytes']:,} -> {output:,} bytes, "
        f"{result['runs']} rounds, {machine['cores']} cores, load {machine['load_before']} to {machine['load_after']}",
        f"{'command':<22}{'median s':>9}{'min s':>8}{'max s':>8}{'GB/s':>7}{'/ cp':>7}{'paired':>8}{'MiB':>7}",
    ]
    for name, values in result["seconds"].items():
        median = result["median_seconds"][name]
        line = f"{name:<22}{median:>9.2f}{min(values):>8.2f}{max(values):>8.2f}{output / median / 1e9:>7.2f}"
        if name in result["ratio"]:
            line += (
                f"{result['ratio'][name]:>7.2f}{result['paired_ratio'][name]:>8.2f}{result['peak_rss_mib'][name]:>7.0f}"
            )
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Parse options, measure, print, and clean up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="working directory")
    parser.add_argument("--gib", default="4", help="sizes of the generated models, comma-separated")
    parser.add_argument("--format", default="safetensors", help="safetensors, gguf, or both with a comma")
    parser.add_argument("--cache", default="warm,cold", help="warm, cold, or both with a comma")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="", help="contestants, comma-separated; prune and cp must be among them")
    parser.add_argument("--sync", action="store_true", help="also with the disk waited for")
    parser.add_argument("--json", action="store_true", dest="as_json", help="one JSON list and nothing else")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    root: Path = options.directory / "trimoe-bench"
    results = []
    for kind in options.format.split(","):
        for size in options.gib.split(","):
            for cache in options.cache.split(","):
                shutil.rmtree(root, ignore_errors=True)  # a leftover of a killed run
                root.mkdir(parents=True)
                try:
                    only = options.only.split(",") if options.only else []
                    results.append(
                        measure(root, kind, int(float(size) * (1 << 30)), cache, options.runs, options.sync, only)
                    )
                finally:
                    shutil.rmtree(root)
                if not options.as_json:
                    print(table(results[-1]), flush=True)
    if options.as_json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
