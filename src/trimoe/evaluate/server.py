"""Answers benches with a chat-completions server: one network thread, one writing thread.

Invariants: the network thread never waits for the disk; the writing thread makes each reply durable before it is
passed on, one commit for all that have arrived. Judging, which can take minutes for code, blocks neither.
"""

import asyncio
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from trimoe.bench.bench import Bench, Doc
from trimoe.evaluate.answerer import ServerChanged
from trimoe.evaluate.client import Client, Question
from trimoe.evaluate.intake import Group, Intake, Job
from trimoe.evaluate.log.records import Arrived
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.request_limits import RequestLimits, limits_of
from trimoe.io.canonical import sha256_json
from trimoe.serve.endpoint import Endpoint

_GROUP = 256  # most replies per commit; about as many may wait for it
_WAIT = 0.005  # seconds


@dataclass(frozen=True)
class Server:
    """An `Answerer` around an endpoint.

    Without `request_limits`, the limits come from each bench's spec. `preflight` is the report of the server's
    preflight, or None if there was none; it is recorded, and a run without one is marked.
    """

    endpoint: Endpoint
    request_limits: RequestLimits | None = None
    preflight: Mapping[str, Any] | None = None

    event = "asking"
    event_if_complete = True  # the preflight took place and is recorded
    overrun_mark = "cut at a stop text that the server went beyond"

    @property
    def label(self) -> str:
        """The model id that requests name."""
        return self.endpoint.model

    @property
    def model(self) -> str:
        """The hash of the served model, or the name, address and self-description of a third-party server's."""
        return served_model(self.endpoint)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Preflight report and operational settings of the server."""
        return {
            "preflight": False if self.preflight is None else dict(self.preflight),
            "operational": {"url": self.endpoint.url, **self.endpoint.operational},
        }

    def sampler(self, bench: Bench) -> Mapping[str, Any]:
        """Decoding rule of the bench and settings of the server."""
        return sampler_of(bench, self.endpoint)

    def prepare(self) -> None:
        """Nothing to load."""

    def answers(self, job: Job, missing: set[str], intake: Intake) -> Generator[Group]:
        """The missing replies as they arrive."""
        questions = [question(job.bench, doc, i) for i, doc in enumerate(job.docs) if doc.doc_id in missing]
        limits = self.request_limits or limits_of(job.bench, self.endpoint.slots)
        pipe = _Pipe(self.endpoint, limits, questions, intake)
        pipe.start()
        try:
            yield from pipe.groups()
        finally:
            pipe.cancel()
            pipe.join()
        if pipe.changed:
            raise ServerChanged(pipe.changed)


def served_model(endpoint: Endpoint) -> str:
    """The model in the run's identity: its hash, or for a third-party server its name, address and self-description."""
    if endpoint.model_hash is not None:
        return endpoint.model_hash
    told = sha256_json(endpoint.operational.get("says of its model"))[:16]
    return f"unverified {endpoint.model} at {endpoint.url} ({told})"


def sampler_of(bench: Bench, endpoint: Endpoint) -> dict[str, Any]:
    """Whatever determines the replies besides bench and model; part of the run's identity."""
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
        rule["top_k"] = sampler.top_k  # 0 means all tokens, but not every server accepts it
    if sampler.temperature > 0:
        rule["seed"] = 0
    return rule


def question(bench: Bench, doc: Doc, position: int) -> Question:
    """The request for one row."""
    body: dict[str, Any] = {"messages": doc.chat(), "max_tokens": bench.max_new_tokens, "stream": False, **_rule(bench)}
    if bench.stops:
        body["stop"] = list(bench.stops)
    return Question(doc.doc_id, position, doc.asked(), body)


class _Pipe:
    """The network and writing threads of one job, and the queues between them."""

    def __init__(
        self, endpoint: Endpoint, limits: RequestLimits, questions: Sequence[Question], intake: Intake
    ) -> None:
        self._endpoint, self._limits, self._questions, self._intake = endpoint, limits, questions, intake
        self._inbox: SimpleQueue[Arrived | None] = SimpleQueue()
        self._outbox: SimpleQueue[Group | BaseException | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._cancelled = threading.Event()
        self._fault: BaseException | None = None
        self._threads = [threading.Thread(target=self._network), threading.Thread(target=self._write)]
        self.changed = ""
        intake.on_stop = self.cancel

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def cancel(self) -> None:
        """Give up pending requests. Replies that have arrived are still stored."""
        self._cancelled.set()
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # the event loop has ended by itself
                self._loop.call_soon_threadsafe(self._task.cancel)

    def groups(self) -> Iterator[Group]:
        """Stored replies in groups, until the last or until the job is stopped."""
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
        except BaseException as exc:  # noqa: BLE001 a thread has no caller: the main thread raises it
            self._fault = exc
        finally:
            self._inbox.put(None)

    async def _main(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._cancelled.is_set():
            return
        waiting = iter(self._questions)
        async with Client(self._endpoint, self._limits) as client:
            workers = min(self._limits.concurrency, len(self._questions))
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
            while self._inbox.qsize() >= _GROUP:  # the disk is slower than the server: bound the queue
                await asyncio.sleep(_WAIT)

    # ---------------------------------------------------------------- writing

    def _write(self) -> None:
        try:
            with RunLog(self._intake.log.path) as log:
                more = True
                while more:
                    group, more = self._next_group()
                    if group:
                        self._outbox.put(self._intake.take(group, log))
        except BaseException as exc:  # noqa: BLE001 a thread has no caller: the main thread raises it
            self._fault = self._fault or exc
            self.cancel()
        self._outbox.put(self._fault)

    def _next_group(self) -> tuple[Group, bool]:
        """Everything that has arrived, at least one reply; False after the last."""
        group: Group = []
        got = self._inbox.get()
        while got is not None:
            group.append(got)
            if len(group) >= _GROUP or self._inbox.empty():
                return group, True
            got = self._inbox.get()
        return group, False
