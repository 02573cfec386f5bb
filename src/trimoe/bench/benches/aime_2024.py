r"""AIME 2024: a whole number, looked for in the places where a reply states its result, the surest place first.

The order: the last \boxed number; a line "(Final) Answer: N"; "answer" with a box after it; a number that ends the last
line after "is", "equals" or "="; the last "= N" anywhere; the last whole number near the end.
"""

import re
from typing import Any

from trimoe.bench.bench import exact
from trimoe.bench.extract import boxed, last_integer
from trimoe.bench.rows import Row, View, each, spec_bench

TAIL = 400  # characters
_END = r"(?!,?\d)(?!\.\d)"  # the number is over here: no further digits, no decimals
_LINE = re.compile(rf"^[ \t*#>_-]*(?:the\s+)?(?:final\s+)?answer[*_\s]*:[*_\s$\\(]*(\d++){_END}", re.I | re.M)
_PHRASE = re.compile(r"answer[^\n]{0,80}?(\\boxed\s*\{.*)", re.I)
_LAST_LINE = re.compile(rf"(?:\bis|\bequals|=)[*_\s$\\(:]*(\d++){_END}[^\w\d]*$", re.I)
_EQUALS = re.compile(rf"=[\s$]*(\d++){_END}(?!\s*[/^])")
_DECORATION = re.compile(r"\\[,;:! ]|\\(?:text|mathbf|mathrm|displaystyle)\b|[{}$\s]|\^?\\circ")


def answer(reply: str) -> str | None:
    """The stated number without leading zeros, or None."""
    for find in (_from_box, _from_line, _from_phrase, _from_last_line, _from_equation, _from_tail):
        if (number := find(reply)) is not None:
            return number.lstrip("0") or "0"
    return None


def _from_box(reply: str) -> str | None:
    """The last box that is a number, or an equation that ends in one; decoration does not count."""
    for content in reversed(boxed(reply)):
        bare = _DECORATION.sub("", content).rpartition("=")[2].rstrip(".")
        if re.fullmatch(r"\d+|\d{1,3}(?:,\d{3})+", bare):
            return bare.replace(",", "")
    return None


def _from_line(reply: str) -> str | None:
    return _last(_LINE.findall(reply))


def _from_phrase(reply: str) -> str | None:
    """A box after the word "answer" that holds more than a number: its last whole number."""
    boxes = [content for rest in _PHRASE.findall(reply) for content in boxed(rest)[:1]]
    return last_integer(boxes[-1]) if boxes else None


def _from_last_line(reply: str) -> str | None:
    lines = [line for line in reply.split("\n") if line.strip()]
    found = _LAST_LINE.search(lines[-1].rstrip()) if lines else None
    return found.group(1) if found else None


def _from_equation(reply: str) -> str | None:
    return _last(_EQUALS.findall(reply))


def _from_tail(reply: str) -> str | None:
    return last_integer(reply[-TAIL:])


def _last(found: list[str]) -> str | None:
    return found[-1] if found else None


def problem_id(row: Row) -> str:
    """Paper and number, "2024-II-4": copies of the data number and order the problems in ways of their own."""
    if "ID" in row:
        return str(row["ID"])
    match = re.search(r"(\d{4})_AIME_(I+)_Problems/Problem_(\d+)", str(row["url"]))
    return "-".join(match.groups()) if match else str(row["id"])


def view(row: Row) -> View:
    """Either copy of the data: {ID, Problem, Answer} of the hub, {id, problem, answer, url} of the local file."""
    gold = str(int(row["Answer"] if "Answer" in row else row["answer"]))
    return View(
        {"problem": row["Problem"] if "Problem" in row else row["problem"]}, {"answer": gold}, rf"\boxed{{{gold}}}"
    )


def right(number: str, check: dict[str, Any]) -> bool:
    """Equal as whole numbers; leading zeros do not count."""
    return bool(number == check["answer"])


BENCH = spec_bench("aime_2024", each(view), exact(right), extract=answer, row_id=problem_id)
