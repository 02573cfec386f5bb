"""GSM8K: the last number of a reply."""

import re
from typing import Any

from trimoe.evaluate.bench import exact
from trimoe.evaluate.rows import Row, View, each, spec_bench

_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")  # lm-eval's flexible-extract
_IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))


def last_number(reply: str) -> str | None:
    """The last run of two or more of `$0-9.,` or whole number, with its minus. A lone "..." is such a run, too."""
    found = _NUMBER.findall(reply)
    return (found[-1][0] or found[-1][1]).strip() if found else None


def normal(number: str) -> str:
    """lm-eval's exact_match with its `regexes_to_ignore`, case ignored."""
    for pattern in _IGNORED:
        number = pattern.sub("", number)
    return number.lower()


def view(row: Row) -> View:
    """The gold answer stands after the last "#### " of the worked solution."""
    return View({"question": row["question"]}, {"answer": normal(row["answer"])}, row["answer"])


def right(answer: str, check: dict[str, Any]) -> bool:
    """Equal as text once normalised; 18 and 18.00 differ, as in the reference."""
    return bool(normal(answer) == check["answer"])


BENCH = spec_bench("gsm8k_100", each(view), exact(right), extract=last_number)
