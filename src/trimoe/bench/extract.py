"""Pieces of extraction that several benches share: fenced blocks, the valid part of Python source, JSON-ish literals.

Invariants: pure functions of text that return for any text, in time near linear in its length.
"""

import ast
import re
import warnings
from collections.abc import Callable, Iterator

FENCE = "```"
MOST_CUTS = 30


def complete_blocks(text: str) -> list[str]:
    """Contents of every closed fenced block, in order, moved left by the indentation of its first non-empty line.

    An opening fence inside an open block (a nested or forgotten fence) starts over: the block before it was not closed.
    """
    blocks: list[str] = []
    inside: list[str] | None = None
    for line in text.split("\n"):
        mark = line.strip()
        if not mark.startswith(FENCE):
            if inside is not None:
                inside.append(line)
        elif inside is not None and mark == FENCE:
            blocks.append(dedent_as_first("\n".join(inside)))
            inside = None
        else:
            inside = []
    return blocks


def largest_block(text: str, *, unterminated: bool = False) -> str | None:
    """The longest closed fenced block; with `unterminated`, one that the reply left open counts too."""
    blocks = complete_blocks(text)
    if unterminated and blocks_open(text):
        blocks.append(dedent_as_first(text.rpartition(FENCE)[2].partition("\n")[2]))
    filled = [block for block in blocks if block.strip()]
    return max(filled, key=len) if filled else None


def blocks_open(text: str) -> bool:
    """Whether the text ends inside a fenced block."""
    inside = False
    for line in text.split("\n"):
        mark = line.strip()
        if mark.startswith(FENCE):
            inside = not (inside and mark == FENCE)
    return inside


def dedent_as_first(block: str) -> str:
    """Take the indentation of the first non-empty line off every line that has it."""
    first = next((line for line in block.split("\n") if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip())]
    return "\n".join(line.removeprefix(indent) for line in block.split("\n")) if indent else block


def parse(source: str) -> ast.Module | SyntaxError | None:
    """The tree, the error with its line, or None where Python gives up without one (NUL bytes, deep nesting)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in a reply are no concern of ours
            return ast.parse(source)
    except SyntaxError as exc:
        return exc
    except (ValueError, RecursionError, MemoryError):
        return None


def valid_prefix(source: str, accept: Callable[[ast.Module], bool], before: str = "") -> str | None:
    """The longest prefix of whole lines that parses (after `before`), if `accept` takes it; None otherwise.

    A prefix that still holds the line of a syntax error fails in the same way, so the search goes on above that line.
    What `accept` looks for must not go away when lines are added, so a shorter prefix need not be asked. After
    `MOST_CUTS` cuts the text is given up: code needs a few.
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
    """Whether a function does anything besides its docstring."""
    first = node.body[0]
    only_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return len(node.body) > 1 or not only_text


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a module, methods included."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def last_integer(text: str) -> str | None:
    """The last whole number of a text as it is written, thousands separators taken out."""
    found = re.findall(r"\d{1,3}(?:,\d{3})+(?!\d)|\d+", text)
    return found[-1].replace(",", "") if found else None


def boxed(text: str) -> list[str]:
    r"""Contents of every \boxed{...}, braces balanced, in the order of their beginnings; unclosed ones are left out."""
    return [content for _, content in sorted(boxes(text)) if content is not None]


def open_box(text: str) -> bool:
    r"""Whether the last \boxed{ of a text is never closed: the reply ended, or went on, without finishing it."""
    found = boxes(text)
    return bool(found) and max(found, key=lambda box: box[0])[1] is None


def boxes(text: str) -> list[tuple[int, str | None]]:
    r"""Where the content of each \boxed{ begins, and the content; None where its brace is never closed."""
    found: list[tuple[int, str | None]] = []
    opened: list[int | None] = []  # per open brace where its box's content begins, None for a brace of no box
    for match in re.finditer(r"\\boxed\s{0,9}\{|[{}]", text):
        if match.group() != "}":
            opened.append(match.end() if match.group() != "{" else None)
        elif opened and (begin := opened.pop()) is not None:
            found.append((begin, text[begin : match.start()]))
    return found + [(begin, None) for begin in opened if begin is not None]
