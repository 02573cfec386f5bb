"""Client of a chat-completions server: bounded concurrency, retries of transient faults, a deadline per sample.

Invariants: a valid reply is never requested again. A fault becomes a failed sample with its attempts and the raw bytes,
never an empty answer. A reply over a new connection is accepted only after the server's self-description still matches
the beginning of the run, because a server that was restarted with other settings needs a new connection.
Not guaranteed: a proxy that keeps connections open while it exchanges the server behind them is noticed only if replies
name another build.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import SimpleNamespace, TracebackType
from typing import Any

import aiohttp

from trimoe.evaluate.answer import Answer, Fault, read_answer
from trimoe.evaluate.answerer import ServerChanged
from trimoe.evaluate.log.records import UNCOUNTED, Arrived, Attempt, Sample
from trimoe.evaluate.log.schema import now
from trimoe.evaluate.request_limits import RequestLimits
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.probe import Facts, headers, read_facts

_WEAK_IDS = ("ollama",)  # draws ids from a thousand: only an equal id with an equal reply counts as a copy
_OVERFLOW = ("exceed_context_size", "context length", "context size", "maximum context", "context_length_exceeded")
_TOKENIZERS = {"llamacpp": "content", "vllm": "prompt"}  # engine -> field of its /tokenize that holds the text
_COUNTING = aiohttp.ClientTimeout(total=30)
_PROBES = 5  # attempts to read the server's self-description
_SHOWN = 300  # characters of an error page kept as detail; the whole page is kept raw


@dataclass(frozen=True)
class Question:
    """One row to request: its position in the bench, the prompt as logged, and the body of the request."""

    doc_id: str
    position: int
    asked: str
    body: Mapping[str, Any]

    @property
    def cap(self) -> int:
        """Upper limit of reply tokens."""
        return int(self.body["max_tokens"])


@dataclass
class _Seen:
    """Replies by id, to detect copies."""

    weak: bool
    by_id: dict[str, tuple[str, int]] = field(default_factory=dict)

    def require_new(self, question: Question, answer: Answer, raw: bytes) -> None:
        if not answer.reply_id:
            return
        mark = hash(raw)
        before = self.by_id.setdefault(answer.reply_id, (question.doc_id, mark))
        if before[0] != question.doc_id and (not self.weak or before[1] == mark):
            raise Fault("duplicate id", f"id {answer.reply_id} was already used for {before[0]}", status=200, raw=raw)


class Client:
    """Use as an async context manager. `ask` may be called from any number of tasks."""

    def __init__(self, endpoint: Endpoint, limits: RequestLimits) -> None:
        self._endpoint, self._limits = endpoint, limits
        self._url = f"{endpoint.url}/chat/completions"
        self._names = endpoint.names
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._seen = _Seen(endpoint.engine in _WEAK_IDS)
        self._probing = asyncio.Lock()
        self._probed = 0.0  # start of the last successful probe
        self._first: Facts | None = None
        self._build = ""
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Client":
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(_note_connection)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={**headers(self._endpoint.api_key_env), "Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=self._limits.timeout_s),
            trace_configs=[trace],
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, question: Question) -> Arrived:
        """The reply to one question, or its failure. Raises only `ServerChanged`."""
        async with self._slots:
            return await self._ask(question)

    async def _ask(self, question: Question) -> Arrived:
        payload = json.dumps({**question.body, "model": self._endpoint.model, **self._endpoint.body}).encode()
        attempts: list[Attempt] = []
        end = time.monotonic() + self._limits.deadline_s
        while True:
            begun, clock = now(), time.monotonic()
            wanted: list[float | None] = [None]
            try:
                answer, raw = await self._attempt(question, payload, max(0.001, end - clock), wanted)
            except Fault as fault:
                took = time.monotonic() - clock
                attempts.append(Attempt(begun, took, fault.kind, fault.status, fault.detail))
                pause = self._limits.retry_delay(len(attempts) - 1, wanted[0])
                late = time.monotonic() + pause >= end
                if not fault.passing or len(attempts) > self._limits.retries or late:
                    if fault.passing and late:
                        fault = Fault("deadline", f"{len(attempts)} attempts, the last: {fault}", raw=fault.raw)
                    return self._failed(question, fault, attempts)
                await asyncio.sleep(pause)
            else:
                attempts.append(Attempt(begun, time.monotonic() - clock, "reply", 200))
                sample = _sample(question, answer, attempts[-1].seconds)
                return Arrived(await self._counted_apart(sample), tuple(attempts), raw)

    async def _attempt(
        self, question: Question, payload: bytes, left: float, wanted: list[float | None]
    ) -> tuple[Answer, bytes]:
        assert self._session is not None
        context = SimpleNamespace(connected=0.0)
        timeout = aiohttp.ClientTimeout(total=min(self._limits.timeout_s, left))
        try:
            async with self._session.post(
                self._url, data=payload, timeout=timeout, trace_request_ctx=context
            ) as response:
                raw = await response.read()
        except TimeoutError as exc:
            raise Fault("timeout", f"no reply within {timeout.total:.0f} s") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise Fault("connection", f"{type(exc).__name__}: {exc}") from exc
        if response.status != 200:
            wanted[0] = _retry_after(response.headers.get("Retry-After"))
            raise _http_fault(response.status, raw)
        answer = read_answer(raw, self._names, question.cap)
        await self._require_same(context.connected, answer.build)
        self._seen.require_new(question, answer, raw)
        return answer, raw

    async def _counted_apart(self, sample: Sample) -> Sample:
        """The sample with its reasoning tokens, counted by the server's tokenizer if the reply does not report them.

        The content is tokenized again and subtracted from the total, which is accurate to the protocol's 16 tokens.
        The count stays unknown if the server cannot tokenize.
        """
        page = _TOKENIZERS.get(self._endpoint.engine)
        known = sample.reasoning_tokens != UNCOUNTED or sample.reply_tokens == UNCOUNTED
        if page is None or known or not sample.reasoning.strip() or not sample.reply.strip():
            return sample
        assert self._session is not None
        body = {page: sample.reply, "model": self._endpoint.model, "add_special_tokens": False}
        try:
            url = f"{self._endpoint.url.removesuffix('/v1')}/tokenize"
            async with self._session.post(url, data=json.dumps(body), timeout=_COUNTING) as response:
                tokens = (await response.json(content_type=None))["tokens"]
            return replace(sample, reasoning_tokens=max(0, sample.reply_tokens - len(tokens)))
        except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError):
            return sample

    def _failed(self, question: Question, fault: Fault, attempts: list[Attempt]) -> Arrived:
        sample = Sample(
            question.doc_id, question.position, question.asked, "", "", UNCOUNTED, UNCOUNTED, error=fault.kind
        )
        return Arrived(sample, tuple(attempts), fault.raw, fault.detail)

    async def _require_same(self, connected: float, build: str) -> None:
        """Probe the server if the reply came over a connection opened after the last probe."""
        if build and self._build and build != self._build:
            raise ServerChanged(f"replies name build {build}, earlier ones {self._build}")
        self._build = self._build or build
        if connected <= self._probed and self._first is not None:
            return
        async with self._probing:
            if connected <= self._probed and self._first is not None:
                return
            await self.probe()

    async def probe(self) -> Facts:
        """The server's self-description. `ServerChanged` if it differs from the first one."""
        assert self._session is not None
        for attempt in range(_PROBES):  # retried, so that the valid reply at hand is not lost
            begun = time.monotonic()
            try:
                facts = await read_facts(self._session, self._endpoint)
                break
            except (aiohttp.ClientError, OSError, ValueError) as exc:
                if attempt == _PROBES - 1:
                    what = f"the server does not describe itself: {type(exc).__name__}: {exc}"
                    raise Fault("connection", what) from exc
                await asyncio.sleep(self._limits.retry_delay(attempt, None))
        if self._first is None:
            self._first = facts
        elif facts.digest != self._first.digest:
            raise ServerChanged(_differences(self._first, facts))
        self._probed = begun
        return facts


