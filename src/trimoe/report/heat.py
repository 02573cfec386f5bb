"""Heatmaps of expert statistics: one matrix [layer, expert] per class, as a self-contained page or a PNG.

The input is plain data from any source. Invariants: the page has no external resources; the same data give the same
bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trimoe.errors import UsageError
from trimoe.io.atomic import publish_file
from trimoe.report import canvas, plots


@dataclass(frozen=True)
class Panel:
    """One heatmap: `values` [layers, experts]; non-finite values are drawn grey."""

    title: str
    values: Sequence[Sequence[float]]


def write_heatmap(path: Path, title: str, facts: Sequence[str], panels: Sequence[Panel]) -> None:
    """Write `path` as .html or .png. Raises `UsageError` for another suffix, `MissingPrerequisite` without matplotlib,
    `BadInput` if the file exists."""
    if path.suffix not in (".html", ".png"):
        raise UsageError(
            f"a heatmap cannot be written as {path.name}",
            expected="a name that ends with .html or .png",
            actual=path.suffix or "no suffix",
            remedy="choose another name",
        )
    with canvas.drawing(), publish_file(path) as temporary:
        if path.suffix == ".html":
            temporary.write_text(_page(title, facts, panels), encoding="utf-8")
        else:
            _picture(temporary, title, panels)


def _page(title: str, facts: Sequence[str], panels: Sequence[Panel]) -> str:
    environment = Environment(
        loader=PackageLoader("trimoe.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    drawn = []
    for number, panel in enumerate(panels):
        experts = len(panel.values[0])
        figure = plots.heatmap(panel.values, width=max(640, min(1016, 60 + 26 * experts), 60 + 8 * experts))
        drawn.append((f"map-{number}", panel.title, Markup(canvas.to_svg(figure, f"map-{number}"))))
    template = environment.get_template("heat.html.jinja")
    return template.render(title=title, facts=facts, panels=drawn, wide=len(panels[0].values[0]) > 64)


def _picture(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """All panels, one below the other."""
    from matplotlib.figure import Figure

    layers, experts = len(panels[0].values), len(panels[0].values[0])
    width = max(640, 80 + 9 * experts)
    cell = ((width - 80) / experts, max(5.0, min(18.0, 9.0)))
    head, gap, foot = 44, 34, 44
    height = head + len(panels) * (gap + cell[1] * layers) + foot
    figure = Figure(figsize=(width / canvas.PIXELS, height / canvas.PIXELS), dpi=canvas.PIXELS)
    figure.text(
        24 / width, 1 - 28 / height, canvas.clean(title, 90), weight="bold", fontsize=14, color=canvas.COLOURS["ink"]
    )
    top = float(head)
    for number, panel in enumerate(panels):
        figure.text(
            56 / width,
            1 - (top + 22) / height,
            canvas.clean(panel.title, 90),
            fontsize=12.5,
            color=canvas.COLOURS["ink"],
        )
        top += gap
        size = cell[1] * layers
        axes = figure.add_axes((56 / width, 1 - (top + size) / height, (width - 80) / width, size / height))
        plots.draw_heatmap(axes, panel.values, cell=cell)
        if number + 1 < len(panels):
            axes.set_xticks([])
        else:
            axes.set_xlabel("expert", fontsize=11.5, color=canvas.COLOURS["soft"], labelpad=2)
        axes.set_ylabel("layer", fontsize=11.5, color=canvas.COLOURS["soft"], labelpad=6)
        top += size
    canvas.to_png(figure, path)
