"""One self-contained HTML page: verdict, table, accuracy chart, and the heatmap of contributions with dropped cells.

Invariants: nothing is loaded from elsewhere; all text is escaped; the same data gives the same bytes.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np

from trimoe.errors import MissingPrerequisite
from trimoe.judge.compare import Row

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class PageData:
    """What the page shows. `rows[name]` are a model's rows per bench, `overall[name]` its sum; base comes first.

    `contribution` is [L, E]; `dropped[name]` lists the dropped experts of each layer; sizes in bytes.
    """

    title: str
    facts: dict[str, str]
    benches: Sequence[str]
    rows: dict[str, dict[str, Row]]
    overall: dict[str, Row]
    sizes: dict[str, int]
    proofs: dict[str, float | None]
    contribution: Array
    dropped: dict[str, list[list[int]]]
    caveats: Sequence[str] = field(default_factory=tuple)


def verdict(data: PageData) -> str:
    """One sentence: which method lost least, by how much, with its interval."""
    base, *methods = data.overall
    best = max(methods, key=lambda name: (data.overall[name].correct, name))
    row, reference = data.overall[best], data.overall[base]
    words = f"{best} lost least: {percent(row.accuracy)} of {row.n} items right, {percent(reference.accuracy)} before"
    if row.difference is not None and row.difference_low is not None and row.difference_high is not None:
        low, high = 100 * row.difference_low, 100 * row.difference_high
        words += f" ({100 * row.difference:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f})"
    return words + "."


def percent(share: float | None) -> str:
    """A share in percent, one decimal."""
    return "not scored" if share is None else f"{100 * share:.1f} %"


def render_page(data: PageData) -> str:
    """The page as HTML. Raises `MissingPrerequisite` without matplotlib."""
    from jinja2 import Environment

    template = (resources.files(__package__ or "") / "page.html.jinja").read_text()
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = percent
    return environment.from_string(template).render(
        data=data, verdict=verdict(data), bars=accuracy_chart(data), maps=heatmaps(data)
    )


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as exc:
        raise MissingPrerequisite(
            "the page needs matplotlib", expected="the extra 'report'", remedy="pip install 'trimoe[report]'"
        ) from exc
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "trimoe", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot

    return pyplot


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None}, bbox_inches="tight")
    _pyplot().close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def accuracy_chart(data: PageData) -> str:
    """Dots with 95 % intervals: every method on every bench, as inline SVG."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(10, 4.2))
    colours = ["#222222", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#999999", "#AAAAAA", "#BBBBBB"]
    width = 0.8 / len(data.rows)
    for number, (name, rows) in enumerate(data.rows.items()):
        shown = [rows[b] for b in data.benches] + [data.overall[name]]
        x = np.arange(len(shown)) + (number - (len(data.rows) - 1) / 2) * width
        y = np.array([100 * (r.accuracy or 0.0) for r in shown])
        low, high = (np.array([100 * getattr(r, side) for r in shown]) for side in ("low", "high"))
        error = np.abs(np.array([y - low, high - y]))
        axes.bar(x, y, width * 0.9, yerr=error, color=colours[number % len(colours)], label=name, error_kw={"lw": 0.8})
    axes.set_xticks(range(len(data.benches) + 1), [*(b.removeprefix("tiny-") for b in data.benches), "all"])
    axes.set_ylabel("right, %")
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=4, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    return _svg(figure)


def heatmaps(data: PageData) -> str:
    """Contribution of every expert per layer, the dropped ones crossed out, one panel per method."""
    plt = _pyplot()
    names = list(data.dropped)
    layers, experts = data.contribution.shape
    figure, grid = plt.subplots(len(names), 1, figsize=(10, len(names) * (0.5 + 0.22 * layers)), squeeze=False)
    share = data.contribution / np.maximum(data.contribution.max(axis=1, keepdims=True), 1e-12)
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.imshow(share, aspect="auto", cmap="viridis", vmin=0, vmax=1)
        points = [(e, layer) for layer, ids in enumerate(data.dropped[name]) for e in ids]
        if points:
            axes.scatter(*zip(*points, strict=True), marker="x", c="#ff3355", s=18, linewidths=1.2)
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_yticks(range(layers))
        axes.set_ylabel("layer")
    grid[-1, 0].set_xlabel(f"expert (0 to {experts - 1}); brighter: contributes more; cross: dropped")
    figure.tight_layout()
    return _svg(figure)
