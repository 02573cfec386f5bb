r"""AIME 2024: extracts a whole number from the places where replies state their result, the most reliable first.

The order: the last \boxed{...} with a number, if that is one whole number; a line "(Final) Answer: N", or a line or
sentence that ends in "answer is N"; a last line that is only a number; a number that ends the last line after "is",
"equals" or "="; the last "= N" anywhere; the last number near the end. The weaker rules skip boxes, because parts of
a boxed fraction are not answers. If the last box is unclosed, or holds one number in an expression of another value,
there is no answer. A number that is stated as the answer and is not whole ("the answer is 12.5.") is the answer.
Signs, decimals and fractions stay with their number: -25, 12.5 and 25/2 are (wrong) answers.
"""

import re
from typing import Any

from trimoe.bench.bench import exact
from trimoe.bench.extract import boxed, boxes, open_box
from trimoe.bench.rows import Row, View, each, spec_bench

TAIL = 400  # characters
_END = r"(?!,?\d)(?!\.\d)"  # the number ends here: no further digits, no decimals
_ZEROS = r"(?:\.0{1,9})?"
_LINE = re.compile(
    rf"^[ \t*#>_-]{{0,9}}(?:the\s)?(?:final\s)?answer[*_ \t]{{0,9}}:[*_ \t$\\(]{{0,9}}(\d++){_ZEROS}{_END}", re.I | re.M
)
_ANSWER_IS = re.compile(rf"answer is[*_ \t$\\(:]{{0,9}}(\d++){_ZEROS}{_END}[^\w\n]{{0,9}}$", re.I | re.M)
# In mid-line a number counts if it ends the sentence, or has marks of its own around it.
_SENTENCE = re.compile(rf"answer(?: is|:)[*_ \t$\\(:]{{0,9}}(\d++){_ZEROS}{_END}[*_$\\)]{{0,9}}[.;!](?:\s|$)", re.I)
_MARKED = re.compile(rf"answer(?: is|:)[*_ \t:]{{0,9}}(?:\$|\\\(|\*\*)\s?(\d++){_ZEROS}\s?(?:\$|\\\)|\*\*)", re.I)
# A stated number of any kind, whole or not, that ends its sentence or line.
_STATED = re.compile(
    r"\banswer[*_ \t]{0,9}(?: is|:)[*_ \t$\\(:]{0,9}"
    r"([-−]?\d{1,30}+(?:,\d{3}){0,9}+(?:\.\d{1,30}+)?(?:\s?/\s?\d{1,30}+)?)"
    r"[*_$\\) \t]{0,9}(?=[.;!,](?:\s|$)|\n|$)",
    re.I,
)
_LONE_LINE = re.compile(rf"[*_\s$\\(]{{0,9}}(\d++){_ZEROS}[*_\s$\\).]{{0,9}}")
_BARE_BOX = re.compile(r"\\boxed\s{1,9}(\d{1,30})")
_LAST_LINE = re.compile(rf"(?:\bis|\bequals|=)[*_\s$\\(:]{{0,9}}(\d++){_ZEROS}{_END}[^\w\d]{{0,20}}$", re.I)
_EQUALS = re.compile(rf"=[\s$]{{0,9}}(\d++){_END}(?!\s{{0,9}}[/^])")
_NUMBER = re.compile(r"(?<![\w.,])[-−]?\d{1,30}+(?:,\d{3}){0,9}(?:\.\d{1,30}+)?(?:\s?/\s?\d{1,30}+)?")
# In a box, spaces are normalised, then style commands and braces, then words (units) are removed.
_SPACE = re.compile(r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])")
_STYLE = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|mbox|hbox|mathbf|mathrm|mathit|mathsf|mathtt|boldsymbol|bm|bf|rm|it|tt"
    r"|operatorname|underline|displaystyle|textstyle|left|right|tiny|small|normalsize|large|Large|LARGE|huge|Huge|approx"
    r"|sim|simeq)(?![A-Za-z])|\\(?:text)?color\s?\{[^{}]{0,40}\}|\^\s?\{?\s?\\circ|\\circ|\\[%$]|[{}$%]"
)
# What may stand beside the number once style is gone: a modulus, base ten, the label of an option, a unit with a power.
_MODULUS = re.compile(r"\(?\s?\\?p?mod\s{0,9}\d{1,9}\s?\)?", re.I)
_BASE_TEN = re.compile(r"(?<=\d)_10\b")
_OPTION = re.compile(r"^\s{0,9}\([A-E]\)\s")
_POWER = re.compile(r"(?:(?<=\s)[A-Za-z]|[A-Za-z]{2,9})\.?\^-?\d")
_WORD = re.compile(r"(?<![\\A-Za-z_^])[A-Za-z]{2,}\.?")
_GROUPS = re.compile(r"(?<=\d)\s{1,3}(?=\d{3}(?!\d))")
_WHOLE = re.compile(r"([-−]?(?:\d+|\d{1,3}(?:,\d{3})+))(?:\.0+)?")


