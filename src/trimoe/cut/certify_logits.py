"""Behavioural proof of a cut: the pruned model's logits equal the original's with dropped router logits at -inf.

Invariants: fp32, eager attention and experts, one prompt at a time without padding, so both models do the same sums
in the same order. One model is in memory at a time; the original's logits wait in a temporary file. The router of a
layer is found by the family's `router` tensor, and masked where its weight is used in a linear map: this covers a
`Linear` and a custom router alike, and a layer whose router was never seen makes the check incomplete.
Not guaranteed: equality for families whose selection is not monotone in the router's logits (none is shipped).
"""

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trimoe.artifact import sha256_json
from trimoe.choose.dropmap import DropMap
from trimoe.cut.certify_data import Check, Finding, PromptIdentity, make_check
from trimoe.cut.certify_prompts import Conversation
from trimoe.errors import MissingPrerequisite
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.safetensors import ITEM_BITS, read_array

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int, str], None]
LOADING = "AutoModelForCausalLM loads it with no missing, unexpected or mismatched key"
LOGITS = "on every position of every prompt the logits equal the original's with the dropped experts' router logits at -inf"


@dataclass
class LogitProof:
    """Result of `check_logits`."""

    checks: list[Check]
    max_difference: float | None = None
    prompts: PromptIdentity | None = None


class CannotCheck(Exception):
    """Internal: why the logit check has no result. Becomes a check that was not run, never a pass."""


class _LoadingFailed(Exception):
    """Internal: the pruned model does not load as it should."""

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = findings
        super().__init__(findings[0].subject)


@dataclass
class Routing:
    """How far the prompts exercised the mask."""

    selections: int = 0
    selections_dropped: int = 0
    routed: set[tuple[int, int]] = field(default_factory=set)


def not_run(reason: str) -> list[Check]:
    """The two checks of this module, not run."""
    return [make_check("loading", LOADING, f"loading not checked: {reason}", not_run=True),
            make_check("logits", LOGITS, f"logits not checked: {reason}", not_run=True)]  # fmt: skip


def missing_software() -> str | None:
    """Why the logit check cannot run here, or None."""
    absent = [name for name in ("torch", "transformers", "tokenizers") if find_spec(name) is None]
    return f"{', '.join(absent)} not installed (pip install 'trimoe[torch]')" if absent else None


def check_logits(
    base: Checkpoint,
    pruned: Path,
    pruned_nbytes: int,
    drop_map: DropMap,
    prompts: list[Conversation],
    *,
    tolerance: float = 1e-4,
    device: str = "cpu",
    progress: Progress | None = None,
) -> LogitProof:
    """Load both models in fp32, one after the other, and compare their logits. Needs torch and transformers."""
    if "router" not in base.arch.roles:
        return LogitProof(not_run(f"family {base.arch.name} has no router role"))
    loading: Check | None = None
    try:
        ids = _tokenize(base.path, prompts)
        identity = PromptIdentity(sha256=sha256_json(ids), count=len(ids), tokens=sum(map(len, ids)))
        with tempfile.TemporaryDirectory(prefix="trimoe-certify-") as folder:
            routing = _run_original(base, drop_map, ids, Path(folder), device, progress)
            with _loaded(pruned, device, pruned_nbytes) as (model, keys):
                loading = _check_loading(keys)
                logits, difference = _compare(model, ids, Path(folder), tolerance, device, routing, base, drop_map, progress)
    except _LoadingFailed as exc:
        return LogitProof([make_check("loading", LOADING, "the pruned model does not load", exc.findings), not_run("the pruned model does not load")[1]])
    except CannotCheck as exc:
        return LogitProof([loading or not_run(str(exc))[0], not_run(str(exc))[1]])
    return LogitProof([loading, logits], difference, identity)


def _tokenize(model: Path, prompts: list[Conversation]) -> list[list[int]]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        texts = []
        for conversation in prompts:
            if tokenizer.chat_template:
                open_turn = conversation[-1]["role"] != "assistant"
                texts.append(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=open_turn))
            else:
                texts.append("\n".join(m["content"] for m in conversation))
        # The template writes the special tokens itself.
        ids = [tokenizer.encode(text, add_special_tokens=not tokenizer.chat_template) for text in texts]
    except Exception as exc:  # tokenizers and templates of strangers fail in every way there is
        raise CannotCheck(f"the original's tokenizer cannot encode the prompts: {_line(exc)}") from exc
    return [[int(i) for i in one] for one in ids]


def _run_original(
    base: Checkpoint, drop_map: DropMap, ids: list[list[int]], folder: Path, device: str, progress: Progress | None
) -> Routing:
    """Write the masked original's logits, one float32 [tokens, vocabulary] file per prompt."""
    import torch

    try:
        with _loaded(base.path, device, base.nbytes_fp32 if hasattr(base, "nbytes_fp32") else _fp32_bytes(base)) as (model, keys):
            if findings := _loading_findings(keys):
                raise CannotCheck(f"the original itself does not load cleanly: {findings[0]}")
            mask = _router_mask(base, drop_map, model)
            for number, prompt in enumerate(ids):
                with mask, torch.no_grad():
                    logits = _forward(model, prompt, device)
                if not np.isfinite(logits).all():
                    position = int(np.argmin(np.isfinite(logits).all(axis=1)))
                    raise CannotCheck(f"the original's own logits are not finite (prompt {number}, position {position})")
                np.save(folder / f"{number}.npy", logits)
                if progress is not None:
                    progress(number + 1, 2 * len(ids), "logits of the masked original")
    except _LoadingFailed as exc:
        raise CannotCheck(f"the original itself does not load: {exc}") from exc
    if unseen := sorted(set(range(base.num_layers)) - mask.seen):
        raise CannotCheck(f"the router of layer {unseen[0]} was never reached, so it could not be masked")
    return mask.routing
