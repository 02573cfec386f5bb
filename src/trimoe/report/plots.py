"""Charts as matplotlib figures: dots with intervals, and heatmaps.

Create and save figures inside `canvas.drawing()`; write them with `canvas.to_svg` and `canvas.to_png`. Invariants:
input text is never interpreted as markup or mathematics; marks differ in shape as well as colour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite
from typing import TYPE_CHECKING, Any, Literal

from trimoe.report.canvas import COLOURS, EMPTY, HEAT, PIXELS, clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["base", "best", "method", "control"]

MARKERS: dict[Kind, str] = {"base": "D", "best": "o", "method": "o", "control": "s"}


@dataclass(frozen=True)
class Dot:
    """One row of a dot chart: a value with its interval. If `value` is None, only the name is drawn."""

    label: str
    value: float | None
    low: float = 0.0
    high: float = 0.0
    kind: Kind = "method"
    text: str = ""
    """Printed at the right edge."""


@dataclass(frozen=True)
class Cells:
    """Cells to cross out on a heatmap, as (row, column). `name` becomes an SVG group."""

    name: str
    cells: tuple[tuple[int, int], ...]


def limits(
    dots: Sequence[Dot], *, step: float = 10.0, within: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Axis limits that contain all intervals, in whole steps. Charts side by side share one axis."""
    drawn = [d for d in dots if d.value is not None]
    low = min((d.low for d in drawn), default=0.0)
    high = max((d.high for d in drawn), default=step)
    begin, end = step * floor(low / step), step * ceil(high / step)
    if within is not None:
        begin, end = max(begin, within[0]), min(end, within[1])
    return begin, max(end, begin + step)


def dot_chart(
    dots: Sequence[Dot],
    *,
    axis: tuple[float, float],
    unit: str,
    reference: float | None = None,
    width: int = 440,
    signed: bool = False,
) -> "Figure":
    """Chart of values with their intervals, one row each, from top to bottom.

    `reference` draws a dashed line; `signed` prints + and − on the axis. Width in pixels; the height follows the rows.
    """
    from matplotlib.figure import Figure

    row, bottom = 25, 46
    names = [clean(d.label) for d in dots]
    left = 18 + 7.4 * max((len(n) for n in names), default=0)
    right = 19 + 7.4 * max((len(d.text) for d in dots), default=0)
    height = row * len(dots) + bottom
    figure = Figure(figsize=(width / PIXELS, height / PIXELS), dpi=PIXELS)
    axes = figure.add_axes((left / width, bottom / height, (width - left - right) / width, 1 - bottom / height))
    draw_dots(axes, dots, names, axis=axis, reference=reference, signed=signed)
    figure.text(
        (left + (width - left - right) / 2) / width,
        7 / height,
        clean(unit, 60),
        ha="center",
        color=COLOURS["soft"],
        fontsize=11.5,
    )
    return figure


def draw_dots(
    axes: "Axes",
    dots: Sequence[Dot],
    names: Sequence[str],
    *,
    axis: tuple[float, float],
    reference: float | None = None,
    signed: bool = False,
) -> None:
    """Draw the rows of `dot_chart` on given axes."""
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlim(axis[0], axis[1])
    axes.set_ylim(len(dots) - 0.4, -0.6)
    axes.set_yticks([])
    ticks = _ticks(*axis)
    axes.set_xticks(ticks, [f"{t:+g}".replace("-", "−") if signed and t else f"{t:g}" for t in ticks])
    axes.tick_params(axis="x", length=0, labelsize=11.5, labelcolor=COLOURS["soft"], pad=5)
    axes.grid(axis="x", color=COLOURS["line"], linewidth=1)
    axes.set_axisbelow(True)
    if reference is not None:
        axes.axvline(reference, color=COLOURS["ink"], linewidth=1.2, linestyle=(0, (4, 3)), zorder=1.5)
    for place, (dot, name) in enumerate(zip(dots, names, strict=True)):
        colour = COLOURS[{"base": "ink", "best": "accent", "method": "accent", "control": "soft"}[dot.kind]]
        strong = "bold" if dot.kind == "best" else "normal"
        outside = axes.get_yaxis_transform()
        for x, aside, text, align in ((0, -11, name, "right"), (1, 13, dot.text, "left")):
            axes.annotate(
                text,
                (x, place),
                (aside, 0),
                xycoords=outside,
                textcoords="offset points",
                ha=align,
                va="center_baseline",
                weight=strong,
                annotation_clip=False,
            )
        if dot.value is None:
            continue
        axes.plot([dot.low, dot.high], [place, place], color=colour, linewidth=2.6 if dot.kind == "best" else 1.8)
        filled = COLOURS["card"] if dot.kind in ("method", "control") else colour
        axes.plot(
            [dot.value],
            [place],
            MARKERS[dot.kind],
            markersize=8,
            markerfacecolor=filled,
            markeredgecolor=colour,
            markeredgewidth=1.9,
            clip_on=False,
            zorder=3,
        )


