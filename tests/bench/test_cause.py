"""Causes of misses: thresholds at their edges, precedence, and invariants for any observation."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimoe.bench.bench import Doc
from trimoe.bench.catalog import find
from trimoe.bench.cause import (
    Cause,
    Limits,
    Observed,
    attribute,
    ceiling,
    ceilings,
    loops,
    ruminates,
    tail_loop,
    words_loop,
)

SPLIT = Limits(cap=16384, think=12288)  # room for an answer: 4096
PLAIN = Limits(cap=16384)


def prose(words: int, seed: int = 0) -> str:
    """Text without repetition."""
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghij", k=8)) for _ in range(words))


# ---------------------------------------------------------------- loops


def test_short_texts_never_loop_by_words() -> None:
    sentence = "say it again and again "
    assert not words_loop(sentence * 11)  # 55 words
    assert not words_loop("a b " * 100)  # 200 words, under 600 characters
    assert words_loop(sentence * 40)


@pytest.mark.parametrize(("kinds", "looping"), [(63, True), (64, True), (65, False)])
def test_the_share_of_distinct_five_grams(kinds: int, looping: bool) -> None:
    """216 5-grams in the last 220 words; a cycle of k words has k distinct ones. 0.30 lies between 64 and 65."""
    cycle = prose(kinds).split()
    words = [cycle[i % kinds] for i in range(300)]
    assert (len({tuple(words[80:][i : i + 5]) for i in range(216)}) / 216 < 0.30) == looping
    assert words_loop(" ".join(words)) == looping


@pytest.mark.parametrize(("times", "looping"), [(11, False), (12, True)])
def test_one_five_gram_many_times(times: int, looping: bool) -> None:
    spread = [f"{prose(10, seed)} one two three four five" for seed in range(times)]
    assert words_loop(" ".join(spread)) == looping


def test_only_the_end_of_a_text_counts() -> None:
    assert not words_loop("round and round it goes " * 60 + prose(400))
    assert words_loop(prose(400) + " round and round it goes" * 60)


@pytest.mark.parametrize(
    ("tail", "looping"),
    [
        ("ab" * 8, True),
        ("ab" * 7, False),
        ("x" * 41, True),
        ("x" * 40, False),
        (prose(5)[:40] * 8, True),
        (prose(6)[:41] * 8, False),
        ("-" * 60 + "\nThe table ends here.", False),  # a ruler inside a text is not a loop
        ("", False),
    ],
)
def test_short_pieces_repeated_at_the_end(tail: str, looping: bool) -> None:
    assert tail_loop("Some text before it. " + tail) == looping


@settings(deadline=None)
@given(st.text(max_size=300), st.integers(2, 40), st.integers(8, 20))
def test_every_piece_said_eight_times_is_found(before: str, length: int, times: int) -> None:
    piece = ("ab" + prose(6, seed=length))[:length]
    assert tail_loop(before + piece * times)


# ---------------------------------------------------------------- ceilings of one reply


@pytest.mark.parametrize(
    ("content", "reasoning", "limits", "prompt", "expected"),
    [
        (16384, None, PLAIN, None, "cap"),
        (16368, None, PLAIN, None, "cap"),
        (16367, None, PLAIN, None, None),
        (4096, 12288, SPLIT, None, "cap"),
        (4093, 8000, SPLIT, None, "budget"),  # the room after the budget, within the tolerance
        (4080, 8000, SPLIT, None, "budget"),
        (4079, 8000, SPLIT, None, None),
        (4113, 8000, SPLIT, None, None),
        (4096, 0, SPLIT, None, None),  # without reasoning the room is the whole cap
        (4096, None, SPLIT, None, None),
        (3000, None, replace(PLAIN, slot=4096), 1096, "slot"),
        (3000, None, replace(PLAIN, slot=4096), 1080, "slot"),
        (3000, None, replace(PLAIN, slot=4096), 1079, None),
        (3000, None, replace(PLAIN, slot=4096), None, None),
        (None, None, PLAIN, None, None),
    ],
)
def test_ceilings(
    content: int | None, reasoning: int | None, limits: Limits, prompt: int | None, expected: str | None
) -> None:
    seen = Observed("text", "stop", "thought", content, reasoning, prompt)
    assert ceiling(seen, limits) == expected


def test_reasoning_that_used_up_the_budget_without_an_answer() -> None:
    seen = Observed("", "stop", "thought", 0, 12280, None)
    assert ceiling(seen, SPLIT) == "budget"
    assert ceiling(replace(seen, reasoning_tokens=12271), SPLIT) is None


def test_rumination_is_both_ends_pinned() -> None:
    pinned = Observed(prose(300), "length", prose(300), 4093, 12285)
    assert ruminates(pinned, SPLIT)
    assert not ruminates(replace(pinned, content_tokens=3000), SPLIT)
    assert not ruminates(replace(pinned, reasoning_tokens=200), SPLIT)
    assert attribute(False, "wrong", pinned, SPLIT) == "loop"
    assert attribute(True, "correct", pinned, SPLIT) == "correct"  # the score of a ruminating reply is valid


# ---------------------------------------------------------------- one cause per miss


LOOP = "round and round it goes " * 60


@pytest.mark.parametrize(
    ("found", "seen", "expected"),
    [
        ("empty", Observed("", "stop"), "empty"),
        ("empty", Observed(" \n", ""), "empty"),
        ("empty", Observed("", "length"), "truncated"),
        ("wrong", Observed("", "stop", "so it is B"), "reasoning-only"),
        ("extraction failed", Observed("", "length", "so it"), "truncated"),
        ("extraction failed", Observed("", "length", LOOP), "loop"),
        ("wrong", Observed("B", "stop"), "wrong"),
        ("wrong", Observed("B", "length"), "truncated"),
        ("wrong", Observed("B", "length", "", 16384), "truncated (cap)"),
        ("wrong", Observed("B", "stop", "t", 4090, 9000), "truncated (budget)"),
        ("wrong", Observed(LOOP, "length", "", 16384), "loop"),  # a longer cap would not have helped
        ("extraction failed", Observed(LOOP, "stop"), "loop"),
        ("extraction failed", Observed("words", "stop"), "extraction failed"),
        ("code error", Observed("x", "stop"), "code error"),
        ("code timeout", Observed("x", "stop"), "code timeout"),
        ("code error", Observed("x", "length", "", 16380), "truncated (cap)"),
        ("code error", Observed(LOOP, "stop"), "code error"),  # it left code that ran
    ],
)
def test_causes(found: Cause, seen: Observed, expected: str) -> None:
    assert attribute(False, found, seen, SPLIT) == expected


TEXTS = st.sampled_from(["", " ", "B", "The answer is B.", LOOP, "x" * 50])
COUNTS = st.none() | st.integers(0, 20000)
SEEN = st.builds(Observed, TEXTS, st.sampled_from(["", "stop", "length"]), TEXTS, COUNTS, COUNTS, COUNTS)
FOUND = st.sampled_from(["wrong", "empty", "extraction failed", "code error", "code timeout"])
LIMITS = st.builds(Limits, st.just(16384), st.sampled_from([0, 12288]), st.none() | st.integers(1024, 32768))


@settings(deadline=None)
@given(FOUND, SEEN, LIMITS)
def test_a_verdict_is_never_changed_by_its_cause(found: Cause, seen: Observed, limits: Limits) -> None:
    assert attribute(True, "correct", seen, limits) == "correct"
    assert attribute(None, found, seen, limits) == "harness error"
    assert attribute(False, found, seen, limits) not in ("correct", "harness error")


@settings(deadline=None)
@given(FOUND, SEEN, LIMITS)
def test_what_was_said_decides_between_empty_and_the_rest(found: Cause, seen: Observed, limits: Limits) -> None:
    cause = attribute(False, found, seen, limits)
    silent = not seen.content.strip() and not seen.reasoning.strip()
    if cause == "empty":
        assert silent or found == "empty"
    if cause == "reasoning-only":
        assert not seen.content.strip()
        assert seen.reasoning.strip()
    if silent:
        assert cause.startswith(("empty", "truncated"))
    if cause == "loop" and not ruminates(seen, limits):
        assert loops(seen.content) or loops(seen.reasoning)


@settings(deadline=None)
@given(SEEN, LIMITS)
def test_a_ceiling_needs_counted_tokens(seen: Observed, limits: Limits) -> None:
    cut = ceiling(seen, limits)
    if cut is not None:
        assert seen.content_tokens is not None
    if cut == "cap":
        assert (seen.tokens or 0) >= 16368


# ---------------------------------------------------------------- a whole run


def run(tokens: list[int], limits: Limits = PLAIN, *, split: bool = False) -> tuple[str, str, int]:
    found = ceilings(tokens, [False] * len(tokens), limits, split=split)
    return found.verdict, found.hit, found.capped


def test_a_clean_run() -> None:
    assert run([100, 200, 300, 500, 800, 900, 1000, 1500, 2000, 2600]) == ("CLEAN", "none", 0)
    assert run([]) == ("CLEAN", "none", 0)


def test_a_capped_run_and_its_tax() -> None:
    found = ceilings([16384, 16370, 500, 400], [True, False, False, True], PLAIN, split=False)
    assert (found.verdict, found.hit, found.capped, found.capped_correct) == ("CAPPED", "cap", 2, 1)
    assert found.tax_pp == 25.0  # one miss of four could have been right
    assert run([4090, 300], SPLIT, split=True) == ("CAPPED", "answer room", 1)
    assert run([4090, 300], SPLIT) == ("CLEAN", "none", 0)


def test_an_unexplained_pile_up() -> None:
    short = [100, 150, 200, 220, 240, 260, 280, 300]
    assert run([*short, 2048, 2040]) == ("CAPPED", "unexplained", 2)
    assert run([*short, 2048, 2030]) == ("CLEAN", "none", 0)  # 18 tokens apart: no tie
    assert run([*short[1:], 2048, 2040]) == ("CLEAN", "none", 0)  # nine replies are too few
    assert run([10, 12, 14, 16, 18, 20, 22, 24, 250, 251]) == ("CLEAN", "none", 0)  # the longest is under 256
    assert run([*[1500] * 8, 2048, 2040]) == ("CLEAN", "none", 0)  # not twice the others


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20000), st.booleans()), max_size=40), st.booleans())
def test_the_tax_is_bounded_by_the_misses(rows: list[tuple[int, bool]], split: bool) -> None:
    tokens, correct = [n for n, _ in rows], [ok for _, ok in rows]
    found = ceilings(tokens, correct, SPLIT, split=split)
    misses = 100 * correct.count(False) / len(rows) if rows else 0
    assert 0 <= found.tax_pp <= misses + 1e-9
    assert (found.verdict == "CAPPED") == (found.capped > 0)
    assert found.capped_correct <= found.capped <= len(rows)
    assert found.ties_at_max >= (1 if rows else 0)


# ---------------------------------------------------------------- through a bench


def test_a_bench_reads_reasoning_only_when_the_content_is_empty() -> None:
    bench = find(["arc-challenge"])[0]
    doc = Doc("0", "", "", {"letter": "B"})
    seen = [
        Observed("The best answer is A", "stop", "The best answer is B"),
        Observed("", "stop", "The best answer is B"),
        Observed("", "stop", "The best answer is C"),
        Observed("", "stop", ""),
        Observed("The best answer is B", "length", ""),
    ]
    verdicts = bench.judge_observed([(one, doc) for one in seen])
    assert [(v.correct, v.cause) for v in verdicts] == [
        (False, "wrong"),
        (True, "correct"),
        (False, "reasoning-only"),
        (False, "empty"),
        (True, "correct"),
    ]
    assert "read from the reasoning" in verdicts[1].detail


def test_livecodebench_reads_both() -> None:
    bench = find(["lcb-medium-55"])[0]
    doc = Doc("0", "", "", {"method": "f", "tests": [[[2], 4]]})
    code = "```python\nclass Solution:\n    def f(self, x):\n        return 2 * x\n```"
    both, thought, said = (Observed("done", "", code), Observed("", "", code), Observed(code, "", "so"))
    assert [v.correct for v in bench.judge_observed([(one, doc) for one in (both, thought, said)])] == [True] * 3


def test_the_slot_of_the_server_is_told_apart_from_the_cap() -> None:
    bench = find(["arc-challenge"])[0]
    doc = Doc("0", "", "", {"letter": "B"})
    seen = Observed("Let us see", "length", "", 3000, None, 1090)
    assert bench.judge_observed([(seen, doc)], slot=4096)[0].cause == "truncated (slot)"
    assert bench.judge_observed([(seen, doc)])[0].cause == "truncated"


def test_the_cap_is_for_the_whole_reply_and_not_for_one_that_stopped() -> None:
    """Endless reasoning leaves a short answer: only the server's count of the whole reply shows the cap."""
    answers, wholes = [10, 10, 300], [16384, 400, 16380]
    found = ceilings(answers, [False, True, False], SPLIT, split=True, whole=wholes, stopped=[False, False, True])
    assert (found.verdict, found.hit, found.capped, found.tax_pp) == ("CAPPED", "cap", 1, pytest.approx(100 / 3))
    assert ceilings(answers, [True] * 3, SPLIT, split=True, whole=wholes, stopped=[True] * 3).verdict == "CLEAN"


