"""Runs benches on a server: asks, stores, judges, watches, each in a thread of its own.

Invariants: the network thread never waits for a disk, the writing thread makes a reply durable before anything counts
it (one commit for all that have arrived), and judging, which may take minutes for code, holds up neither. A run that
stops, for whatever reason, has stored everything that had arrived; what is stored is never asked for again.
Not guaranteed: requests under way when a run is stopped are given up, so their replies are asked for again.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import Any

from trimoe.bench.bench import Bench, Doc, Verdict
from trimoe.errors import Refused
from trimoe.evaluate.client import Client, Patience, Question, ServerChanged
from trimoe.evaluate.guarding import RunGuard
from trimoe.evaluate.guards import Tripped, Watch
from trimoe.evaluate.log.records import Arrived, Run, Sample, Scored
from trimoe.evaluate.log.run_log import RunLog
from trimoe.serve.endpoint import Endpoint

_GROUP = 256  # replies of one commit at most, and about as many wait for it
_WAIT = 0.005  # seconds

Group = list[Arrived]


@dataclass
class Tally:
    """What a live table shows of one bench. `fresh` replies came since this command began to ask, with `tokens` in all;
    `began` and `last` are on the monotonic clock."""

    bench: str
    total: int
    done: int = 0
    scored: int = 0
    correct: int = 0
    empty: int = 0
    truncated: int = 0
    errors: int = 0
    tokens: int = 0
    fresh: int = 0
    began: float = field(default_factory=monotonic)
    last: float = 0.0

    def take(self, sample: Sample, fresh: bool = True) -> None:
        """Count one stored sample."""
        self.fresh += fresh
        self.last = monotonic()
        if sample.error:
            self.errors += 1
            return
        self.done += 1
        self.empty += not sample.reply.strip()
        self.truncated += sample.finish_reason == "length"
        self.tokens += max(sample.reply_tokens, 0) if fresh else 0

    def judge(self, verdict: Verdict) -> None:
        """Count one verdict."""
        self.scored += verdict.correct is not None
        self.correct += verdict.correct is True


Show = Callable[[Tally], None]


@dataclass(frozen=True)
class Job:
    """One bench to ask for: its rows in order and the run they belong to."""

    bench: Bench
    docs: Sequence[Doc]
    run: Run


def sampler_of(bench: Bench, endpoint: Endpoint) -> dict[str, Any]:
    """What decides the replies besides bench and model: part of the run's identity."""
    rule = _rule(bench)
    return {
        "engine": endpoint.engine,
        "decoding": "greedy" if rule["temperature"] == 0 else "sampled",
        **rule,
        "context": endpoint.context,
        "server": dict(endpoint.settings),
        "body": dict(endpoint.body),
    }


def _rule(bench: Bench) -> dict[str, Any]:
    if bench.protocol is None:
        return {"temperature": 0.0, "top_p": 1.0}
    sampler = bench.protocol.generation.sampler
    rule: dict[str, Any] = {"temperature": sampler.temperature, "top_p": sampler.top_p}
    if sampler.top_k:
        rule["top_k"] = sampler.top_k  # 0 means all, which not every server knows
    if sampler.temperature > 0:
        rule["seed"] = 0
    return rule


def question(bench: Bench, doc: Doc, position: int) -> Question:
    """The request for one row."""
    body: dict[str, Any] = {"messages": doc.chat(), "max_tokens": bench.max_new_tokens, "stream": False, **_rule(bench)}
    if bench.stops:
        body["stop"] = list(bench.stops)
    return Question(doc.doc_id, position, doc.asked(), body)


def cut(sample: Sample, stops: Sequence[str]) -> Sample:
    """The reply up to its first stop text, for servers that do not stop there. What came stays in the raw reply."""
    places = [place for stop in stops if (place := sample.reply.find(stop)) >= 0]
    if not places:
        return sample
    marks = (*sample.marks, "cut at a stop text that the server went beyond")
    return replace(sample, reply=sample.reply[: min(places)], finish_reason="stop", marks=marks)


def judged(bench: Bench, pairs: Sequence[tuple[Sample, Doc]], slot: int | None) -> list[Verdict]:
    """Verdicts of stored samples, with everything that was seen of them."""
    return bench.judge_observed([(sample.observed(), doc) for sample, doc in pairs], slot)


