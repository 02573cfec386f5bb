#!/usr/bin/env bash
# transformers 5.23.0 takes the expert width of a qwen3moe GGUF from its own default (768), not from the header's
# qwen3moe.expert_feed_forward_length.
#
# Expected: a model with moe_intermediate_size 32, as the header says.
# Seen: config.moe_intermediate_size is 768 and loading ends with a size mismatch ([4, 64, 64] in the file, [4, 1536, 64]
# in the model). Why it matters: qwen3moe files with narrower or wider experts cannot be checked by this route.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "transformers==5.23.0" "gguf==0.19.0" "accelerate==1.15.0"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys

import gguf
import numpy as np
from transformers import AutoConfig, AutoModelForCausalLM

EXPERTS, WIDTH, HIDDEN, VOCAB = 4, 32, 64, 64
draw = np.random.default_rng(0)


def random(*shape):
    return (draw.standard_normal(shape) * 0.1).astype(np.float32)


w = gguf.GGUFWriter("model.gguf", "qwen3moe")
w.add_context_length(128), w.add_embedding_length(HIDDEN), w.add_block_count(1), w.add_feed_forward_length(WIDTH)
w.add_head_count(2), w.add_head_count_kv(2), w.add_layer_norm_rms_eps(1e-6), w.add_rope_freq_base(10000.0)
w.add_vocab_size(VOCAB), w.add_expert_feed_forward_length(WIDTH), w.add_expert_count(EXPERTS), w.add_expert_used_count(2)
w.add_key_length(32), w.add_value_length(32)
w.add_tokenizer_model("llama"), w.add_token_list([b"<unk>", b"<s>", b"</s>", *(b"t%d" % i for i in range(3, VOCAB))])
w.add_token_scores([0.0] * VOCAB), w.add_token_types([1] * VOCAB), w.add_bos_token_id(1), w.add_eos_token_id(2)
for name, value in {
    "token_embd.weight": random(VOCAB, HIDDEN), "output.weight": random(VOCAB, HIDDEN),
    "output_norm.weight": np.ones(HIDDEN, np.float32), "blk.0.attn_norm.weight": np.ones(HIDDEN, np.float32),
    "blk.0.ffn_norm.weight": np.ones(HIDDEN, np.float32), "blk.0.attn_q.weight": random(64, HIDDEN),
    "blk.0.attn_k.weight": random(64, HIDDEN), "blk.0.attn_v.weight": random(64, HIDDEN),
    "blk.0.attn_q_norm.weight": np.ones(32, np.float32), "blk.0.attn_k_norm.weight": np.ones(32, np.float32),
    "blk.0.attn_output.weight": random(HIDDEN, 64), "blk.0.ffn_gate_inp.weight": random(EXPERTS, HIDDEN),
    "blk.0.ffn_gate_exps.weight": random(EXPERTS, WIDTH, HIDDEN),
    "blk.0.ffn_up_exps.weight": random(EXPERTS, WIDTH, HIDDEN),
    "blk.0.ffn_down_exps.weight": random(EXPERTS, HIDDEN, WIDTH),
}.items():
    w.add_tensor(name, value)
w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()

width = AutoConfig.from_pretrained(".", gguf_file="model.gguf").moe_intermediate_size
try:
    AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf")
    ended = "loaded"
except RuntimeError as exc:
    ended = f"RuntimeError: {str(exc)[:80]}"
print(f"width in the header {WIDTH}, in the config {width}; {ended}")
same = width == 768 and "ignore_mismatched_sizes" in ended
print("as recorded" if same else "CHANGED")
sys.exit(0 if same else 1)
PY
