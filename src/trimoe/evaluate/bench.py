"""What a benchmark is: rows, a prompt per row, extraction and an exact scorer; and the list of those there are.

Invariants: a bench's identity is the hash of its name, version, caps and every row, so two scores with the same hash
answered the same questions. The scorer has a version of its own: replies can be scored again without being generated
again. A bench is a file in `benches/` with a module-level `BENCH`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from trimoe.artifact import canonical_json, sha256_bytes
from trimoe.errors import UsageError
from trimoe.model.tiny.tasks import generate

Cause = Literal[
    "correct", "wrong", "empty", "truncated", "extraction failed", "code error", "code timeout", "harness error"
]
HELD_OUT_SEED = 20  # the bundled benches' draw of held-out items; another seed would be another bench


@dataclass(frozen=True)
class Doc:
    """One row: what is asked, a reference reply that passes, and what the scorer needs (`check`)."""

    doc_id: str
    prompt: str
    reference: str
    check: dict[str, Any]


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

    `extract` returns None when the reply holds no answer in the asked form. `score` judges a list of extracted answers
    at once, because code is cheaper to run in batches. `needs` raises when the scorer cannot work here (no sandbox, no
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

    def docs(self, data: Path | None = None) -> list[Doc]:
        """All rows in their fixed order; `data` is a folder of local dataset files for benches that need one."""
        return self.load(self.rows, data)

    def spec(self, docs: Sequence[Doc]) -> dict[str, Any]:
        """Everything that decides which questions are asked and how long a reply may be."""
        rows = sha256_bytes(canonical_json([[doc.doc_id, doc.prompt, doc.check] for doc in docs]))
        return {
            "name": self.name,
            "version": self.version,
            "rows": self.rows,
            "max_new_tokens": self.max_new_tokens,
            "dataset": rows,
        }

    def judge(self, replies: Sequence[tuple[str, str, Doc]]) -> list[Verdict]:
        """Verdict and cause of each (reply, finish_reason, doc). A reply cut off at the cap may still be right."""
        verdicts: list[Verdict | None] = [None] * len(replies)
        pending: list[tuple[int, str, Doc]] = []
        for i, (reply, _, doc) in enumerate(replies):
            answer = self.extract(reply) if reply.strip() else None
            if answer is not None:
                pending.append((i, answer, doc))
            else:
                verdicts[i] = Verdict(False, "extraction failed" if reply.strip() else "empty")
        for (i, _, _), verdict in zip(pending, self.score([(a, d) for _, a, d in pending]), strict=True):
            verdicts[i] = verdict
        return [_blame_cap(v, finish) for v, (_, finish, _) in zip(verdicts, replies, strict=True) if v is not None]


def _blame_cap(verdict: Verdict, finish_reason: str) -> Verdict:
    if verdict.correct is False and finish_reason == "length":
        return Verdict(False, "truncated", verdict.extracted, verdict.detail or verdict.cause)
    return verdict


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


def held_out(domain: str) -> Callable[[int, Path | None], list[Doc]]:
    """Rows of a bundled bench: held-out items of one domain. They are generated, so no data folder is needed."""

    def load(rows: int, _data: Path | None) -> list[Doc]:
        return [
            Doc(item.item_id, item.prompt, item.answer, item.check)
            for item in generate(domain, "heldout", rows, HELD_OUT_SEED)
        ]

    return load


@cache
def benches() -> dict[str, Bench]:
    """Every bench by name, in the order of the names."""
    from trimoe.evaluate import benches as folder

    modules = [
        importlib.import_module(f"{folder.__name__}.{info.name}") for info in pkgutil.iter_modules(folder.__path__)
    ]
    found = [module.BENCH for module in modules if isinstance(getattr(module, "BENCH", None), Bench)]
    return {bench.name: bench for bench in sorted(found, key=lambda bench: bench.name)}


def find(names: Sequence[str]) -> list[Bench]:
    """Benches by name; `UsageError` lists the known ones. Repeated names count once."""
    known = benches()
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UsageError(
            f"unknown bench {', '.join(unknown)}" if unknown else "no bench named",
            expected="one or more of " + ", ".join(known),
            actual=", ".join(names) or "none",
            remedy="correct --bench, or use --suite tiny",
        )
    return [known[name] for name in dict.fromkeys(names)]


SUITES: dict[str, tuple[str, ...]] = {
    "tiny": ("tiny-code", "tiny-math", "tiny-choice", "tiny-format", "tiny-text", "tiny-story"),
}
