"""Rows of a run log as values: runs, samples, verdicts, attempts and results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trimoe.bench.bench import Verdict
from trimoe.bench.cause import Observed
from trimoe.io.canonical import canonical_json, sha256_bytes

UNCOUNTED = -1  # token count of a sample that came without one


@dataclass(frozen=True)
class Run:
    """One model on one bench. `name` is the label of the model in tables."""

    run_id: int
    name: str
    bench: str
    model: str
    identity: str
    spec_hash: str
    spec: dict[str, Any]
    sampler: dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One reply. Token counts come from the model's tokenizer or the server; `UNCOUNTED` if there are none.

    `reply` is the content as received. `reasoning` arrived separately, in the field `reasoning_field`; `fallback` means
    that it was scored because the content was empty. `reply_tokens` counts content and reasoning together,
    `reasoning_tokens` the reasoning alone. `marks` are remarks on how the reply was read. `error` is the kind of fault
    of a sample without a reply. `seconds` is the duration of the successful attempt.
    """

    doc_id: str
    position: int
    prompt: str
    reply: str
    finish_reason: str
    prompt_tokens: int
    reply_tokens: int
    reasoning: str = ""
    reasoning_field: str = ""
    fallback: bool = False
    reasoning_tokens: int = UNCOUNTED
    marks: tuple[str, ...] = ()
    error: str = ""
    seconds: float | None = field(default=None, compare=False)

    def observed(self) -> Observed:
        """The facts that causes are attributed from. Without content, all tokens count as reasoning."""
        total, apart = counted(self.reply_tokens), counted(self.reasoning_tokens)
        if self.reasoning and not self.reply.strip():
            apart = total if apart is None else apart
        content = None if total is None else max(0, total - (apart or 0))
        return Observed(self.reply, self.finish_reason, self.reasoning, content, apart, counted(self.prompt_tokens))


@dataclass(frozen=True)
class Scored:
    """One sample with its newest verdict."""

    sample: Sample
    verdict: Verdict


@dataclass(frozen=True)
class Attempt:
    """One request for a sample. `outcome` is `reply` or a kind of fault; `status` is the HTTP status, if any."""

    started: str
    seconds: float
    outcome: str
    status: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class Arrived:
    """The outcome of requesting one sample: a reply, or a failure (`sample.error`, `detail`), with its evidence."""

    sample: Sample
    attempts: tuple[Attempt, ...] = ()
    raw: bytes | None = None
    detail: str = ""


@dataclass(frozen=True)
class Result:
    """A run's score over its first `asked` rows. `score` is None while rows are not scored, or if there are none."""

    asked: int
    scorer: int
    correct: int
    scored: int
    errors: int
    score: float | None
    standard_error: float | None
    causes: dict[str, int]
    ceilings: dict[str, Any] | None = None
    marks: tuple[str, ...] = ()


def identity_of(spec_hash: str, model: str, sampler: Mapping[str, Any]) -> str:
    """The hash that makes two runs the same run. Batch size, threads, device and paths are not part of it."""
    return sha256_bytes(canonical_json({"spec": spec_hash, "model": model, "sampler": sampler}))


def counted(tokens: int) -> int | None:
    """A token count, None for `UNCOUNTED`."""
    return None if tokens == UNCOUNTED else tokens
