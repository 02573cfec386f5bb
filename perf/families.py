"""The coverage of transformers' MoE model types: a tiny random checkpoint of each goes through the whole job.

    python perf/families.py DIR [--only TYPE,...] [--layouts published,stacked] [--json FILE]

For every model type of the installed transformers whose configuration counts experts, a checkpoint with random weights
is made, inspected, calibrated, cut by a quarter of its experts and certified with logits, in a process of its own. What
does not pass is recorded with the sentence that the user would see.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LIMIT = 600  # seconds for one type
VOCABULARY, HIDDEN, LAYERS, EXPERTS, TOP_K, WIDTH = 648, 64, 3, 8, 2, 32
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "d_model": HIDDEN,
    "num_hidden_layers": LAYERS,
    "n_layers": LAYERS,
    "num_layers": LAYERS,
    "num_attention_heads": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "moe_intermediate_size": WIDTH,
    "expert_intermediate_size": WIDTH,
    "shared_expert_intermediate_size": WIDTH,
    "shared_intermediate_size": WIDTH,
    "ffn_hidden_size": 48,
    "expert_ffn_hidden_size": WIDTH,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "moe_topk": TOP_K,
    "moe_k": TOP_K,
    "num_experts_per_token": TOP_K,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_num_heads": 4,
    "mamba_head_dim": 32,
    "ssm_state_size": 16,
    "n_groups": 1,
}
OWN: dict[str, dict[str, Any]] = {
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "dots3_note_text": {"num_key_value_heads": 4},
    "doge": {"is_moe": True},
    "longcat_flash": {"num_layers": 2, "zero_expert_num": 0},
}
"""Settings of single types, where the sizes above do not fit together."""


def types() -> list[str]:
    """Model types of causal language models whose configuration counts experts."""
    import inspect
    import re

    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE

    keys = "num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_experts_per_tok|moe_topk"
    counts = re.compile(rf"\b({keys})\b")
    found = []
    for name in CONFIG_MAPPING:
        try:
            text = inspect.getsource(CONFIG_MAPPING[name])
        except Exception:  # noqa: BLE001 lazily loaded modules of other packages
            continue
        if counts.search(text) and (name in CAUSAL or name in IMAGE):
            found.append(name)
    return sorted(found)


def make(kind: str, folder: Path, layout: str) -> None:
    """A tiny random checkpoint of a model type, with the bundled model's tokenizer."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from trimoe.model import tiny

    torch.manual_seed(0)
    cls = CONFIG_MAPPING[kind]
    default = cls()
    given = {key: value for key, value in SIZES.items() if hasattr(default, key)}
    if hasattr(default, "qk_rope_head_dim"):
        given |= dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8)
        given["num_key_value_heads"] = SIZES["num_attention_heads"]
    given |= OWN.get(kind, {})
    for key in ("layer_types", "mlp_layer_types", "layers_block_type", "mlp_only_layers"):
        value = getattr(default, key, None)
        fixed = isinstance(getattr(cls, key, None), property)
        if isinstance(value, list) and value and not fixed and key not in OWN.get(kind, {}):
            given[key] = value[: LAYERS - 1] + value[-1:]
    config = cls(**given)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "A_log" not in name and "inv_freq" not in name:
                one = "norm" in name
                # Linear attention divides by small norms: large values would only show how rounding grows.
                size = 0.03 if "linear_attn" in name or "mamba" in name else 0.1
                tensor.copy_(torch.rand_like(tensor) + 0.5 if one else torch.randn_like(tensor) * size)
    model.save_pretrained(folder, save_original_format=layout == "published")
    for file in tiny.path().iterdir():
        if file.name.startswith("tokenizer") or file.name == "chat_template.jinja":
            shutil.copy(file, folder / file.name)


def one(kind: str, work: Path, layout: str) -> dict[str, Any]:
    """The whole job for one model type; the row of the table."""
    import random

    import trimoe
    from trimoe.choose.dropmap import DropMap
    from trimoe.model.checkpoint import open_checkpoint

    row: dict[str, Any] = {"type": kind, "layout": layout}
    base = work / "base"
    step = "make"
    try:
        make(kind, base, layout)
        step = "inspect"
        model = open_checkpoint(base)
        row |= {"family": model.family.name, "experts": model.num_experts, "layers": len(model.moe_layers)}
        if model.cannot_cut:
            raise RuntimeError(model.cannot_cut)
        step = "calibrate"
        (work / "text.txt").write_text("def add(a, b):\n    return a + b\n" * 40)
        (work / "set.yaml").write_text("name: t\nwindow: 64\nclasses:\n  generic_a: [{kind: text, path: text.txt}]\n")
        stats = trimoe.calibrate(base, work / "set.yaml", work / "stats.safetensors")
        step = "map"
        groups = model.groups.count if model.groups else 1
        keep = max(model.top_k, model.num_experts - -(-model.num_experts // 4 // groups) * groups)
        drop_map = trimoe.choose(stats, recipe="reap", keep=keep)
        step = "prune"
        trimoe.prune(base, drop_map, out=work / "cut")
        step = "certify"
        certificate = trimoe.certify(base, work / "cut")
        row["difference"] = certificate.max_logit_difference
        if not certificate.proven:
            reasons = [c.detail for c in certificate.checks if c.status != "passed"]
            raise RuntimeError(f"{certificate.status}: {'; '.join(reasons)}")
        # The measured map must not be the only one that passes.
        step = "a random map"
        rng, size = random.Random(1), model.num_experts // groups
        lost = (model.num_experts - keep) // groups
        drop = {
            layer: tuple(sorted(g * size + i for g in range(groups) for i in rng.sample(range(size), lost)))
            for layer in model.moe_layers
        }
        trimoe.prune(base, DropMap(drop, model.num_experts), out=work / "other")
        other = trimoe.certify(base, work / "other")
        if not other.proven:
            raise RuntimeError("; ".join(c.detail for c in other.checks if c.status != "passed"))
        step = "passed"
    except Exception as exc:  # noqa: BLE001 every kind of failure is a row of the table
        row["reason"] = " ".join(f"{getattr(exc, 'subject', exc)}".split())[:300]
        row["actual"] = str(getattr(exc, "actual", "") or type(exc).__name__)[:200]
    return row | {"reached": step}


def main() -> None:
    """Run each type in its own process; results so far are kept in DIR."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--one", nargs=2, metavar=("TYPE", "LAYOUT"))
    parser.add_argument("--layouts", default="published,stacked")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one[0], options.folder, options.one[1])))
        return
    rows = []
    for kind in options.only.split(",") if options.only else types():
        for layout in options.layouts.split(","):
            work = options.folder / f"{kind}-{layout}"
            work.mkdir(parents=True, exist_ok=True)
            done = work / "row.json"
            if not done.exists():
                words = [sys.executable, __file__, str(work), "--one", kind, layout]
                try:
                    out = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False)
                    line = (out.stdout.strip().splitlines() or ["{}"])[-1]
                    row = json.loads(line) if line.startswith("{") else {"reached": "make", "reason": out.stderr[-300:]}
                except subprocess.TimeoutExpired:
                    row = {"reached": "stopped", "reason": f"no end within {LIMIT} s"}
                done.write_text(json.dumps({"type": kind, "layout": layout} | row))
            rows.append(json.loads(done.read_text()))
            shown = ("type", "layout", "family", "reached", "difference", "reason", "actual")
            print(*(rows[-1].get(key, "") for key in shown))
    if options.json:
        from importlib.metadata import version

        found = {"transformers": version("transformers"), "torch": version("torch"), "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
