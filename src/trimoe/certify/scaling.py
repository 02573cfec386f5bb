"""Finds tensors that were multiplied by one factor: undocumented healing of a pruned model. Streamed."""

import os

import numpy as np

from trimoe.certify.expected import Expected
from trimoe.heal.edit import FLOATS, decode
from trimoe.model.safetensors import TensorInfo, read_bytes

BLOCK = 4 << 20
_RESIDUAL = 1e-4  # of the squared norm: what rounding to the tensor's type may leave
_SMALLEST = 1e-3  # difference from 1 of a factor that counts as one


def factor_between(want: Expected, have: TensorInfo) -> float | None:
    """The factor if the tensor `have` is what is expected times one number, up to rounding of its type; else None."""
    if want.kept is None and want.entries is None:
        return scale_factor(want.source, have)
    # Of cut tensors only small ones with one value or row per expert (scales, routers), which are read whole.
    if want.entries is not None or want.dtype not in FLOATS or want.axis != 0 or want.source.nbytes > BLOCK:
        return None
    rows = decode(read_bytes(want.source), want.dtype).reshape(want.source.shape)[list(want.kept or ())].reshape(-1)
    return _accepted(*_sums(rows, decode(read_bytes(have), have.dtype)))


def scale_factor(original: TensorInfo, changed: TensorInfo) -> float | None:
    """The factor alpha if `changed` is `original` x alpha up to rounding of its type, else None.

    Least squares over all elements; accepted if the residual is at most 1 % of the norm and alpha is not 1.
    """
    if original.dtype not in FLOATS or original.nbytes == 0:
        return None
    xx = xy = yy = 0.0
    with original.file.open("rb", buffering=0) as a, changed.file.open("rb", buffering=0) as b:
        for at in range(0, original.nbytes, BLOCK):
            length = min(BLOCK, original.nbytes - at)
            x = decode(os.pread(a.fileno(), length, original.start + at), original.dtype)
            y = decode(os.pread(b.fileno(), length, changed.start + at), changed.dtype)
            sums = _sums(x, y)
            xx, xy, yy = xx + sums[0], xy + sums[1], yy + sums[2]
    return _accepted(xx, xy, yy)


def _sums(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    return float(x @ x), float(x @ y), float(y @ y)


def _accepted(xx: float, xy: float, yy: float) -> float | None:
    if not (np.isfinite([xx, xy, yy]).all() and xx > 0 and yy > 0):
        return None
    alpha = xy / xx
    residual = max(yy - alpha * xy, 0.0) / yy
    return round(alpha, 6) if residual <= _RESIDUAL and abs(alpha - 1) > _SMALLEST else None
