"""The viewer as a web application: routes, pages and access control. Needs the extra `view`.

Invariants: only GET and HEAD; requests whose Host is not the loopback interface are refused, so that another website
cannot read logs by DNS rebinding; pages load only the viewer's own files and no script can come from a log.
Not guaranteed: protection from other users of this machine, who can reach its loopback interface.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trimoe.errors import TrimoeError
from trimoe.view import pages, queries
from trimoe.view.audits import audit_of
from trimoe.view.browse import CHANGES, Wanted, around, chosen, paged, side_by_side
from trimoe.view.catalog import Catalog, Pair, Shown, pair
from trimoe.view.textdiff import marked

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost")

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guarded:
    """Middleware that adds `HEADERS` to every response."""

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one request."""

        async def with_headers(message: "Message") -> None:
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *ours]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


def make_app(catalog: Catalog) -> "Starlette":
    """The application over the runs of a catalog."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    site = Site(catalog)
    routes = [
        Route("/", site.home),
        Route("/api/runs", site.now),
        Route("/api/audit/{run}", site.verdict),
        Route("/diff", site.pick),
        Route("/diff/{before}/{after}", site.diff),
        Route("/diff/{before}/{after}/sample/{doc:path}", site.diff_sample),
        Route("/run/{run}", site.run),
        Route("/run/{run}/audit", site.audit),
        Route("/run/{run}/sample/{doc:path}", site.sample),
        Route("/run/{run}/raw/{doc:path}", site.raw),
        Mount("/static", StaticFiles(packages=[("trimoe.view", "static")])),
    ]
    middleware = [
        Middleware(Guarded),
        Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False),
    ]
    handlers: dict[Any, Any] = {404: site.missing, TrimoeError: site.failed}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


class Site:
    """Request handlers: each finds its data and renders a template."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.templates = pages.environment()

    def page(self, template: str, status: int = 200, **context: Any) -> "Response":
        """A rendered template."""
        from starlette.responses import HTMLResponse

        return HTMLResponse(self.templates.get_template(template).render(**context), status_code=status)

    # ------------------------------------------------------------ runs

    def home(self, request: "Request") -> "Response":
        """All runs, by bench."""
        q = request.query_params.get("q", "").strip()[:200]
        everything = self.catalog.all()
        words = q.casefold().split()
        shown = [s for s in everything if all(word in _described(s) for word in words)]
        benches = {s.run.bench: [r for r in shown if r.run.bench == s.run.bench] for s in shown}
        return self.page(
            "runs.html.jinja",
            benches=benches,
            q=q,
            total=len(everything),
            shown=len(shown),
            logs=[log.path for log in self.catalog.logs],
        )

    def now(self, request: "Request") -> "Response":
        """Progress and score of every run as JSON, polled by open pages."""
        from starlette.responses import JSONResponse

        return JSONResponse({"runs": [_status(shown) for shown in self.catalog.all()]})

    def run(self, request: "Request") -> "Response":
        """One run: its samples by cause, with search."""
        shown = self._shown(request.path_params["run"])
        wanted = _wanted(request)
        page = paged(self._list(shown, wanted), wanted.page)
        with shown.log.reader() as reader:
            lines = queries.briefs(reader, shown.run.run_id, [s.sample.doc_id for s in page.items])
        return self.page(
            "run.html.jinja", shown=shown, wanted=wanted, page=page, lines=lines, others=self._siblings(shown)
        )

    def audit(self, request: "Request") -> "Response":
        """The checks of one run, worst first."""
        shown = self._shown(request.path_params["run"])
        made = audit_of(shown)
        if made is None:
            return self._missing("The log no longer contains this run.")
        checks = sorted(made.checks, key=lambda check: _LEVELS.index(check.level))
        return self.page("audit.html.jinja", shown=shown, audit=made, checks=checks)

    def verdict(self, request: "Request") -> "Response":
        """Verdict and flags of an audit as JSON, with the reason for each flag."""
        from starlette.responses import JSONResponse

        made = audit_of(self._shown(request.path_params["run"]))
        if made is None:
            return self._missing("The log no longer contains this run.")
        flags = [flag for flag in made.flags if flag != "CLEAN"]
        why = [f"{check.flag}: {check.text}" for check in made.checks if check.flag in flags]
        return JSONResponse({"verdict": made.verdict, "flags": flags, "why": why})

    def sample(self, request: "Request") -> "Response":
        """One sample with all its texts, and the same sample in other runs."""
        shown, doc = self._shown(request.path_params["run"]), _doc(request)
        wanted = _wanted(request)
        with shown.log.reader() as reader:
            found = queries.whole(reader, shown.run.run_id, doc)
            if found is None:
                return self._missing("This run has no such sample.")
            asked = queries.attempts(reader, shown.run.run_id, doc)
            kept = queries.raw(reader, shown.run.run_id, doc) is not None
        before, after, place = around([s.sample.doc_id for s in self._list(shown, wanted)], doc)
        elsewhere = [(one, one.samples[one.places[doc]]) for one in self._siblings(shown) if doc in one.places]
        return self.page(
            "sample.html.jinja",
            shown=shown,
            wanted=wanted,
            scored=found,
            attempts=asked,
            raw=kept,
            before=before,
            after=after,
            place=place,
            elsewhere=elsewhere,
        )

    def raw(self, request: "Request") -> "Response":
        """The raw server reply as text."""
        from starlette.responses import PlainTextResponse

        shown, doc = self._shown(request.path_params["run"]), _doc(request)
        with shown.log.reader() as reader:
            stored = queries.raw(reader, shown.run.run_id, doc)
        return self._missing("No raw reply was stored.") if stored is None else PlainTextResponse(stored)

    # ------------------------------------------------------------ two runs

    def pick(self, request: "Request") -> "Response":
        """Redirect from the form with two runs to their comparison."""
        from starlette.responses import RedirectResponse

        names = request.query_params.getlist("run")
        if len(names) != 2:
            return self.page(
                "message.html.jinja",
                400,
                title="Choose two runs",
                text=f"A comparison needs two runs; {len(names)} were chosen.",
            )
        before, after = (self._shown(name) for name in names)
        return RedirectResponse(f"/diff/{before.id}/{after.id}", status_code=303)

    def diff(self, request: "Request") -> "Response":
        """Two runs item by item, flips first."""
        both, wanted = self._pair(request), _wanted(request)
        items = self._items(both, wanted)
        page = paged([i for i in items if not wanted.causes or i.change in wanted.causes], wanted.page)
        docs = [item.doc_id for item in page.items]
        lines = []
        for side in (both.before, both.after):
            with side.log.reader() as reader:
                lines.append(queries.briefs(reader, side.run.run_id, docs))
        counts = {kind: sum(item.change == kind for item in items) for kind in CHANGES}
        return self.page(
            "diff.html.jinja", pair=both, wanted=wanted, page=page, lines=lines, counts=counts, every=len(items)
        )

    def diff_sample(self, request: "Request") -> "Response":
        """One sample in two runs, side by side."""
        both, wanted, doc = self._pair(request), _wanted(request), _doc(request)
        sides = []
        for side in (both.before, both.after):
            with side.log.reader() as reader:
                sides.append(queries.whole(reader, side.run.run_id, doc))
        if sides[0] is None and sides[1] is None:
            return self._missing("Neither run has such a sample.")
        texts = {
            name: marked(*(getattr(side.sample, name) if side else "" for side in sides))
            for name in ("prompt", "reasoning", "reply")
        }
        listed = [i for i in self._items(both, wanted) if not wanted.causes or i.change in wanted.causes]
        before, after, place = around([item.doc_id for item in listed], doc)
        change = next(
            (item.change for item in side_by_side(both.before.samples, both.after.samples) if item.doc_id == doc),
            "not scored",
        )
        return self.page(
            "diff_sample.html.jinja",
            pair=both,
            wanted=wanted,
            doc=doc,
            sides=sides,
            texts=texts,
            before=before,
            after=after,
            place=place,
            total=len(listed),
            change=change,
        )

    # ------------------------------------------------------------ errors

    def missing(self, request: "Request", error: Exception) -> "Response":
        """404: nothing at this address."""
        return self._missing(str(getattr(error, "detail", "")))

    def failed(self, request: "Request", error: Exception) -> "Response":
        """A page with status 500 for a log that can no longer be read, with the remedy."""
        return self.page("message.html.jinja", 500, title="The log cannot be read", text=str(error))

    def _missing(self, text: str) -> "Response":
        return self.page("message.html.jinja", 404, title="Not found", text=text)

    # ------------------------------------------------------------ lookup

    def _shown(self, run_id: str) -> Shown:
        from starlette.exceptions import HTTPException

        shown = self.catalog.get(run_id)
        if shown is None:
            raise HTTPException(
                404, "No run has this address. Its log may have been moved, or was not passed to trimoe view."
            )
        return shown

    def _pair(self, request: "Request") -> Pair:
        return pair(self._shown(request.path_params["before"]), self._shown(request.path_params["after"]))

    def _siblings(self, shown: Shown) -> list[Shown]:
        return [one for one in self.catalog.all() if one.run.bench == shown.run.bench and one.id != shown.id]

    def _list(self, shown: Shown, wanted: Wanted) -> list[Any]:
        return chosen(shown.samples, wanted.causes, _found(shown, wanted))

    def _items(self, both: Pair, wanted: Wanted) -> list[Any]:
        """Items that match the search, of every kind of change."""
        items = side_by_side(both.before.samples, both.after.samples)
        if not wanted.q:
            return items
        found = (_found(both.before, wanted) or set()) | (_found(both.after, wanted) or set())
        return [item for item in items if item.doc_id in found]


