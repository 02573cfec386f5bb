"""The demo's report page: no external resources, all text escaped, reproducible bytes, no invented numbers."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.report_sample import sample
from trimoe.errors import BadInput, MissingPrerequisite
from trimoe.report import canvas, page, plots, words
from trimoe.report.data import CalibrationFacts, Difference, Duel, PageData, agreement, chance_agreement

pytest.importorskip("matplotlib", reason="the charts need the extra `report`; its absence has a test of its own")

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><iframe src='http://evil.example/'>",
    r"$\frac{1}{2}$ \notacommand",
    'style="fill: #1c2430" id="x" href="#y" url(#z)',
    "{{ 7 * 7 }}{% raw %}",
    "bell \x07 and escape \x1b[31m",
    "long " * 100,
    "中文 ꙮ \u202e",
)


class Outline(HTMLParser):
    """Tags with attributes, text outside of `style`, and the open elements around each tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.text: list[str] = []
        self.prose: list[str] = []
        self.open: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append((tag, named, tuple(kind for _, kind in self.open)))
        if tag not in ("meta", "link", "input"):
            self.open.append((tag, named.get("class") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs), tuple(kind for _, kind in self.open)))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self.open]
        if "style" not in inside:
            self.text.append(data)
            if "svg" not in inside:
                self.prose.append(data)


@pytest.fixture(scope="module")
def data() -> PageData:
    return sample()


@pytest.fixture(scope="module")
def small() -> tuple[PageData, str]:
    """Two methods and few questions, for tests that render often."""
    data = sample(methods=("v5-coder", "random-0"), n=30)
    return data, page.render_page(data)


@pytest.fixture(scope="module")
def html(data: PageData) -> str:
    return page.render_page(data)


@pytest.fixture(scope="module")
def outline(html: str) -> Outline:
    return Outline(html)


def test_the_page_has_no_external_resources(html: str, outline: Outline) -> None:
    links = [a[key] for _, a, _ in outline.tags for key in ("src", "href", "xlink:href", "srcset", "data") if key in a]
    assert len(links) >= 2
    assert all(link in ("data:,", None) or str(link).startswith("#") for link in links)
    assert "http" not in html
    assert "@import" not in html
    assert set(re.findall(r"url\(.", html)) == {"url(#"}
    assert not {tag for tag, _, _ in outline.tags} & {"script", "iframe", "img", "object", "embed", "base"}


