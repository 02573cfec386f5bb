"""Predicts file sizes and memory of a model's quantized files before any is made."""

import os

from trimoe.errors import BadInput, CheckpointError, TrimoeError, UsageError
from trimoe.io.sizes import parse_bytes, parse_tokens
from trimoe.quantize.nvfp4.rules import LAYOUTS, rules
from trimoe.quantize.nvfp4.sizes import predict as predict_nvfp4
from trimoe.quantize.plan.candidates import Candidate, candidates, default_keeps, fitting, size_of
from trimoe.quantize.plan.checkpoint_size import checkpoint_bytes
from trimoe.quantize.plan.memory import Serving, kv_cache_bytes, memory_of
from trimoe.quantize.plan.result import (
    BudgetPlan,
    CheckpointBytes,
    LadderPlan,
    Nvfp4Plan,
    PlannedModel,
    SizePlan,
    TierPlan,
    TierSize,
)
from trimoe.quantize.plan.sources import load_blueprint, load_config, open_headers
from trimoe.quantize.types.blueprint import Blueprint
from trimoe.quantize.types.tiers import Tier, all_tiers, default_ladder, find_tiers
from trimoe.quantize.types.vision import vision_of


def plan(
    model: str | os.PathLike[str],
    *,
    keep: int | None = None,
    tier: str | None = None,
    layout: str | None = None,
    memory: int | str | None = None,
    context: int | str = "8k",
    kv: str = "f16",
    parallel: int = 1,
    vision: bool = False,
    table: bool = False,
) -> SizePlan:
    """Predict the size of one tier, of a ladder of tiers, or what fits into `memory` (bytes, or text such as "16GB").

    `model` is a GGUF file, a checkpoint directory, a config.json, or a model whose configuration is shipped. `keep` is
    the number of experts per layer. Memory is for `parallel` conversations of `context` tokens with a `kv` cache;
    `vision` adds the vision tower. `table` lists every tier instead of the default ladder. Raises `UsageError` for
    options that contradict each other, `BadInput` or `CheckpointError` for a model that cannot be planned.

    >>> plan = trimoe.plan("gemma-4-26B-A4B", keep=98, tier="Q4_K_M")
    >>> plan.as_dict()["file_bytes"]
    13239661120
    """
    nvfp4, name = rules().tier, os.fspath(model)
    _check(tier, layout, memory is not None, vision, table)
    tokens = parse_tokens(context) if isinstance(context, str) else context
    if tier == nvfp4:
        return _nvfp4(name, keep, layout or LAYOUTS[0], Serving(tokens, parallel, kv.upper()))
    blueprint = load_blueprint(name)
    tower = vision_of(name, load_config(name)) if vision else None
    serving = Serving(tokens, parallel, kv.upper(), tower.nbytes if tower else 0)
    smaller = blueprint.with_experts(keep) if keep else blueprint
    experts, kept = blueprint.facts.experts, smaller.facts.experts
    head = PlannedModel(name, experts, kept, blueprint.metadata.exact, serving, _unquantized(name, kept), tower)
    if memory is not None:
        limit = parse_bytes(memory) if isinstance(memory, str) else memory
        every = _candidates(blueprint, find_tiers([tier]) if tier else default_ladder(), keep, serving)
        return BudgetPlan(head, limit, tuple(every), tuple(fitting(every, limit)))
    if tier:
        return TierPlan(head, _tier_size(smaller, find_tiers([tier])[0], serving))
    tiers = [t for t in all_tiers().values() if t.broken is None] if table else default_ladder()
    return LadderPlan(head, tuple(_tier_size(smaller, t, serving) for t in tiers), _nvfp4_or_none(name, kept, serving))


def _check(tier: str | None, layout: str | None, budget: bool, vision: bool, table: bool) -> None:
    nvfp4 = rules().tier
    if tier and table:
        raise UsageError(
            "--tier and --table contradict each other",
            expected="one tier, or the table of all",
            actual="both",
            remedy="leave one out",
        )
    if layout and tier != nvfp4:
        raise UsageError(
            f"--layout is for {nvfp4}", expected=f"--tier {nvfp4}", actual=f"tier {tier}", remedy="leave --layout out"
        )
    if tier == nvfp4 and (budget or vision):
        raise UsageError(
            f"{nvfp4} has no --memory and no --vision",
            expected="neither",
            actual="--memory" if budget else "--vision",
            remedy="leave it out: the vision tower is in its files, and memory is printed anyway",
        )


def _tier_size(blueprint: Blueprint, tier: Tier, serving: Serving) -> TierSize:
    size = size_of(blueprint, tier)
    return TierSize(tier.name, size, memory_of(blueprint, size, serving))


def _candidates(blueprint: Blueprint, tiers: list[Tier], keep: int | None, serving: Serving) -> list[Candidate]:
    experts = blueprint.facts.experts
    keeps = [keep] if keep else default_keeps(experts, blueprint.top_k)
    found = candidates(blueprint, tiers, keeps, serving)
    return [c for c in found if keep is None or c.keep in (keep, experts)]


def _unquantized(model: str, keep: int) -> CheckpointBytes | None:
    """The unquantized checkpoint; None for a GGUF file, or where its headers are not known."""
    try:
        found = open_headers(model)
    except CheckpointError:
        return None
    return found and CheckpointBytes(checkpoint_bytes(found[0], keep), found[1])


def _nvfp4(model: str, keep: int | None, layout: str, serving: Serving) -> Nvfp4Plan:
    """The plan of an NVFP4 checkpoint. Raises what is wrong with the model."""
    tier, found = rules().tier, open_headers(model)
    if found is None:
        raise BadInput(
            f"{model} is a GGUF file",
            expected=f"a checkpoint for {tier}",
            actual="a GGUF file",
            remedy="give the checkpoint's directory or its config.json",
        )
    checkpoint, read = found
    size = predict_nvfp4(checkpoint, layout, keep=None if keep == checkpoint.num_experts else keep)
    try:
        blueprint = load_blueprint(model)
    except CheckpointError:  # a family without a GGUF layout: the size is known, its cache is not
        blueprint = None
    if serving.kv_type not in ("F16", "BF16"):
        raise UsageError(
            f"--kv {serving.kv_type.lower()} is a cache type of llama.cpp",
            expected="f16",
            actual=serving.kv_type.lower(),
            remedy=f"leave --kv out: {tier} is served by other engines",
        )
    cache = kv_cache_bytes(blueprint, serving) if blueprint else None
    experts = checkpoint.num_experts
    return Nvfp4Plan(model, tier, layout, experts, keep or experts, read, size, serving, cache)


def _nvfp4_or_none(model: str, keep: int, serving: Serving) -> Nvfp4Plan | None:
    """The NVFP4 checkpoint for a table of tiers; None where the model has none."""
    try:
        return _nvfp4(model, keep, LAYOUTS[0], Serving(serving.context, serving.parallel))
    except TrimoeError:
        return None
