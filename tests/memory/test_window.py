"""The rings against Python lists, storage types against ``struct``, and the cache against a loop."""

from __future__ import annotations

import doctest
import math
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import window
from atlas_kit.memory.window import CacheRead, append, decode, encode, latest, lookup

Array = np.ndarray[Any, Any]


def test_examples_by_hand() -> None:
    assert doctest.testmod(window).failed == 0


# --- rings ---

CAPACITIES = {"key": 3, "token": 5}


def empty_ring(rows: int, capacities: dict[str, int]) -> dict[str, Array]:
    return {
        "key": np.full((rows, capacities["key"], 2), -1, np.float32),
        "token": np.full((rows, capacities["token"]), -1, np.int64),
    }


def fresh(rows: int, n: int, start: Array) -> dict[str, Array]:
    """Return tokens whose content names their row and number."""
    numbers = start[:, None] + np.arange(n) + 1000 * np.arange(rows)[:, None]
    return {"key": np.stack((numbers, -numbers), -1).astype(np.float32), "token": numbers}


@given(
    starts=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    same=st.booleans(),
    pieces=st.lists(st.integers(0, 9), max_size=6),
    capacities=st.fixed_dictionaries({"key": st.integers(0, 6), "token": st.integers(0, 6)}),
    copy=st.booleans(),
)
def test_rings_keep_the_last_tokens(
    starts: list[int], same: bool, pieces: list[int], capacities: dict[str, int], copy: bool
) -> None:
    rows = len(starts)
    position = np.array([starts[0]] * rows if same else starts, np.int64)
    ring = empty_ring(rows, capacities)
    history: list[list[int]] = [[] for _ in range(rows)]
    for n in pieces:
        new = fresh(rows, n, position)
        arguments = [position, *new.values(), *(ring.values() if copy else ())]
        before = [array.copy() for array in arguments]
        got = append(ring, new, position, copy=copy)
        for was, now in zip(before, arguments, strict=True):
            np.testing.assert_array_equal(was, now)
        for name in ring:
            assert np.shares_memory(got[name], ring[name]) == (not copy and ring[name].size > 0)
            assert got[name].dtype == ring[name].dtype
        for row in range(rows):
            history[row] += new["token"][row].tolist()
        ring, position = got, position + n
    for name, capacity in capacities.items():
        for row in range(rows):  # every slot, from the definition: token j lies in slot j mod capacity
            slots = [-1] * capacity
            first = int(position[row]) - len(history[row])
            for j, token in enumerate(history[row]):
                if capacity:
                    slots[(first + j) % capacity] = token
            stored = ring[name][row] if name == "token" else ring[name][row, :, 0]
            assert stored.tolist() == slots
    n = min(len(history[0]), *capacities.values())
    got = latest(ring, n, position)
    expected = np.array([tokens[len(tokens) - n :] for tokens in history]).reshape(rows, n)
    np.testing.assert_array_equal(got["token"], expected)
    if n:
        np.testing.assert_array_equal(got["key"], np.stack((expected, -expected), -1))
    assert not any(np.shares_memory(got[name], ring[name]) for name in ring)


@given(n=st.integers(0, 7), shift=st.integers(0, 10))
def test_slices_and_index_arrays_agree(n: int, shift: int) -> None:
    """A row gives the same, beside rows at its own position and beside one at another."""
    start = np.array([shift, shift])
    new = fresh(2, n, start)
    together = append(empty_ring(2, CAPACITIES), new, start)
    apart = append(
        empty_ring(3, CAPACITIES), fresh(3, n, np.array([shift, shift, 1])), np.array([shift, shift, 1])
    )
    for name in together:
        np.testing.assert_array_equal(together[name], apart[name][:2])
        a, b = latest(together, 2, start + n), latest(apart, 2, np.array([shift, shift, 1]) + n)
        np.testing.assert_array_equal(a[name], b[name][:2])


def test_pure_append_shares_nothing_even_of_fields_it_leaves() -> None:
    ring = empty_ring(2, CAPACITIES)
    got = append(ring, {"token": np.zeros((2, 0), np.int64)}, np.zeros(2, np.int64))
    assert got.keys() == ring.keys()
    assert not any(np.shares_memory(got[name], ring[name]) for name in ring)


