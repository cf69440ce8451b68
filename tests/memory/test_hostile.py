"""What a careless or unlucky caller does: odd inputs, broken numbers, copies, threads; and what must not care."""

from __future__ import annotations

import copy
import doctest
import itertools
import pickle
import threading

import numpy as np
import pytest

import atlas_kit
from atlas_kit.errors import DivergedError, InvalidParamError
from atlas_kit.memory import (
    CrossEntropy,
    DotProduct,
    Exponential,
    Features,
    Gate,
    GatedMLP,
    Identity,
    Matrix,
    Memory,
    MemoryConfig,
    Polynomial,
    RandomFourier,
    Readout,
    ResidualMLP,
    Schedule,
    WinnerTakeAll,
    _checks,
    distance,
    gate_features,
    merge,
    newton_schulz,
    presets,
    snapshot,
    stack,
    statistics,
)
from atlas_kit.memory.backend import choose
from atlas_kit.memory.window import lookup

T, D_K, D_V, VOCABULARY = 23, 24, 5, 9
CHUNKS = (
    {"chunk_size": 1},
    {"chunk_size": 5, "omega_window": 3},
    {"chunk_size": 4, "omega_window": 5, "step": "chunk", "window_size": 2},
)
CONFIGS = {
    f"{name}, {','.join(f'{k}={v}' for k, v in chunk.items())}": MemoryConfig(D_K, D_V, **{**settings, **chunk})
    for chunk in CHUNKS
    for name, settings in {
        "identity": {"features": Features(map=Identity(), normalize_keys=False)},
        "polynomial": {"features": Features(map=Polynomial(2), normalize=True), "theta": 0.5, "alpha": 0.99},
        "projected": {"features": Features(map=Polynomial(2), projection=6), "window_dtype": "bfloat16"},
        "taylor": {"features": Features(map=Exponential("taylor", degree=2))},
        "winners": {"features": Features(map=WinnerTakeAll(features=64, active=4), projection=6)},
        "centred": {
            "features": Features(map=RandomFourier(64), centre=True, projection=8),
            "warmup_tokens": 6, "eta_adaptation": 0.2,
        },
        "muon": {"use_muon": True, "theta": 0.5},
        "deep": {"module": ResidualMLP(width=8), "guard": True},
        "gated": {"module": GatedMLP(width=8), "eta_adaptation": 0.1},
        "next-token": {"objective": CrossEntropy()},
        "nothing": {"objective": DotProduct(), "gamma": 0.0, "alpha": 0.0, "eta": 0.0},
        "schedules": {
            "eta": Schedule("cosine", 0.3, 0.0, 10), "theta": Schedule("linear", 0.9, 0.0, 5),
            "alpha": Schedule("exponential", 1.0, 0.5, 7),
        },
    }.items()
}  # fmt: skip
PLAIN = presets.delta_rule(D_K, D_V, chunk_size=2, omega_window=2, window_size=5)


@pytest.fixture(autouse=True)
def _strict_numpy():
    """Every function here must bear a user who lets NumPy raise."""
    with np.errstate(all="raise"):
        yield


def bits(state):
    return {f"{g}.{n}": a.tobytes() for g, arrays in state.groups().items() for n, a in arrays.items()}


def differing(a, b):
    return [name for name, data in bits(a).items() if bits(b)[name] != data]


