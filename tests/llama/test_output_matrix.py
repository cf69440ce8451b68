"""Rows of the read-out matrix: the cache gives what the matrix gives, and never more than it may."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit import GGUFFile
from atlas_kit.errors import FileCorruptError, InvalidParamError
from atlas_kit.llama.llama_engine import LlamaEngine
from atlas_kit.llama.output_matrix import (
    COVARIANCE_RIDGE,
    EVENING,
    KNOWN_EVENING,
    KNOWN_RIDGE,
    MOVED_LOGIT,
    OutputRows,
    logit_scale,
    rows_of_model,
)

MATRIX = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)


class Counted:
    """A matrix that knows how many of its rows were asked for."""

    def __init__(self):
        self.asked = 0

    def __call__(self, tokens):
        self.asked += len(tokens)
        assert (np.diff(tokens) > 0).all()
        return MATRIX[tokens]


def test_a_small_matrix_is_asked_for_as_a_whole():
    for whole_bytes, cache_bytes, expected in (
        (1600, 1600, 50),
        (1599, 1600, 2),
        (1600, 1599, 2),
        (0, 1600, 2),
    ):
        matrix = Counted()
        rows = OutputRows(matrix, 50, 8, whole_bytes=whole_bytes, cache_bytes=cache_bytes)
        for tokens in ([3, 7], [3, 7]):
            np.testing.assert_array_equal(rows(np.array(tokens)), MATRIX[tokens])
        assert matrix.asked == expected


def test_rows_are_asked_for_once():
    matrix = Counted()
    rows = OutputRows(matrix, 50, 8)
    np.testing.assert_array_equal(rows(np.array([1, 5, 9])), MATRIX[[1, 5, 9]])
    np.testing.assert_array_equal(rows(np.array([1, 2, 9])), MATRIX[[1, 2, 9]])
    assert matrix.asked == 4
    assert rows.cached_bytes == 4 * 4 * 8


@pytest.mark.parametrize(("capacity", "whole_bytes"), [(3, 0), (50, 0), (50, 1600)])
def test_rows_that_were_let_go_are_asked_for_again(capacity, whole_bytes):
    matrix = Counted()
    rows = OutputRows(matrix, 50, 8, cache_bytes=capacity * 32, whole_bytes=whole_bytes)
    everything = np.arange(50)
    for some in ([1, 5, 9], [2, 5], everything):
        rows(np.array(some))
    before, held = matrix.asked, rows.whole()
    rows.let_go()
    assert rows.cached_bytes == 0
    for some in ([1, 5, 9], [2, 5], everything, [7]):
        np.testing.assert_array_equal(rows(np.array(some)), MATRIX[some])
        np.testing.assert_array_equal(rows.gathered(np.array(some[::-1])), MATRIX[some[::-1]])
    assert matrix.asked > before
    np.testing.assert_array_equal(held, MATRIX)


def test_no_rows():
    rows = OutputRows(MATRIX.__getitem__, 50, 8)
    assert rows(np.empty(0, np.int64)).shape == (0, 8)


@given(
    st.integers(1, 60),
    st.lists(st.sets(st.integers(0, 49), max_size=50), max_size=12),
)
def test_a_cache_of_any_size_gives_the_matrix(capacity, asked):
    rows = OutputRows(MATRIX.__getitem__, 50, 8, cache_bytes=capacity * 32)
    for some in asked:
        tokens = np.array(sorted(some), np.int64)
        np.testing.assert_array_equal(rows(tokens), MATRIX[tokens])
        assert rows.cached_bytes <= min(50, capacity) * 32


def test_what_was_used_long_ago_goes_first():
    matrix = Counted()
    rows = OutputRows(matrix, 50, 8, cache_bytes=3 * 32)
    for token in (1, 2, 3, 1, 4):  # 4 takes the place of 2
        rows(np.array([token]))
    before = matrix.asked
    rows(np.array([1, 3, 4]))
    assert matrix.asked == before
    rows(np.array([2]))
    assert matrix.asked == before + 1


def test_logits_are_scaled_then_capped():
    bias = np.arange(50, dtype=np.float32) / 10
    rows = OutputRows(MATRIX.__getitem__, 50, 8, bias=bias, scale=0.5, softcap=3.0)
    hidden = MATRIX[:2] * 2
    z = 0.5 * (hidden.astype("f8") @ MATRIX.T + bias)
    np.testing.assert_allclose(rows.logits(hidden, rows.whole()), 3 * np.tanh(z / 3), atol=1e-5)
    tokens = np.array([4, 7])
    np.testing.assert_allclose(
        rows.logits(hidden, rows(tokens), tokens), 3 * np.tanh(z[:, tokens] / 3), atol=1e-5
    )


def test_the_mean_row():
    np.testing.assert_allclose(OutputRows(MATRIX.__getitem__, 50, 8).mean, MATRIX.mean(axis=0), atol=1e-6)
    large = np.random.default_rng(1).standard_normal((5000, 4)).astype(np.float32) + 1
    assert abs(OutputRows(large.__getitem__, 5000, 4).mean - 1).max() < 0.2


@pytest.mark.parametrize(
    ("architecture", "value", "expected"),
    [
        ("granite", 4.0, 0.25), ("granitemoe", 4.0, 0.25), ("granitehybrid", 2.0, 0.5), ("minicpm", 2.0, 0.5),
        ("command-r", 0.25, 0.25), ("cohere2", 0.5, 0.5), ("llama", None, 1.0), ("llama", 0.0, 1.0),
    ],
)  # fmt: skip
def test_scales_of_architectures(architecture, value, expected):
    assert logit_scale(architecture, value) == expected


@pytest.mark.parametrize("type", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_a_model(type, tied, random_model):
    with GGUFFile.open(random_model("llama", type, tied=tied)) as file:
        rows = rows_of_model(file)
        name = "token_embd.weight" if tied else "output.weight"
        expected = file.dequantize(name)
        assert (rows.n_vocab, rows.n_embd) == expected.shape
        np.testing.assert_array_equal(rows.whole(), expected)
        np.testing.assert_array_equal(rows(np.array([0, 3, 511])), expected[[0, 3, 511]])
        del rows


def test_a_model_with_a_bias(random_model):
    with GGUFFile.open(random_model("phi2")) as file:
        rows = rows_of_model(file)
        assert rows.bias.shape == (512,)
        del rows


def test_a_model_without_a_read_out(random_model, tmp_path):
    path = tmp_path / "x.gguf"
    data = random_model("llama", tied=True).read_bytes()
    path.write_bytes(data.replace(b"token_embd.weight", b"token_embx.weight"))
    with GGUFFile.open(path) as file, pytest.raises(InvalidParamError, match="no output matrix"):
        rows_of_model(file)


def test_a_read_out_that_is_no_matrix(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("output.weight", np.zeros(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile.open(tmp_path / "x.gguf") as file, pytest.raises(FileCorruptError, match="cannot be read"):
        rows_of_model(file)


@given(st.integers(2, 20), st.lists(st.sets(st.integers(0, 49), min_size=1, max_size=6), max_size=60))
def test_what_goes_is_always_what_was_used_longest_ago(capacity, asked):
    """The order is sorted once for many misses, and still exact."""
    matrix, used = Counted(), {}
    rows = OutputRows(matrix, 50, 8, cache_bytes=capacity * 32)
    for clock, some in enumerate(asked):
        tokens = np.array(sorted(some), np.int64)[:capacity]
        before, missing = matrix.asked, [token for token in tokens if token not in used]
        rows(tokens)
        assert matrix.asked - before == len(missing)
        used.update(dict.fromkeys(tokens.tolist(), clock))
        kept = set(rows._token_in[rows._token_in >= 0].tolist())
        assert kept <= used.keys()
        gone = used.keys() - kept
        assert not gone or max(used[token] for token in gone) <= min(used[token] for token in kept)
        used = {token: used[token] for token in kept}


def test_many_misses_sort_once(monkeypatch):
    sorts = []
    rows = OutputRows(MATRIX.__getitem__, 50, 8, cache_bytes=40 * 32)
    plain = np.argpartition
    monkeypatch.setattr(np, "argpartition", lambda *a: sorts.append(1) or plain(*a))
    for token in range(50):
        rows(np.array([token]))
    assert len(sorts) <= 6


def test_threads_do_not_take_each_others_rows():
    """A cache of 16 rows, in which every call drops what the other thread's last one brought."""
    rows = OutputRows(lambda tokens: MATRIX[tokens], 50, 8, cache_bytes=16 * 8 * 4)
    wrong, vector = [], np.arange(8, dtype=np.float32)

    def work(seed):
        random, out = np.random.default_rng(seed), np.empty(8, np.float32)
        for _ in range(400):
            tokens = np.sort(random.choice(50, 8, replace=False))
            rows.times(vector, tokens, out)
            found = (
                (rows(tokens), MATRIX[tokens]),
                (rows.gathered(tokens[::-1]), MATRIX[tokens[::-1]]),
                (out, MATRIX[tokens] @ vector),
                (rows.product(vector[None], tokens)[0], MATRIX[tokens] @ vector),
            )
            wrong.extend(1 for one, other in found if not np.allclose(one, other, rtol=1e-5))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong


