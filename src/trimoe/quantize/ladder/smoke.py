"""Smoke test of a quantized file: how far its next-token probabilities depart from those of the file it was made from.

The base answers a few prompts greedily; every quantized file is then given the same prompts and the base's own reply,
token by token. The answers need not be right: a domain model, a base model or a deep cut is its own standard. A file
fails if it departs from its base as far as text about something else would, or twice as far as a smaller file of the
same ladder. Whole tensors that are wrong are found so (measured: docs/explanation/sizes.md); a single expert or bit is
not. The test says nothing about quality.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from trimoe.errors import Refused
from trimoe.io.canonical import sha256_json
from trimoe.io.datafile import Data
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.quantize.ladder.server import Distribution, distribution, encoded, greedy, served, tokens_of

_BASE_TOP = 20  # likely tokens kept of the base
_FILE_TOP = 100  # likely tokens asked of a file
_LEAST = 1e-9  # probability of all tokens that are not listed, at least
_NOISE = 0.05  # nats per token below which files are not compared with smaller ones
_FLOOR = -30.0  # log-probability where a file has none: its logits are not finite


class Smoke(Data, frozen=True, kw_only=True):
    """The prompts of a smoke test, and when a file fails it."""

    prompts: Annotated[tuple[Annotated[str, msgspec.Meta(min_length=1)], ...], msgspec.Meta(min_length=1)]
    tokens: Annotated[int, msgspec.Meta(ge=1)] = 24
    """Tokens of each of the base's replies."""
    most: Annotated[float, msgspec.Meta(gt=0)] = 0.25
    """Largest KL divergence from the base, as a share of the divergence between unrelated positions of its replies."""
    over_smaller: Annotated[float, msgspec.Meta(ge=1)] = 2.0
    """Largest ratio of a file's KL divergence to that of a file with fewer bits per weight."""
    allow_unchecked: bool = False
    """Continue if the base itself fails: its files cannot be judged, and are reported as unchecked."""

    def asked(self, passages: Sequence[str]) -> str:
        """Hash of what the base is asked: replies to other prompts are not reused."""
        return sha256_json([list(self.prompts), self.tokens, list(passages)])


@dataclass(frozen=True)
class Position:
    """A point of the base's replies: the tokens before it, and the base's likely next ones."""

    before: tuple[int, ...]
    likely: Distribution


