"""What the fixture `rows` gives: rows of a benchmark's file, as it is."""

from collections.abc import Callable
from typing import Any

Rows = Callable[[str], list[dict[str, Any]]]
