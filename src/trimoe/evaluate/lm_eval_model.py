"""The model class that lm-eval sees: turns its requests into a run of ours and returns stored replies.

Invariants: a reply is stored before lm-eval sees it, and stored replies are never requested again. A task whose rows
have failures is refused, because lm-eval would score a missing reply as a wrong one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

from trimoe.bench.bench import Bench, Doc, Verdict
from trimoe.errors import Refused, UsageError
from trimoe.evaluate.intake import Job
from trimoe.evaluate.log.lock import locked
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.loop import answer_missing, missing_rows
from trimoe.evaluate.preflight import check
from trimoe.evaluate.request_limits import RequestLimits
from trimoe.evaluate.server import Server, served_model
from trimoe.evaluate.tally import Show
from trimoe.io.canonical import sha256_json
from trimoe.serve.endpoint import Endpoint

PREFIX = "lm-eval-"  # of the bench's name in the log
MODEL = "trimoe"  # the model's name in lm-eval's registry
MAX_GEN_TOKS = 256  # lm-eval's default for tasks that state none
_CAPS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class _TaskBench(Bench):
    """A task of lm-eval as a bench without a spec file."""

    ends: tuple[str, ...] = ()

    @property
    def stops(self) -> tuple[str, ...]:
        return self.ends


@dataclass
class TaskRun:
    """The run of one task: its rows in lm-eval's order, and lm-eval's verdicts by row once it has scored."""

    job: Job
    ids: list[str]
    body: dict[str, Any]
    verdicts: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Requesting:
    """How replies are requested, for all tasks of a call."""

    endpoint: Endpoint
    log: RunLog
    name: str | None = None
    request_limits: RequestLimits | None = None
    ignored: frozenset[str] = frozenset()
    preflight: bool = True
    show: Show | None = None

    def replies(self, task: str, requests: Sequence[Any]) -> tuple[TaskRun, list[str]]:
        """The run of a task and one reply per request. `Refused` if rows failed."""
        run = self._task_run(task, requests)
        self._answer(run)
        stored = _stored(self.log, run.job)
        if failed := [doc.doc_id for doc in run.job.docs if doc.doc_id not in stored]:
            raise Refused(
                f"{task} has no score: {len(failed)} of {len(run.job.docs)} rows have no reply",
                expected="a reply to every row",
                actual=f"failed: {', '.join(failed[:5])}",
                remedy="run the same command again; it requests only these rows",
            )
        return run, [stored[doc_id] for doc_id in run.ids]

    def _answer(self, run: TaskRun) -> None:
        missing, report = missing_rows(self.log, run.job), None
        if self.preflight and missing:
            report = check(
                self.endpoint,
                None,
                max_new_tokens=run.job.bench.max_new_tokens,
                rows=len(missing),
                log_path=self.log.path,
            )
        self.log.event(
            run.job.run,
            "asking",
            missing=len(missing),
            of=len(run.job.docs),
            preflight=report.as_dict() if report else self.preflight,
            ignored_guards=sorted(self.ignored),
            operational=dict(self.endpoint.operational),
        )
        if missing:
            server = Server(replace(self.endpoint, body={**run.body, **self.endpoint.body}), self.request_limits)
            with locked(self.log.path, [run.job.run]):
                answer_missing(self.log, run.job, missing, server, ignored=self.ignored, show=self.show)

    def _task_run(self, task: str, requests: Sequence[Any]) -> TaskRun:
        """The requests of one task as the rows of a bench, with its run in the log."""
        rule = _generation_rule(task, requests)
        docs, verdicts = [_doc(request) for request in requests], dict[str, bool]()
        name = PREFIX + task
        bench = _TaskBench(
            name,
            1,
            len(docs),
            rule.cap,
            lambda _rows, _data: docs,
            lambda reply: reply,
            _scorer(verdicts),
            ends=rule.stops,
        )
        spec = {
            "name": name,
            "version": 1,
            "lm_eval": version("lm_eval"),
            "max_new_tokens": rule.cap,
            "generation": rule.settings(),
            "dataset": sha256_json([[doc.doc_id, doc.chat()] for doc in docs]),
        }
        sampler = {
            "engine": self.endpoint.engine,
            "decoding": "greedy" if rule.temperature == 0 else "sampled",
            **rule.settings(),
            "context": self.endpoint.context,
            "server": dict(self.endpoint.settings),
            "body": dict(self.endpoint.body),
        }
        run = self.log.start(
            self.name or self.endpoint.model,
            name,
            spec,
            served_model(self.endpoint),
            sampler,
            {"operational": dict(self.endpoint.operational)},
        )
        body = {"temperature": rule.temperature, **rule.extra}
        return TaskRun(Job(bench, docs, run), [doc.doc_id for doc in docs], body, verdicts)


@dataclass(frozen=True)
class _Rule:
    """A task's generation_kwargs."""

    cap: int
    stops: tuple[str, ...]
    temperature: float
    extra: dict[str, Any]

    def settings(self) -> dict[str, Any]:
        return {
            "max_new_tokens": self.cap,
            "stops": list(self.stops),
            "temperature": self.temperature,
            **self.extra,
        }


