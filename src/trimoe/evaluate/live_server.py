"""Reads what a running server states about itself: model, context, slots, command line."""

import http.client
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trimoe.serve.endpoint import Endpoint
from trimoe.serve.probe import headers
from trimoe.serve.process import fetch, listener

TROUBLE = (OSError, ValueError, KeyError, TypeError, http.client.HTTPException)  # of a request and its reply
_LOCAL = ("127.0.0.1", "localhost", "::1")


class LiveServer:
    """Pages of a running server, each read once; None for a page that it does not have."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self._pages = endpoint, dict[str, Any]()
        self.root = endpoint.url.removesuffix("/v1")
        self.headers = headers(endpoint.api_key_env)

    def page(self, url: str) -> Any:
        """The JSON at `url`, or None."""
        if url not in self._pages:
            try:
                self._pages[url] = fetch(url, timeout=30, headers=self.headers)
            except TROUBLE:
                self._pages[url] = None
        return self._pages[url]

    def card(self) -> Mapping[str, Any]:
        """The entry of /v1/models for the endpoint's model; empty if there is none."""
        rows = (self.page(f"{self.endpoint.url}/models") or {}).get("data") or []
        return next((row for row in rows if isinstance(row, dict) and row.get("id") == self.endpoint.model), {})

    def flags(self) -> list[str]:
        """The command line of the process that listens there; empty if it is remote or not readable."""
        parts = urlsplit(self.endpoint.url)
        if parts.hostname not in _LOCAL or parts.port is None or (pid := listener(parts.port)) is None:
            return []
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return []

    def model_path(self) -> str:
        """The path of the served model as the server states it; empty if it does not."""
        props = self.page(f"{self.root}/props") if self.endpoint.engine == "llamacpp" else None
        return str((props or {}).get("model_path") or self.card().get("root") or "")

    def context(self) -> tuple[int | None, int | None, str]:
        """Tokens per slot, number of slots, and where that was read; None for what the server does not state."""
        return _READERS.get(self.endpoint.engine, _read_card)(self)


Read = tuple[int | None, int | None, str]


def _read_llamacpp(live: LiveServer) -> Read:
    slots = live.page(f"{live.root}/slots")
    if isinstance(slots, list) and slots and all(whole(slot.get("n_ctx")) for slot in slots):
        return min(slot["n_ctx"] for slot in slots), len(slots), "/slots"
    props = live.page(f"{live.root}/props") or {}
    return (
        whole((props.get("default_generation_settings") or {}).get("n_ctx")),
        whole(props.get("total_slots")),
        "/props",
    )


def _read_ollama(live: LiveServer) -> Read:
    rows = (live.page(f"{live.root}/api/ps") or {}).get("models") or []
    row: Mapping[str, Any] = next((row for row in rows if row.get("name") == live.endpoint.model), {})
    return whole(row.get("context_length")), None, "/api/ps"


def _read_transformers(live: LiveServer) -> Read:
    return live.endpoint.context, live.endpoint.slots, "config.json of the served directory"


def _read_card(live: LiveServer) -> Read:
    return whole(live.card().get("max_model_len")), None, "/v1/models"


_READERS: Mapping[str, Callable[[LiveServer], Read]] = {
    "llamacpp": _read_llamacpp,
    "ollama": _read_ollama,
    "transformers": _read_transformers,
}


def whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
