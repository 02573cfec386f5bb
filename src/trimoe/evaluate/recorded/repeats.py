"""Several replies to each row: their ids in a log, pass@k and maj@k.

pass@1 is the mean over all replies, and the run's score. pass@k is the unbiased estimate of Chen et al. 2021 from n
replies, of which c are right: 1 - C(n-c, k) / C(n, k), averaged over the rows. maj@k takes the answer that most replies
to a row give (of equally frequent ones the first) and is right where that answer is.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import Any

from trimoe.bench.bench import Verdict

_LONGEST = 64  # characters of an answer; programs and whole replies have no majority


@dataclass(frozen=True)
class Repeats:
    """Shares in [0, 1] over `rows` rows of `epochs` replies each; None while a reply is not scored.

    `pass_at` has the powers of two up to the number of replies, and that number. `majority` is None where answers are
    not extracted (code).
    """

    epochs: int
    rows: int
    pass_at: dict[str, float] | None
    majority: float | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def epoch_id(doc_id: str, epoch: int, epochs: int) -> str:
    """The id of a reply in a log. With one reply per row it is the row's."""
    return f"{epoch}::{doc_id}" if epochs > 1 else doc_id


def repeats_of(verdicts: Sequence[tuple[str, Verdict]], epochs: int) -> Repeats | None:
    """pass@k and maj@k of (row, verdict) pairs; None with one reply per row."""
    if epochs < 2:
        return None
    rows: dict[str, list[Verdict]] = {}
    for doc_id, verdict in verdicts:
        rows.setdefault(doc_id, []).append(verdict)
    if any(v.correct is None for group in rows.values() for v in group):
        return Repeats(epochs, len(rows), None, None)
    right = [sum(v.correct is True for v in group) for group in rows.values()]
    sizes = [k for k in (2**i for i in range(epochs.bit_length())) if k < epochs] + [epochs]
    pass_at = {str(k): sum(1 - comb(epochs - c, k) / comb(epochs, k) for c in right) / len(rows) for k in sizes}
    answers = [v.extracted for group in rows.values() for v in group if v.extracted is not None]
    extracted = bool(answers) and all(len(answer) <= _LONGEST for answer in answers)
    winners = [_majority(group) for group in rows.values()]
    return Repeats(epochs, len(rows), pass_at, sum(winners) / len(rows) if extracted else None)


def _majority(group: Sequence[Verdict]) -> bool:
    """Whether the most frequent answer is right. Replies without an answer do not vote."""
    votes: dict[str, int] = {}
    for v in group:
        if v.extracted is not None:
            votes[v.extracted] = votes.get(v.extracted, 0) + 1
    if not votes:
        return False
    best = max(votes, key=lambda answer: votes[answer])  # the first of equally frequent ones
    return any(v.correct is True for v in group if v.extracted == best)
