"""Parses sizes: bytes such as 5GB or 12GiB, and token counts such as 32k."""

import re

from trimoe.errors import UsageError

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: str, example: str = "16GB or 12GiB") -> int:
    """Bytes of a size such as 16GB (decimal) or 12GiB (binary). Raises `UsageError`, whose remedy shows `example`."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*(?:([kmgt])(i?))?b?\s*", text.lower())
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** _UNITS[match[2] or ""]) if match else 0
    if size < 1:
        raise UsageError(
            f"{text!r} is not a size",
            expected="a number of bytes, or a number with kB, MB, GB or TB (powers of 1000), KiB, MiB, GiB or TiB "
            "(powers of 1024)",
            remedy=f"for example {example}",
        )
    return size


def parse_tokens(text: str) -> int:
    """Number of tokens such as 8192 or 32k (32768: context lengths count in 1024s). Raises `UsageError`."""
    match = re.fullmatch(r"\s*(\d{1,15})\s*(k?)\s*", text.lower())
    if match is None or int(match[1]) == 0:
        raise UsageError(
            f"{text!r} is not a number of tokens",
            expected="a whole number, or a whole number with k (1024)",
            remedy="for example 32k or 8192",
        )
    return int(match[1]) * (1024 if match[2] else 1)
