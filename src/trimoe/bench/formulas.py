r"""Whether two short answers in TeX are the same: our own reading, beside math-verify's.

math-verify 0.9 reads `12\,345` as a product, ignores the base of a numeral, and takes `\%` as text. This reading does
not. It is stricter in form: it compares one stated answer with one gold answer, never parts of a text.
"""

import re
from collections.abc import Callable
from fractions import Fraction

LONGEST = 300  # characters of an answer that is compared
_SPACES = re.compile(r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])|\s")
_NOISE = re.compile(
    r"\\(?:left|right|displaystyle|bigl?|bigr?)(?![A-Za-z])|\\[%$]|[%$]|\^\{?\\circ\}?|\\degree(?![A-Za-z])"
)
_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf)\s?\{([^{}]*)\}")
_AND = re.compile(r"\b(?:and|or)\b", re.IGNORECASE)
_GROUP_GAP = re.compile(r"(?<=\d) {1,9}(?=\d{3}(?!\d))")  # within one number
_GAP = re.compile(r"(?<=\d) {1,9}(?=\d)")  # between two numbers, which must not become one
_FRACTION = re.compile(r"\\[dt]frac(?![A-Za-z])")
_SHORT_FRACTION = re.compile(r"\\frac(\d)(\d)(?!\d)")
_GROUPS = re.compile(r"[-+]?\d{1,3}(?:(?:,|\{,\})\d{3})+(?:\.\d+)?")
_NUMBER = re.compile(r"[-+]?\d{1,200}(?:\.\d{1,200})?")
_TERMS = re.compile(r"([-+]?)\\frac\{([-+]?\d{1,200})\}\{(\d{1,200})\}|([-+]?\d{1,200})/(\d{1,200})")
_NUMERAL = re.compile(r"([0-9A-Za-z]{1,200})_\{?(\d{1,2})\}?")
_ASSIGNED = re.compile(r"[A-Za-z](?:_\{?\w\}?)?=")


def plain(text: str) -> str:
    """An answer without spacing, style, units, and signs that only name a unit."""
    text = _FRACTION.sub(r"\\frac", text)
    outside = _WORDS.sub(lambda found: "," if _AND.search(found[1]) else " ", text)
    text = outside if re.search(r"\d", outside) else _WORDS.sub(r"\1", text)  # words beside a number are its unit
    text = _SPACES.sub(" ", _NOISE.sub("", text))
    text = _GAP.sub(",", _GROUP_GAP.sub("", text)).replace(" ", "").rstrip(".")
    if _GROUPS.fullmatch(text):
        text = re.sub(r"[{},]", "", text)
    return _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)


def same(stated: str, gold: str, otherwise: Callable[[str, str], bool]) -> bool | None:
    """Whether two answers are the same. `otherwise` decides about expressions; None for texts too long to compare."""
    if max(len(stated), len(gold)) > LONGEST:
        return None
    ours, theirs = plain(stated), plain(gold)
    if "=" not in theirs:
        ours = _ASSIGNED.sub("", ours, count=1) if _ASSIGNED.match(ours) else ours
    if ours.casefold() == theirs.casefold():
        return True
    numerals = [_NUMERAL.fullmatch(text) for text in (ours, theirs)]
    if any(numerals):
        return _same_numerals((ours, numerals[0]), (theirs, numerals[1]))
    values = [_value(text) for text in (ours, theirs)]
    if None not in values:
        return values[0] == values[1]
    return otherwise(ours, theirs)


def _same_numerals(*both: tuple[str, re.Match[str] | None]) -> bool:
    """The same digits in the same base; a base that one of them leaves out is taken from the other."""
    digits = {(found[1] if found else text).lstrip("0").casefold() for text, found in both}
    return len(digits) == 1 and len({found[2] for _, found in both if found}) == 1


def _value(text: str) -> Fraction | None:
    if _NUMBER.fullmatch(text):
        return Fraction(text)
    if (found := _TERMS.fullmatch(text)) and int(found[3] or found[5]):
        return Fraction(int(found[2] or found[4]), int(found[3] or found[5])) * (-1 if found[1] == "-" else 1)
    return None
