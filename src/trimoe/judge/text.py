"""Names and model output on their way to a terminal, a Markdown page or a CSV file: hostile until escaped.

Invariants: what comes out of `safe` holds no control, format or surrogate character, so a reply cannot move the
cursor, change colours, reverse the reading order or forge a line. Tables are plain text: no markup is interpreted.
"""

import csv
import unicodedata
from collections.abc import Sequence
from io import StringIO

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def safe(text: str, limit: int = 160) -> str:
    """One printable line of at most `limit` characters; whatever cannot be shown stands as its escape."""
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
    """One line of text that Markdown shows as it is."""
    out = safe(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#!" else c for c in out)


def comma_separated(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """CSV of RFC 4180 with a head line; a text that a spreadsheet would run as a formula gets an apostrophe before."""
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