def test_eval_and_audit_agree_on_limits(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from trimoe.bench.bench import Verdict
    from trimoe.cli.audit import audit
    from trimoe.cli.parts.scores import scores_text
    from trimoe.evaluate.log.records import Sample
    from trimoe.evaluate.log.run_log import RunLog
    from trimoe.evaluate.log.summary import summarize

    with RunLog(tmp_path / "r.db") as log:
        run = log.start("m", "b", {"rows": 40, "max_new_tokens": 100}, "h", {}, {})
        cut = [
            Sample(
                f"{i}",
                i,
                f"q{i}",
                f"{i} a reply long enough to be looked at by everybody, but cut off here",
                "length" if i < 3 else "stop",
                9,
                100 if i < 3 else 20,
            )
            for i in range(40)
        ]
        log.add(run, [(s, Verdict(s.position > 1, "correct" if s.position > 1 else "truncated (cap)")) for s in cut], 1)
        summary = summarize(log, run)
    assert summary.ceilings is not None
    assert (summary.ceilings["verdict"], summary.ceilings["capped"], summary.ceilings["tax_pp"]) == ("CAPPED", 3, 5.0)
    assert "3 replies hit the limit (cap), which costs at most 5.0 points of the score" in scores_text([summary])
    assert (
        "limits: CAPPED at cap, costs at most 5.00 points" in CliRunner().invoke(audit, [str(tmp_path / "r.db")]).stdout
    )