def test_before_token_zero_lies_what_lies_there() -> None:
    ring = append(empty_ring(1, CAPACITIES), fresh(1, 2, np.zeros(1, np.int64)), np.zeros(1, np.int64))
    assert latest(ring, 3, np.array([2]))["token"].tolist() == [[-1, 0, 1]]
    assert list(latest(ring, 1, np.array([2]), names=["key"])) == ["key"]


def test_no_rows() -> None:
    none = np.zeros(0, np.int64)
    ring = append(empty_ring(0, CAPACITIES), fresh(0, 4, none), none)
    assert latest(ring, 2, none)["key"].shape == (0, 2, 2)


def test_what_does_not_fit_the_ring_is_refused() -> None:
    ring, position = empty_ring(2, CAPACITIES), np.zeros(2, np.int64)
    with pytest.raises(InvalidParamError, match='no field "value"'):
        append(ring, {"value": np.zeros((2, 1))}, position)
    for shape in [(1, 2, 2), (2, 2, 1), (2, 2)]:  # NumPy would broadcast the first two
        with pytest.raises(InvalidParamError, match="does not fit"):
            append(ring, {"key": np.zeros(shape, np.float32)}, position)
    with pytest.raises(InvalidParamError, match=r"encode\(\)"):
        append({"key": np.zeros((2, 3), np.uint16)}, {"key": np.zeros((2, 1), np.float32)}, position)
    with pytest.raises(InvalidParamError, match="keeps 3"):
        latest(ring, 4, position)
    with pytest.raises(InvalidParamError):
        latest(ring, -1, position)


def test_half_precision_ring() -> None:
    ring = {"key": np.zeros((1, 4), np.uint16)}
    numbers = np.array([[1.5, -2.25]], np.float32)
    ring = append(ring, {"key": encode(numbers, "bfloat16")}, np.array([0]), copy=False)
    back = decode(latest(ring, 2, np.array([2]))["key"], "bfloat16")
    np.testing.assert_array_equal(back, numbers)


# --- storage types ---


def bfloat16_by_struct(number: float) -> int:
    """Round to the nearer of the two bfloat16 around the float32 ``number``, to the even one at a tie."""
    (bits,) = struct.unpack("<I", struct.pack("<f", number))
    low, rest = bits >> 16, bits & 0xFFFF
    if (bits & 0x7FFFFFFF) > 0x7F800000:
        return int(low | 0x40)
    up = rest > 0x8000 or (rest == 0x8000 and low & 1)
    return int(low + up)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
def test_bfloat16_rounds_to_nearest_even(numbers: list[float]) -> None:
    array = np.array(numbers, np.float32)
    assert encode(array, "bfloat16").tolist() == [bfloat16_by_struct(x) for x in numbers]