async def _note_connection(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: Any) -> None:
    """Record when a request opened a new connection."""
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.connected = time.monotonic()


def _sample(question: Question, answer: Answer, seconds: float) -> Sample:
    return Sample(
        question.doc_id,
        question.position,
        question.asked,
        answer.content,
        answer.finish_reason,
        answer.prompt_tokens,
        answer.reply_tokens,
        answer.reasoning,
        answer.reasoning_field,
        answer.fallback,
        answer.reasoning_tokens,
        answer.marks,
        "",
        seconds,
    )


def _http_fault(status: int, raw: bytes) -> Fault:
    text = raw[:_SHOWN].decode("utf-8", "replace")
    if status in (400, 413, 422) and any(mark in text.lower() for mark in _OVERFLOW):
        return Fault("slot overflow", text, status=status, raw=raw)
    if status in (408, 425, 429):
        return Fault("overloaded", f"status {status}: {text}", status=status, raw=raw)
    if status >= 500:
        return Fault("server error", f"status {status}: {text}", status=status, raw=raw)
    return Fault("refused", f"status {status}: {text}", status=status, raw=raw)


def _retry_after(header: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        try:
            then = parsedate_to_datetime(header)
        except ValueError:
            return None
    return max(0.0, (then - datetime.now(UTC)).total_seconds()) if then.tzinfo else None


def _differences(before: Facts, after: Facts) -> str:
    old, new = (
        {"engine": facts.engine, "context": facts.context, **facts.model, **facts.settings} for facts in (before, after)
    )
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return ", ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in changed)
