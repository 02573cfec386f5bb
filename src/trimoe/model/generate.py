"""Greedy generation inside this process: batches, left padding, key-value cache, finished rows dropped. Needs torch.

Invariants: a reply is a function of model and prompt; batch neighbours change nothing but the last float bits (fp32, so
a verdict can only differ on a tie). Logits that are not finite stop the run: they are a broken model, not an answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput, CheckpointError, MissingPrerequisite

TURN_END = "<turn|>"  # Gemma 4's end of turn; other families end with their eos token
SAMPLER: dict[str, Any] = {"engine": "trimoe", "decoding": "greedy", "dtype": "float32"}


@dataclass(frozen=True)
class Reply:
    """`text` without the stop token, special tokens kept as text; `finish_reason` is stop or length."""

    text: str
    finish_reason: str
    prompt_tokens: int
    reply_tokens: int


class Generator:
    """A loaded model that answers chats."""

    def __init__(self, model_dir: Path, device: str = "cpu") -> None:
        try:
            import torch
            from transformers import AutoTokenizer
        except ImportError as exc:
            raise MissingPrerequisite(
                "generation needs torch and transformers", actual=str(exc), remedy="pip install 'trimoe[torch]'"
            ) from exc
        self._torch = torch
        self._tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True, padding_side="left")
        if not self._tokenizer.chat_template:
            raise BadInput(
                f"{model_dir} has no chat template",
                expected="chat_template.jinja beside the tokenizer",
                remedy="copy it from the original model",
            )
        self._model = _load(model_dir).to(device)
        self._device = device
        self._stops = torch.tensor(sorted(self._stop_ids()), device=device)
        self._pad = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else int(self._stops[0])

    def _stop_ids(self) -> set[int]:
        configured = self._model.generation_config.eos_token_id
        ids = set(configured) if isinstance(configured, list) else {configured}
        ids |= {self._tokenizer.eos_token_id, self._tokenizer.get_vocab().get(TURN_END)}
        return {i for i in ids if i is not None}

    def encode(self, prompt: str, history: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Token ids of the rendered chat, up to and including the marker that opens the reply.

        `history` holds earlier turns as (role, text).
        """
        turns = [{"role": role, "content": text} for role, text in (*history, ("user", prompt))]
        text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def require_room(self, prompts: Sequence[list[int]], max_new_tokens: int) -> None:
        """`BadInput` when a prompt and its longest reply do not fit the model's context."""
        context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        longest = max(map(len, prompts), default=0)
        if context is not None and longest + max_new_tokens > context:
            raise BadInput(
                "a prompt does not fit the model's context",
                expected=f"at most {context} tokens",
                actual=f"{longest} of prompt and up to {max_new_tokens} of reply",
                remedy="use a model with a longer context",
            )

    def reply(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Reply]:
        """Greedy replies to one batch of encoded prompts, in their order. Peak memory grows with the batch."""
        with self._torch.inference_mode():
            rows, stopped = self._decode(prompts, max_new_tokens)
        return [
            Reply(
                str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)),
                "stop" if stop else "length",
                len(prompt),
                len(ids) + stop,
            )
            for prompt, ids, stop in zip(prompts, rows, stopped, strict=True)
        ]

    def _decode(self, prompts: Sequence[list[int]], max_new_tokens: int) -> tuple[list[list[int]], list[bool]]:
        torch = self._torch
        from transformers import DynamicCache

        width = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (width - len(p)) + p for p in prompts], device=self._device)  # [B, T]
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        cache = DynamicCache(config=self._model.config)
        alive = list(range(len(prompts)))  # alive[k] = index of the prompt that row k of the batch belongs to
        rows: list[list[int]] = [[] for _ in prompts]
        stopped = [False] * len(prompts)
        for _ in range(max_new_tokens):
            out = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = out.logits[:, -1]  # [rows alive, vocabulary]
            if not bool(torch.isfinite(logits).all()):
                raise CheckpointError(
                    "the model's logits are not finite",
                    expected="finite numbers",
                    remedy="the weights hold NaN or overflow: check the checkpoint",
                )
            chosen = logits.argmax(-1)
            ended = torch.isin(chosen, self._stops)
            for row, token, end in zip(alive, chosen.tolist(), ended.tolist(), strict=True):
                if end:
                    stopped[row] = True
                else:
                    rows[row].append(token)
            if bool(ended.any()):
                keep = (~ended).nonzero().flatten()
                if not len(keep):
                    break
                alive = [alive[k] for k in keep.tolist()]
                cache.batch_select_indices(keep)
                mask, positions, chosen = mask[keep], positions[keep], chosen[keep]
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        return rows, stopped


def _load(model_dir: Path) -> Any:
    """The model in fp32; refuses when the loader left out, invented or reshaped any tensor."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    model, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(kind):
            raise CheckpointError(
                f"{model_dir} does not load exactly: {kind}",
                expected="none",
                actual=", ".join(sorted(map(str, info[kind]))[:5]),
                remedy="architecture and weights do not belong together",
            )
    return model.eval()
