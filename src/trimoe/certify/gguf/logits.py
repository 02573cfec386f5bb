"""Behavioural proof of a GGUF cut: llama.cpp's logits equal those of the original with dropped router logits at -inf.

The program `trimoe-masked-logits` runs both models with the same settings and computes the router's two sums in double
precision, so a correct cut gives identical bits in every quantization type and at every depth. The original first
continues each prompt greedily; both models are then compared at every position, including the generated ones.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trimoe.certify.certificate import Check, Finding, PromptIdentity, make_check, with_numbers
from trimoe.certify.logit_proof import CannotCheck, LogitClaims, LogitProof, LogitSettings
from trimoe.certify.prompts import Conversation
from trimoe.choose.dropmap import DropMap
from trimoe.errors import BadInput
from trimoe.io.canonical import sha256_json
from trimoe.io.progress import Progress
from trimoe.model.gguf.file import Gguf
from trimoe.model.gguf.model import GgufModel

CLAIMS = LogitClaims(
    loading="llama.cpp loads it",
    logits="on every position of every prompt and of the original's greedy continuation llama.cpp's logits equal the "
    "original's with the dropped experts' router logits at -inf",
)
GENERATE = 8  # tokens that the masked original adds to each prompt
TOP = 10  # tokens whose log-probabilities are compared
_ROWS = 64  # positions compared at a time


class MaskedRun(Protocol):
    """Runs one model over prompts or tokens: see native/masked_logits.cpp for job and result."""

    version: str

    def __call__(self, model: Path, job: dict[str, Any], out: Path, progress: Progress | None) -> dict[str, Any]:
        """Write the logits to `out`/N.f32 and return the record. Raises `BadInput` with llama.cpp's message."""
        ...


def check_logits_gguf(
    base: GgufModel,
    cut: Gguf,
    drop_map: DropMap,
    settings: LogitSettings,
    run: MaskedRun,
    progress: Progress | None = None,
) -> LogitProof:
    """Run the masked original, then the pruned model on its tokens, and compare."""
    loading: Check | None = None
    with tempfile.TemporaryDirectory(prefix="trimoe-certify-") as folder:
        try:
            first, original = _run_original(base, drop_map, settings.prompts, run, Path(folder), progress)
            loading, record = _run_pruned(cut, original, run, Path(folder), progress)
            if record is None:
                return CLAIMS.not_run("the pruned model does not load", loading)
            check, worst = _compare(first, Path(folder) / "pruned", original, record, settings.tolerance)
        except CannotCheck as exc:
            return CLAIMS.not_run(str(exc), loading)
    tokens = original["tokens"]
    identity = PromptIdentity(sha256=sha256_json(tokens), count=len(tokens), tokens=sum(map(len, tokens)))
    return LogitProof([loading, with_numbers(check, _routing(base, drop_map, original))], worst, identity)


def _run_original(
    base: GgufModel,
    drop_map: DropMap,
    prompts: list[Conversation],
    run: MaskedRun,
    folder: Path,
    progress: Progress | None,
) -> tuple[Path, dict[str, Any]]:
    out = folder / "original"
    out.mkdir()
    tokens_at_most = sum(len(m["content"].encode()) + 8 for c in prompts for m in c) + GENERATE * len(prompts)
    vocabulary = len(base.gguf.get("tokenizer.ggml.tokens") or ()) or 1 << 18
    if shutil.disk_usage(folder).free < (needed := 2 * 4 * tokens_at_most * vocabulary):
        raise CannotCheck(f"the logits need up to {needed / 2**30:.1f} GiB of temporary space in {folder.parent}")
    job = {
        "prompts": ["\n".join(message["content"] for message in c) for c in prompts],
        "mask": {str(layer): list(ids) for layer, ids in drop_map.drop.items()},
        "generate": GENERATE,
        "top_k": base.top_k,
    }
    try:
        record = run(base.path, job, out, progress)
    except BadInput as exc:
        raise CannotCheck(f"llama.cpp cannot run the original: {exc.actual or exc.subject}") from exc
    # Multi-token-prediction layers are not used in ordinary decoding.
    used = [layer for layer in base.moe_layers if layer not in base.predicting_layers]
    if unseen := sorted(set(used) - set(record["seen"])):
        raise CannotCheck(f"the router of layer {unseen[0]} was never reached, so it could not be masked")
    return out, record


