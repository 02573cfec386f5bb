"""Decoding of NVFP4: 4-bit values (E2M1), a scale (E4M3) for each block of 16, and a float32 scale per matrix."""

import numpy as np

Array = np.ndarray
BLOCK = 16
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""E2M1 by code."""


def _e4m3_values() -> Array:
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    small = mantissa * 2.0**-9
    found = np.where(exponent == 0, small, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)) * np.where(codes < 128, 1, -1)
    found[[127, 255]] = np.nan
    return found.astype(np.float32)


E4M3 = _e4m3_values()
"""E4M3 by its bits."""


def dequantize(packed: Array, scales: Array, scale: np.float32) -> Array:
    """float32 [rows, columns] from codes: value x (block scale x scale_2), each product rounded once."""
    rows, half = packed.shape
    codes = np.empty((rows, half * 2), np.uint8)
    codes[:, 0::2], codes[:, 1::2] = packed & 15, packed >> 4
    factors = E4M3[scales] * np.float32(scale)
    with np.errstate(under="ignore"):
        result: Array = (VALUES[codes].reshape(rows, -1, BLOCK) * factors[..., None]).reshape(rows, half * 2)
    return result
