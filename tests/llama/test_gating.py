"""The gate of one token says what the gate of many does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.llama import FakeEngine
from atlas_kit.llama.gating import features_of_one, weights_of_one
from atlas_kit.llama.token_memory import TokenMemory
from atlas_kit.memory import gate_features
from atlas_kit.settings.atlas_settings import AtlasSettings

NUMBERS = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0])
ROW = st.lists(st.floats(-50, 50), min_size=5, max_size=5)


@given(seen=st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS))
def test_features(seen):
    similarity, entropy, length, confidence = (np.array([one]) for one in seen)
    with np.errstate(all="ignore"):
        expected = gate_features(similarity, entropy, length, confidence)[0]
    np.testing.assert_allclose(features_of_one(*seen), expected, rtol=1e-12)


@pytest.mark.parametrize("ratio", ["adaptive", 0.0, 0.3, 1.0])
@given(
    w=st.tuples(ROW, ROW), features=st.lists(NUMBERS, min_size=5, max_size=5), has_window=st.booleans(),
    steps=st.integers(0, 40),
)  # fmt: skip
def test_weights(ratio, w, features, has_window, steps):
    with FakeEngine() as engine:
        memory = TokenMemory(engine.output_rows(), AtlasSettings(window_size=16, blend_ratio=ratio))
    memory.present.counters["steps"] = np.asarray(steps)
    assert memory.trust == (min(1, steps / 32) if ratio == "adaptive" else 1)
    given_w = np.array(w)
    expected = memory.weights_of(given_w[None], np.array(features)[None, None], np.array([[has_window]]))[0]
    fixed = None if ratio == "adaptive" else ratio
    found = weights_of_one(w, features, fixed, has_window, memory.trust)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)
    assert sum(found) == pytest.approx(1.0)
    assert found[2] < 1
