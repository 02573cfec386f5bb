"""MultiPL-E with real compilers: own solutions pass, wrong ones fail, and an exit status of 0 is not enough."""

import pytest

from helpers.code_rows import Rows
from helpers.solutions import RIGHT_AND_WRONG
from trimoe.bench.bench import Doc, Verdict
from trimoe.bench.code import multipl_e
from trimoe.bench.code.languages import Language, language_of, languages
from trimoe.errors import MissingPrerequisite
from trimoe.sandbox import Outcome, Step

KEYS = sorted(RIGHT_AND_WRONG)


def require(key: str) -> None:
    if language_of(key).toolchain() is None:
        pytest.skip(f"not run: needs {language_of(key).needs} ({language_of(key).install})")


def score(key: str, rows: Rows, bodies: list[tuple[str, str]]) -> list[Verdict]:
    require(key)
    by_name = {row["name"]: row for row in rows(f"multipl_e/humaneval-{key}-reworded.json.gz")}
    pairs = [
        (f"{by_name[name]['prompt']}{body}\n{by_name[name]['tests']}", Doc(name, "", "", by_name[name]))
        for name, body in bodies
    ]
    return multipl_e.score(pairs)


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_right_ones_pass_and_wrong_ones_fail(key: str, rows: Rows) -> None:
    problems = RIGHT_AND_WRONG[key]
    assert len(problems) == 10
    verdicts = score(key, rows, [(name, body) for name, bodies in problems.items() for body in bodies])
    assert [v.cause for v in verdicts] == ["correct", "wrong"] * 10, [v.detail for v in verdicts]


ODD = {
    "rs": {
        "leaves": ("std::process::exit(0)", "code error"),
        "marker": ('println!("ok"); std::process::exit(0)', "code error"),
        "own macro": ("0 }\nmacro_rules! assert_eq { ($($t:tt)*) => {} }\nfn _rest() -> isize { 0", "wrong"),
        "no program": ("return nonsense", "code error"),
        "panics": ('panic!("mine")', "code error"),
        "memory": ("let v: Vec<u8> = vec![1; 1 << 40]; v.len() as isize", "code error"),
    },
    "java": {
        "leaves": ("System.exit(0); return 0;", "code error"),
        "no program": ("return nonsense;", "code error"),
        "throws": ('throw new RuntimeException("mine");', "code error"),
        "memory": ("return new long[1 << 30].length;", "code error"),
    },
    "js": {
        "leaves": ("process.exit(0);\n}", "code error"),
        "patched assertion": ("}\nrequire('node:assert').deepEqual = () => {};", "wrong"),
        "patched strict": ("}\nrequire('assert').strict.deepEqual = require('assert').deepEqual = () => {};", "wrong"),
        "no program": ("return (;\n}", "code error"),
        "throws": ("throw new Error('mine');\n}", "code error"),
        "reads": ("return require('fs').readFileSync('/etc/shadow').length;\n}", "code error"),
        "exit handler": ("}\nprocess.on('uncaughtException', () => process.exit(0));", "code error"),
    },
}


@pytest.mark.parametrize("key", KEYS)
def test_odd_programs_do_not_pass(key: str, rows: Rows) -> None:
    cases = ODD[key]
    verdicts = score(key, rows, [("HumanEval_23_strlen", body) for body, _ in cases.values()])
    assert {n: v.cause for n, v in zip(cases, verdicts, strict=True)} == {n: cause for n, (_, cause) in cases.items()}
    assert not any("memory" in n and not v.detail.startswith("memory") for n, v in zip(cases, verdicts, strict=True))


@pytest.mark.parametrize("key", KEYS)
def test_the_end_mark_stands_behind_the_last_test(key: str, rows: Rows) -> None:
    for row in rows(f"multipl_e/humaneval-{key}-reworded.json.gz"):
        marked = language_of(key).with_end(row["tests"], "the-token")
        asserts = [marked.rfind(word) for word in ("assert_eq!", "assert(", "assert.", "test();")]
        assert max(asserts) < marked.index("the-token"), row["name"]
        assert marked.count("the-token") == 1
        assert marked.count("{") == row["tests"].count("{")


def test_a_source_without_the_row_s_tests_is_our_fault(rows: Rows) -> None:
    require("js")
    row = rows("multipl_e/humaneval-js-reworded.json.gz")[0]
    (verdict,) = multipl_e.score([("console.log(1)", Doc("d", "", "", row))])
    assert (verdict.correct, verdict.cause) == (None, "harness error")


def test_a_missing_toolchain_is_not_run_never_a_zero(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Language, "toolchain", lambda self: None)
    row = rows("multipl_e/humaneval-rs-reworded.json.gz")[0]
    with pytest.raises(MissingPrerequisite, match="not run: Rust"):
        multipl_e.score([("fn main() {}", Doc("d", "", "", row))])
    with pytest.raises(MissingPrerequisite, match="libjavatuples-java"):
        multipl_e.require_languages(["java", "js"])


def test_languages_are_found_by_their_keys() -> None:
    assert sorted(languages()) == KEYS
    with pytest.raises(KeyError):
        language_of("cobol")


NEW_PANIC = "thread 'main' panicked at main.rs:9:5:\nassertion `left == right` failed"
OLD_PANIC = "thread 'main' panicked at 'assertion failed: `(left == right)`\n"  # before Rust 1.73


def ran(exit_status: int, err: str = "", out: str = "") -> tuple[Step, ...]:
    """A program that compiled and ended so."""
    return Step(0), Step(exit_status, out, err)


@pytest.mark.parametrize(
    ("outcome", "status", "word"),
    [
        (Outcome("ok", steps=ran(0, out="x\ntoken\n")), "ok", ""),
        (Outcome("ok", steps=ran(0, out="xtoken")), "error", "before its tests"),
        (Outcome("error", steps=(Step(1, err="error: expected `;`"),)), "error", "does not compile"),
        (Outcome("error", steps=ran(101, NEW_PANIC)), "wrong", "assertion"),
        (Outcome("error", steps=ran(101, OLD_PANIC)), "wrong", "assertion"),
        (Outcome("error", steps=ran(101, "thread 'main' panicked at 'mine', main.rs:3")), "error", "mine"),
        (Outcome("error", steps=ran(-6, "memory allocation of 99 bytes failed")), "memory", "99"),
        (Outcome("timeout", "more"), "timeout", "more"),
        (Outcome("harness", "lost"), "harness", "lost"),
    ],
)
def test_what_a_rust_program_s_end_means(outcome: Outcome, status: str, word: str) -> None:
    judged = multipl_e.judged(language_of("rs"), outcome, "token")
    assert (judged.status, word in judged.detail) == (status, True), judged
