"""Word n-grams as 64-bit hashes, for the leak check and the guard against forbidden rows.

A word is a run of letters and digits, case folded; everything else separates words. Invariants: the hash of an n-gram
depends on its words alone (no per-process salt); two different n-grams collide with probability 2^-64. Not supported:
scripts without spaces between words, where a whole clause counts as one word.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

Hashes = np.ndarray[Any, np.dtype[np.uint64]]

_WORD = re.compile(r"[^\W_]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplication modulo 2^64 is invertible


def words(text: str) -> list[str]:
    """The words of a text."""
    return _WORD.findall(text.casefold())


def grams(sequence: Sequence[str], n: int) -> Hashes:
    """Hashes of the n-grams of a word sequence, in order: [len - n + 1], empty if it is shorter than n."""
    count = len(sequence) - n + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    hashes = np.fromiter((_hash(word) for word in sequence), np.uint64, len(sequence))
    result = np.zeros(count, np.uint64)
    for i in range(n):
        result = result * _FACTOR + hashes[i : i + count]
    return result


@lru_cache(maxsize=1 << 17)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