class Stream:
    """Random tokens for a configuration; cut along the sessions and the tokens."""

    def __init__(self, config, batch=(2, 3), seed=0, tokens=T):
        rng = np.random.default_rng(seed)
        d_k, d_v = config.d_k, config.d_v
        self.keys, values = (rng.standard_normal((*batch, tokens, d)) for d in (d_k, d_v))
        self.fields = {"value": values}
        self.readout = None
        if isinstance(config.objective, CrossEntropy):
            token = rng.integers(0, VOCABULARY, (*batch, tokens))
            self.fields = {"token": token, "hidden": values, "lse": np.full(token.shape, 9.0)}
            self.readout = Readout(rng.standard_normal((VOCABULARY, d_v)).astype(np.float32))

    def feed(self, memory, state, start=0, stop=None, where=(), **options):
        lead = (..., slice(start, stop), slice(None))
        targets = {
            n: a[where][lead if n in ("value", "hidden") else lead[:2]] for n, a in self.fields.items()
        }
        if self.readout is None:
            targets = targets["value"]
        return memory.observe(state, self.keys[where][lead], targets, readout=self.readout, **options)[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_session_learns_depends_on_its_tokens_alone(name):
    """Not on the split of the stream, the other sessions, their lengths, or how the arrays lie in memory."""
    memory = Memory(CONFIGS[name])
    stream = Stream(memory.config)
    whole = stream.feed(memory, memory.init((2, 3)))
    for cuts in (range(T + 1), (0, 0, 3, 4, 17, T)):
        state = memory.init((2, 3))
        for start, stop in itertools.pairwise(cuts):
            state = stream.feed(memory, state, start, stop)
        assert not differing(whole, state)
    lengths = np.array([[0, 3, 4], [11, T, 1]])
    ragged = stream.feed(memory, memory.init((2, 3)), lengths=lengths)
    ragged = stream.feed(memory, ragged)
    for where in np.ndindex(2, 3):
        alone = stream.feed(memory, memory.init(), where=where)
        assert not differing(whole[where], alone)
        alone = stream.feed(memory, memory.init(), 0, lengths[where], where)
        assert not differing(ragged[where], stream.feed(memory, alone, where=where))
    stream.keys = np.asfortranarray(stream.keys)
    assert not differing(whole, stream.feed(memory, memory.init((2, 3))))


@pytest.mark.parametrize("name", CONFIGS)
def test_states_and_inputs_never_change(name):
    memory = Memory(CONFIGS[name])
    stream = Stream(memory.config)
    keys = stream.keys = stream.keys.astype(np.float32)
    before = keys.copy()
    states = [memory.init((2, 3))]
    for start, stop in ((0, 0), (0, 3), (3, 4), (4, 17), (17, T)):
        states.append(stream.feed(memory, states[-1], start, stop))
    seen = [bits(state) for state in states]
    flushed, _ = memory.flush(states[-1], readout=stream.readout)
    targets = stream.fields.get("value", stream.fields)
    memory.scan(flushed, keys, targets, keys, readout=stream.readout)
    stream.feed(memory, states[-1], lengths=np.array([[0, 1, 2], [3, 4, 5]]))
    stream.feed(memory, memory.reset(states[-1], "soft"))
    answer = memory.read(states[-1], keys)
    assert keys.tobytes() == before.tobytes()
    answer[...] = 7
    keys[...] = 7
    arrays = snapshot(states[-1])
    restored = memory.restore(arrays)
    for array in arrays.values():
        array[...] = 1
    assert not differing(restored, states[-1])
    assert [bits(state) for state in states] == seen


@pytest.mark.parametrize("name", CONFIGS)
def test_broken_numbers_never_enter_a_state(name):
    memory = Memory(CONFIGS[name])
    stream = Stream(memory.config)
    for where, number in (
        ((0, 0, 3), np.nan),
        ((1, 1, 2), 1e300),
        ((0, 1, 5), 1e-40),
        ((0, 2, 6), 0.0),
        ((1, 2, 4), 1e25),
    ):
        stream.keys[where] = number
    field = "value" if "value" in stream.fields else "hidden"
    stream.fields[field][0, 0, 4] = 1e30
    stream.fields[field][1, 0, 5] = -np.inf
    state = stream.feed(memory, memory.init((2, 3)))
    memory.read(state, stream.keys)
    assert not differing(state, memory.restore(snapshot(state)))  # which refuses NaN and infinity
    assert state.counters["dropped"].tolist() == [[1, 0, 0], [1, 1, 0]]


@pytest.mark.parametrize("name", list(CONFIGS)[:6])
def test_threads_may_share_a_memory(name):
    memory = Memory(CONFIGS[name])
    streams = [Stream(memory.config, seed=seed) for seed in range(3)]
    expected = [bits(stream.feed(memory, memory.init((2, 3)))) for stream in streams]
    found = [None] * 3

    def work(i):
        found[i] = bits(streams[i].feed(memory, memory.init((2, 3))))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_what_a_narrow_window_cannot_hold_is_left_out():
    memory = Memory(PLAIN.replace(window_dtype="float16"))
    stream = Stream(memory.config, batch=())
    stream.fields["value"][3] = 1e5  # infinite in float16
    stream.keys[7] = -1e6
    state = stream.feed(memory, memory.init())
    assert (state.counters["dropped"], state.counters["rejected"]) == (2, 0)


def test_strict_mode_leaves_the_state():
    memory = Memory(PLAIN.replace(strict=True, max_norm=1e-3))
    state = memory.init((2, 3))
    before = bits(state)
    with pytest.raises(DivergedError):
        Stream(memory.config).feed(memory, state)
    assert bits(state) == before


def test_a_token_outside_the_vocabulary_is_refused_when_it_comes():
    memory = Memory(CONFIGS["next-token, chunk_size=5,omega_window=3"])
    stream = Stream(memory.config, batch=())
    stream.fields["token"][1] = VOCABULARY
    with pytest.raises(InvalidParamError, match="outside"):
        stream.feed(memory, memory.init(), 0, 2)  # in the window it would make every later call fail
    stream.feed(memory, memory.init(), 0, 2, lengths=np.array(1))


def test_streams_of_any_length():
    memory = Memory(CONFIGS["schedules, chunk_size=5,omega_window=3"])
    stream = Stream(memory.config, batch=())
    arrays = snapshot(stream.feed(memory, memory.init()))
    for name in ("counters.seen", "counters.learned"):
        arrays[name] = arrays[name] + 720_720 * 10**12
    stream.feed(memory, memory.restore(arrays))
    for name in ("counters.seen", "counters.learned"):
        arrays[name] = np.array(2**63 - 1)
    with pytest.raises(InvalidParamError, match="contradict"):
        memory.restore(arrays)


# --- copies, equality, words ---------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda x: pickle.loads(pickle.dumps(x))])
def test_memories_and_states_can_be_copied(copied):
    memory = Memory(CONFIGS["centred, chunk_size=1"])
    stream = Stream(memory.config)
    state = stream.feed(memory, memory.init((2, 3)))
    again = copied(memory)
    assert again.config == memory.config
    assert not differing(stream.feed(memory, state), stream.feed(again, copied(state)))


def test_states_and_reports_are_equal_to_themselves_alone():
    memory = Memory(PLAIN)
    state, report = memory.observe(memory.init(), np.ones((2, D_K)), np.ones((2, D_V)))
    for one in (state, report, *distance(state, state).values(), statistics(PLAIN, state)):
        assert one == one
        assert one != copy.deepcopy(one)
        assert len({one, one}) == 1


def test_no_repr_prints_arrays():
    memory = Memory(PLAIN)
    state, report = memory.observe(memory.init((50,)), np.ones((50, 4, D_K)), np.ones((50, 4, D_V)))
    assert repr(state) == f"<MemoryState of 50 sessions: W 24 x 5; 4 tokens seen; {state.nbytes:,} bytes>"
    assert repr(state[0]).startswith("<MemoryState: W 24 x 5; 4 tokens seen;")
    assert repr(report).startswith("<Report: 4 tokens learned in each of 50 sessions, mean loss ")
    assert repr(memory.flush(state)[1]) == "<Report: 0 tokens learned in each of 50 sessions>"
    assert "MemoryConfig(d_k=24" in repr(memory)
    assert repr(memory.init(0)).startswith("<MemoryState of 0 sessions")


@pytest.mark.parametrize("name", ["Memory", "MemoryConfig", "load_memory", "save_memory"])
def test_the_package_offers_memories(name):
    assert name in dir(atlas_kit)
    assert callable(getattr(atlas_kit, name))


# --- inputs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert",
    [
        lambda k: k.tolist(),
        lambda k: k.astype(object),
        lambda k: k.astype(">f8"),
        lambda k: np.ma.masked_array(k),
        lambda k: np.asfortranarray(k),
        lambda k: np.broadcast_to(k, k.shape),  # read-only
        lambda k: k[::-1][::-1],
    ],
)
def test_any_array_of_numbers_will_do(convert):
    memory = Memory(PLAIN)
    keys, values = np.eye(4, D_K) * 1.5, np.ones((4, D_V))
    expected, _ = memory.observe(memory.init(), keys, values)
    assert not differing(expected, memory.observe(memory.init(), convert(keys), convert(values))[0])


