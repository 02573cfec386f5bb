"""GPQA Diamond: extracts the last "(X)" of a reply, else the option it quotes, else a letter after a colon."""

import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

from trimoe.bench.bench import Doc, Verdict, exact
from trimoe.bench.rows import Row, Stated, View, spec_bench
from trimoe.bench.spec import BenchSpec
from trimoe.bench.stated import letter as stated_letter

LETTERS = "ABCD"
_PARENTHESISED = re.compile(r"\(([A-Z])\)")
_AFTER_COLON = re.compile(r":\s*([A-D])")


def cleaned(text: str | None, keep_brackets: bool) -> str:
    """An option as lm-eval shows it; version 0.4.11 also removed everything in square brackets."""
    if text is None:
        return " "
    text = text.strip().replace(" [title]", ". ")
    if not keep_brackets:
        text = re.sub(r"\[.*?\]", "", text)
    return text.replace("  ", " ")


def views(rows: Sequence[Row], spec: BenchSpec) -> list[View]:
    """Rows with their options shuffled by one random generator for all rows."""
    draw = Random(int(spec.options["seed"]))
    return [_recorded(row) if "choices" in row else _shuffled(row, draw, spec) for row in rows]


def _shuffled(row: Row, draw: Random, spec: BenchSpec) -> View:
    keep = bool(spec.options["keep_brackets"])
    right = cleaned(row["Correct Answer"], keep)
    options = [*(cleaned(row[f"Incorrect Answer {i}"], keep) for i in (1, 2, 3)), right]
    draw.shuffle(options)
    return _view(row["Question"], options, LETTERS[options.index(right)])


def _recorded(row: Row) -> View:
    """A row of an lm-eval sample, whose options are already shuffled."""
    return _view(row["Question"], list(row["choices"]), str(row["answer"]).strip("()"))


def _view(question: str, options: list[str], gold: str) -> View:
    fields = {"question": question, **dict(zip(LETTERS, options, strict=True))}
    return View(fields, {"letter": gold, "options": options}, f"The answer is ({gold})")


def letter(reply: str, doc: Doc) -> str | None:
    """lm-eval's flexible extraction (`multi_choice_regex`, last match, case and punctuation ignored)."""
    if found := _PARENTHESISED.findall(reply):
        return str(found[-1])
    options = {plain(text.strip()): name for name, text in zip(LETTERS, doc.check["options"], strict=True)}
    quoted = re.compile("|".join(map(re.escape, sorted(options, key=len, reverse=True))))
    # An option of nothing but punctuation matches everywhere and is ignored.
    if (found := quoted.findall(plain(reply))) and found[-1].strip():
        return options[found[-1].strip()] if found[-1].strip() in options else options[found[-1]]
    return str(found[-1]) if (found := _AFTER_COLON.findall(reply)) else None


def plain(text: str) -> str:
    """Lower case, without punctuation of any script."""
    return text.lower().translate(_punctuation())


@cache
def _punctuation() -> dict[int, None]:
    return {i: None for i in range(sys.maxunicode) if unicodedata.category(chr(i)).startswith("P")}


def right(answer: str, check: dict[str, Any]) -> bool:
    """The same letter."""
    return bool(answer == check["letter"])


def opinion(reply: str, doc: Doc, verdict: Verdict) -> str:
    """Where the letter in the reply's final statement is not the extracted one; empty if there is none."""
    stated = stated_letter(reply)
    if stated in (None, verdict.extracted):
        return ""
    return f"it states {stated}, {verdict.extracted or 'nothing'} was extracted"


BENCH = spec_bench(
    "gpqa_diamond",
    views,
    exact(right),
    extract_for=letter,
    scorer=2,
    opinion=opinion,
    stated=Stated(exact(right), lambda reply, doc: stated_letter(reply)),
)
