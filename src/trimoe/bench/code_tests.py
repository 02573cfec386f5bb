"""Scorers of code benches, by the form of their tests.

Each function takes (source, row) pairs and returns one verdict for each, in order. Tests that could not be run leave
the row unscored.
"""

from trimoe.bench.bench import Doc, Verdict
from trimoe.bench.code import humaneval, livecodebench, mbpp, multipl_e
from trimoe.bench.code.languages import language_of
from trimoe.bench.code.verdict import Pairs

check_function = humaneval.score
check_asserts = mbpp.score
check_method = livecodebench.score


def check_program(pairs: Pairs) -> list[Verdict]:
    """MultiPL-E: whole programs. Rows in a language whose toolchain is missing are not scored."""
    languages = {doc.check["language"] for _, doc in pairs}
    here = {key for key in languages if language_of(key).toolchain() is not None}
    judged = iter(multipl_e.score([(source, doc) for source, doc in pairs if doc.check["language"] in here]))
    return [next(judged) if doc.check["language"] in here else _not_run(source, doc) for source, doc in pairs]


def _not_run(source: str, doc: Doc) -> Verdict:
    language = language_of(doc.check["language"])
    return Verdict(None, "harness error", source, f"not run: {language.needs} not found; {language.install}")