@dataclass(frozen=True)
class Standard:
    """What the base says to the prompts."""

    asked: str
    """`Smoke.asked` of the prompts and passages."""
    replies: tuple[tuple[int, ...], ...]
    ended: tuple[bool, ...]
    prompts: tuple[tuple[int, ...], ...]
    likely: tuple[tuple[Distribution, ...], ...]
    """Of each reply, the likely tokens at each of its positions, and after it if the base ended it."""

    @property
    def identity(self) -> str:
        """Hash of everything that a file is compared with."""
        return sha256_json(self.as_json())

    @property
    def positions(self) -> list[Position]:
        """Every position of every reply."""
        return [
            Position((*prompt, *reply[:at]), likely)
            for prompt, reply, row in zip(self.prompts, self.replies, self.likely, strict=True)
            for at, likely in enumerate(row)
        ]

    @property
    def unrelated(self) -> float:
        """Mean KL divergence, in nats, between the base's distributions at positions that are matched at random."""
        rows = [likely for row in self.likely for likely in row]
        others = list(rows)
        random.Random(0).shuffle(others)
        return sum(map(divergence, rows, others)) / max(1, len(rows))

    def as_json(self) -> dict[str, Any]:
        """The standard as JSON values."""
        likely = [[{str(token): round(p, 6) for token, p in of.items()} for of in row] for row in self.likely]
        return {
            "asked": self.asked,
            "replies": [list(reply) for reply in self.replies],
            "ended": list(self.ended),
            "prompts": [list(prompt) for prompt in self.prompts],
            "likely": likely,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Standard":
        """The inverse of `as_json`."""
        likely = tuple(tuple({int(t): p for t, p in of.items()} for of in row) for row in data["likely"])
        replies, prompts = (tuple(map(tuple, data[key])) for key in ("replies", "prompts"))
        return cls(data["asked"], replies, tuple(data["ended"]), prompts, likely)


@dataclass(frozen=True)
class Departure:
    """How far a file departs from its base over all positions of the base's replies."""

    asked: str
    """`Standard.identity` of what it was compared with."""
    positions: int
    kl: float
    """Mean KL divergence in nats per token, of the base's likely tokens and the rest together."""
    agreement: float
    """Share of positions with the same most likely token."""
    unrelated: float
    """`Standard.unrelated` of the base."""

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {
            "asked": self.asked,
            "positions": self.positions,
            "kl": round(self.kl, 6),
            "agreement": round(self.agreement, 6),
            "unrelated": round(self.unrelated, 6),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Departure":
        """The inverse of `as_json`."""
        return cls(*(data[key] for key in ("asked", "positions", "kl", "agreement", "unrelated")))


def divergence(base: Distribution, other: Distribution) -> float:
    """KL divergence in nats over the base's likely tokens, with all others as one; at least 0.

    A token that `other` does not list has at most its smallest listed probability, so the result is a lower bound.
    """
    least = min(other.values(), default=_FLOOR)
    total, rest, other_rest = 0.0, 1.0, 1.0
    for token, logp in base.items():
        logq = other.get(token, least)
        total += math.exp(logp) * (logp - logq)
        rest -= math.exp(logp)
        other_rest -= math.exp(logq)
    rest, other_rest = max(rest, _LEAST), max(other_rest, _LEAST)
    return max(0.0, total + rest * math.log(rest / other_rest))


def judge(found: Departure, wanted: Smoke, smaller: Sequence[tuple[str, float]] = ()) -> str | None:
    """Why a file fails, None if it passes. `smaller` are names and KL divergences of files with fewer bits."""
    limit = wanted.most * found.unrelated
    if found.kl > limit:
        return (
            f"it departs from its base by {found.kl:.2f} nats per token, over {limit:.2f}: {wanted.most:.0%} of what "
            "unrelated text does"
        )
    for name, kl in smaller:
        if found.kl > max(_NOISE, wanted.over_smaller * kl):
            return (
                f"it departs from its base by {found.kl:.3f} nats per token, over {wanted.over_smaller:g} times as far "
                f"as {name}, which has fewer bits ({kl:.3f})"
            )
    return None


def base_fault(base: Standard) -> str | None:
    """Why a base cannot be the standard for its files, None if it can."""
    rows = [likely for row in base.likely for likely in row]
    if not rows or any(not likely for likely in rows):
        return "it gives no finite probabilities"
    if len({token for reply in base.replies for token in reply}) < 2:
        return "all its replies are one and the same token"
    return None


def require_good_base(base: Standard, wanted: Smoke) -> str | None:
    """Why a base fails, None if it passes. Raises `Refused` unless unchecked files are allowed."""
    fault = base_fault(base)
    if fault is not None and not wanted.allow_unchecked:
        raise Refused(
            "the base fails the smoke test, so the test could not detect a broken file",
            expected="a base that answers",
            actual=fault,
            remedy="certify or evaluate the base first; --allow-unchecked continues without the check",
        )
    return fault


def passages_of(text: str, count: int = 8, length: int = 300) -> tuple[str, ...]:
    """Beginnings of `count` paragraphs of a calibration text, evenly spread."""
    paragraphs = [part.strip() for part in text.split("\n\n") if len(part.strip()) >= length // 4]
    step = max(1, len(paragraphs) // count)
    return tuple(part[:length] for part in paragraphs[::step][:count])


def standard(tools: LlamaCpp, base: Path, wanted: Smoke, passages: Sequence[str] = (), *, threads: int) -> Standard:
    """What the base says to every prompt, and how it continues every passage. Raises `BadInput` if it does not load."""
    prompts, replies, ended, likely = [], [], [], []
    with served(tools, base, threads=threads) as url:
        drawn = tokens_of(url, "a")[-1]
        asked = [encoded(url, prompt) for prompt in wanted.prompts] + [tokens_of(url, text) for text in passages]
        for prompt in asked:
            reply, end = greedy(url, prompt, wanted.tokens)
            prompts.append(tuple(prompt))
            replies.append(tuple(reply))
            ended.append(end)
            steps = range(len(reply) + end)
            likely.append(tuple(distribution(url, (*prompt, *reply[:at]), _BASE_TOP, drawn) for at in steps))
    return Standard(wanted.asked(passages), tuple(replies), tuple(ended), tuple(prompts), tuple(likely))


def departure(tools: LlamaCpp, file: Path, base: Standard, *, threads: int) -> Departure:
    """Compare a file with its base. Raises `BadInput` if llama.cpp cannot load it."""
    total, same, positions = 0.0, 0, base.positions
    with served(tools, file, threads=threads) as url:
        drawn = tokens_of(url, "a")[-1]
        for position in positions:
            own = distribution(url, position.before, _FILE_TOP, drawn)
            total += divergence(position.likely, own)
            same += bool(own) and max(own, key=own.__getitem__) == max(position.likely, key=position.likely.__getitem__)
    count = max(1, len(positions))
    return Departure(base.identity, len(positions), total / count, same / count, base.unrelated)
