"""What a bench is, and where the benches are found: every module of `benches/` that defines BENCH.

Verdict causes: correct, wrong, empty, truncated, extraction failed, code error, code timeout, harness error. Only a
harness error leaves `correct` unset: it says nothing about the model and never becomes a score.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from trimoe.artifact import sha256_json
from trimoe.errors import UsageError


@dataclass(frozen=True)
class Sample:
    """One item: the user turn, a reply that passes, and what the scorer needs."""

    doc_id: str
    prompt: str
    reference: str
    check: dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """`correct` is None when the sample could not be scored. `extracted` is what was judged."""

    correct: bool | None
    cause: str
    extracted: str | None = None


@dataclass(frozen=True)
class Bench:
    """`score(reply, check)` judges a complete reply; `version` changes whenever rows, prompts or scoring do."""

    name: str
    version: int
    max_new_tokens: int
    load: Callable[[], list[Sample]]
    score: Callable[[str, dict[str, Any]], Verdict]

    def identity(self, samples: list[Sample]) -> str:
        """Hash of everything that decides a score: name, version, cap, and each row."""
        rows = [[s.doc_id, s.prompt, s.check] for s in samples]
        return sha256_json([self.name, self.version, self.max_new_tokens, rows])


@cache
def all_benches() -> dict[str, Bench]:
    """Every bench by name."""
    from trimoe.evaluate import benches

    modules = [importlib.import_module(f"{benches.__name__}.{m.name}") for m in pkgutil.iter_modules(benches.__path__)]
    found = [m.BENCH for m in modules if hasattr(m, "BENCH")]
    return {bench.name: bench for bench in sorted(found, key=lambda b: b.name)}


def get_bench(name: str) -> Bench:
    """A bench by name; `UsageError` lists the known ones."""
    if name not in all_benches():
        raise UsageError(f"unknown bench {name}", expected=", ".join(all_benches()), actual=name)
    return all_benches()[name]