def _generation_rule(task: str, requests: Sequence[Any]) -> _Rule:
    kinds = {json.dumps(request.args[1], sort_keys=True, default=str) for request in requests}
    if len(kinds) != 1:
        raise UsageError(
            f"{task} has rows with different generation settings",
            expected="one set of generation_kwargs per task",
            actual=f"{len(kinds)} sets",
            remedy="choose another task",
        )
    rule = dict(requests[0].args[1])
    until = rule.get("until") or []
    return _Rule(
        cap=next((int(rule[key]) for key in _CAPS if rule.get(key)), MAX_GEN_TOKS),
        stops=tuple([until] if isinstance(until, str) else until),
        temperature=float(rule.get("temperature") or 0.0) if rule.get("do_sample", True) else 0.0,
        extra={k: v for k, v in rule.items() if k not in (*_CAPS, "until", "do_sample", "temperature")},
    )


def _doc(request: Any) -> Doc:
    *history, last = json.loads(request.args[0].prompt)
    return Doc(str(request.doc_id), last["content"], "", {}, tuple((turn["role"], turn["content"]) for turn in history))


def _scorer(verdicts: Mapping[str, bool]) -> Any:
    """Looks up lm-eval's verdicts; rows without one are not scored."""

    def score(pairs: Sequence[tuple[str, Doc]]) -> list[Verdict]:
        return [
            Verdict(None, "harness error", detail="lm-eval has not scored it yet")
            if (said := verdicts.get(doc.doc_id)) is None
            else Verdict(said, "correct" if said else "wrong", answer[:200])
            for answer, doc in pairs
        ]

    return score


def _stored(log: RunLog, job: Job) -> dict[str, str]:
    """The text that lm-eval gets, by row: the content, or the reasoning if the content is empty."""
    return {
        s.sample.doc_id: s.sample.reply if s.sample.reply.strip() else s.sample.reasoning
        for s in log.samples(job.run)
        if not s.sample.error
    }


def model_class() -> Any:
    """Our class in lm-eval's registry. Built on demand, because importing lm-eval is slow and it may be missing."""
    from lm_eval.api.model import LM
    from lm_eval.api.registry import MODEL_REGISTRY, register_model
    from lm_eval.models.api_models import JsonChatStr

    class TrimoeLM(LM):  # type: ignore[misc]
        """Generation only. `runs` holds each task's run after `generate_until`."""

        def __init__(self, requesting: Requesting) -> None:
            super().__init__()
            self.requesting = requesting
            self.runs: dict[str, TaskRun] = {}

        @property
        def tokenizer_name(self) -> str:
            return str(self.requesting.endpoint.model)

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
                self.runs[task], found = self.requesting.replies(task, group)
                for request, reply in zip(group, found, strict=True):
                    replies[id(request)] = reply
            return [replies[id(request)] for request in requests]

    if MODEL not in MODEL_REGISTRY:
        register_model(MODEL)(TrimoeLM)
    return TrimoeLM


def _no_likelihood(requests: Sequence[Any]) -> UsageError:
    task = requests[0].task_name if requests else "this task"
    return UsageError(
        f"{task} needs log-probabilities",
        expected="a task that generates (output_type generate_until)",
        actual="a chat endpoint, which only generates",
        remedy="choose the generative variant of the task",
    )


def _require_single(requests: Sequence[Any]) -> None:
    """`UsageError` for a task that requests its rows more than once: lm-eval judges such replies together, but the log
    has one verdict per reply."""
    for request in requests:
        if (request.repeats or 1) > 1:
            raise UsageError(
                f"{request.task_name} requests every row {request.repeats} times",
                expected="repeats: 1, one reply and one verdict per row",
                actual=f"repeats: {request.repeats}",
                remedy="give a copy of the task with repeats: 1 through --lm-eval-include",
            )
