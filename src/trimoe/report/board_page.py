"""HTML report over run logs: renders a `Board` as one self-contained document.

Invariants: no external resources and no scripts; all text is escaped; the same data give the same bytes. Charts come
from `plots` and `ladder_plot`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trimoe.errors import BadInput
from trimoe.io.atomic import publish_file
from trimoe.judge.frontier.points import Point, front, gigabytes
from trimoe.judge.text import safe, some
from trimoe.report import canvas, plots, words
from trimoe.report.board import Board, Claim, Group, Line
from trimoe.report.heat import Panel
from trimoe.report.ladder_plot import ladder_figure
from trimoe.report.page import Drawing

_CLAIMS: tuple[tuple[Claim, str], ...] = (("worse", "A loss is shown for"), ("better", "A gain is shown for"))
EACH = 6  # comparisons that a sentence names one by one
MARK = '<meta name="generator" content="trimoe">'


def render_board(
    board: Board, ladders: Mapping[str, Sequence[Point]] | None = None, panels: Sequence[Panel] = ()
) -> str:
    """The page as HTML. `ladders` maps benches to points, `panels` are heatmaps. Raises `MissingPrerequisite` without
    matplotlib."""
    ladders = ladders or {}
    with canvas.drawing():
        figures = {
            "score": [_scores(group, i) for i, group in enumerate(board.groups)],
            "forest": [_forest(board, group, i) for i, group in enumerate(board.groups)],
            "ladder": [_ladder(bench, points, i) for i, (bench, points) in enumerate(ladders.items())],
            "heat": [_heat(panel, i) for i, panel in enumerate(panels)],
        }
    environment = Environment(
        loader=PackageLoader("trimoe.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["line"] = safe
    environment.globals |= {"words": words, "some": some, "gigabytes": gigabytes}
    return environment.get_template("board.html.jinja").render(
        board=board,
        figures=figures,
        ladders=[(bench, _by_size(points)) for bench, points in ladders.items()],
        sentences=_sentences(board),
        wide=bool(panels) and len(panels[0].values[0]) > 64,
    )


def write_board(html: str, path: Path) -> None:
    """Write the page by rename. An older report is replaced; any other existing file raises `BadInput`."""
    if path.exists():
        with path.open("rb") as there:
            ours = MARK.encode() in there.read(2000)
        if not ours:
            raise BadInput(
                f"{path} exists and is not a trimoe report",
                expected="a new name, or an older report",
                remedy="choose another -o",
            )
    with publish_file(path, overwrite=True) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _sentences(board: Board) -> list[str]:
    """The summary: losses, gains, comparisons without a shown difference, refused runs; one sentence each."""
    out = []
    for claim, text in _CLAIMS:
        if found := board.claims(claim):
            out.append(f"{text} {words.listed(_claimed(found))}.")
    silent = board.claims("not shown")
    if silent:
        effects = [line.row.detail.detectable for line in silent if line.row.detail and line.row.detail.detectable]
        sees = ""
        if effects:
            low, high = words.percent(min(effects)), words.percent(max(effects))
            span = f"{low} points" if low == high else f"{low} to {high} points, depending on the row,"
            sees = (
                f" This does not prove equality: even a single test at 5 %, before Holm's adjustment, detects true "
                f"differences of {span} with a probability of only 80 %."
            )
        if len(silent) <= EACH:
            out.append(f"No difference is shown for {words.listed([_named(line) for line in silent])}.{sees}")
        else:
            out.append(f"No difference is shown in {len(silent)} more comparisons; see the table.{sees}")
    if refused := board.verdicts("refused"):
        what = (
            "one run; this summary ignores it"
            if len(refused) == 1
            else f"{len(refused)} runs; this summary ignores them"
        )
        out.append(f"The audit refuses {what}, and all differences from a refused base.")
    return out or [
        "No two runs in these logs can be compared: they share no bench, or were made under different conditions."
    ]


def _claimed(lines: Sequence[Line]) -> list[str]:
    """Each model and bench with its difference. Above `EACH` lines, each model once with its largest difference."""
    if len(lines) <= EACH:
        return [f"{_named(line)} ({_points(line)} points)" for line in lines]
    found = []
    for name in dict.fromkeys(line.row.name for line in lines):
        own = [line for line in lines if line.row.name == name]
        worst = max(own, key=lambda line: abs(line.change.points) if line.change else 0.0)
        where = f"on {len(own)} benches, largest" if len(own) > 1 else "on one bench,"
        found.append(f"{safe(name, 60)} {where} {_points(worst)} points ({safe(worst.row.bench, 60)})")
    return found


def _points(line: Line) -> str:
    return words.points(line.change.points) if line.change else "?"


def _named(line: Line) -> str:
    return f"{safe(line.row.name, 60)} on {safe(line.row.bench, 60)}"


def _kind(line: Line, base: Line | None) -> plots.Kind:
    return "base" if line is base else "method"


def _scores(group: Group, number: int) -> Drawing:
    dots = [
        plots.Dot(
            line.row.name,
            None if line.row.score.accuracy is None else 100 * line.row.score.accuracy,
            100 * line.row.score.low,
            100 * line.row.score.high,
            _kind(line, group.base),
            words.percent(line.row.score.accuracy) + " !" * bool(line.row.marks),
        )
        for line in group.lines
    ]
    reference = (
        None if group.base is None or group.base.row.score.accuracy is None else 100 * group.base.row.score.accuracy
    )
    figure = plots.dot_chart(
        dots, axis=plots.limits(dots, step=5, within=(0.0, 100.0)), unit="% right", reference=reference, width=440
    )
    return _drawn(figure, f"score-{number}", group.bench)


def _forest(board: Board, group: Group, number: int) -> Drawing | None:
    """Paired differences; all benches share one axis. None without a paired difference."""
    if not any(line.change for line in group.lines):
        return None
    every = [dot for other in board.groups for dot in _differences(other)]
    axis = plots.limits([*every, plots.Dot("", 0.0)], step=5)
    figure = plots.dot_chart(
        _differences(group), axis=axis, unit=f"points, compared with {board.base}", reference=0, width=440, signed=True
    )
    return _drawn(figure, f"forest-{number}", group.bench)


def _differences(group: Group) -> list[plots.Dot]:
    return [
        plots.Dot(
            line.row.name,
            100 * c.points,
            100 * c.low,
            100 * c.high,
            "best" if words.clear(c) else "method",
            words.points(c.points) + " !" * bool(line.row.marks or line.row.base_marks),
        )
        for line in group.lines
        if (c := line.change)
    ]


def _ladder(bench: str, points: Sequence[Point], number: int) -> tuple[Drawing, Drawing]:
    """A wide and a narrow drawing: scaled down to a phone, the wide one would be unreadable."""
    narrow = ladder_figure(bench, points, 360, 460)
    return (
        _drawn(ladder_figure(bench, points), f"ladder-{number}", bench),
        _drawn(narrow, f"ladder-{number}-narrow", bench),
    )


def _heat(panel: Panel, number: int) -> Drawing:
    experts = len(panel.values[0])
    figure = plots.heatmap(panel.values, width=max(640, min(1016, 60 + 26 * experts), 60 + 8 * experts))
    return _drawn(figure, f"heat-{number}", panel.title)


def _drawn(figure: object, name: str, title: str) -> Drawing:
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)
    return Drawing(name, title, Markup(canvas.to_svg(figure, name)))


def _by_size(points: Sequence[Point]) -> list[tuple[Point, bool]]:
    """Files, measured before published and largest first, each with whether it is on its kind's Pareto front."""
    fronts = {id(p) for kind in ("measured", "published") for p in front([p for p in points if p.kind == kind])}
    return [(p, id(p) in fronts) for p in sorted(points, key=lambda p: (p.kind, -p.size))]
