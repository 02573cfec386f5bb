"""Calibration against the plain forward pass and against a per-expert hook, on real Gemma 4 layer widths.

    python perf/calibrate.py DIR [--tokens 8192] [--runs 3] [--dtype bfloat16] [--part all] [--json]

A random checkpoint (hidden size 2816, 128 experts of width 704, top-8; small vocabulary; 1.7 GB per layer) is written
to DIR/trimoe-bench-calibrate and removed at the end. Each part is a ratio within one run:
  plain   the engine, with everything `trimoe calibrate` does after tokenisation (opening the checkpoint, reading the
          layers, writing hidden states and statistics), against transformers' forward pass of the same model, type and
          batches with all layers resident and the fastest of its experts functions
  hook    one document per forward pass, with a hook that recomputes every expert in fp32 (as the reference
          implementation measures), against the engine; on 2,048-token windows and on 128-token documents
  depth   peak memory of the engine at 2 and at 6 layers, each in its own process, beside the prediction
Contestants take turns, in reverse order every other time; the first turn warms up. Two clocks are shown: wall time
(median) and processor seconds of the process (minimum), which is less sensitive to other load on the machine.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.model.safetensors import header_bytes

HIDDEN, WIDTH, EXPERTS, TOP_K, DENSE, VOCABULARY = 2816, 704, 128, 8, 2112, 512
AT_MOST_OF_PLAIN, AT_MOST_GROWTH = 1.15, 0.10
AT_LEAST_OF_HOOK = {"hook_2048": 1.8, "hook_128": 6.0}
EXPERTS_FUNCTIONS = ("grouped_mm", "eager")
"""The default of this transformers version, and its loop over experts, which is faster on a CPU."""

Seconds = dict[str, float]


def config(layers: int) -> dict[str, Any]:
    """config.json of a text-only Gemma 4 with the 26B model's layer shapes; every sixth layer has full attention."""
    kinds = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)]
    kinds[-1] = "full_attention"
    return {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": DENSE,
        "num_hidden_layers": layers,
        "layer_types": kinds,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 2,
        "head_dim": 256,
        "global_head_dim": 512,
        "attention_k_eq_v": True,
        "sliding_window": 1024,
        "max_position_embeddings": 8192,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "enable_moe_block": True,
        "num_experts": EXPERTS,
        "top_k_experts": TOP_K,
        "moe_intermediate_size": WIDTH,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
    }


def make_checkpoint(folder: Path, layers: int, gain: float = 1.0) -> None:
    """Write random bf16 weights: normal with deviation 0.02 (norms and scales 1, norms after a block `gain`), slices of
    one seeded array."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(layers), indent=1))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items() if name != "lm_head.weight"}
    bank = torch.from_numpy(np.random.default_rng(0).normal(0, 0.02, 50_000_017).astype(np.float32)).bfloat16()
    at = 0
    with (folder / "model.safetensors").open("wb") as out:
        out.write(header_bytes({name: ("BF16", shape) for name, shape in shapes.items()}, {"format": "pt"}))
        for name, shape in shapes.items():
            count = int(np.prod(shape))
            if "norm" in name or "scal" in name:
                value = gain if "post_" in name else 1.0
                out.write(torch.full((count,), value, dtype=torch.bfloat16).view(torch.uint8).numpy().data)
                continue
            while count:
                part = bank[at : at + count]
                out.write(part.view(torch.uint8).numpy().data)
                count -= len(part)
                at = (at + len(part)) % len(bank)
    os.sync()  # so that the first writes of a contestant do not wait for these


def windows(documents: int, length: int) -> Any:
    """`documents` random documents of `length` tokens, one window each."""
    from trimoe.calibrate.text.calibration import Document, windows_of

    rng = np.random.default_rng(1)
    made = [Document("c", tuple(rng.integers(3, VOCABULARY, length).tolist())) for _ in range(documents)]
    return windows_of(made, length, 16)


def engine(
    folder: Path, data: Any, dtype: str, device: str = "cpu", batch: int | None = None, neurons: bool = False
) -> dict[str, Any]:
    """Run the engine; returns predicted and measured peak bytes and the seconds of each layer."""
    from trimoe.calibrate.layerwise import Options, Run
    from trimoe.calibrate.state import RunState
    from trimoe.model.checkpoint import open_checkpoint

    options = Options(dtype=dtype, device=device, batch_tokens=batch, neurons=neurons)
    run = Run(open_checkpoint(folder), data, options, "bench")
    with tempfile.TemporaryDirectory(dir=folder.parent) as state, RunState(Path(state) / "s", run.settings) as opened:
        stats = run.execute(opened)
        marks = opened.finished()
        stats.save(Path(state) / "stats")
    return {
        "predicted": run.plan.peak_ram,
        "peak": max(m.peak_ram for m in marks),
        "predicted_device": run.plan.peak_device,
        "peak_device": max(m.peak_device for m in marks),
        "layer_seconds": [m.seconds for m in marks],
    }


def load_plain(folder: Path, dtype: str, device: str = "cpu") -> Any:
    """Load transformers' model with all layers resident."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()