def test_even_is_a_power_of_the_rows_covariance():
    matrix = np.random.default_rng(0).standard_normal((200, 6)).astype(np.float32) * [9, 4, 2, 1, 0.5, 0.2]
    rows = OutputRows(matrix.__getitem__, 200, 6, scale=0.5)
    centred = matrix - matrix.mean(axis=0)
    variance, directions = np.linalg.eigh((centred.T @ centred / 200).astype("f8"))
    even = (variance + COVARIANCE_RIDGE * variance.mean()) ** EVENING
    wanted = (directions * even) @ directions.T
    wanted *= MOVED_LOGIT / (0.25 * (even * variance).sum())
    np.testing.assert_allclose(rows.even(np.eye(6)), wanted, rtol=1e-4, atol=1e-6)


def test_evening_is_a_power_of_what_gradients_vary_by():
    random = np.random.default_rng(0)
    matrix = random.standard_normal((200, 6)).astype(np.float32) * [9, 4, 2, 1, 0.5, 0.2]
    rows = OutputRows(matrix.__getitem__, 200, 6, scale=0.5)
    axes = np.linalg.qr(random.standard_normal((6, 6)))[0]
    square = np.array([5.0, 2.0, 0.3, 0.3, 0.3, 0.3])  # of two directions, and of all others
    even = (square + KNOWN_RIDGE * square.mean()) ** KNOWN_EVENING
    wanted = (axes * even) @ axes.T
    centred = matrix - matrix.mean(axis=0)
    wanted *= MOVED_LOGIT / (0.25 * np.einsum("nd,de,ne->n", centred, wanted, centred).mean())
    directions = (axes[:, :2] * np.sqrt(square[:2])).T
    np.testing.assert_allclose(rows.evening(directions, 0.3)(np.eye(6)), wanted, rtol=1e-4, atol=1e-6)


