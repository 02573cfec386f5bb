"""A running chat-completions server: its address, its model, and its settings.

Invariants: `settings` holds what can change a reply and is part of a run's identity; `operational` never is. A value
that could not be read from the live server is None, never a guess.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Endpoint:
    """One server and one model on it.

    `url` ends before `/chat/completions` (as in `http://127.0.0.1:8080/v1`); `model` is the id that requests name;
    `model_hash` is the content hash of the model, None for a third-party server; `context` is in tokens per slot.
    `settings`: engine build, KV type, reasoning parser and budget, template arguments, dtype.
    `operational`: port, command, paths, parallel requests. `body` is added to every request.
    `api_key_env` names the environment variable with the key; the key itself is never stored.
    """

    url: str
    model: str
    engine: str
    model_hash: str | None = None
    context: int | None = None
    slots: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    operational: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    api_key_env: str | None = None
    also_named: tuple[str, ...] = ()
    """Further names that replies may give the model, such as `name` where `owner/name` was asked for."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a reply may give; `transformers serve` appends the revision."""
        return (self.model, f"{self.model}@main", *self.also_named)
