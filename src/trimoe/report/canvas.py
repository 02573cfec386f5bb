"""Style and output of figures: theme colours, SVG for pages, PNG for the README.

Invariants: the same figure gives the same bytes (fixed salt, no dates, no system fonts, no user style). The SVG takes
every colour from CSS variables of the page (`--ink`, `--accent`, ..., with the light value as fallback), so one drawing
serves light and dark mode. Not guaranteed: equal bytes across versions of matplotlib.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimoe.errors import MissingPrerequisite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS = 72  # one SVG unit is one CSS pixel when matplotlib draws at 72 dots per inch
LABEL = 18  # characters of a name in a chart; tables show the full name

# Token -> colour in light mode. The blue and the vermilion of Okabe and Ito, darkened for contrast on white.
COLOURS = {
    "ink": "#1c2430",
    "soft": "#5b6675",
    "line": "#d5dae1",
    "card": "#fffffe",
    "accent": "#0b62a8",
    "mark": "#b8430a",
}
# Colours of chart series, as tokens `hue-0`, `hue-1`, ...
HUES = ("#0b62a9", "#b8430b", "#00795a", "#7a4fa3", "#8a6d00", "#a8326e")
# Contribution from low to high in ten steps of one hue; dark mode reverses the lightness.
HEAT = ("#eef3f8", "#dde8f2", "#c9dcec", "#b0cde4", "#94bbda", "#76a6cd", "#5a90be", "#427aad", "#2c6397", "#1a4c7d")
EMPTY = "#e4e4e3"


def require_matplotlib() -> None:
    """Raises `MissingPrerequisite`, which names the extra, if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as exc:
        raise MissingPrerequisite(
            "charts need matplotlib",
            expected="the extra `report`",
            actual=str(exc),
            remedy='pip install "trimoe[report]"',
        ) from exc


@contextmanager
def drawing() -> Iterator[None]:
    """Context with the style of all charts; restores the settings. Create and save figures inside it."""
    require_matplotlib()
    from matplotlib import rc_context, rcParamsDefault

    fixed = (
        "font.",
        "text.",
        "axes.",
        "xtick.",
        "ytick.",
        "grid.",
        "lines.",
        "patch.",
        "path.",
        "svg.",
        "savefig.",
        "figure.",
    )
    settings: dict[str, Any] = {
        **{key: value for key, value in rcParamsDefault.items() if key.startswith(fixed)},  # not the user's own style
        "font.family": "DejaVu Sans",  # ships with matplotlib: the same metrics on every machine
        "font.size": 12.5,
        "text.parse_math": False,
        "text.color": COLOURS["ink"],
        "svg.fonttype": "none",
        "svg.hashsalt": "trimoe",
        "path.simplify": False,
        "lines.solid_capstyle": "round",
    }
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's browser has its own fonts
        yield


def clean(text: str, limit: int = LABEL) -> str:
    """One printable line of at most `limit` characters; SVG does not allow control characters."""
    line = "".join(c if c.isprintable() else " " for c in text).strip()
    return line if len(line) <= limit else line[: limit - 1] + "…"


def to_svg(figure: "Figure", name: str) -> str:
    """The figure as an `<svg>` element for a page: ids start with `name-`, colours are CSS variables."""
    buffer = StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    # matplotlib's style sheet would apply to the whole page; the page sets its two rules for figures only.
    svg = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', svg)
    if box is None:
        raise AssertionError("matplotlib wrote an SVG without a viewBox")
    width = float(box.group(1).split()[2])
    opening = f'<svg viewBox="{box.group(1)}" style="--w:{width:g}px" role="img" aria-labelledby="{name}-caption">'
    # Tags only: `>` is escaped in text, so what a user wrote is never rewritten.
    body = re.sub(r"<[^>]*>", lambda tag: _tag(tag.group(), name), svg[svg.index(">") + 1 :])
    body = re.sub(r">\s+<", "><", body)
    return opening + body.replace("<g/>", "")


def to_png(figure: "Figure", path: Path, *, scale: float = 2.0) -> None:
    """Write a PNG at `scale` times the figure's size, on white; at most 192 colours keep the file small."""
    from PIL import Image  # comes with matplotlib

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=PIXELS * scale, facecolor=COLOURS["card"], metadata={"Software": None})
    with Image.open(buffer) as picture:
        flat = picture.convert("RGB").quantize(192, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        flat.save(path, format="PNG", optimize=True)


_TOKENS = {colour: token for token, colour in COLOURS.items()} | {c: f"heat-{i}" for i, c in enumerate(HEAT)}
_TOKENS |= {colour: f"hue-{i}" for i, colour in enumerate(HUES)}
_TOKENS[EMPTY] = "empty"


def _tag(tag: str, name: str) -> str:
    """One tag of a figure with ids prefixed by `name`, and colours and fonts left to the page."""
    tag = re.sub(r'\s+id="(?!p[0-9a-f]{10}"|m[0-9a-f]{10}"|drop-|halo-)[^"]*"', "", tag)
    tag = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', tag)
    tag = re.sub(r'(href="|url\()#', rf"\1#{name}-", tag)
    tag = re.sub(r"#[0-9a-f]{6}(?=[;\"])", lambda c: _variable(c.group()), tag)
    tag = re.sub(r"font-family: [^;\"]*; |\s+transform=\"rotate\(-0 [^\"]*\"", "", tag)
    return tag.replace("xlink:href", "href").replace("\n", " ")


def _variable(colour: str) -> str:
    return f"var(--{_TOKENS[colour]}, {colour})" if colour in _TOKENS else colour
