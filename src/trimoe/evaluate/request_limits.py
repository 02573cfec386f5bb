"""Limits of the requests to a server: concurrency, timeouts, retries and the delay between retries."""

import random
from dataclasses import dataclass

from trimoe.bench.bench import Bench


@dataclass(frozen=True)
class RequestLimits:
    """Limits for requests, not part of a run's identity. `timeout_s` is per attempt, `deadline_s` per sample with all
    its retries.
    """

    concurrency: int = 2
    timeout_s: float = 1800.0
    deadline_s: float = 5400.0
    retries: int = 8
    backoff_s: float = 1.0
    backoff_most_s: float = 60.0

    def retry_delay(self, attempt: int, requested: float | None) -> float:
        """Seconds before retry `attempt` + 1: exponential with jitter, or longer if the server requests it."""
        most = min(self.backoff_most_s, self.backoff_s * 2.0**attempt)
        return max(requested or 0.0, random.uniform(most / 2, most))


def limits_of(bench: Bench, slots: int | None) -> RequestLimits:
    """The limits in the bench's spec; the server's number of slots, if known, replaces the concurrency."""
    if bench.protocol is None:
        return RequestLimits(slots or RequestLimits.concurrency)
    serving = bench.protocol.serving
    return RequestLimits(slots or serving.parallel, serving.timeout_s, 3.0 * serving.timeout_s)
