"""Runs a Markdown page like a notebook: Python blocks in order, each followed by its output in a text block."""

import ast
import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_CELL = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Cell:
    """A block of code and the output that the page shows; None if it shows none."""

    code: str
    shown: str | None


def cells(page: str) -> Iterator[Cell]:
    """The cells of a page in order."""
    for found in _CELL.finditer(page):
        yield Cell(found[1], found[2])


def run(cell: Cell, names: dict[str, Any]) -> str:
    """Execute a cell in `names`; what it prints, then the value of its last expression, as a notebook shows them."""
    body = ast.parse(cell.code).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last is not None else None
    return printed.getvalue() + ("" if value is None else f"{value!r}\n")