@pytest.mark.parametrize(
    "keys",
    [
        None,
        "keys",
        [[1.0], [1.0, 2.0]],
        np.full((4, D_K), "x", object),
        np.full((4, D_K), "1"),
        np.ones((4, D_K), complex),
        np.ma.masked_array(np.ones((4, D_K)), mask=np.eye(4, D_K)),
    ],
)
def test_what_is_no_array_of_numbers(keys):
    memory = Memory(PLAIN)
    with pytest.raises(InvalidParamError) as caught:
        memory.observe(memory.init(), keys, np.ones((4, D_V)))
    assert caught.value.key == "keys"


@pytest.mark.parametrize("token", [[0.5, 1.0], [2**40, 0], [-(2**40), 0], [True, False], [np.nan, 0]])
def test_tokens_are_whole_numbers(token):
    memory = Memory(MemoryConfig(D_K, D_V, objective=CrossEntropy()))
    targets = {"token": np.array(token), "hidden": np.zeros((2, D_V)), "lse": np.zeros(2)}
    with pytest.raises(InvalidParamError) as caught:
        memory.observe(memory.init(), np.ones((2, D_K)), targets, readout=Readout(np.ones((3, D_V))))
    assert caught.value.key == "token"


@pytest.mark.parametrize("batch", [-1, (2, -1), 2.0, True, None, "ab", [[1]], (1.5,)])
def test_leading_axes_that_are_none(batch):
    with pytest.raises(InvalidParamError) as caught:
        Memory(PLAIN).init(batch)
    assert caught.value.key == "batch"


