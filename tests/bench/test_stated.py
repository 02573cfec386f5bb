"""Final statements as a second opinion: what they are, when they disagree, and that scores do not change."""

import json
from pathlib import Path
from typing import Any

import pytest

from trimoe.bench import stated
from trimoe.bench.bench import NOTE, Doc, Verdict
from trimoe.bench.benches import aime_2024, arc_challenge, math_500_100
from trimoe.bench.catalog import find
from trimoe.bench.formulas import plain, same

GPQA = find(["gpqa-diamond"])[0]
OPTIONS = ["one thing", "another thing", "a third thing", "nothing of this"]


def gpqa(gold: str) -> Doc:
    return Doc(gold, "", "", {"letter": gold, "options": OPTIONS})


def mathematics(answer: str) -> Doc:
    return Doc("0", "", "", {"solution": rf"Therefore the result is $\boxed{{{answer}}}$."})


def judged(bench: str, reply: str, doc: Doc) -> Verdict:
    (verdict,) = find([bench])[0].judge([(reply, "stop", doc)])
    return verdict


@pytest.mark.parametrize(
    ("reply", "extracted", "letter"),
    [
        (r"Option (A) is out by energy, (C) by charge. \boxed{B}", "C", "B"),
        ("Compound (I) reacts with (X). Answer: B", "X", "B"),
        ("The answer is **D**, because (A) would need more energy.", "A", "D"),
        (r"So the final answer is $\text{(C)}$, not (B).", "B", "C"),
        ("The answer is B.", None, "B"),
        ("We exclude (B) and (C). The answer is (A).", "A", None),  # agrees
        ("It must be (D).", "D", None),  # states nothing in another form
        ("I cannot tell.", None, None),
    ],
)
def test_gpqa_keeps_its_extraction_and_notes_another_statement(
    reply: str, extracted: str | None, letter: str | None
) -> None:
    verdict = judged("gpqa-diamond", reply, gpqa("B"))
    assert (verdict.extracted, verdict.correct) == (extracted, extracted == "B")
    opinion = f"{NOTE}it states {letter}, {extracted or 'nothing'} was extracted"
    assert (NOTE in verdict.detail) == (letter is not None)
    assert letter is None or opinion in verdict.detail
    strict = judged("gpqa-diamond:stated", reply, gpqa("B"))
    assert strict.extracted == stated.letter(reply)
    assert NOTE not in strict.detail


@pytest.mark.parametrize(
    ("reply", "gold", "credited", "ours"),
    [
        (r"The total is $\boxed{12\,345}$.", "12345", False, True),
        (r"The rate is $\boxed{50\%}$.", "50", None, True),
        (r"In base 8 it is $\boxed{52_8}$.", r"52_{8}", True, True),
        (r"In base 9 it is $\boxed{52_9}$.", r"52_8", True, False),
        (r"First $\boxed{7}$. But I dropped a case, so it is \boxed{", "7", True, False),
        (r"$\boxed{3}$. No, $\boxed{4}$.", "4", True, True),
        (r"Therefore it is $\boxed{\text{Evelyn}}$.", r"\text{Evelyn}", True, True),
        ("The final answer is $16$. I hope it is correct.", "16", True, True),
        (r"A guess was $\boxed{5}$. The final answer is $16$.", "16", True, True),
        (r"$\boxed{\frac12}$", r"\dfrac{1}{2}", True, True),
        (r"$\boxed{0.5}$", r"\frac{1}{2}", True, True),
        (r"$\boxed{10 \text{ cm}}$", "10", True, True),
        (r"$\boxed{x = 3}$", "3", True, True),
        (r"$\boxed{(1, 234)}$", "(1,234)", True, True),
        (r"$\boxed{1,234}$", "1234", True, True),
        (r"$\boxed{7}$", "8", False, False),
        ("It is 7.", "7", True, None),  # states nothing in a form of its own
    ],
)
def test_math_keeps_math_verify_s_verdict_and_notes_ours(
    reply: str, gold: str, credited: bool | None, ours: bool | None
) -> None:
    verdict = judged("math-500-100", reply, mathematics(gold))
    assert credited is None or verdict.correct is credited
    assert math_500_100.own_reading(reply, mathematics(gold).check["solution"]) is ours
    assert (NOTE in verdict.detail) == (ours is not None and ours is not verdict.correct), verdict
    assert judged("math-500-100:stated", reply, mathematics(gold)).correct is (ours is True)


