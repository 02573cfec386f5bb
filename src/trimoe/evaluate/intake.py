"""The first step of every reply, whatever generated it: cut at stop texts, store, show to the guards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trimoe.bench.bench import Bench, Doc
from trimoe.evaluate.guards import Tripped, Watch
from trimoe.evaluate.log.records import Arrived, Run, Sample
from trimoe.evaluate.log.run_log import RunLog

Group = list[Arrived]


@dataclass(frozen=True)
class Job:
    """One bench to evaluate: its rows in order and their run."""

    bench: Bench
    docs: Sequence[Doc]
    run: Run


class Intake:
    """Takes groups of replies to one job. Not thread-safe: one thread calls `take`; any thread may call `stop`.

    `mark` is noted on replies that continue beyond a stop text. `on_stop` is called when the job is stopped.
    """

    def __init__(self, log: RunLog, job: Job, watch: Watch, mark: str) -> None:
        self.log, self.job = log, job
        self.tripped: Tripped | None = None
        self.stopped = False
        self.on_stop: Callable[[], None] = lambda: None
        self._watch, self._mark = watch, mark

    def take(self, group: Group, log: RunLog | None = None) -> Group:
        """The group as stored. It is durable on return. `log` is the caller's own connection in another thread."""
        stops = self.job.bench.stops
        if stops:
            group = [replace(one, sample=cut_at_stops(one.sample, stops, self._mark)) for one in group]
        (log or self.log).arrived([(self.job.run, one) for one in group])
        for one in group:
            if tripped := self._watch.reply(one.sample):
                self.stop(tripped)
        return group

    def stop(self, tripped: Tripped) -> None:
        """Ask for no more replies, because a guard tripped. The first one counts."""
        self.tripped = self.tripped or tripped
        self.stopped = True
        self.on_stop()


def cut_at_stops(sample: Sample, stops: Sequence[str], mark: str = "") -> Sample:
    """The sample with its reply cut at the first stop text, as if the engine had stopped there.

    The token counts and the raw reply remain those of the whole reply.
    """
    places = [place for stop in stops if (place := sample.reply.find(stop)) >= 0]
    if not places:
        return sample
    marks = (*sample.marks, mark) if mark else sample.marks
    return replace(sample, reply=sample.reply[: min(places)], finish_reason="stop", marks=marks)
