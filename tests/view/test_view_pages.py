"""Text pieces, addresses, and the server's responses and refusals."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import get_args
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import escape

from helpers.view_server import PAYLOADS, Site, fail, put, running
from trimoe.bench.cause import Cause
from trimoe.evaluate.log import schema as log_schema
from trimoe.evaluate.log.marks import shown_marks
from trimoe.evaluate.log.records import Result
from trimoe.evaluate.log.run_log import RunLog
from trimoe.judge.audit.audit import audit
from trimoe.judge.text import safe
from trimoe.view.browse import Wanted, around, paged
from trimoe.view.pages import MEANINGS, plain, sample_link
from trimoe.view.textdiff import MOST, excerpt, hits, marked

TEXTS = st.text(alphabet=st.sampled_from("ab \n<é\u202e"), max_size=60) | st.text(max_size=40)


@given(TEXTS, TEXTS)
@settings(max_examples=200, deadline=None)
def test_pieces_of_a_difference_put_together_are_the_texts(one: str, two: str) -> None:
    left, right = marked(one, two)
    assert ("".join(t for t, _ in left), "".join(t for t, _ in right)) == (one, two)
    if one and two:
        unmarked = ["".join(t for t, mark in side if not mark) for side in (left, right)]
        assert unmarked[0] == unmarked[1]


def test_long_texts_are_compared_by_lines_then_by_their_ends() -> None:
    lines = [f"line {i} of many words that say little" for i in range(MOST // 2)]
    other = [*lines[:300], "another", *lines[301:]]
    left, right = marked("\n".join(lines), "\n".join(other))
    assert any(mark and "another" in t for t, mark in right)
    assert sum(len(t) for t, mark in left if mark) < 60
    one, two = "a\n" * (MOST + 5) + "x", "b\n" * (MOST + 5) + "x"
    left, right = marked(one, two)
    assert [mark for _, mark in left] == [True, False]


@given(TEXTS, st.text(alphabet="abAB", min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_hits_are_marked_and_nothing_is_lost(text: str, needle: str) -> None:
    pieces = hits(text, needle)
    assert "".join(t for t, _ in pieces) == text
    assert all(t.lower() == needle.lower() * (len(t) // len(needle)) for t, mark in pieces if mark)
    assert needle.lower() in excerpt(text + " " + needle, needle, 90).lower()


@given(st.text(max_size=40, alphabet=st.characters(codec="utf-8")) | st.sampled_from([".", "..", "", "a/b", "?", "#"]))
@settings(max_examples=200, deadline=None)
def test_addresses_of_samples_lead_back_to_their_ids(doc: str) -> None:
    found = urlsplit(sample_link("/run/x", doc, "?cause=a"))
    place = found.path.removeprefix("/run/x/sample/")
    assert unquote(place) == doc or parse_qs(found.query, keep_blank_values=True)["doc"] == [doc]
    assert place not in (".", "..")
    assert parse_qs(found.query)["cause"] == ["a"]
    assert found.fragment == ""


@given(st.text(max_size=20), st.lists(st.text(max_size=8)), st.text(max_size=6))
@settings(max_examples=100, deadline=None)
def test_any_query_makes_a_list_whose_link_means_the_same(q: str, causes: list[str], page: str) -> None:
    wanted = Wanted.of({"q": q, "page": page, "in": "reply"}, causes)
    if all(text.isascii() for text in (q, *causes)):
        again = parse_qs(urlsplit(wanted.link()).query, keep_blank_values=True)
        found = Wanted.of({k: v[0] for k, v in again.items()}, again.get("cause", []))
        assert (found.causes, found.q, found.page) == (wanted.causes, wanted.q, wanted.page)


def test_pages_and_neighbours() -> None:
    items = list(range(103))
    assert [paged(items, n).first for n in (1, 2, 3)] == [0, 50, 100]
    assert paged(items, 99).number == 3
    assert paged([], 5).pages == 1
    assert around(["a", "b"], "a") == (None, "b", 0)
    assert around(["a", "b"], "b") == ("a", None, 1)
    assert around(["a", "b"], "z") == (None, "a", None)


def test_every_cause_has_a_meaning(site: Site) -> None:
    assert MEANINGS.keys() == set(get_args(Cause))
    assert f'title="{MEANINGS["empty"]}"' in site.get(f"run/{site.id('base')}")[2]


def test_hidden_characters_are_shown() -> None:
    assert plain("a\u202eb\x00\x1b[0m\n\t€") == "a⟨202E⟩b⟨0000⟩⟨001B⟩[0m\n\t€"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("http")
    log, other = folder / "runs.db", folder / "other.db"
    put(log, "base", "1w1e" * 30, ids=["", ".", "..", "a/b", "%2e", "ü?#&", *(f"d{i}" for i in range(114))])
    put(log, "cut", "11we" * 30, ids=["", ".", "..", "a/b", "%2e", "ü?#&", *(f"d{i}" for i in range(114))])
    put(other, "vllm", "1w", engine="vllm")
    fail(log, "cut", "late", 500, "the server slept")
    with running(log, other) as started:
        yield started


def test_every_response_has_the_policy_and_no_page_needs_more(site: Site) -> None:
    run, cut = site.id("base"), site.id("cut")
    pages = ("", f"run/{run}", f"run/{run}/sample/d1", f"diff/{run}/{cut}", f"diff/{run}/{cut}/sample/d1", "nothing")
    for path in (
        *pages,
        "static/view.js",
        "static/view.css",
        "static/nothing",
        "api/runs",
        "diff?run=1",
        f"run/{run}/audit",
    ):
        _, headers, body = site.get(path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
        if headers["content-type"].startswith("text/html"):
            assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son[a-z]+=|javascript:|https?://", body), path


def test_foreign_hosts_methods_and_paths_are_refused(site: Site) -> None:
    for host in ("evil.invalid", "evil.invalid:80", "127.0.0.1.evil.invalid", "localhost.evil.invalid", "0.0.0.0", ""):
        assert site.get("", Host=host)[0] == 400
        assert site.get("api/runs", Host=host)[0] == 400
    assert site.get("", Host="localhost:9")[0] == 200
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        for path in ("", "api/runs", f"run/{site.id('base')}", "diff", "static/view.js"):
            assert site.get(path, method)[0] == 405
    assert site.get("", "HEAD")[0] == 200
    for path in ("static/../app.py", "static/%2e%2e/app.py", "static/..%2fapp.py", "static//etc/passwd"):
        assert site.get(path)[0] == 404


def test_every_id_has_an_address_that_works(site: Site) -> None:
    run, cut = site.id("base"), site.id("cut")
    first = site.catalog.get(run).samples[:7]
    assert len(first) == 7
    for shown in first:
        doc = shown.sample.doc_id
        for base in (f"/run/{run}", f"/diff/{run}/{cut}"):
            link = sample_link(base, doc)
            assert link.replace("&", "&amp;") in site.get(base)[2] or base.startswith("/diff")
            status, _, body = site.get(link)
            assert status == 200
            assert f"Question {shown.sample.position}?" in body


def test_filters_search_and_pages(site: Site) -> None:
    cut = site.id("cut")

    def listed(query: str) -> list[str]:
        return re.findall(r'class="mark (\w+)"', site.get(f"run/{cut}{query}")[2])

    assert len(listed("")) == 50
    assert len(listed("?page=3")) == 21
    assert listed("?cause=empty") == ["miss"] * 30
    assert listed("?cause=harness+error") == ["none"]
    assert listed("?cause=missed&page=2") == ["miss"] * 10
    assert listed("?q=CUT+SAYS+118") == ["miss"]
    assert listed("?q=says+118&in=prompt") == []
    assert listed("?q=slept") == ["none"]
    assert listed("?q=d11&cause=correct") != []
    assert len(listed("?page=-1&q=&in=x&cause=")) in (0, 50)


def test_runs_under_other_conditions_have_no_difference(site: Site) -> None:
    base, cut, vllm = site.id("base"), site.id("cut"), site.id("vllm")
    alike = site.get(f"diff/{base}/{cut}")[2]
    apart = site.get(f"diff/{base}/{vllm}")[2]
    assert "<span>Difference</span>" in alike
    assert "<span>Difference</span>" not in apart
    assert "engine None against vllm" in apart


def test_caveats_are_shown_beside_the_score(tmp_path: Path) -> None:
    log = tmp_path / "runs.db"
    put(log, "clean", "1w")
    put(log, "loose", "1w?")
    with RunLog(log) as opened:
        run = next(run for run in opened.runs() if run.name == "loose")
        opened.event(run, "asking", missing=3, of=3, preflight=False, sandbox={"engine": "none"})
        opened.event(run, "guard overruled", guard="<b>empty", evidence="")
        opened.conclude(run, Result(3, 1, 1, 2, 1, 0.5, None, {}))
        expected = [mark.text for mark in shown_marks(opened, run)]
    assert expected == ["no sandbox", "no preflight", "guard <b>empty ignored", "1 unscored rows left out"]
    text = escape("! " + ", ".join(expected))
    with running(log) as site:
        clean, loose = site.id("clean"), site.id("loose")
        for page in ("", f"run/{loose}", f"diff/{clean}/{loose}"):
            assert site.get(page)[2].count(text) == 1, page
        assert "caveats of this score" not in site.get(f"run/{clean}")[2]


def test_the_audit_of_a_run_is_that_of_the_command(site: Site) -> None:
    for name in ("base", "cut", "vllm"):
        shown = site.catalog.get(site.id(name))
        (wanted,) = audit(shown.log.path, name=name)
        flags = [flag for flag in wanted.flags if flag != "CLEAN"]
        assert site.json(f"api/audit/{shown.id}") == {
            "verdict": wanted.verdict,
            "flags": flags,
            "why": [f"{check.flag}: {check.text}" for check in wanted.checks if check.flag in flags],
        }
        status, _, body = site.get(f"run/{shown.id}/audit")
        assert status == 200
        listed = re.findall(r"<li>\s*<span class=\"tag k-\w+\">([^<]+)</span>\s*<b>([^<]+)</b>", body)
        assert sorted(listed) == sorted((check.level, check.flag) for check in wanted.checks)
        assert [level for level, _ in listed] == sorted(
            (level for level, _ in listed), key=["refused", "notes", "not checked", "ok"].index
        )
        for check in wanted.checks:
            assert str(escape(safe(check.text, 400))) in body
        assert f'href="/run/{shown.id}/audit"' in site.get(f"run/{shown.id}")[2]
    empty = next(s.sample.doc_id for s in site.catalog.get(site.id("cut")).samples if s.verdict.cause == "empty")
    assert sample_link(f"/run/{site.id('cut')}", empty) in site.get(f"run/{site.id('cut')}/audit")[2]
    assert site.get("run/nothing/audit")[0] == site.get("api/audit/nothing")[0] == 404


def test_an_audit_leaves_an_older_log_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "old.db"
    with closing(sqlite3.connect(log)) as db:
        db.execute(f"PRAGMA application_id = {log_schema._APPLICATION_ID}")
        for statement in log_schema.MIGRATIONS[0][1]:
            db.execute(statement)
        db.execute("CREATE TABLE migrations (name TEXT PRIMARY KEY, applied TEXT NOT NULL)")
        db.execute("INSERT INTO migrations VALUES (?, '2026-01-01')", (log_schema.MIGRATIONS[0][0],))
        db.execute("INSERT INTO runs VALUES (1, 'i', 'b', 's', '{}', 'm', '{}', '{}', '2026-01-01')")
        db.execute("INSERT INTO names VALUES ('old', 'b', 1)")
        db.execute("INSERT INTO samples VALUES (1, 'd', 0, 'Q?', 'A', 'stop', 5, 7, '2026-01-01')")
        db.execute("INSERT INTO scores VALUES (1, 'd', 1, 'A', 1, 'correct', '')")
        db.commit()
    before = log.read_bytes()
    with running(log) as site:
        assert site.json(f"api/audit/{site.id('old')}")["verdict"] in ("publishable", "notes", "refused")
    assert log.read_bytes() == before
    assert os.listdir(tmp_path) == ["old.db"]


def test_a_failed_row_shows_its_fault(site: Site) -> None:
    body = site.get(f"run/{site.id('cut')}/sample/late")[2]
    assert "No reply: timeout" in body
    assert "timeout: the server slept" in body
    assert "1.50 s" in body


def test_the_comparison_of_chosen_runs(site: Site) -> None:
    base, cut = site.id("base"), site.id("cut")
    assert "Lost / gained" in site.get(f"diff?run={base}&run={cut}")[2]
    assert site.get(f"diff?run={base}")[0] == 400
    assert site.get(f"diff/{base}/nothing")[0] == 404


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    log = tmp_path / "runs.db"
    put(log, PAYLOADS[0], "1w")
    command = [sys.executable, "-m", "trimoe", "view", str(log), "--no-open"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout is not None
    url = started.stdout.readline().split()[0]
    try:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert "&lt;script&gt;" in answer.read().decode()
        port = url.rsplit(":", 1)[1].strip("/")
        taken = subprocess.run([*command, "--port", port, "--json"], capture_output=True, text=True)
        assert taken.returncode == 4
        assert f'"subject": "port {port} cannot be used"' in taken.stdout
    finally:
        started.send_signal(signal.SIGINT)
        _, errors = started.communicate(timeout=60)
    assert (started.returncode, errors) == (0, "")
