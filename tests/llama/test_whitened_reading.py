"""The whitened memory beside a model, against its equations written out slowly in float64."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama import reading as reading_module
from atlas_kit.llama import token_memory as token_memory_module
from atlas_kit.llama.gating import TRUSTED_AFTER
from atlas_kit.llama.output_matrix import KNOWN_EVENING, KNOWN_RIDGE, MOVED_LOGIT
from atlas_kit.llama.reading import Reading
from atlas_kit.llama.reading_ahead import read_ahead
from atlas_kit.llama.token_memory import BIAS_STEP, ETA_BOUND, ETA_RATE, TokenMemory, read_each
from atlas_kit.llama.whitened_reading import LEAST_LIFT, LIFT, bias_step, likely, likely_and_beside, moved
from atlas_kit.memory import WhitenedMemory
from atlas_kit.memory.whitened import whitening
from atlas_kit.settings.atlas_settings import GATE_START, WHITENED_AFTER, AtlasSettings
from tests.llama.test_token_memory import E, Model, V, softmax, text

SMALL = AtlasSettings(
    features="whitened", memory_rank=8, memory_dim=5, window_size=24, chunk_size=4, candidates=12, learning_rate=0.5,
    even_steps=24,
)  # fmt: skip


class Reference:
    """One token at a time, in float64: the learned part alone."""

    def __init__(self, memory: TokenMemory):
        self.rows, self.s = memory.rows, memory.settings
        self.R, self.mu = self.rows.whole().astype("f8"), self.rows.mean.astype("f8")
        self.Q = self.rows.even(np.eye(E))
        self.W = self.P = self.origin = None
        self.b, self.log_eta, self.steps = np.zeros(V), 0.0, 0
        self.seen: list[np.ndarray] = []
        self.pending: list[tuple] = []
        self.sample, self.varied, self.period = [], None, (0, 6)

    def vary(self, D):
        """Keep every so many of the steps' gradients, and make Q of six and of what was found before."""
        begun, end = self.period
        if (self.steps - begun) % ((end - begun) // 6) == 0:
            self.sample.append(D)
        if self.steps + 1 < end:
            return
        some = np.concatenate(self.sample).astype("f4").astype("f8")
        length = np.linalg.norm(some, axis=1)
        some *= np.minimum(1, 4 * np.median(length) / np.maximum(length, 1e-30))[:, None]
        C, k = some.T @ some / len(some), min(12, E)
        beside = 0.0
        if self.varied is not None:
            C, beside = (C + self.varied[0]) / 2, self.varied[1] * (E - k) / 2
        square, axes = np.linalg.eigh(C)
        square, axes = np.maximum(square[::-1], 0), axes[:, ::-1]
        rest = (square[k:].sum() + beside) / max(1, E - k)
        self.varied = (axes[:, :k] * square[:k]) @ axes[:, :k].T, rest
        known = np.append(square[:k], np.full(E - k, rest))
        q = (known + KNOWN_RIDGE * known.mean()) ** KNOWN_EVENING
        Q = (axes * q) @ axes.T
        rows = self.R - self.R.mean(axis=0)
        self.Q = Q * MOVED_LOGIT / (self.rows.scale**2 * np.einsum("nd,de,ne->n", rows, Q, rows).mean())
        self.sample, self.period = [], (end, 2 * end)

    def cap(self, z):
        return z if self.rows.softcap is None else self.rows.softcap * np.tanh(z / self.rows.softcap)

    def uncap(self, z):
        return z if self.rows.softcap is None else self.rows.softcap * np.arctanh(z / self.rows.softcap)

    def phi(self, h):
        x = (h - self.origin) @ self.P
        return x * min(1.0, 2.0 / np.linalg.norm(x))

    def learn(self, h, z, token, posterior_of):
        """Return what the memory gave to the token, having learned the tokens before it."""
        h, z = h.astype("f8"), z.astype("f8")
        top = np.argsort(-(z + LIFT * self.b * (self.b > LEAST_LIFT)), kind="stable")[: self.s.candidates]
        changed, moved = z.copy(), np.zeros(V)
        if self.W is not None:
            y = self.phi(h) @ self.W
            moved[top] = self.rows.scale * ((self.R[top] - self.mu) @ y) + self.b[top]
            changed[top] = self.cap(self.uncap(z[top]) + moved[top])
            moved = changed - z
        p = softmax(changed)
        slope = np.ones(V) if self.rows.softcap is None else 1 - np.square(changed / self.rows.softcap)
        g = np.zeros(V)
        g[top] = p[top] * slope[top]
        if token in top:
            g[token] -= slope[token]
        gain = moved[token] - (p[top] * moved[top]).sum()
        self.pending.append((h, g, gain, posterior_of(softmax(z)[token], p[token])))
        self.seen.append(h)
        if len(self.pending) == self.s.chunk_size:
            self.step()
        return p[token]

    def step(self):
        if self.W is not None:
            hidden, g, gain, posterior = (np.array(one) for one in zip(*self.pending, strict=True))
            asked = gain * posterior
            if self.steps and np.square(asked).mean() > 0:
                self.log_eta += ETA_RATE * asked.mean() / math.sqrt(np.square(asked).mean())
                self.log_eta = min(max(self.log_eta, -ETA_BOUND), ETA_BOUND)
            eta = self.s.learning_rate * math.exp(self.log_eta)
            slopes = self.rows.scale * (g @ (self.R - self.mu))
            D = slopes @ self.Q
            self.vary(slopes)
            for one, d in zip(hidden, D, strict=True):
                self.W -= eta * np.outer(self.phi(one), d)
            self.b -= BIAS_STEP * g.sum(axis=0)
            self.steps += 1
        elif len(self.seen) >= WHITENED_AFTER:
            states = np.array(self.seen).astype("f4").astype("f8")
            self.origin, self.P = whitening(states, min(self.s.memory_rank, E))
            self.W = np.zeros((self.P.shape[1], E))
        self.pending = []


def followed(memory, model, tokens, parts=(10**9,), start=0, end=None):
    """Return probabilities (n, 3) and gate weights (n, 3) of a text from ``start`` to ``end``, read in parts."""
    hidden, logits = model.outputs(tokens[:-1])
    found, weights, at, turn = [], [], start, 0
    end = len(tokens) - 1 if end is None else end
    while at < end:
        stop = min(at + parts[turn % len(parts)], end)
        turn += 1
        for reading, _, p in memory.follow(
            hidden[at:stop], logits[at:stop], tokens[at:stop], tokens[at + 1 : stop + 1]
        ):
            found.append(p)
            weights.append(reading.weights)
        at = stop
    return np.concatenate(found), np.concatenate(weights)


def test_a_young_memory_has_a_share_of_the_weight_that_the_gate_gives_it():
    model, tokens = Model(), text(700)
    memory = TokenMemory(model.rows, SMALL)
    hidden, logits = model.outputs(tokens[:-1])
    shares = []
    for reading, came, _ in memory.follow(hidden[:-1], logits[:-1], tokens[:-2], tokens[1:-1]):
        assert len(came)
        gate, trust = memory.memory.config.gate, memory.trust
        # ``follow`` learns before it goes on, so what is compared is a reading of the present state
        looks_at = reading.features[None]
        raw = gate.weights({"w": memory.present.gate["w"][None]}, looks_at)[0]
        again = memory.weights_of(memory.present.gate["w"][None], looks_at, np.ones((1, len(came)), bool))
        np.testing.assert_allclose(again[:, 1], raw[:, 1] * trust, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(again[:, 2], raw[:, 2], rtol=1e-4, atol=2e-6)
        np.testing.assert_allclose(again.sum(axis=1), 1)
        shares.append(trust)
    steps = int(memory.present.counters["steps"])
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[-1] == min(1, steps / TRUSTED_AFTER) > 0.5


@pytest.mark.parametrize("made", [{}, {"scale": 0.5}, {"softcap": 20.0, "biased": True}])
@pytest.mark.parametrize("parts", [(10**9,), (1,), (3, 1, 6)])
def test_it_is_what_its_equations_say(made, parts, monkeypatch):
    monkeypatch.setattr(
        token_memory_module, "TRUSTED_AFTER", 1e-9
    )  # the step size follows the gate's own weights
    model, tokens = Model(**made), text(700)
    memory = TokenMemory(model.rows, SMALL)
    p, weights = followed(memory, model, tokens, parts)
    reference = Reference(memory)
    hidden, logits = model.outputs(tokens[:-1])
    for place, (h, z, token) in enumerate(zip(hidden, logits, tokens[1:], strict=True)):

        def posterior_of(alone, learned, place=place):
            shares = weights[place] * (alone, learned, p[place, 2])
            return shares[1] / shares.sum()

        expected = reference.learn(h, z, int(token), posterior_of)
        assert p[place, 1] == pytest.approx(expected, rel=2e-3, abs=1e-6), place
    assert reference.steps > 40
    assert int(memory.state.counters["steps"]) == reference.steps
    assert memory.log_eta == pytest.approx(reference.log_eta, abs=1e-3)
    np.testing.assert_allclose(memory.state.parameters["W"], reference.W, atol=2e-3)
    np.testing.assert_allclose(memory.state.parameters["bias"][0], reference.b, atol=1e-3)
    learned, alone = (-np.log(p[560:, one]).mean() for one in (1, 0))
    assert learned < alone - 0.01


def test_nothing_is_corrected_before_the_states_are_whitened():
    model, tokens = Model(), text(560)
    p, _ = followed(TokenMemory(model.rows, SMALL), model, tokens)
    np.testing.assert_allclose(p[:512, 1], p[:512, 0], rtol=1e-5)
    assert abs(p[530:, 1] / p[530:, 0] - 1).max() > 1e-3


def test_the_windows_keys_are_made_anew_when_the_states_are_whitened():
    model, tokens = Model(), text(WHITENED_AFTER + 8)
    memory = TokenMemory(model.rows, SMALL.replace(window_size=1000))
    hidden, _ = model.outputs(tokens[:-1])
    followed(memory, model, tokens, end=WHITENED_AFTER - 4)
    before = np.array(memory.slots().keys)
    followed(memory, model, tokens, start=WHITENED_AFTER - 4)
    parameters, keys = memory.state.parameters, memory.slots().keys
    assert len(before) >= WHITENED_AFTER - 8
    x = (hidden[: len(keys)] - parameters["origin"]) @ parameters["P"]
    wanted = x[:, :5] / np.linalg.norm(x[:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose(keys[:WHITENED_AFTER], wanted[:WHITENED_AFTER], atol=2e-3)
    assert abs(before[:100] - keys[:100]).max() > 0.1
    assert memory.stats()["window"] == len(keys)


def test_asking_for_counts_changes_nothing(monkeypatch):
    """Metrics are asked for while another thread reads: what is still to be worked out is left to that thread."""
    model, tokens = Model(), text(WHITENED_AFTER + 20)
    memory = TokenMemory(model.rows, SMALL)
    followed(memory, model, tokens, end=len(tokens) - 2)
    with monkeypatch.context() as at_work:
        at_work.setattr(token_memory_module, "asked_for", None)
        stats = memory.stats()
        with pytest.raises(TypeError):  # something is to be worked out
            memory.waiting()
    waiting = memory.waiting()
    assert waiting["gradient"].shape == (len(waiting["token"]), E)
    assert memory.stats() == stats


def test_one_distribution_whatever_the_memory_says():
    model, tokens = Model(softcap=15.0), text(640)
    memory = TokenMemory(model.rows, SMALL)
    followed(memory, model, tokens)
    hidden, logits = model.outputs(tokens)
    for some in (slice(600, 601), slice(600, 603)):
        reading = memory.read(hidden[some], logits[some], tokens[some])
        for row in range(len(reading)):
            assert np.exp(reading.log_probabilities(row).astype("f8")).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("lifted", [False, True])
@pytest.mark.parametrize("blend", ["adaptive", 0.0, 0.5, 1.0])
def test_what_bounds_the_other_tokens_changes_nothing_of_the_likeliest(blend, lifted, monkeypatch):
    """Neither which they are nor their order nor a bit of their chances: only what cannot be among them is left out."""
    model, tokens = Model(), text(720)
    memory = TokenMemory(model.rows, SMALL.replace(blend_ratio=blend, window_size=300))
    followed(memory, model, tokens, end=640)
    if lifted:  # far down, so that likelier tokens are no candidates
        bias = memory.state.parameters["bias"].copy()
        bias[0, ::3] += 4
        memory.state.parameters["bias"] = bias
        memory._lift = None
    hidden, logits = model.outputs(tokens)
    looked, every = [], reading_module._least
    monkeypatch.setattr(
        reading_module, "_least", lambda chance, count: looked.append(len(chance)) or every(chance, count)
    )
    fewer = 0
    for at in range(640, 700):
        reading = memory.read(hidden[at : at + 1], logits[at : at + 1], tokens[at : at + 1])
        slowly = dataclasses.replace(reading, beside=None)
        for count in (1, 4, 12, 20):
            looked.clear()
            wanted, found = slowly.likeliest(count), reading.likeliest(count)
            assert (found is None) == (wanted is None)
            if found is not None:
                assert [one.tobytes() for one in found] == [one.tobytes() for one in wanted]
                fewer += looked[-1] < looked[0]
                with monkeypatch.context() as searched:  # as where a vocabulary is large
                    searched.setattr(reading_module, "FEW", 0)
                    again = reading.likeliest(count)
                assert [one.tobytes() for one in again] == [one.tobytes() for one in wanted]
        memory.watch(reading, tokens[at + 1 : at + 2])
    assert fewer or blend == 0.0


@pytest.mark.parametrize("softcap", [None, 9.0])
@pytest.mark.parametrize("learned", [0, 40, 560])
@pytest.mark.parametrize("outputs", ["plain", "one is ruled out", "too far", "no numbers"])
def test_one_token_alone_is_read_number_by_number(softcap, learned, outputs, monkeypatch):
    """What is said of one token is what several sessions would be told, to the bit, whatever the model gave."""
    model = Model()
    model.rows.softcap = softcap
    memories = [TokenMemory(model.rows, SMALL) for _ in range(2)]
    tokens = text(learned + 2)
    if learned:
        for memory in memories:
            followed(memory, model, tokens, end=learned)
    hidden, logits = (array[-1:].copy() for array in model.outputs(tokens))
    if outputs == "one is ruled out":
        logits[0, int(logits[0].argmax())] = -np.inf
    elif outputs == "too far":
        memories[0].state.parameters["bias"][:] = memories[1].state.parameters["bias"][:] = 1e4
        for memory in memories:
            memory._lift = None
    elif outputs == "no numbers":
        hidden[:] = np.nan
    monkeypatch.setattr(TokenMemory, "require_formula", lambda *_: None)
    current = int(tokens[-1])
    alone = read_each(memories[:1], hidden, [logits[0]], [current])[0]
    among = read_each(memories, np.repeat(hidden, 2, axis=0), [logits[0]] * 2, [current] * 2)[0]
    for field in dataclasses.fields(Reading):
        one, other = getattr(alone, field.name), getattr(among, field.name)
        if field.name == "slots":
            one, other = one.tokens, other.tokens
        if field.name == "window":
            assert [(x.tobytes(), x.dtype, x.shape) for x in vars(one).values()] == [
                (x.tobytes(), x.dtype, x.shape) for x in vars(other).values()
            ]
        elif isinstance(one, np.ndarray):
            same = (one.tobytes(), one.dtype, one.shape) == (other.tobytes(), other.dtype, other.shape)
            assert same, field.name
        else:
            assert one == other, field.name


def test_sessions_side_by_side_read_what_each_reads_alone():
    model = Model()
    texts = [text(count, seed=seed) for seed, count in enumerate((560, 600, 530, 40))]
    memories = [TokenMemory(model.rows, SMALL) for _ in texts]
    for memory, tokens in zip(memories, texts, strict=True):
        followed(memory, model, tokens)
    outputs = [model.outputs(tokens) for tokens in texts]
    hidden = np.array([one[0][-1] for one in outputs])
    logits, current = [one[1][-1] for one in outputs], [int(tokens[-1]) for tokens in texts]
    alone = [
        memory.read(hidden[row : row + 1], logits[row][None], np.array([current[row]]))
        for row, memory in enumerate(memories)
    ]
    read_ahead(memories, hidden, logits, current)
    for row, memory in enumerate(memories):
        together = memory.read(hidden[row : row + 1], logits[row][None], np.array([current[row]]))
        assert together.log_probabilities().tobytes() == alone[row].log_probabilities().tobytes()
        assert together.pull is not None
        assert together.pull.tobytes() == alone[row].pull.tobytes()


def test_a_state_depends_on_the_tokens_one_by_one_and_not_on_who_asked():
    model, tokens = Model(), text(620)
    plain, stopped = (TokenMemory(model.rows, SMALL) for _ in range(2))
    followed(plain, model, tokens, (1,))
    followed(stopped, model, tokens, (1,), end=302)
    kept, waiting = stopped.pin(), stopped.waiting()
    before = {name: array.tobytes() for name, array in kept.parameters.items()}
    restored = TokenMemory(model.rows, SMALL)
    restored.restore(kept, waiting)
    for memory in (stopped, restored):
        followed(memory, model, tokens, (1,), start=302)
        for name, array in plain.state.parameters.items():
            assert memory.state.parameters[name].tobytes() == array.tobytes(), name
        for name, array in plain.state.window.items():
            assert memory.state.window[name].tobytes() == array.tobytes(), name
    assert {name: array.tobytes() for name, array in kept.parameters.items()} == before


def test_a_pinned_state_stays_as_it_is_while_the_memory_learns():
    model, tokens = Model(), text(700)
    memory = TokenMemory(model.rows, SMALL)
    followed(memory, model, tokens[:601])
    state = memory.pin()
    before = {
        (group, name): array.tobytes()
        for group, arrays in state.groups().items()
        for name, array in arrays.items()
    }
    followed(memory, model, tokens[600:])
    after = {
        (group, name): array.tobytes()
        for group, arrays in state.groups().items()
        for name, array in arrays.items()
    }
    assert before == after
    assert memory.state.parameters["W"].tobytes() != state.parameters["W"].tobytes()


def test_what_waits_must_fit():
    model, tokens = Model(), text(40)
    memory = TokenMemory(model.rows, SMALL)
    followed(memory, model, tokens[:15])
    waiting = memory.waiting()
    assert waiting["gradient"].shape == (2, E)
    assert waiting["share"].shape == (2, 12)
    for name in ("gradient", "share"):
        with pytest.raises(InvalidParamError):
            TokenMemory(model.rows, SMALL).restore(memory.pin(), {**waiting, name: waiting[name][:, :-1]})


@pytest.mark.parametrize("count", [5, 12, 30])
def test_another_number_of_candidates_changes_nothing_that_waits(count):
    model, tokens = Model(), text(640)
    memory = TokenMemory(model.rows, SMALL)
    followed(memory, model, tokens[:603])
    memory.retune({"candidates": count})
    followed(memory, model, tokens[602:])
    assert np.isfinite(memory.state.parameters["W"]).all()
    assert int(memory.state.counters["seen"]) == 636


def test_states_that_are_no_numbers_are_left_out():
    model, tokens = Model(), text(700)
    hidden, logits = model.outputs(tokens[:-1])
    hidden[100], hidden[600] = np.nan, np.inf
    memory = TokenMemory(model.rows, SMALL)
    list(memory.follow(hidden, logits, tokens[:-1], tokens[1:]))
    assert int(memory.state.counters["dropped"]) == 2
    for arrays in memory.state.groups().values():
        for name, array in arrays.items():
            assert np.isfinite(array).all(), name


def test_without_a_learned_part_the_windows_keys_are_whitened():
    model, tokens = Model(), text(600)
    memory = TokenMemory(model.rows, SMALL.replace(learning_rate=0))
    p, weights = followed(memory, model, tokens)
    assert (p[:, 1] == p[:, 0]).all()
    assert (weights[:, 1] == 0).all()
    assert memory.whitened is not None
    assert memory.whitened.is_whitened(memory.state)
    assert "bias" not in memory.state.parameters


def test_the_gate_starts_with_little_weight_for_a_short_window():
    memory = TokenMemory(Model().rows, SMALL)
    assert memory.state.gate["w"].tolist() == [pytest.approx(row) for row in GATE_START]
    alone = TokenMemory(Model().rows, SMALL.replace(window_size=0))
    assert alone.state.gate["w"].tolist() == [pytest.approx(GATE_START[0])]


def test_candidates_and_bias_steps():
    z = np.array([0.0, 3.0, 1.0, 2.0], np.float32)
    assert likely(z, None, 2).tolist() == [1, 3]
    lift = (np.array([0, 2]), np.array([5.0, 0.5], np.float32))
    assert likely(z, lift, 2).tolist() == [0, 1]
    assert likely(z, lift, 9).tolist() == [0, 1, 2, 3]
    random = np.random.default_rng(0)
    for count in (1, 8, 60, 200):  # with few and with many times as many tokens as candidates
        z = random.standard_normal(4000).astype(np.float32)
        ids = np.sort(random.choice(4000, 300, replace=False))
        all_of = np.zeros(4000, np.float32)
        all_of[ids] = random.random(300) * 4
        wanted = np.sort(np.argsort(-(z + all_of))[:count])
        assert likely(z, (ids, all_of[ids]), count).tolist() == wanted.tolist()
        for given in (None, (ids, all_of[ids]), (ids[:0], all_of[:0]), (ids, np.full(300, 9, np.float32))):
            found, beside = likely_and_beside(z, given, count)
            assert np.delete(z, found).max() <= beside
    ids, change = bias_step(np.array([[3, 7], [1, 3]]), np.array([[0.5, 0.25], [0.1, -1.0]]), 2.0)
    assert ids.tolist() == [1, 3, 7]
    assert change.tolist() == pytest.approx([-0.2, 1.0, -0.5])


@pytest.mark.parametrize("n_vocab", [2, 40, 500])
def test_bias_steps_are_the_same_to_the_bit_however_tokens_are_summed(n_vocab, monkeypatch):
    random = np.random.default_rng(n_vocab)
    top = random.integers(n_vocab, size=(16, 12))
    share = random.standard_normal(top.shape).astype(np.float32)
    found = []
    for times in (0, 1000):
        monkeypatch.setattr("atlas_kit.llama.whitened_reading.FEW_TIMES", times)
        found.append(bias_step(top, share, 0.3))
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert [len(one) for one in bias_step(np.empty((0, 3), np.int64), np.empty((0, 3)), 1.0)] == [0, 0]


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_logits_that_a_model_rules_out_are_moved_by_nothing(softcap):
    own = np.array([[1.0, -np.inf, 2.0], [0.5, 0.0, 1.0]], np.float32)
    change = np.array([[0.5, 0.5, -0.5], [0.0, 1.0, 0.0]], np.float32)
    lse = np.log(np.exp(own.astype("f8")).sum(axis=1))
    with np.errstate(invalid="ignore"):
        corrected, log_z, before, behind, expected = moved(own, change, lse, softcap)
    assert np.isfinite(expected).all()
    assert np.isfinite(log_z).all()
    np.testing.assert_allclose(behind.sum(axis=1), 1)
    with np.errstate(invalid="ignore"):
        moves = np.where(np.isfinite(own), corrected - own, 0)
    np.testing.assert_allclose(expected, (behind * moves).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(before.sum(axis=1), 1)


def test_what_was_learned_can_be_forgotten_and_the_windows_keys_still_fit():
    pytest.importorskip("starlette")
    from atlas_kit.server.memories import forget_weights

    model, tokens = Model(), text(700)
    memory = TokenMemory(model.rows, SMALL)
    followed(memory, model, tokens)
    keys, P = memory.slots().keys.tobytes(), memory.state.parameters["P"].tobytes()
    forget_weights(memory, TokenMemory(model.rows, SMALL))
    assert (memory.state.parameters["W"] == 0).all()
    assert (memory.state.parameters["bias"] == 0).all()
    assert memory.state.parameters["P"].tobytes() == P
    assert memory.slots().keys.tobytes() == keys
    followed(memory, model, tokens)
    assert (memory.state.parameters["W"] != 0).any()


class Late:
    """Looks for something when somebody asks for it, and counts."""

    made, asked = 0, 0

    def __init__(self):
        self.find = None

    def begin(self, find):
        self.find, Late.made = find, Late.made + 1

    def found(self):
        if self.find is None:
            return None
        Late.asked += 1
        return self.find()

    def drop(self):
        self.find = None

    def __class_getitem__(cls, kind):
        return cls


@pytest.mark.parametrize("pinned", [False, True])
def test_directions_that_are_looked_for_beside_are_those_that_the_step_would_have_found(pinned, monkeypatch):
    """Whenever they are there: nothing but the next step and who takes the state looks at them."""
    model, tokens = Model(), text(760)
    beside, late = TokenMemory(model.rows, SMALL), None
    step = WhitenedMemory.step
    with monkeypatch.context() as patched:
        patched.setattr(WhitenedMemory, "step", lambda *given, later=None, **how: step(*given, **how))
        at_once = TokenMemory(model.rows, SMALL)
        expected, weights = followed(at_once, model, tokens)
    with monkeypatch.context() as patched:
        patched.setattr("atlas_kit.llama.token_memory.Looking", Late)
        late = TokenMemory(model.rows, SMALL)
    for memory in (beside, late):
        found = []
        for at in range(0, len(tokens) - 1, 10):
            found.append(followed(memory, model, tokens, start=at, end=min(at + 10, len(tokens) - 1)))
            if pinned:
                state = memory.pin()
                assert memory.pin() is state
                memory.release(state)
        p, w = (np.concatenate(parts) for parts in zip(*found, strict=True))
        assert np.allclose(p, expected, rtol=1e-4)
        assert np.allclose(w, weights, rtol=1e-3, atol=1e-6)
    assert Late.made >= 3
    assert Late.asked >= Late.made
    for name, array in beside.state.parameters.items():
        assert array.tobytes() == late.state.parameters[name].tobytes(), name
        np.testing.assert_allclose(array, at_once.state.parameters[name], atol=1e-4)
    assert beside.state.parameters["directions"].any()


def test_a_state_is_whole_whoever_looks_at_it(monkeypatch):
    model, tokens = (
        Model(),
        text(WHITENED_AFTER + 4 * 6 + 1),
    )  # a sample of six steps is full with the last of them
    monkeypatch.setattr("atlas_kit.llama.token_memory.Looking", Late)
    memory = TokenMemory(model.rows, SMALL)
    followed(memory, model, tokens)
    assert memory._looking.find is not None
    assert not memory.present.parameters["directions"].any()
    assert memory.state.parameters["directions"].any()
    assert memory.pin().parameters["directions"].any()
    assert memory._looking.find is None
    memory.reset()
    assert not memory.state.parameters["directions"].any()


def test_what_goes_wrong_while_it_is_looked_for_is_said_to_the_next_step(monkeypatch):
    model, tokens = Model(), text(WHITENED_AFTER + 4 * 8 + 1)
    monkeypatch.setattr("atlas_kit.memory.whitened.varying", lambda *_: 1 / 0)
    memory = TokenMemory(model.rows, SMALL)
    followed(memory, model, tokens, end=WHITENED_AFTER + 4 * 6)
    with pytest.raises(ZeroDivisionError):
        followed(memory, model, tokens, start=WHITENED_AFTER + 4 * 6, end=WHITENED_AFTER + 4 * 7)
    before = int(memory.state.counters["steps"])
    followed(memory, model, tokens, start=WHITENED_AFTER + 4 * 7)  # it goes on without
    assert int(memory.state.counters["steps"]) == before + 2
