"""Measured mixes: for a given size, the tensor types that cost the least KL divergence on a text.

Invariants: the file is never larger than the target and has the predicted size to the byte; the choice is a function of
measurements with a recorded identity; a rerun of the same command resumes, or reuses what is finished.
Not guaranteed: that the costs of groups add up. The result has both the predicted and the measured KL divergence, both
on the text that the choice was made on: compare files on another text with `trimoe kld`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.errors import BadInput, Refused, UsageError
from trimoe.io.atomic import publish_file, require_space
from trimoe.io.canonical import sha256_bytes, sha256_file
from trimoe.io.jsonfile import read_json, write_json
from trimoe.io.progress import Progress, silent
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.model.gguf.imatrix import open_imatrix
from trimoe.quantize.kld import RESAMPLES
from trimoe.quantize.ladder.checks import blueprint_before, model_name, refuse_early
from trimoe.quantize.ladder.dynamic import explain_overrides, map_text, normal
from trimoe.quantize.ladder.importance import require_entries
from trimoe.quantize.ladder.job import Job, Resources, Stopper, cross_check, inputs_of, refuse_f16, run_job
from trimoe.quantize.ladder.ladder import file_of, imatrix_facts, judged
from trimoe.quantize.ladder.result import BaseFacts
from trimoe.quantize.ladder.smoke import require_good_base
from trimoe.quantize.ladder.sources import (
    Base,
    Effort,
    Importance,
    Sources,
    base_standard,
    importance_of,
    llamacpp_version,
    make_base,
)
from trimoe.quantize.ladder.spec import LadderSpec
from trimoe.quantize.mix.knapsack import Solution, solve
from trimoe.quantize.mix.measure import Costs, measure_costs
from trimoe.quantize.mix.options import Group, groups_of, overrides_of_mix, tier_of
from trimoe.quantize.mix.result import Forecast, GroupChoice, Mix
from trimoe.quantize.mix.target import MixTarget
from trimoe.quantize.perplexity import Reference
from trimoe.quantize.types.blueprint import Blueprint
from trimoe.quantize.types.sizes import DATASET_NAME, bytes_about, predict


@dataclass(frozen=True)
class Space:
    """All choices for a model: its groups, and the `fixed` bytes that no choice changes (header, norms, routers)."""

    groups: tuple[Group, ...]
    fixed: int
    values: int


def space_of(blueprint: Blueprint, types: Sequence[str], entries: Collection[str], about_imatrix: int | None) -> Space:
    """The choices for a model. Raises `BadInput` if a group has none.

    `entries` are the tensors of the imatrix, `about_imatrix` is the size of the metadata about it; None without one.
    """
    groups = groups_of(blueprint, types, entries)
    if empty := [group.name for group in groups if not group.options]:
        raise BadInput(
            f"no type is left for {empty[0]}",
            expected="types that need no imatrix, or an imatrix",
            actual=", ".join(types),
            remedy="add Q4_K to --mix-types, or give --imatrix",
        )
    first = [0] * len(groups)
    request = tier_of("first", groups, first).request(
        normal(overrides_of_mix(groups, first)), imatrix=about_imatrix is not None
    )
    size = predict(blueprint.tensors, blueprint.facts, blueprint.metadata, request, about_imatrix or 0)
    return Space(tuple(groups), size.file_bytes - sum(group.options[0].nbytes for group in groups), size.values)


def make_mix(
    model: Path,
    out: Path,
    target: MixTarget,
    spec: LadderSpec,
    tools: LlamaCpp,
    *,
    sources: Sources | None = None,
    effort: Effort | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Mix:
    """Measure, choose, build, and measure the result; it is also written to out/NAME-TIER.mix.json."""
    sources, effort, report = sources or Sources(), effort or Effort(), progress or silent
    stem = name or model_name(model)
    _refuse_early(model, out, stem, target, spec, sources, tools)
    out.mkdir(parents=True, exist_ok=True)
    report(0, 0, "base and imatrix")
    base = make_base(model, out, stem, spec, tools)
    importance = importance_of(model, base, out, spec, tools, sources, effort)
    text = target.text or out / DATASET_NAME
    entries = importance.imatrix.entries if importance else ()
    space = space_of(base.blueprint, target.types, entries, _about(importance))
    budget = target.budget(space.values)
    identity: dict[str, Any] = {
        "base": base.fingerprint,
        "text": sha256_file(text),
        "imatrix": importance.sha256 if importance else None,
        "llamacpp": llamacpp_version(tools),
        "chunks": target.chunks,
        "context": target.context,
    }
    costs = measure_costs(
        tools,
        base,
        space.groups,
        text,
        out / f"{stem}.mix-costs.json",
        identity,
        threads=effort.threads,
        imatrix=out / importance.name if importance else None,
        progress=report,
    )
    table = [[(option.nbytes, costs.of(group, option)) for option in group.options] for group in space.groups]
    choice = solve(table, budget - space.fixed)
    job = _job(base, out / f"{stem}-{target.name}.gguf", target, space, choice, importance, identity["llamacpp"])
    forecast = _forecast(space, choice, costs, budget)
    _write_map(job, forecast)
    if not job.out.exists():
        require_space(out, job.size.file_bytes)
        cross_check(tools, job, base.path)
    standard = base_standard(tools, base, spec.smoke, out, effort.threads, importance) if spec.smoke else None
    fault = require_good_base(standard, spec.smoke) if spec.smoke and standard else None
    report(0, 0, f"{target.name} and its KL divergence")
    resources = Resources(effort.threads, max(64, effort.memory >> 20))
    facts, reused = run_job(tools, job, base.path, base.watch, standard, resources, Stopper())
    (file,) = judged([file_of(job, facts, reused)], spec.smoke, fault)
    with Reference(
        tools, base.path, text, chunks=target.chunks, context=target.context, threads=effort.threads
    ) as stored:
        measured = stored.compare(job.out).values["kld"]
    facts_of_base, facts_of_imatrix = BaseFacts(base.path.name, base.fingerprint), imatrix_facts(importance)
    made = Mix(stem, facts_of_base, identity, facts_of_imatrix, forecast, measured, file)
    write_json(job.out.with_suffix(".mix.json"), made.as_dict(reused=False), overwrite=True)
    return made


def _refuse_early(
    model: Path, out: Path, stem: str, target: MixTarget, spec: LadderSpec, sources: Sources, tools: LlamaCpp
) -> None:
    tools.program("llama-perplexity")
    if target.text is None and sources.calibration is None:
        raise UsageError(
            "a mix is measured on a text",
            expected="--mix-text FILE, or --calibration SET",
            actual="neither",
            remedy="give a plain text of the work that the model is used for",
        )
    if target.text is not None and not target.text.is_file():
        raise BadInput(
            f"{target.text} cannot be read", expected="a text file", actual="no such file", remedy="check the path"
        )
    refuse_early(model, out, stem, spec, [], sources, tools)
    blueprint, _ = blueprint_before(model, spec)
    if blueprint is not None:
        names = [t.name for t in blueprint.tensors if t.name.startswith("blk.")] if sources.calibration else []
        entries = open_imatrix(sources.imatrix).entries if sources.imatrix else names
        space = space_of(blueprint, target.types, entries, 0 if entries else None)
        least = space.fixed + sum(min(o.nbytes for o in group.options) for group in space.groups)
        # Before the conversion a few hundred bytes of metadata are estimated.
        if target.budget(space.values) < least - (0 if blueprint.metadata.exact else 1 << 16):
            raise BadInput(
                "no mix of these types is that small",
                expected=f"at least {least:,} bytes",
                actual=f"{target.budget(space.values):,} bytes",
                remedy="ask for a larger size, or allow smaller types",
            )


def _about(importance: Importance | None) -> int | None:
    return bytes_about(importance.imatrix, importance.name) if importance else None


def _job(
    base: Base,
    path: Path,
    target: MixTarget,
    space: Space,
    choice: Solution,
    importance: Importance | None,
    version: str,
) -> Job:
    tier = tier_of(target.name, space.groups, choice.picks)
    lines = normal(overrides_of_mix(space.groups, choice.picks))
    request = tier.request(lines, imatrix=importance is not None)
    blueprint = base.blueprint
    size = predict(blueprint.tensors, blueprint.facts, blueprint.metadata, request, _about(importance) or 0)
    if size.file_bytes != space.fixed + choice.nbytes:
        raise Refused(
            "the size of the mix does not add up",
            expected=f"{space.fixed + choice.nbytes:,} bytes",
            actual=f"{size.file_bytes:,} bytes",
            remedy="report this defect",
        )
    refuse_f16(size, tier.name)
    require_entries(size.choices, request.file_type, importance.imatrix if importance else None, tier.name)
    job = Job(
        tier,
        request,
        size,
        path,
        {},
        importance.name if importance else None,
        path.with_name(path.name.removesuffix(".gguf") + ".tensor-types.txt"),
        explain_overrides(lines, size.choices),
    )
    return replace(job, inputs=inputs_of(job, base.fingerprint, importance.sha256 if importance else None, version))


def _forecast(space: Space, choice: Solution, costs: Costs, budget: int) -> Forecast:
    """What was chosen and what it should cost."""
    chosen = [(group, group.options[pick]) for group, pick in zip(space.groups, choice.picks, strict=True)]
    chunks = costs.sum_of(chosen)
    draws = np.random.default_rng(0).integers(0, len(chunks), (RESAMPLES, len(chunks)))
    low, high = np.quantile(chunks[draws].mean(axis=1), (0.025, 0.975))
    groups = {
        group.name: GroupChoice(
            option.wanted, sorted(set(option.dtypes)), option.nbytes, round(costs.of(group, option), 6)
        )
        for group, option in chosen
    }
    return Forecast(
        target_bytes=budget,
        file_bytes=space.fixed + choice.nbytes,
        predicted_kld=round(costs.means["base"] + choice.cost, 6),
        predicted_kld_interval=[round(float(low), 6), round(float(high), 6)],
        gap=choice.gap,
        costs_sha256=costs.sha256,
        groups=groups,
    )


def _write_map(job: Job, forecast: Forecast) -> None:
    """Write the --tensor-type-file and its sidecar. Raises `Refused` for an existing one that differs."""
    assert job.map_file is not None
    text = map_text([(pattern, kind.lower()) for pattern, kind in job.request.overrides])
    sidecar, body = job.map_file.with_name(job.map_file.name + ".json"), forecast.as_dict()
    if job.map_file.exists():
        if job.map_file.read_text() != text or read_json(sidecar, "sidecar").get("groups") != body["groups"]:
            raise Refused(
                f"{job.map_file} is stale",
                expected="the mix that these measurements give",
                actual="another mix",
                remedy="remove it, its sidecar and its GGUF file",
            )
        return
    write_json(sidecar, {**body, "map_sha256": sha256_bytes(text.encode())}, overwrite=True)
    with publish_file(job.map_file) as temporary:
        temporary.write_text(text)
