"""The type of a benchmark: rows with prompts, extraction of answers, and an exact scorer.

Invariants: a bench is identified by the hash of its name, version, caps and all rows, so scores with the same hash
answer the same questions. The scorer has its own version, so replies can be judged again without being generated again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimoe.bench.cause import Cause as Cause
from trimoe.bench.cause import Limits, Observed, attribute
from trimoe.bench.patterns import SlowPattern
from trimoe.bench.spec import BenchSpec
from trimoe.errors import BenchError, UsageError
from trimoe.io.canonical import canonical_json, sha256_bytes
from trimoe.model.tiny.tasks import generate

HELD_OUT_SEED = 20  # draws the held-out items of the bundled benches; another seed makes another bench
NOTE = "second opinion: "  # begins a second opinion in a verdict's detail
SMOKE = "smoke"
SMOKE_ROWS = 10  # of a bundled bench; the specs of the others define their own variant `smoke`


@dataclass(frozen=True)
class Doc:
    """One row: the prompt, a reference reply that passes, and the scorer's data (`check`).

    `history` holds earlier turns as (role, text), such as few-shot examples. `part` names a group of rows.
    """

    doc_id: str
    prompt: str
    reference: str
    check: dict[str, Any]
    history: tuple[tuple[str, str], ...] = ()
    part: str = ""

    def chat(self) -> list[dict[str, str]]:
        """The conversation as the messages of a chat request."""
        turns = (*self.history, ("user", self.prompt))
        return [{"role": role, "content": text} for role, text in turns]

    def asked(self) -> str:
        """The prompt as logged: its text, or the whole conversation as JSON if there are earlier turns."""
        return canonical_json(self.chat()).decode() if self.history else self.prompt


@dataclass(frozen=True)
class Verdict:
    """The judgement of one reply. `correct` None means not scored: a harness error is never a wrong answer."""

    correct: bool | None
    cause: Cause
    extracted: str | None = None
    detail: str = ""


Opinion = Callable[[str, Doc, Verdict], str]
"""Where a reply's final statement disagrees with its verdict; empty if it agrees, or states nothing."""


@dataclass(frozen=True)
class Bench:
    """A benchmark: its data, and functions for extraction and scoring.

    `extract` returns None if a reply has no answer in the requested form; `extract_for` does the same for benches whose
    extraction needs the row (options, a signature). `score` judges many extracted answers at once, because code runs
    faster in batches. `protocol` is the spec of a bench with a spec file. `record` makes a row from a recorded sample's
    `doc`; `build` makes the bench again with variants. `needs` raises if the scorer cannot work here (no sandbox, no
    compiler); it is called before anything is generated. `own_id` reads a row's id from the row itself, for benches
    whose rows state one. `opinion` adds a second opinion to a verdict's detail.
    """

    name: str
    version: int
    rows: int
    max_new_tokens: int
    load: Callable[[int, Path | None], list[Doc]]
    extract: Callable[[str], str | None]
    score: Callable[[Sequence[tuple[str, Doc]]], list[Verdict]]
    scorer: int = 1
    needs: Callable[[], None] | None = None
    extract_for: Callable[[str, Doc], str | None] | None = None
    opinion: Opinion | None = None
    protocol: BenchSpec | None = None
    record: Callable[[str, Mapping[str, Any]], Doc] | None = None
    build: Callable[[Sequence[str]], "Bench"] | None = None
    own_id: Callable[[Mapping[str, Any]], str] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a reply and are not part of it."""
        return self.protocol.generation.stops if self.protocol else ()

    def docs(self, data: Path | None = None) -> list[Doc]:
        """All rows in their fixed order. `data` is a folder with local data sets, for benches that need one."""
        return self.load(self.rows, data)

    def spec(self, docs: Sequence[Doc]) -> dict[str, Any]:
        """Everything that determines the questions and the length of replies; hashed into the run's identity."""
        protocol = self.protocol.identity() if self.protocol else {}
        return {
            **protocol,
            "name": self.name,
            "version": self.version,
            "rows": self.rows,
            "max_new_tokens": self.max_new_tokens,
            "dataset": rows_sha256(docs),
        }

    def variant(self, names: Sequence[str]) -> "Bench":
        """The bench `name:variant:...`. Every bench has the variant `smoke`, its first few rows."""
        if self.build is not None:
            return self.build(names)
        if list(names) == [SMOKE]:
            return replace(self, name=f"{self.name}:{SMOKE}", rows=min(SMOKE_ROWS, self.rows))
        raise UsageError(
            f"bench {self.name} has no variant {':'.join(names)}",
            expected=SMOKE,
            remedy="see docs/reference/benches.md",
        )

    def require_statements(self, docs: Sequence[Doc]) -> None:
        """`BenchError` if rows have placeholders instead of questions: they can be scored, but not asked."""
        mark = self.protocol.placeholder if self.protocol else ""
        withheld = [doc.doc_id for doc in docs if mark and mark in doc.prompt]
        if withheld:
            raise BenchError(
                f"bench {self.name}: {len(withheld)} of {len(docs)} rows have no question",
                expected="the text of every question",
                actual=f"{mark!r} in {', '.join(withheld[:3])}",
                remedy="use a copy of the data set with the questions, or leave out --data to use the hub",
            )

    def answer(self, reply: str, doc: Doc) -> str | None:
        """The extracted answer of a reply, or None."""
        return self.extract_for(reply, doc) if self.extract_for else self.extract(reply)

    def judge(self, replies: Sequence[tuple[str, str, Doc]]) -> list[Verdict]:
        """Verdict and cause of each (reply, finish_reason, doc). A reply cut off at the cap may still be correct."""
        return self.judge_observed([(Observed(reply, finish), doc) for reply, finish, doc in replies])

    def judge_observed(self, replies: Sequence[tuple[Observed, Doc]], slot: int | None = None) -> list[Verdict]:
        """The same for replies with reasoning and token counts. `slot` is the server's context in tokens."""
        limits = Limits(self.max_new_tokens, self.protocol.generation.think_budget if self.protocol else 0, slot)
        texts = [self._read(seen) for seen, _ in replies]
        answers = [self._answer(text, doc) for text, (_, doc) in zip(texts, replies, strict=True)]
        given = [(answer, doc) for answer, (_, doc) in zip(answers, replies, strict=True) if isinstance(answer, str)]
        scored = iter(self.score(given))
        verdicts = [next(scored) if isinstance(answer, str) else answer for answer in answers]
        judged = [_attributed(verdict, seen, limits) for verdict, (seen, _) in zip(verdicts, replies, strict=True)]
        if self.opinion is None:
            return judged
        opinions = [
            self.opinion(text, doc, verdict) if verdict.correct is not None and text.strip() else ""
            for text, verdict, (_, doc) in zip(texts, judged, replies, strict=True)
        ]
        return [noted(verdict, opinion) for verdict, opinion in zip(judged, opinions, strict=True)]

    def _answer(self, text: str, doc: Doc) -> "str | Verdict":
        """The extracted answer, or the verdict if there is none."""
        if not text.strip():
            return Verdict(False, "empty")
        try:
            answer = self.answer(text, doc)
        except SlowPattern as exc:
            return Verdict(None, "harness error", detail=exc.subject)
        return Verdict(False, "extraction failed") if answer is None else answer

    def _read(self, seen: Observed) -> str:
        """The text that is scored. Reasoning counts if the content is empty, or if the bench reads both.

        Reading both in every bench is wrong: in the reference it turned an IFEval score of 1.00 into 0.10.
        """
        if not seen.content.strip():
            return seen.reasoning
        both = self.protocol is not None and self.protocol.reads == "reasoning and content"
        return f"{seen.reasoning}\n{seen.content}" if both and seen.reasoning else seen.content