@pytest.mark.parametrize(
    ("batch", "shape"),
    [(3, (3,)), (np.int64(3), (3,)), ([2, 3], (2, 3)), ((), ()), ([], ()), (0, (0,)), ((2, 0), (2, 0))],
)
def test_leading_axes(batch, shape):
    memory = Memory(PLAIN)
    state = memory.init(batch)
    assert state.batch == shape
    state, _ = memory.observe(state, np.ones((*shape, 3, D_K)), np.ones((*shape, 3, D_V)))
    assert memory.read(state, np.ones((*shape, 2, D_K))).shape == (*shape, 2, D_V)
    assert memory.flush(state)[1].loss.shape == (*shape, 1 if state.counters["seen"].size else 0)


HUGE = 10**400  # json.loads makes such numbers, and float() does not take them


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: MemoryConfig(2, 2, eta=HUGE), "eta"),
        (lambda: MemoryConfig(2, 2, eta=1e300), "eta"),
        (lambda: MemoryConfig(2, 2, max_norm=HUGE), "max_norm"),
        (lambda: MemoryConfig(2, 2, retries=1.0), "retries"),
        (lambda: MemoryConfig(2, 2, features=None), "features"),
        (lambda: MemoryConfig(2, 2, features=Polynomial()), "features"),
        (lambda: MemoryConfig(2, 2, module=Matrix), "module"),
        (lambda: MemoryConfig(2, 2, module="matrix"), "module"),
        (lambda: MemoryConfig(2, 2, objective=None), "objective"),
        (lambda: Schedule("linear", HUGE, 0, 5), "start"),
        (lambda: Schedule("linear", 1, 0, HUGE), "tokens"),
        (lambda: Polynomial(1, coefficients=(1, HUGE)), "coefficients"),
        (lambda: RandomFourier(kappa=HUGE), "kappa"),
        (lambda: CrossEntropy(scale=HUGE), "scale"),
        (lambda: Gate(rate=HUGE), "rate"),
        (lambda: Memory(None), "config"),
        (lambda: Memory(PLAIN.to_json()), "config"),
        (lambda: Memory(PLAIN, 3), "backend"),
        (lambda: choose(b"numpy"), "backend"),
        (lambda: Readout([[1.0, 2.0]]), "rows"),
        (lambda: Readout(np.ones((2, 3)), ids=[0, 1]), "ids"),
        (lambda: lookup(np.ones((1, 1, 2)), np.ones((1, 1, 2)), np.ones((1, 1), bool), "30"), "sharpness"),
        (lambda: lookup(np.ones((1, 1, 2)), np.ones((1, 1, 2)), np.ones((1, 1), bool), np.ones(2)), "sharpness"),
        (lambda: merge([Memory(PLAIN).init()], ["a"]), "weights"),
        (lambda: merge([Memory(PLAIN).init()] * 2, [1e308, 1e308]), "weights"),
        (lambda: stack([Memory(PLAIN).init(), Memory(PLAIN.replace(theta=0.5)).init()]), "momentum.W"),
        (lambda: Memory(PLAIN).observe(Memory(PLAIN).init(), np.ones((1, D_K)), {1: np.ones((1, D_V))}), "targets"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(make, key):
    with pytest.raises(InvalidParamError) as caught:
        make()
    assert caught.value.key == key


def test_states_may_come_from_an_iterator():
    state = Memory(PLAIN).init()
    assert stack(iter([state, state])).batch == (2,)
    assert merge(iter([state, state])).batch == ()


def test_small_functions_bear_any_numbers():
    rng = np.random.default_rng(0)
    gate, p = Gate(), rng.random((3, 5, 2)).astype(np.float32)
    f = gate_features(rng.random((3, 5)).astype(np.float32), rng.random((3, 5)).astype(np.float32))
    p[0, 0], p[1, 1], p[2, 2], f[0, 1], f[1, 2] = 1e-45, 0, np.nan, np.inf, 1e30
    state = gate.init(3)
    for call in (gate.update, gate.blend, gate.responsibilities):
        call(state, f, p)
    assert np.isfinite(gate.weights(state, f)).all()
    assert np.isfinite(newton_schulz(np.array([[1e-30, 1.0], [0.0, 1e-35]], np.float32))).all()
    read = lookup(np.ones((1, 1, 2)), np.eye(2)[None], np.ones((1, 2), bool), 1e308)
    assert read.weights.tolist() == [[[0.5, 0.5]]]
    for feature_map in (
        Identity(),
        Polynomial(3),
        Exponential(features=8),
        RandomFourier(8),
        WinnerTakeAll(8, 2),
    ):
        features = Features(map=feature_map, projection=2)
        features.phi(
            features.project(np.full((2, 3), 1e25, np.float32), features.constants(3, 0)),
            features.constants(3, 0),
        )


# --- snapshots between configurations ------------------------------------------------------------------


@pytest.mark.parametrize("source", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("target", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_snapshot_fits_other_widths(source, target, dtype):
    one = Memory(PLAIN.replace(window_dtype=source))
    other = Memory(PLAIN.replace(window_dtype=target, dtype=dtype))
    keys = np.arange(5 * D_K, dtype=np.float32).reshape(5, D_K)  # up to 119: exact in all of them
    state, _ = one.observe(one.init(), keys, keys[:, :D_V])
    found = other.restore(snapshot(state))
    assert (
        other._learner.decode(found.window["key"]).tolist()
        == one._learner.decode(state.window["key"]).tolist()
    )
    assert found.parameters["W"].dtype == dtype
    assert other.observe(found, keys, keys[:, :D_V])[1].learned == 6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("counters.seen", np.array(5.0)),
        ("counters.seen", np.array(np.nan)),
        ("counters.filled", np.array(True)),
        ("counters.seen", np.array(2**63, np.uint64)),
        ("parameters.W", np.ones((D_K, D_V), complex)),
        ("parameters.W", np.ones((D_K, D_V), object)),
        ("parameters.W", np.ones((D_K, D_V), np.uint16)),
        ("parameters.W", np.full((D_K, D_V), "a")),
        ("parameters.W", np.full((D_K, D_V), 1e300)),
        ("window.key", np.full((5, D_K), np.nan)),
        ("window.weight", np.full(3, np.inf)),
        (3, np.ones(1)),
    ],
)
def test_arrays_that_are_no_snapshot(name, value):
    memory = Memory(PLAIN)
    arrays = snapshot(Stream(PLAIN, batch=()).feed(memory, memory.init()))
    with pytest.raises(InvalidParamError):
        memory.restore({**arrays, name: value})
    for nothing in ({}, None, []):
        with pytest.raises(InvalidParamError):
            memory.restore(nothing)


def test_a_snapshot_may_hold_lists():
    memory = Memory(PLAIN)
    state = Stream(PLAIN).feed(memory, memory.init((2, 3)))
    arrays = {name: array.tolist() for name, array in snapshot(state).items()}
    assert not differing(state, memory.restore(arrays))


def test_doctests():
    assert doctest.testmod(_checks).failed == 0