@pytest.mark.parametrize(
    ("ours", "theirs", "alike"),
    [
        (r"1\!\,234", "1234", True),
        ("1{,}234", "1234", True),
        (r"90^\circ", "90", True),
        (r"\$5.00", "5", True),
        (r"-\frac{1}{2}", "-0.5", True),
        ("10_2", "10", True),  # the question names the base
        ("10_2", "2", False),
        ("A1_{16}", "a1_{16}", True),
        (r"\text{Monday}", "Monday", True),
        (r"\left(3,\frac{\pi}{2}\right)", r"(3,\frac{\pi}{2})", True),
        ("1/0", "0", False),
        (r"5\text{ and }7", "57", False),
        (r"5\text{ and }7", "5,7", True),
        (r"5\ 7", "57", False),
        (r"12\ 345\,678", "12345678", True),
        ("x" * 301, "x", None),
    ],
)
def test_forms_of_the_same_answer(ours: str, theirs: str, alike: bool | None) -> None:
    assert same(ours, theirs, lambda *_: False) is alike


def test_plain_takes_any_text() -> None:
    assert [plain(text) for text in ("", "}{", r"\text{", "  .")] == ["", "}{", r"\text{", ""]


def test_the_variants_are_benches_of_their_own() -> None:
    for name in ("gpqa-diamond", "math-500-100"):
        base, strict = find([name, f"{name}:stated"])
        assert base.protocol is not None
        assert strict.protocol is not None
        assert base.protocol.metric != strict.protocol.metric
        assert (base.opinion is None, strict.opinion is None) == (False, True)


def test_the_shared_cases(shared: Path) -> None:
    cases: list[dict[str, Any]] = json.loads((shared / "cases" / "evaluate" / "extraction.json").read_text())
    assert len(cases) >= 18
    for case in cases:
        bench, reply = find([case["bench"]])[0], case["reply"]
        if "letter" in case:
            assert bench.extract(reply) == case["letter"], reply
        elif "stated" in case:
            assert NOTE in judged(case["bench"], reply, gpqa(case["stated"])).detail, reply
        elif case["bench"].startswith("math"):
            assert math_500_100.own_reading(reply, rf"$\boxed{{{case['gold']}}}$") is case["correct"], reply
        else:
            verdict = judged(case["bench"], reply, Doc("0", "", "", {"answer": case["gold"]}))
            assert verdict.correct is case["correct"], reply


def test_livecodebench_keeps_its_rule_and_notes_the_block_that_has_the_method() -> None:
    doc = Doc("d", "", "", {"method": "f", "tests": [[[1], 1]]})
    solution = "class Solution:\n    def f(self, x): return x"
    right = f"```python\n{solution}\n```"
    usage = f"{right}\nUse it so:\n```python\nprint(Solution().f(1))\n```"
    verdicts = find(["lcb-medium-55"])[0].judge([(reply, "stop", doc) for reply in (right, usage, "```\nx = 1\n```")])
    assert [v.correct for v in verdicts] == [True, False, False]
    assert [NOTE in v.detail for v in verdicts] == [False, True, False]
    assert verdicts[1].detail.endswith("another block defines f")


CONCLUDED = {
    "Therefore C. A is not.": "C",
    "Therefore (C). A is not, and B isn't either.": "C",
    "So C; not B.": "C",
    "C is correct. A would be wrong.": "C",
    "A is wrong. B is wrong. D cannot be. That leaves C, since A was excluded.": "C",
    "I'd go with C rather than D.": "C",
    "C, not D": "C",
    "B is incorrect, D is incorrect, A is false, C": "C",
    "Thus **C**. D isn't.": "C",
    "I choose C over A": "C",
    "C must be right because B is out": "C",
    "A is not the answer. B": "B",
    "The answer is B. A is not.": "B",
    "C\n\nExplanation: D is a distractor; A is irrelevant.": "C",
    "So A is wrong; the rest leaves D.": "D",
    "Neither A nor B fits; D does.": "D",
    "D is not right, A is not right.": "A",
}


@pytest.mark.parametrize("reply", CONCLUDED)
def test_a_rejected_letter_does_not_overrule_the_conclusion(reply: str) -> None:
    assert arc_challenge.letter(reply) == CONCLUDED[reply]


@pytest.mark.parametrize("reply", ["12.5. Done", "The answer is 12.5. Done", "x = 12.5.", "so it is 12.5. Done."])
def test_a_decimal_before_a_full_stop_is_no_whole_number(reply: str) -> None:
    assert aime_2024.answer(reply) == "12.5"
