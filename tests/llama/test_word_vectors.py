"""Vectors of words from a model's read-out matrix."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from atlas_kit.llama.fake_engine import FakeEngine
from atlas_kit.llama.llama_engine import LlamaEngine
from atlas_kit.llama.word_vectors import _MADE, TOKENS, WordVectors

MODEL = Path(__file__).resolve().parent.parent.parent / "sample_data" / "models" / "tiny-python.gguf"


def test_they_have_length_one_or_say_nothing() -> None:
    with FakeEngine() as engine:
        found = WordVectors(engine)(["a", "ab", "much longer"])
        assert found.dtype == np.float32
        assert np.allclose(np.linalg.norm(found[:2], axis=1), 1, atol=1e-5)
        assert len(engine.tokenize(" much longer")) > TOKENS
        assert not found[2].any()
        assert WordVectors(engine)([]).shape == (0, found.shape[1])


def test_a_word_has_one_vector_whoever_stands_beside_it() -> None:
    with FakeEngine() as engine:
        make = WordVectors(engine)
        together, alone = make(["ab", "b", "c"]), make(["b"])
        assert np.allclose(together[1], alone[0], atol=1e-6)


def test_directions_are_made_once_for_a_model_and_go_with_it() -> None:
    before = len(_MADE)
    engine = FakeEngine()
    WordVectors(engine)(["a"])
    WordVectors(engine)(["b"])
    assert len(_MADE) <= before + 1
    engine.close()
    del engine
    gc.collect()
    assert len(_MADE) <= before


@pytest.mark.model
def test_a_real_vocabulary() -> None:
    with LlamaEngine(MODEL, n_ctx=64, n_threads=1) as engine:
        make = WordVectors(engine)
        words = ["return", "raise", "yield", "self"]
        found = make(words)
        known = found.any(axis=1)
        assert known.any()
        cosines = found[known] @ found[known].T
        assert np.allclose(np.diag(cosines), 1, atol=1e-4)
        assert (np.abs(cosines) <= 1 + 1e-4).all()
