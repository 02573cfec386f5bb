"""IFEval: Google's checkers as lm-eval ships them; every instruction of a prompt must be followed (strict)."""

import contextlib
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from trimoe.bench.bench import Doc, Verdict, verbatim
from trimoe.bench.punkt import provide
from trimoe.bench.rows import Row, View, each, spec_bench
from trimoe.errors import MissingPrerequisite

# These two count with NLTK's tokenizers, whose data comes apart from the package.
NEEDS_PUNKT = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
LETTER = "keywords:letter_frequency"


@dataclass(frozen=True)
class Obedience:
    """Per instruction: followed as the reply stands, and followed by the most favourable trimming of it."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def view(row: Row) -> View:
    """Arguments that are null in the hub's copy are absent in the original; both mean "not given"."""
    given = [{key: value for key, value in one.items() if value is not None} for one in row["kwargs"]]
    check = {"key": row["key"], "prompt": row["prompt"], "instructions": row["instruction_id_list"], "kwargs": given}
    return View({"prompt": row["prompt"]}, check, "")


def score(pairs: Sequence[tuple[str, Doc]]) -> list[Verdict]:
    """Strict verdict per reply; the detail names what was not followed, and says when trimming would have helped."""
    return [_verdict(reply, doc.check) for reply, doc in pairs]


def _verdict(reply: str, check: Mapping[str, Any]) -> Verdict:
    if NEEDS_PUNKT & set(check["instructions"]) and not has_punkt():
        missing = "NLTK's punkt_tab data is missing: pip install 'trimoe[eval]', or nltk.download('punkt_tab')"
        return Verdict(None, "harness error", detail=missing)
    found = obedience(reply, check)
    missed = [name for name, ok in zip(check["instructions"], found.strict, strict=True) if not ok]
    if not missed:
        return Verdict(True, "correct")
    loose = " (followed once the reply is trimmed)" if all(found.loose) else ""
    return Verdict(False, "wrong", detail=f"not followed: {', '.join(missed)}{loose}")


def obedience(reply: str, check: Mapping[str, Any]) -> Obedience:
    """Which instructions of a row a reply follows. The same reply gives the same answer, whatever ran before."""
    with _seeded():
        checkers = [
            _checker(name, given, check["prompt"])
            for name, given in zip(check["instructions"], check["kwargs"], strict=True)
        ]
        strict = tuple(_follows(checker, [reply]) for checker in checkers)
        loose = tuple(_follows(checker, trimmed(reply)) for checker in checkers)
    return Obedience(strict, loose)


def _checker(name: str, given: Mapping[str, Any], prompt: str) -> Any:
    """Google's checker of one instruction with its arguments, set up as lm-eval does.

    The letter checker draws a random letter when the asked one is none ("#", "!": keys 1122 and 1129), so those rows
    were a matter of chance; here it counts the sign that was asked for.
    """
    checker = registry()[name](name)
    checker.build_description(**{key: value for key, value in given.items() if value})
    if "prompt" in (checker.get_instruction_args() or {}):
        checker.build_description(prompt=prompt)
    if name == LETTER and not given["letter"].isalpha():
        checker._letter = given["letter"]
    return checker


def _follows(checker: Any, candidates: Sequence[str]) -> bool:
    return any(text.strip() and checker.check_following(text) for text in candidates)


def trimmed(reply: str) -> list[str]:
    """The reply, and without its first line, its last, or both; each as it is and without asterisks."""
    lines = reply.split("\n")
    cut = [reply, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(text.replace("*", "") for text in cut)]


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Language detection samples; a fixed seed makes it, and whatever draws from `random`, repeatable."""
    from langdetect import DetectorFactory

    state, before = random.getstate(), DetectorFactory.seed
    random.seed(0)
    DetectorFactory.seed = 0
    try:
        yield
    finally:
        random.setstate(state)
        DetectorFactory.seed = before


@cache
def has_punkt() -> bool:
    """Whether the counting checkers can work."""
    return provide()


@cache
def registry() -> Mapping[str, Any]:
    """Checkers by instruction id. Importing them would download punkt_tab, and say on standard output that it did."""
    try:
        has_punkt()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
    except ImportError as exc:
        raise MissingPrerequisite(
            "IFEval needs lm-eval's checkers", actual=str(exc), remedy="pip install 'trimoe[eval]'"
        ) from exc
    return dict(INSTRUCTION_DICT)


BENCH = spec_bench("ifeval_100", each(view), score, extract=verbatim)
