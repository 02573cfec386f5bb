"""Any generation task of lm-eval, asked by our client: our log, resume and reasoning fallback, its scorers.

Invariants: prompts, stops, filters and metrics are lm-eval's own; a reply is stored before lm-eval sees it, and what is
stored is never asked for again. A row without a reply never reaches lm-eval: the task has no score until it has one.
What lm-eval says is the score; the verdict of a sample is its metric of 1 or not. Not guaranteed: tasks that need
log-probabilities (multiple choice), which a chat endpoint does not give, and tasks that ask a row several times; both
are refused.
Differences from lm-eval's `local-chat-completions`: all stop texts are sent (it sends the first four), and an answer in
`reasoning_content` or `reasoning` is read where the content is empty (it reads nothing then). Needs the extra 'eval'.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trimoe.bench.bench import Bench, Doc, Verdict
from trimoe.errors import MissingPrerequisite, Refused, UsageError
from trimoe.evaluate.asking import Job, Show, ask_missing, judged
from trimoe.evaluate.client import Patience
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.log.summary import RunSummary, conclude
from trimoe.evaluate.preflight import check
from trimoe.evaluate.run import served_model
from trimoe.io.publish import sha256_json
from trimoe.serve.endpoint import Endpoint

PREFIX = "lm-eval-"  # of the bench's name in the log
MODEL = "trimoe"  # name of our model among lm-eval's
MAX_GEN_TOKS = 256  # lm-eval's own default, where a task states none
_CAPS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class TaskResult:
    """`metrics` is lm-eval's own line for the task; `summary` is what our log holds."""

    task: str
    metrics: Mapping[str, Any]
    summary: RunSummary

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**self.summary.as_dict(), "task": self.task, "lm_eval": dict(self.metrics)}


@dataclass(frozen=True)
class _TaskBench(Bench):
    """A task of lm-eval as a bench: it has no spec file, only stop texts."""

    ends: tuple[str, ...] = ()

    @property
    def stops(self) -> tuple[str, ...]:
        return self.ends


@dataclass
class _Asked:
    """One task's requests as a job, in the order lm-eval gave them, and what lm-eval said of each in the end."""

    job: Job
    ids: list[str]
    body: dict[str, Any]
    verdicts: dict[str, bool] = field(default_factory=dict)


