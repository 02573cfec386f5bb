"""Scorers: every reference answer passes, systematically wrong ones fail, and causes are distinguished."""

import pytest

from trimoe.bench.bench import Bench, Doc
from trimoe.bench.benches import tiny_choice, tiny_code, tiny_format, tiny_math
from trimoe.bench.catalog import SUITES, benches, find
from trimoe.errors import UsageError
from trimoe.model.tiny.item import split_of
from trimoe.model.tiny.tasks import generate

ALL = [bench for bench in benches().values() if bench.protocol is None]  # those of the bundled model


def judge_all(bench: Bench, replies: list[tuple[str, Doc]]) -> list[str]:
    return [v.cause for v in bench.judge([(reply, "stop", doc) for reply, doc in replies])]


@pytest.mark.parametrize("bench", ALL, ids=lambda b: b.name)
def test_every_reference_answer_passes(bench: Bench) -> None:
    docs = bench.docs()
    assert len(docs) == len({doc.doc_id for doc in docs}) == bench.rows
    assert set(judge_all(bench, [(doc.reference, doc) for doc in docs])) == {"correct"}


@pytest.mark.parametrize("bench", ALL, ids=lambda b: b.name)
def test_rows_are_held_out_and_reproducible(bench: Bench) -> None:
    docs = bench.docs()
    items = {item.prompt: item for item in generate(bench.name.removeprefix("tiny-"), "heldout", bench.rows, 20)}
    assert all(split_of(items[doc.prompt]) == "heldout" for doc in docs)
    assert bench.spec(docs) == bench.spec(bench.docs())


@pytest.mark.parametrize("bench", ALL, ids=lambda b: b.name)
def test_answers_of_other_rows_fail(bench: Bench) -> None:
    docs = bench.docs()
    moved = [(docs[i - 1].reference, docs[i]) for i in range(len(docs)) if docs[i - 1].check != docs[i].check]
    right = judge_all(bench, moved).count("correct")
    assert right <= len(moved) * 0.05  # two rows may share an answer in different words


@pytest.mark.parametrize("bench", ALL, ids=lambda b: b.name)
def test_empty_and_prose_are_never_right(bench: Bench) -> None:
    doc = bench.docs()[0]
    assert judge_all(bench, [("", doc), (" \n", doc)]) == ["empty", "empty"]
    assert judge_all(bench, [("I would rather not say.", doc)])[0] in ("extraction failed", "wrong")


def test_a_miss_at_the_cap_is_truncated_and_a_hit_is_right() -> None:
    bench = find(["tiny-math"])[0]
    doc = Doc("d", "", "", {"number": 12})
    verdicts = bench.judge([("1 + 1 = 2. 2 +", "length", doc), ("Answer: 12", "length", doc), ("", "length", doc)])
    assert [(v.correct, v.cause) for v in verdicts] == [(False, "truncated"), (True, "correct"), (False, "truncated")]


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("3 + 4 = 7. Answer: 7", "7"),
        ("Answer: 3. No. Answer: -7.", "-7"),
        ("Answer: 7.5", "7.5"),
        ("Answer: 7a", None),
        ("Answer: 1.2.3", None),
        ("Answer:", None),
        ("7", None),
        ("answer: 7", None),
    ],
)
def test_final_number(reply: str, number: str | None) -> None:
    assert tiny_math.final_number(reply) == number


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("The answer is (C).", "C"),
        ("The answer is (A). No, the answer is (B).", "B"),
        ("D", "D"),
        ("(A)", "A"),
        ("The answer is Apple.", None),
        ("(A) or (B)", None),
        ("The answer is (E).", None),
    ],
)
def test_letter(reply: str, letter: str | None) -> None:
    assert tiny_choice.letter(reply) == letter


@pytest.mark.parametrize(
    ("reply", "source"),
    [
        ("```python\na = 1\n```", "a = 1\n"),
        ("```python\na\n```\nor\n```python\nb\n```", "b\n"),
        ("```python\na = 1", None),
        ("```\na = 1\n```", None),
        ("def solve(): pass", None),
        ("```python\n```", None),
    ],
)
def test_last_block(reply: str, source: str | None) -> None:
    assert tiny_code.last_block(reply) == source


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (
            {"kind": "letter", "n": 2, "letter": "l"},
            ["lake, lemon", "lamp,leaf"],
            ["lake", "lake, lake", "lake, kite", "lake, lemon, leaf", "lake lemon", "LAKE, LEMON", "lake, lemon."],
        ),
        ({"kind": "upper", "n": 2, "letter": "l"}, ["LAKE/LEMON", "LAKE / LAMP"], ["lake/lemon", "LAKE/KITE", "LAKE"]),
        (
            {"kind": "json", "n": 2, "value": {"name": "lamp", "size": 45}},
            ['{"size": 45, "name": "lamp"}'],
            ['{"name": "lamp"}', "{'name': 'lamp', 'size': 45}", '{"name": "lamp", "size": "45"}', "[]", "{" * 50],
        ),
        ({"kind": "lines", "n": 3, "word": "sail"}, ["sail\nsail\nsail"], ["sail\nsail", "sail sail sail"]),
        ({"kind": "count", "n": 2, "start": 4}, ["4-5-6"], ["4-5", "4, 5, 6", "6-5-4", "4-5-6-7"]),
        (
            {"kind": "wrap", "n": 2, "left": "*", "right": "*", "words": ["sun", "sea"]},
            ["*sun* *sea*", "*sea* and *sun*"],
            ["sun sea", "*sun sea*", "*sun*", "*sun* *sea* *sky*"],
        ),
        (
            {"kind": "numbered", "n": 2, "words": ["a", "b", "c"]},
            ["1. a\n2. b\n3. c", "1) a\n2) b\n3) c"],
            ["1. a\n2. b", "1. b\n2. a\n3. c", "a\nb\nc"],
        ),
        (
            {"kind": "pairs", "n": 2, "words": ["map", "oak"]},
            ["map -> oak END", "map → oak END"],
            ["map -> oak", "oak -> map END", "map oak END", "map = oak END"],
        ),
    ],
)
def test_any_reply_of_the_form_passes(check: dict[str, object], right: list[str], wrong: list[str]) -> None:
    assert [tiny_format.obeys(reply, check) for reply in right] == [True] * len(right)
    assert [tiny_format.obeys(reply, check) for reply in wrong] == [False] * len(wrong)


def test_unknown_benches_are_refused_with_the_list() -> None:
    with pytest.raises(UsageError) as error:
        find(["tiny-code", "tiny-cod"])
    assert "tiny-cod" in error.value.subject
    assert all(name in error.value.expected for name in SUITES["tiny"])
    with pytest.raises(UsageError):
        find([])
