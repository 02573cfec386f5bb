"""Chart of a ladder: score over file size in gigabytes.

Measured files have filled marks with intervals, joined by solid lines. Published numbers have hollow marks and dotted
lines, and the legend says so. Invariant: the same points give the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trimoe.errors import UsageError
from trimoe.io.atomic import publish_file
from trimoe.judge.frontier.points import GB, Point, front
from trimoe.report import canvas, labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS = ("o", "s", "D", "^", "v", "P")


def write_ladder_plot(path: Path, bench: str, points: Sequence[Point]) -> None:
    """Write `path` as .svg or .png. Raises `UsageError` for another name, `MissingPrerequisite` without matplotlib."""
    if path.suffix not in (".svg", ".png"):
        raise UsageError(
            f"a ladder cannot be drawn as {path.name}",
            expected="a name that ends with .svg or .png",
            actual=path.suffix or "no suffix",
            remedy="choose another name",
        )
    with canvas.drawing(), publish_file(path) as temporary:
        figure = ladder_figure(bench, points)
        if path.suffix == ".png":
            canvas.to_png(figure, temporary)
        else:
            figure.savefig(
                temporary,
                format="svg",
                facecolor=canvas.COLOURS["card"],
                metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
            )


def ladder_figure(bench: str, points: Sequence[Point], width: int = 880, height: int = 520) -> "Figure":
    """The chart as a figure; `width` and `height` in pixels, taller for a long legend. Create and save it inside
    `canvas.drawing()`."""
    from matplotlib.figure import Figure

    narrow = width < 600
    kinds = len({(p.model, p.kind) for p in points})
    height += 19 * max(0, (kinds if narrow else (kinds + 1) // 2) - 3)
    figure = Figure(figsize=(width / canvas.PIXELS, height / canvas.PIXELS), dpi=canvas.PIXELS, layout="constrained")
    axes = figure.add_subplot()
    series = []
    for number, model in enumerate(dict.fromkeys(p.model for p in points)):
        hue, mark = canvas.HUES[number % len(canvas.HUES)], _MARKS[number % len(_MARKS)]
        for kind in ("measured", "published"):
            mine = sorted((p for p in points if p.model == model and p.kind == kind), key=lambda p: p.size)
            if mine:
                series.append((mine, hue))
                _series(axes, mine, hue, mark, canvas.LABEL if narrow else 30)
    axes.set_xlabel("file size in GB (10^9 bytes)", color=canvas.COLOURS["soft"])
    axes.set_ylabel(f"{canvas.clean(bench, 40)}, %", color=canvas.COLOURS["soft"])
    axes.tick_params(color=canvas.COLOURS["line"], labelcolor=canvas.COLOURS["soft"])
    axes.grid(color=canvas.COLOURS["line"], linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(canvas.COLOURS["line"])
    axes.margins(x=0.08, y=0.12)
    figure.legend(frameon=False, loc="outside lower left", fontsize=11, ncols=1 if narrow else 2)
    figure.draw_without_rendering()  # positions of the axes are known only after drawing
    _name(axes, series)
    return figure


def _series(axes: "Axes", mine: Sequence[Point], hue: str, mark: str, letters: int) -> None:
    x, y = [p.size / GB for p in mine], [100 * p.score for p in mine]
    measured = mine[0].kind == "measured"
    name = canvas.clean(mine[0].model, letters)
    label = f"{name}, measured here" if measured else f"{name}, published (not measured here)"
    axes.plot(
        x,
        y,
        color=hue,
        linewidth=1.6 if measured else 0.9,
        linestyle="-" if measured else ":",
        marker=mark,
        markersize=7,
        markerfacecolor=hue if measured else canvas.COLOURS["card"],
        markeredgecolor=hue,
        label=label,
        zorder=3,
    )
    for point, px in zip(mine, x, strict=True):
        if measured and point.interval:
            low, high = point.interval
            axes.vlines(px, 100 * low, 100 * high, color=hue, linewidth=1.0, alpha=0.55, zorder=2)


def _name(axes: "Axes", series: Sequence[tuple[Sequence[Point], str]]) -> None:
    """Label every point with its tier, in bold if it is on its kind's Pareto front."""
    fronts = {
        id(p)
        for kind in ("measured", "published")
        for p in front([p for mine, _ in series for p in mine if p.kind == kind])
    }
    inside = axes.get_window_extent()
    field = labels.Field(inside.width, inside.height)

    def pixels(point: Point, score: float) -> tuple[float, float]:
        x, y = axes.transData.transform((point.size / GB, 100 * score))
        return float(x) - inside.x0, float(y) - inside.y0

    for mine, _ in series:
        field.line([pixels(p, p.score) for p in mine])
        for p in mine:
            field.mark(*pixels(p, p.score), 10)
            if p.kind == "measured" and p.interval:
                field.line([pixels(p, end) for end in p.interval])
    for mine, hue in series:
        for p in mine:
            text, x, y = canvas.clean(p.tier) + " !" * bool(p.marks), *pixels(p, p.score)
            left, bottom = field.place(x, y, 6.4 * len(text), 11)
            axes.annotate(
                text,
                (p.size / GB, 100 * p.score),
                xytext=(left - x, bottom + 1.5 - y),
                textcoords="offset points",
                fontsize=9.5,
                color=hue,
                parse_math=False,
                zorder=4,
                weight="bold" if id(p) in fronts else "normal",
                annotation_clip=False,
            )
