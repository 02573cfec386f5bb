"""Whether the Hugging Face hub can be reached, asked once and quickly.

The hub's own client tries five times with growing pauses, which takes half a minute without a network. Here one
connection is tried; if there is none, the clients are told to be offline, so that they use what is in the local cache
and say at once what is not.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

_PATIENCE = 2.0  # seconds for a connection


@cache
def unreachable() -> str | None:
    """Why the hub cannot be reached, or None. A proxy is not questioned: only the client knows how to use it."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if endpoint.scheme in getproxies() or not endpoint.hostname:
        return None
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        socket.create_connection((endpoint.hostname, port), timeout=_PATIENCE).close()
    except OSError as exc:
        return f"{endpoint.hostname} cannot be reached: {exc}"
    return None


def out_of_reach(dataset: str) -> str | None:
    """Why a data set cannot be had: the hub cannot be reached, and no cache has anything of it. None otherwise."""
    reason = None if Path(dataset).exists() else unreachable()  # a folder needs no hub
    if reason is None:
        return None
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    files = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"datasets--{dataset.replace('/', '--')}"
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets") / dataset.replace("/", "___")
    return None if files.expanduser().exists() or prepared.expanduser().exists() else reason


@contextmanager
def offline_if_unreachable() -> Iterator[str | None]:
    """Within it, the hub's clients do not try a network that is not there. Yields why it is not."""
    reason = unreachable()
    changed: list[tuple[Any, bool]] = []
    if reason is not None:
        from huggingface_hub import constants

        changed.append((constants, constants.HF_HUB_OFFLINE))
        try:
            from datasets import config
        except ImportError:
            pass
        else:
            changed.append((config, config.HF_HUB_OFFLINE))
    for module, _ in changed:
        module.HF_HUB_OFFLINE = True
    try:
        yield reason
    finally:
        for module, before in changed:
            module.HF_HUB_OFFLINE = before
