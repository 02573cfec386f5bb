"""Greedy generation in this process: batches, left padding, key-value cache, finished rows dropped. Needs torch.

Invariants: a reply is a function of model and prompt. The other prompts of a batch change only the last bits of its
floats, so a token can differ only at a tie. Penalties and samplers in the checkpoint's generation settings are ignored.
Logits that are not finite stop the run, because they come from a broken model. A checkpoint is refused if a tensor is
missing, has another shape, or is not part of the model, except vision and audio towers and draft blocks, which text
generation does not use.
Not guaranteed: the same tokens on another device or another version of torch, where a tie may be decided differently.
"""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput, CheckpointError, MissingPrerequisite, TrimoeError
from trimoe.model.auto import auto_class_of
from trimoe.model.chat import rendered_chat
from trimoe.model.dequantize.parts import NotFloats
from trimoe.model.floats import as_floats, refusal
from trimoe.model.tokenizer import load_tokenizer

TURN_END = "<turn|>"  # Gemma 4's end of turn; other families end with their eos token
SAMPLER: dict[str, Any] = {"engine": "trimoe", "decoding": "greedy", "dtype": "float32"}
_TOWER = re.compile(r"(?:^|\.)(?:vision|visual|audio|multi_modal)\w*\.")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True)
class Reply:
    """One reply. `text` has special tokens but not the stop token; `finish_reason` is stop or length.

    `tokens` are the generated ids, including the stop token; `reply_tokens` is their number.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    reply_tokens: int
    tokens: tuple[int, ...] = ()


class Generator:
    """A loaded model that answers chats.

    `tokenizer` replaces the checkpoint's own; `stops` are ids that end a reply besides the model's eos tokens.
    """

    def __init__(
        self,
        model_dir: Path,
        device: str = "cpu",
        dtype: str = "float32",
        *,
        tokenizer: Any = None,
        stops: Sequence[int] = (),
    ) -> None:
        try:
            import torch
        except ImportError as exc:
            raise MissingPrerequisite(
                "generation needs torch and transformers", actual=str(exc), remedy="pip install 'trimoe[torch]'"
            ) from exc
        self._torch = torch
        self._tokenizer = tokenizer or load_tokenizer(Path(model_dir))
        if not self._tokenizer.chat_template:
            raise BadInput(
                f"{model_dir} has no chat template",
                expected="chat_template.jinja beside the tokenizer",
                remedy="copy it from the original model",
            )
        self._model = load_model(model_dir, dtype).to(device)
        self._device = device
        ids = self._stop_ids() | set(stops)
        if not ids:
            raise CheckpointError(
                f"{model_dir} does not say which token ends a reply",
                expected="eos_token_id",
                remedy="add generation_config.json of the original model",
            )
        self._stops = torch.tensor(sorted(ids), device=device)
        self._pad = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else int(self._stops[0])
        takes_last = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if takes_last else {}

    def _stop_ids(self) -> set[int]:
        configured = self._model.generation_config.eos_token_id
        ids = set(configured) if isinstance(configured, list) else {configured}
        ids |= {self._tokenizer.eos_token_id, self._tokenizer.get_vocab().get(TURN_END)}
        return {i for i in ids if i is not None}

    @property
    def context(self) -> int | None:
        """The model's context in tokens, if its config states it."""
        value = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return None if value is None else int(value)

    @property
    def chat_template(self) -> str:
        """The text of the chat template."""
        return str(self._tokenizer.chat_template)

    def encode(self, prompt: str, history: Sequence[tuple[str, str]] = (), **arguments: Any) -> list[int]:
        """Token ids of the rendered chat, up to and including the marker that opens the reply.

        `history` holds earlier turns as (role, text); `arguments` are passed to the chat template.
        """
        turns = [{"role": role, "content": text} for role, text in (*history, ("user", prompt))]
        text = rendered_chat(self._tokenizer, turns, **arguments)
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def require_room(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """`BadInput` if a prompt and its longest reply do not fit the model's context."""
        longest = max(map(len, prompts), default=0)
        if self.context is not None and longest + max_new_tokens > self.context:
            raise BadInput(
                "a prompt does not fit the model's context",
                expected=f"at most {self.context} tokens",
                actual=f"{longest} of prompt and up to {max_new_tokens} of reply",
                remedy="use a model with a longer context",
            )

    def reply(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Reply]:
        """Greedy replies to one batch of encoded prompts, in their order. Peak memory grows with the batch."""
        with self._torch.inference_mode():
            rows, stopped = self._decode(prompts, max_new_tokens)
        return [
            Reply(
                text=self._text(tokens[:-1] if stop else tokens),
                finish_reason="stop" if stop else "length",
                prompt_tokens=len(prompt),
                reply_tokens=len(tokens),
                tokens=tuple(tokens),
            )
            for prompt, tokens, stop in zip(prompts, rows, stopped, strict=True)
        ]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _decode(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> tuple[list[list[int]], list[bool]]:
        """The generated ids of each prompt, and whether a stop token ended them."""
        torch = self._torch
        from transformers import DynamicCache

        width = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (width - len(p)) + list(p) for p in prompts], device=self._device)  # [B, T]
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        cache = DynamicCache(config=self._model.config)
        # Linear attention layers cannot drop rows; there, finished rows stay in the batch and their tokens are ignored.
        drops = all(hasattr(layer, "batch_select_indices") for layer in cache.layers)
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
                **self._last_only,
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
                if not stopped[row]:
                    rows[row].append(token)
                    stopped[row] = end
            if all(stopped):
                break
            if drops and bool(ended.any()):
                keep = (~ended).nonzero().flatten()
                alive = [alive[k] for k in keep.tolist()]
                cache.batch_select_indices(keep)
                mask, positions, chosen = mask[keep], positions[keep], chosen[keep]
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        return rows, stopped


