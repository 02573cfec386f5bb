"""Behavioural proof of a cut: the pruned model's logits equal the original's with dropped router logits at -inf.

Invariants: fp32, eager attention and experts, one prompt at a time without padding, so both models do the same sums
in the same order. The models run layer by layer (`streamed`); one that cannot be taken apart is loaded whole
(`resident`), and the certificate says so. The original's logits wait in temporary files. Whatever keeps the original
from being run and masked (software, memory, a router that was never reached) makes the check incomplete.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from trimoe.certify.certificate import Check, Finding, PromptIdentity, make_check, with_numbers
from trimoe.certify.compared_logits import ComparedLogits
from trimoe.certify.loading import CannotStream, LoadingFailed, first_line
from trimoe.certify.logit_proof import CannotCheck, LogitClaims, LogitProof, LogitSettings
from trimoe.certify.mask import Routing
from trimoe.certify.prompts import Conversation
from trimoe.certify.resident import compare_whole
from trimoe.certify.streamed import NOTICEABLE, compare_layers
from trimoe.choose.dropmap import DropMap
from trimoe.errors import CheckpointError
from trimoe.io.canonical import sha256_json
from trimoe.io.progress import Progress
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.model.safetensors import TensorInfo
from trimoe.model.tokenizer import load_tokenizer

CLAIMS = LogitClaims(
    loading="AutoModelForCausalLM loads it like the original: no key missing, mismatched or newly unexpected",
    logits="on every position of every prompt the logits equal the original's with the dropped experts' router logits "
    "at -inf",
)
LAYERS = "layer by layer"


@dataclass
class _Ran:
    """How the models were run, and what came of it besides logits."""

    method: str
    routing: Routing
    loading: Check
    hidden: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)


def check_logits(
    base: Checkpoint,
    pruned: Path,
    pruned_index: dict[str, TensorInfo],
    drop_map: DropMap,
    settings: LogitSettings,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    whole: bool = False,
) -> LogitProof:
    """Compare the logits of both models in fp32, layer by layer, or with `whole` as whole models one after the other.
    Needs torch and transformers."""
    if "router" not in base.hf.roles:
        return CLAIMS.not_run(f"family {base.family.name} has no router role")
    loading: list[Check] = []
    try:
        ids = _tokenize(base.path, settings.prompts)
        identity = PromptIdentity(sha256=sha256_json(ids), count=len(ids), tokens=sum(map(len, ids)))
        with tempfile.TemporaryDirectory(prefix="trimoe-certify-") as folder:
            compared = ComparedLogits(ids, Path(folder), settings.tolerance)
            try:
                if whole:
                    raise CannotStream("requested")
                ran = _layers(base, pruned, drop_map, ids, compared, device, progress)
            except CannotStream as exc:
                compared = ComparedLogits(ids, Path(folder), settings.tolerance)
                ran = _whole(base, pruned, pruned_index, drop_map, ids, compared, device, progress, loading)
                ran.method = f"whole models in memory ({exc})"
    except LoadingFailed as exc:
        reason = "the pruned model does not load"
        return CLAIMS.not_run(reason, make_check("loading", CLAIMS.loading, reason, exc.findings))
    except CannotCheck as exc:
        return CLAIMS.not_run(str(exc), loading[0] if loading else None)
    logits = with_numbers(_located(compared, ran), ran.routing.numbers(base, drop_map))
    if drop_map.narrow is not None:
        logits = msgspec.structs.replace(logits, claim=f"{logits.claim}, and the removed neurons' activations times 0")
    return LogitProof([ran.loading, logits], compared.worst, identity, ran.method)


def _layers(
    base: Checkpoint,
    pruned: Path,
    drop_map: DropMap,
    ids: list[list[int]],
    compared: ComparedLogits,
    device: str,
    progress: Progress | None,
) -> _Ran:
    try:
        cut = open_checkpoint(pruned)
    except CheckpointError as exc:
        raise LoadingFailed([Finding.of(exc)]) from exc
    found = compare_layers(base, cut, drop_map, ids, compared, device, progress)
    unused = _unused(base, found.original.keys())
    return _Ran(LAYERS, found.routing, _check_loading(found.pruned.keys(), unused), found.hidden, found.alone)


def _whole(
    base: Checkpoint,
    pruned: Path,
    pruned_index: dict[str, TensorInfo],
    drop_map: DropMap,
    ids: list[list[int]],
    compared: ComparedLogits,
    device: str,
    progress: Progress | None,
    loading: list[Check],
) -> _Ran:
    """Also keeps the check of loading in `loading`, in case the comparison fails afterwards."""

    def loaded(original: dict[str, Any], keys: dict[str, Any]) -> None:
        loading.append(_check_loading(keys, _unused(base, original)))

    routing = compare_whole(base, pruned, pruned_index, drop_map, ids, compared, device, progress, loaded)
    return _Ran("", routing, loading[0])


def _located(compared: ComparedLogits, ran: _Ran) -> Check:
    """The check of the logits, with how they were computed, and the layers that differ."""
    check = compared.check(CLAIMS.logits)
    numbers: dict[str, int | float] = {}
    findings = list(check.findings)
    if ran.hidden:
        numbers = {"max_hidden_difference": max(ran.hidden), "max_layer_difference": max(ran.alone)}
    if ran.hidden and compared.differs:
        findings.append(_where(ran.alone))
    return msgspec.structs.replace(
        check,
        detail=f"{check.detail}; computed {'layer by layer' if ran.hidden else 'with ' + ran.method}",
        findings=tuple(findings),
        findings_total=check.findings_total + len(findings) - len(check.findings),
        numbers={**check.numbers, **numbers},
    )


def _where(alone: list[float]) -> Finding:
    """Which layer gives other outputs for the same inputs, or that none does."""
    layer = next((layer for layer, value in enumerate(alone) if value > NOTICEABLE), None)
    if layer is not None:
        subject = f"layer {layer} is the first that gives other outputs for the same inputs"
        return Finding(subject=subject, actual=f"by {alone[layer]:.3g} of the largest", layer=layer)
    return Finding(
        subject="every layer gives the same outputs for the same inputs",
        expected="then the embedding, norm or head differs; or rounding grew from layer to layer, up to tokens that "
        "choose other experts at a near tie",
        actual=f"a largest difference of {max(alone):.3g} of the largest output",
    )


def _unused(base: Checkpoint, keys: dict[str, Any]) -> set[str]:
    """Keys of the original outside the decoder layers that its model class does not use (a vision tower, a drafting
    block). Raises `CannotCheck` if it does not load cleanly otherwise."""
    unused = {key for key in map(str, keys.get("unexpected_keys") or ()) if _outside(base, key)}
    if findings := _loading_findings(keys, unused):
        raise CannotCheck(f"the original itself does not load cleanly: {findings[0]}")
    return unused


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


def _outside(base: Checkpoint, key: str) -> bool:
    """Whether a key of the loading report is a tensor outside the decoder layers (drafting blocks may be restacked)."""
    return key.startswith(base.draft_blocks) or (key in base.index and base.layer_of(key) is None)


def _loading_findings(keys: dict[str, Any], unused: set[str]) -> list[Finding]:
    findings = []
    for kind, label, accepted in (("missing_keys", "missing", set[str]()), ("unexpected_keys", "unexpected", unused)):
        for key in sorted(set(map(str, keys.get(kind) or ())) - accepted):
            findings.append(Finding(subject=f"key {key} is {label} when the model is loaded"))
    for key, have, want in sorted(keys.get("mismatched_keys") or ()):
        subject = f"key {key} is of the wrong size when the model is loaded"
        findings.append(Finding(subject=subject, expected=str(list(want)), actual=str(list(have))))
    findings += [Finding(subject="loading reports an error", actual=str(m)[:300]) for m in keys.get("error_msgs") or ()]
    return findings


def _check_loading(keys: dict[str, Any], unused: set[str]) -> Check:
    findings = _loading_findings(keys, unused)
    left = f"every key fits but {len(unused)} outside the text model, which the original's loading leaves out too"
    detail = f"{len(findings)} keys are wrong" if findings else left if unused else "every key fits"
    return make_check("loading", CLAIMS.loading, detail, findings)
