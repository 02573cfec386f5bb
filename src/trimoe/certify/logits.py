"""Behavioural proof of a cut: the pruned model's logits equal the original's with dropped router logits at -inf.

Invariants: fp32, eager attention and experts, one prompt at a time without padding, so both models do the same sums
in the same order. One model is in memory at a time; the original's logits wait in temporary files. Whatever keeps the
original from being run and masked (software, memory, a router that was never reached) makes the check incomplete.
"""

import gc
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.certify.certificate import Check, Finding, PromptIdentity, make_check
from trimoe.certify.files import read_config
from trimoe.certify.mask import CannotCheck, Routing, router_mask
from trimoe.certify.prompts import Conversation
from trimoe.choose.dropmap import DropMap
from trimoe.io.progress import Progress
from trimoe.io.publish import sha256_json
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.quant import all_quants, method_of
from trimoe.model.safetensors import ITEM_BITS, TensorInfo

LOADING = "AutoModelForCausalLM loads it like the original: no key missing, mismatched or newly unexpected"
LOGITS = (
    "on every position of every prompt the logits equal the original's with the dropped experts' router logits at -inf"
)


class _RunFailed(Exception):
    """Internal: a model's forward pass raises."""


@dataclass
class LogitProof:
    """Result of `check_logits`."""

    checks: list[Check]
    max_difference: float | None = None
    prompts: PromptIdentity | None = None


class _LoadingFailed(Exception):
    """Internal: the pruned model does not load as it should."""

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = findings
        super().__init__(findings[0].subject)


def not_run(reason: str) -> list[Check]:
    """The two checks of this module, not run."""
    return [
        make_check("loading", LOADING, f"loading not checked: {reason}", not_run=True),
        make_check("logits", LOGITS, f"logits not checked: {reason}", not_run=True),
    ]


def missing_software() -> str | None:
    """Why the logit check cannot run here, or None."""
    absent = [name for name in ("torch", "transformers", "tokenizers") if find_spec(name) is None]
    return f"{', '.join(absent)} not installed (pip install 'trimoe[torch]')" if absent else None


def check_logits(
    base: Checkpoint,
    pruned: Path,
    pruned_index: dict[str, TensorInfo],
    drop_map: DropMap,
    prompts: list[Conversation],
    *,
    tolerance: float = 1e-4,
    device: str = "cpu",
    progress: Progress | None = None,
) -> LogitProof:
    """Load both models in fp32, one after the other, and compare their logits. Needs torch and transformers."""
    if "router" not in base.hf.roles:
        return LogitProof(not_run(f"family {base.family.name} has no router role"))
    loading: Check | None = None
    try:
        ids = _tokenize(base.path, prompts)
        identity = PromptIdentity(sha256=sha256_json(ids), count=len(ids), tokens=sum(map(len, ids)))
        with tempfile.TemporaryDirectory(prefix="trimoe-certify-") as folder:
            routing, unused = _run_original(base, drop_map, ids, Path(folder), device, progress)
            with _loaded(pruned, device, fp32_bytes(pruned_index)) as (model, keys):
                loading = _check_loading(keys, unused)
                logits, difference = _compare(model, ids, Path(folder), tolerance, device, progress)
                logits = logits.model_copy(update={"numbers": {**logits.numbers, **routing.numbers(base, drop_map)}})
    except _LoadingFailed as exc:
        return LogitProof(
            [
                make_check("loading", LOADING, "the pruned model does not load", exc.findings),
                not_run("the pruned model does not load")[1],
            ]
        )
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
                texts.append(
                    tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=open_turn)
                )
            else:
                texts.append("\n".join(m["content"] for m in conversation))
        # The template writes the special tokens itself.
        ids = [tokenizer.encode(text, add_special_tokens=not tokenizer.chat_template) for text in texts]
    except Exception as exc:  # tokenizers and templates of strangers fail in every way there is
        raise CannotCheck(f"the original's tokenizer cannot encode the prompts: {_line(exc)}") from exc
    return [[int(i) for i in one] for one in ids]


def _run_original(
    base: Checkpoint, drop_map: DropMap, ids: list[list[int]], folder: Path, device: str, progress: Progress | None
) -> tuple[Routing, set[str]]:
    """Write the masked original's logits, one float32 [tokens, vocabulary] file per prompt.

    Also returns the keys outside the decoder layers that the class has no use for (a vision tower, a drafting block).
    """

    try:
        with _loaded(base.path, device, fp32_bytes(base.index)) as (model, keys):
            unexpected = set(map(str, keys.get("unexpected_keys") or ()))
            unused = {key for key in unexpected if _outside(base, key)}
            if findings := _loading_findings(keys, unused):
                raise CannotCheck(f"the original itself does not load cleanly: {findings[0]}")
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
    except _LoadingFailed as exc:
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
    except Exception as exc:  # whatever a model's own code raises for weights and config that do not fit together
        raise _RunFailed(_line(exc)) from exc
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
    return make_check("logits", LOGITS, detail, findings, numbers=numbers), worst if positions else None


@contextmanager
def _loaded(path: Path, device: str, nbytes: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The model in fp32 with its loading report; released on exit."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    _require_memory(nbytes, device)
    floats = _dequantized(path)
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You passed `quantization_config`")  # on purpose
            # Mismatched sizes are let through so that they are reported by name instead of as a stack trace.
            model, keys = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                attn_implementation="eager",
                experts_implementation="eager",
                **floats,
            )
        model = model.eval().to(device)
    except Exception as exc:  # loading damaged weights fails in every way there is; each means "does not load"
        raise _LoadingFailed(
            [Finding(subject="AutoModelForCausalLM cannot load the model", actual=_line(exc))]
        ) from exc
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    try:
        yield model, keys
    finally:
        del model
        gc.collect()


def _dequantized(path: Path) -> dict[str, Any]:
    """Loading options that turn quantized weights into floats, for which no special kernels are needed."""
    import transformers

    method = method_of(read_config(path))
    if method is None:
        return {}
    quant = next((q for q in all_quants() if method in q.methods), None)
    if quant is None or quant.loader is None:
        raise CannotCheck(f"transformers cannot load {method} weights as floats")
    if absent := [name for name in quant.packages if find_spec(name) is None]:
        raise CannotCheck(f"loading {method} weights needs {', '.join(absent)}, not installed")
    return {"quantization_config": getattr(transformers, quant.loader)(dequantize=True)}


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
    return make_check("loading", LOADING, detail, findings)


def fp32_bytes(index: dict[str, TensorInfo]) -> int:
    """Memory of these tensors as float32. Whole bytes are taken for two packed 4-bit values each."""
    bits = {**ITEM_BITS, "U8": 4}
    return sum(info.nbytes * 8 // bits[info.dtype] * 4 for info in index.values())


def _require_memory(nbytes: int, device: str) -> None:
    """Refuse what would be killed: weights in fp32 plus a tenth for activations must be free."""
    free = _free_memory(device)
    needed = nbytes + nbytes // 10
    if free is not None and needed > free:
        raise CannotCheck(
            f"fp32 weights need {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free on {device}"
        )


def _free_memory(device: str) -> int | None:
    """Free bytes on the device, None if unknown."""
    if device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise CannotCheck(f"device {device} is not available")
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _line(exc: BaseException) -> str:
    return " ".join(f"{type(exc).__name__}: {exc}".split())[:300]
