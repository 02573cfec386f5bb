"""Escaping and tables for untrusted text: terminal, Markdown, HTML and CSV.

Names and model output are hostile until escaped. Invariants: the result of `safe` has no control, format or surrogate
character, so a reply cannot move the cursor, change colours, reverse the reading order or forge a line.
"""

import csv
import html
import unicodedata
from collections.abc import Sequence
from io import StringIO

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def safe(text: str, limit: int = 160) -> str:
    """One printable line of at most `limit` characters; what cannot be shown is escaped."""
    cut = text if len(text) <= limit else text[: limit - 1]
    shown = "".join(c if unicodedata.category(c) not in _HIDDEN else _escape(c) for c in cut)
    return shown if len(text) <= limit else shown + "…"


def _escape(c: str) -> str:
    known = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    code = ord(c)
    return known.get(c) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}")


def some(ids: Sequence[str], most: int = 8) -> str:
    """The first few of a list, and how many more there are."""
    more = len(ids) - most
    return ", ".join(safe(i, 60) for i in ids[:most]) + (f" and {more} more" if more > 0 else "")


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """An aligned text table; the first `left` columns are aligned left, the others right."""
    table = [[safe(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join([line(table[0]), "  ".join("-" * w for w in widths), *(line(row) for row in table[1:])])


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; what Markdown or HTML would interpret is escaped."""
    align = [":---" if i < left else "---:" for i in range(len(head))]
    lines = [[markdown_text(cell) for cell in row] for row in (head, *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], align, *lines[1:]))


def markdown_text(text: str, limit: int = 160) -> str:
    """One line of text that Markdown shows literally."""
    out = safe(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#!" else c for c in out)


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """An HTML table; every cell is escaped."""

    def line(row: Sequence[str], tag: str) -> str:
        cells = (
            f'<{tag} style="text-align:{"left" if i < left else "right"}">{html.escape(safe(cell))}</{tag}>'
            for i, cell in enumerate(row)
        )
        return f"<tr>{''.join(cells)}</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def comma_separated(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """CSV (RFC 4180) with a header line. A text that a spreadsheet would run as a formula gets a leading apostrophe."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    return out.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str):
        line = safe(value, 1000)
        return "'" + line if line[:1] in ("=", "+", "-", "@") else line
    return "" if value is None else value
