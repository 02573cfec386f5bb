"""Guards trip exactly at their thresholds, are data, and pause a run with evidence."""

from pathlib import Path

import pytest
from test_faults import BENCH, QUICK, docs, run, server, stored

from helpers.evaluation import run_endpoint, run_model
from helpers.fault_server import FaultServer
from trimoe.bench.bench import Verdict
from trimoe.bench.catalog import benches
from trimoe.cli.main import main
from trimoe.errors import BenchError, Refused, UsageError
from trimoe.evaluate.guards import NAMES, Tripped, Watch, guards_of
from trimoe.evaluate.log.records import Sample, Scored
from trimoe.evaluate.log.run_log import RunLog
from trimoe.serve.probe import connect

LONG = "a reply of some length, long enough that nobody takes it for one that was cut off"


def sample(number: int, reply: str = LONG, finish: str = "stop", error: str = "") -> Sample:
    return Sample(str(number), number, "q", reply, finish, 5, 5, error=error)


def first_trip(watch: Watch, samples: list[Sample]) -> tuple[int, Tripped] | None:
    """The number of replies seen when a guard trips, with the finding."""
    for seen, one in enumerate(samples, 1):
        if tripped := watch.reply(one):
            return seen, tripped
    return None


@pytest.mark.parametrize(
    ("name", "bad"),
    [("empty", ("", "stop")), ("length", (LONG, "length"))],
)
def test_a_share_counts_from_twenty_and_above_five_percent(name: str, bad: tuple[str, str]) -> None:
    def replies(hits: int, total: int) -> list[Sample]:
        return [sample(i, *bad) if i < hits else sample(i) for i in range(total)]

    assert first_trip(Watch(guards_of("gsm8k-100")), replies(1, 100)) is None  # 1 of 20 is 5 %, not above
    tripped = first_trip(Watch(guards_of("gsm8k-100")), replies(2, 100))
    assert tripped is not None
    assert (tripped[0], tripped[1].guard) == (20, name)
    assert tripped[1].samples[0].startswith("0: ")
    assert first_trip(Watch(guards_of("gsm8k-100"), frozenset({name})), replies(2, 100)) is None
    # replies before the window are forgotten
    late = [sample(i) for i in range(200)] + [sample(i, *bad) for i in range(200, 205)]
    assert first_trip(Watch(guards_of("gsm8k-100")), late) is None
    assert first_trip(Watch(guards_of("gsm8k-100")), [*late, sample(206, *bad)]) is not None


def test_one_marker_is_too_many() -> None:
    for text in ("<|channel>thought", "so <channel|> 7", "<bos>", "<|im_start|> analysis", "</think>7"):
        found = first_trip(Watch(guards_of("gsm8k-100")), [sample(0), sample(1, f"{LONG} {text}")])
        assert found is not None
        assert (found[0], found[1].guard) == (2, "marker")
    assert first_trip(Watch(guards_of("gsm8k-100")), [sample(0, f"{LONG} <b> <|im_start|>user")]) is None


def test_short_replies_are_judged_per_bench() -> None:
    short = [sample(i, "B") for i in range(40)]
    found = first_trip(Watch(guards_of("gsm8k-100")), short)
    assert found is not None
    assert (found[0], found[1].guard) == (20, "short")
    assert first_trip(Watch(guards_of("arc-challenge")), short) is None
    assert first_trip(Watch(guards_of("arc-challenge:smoke")), short) is None


def test_errors_in_a_row_stop_a_run() -> None:
    errors = [sample(i, "", "", "connection") for i in range(7)]
    assert first_trip(Watch(guards_of("gsm8k-100")), [*errors, sample(7), *errors]) is None
    found = first_trip(Watch(guards_of("gsm8k-100")), [*errors, sample(7, "", "", "timeout")])
    assert found is not None
    assert (found[1].guard, found[0]) == ("errors", 8)


def scored(count: int, correct: int = 0) -> list[Scored]:
    return [Scored(sample(i), Verdict(i < correct, "correct" if i < correct else "wrong")) for i in range(count)]


def test_no_correct_reply_at_all() -> None:
    assert Watch(guards_of("gsm8k-100")).scored(scored(19)) is None
    tripped = Watch(guards_of("gsm8k-100")).scored(scored(20))
    assert tripped is not None
    assert tripped.guard == "zero"
    assert Watch(guards_of("gsm8k-100")).scored(scored(20, 1)) is None
    small = Watch(guards_of("gsm8k-100"))
    assert small.scored(scored(10)) is None
    assert small.finished(100) is None
    ended = small.finished(10)
    assert ended is not None
    assert ended.guard == "zero"


def test_livecodebench_is_given_up_after_five() -> None:
    def watched(bench: str, cut: int) -> Tripped | None:
        watch = Watch(guards_of(bench))
        for i in range(5):
            watch.reply(sample(i, LONG, "length" if i < cut else "stop"))
        return watch.scored(scored(5))

    found = watched("lcb-medium-55", 4)
    assert found is not None
    assert found.guard == "abort"
    assert watched("lcb-medium-55", 3) is None
    assert watched("gsm8k-100", 5) is None


