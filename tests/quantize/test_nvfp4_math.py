"""NVFP4's arithmetic against what Model Optimizer made of hard cases, and against the definition, value by value."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimoe.errors import CheckpointError
from trimoe.model.nvfp4 import E4M3, VALUES, dequantize
from trimoe.quantize.nvfp4 import codes as nvfp4_math
from trimoe.quantize.nvfp4.codes import (
    bits_of,
    e4m3,
    floats,
    global_scale,
    largest,
    quantize,
    scale_2,
)

GOLDEN = np.load(Path(__file__).parent / "data" / "nvfp4_golden.npz")
CASES = sorted({name.rpartition("|")[0] for name in GOLDEN.files if "|" in name})


def bf16(values: np.ndarray) -> np.ndarray:
    """Bits, cut off (the rounding does not matter here)."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("case", CASES)
def test_every_byte_is_model_optimizers(case: str) -> None:
    """Ties and their neighbours, scales through all of E4M3 and beyond, zeros, denormals, huge values, three types."""
    _, dtype, factor = case.split("|")
    bits, second = GOLDEN[f"{case}|bits"], np.float32(GOLDEN[f"{case}|scale_2"])
    if factor == "1.0":
        assert scale_2(largest(bits, dtype, case)) == second
    found = quantize(bits, dtype, second)
    assert np.array_equal(found.packed, GOLDEN[f"{case}|packed"])
    assert np.array_equal(found.scales, GOLDEN[f"{case}|scales"])


def test_the_recorded_cases_are_hard() -> None:
    """What the cases are for is really in them."""
    assert str(GOLDEN["version"]) == "0.47.0"
    scales = np.unique(np.concatenate([GOLDEN[f"{case}|scales"].ravel() for case in CASES]))
    assert {1, 0x38, 0x7E} <= set(scales.tolist())
    assert len(scales) > 60
    ties = GOLDEN["ties f32|F32|1.0|packed"]
    # 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5 behind a 6: the even one of both neighbours, as codes.
    assert [int(code) for byte in ties[1, :4] for code in (byte & 15, byte >> 4)] == [7, 0, 2, 2, 4, 4, 6, 6]


def test_e4m3_rounds_to_the_nearest_and_ties_to_even() -> None:
    """Every value between 2^-9 and 448 that is at, beside or between two codes."""
    codes = np.arange(1, 127)
    values = E4M3[codes].astype(np.float64)
    middles = (values[:-1] + values[1:]) / 2
    assert np.array_equal(e4m3(E4M3[codes]), codes)
    even = np.where(codes[:-1] % 2 == 0, codes[:-1], codes[1:])
    assert np.array_equal(e4m3(middles.astype(np.float32)), even)
    assert np.array_equal(e4m3(np.nextafter(middles.astype(np.float32), np.float32(0))), codes[:-1])
    assert np.array_equal(e4m3(np.nextafter(middles.astype(np.float32), np.float32(500))), codes[1:])


def by_definition(weights: np.ndarray, second: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Codes and block scales, one value at a time, from the documentation alone."""
    codes, scales = [], []
    for block in weights.reshape(-1, 16):
        ratio = np.float32(np.abs(block).max()) / (np.float32(6) * second)
        ratio = min(max(float(ratio), 2.0**-9), 448.0) if ratio else 1.0
        scale = min(range(127), key=lambda code: (abs(float(E4M3[code]) - ratio), code % 2))
        for weight in block:
            scaled = float(np.float32(weight) / (E4M3[scale] * second))
            code = min(range(8), key=lambda code: (abs(float(VALUES[code]) - abs(scaled)), code % 2))
            codes.append(code + 8 * (scaled < 0))
        scales.append(scale)
    return np.array(codes), np.array(scales)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-8, 8, width=16), min_size=64, max_size=64), st.sampled_from(["BF16", "F16", "F32"]))
def test_it_is_the_definition(values: list[float], dtype: str) -> None:
    """Multiples of small powers of two, which hit bounds often."""
    array = np.round(np.array(values) * 4).reshape(2, 32) / 4
    bits = bf16(array) if dtype == "BF16" else array.astype({"F16": "<f2", "F32": "<f4"}[dtype])
    bits = bits_of(np.ascontiguousarray(bits).tobytes(), dtype, (2, 32))
    second = scale_2(largest(bits, dtype, "x"))
    found = quantize(bits, dtype, second)
    codes, scales = by_definition(floats(bits, dtype), second)
    assert np.array_equal(found.scales.ravel(), scales)
    assert np.array_equal(np.stack([found.packed & 15, found.packed >> 4], -1).ravel(), codes)


def test_pieces_do_not_change_a_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes and (but for summation order) the errors are those of the values, however they are cut."""
    bits = bf16(np.random.default_rng(1).standard_normal((48, 704)))
    whole = quantize(bits, "BF16", np.float32(0.001))
    monkeypatch.setattr(nvfp4_math, "_CHUNK", 100)
    pieces = quantize(bits, "BF16", np.float32(0.001))
    assert np.array_equal(whole.packed, pieces.packed)
    assert np.array_equal(whole.scales, pieces.scales)
    assert whole.error == pytest.approx(pieces.error, rel=1e-5)


@pytest.mark.parametrize("width", [16, 704, 2112])
def test_the_reported_error_is_the_error(width: int) -> None:
    """The sums beside the codes are those of the dequantized matrix."""
    bits = bf16(np.random.default_rng(2).standard_normal((5, width)) * 0.02)
    values = floats(bits, "BF16")
    second = scale_2(largest(bits, "BF16", "x"))
    found = quantize(bits, "BF16", second)
    back = dequantize(found.packed, found.scales, second)
    assert back.shape == (5, width)
    assert found.error == pytest.approx(float(((back - values).astype(np.float64) ** 2).sum()), rel=1e-4)
    assert found.norm == pytest.approx(float((values.astype(np.float64) ** 2).sum()), rel=1e-5)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-38])
def test_nothing_but_zeros_stays_zeros(value: float) -> None:
    """Where Model Optimizer stores NaN."""
    bits = bf16(np.full((2, 32), value))
    amax = largest(bits, "BF16", "x")
    found = quantize(bits, "BF16", scale_2(amax))
    back = dequantize(found.packed, found.scales, scale_2(amax))
    assert scale_2(amax) == global_scale(amax) == 1
    assert not back.any()
    assert np.isfinite(E4M3[found.scales]).all()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(dtype: str, value: float) -> None:
    """By the name of the tensor."""
    array = np.ones((2, 16), np.float32)
    array[1, 3] = value
    bits = bf16(array) if dtype == "BF16" else array.astype({"F16": "<f2", "F32": "<f4"}[dtype])
    with pytest.raises(CheckpointError, match=r"tensor some\.name holds NaN or infinite"):
        largest(bits_of(bits.tobytes(), dtype, (2, 16)), dtype, "some.name")


def test_the_reciprocal_is_finite_wherever_it_is_used() -> None:
    """From the smallest tensor that counts to the largest there is."""
    for amax in (np.float32(2.0**-116), np.float32(1.0), np.float32(3e38)):
        assert np.isfinite(global_scale(amax))
        assert scale_2(amax) * global_scale(amax) == pytest.approx(1, rel=1e-6)