def evaluate_lm_eval(
    endpoint: Endpoint,
    tasks: Sequence[str],
    log_path: Path | str,
    *,
    limit: int | None = None,
    name: str | None = None,
    include: Path | None = None,
    num_fewshot: int | None = None,
    patience: Patience | None = None,
    ignore_guards: Iterable[str] = (),
    exclude_errors: bool = False,
    preflight: bool = True,
    show: Show | None = None,
) -> list[TaskResult]:
    """Run tasks of lm-eval on a server; `include` is a folder of task YAMLs of your own.

    The same call goes on where it was stopped. Raises `MissingPrerequisite` without lm-eval, `UsageError` for a task
    that is unknown or needs log-probabilities, `Refused` when rows failed, a guard paused, or preflight refuses.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as exc:
        raise MissingPrerequisite(
            "tasks of lm-eval need lm-eval", actual=str(exc), remedy="pip install 'trimoe[eval]'"
        ) from exc
    manager = TaskManager(include_path=str(include) if include else None)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise UsageError(
            f"lm-eval knows no task {unknown[0]}", remedy="`lm-eval ls tasks` lists them; or --lm-eval-include"
        )
    with RunLog(log_path) as log:
        model = _model_class()(endpoint, log, name, patience, frozenset(ignore_guards), preflight, show)
        with _no_bars():
            found = lm_eval.simple_evaluate(
                model=model,
                tasks=list(tasks),
                num_fewshot=num_fewshot,
                limit=limit,
                apply_chat_template=True,
                fewshot_as_multiturn=True,
                task_manager=manager,
                bootstrap_iters=0,
                log_samples=True,
            )
        return [_concluded(log, task, asked, found, endpoint, exclude_errors) for task, asked in model.asked.items()]


@contextmanager
def _no_bars() -> Iterator[None]:
    """No progress bars of lm-eval and datasets while the block runs: they would run into our own table."""
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


def _model_class() -> Any:
    """Our model among lm-eval's. Made here because lm-eval is imported only where it is used."""
    from lm_eval.api.model import LM
    from lm_eval.api.registry import MODEL_REGISTRY, register_model
    from lm_eval.models.api_models import JsonChatStr

    class TrimoeLM(LM):  # type: ignore[misc]
        """Generation only. `asked` holds each task's job after `generate_until`."""

        def __init__(
            self,
            endpoint: Endpoint,
            log: RunLog,
            name: str | None,
            patience: Patience | None,
            ignored: frozenset[str],
            preflight: bool,
            show: Show | None,
        ) -> None:
            super().__init__()
            self.endpoint, self.log, self.name = endpoint, log, name
            self.patience, self.ignored, self.preflight, self.show = patience, ignored, preflight, show
            self.asked: dict[str, _Asked] = {}

        @property
        def tokenizer_name(self) -> str:
            return str(self.endpoint.model)

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> Any:
            return JsonChatStr(json.dumps([{**turn, "type": "text"} for turn in chat_history], ensure_ascii=False))

        def chat_template(self, chat_template: bool | str = False) -> str:
            return ""

        def loglikelihood(self, requests: list[Any]) -> Any:
            raise _no_likelihood(requests)

        def loglikelihood_rolling(self, requests: list[Any]) -> Any:
            raise _no_likelihood(requests)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            by_task: dict[str, list[Any]] = {}
            _require_single(requests)
            for request in requests:
                by_task.setdefault(str(request.task_name), []).append(request)
            replies: dict[int, str] = {}
            for task, group in by_task.items():
                for request, reply in zip(group, self._replies(task, group), strict=True):
                    replies[id(request)] = reply
            return [replies[id(request)] for request in requests]

        def _replies(self, task: str, requests: list[Any]) -> list[str]:
            asked = _asked(self, task, requests)
            self.asked[task] = asked
            stored = _stored(self.log, asked.job)
            missing = {doc.doc_id for doc in asked.job.docs} - stored.keys()
            report = None
            if self.preflight and missing:
                report = check(
                    self.endpoint,
                    None,
                    max_new_tokens=asked.job.bench.max_new_tokens,
                    rows=len(missing),
                    log_path=self.log.path,
                )
            self.log.event(
                asked.job.run,
                "asking",
                missing=len(missing),
                of=len(asked.job.docs),
                preflight=report.as_dict() if report else self.preflight,
                ignored_guards=sorted(self.ignored),
                operational=dict(self.endpoint.operational),
            )
            if missing:
                patience = self.patience or Patience(self.endpoint.slots or Patience.concurrency)
                as_asked = replace(self.endpoint, body={**asked.body, **self.endpoint.body})
                ask_missing(self.log, asked.job, missing, as_asked, patience, ignored=self.ignored, show=self.show)
                stored = _stored(self.log, asked.job)
            if failed := [doc.doc_id for doc in asked.job.docs if doc.doc_id not in stored]:
                raise Refused(
                    f"{task} has no score: {len(failed)} of {len(asked.job.docs)} rows have no reply",
                    expected="a reply to every row",
                    actual=f"failed: {', '.join(failed[:5])}",
                    remedy="run the same command again; it asks for these only",
                )
            return [stored[doc_id] for doc_id in asked.ids]

    if MODEL not in MODEL_REGISTRY:
        register_model(MODEL)(TrimoeLM)
    return TrimoeLM


def _no_likelihood(requests: Sequence[Any]) -> UsageError:
    task = requests[0].task_name if requests else "this task"
    return UsageError(
        f"{task} needs log-probabilities",
        expected="a task that generates (output_type generate_until)",
        actual="a chat endpoint gives replies only",
        remedy="choose its generative variant",
    )


def _require_single(requests: Sequence[Any]) -> None:
    """`UsageError` for a task that asks its rows more than once: lm-eval judges such replies together, and a log of
    one verdict per reply could only book that verdict on one of them."""
    for request in requests:
        if (request.repeats or 1) > 1:
            raise UsageError(
                f"{request.task_name} asks every row {request.repeats} times",
                expected="repeats: 1, one reply and one verdict per row",
                actual=f"repeats: {request.repeats}",
                remedy="give a copy of the task with repeats: 1 through --lm-eval-include",
            )


