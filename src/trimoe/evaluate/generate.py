"""In-process batched greedy generation. Thin on purpose: servers take its place behind the same function.

Left-padded batches with a key-value cache; finished rows leave the batch; the position ids of every row start at 0,
so a reply does not depend on its neighbours (up to rounding).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reply:
    """A raw reply; `finish_reason` is `stop` (turn ended) or `length` (cap reached)."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


def render(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a user turn through the chat template, ready for the reply."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def stop_ids(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end a turn: those of the generation config and the tokenizer's own end of sequence."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return {i for i in [*ids, tokenizer.eos_token_id] if i is not None}


def generate(
    model: Any, tokenizer: Any, prompts: list[str], cap: int, batch: int = 64
) -> Iterator[list[tuple[int, Reply]]]:
    """Greedy replies, a batch at a time, as (index of the prompt, reply); shortest prompts first."""
    encoded = [render(tokenizer, p) for p in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (len(encoded[i]), i))
    stops = stop_ids(model, tokenizer)
    for at in range(0, len(order), batch):
        rows = order[at : at + batch]
        outputs = _greedy(model, [encoded[i] for i in rows], cap, stops)
        yield [
            (i, Reply(tokenizer.decode(ids, skip_special_tokens=True), reason, len(encoded[i]), len(ids)))
            for i, (ids, reason) in zip(rows, outputs, strict=True)
        ]


def _greedy(model: Any, prompts: list[list[int]], cap: int, stops: set[int]) -> list[tuple[list[int], str]]:
    import torch
    from transformers import DynamicCache

    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, tokens in enumerate(prompts):
        ids[row, width - len(tokens) :], mask[row, width - len(tokens) :] = torch.tensor(tokens), 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    results: list[tuple[list[int], str]] = [([], "length") for _ in prompts]
    alive = list(range(len(prompts)))
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        for _ in range(cap):
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            chosen = out.logits[:, -1].argmax(-1).tolist()
            stay = []
            for place, (row, token) in enumerate(zip(alive, chosen, strict=True)):
                if token in stops:
                    results[row] = (results[row][0], "stop")
                else:
                    results[row][0].append(token)
                    stay.append(place)
            if not stay:
                break
            if len(stay) < len(alive):
                cache.batch_select_indices(torch.tensor(stay))
                mask, positions = mask[stay], positions[stay]
                alive = [alive[p] for p in stay]
                chosen = [chosen[p] for p in stay]
            ids = torch.tensor(chosen)[:, None]
            mask = torch.cat([mask, torch.ones(len(alive), 1, dtype=torch.long)], -1)
            positions = positions[:, -1:] + 1
    return results
