"""The audit: every flag fires on what it is for, and on nothing else; recorded runs of the reference; hostile text."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from trimoe.bench.bench import Doc, Verdict
from trimoe.cli.audit import audit as command
from trimoe.cli.compare import compare
from trimoe.cli.log import log_group
from trimoe.errors import BadInput, Refused, UsageError
from trimoe.evaluate.log.export import rows
from trimoe.evaluate.log.export import rows as rows_of_log
from trimoe.evaluate.log.records import Result, Sample
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.recorded.importing import import_samples
from trimoe.judge.audit.audit import AuditOptions, audit, audit_runs
from trimoe.judge.audit.result import RunAudit
from trimoe.judge.audit.rules import rules
from trimoe.judge.audit.run_checks import run_checks
from trimoe.judge.measures import foreign_share, measure, solution

Reply = tuple[str, bool | None]
GOOD = "The function walks over the list once and keeps the largest sum that it has seen so far, number {}."


def put(
    path: Path,
    replies: Sequence[Reply],
    name: str = "m",
    bench: str = "b",
    rows: int | None = None,
    finish: str = "stop",
    counted: bool = False,
    **sampler: Any,
) -> None:
    """A run of these replies; a miss is `wrong`, or `empty` when nothing was said."""
    with RunLog(path) as log:
        spec = {"name": bench, "rows": rows or len(replies), "max_new_tokens": 9000}
        run = log.start(name, bench, spec, f"hash of {name}", sampler, {})
        made = []
        for i, (reply, right) in enumerate(replies):
            cause = "correct" if right else "harness error" if right is None else "wrong" if reply else "empty"
            tokens = len(reply) // 4 if counted else 10
            made.append((Sample(f"d{i}", i, f"question {i}", reply, finish, 9, tokens), Verdict(right, cause)))
        log.add(run, made, 1)


def good(n: int = 40, right: int = 30) -> list[Reply]:
    return [(GOOD.format(i), i < right) for i in range(n)]


def one(path: Path, **wanted: Any) -> RunAudit:
    (made,) = audit_runs(path, AuditOptions(**wanted))
    return made


def test_a_clean_run_is_publishable_with_a_row_for_every_check(tmp_path: Path) -> None:
    put(tmp_path / "r.db", good())
    made = one(tmp_path / "r.db")
    assert (made.verdict, made.flags, made.score) == ("publishable", ("CLEAN",), 0.75)
    assert {c.flag for c in made.checks if c.level == "not checked"} == {"LEAK", "MARKS"}
    assert len([c for c in made.checks if c.level == "ok"]) == 14
    assert [f[1] for f in made.measures.failures] == ["wrong"] * 10


LONG = "A very long reply. " + " ".join(f"word{i}" for i in range(3000))
LOOP = "so the answer is that " * 60


@pytest.mark.parametrize(
    ("replies", "flags", "verdict"),
    [
        ([("", False)] * 3 + good(57), {"EMPTY_SOME"}, "notes"),
        ([("", False)] * 4 + good(56), {"EMPTY", "EMPTY_FAIL"}, "refused"),
        ([("no", False)] * 4 + good(56), {"EMPTY_FAIL"}, "refused"),
        ([("yes", True)] * 8 + good(52), {"TOO_SHORT"}, "refused"),
        ([("x" * 30_100 + str(i), True) for i in range(20)], {"TOO_LONG", "SAT_COLLAPSE"}, "refused"),
        ([("", None), *good(59)], {"UNSCORED_SOME"}, "notes"),  # never answered: not an empty reply
        ([("", True)] * 4 + good(56), {"CLEAN"}, "publishable"),  # the answer stood in the reasoning
        ([(GOOD, None), *good(59)], {"UNSCORED_SOME"}, "notes"),
        ([(GOOD + str(i), None) for i in range(4)] + good(56), {"UNSCORED"}, "refused"),
        (good(40, 0), {"ZERO"}, "refused"),
        ([(f"{i} {LONG}", True) for i in range(5)] + good(35), {"SAT_COLLAPSE"}, "refused"),
        ([(LOOP, False), *good(59)], {"LOOP"}, "notes"),
        ([(GOOD + " <|channel>thought", True), *good(59)], {"MARKERS"}, "refused"),
        (
            [("Ответ на этот вопрос очень простой и понятный, он равен сорока двум.", True), *good(59)],
            {"LANGUAGE_SOME"},
            "notes",
        ),
        ([(f"答案是四十二因为问题的解法很简单{i}" * 6, True) for i in range(4)] + good(56), {"LANGUAGE"}, "refused"),
        ([(GOOD.format("one"), True)] * 2 + good(98), {"DUPLICATES_SOME"}, "notes"),
        ([(GOOD.format("one"), True)] * 2 + good(50), {"DUPLICATES"}, "refused"),
    ],
)
def test_every_flag_fires_alone(replies: list[Reply], flags: set[str], verdict: str, tmp_path: Path) -> None:
    put(tmp_path / "r.db", replies, bench="gsm8k-100")
    made = one(tmp_path / "r.db")
    assert (set(made.flags), made.verdict) == (flags, verdict)
    for check in made.checks:
        if check.flag in flags - {"CLEAN", "ZERO", "TOO_SHORT", "TOO_LONG"}:
            assert check.docs, check


def test_short_answers_of_a_bench_that_is_not_shipped_are_only_noted(tmp_path: Path) -> None:
    put(tmp_path / "r.db", [("billing", i % 3 > 0) for i in range(60)], bench="tickets:smoke")
    made = one(tmp_path / "r.db")
    assert (made.verdict, set(made.flags)) == ("notes", {"EMPTY_FAIL", "TOO_SHORT"})
    assert all("not a shipped one" in c.text for c in made.checks if c.level == "notes")
    (tmp_path / "r.db").unlink()
    put(tmp_path / "r.db", [("", False)] * 4 + [("billing", True)] * 56, bench="tickets")
    assert one(tmp_path / "r.db").verdict == "refused", "empty is empty on any bench"


def test_partial_length_stops_and_short_answers(tmp_path: Path) -> None:
    put(tmp_path / "part.db", good(), rows=80)
    assert one(tmp_path / "part.db").flags == ("PARTIAL",)
    put(tmp_path / "cut.db", good(), finish="length")
    assert one(tmp_path / "cut.db").flags == ("LENGTH_STOPS", "CAPPED"), "cut below the cap: at the context"
    put(tmp_path / "unknown.db", good(), finish="")
    assert "LENGTH_STOPS" in {c.flag for c in one(tmp_path / "unknown.db").checks if c.level == "not checked"}
    put(tmp_path / "tiny.db", [(str(i), i % 2 == 0) for i in range(40)], bench="tiny-math")
    assert one(tmp_path / "tiny.db").verdict == "publishable"


def test_a_pile_up_at_the_cap_says_what_it_costs_at_most(tmp_path: Path) -> None:
    put(tmp_path / "r.db", [(f"{i} " + "ab cd " * 6000, False) for i in range(2)] + good(98), counted=True, finish="")
    check = next(c for c in one(tmp_path / "r.db").checks if c.flag == "CAPPED")
    assert (check.level, check.value) == ("notes", pytest.approx(2.0))


def test_scripts_of_the_prompt_are_at_home() -> None:
    scripts = rules().texts.scripts
    assert foreign_share("Это ответ", "Переведи", scripts) == 0.0
    assert foreign_share("Это ответ", "Translate", scripts) == 1.0
    assert foreign_share("α + β = naïve", "Solve", scripts) == 0.0


def test_a_pair_is_held_together(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    put(path, good(100, 80), "base")
    put(path, good(100, 70), "dumber")
    put(path, [(f"{i} {LOOP}", i > 2) for i in range(5)] + good(100, 82)[5:], "loops")
    put(path, [(GOOD.format("x" * 400 + str(i)), i < 80) for i in range(100)], "wordy")
    put(path, [(f"{i} {LONG}", True) for i in range(8)] + good(100, 80)[8:], "wide")
    put(path, good(100, 80), "warm", temperature=1)

    def flags(name: str, base: str = "base") -> set[str]:
        return set({a.name: a for a in audit(path, pair=(base, name))}[name].flags)

    assert flags("dumber") == {"KNOWLEDGE_SHIFT"}
    assert flags("loops") == {"LOOP", "LOOP_REGRESSION"}
    assert flags("wordy") == {"LEN_BLOAT"}
    assert flags("wide") == {"SAT_WARN"}
    assert flags("base", "wide") == {"CLEAN"}
    put(path, [(r, ok and i > 2) for i, (r, ok) in enumerate(good(100, 80))], "traded")
    assert flags("traded", "wide") == {"CLEAN_TRADE"}
    with pytest.raises(Refused, match="differ in engine, sampler or stack") as error:
        audit(path, pair=("base", "warm"))
    assert "temperature" in error.value.actual
    with pytest.raises(UsageError, match="no run named none"):
        audit(path, pair=("base", "none"))


def test_a_reference_that_moved_takes_the_others_with_it(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    put(path, good(), "base")
    put(path, good(), "cut")
    put(path, good(), "elsewhere", engine="other")
    moved = {a.name: a.verdict for a in audit(path, recorded={"base": {"b": 80}})}
    assert moved == {"base": "refused", "cut": "refused", "elsewhere": "publishable"}
    assert {a.verdict for a in audit(path, recorded={"base": {"b": 77}})} == {"publishable"}


def test_leaks_are_reported_with_the_score_without_them(tmp_path: Path) -> None:
    put(tmp_path / "r.db", good())

    def checked(overlapping: list[str], undeclared: list[str]) -> RunAudit:
        row = {"items": 40, "unchecked": 0, "overlapping": overlapping, "undeclared": undeclared}
        return one(tmp_path / "r.db", leaks={"benches": {"b": row}})

    assert checked([], []).flags == ("CLEAN",)
    assert checked(["d0"], []).flags == ("LEAK_DECLARED",)
    some = checked([f"d{i}" for i in range(10)], ["d0"])
    assert (some.flags, some.verdict) == (("LEAK_SOME",), "notes")
    assert "66.7 % of 30" in next(c.text for c in some.checks if c.flag == "LEAK_SOME")
    assert checked(["d0", "d1", "d2"], ["d0", "d1", "d2"]).verdict == "refused"
    row = {
        "items": 40,
        "unchecked": 0,
        "overlapping": [],
        "undeclared": [],
        "boilerplate": [f"d{i}" for i in range(30)],
    }
    common = one(tmp_path / "r.db", leaks={"benches": {"b": row}})
    assert (common.flags, common.verdict) == (("CLEAN",), "publishable")
    assert any("30 others share only words common" in c.text for c in common.checks)


def test_humaneval_to_its_plus(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    put(path, good(164, 160), bench="humaneval")
    put(path, good(164, 152), bench="humaneval-plus")
    made = {a.bench: a for a in audit(path)}["humaneval"]
    assert made.flags == ("CLEAN",)
    assert next(c.value for c in made.checks if c.flag == "NO_PLUS_DROP") == pytest.approx(-100 * 8 / 164)
    put(path, good(164, 160), "same", bench="humaneval")
    put(path, good(164, 160), "same", bench="humaneval-plus")
    assert audit(path, name="same")[0].flags == ("NO_PLUS_DROP",)


def test_replies_that_repeat_the_own_solution(tmp_path: Path) -> None:
    """The solution counts without its prompt and fence, as it would stand in a reply."""
    prompt = 'def double(x):\n    """Twice x."""\n'
    body = "    result = x + x\n    return result"
    doc = Doc("d0", "question 0", f"```python\n{prompt}{body}\n```", {"prompt": prompt})
    assert solution(doc) == body.strip()
    put(tmp_path / "r.db", [(f"```python\n{prompt}{body}\n", True), (f"{prompt}    return 2 * x", True)], bench="mbpp")
    with RunLog(tmp_path / "r.db") as log:
        (run,) = log.runs()
        docs = {f"d{i}": replace(doc, doc_id=f"d{i}") for i in range(2)}
        found = measure(run, log.samples(run), rules().of("mbpp"), rules().texts, docs)
    assert found.verbatim == ("d0",)
    checks = run_checks(run, [], found, rules().of("mbpp"), rules(), None, True)
    assert next(c for c in checks if c.flag == "VERBATIM").level == "notes"
    assert "VERBATIM" in {c.flag for c in one(tmp_path / "r.db").checks if c.level == "not checked"}


def test_a_reply_that_stopped_by_itself_near_the_cap_was_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with RunLog(path) as log:
        run = log.start("m", "tiny-choice", {"rows": 40, "max_new_tokens": 2000}, "h", {}, {})
        log.add(
            run,
            [
                (
                    Sample(f"d{i}", i, f"q{i}", f"({i})", "length" if i < 2 else "stop", 1, 1990),
                    Verdict(i > 5, "correct" if i > 5 else "wrong"),
                )
                for i in range(40)
            ],
            1,
        )
    check = next(c for c in one(path).checks if c.flag == "CAPPED")
    assert (check.level, check.value) == ("notes", pytest.approx(5.0))


@pytest.mark.slow
def test_the_recorded_runs_of_the_reference(shared: Path, tmp_path: Path) -> None:
    """HumanEval: 49 of 82 replies are empty, so 40.2 % is no score of the model. ARC is sound."""
    log = tmp_path / "r.db"
    folder = shared / "reference" / "omnimergekit-data" / "eval_samples"
    import_samples(folder / "humaneval.samples.jsonl.gz", "humaneval", log)
    import_samples(folder / "arc_challenge.samples.jsonl.gz", "arc-challenge", log)
    done = CliRunner().invoke(
        command, [str(log), "--data", str(shared / "benchmarks"), "--json"], standalone_mode=False
    )
    body = json.loads(done.stdout)
    he, arc = body["runs"]
    assert (he["bench"], he["verdict"], he["n"], he["empty"], he["fenced"]) == ("humaneval", "refused", 82, 49, 33)
    assert (arc["bench"], arc["verdict"]) == ("arc-challenge", "notes")
    empty = next(c for c in he["checks"] if c["flag"] == "EMPTY")
    assert (empty["level"], len(empty["docs"])) == ("refused", 49)
    assert {f["cause"] for f in he["failures"]} == {"empty"}
    text = CliRunner().invoke(command, [str(log)])
    assert "49 of 82 replies are empty" in text.stdout
    assert done.return_value == 1


def test_output_is_hostile(tmp_path: Path) -> None:
    evil = "\x1b[2J\u202e\x07[red]"
    with RunLog(tmp_path / "r.db") as log:
        run = log.start(evil, "b", {"rows": 1}, "h", {}, {})
        log.add(run, [(Sample(evil, 0, "q", "r" * 70, "stop", 1, 1), Verdict(False, "wrong", None, evil))], 1)
    text = CliRunner().invoke(command, [str(tmp_path / "r.db")]).stdout
    assert "\\x1b[2J\\u202e\\x07[red]" in text
    assert all(c.isprintable() or c == "\n" for c in text)


def test_exit_codes_and_bad_input(tmp_path: Path) -> None:
    from trimoe.cli.main import main

    put(tmp_path / "good.db", good())
    put(tmp_path / "bad.db", good(40, 0))
    assert main(["audit", str(tmp_path / "good.db")]) == 0
    assert main(["audit", str(tmp_path / "bad.db")]) == 1
    assert main(["audit", str(tmp_path / "good.db"), "--run", "none"]) == 2
    wrong = tmp_path / "recorded.json"
    wrong.write_text('{"base": {"b": 120}}')
    assert main(["audit", str(tmp_path / "good.db"), "--recorded", str(wrong)]) == 3
    mine = tmp_path / "rules.toml"
    mine.write_text("version = 1\nsurprise = 2\n")
    with pytest.raises(BadInput, match="rules"):
        rules(mine)


def mark(path: Path, *events: tuple[str, dict[str, Any]], left: int = 0) -> None:
    """What eval notes of how the run was made."""
    with RunLog(path) as log:
        (run,) = log.runs()
        for kind, detail in events:
            log.event(run, kind, **detail)
        if left:
            log.conclude(run, Result(40, 1, 30, 40 - left, left, 0.75, 0.1, {}))


SAFE = {"sandbox": {"engine": "namespaces"}, "missing": 40, "preflight": {"context": {"status": "ok"}}}


@pytest.mark.parametrize(
    ("events", "left", "flag", "shown"),
    [
        ([("asking", {**SAFE, "preflight": False})], 0, "NO_PREFLIGHT", "no preflight"),
        ([("generating", {**SAFE, "sandbox": {"engine": "none"}})], 0, "NO_SANDBOX", "no sandbox"),
        ([("asking", SAFE), ("rescoring", {"sandbox": {"engine": "none"}})], 0, "NO_SANDBOX", "no sandbox"),
        ([("asking", SAFE), ("guard overruled", {"guard": "zero"})], 0, "GUARD_IGNORED", "guard zero ignored"),
        (
            [("asking", {**SAFE, "preflight": {"context": {"status": "unverified"}}})],
            0,
            "UNVERIFIED",
            "context unverified",
        ),
        ([("asking", SAFE)], 2, "LEFT_OUT", "2 unscored rows left out"),
    ],
)
def test_what_was_switched_off_is_a_note_and_stands_in_every_table(
    events: list[tuple[str, dict[str, Any]]], left: int, flag: str, shown: str, tmp_path: Path
) -> None:
    path = tmp_path / "r.db"
    put(path, good(), engine="llamacpp")
    mark(path, *events, left=left)
    made = one(path)
    assert (made.verdict, made.flags) == ("notes", (flag,))
    assert shown in next(c for c in made.checks if c.flag == flag).text
    runner = CliRunner()
    text = runner.invoke(compare, [str(path)]).stdout
    assert f"! m on b: {shown}" in text
    assert "75.0 !" in text
    assert f"m on b: {shown}" in runner.invoke(compare, [str(path), "--format", "markdown"]).stdout
    assert runner.invoke(compare, [str(path), "--format", "csv"]).stdout.splitlines()[1].endswith(f",{shown}")
    assert json.loads(runner.invoke(compare, [str(path), "--json"]).stdout)["rows"][0]["marks"] == [shown]
    with RunLog(path, create=False) as log:
        assert next(iter(rows(log)))["run_marks"] == [shown]


def test_a_checked_run_says_so_and_a_rerun_of_nothing_marks_nothing(tmp_path: Path) -> None:
    put(tmp_path / "r.db", good())
    mark(tmp_path / "r.db", ("asking", SAFE), ("asking", {**SAFE, "missing": 0, "preflight": False}))
    made = one(tmp_path / "r.db")
    assert (made.verdict, next(c.level for c in made.checks if c.flag == "MARKS")) == ("publishable", "ok")


def test_a_loop_in_the_reasoning_is_a_loop(tmp_path: Path) -> None:
    put(tmp_path / "r.db", good(), rows=41)
    with RunLog(tmp_path / "r.db") as log:
        (run,) = log.runs()
        thought = Sample("t", 99, "question t", GOOD.format("t"), "stop", 9, 10, reasoning=LOOP)
        log.add(run, [(thought, Verdict(True, "correct"))], 1)
    made = one(tmp_path / "r.db")
    assert (made.flags, made.measures.loops) == (("LOOP",), ("t",))


def test_a_statement_that_disagrees_is_counted_and_listed(tmp_path: Path) -> None:
    rows = [
        (r"Option (A) is out, (C) too. \boxed{B}", "B"),
        ("The answer is (D).", "D"),
        ("Compound (I) reacts with (X). Answer: B", "B"),
    ]
    options = ["one thing", "another thing", "a third thing", "nothing of this"]
    path = tmp_path / "samples.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "doc_id": place,
                    "doc": {"Question": "Which?", "choices": options, "answer": f"({gold})"},
                    "arguments": {},
                    "resps": [[reply]],
                    "filtered_resps": [f"({gold})"],
                    "filter": "flexible-extract",
                    "exact_match": 0.0,
                }
            )
            + "\n"
            for place, (reply, gold) in enumerate(rows)
        )
    )
    log = tmp_path / "runs.db"
    runner = CliRunner()
    arguments = ["import", str(path), "--from", "lm-eval", "--bench", "gpqa-diamond", "--log", str(log)]
    shown = runner.invoke(log_group, arguments)
    assert "2 state another final answer" in shown.output, shown.output
    (one,) = audit(log)
    (check,) = (check for check in one.checks if check.flag == "STATED")
    assert (check.level, check.docs, "STATED" in one.flags) == ("notes", ("0", "2"), True)
    assert "2 state another final answer" in runner.invoke(compare, [str(log)]).output
    with RunLog(log, create=False) as opened:
        assert {"2 state another final answer"} <= {mark for row in rows_of_log(opened) for mark in row["run_marks"]}


def test_verdicts_of_a_version_without_a_second_opinion_are_not_checked(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    put(path, good(), bench="gpqa-diamond")  # by scorer 1
    (one,) = audit(path)
    assert [c.level for c in one.checks if c.flag == "STATED"] == ["not checked"]
