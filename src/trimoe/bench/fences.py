"""The one reader of fenced code in replies, for all code benches.

A fence is a line of three or more backticks or tildes, possibly indented or after a list mark. It is closed by a line
of at least as many of the same characters. A reply need not begin outside a block: where the prompt opens the fence,
the reply begins inside, and its first fence closes. A text alone cannot show which it is, so `candidates` gives both
readings and the bench takes the one that defines what was asked for.
Invariants: pure functions that accept any text, in time linear in its length.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

FENCE = "```"  # the characters that usually begin a fence
_FENCE = re.compile(r"(?:(?:[-*+]|\d{1,3}[.)])[ \t]{1,4})?(?P<mark>`{3,}+(?=[^`]*$)|~{3,}+)(?P<info>.*)")
_PYTHON_NAME = r"^(?:[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)|(\w+)[ \t]*(?::[^=\n]{1,80})?=(?!=))"
_DEFINITION = re.compile(_PYTHON_NAME, re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """Code of a reply. `opened` and `closed`: whether the reply itself has the fence at that end."""

    text: str
    tag: str = ""
    opened: bool = True
    closed: bool = True


def fence_of(line: str) -> tuple[str, str] | None:
    """The characters of a fence and its tag (the language); None for any other line."""
    found = _FENCE.fullmatch(line.strip())
    return (found["mark"], found["info"].strip()) if found else None


def blocks(text: str, *, inside: bool = False) -> list[Block]:
    """Every block, in order, dedented by the indentation of its first non-empty line.

    `inside`: the text begins inside a block that something before it opened. A fence with a tag inside an open block
    (nested, or after a missing closing fence) starts a new block, and the open one is dropped.
    """
    found: list[Block] = []
    mark, tag, lines = ("", "", []) if inside else (None, "", [])  # type: tuple[str | None, str, list[str]]
    opened = not inside
    for line in text.split("\n"):
        fence = fence_of(line)
        if mark is None:
            if fence:
                (mark, tag), lines = fence, []
        elif fence is None or _is_content(fence, mark):
            lines.append(line)
        elif fence[1]:
            (mark, tag), lines, opened = fence, [], True
        else:
            found.append(Block(dedent_as_first("\n".join(lines)), tag, opened))
            mark, opened = None, True
    if mark is not None:
        found.append(Block(dedent_as_first("\n".join(lines)), tag, opened, closed=False))
    return found


def _is_content(fence: tuple[str, str], mark: str) -> bool:
    """Whether a fence inside a block opened by `mark` is text of that block; `mark` is empty if it is not known."""
    other = bool(mark) and fence[0][0] != mark[0]
    return other or (not fence[1] and len(fence[0]) < len(mark))


def candidates(text: str) -> list[Block]:
    """The blocks of a reply that have text. The first may be unopened: the reply up to its first fence, if that may
    close a block that the prompt opened."""
    first = next(filter(None, map(fence_of, text.split("\n"))), None)
    found = blocks(text)
    if first is None or not first[1]:
        found = [*blocks(text, inside=True)[:1], *found, *blocks(text, inside=True)[1:]]
    return [block for block in dict.fromkeys(found) if block.text.strip()]


def largest(found: list[Block]) -> str | None:
    """The text of the longest block that has an opening fence."""
    return max((block.text for block in found if block.opened), key=len, default=None)


def defined(source: str) -> Iterator[str]:
    """Names that Python source seems to define: functions, classes, methods, and variables of the module."""
    return (match[1] or match[2] for match in _DEFINITION.finditer(source))


def defines(source: str, names: Collection[str]) -> int:
    """How many of the names Python source seems to define. It need not parse."""
    return len(set(names).intersection(defined(source)))


def dedent_as_first(block: str) -> str:
    """Remove the indentation of the first non-empty line from every line that starts with it."""
    first = next((line for line in block.split("\n") if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip())]
    return "\n".join(line.removeprefix(indent) for line in block.split("\n")) if indent else block
