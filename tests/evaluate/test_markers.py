"""Thinking in the scored text is found: named markers, what remains without special tokens, shapes without names."""

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trimoe.evaluate.answer import HALF_OPEN, LEAK, read_answer
from trimoe.evaluate.guards import Watch, guards_of
from trimoe.evaluate.log.records import Sample
from trimoe.evaluate.markers import form_of, found, half_open, markers, shape
from trimoe.evaluate.recorded.importing import import_samples
from trimoe.judge.audit.audit import AuditOptions, audit_runs

QUESTIONS = [f"How many apples are {i} and {2 * i + 3} apples?" for i in range(12)]
ANSWERS = [f"Adding {i} and {2 * i + 3} gives {3 * i + 3} apples in all. The answer is {3 * i + 3}." for i in range(12)]

NAMED: dict[str, Callable[[str], str]] = {
    "think": lambda r: f"<think>\nlet me see\n</think>\n\n{r}",
    "closer only": lambda r: f"let me see\n</think>\n\n{r}",
    "Mistral": lambda r: f"[THINK]let me see[/THINK]{r}",
    "Seed": lambda r: f"<seed:think>let me see</seed:think>{r}",
    "thinking": lambda r: f"<thinking>let me see</thinking>\n{r}",
    "thought": lambda r: f"<thought>\nlet me see\n</thought>\n{r}",
    "Thought": lambda r: f"<Thought>\nlet me see\n</Thought>\n<Output>{r}</Output>",
    "GLM's box": lambda r: f"<|begin_of_box|>{r}<|end_of_box|>",
    "Kimi": lambda r: f"\u25c1think\u25b7let me see\u25c1/think\u25b7{r}",
    "Cohere": lambda r: f"<|START_THINKING|>let me see<|END_THINKING|>{r}",
    "Apriel": lambda r: f"Here are my reasoning steps:\nlet me see\n[BEGIN FINAL RESPONSE]\n{r}",
    "MedGemma": lambda r: f"<unused94>thought\nlet me see<unused95>{r}",
    "harmony without tokens": lambda r: f"analysisLet me see.assistantfinal{r}",
    "harmony in lower case": lambda r: f"analysislet me see.assistantfinal{r}",
    "harmony, tokens as spaces": lambda r: f"analysis let me see. assistant\n\nfinal {r}",
    "harmony, cut": lambda r: "analysisWe need to add the two numbers, so",
    "Gemma without tokens": lambda r: f"thought\nlet me see\n{r}",
    "Granite": lambda r: f"Here is my thought process:\nlet me see\nHere is my response:\n{r}",
}

# Markers that no list names.
UNNAMED: dict[str, Callable[[int, str], str]] = {
    "tag": lambda i, r: f"<ponder>\nsee {i}\n</ponder>\n\n{r}",
    "tag with another closing": lambda i, r: f"<|inner|>\nsee {i}\n<|outer|>\n\n{r}",
    "closing tag only": lambda i, r: f"see {i}\n</cot>\n\n{r}",
    "brackets": lambda i, r: f"\u3010deliberation\u3011see {i}\u3010/deliberation\u3011{r}",
    "glued words": lambda i, r: f"contemplationLet me see {i}.speakerreply{r}",
    "glued in lower case": lambda i, r: f"contemplation{'abcdefghijkl'[i]}lso {i}.speakerreply{r}",
    "name of a channel only": lambda i, r: f"final{r}",
    "lines": lambda i, r: f"Thinking\nsee {i}\n\nResponse\n{r}",
    "labels": lambda i, r: f"**Thinking Process:**\n\n1. see {i}\n\n**Final Output:**\n{r}",
    "most, not all": lambda i, r: r if i % 4 == 0 else f"<ponder>see {i}</ponder>{r}",
}

# Ordinary replies: alike in form, none with a thought.
ORDINARY: dict[str, Callable[[int, str], str]] = {
    "plain": lambda i, r: r,
    "steps": lambda i, r: f"## Step 1: Add\n{i} + 3\n\n## Step 2: Check\n\nThe final answer is: $\\boxed{{{i}}}$",
    "bold": lambda i, r: f"**Solution:**\n\n{r}\n\n**Answer:** {i}",
    "code": lambda i, r: (
        f"```python\nfrom typing import List\n\n\ndef f{i}(x: List[int]) -> int:\n    return x[{i}]\n```"
    ),
    "bare code": lambda i, r: f"import math\n\n\ndef f{i}(x):\n    return toString(x[{i}])",
    "imports": lambda i, r: f"import {'abcdefghijkl'[i]}x\n\nclass A:\n    def getNumber(self):\n        return {i}",
    "camel case": lambda i, r: f"{['getValue', 'toString', 'parseInt', 'isEven'][i % 4]}(x{i});",
    "page": lambda i, r: f"Here is the page:\n<html><body><p>{r}</p></body></html>",
    "generic types": lambda i, r: f"The class is List<String> with [a] {i}",
    "lower case": lambda i, r: f"the answer is {i}\nanswer: {i}",
    "letters": lambda i, r: f"[{'ABCD'[i % 4]}]",
}


def sample(number: int, reply: str, prompt: str = "q") -> Sample:
    return Sample(str(number), number, prompt, reply, "stop", 5, 5)


