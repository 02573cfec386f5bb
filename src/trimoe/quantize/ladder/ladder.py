"""GGUF ladders: base, imatrix and every tier from one call, checked before and after.

Invariants: whatever can be refused is refused before the first expensive step; a file appears under its name only with
the predicted size and types; a rerun of the same command keeps finished files (same inputs, same sha256) and makes the
rest; threads, jobs and memory do not change a byte.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimoe.io.atomic import require_space
from trimoe.io.jsonfile import write_json
from trimoe.io.progress import Progress, silent
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.quantize.ladder.checks import model_name, refuse_early
from trimoe.quantize.ladder.dynamic import OverrideReport, Ranking
from trimoe.quantize.ladder.importance import require_entries
from trimoe.quantize.ladder.job import (
    Job,
    Resources,
    Stopper,
    cross_check,
    inputs_of,
    map_sha256,
    plan_job,
    run_job,
    write_map,
)
from trimoe.quantize.ladder.result import (
    BaseFacts,
    ImatrixFacts,
    Ladder,
    MapSummary,
    SmokeVerdict,
    TierFile,
    with_verdict,
)
from trimoe.quantize.ladder.smoke import Departure, Smoke, Standard, judge, require_good_base
from trimoe.quantize.ladder.sources import (
    Base,
    Effort,
    Importance,
    Sources,
    base_standard,
    importance_of,
    llamacpp_version,
    make_base,
    ranking_of,
)
from trimoe.quantize.ladder.spec import LadderSpec
from trimoe.quantize.types.blueprint import Blueprint
from trimoe.quantize.types.sizes import bytes_about
from trimoe.quantize.types.tiers import Tier


def make_ladder(
    model: Path,
    out: Path,
    spec: LadderSpec,
    tools: LlamaCpp,
    *,
    sources: Sources | None = None,
    effort: Effort | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Ladder:
    """Make every tier of a ladder in `out`; the result is also written to out/ladder.json."""
    sources, effort, report = sources or Sources(), effort or Effort(), progress or silent
    tiers = [tier for tier in spec.resolved() if tier.name != spec.base]  # the base file exists already
    stem = name or model_name(model)
    refuse_early(model, out, stem, spec, tiers, sources, tools)
    out.mkdir(parents=True, exist_ok=True)
    report(0, len(tiers) + 2, "base")
    base = make_base(model, out, stem, spec, tools)
    report(1, len(tiers) + 2, "imatrix")
    importance = importance_of(model, base, out, spec, tools, sources, effort)
    ranking = ranking_of(base, importance, sources) if any(tier.dynamic for tier in tiers) else None
    jobs = plan_jobs(base.blueprint, out, stem, tiers, importance, ranking)
    version = llamacpp_version(tools)
    jobs = [
        replace(j, inputs=inputs_of(j, base.fingerprint, importance.sha256 if importance else None, version))
        for j in jobs
    ]
    require_space(out, sum(job.size.file_bytes for job in jobs if not job.out.exists()))
    for job in jobs:
        if job.map_file is not None and ranking is not None:
            write_map(job, ranking)
        if not job.out.exists():
            cross_check(tools, job, base.path)
    standard = base_standard(tools, base, spec.smoke, out, effort.threads, importance) if spec.smoke else None
    fault = require_good_base(standard, spec.smoke) if spec.smoke and standard else None
    files = _run(tools, jobs, base, standard, effort, lambda done, note: report(done + 2, len(tiers) + 2, note))
    made = Ladder(
        stem,
        BaseFacts(base.path.name, base.fingerprint),
        imatrix_facts(importance),
        tools.info or {"version": tools.version()},
        judged(files, spec.smoke, fault),
    )
    write_json(out / "ladder.json", made.as_dict(reused=False), overwrite=True)
    return made


def imatrix_facts(importance: Importance | None) -> ImatrixFacts | None:
    """The imatrix in use, for the result."""
    if importance is None:
        return None
    thin = {one.layer: round(one.share, 4) for one in importance.coverage if one.thin}
    return ImatrixFacts(importance.name, importance.sha256, importance.tokens, thin, importance.unknown)


def plan_jobs(
    blueprint: Blueprint,
    out: Path,
    stem: str,
    tiers: Sequence[Tier],
    importance: Importance | None,
    ranking: Ranking | None,
) -> list[Job]:
    """A job per tier, with sizes to the byte. Refuses tiers that need imatrix entries which do not exist."""
    jobs = []
    for tier in tiers:
        about = bytes_about(importance.imatrix, importance.name) if importance else 0
        job = plan_job(
            blueprint,
            tier,
            out / f"{stem}-{tier.name}.gguf",
            about_imatrix=about,
            ranking=ranking,
            imatrix=importance.name if importance else None,
        )
        have = importance.imatrix if importance and job.request.imatrix else None
        require_entries(job.size.choices, job.request.file_type, have, tier.name)
        jobs.append(job)
    return jobs


def judged(files: Sequence[TierFile], wanted: Smoke | None, fault: str | None) -> tuple[TierFile, ...]:
    """The files with their verdicts; `fault` is why the base fails the test itself.

    Without a smoke test, figures that an earlier run recorded are dropped: nothing judges them.
    """
    if wanted is None:
        return tuple(replace(file, smoke=None) for file in files)
    result = []
    for file in files:
        if file.smoke is not None:
            bits = file.bits_per_weight
            smaller = [(f.tier, f.smoke.departure.kl) for f in files if f.smoke and f.bits_per_weight < bits]
            file = with_verdict(file, judge(file.smoke.departure, wanted, smaller), fault)
        result.append(file)
    return tuple(result)


def _run(
    tools: LlamaCpp,
    jobs: Sequence[Job],
    base: Base,
    standard: Standard | None,
    effort: Effort,
    report: Callable[[int, str], None],
) -> list[TierFile]:
    """Run all jobs, `effort.jobs` at a time; files in the order of the ladder."""
    resources = Resources(effort.threads, max(64, effort.memory // effort.jobs >> 20))
    stopper, files = Stopper(), {}
    with ThreadPoolExecutor(effort.jobs) as pool:
        waiting = {
            pool.submit(run_job, tools, job, base.path, base.watch, standard, resources, stopper): job for job in jobs
        }
        try:
            for done, future in enumerate(as_completed(waiting), 1):
                job = waiting[future]
                facts, reused = future.result()
                files[job.tier.name] = file_of(job, facts, reused)
                report(done, f"{job.tier.name}{' (reused)' if reused else ''}")
        except BaseException:
            stopper.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return [files[job.tier.name] for job in jobs]


def file_of(job: Job, facts: dict[str, Any], reused: bool) -> TierFile:
    """A finished job as a file of the result, not judged yet."""
    report, smoke = job.report, facts.get("smoke")
    return TierFile(
        tier=job.tier.name,
        path=job.out,
        file_bytes=facts["file_bytes"],
        sha256=facts["sha256"],
        bits_per_weight=facts["bits_per_weight"],
        types=facts["types"],
        imatrix=job.inputs["imatrix"],
        fallback_tensors=sum(choice.fell_back for choice in job.size.choices),
        reused=reused,
        smoke=SmokeVerdict(Departure.from_json(smoke), None, None) if smoke else None,
        map=_summary(job, report) if report else None,
    )


def _summary(job: Job, report: OverrideReport) -> MapSummary:
    return MapSummary(map_sha256(job), len(report.unmatched), len(report.ignored), len(report.fallbacks))
