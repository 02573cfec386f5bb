"""Loads a checkpoint in fp32 with transformers for the logit check, and says why it cannot.

Whatever keeps a model from being loaded here (software, memory, a quantization without a loader) is `CannotCheck`; a
model that transformers refuses is `LoadingFailed`.
"""

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trimoe.certify.certificate import Finding
from trimoe.certify.logit_proof import CannotCheck
from trimoe.errors import CheckpointError, TrimoeError
from trimoe.model.auto import auto_class_of
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.dequantize.parts import NotFloats
from trimoe.model.dequantize.plan import float_tensors
from trimoe.model.floats import as_floats, quant_beside
from trimoe.model.safetensors import ITEM_BITS, TensorInfo


class CannotStream(Exception):
    """Internal: why a model cannot be run layer by layer. The whole model is loaded instead, which is stated."""


class LoadingFailed(Exception):
    """Internal: the pruned model does not load as it should."""

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = findings
        super().__init__(findings[0].subject)


def missing_software() -> str | None:
    """Why the logit check cannot run here, or None."""
    absent = [name for name in ("torch", "transformers", "tokenizers") if find_spec(name) is None]
    return f"{', '.join(absent)} not installed (pip install 'trimoe[torch]')" if absent else None


def why_not(path: Path) -> str | None:
    """Why the checkpoint cannot be run as floats here, or None; reads headers only."""
    if (absent := missing_software()) is not None:
        return absent
    try:
        float_tensors(open_checkpoint(path))
    except NotFloats:
        try:
            _options(path)
        except CannotCheck as exc:
            return str(exc)
    except CheckpointError:
        return None  # reported when the pair is opened
    return None


@contextmanager
def loaded(path: Path, device: str, nbytes: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The model in fp32 with its loading report; released on exit."""
    import torch
    from transformers.utils import logging

    require_memory(nbytes, device)
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), _floats(path) as (folder, options):
            warnings.filterwarnings("ignore", message="You passed `quantization_config`")  # it is intended
            # Mismatched sizes are accepted here, so that they are reported by name instead of as a stack trace.
            model, keys = auto_class_of(folder).from_pretrained(
                folder,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                attn_implementation="eager",
                experts_implementation="eager",
                **options,
            )
        model = model.eval().to(device)
    except (CannotCheck, TrimoeError):
        raise
    except Exception as exc:  # damaged weights raise anything; each means "does not load"
        raise LoadingFailed(
            [Finding(subject="AutoModelForCausalLM cannot load the model", actual=first_line(exc))]
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


@contextmanager
def _floats(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The directory to load and loading options: floats decoded here, else by transformers where it is known to."""
    try:
        with as_floats(path, weights_only=False) as folder:
            yield folder, _options(path) if folder == path else {}
    except NotFloats:
        yield path, _options(path)


def _options(path: Path) -> dict[str, Any]:
    """Options with which transformers dequantizes weights, so that no special kernels are needed."""
    import transformers

    quant, method = quant_beside(path)
    if method is None:
        return {}
    if quant is None or quant.loader is None:
        raise CannotCheck(f"transformers cannot load {method} weights as floats")
    if absent := [name for name in quant.packages if find_spec(name) is None]:
        raise CannotCheck(f"loading {method} weights needs {', '.join(absent)}, not installed")
    return {"quantization_config": getattr(transformers, quant.loader)(dequantize=True)}


def fp32_bytes(index: dict[str, TensorInfo]) -> int:
    """Bytes of these tensors as float32. A U8 value counts as two packed 4-bit values."""
    bits = {**ITEM_BITS, "U8": 4}
    return sum(info.nbytes * 8 // bits[info.dtype] * 4 for info in index.values())


def require_memory(nbytes: int, device: str) -> None:
    """Raise `CannotCheck` unless memory is free for the fp32 weights plus 10 % for activations."""
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


def first_line(exc: BaseException) -> str:
    return " ".join(f"{type(exc).__name__}: {exc}".split())[:300]