def load_model(model_dir: Path, dtype: str = "float32") -> Any:
    """The model on the CPU, in evaluation mode.

    `CheckpointError` if a tensor is missing, has another shape, or is not part of the model (transformers would
    initialise it at random or ignore it), and for quantized weights without a decoder (see `floats`).
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with as_floats(model_dir) as folder:
            # Sizes that do not fit are accepted here, so that they are reported by name instead of as a stack trace.
            loaded: Any = auto_class_of(folder).from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
            )
    except NotFloats as exc:
        raise refusal(model_dir, str(exc)) from exc
    except (ImportError, MemoryError, TrimoeError):
        raise
    except Exception as exc:  # config.json and weights of a checkpoint raise anything; each means "does not load"
        raise CheckpointError(
            f"{model_dir} cannot be loaded by transformers",
            expected="a checkpoint that AutoModelForCausalLM loads",
            actual=" ".join(f"{type(exc).__name__}: {exc}".split())[:300],
            remedy="`trimoe inspect` shows what the checkpoint is; use config.json and weights of the same model",
        ) from exc
    model, info = loaded
    strays = [name for name in info.get("unexpected_keys") or () if not _unused_by_text(name, model.config)]
    for kind, found in {**info, "unexpected_keys": strays}.items():
        if kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs") and found:
            raise CheckpointError(
                f"{model_dir} does not load exactly: {kind}",
                expected="none",
                actual=", ".join(sorted(map(str, found))[:5]),
                remedy="use the config.json and the weights of the same model",
            )
    if not _aligned(model):
        model.set_experts_implementation("eager")
    return model.eval()


def _aligned(model: Any) -> bool:
    """Whether torch's grouped product can run the experts: rows of whole 16 bytes (torch 2.13; transformers 5.23 does
    not look and fails in the forward pass)."""
    found: list[Any] = [getattr(module, "down_proj", None) for module in model.modules()]
    stacks = [stack for stack in found if getattr(stack, "ndim", 0) == 3]
    return all(stack.stride(1) * stack.element_size() % 16 == 0 for stack in stacks)


def _unused_by_text(name: str, config: Any) -> bool:
    """Whether a tensor belongs to a vision or audio tower, or to a draft block after the last layer."""
    layer = _LAYER.search(name)
    draft = layer is not None and int(layer[1]) >= config.get_text_config().num_hidden_layers
    return draft or _TOWER.search(name) is not None
