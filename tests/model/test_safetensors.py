"""Headers, indexes and reads: what is accepted is exact, and everything else is refused by name."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.hand_made import write_file
from trimoe.errors import CheckpointError, TrimoeError
from trimoe.model.safetensors import header_bytes, nbytes_of, read_array, read_bytes, read_header


def _raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_our_writing_is_read_by_the_library_and_back(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy", reason="the torch extra is not installed")
    arrays = {"a": np.arange(6, dtype="<f4").reshape(2, 3), "b.c": np.arange(5, dtype="u1")}
    write_file(tmp_path / "ours.safetensors", arrays)
    read = safetensors.load_file(tmp_path / "ours.safetensors")
    assert all((read[name] == arrays[name]).all() for name in arrays)
    safetensors.save_file(arrays, tmp_path / "theirs.safetensors", metadata={"format": "np"})
    tensors, metadata = read_header(tmp_path / "theirs.safetensors")
    assert metadata == {"format": "np"}
    assert all((read_array(tensors[name]) == arrays[name]).all() for name in arrays)


def test_bf16_and_f16_become_float32(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 0.0, 3e38], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    half = np.array([0.5, -7.0], "<f2")
    header = header_bytes({"x": ("BF16", (2, 2)), "y": ("F16", (2,))}, {})
    (tmp_path / "f.safetensors").write_bytes(header + bits.tobytes() + half.tobytes())
    tensors, _ = read_header(tmp_path / "f.safetensors")
    x, y = read_array(tensors["x"]), read_array(tensors["y"])
    assert x.dtype == y.dtype == np.float32
    assert x.shape == (2, 2)
    np.testing.assert_allclose(x.ravel(), values, rtol=1e-2)
    np.testing.assert_array_equal(y, [0.5, -7.0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file or is truncated"),
        (b"\x00" * 7, "not a safetensors file or is truncated"),
        (struct.pack("<Q", 1 << 60) + b"{}", "not a safetensors file or is truncated"),
        (_raw(b"{nope"), "unreadable header"),
        (_raw(b"\xff\xfe"), "unreadable header"),
        (_raw(b"[" * 50_000), "unreadable header"),
        (_raw([1]), "not a JSON object"),
        (_raw({"x": 3}), "'x'.*malformed entry"),
        (_raw({"x": _entry("F99")}, b"0" * 8), "'x'.*malformed entry"),
        (_raw({"x": _entry(["F32"])}, b"0" * 8), "'x'.*malformed entry"),
        (_raw({"x": _entry(shape=[-2])}, b"0" * 8), "'x'.*malformed entry"),
        (_raw({"x": _entry(shape=[True, 2])}, b"0" * 8), "'x'.*malformed entry"),
        (_raw({"x": _entry(shape=[1 << 61] * 5000)}, b"0" * 8), "'x'.*malformed entry"),
        (_raw({"x": _entry(offsets=[8, 0])}, b"0" * 8), "'x'.*malformed entry"),
        (_raw({"x": _entry(offsets=[0])}, b"0" * 8), "'x'.*malformed entry"),
        (_raw({"\ud800": _entry()}, b"0" * 8), "unreadable header"),
        (_raw({"x": _entry()}, b"0" * 7), "tensor x .*truncated"),
        (_raw({"x": _entry(shape=[3])}, b"0" * 8), "tensor x .*size that is not its shape's"),
        (_raw({"x": _entry()}, b"0" * 9), "does not end with its last tensor"),
        (_raw({"x": _entry(offsets=[8, 16])}, b"0" * 16), "tensor x .*gap"),
        (_raw({"x": _entry(), "y": _entry(offsets=[4, 12])}, b"0" * 12), "tensor y .*overlaps"),
        (
            _raw(
                b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],'
                b'"data_offsets":[0,1]}}',
                b"0",
            ),
            "twice",
        ),
        (_raw({"__metadata__": {"a": 1}}), "malformed metadata"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "f.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(file)
    assert caught.value.remedy
    assert str(file) in str(caught.value)


def test_any_mutated_header_is_read_or_refused(tmp_path: Path) -> None:
    """What is read covers the whole data part, each tensor in the size of its type and shape."""
    file = tmp_path / "f.safetensors"
    write_file(file, {"a.weight": np.arange(6, dtype="<f4"), "b": np.zeros((2, 3), "u2")})
    whole, seen = file.read_bytes(), {"read": 0, "refused": 0}
    printable = st.integers(32, 126) | st.integers(0, 255)  # a printable byte inside a name leaves the header valid

    @settings(max_examples=300, deadline=None)
    @given(
        edits=st.lists(st.tuples(st.integers(0, len(whole) - 1), printable), min_size=1, max_size=3),
        cut=st.sampled_from([0, 0, 0, 1, 7, 50]),
    )
    def check(edits: list[tuple[int, int]], cut: int) -> None:
        data = bytearray(whole)
        for at, value in edits:
            data[at] = value
        file.write_bytes(data[: len(data) - cut])
        try:
            tensors, _ = read_header(file)
        except TrimoeError:
            seen["refused"] += 1
            return
        seen["read"] += 1
        assert sum(len(read_bytes(info)) for info in tensors.values()) == 36
        assert all(nbytes_of(info.dtype, info.shape) == info.nbytes for info in tensors.values())

    check()
    assert min(seen.values()) >= 10, seen
