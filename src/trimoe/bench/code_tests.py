"""Where code benches meet the sandbox: which harness judges which form of tests.

Each function takes (source, row) pairs and gives one verdict each, in order; a test that could not be run is not
scored.
"""

from trimoe.bench.bench import Doc, Verdict
from trimoe.bench.code import humaneval, livecodebench, mbpp, multipl_e
from trimoe.bench.code.languages import language_of
from trimoe.bench.code.verdict import Pairs

check_function = humaneval.score
check_asserts = mbpp.score
check_method = livecodebench.score


def check_program(pairs: Pairs) -> list[Verdict]:
    """MultiPL-E; rows of a language whose toolchain is missing are not scored, the others are."""
    languages = {doc.check["language"] for _, doc in pairs}
    here = {key for key in languages if language_of(key).toolchain() is not None}
    judged = iter(multipl_e.score([(source, doc) for source, doc in pairs if doc.check["language"] in here]))
    return [next(judged) if doc.check["language"] in here else _not_run(source, doc) for source, doc in pairs]


def _not_run(source: str, doc: Doc) -> Verdict:
    language = language_of(doc.check["language"])
    return Verdict(None, "harness error", source, f"not run: {language.needs} not found; {language.install}")