def answer(reply: str) -> str | None:
    """The stated number without leading zeros, or None."""
    if open_box(reply):
        return None
    contents = [content for content in [*boxed(reply), *_BARE_BOX.findall(reply)] if re.search(r"\d", content)]
    if contents and (number := whole_number(contents[-1])) is not None:
        return number
    if contents and len(re.findall(r"\d+", contents[-1])) == 1:
        return None  # one number and something that changes its value: no other text is the answer
    rest = without_boxes(reply)
    if (number := _not_whole(rest)) is not None:
        return number
    for find in (_from_line, _from_lone_line, _from_last_line, _from_equation, _from_tail):
        if (number := find(rest)) is not None:
            return _plain(number)
    return None


def whole_number(content: str) -> str | None:
    """The whole number in a box, ignoring units and style commands; None for any other content."""
    bare = _STYLE.sub("", _SPACE.sub(" ", content))
    for beside in (_MODULUS, _BASE_TEN, _OPTION, _POWER):
        bare = beside.sub(" ", bare)
    bare = _WORD.sub(" ", bare).rpartition("=")[2]
    bare = _GROUPS.sub("", " ".join(bare.split())).strip(" .,;()[]+")
    found = _WHOLE.fullmatch(bare)
    return _plain(found[1]) if found else None


def without_boxes(reply: str) -> str:
    r"""The reply without the contents of \boxed{...}."""
    parts, at = [], 0
    for begin, content in sorted((begin, content) for begin, content in boxes(reply) if content is not None):
        if begin >= at:  # nested boxes are removed with the outer one
            parts.append(reply[at:begin])
            at = begin + len(content)
    return "".join([*parts, reply[at:]])


def _plain(number: str) -> str:
    number = number.replace(",", "").replace("−", "-")
    sign, digits = ("-", number[1:]) if number.startswith("-") else ("", number)
    return sign + (digits.lstrip("0") or "0")


def _from_line(reply: str) -> str | None:
    found = [(m.start(), m[1]) for rule in (_LINE, _ANSWER_IS, _SENTENCE, _MARKED) for m in rule.finditer(reply)]
    return max(found)[1] if found else None


def _not_whole(reply: str) -> str | None:
    """The number stated last as the answer, if it is negative or no whole number: no weaker rule may replace it."""
    last = max(_STATED.finditer(reply), key=lambda match: match.start(), default=None)
    if last is None or any(
        m.start() > last.start() for rule in (_LINE, _ANSWER_IS, _MARKED) for m in rule.finditer(reply)
    ):
        return None
    number = re.sub(r"\.0{1,30}$|\s", "", last[1])
    return None if re.fullmatch(r"[\d,]+", number) else number.replace(",", "").replace("−", "-")


def _from_lone_line(reply: str) -> str | None:
    """A last line that is nothing but a number."""
    found = _LONE_LINE.fullmatch(reply.rstrip().rpartition("\n")[2])
    return found.group(1) if found else None


def _from_last_line(reply: str) -> str | None:
    lines = [line for line in reply.split("\n") if line.strip()]
    found = _LAST_LINE.search(lines[-1].rstrip()) if lines else None
    return found.group(1) if found else None


def _from_equation(reply: str) -> str | None:
    found = _EQUALS.findall(reply)
    return str(found[-1]) if found else None


def _from_tail(reply: str) -> str | None:
    found = _NUMBER.findall(reply[-TAIL:])
    return str(found[-1]) if found else None


def problem_id(row: Row) -> str:
    """Paper and number, "2024-II-4": the copies of the data number and order the problems differently."""
    if "ID" in row:
        return str(row["ID"])
    match = re.search(r"(\d{4})_AIME_(I+)_Problems/Problem_(\d+)", str(row["url"]))
    return "-".join(match.groups()) if match else str(row["id"])


def view(row: Row) -> View:
    """A row of either copy of the data: {ID, Problem, Answer} (hub) or {id, problem, answer, url} (local file)."""
    gold = str(int(row["Answer"] if "Answer" in row else row["answer"]))
    return View(
        {"problem": row["Problem"] if "Problem" in row else row["problem"]}, {"answer": gold}, rf"\boxed{{{gold}}}"
    )


def right(number: str, check: dict[str, Any]) -> bool:
    """Equal as whole numbers; leading zeros are ignored."""
    return bool(number == check["answer"])


BENCH = spec_bench("aime_2024", each(view), exact(right), extract=answer, row_id=problem_id, scorer=4)
