"""The viewer and the report in a real browser: hostile texts, keys, filters, two runs, phone width, dark mode."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from helpers.view_server import PAYLOADS, Site, Watched, chromium, fail, put, running
from trimoe.bench.bench import Verdict
from trimoe.cli.main import main
from trimoe.evaluate.log.records import Sample
from trimoe.evaluate.log.run_log import RunLog

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ANSWERS = "1w1elt" * 20  # 120 rows: three pages
LATER = "11wel1" * 20


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    log = tmp_path_factory.mktemp("view") / "runs.db"
    put(log, "base", ANSWERS, "math")
    put(log, "cut", LATER, "math")
    put(log, "other", "1w", "code")
    with running(log) as started:
        yield started


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield context.new_page()
    context.close()


def hostile_log(path: Path) -> None:
    """Each payload as the name of a run, of a bench, of a model, and in every field of a sample; two runs share one."""
    unwritable = dict.fromkeys((0,))  # an id of the log cannot hold NUL and stay one id in an address
    ids = [text.translate(unwritable) for text in PAYLOADS]
    for name, answers in ((PAYLOADS[0], "1w" * 15), (PAYLOADS[5], "w1" * 15)):
        put(path, name, answers, PAYLOADS[3], ids=ids, texts=PAYLOADS, model=PAYLOADS[6], engine=PAYLOADS[7])
    fail(path, PAYLOADS[0], PAYLOADS[8] + "late", 40, PAYLOADS[9], PAYLOADS[3])
    for i, text in enumerate(PAYLOADS):
        put(path, f"{text} {i}", "w", text, texts=[text], model=text, sampled=text)


@pytest.mark.parametrize("policy", [False, True], ids=["policy off", "policy on"])
def test_hostile_texts_do_nothing(browser: Any, tmp_path: Path, policy: bool) -> None:
    """Escaping alone must suffice, so one run bypasses the content security policy; with it, fewer pages are tested."""
    log = tmp_path / "<img src=x onerror=window.pwned=1>.db"
    hostile_log(log)
    with running(log) as site:
        context = browser.new_context(bypass_csp=not policy)
        watched = Watched(context, site.url)
        one, two = site.id(PAYLOADS[0], PAYLOADS[3]), site.id(PAYLOADS[5], PAYLOADS[3])
        watched.open(site.url)
        names = watched.page.locator(".runs a.main").all_text_contents()
        assert any("<svg onload=window.pwned=1>" in name for name in names)
        for place in (
            f"run/{one}",
            f"run/{two}?cause=wrong",
            f"diff/{one}/{two}",
            "diff?run=<img src=x onerror=alert()>",
        ):
            watched.open(site.url + place)
        step = 6 if policy else 1
        for scored in site.catalog.get(one).samples[::step]:
            doc = quote(scored.sample.doc_id, safe="")
            watched.open(f"{site.url}run/{one}/sample/{doc}")
            if not scored.sample.error:
                shown = watched.page.locator("pre.text").all_text_contents()
                assert len(shown) == 3
                assert len(set(shown)) == 1  # prompt, reasoning and reply hold the same payload
            watched.open(f"{site.url}diff/{one}/{two}/sample/{doc}")
        for text in PAYLOADS[::step]:
            watched.open(f"{site.url}run/{one}?q={quote(text)}&cause={quote(text)}&in={quote(text)}&page={quote(text)}")
        for run in site.catalog.all()[2::step]:
            watched.open(f"{site.url}run/{run.id}")
            watched.open(f"{site.url}run/{run.id}/audit")
        watched.open(f"{site.url}?q={quote(PAYLOADS[5])}")
        assert [seen for seen in watched.seen if "status of 4" not in seen] == []
        context.close()
        for path in (*PAYLOADS[:4], "run/nothing", f"run/{one}/sample/{PAYLOADS[4]}x"):
            status, _, body = site.get(quote(path))
            assert status == 404
            assert "<img" not in body
            assert "pwned=1</script>" not in body


def test_a_payload_is_seen_where_nothing_escapes_it(browser: Any, tmp_path: Path) -> None:
    """Checks that the watcher of the test above can fail."""
    page = tmp_path / "page.html"
    page.write_text(f"<pre>{PAYLOADS[0]}{PAYLOADS[3]}</pre>")
    context = browser.new_context()
    watched = Watched(context, page.as_uri())
    watched.open(page.as_uri())
    assert watched.seen
    context.close()


def test_hostile_texts_do_nothing_in_the_report(browser: Any, tmp_path: Path) -> None:
    log, out = tmp_path / "<img src=x onerror=window.pwned=1>.db", tmp_path / "report.html"
    hostile_log(log)
    files = tmp_path / "ladder.csv"
    files.write_text(
        "model,tier,size_gb,score,n,source\n"
        + "".join(
            f'"{text}","{text}",{9 + i},{50 + i},100,"{text}"\n'
            for i, text in enumerate(t.replace('"', '""').replace("\x00", "") for t in PAYLOADS)
        )
    )
    arguments = ["report", str(log), "-o", str(out), "--ladder", str(files), "--bench", PAYLOADS[3], "--title"]
    assert main([*arguments, PAYLOADS[1]]) == 0
    context = browser.new_context()
    watched = Watched(context, out.as_uri())
    watched.open(out.as_uri())
    assert watched.page.locator("h1").text_content() == PAYLOADS[1]
    assert watched.page.locator("script").count() == 0
    assert watched.seen == []
    context.close()


def test_keys(page: Any, site: Site) -> None:
    page.goto(site.url)
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    assert page.locator("li.selected a.main").text_content() == "cut"
    page.keyboard.press("k")
    page.keyboard.press("ArrowUp")
    assert page.locator("li.selected a.main").text_content() == "base"
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/run/{site.id('base')}")
    for _ in range(2):
        page.keyboard.press("j")
    page.keyboard.press("o")
    page.wait_for_url("**/sample/d1")
    page.keyboard.press("j")
    page.wait_for_url("**/sample/d2")
    page.keyboard.press("k")
    page.wait_for_url("**/sample/d1")
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/sample/d2")
    page.keyboard.press("u")
    page.wait_for_url(f"**/run/{site.id('base')}")
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**?page=2")
    page.keyboard.press("/")
    page.keyboard.type("says 11j")  # keys are text where text is typed
    page.keyboard.press("Backspace")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=says+11*")
    found = page.locator("a.main").all_text_contents()
    assert found == ["d11", *(f"d{i}" for i in range(110, 120) if ANSWERS[i] != "e")]
    assert page.locator("li.row").first.locator("mark").text_content() == "says 11"
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("g")  # keys do nothing behind the dialog
    page.keyboard.press("Escape")
    assert not page.locator("#keys").is_visible()
    page.keyboard.press("g")
    page.wait_for_url(site.url)


def test_two_runs_are_chosen_and_compared_by_keys(page: Any, site: Site) -> None:
    page.goto(site.url)
    assert page.locator("#dock button").is_disabled()
    for key in "jxjxc":
        page.keyboard.press(key)
    page.wait_for_url(f"**/diff/{site.id('base')}/{site.id('cut')}")
    flips = [text.split() for text in page.locator("li.row").all_text_contents()]
    assert [row[0] for row in flips] == ["lost"] * 20 + ["gained"] * 30  # "both wrong" and so on come on later pages
    page.locator("a.main").first.click()
    page.wait_for_url("**/sample/d2")
    halves = page.locator(".two section")
    assert halves.nth(0).locator(".tag").text_content() == "correct"
    assert halves.nth(1).locator(".tag").text_content() == "wrong"
    assert halves.nth(0).locator("mark").all_text_contents() == ["base"]
    assert halves.nth(1).locator("mark").all_text_contents() == ["cut"]
    page.keyboard.press("j")
    page.wait_for_url("**/sample/d8")
    page.keyboard.press("u")
    page.wait_for_url(f"**/diff/{site.id('base')}/{site.id('cut')}")


def test_a_cause_filters_and_its_samples_are_walked_through(page: Any, site: Site) -> None:
    page.goto(f"{site.url}run/{site.id('base')}")
    page.locator(".chips a", has_text="loop").click()
    page.wait_for_url("**?cause=loop")
    assert set(page.locator("li.row .tag").all_text_contents()) == {"loop"}
    assert page.locator("li.row").count() == 20
    page.locator("a.main").nth(1).click()
    page.wait_for_url("**/sample/d10?cause=loop")
    page.keyboard.press("j")
    page.wait_for_url("**/sample/d16?cause=loop")
    page.keyboard.press("u")
    page.wait_for_url("**?cause=loop")


def test_light_and_dark(browser: Any, site: Site) -> None:
    def back(page: Any) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(site.url)
    dark = back(page)
    page.locator("#theme").click()
    light = back(page)
    assert dark != light
    page.reload()
    assert back(page) == light  # the choice is stored
    page.keyboard.press("t")
    assert back(page) == dark
    context.close()
    context = browser.new_context(color_scheme="light")
    page = context.new_page()
    page.goto(site.url)
    assert back(page) == light
    context.close()


def test_phone_width_scrolls_in_one_direction_only(browser: Any, site: Site, tmp_path: Path) -> None:
    log, out = tmp_path / "long.db", tmp_path / "report.html"
    long = "x" * 400
    put(log, long, "1we", long, texts=[long] * 3, ids=[long + "1", long + "2", long + "3"])
    put(log, long + "2", "11e", long, texts=["y" * 400] * 3, ids=[long + "1", long + "2", long + "3"])
    assert main(["report", str(log), "-o", str(out)]) == 0
    context = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    page = context.new_page()
    a, b = site.id("base"), site.id("cut")
    places = [
        site.url + p for p in ("", f"run/{a}", f"run/{a}/sample/d1", f"diff/{a}/{b}", f"diff/{a}/{b}/sample/d2", "no")
    ]
    with running(log) as narrow:
        c, d = narrow.id(long), narrow.id(long + "2")
        places += [
            narrow.url + p
            for p in ("", f"run/{c}", f"run/{c}/sample/{long}1", f"diff/{c}/{d}", f"diff/{c}/{d}/sample/{long}2")
        ]
        for place in [*places, out.as_uri()]:
            page.goto(place)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, place
            page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, f"{place}, opened"
    context.close()


def test_a_run_that_is_being_made_is_followed(browser: Any, tmp_path: Path) -> None:
    log = tmp_path / "live.db"
    put(log, "now", "1w", asked=4)
    with running(log) as site:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{site.url}run/{site.id('now')}")
        assert page.locator("[data-cell=progress]").text_content() == "2 of 4"
        assert page.locator("[data-cell=state]").text_content() == "running"
        with RunLog(log) as writer:
            rows = [(Sample(f"d{i}", i, "late", "late", "stop", 1, 1), Verdict(True, "correct")) for i in (2, 3)]
            writer.add(writer.runs()[0], rows, 1)
        page.locator("[data-cell=state]", has_text="complete").wait_for(timeout=60_000)
        assert page.locator("[data-cell=progress]").text_content() == "4"
        assert page.locator("[data-cell=score]").text_content() == "75.0 %"
        assert page.locator("#news").text_content() == "2 new samples: show"
        page.locator("#news a").click()
        page.locator("li.row").nth(3).wait_for(timeout=60_000)
        context.close()
