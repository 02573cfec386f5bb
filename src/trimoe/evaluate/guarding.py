"""The guards of one run at work on a log: they see what is stored before anything is added, and what they say is kept.

Invariants: a pause leaves its evidence in the log; a guard that was ignored leaves it too, and marks the run, once it
would have paused it; a run that is complete is shown to them as well, so running the same command twice does not turn a
pause into a score.
"""

from collections.abc import Iterable, Sequence

from trimoe.evaluate.guards import Tripped, Watch, guards_of
from trimoe.evaluate.log.marks import OVERRULED
from trimoe.evaluate.log.records import Run, Scored
from trimoe.evaluate.log.run_log import RunLog


class RunGuard:
    """The guards of one run over its first `rows` rows. `watch` may be used from another thread, this only from one."""

    def __init__(self, log: RunLog, run: Run, rows: int, ignored: Iterable[str] = ()) -> None:
        self._log, self._run, self._rows = log, run, rows
        self.watch = Watch(guards_of(run.bench), frozenset(ignored))
        self._noted = {detail["guard"] for kind, detail in log.events(run) if kind == OVERRULED}

    def replay(self, stored: Sequence[Scored]) -> None:
        """Show what is stored already. `Refused` when a guard trips on it: nothing more is asked for."""
        there = [scored for scored in stored if not scored.sample.error]
        tripped = None
        for scored in there:
            tripped = self.watch.reply(scored.sample) or tripped
        tripped = tripped or self.watch.scored(there)
        self._note()
        if tripped:
            raise tripped.refusal(self._run.bench)

    def take(self, rows: Sequence[Scored]) -> None:
        """Take in what was just stored and judged, in this thread. `Refused` when a guard trips."""
        for scored in rows:
            self._pause(self.watch.reply(scored.sample))
        self._pause(self.scored(rows))

    def scored(self, rows: Sequence[Scored]) -> Tripped | None:
        """Take in verdicts of replies that `watch` has seen."""
        tripped = self.watch.scored(rows)
        self._note()
        return tripped

    def finish(self, tripped: Tripped | None = None) -> None:
        """The end of a run: `Refused` for what tripped, or for a few rows without one right answer."""
        tripped = tripped or self.watch.finished(self._rows)
        self._note()
        self._pause(tripped)

    def _pause(self, tripped: Tripped | None) -> None:
        if tripped:
            self._write("paused", tripped)
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
    """Show a complete run to its guards. `Refused` when one trips."""
    chosen = set(doc_ids)
    guard = RunGuard(log, run, len(doc_ids), ignored)
    guard.replay([scored for scored in log.samples(run) if scored.sample.doc_id in chosen])
    guard.finish()
