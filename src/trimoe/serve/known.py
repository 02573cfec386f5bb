"""Servers that trimoe started on this machine: what is known of each, by port, for commands that name its address.

`trimoe serve` knows what a server does not report: the model's hash, thinking, its budget, the template's arguments
that every request must carry. Invariants: a record counts only while the process that listens on the port belongs to
the server that the record describes; the record goes when the server ends.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from trimoe.io.atomic import publish_file
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.engine import log_folder
from trimoe.serve.process import descendants, listener

_LOCAL = ("127.0.0.1", "localhost", "::1")


class _Known(msgspec.Struct, frozen=True):
    supervisor: int
    endpoint: Endpoint


@contextmanager
def remembered(endpoint: Endpoint, port: int, supervisor: int) -> Iterator[None]:
    """Keep the record of a server while the block runs. `supervisor` is the process that all of its processes descend
    from. A record that cannot be written is left out: the server itself is not affected."""
    file = _file(port)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with publish_file(file, overwrite=True) as temporary:
            temporary.write_text(json.dumps({"supervisor": supervisor, "endpoint": asdict(endpoint)}), encoding="utf-8")
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()


def recall(url: str, model: str | None = None) -> Endpoint | None:
    """The endpoint of a server on this machine that trimoe started and that still runs, or None."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        return None
    if parts.hostname not in _LOCAL or port is None:
        return None
    try:
        known = msgspec.json.decode(_file(port).read_bytes(), type=_Known)
    except (OSError, msgspec.DecodeError):
        return None
    owner = listener(port)
    if owner is None or owner not in descendants(known.supervisor) or model not in (None, known.endpoint.model):
        return None
    return known.endpoint


def _file(port: int) -> Path:
    """Each user has an own one: a record decides what requests carry."""
    return log_folder() / f"running-{os.getuid()}-{port}.json"
