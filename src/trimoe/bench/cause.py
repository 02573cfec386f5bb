"""Why a reply missed: pure arithmetic on what was observed of it, nothing is generated or asked here.

Every miss gets one cause, the first that applies: nothing was said, the answer never left the reasoning, the reply went
round in circles, a ceiling cut it off, or what the scorer found (extraction failed, code error, code timeout, wrong).
A correct reply is correct whatever else happened to it. Thresholds are those of the reference protocol, section 2.
Not guaranteed: a cause is an attribution, not a proof; a cut reply may have been wrong anyway (`ceilings` bounds that).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Cause = Literal[
    "correct",
    "wrong",
    "empty",
    "reasoning-only",
    "truncated",
    "truncated (cap)",
    "truncated (slot)",
    "truncated (budget)",
    "loop",
    "extraction failed",
    "code error",
    "code timeout",
    "harness error",
]
Ceiling = Literal["cap", "slot", "budget"]

TOLERANCE = 16  # tokens: counts are taken again on the text, and differ a little from what the server counted

LOOP_MIN_CHARS, LOOP_MIN_WORDS = 600, 60
LOOP_WINDOW, LOOP_GRAM = 220, 5  # words
LOOP_DISTINCT, LOOP_REPEATS = 0.30, 12
TAIL_PERIODS, TAIL_REPEATS, TAIL_RUN = range(2, 41), 8, 41  # characters


@dataclass(frozen=True)
class Limits:
    """Tokens. `cap` bounds the whole reply, `think` is the part of it reserved for reasoning, `slot` the context."""

    cap: int
    think: int = 0
    slot: int | None = None

    @staticmethod
    def near(limit: int) -> int:
        """The fewest tokens that count as having reached a limit. Short limits leave less to the tolerance than 16."""
        return limit - min(TOLERANCE, limit // 64)

    @property
    def answer_room(self) -> int:
        """What the thinking budget leaves for the answer; it is subtracted from the cap, not added."""
        return self.cap - self.think


@dataclass(frozen=True)
class Observed:
    """One reply as it came. Token counts are of the raw text; None means that nobody counted."""

    content: str
    finish_reason: str = ""
    reasoning: str = ""
    content_tokens: int | None = None
    reasoning_tokens: int | None = None
    prompt_tokens: int | None = None

    @property
    def tokens(self) -> int | None:
        """The whole reply."""
        return None if self.content_tokens is None else self.content_tokens + (self.reasoning_tokens or 0)


def words_loop(text: str) -> bool:
    """Whether the last 220 words say the same few things: distinct 5-grams under 0.30, or one of them 12 times."""
    words = text.split()
    if len(text) < LOOP_MIN_CHARS or len(words) < LOOP_MIN_WORDS:
        return False
    tail = words[-LOOP_WINDOW:]
    grams = [tuple(tail[i : i + LOOP_GRAM]) for i in range(len(tail) - LOOP_GRAM + 1)]
    counts = Counter(grams)
    return len(counts) / len(grams) < LOOP_DISTINCT or max(counts.values()) >= LOOP_REPEATS


def tail_loop(text: str) -> bool:
    """Whether the text ends in a short piece repeated: 2 to 40 characters 8 times, or one character 41 times.

    Only the end counts, because a ruler or a table holds such runs too, and a reply that left one did not loop.
    """
    if len(text) >= TAIL_RUN and len(set(text[-TAIL_RUN:])) == 1:
        return True
    for period in TAIL_PERIODS:
        tail = text[-period * TAIL_REPEATS :]
        # a tail of one repeated character has every period: the limit of 41 above is the one for it
        if len(tail) == period * TAIL_REPEATS and len(set(tail)) > 1 and tail == tail[:period] * TAIL_REPEATS:
            return True
    return False


def loops(text: str) -> bool:
    """Either detector."""
    return words_loop(text) or tail_loop(text.rstrip())


def ruminates(seen: Observed, limits: Limits) -> bool:
    """Reasoning pinned at its budget and content at what that leaves: it thought and wrote in circles to both ends."""
    if not limits.think or seen.content_tokens is None or seen.reasoning_tokens is None:
        return False
    return (
        abs(seen.reasoning_tokens - limits.think) <= TOLERANCE
        and abs(seen.content_tokens - limits.answer_room) <= TOLERANCE
    )


def ceiling(seen: Observed, limits: Limits) -> Ceiling | None:
    """Which limit the reply ran into; None when it ended by itself, or when that cannot be told.

    The answer room is a ceiling only where reasoning is counted apart from the answer: a reply without reasoning may
    be as long as the cap.
    """
    tokens = seen.tokens
    if tokens is None:
        return None
    if tokens >= limits.near(limits.cap):
        return "cap"
    prompt = seen.prompt_tokens
    if limits.slot is not None and prompt is not None and prompt + tokens >= limits.near(limits.slot):
        return "slot"
    if limits.think and seen.reasoning_tokens:
        at_room = abs((seen.content_tokens or 0) - limits.answer_room) <= TOLERANCE
        all_thought = not seen.content.strip() and seen.reasoning_tokens >= limits.think - TOLERANCE
        if at_room or all_thought:
            return "budget"
    return None


def attribute(correct: bool | None, found: Cause, seen: Observed, limits: Limits) -> Cause:
    """The cause of one reply: `found` is what the scorer says of it, `seen` and `limits` what happened before."""
    if correct is None:
        return "harness error"
    if correct:
        return "correct"
    cut = ceiling(seen, limits)
    truncated = _truncated(cut) if cut or seen.finish_reason == "length" else None
    if not seen.content.strip():
        if not seen.reasoning.strip():
            return truncated or "empty"
        return "loop" if loops(seen.reasoning) else truncated or "reasoning-only"
    if found in ("code error", "code timeout"):
        return truncated or found
    if ruminates(seen, limits) or loops(seen.content):
        return "loop"
    return truncated or found


def _truncated(cut: Ceiling | None) -> Cause:
    names: dict[Ceiling | None, Cause] = {
        "cap": "truncated (cap)",
        "slot": "truncated (slot)",
        "budget": "truncated (budget)",
        None: "truncated",
    }
    return names[cut]


@dataclass(frozen=True)
class Ceilings:
    """What limits did to a run. `tax_pp` is the most the score could have lost to them, in percentage points."""

    verdict: Literal["CLEAN", "CAPPED"]
    hit: Literal["cap", "answer room", "unexplained", "none"]
    ties_at_max: int
    capped: int
    capped_correct: int
    tax_pp: float


def ceilings(
    tokens: Sequence[int],
    correct: Sequence[bool],
    limits: Limits,
    *,
    split: bool,
    whole: Sequence[int] | None = None,
    stopped: Sequence[bool] | None = None,
) -> Ceilings:
    """Whether the lengths of a run's replies pile up at a limit, known or unknown. One entry per reply.

    `tokens` counts the reply, or with `split` (reasoning apart) the answer alone; then `whole` counts the whole reply,
    which is what the cap applies to. A reply that ended by itself (`stopped`) was not cut at the cap, however near.
    A pile-up that no known limit explains is reported too: at least 2 of at least 10 replies within 16 tokens of the
    longest, which has 256 tokens or more and twice the median of the others.
    """
    ended = stopped or [False] * len(tokens)
    at_cap = [n >= limits.near(limits.cap) and not end for n, end in zip(whole or tokens, ended, strict=True)]
    at_room = [split and limits.think > 0 and abs(n - limits.answer_room) <= TOLERANCE for n in tokens]
    longest = max(tokens, default=0)
    ties = [n >= longest - TOLERANCE for n in tokens]
    hit: Literal["cap", "answer room", "unexplained", "none"]
    if any(at_cap):
        hit, capped = "cap", [a or b for a, b in zip(at_cap, at_room, strict=True)]
    elif any(at_room):
        hit, capped = "answer room", at_room
    elif _piles_up(tokens, ties, longest):
        hit, capped = "unexplained", ties
    else:
        hit, capped = "none", [False] * len(tokens)
    lost = sum(c and not ok for c, ok in zip(capped, correct, strict=True))
    return Ceilings(
        "CAPPED" if any(capped) else "CLEAN",
        hit,
        sum(ties),
        sum(capped),
        sum(capped) - lost,
        100 * lost / len(tokens) if tokens else 0.0,
    )


def _piles_up(tokens: Sequence[int], ties: Sequence[bool], longest: int) -> bool:
    others = [n for n, tie in zip(tokens, ties, strict=True) if not tie]
    return (
        len(tokens) >= 10
        and sum(ties) >= 2
        and longest >= 256
        and bool(others)
        and longest - TOLERANCE >= 2 * median(others)
    )
