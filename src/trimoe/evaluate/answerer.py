"""The interface between the evaluation loop and whatever generates replies: this process or a server."""

from collections.abc import Generator, Mapping
from typing import Any, Protocol

from trimoe.bench.bench import Bench
from trimoe.evaluate.intake import Group, Intake, Job


class ServerChanged(Exception):
    """The server is no longer the one that the run began with; the message names the differences."""


class Answerer(Protocol):
    """Generates replies to the rows of a bench."""

    @property
    def label(self) -> str:
        """The model's name in tables, unless the caller gives another."""

    @property
    def model(self) -> str:
        """The model in the run's identity: a content hash, or the best description of a third-party server's model."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Operational settings, recorded with the run but not part of its identity."""

    @property
    def event(self) -> str:
        """Kind of the event that records the start: `generating` or `asking`."""

    @property
    def event_if_complete(self) -> bool:
        """Whether the event is recorded although no reply is missing."""

    @property
    def overrun_mark(self) -> str:
        """Mark on a reply that continues beyond a stop text; empty if that is how this answerer works."""

    def sampler(self, bench: Bench) -> Mapping[str, Any]:
        """Whatever determines the replies besides bench and model; part of the run's identity."""

    def prepare(self) -> None:
        """Load what is needed. Called before the first job with missing replies, and again before each further one."""

    def answers(self, job: Job, missing: set[str], intake: Intake) -> Generator[Group]:
        """Pass each missing reply through `intake.take` and yield the groups it returns, until `intake.stopped`.

        Closing the generator gives up pending requests. Raises `ServerChanged` after the last group.
        """
