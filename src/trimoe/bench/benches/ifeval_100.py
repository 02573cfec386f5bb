"""IFEval: Google's checkers as shipped with lm-eval. Every instruction of a prompt must be followed (strict)."""

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

# These two need NLTK's tokenizers, whose data is not part of the package.
NEEDS_PUNKT = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
LETTER = "keywords:letter_frequency"


@dataclass(frozen=True)
class Obedience:
    """Per instruction: followed by the unchanged reply, and by its most favourable trimming."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def view(row: Row) -> View:
    """A row. Arguments that are null in the hub's copy and absent in the original both count as not given."""
    given = [{key: value for key, value in one.items() if value is not None} for one in row["kwargs"]]
    check = {"key": row["key"], "prompt": row["prompt"], "instructions": row["instruction_id_list"], "kwargs": given}
    return View({"prompt": row["prompt"]}, check, "")


def score(pairs: Sequence[tuple[str, Doc]]) -> list[Verdict]:
    """Strict verdicts. The detail names instructions that were not followed, and whether trimming would have helped."""
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
    """Which instructions of a row a reply follows. Deterministic: the result does not depend on earlier calls."""
    with _seeded():
        checkers = [
            _checker(name, given, check["prompt"])
            for name, given in zip(check["instructions"], check["kwargs"], strict=True)
        ]
        strict = tuple(_follows(checker, [reply]) for checker in checkers)
        loose = tuple(_follows(checker, trimmed(reply)) for checker in checkers)
    return Obedience(strict, loose)


def _checker(name: str, given: Mapping[str, Any], prompt: str) -> Any:
    """Google's checker of one instruction with its arguments, set up as in lm-eval.

    For characters that are not letters ("#" and "!" in keys 1122 and 1129), Google's letter checker draws a random
    letter, which makes those rows random; here it counts the requested character.
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
    """The reply whole, without its first line, its last, and both; each unchanged and without asterisks."""
    lines = reply.split("\n")
    cut = [reply, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(text.replace("*", "") for text in cut)]


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Fix the seed of language detection and of `random`, which the checkers use."""
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
    """Whether NLTK's data for the counting checkers is available."""
    return provide()


@cache
def registry() -> Mapping[str, Any]:
    """Checkers by instruction id. `has_punkt` comes first, because importing them would download punkt_tab."""
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
