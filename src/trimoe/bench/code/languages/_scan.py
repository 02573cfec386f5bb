"""Reads source with braces just well enough to take it apart: items at the top level, headers, parameters.

It knows no grammar. Comments, strings and literals are opaque (`Syntax.opaque`), so their braces do not count.
Invariants: `"".join(items(text, ...)) == text`, time linear in its length, and no text raises an exception.
"""

import re
from dataclasses import dataclass

# Text that continues a statement after a closing brace, so that both are one item.
_CONTINUES = re.compile(r"\s*(?:else\b|catch\b|finally\b|from\b|[;,.)\]])|[ \t]*[=?:&|+*<>\[(-]")


@dataclass(frozen=True)
class Syntax:
    """How to read a language: its comments and literals, and whether a line break may end a statement."""

    opaque: re.Pattern[str]
    line_ends: bool = False


def bare(text: str, syntax: Syntax) -> str:
    """The text with comments and literals replaced by spaces, so that places stay the same."""
    return syntax.opaque.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def items(text: str, syntax: Syntax) -> list[str]:
    """The text cut after every `;` and closing brace that is not inside brackets."""
    code, found, begin, depth = bare(text, syntax), [], 0, 0
    for match in re.finditer(r"[{}()\[\];]|\n(?=[A-Za-z_$])", code):
        mark, end = match[0], match.end()
        if mark in "{([":
            depth += 1
        elif mark in "})]":
            depth = max(0, depth - 1)
        ends = mark == ";" or (mark == "}" and not _CONTINUES.match(code, end)) or (mark == "\n" and syntax.line_ends)
        if depth == 0 and ends and code[begin:end].strip():
            found.append(text[begin:end])
            begin = end
    return [*found, text[begin:]] if text[begin:] else found


def inner(text: str, syntax: Syntax) -> tuple[str, str] | None:
    """An item with a body as its header and the text inside its braces; None if it has none or is not closed."""
    code = bare(text, syntax)
    at, end = code.find("{"), code.rstrip()
    return (text[:at], text[at + 1 : len(end) - 1]) if 0 <= at < len(end) - 1 and end.endswith("}") else None


def renamed(text: str, syntax: Syntax, old: str, new: str) -> str:
    """The text with a name replaced in code, but not in comments and literals."""
    pattern = re.compile(rf"{syntax.opaque.pattern}|\b{re.escape(old)}\b", syntax.opaque.flags)
    return pattern.sub(lambda match: new if match[0] == old else match[0], text)


def parameters(header: str, name: str) -> list[str]:
    """The parameters of a function's header, as written; empty if it has none."""
    at = header.find("(", header.find(name))
    depth, found = 0, [""]
    for char in header[at + 1 :].replace("->", "  ") if at >= 0 else "":
        if char == ")" and depth == 0:
            break
        depth += (char in "([{<") - (char in ")]}>")
        if char == "," and depth == 0:
            found.append("")
        else:
            found[-1] += char
    return [one.strip() for one in found if one.strip()]
