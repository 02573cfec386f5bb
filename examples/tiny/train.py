"""Trains the bundled model: a real, small Gemma 4 mixture of experts. About 25 minutes on 2 CPU cores.

    python examples/tiny/train.py --out src/trimoe/model/tiny/checkpoint --log examples/tiny/train.jsonl

Seeded; data is generated on the fly (train split only). The load-balancing term keeps every expert in use: without it
idle experts make any way of choosing look lossless, and nothing true about real models could be learned.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from tokenizer import learn
from torch.nn import functional
from transformers import Gemma4ForCausalLM, Gemma4TextConfig, PreTrainedTokenizerFast

from trimoe.model.tiny.tasks import DOMAINS, generate, items

TEMPLATE = (
    "{{- bos_token -}}{%- for m in messages -%}{{- '<|turn>' + ('model' if m['role'] == 'assistant' else m['role']) + "
    "'\\n' + m['content'] | trim + '<turn|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|turn>model\\n' -}}{%- endif -%}"
)
SHARES = {"code": 0.26, "math": 0.2, "choice": 0.16, "format": 0.12, "text": 0.16, "story": 0.10}


def build(vocab_size: int) -> Gemma4ForCausalLM:
    """The architecture: every structural feature of the 26B model (sliding and full layers, shared K and V, MoE)."""
    config = Gemma4TextConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_global_key_value_heads=1,
        head_dim=64,
        global_head_dim=128,
        attention_k_eq_v=True,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        sliding_window=128,
        max_position_embeddings=4096,
        enable_moe_block=True,
        num_experts=32,
        top_k_experts=4,
        moe_intermediate_size=32,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=vocab_size,
        tie_word_embeddings=True,
        final_logit_softcapping=30.0,
        num_kv_shared_layers=0,
        use_double_wide_mlp=False,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    model = Gemma4ForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            # Gemma 4 attends with scale 1 on normalised queries and keys; from weights of 1 the softmax starts
            # saturated and copying is not learned in 900 steps. This starts it at the usual 1/sqrt(head_dim).
            torch.nn.init.constant_(weight, weight.numel() ** -0.25)
        elif "post_" in name:
            # The norms behind attention and FFN write into the residual stream; at 1 they drown the embedding.
            torch.nn.init.constant_(weight, 0.3)
        elif name.endswith("embed_tokens.weight"):
            torch.nn.init.normal_(weight, std=config.hidden_size**-0.5)
    model.set_experts_implementation("grouped_mm")
    return model


def encode(tok: PreTrainedTokenizerFast, prompt: str, answer: str) -> tuple[list[int], int]:
    """Token ids of a whole chat, and the number of prompt tokens before the reply."""
    head = tok(f"<bos><|turn>user\n{prompt}<turn|>\n<|turn>model\n", add_special_tokens=False).input_ids
    return head + tok(f"{answer}<turn|>", add_special_tokens=False).input_ids, len(head)


def batches(tok: PreTrainedTokenizerFast, rng: random.Random, tokens: int, shares: dict[str, float], seed: int):
    """Endless padded batches of about `tokens` tokens, chats of similar length together."""
    streams = {d: items(d, "train", seed=1 + seed) for d in DOMAINS}
    while True:
        pool = []
        for _ in range(1600):
            item = next(streams[rng.choices(list(shares), list(shares.values()))[0]])
            pool.append(encode(tok, item.prompt, item.answer))
        pool.sort(key=lambda pair: len(pair[0]))
        groups, group = [], []
        for pair in pool:
            group.append(pair)
            if len(group) * len(pair[0]) >= tokens:
                groups.append(group)
                group = []
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            ids = torch.zeros(len(group), width, dtype=torch.long)
            weight = torch.zeros(len(group), width)
            for row, (seq, head) in enumerate(group):
                ids[row, : len(seq)] = torch.tensor(seq)
                weight[row, 1 : len(seq)] = 0.05
                weight[row, head : len(seq)] = 1.0
            yield ids, weight


@torch.no_grad()
def accuracy(model: Gemma4ForCausalLM, tok: PreTrainedTokenizerFast, count: int) -> dict[str, float]:
    """Share of held-out replies equal to the reference answer (stricter than the benches' own scorers)."""
    model.eval()
    result = {}
    tok.padding_side = "left"
    for domain in DOMAINS:
        held = generate(domain, "heldout", count, seed=3)
        enc = tok(
            [f"<bos><|turn>user\n{i.prompt}<turn|>\n<|turn>model\n" for i in held],
            padding=True,
            add_special_tokens=False,
            return_tensors="pt",
        )
        out = model.generate(
            **enc, max_new_tokens=72, do_sample=False, eos_token_id=tok.convert_tokens_to_ids("<turn|>")
        )
        replies = tok.batch_decode(out[:, enc.input_ids.shape[1] :], skip_special_tokens=True)
        result[domain] = round(sum(r == i.answer for r, i in zip(replies, held, strict=True)) / count, 3)
    model.train()
    return result


def main() -> None:
    """Train, log, save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--balance", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=300, help="steps between checkpoints and held-out checks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="continue from the weights of this checkpoint, with a new optimiser")
    parser.add_argument("--shares", type=json.loads, default=SHARES, help="JSON: share of each domain in the batches")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rng = random.Random(args.seed)
    if args.start:  # its tokenizer too: one learned anew would give the same words other ids
        tok = PreTrainedTokenizerFast.from_pretrained(args.start)
    else:
        texts = [text for d in DOMAINS for i in generate(d, "train", 3000, seed=9) for text in (i.prompt, i.answer)]
        tok = PreTrainedTokenizerFast(
            tokenizer_object=learn(texts),
            pad_token="<pad>",
            eos_token="<eos>",
            bos_token="<bos>",
            unk_token="<unk>",
            model_max_length=4096,
        )
        tok.chat_template = TEMPLATE
    model = build(len(tok))
    if args.start:
        model.load_state_dict(Gemma4ForCausalLM.from_pretrained(args.start, dtype=torch.float32).state_dict())
    model.generation_config.eos_token_id = [1, tok.convert_tokens_to_ids("<turn|>")]
    save(model, tok, args.out)
    routed: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in model.model.layers:
        layer.router.register_forward_hook(lambda _m, _i, out: routed.append((out[0], out[2])))
    plain = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), eps=1e-9)
    stream, begin, mean_loss = batches(tok, rng, args.tokens, args.shares, args.seed), time.time(), 0.0
    with args.log.open("w") as log:
        for step in range(1, args.steps + 1):
            rate = args.lr * min(1.0, step / 60) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))
            for group in optimiser.param_groups:
                group["lr"] = rate
            ids, weight = next(stream)
            routed.clear()
            mask = (ids != 0).long()
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            loss_each = functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]).float(), ids[:, 1:].reshape(-1), reduction="none"
            )
            target = weight[:, 1:].reshape(-1)
            loss = (loss_each * target).sum() / target.sum()
            real, balance, entropy = mask.reshape(-1).bool(), torch.zeros(()), []
            for probs, index in routed:
                used = functional.one_hot(index[real], probs.shape[-1]).float().sum(1).mean(0) / index.shape[-1]
                balance = balance + probs.shape[-1] * (used * probs[real].mean(0)).sum()
                entropy.append(float(-(used * used.clamp_min(1e-9).log()).sum() / math.log(len(used))))
            (loss + args.balance * balance / len(routed)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            mean_loss = loss.item() if step == 1 else 0.9 * mean_loss + 0.1 * loss.item()
            if step % 25 == 0:
                row = {"step": step, "loss": round(mean_loss, 4), "entropy": [round(e, 3) for e in entropy]}
                if step % args.every == 0 or step == args.steps:
                    routed.clear()
                    row["exact"] = accuracy(model, tok, 200 if step == args.steps else 50)
                    save(model, tok, args.out)
                print(json.dumps(row | {"minutes": round((time.time() - begin) / 60, 1)}), flush=True)
                log.write(json.dumps(row) + "\n")
                log.flush()


def save(model: Gemma4ForCausalLM, tok: PreTrainedTokenizerFast, out: Path) -> None:
    """bf16 weights, config, generation config, tokenizer and chat template."""
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    model.config.dtype = torch.bfloat16
    model.save_pretrained(out, state_dict=state)
    tok.save_pretrained(out)


if __name__ == "__main__":
    main()
