#!/usr/bin/env bash
# transformers 5.23.0 loads a Mixtral GGUF (llama.cpp writes Mixtral as architecture "llama" with expert_count set) as a
# dense LlamaForCausalLM: the expert tensors are dropped and the feed-forward weights are random.
#
# Expected: MixtralForCausalLM, or an error, since the header says llama.expert_count = 4 and the file holds *_exps tensors.
# Seen: no error; the expert tensors are not even reported as unexpected; gate, up and down projections are missing and
# newly initialised. Why it matters: whoever checks a pruned Mixtral GGUF by this route measures random numbers.
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
from transformers import AutoModelForCausalLM

EXPERTS, WIDTH, HIDDEN, VOCAB = 4, 32, 64, 64
draw = np.random.default_rng(0)


def random(*shape):
    return (draw.standard_normal(shape) * 0.1).astype(np.float32)


w = gguf.GGUFWriter("model.gguf", "llama")
w.add_context_length(128), w.add_embedding_length(HIDDEN), w.add_block_count(1), w.add_feed_forward_length(WIDTH)
w.add_head_count(2), w.add_head_count_kv(2), w.add_layer_norm_rms_eps(1e-6), w.add_rope_freq_base(10000.0)
w.add_vocab_size(VOCAB), w.add_rope_dimension_count(32), w.add_expert_count(EXPERTS), w.add_expert_used_count(2)
w.add_tokenizer_model("llama"), w.add_token_list([b"<unk>", b"<s>", b"</s>", *(b"t%d" % i for i in range(3, VOCAB))])
w.add_token_scores([0.0] * VOCAB), w.add_token_types([1] * VOCAB), w.add_bos_token_id(1), w.add_eos_token_id(2)
for name, value in {
    "token_embd.weight": random(VOCAB, HIDDEN), "output.weight": random(VOCAB, HIDDEN),
    "output_norm.weight": np.ones(HIDDEN, np.float32), "blk.0.attn_norm.weight": np.ones(HIDDEN, np.float32),
    "blk.0.ffn_norm.weight": np.ones(HIDDEN, np.float32), "blk.0.attn_q.weight": random(64, HIDDEN),
    "blk.0.attn_k.weight": random(64, HIDDEN), "blk.0.attn_v.weight": random(64, HIDDEN),
    "blk.0.attn_output.weight": random(HIDDEN, 64), "blk.0.ffn_gate_inp.weight": random(EXPERTS, HIDDEN),
    "blk.0.ffn_gate_exps.weight": random(EXPERTS, WIDTH, HIDDEN),
    "blk.0.ffn_up_exps.weight": random(EXPERTS, WIDTH, HIDDEN),
    "blk.0.ffn_down_exps.weight": random(EXPERTS, HIDDEN, WIDTH),
}.items():
    w.add_tensor(name, value)
w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()

model, info = AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", output_loading_info=True)
missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
print(f"{type(model).__name__}; missing {missing}; unexpected {unexpected}")
same = type(model).__name__ == "LlamaForCausalLM" and len(missing) == 3 and not unexpected
print("as recorded" if same else "CHANGED")
sys.exit(0 if same else 1)
PY
