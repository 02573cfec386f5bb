"""The ladder as a picture: score over gigabytes. Measured files are filled with their intervals and joined; published
numbers are hollow, unjoined by solid lines, and named so in the legend.

Invariants: the same points give the same bytes; nothing is loaded from anywhere.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trimoe.artifact import publish_file
from trimoe.errors import UsageError
from trimoe.judge.ladder import GB, Point, front
from trimoe.judge.report import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HUES = ("#0b62a8", "#b8430a", "#00795a", "#7a4fa3", "#8a6d00", "#a8326e")
_MARKS = ("o", "s", "D", "^", "v", "P")


def write_ladder_plot(path: Path, bench: str, points: Sequence[Point]) -> None:
    """Write `path` as .svg or .png. Raises `UsageError` for another name, `MissingPrerequisite` without matplotlib."""
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"a ladder cannot be drawn as {path.name}", expected="a name that ends with .svg or .png",
                         actual=path.suffix or "no suffix", remedy="choose another name")  # fmt: skip
    with canvas.drawing(), publish_file(path) as temporary:
        figure = ladder_figure(bench, points)
        if path.suffix == ".png":
            canvas.to_png(figure, temporary)
        else:
            figure.savefig(temporary, format="svg", facecolor=canvas.COLOURS["card"],
                           metadata={"Date": None, "Creator": None, "Format": None, "Type": None})  # fmt: skip


def ladder_figure(bench: str, points: Sequence[Point]) -> "Figure":
    """The picture as a figure; to be made and saved inside `canvas.drawing()`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(880 / canvas.PIXELS, 520 / canvas.PIXELS), dpi=canvas.PIXELS, layout="constrained")
    axes = figure.add_subplot()
    models = list(dict.fromkeys(p.model for p in points))
    on_front = {id(p) for p in front([p for p in points if p.kind == "measured"])}
    for number, model in enumerate(models):
        hue, mark = _HUES[number % len(_HUES)], _MARKS[number % len(_MARKS)]
        for kind in ("measured", "published"):
            mine = sorted((p for p in points if p.model == model and p.kind == kind), key=lambda p: p.size)
            if mine:
                _series(axes, mine, hue, mark, on_front, below=number % 2 == 1)
    axes.set_xlabel("file size in GB (10^9 bytes)")
    axes.set_ylabel(f"{canvas.clean(bench, 40)}, %")
    axes.grid(color=canvas.COLOURS["line"], linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=11)
    return figure


def _series(axes: object, mine: Sequence[Point], hue: str, mark: str, on_front: set[int], *, below: bool) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    x, y = [p.size / GB for p in mine], [100 * p.score for p in mine]
    measured = mine[0].kind == "measured"
    name = canvas.clean(mine[0].model, 30)
    label = f"{name}, measured here" if measured else f"{name}, published (not measured here)"
    axes.plot(x, y, color=hue, linewidth=1.6 if measured else 0.9, linestyle="-" if measured else ":", marker=mark,
              markersize=7, markerfacecolor=hue if measured else canvas.COLOURS["card"], markeredgecolor=hue,
              label=label, zorder=3)  # fmt: skip
    for point, px, py in zip(mine, x, y, strict=True):
        if measured and point.interval:
            low, high = point.interval
            axes.vlines(px, 100 * low, 100 * high, color=hue, linewidth=1.0, alpha=0.55, zorder=2)
        weight = "bold" if id(point) in on_front else "normal"
        axes.annotate(canvas.clean(point.tier), (px, py), xytext=(6, -13 if below else 5), textcoords="offset points",
                      fontsize=9.5, color=hue, weight=weight, parse_math=False)  # fmt: skip