def test_what_is_prepared_is_what_would_be_found_out_later():
    calls = []

    def matrix(tokens):
        calls.append(len(tokens))
        return MATRIX[tokens]

    prepared, later = OutputRows(matrix, *MATRIX.shape), OutputRows(MATRIX.__getitem__, *MATRIX.shape)
    prepared.prepare()
    read = len(calls)
    gradient = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    np.testing.assert_array_equal(prepared.even(gradient), later.even(gradient))
    np.testing.assert_array_equal(prepared.mean, later.mean)
    prepared.prepare()
    assert len(calls) == read > 0


@pytest.mark.parametrize("matrix", [np.zeros((5, 4)), np.ones((5, 4)), np.eye(4)[:1]])
def test_rows_that_do_not_differ_can_be_evened(matrix):
    rows = OutputRows(matrix.astype(np.float32).__getitem__, len(matrix), 4)
    assert np.isfinite(rows.even(np.ones((2, 4), np.float32))).all()
    assert np.isfinite(rows.evening(np.eye(4)[:2], 0.5)(np.ones((2, 4), np.float32))).all()
    assert np.isfinite(rows.evening(np.zeros((2, 4)), 0.0)(np.ones((2, 4), np.float32))).all()


def test_what_a_thread_keeps_no_other_overwrites():
    """A memory reads with rows that it has gathered while another one learns beside it."""
    rows = OutputRows(lambda tokens: MATRIX[tokens], *MATRIX.shape)
    kept = rows.gathered(np.array([3, 1, 3]), keep=True)
    other = threading.Thread(target=lambda: rows.product(np.ones((2, 8), np.float32), np.arange(20)))
    other.start()
    other.join()
    assert (kept == MATRIX[[3, 1, 3]]).all()


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q6_K", "Q8_0"])
def test_llama_cpps_functions_give_numpys_numbers_to_the_bit(name):
    """Of any bytes, scales that are no numbers included."""
    pytest.importorskip("llama_cpp")
    from atlas_kit.formats.gguf.dequantize import dequantize_rows
    from atlas_kit.formats.gguf.tables import GGML_TYPES
    from atlas_kit.llama.llama_library import library

    native = library().native
    assert name in native
    kind = next(row for row in GGML_TYPES if row.type.name == name)
    info = SimpleNamespace(name="output.weight", row_length=1024)
    random = np.random.default_rng(0)
    rows = 1 + int(random.integers(40))
    data = random.bytes(rows * 1024 // kind.block * kind.size)
    expected = dequantize_rows(data, rows, info, kind, "<")
    found = dequantize_rows(data, rows, info, kind, "<", native)
    assert np.isnan(expected).any()
    assert np.array_equal(found, expected, equal_nan=True)
    swapped = dequantize_rows(data, rows, info, kind, ">", native)
    assert np.array_equal(swapped, dequantize_rows(data, rows, info, kind, ">"), equal_nan=True)


@pytest.mark.parametrize("type", ["q8_0", "q4_0", "f16"])
def test_rows_of_a_loaded_model_are_those_of_its_file(type, random_model):
    path = random_model("llama", type=type)
    with GGUFFile.open(path) as file, LlamaEngine(path, n_ctx=32, n_threads=1) as engine:
        expected = rows_of_model(file).whole()
        tokens = np.array([0, 5, 17, engine.info.n_vocab - 1])
        rows = engine.output_rows()
        assert np.array_equal(rows._matrix(tokens), expected[tokens])
