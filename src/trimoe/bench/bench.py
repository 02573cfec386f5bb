"""What a benchmark is: rows, a prompt per row, extraction and an exact scorer; and the list of those there are.

Invariants: a bench's identity is the hash of its name, version, caps and every row, so two scores with the same hash
answered the same questions. The scorer has a version of its own: replies can be scored again without being generated
again. A bench is a TOML file in `benches/`, with a Python file that has a `BENCH` beside it where its answers need
code; or a TOML file of the user's, named by its path. `name:variant` is another bench built from it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimoe.bench.cause import Cause as Cause
from trimoe.bench.cause import Limits, Observed, attribute
from trimoe.bench.spec import BenchSpec
from trimoe.errors import BenchError, UsageError
from trimoe.io.canonical import canonical_json, sha256_bytes
from trimoe.model.tiny.tasks import generate

HELD_OUT_SEED = 20  # the bundled benches' draw of held-out items; another seed would be another bench
SMOKE = "smoke"
SMOKE_ROWS = 10  # of a bundled bench; the others state their own in the variant of that name


@dataclass(frozen=True)
class Doc:
    """One row: what is asked, a reference reply that passes, and what the scorer needs (`check`).

    `history` holds the turns before the prompt as (role, text), for few-shot examples. `part` names a group of rows.
    """

    doc_id: str
    prompt: str
    reference: str
    check: dict[str, Any]
    history: tuple[tuple[str, str], ...] = ()
    part: str = ""

    def chat(self) -> list[dict[str, str]]:
        """The conversation as a chat endpoint takes it."""
        turns = (*self.history, ("user", self.prompt))
        return [{"role": role, "content": text} for role, text in turns]

    def asked(self) -> str:
        """What a log keeps: the prompt, or the whole conversation as JSON where there is more than one turn."""
        return canonical_json(self.chat()).decode() if self.history else self.prompt


@dataclass(frozen=True)
class Verdict:
    """`correct` None means not scored: a fault of the harness is never a wrong answer."""

    correct: bool | None
    cause: Cause
    extracted: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Bench:
    """A benchmark as data and two functions.

    `extract` returns None when the reply holds no answer in the asked form; `extract_for` does the same where the row
    is needed (options, a signature). `score` judges a list of extracted answers at once, because code is cheaper to run
    in batches. `protocol` is the spec file of a bench that has one, `record` makes a row of a recorded sample's `doc`,
    and `build` makes the bench again with variants. `needs` raises when the scorer cannot work here (no sandbox, no
    compiler); it is asked before anything is generated.
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
    protocol: BenchSpec | None = None
    record: Callable[[str, Mapping[str, Any]], Doc] | None = None
    build: Callable[[Sequence[str]], "Bench"] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a reply and are no part of it."""
        return self.protocol.generation.stops if self.protocol else ()

    def docs(self, data: Path | None = None) -> list[Doc]:
        """All rows in their fixed order; `data` is a folder of local dataset files for benches that need one."""
        return self.load(self.rows, data)

    def spec(self, docs: Sequence[Doc]) -> dict[str, Any]:
        """Everything that decides which questions are asked and how long a reply may be."""
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
        """The bench `name:variant:...`. Every bench has `smoke`, a few of its first rows."""
        if self.build is not None:
            return self.build(names)
        if list(names) == [SMOKE]:
            return replace(self, name=f"{self.name}:{SMOKE}", rows=min(SMOKE_ROWS, self.rows))
        raise UsageError(f"bench {self.name} has no variant {':'.join(names)}", expected=SMOKE)

    def require_statements(self, docs: Sequence[Doc]) -> None:
        """`BenchError` when the data holds placeholders instead of questions: good for scoring, not for asking."""
        mark = self.protocol.placeholder if self.protocol else ""
        withheld = [doc.doc_id for doc in docs if mark and mark in doc.prompt]
        if withheld:
            raise BenchError(
                f"bench {self.name}: {len(withheld)} of {len(docs)} rows hold no question",
                expected="the statements of the problems",
                actual=f"{mark!r} in {', '.join(withheld[:3])}",
                remedy="use a copy of the data set that has them, or leave out --data to take it from the hub",
            )

    def answer(self, reply: str, doc: Doc) -> str | None:
        """The answer in a reply, or None."""
        return self.extract_for(reply, doc) if self.extract_for else self.extract(reply)

    def judge(self, replies: Sequence[tuple[str, str, Doc]]) -> list[Verdict]:
        """Verdict and cause of each (reply, finish_reason, doc). A reply cut off at the cap may still be right."""
        return self.judge_observed([(Observed(reply, finish), doc) for reply, finish, doc in replies])

    def judge_observed(self, replies: Sequence[tuple[Observed, Doc]], slot: int | None = None) -> list[Verdict]:
        """The same for replies with reasoning and token counts; `slot` is the server's context per request."""
        limits = Limits(self.max_new_tokens, self.protocol.generation.think_budget if self.protocol else 0, slot)
        texts = [self._read(seen) for seen, _ in replies]
        answers = [self.answer(t, doc) if t.strip() else None for t, (_, doc) in zip(texts, replies, strict=True)]
        given = [(answer, doc) for answer, (_, doc) in zip(answers, replies, strict=True) if answer is not None]
        scored = iter(self.score(given))
        verdicts = []
        for text, answer, (seen, _) in zip(texts, answers, replies, strict=True):
            none: Verdict = Verdict(False, "extraction failed" if text.strip() else "empty")
            verdict = none if answer is None else next(scored)
            verdicts.append(_attributed(verdict, seen, limits))
        return verdicts

    def _read(self, seen: Observed) -> str:
        """The text that is scored. Reasoning counts when the content is empty, or where the bench reads both.

        Reading both everywhere is wrong: it turned IFEval 1.00 into 0.10 in the reference's history.
        """
        if not seen.content.strip():
            return seen.reasoning
        both = self.protocol is not None and self.protocol.reads == "reasoning and content"
        return f"{seen.reasoning}\n{seen.content}" if both and seen.reasoning else seen.content