def _asked(model: Any, task: str, requests: Sequence[Any]) -> _Asked:
    """The requests of one task as rows of a bench of that name, and its run in the log."""
    kinds = {json.dumps(request.args[1], sort_keys=True, default=str) for request in requests}
    if len(kinds) != 1:
        raise UsageError(
            f"{task} asks its rows with different settings",
            actual=f"{len(kinds)} kinds",
            expected="one set of generation_kwargs per task",
        )
    rule = dict(requests[0].args[1])
    cap = next((int(rule[key]) for key in _CAPS if rule.get(key)), MAX_GEN_TOKS)
    until = rule.get("until") or []
    stops = tuple([until] if isinstance(until, str) else until)
    extra = {k: v for k, v in rule.items() if k not in (*_CAPS, "until", "do_sample", "temperature")}
    temperature = float(rule.get("temperature") or 0.0) if rule.get("do_sample", True) else 0.0
    docs: list[Doc] = []
    ids: list[str] = []
    for request in requests:
        doc_id = str(request.doc_id)
        *history, last = json.loads(request.args[0].prompt)
        turns = tuple((turn["role"], turn["content"]) for turn in history)
        docs.append(Doc(doc_id, last["content"], "", {}, turns))
        ids.append(doc_id)
    verdicts: dict[str, bool] = {}
    name = PREFIX + task
    bench = _TaskBench(
        name, 1, len(docs), cap, lambda _rows, _data: docs, lambda reply: reply, _scorer(verdicts), ends=stops
    )
    settings = {"max_new_tokens": cap, "stops": list(stops), "temperature": temperature, **extra}
    spec = {
        "name": name,
        "version": 1,
        "lm_eval": version("lm_eval"),
        "max_new_tokens": cap,
        "generation": settings,
        "dataset": sha256_json([[doc.doc_id, doc.chat()] for doc in docs]),
    }
    endpoint = model.endpoint
    sampler = {
        "engine": endpoint.engine,
        "decoding": "greedy" if temperature == 0 else "sampled",
        **settings,
        "context": endpoint.context,
        "server": dict(endpoint.settings),
        "body": dict(endpoint.body),
    }
    run = model.log.start(
        model.name or endpoint.model,
        name,
        spec,
        served_model(endpoint),
        sampler,
        {"operational": dict(endpoint.operational)},
    )
    return _Asked(Job(bench, docs, run), ids, {"temperature": temperature, **extra}, verdicts)


def _scorer(verdicts: Mapping[str, bool]) -> Any:
    """Looks up what lm-eval said; not scored before that."""

    def score(pairs: Sequence[tuple[str, Doc]]) -> list[Verdict]:
        return [
            Verdict(None, "harness error", detail="lm-eval has not scored it yet")
            if (said := verdicts.get(doc.doc_id)) is None
            else Verdict(said, "correct" if said else "wrong", answer[:200])
            for answer, doc in pairs
        ]

    return score


def _stored(log: RunLog, job: Job) -> dict[str, str]:
    """The text lm-eval gets, by row: the content, or the reasoning where that is empty."""
    return {
        s.sample.doc_id: s.sample.reply if s.sample.reply.strip() else s.sample.reasoning
        for s in log.samples(job.run)
        if not s.sample.error
    }


def _concluded(
    log: RunLog, task: str, asked: _Asked, found: Mapping[str, Any], endpoint: Endpoint, exclude_errors: bool
) -> TaskResult:
    """Book lm-eval's verdicts, so that comparisons pair the same rows."""
    metrics = {k: v for k, v in found["results"].get(task, {}).items() if k != "alias"}
    rows = found.get("samples", {}).get(task, [])
    chosen = _filter(metrics)
    for row in rows:
        value = row.get(chosen[0]) if row.get("filter", "none") == chosen[1] else None
        if isinstance(value, bool | int | float):
            asked.verdicts[str(row["doc_id"])] = float(value) == 1.0
    docs = {doc.doc_id: doc for doc in asked.job.docs}
    samples = [s.sample for s in log.samples(asked.job.run) if s.sample.doc_id in docs and not s.sample.error]
    verdicts = judged(asked.job.bench, [(s, docs[s.doc_id]) for s in samples], endpoint.context)
    log.score(asked.job.run, list(zip([s.doc_id for s in samples], verdicts, strict=True)), asked.job.bench.scorer)
    told = json.loads(json.dumps(metrics, default=str))
    log.event(asked.job.run, "scored by lm-eval", version=version("lm_eval"), metrics=told, metric=",".join(chosen))
    return TaskResult(task, metrics, conclude(log, asked.job.run, asked.job.bench.scorer, list(docs), exclude_errors))


def _filter(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """Metric and filter that decide a sample: flexible extraction before the strict one, as the protocol has it."""
    names = [name.partition(",")[::2] for name in metrics if "," in name and "_stderr" not in name]
    return next((n for n in names if n[1] == "flexible-extract"), names[0] if names else ("", "none"))


__all__ = ["MODEL", "PREFIX", "TaskResult", "evaluate_lm_eval"]
