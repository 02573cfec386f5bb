"""A heat map as one HTML element, for notebooks: a table of captions and an inline PNG, one pixel per cell.

Needs no package beyond numpy and zlib. `trimoe.report.heat` draws the labelled pictures of pages and files.
"""

import base64
import html
import struct
import zlib
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_LOW, _HIGH, _MISSING, _MARK = (247, 251, 255), (8, 48, 107), (189, 189, 189), (217, 72, 1)  # RGB
_CELL = 8  # CSS pixels per cell


def heatmap_html(title: str, values: Array, marked: Array | None = None) -> str:
    """`values` [rows, columns] as an HTML figure, each row scaled to its own largest value.

    Cells that are not finite are grey; `marked` [rows, columns] bool cells are orange. The title is escaped.
    """
    rows, columns = values.shape
    data = base64.b64encode(_png(_pixels(values, marked))).decode()
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<img alt="{html.escape(title, quote=True)}" src="data:image/png;base64,{data}" '
        f'style="image-rendering: pixelated; width: {columns * _CELL}px; height: {rows * _CELL}px"></figure>'
    )


def _pixels(values: Array, marked: Array | None) -> Array:
    """uint8 [rows, columns, 3]."""
    finite = np.isfinite(values)
    clean = np.where(finite, values, 0.0)
    low = np.where(finite, values, np.inf).min(1, keepdims=True)
    span = np.where(finite, values, -np.inf).max(1, keepdims=True) - low
    share = np.divide(clean - low, span, out=np.zeros(values.shape), where=finite & (span > 0))[..., None]
    pixels = np.rint(np.array(_LOW) * (1 - share) + np.array(_HIGH) * share)
    pixels[~finite] = _MISSING
    if marked is not None:
        pixels[marked] = _MARK
    result: Array = pixels.astype(np.uint8)
    return result


def _png(pixels: Array) -> bytes:
    """An RGB image as PNG (ISO/IEC 15948): signature, header, one compressed block, end."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # filter type 0 before each row

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