def heatmap(
    values: Sequence[Sequence[float]],
    crossed: Sequence[Cells] = (),
    *,
    row_label: str = "layer",
    column_label: str = "expert",
    width: int = 1000,
) -> "Figure":
    """Heatmap of a matrix [rows, columns] in ten shades, with crosses on top. Each row is scaled to its largest value.

    Non-finite values are drawn grey. Each entry of `crossed` becomes an SVG group `drop-K` (K: its index), so that a
    page can show one at a time; a PNG shows all of them.
    """
    from matplotlib.figure import Figure

    rows, columns = len(values), len(values[0])
    left, bottom, top = 52, 40, 4
    cell_width = (width - left - 4) / columns
    cell_height = min(28.0, max(cell_width, 12.0))
    height = bottom + top + cell_height * rows
    figure = Figure(figsize=(width / PIXELS, height / PIXELS), dpi=PIXELS)
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + 4) / width, 1 - (bottom + top) / height))
    draw_heatmap(axes, values, crossed, cell=(cell_width, cell_height))
    axes.set_xlabel(clean(column_label, 60), fontsize=11.5, color=COLOURS["soft"], labelpad=2)
    axes.set_ylabel(clean(row_label, 60), fontsize=11.5, color=COLOURS["soft"], labelpad=6)
    return figure


def draw_heatmap(
    axes: "Axes", values: Sequence[Sequence[float]], crossed: Sequence[Cells] = (), *, cell: tuple[float, float]
) -> None:
    """Draw the matrix of `heatmap` on given axes. `cell`: width and height of a cell in pixels, for square crosses."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    rows, columns = len(values), len(values[0])
    boxes: dict[str, list[tuple[int, int]]] = {}
    for i, row in enumerate(values):
        for j, shade in enumerate(shades(row)):
            boxes.setdefault(EMPTY if shade is None else HEAT[shade], []).append((i, j))
    # One path per shade instead of one per cell: a page with 30 x 128 cells stays small.
    gap_x, gap_y = 0.7 / cell[0], 0.7 / cell[1]
    for colour in sorted(boxes):
        corners: list[tuple[float, float]] = []
        codes: list[Any] = []
        for i, j in boxes[colour]:
            x, y, x2, y2 = j - 0.5 + gap_x, i - 0.5 + gap_y, j + 0.5 - gap_x, i + 0.5 - gap_y
            corners += [(x, y), (x2, y), (x2, y2), (x, y2), (x, y)]
            codes += [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY]
        axes.add_patch(PathPatch(Outline(corners, codes), facecolor=colour, edgecolor="none"))
    arm = 0.26 * min(cell)
    for place, group in enumerate(crossed):
        strokes: list[tuple[float, float]] = []
        for i, j in group.cells:
            x, y = arm / cell[0], arm / cell[1]
            strokes += [(j - x, i - y), (j + x, i + y), (j - x, i + y), (j + x, i - y)]
        if not strokes:
            continue
        outline = Outline(strokes, [Outline.MOVETO, Outline.LINETO] * (len(strokes) // 2))
        wide = min(2.2, max(0.9, arm / 3))
        # A halo in the page's colour keeps the cross readable on every shade.
        for colour, extra, role in ((COLOURS["card"], 2.2, "halo"), (COLOURS["mark"], 0.0, "drop")):
            axes.add_patch(
                PathPatch(
                    outline,
                    facecolor="none",
                    edgecolor=colour,
                    linewidth=wide + extra,
                    capstyle="round",
                    gid=f"{role}-{place}",
                )
            )
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xticks(range(0, columns, max(1, ceil(columns / 32) * 4)))
    axes.set_yticks(range(0, rows, max(1, ceil(rows / 16))))
    axes.tick_params(length=0, labelsize=11.5, labelcolor=COLOURS["soft"], pad=4)


def shades(row: Sequence[float]) -> list[int | None]:
    """Shades 0..9 of one row of a heatmap, relative to the row's largest finite value; None for non-finite values."""
    largest = max((v for v in row if isfinite(v)), default=0.0)
    scale = 10 / largest if largest > 0 else 0.0
    return [min(9, max(0, int(v * scale))) if isfinite(v) else None for v in row]


def _ticks(begin: float, end: float) -> list[float]:
    """At most six round tick values on an axis, zero included if it is inside."""
    for step in (1, 2, 5, 10, 20, 25, 50, 100):
        ticks = [float(step * i) for i in range(ceil(begin / step), floor(end / step) + 1)]
        if len(ticks) <= 6:
            return ticks
    return [begin, end]
