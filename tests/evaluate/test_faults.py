"""Every fault of a server: it is recorded under the right cause and never scored, and resuming completes the run."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.evaluation import run_endpoint
from helpers.fault_server import BREAKS, MODEL, SHAPES, STATUS, FaultServer
from trimoe.bench.bench import Doc, Verdict
from trimoe.bench.catalog import find
from trimoe.cli.eval import eval_
from trimoe.cli.parts.live import cells
from trimoe.errors import Refused, RunLogError
from trimoe.evaluate.log.records import Sample, Scored
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.log.summary import RunSummary
from trimoe.evaluate.request_limits import RequestLimits
from trimoe.evaluate.tally import Tally
from trimoe.serve.probe import connect

BENCH = "tiny-choice"
QUICK = RequestLimits(concurrency=4, timeout_s=20, deadline_s=60, retries=3, backoff_s=0.01)
OFF = ("empty", "length", "marker", "short", "zero", "abort", "errors")


def docs(count: int) -> list[Doc]:
    return find([BENCH])[0].docs()[:count]


def server(count: int, faults: Sequence[Sequence[str]] = (), delay: float = 0.0) -> FaultServer:
    """A server that answers the first `count` rows correctly, except for the given faults of the first ones."""
    rows = docs(count)
    script = {doc.prompt: steps for doc, steps in zip(rows, faults, strict=False)}
    return FaultServer({doc.prompt: doc.reference for doc in rows}, script, delay=delay)


def run(
    at: FaultServer, log: Path, count: int, request_limits: RequestLimits = QUICK, ignore: Sequence[str] = OFF
) -> RunSummary:
    endpoint = connect(at.url)
    (summary,) = run_endpoint(
        endpoint, [BENCH], log, limit=count, name="m", request_limits=request_limits, ignore_guards=ignore
    )
    return summary


def stored(log: Path) -> list[Scored]:
    with RunLog(log, create=False) as opened:
        assert opened.verify() == []
        return [scored for one in opened.runs() for scored in opened.samples(one)]


# Behaviours that give a valid reply: correct, cause, whether it was read from the reasoning
READ = {
    "right": (True, "correct", False),
    "null, reasoning_content": (True, "correct", True),
    "empty, reasoning_content": (True, "correct", True),
    "null, reasoning": (True, "correct", True),
    "blank, reasoning": (True, "correct", True),
    "both": (True, "correct", False),
    "half-open": (True, "correct", True),
    "half-open in content": (True, "correct", False),
    "nothing": (False, "empty", False),
    "null": (False, "empty", False),
    "wrong": (False, "extraction failed", False),
    "only thoughts": (False, "reasoning-only", True),
    "parts": (True, "correct", False),
    "slot cut": (False, "truncated (slot)", False),
    "at cap": (False, "truncated (cap)", False),
    "stopped at cap": (False, "truncated (cap)", False),
    "slow": (True, "correct", False),
}
# Behaviours that fail permanently, and the kind of fault
FAILS = {
    "wrong model": "wrong model",
    "slot overflow": "slot overflow",
    "401": "refused",
    "cap ignored": "cap ignored",
    "no choices": "invalid reply",
    "error with 200": "invalid reply",
    "number": "invalid reply",
    "odd finish": "invalid reply",
    "null finish": "invalid reply",
    "filtered": "invalid reply",
    "invalid JSON": "invalid reply",
    "half JSON": "invalid reply",
    "429": "overloaded",
    "500": "server error",
    "502": "server error",
    "reset": "connection",
    "reset at once": "connection",
    "hang": "timeout",
}
PASSING = ("invalid reply", "overloaded", "server error", "connection", "timeout")


def test_every_behaviour_is_tested() -> None:
    assert {*READ, *FAILS, "duplicate id", "restarted"} == {*SHAPES, *STATUS, *BREAKS}


def test_what_is_read_and_why_it_missed(tmp_path: Path) -> None:
    log = tmp_path / "runs.db"
    with server(len(READ), [[name] for name in READ]) as at:
        summary = run(at, log, len(READ))
        assert set(at.asked.values()) == {1}
        assert run(at, log, len(READ)) == summary
        assert set(at.asked.values()) == {1}  # nothing is requested twice
    found = {
        name: (s.verdict.correct, s.verdict.cause, s.sample.fallback) for name, s in zip(READ, stored(log), strict=True)
    }
    assert found == READ
    assert summary.errors == 0
    assert summary.score == sum(correct for correct, _, _ in READ.values()) / len(READ)
    by_name = dict(zip(READ, stored(log), strict=True))
    assert "thinking was opened and never closed" in by_name["half-open"].sample.marks
    assert any("<think>" in mark for mark in by_name["half-open in content"].sample.marks)
    assert by_name["null, reasoning"].sample.reasoning_field == "reasoning"
    assert by_name["both"].sample.reasoning == "nonsense"
    assert any("read from the reasoning" in mark for mark in summary.marks)


def test_a_fault_is_no_score_and_resuming_completes(tmp_path: Path) -> None:
    log, tries = tmp_path / "runs.db", QUICK.retries + 1
    steps = [[name] * tries + ["right"] if kind in PASSING else [name, "right"] for name, kind in FAILS.items()]
    hasty = replace(QUICK, timeout_s=1.0)
    with server(len(FAILS), steps) as at:
        first = run(at, log, len(FAILS), hasty)
        assert (first.score, first.errors, first.unscored) == (None, len(FAILS), len(FAILS))
        assert first.causes == {"harness error": len(FAILS)}
        failed = stored(log)
        assert {n: s.sample.error for n, s in zip(FAILS, failed, strict=True)} == FAILS
        assert all(s.verdict.correct is None and s.verdict.detail for s in failed)
        rows = docs(len(FAILS))
        for doc, kind in zip(rows, FAILS.values(), strict=True):
            assert at.asked[doc.prompt] == (tries if kind in PASSING else 1), kind
        second = run(at, log, len(FAILS), hasty)
        assert (second.score, second.errors, second.causes) == (1.0, 0, {"correct": len(FAILS)})
        with RunLog(log, create=False) as opened:
            (one,) = opened.runs()
            for doc, kind in zip(rows, FAILS.values(), strict=True):
                outcomes = [a.outcome for _, a in opened.attempts(one, doc.doc_id)]
                assert outcomes == [kind] * (tries if kind in PASSING else 1) + ["reply"]
            assert [(r.score, r.errors) for r in opened.results(one)] == [(1.0, 0)]


@pytest.mark.parametrize("fault", [name for name, kind in FAILS.items() if kind in PASSING and name != "hang"])
def test_a_transient_fault_costs_only_an_attempt(tmp_path: Path, fault: str) -> None:
    log = tmp_path / "runs.db"
    with server(3, [[fault, fault, "right"]]) as at:
        summary = run(at, log, 3)
        assert (summary.score, summary.errors) == (1.0, 0)
        assert sorted(at.asked.values()) == [1, 1, 3]


def test_a_reply_that_hangs_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    log = tmp_path / "runs.db"
    with server(2, [["hang"]]) as at:
        summary = run(at, log, 2, replace(QUICK, timeout_s=0.5, deadline_s=1.2, retries=8))
        assert (summary.errors, summary.correct, summary.score) == (1, 1, None)
        assert {s.sample.error for s in stored(log)} == {"deadline", ""}


def test_a_duplicate_id_is_found(tmp_path: Path) -> None:
    log = tmp_path / "runs.db"
    with server(4, [["duplicate id", "right"], ["duplicate id", "right"]]) as at:
        first = run(at, log, 4)
        assert (first.errors, first.correct, first.score) == (1, 3, None)
        assert sorted(s.sample.error for s in stored(log)) == ["", "", "", "duplicate id"]
        assert run(at, log, 4).score == 1.0
        assert sorted(at.asked.values()) == [1, 1, 1, 2]


def test_a_server_restarted_with_other_settings_stops_the_run(tmp_path: Path) -> None:
    log = tmp_path / "runs.db"
    with server(20, [["right"]] * 6 + [["restarted", "right"]], delay=0.02) as at:
        with pytest.raises(Refused, match="context was 4096, is 2048"):
            run(at, log, 20)
        kept = stored(log)
        assert 4 <= len(kept) < 20
        assert all(s.verdict.correct for s in kept)
        with pytest.raises(RunLogError, match="another run of tiny-choice named m"):
            run(at, log, 20)  # the new settings are another run
        at.settings = {"build_info": "b1", "n_ctx": 4096}
        summary = run(at, log, 20)
        assert (summary.n, summary.score, summary.errors) == (20, 1.0, 0)
        kept_prompts = {s.sample.prompt for s in kept}
        assert len(kept_prompts) == len(kept)
        assert all(at.asked[prompt] == 1 for prompt in kept_prompts)


def test_a_slow_server_is_only_slow(tmp_path: Path) -> None:
    with server(4, [["slow"]] * 4, delay=0.05) as at:
        summary = run(at, tmp_path / "runs.db", 4)
    assert (summary.score, summary.errors) == (1.0, 0)


def test_requests_at_once_are_bounded(tmp_path: Path) -> None:
    with server(24, delay=0.02) as at:
        run(at, tmp_path / "runs.db", 24, replace(QUICK, concurrency=5))
        assert 2 <= at.busiest <= 5
        body = at.bodies[0]
        assert (body["model"], body["temperature"], body["stream"]) == (MODEL, 0.0, False)
        assert body["max_tokens"] == find([BENCH])[0].max_new_tokens


def test_retry_after_is_respected(tmp_path: Path) -> None:
    with server(2, [["429", "right"]]) as at:
        at.retry_after = "1"
        run(at, tmp_path / "runs.db", 2)
    with RunLog(tmp_path / "runs.db", create=False) as log:
        (one,) = log.runs()
        first, second = [a for _, a in log.attempts(one, docs(1)[0].doc_id)]

    waited = datetime.fromisoformat(second.started) - datetime.fromisoformat(first.started)
    assert waited.total_seconds() >= 1


def test_errors_can_be_excluded(tmp_path: Path) -> None:
    log = tmp_path / "runs.db"
    with server(4, [["401"]]) as at:
        assert run(at, log, 4).score is None
        (summary,) = run_endpoint(
            connect(at.url), [BENCH], log, limit=4, name="m", request_limits=QUICK, exclude_errors=True
        )
    assert (summary.score, summary.errors, summary.n) == (1.0, 1, 4)
    assert "1 unscored rows left out" in summary.marks
    assert "no preflight" in summary.marks


def test_the_command_line_on_an_address(tmp_path: Path) -> None:
    log, runner = str(tmp_path / "runs.db"), CliRunner()
    with server(30, [["401", "401", "right"]], delay=0.01) as at:
        base = [at.url, "--bench", BENCH, "--log", log, "--limit", "30", "--no-preflight", "--concurrency", "4"]
        first = runner.invoke(eval_, [*base, "--json"], standalone_mode=False)
        assert first.return_value == 1, first.output
        found = json.loads(first.stdout)["runs"][0]
        assert (found["score"], found["errors"], found["name"]) == (None, 1, MODEL)
        shown = runner.invoke(eval_, [*base, "--exclude-errors"], standalone_mode=False)
        assert shown.return_value == 0
        for word in ("29/29", "! no preflight", "! 1 unscored rows left out"):
            assert word in shown.stdout
        last = runner.invoke(eval_, base, standalone_mode=False)
        assert last.return_value == 0
        assert "30/30   100.0 %" in last.stdout
        assert sum(at.asked.values()) == 30 + 2


def test_a_line_of_the_live_table() -> None:
    tally = Tally("b", 100, began=0.0)
    for sample in (
        Sample("a", 0, "q", "r", "stop", 1, 30),
        Sample("b", 1, "q", "", "length", 1, 50),
        Sample("c", 2, "q", "", "", -1, -1, error="timeout"),
    ):
        tally.take(sample)
    tally.judge(Verdict(True, "correct"))
    tally.judge(Verdict(False, "wrong"))
    tally.judge(Verdict(None, "harness error"))
    assert cells(tally, 10.0) == ("b", "2/100", "50.0 %", "1", "1", "1", "8", "5:23")
    assert cells(Tally("b", 5, began=0.0), 10.0)[-1] == "?"


def test_reasoning_is_counted_apart_where_the_server_can_be_asked(tmp_path: Path) -> None:
    """An answer that fills the room after the thinking budget is attributed to the budget."""
    with server(2, [["both"], ["right"]]) as at:
        at.content_tokens = 2
        run(at, tmp_path / "runs.db", 2)
    both, plain = stored(tmp_path / "runs.db")
    assert both.sample.reasoning_tokens == both.sample.reply_tokens - 2 > 0
    seen = both.sample.observed()
    assert (seen.content_tokens, seen.tokens) == (2, both.sample.reply_tokens)
    assert plain.sample.reasoning_tokens == -1
