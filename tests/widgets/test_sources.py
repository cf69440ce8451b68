"""What is taken for a matrix, and what one look at all of it finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import InvalidParamError
from atlas_kit.explorer.pooling import pool
from atlas_kit.widgets.sources import ArraySource, as_matrix, as_source, measure
from tests.explorer.test_pooling import matrices


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_nothing_has_no_magnitude(shape):
    assert measure(ArraySource(np.ones(shape)), 3).largest == 0


@given(matrices(), st.integers(1, 9))
def test_measuring_counts_what_is_there(matrix, most):
    found = measure(ArraySource(matrix), most)
    assert found.nan == np.isnan(matrix).sum()
    assert found.infinite == np.isinf(matrix).sum()
    finite = np.abs(matrix[np.isfinite(matrix)].astype(float))
    assert found.largest == (finite.max() if finite.size else 0)


def test_a_mapped_file_is_not_copied(tmp_path):
    np.save(tmp_path / "matrix.npy", np.arange(6000.0).reshape(3, 2000))
    mapped = np.load(tmp_path / "matrix.npy", mmap_mode="r")
    source = as_source(mapped)
    assert np.shares_memory(source.array, mapped)
    assert source.tile(1, 2, 500, 503, 512, 512).tolist() == [[2500, 2501, 2502]]
    assert source.value(2, 1999) == 5999


def test_a_row_a_list_and_a_source_are_matrices():
    assert as_matrix([1, 2, 3]).shape == (1, 3)
    assert as_matrix(3.5).shape == (1, 1)

    class Ones:
        shape = (10, 10)

        def tile(self, y0, y1, x0, x1, rows, cols):
            return np.ones((min(rows, y1 - y0), min(cols, x1 - x0)), np.float32)

    ones = Ones()
    assert as_source(ones) is ones
    assert measure(ones, 4).largest == 1


class Weight:
    """What is learned, as PyTorch has it: no array until it is detached, and not for every type."""

    def __init__(self, numbers, dtype="float32", learned=True):
        self.numbers, self.dtype, self.learned = numbers, dtype, learned

    def detach(self):
        return Weight(self.numbers, self.dtype, learned=False)

    def cpu(self):
        return self

    def __array__(self, dtype=None, copy=None):
        if self.learned:
            raise RuntimeError("it requires a gradient")
        if self.dtype == "bfloat16":
            raise TypeError("unsupported type bfloat16")
        return self.numbers


def test_weights_that_are_being_learned_are_detached():
    assert as_matrix(Weight(np.eye(2))).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.ones((2, 2, 2)), "two axes"),
        (np.ones((2, 2), complex), "complex128"),
        (np.array([["a"]]), "<U1"),
        (np.array([[None]]), "object"),
        ([[1], [1, 2]], "not a matrix"),
        (Weight(np.ones((2, 2)), "bfloat16"), "bfloat16"),
    ],
)
def test_what_is_no_matrix_is_refused_in_a_sentence(matrix, words):
    with pytest.raises(InvalidParamError, match=words):
        as_matrix(matrix)


class Sampled:
    """A source that gives fewer rows than it is asked for."""

    shape = (1000, 10)
    dtype = "Q4_0"

    def tile(self, y0, y1, x0, x1, rows, cols):
        numbers = np.arange(10_000, dtype=np.float32).reshape(1000, 10)
        numbers[500] = np.nan
        return pool(numbers[y0:y1, x0:x1], min(rows, 100), cols)


def test_of_a_source_only_the_overview_is_counted():
    found = measure(Sampled(), 512)
    assert (found.nan, found.infinite, found.counted) == (10, 0, False)
    assert found.largest == 9999
