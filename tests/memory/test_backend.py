"""Which library the arrays belong to; the same numbers on every one of them."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from atlas_kit.errors import InvalidParamError, MissingExtraError
from atlas_kit.memory import (
    CrossEntropy,
    Exponential,
    Features,
    Gate,
    GatedMLP,
    Identity,
    Memory,
    MemoryConfig,
    Polynomial,
    RandomFourier,
    Readout,
    ResidualMLP,
    WinnerTakeAll,
    backend,
    gate_features,
    merge,
    snapshot,
    stack,
    statistics,
)
from tests.memory.device_double import DeviceArray, library

PLAIN = Features(map=Identity(), normalize_keys=False)
CONFIGS = {
    "matrix": MemoryConfig(8, 6, PLAIN, eta=0.05, theta=0.5, chunk_size=4, omega_window=6, window_size=9),
    "matrix, half": MemoryConfig(8, 6, PLAIN, eta=0.05, window_size=9, window_dtype="bfloat16"),
    "polynomial": MemoryConfig(
        8,
        6,
        Features(Polynomial(3), projection=4, normalize=True),
        chunk_size=4,
        omega_window=6,
        step="chunk",
    ),
    "exponential": MemoryConfig(8, 6, Features(Exponential(features=32))),
    "taylor": MemoryConfig(8, 6, Features(Exponential("taylor", degree=3))),
    "fourier": MemoryConfig(8, 6, Features(RandomFourier(features=32)), chunk_size=3),
    "sparse": MemoryConfig(8, 6, Features(WinnerTakeAll(features=32, active=4)), chunk_size=3),
    "centred": MemoryConfig(8, 6, Features(Identity(), centre=True), warmup_tokens=3, window_size=20),
    "muon": MemoryConfig(8, 6, PLAIN, use_muon=True, theta=0.5, eta=0.02, chunk_size=4),
    "deep": MemoryConfig(8, 6, PLAIN, ResidualMLP(width=5), eta=0.02, theta=0.5, chunk_size=4, guard=True),
    "gated": MemoryConfig(8, 6, PLAIN, GatedMLP(width=5, activation="silu"), eta=0.02, use_muon=True),
    "adaptive": MemoryConfig(8, 6, PLAIN, eta=0.02, eta_adaptation=0.1, chunk_size=4),
    "diverging": MemoryConfig(8, 6, PLAIN, eta=3.0, max_norm=5.0, theta=0.5),
}


def cupy_or_skip():
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    return backend.choose("cupy")


@pytest.fixture(params=["stand-in", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request, monkeypatch):
    """The other library: a strict stand-in everywhere, CuPy where there is a device."""
    if request.param == "cupy":
        return cupy_or_skip()
    monkeypatch.setattr(backend, "choose", lambda name=None: library() if name == "cupy" else np)
    return library()


def close(actual, expected):
    np.testing.assert_allclose(backend.to_host(actual), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_numbers_on_every_library(xp, name):
    config = CONFIGS[name]
    rng = np.random.default_rng(0)
    keys, values, queries = (rng.standard_normal((2, 11, d)).astype(np.float32) for d in (8, 6, 8))
    if name == "diverging":
        values[1, 4] = np.nan
    host, device = Memory(config), Memory(config, backend="cupy")
    on_device = [xp.asarray(a) for a in (keys, values, queries)]
    expected, y, report = host.scan(host.init(2), keys, values, queries)
    state, y_device, report_device = device.scan(device.init(2), *on_device)
    close(y_device, y)
    close(report_device.loss, report.loss)
    close(report_device.surprise, report.surprise)
    expected, _ = host.observe(expected, keys, values, lengths=np.array([7, 2]))
    state, _ = device.observe(state, *on_device[:2], lengths=np.array([7, 2]))
    expected, _ = host.flush(expected)
    state, _ = device.flush(state)
    close(device.read(state, on_device[2]), host.read(expected, queries))
    for full, array in snapshot(state).items():
        assert isinstance(array, np.ndarray)
        if array.dtype != np.uint16:
            close(array, snapshot(expected)[full])
    if config.window_size:
        ours, theirs = device.lookup(state, on_device[2]), host.lookup(expected, queries)
        np.testing.assert_allclose(backend.to_host(ours.weights), theirs.weights, atol=1e-2)
    restored = device.restore(snapshot(state))
    close(device.read(restored, on_device[2]), host.read(expected, queries))
    again = device.restore(
        {n: xp.asarray(a) for n, a in snapshot(state).items() if not n.startswith("counters")}
        | {n: a for n, a in snapshot(state).items() if n.startswith("counters")}
    )
    close(device.read(again, on_device[2]), host.read(expected, queries))
    both = stack([state[0], state[1]])
    merged = merge([both, state], [1, 3])
    measured = statistics(config, merged)
    theirs = statistics(config, expected)
    for matrix in theirs.matrices:
        close(measured.matrices[matrix].spectrum, theirs.matrices[matrix].spectrum)
    device.reset(merged, "soft")


def test_cross_entropy_and_gate_on_every_library(xp):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((30, 6)).astype(np.float32)
    ids = np.arange(0, 60, 2)
    hidden = rng.standard_normal((9, 6)).astype(np.float32)
    token = rng.choice(ids, 9)
    lse = np.full(9, 5.0, np.float32)
    config = MemoryConfig(
        6, 6, PLAIN, objective=CrossEntropy(softcap=20.0), chunk_size=3, omega_window=3, step="chunk", eta=0.1
    )
    results = []
    for library_, name in ((np, None), (xp, "cupy")):
        put = library_.asarray
        memory = Memory(config, backend=name)
        targets = {"token": put(token), "hidden": put(hidden), "lse": put(lse)}
        readout = Readout(put(rows), ids=put(ids), centre=put(rows.mean(axis=0)))
        state, report = memory.observe(memory.init(), put(hidden), targets, readout=readout)
        gate = Gate()
        g = gate.init(1, library_)
        f = gate_features(put(np.full((1, 4), 0.9, np.float32)), put(np.full((1, 4), 2.5, np.float32)))
        g, loss = gate.update(g, f, put(np.full((1, 4, 2), 0.25, np.float32) + put(0).dtype.type(0)))
        results.append([backend.to_host(a) for a in (state.parameters["W"], report.loss, g["w"], loss)])
    for ours, theirs in zip(*results, strict=True):
        close(theirs, ours)


def test_the_stand_in_catches_what_it_should():
    xp = library()
    device = xp.asarray(np.ones(3))
    with pytest.raises(TypeError):
        np.sqrt(device)
    with pytest.raises(TypeError):
        device + np.ones(3)
    with pytest.raises(TypeError):
        xp.sqrt(np.ones(3))
    with pytest.raises(TypeError):
        np.asarray(device)
    with pytest.raises(AttributeError):
        xp.nanmedian(device)
    assert backend.namespace(np.ones(1), device) is xp
    assert isinstance(device[np.array([0, 1])], DeviceArray)


class TestChoice:
    def test_numpy_is_the_default(self, monkeypatch):
        monkeypatch.delenv(backend.VARIABLE, raising=False)
        assert backend.choose() is np
        assert backend.namespace(np.ones(1), 2.0, None) is np

    def test_the_environment_chooses(self, monkeypatch):
        monkeypatch.setenv(backend.VARIABLE, "NumPy")
        assert backend.choose() is np
        monkeypatch.setenv(backend.VARIABLE, "torch")
        with pytest.raises(InvalidParamError, match="'torch' is not a backend"):
            Memory(CONFIGS["matrix"])
        assert backend.choose("numpy") is np  # an argument wins

    def test_cupy_is_missing(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "cupy", None)
        with pytest.raises(MissingExtraError, match=r"pip install .*\[cuda12\]"):
            backend.choose("cupy")

    def test_cupy_finds_no_device(self, monkeypatch):
        class Broken:
            @staticmethod
            def zeros(n):
                raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

        monkeypatch.setitem(__import__("sys").modules, "cupy", Broken)
        with pytest.raises(InvalidParamError, match="no usable CUDA device"):
            backend.choose("cupy")
