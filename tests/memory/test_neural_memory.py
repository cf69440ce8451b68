"""The update rule against plain loops written from the paper's equations, one token at a time."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_kit.errors import DivergedError, InvalidParamError
from atlas_kit.memory import (
    CrossEntropy,
    DotProduct,
    Features,
    Gate,
    GatedMLP,
    Identity,
    Matrix,
    Memory,
    MemoryConfig,
    Polynomial,
    RandomFourier,
    Ranking,
    Readout,
    ResidualMLP,
    Schedule,
    neural_memory,
    newton_schulz,
    presets,
    snapshot,
    stack,
    update,
)
from atlas_kit.memory.modules import gradient

PLAIN = Features(map=Identity(), normalize_keys=False)
POLYNOMIAL = Features(map=Polynomial(degree=2), normalize=True)


def stream(T, d_k, d_v, seed=0, batch=(), dtype=np.float64):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((*batch, T, d)).astype(dtype) for d in (d_k, d_v, d_k))


def by_definition(config, keys, values, queries, weights=None):
    """Equations 9, 32, 33 and 34 for one session, as loops: parameters, reads, momentum after the last token."""
    memory = Memory(config)
    constants = config.features.constants(config.d_k, config.seed)
    T = len(keys)
    phi = config.features.phi(config.features.project(keys, constants), constants)
    phi_q = config.features.phi(config.features.project(queries, constants), constants)
    M = {n: a[0] for n, a in memory.init(1).parameters.items()}
    S = {n: np.zeros_like(a) for n, a in M.items()}
    reads, losses, b, c = [], [], config.chunk_size, config.omega_window
    rate = lambda r, t: float(r.at(np.array(t))) if isinstance(r, Schedule) else r  # noqa: E731
    weights = np.ones(T) if weights is None else weights
    for start in range(0, T, b):
        M_0 = {n: a.copy() for n, a in M.items()}
        stop = min(start + b, T)
        for t in range(start, stop):
            y, _ = config.module.forward(M_0, phi[t : t + 1])
            losses.append(config.objective.evaluate(y, {"value": values[t : t + 1]})[0][0])
            if config.step == "chunk" and t < stop - 1:
                reads.append(config.module.forward(M_0, phi_q[t : t + 1])[0][0])
                continue
            grad = {n: np.zeros_like(a) for n, a in M.items()}
            for i in range(max(0, t - c + 1), t + 1):
                y, cache = config.module.forward(M_0, phi[i : i + 1])
                _, dy = config.objective.evaluate(y, {"value": values[i : i + 1]})
                gamma = config.gamma ** (t - i) * weights[i]
                for n, g in gradient(config.module.factors(M_0, cache, dy)).items():
                    grad[n] += gamma * g
            if t >= config.warmup_tokens:
                for n in M:
                    S[n] = rate(config.theta, t) * S[n] + grad[n]
                    U = newton_schulz(S[n]) if config.use_muon else S[n]
                    M[n] = rate(config.alpha, t) * M[n] - rate(config.eta, t) * U
            at = M_0 if config.step == "chunk" else M
            reads.append(config.module.forward(at, phi_q[t : t + 1])[0][0])
    return M, np.array(reads), S, np.array(losses)


CONFIGS = {
    "linear attention": presets.linear_attention(4, 3),
    "delta": presets.delta_rule(4, 3, eta=0.1),
    "omega, chunk 1": MemoryConfig(4, 3, PLAIN, omega_window=5, eta=0.03, gamma=0.9, alpha=0.98),
    "omega, chunk 4": MemoryConfig(4, 3, PLAIN, omega_window=5, eta=0.03, gamma=0.9, alpha=0.98, chunk_size=4),
    "momentum": MemoryConfig(4, 3, PLAIN, theta=0.7, eta=0.02, alpha=0.95, chunk_size=4, omega_window=3),
    "polynomial": MemoryConfig(4, 3, POLYNOMIAL, theta=0.7, eta=0.1, chunk_size=3, omega_window=2),
    "muon": MemoryConfig(4, 3, PLAIN, theta=0.7, eta=0.02, alpha=0.9, use_muon=True, chunk_size=4, omega_window=3),
    "muon without momentum": MemoryConfig(4, 3, PLAIN, eta=0.02, use_muon=True, chunk_size=2),
    "once per chunk": MemoryConfig(4, 3, PLAIN, eta=0.02, theta=0.5, step="chunk", chunk_size=4, omega_window=6),
    "once per chunk, muon": MemoryConfig(
        4, 3, PLAIN, eta=0.02, theta=0.5, step="chunk", chunk_size=4, omega_window=6, use_muon=True
    ),
    "schedules": MemoryConfig(
        4, 3, PLAIN, chunk_size=4, omega_window=2,
        alpha=Schedule("linear", 0.99, 0.9, 10), theta=Schedule("cosine", 0.0, 0.9, 12),
        eta=Schedule("exponential", 0.1, 0.01, 15),
    ),
    "warm-up": MemoryConfig(4, 3, PLAIN, theta=0.5, eta=0.05, chunk_size=4, omega_window=3, warmup_tokens=6),
    "deep": MemoryConfig(4, 3, PLAIN, ResidualMLP(width=5), theta=0.5, eta=0.02, chunk_size=4, omega_window=3),
    "deep, chunk 1": MemoryConfig(4, 4, PLAIN, ResidualMLP(depth=3, width=5), eta=0.02, omega_window=3),
    "atlas": presets.atlas(4, 4, module=ResidualMLP(width=6), chunk_size=3, omega_window=4),
    "atlas++": presets.atlas_pp(4, 3, module=GatedMLP(width=6), chunk_size=2, omega_window=4),
}  # fmt: skip


@pytest.fixture(params=CONFIGS, ids=str)
def config(request):
    return CONFIGS[request.param].replace(dtype="float64")


def test_examples_computed_by_hand():
    for module in (neural_memory, update):
        result = doctest.testmod(module, extraglobs={"np": np})
        assert result.attempted
        assert not result.failed


@pytest.mark.parametrize("T", [0, 1, 3, 4, 11])
def test_the_chunk_form_is_its_definition(config, T):
    keys, values, queries = stream(T, config.d_k, config.d_v)
    M, reads, S, losses = by_definition(config, keys, values, queries)
    memory = Memory(config)
    state, y, report = memory.scan(memory.init(), keys, values, queries)
    for n in M:
        np.testing.assert_allclose(state.parameters[n], M[n], rtol=1e-9, atol=1e-11)
        if config.has_momentum:
            np.testing.assert_allclose(state.momentum[n], S[n], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(y, reads.reshape(T, config.d_v), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(report.loss, losses, rtol=1e-9, atol=1e-11)
    assert state.counters["learned"] == state.counters["seen"] == T


def test_weights_given_per_token(config):
    keys, values, queries = stream(9, config.d_k, config.d_v)
    weights = np.array([1, 0, 2, 0.5, 1, 0, 0, 3, 1])
    M, reads, _, _ = by_definition(config, keys, values, queries, weights)
    memory = Memory(config)
    state, y, _ = memory.scan(memory.init(), keys, values, queries, weights=weights)
    np.testing.assert_allclose(y, reads, rtol=1e-9, atol=1e-11)
    for n in M:
        np.testing.assert_allclose(state.parameters[n], M[n], rtol=1e-9, atol=1e-11)


def test_rates_given_per_token_are_the_same_as_a_schedule():
    config = CONFIGS["schedules"].replace(dtype="float64")
    keys, values, queries = stream(9, 4, 3)
    memory = Memory(config)
    expected, y, _ = memory.scan(memory.init(), keys, values, queries)
    at = np.arange(9)
    rates = {name: getattr(config, name).at(at) for name in ("alpha", "theta", "eta")}
    other = Memory(config.replace(alpha=0.5, theta=0.5, eta=0.5))
    state, y_given, _ = other.scan(other.init(), keys, values, queries, **rates)
    np.testing.assert_allclose(y_given, y, rtol=1e-12)
    np.testing.assert_allclose(state.parameters["W"], expected.parameters["W"], rtol=1e-12)


class TestPresetsAgainstThreeLines:
    def test_linear_attention(self):
        keys, values, queries = stream(12, 5, 4)
        config = presets.linear_attention(5, 4, dtype="float64", chunk_size=4)
        memory = Memory(config)
        _, y, _ = memory.scan(memory.init(), keys, values, queries)
        np.testing.assert_allclose(y, np.tril(queries @ keys.T) @ values, rtol=1e-10)

    def test_delta_rule(self):
        keys, values, queries = stream(12, 5, 4)
        config = presets.delta_rule(5, 4, eta=0.1, dtype="float64")
        memory = Memory(config)
        _, y, _ = memory.scan(memory.init(), keys, values, queries)
        keys, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (keys, queries))
        W, reads = np.zeros((5, 4)), []
        for k, v, q in zip(keys, values, queries, strict=True):
            W = (np.eye(5) - 0.1 * np.outer(k, k)) @ W + 0.1 * np.outer(k, v)
            reads.append(q @ W)
        np.testing.assert_allclose(y, reads, rtol=1e-10)

    def test_global_window_is_gradient_descent_on_everything(self):
        keys, values, _ = stream(8, 5, 4)
        memory = Memory(MemoryConfig(5, 4, PLAIN, omega_window=8, eta=0.02, dtype="float64"))
        state, _ = memory.observe(memory.init(), keys, values)
        W = np.zeros((5, 4))
        for t in range(1, 9):
            W = W - 0.02 * keys[:t].T @ (keys[:t] @ W - values[:t])
        np.testing.assert_allclose(state.parameters["W"], W, rtol=1e-10)

    def test_a_step_on_orthonormal_keys_stores_them_exactly(self):
        keys = np.eye(6)
        values = stream(6, 1, 4)[1]
        memory = Memory(presets.delta_rule(6, 4, eta=1.0, dtype="float64"))
        state, _ = memory.observe(memory.init(), keys, values)
        np.testing.assert_allclose(memory.read(state, keys), values, rtol=1e-12)

    def test_all_presets_learn_a_repeated_sequence(self):
        keys, values, _ = stream(8, 6, 6, dtype=np.float32)
        for name, preset in presets.PRESETS.items():
            memory = Memory(
                preset(6, 6, chunk_size=4, **({"eta": 0.02} if name == "linear_attention" else {}))
            )
            state, first = memory.observe(memory.init(), keys, values)
            for _ in range(30):
                state, last = memory.observe(state, keys, values)
            assert last.loss.mean() < first.loss.mean(), name
            assert state.counters["rejected"] == 0


class TestStream:
    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_any_split_gives_the_same_bits(self, data):
        config = CONFIGS[data.draw(st.sampled_from(sorted(CONFIGS)))]
        T = data.draw(st.integers(0, 14))
        cuts = sorted(data.draw(st.lists(st.integers(0, T), max_size=5)))
        keys, values, _ = stream(T, config.d_k, config.d_v, dtype=np.float32)
        memory = Memory(config)
        whole, report = memory.observe(memory.init(), keys, values)
        state, losses = memory.init(), []
        for start, stop in zip([0, *cuts], [*cuts, T], strict=True):
            state, part = memory.observe(state, keys[start:stop], values[start:stop])
            losses.append(part.loss)
        assert_same_bits(state, whole)
        np.testing.assert_array_equal(np.concatenate(losses), report.loss)

    def test_sessions_that_advance_unevenly_learn_what_each_learns_alone(self):
        config = CONFIGS["momentum"]
        memory = Memory(config)
        keys, values, _ = stream(9, 4, 3, batch=(3,), dtype=np.float32)
        lengths = np.array([9, 0, 6])
        state, report = memory.observe(memory.init(3), keys, values, lengths=lengths)
        state, _ = memory.observe(state, keys, values, lengths=lengths[::-1].copy())
        for row, (first, second) in enumerate(zip(lengths, lengths[::-1], strict=True)):
            alone, one = memory.observe(memory.init(), keys[row, :first], values[row, :first])
            np.testing.assert_array_equal(report.loss[row, : one.learned], one.loss)
            assert np.isnan(report.loss[row, one.learned :]).all()
            alone, _ = memory.observe(alone, keys[row, :second], values[row, :second])
            assert_same_bits(state[row], alone)

    def test_a_batch_is_its_sessions(self, config):
        keys, values, queries = stream(9, config.d_k, config.d_v, batch=(2, 3))
        memory = Memory(config)
        together, y, _ = memory.scan(memory.init((2, 3)), keys, values, queries)
        assert together.batch == (2, 3)
        for i in np.ndindex(2, 3):
            alone, y_alone, _ = memory.scan(memory.init(), keys[i], values[i], queries[i])
            np.testing.assert_array_equal(y[i], y_alone)
            assert_same_bits(together[i], alone)

    def test_flush_learns_what_waits(self):
        config = CONFIGS["omega, chunk 4"]
        memory = Memory(config)
        keys, values, _ = stream(6, 4, 3, dtype=np.float32)
        state, report = memory.observe(memory.init(), keys, values)
        assert (report.learned, state.counters["learned"], state.counters["seen"]) == (4, 4, 6)
        state, report = memory.flush(state)
        assert (report.learned, state.counters["learned"]) == (2, 6)
        expected, _, _ = memory.scan(memory.init(), keys, values, keys)
        assert_same_bits(state, expected)
        again, report = memory.flush(state)
        assert report.learned == 0
        assert_same_bits(again, state)

    def test_inputs_are_never_changed(self, config):
        memory = Memory(config)
        keys, values, queries = stream(9, config.d_k, config.d_v)
        start, _ = memory.observe(memory.init(), keys, values)
        before = snapshot(start)
        copies = [a.copy() for a in (keys, values, queries)]
        memory.observe(start, keys, values)
        memory.flush(start)
        memory.read(start, queries)
        memory.reset(start, "soft")
        for name, array in snapshot(start).items():
            np.testing.assert_array_equal(array, before[name])
        for array, copy in zip((keys, values, queries), copies, strict=True):
            np.testing.assert_array_equal(array, copy)


def assert_same_bits(a, b):
    for group, arrays in a.groups().items():
        others = getattr(b, group)
        assert list(arrays) == list(others)
        for name, array in arrays.items():
            assert np.asarray(array).tobytes() == np.asarray(others[name]).tobytes(), f"{group}.{name}"


class TestShapes:
    @settings(max_examples=80, deadline=None)
    @given(
        batch=st.lists(st.integers(0, 3), max_size=2).map(tuple),
        T=st.integers(0, 9),
        d_k=st.integers(1, 5),
        d_v=st.integers(1, 5),
        chunk=st.integers(1, 5),
        c=st.integers(1, 7),
        window=st.sampled_from([0, 1, 4, 30]),
        step=st.sampled_from(["token", "chunk"]),
        module=st.sampled_from([Matrix(), ResidualMLP(width=3), GatedMLP(width=2)]),
        features=st.sampled_from([PLAIN, POLYNOMIAL, Features(map=Polynomial(3), projection=2)]),
        muon=st.booleans(),
        theta=st.sampled_from([0.0, 0.5]),
        guard=st.booleans(),
    )
    def test_any_shape(
        self, batch, T, d_k, d_v, chunk, c, window, step, module, features, muon, theta, guard
    ):
        c = max(c, chunk) if step == "chunk" else c
        config = MemoryConfig(
            d_k, d_v, features, module, chunk_size=chunk, omega_window=c, window_size=window, step=step,
            use_muon=muon, theta=theta, eta=0.01, guard=guard, eta_adaptation=0.1,
        )  # fmt: skip
        memory = Memory(config)
        keys, values, queries = stream(T, d_k, d_v, batch=batch, dtype=np.float32)
        state, y, report = memory.scan(memory.init(batch), keys, values, queries)
        assert y.shape == (*batch, T, d_v)
        assert report.loss.shape == report.surprise.shape == (*batch, T)
        assert report.omega_loss.shape == state.batch == batch
        rest, more = memory.observe(state, keys, values)
        assert more.learned == (T // chunk * chunk if np.prod(batch) else 0)
        assert (rest.counters["seen"] == 2 * T).all()
        flushed, last = memory.flush(rest)
        assert last.learned == (T % chunk if np.prod(batch) else 0)
        assert memory.read(flushed, queries).shape == (*batch, T, d_v)
        if window:
            assert memory.lookup(flushed, queries).similarity.shape == (*batch, T)
        for group in flushed.groups().values():
            for array in group.values():
                assert array.dtype.kind == "i" or np.isfinite(array).all()
        assert_same_bits(memory.restore(snapshot(flushed)), flushed)


class TestDivergence:
    def test_a_step_that_is_too_large_is_retried_smaller(self):
        keys, values, _ = stream(1, 4, 3)
        # one step of size 1 from zero would have the norm |k||v|; the limit lies between a quarter of it and it
        norm = float(np.linalg.norm(keys) * np.linalg.norm(values))
        memory = Memory(MemoryConfig(4, 3, PLAIN, eta=1.0, max_norm=norm / 2, dtype="float64"))
        state, _ = memory.observe(memory.init(), keys, values)
        np.testing.assert_allclose(state.parameters["W"], 0.25 * keys.T @ values)
        assert (state.counters["retried"], state.counters["rejected"], state.counters["steps"]) == (1, 0, 1)

    @pytest.mark.parametrize("use_muon", [False, True])
    @pytest.mark.parametrize("module", [Matrix(), ResidualMLP(width=4)])
    def test_a_step_that_diverges_at_every_size_is_skipped(self, module, use_muon):
        memory = Memory(
            MemoryConfig(4, 4, PLAIN, module, eta=1.0, theta=0.5, use_muon=use_muon, max_norm=1e6)
        )
        keys, values, queries = stream(3, 4, 4, dtype=np.float32)
        state, _ = memory.observe(memory.init(), keys, values)
        after, y, _ = memory.scan(state, keys[:1] * 1e25, values[:1] * 1e25, queries[:1])
        for name, array in state.parameters.items():
            np.testing.assert_array_equal(after.parameters[name], array)
            assert not after.momentum[name].any()  # the gradient that diverged is in there
        np.testing.assert_array_equal(y, memory.read(state, queries[:1]))
        assert after.counters["rejected"] == 1
        assert after.counters["retried"] == 3
        assert after.counters["learned"] == 4

    def test_one_outlier_does_not_freeze_a_memory_with_momentum(self):
        rng = np.random.default_rng(0)
        W = rng.standard_normal((8, 8))
        keys = rng.standard_normal((1000, 8))
        values = keys @ W
        values[300] *= 1e6
        config = MemoryConfig(8, 8, Features(map=Identity()), theta=0.9, eta=0.1)
        memory = Memory(config)
        keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        values[:300] = keys[:300] @ W
        values[301:] = keys[301:] @ W
        state, report = memory.observe(memory.init(), keys, values)
        assert 1 <= state.counters["rejected"] < 10
        assert report.loss[-100:].max() < 1e-6

    def test_strict_mode_names_the_session_and_the_token(self):
        memory = Memory(MemoryConfig(4, 3, PLAIN, eta=0.1, chunk_size=2, strict=True))
        keys, values, _ = stream(4, 4, 3, batch=(2, 2), dtype=np.float32)
        values[1, 0, 2] = 1e30
        start = memory.init((2, 2))
        for lengths in (None, np.array([[4, 2], [4, 4]]), np.array([[2, 4], [4, 0]])):
            with pytest.raises(
                DivergedError, match="the chunk of session 1, 0 that ends at token 3 diverged"
            ):
                memory.observe(start, keys, values, lengths=lengths)
        assert not start.parameters["W"].any()

    def test_strict_mode_raises(self):
        memory = Memory(MemoryConfig(4, 3, PLAIN, eta=1e20, strict=True))
        keys, values, _ = stream(3, 4, 3)
        with pytest.raises(DivergedError, match=r"the chunk that ends at token 0 diverged"):
            memory.observe(memory.init(), keys, values)

    def test_one_bad_session_does_not_touch_the_others(self):
        keys, values, _ = stream(6, 4, 3, batch=(3,), dtype=np.float32)
        bad = values.copy()
        bad[1, 2] = 1e30
        memory = Memory(MemoryConfig(4, 3, PLAIN, eta=0.1, theta=0.3, chunk_size=2))
        state, _ = memory.observe(memory.init(3), keys, bad)
        good, _ = memory.observe(memory.init(3), keys, values)
        for row in (0, 2):
            assert_same_bits(state[row], good[row])
        assert state.counters["rejected"].tolist() == [0, 2, 0]
        assert np.isfinite(state.parameters["W"]).all()

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_token_that_is_not_a_number_is_left_out(self, value):
        memory = Memory(MemoryConfig(4, 3, PLAIN, eta=0.1, omega_window=3, chunk_size=2, alpha=0.9))
        keys, values, _ = stream(6, 4, 3, dtype=np.float32)
        weights = np.ones(6)
        weights[2] = 0
        expected, _ = memory.observe(memory.init(), keys, values, weights=weights)
        keys[2, 1] = value
        state, _ = memory.observe(memory.init(), keys, values)
        np.testing.assert_array_equal(state.parameters["W"], expected.parameters["W"])
        assert state.counters["dropped"] == 1
        assert all(np.isfinite(array).all() for array in state.window.values())

    def test_the_largest_limit_is_still_no_infinity(self):
        memory = Memory(MemoryConfig(4, 3, PLAIN, eta=1.0, max_norm=1e30))
        keys, values, _ = stream(3, 4, 3, dtype=np.float32)
        state, _ = memory.observe(memory.init(), keys * 1e20, values * 1e20)
        assert state.counters["rejected"] == 3
        assert not state.parameters["W"].any()

    def test_exploding_learning_stays_within_the_limit(self):
        memory = Memory(MemoryConfig(8, 8, PLAIN, eta=5.0, max_norm=100.0))
        keys, values, _ = stream(200, 8, 8, dtype=np.float32)
        state, report = memory.observe(memory.init(), keys, values)
        assert np.linalg.norm(state.parameters["W"]) <= 100
        assert state.counters["retried"] > 0
        assert np.isfinite(report.loss).all()


class TestAdaptiveStep:
    def run(self, eta, rate):
        config = MemoryConfig(
            16, 16, PLAIN, eta=eta, eta_adaptation=rate, chunk_size=4, step="chunk", omega_window=4
        )
        memory = Memory(config)
        rng = np.random.default_rng(0)
        W = rng.standard_normal((16, 16))
        keys = rng.standard_normal((800, 16))
        keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        state, report = memory.observe(memory.init(), keys, keys @ W)
        return state, float(report.loss[-200:].mean())

    def test_it_finds_a_larger_step_when_eta_is_small(self):
        state, loss = self.run(0.01, 0.1)
        assert state.adaptation["log_eta"] > 1
        assert loss < 0.2 * self.run(0.01, 0.0)[1]

    def test_it_shrinks_a_step_that_overshoots(self):
        state, loss = self.run(2.2, 0.1)
        assert state.adaptation["log_eta"] < 0
        assert loss < self.run(2.2, 0.0)[1]

    @pytest.mark.parametrize("alpha", [0.99, 0.95])
    def test_decay_is_not_taken_for_the_steps_fault(self, alpha):
        losses = {}
        for rate in (0.0, 0.1):
            config = MemoryConfig(
                16,
                16,
                PLAIN,
                eta=0.1,
                alpha=alpha,
                eta_adaptation=rate,
                chunk_size=4,
                step="chunk",
                omega_window=4,
            )
            memory = Memory(config)
            rng = np.random.default_rng(0)
            W, keys = rng.standard_normal((16, 16)), rng.standard_normal((1600, 16))
            keys /= np.linalg.norm(keys, axis=1, keepdims=True)
            state, report = memory.observe(memory.init(), keys, keys @ W)
            losses[rate] = float(report.loss[-400:].mean())
        assert state.adaptation["log_eta"] > 0  # decay asks for larger steps
        assert losses[0.1] < 0.8 * losses[0.0]

    def test_it_stays_within_its_bound(self):
        config = MemoryConfig(4, 4, PLAIN, eta=1e-6, eta_adaptation=1.0, eta_bound=4.0)
        memory = Memory(config)
        keys = np.tile(np.eye(4)[:1], (100, 1))
        state, _ = memory.observe(memory.init(), keys, keys)
        assert np.exp(state.adaptation["log_eta"]) == pytest.approx(4.0)

    def test_a_step_that_had_to_be_smaller_is_remembered(self):
        keys, values, _ = stream(400, 8, 8, dtype=np.float32)
        config = MemoryConfig(8, 8, PLAIN, eta=4.0, guard=True, chunk_size=4, step="chunk", omega_window=4)
        retried = []
        for rate in (0.0, 1e-9):
            memory = Memory(config.replace(eta_adaptation=rate))
            state, _ = memory.observe(memory.init(), keys, values)
            retried.append(int(state.counters["retried"]))
        assert retried[1] < retried[0] / 2


class TestWindow:
    def test_the_exact_cache_recalls_what_is_in_the_window(self):
        memory = Memory(MemoryConfig(16, 3, window_size=5, chunk_size=4))
        keys, values, _ = stream(9, 16, 3, dtype=np.float32)
        state, _ = memory.observe(memory.init(), keys, values)
        read = memory.lookup(state, keys, sharpness=200.0)
        np.testing.assert_allclose(read.values()[4:], values[4:], atol=1e-3)
        np.testing.assert_allclose(read.similarity[4:], 1.0, rtol=1e-5)
        assert (read.similarity[:4] < 0.99).all()
        assert ((read.weights > 1e-6).sum(axis=0) > 0).sum() <= 5

    def test_a_window_that_is_shorter_than_what_learning_keeps(self):
        memory = Memory(MemoryConfig(16, 3, window_size=3, chunk_size=4, omega_window=6))
        keys, values, _ = stream(12, 16, 3, dtype=np.float32)
        state, _ = memory.observe(memory.init(), keys, values)
        read = memory.lookup(state, keys)
        assert (read.similarity[-3:] > 0.999).all()
        assert (read.similarity[:-3] < 0.99).all()

    def test_a_window_that_was_forgotten_is_empty(self):
        memory = Memory(MemoryConfig(16, 3, window_size=8))
        keys, values, _ = stream(5, 16, 3, dtype=np.float32)
        state, _ = memory.observe(memory.init(), keys, values)
        restored = memory.restore(snapshot(state, window=False))
        assert (memory.lookup(restored, keys).similarity == -1).all()
        restored, _ = memory.observe(restored, keys[:1], values[:1])
        np.testing.assert_allclose(memory.lookup(restored, keys[:1]).values(), values[:1], rtol=1e-5)

    @pytest.mark.parametrize("centre", [False, True])
    def test_a_token_that_was_left_out_is_not_recalled(self, centre):
        features = Features(map=Identity(), centre=centre)
        memory = Memory(MemoryConfig(2, 1, features, window_size=4, warmup_tokens=4 if centre else 0))
        keys, values = np.array([[-1.0, 0.1], [1.0, np.nan], [-1.0, -0.1]]), np.array([[5.0], [9.0], [5.0]])
        state, report = memory.observe(memory.init(), keys, values)
        read = memory.lookup(state, np.array([[1.0, 0.0], [0.0, 0.0]]))
        np.testing.assert_allclose(read.values(), [[5.0], [5.0]])
        assert np.isnan(report.loss[1])
        assert np.isnan(report.surprise[1])
        assert np.isfinite(report.loss[[0, 2]]).all()
        if centre:
            np.testing.assert_allclose(state.adaptation["mean"], [-1, 0], atol=1e-7)

    def test_centring_reaches_features_and_window(self):
        features = Features(map=Identity(), centre=True)
        memory = Memory(
            MemoryConfig(6, 2, features, warmup_tokens=8, window_size=32, eta=0.5, dtype="float64")
        )
        keys, values, queries = stream(24, 6, 2)
        state, _ = memory.observe(memory.init(), keys + 50, values)
        unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
        mean = (keys + 50)[:8].mean(axis=0)
        np.testing.assert_allclose(
            memory.read(state, queries + 50), unit(queries + 50 - mean) @ state.parameters["W"]
        )
        cosines = unit(queries + 50 - mean) @ unit(keys + 50 - mean).T
        np.testing.assert_allclose(memory.lookup(state, queries + 50).similarity, cosines.max(axis=1))

    def test_tokens_that_wait_are_in_the_window(self):
        memory = Memory(MemoryConfig(16, 3, window_size=8, chunk_size=8))
        keys, values, _ = stream(3, 16, 3, dtype=np.float32)
        state, report = memory.observe(memory.init(), keys, values)
        assert report.learned == 0
        np.testing.assert_allclose(memory.lookup(state, keys).similarity, 1.0, rtol=1e-5)

    def test_a_window_is_asked_for(self):
        memory = Memory(MemoryConfig(4, 3))
        with pytest.raises(InvalidParamError, match="keeps no window"):
            memory.lookup(memory.init(), np.zeros((1, 4)))

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_half_precision_storage(self, dtype):
        config = MemoryConfig(16, 3, window_size=64, window_dtype=dtype)
        memory = Memory(config)
        assert memory.init().window["key"].itemsize == 2
        keys, values, _ = stream(20, 16, 3, dtype=np.float32)
        state, _ = memory.observe(memory.init(), keys, values)
        exact = Memory(config.replace(window_dtype="float32"))
        expected, _ = exact.observe(exact.init(), keys, values)
        np.testing.assert_allclose(state.parameters["W"], expected.parameters["W"], atol=0.1)
        assert (memory.lookup(state, keys).similarity > 0.999).all()

    def test_centring_subtracts_the_mean_of_the_warm_up(self):
        features = Features(map=Identity(), centre=True)
        memory = Memory(MemoryConfig(6, 2, features, warmup_tokens=10, window_size=32, dtype="float64"))
        keys, values, _ = stream(25, 6, 2)
        keys += 7
        state, _ = memory.observe(memory.init(), keys[:4], values[:4])
        state, _ = memory.observe(state, keys[4:], values[4:])
        np.testing.assert_allclose(state.adaptation["mean"], keys[:10].mean(axis=0))
        assert state.counters["averaged"] == 10


class TestRemembered:
    def settings(self, **changes):
        values = {"objective": CrossEntropy(), "window_size": 5, "dtype": "float64"}
        return Memory(MemoryConfig(6, 6, **{**values, **changes}))

    def fill(self, memory, count, seed=0, batch=()):
        rng = np.random.default_rng(seed)
        keys = rng.standard_normal((*batch, count, 6))
        targets = {
            "token": rng.integers(0, 6, (*batch, count)),
            "hidden": keys,
            "lse": np.zeros((*batch, count)),
        }
        state, _ = memory.observe(memory.init(batch), keys, targets, readout=Readout(np.eye(6)))
        return state, keys, targets["token"]

    @pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 13])
    def test_it_is_the_last_tokens_oldest_first(self, count):
        memory = self.settings(features=Features(projection=3))
        state, keys, token = self.fill(memory, count)
        found, tokens = memory.remembered(state)
        np.testing.assert_array_equal(tokens, token[-5:])
        projected = memory.config.features.project(keys[-5:], memory._learner.constants)
        expected = projected / np.linalg.norm(projected, axis=-1, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        np.testing.assert_allclose(memory.directions(state, keys[-5:]), expected, atol=1e-12)

    def test_products_of_both_are_the_cosines_of_a_lookup(self):
        memory = self.settings(features=Features(projection=4))
        state, _, _ = self.fill(memory, 11)
        queries = np.random.default_rng(5).standard_normal((7, 6))
        cosine = memory.directions(state, queries) @ memory.remembered(state)[0].T
        np.testing.assert_allclose(cosine.max(axis=1), memory.lookup(state, queries).similarity, atol=1e-12)

    def test_centring_counts(self):
        memory = self.settings(features=Features(centre=True), warmup_tokens=4)
        state, keys, _ = self.fill(memory, 9)
        mean = state.adaptation["mean"]
        expected = keys[-5:] - mean
        expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
        np.testing.assert_allclose(memory.remembered(state)[0], expected, atol=1e-12)
        np.testing.assert_allclose(memory.directions(state, keys[-5:]), expected, atol=1e-12)

    @pytest.mark.parametrize(
        "features",
        [
            Features(projection=4, normalize=True),
            Features(projection=3, centre=True),
            Features(map=RandomFourier(features=32)),
        ],
        ids=["projected", "centred", "random"],
    )
    def test_each_reads_what_it_reads_alone(self, features):
        memory = self.settings(features=features, warmup_tokens=2)
        states = [self.fill(memory, count)[0] for count in (11, 7, 16)]
        for seed in range(5):
            queries = np.random.default_rng(seed).standard_normal((3, 6))
            answers, directions = memory.read_each(states, queries)
            for row, state in enumerate(states):
                query = queries[row : row + 1]
                assert answers[row].tobytes() == memory.read(state, query).tobytes()
                assert directions[row].tobytes() == memory.directions(state, query)[0].tobytes()
                both = memory.read_and_direct(state, query)
                assert both[0].tobytes() == answers[row].tobytes()
                assert both[1][0].tobytes() == directions[row].tobytes()

    def test_keys_without_a_direction_are_zeros(self):
        memory = self.settings()
        state, keys, _ = self.fill(memory, 3)
        keys = np.concatenate((keys, np.zeros((1, 6)), np.full((1, 6), np.nan)))
        targets = {"token": np.arange(5), "hidden": keys, "lse": np.zeros(5)}
        state, _ = memory.observe(memory.init(), keys, targets, readout=Readout(np.eye(6)))
        found, tokens = memory.remembered(state)
        assert not found[3:].any()
        assert found[:3].any(axis=1).all()
        assert len(tokens) == 5
        assert not memory.directions(state, keys[3:]).any()

    def test_one_session_is_asked_for(self):
        memory = self.settings()
        state, _, token = self.fill(memory, 7, batch=(2,))
        with pytest.raises(InvalidParamError, match="several sessions"):
            memory.remembered(state)
        np.testing.assert_array_equal(memory.remembered(state[1])[1], token[1, -5:])


class TestCrossEntropy:
    def test_it_lowers_the_loss_of_a_model(self):
        rng = np.random.default_rng(0)
        V, d, T = 50, 16, 400
        rows = rng.standard_normal((V, d)).astype(np.float32)
        token = np.tile(rng.integers(0, V, 40), T // 40)
        hidden = np.tile(rng.standard_normal((40, d)), (T // 40, 1)).astype(np.float32)
        config = MemoryConfig(
            d, d, Features(map=Polynomial(2), normalize=True), objective=CrossEntropy(),
            step="chunk", chunk_size=8, omega_window=16, eta=0.3,
        )  # fmt: skip
        memory = Memory(config)
        targets = {"token": token, "hidden": hidden, "lse": np.zeros(T)}
        _, report = memory.observe(memory.init(), hidden, targets, readout=Readout(rows))
        logits = hidden @ rows.T
        alone = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(T), token]
        np.testing.assert_allclose(report.loss[:8], alone[:8], rtol=1e-4)
        assert report.loss[-40:].mean() < 0.1 * alone.mean()

    def test_candidates_and_ragged_sessions_through_the_stream(self):
        rng = np.random.default_rng(1)
        rows = rng.standard_normal((12, 5))
        ids = np.sort(rng.choice(40, 12, replace=False))
        readout = Readout(rows, ids=ids, centre=rows.mean(axis=0))
        config = MemoryConfig(
            5, 5, PLAIN, objective=CrossEntropy(), chunk_size=3, eta=0.1, omega_window=2, dtype="float64"
        )
        memory = Memory(config)
        hidden, lengths = rng.standard_normal((2, 7, 5)), np.array([7, 4])
        token, lse = rng.choice(ids, (2, 7)), rng.uniform(4, 6, (2, 7))
        targets = {"token": token, "hidden": hidden, "lse": lse}
        state, report = memory.observe(memory.init(2), hidden, targets, readout=readout, lengths=lengths)
        state, last = memory.flush(state, readout=readout)
        for row, T in enumerate(lengths):
            W, losses = np.zeros((5, 5)), []
            for start in range(0, T, 3):
                chunk = range(start, min(start + 3, T))
                M_0 = W.copy()

                def error(i, M_0=M_0, row=row):
                    z = rows @ (hidden[row, i] + hidden[row, i] @ M_0) - rows.mean(axis=0) @ (
                        hidden[row, i] @ M_0
                    )
                    rest = np.exp(lse[row, i]) - np.exp(rows @ hidden[row, i]).sum()
                    p = np.exp(z) / (np.exp(z).sum() + max(rest, 0))
                    right = int(np.flatnonzero(ids == token[row, i])[0])
                    centred = rows - rows.mean(axis=0)
                    return -np.log(p[right]), p @ centred - centred[right]

                losses += [error(i)[0] for i in chunk]
                for t in chunk:
                    for i in (t - 1, t):
                        if i >= 0:
                            W = W - 0.1 * np.outer(hidden[row, i], error(i)[1])
            np.testing.assert_allclose(state.parameters["W"][row], W, rtol=1e-9, atol=1e-12)
            found = np.concatenate([report.loss[row], last.loss[row]])
            np.testing.assert_allclose(found[np.isfinite(found)], losses, rtol=1e-9)


class TestReport:
    def test_by_formula(self):
        config = MemoryConfig(
            4, 3, PLAIN, eta=0.05, gamma=0.8, chunk_size=4, omega_window=6, warmup_tokens=5, dtype="float64"
        )
        memory = Memory(config)
        keys, values, _ = stream(12, 4, 3)
        state, _ = memory.observe(memory.init(), keys[:8], values[:8])
        W = state.parameters["W"]
        _, report = memory.observe(state, keys[8:], values[8:])
        error = keys @ W - values
        loss = 0.5 * (error**2).sum(axis=1)
        np.testing.assert_allclose(report.loss, loss[8:])
        np.testing.assert_allclose(
            report.surprise, np.linalg.norm(keys, axis=1)[8:] * np.linalg.norm(error, axis=1)[8:]
        )
        np.testing.assert_allclose(report.omega_loss, sum(0.8**age * loss[11 - age] for age in range(6)))
        _, early = memory.observe(memory.init(), keys[:4], values[:4])
        assert np.isnan(early.omega_loss)

    def test_uneven_sessions(self):
        memory = Memory(MemoryConfig(4, 3, PLAIN, eta=0.05, chunk_size=2, omega_window=3))
        keys, values, _ = stream(6, 4, 3, batch=(3,), dtype=np.float32)
        lengths = np.array([6, 1, 3])
        state, report = memory.observe(memory.init(3), keys, values, lengths=lengths)
        assert np.isnan(report.omega_loss).tolist() == [False, True, False]
        flushed, last = memory.flush(state)
        for row, T in enumerate(lengths):
            alone, one = memory.observe(memory.init(), keys[row, :T], values[row, :T])
            np.testing.assert_array_equal(report.omega_loss[row], one.omega_loss)
            alone, one = memory.flush(alone)
            assert_same_bits(flushed[row], alone)
            np.testing.assert_array_equal(last.omega_loss[row], one.omega_loss)


class TestGate:
    def test_it_learns_whom_to_believe_and_is_saved(self):
        memory = Memory(MemoryConfig(4, 3, gate=Gate(rate=0.5)))
        state = memory.init((2, 2))
        f = np.ones((2, 2, 8, 3), np.float32)
        p = np.stack([np.full((2, 2, 8), 0.1), np.full((2, 2, 8), 0.9)], axis=-1).astype(np.float32)
        before = memory.blend(state, f, p)
        for _ in range(50):
            state, loss = memory.learn_blend(state, f, p)
        assert loss.shape == (2, 2, 8)
        assert (memory.blend(state, f, p) > 0.85).all() > (before > 0.85).all()
        assert_same_bits(
            memory.restore(snapshot(state, optimizer=False, window=False)), memory.restore(snapshot(state))
        )
        masked, _ = memory.learn_blend(state, f, p, np.zeros((2, 2, 8), bool))
        assert_same_bits(masked, state)

    def test_a_learned_ranking_stays_beside_it(self):
        memory = Memory(MemoryConfig(4, 3, gate=Gate(rate=0.5), ranking=Ranking((3.0, 2.0, 1.0))))
        state = memory.init(2)
        f, p = np.ones((2, 8, 3), np.float32), np.full((2, 8, 2), (0.1, 0.9), np.float32)
        state.gate["rank"][1] = 7
        learned, _ = memory.learn_blend(state, f, p)
        assert learned.gate["rank"].tolist() == [[3, 2, 1], [7, 7, 7]]
        assert (learned.gate["w"] != state.gate["w"]).any()
        assert_same_bits(memory.restore(snapshot(learned)), learned)
        keys, values, _ = stream(5, 4, 3, batch=(2,), dtype=np.float32)
        assert memory.observe(learned, keys, values)[0].gate["rank"].tolist() == [[3, 2, 1], [7, 7, 7]]

    def test_a_gate_is_asked_for(self):
        memory = Memory(MemoryConfig(4, 3))
        with pytest.raises(InvalidParamError, match="no gate"):
            memory.blend(memory.init(), np.ones((1, 3)), np.ones((1, 2)))


class TestStates:
    def test_going_on_after_a_restore_is_bit_identical(self, config):
        adaptation = 0.0 if isinstance(config.objective, DotProduct) else 0.1
        config = config.replace(dtype="float32", eta_adaptation=adaptation, window_size=6, gate=Gate())
        memory = Memory(config)
        keys, values, _ = stream(18, config.d_k, config.d_v, dtype=np.float32)
        state, _ = memory.observe(memory.init(), keys[:9], values[:9])
        restored = Memory(config.from_json(config.to_json())).restore(snapshot(state))
        assert_same_bits(restored, state)
        on, report = memory.observe(state, keys[9:], values[9:])
        again, report_again = memory.observe(restored, keys[9:], values[9:])
        assert_same_bits(again, on)
        np.testing.assert_array_equal(report_again.loss, report.loss)

    def test_what_a_snapshot_can_leave_out(self):
        memory = Memory(CONFIGS["momentum"].replace(eta_adaptation=0.1))
        keys, values, _ = stream(9, 4, 3, dtype=np.float32)
        state, _ = memory.observe(memory.init(), keys, values)
        small = snapshot(state, optimizer=False, window=False)
        assert {name.split(".")[0] for name in small} == {"parameters", "counters"}
        restored = memory.restore(small)
        np.testing.assert_array_equal(restored.parameters["W"], state.parameters["W"])
        np.testing.assert_array_equal(restored.adaptation["previous.W"], state.parameters["W"])
        assert not restored.momentum["W"].any()
        assert restored.counters["filled"] == 0
        memory.observe(restored, keys, values)

    def test_soft_and_hard_reset(self):
        memory = Memory(CONFIGS["momentum"])
        keys, values, _ = stream(8, 4, 3, dtype=np.float32)
        state, _ = memory.observe(memory.init(), keys, values)
        soft, hard = memory.reset(state, "soft"), memory.reset(state, "hard")
        assert not soft.parameters["W"].any()
        np.testing.assert_array_equal(soft.momentum["W"], state.momentum["W"])
        np.testing.assert_array_equal(soft.window["key"], state.window["key"])
        assert_same_bits(hard, memory.init())
        with pytest.raises(InvalidParamError, match="not a kind of reset"):
            memory.reset(state, "medium")

    def test_stack_and_select(self):
        memory = Memory(CONFIGS["momentum"])
        keys, values, _ = stream(8, 4, 3, batch=(2,), dtype=np.float32)
        states = [memory.observe(memory.init(), keys[i], values[i])[0] for i in range(2)]
        both = stack(states)
        assert both.batch == (2,)
        assert_same_bits(both[1], states[1])
        with pytest.raises(InvalidParamError, match="no leading axes"):
            states[0][0]
        with pytest.raises(InvalidParamError, match="differ"):
            stack([states[0], Memory(CONFIGS["delta"]).init()])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop("parameters.W"), "the snapshot has no parameters.W"),
            (lambda s: s.pop("counters.seen"), "no counters"),
            (lambda s: s.update({"parameters.V": s["parameters.W"]}), "has no parameters.V"),
            (lambda s: s.update({"nonsense": s["parameters.W"]}), "not an array of a memory"),
            (lambda s: s.update({"parameters.W": s["parameters.W"][:1]}), "has the shape"),
            (lambda s: s.update({"parameters.W": s["parameters.W"] * np.nan}), "NaN"),
            (lambda s: s.update({"counters.learned": np.array(99)}), "contradict"),
            (lambda s: s.update({"counters.seen": np.array(-1)}), "contradict"),
        ],
    )
    def test_a_snapshot_that_does_not_fit(self, change, message):
        memory = Memory(CONFIGS["momentum"])
        keys, values, _ = stream(8, 4, 3, dtype=np.float32)
        arrays = snapshot(memory.observe(memory.init(), keys, values)[0])
        change(arrays)
        with pytest.raises(InvalidParamError, match=message):
            memory.restore(arrays)


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (lambda m, s: m.observe(s, np.zeros((2, 5)), np.zeros((2, 3))), "keys"),
        (lambda m, s: m.observe(s, np.zeros((1, 2, 4)), np.zeros((2, 3))), "keys"),
        (lambda m, s: m.observe(s, np.zeros((2, 4)), np.zeros((2, 4))), "value"),
        (lambda m, s: m.observe(s, np.zeros((2, 4)), {"token": np.zeros(2)}), "targets"),
        (lambda m, s: m.observe(s, np.zeros((2, 4)), np.zeros((2, 3)), weights=np.ones(3)), "weight"),
        (lambda m, s: m.observe(s, np.zeros((2, 4)), np.zeros((2, 3)), theta=np.ones(2)), "theta"),
        (lambda m, s: m.observe(s, np.zeros((2, 4)), np.zeros((2, 3)), eta=np.full(2, np.nan)), "eta"),
        (lambda m, s: m.observe(s, np.zeros((2, 4)), np.zeros((2, 3)), eta=np.full(2, -1.0)), "eta"),
        (lambda m, s: m.observe(s, np.zeros((2, 4)), np.zeros((2, 3)), alpha=np.full(2, 1.5)), "alpha"),
        (lambda m, s: m.observe(s, np.zeros((2, 4)), np.zeros((2, 3)), lengths=np.array(3)), "lengths"),
        (lambda m, s: m.scan(s, np.zeros((2, 4)), np.zeros((2, 3)), np.zeros((3, 4))), "queries"),
        (lambda m, s: m.read(s, np.zeros((2, 3))), "queries"),
    ],
)
def test_shapes_that_do_not_fit(call, key):
    memory = Memory(MemoryConfig(4, 3, PLAIN))
    with pytest.raises(InvalidParamError) as caught:
        call(memory, memory.init())
    assert caught.value.key == key
