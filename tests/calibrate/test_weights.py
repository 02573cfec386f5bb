"""Tensors mapped from their file: same values as read, damage named, nothing written back."""

from pathlib import Path

import pytest
import torch

from trimoe.calibrate.forward.weights import LazyTensor, mapped, require_finite
from trimoe.errors import CheckpointError
from trimoe.model.dequantize.parts import FloatTensor
from trimoe.model.safetensors import TensorInfo, header_bytes, read_header

KINDS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
}


def write(path: Path, tensors: dict[str, tuple[str, torch.Tensor]]) -> dict[str, TensorInfo]:
    """A safetensors file with the tensors in this order, however that aligns them."""
    body = b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for _, t in tensors.values())
    header = header_bytes({name: (dtype, tuple(t.shape)) for name, (dtype, t) in tensors.items()}, {})
    path.write_bytes(header + body)
    return read_header(path)[0]


def _stored(info: TensorInfo) -> FloatTensor:
    return FloatTensor(info.name, info.dtype, info.shape, info)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("odd", [0, 1, 3])
def test_values_are_those_of_the_file_at_any_alignment(tmp_path: Path, dtype: str, odd: int) -> None:
    values = (torch.arange(5000) % 251).to(KINDS[dtype]).reshape(50, 100)
    filler = torch.zeros(4096 * 3 + odd, dtype=torch.uint8)
    info = write(tmp_path / "x.safetensors", {"filler": ("U8", filler), "t": (dtype, values)})["t"]
    assert torch.equal(LazyTensor(_stored(info))[...], values)
    before = (tmp_path / "x.safetensors").read_bytes()
    mapped(info).zero_()
    assert (tmp_path / "x.safetensors").read_bytes() == before
    assert torch.equal(mapped(info), values)


def test_an_empty_tensor(tmp_path: Path) -> None:
    info = write(tmp_path / "x.safetensors", {"t": ("F32", torch.zeros(0, 4))})["t"]
    assert LazyTensor(_stored(info))[...].shape == (0, 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_one_bad_value_is_found(tmp_path: Path, dtype: str, value: float) -> None:
    values = torch.ones(300, 7, dtype=KINDS[dtype])
    values[299, 3] = value
    info = write(tmp_path / "x.safetensors", {"the.name": (dtype, values)})["the.name"]
    with pytest.raises(CheckpointError, match=r"the\.name holds NaN or infinite"):
        LazyTensor(_stored(info))[...]


def test_a_sum_that_overflows_is_no_accident() -> None:
    require_finite(torch.full((1000,), 6e4, dtype=torch.float16), "t")
    require_finite(torch.full((1000,), 3e38), "t")


def test_quantized_types_and_short_files_are_refused(tmp_path: Path) -> None:
    raw = torch.zeros(8, dtype=torch.uint8)
    info = write(tmp_path / "x.safetensors", {"q": ("F8_E4M3", raw)})["q"]
    with pytest.raises(CheckpointError, match="q has type F8_E4M3"):
        LazyTensor(_stored(info))[...]
    info = write(tmp_path / "y.safetensors", {"t": ("F32", torch.ones(4))})["t"]
    (tmp_path / "y.safetensors").write_bytes((tmp_path / "y.safetensors").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is truncated"):
        LazyTensor(_stored(info))[...]
