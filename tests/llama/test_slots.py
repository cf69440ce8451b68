"""What is kept up step by step is what the state holds: the window's slots, the candidates' rows."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_kit import GGUFFile
from atlas_kit.errors import TruncatedError
from atlas_kit.llama import FakeEngine
from atlas_kit.llama.output_matrix import OutputRows
from atlas_kit.llama.token_memory import TokenMemory
from atlas_kit.settings.atlas_settings import AtlasSettings
from tools.make_random_model import make_model


@pytest.mark.parametrize("size", [5, 40, 300])
def test_the_slots_are_those_of_the_state(size):
    rng = np.random.default_rng(0)
    with FakeEngine() as engine:
        rows = engine.output_rows()
        memory = TokenMemory(rows, AtlasSettings(window_size=size, memory_dim=4, chunk_size=16))
        last = kept = None
        for _ in range(60):  # 960 tokens: the buffers, of 256 slots more than the window, move several times
            hidden = rng.standard_normal((16, rows.n_embd)).astype(np.float32)
            tokens = rng.integers(0, rows.n_vocab, 17)
            reading = memory.read(hidden, rows.logits(hidden, rows.whole()), tokens[:-1])
            if last is not None:  # what was read before stays what it was
                np.testing.assert_array_equal(last.tokens, kept)
            last, kept = reading.slots, reading.slots.tokens.copy()
            memory.learn(reading, tokens[1:])
        keys, expected = memory.memory.remembered(memory.state)
        slots = memory.slots()
        np.testing.assert_array_equal(slots.tokens, expected)
        np.testing.assert_array_equal(slots.keys, keys)
        assert len(slots.tokens) == size
        seen, place = slots.distinct
        np.testing.assert_array_equal(seen[place], expected)


@pytest.mark.parametrize("capacity", [1, 7, 50, 200])
def test_a_product_is_that_of_the_rows(capacity):
    rng = np.random.default_rng(1)
    matrix, vectors = (rng.standard_normal((n, 8)).astype(np.float32) for n in (200, 3))
    rows = OutputRows(matrix.__getitem__, 200, 8, cache_bytes=capacity * 32)
    for count in (0, 1, 6, 40, 200, 5):
        tokens = np.sort(rng.choice(200, count, replace=False))
        np.testing.assert_allclose(
            rows.product(vectors, tokens), vectors @ matrix[tokens].T, rtol=1e-5, atol=1e-6
        )


def test_rows_can_be_put_into_an_array():
    matrix = np.arange(40, dtype=np.float32).reshape(10, 4)
    rows = OutputRows(matrix.__getitem__, 10, 4, cache_bytes=5 * 16)
    out = np.empty((6, 4), np.float32)
    found = rows(np.array([1, 3]), out)
    assert np.shares_memory(found, out)
    np.testing.assert_array_equal(found, matrix[[1, 3]])
    np.testing.assert_array_equal(rows(np.arange(8), out), matrix[:8])  # out is too small: a new one


def test_gathered_rows_are_the_files(tmp_path):
    path = make_model(tmp_path / "m.gguf", "llama", type="q4_0")
    with GGUFFile.open(path) as file:
        blocks = file.array("token_embd.weight")
        width = blocks.shape[-1] * blocks.dtype.itemsize
        found = np.frombuffer(file.gather("token_embd.weight", [0, 7, 3]), np.uint8).reshape(3, width)
        np.testing.assert_array_equal(found, blocks[[0, 7, 3]].view(np.uint8))
        assert file.gather("token_embd.weight", []) == b""
        with pytest.raises(TruncatedError):
            file.source.gather([file.source.size - 2], 4)
    with GGUFFile.from_bytes(path.read_bytes()) as file:
        assert bytes(file.gather("token_embd.weight", [7])) == found[1].tobytes()
