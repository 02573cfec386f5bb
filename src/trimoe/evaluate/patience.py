"""Operational limits of asking a server: concurrency, timeouts, retries and backoff."""

import random
from dataclasses import dataclass

from trimoe.bench.bench import Bench


@dataclass(frozen=True)
class Patience:
    """Limits in seconds; not part of a run's identity. `timeout_s` is per attempt, `deadline_s` per sample."""

    concurrency: int = 2
    timeout_s: float = 1800.0
    deadline_s: float = 5400.0
    retries: int = 8
    backoff_s: float = 1.0
    backoff_most_s: float = 60.0

    def pause(self, attempt: int, wanted: float | None) -> float:
        """Seconds before retry `attempt` + 1: exponential with jitter, or longer if the server asks for it."""
        most = min(self.backoff_most_s, self.backoff_s * 2.0**attempt)
        return max(wanted or 0.0, random.uniform(most / 2, most))


def patience_of(bench: Bench, slots: int | None) -> Patience:
    """The concurrency and timeout of the bench's spec. The server's number of slots overrides the concurrency."""
    if bench.protocol is None:
        return Patience(slots or Patience.concurrency)
    serving = bench.protocol.serving
    return Patience(slots or serving.parallel, serving.timeout_s, 3.0 * serving.timeout_s)
