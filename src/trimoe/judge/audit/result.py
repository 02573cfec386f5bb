"""The result of an audit: one verdict per run, with all checks and measures behind it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trimoe.io.frames import data_frame
from trimoe.judge.audit.check import Check
from trimoe.judge.measures import Measures
from trimoe.judge.text import html_table

Verdict = Literal["publishable", "notes", "refused"]


@dataclass(frozen=True)
class RunAudit:
    """One audited run. `flags` are the checks that fired, or CLEAN; `score` is a share, `low` and `high` its interval.

    `n` samples of `expected` items were answered; `expected` is None when the bench does not record its size.
    """

    name: str
    bench: str
    run: str
    verdict: Verdict
    flags: tuple[str, ...]
    n: int
    expected: int | None
    score: float | None
    se: float | None
    low: float
    high: float
    measures: Measures
    checks: tuple[Check, ...]

    def as_dict(self) -> dict[str, Any]:
        """The audit as JSON values; counts instead of ids where a check lists the ids."""
        m = self.measures
        body = {k: v for k, v in asdict(self).items() if k != "measures"}
        return body | {
            "empty": len(m.empty),
            "fenced": m.fenced,
            "chars": dict(zip(("p10", "p50", "p90"), m.chars, strict=True)),
            "verbatim": None if m.verbatim is None else len(m.verbatim),
            "split": dict(m.split),
            "ceilings": None if m.ceilings is None else asdict(m.ceilings),
            "failures": [{"doc_id": i, "cause": c, "detail": d} for i, c, d in m.failures],
        }


@dataclass(frozen=True, repr=False)
class Audit:
    """The audited runs of one log, in its order. Iterating gives the runs."""

    log: str
    runs: tuple[RunAudit, ...]

    def __iter__(self) -> Iterator[RunAudit]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, at: int) -> RunAudit:
        return self.runs[at]

    def __repr__(self) -> str:
        return f"Audit({self.log!r}, {len(self.runs)} runs, {len(self.refused)} refused)"

    def _repr_html_(self) -> str:
        rows = [[one.bench, one.name, one.verdict, " ".join(one.flags)] for one in self.runs]
        return html_table(("bench", "model", "verdict", "flags"), rows, left=4)

    @property
    def refused(self) -> tuple[RunAudit, ...]:
        """The runs whose number must not be published."""
        return tuple(one for one in self.runs if one.verdict == "refused")

    def to_pandas(self) -> Any:
        """One line per run: bench, model, verdict, flags, score. Raises `MissingPrerequisite` without pandas."""
        return data_frame(
            {
                "bench": [one.bench for one in self.runs],
                "model": [one.name for one in self.runs],
                "verdict": [one.verdict for one in self.runs],
                "flags": [" ".join(one.flags) for one in self.runs],
                "score": [one.score for one in self.runs],
            }
        )

    def as_dict(self) -> dict[str, Any]:
        """The audit as JSON values: the output of `trimoe audit --json`."""
        return {"log": self.log, "refused": len(self.refused), "runs": [one.as_dict() for one in self.runs]}
