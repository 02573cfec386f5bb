"""Behavioural proof of a cut: the pruned model's logits equal the original's with dropped router logits at -inf.

Invariants: fp32, eager attention and experts, one prompt at a time without padding, so both models do the same sums
in the same order. One model is in memory at a time; the original's logits wait in temporary files. Whatever keeps the
original from being run and masked (software, memory, a router that was never reached) makes the check incomplete.
"""

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trimoe.certify.certificate import Check, Finding, PromptIdentity, make_check, with_numbers
from trimoe.certify.loading import LoadingFailed, first_line, fp32_bytes, loaded
from trimoe.certify.logit_proof import CannotCheck, LogitClaims, LogitProof, LogitSettings
from trimoe.certify.mask import Routing, router_mask
from trimoe.certify.mask_neurons import mask_neurons
from trimoe.certify.prompts import Conversation
from trimoe.choose.dropmap import DropMap
from trimoe.errors import CheckpointError
from trimoe.io.canonical import sha256_json
from trimoe.io.progress import Progress
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.safetensors import TensorInfo
from trimoe.model.tokenizer import load_tokenizer

CLAIMS = LogitClaims(
    loading="AutoModelForCausalLM loads it like the original: no key missing, mismatched or newly unexpected",
    logits="on every position of every prompt the logits equal the original's with the dropped experts' router logits "
    "at -inf",
)


class _RunFailed(Exception):
    """Internal: a model's forward pass raises."""


def check_logits(
    base: Checkpoint,
    pruned: Path,
    pruned_index: dict[str, TensorInfo],
    drop_map: DropMap,
    settings: LogitSettings,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> LogitProof:
    """Load both models in fp32, one after the other, and compare their logits. Needs torch and transformers."""
    if "router" not in base.hf.roles:
        return CLAIMS.not_run(f"family {base.family.name} has no router role")
    loading: Check | None = None
    try:
        ids = _tokenize(base.path, settings.prompts)
        identity = PromptIdentity(sha256=sha256_json(ids), count=len(ids), tokens=sum(map(len, ids)))
        with tempfile.TemporaryDirectory(prefix="trimoe-certify-") as folder:
            routing, unused = _run_original(base, drop_map, ids, Path(folder), device, progress)
            with loaded(pruned, device, fp32_bytes(pruned_index)) as (model, keys):
                loading = _check_loading(keys, unused)
                logits, difference = _compare(model, ids, Path(folder), settings.tolerance, device, progress)
    except LoadingFailed as exc:
        reason = "the pruned model does not load"
        return CLAIMS.not_run(reason, make_check("loading", CLAIMS.loading, reason, exc.findings))
    except CannotCheck as exc:
        return CLAIMS.not_run(str(exc), loading)
    logits = with_numbers(logits, routing.numbers(base, drop_map))
    if drop_map.narrow is not None:
        logits = msgspec.structs.replace(logits, claim=f"{logits.claim}, and the removed neurons' activations times 0")
    return LogitProof([loading, logits], difference, identity)


def _tokenize(model: Path, prompts: list[Conversation]) -> list[list[int]]:
    try:
        tokenizer = load_tokenizer(model)
    except CheckpointError as exc:
        raise CannotCheck(f"{exc.subject} ({exc.actual}); {exc.remedy}") from exc
    try:
        texts = []
        for conversation in prompts:
            if tokenizer.chat_template:
                open_turn = conversation[-1]["role"] != "assistant"
                texts.append(
                    tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=open_turn)
                )
            else:
                texts.append("\n".join(m["content"] for m in conversation))
        # The template writes the special tokens itself.
        ids = [tokenizer.encode(text, add_special_tokens=not tokenizer.chat_template) for text in texts]
    except Exception as exc:  # third-party tokenizers and templates raise anything
        raise CannotCheck(f"the original's tokenizer cannot encode the prompts: {first_line(exc)}") from exc
    return [[int(i) for i in one] for one in ids]


