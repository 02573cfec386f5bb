"""Code benches end to end: reference solutions pass, and a missing toolchain never counts as zero."""

from pathlib import Path

import pytest

from trimoe.bench import code_tests
from trimoe.bench.bench import Doc, Verdict
from trimoe.bench.catalog import find


def test_a_language_without_a_toolchain_is_not_run_and_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        needs, install = "rustc", "apt install rustc"

        def toolchain(self) -> None:
            return None

    monkeypatch.setattr(code_tests, "language_of", lambda key: Missing())
    monkeypatch.setattr(code_tests.multipl_e, "score", lambda pairs: [Verdict(True, "correct") for _ in pairs])
    (verdict,) = code_tests.check_program([("fn main() {}", Doc("rs::x", "", "", {"language": "rs"}))])
    assert (verdict.correct, verdict.cause) == (None, "harness error")
    assert "not run: rustc not found" in verdict.detail


@pytest.mark.slow
@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_reference_solutions_pass(name: str, shared: Path) -> None:
    bench = find([name])[0]
    docs = bench.docs(shared / "benchmarks")[:40]
    verdicts = bench.judge([(doc.reference, "stop", doc) for doc in docs])
    assert [(doc.doc_id, v.detail) for doc, v in zip(docs, verdicts, strict=True) if not v.correct] == []
