"""Attributes every wrong reply to a cause, from its text, token counts and limits.

Every miss gets one cause, the first that applies: the reply is empty, the answer stayed in the reasoning, the reply
looped, a token limit cut it off, or the scorer's finding (extraction failed, code error, code timeout, wrong). A
correct reply is correct whatever else happened to it. Thresholds are those of section 2 of the reference protocol.
Not guaranteed: a cause is an attribution, not a proof. A reply that was cut off may have been wrong anyway; `ceilings`
bounds the effect on the score.
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

TOLERANCE = 16  # tokens: counts taken again on the text differ slightly from those of the server

LOOP_MIN_CHARS, LOOP_MIN_WORDS = 600, 60
LOOP_WINDOW, LOOP_GRAM = 220, 5  # words
LOOP_DISTINCT, LOOP_REPEATS = 0.30, 12
TAIL_PERIODS, TAIL_REPEATS, TAIL_RUN = range(2, 41), 8, 41  # characters


@dataclass(frozen=True)
class Limits:
    """Limits in tokens: `cap` of the whole reply, `think` of the reasoning in it, `slot` of the server's context."""

    cap: int
    think: int = 0
    slot: int | None = None

    @staticmethod
    def near(limit: int) -> int:
        """The fewest tokens that count as reaching a limit. The tolerance is smaller for limits below 1024 tokens."""
        return limit - min(TOLERANCE, limit // 64)

    @property
    def answer_room(self) -> int:
        """Tokens left for the answer: the cap minus the thinking budget."""
        return self.cap - self.think


@dataclass(frozen=True)
class Observed:
    """One reply as received. Token counts are of the raw text; None means not counted."""

    content: str
    finish_reason: str = ""
    reasoning: str = ""
    content_tokens: int | None = None
    reasoning_tokens: int | None = None
    prompt_tokens: int | None = None

    @property
    def tokens(self) -> int | None:
        """Tokens of the whole reply."""
        return None if self.content_tokens is None else self.content_tokens + (self.reasoning_tokens or 0)


def words_loop(text: str) -> bool:
    """Whether the last 220 words repeat: less than 30 % of the 5-grams are distinct, or one occurs 12 times."""
    words = text.split()
    if len(text) < LOOP_MIN_CHARS or len(words) < LOOP_MIN_WORDS:
        return False
    tail = words[-LOOP_WINDOW:]
    grams = [tuple(tail[i : i + LOOP_GRAM]) for i in range(len(tail) - LOOP_GRAM + 1)]
    counts = Counter(grams)
    return len(counts) / len(grams) < LOOP_DISTINCT or max(counts.values()) >= LOOP_REPEATS


def tail_loop(text: str) -> bool:
    """Whether the text ends in a repeated piece: 2 to 40 characters 8 times, or one character 41 times.

    Only the end counts: rulers and tables contain such runs, too, and a reply that continues after one did not loop.
    """
    if len(text) >= TAIL_RUN and len(set(text[-TAIL_RUN:])) == 1:
        return True
    for period in TAIL_PERIODS:
        tail = text[-period * TAIL_REPEATS :]
        # A tail of one repeated character has every period; the limit of 41 above applies to it.
        if len(tail) == period * TAIL_REPEATS and len(set(tail)) > 1 and tail == tail[:period] * TAIL_REPEATS:
            return True
    return False


def loops(text: str) -> bool:
    """Whether one of the two detectors finds a loop."""
    return words_loop(text) or tail_loop(text.rstrip())


def ruminates(seen: Observed, limits: Limits) -> bool:
    """Whether reasoning used up its budget and the content used up the rest of the cap."""
    if not limits.think or seen.content_tokens is None or seen.reasoning_tokens is None:
        return False
    return (
        abs(seen.reasoning_tokens - limits.think) <= TOLERANCE
        and abs(seen.content_tokens - limits.answer_room) <= TOLERANCE
    )


def ceiling(seen: Observed, limits: Limits) -> Ceiling | None:
    """The limit that the reply reached; None if it ended by itself, or if token counts are unknown.

    The room for the answer is a limit only if reasoning is counted separately: a reply without reasoning may be as long
    as the cap.
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
    """The cause of one reply, from the scorer's finding, the reply, and its limits."""
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
    """The effect of token limits on a run. `tax_pp` is the most that they cost the score, in percentage points."""

    verdict: Literal["CLEAN", "CAPPED"]
    hit: Literal["cap", "slot", "answer room", "unexplained", "none"]
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
    cut: Sequence[bool] | None = None,
) -> Ceilings:
    """Whether the lengths of a run's replies pile up at a limit, known or unknown. One entry per reply.

    `tokens` counts the reply, or the answer alone if `split` (reasoning counted separately); `whole` then counts the
    whole reply, to which the cap applies. A reply that ended by itself (`stopped`) was not cut at the cap, however
    close. One that was `cut` (finish reason length) below the cap met the server's context: vLLM shortens the cap
    without a word where prompt and cap exceed it. A pile-up that no known limit explains is reported, too: at least 2
    of at least 10 replies within 16 tokens
    of the longest, which has at least 256 tokens and twice the median of the others.
    """
    ended = stopped or [False] * len(tokens)
    at_cap = [n >= limits.near(limits.cap) and not end for n, end in zip(whole or tokens, ended, strict=True)]
    at_room = [split and limits.think > 0 and abs(n - limits.answer_room) <= TOLERANCE for n in tokens]
    at_slot = [c and not cap for c, cap in zip(cut or [False] * len(tokens), at_cap, strict=True)]
    longest = max(tokens, default=0)
    ties = [n >= longest - TOLERANCE for n in tokens]
    hit: Literal["cap", "slot", "answer room", "unexplained", "none"]
    if any(at_cap):
        hit, capped = "cap", [a or b or c for a, b, c in zip(at_cap, at_room, at_slot, strict=True)]
    elif any(at_slot):
        hit, capped = "slot", [a or b for a, b in zip(at_slot, at_room, strict=True)]
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
