"""Sizes in text: bytes such as 5GB or 12GiB, and numbers of tokens such as 32k."""

import re

from trimoe.errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def parse_bytes(text: str) -> int:
    """Bytes of a size such as 16GB (decimal), 12GiB (binary) or 900MB. Raises `UsageError`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise UsageError(
            f"{text!r} is not a size",
            expected="for example 16GB (10^9) or 12GiB (2^30)",
            actual=text,
            remedy="write a number with a unit",
        )
    return int(float(match[1]) * _UNITS[match[2]])


def parse_tokens(text: str) -> int:
    """Number of tokens such as 32k (32768, as contexts are counted) or 8192. Raises `UsageError`."""
    match = re.fullmatch(r"\s*(\d+)\s*(k?)\s*", text.lower())
    if match is None or int(match[1]) == 0:
        raise UsageError(
            f"{text!r} is not a number of tokens",
            expected="for example 32k or 8192",
            actual=text,
            remedy="write a whole number, or one with k",
        )
    return int(match[1]) * (1024 if match[2] else 1)
