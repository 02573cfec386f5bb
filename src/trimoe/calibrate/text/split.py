"""Calibration and held-out part of a set's windows, without a common document.

Invariant: the part follows from a document's tokens alone, so a text that occurs twice (in two classes, in two sets) is
in one part only. Not guaranteed: that near-duplicates are in the same part.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from trimoe.calibrate.text.windows import Windows
from trimoe.errors import CalibrationError

HELD_OUT_OF = 3
"""One in this many documents is held out."""


def digests(windows: Windows) -> dict[int, str]:
    """document number -> sha256 of its tokens; class and weight do not matter."""
    parts: dict[int, list[np.ndarray]] = {}
    for window in windows.windows:
        parts.setdefault(window.document, []).append(window.tokens)
    return {
        number: hashlib.sha256(np.concatenate(tokens).astype("<i8").tobytes()).hexdigest()
        for number, tokens in parts.items()
    }


def split(windows: Windows) -> tuple[Windows, Windows]:
    """(calibration, held-out). Raises `CalibrationError` if either has fewer than two documents."""
    held = {number for number, digest in digests(windows).items() if int(digest[:8], 16) % HELD_OUT_OF == 0}
    return _part(windows, lambda n: n not in held, "fit"), _part(windows, lambda n: n in held, "held-out")


def require_disjoint(calibration: Windows, held_out: Windows) -> None:
    """Raise `CalibrationError` if a document is in both."""
    common = set(digests(calibration).values()) & set(digests(held_out).values())
    if common:
        raise CalibrationError(
            "the held-out set shares documents with the calibration set",
            expected="no common document",
            actual=f"{len(common)} in both",
            remedy="remove them from one set, or leave out --held-out to split the set",
        )


def _part(windows: Windows, wanted: Callable[[int], bool], name: str) -> Windows:
    chosen = tuple(w for w in windows.windows if wanted(w.document))
    documents = {w.document for w in chosen}
    if len(documents) < 2:
        raise CalibrationError(
            f"too few documents: {len(documents)} in the {name} part",
            expected="at least 2",
            remedy="use a larger set, or give a second one with --held-out",
        )
    return replace(
        windows,
        windows=chosen,
        set_hash=hashlib.sha256((windows.set_hash + name + str(HELD_OUT_OF)).encode()).hexdigest(),
    )
