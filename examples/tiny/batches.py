"""Training batches: chats of all domains packed into rows of equal width, without attention between chats.

A row holds several chats. `positions` restart with each chat; transformers derives from them a mask that separates the
chats. Early batches also hold repeats of random tokens, which teach copying in 150 steps; the chats alone did not teach
it in 900 (docs/log.md).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from trimoe.model.tiny.tasks import DOMAINS, items

SHARES = {"code": 0.17, "math": 0.2, "choice": 0.16, "format": 0.14, "text": 0.19, "story": 0.14}
WIDTH = 192
PROMPT_WEIGHT = 0.05
FIRST_TEXT_TOKEN = 9 + 256  # after the special and the byte tokens
BOS, TURN_END = 2, 5


@dataclass(frozen=True)
class Batch:
    """Tensors [rows, WIDTH]: token ids (0 is padding), positions within each chat, weight of each token in the loss."""

    ids: torch.Tensor
    positions: torch.Tensor
    weight: torch.Tensor


def repeats_share(step: int) -> float:
    """Share of random repeats among the sequences of a step."""
    return 0.4 if step < 150 else 0.1 if step < 600 else 0.0


def encode(tok: PreTrainedTokenizerFast, prompt: str, answer: str) -> tuple[list[int], int]:
    """Token ids of a chat, and the number of prompt tokens before the reply."""
    head = tok(f"<bos><|turn>user\n{prompt}<turn|>\n<|turn>model\n", add_special_tokens=False).input_ids
    return head + tok(f"{answer}<turn|>", add_special_tokens=False).input_ids, len(head)


def batches(
    tok: PreTrainedTokenizerFast, rng: random.Random, tokens: int, shares: dict[str, float], repeats: bool = True
) -> Callable[[int], Batch]:
    """A function from the step to its batch of about `tokens` tokens; call it once per step, in order.

    `repeats=False` omits the random repeats, for a model that has already learned to copy.
    """
    streams = {d: items(d, "train", seed=1) for d in DOMAINS}

    def sequence(step: int) -> tuple[list[int], int]:
        if repeats and rng.random() < repeats_share(step):
            length = rng.randint(5, 24)
            body = [rng.randrange(FIRST_TEXT_TOKEN, len(tok)) for _ in range(length)]
            return [BOS, *body, TURN_END, *body, TURN_END], length + 2
        item = next(streams[rng.choices(list(shares), list(shares.values()))[0]])
        return encode(tok, item.prompt, item.answer)

    def batch(step: int) -> Batch:
        rows = tokens // WIDTH
        ids, positions = torch.zeros(rows, WIDTH, dtype=torch.long), torch.zeros(rows, WIDTH, dtype=torch.long)
        weight, fill, misses = torch.zeros(rows, WIDTH), [0] * rows, 0
        while misses < 12:
            seq, head = sequence(step)
            fits = [row for row in range(rows) if fill[row] + len(seq) <= WIDTH]
            if not fits:
                misses += 1
                continue
            row = max(fits, key=lambda r: fill[r])
            begin, end = fill[row], fill[row] + len(seq)
            ids[row, begin:end] = torch.tensor(seq)
            positions[row, begin:end] = torch.arange(len(seq))
            weight[row, begin + 1 : end] = PROMPT_WEIGHT
            weight[row, begin + head : end] = 1.0
            fill[row] = end
        for row, end in enumerate(fill):
            positions[row, end:] = torch.arange(WIDTH - end)
        return Batch(ids, positions, weight)

    return batch