def _found(shown: Shown, wanted: Wanted) -> set[str] | None:
    """Ids of samples that match the search, ids included; None without a search."""
    if not wanted.q:
        return None
    with shown.log.reader() as reader:
        found = queries.holding(reader, shown.run.run_id, wanted.q, wanted.field)
    if wanted.field == "all":
        found |= {doc for doc in shown.places if wanted.q.casefold() in doc.casefold()}
    return found


def _wanted(request: "Request") -> Wanted:
    return Wanted.of(request.query_params, request.query_params.getlist("cause"))


def _doc(request: "Request") -> str:
    found: str = request.path_params["doc"] or request.query_params.get("doc", "")
    return found


def _described(shown: Shown) -> str:
    return " ".join((shown.run.name, shown.run.bench, shown.run.model, shown.log.path.name, shown.state)).casefold()


def _status(shown: Shown) -> dict[str, Any]:
    """The texts that an open page keeps up to date."""
    return {
        "id": shown.id,
        "n": len(shown.samples),
        "state": shown.state,
        "cells": {name: show(shown) for name, show in CELLS.items()},
    }


_LEVELS = ("refused", "notes", "not checked", "ok")

CELLS: dict[str, Callable[[Shown], str]] = {
    "score": lambda s: pages.score(s.row),
    "interval": lambda s: pages.interval(s.row),
    "progress": lambda s: pages.progress(len(s.samples), s.asked),
    "state": lambda s: s.state,
}
