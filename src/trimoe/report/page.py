"""HTML report of the demo: renders `PageData` as one self-contained document.

Invariants: no external resources and no scripts (style and figures are inline); all text is escaped; the same data give
the same bytes. Charts come from `plots`, sentences from `words`.
"""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trimoe.io.atomic import publish_file
from trimoe.report import canvas, plots, words
from trimoe.report.data import Layers, Method, PageData, agreement, chance_agreement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOMAIN_AXIS = (0.0, 100.0)


@dataclass(frozen=True)
class Drawing:
    """A figure for the page; `name` prefixes all its ids."""

    name: str
    title: str
    svg: Markup


@dataclass(frozen=True)
class Likeness:
    """One row of the agreement table: (text, shade 0..9) per method."""

    name: str
    cells: tuple[tuple[str, int], ...]


def render_page(data: PageData) -> str:
    """The page as HTML. Raises `MissingPrerequisite` if matplotlib is not installed."""
    with canvas.drawing():
        figures = {
            "accuracy": _accuracy(data, None, "overall-accuracy"),
            "forest": _forest(data, None, "overall-forest"),
            "domain_accuracy": [_accuracy(data, i, f"accuracy-{i}") for i in range(len(data.domains))],
            "domain_forest": [_forest(data, i, f"forest-{i}") for i in range(len(data.domains))],
            "heat": _heat(data),
        }
    environment = Environment(
        loader=PackageLoader("trimoe.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["words"] = words
    environment.globals["removed"] = lambda method: removed(data.contribution, method.dropped)
    return environment.get_template("page.html.jinja").render(
        data=data,
        figures=figures,
        everyone=(data.base, *data.ranked),
        likeness=_likeness(data),
        chance=words.percent(chance_agreement(data.methods[0].dropped, data.model.experts), 0),
        saved=1 - data.best[0].bytes / data.model.bytes,
    )


def write_page(data: PageData, path: Path) -> None:
    """Write `render_page` to a file by rename, replacing an older one."""
    html = render_page(data)
    with publish_file(path, overwrite=True) as temporary:
        temporary.write_text(html, encoding="utf-8")


def render_png(data: PageData, path: Path) -> None:
    """Write the README's picture: accuracy of every method over all items, and the map of the best method."""
    with canvas.drawing():
        figure = _summary(data)
        with publish_file(path, overwrite=True) as temporary:
            canvas.to_png(figure, temporary)


def removed(contribution: tuple[tuple[float, ...], ...], dropped: Layers) -> float | None:
    """Share of measured contribution that a map removes, averaged over layers; None if nothing was measured."""
    shares = []
    for row, experts in zip(contribution, dropped, strict=True):
        total = sum(v for v in row if isfinite(v))
        if total > 0:
            shares.append(sum(row[e] for e in experts if isfinite(row[e])) / total)
    return sum(shares) / len(shares) if shares else None


def _kind(data: PageData, method: Method) -> plots.Kind:
    if method is data.base:
        return "base"
    if method in data.best:
        return "best"
    return "control" if method.control else "method"


def _accuracy_dots(data: PageData, domain: int | None) -> list[plots.Dot]:
    dots = []
    for method in (data.base, *data.ranked):
        score = method.overall if domain is None else method.scores[domain]
        share = score.accuracy
        value = None if share is None else 100 * share
        dots.append(
            plots.Dot(method.name, value, 100 * score.low, 100 * score.high, _kind(data, method), words.percent(share))
        )
    return dots


def _difference_dots(data: PageData, domain: int | None) -> list[plots.Dot]:
    dots = []
    for method in data.ranked:
        change = method.overall_difference if domain is None else method.differences[domain]
        if change is None:
            dots.append(plots.Dot(method.name, None, text=words.NONE))
        else:
            dots.append(
                plots.Dot(
                    method.name,
                    100 * change.points,
                    100 * change.low,
                    100 * change.high,
                    _kind(data, method),
                    words.points(change.points),
                )
            )
    return dots


def _accuracy(data: PageData, domain: int | None, name: str) -> Drawing:
    every = range(len(data.domains))
    peers = _accuracy_dots(data, None) if domain is None else [d for i in every for d in _accuracy_dots(data, i)]
    dots = _accuracy_dots(data, domain)
    axis = plots.limits(peers, step=5 if domain is None else 10, within=DOMAIN_AXIS)
    figure = plots.dot_chart(dots, axis=axis, unit="% right", reference=dots[0].value, width=_width(domain))
    return Drawing(name, "All domains" if domain is None else data.domains[domain], Markup(canvas.to_svg(figure, name)))


def _forest(data: PageData, domain: int | None, name: str) -> Drawing:
    every = range(len(data.domains))
    peers = _difference_dots(data, None) if domain is None else [d for i in every for d in _difference_dots(data, i)]
    axis = plots.limits([*peers, plots.Dot("", 0.0)], step=5 if domain is None else 10)
    figure = plots.dot_chart(
        _difference_dots(data, domain),
        axis=axis,
        unit="points, compared with the full model",
        reference=0,
        width=_width(domain),
        signed=True,
    )
    return Drawing(name, "All domains" if domain is None else data.domains[domain], Markup(canvas.to_svg(figure, name)))


def _width(domain: int | None) -> int:
    return 390 if domain is None else 330


def _heat(data: PageData) -> Drawing:
    width = (
        max(640, min(1016, 60 + 26 * data.model.experts)) if data.model.experts <= 64 else 60 + 12 * data.model.experts
    )
    figure = plots.heatmap(data.contribution, [_cells(m) for m in data.methods], width=width)
    return Drawing("heat", data.contribution_label, Markup(canvas.to_svg(figure, "heat")))


def _cells(method: Method) -> plots.Cells:
    return plots.Cells(method.name, tuple((i, e) for i, layer in enumerate(method.dropped) for e in layer))


def _likeness(data: PageData) -> list[Likeness]:
    rows = []
    for one in data.methods:
        shares = [agreement(one.dropped, two.dropped) for two in data.methods]
        rows.append(Likeness(one.name, tuple((words.percent(s, 0), min(9, int(10 * s))) for s in shares)))
    return rows


def _summary(data: PageData) -> "Figure":
    from matplotlib.figure import Figure

    dots = _accuracy_dots(data, None)
    best, model = data.best[0], data.model
    width, row = 820, 27
    cell = ((width - 80) / model.experts, min(24.0, max((width - 80) / model.experts, 5.0)))
    title, upper, gap, lower, bottom = 62, row * len(dots), 96, cell[1] * model.layers, 44
    height = title + upper + gap + lower + bottom
    figure = Figure(figsize=(width / canvas.PIXELS, height / canvas.PIXELS), dpi=canvas.PIXELS)

    def place(left: float, top: float, wide: float, high: float) -> tuple[float, float, float, float]:
        return left / width, 1 - (top + high) / height, wide / width, high / height

    ink, soft = canvas.COLOURS["ink"], canvas.COLOURS["soft"]
    heading = (
        f"{model.dropped} of {model.experts} experts dropped in every layer: what it cost, by how they were chosen"
    )
    figure.text(24 / width, 1 - 30 / height, heading, weight="bold", fontsize=14, color=ink)
    asked = f"% right of {words.count(data.base.overall.n)} questions in {len(data.domains)} domains, 95 % interval"
    figure.text(24 / width, 1 - 50 / height, asked, fontsize=11.5, color=soft)
    names = [canvas.clean(d.label) for d in dots]
    axes = figure.add_axes(place(150, title, width - 150 - 80, upper))
    plots.draw_dots(axes, dots, names, axis=plots.limits(dots, step=5, within=DOMAIN_AXIS), reference=dots[0].value)
    top = title + upper + gap
    below = f"What each expert contributes (darker: more), and the ones {canvas.clean(best.name)} drops (×)"
    figure.text(24 / width, 1 - (top - 18) / height, below, weight="bold", fontsize=13, color=ink)
    axes = figure.add_axes(place(56, top, width - 80, lower))
    plots.draw_heatmap(axes, data.contribution, [_cells(best)], cell=cell)
    axes.set_xlabel("expert", fontsize=11.5, color=soft, labelpad=2)
    axes.set_ylabel("layer", fontsize=11.5, color=soft, labelpad=6)
    return figure