def rows_sha256(docs: Sequence[Doc]) -> str:
    """Hash of all prompts and gold answers, in order."""
    rows = [[doc.doc_id, doc.prompt, doc.check, *([doc.history] if doc.history else [])] for doc in docs]
    return sha256_bytes(canonical_json(rows))


def _attributed(verdict: Verdict, seen: Observed, limits: Limits) -> Verdict:
    cause = attribute(verdict.correct, verdict.cause, seen, limits)
    detail = verdict.detail or (verdict.cause if cause != verdict.cause else "")
    if verdict.correct and not seen.content.strip():
        detail = "; ".join(filter(None, ["read from the reasoning, the content is empty", detail]))
    return Verdict(verdict.correct, cause, verdict.extracted, detail)


def noted(verdict: Verdict, opinion: str) -> Verdict:
    """The verdict with an opinion in its detail; unchanged if there is none."""
    if not opinion:
        return verdict
    return replace(verdict, detail="; ".join(filter(None, [verdict.detail, f"{NOTE}{opinion}"])))


def exact(check: Callable[[str, dict[str, Any]], bool]) -> Callable[[Sequence[tuple[str, Doc]]], list[Verdict]]:
    """A scorer from a predicate on one answer and the row's `check`."""

    def score(pairs: Sequence[tuple[str, Doc]]) -> list[Verdict]:
        passed = [check(answer, doc.check) for answer, doc in pairs]
        return [
            Verdict(ok, "correct" if ok else "wrong", answer) for ok, (answer, _) in zip(passed, pairs, strict=True)
        ]

    return score


def whole_reply(reply: str) -> str | None:
    """Extraction for benches whose answer is the whole reply, without surrounding white space."""
    return reply.strip() or None


def verbatim(reply: str) -> str | None:
    """The whole reply unchanged, for scorers that look at white space."""
    return reply


def held_out(domain: str) -> Callable[[int, Path | None], list[Doc]]:
    """Loader of a bundled bench: generated held-out items of one domain. Needs no data folder."""

    def load(rows: int, _data: Path | None) -> list[Doc]:
        return [
            Doc(item.item_id, item.prompt, item.answer, item.check)
            for item in generate(domain, "heldout", rows, HELD_OUT_SEED)
        ]

    return load
