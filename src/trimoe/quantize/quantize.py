"""Quantizes a model to GGUF tiers, a measured mix, or an NVFP4 checkpoint: one function for all three.

Invariants: contradictions are refused before any work; each part resumes when the same call is repeated. GGUF parts
need llama.cpp; NVFP4 needs neither llama.cpp nor torch.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from trimoe.cut.plan import DEFAULT_SHARD
from trimoe.errors import UsageError
from trimoe.io.progress import Progress
from trimoe.io.sizes import parse_bytes
from trimoe.llamacpp.tools import locate
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.open import find_model
from trimoe.quantize.dry_run import DryRun, plan_checkpoint, plan_ladder
from trimoe.quantize.ladder.ladder import make_ladder
from trimoe.quantize.ladder.sources import Effort, Sources
from trimoe.quantize.ladder.spec import LadderSpec, load_ladder_spec
from trimoe.quantize.mix.mix import make_mix
from trimoe.quantize.mix.options import TYPES
from trimoe.quantize.mix.target import MixTarget
from trimoe.quantize.nvfp4.plan import plan_nvfp4
from trimoe.quantize.nvfp4.quantize import quantize_nvfp4
from trimoe.quantize.nvfp4.rules import LAYOUTS, rules
from trimoe.quantize.result import Nvfp4Checkpoint, Quantized


def quantize(
    model: str | os.PathLike[str],
    *,
    out: Path | str,
    tiers: str | Sequence[str] | None = None,
    ladder: Path | str | LadderSpec | None = None,
    mix: Literal["auto"] | None = None,
    target_size: int | str | None = None,
    target_bpw: float | None = None,
    mix_text: Path | str | None = None,
    mix_types: str | Sequence[str] | None = None,
    mix_chunks: int = 32,
    mix_context: int = 512,
    imatrix: Path | str | None = None,
    calibration: Path | str | None = None,
    tokenizer: Path | str | None = None,
    layer_ranking: Path | str | None = None,
    allow_thin_imatrix: bool = False,
    allow_unchecked: bool = False,
    name: str | None = None,
    jobs: int = 1,
    threads: int | None = None,
    ram: int | str = "8GB",
    llamacpp: Path | str | None = None,
    layout: str | None = None,
    max_shard: int | str | None = None,
    replies: bool | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Quantized:
    """Quantize a checkpoint directory or an unquantized GGUF file into the directory `out`.

    Give `tiers` (names, or one comma-separated string), `ladder` (a ladder file), or mix="auto" with `target_size`
    (bytes, or text such as "12.9GB") or `target_bpw` (bits per weight). The tier NVFP4A16 is a checkpoint directory:
    `out` itself, or out/NAME-NVFP4A16 beside other tiers. `ram` bounds the buffers of all llama-quantize processes
    together. `replies` says whether an NVFP4 checkpoint records its greedy replies, with which a server is compared
    (None: if torch is installed and the model is small). With `dry_run` nothing is written, and `planned` of the result
    says what would be. Every option is explained in docs/howto/quantize-a-ladder.md.
    Raises `UsageError` for options that contradict each other, `BadInput` for inputs that do not fit,
    `MissingPrerequisite` without llama.cpp or disk space, `Refused` where a result could not be trusted.

    >>> files = trimoe.quantize(small, tiers="NVFP4A16", out="small-nvfp4")
    >>> files
    Quantized(small-nvfp4)
    """
    nvfp4_tier = rules().tier
    _check_mix(mix, tiers, (target_size, target_bpw, mix_text, mix_types))
    if mix is None and tiers is None and ladder is None:
        raise UsageError("nothing to make", expected="--tiers NAME,..., --ladder FILE or --mix auto", actual="none")
    names = _words(tiers)
    with_nvfp4 = nvfp4_tier in names
    if not with_nvfp4 and (layout is not None or max_shard is not None):
        raise UsageError(f"--layout and --max-shard are for {nvfp4_tier}", expected=f"--tiers {nvfp4_tier}")
    if not with_nvfp4 and replies is not None:
        raise UsageError(f"--replies is for {nvfp4_tier}", expected=f"--tiers {nvfp4_tier}")
    if mix is not None and dry_run:
        raise UsageError(
            "--dry-run cannot foresee a mix",
            expected="--tiers or --ladder",
            actual="--mix auto",
            remedy="a mix is chosen by measuring; `trimoe plan` shows sizes of tiers",
        )
    path, out = find_model(model), Path(out)
    nvfp4 = _Nvfp4(path, layout or LAYOUTS[0], _bytes(max_shard, DEFAULT_SHARD), threads, replies, progress)
    if names == [nvfp4_tier]:
        return (
            Quantized(planned=plan_checkpoint(path, out, nvfp4.layout)) if dry_run else Quantized(nvfp4=nvfp4.make(out))
        )
    if with_nvfp4:  # refuse it before the GGUF tiers are made; it is made after them
        names.remove(nvfp4_tier)
        plan_nvfp4(open_checkpoint(path), nvfp4.layout)
    spec = _spec(ladder, names, allow_unchecked)
    effort = Effort(jobs, threads or Effort().threads, _bytes(ram, Effort().memory))
    sources = Sources(_path(imatrix), _path(calibration), _path(tokenizer), _path(layer_ranking), allow_thin_imatrix)
    if mix is not None:
        size = None if target_size is None else _bytes(target_size, 0)
        types = tuple(word.upper() for word in _words(mix_types)) or TYPES
        target = MixTarget(size, target_bpw, _path(mix_text), types, mix_chunks, mix_context)
        tools = locate(_path(llamacpp))
        made = make_mix(path, out, target, spec, tools, sources=sources, effort=effort, name=name, progress=progress)
        return Quantized(mix=made)
    spec.resolved()  # a wrong tier is the caller's mistake; say so before asking for llama.cpp
    beside = out / f"{name or path.absolute().name}-{nvfp4_tier}"
    if dry_run:
        planned = plan_ladder(path, out, spec, sources, name, _path(llamacpp))
        more = plan_checkpoint(path, beside, nvfp4.layout).outputs if with_nvfp4 else ()
        return Quantized(planned=DryRun((*planned.outputs, *more), planned.missing))
    tools = locate(_path(llamacpp))
    files = make_ladder(path, out, spec, tools, sources=sources, effort=effort, name=name, progress=progress)
    checkpoint = nvfp4.make(beside) if with_nvfp4 else None
    return Quantized(ladder=files, nvfp4=checkpoint)


def _check_mix(mix: str | None, tiers: str | Sequence[str] | None, targets: tuple[object, ...]) -> None:
    if mix is None and any(value is not None for value in targets):
        raise UsageError(
            "--target-size, --target-bpw, --mix-text and --mix-types belong to --mix auto",
            expected="--mix auto, or none of them",
            remedy="add --mix auto",
        )
    if mix not in (None, "auto"):
        raise UsageError(f"there is no mix {mix}", expected="auto", actual=str(mix))
    if mix is not None and tiers is not None:
        raise UsageError(
            "--mix and --tiers contradict each other",
            expected="one of them",
            actual="both",
            remedy="run the command twice with the same -o: base and imatrix are shared",
        )


def _spec(ladder: Path | str | LadderSpec | None, names: Sequence[str], allow_unchecked: bool) -> LadderSpec:
    """The ladder file with what the call overrides."""
    spec = ladder if isinstance(ladder, LadderSpec) else load_ladder_spec(ladder)
    if names:
        spec = msgspec.structs.replace(spec, tiers=tuple(names))
    if allow_unchecked and spec.smoke is not None:
        spec = msgspec.structs.replace(spec, smoke=msgspec.structs.replace(spec.smoke, allow_unchecked=True))
    return spec


@dataclass(frozen=True)
class _Nvfp4:
    """An NVFP4 checkpoint to make of `model`."""

    model: Path
    layout: str
    max_shard: int
    threads: int | None
    replies: bool | None
    progress: Progress | None

    def make(self, out: Path) -> Nvfp4Checkpoint:
        """Make it in the new directory `out`."""
        made = quantize_nvfp4(
            self.model,
            out,
            layout=self.layout,
            max_shard=self.max_shard,
            threads=self.threads,
            replies=self.replies,
            progress=self.progress,
        )
        return Nvfp4Checkpoint(rules().tier, self.layout, out, made.facts, made.errors, made.kept)


def _words(value: str | Sequence[str] | None) -> list[str]:
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else list(value or ())


def _path(value: Path | str | None) -> Path | None:
    return None if value is None else Path(value)


def _bytes(value: int | str | None, default: int) -> int:
    return default if value is None else parse_bytes(value) if isinstance(value, str) else value
