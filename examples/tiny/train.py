"""Trains the bundled model: a real, small Gemma 4 mixture of experts. About 20 minutes on 2 CPU cores.

    python examples/tiny/train.py --out src/trimoe/model/tiny/checkpoint --log examples/tiny/train.jsonl

Seeded; data is generated on the fly (training split only). The load-balancing term keeps every expert in use. Without
it, idle experts would make every choice look lossless, and the demo would say nothing about real models. docs/log.md
lists what did not work.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from batches import SHARES, batches
from muon import Muon
from tokenizer import learn
from torch.nn import functional
from transformers import Gemma4ForCausalLM, Gemma4TextConfig, PreTrainedTokenizerFast

from trimoe.model.tiny.tasks import DOMAINS, generate

TEMPLATE = (
    "{{- bos_token -}}{%- for m in messages -%}{{- '<|turn>' + ('model' if m['role'] == 'assistant' else m['role']) + "
    "'\\n' + m['content'] | trim + '<turn|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|turn>model\\n' -}}{%- endif -%}"
)


def build(vocab_size: int) -> Gemma4ForCausalLM:
    """A model with every structural feature of the 26B model (sliding and full layers, shared K and V, MoE)."""
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
            # Gemma 4 attends with scale 1 on normalized queries and keys. With norm weights of 1 the softmax starts
            # saturated, and copying is not learned in 900 steps. This gives the usual scale of 1/sqrt(head_dim).
            torch.nn.init.constant_(weight, weight.numel() ** -0.25)
        elif "post_" in name:
            # The norms after attention and FFN write to the residual stream; weights of 1 would drown the embeddings.
            torch.nn.init.constant_(weight, 0.3)
        elif name.endswith("embed_tokens.weight"):
            torch.nn.init.normal_(weight, std=config.hidden_size**-0.5)
    model.set_experts_implementation("grouped_mm")
    return model


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


def rate_at(step: int, steps: int) -> float:
    """Learning rate as a share of its maximum: 40 steps of warm-up, flat to 40 %, then a line down to 2 %."""
    done = step / steps
    return min(1.0, step / 40) * (1.0 if done < 0.4 else max(0.02, (1 - done) / 0.6))


class Balance:
    """Records the routers of a forward pass: load-balancing loss, and entropy of expert use per layer."""

    def __init__(self, model: Gemma4ForCausalLM) -> None:
        self._routed: list[tuple[torch.Tensor, torch.Tensor]] = []
        for layer in model.model.layers:
            layer.router.register_forward_hook(lambda _m, _i, out: self._routed.append((out[0], out[2])))

    def clear(self) -> None:
        """Forget the last forward pass."""
        self._routed.clear()

    def terms(self, real: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
        """Loss (experts x share of choices x mean probability, mean over layers; 1 if even), entropy / maximum."""
        loss, entropy = torch.zeros(()), []
        for probs, index in self._routed:
            used = functional.one_hot(index[real], probs.shape[-1]).float().sum(1).mean(0) / index.shape[-1]
            loss = loss + probs.shape[-1] * (used * probs[real].mean(0)).sum()
            entropy.append(float(-(used * used.clamp_min(1e-9).log()).sum() / math.log(len(used))))
        return loss / len(self._routed), entropy


class Optimiser:
    """Muon for the matrices of attention, FFN and experts; AdamW for embeddings, routers and vectors."""

    def __init__(self, model: Gemma4ForCausalLM, rate: float, muon_rate: float) -> None:
        named = list(model.named_parameters())
        hidden = [p for n, p in named if p.ndim >= 2 and "embed" not in n and "router" not in n]
        mine = {id(p) for p in hidden}
        matrices = [p for _, p in named if p.ndim >= 2 and id(p) not in mine]
        vectors = [p for _, p in named if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
        self._rate, self._muon_rate, self._rest = rate, muon_rate, matrices + vectors
        self._adam = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-9)
        self._muon = Muon(hidden)

    def step(self, share: float) -> None:
        """Apply one update at `share` of the maximum rates and clear the gradients."""
        for group in self._adam.param_groups:
            group["lr"] = self._rate * share
        torch.nn.utils.clip_grad_norm_(self._rest, 1.0)
        self._muon.step(self._muon_rate * share)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)


def main() -> None:
    """Train the model, log the progress, save checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint directory to write")
    parser.add_argument("--log", type=Path, required=True, help="JSON lines: loss, entropy, held-out accuracy")
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--stop", type=int, help="stop after this step of the schedule (to compare early training)")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per step")
    parser.add_argument("--lr", type=float, default=3e-3, help="AdamW's learning rate")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--balance", type=float, default=0.02, help="weight of the load-balancing term")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints and held-out checks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="continue from the weights of this checkpoint, with a new optimiser")
    parser.add_argument("--shares", type=json.loads, default=SHARES, help="JSON: share of each domain in the batches")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    if args.start:  # reuse its tokenizer: a new one would assign other ids
        tok = PreTrainedTokenizerFast.from_pretrained(args.start)
    else:
        texts = [text for d in DOMAINS for i in generate(d, "train", 2000, seed=9) for text in (i.prompt, i.answer)]
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
    watch, optimiser = Balance(model), Optimiser(model, args.lr, args.muon_lr)
    batch_of = batches(tok, random.Random(args.seed), args.tokens, args.shares, repeats=not args.start)
    begin, mean_loss = time.time(), 0.0
    with args.log.open("w") as log:
        for step in range(1, (args.stop or args.steps) + 1):
            batch = batch_of(step)
            watch.clear()
            logits = model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False).logits[:, :-1]
            loss_each = functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]).float(), batch.ids[:, 1:].reshape(-1), reduction="none"
            )
            target = batch.weight[:, 1:].reshape(-1)
            loss = (loss_each * target).sum() / target.sum()
            balance, entropy = watch.terms((batch.ids != 0).reshape(-1))
            (loss + args.balance * balance).backward()
            optimiser.step(rate_at(step, args.steps))
            mean_loss = loss.item() if step == 1 else 0.9 * mean_loss + 0.1 * loss.item()
            if step % 25 == 0:
                row = {"step": step, "loss": round(mean_loss, 4), "entropy": [round(e, 3) for e in entropy]}
                if step % args.every == 0 or step == args.steps:
                    watch.clear()
                    row["exact"] = accuracy(model, tok, 200 if step == args.steps else 50)
                    save(model, tok, args.out)
                print(json.dumps(row | {"minutes": round((time.time() - begin) / 60, 1)}), flush=True)
                log.write(json.dumps(row) + "\n")
                log.flush()


def save(model: Gemma4ForCausalLM, tok: PreTrainedTokenizerFast, out: Path) -> None:
    """Save bf16 weights, config, generation config, tokenizer and chat template."""
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    model.config.dtype = torch.bfloat16
    model.save_pretrained(out, state_dict=state)
    tok.save_pretrained(out)


if __name__ == "__main__":
    main()
