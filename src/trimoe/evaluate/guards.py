"""Stops a run whose replies look like a fault of the harness, with the evidence, before it costs hours or is believed.

Invariants: thresholds are data (`guards.toml`, per bench); a resumed run shows its guards all that is stored before it
asks for more; a guard that is ignored where it trips is named in the run's results and in every table.
Not guaranteed: a guard measures form, not truth. One that is silent proves nothing, and one that fires may be about a
model that really answers like that: then it is ignored by name, and that is recorded.
"""

import tomllib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trimoe.errors import BenchError, Refused, UsageError
from trimoe.evaluate.answer import leaks
from trimoe.evaluate.log.records import Sample, Scored

NAMES = ("empty", "length", "marker", "short", "zero", "abort", "errors")
_SHOWN = 3  # samples named as evidence
_QUOTED = 120  # characters of each


class Guard(BaseModel):
    """One guard's thresholds. Shares are in [0, 1], `below` is in characters, the others count replies."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    about: str
    after: int = Field(ge=1)
    window: int = Field(default=100, ge=1)
    above: float = Field(default=0.0, ge=0, le=1)
    below: int = Field(default=0, ge=0)
    smoke: int = Field(default=0, ge=0)
    off: bool = False
    why: str = ""


@dataclass(frozen=True)
class Tripped:
    """A guard that stops the run: what it saw, against what, and the samples to look at."""

    guard: str
    expected: str
    actual: str
    samples: tuple[str, ...]

    def refusal(self, bench: str) -> Refused:
        """The pause as an error; the same command with --ignore-guard goes on."""
        return Refused(
            f"{bench} is paused by the guard '{self.guard}'",
            expected=self.expected,
            actual="; ".join([self.actual, *self.samples]),
            remedy="look at these replies (trimoe log export) and at the server. If they are what the model says, "
            f"go on with --ignore-guard {self.guard}; if the server was at fault, repair it and use another --log",
        )


@cache
def _data() -> Mapping[str, Any]:
    return tomllib.loads((resources.files("trimoe.evaluate") / "guards.toml").read_text(encoding="utf-8"))


def guards_of(bench: str, data: Mapping[str, Any] | None = None) -> dict[str, Guard]:
    """The guards of a bench by name; `BenchError` for data with unknown keys."""
    tables = dict(_data() if data is None else data)
    special = tables.pop("bench", {}).get(bench.partition(":")[0], {})
    if unknown := [name for name in (*tables, *special) if name not in NAMES]:
        raise BenchError(f"guards of {bench}: unknown guard {unknown[0]}", expected=", ".join(NAMES))
    try:
        return {name: Guard.model_validate({**table, **special.get(name, {})}) for name, table in tables.items()}
    except ValidationError as exc:
        first = exc.errors()[0]
        raise BenchError(f"guards of {bench}: {'.'.join(map(str, first['loc']))}", actual=first["msg"]) from exc


def require_known(names: Iterable[str]) -> None:
    """`UsageError` for the name of no guard."""
    if unknown := [name for name in names if name not in NAMES]:
        raise UsageError(f"no guard is named {unknown[0]}", expected=", ".join(NAMES), remedy="correct --ignore-guard")


@dataclass(frozen=True)
class _Form:
    """What a reply looks like, kept for the window."""

    doc_id: str
    empty: bool
    cut: bool
    marker: bool
    chars: int
    shown: str


@dataclass
class Watch:
    """The guards of one bench at work. `reply` and `scored` return the first guard that trips, or None."""

    guards: Mapping[str, Guard]
    ignored: frozenset[str] = frozenset()
    seen: int = 0
    judged: int = 0
    correct: int = 0
    failed_in_row: int = 0
    overruled: dict[str, Tripped] = field(default_factory=dict)
    """Ignored guards that tripped, with what each saw first."""
    _forms: deque[_Form] = field(default_factory=deque)
    _failures: deque[str] = field(default_factory=lambda: deque(maxlen=_SHOWN))

    def reply(self, sample: Sample) -> Tripped | None:
        """Take one stored sample in."""
        if sample.error:
            self.failed_in_row += 1
            self._failures.append(f"{sample.doc_id}: {sample.error}")
            return self._first(self._errors())
        self.failed_in_row = 0
        self.seen += 1
        self._forms.append(_form(sample))
        if len(self._forms) > max(guard.window for guard in self.guards.values()):
            self._forms.popleft()
        return self._first(
            self._share("marker", lambda form: form.marker),
            self._share("empty", lambda form: form.empty),
            self._share("length", lambda form: form.cut),
            self._short(),
        )

    def scored(self, rows: Sequence[Scored]) -> Tripped | None:
        """Take verdicts in."""
        for row in rows:
            if row.verdict.correct is not None:
                self.judged += 1
                self.correct += row.verdict.correct
        return self._first(self._abort(), self._zero(self.guards["zero"].after))

    def finished(self, rows: int) -> Tripped | None:
        """Look again at the end: a run of a few rows must have one right."""
        guard = self.guards["zero"]
        return self._first(self._zero(1)) if rows <= guard.smoke else None

    def _first(self, *found: Tripped | None) -> Tripped | None:
        tripped = [t for t in found if t and not self.guards[t.guard].off]
        for t in tripped:
            if t.guard in self.ignored:
                self.overruled.setdefault(t.guard, t)
        return next((t for t in tripped if t.guard not in self.ignored), None)

    def _share(self, name: str, test: Any) -> Tripped | None:
        guard = self.guards[name]
        forms = list(self._forms)[-guard.window :]
        hits = [form for form in forms if test(form)]
        if len(forms) < guard.after or len(hits) <= guard.above * len(forms):
            return None
        return Tripped(
            name,
            f"{guard.about}: at most {100 * guard.above:g} %",
            f"{len(hits)} of the last {len(forms)}",
            tuple(f"{form.doc_id}: {form.shown}" for form in hits[-_SHOWN:]),
        )

    def _short(self) -> Tripped | None:
        guard = self.guards["short"]
        forms = [form for form in list(self._forms)[-guard.window :] if not form.empty]  # those have their own guard
        if len(forms) < guard.after:
            return None
        ordered = sorted(forms, key=lambda form: form.chars)
        p10 = ordered[len(ordered) // 10].chars
        if p10 >= guard.below:
            return None
        return Tripped(
            "short",
            f"{guard.about}: at least {guard.below}",
            f"{p10} over the last {len(forms)}",
            tuple(f"{form.doc_id}: {form.shown}" for form in ordered[:_SHOWN]),
        )

    def _zero(self, after: int) -> Tripped | None:
        if self.judged < after or self.correct:
            return None
        latest = [f"{form.doc_id}: {form.shown}" for form in list(self._forms)[-_SHOWN:]]
        return Tripped("zero", "at least one correct reply", f"none of {self.judged}", tuple(latest))

    def _abort(self) -> Tripped | None:
        guard = self.guards["abort"]
        forms = list(self._forms)
        bad = [form for form in forms if form.empty or form.cut]
        if self.judged < guard.after or self.correct or len(bad) <= guard.above * len(forms):
            return None
        shown = tuple(f"{form.doc_id}: {form.shown}" for form in bad[-_SHOWN:])
        return Tripped("abort", guard.about, f"0 of {self.judged} pass, {len(bad)} empty or cut off", shown)

    def _errors(self) -> Tripped | None:
        guard = self.guards["errors"]
        if self.failed_in_row < guard.after:
            return None
        return Tripped(
            "errors", f"fewer than {guard.after} {guard.about}", f"{self.failed_in_row}", tuple(self._failures)
        )


def _form(sample: Sample) -> _Form:
    content = sample.reply.strip()
    shown = content or (f"(reasoning only) {sample.reasoning.strip()}" if sample.reasoning.strip() else "(empty)")
    shown = repr(shown[:_QUOTED])
    if sample.finish_reason == "length":
        shown += f" (cut off after {sample.reply_tokens} tokens)"
    read = content or sample.reasoning.strip()
    return _Form(sample.doc_id, not read, sample.finish_reason == "length", bool(leaks(sample.reply)), len(read), shown)
