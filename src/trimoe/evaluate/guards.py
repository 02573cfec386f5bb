"""Guards pause an evaluation whose replies look like a harness fault, before it wastes hours or is believed.

Invariants: thresholds are data (`guards.toml`, per bench). A resumed run shows its guards everything that is stored
before it asks for more, and a complete run is shown to them again, so repeating a command does not turn a pause into a
score. A pause leaves its evidence in the log; so does an ignored guard that would have paused the run, which is then
named with the score.
Not guaranteed: a guard checks form, not truth. A silent guard proves nothing. One that trips may be wrong about a model
that really answers like that; then it is ignored by name, which is recorded.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Annotated, Any

from msgspec import Meta

from trimoe.errors import BenchError, Refused, UsageError
from trimoe.evaluate import markers
from trimoe.evaluate.log.marks import OVERRULED, PAUSED
from trimoe.evaluate.log.records import Run, Sample, Scored
from trimoe.evaluate.log.run_log import RunLog
from trimoe.io.datafile import Data, convert, read

NAMES = ("empty", "length", "marker", "short", "zero", "abort", "errors")
_SHOWN = 3  # samples named as evidence
_QUOTED = 120  # characters of each


class Guard(Data, frozen=True, kw_only=True):
    """Thresholds of one guard. `above` is a share in [0, 1], `below` is in characters, the others count replies."""

    about: str
    after: Annotated[int, Meta(ge=1)]
    window: Annotated[int, Meta(ge=1)] = 100
    above: Annotated[float, Meta(ge=0, le=1)] = 0.0
    below: Annotated[int, Meta(ge=0)] = 0
    smoke: Annotated[int, Meta(ge=0)] = 0
    off: bool = False
    why: str = ""


@dataclass(frozen=True)
class Tripped:
    """A guard that pauses the run: the expected and actual values, and samples to look at."""

    guard: str
    expected: str
    actual: str
    samples: tuple[str, ...]

    def refusal(self, bench: str) -> Refused:
        """The pause as an error."""
        return Refused(
            f"{bench} is paused by the guard '{self.guard}'",
            expected=self.expected,
            actual="; ".join([self.actual, *self.samples]),
            remedy="look at these replies (trimoe log export) and at the server"
            + (", which needs the family's reasoning parser" if self.guard == "marker" else "")
            + ". If the model really answers so, "
            f"add --ignore-guard {self.guard} to resume; if the server was at fault, repair it and use another --log",
        )


@cache
def _tables() -> Mapping[str, Any]:
    tables: Mapping[str, Any] = read(resources.files("trimoe.evaluate") / "guards.toml", "guards.toml")
    return tables


def guards_of(bench: str, data: Mapping[str, Any] | None = None) -> dict[str, Guard]:
    """The guards of a bench by name. `BenchError` for unknown guards or keys."""
    tables = dict(_tables() if data is None else data)
    special = tables.pop("bench", {}).get(bench.partition(":")[0], {})
    if unknown := [name for name in (*tables, *special) if name not in NAMES]:
        raise BenchError(f"guards of {bench}: unknown guard {unknown[0]}", expected=", ".join(NAMES))
    return {
        name: convert({**table, **special.get(name, {})}, Guard, f"guards of {bench}: {name}", error=BenchError)
        for name, table in tables.items()
    }


def require_known(names: Iterable[str]) -> None:
    """`UsageError` if a name is not that of a guard."""
    if unknown := [name for name in names if name not in NAMES]:
        raise UsageError(f"no guard is named {unknown[0]}", expected=", ".join(NAMES), remedy="correct --ignore-guard")


@dataclass(frozen=True)
class _Form:
    """The form of one reply, kept while it is in the window."""

    doc_id: str
    empty: bool
    cut: bool
    marked: tuple[str, ...]
    chars: int
    shown: str
    form: markers.Form | None
    """How the content begins; None without content."""


@dataclass
class Watch:
    """The state of one run's guards. `reply` and `scored` return the first guard that trips, or None."""

    guards: Mapping[str, Guard]
    ignored: frozenset[str] = frozenset()
    seen: int = 0
    judged: int = 0
    correct: int = 0
    failed_in_row: int = 0
    overruled: dict[str, Tripped] = field(default_factory=dict)
    """Ignored guards that tripped, each with its first evidence."""
    _forms: deque[_Form] = field(default_factory=deque)
    _failures: deque[str] = field(default_factory=lambda: deque(maxlen=_SHOWN))

    def reply(self, sample: Sample) -> Tripped | None:
        """Take in one stored sample."""
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
            self._marker(),
            self._share("empty", lambda form: form.empty),
            self._share("length", lambda form: form.cut),
            self._short(),
        )

    def scored(self, rows: Sequence[Scored]) -> Tripped | None:
        """Take in verdicts of samples that `reply` has seen."""
        for row in rows:
            if row.verdict.correct is not None:
                self.judged += 1
                self.correct += row.verdict.correct
        return self._first(self._abort(), self._zero(self.guards["zero"].after))

    def finished(self, rows: int) -> Tripped | None:
        """The check at the end: a run of only a few rows must have one correct reply."""
        guard = self.guards["zero"]
        return self._first(self._zero(1)) if rows <= guard.smoke else None

    def _first(self, *found: Tripped | None) -> Tripped | None:
        tripped = [t for t in found if t and not self.guards[t.guard].off]
        for t in tripped:
            if t.guard in self.ignored:
                self.overruled.setdefault(t.guard, t)
        return next((t for t in tripped if t.guard not in self.ignored), None)

    def _share(self, name: str, test: Callable[[_Form], bool]) -> Tripped | None:
        guard = self.guards[name]
        forms = list(self._forms)[-guard.window :]
        hits = [form for form in forms if test(form)]
        if len(forms) < guard.after or len(hits) <= guard.above * len(forms):
            return None
        expected, actual = f"{guard.about}: at most {100 * guard.above:g} %", f"{len(hits)} of the last {len(forms)}"
        return Tripped(name, expected, actual, _evidence(hits[-_SHOWN:]))

    def _marker(self) -> Tripped | None:
        """A marker of the list, or the shape of a thought whose marker has no name."""
        guard = self.guards["marker"]
        forms = list(self._forms)[-guard.window :]
        hits = [form for form in forms if form.marked]
        if len(forms) >= guard.after and len(hits) > guard.above * len(forms):
            names = ", ".join(dict.fromkeys(name for form in hits for name in form.marked))
            expected = f"{guard.about}: at most {100 * guard.above:g} %"
            return Tripped(
                "marker", expected, f"{len(hits)} of the last {len(forms)} ({names})", _evidence(hits[-_SHOWN:])
            )
        shaped = [(form, form.form) for form in forms if form.form is not None]
        if (shape := markers.shape([inner for _, inner in shaped])) is None:
            return None
        alike = [form for form, inner in shaped if markers.has_shape(inner, shape)]
        return Tripped("marker", "replies without the model's thoughts", shape.text, _evidence(alike[-_SHOWN:]))

    def _short(self) -> Tripped | None:
        guard = self.guards["short"]
        forms = [
            form for form in list(self._forms)[-guard.window :] if not form.empty
        ]  # the guard `empty` counts those
        if len(forms) < guard.after:
            return None
        ordered = sorted(forms, key=lambda form: form.chars)
        p10 = ordered[len(ordered) // 10].chars
        if p10 >= guard.below:
            return None
        expected, actual = f"{guard.about}: at least {guard.below}", f"{p10} over the last {len(forms)}"
        return Tripped("short", expected, actual, _evidence(ordered[:_SHOWN]))

    def _zero(self, after: int) -> Tripped | None:
        if self.judged < after or self.correct:
            return None
        latest = list(self._forms)[-_SHOWN:]
        return Tripped("zero", "at least one correct reply", f"none of {self.judged}", _evidence(latest))

    def _abort(self) -> Tripped | None:
        guard = self.guards["abort"]
        forms = list(self._forms)
        bad = [form for form in forms if form.empty or form.cut]
        if self.judged < guard.after or self.correct or len(bad) <= guard.above * len(forms):
            return None
        actual = f"0 of {self.judged} pass, {len(bad)} empty or cut off"
        return Tripped("abort", guard.about, actual, _evidence(bad[-_SHOWN:]))

    def _errors(self) -> Tripped | None:
        guard = self.guards["errors"]
        if self.failed_in_row < guard.after:
            return None
        expected = f"fewer than {guard.after} {guard.about}"
        return Tripped("errors", expected, f"{self.failed_in_row}", tuple(self._failures))


def _evidence(forms: Iterable[_Form]) -> tuple[str, ...]:
    return tuple(f"{form.doc_id}: {form.shown}" for form in forms)


def _form(sample: Sample) -> _Form:
    content = sample.reply.strip()
    shown = content or (f"(reasoning only) {sample.reasoning.strip()}" if sample.reasoning.strip() else "(empty)")
    shown = repr(shown[:_QUOTED])
    if sample.finish_reason == "length":
        shown += f" (cut off after {sample.reply_tokens} tokens)"
    read = content or sample.reasoning.strip()
    return _Form(
        sample.doc_id,
        not read,
        sample.finish_reason == "length",
        tuple(markers.found(sample.reply, sample.prompt)),
        len(read),
        shown,
        markers.form_of(content, sample.prompt) if content else None,
    )


class RunGuard:
    """The guards of one run over its first `rows` rows, with their events in the log.

    `watch` may be used from another thread; the methods of this class only from one.
    """

    def __init__(self, log: RunLog, run: Run, rows: int, ignored: Iterable[str] = ()) -> None:
        self._log, self._run, self._rows = log, run, rows
        self.watch = Watch(guards_of(run.bench), frozenset(ignored))
        self._noted = {detail["guard"] for kind, detail in log.events(run) if kind == OVERRULED}

    def replay(self, stored: Sequence[Scored]) -> None:
        """Show the guards what is stored. `Refused` if one trips, so nothing more is asked for."""
        replied = [scored for scored in stored if not scored.sample.error]
        tripped = None
        for scored in replied:
            tripped = self.watch.reply(scored.sample) or tripped
        tripped = tripped or self.watch.scored(replied)
        self._note()
        if tripped:
            self._write(PAUSED, tripped)
            raise tripped.refusal(self._run.bench)

    def scored(self, rows: Sequence[Scored]) -> Tripped | None:
        """Take in verdicts of samples that `watch` has seen."""
        tripped = self.watch.scored(rows)
        self._note()
        return tripped

    def finish(self, tripped: Tripped | None = None) -> None:
        """The end of a run. `Refused` if a guard tripped, or if none of only a few rows is correct."""
        tripped = tripped or self.watch.finished(self._rows)
        self._note()
        if tripped:
            self._write(PAUSED, tripped)
            raise tripped.refusal(self._run.bench)

    def _note(self) -> None:
        for tripped in list(self.watch.overruled.values()):
            if tripped.guard not in self._noted:
                self._noted.add(tripped.guard)
                self._write(OVERRULED, tripped)

    def _write(self, kind: str, tripped: Tripped) -> None:
        self._log.event(
            self._run,
            kind,
            guard=tripped.guard,
            expected=tripped.expected,
            actual=tripped.actual,
            samples=list(tripped.samples),
        )


def require_sound(log: RunLog, run: Run, doc_ids: Sequence[str], ignored: Iterable[str] = ()) -> None:
    """Show a complete run to its guards. `Refused` if one trips."""
    chosen = set(doc_ids)
    guard = RunGuard(log, run, len(doc_ids), ignored)
    guard.replay([scored for scored in log.samples(run) if scored.sample.doc_id in chosen])
    guard.finish()
