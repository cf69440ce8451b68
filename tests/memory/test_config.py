"""Settings: what is refused, with which words, and the way to JSON and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import (
    L2,
    CrossEntropy,
    DotProduct,
    Exponential,
    Features,
    Gate,
    GatedMLP,
    Identity,
    Matrix,
    MemoryConfig,
    Polynomial,
    RandomFourier,
    Ranking,
    ResidualMLP,
    Schedule,
    WinnerTakeAll,
    presets,
)

MAPS = st.sampled_from(
    [
        Identity(),
        Polynomial(3, (0.0, 1.0, 0.5, 0.25), constant=False),
        Exponential(features=16),
        Exponential("taylor", degree=2),
        RandomFourier(16, 2.0),
        WinnerTakeAll(64, 4, binary=False),
    ]
)
RATES = st.one_of(
    st.floats(0, 1), st.builds(Schedule, st.just("linear"), st.floats(0, 1), st.floats(0, 1), st.just(9))
)
CONFIGS = st.builds(
    MemoryConfig,
    d_k=st.integers(1, 9),
    d_v=st.integers(1, 9),
    features=st.builds(
        Features, MAPS, st.sampled_from([None, 3]), st.booleans(), st.booleans(), st.booleans()
    ),
    module=st.sampled_from([Matrix(), ResidualMLP(3, 5, "relu", False), GatedMLP(4, "silu")]),
    objective=st.sampled_from([L2(), DotProduct(), CrossEntropy(0.5, 30.0)]),
    alpha=RATES,
    theta=RATES,
    eta=RATES,
    omega_window=st.integers(99, 200),
    gamma=st.floats(0, 1),
    use_muon=st.booleans(),
    chunk_size=st.integers(1, 99),
    step=st.sampled_from(["token", "chunk"]),
    window_size=st.integers(0, 99),
    window_dtype=st.sampled_from([None, "float16", "bfloat16"]),
    warmup_tokens=st.integers(1, 9),
    ranking=st.sampled_from([None, Ranking(), Ranking((1.0, 0.0, 2.0), (0.0, 0.5, 0.0), 7)]),
    gate=st.sampled_from([None, Gate(), Gate(experts=3, start=((1.0, 0.0, 0.5), (0.0, 0.0, 0.0)))]),
    seed=st.integers(0, 2**31),
)


@given(config=CONFIGS)
def test_json_and_back(config):
    document = json.loads(json.dumps(config.to_json()))
    assert MemoryConfig.from_json(document) == config


def test_every_preset_through_json():
    for preset in presets.PRESETS.values():
        config = preset(8, 4)
        assert MemoryConfig.from_json(config.to_json()) == config
        assert preset(8, 4, eta=0.01, seed=3) == config.replace(eta=0.01, seed=3)


def test_missing_settings_take_their_default():
    assert MemoryConfig.from_json({"d_k": 4, "d_v": 3}) == MemoryConfig(4, 3)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"d_k": 0}, "d_k"),
        ({"d_k": 2.5}, "d_k"),
        ({"d_v": True}, "d_v"),
        ({"omega_window": 0}, "omega_window"),
        ({"chunk_size": "4"}, "chunk_size"),
        ({"window_size": -1}, "window_size"),
        ({"alpha": 1.01}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"theta": -0.1}, "theta"),
        ({"theta": Schedule("linear", 0.5, 1.5, 10)}, "theta"),
        ({"eta": float("inf")}, "eta"),
        ({"eta": "fast"}, "eta"),
        ({"gamma": 2}, "gamma"),
        ({"step": "batch"}, "step"),
        ({"dtype": "float16"}, "dtype"),
        ({"window_dtype": "int8"}, "window_dtype"),
        ({"use_muon": 1}, "use_muon"),
        ({"guard": True, "objective": DotProduct()}, "guard"),
        ({"features": Features(centre=True)}, "warmup_tokens"),
        ({"eta_adaptation": 0.1, "objective": DotProduct()}, "eta_adaptation"),
        ({"step": "chunk", "chunk_size": 4, "omega_window": 3}, "omega_window"),
        ({"gate": "softmax"}, "gate"),
        ({"ranking": "learned"}, "ranking"),
        ({"ranking": (1.0, 2.0, 3.0)}, "ranking"),
        ({"max_norm": -1}, "max_norm"),
        ({"max_norm": float("inf")}, "max_norm"),
        ({"retries": 10**18}, "retries"),
        ({"features": Features(Polynomial(10**9), projection=10**9)}, "degree"),
        ({"learning": 1}, "learning"),
    ],
)
def test_settings_that_are_refused(settings, key):
    with pytest.raises(InvalidParamError) as caught:
        MemoryConfig(4, 3).replace(**settings)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"version": 2}, "version"),
        ({"speed": 1}, "speed"),
        ({"d_k": None}, "d_k"),
        ({"module": {"kind": "transformer"}}, "module"),
        ({"module": {"kind": ["matrix"]}}, "module"),
        ({"module": "matrix"}, "module"),
        ({"module": {"kind": "residual-mlp", "layers": 2}}, "module"),
        ({"features": []}, "features"),
        ({"features": {"map": {"kind": "polynomial", "degree": -1}}}, "degree"),
        ({"objective": {"kind": "cross-entropy", "scale": "x"}}, "scale"),
        ({"eta": {"kind": "linear"}}, "eta"),
        ({"eta": [0.1]}, "eta"),
    ],
)
def test_json_that_is_refused(change, key):
    document = {**MemoryConfig(4, 3).to_json(), **change}
    with pytest.raises(InvalidParamError) as caught:
        MemoryConfig.from_json(document)
    assert caught.value.key == key


def test_json_without_sizes_or_of_another_type():
    with pytest.raises(InvalidParamError, match="does not say d_v"):
        MemoryConfig.from_json({"d_k": 3})
    with pytest.raises(InvalidParamError, match="not a JSON object"):
        MemoryConfig.from_json([])
