"""A comparison as text, Markdown or CSV. Numbers are only rounded here."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from trimoe.judge.compare import Comparison, Row
from trimoe.judge.runs import flat
from trimoe.judge.text import columns, comma_separated, markdown, markdown_text, safe

HEAD = (
    "bench",
    "model",
    "n",
    "score",
    "SE",
    "95 %",
    "difference",
    "SE",
    "95 %",
    "bootstrap 95 %",
    "lost/gained",
    "p",
    "p (Holm)",
    "detectable",
)
CSV_HEAD = (
    "bench",
    "model",
    "column",
    "n",
    "correct",
    "unscored",
    "score",
    "se",
    "low",
    "high",
    "pairs",
    "difference",
    "difference_se",
    "difference_low",
    "difference_high",
    "bootstrap_low",
    "bootstrap_high",
    "lost",
    "gained",
    "lost_empty",
    "lost_loop",
    "lost_cut",
    "lost_normal",
    "p",
    "p_holm",
    "detectable",
    "marks",
)


def text(comparison: Comparison) -> str:
    """The table for a terminal, with how the losses came about below it."""
    lines = [f"Against {safe(comparison.base)}; score in %, difference, SE and detectable effect in points", ""]
    for number, rows in _by_column(comparison):
        if number:
            lines.append(f"column {number}: {settings_of(comparison, number)}")
        lines += [columns(HEAD, [_cells(row) for row in rows], left=2), ""]
    lines += _losses(comparison.rows, safe)
    return "\n".join([*lines, *_notes(comparison, safe)]).rstrip()


def as_markdown(comparison: Comparison) -> str:
    """The same as Markdown tables."""
    parts = []
    for number, rows in _by_column(comparison):
        title = f"Column {number}: {markdown_text(settings_of(comparison, number))}\n\n" if number else ""
        parts.append(title + markdown(HEAD, [_cells(row) for row in rows], left=2))
    return "\n\n".join([*parts, *_losses(comparison.rows, markdown_text), *_notes(comparison, markdown_text)])


def as_csv(comparison: Comparison) -> str:
    """One line per row with full precision; shares, not percent."""
    return comma_separated(CSV_HEAD, [_record(row) for row in comparison.rows])


def flips(comparison: Comparison) -> str:
    """Every item that flipped, one line each."""
    lines = []
    for row in comparison.rows:
        for sign, way, items in (("-", "lost", row.flips.lost), ("+", "gained", row.flips.gained)):
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


def _cells(row: Row) -> list[str]:
    score = ("not scored" if row.accuracy is None else f"{100 * row.accuracy:.1f}") + " !" * bool(row.marks)
    d = row.detail
    error = "" if d is None or d.se is None else f"{100 * d.se:.1f}"
    cells = [row.bench, row.name, str(row.n), score, error, f"{100 * row.low:.1f} to {100 * row.high:.1f}"]
    if row.difference is None or row.p is None:
        return [*cells, *[""] * (len(HEAD) - len(cells))]
    seen = "" if d is None or d.detectable is None else f"{100 * d.detectable:.1f}"
    return [
        *cells,
        f"{100 * row.difference:+.1f}",
        "" if d is None or d.difference_se is None else f"{100 * d.difference_se:.1f}",
        _interval(row.difference_low, row.difference_high),
        _interval(d.bootstrap_low, d.bootstrap_high) if d else "",
        f"{row.lost}/{row.gained}",
        f"{row.p:.2g}",
        "" if row.p_holm is None else f"{row.p_holm:.2g}",
        seen,
    ]


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"


def _record(row: Row) -> list[object]:
    d, split = row.detail, row.flips.lost_as
    return [
        row.bench,
        row.name,
        row.column,
        row.n,
        row.correct,
        row.unscored,
        row.accuracy,
        d.se if d else None,
        row.low,
        row.high,
        row.pairs,
        row.difference,
        d.difference_se if d else None,
        row.difference_low,
        row.difference_high,
        d.bootstrap_low if d else None,
        d.bootstrap_high if d else None,
        row.lost,
        row.gained,
        *(split.get(kind) for kind in ("empty", "loop", "cut", "normal")),
        row.p,
        row.p_holm,
        d.detectable if d else None,
        "; ".join(row.marks),
    ]


def _losses(rows: Sequence[Row], escape: Callable[[str], str]) -> list[str]:
    """How losses came about: only a reply of normal length that is wrong is lost knowledge."""
    lines = []
    for row in rows:
        if row.lost:
            causes = Counter(cause for _, cause in row.flips.lost)
            parts = ", ".join(f"{count} {cause}" for cause, count in causes.most_common())
            normal = row.flips.lost_as.get("normal", 0)
            note = "" if normal == row.lost else f"; {normal} of {row.lost} say that something is no longer known"
            lines.append(f"{escape(row.name)} lost {row.lost} on {escape(row.bench)}: {parts}{note}")
    return lines


def _notes(comparison: Comparison, escape: Callable[[str], str]) -> list[str]:
    missing = sum(row.unscored for row in comparison.rows)
    lines = [escape(note) for note in comparison.notes]
    if missing:
        lines.append(f"{missing} samples could not be scored (harness errors): run eval again.")
    return lines
