"""MultiPL-E: complete programs in other languages, which must compile, run, and reach the end of their tests.

Candidate and tests are one program in these languages, so an exit status proves nothing: a program could exit with 0
before the first test. A statement that prints a random token is therefore added after the last test, and only a program
that prints the token passes; its other output is ignored. Not prevented: a program written against this harness that
reads its own source or class file to find the token.
"""

import secrets
from collections import defaultdict
from dataclasses import replace

from trimoe.bench.bench import Doc, Verdict
from trimoe.bench.code.environment import environments
from trimoe.bench.code.languages import Language, language_of
from trimoe.bench.code.verdict import Pairs, verdict
from trimoe.errors import MissingPrerequisite
from trimoe.sandbox import Outcome, Program, run_jobs

LIMITS = replace(environments()["multipl-e"].limits, scratch=256 << 20, processes=256, output=1 << 20)


def score(pairs: Pairs) -> list[Verdict]:
    """One verdict per pair. Rows have `language` (rs, java, js) and `tests`, with which the source ends.

    Raises `MissingPrerequisite` if a toolchain is missing: a language that cannot run has no score.
    """
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for place, (_, doc) in enumerate(pairs):
        groups[doc.check["language"]].append(place)
    require_languages(list(groups))
    verdicts: dict[int, Verdict] = {}
    for key, places in groups.items():
        verdicts |= zip(places, _score_language(language_of(key), [pairs[place] for place in places]), strict=True)
    return [verdicts[place] for place in range(len(pairs))]


def require_languages(keys: list[str]) -> None:
    """Raise `MissingPrerequisite` with all missing toolchains."""
    missing = [language_of(key) for key in keys if language_of(key).toolchain() is None]
    if missing:
        raise MissingPrerequisite(
            f"not run: {', '.join(language.name for language in missing)}",
            expected="; ".join(f"{language.name}: {language.needs}" for language in missing),
            actual="not found (see trimoe doctor)",
            remedy="; ".join(language.install for language in missing),
        )


def _score_language(language: Language, pairs: Pairs) -> list[Verdict]:
    toolchain = language.toolchain()
    assert toolchain is not None  # require_languages checked every language before
    tokens = [secrets.token_hex(16) for _ in pairs]
    programs = [_with_end(language, source, doc, token) for (source, doc), token in zip(pairs, tokens, strict=True)]
    runnable = [
        Program({language.file: text, **language.extra}, toolchain.steps, toolchain.env, LIMITS)
        for text in programs
        if text is not None
    ]
    outcomes = iter(run_jobs(runnable, folders=toolchain.folders, proc=True))
    verdicts = []
    for (source, _), token, text in zip(pairs, tokens, programs, strict=True):
        if text is None:
            verdicts.append(Verdict(None, "harness error", source, "the source does not end with the row's tests"))
        else:
            verdicts.append(verdict(judged(language, next(outcomes), token), source))
    return verdicts


def _with_end(language: Language, source: str, doc: Doc, token: str) -> str | None:
    tests = doc.check["tests"]
    return source[: -len(tests)] + language.with_end(tests, token) if source.endswith(tests) else None


def judged(language: Language, outcome: Outcome, token: str) -> Outcome:
    """The outcome in view of the printed output. Pure."""
    if outcome.status == "harness" or not outcome.steps:
        return outcome
    last = outcome.steps[-1]
    if outcome.status == "ok":
        if token in last.out.splitlines():
            return outcome
        return Outcome("error", "ended with status 0 before its tests did", steps=outcome.steps, cpu=outcome.cpu)
    if outcome.status == "error":
        said = last.err.strip() or last.out.strip()
        compiling = len(outcome.steps) < language.commands
        if not compiling and language.out_of_memory.search(last.err):
            return Outcome("memory", _short(said), steps=outcome.steps, cpu=outcome.cpu)
        failed = not compiling and language.failed_test.search(last.err)
        detail = f"{'does not compile' if compiling else outcome.detail}: {_short(said)}"
        return Outcome("wrong" if failed else "error", detail, steps=outcome.steps, cpu=outcome.cpu)
    return outcome


def _short(text: str) -> str:
    return " | ".join(line.strip() for line in text.splitlines() if line.strip())[:300]
