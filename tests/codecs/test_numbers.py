"""bfloat16 and q8_0 against their definitions, and q8_0 against the ``gguf`` package."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.codecs import numbers

FLOATS = st.floats(width=32, allow_nan=False)


@given(st.lists(FLOATS, min_size=1, max_size=50))
def test_bfloat16_is_the_nearest(values: list[float]) -> None:
    array = np.array(values, np.float32)
    back = numbers.from_bfloat16(numbers.to_bfloat16(array))
    bits = back.view(np.uint32)
    assert not (bits & 0xFFFF).any()
    for value, got in zip(array, back, strict=True):
        if not np.isfinite(got):  # the largest float32 round up to infinity
            assert not np.isfinite(value) or abs(value) > 3.38e38
            continue
        code = int(np.float32(got).view(np.uint32))
        near = [
            np.uint32(c).view(np.float32) for c in (code, code - 0x10000, code + 0x10000) if 0 <= c < 2**32
        ]
        errors = [abs(float(n) - float(value)) for n in near if np.isfinite(n)]
        assert errors[0] == min(errors)


def test_bfloat16_ties_to_even_and_nan() -> None:
    ties = np.array([0x3F808000, 0x3F818000, 0x7FC00001, 0xFF800001], np.uint32).view(np.float32)
    coded = numbers.to_bfloat16(ties)
    assert coded[:2].tolist() == [0x3F80, 0x3F82]
    assert np.isnan(numbers.from_bfloat16(coded[2:])).all()


def test_every_bfloat16_survives() -> None:
    codes = np.arange(65536, dtype=np.uint16)
    wide = numbers.from_bfloat16(codes)
    back = numbers.to_bfloat16(wide)
    nan = np.isnan(wide)
    assert (back[~nan] == codes[~nan]).all()
    assert np.isnan(numbers.from_bfloat16(back[nan])).all()


@pytest.mark.parametrize("shape", [(32,), (4, 64), (2, 3, 96), (0, 32), (5, 0)])
def test_q8_0_shapes(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    coded = numbers.to_q8_0(array)
    assert coded.shape == (*shape[:-1], shape[-1] // 32 * 34)
    assert numbers.from_q8_0(coded).shape == shape


def test_q8_0_error_is_half_a_step() -> None:
    array = np.random.default_rng(3).normal(size=(8, 256)).astype(np.float32)
    back = numbers.from_q8_0(numbers.to_q8_0(array))
    step = np.abs(array.reshape(8, -1, 32)).max(axis=2).repeat(32, axis=1) / 127
    assert (np.abs(back - array) <= step * 0.51 + step * 127 * 2**-11).all()


def test_q8_0_is_ggmls() -> None:
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    array = np.random.default_rng(4).normal(size=(16, 320)).astype(np.float32)
    array[0, :32] = 0
    coded = numbers.to_q8_0(array)
    assert (coded == quants.quantize(array, GGMLQuantizationType.Q8_0)).all()
    assert (numbers.from_q8_0(coded) == quants.dequantize(coded, GGMLQuantizationType.Q8_0)).all()
