"""Extraction shared by several benches: valid Python prefixes, last integers, LaTeX boxes.

Invariants: pure functions that accept any text, in time nearly linear in its length.
"""

import ast
import re
import warnings
from collections.abc import Callable, Iterator

MOST_CUTS = 30


def parse(source: str) -> ast.Module | SyntaxError | None:
    """The syntax tree, the error with its line, or None if Python fails otherwise (NUL bytes, deep nesting)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for example about invalid escapes
            return ast.parse(source)
    except SyntaxError as exc:
        return exc
    except (ValueError, RecursionError, MemoryError):
        return None


def valid_prefix(source: str, accept: Callable[[ast.Module], bool], before: str = "") -> str | None:
    """The longest prefix of whole lines that parses (after `before`), if `accept` takes it; None otherwise.

    A prefix that contains the line of a syntax error fails in the same way, so the search continues above that line.
    `accept` must be monotonic: if it takes a prefix, it takes longer ones, so shorter ones need not be tried. The
    search ends after `MOST_CUTS` cuts; real code needs only a few.
    """
    lines = source.split("\n")
    skipped = before.count("\n")
    end = len(lines)
    for _ in range(MOST_CUTS):
        if end <= 0:
            return None
        prefix = "\n".join(lines[:end])
        tree = parse(before + prefix)
        if isinstance(tree, ast.Module):
            return prefix if accept(tree) else None
        if isinstance(tree, SyntaxError) and tree.lineno is not None:
            end = min(end - 1, max(tree.lineno - skipped - 1, 0))
        else:
            end -= 1
    return None


def has_body(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function has a body besides its docstring."""
    first = node.body[0]
    only_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return len(node.body) > 1 or not only_text


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a module, including methods."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def last_integer(text: str) -> str | None:
    """The last whole number of a text as written, without thousands separators."""
    found = re.findall(r"\d{1,3}(?:,\d{3})+(?!\d)|\d+", text)
    return found[-1].replace(",", "") if found else None


def boxed(text: str) -> list[str]:
    r"""Contents of every \boxed{...} with balanced braces, in the order of their starts; unclosed ones are left out."""
    return [content for _, content in sorted(boxes(text)) if content is not None]


def open_box(text: str) -> bool:
    r"""Whether the last \boxed{ of a text is never closed."""
    found = boxes(text)
    return bool(found) and max(found, key=lambda box: box[0])[1] is None


def boxes(text: str) -> list[tuple[int, str | None]]:
    r"""Start and content of each \boxed{; the content is None if its brace is never closed."""
    found: list[tuple[int, str | None]] = []
    opened: list[int | None] = []  # per open brace the start of its box's content, None for other braces
    for match in re.finditer(r"\\(?:boxed|fbox)\s{0,9}\{|[{}]", text):
        if match.group() != "}":
            opened.append(match.end() if match.group() != "{" else None)
        elif opened and (begin := opened.pop()) is not None:
            found.append((begin, text[begin : match.start()]))
    return found + [(begin, None) for begin in opened if begin is not None]
