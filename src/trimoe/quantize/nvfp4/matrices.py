"""Reading and quantizing the matrices of a plan: the largest weight of each, then its codes and scales.

Invariants: a matrix is read in slices of at most `SLICE` weights (a transposed one with its expert's whole matrix), so
memory depends on the number of threads, not on tensor sizes; results come in the order of the plan.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np

from trimoe.errors import CheckpointError
from trimoe.model.nvfp4 import Array
from trimoe.model.safetensors import ITEM_BITS, read_bytes
from trimoe.quantize.nvfp4.codes import Quantized, bits_of, largest, quantize
from trimoe.quantize.nvfp4.plan import Matrix

SLICE = 4 << 20
"""Weights read at a time: 8 MiB of BF16."""
_of_thread = threading.local()
_AHEAD = 2  # finished matrices that may wait for each thread
T = TypeVar("T")
R = TypeVar("R")


def slices(matrix: Matrix) -> Iterator[Array]:
    """The bits of a matrix, some rows at a time. A slice is valid until this thread reads the next one."""
    info = matrix.info
    item = ITEM_BITS[info.dtype] // 8
    start = 0 if matrix.expert is None else matrix.expert * (info.nbytes // info.shape[0])
    if matrix.transposed:
        shape = info.shape[1:]
        whole = bits_of(read_bytes(info, start, shape[0] * shape[1] * item), info.dtype, (shape[0], shape[1]))
        yield np.ascontiguousarray(whole[:, matrix.first : matrix.first + matrix.rows].T)
        return
    start += info.start + matrix.first * matrix.columns * item
    step = max(1, SLICE // matrix.columns)
    buffer = _buffer(min(step, matrix.rows) * matrix.columns * item)
    with info.file.open("rb", buffering=0) as file:
        file.seek(start)
        for row in range(0, matrix.rows, step):
            count = min(step, matrix.rows - row)
            part = buffer[: count * matrix.columns * item]
            done = 0
            while done < len(part):
                more = file.readinto(part[done:])
                if not more:
                    raise CheckpointError(
                        f"tensor {info.name} in {info.file} ends early",
                        expected="a file that does not change",
                        remedy="run again when nothing writes to it",
                    )
                done += more
            yield bits_of(part, info.dtype, (count, matrix.columns))


def _buffer(size: int) -> memoryview:
    """This thread's read buffer, reused because allocating memory costs as much as reading."""
    if len(_of_thread.__dict__.get("buffer", b"")) < size:
        _of_thread.buffer = bytearray(size)
    return memoryview(_of_thread.buffer)[:size]


def largest_in(matrix: Matrix) -> np.float32:
    """The largest magnitude in a matrix. Raises `CheckpointError` for NaN and infinities."""
    return np.float32(max(largest(part, matrix.info.dtype, matrix.info.name) for part in slices(matrix)))


def quantized(matrix: Matrix, scale: np.float32) -> Quantized:
    """Quantize a whole matrix. Memory: the result, a little more than a quarter of the BF16 matrix."""
    parts = [quantize(part, matrix.info.dtype, scale) for part in slices(matrix)]
    if len(parts) == 1:
        return parts[0]
    return Quantized(
        np.concatenate([p.packed for p in parts]),
        np.concatenate([p.scales for p in parts]),
        sum(p.error for p in parts),
        sum(p.norm for p in parts),
    )


def in_order(pool: ThreadPoolExecutor, threads: int, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` in threads, in order, with a bounded number of results waiting."""
    waiting: deque[Future[R]] = deque()
    rest = iter(items)
    try:
        for item in islice(rest, _AHEAD * threads):
            waiting.append(pool.submit(work, item))
        while waiting:
            result = waiting.popleft().result()
            for item in islice(rest, 1):
                waiting.append(pool.submit(work, item))
            yield result
    finally:
        for future in waiting:
            future.cancel()
