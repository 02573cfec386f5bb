"""A comparison as text, Markdown or CSV. Numbers are rounded only for people; CSV has full precision."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from trimoe.judge.comparison import HEAD, Comparison, Row
from trimoe.judge.runs import flat
from trimoe.judge.text import columns, comma_separated, markdown, markdown_text, safe


def text(comparison: Comparison) -> str:
    """The table for a terminal; below it, why items were lost."""
    lines = [f"Against {safe(comparison.base)}; score in %, difference, SE and detectable effect in points", ""]
    for number, rows in _by_column(comparison):
        if number:
            lines.append(f"column {number}: {settings_of(comparison, number)}")
        lines += [columns(HEAD, [row.cells() for row in rows], left=2), ""]
    lines += _losses(comparison.rows, safe)
    return "\n".join([*lines, *_notes(comparison, safe)]).rstrip()


def as_markdown(comparison: Comparison) -> str:
    """The same as Markdown tables."""
    parts = []
    for number, rows in _by_column(comparison):
        title = f"Column {number}: {markdown_text(settings_of(comparison, number))}\n\n" if number else ""
        parts.append(title + markdown(HEAD, [row.cells() for row in rows], left=2))
    return "\n\n".join([*parts, *_losses(comparison.rows, markdown_text), *_notes(comparison, markdown_text)])


def as_csv(comparison: Comparison) -> str:
    """One line per row at full precision; shares, not percent."""
    records = [row.as_record() for row in comparison.rows]
    return comma_separated(list(records[0]), [list(record.values()) for record in records])


def flips(comparison: Comparison) -> str:
    """Every item that flipped, one line each."""
    lines = []
    for row in comparison.rows:
        if row.change is None:
            continue
        for sign, way, items in (("-", "lost", row.change.flips.lost), ("+", "gained", row.change.flips.gained)):
            lines += [f"{sign} {safe(row.bench)} {safe(row.name)} {safe(doc)}: {way} ({cause})" for doc, cause in items]
    return "\n".join(lines)


def _by_column(comparison: Comparison) -> list[tuple[int, list[Row]]]:
    numbers = sorted({row.column for row in comparison.rows})
    return [(n, [row for row in comparison.rows if row.column == n]) for n in numbers]


def settings_of(comparison: Comparison, number: int, among: Collection[int] | None = None) -> str:
    """The settings of a column that differ between columns, or between some of them."""
    columns = {
        i: flat({**column["conditions"], "bench": column["bench"]}) for i, column in enumerate(comparison.columns, 1)
    }
    every = [column for i, column in columns.items() if among is None or i in among]
    mine = columns[number]
    keys = [k for k in sorted({k for each in every for k in each}) if len({repr(each.get(k)) for each in every}) > 1]
    shown = [f"{k} {mine[k]}" for k in keys if k in mine]
    shown = shown or [f"{k} not recorded" for k in keys[:5]]
    return safe("; ".join(shown) or "the only conditions")


def _losses(rows: Sequence[Row], escape: Callable[[str], str]) -> list[str]:
    """Why items were lost. Only a wrong reply of normal length counts as lost knowledge."""
    lines = []
    for row in rows:
        if row.change is not None and row.change.lost:
            flips, lost = row.change.flips, row.change.lost
            parts = ", ".join(f"{n} {cause}" for cause, n in Counter(c for _, c in flips.lost).most_common())
            normal = flips.lost_as.get("normal", 0)
            note = "" if normal == lost else f"; {normal} of {lost} look like lost knowledge"
            lines.append(f"{escape(row.name)} lost {lost} on {escape(row.bench)}: {parts}{note}")
    return lines


def _notes(comparison: Comparison, escape: Callable[[str], str]) -> list[str]:
    missing = sum(row.score.unscored for row in comparison.rows)
    lines = [escape(note) for note in comparison.notes]
    if comparison.rows and all(row.change is None for row in comparison.rows):
        lines.append(
            f"Nothing to compare with {escape(comparison.base)}: no other run has the same bench and settings. "
            "Evaluate another model into the same log: trimoe eval MODEL --bench BENCH --log LOG --name NAME"
        )
    if missing:
        lines.append(f"{missing} samples were not scored (harness errors): run eval again.")
    return lines