def test_bfloat16_of_special_numbers() -> None:
    bits = [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 1, 0x8000, 0x8001, 0x18000, 0x807FFFFF]
    array = np.array(bits, np.uint32).view(np.float32)
    got = encode(array, "bfloat16")
    assert got.dtype == np.uint16
    assert got.tolist() == [0, 0x8000, 0x7F80, 0xFF80, 0x7F80, 0, 0, 1, 2, 0x8080]
    nan = np.array([0x7FC00000, 0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(decode(encode(nan, "bfloat16"), "bfloat16")).all()
    np.testing.assert_array_equal(encode(nan, "bfloat16") >> 15, [0, 0, 1, 0, 1])


def test_every_bfloat16_survives() -> None:
    codes = np.arange(0x10000, dtype=np.uint16).reshape(256, 256)
    back = decode(codes, "bfloat16")
    again = encode(back, "bfloat16")
    np.testing.assert_array_equal(np.where(np.isnan(back), 0, again), np.where(np.isnan(back), 0, codes))
    # columns are not contiguous
    np.testing.assert_array_equal(encode(back[:, ::3], "bfloat16"), again[:, ::3])


@pytest.mark.parametrize("dtype", list(window.STORAGE))
@pytest.mark.parametrize("compute", ["float32", "float64"])
def test_storage_types(dtype: str, compute: str) -> None:
    array = np.array([[0.0, 1.0, -2.5, 1e30, np.nan, np.inf]], compute)
    stored = encode(array, dtype)
    assert stored.dtype == window.STORAGE[dtype]
    back = decode(stored, dtype, compute)
    assert back.dtype == compute
    np.testing.assert_array_equal(back[0, :3], array[0, :3])
    large = np.inf if dtype == "float16" else 1e30
    np.testing.assert_allclose(back[0, 3:], [large, np.nan, np.inf], rtol=1 / 256)
    if dtype == compute:
        assert stored is array
        assert back is array


def test_unknown_storage_type() -> None:
    with pytest.raises(InvalidParamError, match="float16") as caught:
        encode(np.zeros(1), "float8")
    assert caught.value.key == "window_dtype"
    with pytest.raises(InvalidParamError):
        decode(np.zeros(1), "int8")


# --- the cache ---


def lookup_by_loop(query: Array, keys: Array, valid: Array, sharpness: float) -> tuple[Array, Array]:
    rows, n, _ = query.shape
    weights = np.zeros((rows, n, keys.shape[1]))
    similarity = np.full((rows, n), -1.0)
    for r in range(rows):
        for i in range(n):
            cosines = {}
            for j in np.flatnonzero(valid[r]):
                lengths = np.linalg.norm(query[r, i]) * np.linalg.norm(keys[r, j])
                cosines[j] = query[r, i] @ keys[r, j] / lengths if lengths else 0.0
            total = sum(math.exp(sharpness * c) for c in cosines.values())
            for j, c in cosines.items():
                weights[r, i, j] = math.exp(sharpness * c) / total
            similarity[r, i] = max(cosines.values(), default=-1.0)
    return weights, similarity


@given(
    seed=st.integers(0, 1000),
    rows=st.integers(0, 3),
    n=st.integers(0, 4),
    capacity=st.integers(0, 6),
    sharpness=st.sampled_from([0.5, 30.0, 300.0]),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_lookup_against_a_loop(
    seed: int, rows: int, n: int, capacity: int, sharpness: float, dtype: str
) -> None:
    rng = np.random.RandomState(seed)
    query = rng.standard_normal((rows, n, 3)).astype(dtype)
    keys = rng.standard_normal((rows, capacity, 3)).astype(dtype)
    keys[:, 1:2] = 0
    valid = rng.rand(rows, capacity) < 0.6
    before = query.copy(), keys.copy(), valid.copy()
    read = lookup(query, keys, valid, sharpness)
    for was, now in zip(before, (query, keys, valid), strict=True):
        np.testing.assert_array_equal(was, now)
    weights, similarity = lookup_by_loop(query.astype("float64"), keys.astype("float64"), valid, sharpness)
    assert read.weights.dtype == read.similarity.dtype == dtype
    tolerance = 1e-12 if dtype == "float64" else 2e-6 * max(sharpness, 1)
    np.testing.assert_allclose(read.weights, weights, atol=tolerance)
    np.testing.assert_allclose(read.similarity, similarity, atol=1e-6)

    values = rng.standard_normal((rows, capacity, 2)).astype(dtype)
    tokens = rng.randint(-1, 5, (rows, capacity))
    of = rng.randint(0, 4, (rows, n))
    mean = replace(read, content=values).values()
    by_token = replace(read, content=tokens)
    spread, hit = by_token.distribution(4), by_token.probability(of)
    assert mean.dtype == spread.dtype == hit.dtype == dtype
    expected = np.zeros((rows, n, 4))
    for r in range(rows):
        for i in range(n):
            for j in range(capacity):
                if 0 <= tokens[r, j] < 4:
                    expected[r, i, tokens[r, j]] += read.weights[r, i, j]
    np.testing.assert_allclose(mean, np.einsum("rnc,rcd->rnd", read.weights, values), atol=1e-5)
    np.testing.assert_allclose(spread, expected, atol=1e-6)
    np.testing.assert_allclose(hit, np.take_along_axis(expected, of[..., None], -1)[..., 0], atol=1e-6)


def test_lookup_without_a_valid_slot() -> None:
    keys = np.full((2, 3, 2), np.nan, np.float32)
    keys[1, 1] = [0, 2]
    valid = np.array([[False, False, False], [False, True, False]])
    for normalized in (False, True):
        unit = keys / 2 if normalized else keys
        read = lookup(np.ones((2, 1, 2), np.float32), unit, valid, normalized=normalized)
        assert read.weights.tolist() == [[[0, 0, 0]], [[0, 1, 0]]]
        assert read.similarity[0, 0] == -1
    tokens = np.array([[7, 7, 7], [1, 2, 1]])
    assert replace(read, content=tokens).distribution(3).tolist() == [[[0, 0, 0]], [[0, 0, 1]]]
    assert replace(read, content=tokens).probability(np.array([[7], [2]])).tolist() == [[0], [1]]
    assert not replace(read, content=tokens).distribution(0).size


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lookup_of_extreme_vectors(dtype: str) -> None:
    """The longest and shortest vectors with a length in the type's range, and those beyond it."""
    info = np.finfo(dtype)
    large, small = info.max**0.5 / 2, info.tiny**0.5 * 2
    keys = [[large, 0], [0, small], [0, 0], [0, info.smallest_subnormal]]
    keys += [[np.inf, 1], [np.nan, 1], [info.max, 1]]
    query = [[small, 0], [0, large], [0, 0], [np.nan, 0], [np.inf, 0]]
    arrays = np.array([query], dtype), np.array([keys], dtype)
    read = lookup(*arrays, np.ones((1, len(keys)), bool), 1.0)
    e = math.e
    np.testing.assert_allclose(read.weights[0, 0, :4], np.array([e, 1, 1, 1]) / (e + 3), rtol=1e-6)
    np.testing.assert_allclose(read.weights[0, 1, :4], np.array([1, e, 1, 1]) / (e + 3), rtol=1e-6)
    np.testing.assert_allclose(read.weights[0, 2:, :4], 0.25, rtol=1e-6)
    assert not read.weights[..., 4:].any()
    np.testing.assert_allclose(read.similarity, [[1, 1, 0, 0, 0]], atol=1e-6)
    nothing = lookup(arrays[0], arrays[1][:, 4:], np.ones((1, 3), bool))
    assert not nothing.weights.any()
    assert (nothing.similarity == -1).all()


def test_lookup_of_normalized_vectors_is_the_same() -> None:
    rng = np.random.RandomState(0)
    query, keys = rng.standard_normal((2, 2, 3, 4))
    valid = np.ones((2, 3), bool)
    plain = lookup(query, keys, valid)
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, keys)]
    read = lookup(*unit, valid, normalized=True)
    np.testing.assert_allclose(read.weights, plain.weights, atol=1e-12)
    np.testing.assert_allclose(read.similarity, plain.similarity, atol=1e-12)


@pytest.mark.parametrize("sharpness", [0.0, -1.0, math.inf, math.nan])
def test_sharpness_is_checked(sharpness: float) -> None:
    with pytest.raises(InvalidParamError) as caught:
        lookup(np.ones((1, 1, 1)), np.ones((1, 1, 1)), np.ones((1, 1), bool), sharpness)
    assert caught.value.key == "sharpness"


def test_a_window_recalls_what_followed() -> None:
    """Ring and cache together: the token after the most similar key, however the stream was split."""
    rng = np.random.RandomState(1)
    keys = rng.standard_normal((1, 20, 16)).astype(np.float32)
    tokens = rng.randint(0, 50, (1, 20))
    ring: dict[str, Array] = {"key": np.zeros((1, 8, 16), np.float32), "token": np.zeros((1, 8), np.int64)}
    for start in range(0, 20, 5):
        piece = slice(start, start + 5)
        ring = append(ring, {"key": keys[:, piece], "token": tokens[:, piece]}, np.array([start]), copy=False)
    read: CacheRead = lookup(keys[:, 12:], ring["key"], np.ones((1, 8), bool))
    assert (
        replace(read, content=ring["token"]).distribution(50).argmax(-1).tolist() == tokens[:, 12:].tolist()
    )
    np.testing.assert_allclose(read.similarity, 1, rtol=1e-6)
    assert (lookup(keys[:, :12], ring["key"], np.ones((1, 8), bool)).similarity < 0.95).all()
