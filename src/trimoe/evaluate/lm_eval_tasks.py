"""Evaluates generation tasks of lm-eval on a server, with trimoe's client and log and lm-eval's scorers.

Invariants: prompts, stop texts, filters and metrics are lm-eval's own. Its metrics are the score; a sample's verdict is
whether its metric is 1.
Not guaranteed: tasks that need log-probabilities (multiple choice), which a chat endpoint does not return, and tasks
that request a row several times; both are refused.
Differences from lm-eval's `local-chat-completions`: all stop texts are sent, not only the first four, and if the
content is empty, the answer is read from `reasoning_content` or `reasoning`. Needs the extra 'eval'.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trimoe.errors import MissingPrerequisite, UsageError
from trimoe.evaluate.evaluate import is_served
from trimoe.evaluate.lm_eval_model import Requesting, TaskRun, model_class
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.log.summary import RunSummary, conclude
from trimoe.evaluate.request_limits import RequestLimits
from trimoe.evaluate.scoring import score_stored
from trimoe.evaluate.tally import Show
from trimoe.serve import open_server
from trimoe.serve.endpoint import Endpoint


@dataclass(frozen=True)
class TaskResult:
    """`metrics` are lm-eval's results of the task; `summary` is the run in the log."""

    task: str
    metrics: Mapping[str, Any]
    summary: RunSummary

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**self.summary.as_dict(), "task": self.task, "lm_eval": dict(self.metrics)}


def evaluate_lm_eval(
    model: str | Path | Endpoint,
    tasks: str | Sequence[str],
    log: str | Path,
    *,
    engine: str | None = None,
    server: Mapping[str, Any] | None = None,
    limit: int | None = None,
    name: str | None = None,
    include: Path | None = None,
    num_fewshot: int | None = None,
    request_limits: RequestLimits | None = None,
    ignore_guards: Iterable[str] = (),
    exclude_errors: bool = False,
    preflight: bool = True,
    show: Show | None = None,
) -> list[TaskResult]:
    """Run tasks of lm-eval (names, or one string with commas) on a server, started for the call or running.

    `include` is a folder with task files (YAML); the other options are those of `evaluate`. The same call resumes.
    Raises `MissingPrerequisite` without lm-eval, `UsageError` for unknown tasks, tasks that need log-probabilities, and
    models that would run in this process, and `Refused` when rows failed or the preflight or a guard refuses.
    """
    names = [part.strip() for part in tasks.split(",") if part.strip()] if isinstance(tasks, str) else list(tasks)
    if not isinstance(model, Endpoint):
        if not is_served(model, engine):
            raise UsageError(
                "tasks of lm-eval need a server",
                expected="an address, a .gguf file, or --engine with a checkpoint",
                actual=str(model),
                remedy="add --engine transformers",
            )
        label = name or (Path(model).stem if "://" not in str(model) else None)
        with open_server(model, engine=engine, **(server or {})) as endpoint:
            return evaluate_lm_eval(
                endpoint,
                names,
                log,
                limit=limit,
                name=label,
                include=include,
                num_fewshot=num_fewshot,
                request_limits=request_limits,
                ignore_guards=ignore_guards,
                exclude_errors=exclude_errors,
                preflight=preflight,
                show=show,
            )
    manager = _task_manager(names, include)
    with RunLog(log) as opened:
        requesting = Requesting(model, opened, name, request_limits, frozenset(ignore_guards), preflight, show)
        found, runs = _simple_evaluate(requesting, names, manager, limit, num_fewshot)
        return [_concluded(opened, task, run, found, exclude_errors) for task, run in runs.items()]


def _task_manager(names: Sequence[str], include: Path | None) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as exc:
        raise MissingPrerequisite(
            "tasks of lm-eval need lm-eval", actual=str(exc), remedy="pip install 'trimoe[eval]'"
        ) from exc
    manager = TaskManager(include_path=str(include) if include else None)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise UsageError(
            f"lm-eval has no task {unknown[0]}",
            remedy="`lm-eval ls tasks` lists them; add your own by --lm-eval-include",
        )
    return manager


def _simple_evaluate(
    requesting: Requesting, names: Sequence[str], manager: Any, limit: int | None, num_fewshot: int | None
) -> tuple[Mapping[str, Any], Mapping[str, TaskRun]]:
    import lm_eval

    model = model_class()(requesting)
    with _no_bars():
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=list(names),
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=True,
        )
    return found, model.runs


@contextmanager
def _no_bars() -> Iterator[None]:
    """Hide the progress bars of lm-eval and datasets, which would break our own display."""
    import datasets
    from lm_eval.api import task

    before, shown = task.tqdm, datasets.are_progress_bars_disabled()
    task.tqdm = partial(before, disable=True)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        task.tqdm = before
        if not shown:
            datasets.enable_progress_bars()


def _concluded(log: RunLog, task: str, run: TaskRun, found: Mapping[str, Any], exclude_errors: bool) -> TaskResult:
    """Store lm-eval's verdicts, so that comparisons pair the same rows."""
    metrics = {k: v for k, v in found["results"].get(task, {}).items() if k != "alias"}
    metric, chosen = _deciding(metrics)
    for row in found.get("samples", {}).get(task, []):
        value = row.get(metric) if row.get("filter", "none") == chosen else None
        if isinstance(value, bool | int | float):
            run.verdicts[str(row["doc_id"])] = float(value) == 1.0
    job = run.job
    score_stored(log, job.run, job.bench, job.docs)
    told = json.loads(json.dumps(metrics, default=str))
    log.event(job.run, "scored by lm-eval", version=version("lm_eval"), metrics=told, metric=f"{metric},{chosen}")
    doc_ids = [doc.doc_id for doc in job.docs]
    return TaskResult(task, metrics, conclude(log, job.run, job.bench.scorer, doc_ids, exclude_errors))


def _deciding(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """Metric and filter that decide a verdict: the flexible extraction if there is one, as in the protocol."""
    names = [name.partition(",")[::2] for name in metrics if "," in name and "_stderr" not in name]
    return next((n for n in names if n[1] == "flexible-extract"), names[0] if names else ("", "none"))