def _run_original(
    base: Checkpoint, drop_map: DropMap, ids: list[list[int]], folder: Path, device: str, progress: Progress | None
) -> tuple[Routing, set[str]]:
    """Write the masked original's logits, one float32 [tokens, vocabulary] file per prompt.

    Also returns the keys outside the decoder layers that the model class does not use (a vision tower, a drafting
    block).
    """

    try:
        with loaded(base.path, device, fp32_bytes(base.index)) as (model, keys):
            unexpected = set(map(str, keys.get("unexpected_keys") or ()))
            unused = {key for key in unexpected if _outside(base, key)}
            if findings := _loading_findings(keys, unused):
                raise CannotCheck(f"the original itself does not load cleanly: {findings[0]}")
            mask_neurons(base, drop_map, model)
            mask = router_mask(base, drop_map, model)
            for number, prompt in enumerate(ids):
                with mask:
                    logits = _forward(model, prompt, device)
                if not np.isfinite(logits).all():
                    position = int(np.argmin(np.isfinite(logits).all(axis=1)))
                    raise CannotCheck(
                        f"the original's own logits are not finite (prompt {number}, position {position})"
                    )
                np.save(folder / f"{number}.npy", logits)
                if progress is not None:
                    progress(number + 1, 2 * len(ids), "logits of the masked original")
    except LoadingFailed as exc:
        raise CannotCheck(f"the original itself does not load: {exc}") from exc
    except _RunFailed as exc:
        raise CannotCheck(f"the original itself does not run: {exc}") from exc
    if unseen := sorted(set(base.moe_layers) - mask.seen):
        raise CannotCheck(f"the router of layer {unseen[0]} was never reached, so it could not be masked")
    return mask.routing, unused


def _outside(base: Checkpoint, key: str) -> bool:
    """Whether a key of the loading report is a tensor outside the decoder layers (drafting blocks may be restacked)."""
    return key.startswith(base.draft_blocks) or (key in base.index and base.layer_of(key) is None)


def _forward(model: Any, ids: list[int], device: str) -> np.ndarray:
    """Logits of one prompt, float32 [tokens, vocabulary]. Raises `_RunFailed`."""
    import torch

    try:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0]
    except Exception as exc:  # a model's own code raises anything if weights and config do not match
        raise _RunFailed(first_line(exc)) from exc
    result: np.ndarray = logits.float().cpu().numpy()
    return result


def _compare(
    model: Any, ids: list[list[int]], folder: Path, tolerance: float, device: str, progress: Progress | None
) -> tuple[Check, float | None]:
    worst, where, argmax_equal, positions = 0.0, "", 0, 0
    findings: list[Finding] = []
    for number, prompt in enumerate(ids):
        try:
            have = _forward(model, prompt, device)
        except _RunFailed as exc:
            findings.append(Finding(subject=f"the pruned model cannot be run on prompt {number}", actual=str(exc)))
            break
        want = np.load(folder / f"{number}.npy")
        if have.shape != want.shape:
            findings.append(
                Finding(
                    subject=f"logits of prompt {number} have another shape",
                    expected=str(want.shape),
                    actual=str(have.shape),
                )
            )
            break
        finite = np.isfinite(have).all(axis=1)
        if not finite.all():
            findings.append(
                Finding(subject=f"prompt {number}, position {int(np.argmin(finite))}: logits are not finite")
            )
            continue
        difference = np.abs(have - want)
        position, token = np.unravel_index(int(difference.argmax()), difference.shape)
        largest = float(difference[position, token])
        if largest > tolerance:
            findings.append(
                Finding(
                    subject=f"prompt {number}, position {position}, token id {token}: logits differ by {largest:.3g}",
                    expected=f"{want[position, token]:.6g}",
                    actual=f"{have[position, token]:.6g}",
                )
            )
        if largest > worst:
            worst, where = largest, f" (prompt {number}, position {position}, token id {token})"
        argmax_equal += int((have.argmax(axis=1) == want.argmax(axis=1)).sum())
        positions += len(prompt)
        if progress is not None:
            progress(len(ids) + number + 1, 2 * len(ids), "logits of the pruned model")
    detail = (
        f"largest difference {worst:.3g}{where}, tolerance {tolerance:g}; "
        f"same most likely token at {argmax_equal} of {positions} positions of {len(ids)} prompts"
    )
    numbers: dict[str, int | float] = {"max_difference": worst, "positions": positions, "argmax_equal": argmax_equal}
    return make_check("logits", CLAIMS.logits, detail, findings, numbers=numbers), worst if positions else None


def _loading_findings(keys: dict[str, Any], unused: set[str]) -> list[Finding]:
    findings = []
    for kind, label in (
        ("missing_keys", "missing"),
        ("unexpected_keys", "unexpected"),
        ("mismatched_keys", "of the wrong size"),
    ):
        for key in sorted(set(map(str, keys.get(kind) or ())) - (unused if label == "unexpected" else set())):
            findings.append(Finding(subject=f"key {key} is {label} when the model is loaded"))
    findings += [Finding(subject="loading reports an error", actual=str(m)[:300]) for m in keys.get("error_msgs") or ()]
    return findings


def _check_loading(keys: dict[str, Any], unused: set[str]) -> Check:
    findings = _loading_findings(keys, unused)
    left = f"every key fits but {len(unused)} outside the text model, which the original's loading leaves out too"
    detail = f"{len(findings)} keys are wrong" if findings else left if unused else "every key fits"
    return make_check("loading", CLAIMS.loading, detail, findings)
