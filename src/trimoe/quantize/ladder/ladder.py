"""The whole ladder from one call: base, imatrix, tiers; everything checked before, every file checked after.

Invariants: what can be refused is refused before the first expensive step; a file appears under its name only with the
predicted size and types; a rerun of the same command keeps what is finished (same inputs, same sha256) and makes the
rest; threads, jobs and memory do not change a byte.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimoe.io.progress import Progress
from trimoe.io.publish import require_space, write_json
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.quantize.ladder.checks import model_name, refuse_early
from trimoe.quantize.ladder.dynamic import Ranking
from trimoe.quantize.ladder.file import Ladder
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
from trimoe.quantize.ladder.smoke import Answers, Smoke, judge, require_good_base
from trimoe.quantize.ladder.sources import (
    Base,
    Effort,
    Importance,
    Sources,
    base_answers,
    importance_of,
    llamacpp_version,
    make_base,
    ranking_of,
)
from trimoe.quantize.types.blueprint import Blueprint
from trimoe.quantize.types.sizes import bytes_about
from trimoe.quantize.types.tiers import Tier


def make_ladder(
    model: Path,
    out: Path,
    ladder: Ladder,
    tools: LlamaCpp,
    *,
    sources: Sources | None = None,
    effort: Effort | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make every tier of a ladder in `out`; returns the table (also written to out/ladder.json)."""
    sources, effort, report = sources or Sources(), effort or Effort(), progress or _silent
    tiers = [tier for tier in ladder.resolved() if tier.name != ladder.base]  # the base is a rung already
    stem = name or model_name(model)
    refuse_early(model, out, stem, ladder, tiers, sources, tools)
    out.mkdir(parents=True, exist_ok=True)
    report(0, len(tiers) + 2, "base")
    base = make_base(model, out, stem, ladder, tools)
    report(1, len(tiers) + 2, "imatrix")
    importance = importance_of(model, base, out, ladder, tools, sources, effort)
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
    answers = base_answers(tools, base, ladder.smoke, out, effort.threads) if ladder.smoke else None
    fault = require_good_base(answers, ladder.smoke) if ladder.smoke and answers else None
    rows = _run(tools, jobs, base, ladder, effort, lambda done, note: report(done + 2, len(tiers) + 2, note))
    judge_rows(rows, answers, ladder.smoke, fault)
    table = {
        "model": stem,
        "base": {"file": base.path.name, "fingerprint": base.fingerprint},
        "imatrix": importance
        and {
            "file": importance.name,
            "sha256": importance.sha256,
            "tokens": importance.tokens,
            "thin_layers": {str(c.layer): round(c.share, 4) for c in importance.coverage if c.thin},
        },
        "llamacpp": tools.info or {"version": tools.version()},
        "files": rows,
        "findings": findings(rows),
    }
    write_json(
        out / "ladder.json",
        {**table, "files": [{k: v for k, v in r.items() if k != "kept"} for r in rows]},
        overwrite=True,
    )
    return table


def plan_jobs(
    blueprint: Blueprint,
    out: Path,
    stem: str,
    tiers: Sequence[Tier],
    importance: Importance | None,
    ranking: Ranking | None,
) -> list[Job]:
    """A job for each tier, with sizes to the byte; refuses tiers for which the imatrix lacks entries."""
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


def judge_rows(rows: Sequence[dict[str, Any]], base: Answers | None, wanted: Smoke | None, fault: str | None) -> None:
    """Each row's verdict: `failed` (None: did not), and `unchecked` (why not failing means nothing; None: it does)."""
    for row in rows:
        if base is None or wanted is None:
            row.pop("smoke", None)  # answers that an earlier run asked for, and this one does not judge
            continue
        failed = judge(Answers.from_json(row["smoke"]), base, wanted)
        row["smoke"] |= {"failed": failed, "unchecked": fault and f"the base itself fails: {fault}"}


def findings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader must know: files that do not end their answers, and dynamic files equal to their plain tier."""
    found = [
        f"{row['tier']} failed the smoke test: {row['smoke']['failed']}"
        for row in rows
        if row.get("smoke") and row["smoke"]["failed"]
    ]
    found += [
        f"{row['tier']} was not checked: {row['smoke']['unchecked']}"
        for row in rows
        if row.get("smoke") and row["smoke"].get("unchecked") and not row["smoke"]["failed"]
    ]
    hashes: dict[str, str] = {}
    for row in rows:
        if row["sha256"] in hashes:
            found.append(f"{row['tier']} has the same bytes as {hashes[row['sha256']]}")
        hashes.setdefault(row["sha256"], row["tier"])
    return found


def _run(
    tools: LlamaCpp,
    jobs: Sequence[Job],
    base: Base,
    ladder: Ladder,
    effort: Effort,
    report: Callable[[int, str], None],
) -> list[dict[str, Any]]:
    """All jobs, some at a time; rows in the order of the ladder."""
    resources = Resources(effort.threads, max(64, effort.memory // effort.jobs >> 20))
    stopper, rows = Stopper(), {}
    with ThreadPoolExecutor(effort.jobs) as pool:
        waiting = {pool.submit(run_job, tools, job, base.path, ladder.smoke, resources, stopper): job for job in jobs}
        try:
            for done, future in enumerate(as_completed(waiting), 1):
                job = waiting[future]
                facts, kept = future.result()
                rows[job.tier.name] = row_of(job, facts, kept)
                report(done, f"{job.tier.name}{' (was finished)' if kept else ''}")
        except BaseException:
            stopper.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return [rows[job.tier.name] for job in jobs]


def row_of(job: Job, facts: dict[str, Any], kept: bool) -> dict[str, Any]:
    """A finished job's line of the table."""
    fallbacks = sum(choice.fell_back for choice in job.size.choices)
    row = {
        "tier": job.tier.name,
        "file": job.out.name,
        **facts,
        "imatrix": job.inputs["imatrix"],
        "fallback_tensors": fallbacks,
        "kept": kept,
    }
    if job.report is not None:
        row["map"] = {
            "sha256": map_sha256(job),
            "no such tensor": len(job.report.unmatched),
            "kept by llama.cpp": len(job.report.ignored),
            "fell back": len(job.report.fallbacks),
        }
    return row


def _silent(done: int, total: int, note: str = "") -> None:
    """Progress that nobody watches."""
