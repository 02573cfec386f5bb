"""Calibration against the plain forward pass and against a per-expert recomputing hook, on real Gemma 4 layer widths.

    python bench/calibrate.py DIR [--layers 2] [--tokens 8192] [--runs 3] [--dtype bfloat16] [--part all] [--json]

A random checkpoint (hidden 2816, 128 experts of width 704, top-8; small vocabulary) is written to DIR/trimoe-bench-calibrate and
removed at the end. Three parts, each a ratio within one run, alternating its contestants and comparing medians:
  plain   the engine, loading of layers included, against transformers' own forward of the same model, type and batches
          with all layers resident
  hook    the engine against one document per forward with a hook that recomputes every expert in fp32 (protocol
          section 4, as the reference measures), on 2,048-token windows and on 128-token documents
  depth   peak memory of the engine at 2 and at 6 layers, each in a process of its own
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.model.safetensors import header_bytes

HIDDEN, WIDTH, EXPERTS, TOP_K, DENSE, VOCABULARY = 2816, 704, 128, 8, 2112, 512


def config(layers: int) -> dict[str, Any]:
    """config.json of a text-only Gemma 4 with the 26B model's layer shapes; every sixth layer attends fully."""
    kinds = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)]
    kinds[-1] = "full_attention"
    return {
        "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "dtype": "bfloat16",
        "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "hidden_size": HIDDEN,
        "intermediate_size": DENSE, "num_hidden_layers": layers, "layer_types": kinds, "num_attention_heads": 16,
        "num_key_value_heads": 8, "num_global_key_value_heads": 2, "head_dim": 256, "global_head_dim": 512,
        "attention_k_eq_v": True, "sliding_window": 1024, "max_position_embeddings": 8192,
        "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False, "enable_moe_block": True, "num_experts": EXPERTS, "top_k_experts": TOP_K,
        "moe_intermediate_size": WIDTH, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
    }  # fmt: skip


def make_checkpoint(folder: Path, layers: int) -> None:
    """Random bf16 weights: normal with deviation 0.02 (norms and scales 1), from one seeded bank at shifting places."""
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
                out.write(torch.ones(count, dtype=torch.bfloat16).view(torch.uint8).numpy().data)
                continue
            while count:
                part = bank[at : at + count]
                out.write(part.view(torch.uint8).numpy().data)
                count -= len(part)
                at = (at + len(part)) % len(bank)


def windows(documents: int, length: int) -> Any:
    """`documents` random documents of `length` tokens, one window each."""
    from trimoe.measure.calibration import Document, windows_of

    rng = np.random.default_rng(1)
    made = [Document("c", tuple(rng.integers(3, VOCABULARY, length).tolist())) for _ in range(documents)]
    return windows_of(made, length, 16)


def engine(folder: Path, data: Any, dtype: str, batch: int) -> None:
    """The contestant: everything that `trimoe calibrate` does after tokenisation."""
    from trimoe.measure.engine import Options, measure
    from trimoe.model.checkpoint import open_checkpoint

    measure(open_checkpoint(folder), data, Options(dtype=dtype, batch_tokens=batch), "bench")


def load_plain(folder: Path, dtype: str) -> Any:
    """transformers' model with all layers resident and its default experts function."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def plain(model: Any, data: Any, batch: int) -> None:
    """The text model's forward over the same batches."""
    import torch

    from trimoe.measure.batching import batches_of

    with torch.inference_mode():
        for made in batches_of(data, batch):
            tokens = np.stack([data.windows[i].tokens for i in made.windows])
            model.model(input_ids=torch.from_numpy(tokens), use_cache=False)