def test_ids_are_unique_and_every_reference_resolves(html: str, outline: Outline) -> None:
    ids = [a["id"] for _, a, _ in outline.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    used = {str(a["href"])[1:] for tag, a, _ in outline.tags if tag == "use"}
    used |= {str(a["aria-labelledby"]) for _, a, _ in outline.tags if "aria-labelledby" in a}
    used |= set(re.findall(r"url\(#([^)]*)\)", html))
    used |= set(re.findall(r"#((?:pick|heat-drop|heat-halo|fact)-\d+)", html))
    assert used
    assert used <= set(ids)


def test_every_svg_is_well_formed(html: str) -> None:
    drawn = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(drawn) == 2 + 2 * 6 + 1
    for svg in drawn:
        ElementTree.fromstring(svg)


def hostile(data: PageData) -> PageData:
    methods = [
        replace(m, name=f"{text}{i}", note=text) for i, (m, text) in enumerate(zip(data.methods, HOSTILE, strict=False))
    ]
    best = max(methods, key=lambda m: m.overall.correct)
    return replace(
        data,
        title=HOSTILE[0],
        model=replace(data.model, name=HOSTILE[1]),
        domains=HOSTILE[3:9],
        methods=tuple(methods),
        duels=tuple(Duel(best.name, m.name, data.duels[0].difference) for m in methods if m is not best),
        focus=HOSTILE[3],
        contribution_label=HOSTILE[2],
        calibration=CalibrationFacts(HOSTILE[0], tuple((text, 5) for text in HOSTILE), HOSTILE[1]),
        caveats=HOSTILE,
        commands=HOSTILE,
        versions=tuple((text, text) for text in HOSTILE),
    )


def test_hostile_text_stays_text(data: PageData, outline: Outline) -> None:
    html = page.render_page(hostile(data))
    bad = Outline(html)
    assert {tag for tag, _, _ in bad.tags} <= {tag for tag, _, _ in outline.tags}
    known = {key for _, a, _ in outline.tags for key in a}
    assert {key for _, a, _ in bad.tags for key in a} <= known
    text = "".join(bad.text)
    for wanted in HOSTILE:
        assert wanted in text
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        ElementTree.fromstring(svg)  # control characters would not parse
    assert r"$\frac{1}{2}$ \n" in text  # as text in the charts too, not as mathematics


def test_text_that_looks_like_svg_is_not_rewritten() -> None:
    name = 'id="x" #1c2430;'
    with canvas.drawing():
        svg = canvas.to_svg(plots.dot_chart([plots.Dot(name, 5, 4, 6)], axis=(0, 10), unit=""), "fig")
    assert "".join(ElementTree.fromstring(svg).itertext()).count(name) == 1


def test_same_data_same_bytes_in_another_process(data: PageData, html: str, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, matplotlib; matplotlib.rcParams.update({'font.size': 30, 'lines.linewidth': 9});"
        "from helpers.report_sample import sample; from trimoe.report.page import write_page, render_png;"
        "write_page(sample(), pathlib.Path('a.html')); render_png(sample(), pathlib.Path('a.png'))"
    )
    paths = [str(Path(__file__).parents[1]), str(Path(page.__file__).parents[2])]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == html
    page.render_png(data, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def numbers(value: Any) -> Iterator[float]:
    """Every number in the data, however deep."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield float(value)
    elif isinstance(value, str):
        yield from (float(n) for n in re.findall(r"\d+(?:\.\d+)?", value))
    elif isinstance(value, tuple):
        for item in value:
            yield from numbers(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from numbers(getattr(value, field.name))


def test_every_number_shown_comes_from_the_data(data: PageData, html: str, outline: Outline) -> None:
    """Every number on the page is in the data (as it is, in percent or in megabytes) or one of a few derived ones."""
    raw = set(numbers(replace(data, contribution=tuple((0.0,) * 32 for _ in range(4)))))
    derived = {float(data.model.dropped), len(data.methods), len(data.domains), 3.0}  # three random draws
    shares = {m.overall.correct / m.overall.n for m in (data.base, *data.methods)}
    shares |= {s.correct / s.n for m in (data.base, *data.methods) for s in m.scores}
    shares |= {sum(s.correct / s.n for s in m.scores) / 6 for m in (data.base, *data.methods)}
    shares |= {agreement(a.dropped, b.dropped) for a in data.methods for b in data.methods}
    shares |= {8 * 8 / 32 / (16 - 8 * 8 / 32), 1 - data.best[0].bytes / data.model.bytes}
    shares |= {s.high - s.low for m in data.methods for s in m.scores}
    shares |= {
        sum(sum(row[e] for e in d) / sum(row) for row, d in zip(data.contribution, m.dropped, strict=True)) / 4
        for m in data.methods
    }
    constants = {"95", "5", "0.05", "0.001"}
    allowed = constants | {f"{n:g}" for n in raw | derived} | {f"{n:.0f}" for n in raw if n == int(n)}
    for share in raw | shares:
        allowed |= {f"{abs(100 * share):.1f}", f"{abs(100 * share):.0f}"}
    allowed |= {f"{p:.3f}" for p in raw if 0 <= p <= 1} | {f"{n / 1e6:.1f}" for n in raw}
    allowed |= {f"{n:.1e}".split("e")[0] for n in raw if n} | {"10"}
    prose = " ".join(outline.prose).replace("\u202f", "")
    shown = re.findall(r"(?<![\w.-])\d+(?:\.\d+)?(?![\w.])|(?<![\w.-])\d+(?:\.\d+)?(?=\.\s)", prose)
    assert len(shown) > 500
    assert sorted(set(shown) - allowed) == []
    # In the charts: the values at the right edge, and round tick values.
    drawn = [t for svg in charts(html) for t in svg if re.fullmatch(r"[+−]?\d+(\.\d+)?", t)]
    assert len(drawn) > 100
    assert {t.strip("+−") for t in drawn if "." in t} <= allowed
    assert all(int(t.strip("+−")) % 5 == 0 or int(t) < 32 for t in drawn if "." not in t)


def charts(html: str) -> list[list[str]]:
    found = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    return [[text for text in ElementTree.fromstring(svg).itertext() if text.strip()] for svg in found]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: replace(d, model=replace(d.model, top_k=7)),
        lambda d: replace(d, model=replace(d.model, bytes=99_000_000)),
        lambda d: replace(d, methods=(replace(d.methods[0], bytes=5_000_000), *d.methods[1:])),
        lambda d: replace(d, methods=(replace(d.methods[0], certificate=None), *d.methods[1:])),
        lambda d: replace(d, methods=(replace(d.methods[0], dropped=d.methods[1].dropped), *d.methods[1:])),
        lambda d: replace(d, contribution=tuple(row[::-1] for row in d.contribution)),
        lambda d: replace(d, calibration=replace(d.calibration, set_hash="another")),
        lambda d: replace(d, base=replace(d.base, overall=replace(d.base.overall, low=0.5))),
        lambda d: replace(d, duels=()),
        lambda d: replace(d, timings=(("prune", 12.34),)),
    ],
)
def test_a_change_of_the_data_changes_the_page(small: tuple[PageData, str], change: Any) -> None:
    data, html = small
    assert page.render_page(change(data)) != html


def test_the_map_shows_one_method_at_a_time_and_the_best_first(data: PageData, html: str, outline: Outline) -> None:
    picks = [a for tag, a, _ in outline.tags if tag == "input"]
    assert [a["id"] for a in picks] == [f"pick-{i}" for i in range(7)]
    assert [data.methods[i] for i, a in enumerate(picks) if "checked" in a] == [data.best[0]]
    svg = next(s for s in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL) if "heat-drop-0" in s)
    for i, method in enumerate(data.methods):
        group = re.search(rf'<g id="heat-drop-{i}">\s*<path d="([^"]*)"', svg)
        assert group
        assert group[1].count("M") == 2 * sum(len(layer) for layer in method.dropped)  # two strokes per cross


def test_tables_scroll_on_a_phone(outline: Outline) -> None:
    assert any(tag == "meta" and "width=device-width" in (a.get("content") or "") for tag, a, _ in outline.tags)
    wide = [around for tag, _, around in outline.tags if tag == "table"]
    assert len(wide) >= 8
    assert all("scroll" in around or "two" in around for around in wide)


def test_a_page_of_the_real_models_shape_stays_small() -> None:
    assert len(page.render_page(sample(layers=30, experts=128, keep=98, n=20))) < 2_000_000


def test_a_contribution_that_is_not_finite_is_grey_not_ranked(small: tuple[PageData, str]) -> None:
    data, html = small
    assert f", {canvas.EMPTY})" not in html
    broken = (tuple(float("nan") if e == 3 else v for e, v in enumerate(data.contribution[0])), *data.contribution[1:])
    assert f", {canvas.EMPTY})" in page.render_page(replace(data, contribution=broken))
    assert plots.shades([float("nan"), 1.0, 2.0, float("inf")]) == [None, 5, 9, None]
    assert plots.shades([0.0, 0.0]) == [0, 0]


def test_unscored_domains_are_shown_as_such(small: tuple[PageData, str]) -> None:
    data = small[0]
    empty = replace(data.methods[0].scores[0], n=0, correct=0, low=0.0, high=1.0)
    method = replace(
        data.methods[0],
        scores=(empty, *data.methods[0].scores[1:]),
        differences=(None, *data.methods[0].differences[1:]),
    )
    shown = Outline(page.render_page(replace(data, methods=(method, *data.methods[1:]))))
    assert "0 / 0" in shown.text


def test_missing_matplotlib_names_the_extra(data: PageData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for call in (lambda: page.render_page(data), lambda: page.render_png(data, tmp_path / "a.png")):
        with pytest.raises(MissingPrerequisite, match=r"trimoe\[report\]"):
            call()
    assert not list(tmp_path.iterdir())


def test_importing_the_report_does_not_import_matplotlib() -> None:
    code = "import sys, trimoe.report.page; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_picture_is_small(data: PageData, tmp_path: Path) -> None:
    for name, shown in (("tiny", data), ("real", sample(layers=30, experts=128, keep=98, n=20))):
        page.render_png(shown, tmp_path / f"{name}.png")
        content = (tmp_path / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) < 200 * 1024


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        (lambda d: {"methods": ()}, "without methods"),
        (lambda d: {"methods": (d.methods[0], d.methods[0])}, "names of methods"),
        (lambda d: {"domains": d.domains[1:]}, "scores of base"),
        (lambda d: {"methods": (replace(d.methods[0], dropped=((1,),)),)}, "map of v5-coder"),
        (lambda d: {"methods": (replace(d.methods[0], dropped=((32,),) * 4),)}, "map of v5-coder"),
        (lambda d: {"contribution": d.contribution[1:]}, "contributions"),
        (lambda d: {"contribution": ((1.0,),) * 4}, "contributions"),
        (lambda d: {"focus": "poetry"}, "focus"),
    ],
)
def test_inconsistent_data_are_refused(data: PageData, change: Any, subject: str) -> None:
    with pytest.raises(BadInput, match=subject):
        replace(data, **change(data))


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def change(points: float, low: float, high: float, p: float = 0.5) -> Difference:
    return Difference(points, low, high, p, None, 10, 5, 720)


def with_best(data: PageData, correct: int, difference: Difference | None, **more: Any) -> PageData:
    """v5-coder as the best method, with this result."""
    first = data.methods[0]
    best = replace(first, overall=replace(first.overall, correct=correct), overall_difference=difference)
    return replace(data, methods=(best, *data.methods[1:]), **{"duels": (), **more})


def test_the_verdict_names_the_winner_with_interval_and_number_of_questions(data: PageData) -> None:
    lost = plain(words.verdict(with_best(data, 700, change(-0.012, -0.03, 0.004))))
    assert lost.startswith(
        "Dropping 8 of 32 experts in every layer, v5-coder kept the most: 97.2 % right, against 96.7 %"
    )
    assert lost.endswith("a loss of 1.2 points on the same 720 questions (95 % interval −3.0 to +0.4).")
    assert "a gain of 0.6 points" in plain(words.verdict(with_best(data, 700, change(0.006, -0.01, 0.02))))
    assert "no difference" in plain(words.verdict(with_best(data, 700, change(0.0001, -0.01, 0.02))))
    assert words.verdict(with_best(data, 700, None)).endswith("for the full model.")


def test_a_tie_is_called_a_tie(data: PageData) -> None:
    tied = tuple(replace(m, overall=data.methods[0].overall) for m in data.methods[:3])
    assert "v5-coder, v4 and reap tie as the best choices" in words.verdict(replace(data, methods=tied, duels=()))


def test_a_lead_is_claimed_only_when_tested_and_clear(data: PageData) -> None:
    ahead, draw = change(0.03, 0.01, 0.05, 0.001), change(0.01, -0.01, 0.03, 0.4)
    untested = with_best(data, 710, change(-0.01, -0.02, 0.0))
    assert "was not tested" in words.support(untested)[0]
    duels = (Duel("v5-coder", "v4", ahead), Duel("v5-coder", "reap", draw), Duel("frequency", "v5-coder", draw))
    lead = plain(words.support(replace(untested, duels=duels))[0])
    assert "clearly ahead of v4, but cannot be told apart from reap and frequency" in lead
    assert "ahead of reap by 1.0 points (95 % interval −1.0 to +3.0)" in lead
    adjusted = replace(ahead, p_holm=0.2)  # Holm's adjustment removes the claim
    lead = words.support(replace(untested, duels=tuple(replace(d, difference=adjusted) for d in duels)))[0]
    assert "clearly" not in lead


def test_a_random_choice_can_win(data: PageData) -> None:
    lucky = replace(data.methods[-1], overall=replace(data.methods[-1].overall, correct=715))
    changed = replace(data, methods=(*data.methods[:-1], lucky), duels=())
    assert f"{lucky.name} kept the most" in words.verdict(changed)


def test_cuts_that_are_not_proven_are_named(data: PageData) -> None:
    assert words.proof(data).startswith("All 7 cuts are proven exact")
    first = data.methods[0]
    assert first.certificate is not None
    bad = replace(first, certificate=replace(first.certificate, status="refuted"))
    broken = replace(data, methods=(bad, *data.methods[1:]))
    assert words.proof(broken).startswith("6 of 7 cuts are proven exact. Do not trust")
    assert 'class="refuted">6 of 7<' in page.render_page(broken)
    none = replace(data, methods=tuple(replace(m, certificate=None) for m in data.methods))
    assert words.proof(none).startswith("No certificate")


def test_agreement_of_maps() -> None:
    one, two = ((0, 1), (2, 3)), ((0, 1), (4, 5))
    assert agreement(one, one) == 1
    assert agreement(one, two) == pytest.approx(2 / 6)
    assert agreement((), ()) == 1
    assert chance_agreement(((0, 1), (0, 1)), 8) == pytest.approx(1 / (8 - 1))


def test_numbers_in_words() -> None:
    assert [words.points(x) for x in (-0.0123, 0.004, 0.0, -0.0001, None)] == ["−1.2", "+0.4", "0.0", "0.0", "–"]
    assert [words.probability(x) for x in (0.0, 0.00099, 0.0421, 1.0, None)] == [
        "< 0.001",
        "< 0.001",
        "0.042",
        "1.000",
        "–",
    ]
    assert [words.size(x) for x in (12, 7_412_736, 999_960, 51_600_000_000)] == [
        "12 bytes",
        "7.4 MB",
        "1.0 MB",
        "51.60 GB",
    ]
    assert [plain(words.scientific(x)) for x in (5.5e-7, 1e-4, 0.0, None)] == ["5.5 × 10⁻⁷", "10⁻⁴", "0", "–"]
    assert [words.listed(x) for x in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=9), st.sampled_from([5.0, 10.0]))
@settings(max_examples=60, deadline=None)
def test_the_axis_holds_every_interval(values: list[float], step: float) -> None:
    low, high = plots.limits([plots.Dot("", v, v - 1, v + 1) for v in values], step=step)
    assert low <= min(values) - 1
    assert high >= max(values) + 1
    assert low % step == 0
    assert high % step == 0
