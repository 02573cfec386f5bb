#!/usr/bin/env bash
# transformers 5.23.0 with torch 2.13.0: a mixture of experts whose expert rows are not whole multiples of 16 bytes is
# built and loads, and its first forward pass ends with an error, because the default experts implementation is a
# grouped product that needs such rows and nothing looks at the width before.
#
# Expected: any moe_intermediate_size runs, if need be by the slower implementation.
# Seen: width 24 runs; width 27 ends with "strides should be multiple of 16 bytes" and runs with
# experts_implementation="eager". Why it matters: experts that were made narrower need such widths.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "transformers==5.23.0"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM


def outcome(width, **options):
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        intermediate_size=32, moe_intermediate_size=width, num_experts=4, num_experts_per_tok=2, **options,
    )
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(config).eval()
    if options.get("eager"):
        model.set_experts_implementation("eager")
    try:
        with torch.no_grad():
            model(torch.arange(8)[None])
    except RuntimeError as exc:
        return str(exc).split("\n")[0][:60]
    return "runs"


found = {width: outcome(width) for width in (24, 27)}
found["27, eager"] = outcome(27, eager=True)
print(found)
same = found[24] == "runs" and "multiple of 16 bytes" in found[27] and found["27, eager"] == "runs"
print("as recorded" if same else "CHANGED")
sys.exit(0 if same else 1)
PY
