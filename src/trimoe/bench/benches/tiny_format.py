"""Instructions about the form of the reply. Any reply with that form passes, not only the reference answer."""

import json
import re
from collections.abc import Callable
from typing import Any

from trimoe.bench.bench import Bench, exact, held_out, whole_reply


def _listed(reply: str, separator: str, check: dict[str, Any], form: str, letter: str) -> bool:
    words = [word.strip() for word in reply.split(separator)]
    well_formed = all(re.fullmatch(form, word) and word.startswith(letter) for word in words)
    return well_formed and len(words) == len(set(words)) == check["n"]


def _letter(reply: str, check: dict[str, Any]) -> bool:
    return _listed(reply, ",", check, "[a-z]{2,}", check["letter"])


def _upper(reply: str, check: dict[str, Any]) -> bool:
    return _listed(reply, "/", check, "[A-Z]{2,}", check["letter"].upper())


def _json(reply: str, check: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(reply) == check["value"])
    except (ValueError, RecursionError):
        return False


def _lines(reply: str, check: dict[str, Any]) -> bool:
    return [line.strip() for line in reply.splitlines()] == [check["word"]] * check["n"]


def _count(reply: str, check: dict[str, Any]) -> bool:
    return reply == "-".join(str(check["start"] + i) for i in range(check["n"] + 1))


def _wrap(reply: str, check: dict[str, Any]) -> bool:
    wrapped = [re.escape(f"{check['left']}{word}{check['right']}") for word in check["words"]]
    return any(re.fullmatch(rf"{a}(?:\s+|, ?| and ){b}", reply) for a, b in (wrapped, wrapped[::-1]))


def _numbered(reply: str, check: dict[str, Any]) -> bool:
    lines = [line.strip() for line in reply.splitlines()]
    forms = [rf"{i}[.)] ?{re.escape(word)}" for i, word in enumerate(check["words"], 1)]
    return len(lines) == len(forms) and all(re.fullmatch(f, line) for f, line in zip(forms, lines, strict=True))


def _pairs(reply: str, check: dict[str, Any]) -> bool:
    left, right = map(re.escape, check["words"])
    return re.fullmatch(rf"{left} ?(?:->|=>|→) ?{right}\s+END", reply) is not None


KINDS: dict[str, Callable[[str, dict[str, Any]], bool]] = {
    "letter": _letter,
    "upper": _upper,
    "json": _json,
    "lines": _lines,
    "count": _count,
    "wrap": _wrap,
    "numbered": _numbered,
    "pairs": _pairs,
}


def obeys(reply: str, check: dict[str, Any]) -> bool:
    """Whether the whole reply has the requested form."""
    return KINDS[check["kind"]](reply, check)


BENCH = Bench(
    name="tiny-format",
    version=1,
    rows=100,
    max_new_tokens=48,
    load=held_out("format"),
    extract=whole_reply,
    score=exact(obeys),
)
