"""Regular expressions of bench files, run on replies of any length with a time limit.

The patterns are written by users, and a degenerate reply (a model that loops on one character) makes a careless pattern
take quadratic or exponential time. The module `regex` reads Python's syntax and can be stopped; `re` cannot.
"""

from collections.abc import Sequence

import regex

from trimoe.errors import BenchError

SECONDS = 10.0  # for one pattern on one reply; honest patterns take milliseconds


class SlowPattern(BenchError):
    """A pattern did not finish on a reply. The sample is not scored: nothing was learned about its answer."""


def refusal(pattern: str) -> str | None:
    """Why a text is not a regular expression; None if it is one."""
    try:
        regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as exc:
        return str(exc)
    return None


class Pattern:
    """A compiled pattern. Its methods raise `SlowPattern` after `SECONDS`."""

    def __init__(self, pattern: str) -> None:
        self._compiled = regex.compile(pattern)

    def texts(self, reply: str) -> list[str]:
        """Every match without surrounding white space: its first non-empty group, or all of it without groups."""
        found = []
        try:
            for match in self._compiled.finditer(reply, timeout=SECONDS):
                groups: Sequence[str | None] = match.groups()
                text = next(filter(None, groups), "") if self._compiled.groups else match.group()
                found.append(text.strip())
        except TimeoutError as exc:
            raise self._slow(reply) from exc
        return found

    def remove(self, text: str) -> str:
        """The text without the matches."""
        try:
            return str(self._compiled.sub("", text, timeout=SECONDS))
        except TimeoutError as exc:
            raise self._slow(text) from exc

    def _slow(self, text: str) -> SlowPattern:
        return SlowPattern(
            f"the pattern {self._compiled.pattern[:80]!r} took too long on a text of {len(text):,} characters",
            expected=f"at most {SECONDS:g} s",
            remedy="correct the pattern in [answer]: give every repetition a bound, such as {0,9} in place of *",
        )