def hook(model: Any, data: Any) -> None:
    """As the reference measures: one document per forward, every expert recomputed in fp32 in a hook."""
    import torch
    from torch.nn.functional import linear

    sums: dict[tuple[int, int], np.ndarray] = {}

    def see(layer: int) -> Callable[..., None]:
        def run(module: Any, args: Any, output: Any) -> None:
            hidden, index, weight = args
            for expert in range(module.num_experts):
                token, slot = torch.where(index == expert)
                if not len(token):
                    continue
                gate, up = linear(hidden[token].float(), module.gate_up_proj[expert].float()).chunk(2, -1)
                o = linear(module.act_fn(gate) * up, module.down_proj[expert].float())
                w = weight[token, slot].float()
                wnorm, rnorm = (o * w[:, None]).norm().item(), o.norm().item()
                row = [len(token), 1, wnorm, rnorm, wnorm**2, rnorm**2, w.mean().item()]
                sums[layer, expert] = sums.get((layer, expert), np.zeros(7)) + row

        return run

    hooks = [m.experts.register_forward_hook(see(i)) for i, m in enumerate(model.model.layers)]
    with torch.inference_mode():
        for window in data.windows:
            model.model(input_ids=torch.from_numpy(window.tokens)[None], use_cache=False)
    for handle in hooks:
        handle.remove()


def alternate(contestants: dict[str, Callable[[], None]], runs: int) -> dict[str, float]:
    """Median seconds of each, run in turns so that a disturbance meets all of them; the first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(runs + 1):
        for name, work in contestants.items():
            begin = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
            print(f"  {name}: {time.perf_counter() - begin:.2f} s{'' if turn else ' (warm-up)'}", file=sys.stderr)
    return {name: statistics.median(values) for name, values in seconds.items()}


def depth(folder: Path, layers: int, dtype: str) -> dict[str, float]:
    """Peak resident memory (MiB) of a process that measures 2,048 tokens through a model of `layers` layers."""
    make_checkpoint(folder, layers)
    child = [sys.executable, __file__, str(folder), "--child", "--dtype", dtype]
    done = subprocess.run(child, check=True, capture_output=True, text=True)
    shutil.rmtree(folder)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def main() -> None:
    """Run the parts and print the ratios beside their targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--part", choices=["all", "plain", "hook", "depth"], default="all")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        engine(options.dir, windows(1, 2048), options.dtype, 2048)
        print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    root: Path = options.dir / "trimoe-bench-calibrate"
    result: dict[str, Any] = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "dtype": options.dtype}
    try:
        if options.part in ("all", "plain", "hook"):
            folder = root / "model"
            make_checkpoint(folder, options.layers)
            model = load_plain(folder, options.dtype)
            long, short = windows(options.tokens // 2048, 2048), windows(options.tokens // 128, 128)
            if options.part != "hook":
                print("plain forward", file=sys.stderr)
                contest = {"plain": lambda: plain(model, long, 4096),
                           "engine": lambda: engine(folder, long, options.dtype, 4096)}  # fmt: skip
                took = alternate(contest, options.runs)
                result["plain"] = {**took, "ratio": took["engine"] / took["plain"], "at_most": 1.15}
            if options.part != "plain":
                for name, data, least in (("hook_2048", long, 1.8), ("hook_128", short, 6.0)):
                    print(name, file=sys.stderr)
                    contest = {"hook": lambda d=data: hook(model, d),  # type: ignore[misc]
                               "engine": lambda d=data: engine(folder, d, options.dtype, 4096)}  # type: ignore[misc] # fmt: skip
                    took = alternate(contest, options.runs)
                    result[name] = {**took, "ratio": took["hook"] / took["engine"], "at_least": least}
            del model
        if options.part in ("all", "depth"):
            two, six = (depth(root / f"deep{n}", n, options.dtype) for n in (2, 6))
            growth = six["peak_mib"] / two["peak_mib"] - 1
            result["depth"] = {"2": two, "6": six, "growth": growth, "at_most": 0.10}
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if options.json:
        print(json.dumps(result))
    else:
        for name, part in result.items():
            print(f"{name}: {part}")


if __name__ == "__main__":
    main()
