"""JSON files: reading what others wrote, with errors that name the file; publishing what trimoe writes."""

import json
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput
from trimoe.io.atomic import publish_file
from trimoe.io.expand import stored


def read_json(path: Path, what: str, error: type[BadInput] = BadInput, *, unique_keys: bool = False) -> Any:
    """Parse a JSON file. Raises `error` naming `what` it should have been ("drop map").

    With `unique_keys` an object that has a key twice is refused: another reader may take the other value.
    """
    try:
        return parse_json(stored(path), object_pairs_hook=each_key_once if unique_keys else None)
    except FileNotFoundError as exc:
        raise error(f"{what} {path} not found", expected="an existing file", remedy="check the path") from exc
    except OSError as exc:
        raise error(
            f"{what} {path} cannot be read",
            expected="a readable file",
            actual=str(exc),
            remedy="check the file, its permissions and the disk",
        ) from exc
    except (ValueError, RecursionError) as exc:
        expected = "a JSON document" + (" with each key once" if unique_keys else "")
        raise error(
            f"{what} {path} is not readable JSON",
            expected=expected,
            actual=str(exc)[:200],
            remedy="correct the file, or make it again",
        ) from exc


def write_json(path: Path, value: Any, *, overwrite: bool = False, sync: bool = True) -> None:
    """Publish readable JSON: indented, keys sorted, newline at the end. Raises `ValueError` for NaN and infinity."""
    with publish_file(path, overwrite=overwrite, sync=sync) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def parse_json(data: bytes, **options: Any) -> Any:
    """`json.loads`, except that text which cannot be written again (half a surrogate pair) is a `ValueError` too."""
    value = json.loads(data, **options)
    if rb"\u" in data:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` that raises `ValueError` for a key that an object has twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"an object has the key {key[:80]!r} twice")
        found[key] = value
    return found
