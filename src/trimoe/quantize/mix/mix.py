"""A measured mix: the types that cost least within a size, for this model, on this text; built and measured.

Invariants: the file is never larger than the target, and has the predicted size to the byte; the choice is a function
of measurements with a recorded identity; the same command continues or finds what is finished.
Not guaranteed: that the costs of groups add up. Predicted and measured KL divergence stand side by side in the result,
both on the text that the choice was made on: compare files on another one with `trimoe kld`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.errors import BadInput, Refused, UsageError
from trimoe.io.progress import Progress
from trimoe.io.publish import publish_file, read_json, require_space, sha256_bytes, sha256_file, write_json
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.model.gguf.imatrix import open_imatrix
from trimoe.quantize.kld import RESAMPLES, Reference
from trimoe.quantize.ladder.checks import blueprint_before, model_name, refuse_early
from trimoe.quantize.ladder.dynamic import explain_overrides, map_text, normal
from trimoe.quantize.ladder.file import Ladder
from trimoe.quantize.ladder.importance import require_entries
from trimoe.quantize.ladder.job import Job, Resources, Stopper, cross_check, inputs_of, refuse_f16, run_job
from trimoe.quantize.ladder.ladder import findings, judge_rows, row_of
from trimoe.quantize.ladder.smoke import require_good_base
from trimoe.quantize.ladder.sources import (
    Base,
    Effort,
    Importance,
    Sources,
    base_answers,
    importance_of,
    llamacpp_version,
    make_base,
)
from trimoe.quantize.mix.knapsack import Solution, solve
from trimoe.quantize.mix.measure import Costs, measure_costs
from trimoe.quantize.mix.options import TYPES, Group, groups_of, overrides_of_mix, tier_of
from trimoe.quantize.types.blueprint import Blueprint
from trimoe.quantize.types.sizes import DATASET_NAME, bytes_about, predict
from trimoe.quantize.types.tensor_types import TARGETS


@dataclass(frozen=True)
class Wish:
    """What is asked of a mix: `nbytes` of file or `bits` per weight of the whole file; measured on `text`."""

    nbytes: int | None = None
    bits: float | None = None
    text: Path | None = None
    """Default: the text that the imatrix was made from."""
    types: tuple[str, ...] = TYPES
    chunks: int = 32
    context: int = 512

    def __post_init__(self) -> None:
        """Refuse contradictions and unknown types."""
        if (self.nbytes is None) == (self.bits is None):
            raise UsageError("a mix needs one target", expected="--target-size SIZE or --target-bpw BITS")
        if (compared := self.chunks * (self.context - 1 - self.context // 2)) < 100:
            raise UsageError(
                "too little text to measure a mix on",
                expected="at least 100 tokens compared",
                actual=f"{compared}: half of {self.chunks} chunks of {self.context}",
                remedy="raise --mix-chunks or --mix-context",
            )
        for kind in self.types:
            if kind not in TARGETS:
                raise UsageError(f"{kind} is not a type that a tensor can have", expected=", ".join(TARGETS))

    @property
    def name(self) -> str:
        """Name of the tier: AUTO-12.9GB, AUTO-4.8bpw."""
        if self.bits is not None:
            return f"AUTO-{self.bits:g}bpw"
        assert self.nbytes is not None
        return f"AUTO-{self.nbytes / 1e9:.6g}GB" if self.nbytes >= 10**9 else f"AUTO-{self.nbytes / 1e6:.6g}MB"

    def budget(self, values: int) -> int:
        """Bytes of the file for a model of `values` weights."""
        return self.nbytes if self.nbytes is not None else int((self.bits or 0) * values / 8)


@dataclass(frozen=True)
class Space:
    """All choices of a model: its groups, and the bytes that no choice changes (header, norms, routers)."""

    groups: tuple[Group, ...]
    fixed: int
    values: int


def space_of(blueprint: Blueprint, types: Sequence[str], entries: Collection[str], about_imatrix: int | None) -> Space:
    """`entries`: the tensors of the imatrix; `about_imatrix`: bytes of metadata about it, None without one."""
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
    wish: Wish,
    ladder: Ladder,
    tools: LlamaCpp,
    *,
    sources: Sources | None = None,
    effort: Effort | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure, choose, build, measure again; the result is also written to out/NAME-TIER.mix.json."""
    sources, effort, report = sources or Sources(), effort or Effort(), progress or (lambda done, total, note: None)
    stem = name or model_name(model)
    _refuse_early(model, out, stem, wish, ladder, sources, tools)
    out.mkdir(parents=True, exist_ok=True)
    report(0, 0, "base and imatrix")
    base = make_base(model, out, stem, ladder, tools)
    importance = importance_of(model, base, out, ladder, tools, sources, effort)
    text = wish.text or out / DATASET_NAME
    entries = importance.imatrix.entries if importance else ()
    space = space_of(base.blueprint, wish.types, entries, _about(importance))
    budget = wish.budget(space.values)
    identity: dict[str, Any] = {
        "base": base.fingerprint,
        "text": sha256_file(text),
        "imatrix": importance.sha256 if importance else None,
        "llamacpp": llamacpp_version(tools),
        "chunks": wish.chunks,
        "context": wish.context,
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
    job = _job(base, out / f"{stem}-{wish.name}.gguf", wish, space, choice, importance, identity["llamacpp"])
    forecast = _forecast(space, choice, costs, budget)
    _write_map(job, forecast)
    if not job.out.exists():
        require_space(out, job.size.file_bytes)
        cross_check(tools, job, base.path)
    answers = base_answers(tools, base, ladder.smoke, out, effort.threads) if ladder.smoke else None
    fault = require_good_base(answers, ladder.smoke) if ladder.smoke and answers else None
    report(0, 0, f"{wish.name} and its own KL divergence")
    resources = Resources(effort.threads, max(64, effort.memory >> 20))
    facts, kept = run_job(tools, job, base.path, ladder.smoke, resources, Stopper())
    row = row_of(job, facts, kept)
    judge_rows([row], answers, ladder.smoke, fault)
    with Reference(tools, base.path, text, chunks=wish.chunks, context=wish.context, threads=effort.threads) as stored:
        measured = stored.compare(job.out).values["kld"]
    result = {
        "model": stem,
        "base": {"file": base.path.name, "fingerprint": base.fingerprint},
        "identity": identity,
        "imatrix": importance and {"file": importance.name, "sha256": importance.sha256},
        **forecast,
        "measured_kld": measured,
        "files": [row],
        "findings": findings([row]),
    }
    kept_row = {key: value for key, value in row.items() if key != "kept"}
    write_json(job.out.with_suffix(".mix.json"), {**result, "files": [kept_row]}, overwrite=True)
    return result


def _refuse_early(
    model: Path, out: Path, stem: str, wish: Wish, ladder: Ladder, sources: Sources, tools: LlamaCpp
) -> None:
    tools.program("llama-perplexity")
    if wish.text is None and sources.calibration is None:
        raise UsageError(
            "a mix is measured on a text",
            expected="--mix-text FILE, or --calibration SET",
            remedy="give a plain text of the model's work",
        )
    if wish.text is not None and not wish.text.is_file():
        raise BadInput(f"{wish.text} cannot be read", expected="a text file", actual="no such file")
    refuse_early(model, out, stem, ladder, [], sources, tools)
    blueprint, _ = blueprint_before(model, ladder)
    if blueprint is not None:
        names = [t.name for t in blueprint.tensors if t.name.startswith("blk.")] if sources.calibration else []
        entries = open_imatrix(sources.imatrix).entries if sources.imatrix else names
        space = space_of(blueprint, wish.types, entries, 0 if entries else None)
        least = space.fixed + sum(min(o.nbytes for o in group.options) for group in space.groups)
        # Before the conversion some hundred bytes of metadata are estimated.
        if wish.budget(space.values) < least - (0 if blueprint.metadata.exact else 1 << 16):
            raise BadInput(
                "no mix of these types is that small",
                expected=f"at least {least:,} bytes",
                actual=f"{wish.budget(space.values):,} bytes",
                remedy="ask for a larger size, or allow smaller types",
            )


def _about(importance: Importance | None) -> int | None:
    return bytes_about(importance.imatrix, importance.name) if importance else None


def _job(
    base: Base, path: Path, wish: Wish, space: Space, choice: Solution, importance: Importance | None, version: str
) -> Job:
    tier = tier_of(wish.name, space.groups, choice.picks)
    lines = normal(overrides_of_mix(space.groups, choice.picks))
    request = tier.request(lines, imatrix=importance is not None)
    blueprint = base.blueprint
    size = predict(blueprint.tensors, blueprint.facts, blueprint.metadata, request, _about(importance) or 0)
    if size.file_bytes != space.fixed + choice.nbytes:
        raise Refused(
            "the size of the mix does not add up",
            expected=f"{space.fixed + choice.nbytes:,} bytes",
            actual=f"{size.file_bytes:,} bytes",
            remedy="please report this",
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


def _forecast(space: Space, choice: Solution, costs: Costs, budget: int) -> dict[str, Any]:
    """What was chosen and what it should cost; the interval is over chunks of the text."""
    chosen = [(group, group.options[pick]) for group, pick in zip(space.groups, choice.picks, strict=True)]
    chunks = costs.sum_of(chosen)
    draws = np.random.default_rng(0).integers(0, len(chunks), (RESAMPLES, len(chunks)))
    low, high = np.quantile(chunks[draws].mean(axis=1), (0.025, 0.975))
    return {
        "target_bytes": budget,
        "file_bytes": space.fixed + choice.nbytes,
        "predicted_kld": round(costs.means["base"] + choice.cost, 6),
        "predicted_kld_interval": [round(float(low), 6), round(float(high), 6)],
        "gap": choice.gap,
        "costs_sha256": costs.sha256,
        "groups": {
            group.name: {
                "type": option.wanted,
                "stored": sorted(set(option.dtypes)),
                "bytes": option.nbytes,
                "kld": round(costs.of(group, option), 6),
            }
            for group, option in chosen
        },
    }


def _write_map(job: Job, forecast: dict[str, Any]) -> None:
    """The --tensor-type-file and its sidecar. An existing one must be the same, or it is stale."""
    assert job.map_file is not None
    text = map_text([(pattern, kind.lower()) for pattern, kind in job.request.overrides])
    sidecar = job.map_file.with_name(job.map_file.name + ".json")
    if job.map_file.exists():
        if job.map_file.read_text() != text or read_json(sidecar, "sidecar").get("groups") != forecast["groups"]:
            raise Refused(
                f"{job.map_file} is stale",
                expected="the mix that these measurements give",
                actual="another one",
                remedy="remove it, its sidecar and its GGUF file",
            )
        return
    write_json(sidecar, {**forecast, "map_sha256": sha256_bytes(text.encode())}, overwrite=True)
    with publish_file(job.map_file) as temporary:
        temporary.write_text(text)