def plain(model: Any, data: Any, batch: int, experts: str) -> None:
    """Run the text model's forward pass over the same batches."""
    import torch

    from trimoe.calibrate.forward.batching import batches_of, token_ids

    model.set_experts_implementation(experts)
    with torch.inference_mode():
        for made in batches_of(data, batch):
            ids = torch.from_numpy(token_ids(data, made)).to(model.device)
            model.model(input_ids=ids, use_cache=False)
    synchronize(model.device)


def hook(model: Any, data: Any, experts: str) -> None:
    """Measure as the reference does: one document per forward pass, with a hook that recomputes every expert in fp32,
    checks its tokens and accumulates its sums in Python."""
    import torch
    from torch.nn.functional import linear

    sums: dict[tuple[int, int], np.ndarray] = {}
    neurons: dict[tuple[int, int], np.ndarray] = {}

    def see(layer: int) -> Callable[..., None]:
        def run(module: Any, args: Any, output: Any) -> None:
            hidden, index, weight = args
            for expert in range(module.num_experts):
                token, slot = torch.where(index == expert)
                x, w = hidden[token].float(), weight[token, slot].float()
                sound = torch.isfinite(x).all(-1) & (x.abs().amax(-1) <= 1e6) if len(token) else token > 0
                x, w = x[sound], w[sound]
                if not len(x):
                    continue
                gate, up = linear(x, module.gate_up_proj[expert].float()).chunk(2, -1)
                h = module.act_fn(gate) * up
                o = linear(h, module.down_proj[expert].float())
                wnorm, rnorm = (o * w[:, None]).norm().item(), o.norm().item()
                if not (np.isfinite(wnorm) and np.isfinite(rnorm)):
                    continue
                row = [len(x), 1, wnorm, rnorm, wnorm**2, rnorm**2, w.mean().item()]
                sums[layer, expert] = sums.get((layer, expert), np.zeros(7)) + row
                squares = h.square().sum(0).cpu().numpy().astype(np.float64)
                neurons[layer, expert] = neurons.get((layer, expert), 0) + squares

        return run

    model.set_experts_implementation(experts)
    hooks = [m.experts.register_forward_hook(see(i)) for i, m in enumerate(model.model.layers)]
    try:
        with torch.inference_mode():
            for window in data.windows:
                ids = torch.from_numpy(window.tokens)[None].to(model.device)
                model.model(input_ids=ids, use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()


def synchronize(device: Any) -> None:
    """Wait for an accelerator."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def alternate(contestants: dict[str, Callable[[], Any]], runs: int) -> dict[str, dict[str, Seconds]]:
    """{clock: {contestant: seconds}}: median wall time and least processor time over the turns after the first."""
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    processor: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(runs + 1):
        for name in sorted(contestants, reverse=turn % 2 == 1):
            begin, used = time.perf_counter(), time.process_time()
            contestants[name]()
            took = time.perf_counter() - begin, time.process_time() - used
            print(
                f"  {name}: {took[0]:.2f} s, processor {took[1]:.2f} s{'' if turn else ' (warm-up)'}",
                file=sys.stderr,
                flush=True,
            )
            if turn:
                wall[name].append(took[0])
                processor[name].append(took[1])
    return {
        "wall": {n: statistics.median(v) for n, v in wall.items()},
        "cpu": {n: min(v) for n, v in processor.items()},
    }


def against_plain(folder: Path, model: Any, data: Any, dtype: str, batch: int, runs: int) -> dict[str, Any]:
    """Time of the engine over that of the fastest plain forward pass."""
    device = str(model.device)
    took = alternate(
        {"engine": lambda: engine(folder, data, dtype, device, batch)}
        | {f"plain {name}": lambda name=name: plain(model, data, batch, name) for name in EXPERTS_FUNCTIONS},
        runs,
    )
    ratio = {clock: t["engine"] / min(s for n, s in t.items() if n != "engine") for clock, t in took.items()}
    return {"seconds": took, "ratio": ratio, "at_most": AT_MOST_OF_PLAIN}


def against_hook(
    folder: Path, model: Any, data: Any, dtype: str, batch: int, runs: int, least: float
) -> dict[str, Any]:
    """Time of the hook over that of the engine; both also sum neurons."""
    device = str(model.device)
    took = alternate(
        {
            "engine": lambda: engine(folder, data, dtype, device, batch, neurons=True),
            "hook": lambda: hook(model, data, "eager"),
        },
        runs,
    )
    return {"seconds": took, "ratio": {c: t["hook"] / t["engine"] for c, t in took.items()}, "at_least": least}


def depth(root: Path, dtype: str) -> dict[str, Any]:
    """Peak memory of processes that measure 2,048 tokens through 2 and through 6 layers, and its growth."""
    found = {}
    for layers in (2, 6):
        folder = root / f"deep{layers}"
        make_checkpoint(folder, layers)
        child = [sys.executable, __file__, str(folder), "--child", "--dtype", dtype]
        found[layers] = json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout)
        shutil.rmtree(folder)
        print(f"  {layers} layers: peak {found[layers]['peak'] / 1e9:.2f} GB", file=sys.stderr, flush=True)
    predicted = {layers: row["predicted"] / row["peak"] for layers, row in found.items()}
    return {
        "peak": {n: row["peak"] for n, row in found.items()},
        "predicted_over_peak": predicted,
        "growth": found[6]["peak"] / found[2]["peak"] - 1,
        "at_most": AT_MOST_GROWTH,
    }


def main() -> None:
    """Run the parts and print the ratios beside their targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--part", choices=["all", "plain", "hook", "depth"], default="all")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(engine(options.dir, windows(1, 2048), options.dtype, batch=2048)))
        return
    root: Path = options.dir / "trimoe-bench-calibrate"
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": options.threads,
        "load_before": round(os.getloadavg()[0], 1),
        "dtype": options.dtype,
        "torch": torch.__version__,
    }
    result: dict[str, Any] = {"machine": machine}
    try:
        if options.part in ("all", "plain", "hook"):
            folder = root / "model"
            make_checkpoint(folder, 2)
            model = load_plain(folder, options.dtype)
            long = windows(max(1, options.tokens // 2048), 2048)
            short = windows(max(1, options.tokens // 2 // 128), 128)
            if options.part != "hook":
                print("plain", file=sys.stderr)
                result["plain"] = against_plain(folder, model, long, options.dtype, 4096, options.runs)
            if options.part != "plain":
                for name, data in (("hook_2048", long), ("hook_128", short)):
                    print(name, file=sys.stderr)
                    result[name] = against_hook(
                        folder, model, data, options.dtype, 4096, options.runs, AT_LEAST_OF_HOOK[name]
                    )
            del model
        if options.part in ("all", "depth"):
            print("depth", file=sys.stderr)
            result["depth"] = depth(root, options.dtype)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps(result, indent=1) if options.json else "\n".join(table(result)))


def table(result: dict[str, Any]) -> list[str]:
    """The ratios as lines of text."""
    lines = [" ".join(f"{key}={value}" for key, value in result["machine"].items())]
    for name in ("plain", "hook_2048", "hook_128"):
        if name in result:
            part = result[name]
            bar = f"at most {part['at_most']}" if "at_most" in part else f"at least {part['at_least']}"
            what = "engine / plain" if name == "plain" else "hook / engine"
            wall, processor = part["ratio"]["wall"], part["ratio"]["cpu"]
            lines.append(f"{name:10s} {what:15s} wall {wall:.2f}, processor {processor:.2f} ({bar})")
    if "depth" in result:
        part = result["depth"]
        peaks = ", ".join(f"{n} layers {peak / 1e9:.2f} GB" for n, peak in part["peak"].items())
        right = ", ".join(f"{ratio:.2f}" for ratio in part["predicted_over_peak"].values())
        lines.append(
            f"depth      {peaks}: {part['growth']:+.1%} (at most {part['at_most']:.0%}); predicted/peak {right}"
        )
    return lines


if __name__ == "__main__":
    main()