@pytest.mark.parametrize("name", NAMED)
def test_a_named_marker_pauses_at_the_first_reply(name: str) -> None:
    reply = NAMED[name](ANSWERS[3])
    assert found(reply), name
    tripped = Watch(guards_of("gsm8k-100")).reply(sample(0, reply, QUESTIONS[3]))
    assert tripped is not None
    assert (tripped.guard, "reasoning parser" in tripped.refusal("b").remedy) == ("marker", True)
    assert found(reply)[0] in tripped.actual
    raw = json.dumps(
        {"model": "m", "id": "x", "choices": [{"message": {"content": reply}, "finish_reason": "stop"}]}
    ).encode()
    assert any(mark.startswith(LEAK) for mark in read_answer(raw, ("m",), 64).marks)


@pytest.mark.parametrize("name", UNNAMED)
def test_a_shape_without_a_name_pauses_once_it_is_common(name: str) -> None:
    watch = Watch(guards_of("gsm8k-100"))
    trips = [
        watch.reply(sample(i, UNNAMED[name](i, r), q)) for i, (q, r) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]
    first = next(i for i, one in enumerate(trips) if one)
    assert 4 <= first <= 7
    tripped = trips[first]
    assert tripped is not None
    assert tripped.guard == "marker"
    if name.startswith("glued"):
        assert "'speakerreply'" in tripped.actual
    assert "switch to the answer with" in tripped.actual or "without a space" in tripped.actual


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_replies_have_no_shape(name: str) -> None:
    replies = [ORDINARY[name](i, r) for i, r in enumerate(ANSWERS)]
    assert [found(reply, turns=True) for reply in replies] == [[]] * 12
    assert shape([form_of(reply, q) for reply, q in zip(replies, QUESTIONS, strict=True)]) is None


def test_what_the_prompt_has_is_no_marker() -> None:
    asked = "Put your thoughts in <thinking> tags and the answer in <result> tags. What does <think> do?"
    reply = "<thinking>a</thinking>\n<result>7</result> <think>"
    assert found(reply, asked) == ["</think>"] or found(reply, asked) == []
    replies = [f"<result>{i}</result>" for i in range(10)]
    assert shape([form_of(r, "Write <result>N</result>") for r in replies]) is None
    assert shape([form_of(r) for r in replies]) is not None


def test_the_words_analysis_and_thought_may_begin_a_sentence() -> None:
    for text in (
        "analysis of the data shows 7",
        "Analysis: 7",
        "thought about it: 7",
        "Thought for the day",
        "finalResult",
    ):
        assert found(text) == [], text
    assert half_open("<think>never closed")
    assert not half_open("List<thought> is a type")
    assert HALF_OPEN


def test_a_model_that_goes_on_with_the_next_turn_is_left_to_the_audit() -> None:
    assert found("7<|im_end|>\n<|im_start|>user", turns=True) == ["<|im_start|>", "<|im_end|>"]
    assert found("7<|im_end|>\n<|im_start|>user") == []
    assert set(markers().turns).isdisjoint(markers().control)


HOSTILE = [
    "<",
    "[",
    "\n",
    " ",
    "a",
    "A",
    "<a",
    "</a",
    "<a>",
    "\u25c1a",
    "a\n",
    "*",
    "#",
    "_>",
    "aA",
    ".abcde",
    ":",
    "<think>",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_every_check_is_linear(piece: str) -> None:
    text = (piece * 60_000)[:60_000]
    begun = time.perf_counter()
    forms = [form_of(text), form_of("thought: " + text), form_of("<a>" + text)]
    found(text)
    shape(forms * 3)
    assert time.perf_counter() - begun < 2, piece


def test_recorded_replies_have_none_and_are_caught_behind_a_prefix(shared: Path) -> None:
    folder = shared / "reference" / "omnimergekit-data" / "eval_samples"
    for file in sorted(folder.glob("*.samples.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows = [row for row in map(json.loads, lines) if row.get("resps") and row["resps"][0]]
        texts = [(str(row["resps"][0][0]), json.dumps(row.get("arguments"))) for row in rows]
        texts = [(reply, prompt) for reply, prompt in texts if reply.strip()]
        assert not any(found(reply, prompt, turns=True) for reply, prompt in texts), file.name
        assert shape([form_of(reply, prompt) for reply, prompt in texts]) is None, file.name
        for name, make in UNNAMED.items():
            behind = [(make(i % 12, reply), prompt) for i, (reply, prompt) in enumerate(texts)]
            assert not texts or shape([form_of(*one) for one in behind]), (file.name, name)


@pytest.mark.parametrize(
    ("file", "name"), [("g_think", "<think>"), ("h_harmony_gsm", "harmony text without its tokens")]
)
def test_imported_thinking_is_named_by_the_audit(file: str, name: str, shared: Path, tmp_path: Path) -> None:
    log = tmp_path / "runs.db"
    import_samples(shared / "cases" / "evaluate" / f"{file}.jsonl", "gsm8k-100", log)
    (made,) = audit_runs(log, AuditOptions())
    (check,) = [one for one in made.checks if one.flag == "MARKERS"]
    assert (made.verdict, check.level, len(check.docs)) == ("refused", "refused", 25)
    assert name in check.text
