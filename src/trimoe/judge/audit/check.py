"""One check of an audit, with its evidence."""

from dataclasses import dataclass
from typing import Literal

CheckLevel = Literal["ok", "notes", "refused", "not checked"]


@dataclass(frozen=True)
class Check:
    """What was checked and found. `value` and `limit` are in the unit that `text` names; `docs` are all its items."""

    flag: str
    level: CheckLevel
    text: str
    value: float | None = None
    limit: float | None = None
    docs: tuple[str, ...] = ()
