"""Calibration on a GPU: throughput, what limits it, and a projection for a full model.

    python perf/calibrate_gpu.py DIR [--device cuda] [--layers 6] [--tokens 65536] [--batch-tokens 8192] [--json]

Random bf16 layers of the real Gemma 4 widths (see calibrate.py) are written to DIR/trimoe-bench-calibrate and removed
at the end. Printed:
  plain, hook_2048, hook_128   the ratios of calibrate.py, on this device
  tokens/s                     through one layer, over the layers after the first (the next layer is read meanwhile)
  share of the peak            relative to one large bf16 matrix product on this device in the same run
  reading a layer              from the file, and from there to the device, each alone; as a share of a layer's time
  projection                   30 layers and 400,000 tokens, with the calculation
Peak memory of device and host is shown beside the prediction. `--tiny` uses small widths to check the script on any
device; its figures are meaningless.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import calibrate as bench

LAYERS, TOKENS = 30, 400_000


def flops_per_token(length: int) -> dict[str, float]:
    """FLOPs per token in a layer with sliding attention and windows of `length` tokens, by part."""
    queries, keys = 16 * 256, 8 * 256
    seen = (length + 1) / 2 if length <= 1024 else 1024 - 1024 * 1023 / 2 / length
    return {
        "attention projections": 2 * bench.HIDDEN * (2 * queries + 2 * keys),
        "attention scores": 2 * 2 * seen * queries,
        "dense FFN": 2 * 3 * bench.HIDDEN * bench.DENSE,
        "router": 2 * bench.HIDDEN * bench.EXPERTS,
        "experts": 2 * bench.TOP_K * 3 * bench.HIDDEN * bench.WIDTH,
    }


def seconds(work: Callable[[], Any], device: str, times: int = 3) -> float:
    """Median seconds of `work`, including synchronisation with the device."""
    took = []
    for _ in range(times):
        bench.synchronize(device)
        begin = time.perf_counter()
        work()
        bench.synchronize(device)
        took.append(time.perf_counter() - begin)
    return statistics.median(took)


def matrix_peak(device: str, size: int) -> float:
    """FLOP/s of a square bf16 product."""
    import torch

    a = torch.randn(size, size, device=device).bfloat16()
    torch.mm(a, a)
    return 2 * size**3 / seconds(lambda: torch.mm(a, a), device, 10)


def reading(folder: Path, device: str) -> dict[str, float]:
    """Seconds to read the second layer's tensors from the file (dropped from the cache before), and to load them when
    the file is in the cache, which on an accelerator is the copy to it."""
    from trimoe.calibrate.forward.layers import LayerModel
    from trimoe.model.checkpoint import open_checkpoint
    from trimoe.model.safetensors import read_bytes

    checkpoint = open_checkpoint(folder)
    model = LayerModel(checkpoint, device, "bfloat16")
    infos = [checkpoint.index[name] for name in model.names_of(1)]

    def from_file() -> None:
        for info in infos:
            with info.file.open("rb") as handle:
                os.posix_fadvise(handle.fileno(), info.start, info.nbytes, os.POSIX_FADV_DONTNEED)
        for info in infos:
            for at in range(0, info.nbytes, 1 << 26):
                read_bytes(info, at, min(1 << 26, info.nbytes - at))

    def to_device() -> None:
        model.load(1)
        model.free(1)

    return {
        "bytes": float(sum(info.nbytes for info in infos)),
        "file": seconds(from_file, device),
        "load": seconds(to_device, device),
    }


def projection(layer_bytes: float, rate: float, file_rate: float, load_rate: float, hidden: int) -> list[str]:
    """The projection for 30 layers and 400,000 tokens, with its calculation."""
    compute, read, load = TOKENS / rate, layer_bytes / file_rate, layer_bytes / load_rate
    layer = max(compute, read, load)
    written = TOKENS * hidden * 2
    return [
        f"projection to {LAYERS} layers and {TOKENS:,} tokens:",
        f"  compute  {TOKENS:,} tokens / {rate:,.0f} tokens/s = {compute:.1f} s per layer",
        f"  file     {layer_bytes / 1e9:.2f} GB / {file_rate / 1e9:.2f} GB/s = {read:.1f} s per layer, meanwhile",
        f"  load     {layer_bytes / 1e9:.2f} GB / {load_rate / 1e9:.2f} GB/s = {load:.1f} s per layer, meanwhile",
        f"  hidden states {TOKENS:,} x {hidden} x 2 bytes = {written / 1e9:.1f} GB written per layer, meanwhile; a disk"
        f" below {written / layer / 1e9:.2f} GB/s would be the limit",
        f"  total    {LAYERS} x max({compute:.1f}, {read:.1f}, {load:.1f}) s = {LAYERS * layer / 60:.1f} min",
    ]


def tiny() -> None:
    """Use small widths, to check the script."""
    bench.HIDDEN, bench.WIDTH, bench.EXPERTS, bench.TOP_K, bench.DENSE = 128, 32, 8, 2, 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        tiny()
    root: Path = options.dir / "trimoe-bench-calibrate"
    try:
        result = measure(root, options)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps(result, indent=1) if options.json else "\n".join(table(result)))


def measure(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all figures of one run."""
    import torch

    device, batch = options.device, options.batch_tokens
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "processor (no figure means anything)"
    long = bench.windows(max(1, options.tokens // 2048), 2048)
    short = bench.windows(max(1, options.tokens // 8 // 128), 128)
    result: dict[str, Any] = {
        "machine": {"device": name, "torch": torch.__version__, "tokens": options.tokens, "batch_tokens": batch}
    }
    two, deep = root / "two", root / "deep"
    bench.make_checkpoint(two, 2)
    model = bench.load_plain(two, "bfloat16", device)
    print("plain, hook", file=sys.stderr)
    result["plain"] = bench.against_plain(two, model, long, "bfloat16", batch, options.runs)
    for part, data in (("hook_2048", long), ("hook_128", short)):
        least = bench.AT_LEAST_OF_HOOK[part]
        result[part] = bench.against_hook(two, model, data, "bfloat16", batch, options.runs, least)
    del model
    print("throughput", file=sys.stderr)
    bench.make_checkpoint(deep, options.layers)
    took = bench.engine(deep, long, "bfloat16", device, batch)
    # The first layer waits for its read; the last one has nothing to prefetch and uses full attention.
    layer = statistics.median(took["layer_seconds"][1:-1])
    read = reading(deep, device)
    flops = flops_per_token(2048)
    rate = options.tokens / layer
    peak = matrix_peak(device, 256 if options.tiny else 8192)
    result |= {
        "tokens_per_second": rate,
        "flops_per_token": flops,
        "reached": rate * math.fsum(flops.values()),
        "peak": peak,
        "reading": read,
        "layer_seconds": layer,
        "memory": {k: v for k, v in took.items() if k != "layer_seconds"},
        "projection": projection(
            read["bytes"], rate, read["bytes"] / read["file"], read["bytes"] / read["load"], bench.HIDDEN
        ),
    }
    return result


def table(result: dict[str, Any]) -> list[str]:
    """The figures as text."""
    flops, read, layer, memory = (result[k] for k in ("flops_per_token", "reading", "layer_seconds", "memory"))
    parts = " + ".join(f"{name} {value / 1e6:.1f}" for name, value in flops.items())
    return [
        *bench.table(result),
        f"{result['tokens_per_second']:,.0f} tokens/s through a layer",
        f"MFLOP per token: {parts} = {math.fsum(flops.values()) / 1e6:.1f}",
        f"reached {result['reached'] / 1e12:.2f} of {result['peak'] / 1e12:.2f} TFLOP/s: "
        f"{result['reached'] / result['peak']:.0%}",
        f"a layer of {read['bytes'] / 1e9:.2f} GB takes {layer:.2f} s; reading its file {read['file']:.2f} s "
        f"({read['file'] / layer:.0%}), loading it from the cache {read['load']:.2f} s ({read['load'] / layer:.0%})",
        f"device memory {memory['peak_device'] / 1e9:.2f} GB (predicted {memory['predicted_device'] / 1e9:.2f}), "
        f"host {memory['peak'] / 1e9:.2f} GB (predicted {memory['predicted'] / 1e9:.2f})",
        *result["projection"],
    ]


if __name__ == "__main__":
    main()
