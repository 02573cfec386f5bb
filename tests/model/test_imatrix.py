"""Importance matrices of both formats, against the gguf package and hand-made bytes."""

import struct
from pathlib import Path

import numpy as np
import pytest

from helpers.gguf_models import write_imatrix, write_model
from trimoe.errors import CheckpointError
from trimoe.model.gguf.imatrix import open_imatrix, write_dat_imatrix


def test_gguf_entries_are_those_written(tmp_path: Path) -> None:
    entries = write_imatrix(tmp_path / "i.gguf", write_model(tmp_path / "m.gguf"))
    found = open_imatrix(tmp_path / "i.gguf")
    assert not found.legacy
    assert found.entries.keys() == entries.keys()
    for name, (sums, counts) in entries.items():
        np.testing.assert_array_equal(found.entries[name].read_sums(), sums)
        np.testing.assert_array_equal(found.entries[name].read_counts(), counts[:, 0])


def dat(entries: list[tuple[bytes, int, list[float]]], trailer: bytes = b"", count: int | None = None) -> bytes:
    body = struct.pack("<i", len(entries) if count is None else count)
    for name, calls, values in entries:
        body += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
        body += np.array(values, "<f4").tobytes()
    return body + trailer


def test_dat_entries_and_what_follows_them(tmp_path: Path) -> None:
    trailer = struct.pack("<ii", 7, 5) + b"a.txt"
    path = tmp_path / "imatrix.dat"
    path.write_bytes(dat([(b"blk.0.x.weight", 3, [1.0, 2.0, 3.0, 4.0]), (b"output.weight", 3, [5.0])], trailer))
    found = open_imatrix(path)
    assert found.legacy
    assert found.trailer == trailer
    np.testing.assert_array_equal(found.entries["blk.0.x.weight"].read_sums(), [1, 2, 3, 4])
    np.testing.assert_array_equal(found.entries["output.weight"].read_counts(), [3])
    again = tmp_path / "again.dat"
    entries = [(e.name, e.calls, e.read_sums()) for e in found.entries.values()]
    write_dat_imatrix(again, entries, len(entries), found.trailer)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1\0",
        struct.pack("<i", -1),
        struct.pack("<i", 1 << 30),
        b"PK\3\4 something else entirely",
        dat([(b"x", 1, [1.0])], count=2),
        dat([(b"", 1, [1.0])]),
        dat([(b"x", 1, [])]),
        dat([(b"\xff", 1, [1.0])]),
        dat([(b"x", 1, [1.0]), (b"x", 1, [1.0])]),
        dat([(b"x", 1, [1.0] * 8)])[:-4],
        struct.pack("<iii", 1, 1 << 30, 0) + bytes(64),
    ],
)
def test_a_wrong_dat_file_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        open_imatrix(path)


def test_another_gguf_file_is_no_imatrix(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not an imatrix"):
        open_imatrix(write_model(tmp_path / "m.gguf"))
