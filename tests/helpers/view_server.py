"""A running viewer, logs for it, and hostile texts, for tests of the viewer and the report."""

import json
import os
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trimoe.bench.bench import Verdict
from trimoe.evaluate.log.records import Arrived, Attempt, Sample
from trimoe.evaluate.log.run_log import RunLog
from trimoe.view.catalog import Catalog

CAUSES: dict[str, Any] = {
    "1": "correct",
    "w": "wrong",
    "e": "empty",
    "l": "loop",
    "t": "truncated (cap)",
    "?": "harness error",
}

# Each sets window.pwned, contacts another host, or opens a dialog if it is interpreted as markup, script or address.
PAYLOADS = (
    "<script>window.pwned=1</script>",
    "</pre><script>window.pwned=1</script>",
    "</textarea></title></style><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<img src=http://evil.invalid/x.png>",
    '"><img src=x onerror=window.pwned=1>',
    "'><svg onload=window.pwned=1>",
    "<svg><script>window.pwned=1</script></svg>",
    "<svg/onload=window.pwned=1>",
    "<body onload=window.pwned=1>",
    "<iframe src=javascript:parent.pwned=1></iframe>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "javascript:window.pwned=1",
    '" autofocus onfocus=window.pwned=1 x="',
    "' onmouseover=window.pwned=1 style=position:fixed;inset:0 x='",
    "<details open ontoggle=window.pwned=1>",
    "<video><source onerror=window.pwned=1></video>",
    "<math><mtext><img src=x onerror=window.pwned=1></mtext></math>",
    "<object data=javascript:window.pwned=1></object>",
    "<meta http-equiv=refresh content='0;url=http://evil.invalid/'>",
    "<base href=http://evil.invalid/>",
    "<link rel=stylesheet href=http://evil.invalid/x.css>",
    "<style>@import url(http://evil.invalid/x.css);*{display:none}</style>",
    "<form action=http://evil.invalid/><button autofocus>x</button></form>",
    "{{ 7*7 }}{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}${alert(1)}",
    "&lt;script&gt;window.pwned=1&lt;/script&gt;",
    "<!--><script>window.pwned=1</script-->",
    "<![CDATA[<script>window.pwned=1</script>]]>",
    "\u202e<script>window.pwned=1</script>\u2028\x00\x1b[31m\ufeff",
    "../../%2e%2e/%00<a href='javascript:alert(1)' autofocus onfocus=alert(1)>x</a>?q=<script>alert(1)</script>#<x>",
)


def put(
    path: Path,
    name: str,
    answers: str,
    bench: str = "b",
    spec: dict[str, Any] | None = None,
    ids: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    asked: int | None = None,
    model: str = "",
    **sampler: Any,
) -> None:
    """Write a run. `answers[i]` is 1 (correct) or a key of `CAUSES`; `texts[i]` fills every text field of row i."""
    with RunLog(path) as log:
        run = log.start(name, bench, {"name": bench, **(spec or {})}, model or f"hash of {name}", sampler, {})
        rows = []
        for i, answer in enumerate(answers):
            text = texts[i] if texts else "" if answer == "e" else f"{name} says {i}"
            sample = Sample(
                ids[i] if ids else f"d{i}",
                i,
                texts[i] if texts else f"Question {i}?",
                text,
                "stop",
                5,
                7,
                reasoning=texts[i] if texts else "",
                reasoning_tokens=0,
            )
            correct = None if answer == "?" else answer == "1"
            rows.append((sample, Verdict(correct, CAUSES[answer], text, texts[i] if texts else "")))
        log.event(run, "asking", missing=len(answers), of=len(answers) if asked is None else asked)
        log.add(run, rows, 1)


def fail(path: Path, name: str, doc: str, position: int, text: str, bench: str = "b") -> None:
    """Add a row without a reply to a run."""
    with RunLog(path) as log:
        run = next(run for run in log.runs() if (run.name, run.bench) == (name, bench))
        sample = Sample(doc, position, text, "", "", -1, -1, error="timeout")
        log.arrived(
            [(run, Arrived(sample, (Attempt("2026-01-01T00:00:00+00:00", 1.5, "timeout", None, text),), detail=text))]
        )


@dataclass(frozen=True)
class Site:
    """A running viewer."""

    url: str
    catalog: Catalog

    def id(self, name: str, bench: str | None = None) -> str:
        """The id of a run in addresses."""
        return next(s.id for s in self.catalog.all() if s.run.name == name and bench in (None, s.run.bench))

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
        """(status, headers with lower-case names, body)."""
        request = urllib.request.Request(self.url + path.lstrip("/"), method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read().decode()

    def json(self, path: str) -> Any:
        """A JSON response."""
        return json.loads(self.get(path)[2])


@contextmanager
def running(*logs: Path) -> Iterator[Site]:
    """The viewer over some logs, on a free port."""
    uvicorn = pytest.importorskip("uvicorn", reason="the extra 'view' is not installed")
    from trimoe.view.app import make_app

    catalog = Catalog(logs)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        server = uvicorn.Server(uvicorn.Config(make_app(catalog), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the viewer's server ended before it was up"
            time.sleep(0.01)
        try:
            yield Site(f"http://127.0.0.1:{listening.getsockname()[1]}/", catalog)
        finally:
            server.should_exit = True
            thread.join(30)


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium; skips the test if it is not installed."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("Chromium is not installed (make toolchains)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra 'dev')")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=flags)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page that records what a hostile text could cause: dialogs, errors, requests to other hosts."""

    def __init__(self, context: Any, home: str) -> None:
        self.page, self.home = context.new_page(), home
        self.seen: list[str] = []
        self.page.on("dialog", lambda dialog: (self.seen.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.seen.append(f"error {error}"))
        self.page.on("console", lambda message: self.seen.append(message.text) if message.type == "error" else None)
        self.page.on("request", self._asked)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.home, "data:")):
            self.seen.append(f"asked {request.url}")

    def open(self, url: str) -> None:
        """Open a page and record anything that must not happen."""
        self.page.goto(url)
        state = self.page.evaluate(f"[window.pwned, {_COUNT.format(_FOREIGN)}, {_COUNT.format(_HANDLERS)}]")
        if state != [None, 0, 0]:
            self.seen.append(f"{url}: {state}")


_COUNT = "document.querySelectorAll('{}').length"
_FOREIGN = "iframe, object, embed, base, meta[http-equiv], form[action^=http], a[href^=javascript]"
_HANDLERS = "[onerror], [onload], [onfocus], [ontoggle], [onmouseover]"