def rows_sha256(docs: Sequence[Doc]) -> str:
    """Hash of everything that is asked and of the gold answers, in order."""
    rows = [[doc.doc_id, doc.prompt, doc.check, *([doc.history] if doc.history else [])] for doc in docs]
    return sha256_bytes(canonical_json(rows))


def _attributed(verdict: Verdict, seen: Observed, limits: Limits) -> Verdict:
    cause = attribute(verdict.correct, verdict.cause, seen, limits)
    detail = verdict.detail or (verdict.cause if cause != verdict.cause else "")
    if verdict.correct and not seen.content.strip():
        detail = "; ".join(filter(None, ["read from the reasoning, the content is empty", detail]))
    return Verdict(verdict.correct, cause, verdict.extracted, detail)


def exact(check: Callable[[str, dict[str, Any]], bool]) -> Callable[[Sequence[tuple[str, Doc]]], list[Verdict]]:
    """A scorer from a yes/no question about one answer and the row's `check`."""

    def score(pairs: Sequence[tuple[str, Doc]]) -> list[Verdict]:
        passed = [check(answer, doc.check) for answer, doc in pairs]
        return [
            Verdict(ok, "correct" if ok else "wrong", answer) for ok, (answer, _) in zip(passed, pairs, strict=True)
        ]

    return score


def whole_reply(reply: str) -> str | None:
    """Extraction for benches whose answer is the whole reply."""
    return reply.strip() or None


def verbatim(reply: str) -> str | None:
    """The same without touching its ends, for scorers that look at them."""
    return reply


def held_out(domain: str) -> Callable[[int, Path | None], list[Doc]]:
    """Rows of a bundled bench: held-out items of one domain. They are generated, so no data folder is needed."""

    def load(rows: int, _data: Path | None) -> list[Doc]:
        return [
            Doc(item.item_id, item.prompt, item.answer, item.check)
            for item in generate(domain, "heldout", rows, HELD_OUT_SEED)
        ]

    return load