def test_guards_are_data_and_unknown_keys_are_refused() -> None:
    for bench in benches():
        assert set(guards_of(bench)) == set(NAMES)
    with pytest.raises(BenchError, match="unknown guard emtpy"):
        guards_of("b", {"emtpy": {"about": "x", "after": 1}})
    with pytest.raises(BenchError, match="abvoe"):
        guards_of("b", {"empty": {"about": "x", "after": 1, "abvoe": 2}})
    with pytest.raises(BenchError, match="above"):
        guards_of("b", {"empty": {"about": "x", "after": 1, "above": 5}})


def test_a_run_is_paused_and_resumes_when_the_guard_is_ignored(tmp_path: Path) -> None:
    log = tmp_path / "runs.db"
    with server(60, [["right"]] * 25 + [["nothing"]] * 10, delay=0.05) as at:
        with pytest.raises(Refused, match=r"(?s)guard 'empty'.*of the last.*\(empty\).*--ignore-guard empty"):
            run(at, log, 60, ignore=())
        kept, asked = stored(log), at.asked.total()
        assert 20 <= len(kept) < 60
        with pytest.raises(Refused, match="guard 'empty'"):
            run(at, log, 60, ignore=())
        assert at.asked.total() == asked  # it trips before anything is requested
        summary = run(at, log, 60, ignore=("empty",))
    assert (summary.n, summary.correct, summary.causes["empty"]) == (60, 50, 10)
    assert summary.marks == ("no preflight", "guard empty ignored")
    with RunLog(log, create=False) as opened:
        (one,) = opened.runs()
        assert [d["guard"] for kind, d in opened.events(one) if kind == "paused"] == ["empty", "empty"]  # once per call
        assert opened.results(one)[-1].marks == summary.marks
        assert opened.results(one)[-1].standard_error == pytest.approx((50 / 60 * 10 / 60 / 60) ** 0.5)


def test_a_smoke_without_one_right_answer_is_refused(tmp_path: Path) -> None:
    with server(5, [["wrong"]] * 5) as at, pytest.raises(Refused, match="none of 5"):
        run(at, tmp_path / "runs.db", 5, ignore=())


def test_a_dead_server_is_not_asked_for_every_row(tmp_path: Path) -> None:
    rows = docs(60)
    replies = {doc.prompt: doc.reference for doc in rows}
    with FaultServer(replies, {prompt: ["401"] for prompt in replies}, delay=0.05) as at:
        with pytest.raises(Refused, match="guard 'errors'"):
            run(at, tmp_path / "runs.db", 60, ignore=())
        assert at.asked.total() < 60


def test_an_unknown_guard_cannot_be_ignored(tmp_path: Path) -> None:
    with server(1) as at, pytest.raises(UsageError, match="no guard is named emtpy"):
        run_endpoint(connect(at.url), [BENCH], tmp_path / "r.db", request_limits=QUICK, ignore_guards=["emtpy"])


def test_runs_in_this_process_have_the_same_guards(model_dir: Path, tmp_path: Path) -> None:
    """A random model knows nothing: the run pauses after the batch that shows it, and again without generating."""
    log, limit = tmp_path / "runs.db", 44
    for _ in range(2):
        with pytest.raises(Refused, match=r"(?s)guard 'zero'.*none of 2[0-3].*--ignore-guard zero"):
            run_model(model_dir, ["tiny-math"], log, name="m", limit=limit, batch_size=4)
        assert len(stored(log)) in (20, 24)
    (summary,) = run_model(model_dir, ["tiny-math"], log, name="m", limit=limit, batch_size=4, ignore_guards=NAMES)
    assert (summary.n, summary.correct) == (limit, 0)
    assert "guard zero ignored" in summary.marks
    with pytest.raises(Refused, match="guard 'zero'"):  # even complete, it is refused without the option
        run_model(model_dir, ["tiny-math"], log, name="m", limit=limit)
    with RunLog(log, create=False) as opened:
        (one,) = opened.runs()
        kinds = [kind for kind, _ in opened.events(one)]
        assert kinds.count("guard overruled") == len([mark for mark in summary.marks if mark.startswith("guard")])


def test_a_smoke_in_this_process_needs_one_right_answer(model_dir: Path, tmp_path: Path) -> None:
    command = ["eval", str(model_dir), "--bench", "tiny-math", "--limit", "3", "--log", str(tmp_path / "r.db")]
    assert main(command) == 5
    assert main(command) == 5
    assert main([*command, "--ignore-guard", "zero"]) == 0


def test_a_guard_that_was_ignored_and_never_tripped_is_no_mark(tmp_path: Path) -> None:
    with server(12) as at:
        assert run(at, tmp_path / "runs.db", 12, ignore=("empty", "zero")).marks == ("no preflight",)
