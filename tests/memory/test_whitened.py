"""Whitening, and the step of a memory on whitened states, by hand and against NumPy's own arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import (
    CrossEntropy,
    Features,
    Identity,
    Memory,
    MemoryConfig,
    WhitenedMatrix,
    WhitenedMemory,
    merge,
)
from atlas_kit.memory.modules import MOST_LENGTH, cut
from atlas_kit.memory.whitened import RIDGE, UNLIKE, sampled, varying, whitening

D, RANK, KEY, AFTER, CHUNK = 6, 4, 3, 20, 4


def config(**changes):
    base = MemoryConfig(
        D, D, Features(Identity(), projection=KEY), WhitenedMatrix(RANK, 9, AFTER), CrossEntropy(), eta=0.5,
        omega_window=AFTER + 1, chunk_size=CHUNK, step="chunk", window_size=12, window_dtype="float16",
    )  # fmt: skip
    return base.replace(**changes)


def states(count, seed=0):
    random = np.random.default_rng(seed)
    return (random.standard_normal((count, D)) @ random.standard_normal((D, D)) + 3).astype(np.float32)


def taken(memory, state, hidden, **options):
    for at in range(0, len(hidden), CHUNK):
        some = hidden[at : at + CHUNK]
        targets = {"token": np.arange(at, at + len(some)) % 9, "lse": np.zeros(len(some))}
        state = memory.step(state, some, targets, **options)
    return state


def test_whitened_states_have_no_mean_equal_variances_and_length_one():
    x = states(4000).astype("f8")
    origin, P = whitening(x, D)
    w = (x[UNLIKE:] - origin) @ P
    np.testing.assert_allclose(w.mean(axis=0), 0, atol=1e-9)
    assert np.square(w).sum(axis=1).mean() == pytest.approx(1)
    variance = np.linalg.eigvalsh(np.cov(x[UNLIKE:].T, bias=True))[::-1]
    flat = variance / (variance + RIDGE * variance.mean())
    np.testing.assert_allclose(w.T @ w / len(w), np.diag(flat / flat.sum()), atol=1e-9)


def test_the_directions_of_most_variance_come_first_and_signs_are_fixed():
    x = np.random.default_rng(1).standard_normal((300, 5)) * (1, 9, 3, 0.1, 5)
    for sign in (1, -1):
        _, P = whitening(sign * x, 3)
        assert np.abs(P).argmax(axis=0).tolist() == [1, 4, 2]
        assert (P[[1, 4, 2], range(3)] > 0).all()


def test_fewer_states_than_they_have_numbers_are_whitened_to_the_same():
    x = np.random.default_rng(0).standard_normal((40, 60)) * np.linspace(9, 0.1, 60)
    origin, P = whitening(x, 5)
    some = x[UNLIKE:] - x[UNLIKE:].mean(axis=0)
    variance, directions = np.linalg.eigh(some.T @ some / len(some))
    wanted = directions[:, ::-1][:, :5] / np.sqrt(variance[::-1][:5] + RIDGE * variance.mean())
    wanted /= np.sqrt(np.square(some @ wanted).sum(axis=1).mean())
    np.testing.assert_allclose(np.abs(np.sum(P * wanted, axis=0)), np.square(wanted).sum(axis=0), rtol=1e-6)
    np.testing.assert_allclose(origin, x[UNLIKE:].mean(axis=0))


@pytest.mark.parametrize("x", [np.zeros((30, D)), np.ones((30, D)), states(3), np.zeros((0, D))])
def test_states_that_hardly_differ_can_be_whitened(x):
    origin, P = whitening(x.astype("f8"), RANK)
    assert np.isfinite(origin).all()
    assert np.isfinite(P).all()
    assert P.shape == (D, RANK)


def test_the_step_is_the_gradients_outer_product():
    memory = WhitenedMemory(config())
    state = taken(memory, memory.init(), states(AFTER))
    assert memory.is_whitened(state)
    assert all(array.flags.c_contiguous for array in state.parameters.values())
    assert (state.parameters["W"] == 0).all()
    hidden, g = states(CHUNK, 2), states(CHUNK, 3)
    targets = {"token": np.arange(CHUNK), "lse": np.zeros(CHUNK)}
    new = memory.step(
        state, hidden, targets, gradient=g, bias=(np.array([2, 5]), np.array([0.5, -1.0])), eta=0.25
    )
    phi = cut((hidden - state.parameters["origin"]) @ state.parameters["P"])
    assert np.sqrt(np.square(phi).sum(axis=1)).max() <= MOST_LENGTH * 1.0001
    np.testing.assert_allclose(new.parameters["W"], -0.25 * phi.T @ g, rtol=1e-5, atol=1e-6)
    assert new.parameters["bias"][0].tolist() == [0, 0, 0.5, 0, 0, -1.0, 0, 0, 0]
    assert int(new.counters["steps"]) == 1
    y, key = memory.read_and_direct(new, hidden)
    np.testing.assert_allclose(y, phi @ new.parameters["W"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.square(key).sum(axis=1), 1, rtol=1e-5)
    assert (state.parameters["W"] == 0).all()  # it was not donated
    kept, tokens = memory.remembered(new)
    np.testing.assert_allclose(kept[-CHUNK:], key, atol=2e-3)
    assert tokens[-CHUNK:].tolist() == list(range(CHUNK))


def test_muon_makes_steps_of_one_length_in_all_directions():
    memory = WhitenedMemory(config(use_muon=True))
    state = taken(memory, memory.init(), states(AFTER))
    g = states(CHUNK, 3)
    new = taken(memory, state, states(CHUNK, 2), gradient=g, eta=0.25)
    phi = cut((states(CHUNK, 2) - state.parameters["origin"]) @ state.parameters["P"])
    singular = np.linalg.svd(new.parameters["W"], compute_uv=False)[:3]
    assert (singular > 0.1).all()
    assert (singular < 0.35).all()
    assert float((new.parameters["W"] * (phi.T @ g)).sum()) < 0  # downhill


def test_arrays_of_another_type_change_no_type():
    memory = WhitenedMemory(config())
    state = taken(
        memory, memory.init(), states(40).astype("f8"), gradient=states(CHUNK, 3).astype("f8"), eta=0.1
    )
    assert int(state.counters["steps"]) > 0
    for name, array in memory.init().parameters.items():
        assert state.parameters[name].dtype == array.dtype, name
    assert state.window["hidden"].dtype == np.float32
    y, key = memory.read_each([state], states(1))
    assert (y.dtype, key.dtype) == (np.float32, np.float32)


def test_donating_gives_the_same_bits():
    memory, hidden, g = (
        WhitenedMemory(config(module=WhitenedMatrix(RANK, 9, AFTER, 10))),
        states(80),
        states(CHUNK, 3),
    )
    plain, given = (
        taken(
            memory,
            memory.init(),
            hidden,
            gradient=g,
            slopes=g,
            bias=(np.array([1]), np.array([0.1])),
            eta=0.1,
            donate=donate,
        )
        for donate in (False, True)
    )
    for group, arrays in plain.groups().items():
        for name, array in arrays.items():
            assert np.asarray(array).tobytes() == np.asarray(given.groups()[group][name]).tobytes(), name


def test_a_snapshot_goes_on_to_the_same_bits():
    memory, hidden, g = (
        WhitenedMemory(config(module=WhitenedMatrix(RANK, 9, AFTER, 10))),
        states(80),
        states(CHUNK, 3),
    )
    half = taken(memory, memory.init(), hidden[:40], gradient=g, slopes=g, eta=0.1)
    from atlas_kit.memory import snapshot

    again = memory.restore(snapshot(half))
    for one in (half, again):
        end = taken(memory, one, hidden[40:], gradient=g, slopes=g, eta=0.1)
        assert int(end.counters["steps"]) == 15
        assert memory.is_whitened(end)
        if one is half:
            wanted = end
    for group, arrays in wanted.groups().items():
        for name, array in arrays.items():
            assert np.asarray(array).tobytes() == np.asarray(end.groups()[group][name]).tobytes(), name


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_step_that_leads_too_far_is_not_taken(bad):
    memory = WhitenedMemory(config())
    state = taken(memory, memory.init(), states(AFTER))
    g = np.full((CHUNK, D), bad, np.float32)
    new = taken(memory, state, states(CHUNK, 5), gradient=g, bias=(np.array([0]), np.array([1.0])), eta=1.0)
    assert (new.parameters["W"] == 0).all()
    assert (new.parameters["bias"] == 0).all()
    assert int(new.counters["rejected"]) == 1


def test_a_soft_reset_keeps_the_whitening():
    memory = WhitenedMemory(config())
    state = taken(memory, memory.init(), states(40), gradient=states(CHUNK, 3), eta=0.1)
    soft, hard = memory.reset(state, "soft"), memory.reset(state)
    assert (soft.parameters["W"] == 0).all()
    assert soft.parameters["P"].tobytes() == state.parameters["P"].tobytes()
    assert hard.parameters["P"].tobytes() == memory.init().parameters["P"].tobytes()


@pytest.mark.parametrize("room", [1, 2, 3, 16])
def test_a_sample_is_spread_over_all_that_came_since_the_last(room):
    begun, kept = 0, {}
    for taken_before in range(40 * room):
        place, full = sampled(taken_before, room)
        if place is not None:
            assert place not in kept
            kept[place] = taken_before
        if full:
            assert sorted(kept) == list(range(room))
            apart = (taken_before + 1 - begun) // room
            assert [kept[place] for place in range(room)] == [begun + apart * place for place in range(room)]
            assert taken_before + 1 == (begun + room if not begun else 2 * begun)
            begun, kept = taken_before + 1, {}


@pytest.mark.parametrize(("count", "d"), [(50, 9), (7, 20)])
def test_directions_are_those_in_which_gradients_vary_most(count, d):
    gradients = np.random.default_rng(0).standard_normal((count, d)) * np.linspace(3, 0.1, d)
    square, mixed = np.linalg.eigh(gradients.T @ gradients / count)
    found, rest = varying(gradients, np.zeros((4, d)), 0.0)
    np.testing.assert_allclose(np.square(found).sum(axis=1), square[::-1][:4])
    np.testing.assert_allclose(np.square(found @ mixed[:, ::-1][:, :4]), np.diag(square[::-1][:4]), atol=1e-9)
    assert rest == pytest.approx(square[::-1][4:].sum() / (d - 4))
    # the same once more is nothing new; what was left beside the directions stays beside them
    again, left = varying(gradients, found, rest)
    assert np.square(again).sum() + (d - 4) * left == pytest.approx(square.sum())
    np.testing.assert_allclose(np.square(again[0]).sum(), square[-1], rtol=0.02)


@pytest.mark.parametrize("sample", [np.zeros((6, 5)), np.eye(5)[:1], 1e30 * np.eye(5), np.zeros((0, 5))])
def test_gradients_of_any_kind_vary_somehow(sample):
    found, rest = varying(sample, np.zeros((3, 5)), 0.0)
    assert np.isfinite(found).all()
    assert np.isfinite(rest)


def test_one_gradient_of_an_odd_token_is_not_all_that_is_seen():
    gradients = np.random.default_rng(0).standard_normal((50, 9))
    plain, _ = varying(gradients, np.zeros((2, 9)), 0.0)
    gradients[3] *= 1e6
    odd, _ = varying(gradients, np.zeros((2, 9)), 0.0)
    assert np.square(odd[0]).sum() < 3 * np.square(plain[0]).sum()


def test_gradients_are_kept_until_there_are_enough_and_then_their_directions():
    memory = WhitenedMemory(config(module=WhitenedMatrix(RANK, 9, AFTER, 10)))
    state = taken(memory, memory.init(), states(AFTER))
    random = np.random.default_rng(4)
    for step in range(12):
        g, q = random.standard_normal((2, CHUNK, D)).astype(np.float32)
        before = state
        state = memory.step(
            state,
            states(CHUNK, step),
            {"token": np.arange(CHUNK), "lse": np.zeros(CHUNK)},
            gradient=q,
            slopes=g,
        )
        place, full = sampled(step, 2)  # ten rows have room for two chunks
        slopes, was = state.parameters["slopes"], before.parameters["slopes"]
        if place is None:
            assert slopes is was
        else:
            np.testing.assert_array_equal(slopes[place * CHUNK : (place + 1) * CHUNK], g)
            assert slopes is not was
        assert (state.parameters["directions"] is before.parameters["directions"]) != full
        if full:
            given = (before.parameters[name] for name in ("directions", "rest"))
            directions, rest = varying(slopes, next(given), float(next(given)[0, 0]))
            np.testing.assert_allclose(state.parameters["directions"], directions, rtol=1e-4, atol=1e-6)
            assert state.parameters["rest"][0, 0] == pytest.approx(rest, rel=1e-5)
    assert state.parameters["directions"].shape == (5, D)
    assert state.parameters["directions"].any()


def test_what_is_no_number_is_not_kept():
    memory = WhitenedMemory(config(module=WhitenedMatrix(RANK, 9, AFTER, CHUNK)))
    state = taken(memory, memory.init(), states(AFTER))
    g = states(CHUNK, 3)
    g[1, 2] = np.inf
    state = taken(memory, state, states(CHUNK), gradient=states(CHUNK, 4), slopes=g)
    assert (state.parameters["slopes"][1] == 0).all()
    assert np.isfinite(state.parameters["directions"]).all()
    from atlas_kit.memory import snapshot

    memory.restore(snapshot(state))


def test_memories_are_merged_if_they_were_whitened_by_the_same_text():
    memory = WhitenedMemory(config(module=WhitenedMatrix(RANK, 9, AFTER, CHUNK)))
    common = taken(memory, memory.init(), states(AFTER))
    one, other = (
        taken(
            memory,
            common,
            states(CHUNK, seed),
            gradient=states(CHUNK, seed),
            slopes=states(CHUNK, seed),
            eta=0.1,
        )
        for seed in (3, 4)
    )
    merged = merge([one, other], [1, 3])
    np.testing.assert_allclose(
        merged.parameters["W"],
        0.25 * one.parameters["W"] + 0.75 * other.parameters["W"],
        rtol=1e-5,
        atol=1e-7,
    )
    for name in ("P", "origin", "slopes", "directions", "rest"):
        assert merged.parameters[name].tobytes() == other.parameters[name].tobytes(), name
    assert set(merged.parameters) == set(one.parameters)
    stranger = taken(memory, memory.init(), states(AFTER, 9))
    for another in (stranger, memory.init()):
        with pytest.raises(InvalidParamError, match="whitened by different texts"):
            merge([one, another])


def test_only_step_learns():
    memory = WhitenedMemory(config())
    for call in (memory.observe, memory.flush, memory.scan):
        with pytest.raises(InvalidParamError):
            call(memory.init())
    plain = Memory(config())
    hidden = states(CHUNK)
    targets = {"token": np.zeros(CHUNK, np.int64), "hidden": hidden, "lse": np.zeros(CHUNK)}
    with pytest.raises(InvalidParamError):
        plain.observe(plain.init(), hidden, targets)


@pytest.mark.parametrize("changes", [{"module": WhitenedMatrix(2, 9, AFTER)}, {"omega_window": 10}])
def test_settings_that_do_not_fit(changes):
    with pytest.raises(InvalidParamError):
        WhitenedMemory(config(**changes))
    with pytest.raises(InvalidParamError):
        WhitenedMemory(MemoryConfig(D, D))


@pytest.mark.parametrize("changes", [{"rank": 0}, {"tokens": -1}, {"after": 1}, {"rank": 1.5}])
def test_modules_out_of_range(changes):
    with pytest.raises(InvalidParamError):
        WhitenedMatrix(**changes)


def test_json_and_back():
    assert MemoryConfig.from_json(config().to_json()) == config()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_new_memories_begin_alike_and_share_no_array(dtype, batch):
    memory = WhitenedMemory(config(dtype=dtype))
    first, second = (memory.init(batch) for _ in range(2))
    for group, arrays in first.groups().items():
        for name, array in arrays.items():
            other = second.groups()[group][name]
            assert np.array_equal(array, other)
            assert array.flags.writeable
            assert not np.shares_memory(array, other)
