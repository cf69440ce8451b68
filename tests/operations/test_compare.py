"""Two memories side by side: the numbers against NumPy's own, and what is said where there are none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from atlas_kit import MemoryFile
from atlas_kit.codecs.numbers import to_bfloat16
from atlas_kit.errors import NoSuchFileError
from atlas_kit.memory import Features, Gate, Identity, Memory, MemoryConfig, ResidualMLP, stack
from atlas_kit.operations import compare
from atlas_kit.operations.compare import Side, Window, side_of_file, side_of_state
from atlas_kit.persistence.snapshot import save_memory
from atlas_kit.storage.keys import Keys
from tests.conftest import SAMPLES

CONFIG = MemoryConfig(
    6, 4, Features(map=Identity(), normalize_keys=False), eta=0.05, window_size=8, chunk_size=2
)


def learned(config=CONFIG, tokens=10, seed=0, batch=()):
    rng = np.random.default_rng(seed)
    memory = Memory(config)
    keys, values = (rng.standard_normal((*batch, tokens, d)) for d in (config.d_k, config.d_v))
    return memory.observe(memory.init(batch), keys, values)[0]


def side(config=CONFIG, label="a", **options):
    return side_of_state(learned(config, **options), config, label=label)


# --- matrices -----------------------------------------------------------------------------------------------


def test_a_row_is_what_numpy_says():
    a, b = side(), side(label="b", seed=1)
    x, y = a.matrices["W"].astype(np.float64), b.matrices["W"].astype(np.float64)
    (row,) = compare.compare_matrices(a, b)
    assert (row.name, row.shape_a, row.shape_b) == ("W", x.shape, y.shape)
    assert row.max_a == np.abs(x).max()
    assert row.max_b == np.abs(y).max()
    assert row.max_difference == np.abs(y - x).max()
    assert row.relative == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x))
    assert row.cosine == pytest.approx((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))
    np.testing.assert_array_equal(compare.difference(a, b, "W"), b.matrices["W"] - a.matrices["W"])


def test_a_spectrum_is_what_numpy_says():
    matrix = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    found = compare.spectrum(matrix)
    np.testing.assert_allclose(found.spectrum, np.linalg.svd(matrix, compute_uv=False), rtol=1e-5)
    assert 1 <= found.effective_rank <= 5
    for odd in (np.nan, np.inf):
        matrix[2, 3] = odd
        assert compare.spectrum(matrix) is None
    assert compare.spectrum(np.empty((0, 3))) is None
    np.testing.assert_array_equal(compare.spectrum(np.eye(3, dtype=np.int8)).spectrum, 1)
    np.testing.assert_array_equal(compare.spectrum(np.eye(3, dtype=np.float16)).spectrum, 1)


numbers = arrays.arrays(np.float32, (4, 3), elements=st.floats(-100, 100, width=32))


@given(numbers, numbers)
def test_the_same_is_zero_apart_and_the_order_only_turns_signs(x, y):
    a, b, same = Side("a", {"W": x}), Side("b", {"W": y}), Side("c", {"W": x.copy()})
    (row,) = compare.compare_matrices(a, same)
    assert (row.max_difference, row.relative) == (0, 0)
    assert row.cosine == pytest.approx(1)
    assert not compare.difference(a, same, "W").any()
    assert compare.compare_facts(a, same) == []
    np.testing.assert_array_equal(compare.difference(a, b, "W"), -compare.difference(b, a, "W"))
    (there,), (back,) = compare.compare_matrices(a, b), compare.compare_matrices(b, a)
    assert there.max_difference == back.max_difference
    assert there.cosine == pytest.approx(back.cosine, nan_ok=True)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float16])
def test_a_difference_of_narrow_numbers_does_not_wrap_around(dtype):
    a, b = Side("a", {"m": np.ones((1, 2), dtype)}), Side("b", {"m": np.zeros((1, 2), dtype)})
    np.testing.assert_array_equal(compare.difference(a, b, "m"), -1)


# --- windows ------------------------------------------------------------------------------------------------


def test_windows_share_slots_and_tokens():
    keys = np.arange(12, dtype=np.float16).reshape(4, 3)
    a = Window(keys, np.array([7, 7, 8, 9]))
    b = Window(np.concatenate((keys[1:3], keys[:1])), np.array([7, 5, 7]))
    found = compare.compare_windows(a, b)
    assert (found.slots_a, found.slots_b, found.shared) == (4, 3, 2)  # keys 1 and 0, both with token 7
    assert found.tokens_shared == 2
    assert found.tokens == ((5, 0, 1), (8, 1, 0), (9, 1, 0))
    assert compare.compare_windows(a, b, most=1).tokens == ((5, 0, 1),)
    same = compare.compare_windows(a, a)
    assert (same.shared, same.tokens_shared, same.tokens) == (4, 4, ())


def test_a_window_slides_over_what_came():
    """Of two moments of one run, 4 tokens apart, a window of 8 keeps the last 4 of the first."""
    rng = np.random.default_rng(0)
    memory = Memory(CONFIG)
    keys, values = rng.standard_normal((14, 6)), rng.standard_normal((14, 4))
    first, _ = memory.observe(memory.init(), keys[:10], values[:10])
    second, _ = memory.observe(first, keys[10:], values[10:])
    a, b = (side_of_state(state, CONFIG, label="x").window for state in (first, second))
    found = compare.compare_windows(a, b)
    assert (found.slots_a, found.slots_b, found.shared) == (8, 8, 4)
    assert found.tokens_shared is None
    np.testing.assert_allclose(b.keys[:4], a.keys[4:])


# --- where sides come from ----------------------------------------------------------------------------------


def test_a_file_is_what_was_saved(tmp_path):
    state = learned()
    save_memory(tmp_path / "m.atlas", CONFIG, state, model_hash="ab" * 32, metadata={"note": "x"})
    found, expected = side_of_file(tmp_path / "m.atlas"), side()
    np.testing.assert_array_equal(found.matrices["W"], expected.matrices["W"])
    np.testing.assert_array_equal(found.window.keys, expected.window.keys)
    assert found.config == CONFIG
    assert (found.label, found.model) == ("m.atlas", "ab" * 32)
    assert found.facts["metadata"] == {"note": "x"}
    assert found.facts["counters"]["seen"] == 10
    assert "8" in found.kind or "matrix" in found.kind
    assert not found.notes


def test_layers_and_sessions_have_names_of_their_own(tmp_path):
    save_memory(tmp_path / "two.atlas", CONFIG, [learned(), learned(seed=1)])
    found = side_of_file(tmp_path / "two.atlas", label="two")
    assert list(found.matrices) == ["layer 0: W", "layer 1: W"]
    assert found.window is None
    batch = side_of_state(stack([learned(), learned(seed=1)]), CONFIG, label="batch")
    assert list(batch.matrices) == ["W[0]", "W[1]"]
    np.testing.assert_array_equal(batch.matrices["W[1]"], learned(seed=1).parameters["W"])


def test_tensors_are_matrices_where_nothing_was_learned(tmp_path):
    tensor = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    with MemoryFile.edit(tmp_path / "t.atlas", create=True) as file:
        file["cube"], file["line"], file["note"] = tensor, np.arange(3.0), "hello"
        file.set("half", to_bfloat16(np.full((2, 32), 1.5)), dtype="bfloat16")
        file["complex"] = np.ones((2, 2), np.complex64)
    found = side_of_file(tmp_path / "t.atlas")
    assert {name: matrix.shape for name, matrix in found.matrices.items()} == {
        "cube[0]": (3, 4), "cube[1]": (3, 4), "line": (1, 3), "half": (2, 32),
    }  # fmt: skip
    np.testing.assert_array_equal(found.matrices["cube[1]"], tensor[1])
    np.testing.assert_array_equal(found.matrices["half"], 1.5)


def test_a_tensor_that_is_too_large_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "MOST_NUMBERS", 10)
    with MemoryFile.edit(tmp_path / "t.atlas", create=True) as file:
        file["large"], file["small"] = np.ones((4, 4)), np.ones((2, 2))
    found = side_of_file(tmp_path / "t.atlas")
    assert list(found.matrices) == ["small"]
    assert found.notes == ('The tensor "large" of t.atlas is too large to be shown here.',)


def test_files_of_other_kinds():
    model = side_of_file(SAMPLES / "gguf" / "tiny.gguf")
    assert not model.matrices
    assert model.notes == ("tiny.gguf is a model, not a memory.",)
    chat = side_of_file(SAMPLES / "atlas" / "chat.atlas")
    assert chat.notes == ("chat.atlas holds no learned memory and no tensors, only entries.",)
    secret = side_of_file(
        SAMPLES / "atlas" / "secret.atlas",
        keys=Keys((SAMPLES / "text" / "passphrase.txt").read_bytes().split(b"\n")[0]),
    )
    assert secret.path
    with pytest.raises(NoSuchFileError):
        side_of_file("there/is/no/such.atlas")


# --- what cannot be compared --------------------------------------------------------------------------------


def test_alike_sides_need_no_words():
    assert compare.not_comparable(side(), side(label="b", seed=1)) == []


def test_other_shapes_are_said_and_the_rest_is_shown():
    a, b = side(), side(CONFIG.replace(d_v=5), label="b")
    (sentence,) = compare.not_comparable(a, b)
    assert sentence.startswith("W is 6 x 4 in a and 6 x 5 in b: there is no difference to show")
    (row,) = compare.compare_matrices(a, b)
    assert row.relative is row.cosine is row.max_difference is None
    assert row.max_a > 0 < row.max_b
    assert compare.difference(a, b, "W") is None
    assert compare.spectrum(b.matrices["W"]) is not None


def test_other_kinds_and_models_are_said():
    deep = CONFIG.replace(module=ResidualMLP(width=3))
    a, b = side(), side(deep, label="b")
    found = compare.not_comparable(a, b)
    assert "W is only in a." in found
    assert any("They differ in module" in sentence for sentence in found)
    assert {row.name for row in compare.compare_matrices(a, b)} == {*a.matrices, *b.matrices}
    x = side_of_state(learned(), CONFIG, label="x", model="aa" * 32)
    y = side_of_state(learned(), CONFIG, label="y", model="bb" * 32)
    (sentence,) = compare.not_comparable(x, y)
    assert sentence.startswith("They belong to different models (aaaaaaaaaaaa and bbbbbbbbbbbb)")
    seeds = compare.not_comparable(side(), side(CONFIG.replace(seed=3), label="b"))
    assert seeds == ["They differ in seed: equal numbers would not mean the same thing."]


def test_settings_are_compared_by_path():
    a, b = side(), side(CONFIG.replace(eta=0.1), label="b", tokens=12)
    found = {path: (what, x, y) for path, what, x, y in compare.compare_facts(a, b)}
    assert found["config.eta"] == ("changed", 0.05, 0.1)
    assert found["counters.seen"] == ("changed", 10, 12)
    assert "config.d_k" not in found


def test_what_the_blend_has_learned_is_told_in_few_digits():
    state = learned(CONFIG.replace(gate=Gate()))
    gate = {name: np.full(array.shape, -0.48642, np.float32) for name, array in state.gate.items()}
    told = side_of_state(dataclasses.replace(state, gate=gate), label="a").facts
    numbers = [np.ravel(value).tolist() for name, value in told.items() if name.startswith("gate.")]
    assert numbers
    assert {one for some in numbers for one in some} == {-0.4864}
