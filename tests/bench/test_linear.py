"""Extraction takes time linear in the length of a reply, whatever its shape.

Measured as the CPU time of this thread, which other processes do not change, and judged by its growth: four times the
length may take eight times as long, or a quarter of a second. Quadratic code takes sixteen times as long.
"""

import re
import time
from collections.abc import Callable, Collection, Iterator

import pytest

from helpers.shapes import shapes
from trimoe.bench.bench import Doc
from trimoe.bench.catalog import benches
from trimoe.bench.cause import loops
from trimoe.bench.code.languages import languages
from trimoe.bench.extract import boxes, last_integer
from trimoe.bench.fences import candidates
from trimoe.bench.patterns import Pattern, SlowPattern
from trimoe.evaluate import markers

LENGTH = 60_000  # characters: about as many as a reply at the largest token limit has
SHORT, LONG = shapes(LENGTH // 4), shapes(LENGTH)
NEGLIGIBLE = 0.25  # seconds
GROWTH = 8
PROMPTS = {
    "rs": "/// Doc\nfn f(x: isize) -> isize {\n",
    "java": "class Problem {\n    // Doc\n    public static long f(long x) {\n",
    "js": "//Doc\nfunction f(x){\n",
}
CHECKS = {
    "gpqa-diamond": {"letter": "A", "options": ["Guilty", "Guilty of Romance", "pi/2, or so", "None."]},
    "humaneval": {"prompt": "def f(x):\n", "entry_point": "f"},
    "humaneval-plus": {"prompt": "def f(x):\n", "entry_point": "f"},
    "mbpp": {"setup": "", "tests": ["assert f(1) == 2"]},
}
DEFINITIONS = {"humaneval": "def f(x):\n    return x\n", "mbpp": "def f(x):\n    return x\n"}


def slow(run: Callable[[str], object], names: Collection[str] = LONG) -> dict[str, str]:
    """The shapes on which a function is slower than linear."""
    found = {}
    for name in names:
        text = LONG[name]
        if (taken := cpu(run, text)) > NEGLIGIBLE and taken > GROWTH * (short := cpu(run, SHORT[name])):
            taken = min(taken, cpu(run, text))  # the first run may have paid for something else
            if taken > GROWTH * short:
                found[name] = f"{short:.2f} s, then {taken:.2f} s"
    return found


def cpu(run: Callable[[str], object], text: str) -> float:
    begin = time.thread_time()
    run(text)
    return time.thread_time() - begin


def docs() -> Iterator[tuple[str, Doc]]:
    for name in benches():
        if name == "multipl-e-100":
            for language, prompt in PROMPTS.items():
                check = {"name": "n", "language": language, "prompt": prompt, "tests": "}\n", "stop_tokens": ["\n}"]}
                yield name, Doc(language, "", "", check)
        else:
            yield name, Doc("", "", "", CHECKS.get(name, {}))


def test_there_are_enough_shapes() -> None:
    assert len(LONG) >= 45
    assert all(LENGTH // 2 < len(text) < 2 * LENGTH for text in LONG.values())


@pytest.mark.parametrize(
    ("name", "doc"), list(docs()), ids=lambda value: value if isinstance(value, str) else value.doc_id
)
def test_extraction_is_linear(name: str, doc: Doc) -> None:
    bench = benches()[name]
    assert slow(lambda reply: bench.answer(reply, doc)) == {}


@pytest.mark.parametrize("key", sorted(PROMPTS))
def test_taking_a_program_apart_is_linear(key: str) -> None:
    """The asked function stands before and after the degenerate part, so that the whole text is read."""
    language, head = languages()[key], PROMPTS[key].rpartition("\n")[0] + "\n"
    whole = f"{head}  return 1; }}\n"
    assert slow(lambda text: language.complete(f"{whole}{text}\n{whole}", PROMPTS[key], "f")) == {}


READERS: dict[str, Callable[[str], object]] = {
    "fences": candidates,
    "loops": loops,
    "boxes": boxes,
    "the last integer": last_integer,
    "leaked markers": markers.found,
    "half-open thoughts": markers.half_open,
    "the form of thinking": markers.form_of,
}


@pytest.mark.parametrize("name", READERS)
def test_other_readers_of_replies_are_linear(name: str) -> None:
    assert slow(READERS[name]) == {}


def test_this_test_finds_a_quadratic_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, length in (("SHORT", 6_000), ("LONG", 24_000)):
        monkeypatch.setitem(globals(), name, shapes(length))
    careless = re.compile(r"\s+x")  # tried from every space to the end
    assert slow(careless.search, ["spaces", "digits"]).keys() == {"spaces"}


# ---------------------------------------------------------------- patterns of users

CARELESS = r"(?:\s*\n)+Answer: (\w+)"


def test_a_user_s_pattern_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimoe.bench.patterns.SECONDS", 0.05)
    pattern = Pattern(CARELESS)
    assert pattern.texts("so\nAnswer: 12") == ["12"]
    for use in (pattern.texts, pattern.remove):
        with pytest.raises(SlowPattern, match="took too long") as error:
            use("\n" * 20_000)
        assert "bound" in error.value.remedy