def _run_pruned(
    cut: Gguf, original: dict[str, Any], run: MaskedRun, folder: Path, progress: Progress | None
) -> tuple[Check, dict[str, Any] | None]:
    out = folder / "pruned"
    out.mkdir()
    try:
        record = run(cut.path, {"tokens": original["tokens"]}, out, progress)
    except BadInput as exc:
        finding = Finding(subject="llama.cpp cannot run the pruned model", actual=exc.actual or exc.subject)
        return make_check("loading", CLAIMS.loading, "it does not load", [finding]), None
    return make_check("loading", CLAIMS.loading, "it loads and runs"), record


def _compare(
    first: Path, second: Path, original: dict[str, Any], record: dict[str, Any], tolerance: float
) -> tuple[Check, float | None]:
    vocabulary = int(original["vocabulary"])
    if record["vocabulary"] != vocabulary:
        finding = Finding(subject="the vocabularies differ", expected=str(vocabulary), actual=str(record["vocabulary"]))
        return make_check("logits", CLAIMS.logits, "not comparable", [finding]), None
    worst, where, probability, same, positions = 0.0, "", 0.0, 0, 0
    findings: list[Finding] = []
    for number, tokens in enumerate(original["tokens"]):
        shape = (len(tokens), vocabulary)
        files = [np.memmap(folder / f"{number}.f32", "<f4", "r", shape=shape) for folder in (first, second)]
        largest = 0.0
        for start in range(0, len(tokens), _ROWS):
            want, have = (np.asarray(file[start : start + _ROWS]) for file in files)
            if not np.isfinite(want).all():
                raise CannotCheck(f"the masked original's own logits are not finite (prompt {number})")
            if not np.isfinite(have).all():
                row = start + int(np.argmin(np.isfinite(have).all(axis=1)))
                findings.append(Finding(subject=f"prompt {number}, position {row}: logits are not finite"))
                break
            difference = np.abs(have - want)
            at, token = np.unravel_index(int(difference.argmax()), difference.shape)
            if (here := float(difference[at, token])) > largest:
                largest, place = here, f"prompt {number}, position {start + int(at)}, token id {token}"
                if largest > worst:
                    worst, where = largest, f" ({place})"
            probability = max(probability, _log_probability_difference(want, have))
            same += int((have.argmax(axis=1) == want.argmax(axis=1)).sum())
            positions += len(want)
        if largest > tolerance:
            findings.append(
                Finding(
                    subject=f"{place}: logits differ by {largest:.3g}",
                    expected=f"at most {tolerance:g}",
                    actual=f"{largest:.6g}",
                )
            )
    detail = (
        f"largest difference {worst:.3g}{where}, tolerance {tolerance:g}; same most likely token at {same} "
        f"of {positions} positions of {len(original['tokens'])} prompts"
    )
    numbers: dict[str, int | float] = {
        "max_difference": worst,
        "max_top_log_probability_difference": probability,
        "positions": positions,
        "argmax_equal": same,
    }
    return make_check("logits", CLAIMS.logits, detail, findings, numbers=numbers), worst if positions else None


def _log_probability_difference(want: np.ndarray, have: np.ndarray) -> float:
    """Largest difference of log-probabilities among the `TOP` tokens most likely in the original, over rows."""
    top = np.argpartition(want, -min(TOP, want.shape[1]), axis=1)[:, -TOP:]
    both = []
    for logits in (want, have):
        wide = logits.astype(np.float64)
        peak = wide.max(axis=1, keepdims=True)
        both.append(np.take_along_axis(wide - peak - np.log(np.exp(wide - peak).sum(axis=1, keepdims=True)), top, 1))
    return float(np.abs(both[0] - both[1]).max())


def _routing(base: GgufModel, drop_map: DropMap, record: dict[str, Any]) -> dict[str, int | float]:
    """How much the prompts exercised the mask, as for safetensors; the share only if logits alone decide."""
    kept = sum(len(drop_map.keep(layer, base.num_experts)) for layer in base.moe_layers)
    routed = sum(len(experts) for experts in record["routed"].values())
    numbers: dict[str, int | float] = {"kept_routed": routed, "kept_total": kept}
    if not record["biased"] and record["selections"]:
        numbers["masked_share"] = round(record["selections_masked"] / record["selections"], 6)
    return numbers