def ask_missing(
    log: RunLog,
    job: Job,
    missing: set[str],
    endpoint: Endpoint,
    patience: Patience,
    *,
    ignored: frozenset[str] = frozenset(),
    show: Show | None = None,
) -> None:
    """Ask for the missing rows of a run, store and judge them. `Refused` when a guard or the server stops the run."""
    guard = RunGuard(log, job.run, len(job.docs), ignored)
    tally = Tally(job.bench.name, len(job.docs))
    docs = {doc.doc_id: doc for doc in job.docs}
    _replay(log, job, docs, guard, tally)
    questions = [question(job.bench, doc, i) for i, doc in enumerate(job.docs) if doc.doc_id in missing]
    with _pipeline(endpoint, patience, questions, log.path, job, guard.watch) as pipe:
        for group in pipe.groups():
            fresh = [one.sample for one in group]
            for sample in fresh:
                tally.take(sample)
            replies = [sample for sample in fresh if not sample.error]
            verdicts = judged(job.bench, [(s, docs[s.doc_id]) for s in replies], endpoint.context)
            log.score(job.run, [(s.doc_id, v) for s, v in zip(replies, verdicts, strict=True)], job.bench.scorer)
            for verdict in verdicts:
                tally.judge(verdict)
            if show:
                show(tally)
            tripped = guard.scored([Scored(s, v) for s, v in zip(replies, verdicts, strict=True)])
            if tripped:
                pipe.stop(tripped)
    guard.finish(pipe.tripped)
    if pipe.changed:
        log.event(job.run, "paused", server=pipe.changed)
        raise Refused(
            f"{job.bench.name} is paused: the server is not the one the run began with",
            expected="the same model and settings until the end",
            actual=pipe.changed,
            remedy="start it as it was and run the same command again, or use another --log for the new settings",
        )


def _replay(log: RunLog, job: Job, docs: Mapping[str, Doc], guard: RunGuard, tally: Tally) -> None:
    """What is stored already, for guards and table. A guard that trips on it stops the run before anything is asked."""
    stored = [s for s in log.samples(job.run) if s.sample.doc_id in docs and not s.sample.error]
    for scored in stored:
        tally.take(scored.sample, fresh=False)
        tally.judge(scored.verdict)
    guard.replay(stored)


class _Pipe:
    """Network and writing threads of one bench, and the queues between."""

    def __init__(
        self,
        endpoint: Endpoint,
        patience: Patience,
        questions: Sequence[Question],
        log_path: Path,
        job: Job,
        watch: Watch,
    ) -> None:
        self._endpoint, self._patience, self._questions = endpoint, patience, questions
        self._log_path, self._job, self._watch = log_path, job, watch
        self._inbox: SimpleQueue[Arrived | None] = SimpleQueue()
        self._outbox: SimpleQueue[Group | BaseException | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = threading.Event()
        self.tripped: Tripped | None = None
        self.changed = ""
        self._fault: BaseException | None = None
        self._threads = [threading.Thread(target=self._network), threading.Thread(target=self._write)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def stop(self, tripped: Tripped | None = None) -> None:
        """Give up what is under way; what has arrived is still stored. The first reason counts."""
        self.tripped = self.tripped or tripped
        self._stopped.set()
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._task.cancel)

    def groups(self) -> Iterator[Group]:
        """Replies that are durable, in groups, until all are there or the run was stopped."""
        while (got := self._outbox.get()) is not None:
            if isinstance(got, BaseException):
                raise got
            yield got

    # ---------------------------------------------------------------- network

    def _network(self) -> None:
        try:
            asyncio.run(self._main())
        except ServerChanged as exc:
            self.changed = str(exc)
        except asyncio.CancelledError:
            pass
        except BaseException as exc:  # noqa: BLE001 a thread has nobody above it: the main thread raises it
            self._fault = exc
        finally:
            self._inbox.put(None)

    async def _main(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._stopped.is_set():
            return
        waiting = iter(self._questions)
        async with Client(self._endpoint, self._patience) as client:
            workers = min(self._patience.concurrency, len(self._questions))
            tasks = [asyncio.create_task(self._work(client, waiting)) for _ in range(workers)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, client: Client, waiting: Iterator[Question]) -> None:
        for asked in waiting:
            self._inbox.put(await client.ask(asked))
            while self._inbox.qsize() >= _GROUP:  # a disk slower than the server: what waits for it stays bounded
                await asyncio.sleep(_WAIT)

    # ---------------------------------------------------------------- writing

    def _write(self) -> None:
        try:
            with RunLog(self._log_path) as log:
                more = True
                while more:
                    group, more = self._next_group()
                    if group:
                        log.arrived([(self._job.run, one) for one in group])
                        self._outbox.put(group)
                        self._guard(group)
        except BaseException as exc:  # noqa: BLE001 a thread has nobody above it: the main thread raises it
            self._fault = self._fault or exc
            self.stop()
        self._outbox.put(self._fault)

    def _next_group(self) -> tuple[Group, bool]:
        """Everything that waits, at least one; False after the last."""
        group: Group = []
        got = self._inbox.get()
        while got is not None:
            stops = self._job.bench.stops
            group.append(replace(got, sample=cut(got.sample, stops)) if stops else got)
            if len(group) >= _GROUP or self._inbox.empty():
                return group, True
            got = self._inbox.get()
        return group, False

    def _guard(self, group: Group) -> None:
        for one in group:
            if tripped := self._watch.reply(one.sample):
                self.stop(tripped)


@contextmanager
def _pipeline(
    endpoint: Endpoint, patience: Patience, questions: Sequence[Question], log_path: Path, job: Job, watch: Watch
) -> Iterator[_Pipe]:
    """A running pipe. Whatever ends the block, what has arrived is stored and both threads have ended."""
    pipe = _Pipe(endpoint, patience, questions, log_path, job, watch)
    pipe.start()
    try:
        yield pipe
    finally:
        pipe.stop()
        pipe.join()
