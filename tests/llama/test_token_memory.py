"""The memory beside a model, against its equations written out slowly in float64."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_kit.errors import InvalidParamError, ModelError
from atlas_kit.llama import FakeEngine
from atlas_kit.llama.engine import Feed
from atlas_kit.llama.gating import MOST_WEIGHT
from atlas_kit.llama.output_matrix import OutputRows
from atlas_kit.llama.reading import most_likely, summarize
from atlas_kit.llama.reading_ahead import read_ahead
from atlas_kit.llama.token_memory import (
    ETA_BOUND,
    ETA_RATE,
    RECENT,
    TokenMemory,
)
from atlas_kit.settings.atlas_settings import AtlasSettings

V, E = 40, 12
SMALL = AtlasSettings(
    window_size=14,
    memory_dim=6,
    omega_window=12,
    chunk_size=4,
    candidates=6,
    learning_rate=0.5,
    features="polynomial",
)


class Model:
    """A language model of two matrices: logits ``cap(scale (W h + b))`` of states that depend on three tokens."""

    def __init__(self, *, scale=1.0, softcap=None, biased=False, size=1.0, seed=0):
        random = np.random.default_rng(seed)
        self.embedding = random.standard_normal((V, E))
        self.matrix = (size * random.standard_normal((V, E))).astype(np.float32)
        bias = random.standard_normal(V).astype(np.float32) if biased else None
        self.rows = OutputRows(self.matrix.__getitem__, V, E, bias=bias, scale=scale, softcap=softcap)

    def outputs(self, tokens):
        """Return hidden states and logits, float32."""
        hidden = np.zeros((len(tokens), E))
        for back, weight in enumerate((1.0, 0.6, 0.3)):
            hidden[back:] += weight * self.embedding[tokens[: len(tokens) - back]]
        hidden = hidden.astype(np.float32)
        return hidden, self.rows.logits(hidden, self.matrix)


def text(count, seed=0):
    """Tokens that repeat themselves with errors."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, V, 9).tolist()
    while len(tokens) < count:
        start = int(random.integers(0, len(tokens) - 4))
        tokens += [*tokens[start : start + int(random.integers(2, 7))], int(random.integers(0, V))]
    return np.array(tokens[:count])


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


class Reference:
    """One token at a time, in float64, from the equations; candidates and steps as the documents say."""

    def __init__(self, memory: TokenMemory):
        self.s, self.rows, config = memory.settings, memory.rows, memory.memory.config
        self.R = self.rows.whole().astype("f8")
        self.mu = self.rows.mean.astype("f8")
        self.P = memory.memory._learner.constants.get("projection")  # fixed random directions
        # a float64 product would now and then round to another 16-bit key
        self.project, self.constants = config.features.project, memory.memory._learner.constants
        self.ranking, self.gate = config.ranking, config.gate
        self.c = config.omega_window
        self.learns, self.window = self.s.learning_rate > 0, self.s.window_size > 0
        self.experts = [0, *([1] * self.learns), *([2] * self.window)]
        self.M = 0.0
        self.w = np.zeros((len(self.experts) - 1, 5))
        self.w[:, 0] = -1
        self.rank = np.array(self.ranking.start) if self.ranking else None
        self.log_eta = 0.0
        self.kept: list[dict[str, Any]] = []  # what was learned, oldest first
        self.pending: list[dict[str, Any]] = []

    def key(self, h):
        return h.astype("f8") if self.P is None else h.astype("f8") @ self.P.astype("f8")

    def phi(self, p):
        x = p / np.linalg.norm(p)
        a = (0.0, 0.25, 1.0, 1.0)
        f = [
            a[degree] * math.prod(x[list(which)])
            for degree in range(1, self.s.polynomial_degree + 1)
            for which in itertools.combinations_with_replacement(range(len(x)), degree)
        ]
        f = np.array(f)
        return f / np.linalg.norm(f)

    def cap(self, z):
        return z if self.rows.softcap is None else self.rows.softcap * np.tanh(z / self.rows.softcap)

    def uncap(self, z):
        return z if self.rows.softcap is None else self.rows.softcap * np.arctanh(z / self.rows.softcap)

    @property
    def recent(self):
        return {row["token"] for row in self.kept[-RECENT:]}

    def candidates(self, tops):
        count = self.s.candidates or V
        chosen = set().union(*tops) | self.recent
        return sorted(range(V) if count >= V else chosen)

    def read(self, h, z, stream, row):
        """Return model, memory and window over the vocabulary, the blend, and what is learned from it later."""
        z = z.astype("f8")
        lse = np.log(np.exp(z - z.max()).sum()) + z.max()
        p = np.exp(z - lse)
        count = min(self.s.candidates or V, V)
        top = set(np.argsort(-z, kind="stable")[:count].tolist())
        some = self.candidates([top])
        changed, gain_of = z.copy(), np.zeros(V)
        if self.learns and not np.isscalar(self.M):
            m = self.phi(self.key(h)) @ self.M
            correction = self.rows.scale * (self.R @ m - self.mu @ m)
            changed[some] = self.cap(self.uncap(z[some]) + correction[some])
        with_memory = softmax(changed)
        moved = changed - z
        gain_of[some] = moved[some]
        gain_of = gain_of - (with_memory[some] * moved[some]).sum()
        kept = self.kept[-self.s.window_size :] if self.window else []
        window, similarity, length, confidence, features = np.zeros(V), -1.0, 0.0, 0.0, np.empty((0, 3))
        weights = np.empty(0)
        if kept:
            features = np.array([self.compare(h, stream, row, one, kept[0]["row"]) for one in kept])
            score = features @ self.rank
            weights, best = softmax(score), int(score.argmax())
            for weight, one in zip(weights, kept, strict=True):
                window[one["token"]] += weight
            similarity, length = features[:, 0].max(), features[best, 1]
            confidence = window[kept[best]["token"]]
        entropy = -(p * np.log(p)).sum()
        f = np.array([1, 10 * (similarity - 0.8), entropy - 2, length - 1.5, 2 * confidence - 1])
        if not self.window:
            f[[1, 3, 4]] = 0
        share = np.zeros(3)
        if self.s.blend_ratio == "adaptive":
            share[self.experts] = softmax(np.concatenate(([0.0], self.w @ f)))
        else:
            share[2] = self.s.blend_ratio
            share[int(self.learns)] = 1 - self.s.blend_ratio
        if not kept:
            share[2] = 0
        share[2] = min(share[2], MOST_WEIGHT * share.sum())
        if share[:2].sum() <= 0:
            share[0] = 1 - MOST_WEIGHT
        share /= share.sum()
        blend = share @ np.stack((p, with_memory, window))
        return {
            "h": h, "lse": lse, "top": top, "row": row, "f": f, "p": (p, with_memory, window), "blend": blend,
            "weights": weights, "features": features, "slots": [one["token"] for one in kept], "gain": gain_of,
            "share": share,
        }  # fmt: skip

    def compare(self, h, stream, row, one, oldest):
        """Return (cosine, log2(1 + match), -log age) of a slot."""
        q, k = self.key(h), one["key"]
        match = 0
        while match < 16 and one["row"] - match > oldest and row - match >= 0:
            if stream[one["row"] - match] != stream[row - match]:
                break
            match += 1
        cosine = q @ k / (np.linalg.norm(q) * np.linalg.norm(k))
        return cosine, math.log2(1 + match), -math.log(row - one["row"])

    def learn(self, found, token):
        key = (
            self.key(found["h"].astype("f4"))
            if self.P is None
            else self.project(found["h"][None], self.constants)[0]
        )
        self.pending.append({**found, "token": int(token), "key": key.astype("f2").astype("f8")})
        if len(self.pending) == self.s.chunk_size:
            self.step()

    def step(self):
        new, self.pending = self.pending, []
        started = bool(self.kept)
        given = np.array([[one["p"][k][one["token"]] for k in self.experts] for one in new])
        share = np.array([softmax(np.concatenate(([0.0], self.w @ one["f"]))) for one in new])
        posterior = share * given / (share * given).sum(axis=1, keepdims=True)
        if self.window and started:
            slopes = []
            for one in new:
                hit = np.array(one["slots"]) == one["token"]
                p = one["weights"][hit].sum()
                mean = one["weights"] @ one["features"]
                right = one["weights"][hit] @ one["features"][hit]
                slopes.append(right / p - mean if p > 1e-12 else np.zeros(3))
            gradient = np.clip((posterior[:, -1:] * np.array(slopes)).mean(axis=0), -1, 1)
            self.rank = np.maximum(self.rank + np.array(self.ranking.rates) * gradient, 0)
        if started or not self.window:
            gradient = (share - posterior)[:, 1:].T @ np.array([one["f"] for one in new]) / len(new)
            norm = math.sqrt((gradient**2).sum())
            self.w = self.w - self.gate.rate * gradient / max(norm, 1)
        self.kept += new
        if self.learns:
            if self.s.blend_ratio == "adaptive":
                # weighed by how likely it was the memory that knew: the expert behind the model
                gain = np.array([one["gain"][one["token"]] for one in new]) * posterior[:, 1]
                size = math.sqrt((gain**2).mean())
                if size > 0:
                    self.log_eta += ETA_RATE * gain.mean() / size
                    self.log_eta = min(max(self.log_eta, -ETA_BOUND), ETA_BOUND)
            self.descend(new)

    def descend(self, new):
        """Take a gradient step of the cross-entropy of the last c tokens at the present M."""
        if len(self.kept) <= self.s.warmup_tokens:
            return
        some = self.candidates([one["top"] for one in new])
        gradient = 0.0
        for one in self.kept[-max(self.c, len(new)) :]:
            phi, h = self.phi(one["key"]), one["h"].astype("f8")
            m = 0.0 if np.isscalar(self.M) else phi @ self.M
            bias = 0 if self.rows.bias is None else self.rows.bias[some]
            scale, R = self.rows.scale, self.R[some]
            raw = scale * (R @ h + bias)
            inner = raw + (0.0 if np.isscalar(m) else scale * (R @ m - self.mu @ m))
            z = self.cap(inner)
            rest = max(np.exp(one["lse"]) - np.exp(self.cap(raw)).sum(), 0) if len(some) < V else 0
            total = np.exp(z).sum() + rest
            dz = np.exp(z) / total
            if one["token"] in some:
                dz[some.index(one["token"])] -= 1
            if self.rows.softcap is not None:
                dz = dz * (1 - (z / self.rows.softcap) ** 2)
            dm = scale * (dz @ R - dz.sum() * self.mu)
            gradient = gradient + np.outer(phi, dm)
        self.M = self.M - self.s.learning_rate * math.exp(self.log_eta) * gradient


def compare(model, settings, tokens, parts=(1,), tolerance=5e-3):
    """Let both read, and compare what they say of every token of the vocabulary."""
    memory = TokenMemory(model.rows, settings)
    reference = Reference(memory)
    hidden, logits = model.outputs(tokens)
    at, sizes = 0, itertools.cycle(parts)
    while at < len(tokens) - 1:
        end = min(at + next(sizes), at + memory.room, len(tokens) - 1)
        reading = memory.read(hidden[at:end], logits[at:end], tokens[at:end])
        following = tokens[at + 1 : end + 1]
        for row in range(end - at):
            expected = reference.read(hidden[at + row], logits[at + row], tokens, at + row)
            found = reading.log_probabilities(row)
            assert np.exp(found.astype("f8")).sum() == pytest.approx(1, abs=1e-5)
            np.testing.assert_allclose(found, np.log(expected["blend"]), atol=tolerance)
            np.testing.assert_allclose(reading.weights[row], expected["share"], atol=tolerance)
            token = following[row : row + 1]
            one = reading.probabilities_of(following)[row]
            np.testing.assert_allclose(
                one, [part[token[0]] for part in expected["p"]], rtol=5 * tolerance, atol=1e-6
            )
            expected_gain = expected["gain"][token[0]]
            if model.rows.softcap is None and reading.tokens.size:
                assert reading.gain(following)[row] == pytest.approx(
                    expected_gain, abs=tolerance, rel=tolerance
                )
            reference.learn(expected, token[0])
        given = memory.learn(reading, following)
        np.testing.assert_array_equal(given, reading.probabilities_of(following))
        at = end
    assert memory.tokens_seen == len(tokens) - 1
    return memory, reference


MODELS = {
    "plain": {},
    "scaled": {"scale": 0.25, "size": 3.0},
    "capped": {"softcap": 20.0},
    "biased": {"biased": True},
    "all": {"scale": 0.5, "softcap": 12.0, "biased": True, "size": 1.5},
}
KINDS = {
    "atlas": {},
    "exact": {"candidates": 0},
    "more candidates than tokens": {"candidates": 256},
    "one candidate": {"candidates": 1},
    "window": {"learning_rate": 0},
    "learned": {"window_size": 0},
    "learned, exact": {"window_size": 0, "candidates": 0},
    "fixed": {"blend_ratio": 0.3},
    "window only": {"blend_ratio": 1.0},
    "no window in the blend": {"blend_ratio": 0.0},
    "no ranking": {"ranking": False},
    "degree 1": {"polynomial_degree": 1},
    "degree 3": {"polynomial_degree": 3, "memory_dim": 4},
    "no projection": {"memory_dim": 12},
    "a window of one": {"window_size": 1},
    "warm-up": {"warmup_tokens": 12},
    "long steps": {"chunk_size": 12},
    "short steps": {"chunk_size": 1, "omega_window": 3},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_does_what_its_equations_say(kind):
    compare(Model(), SMALL.replace(**KINDS[kind]), text(45))


@pytest.mark.parametrize("kind", ["atlas", "exact", "learned"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_corrected_as_it_computes(model, kind):
    compare(Model(**MODELS[model]), SMALL.replace(**KINDS[kind]), text(45, 1))


@pytest.mark.parametrize("parts", [(4,), (3, 1), (2, 7)])
def test_rows_that_are_read_together(parts):
    compare(Model(), SMALL, text(45, 2), parts)


def test_a_long_text():
    memory, reference = compare(Model(), SMALL.replace(window_size=60), text(220, 3), (4,), 1e-2)
    np.testing.assert_allclose(memory.state.gate["rank"], reference.rank, rtol=1e-2)
    np.testing.assert_allclose(memory.state.gate["w"], reference.w, atol=1e-2)
    np.testing.assert_allclose(memory.state.parameters["W"], reference.M, atol=2e-2)
    assert memory.learning_rate == pytest.approx(0.5 * math.exp(reference.log_eta), rel=1e-3)


# --- splits -----------------------------------------------------------------------------------------------


def read_all(memory, model, tokens, cuts=(), score=True):
    """Read in parts that end at ``cuts``; return probabilities (n, 4)."""
    hidden, logits = model.outputs(tokens)
    found, at = [], 0
    ends = [*sorted(set(cuts) & set(range(1, len(tokens) - 1))), len(tokens) - 1]
    for stop in ends:
        while at < stop:
            end = min(stop, at + memory.room)
            reading = memory.read(hidden[at:end], logits[at:end], tokens[at:end])
            p = memory.learn(reading, tokens[at + 1 : end + 1])
            found.append(np.column_stack((p, reading.blended(p))))
            at = end
    return np.concatenate(found)


WHOLE: dict[str, Any] = {}


@settings(max_examples=25)
@given(st.sets(st.integers(1, 78), max_size=60), st.sampled_from(["atlas", "learned", "window", "exact"]))
def test_any_split_gives_the_same(cuts, kind):
    model, tokens, chosen = Model(), text(80, 4), SMALL.replace(**KINDS[kind])
    if kind not in WHOLE:
        memory = TokenMemory(model.rows, chosen)
        WHOLE[kind] = memory, read_all(memory, model, tokens)
    whole, expected = WHOLE[kind]
    memory = TokenMemory(model.rows, chosen)
    np.testing.assert_allclose(read_all(memory, model, tokens, cuts), expected, rtol=1e-4, atol=1e-6)
    for group in ("parameters", "gate", "window"):
        for name, array in getattr(whole.state, group).items():
            np.testing.assert_allclose(getattr(memory.state, group)[name], array, rtol=1e-4, atol=1e-4)
    assert memory.state_bytes == whole.state_bytes


# --- edges ------------------------------------------------------------------------------------------------


def test_before_anything_was_learned_the_model_answers():
    model = Model()
    hidden, logits = model.outputs(text(1))
    for kind in KINDS.values():
        reading = TokenMemory(model.rows, SMALL.replace(**kind)).read(hidden, logits, text(1))
        expected = logits[0] - np.log(np.exp(logits[0].astype("f8")).sum())
        np.testing.assert_allclose(reading.log_probabilities(), expected, atol=1e-5)
        assert reading.weights[0, 2] == 0
        assert len(reading) == 1


@pytest.mark.parametrize("shift", [-2000.0, 2000.0])
def test_logits_of_any_size(shift):
    model, tokens = Model(), text(30)
    hidden, logits = model.outputs(tokens)
    memory = TokenMemory(model.rows, SMALL.replace(learning_rate=0))
    for at in range(0, 28, 4):
        reading = memory.read(
            hidden[at : at + 4], logits[at : at + 4] + np.float32(shift), tokens[at : at + 4]
        )
        total = np.exp(reading.log_probabilities(1).astype("f8")).sum()
        assert total == pytest.approx(1, abs=1e-3)
        assert np.isfinite(memory.learn(reading, tokens[at + 1 : at + 5])).all()


def test_tokens_that_the_model_rules_out():
    model, tokens = Model(), text(40)
    hidden, logits = model.outputs(tokens)
    out = np.setdiff1d(np.arange(V), tokens)[:3]
    logits[:, out] = -np.inf
    for kind in ("atlas", "exact", "learned"):
        memory = TokenMemory(model.rows, SMALL.replace(**KINDS[kind]))
        memory._checked = True
        for at in range(0, 36, 4):
            reading = memory.read(hidden[at : at + 4], logits[at : at + 4], tokens[at : at + 4])
            logp = reading.log_probabilities(2)
            assert np.exp(logp.astype("f8")).sum() == pytest.approx(1, abs=1e-5)
            assert (logp[out] < -60).all()
            assert np.isfinite(reading.gain(tokens[at + 1 : at + 5])).all()
            memory.learn(reading, tokens[at + 1 : at + 5])
        assert kind == "exact" or memory.log_eta != 0


@pytest.mark.parametrize("factor", [1.0, 1e3, 1e6, 1e36])
@pytest.mark.parametrize("model", [Model(), Model(softcap=30.0)], ids=["plain", "softcap"])
def test_corrections_of_any_size(factor, model):
    """What far too large steps have made: every token keeps a probability, and nobody is warned."""
    tokens = text(60)
    hidden, logits = model.outputs(tokens)
    memory = TokenMemory(model.rows, SMALL)
    for at in range(0, 56, 4):
        if at == 20:
            parameters = {
                name: (array * np.float32(factor)) for name, array in memory.state.parameters.items()
            }
            memory.state = dataclasses.replace(memory.state, parameters=parameters)
        reading = memory.read(hidden[at : at + 4], logits[at : at + 4], tokens[at : at + 4])
        for row in range(4):
            assert np.exp(reading.log_probabilities(row).astype("f8")).sum() == pytest.approx(1, abs=1e-3)
        change = reading.corrected.astype("f16") - reading.lse[:, None]
        rest = 1 - np.exp(reading.own.astype("f16") - reading.lse[:, None]).sum(axis=1)
        expected = reading.lse + np.logaddexp.reduce(
            np.column_stack((np.log(np.maximum(rest, 0) + 1e-30), change)), 1
        )
        np.testing.assert_allclose(reading.log_z.astype("f8"), expected.astype("f8"), rtol=1e-5, atol=1e-5)
        found = memory.learn(reading, tokens[at + 1 : at + 5])
        assert np.isfinite(found).all()
        assert (found <= 1 + 1e-6).all()
    for array in memory.state.parameters.values():
        assert np.isfinite(array).all()


def test_a_model_that_reads_out_otherwise_is_found_out():
    model = Model()
    hidden, logits = model.outputs(text(3))
    with pytest.raises(ModelError, match="do not follow") as caught:
        TokenMemory(model.rows, SMALL).read(hidden, logits[:, ::-1], text(3))
    assert "learning_rate=0" in caught.value.hint
    TokenMemory(model.rows, SMALL.replace(learning_rate=0)).read(hidden, logits[:, ::-1], text(3))


def test_more_tokens_than_a_step_has_room_for():
    model = Model()
    hidden, logits = model.outputs(text(9))
    memory = TokenMemory(model.rows, SMALL)
    reading = memory.read(hidden[:5], logits[:5], text(9)[:5])
    with pytest.raises(InvalidParamError, match="room for 4"):
        memory.learn(reading, text(9)[1:6])


def test_states_that_are_not_finite_do_no_lasting_harm():
    model, tokens = Model(), text(60)
    hidden, logits = model.outputs(tokens)
    memory = TokenMemory(model.rows, SMALL)
    hidden[7] = np.nan
    hidden[13] = 1e30
    memory._checked = True
    with np.errstate(all="ignore"):
        for at in range(0, 56, 4):
            reading = memory.read(hidden[at : at + 4], logits[at : at + 4], tokens[at : at + 4])
            p = memory.learn(reading, tokens[at + 1 : at + 5])
            if at > 16:
                assert np.isfinite(p).all()
                assert np.isfinite(reading.blended(p)).all()
    for array in memory.state.parameters.values():
        assert np.isfinite(array).all()


def test_a_step_that_is_put_off_is_the_same_step():
    model, tokens = Model(), text(80)
    hidden, logits = model.outputs(tokens)
    now, later = TokenMemory(model.rows, SMALL), TokenMemory(model.rows, SMALL)
    due = 0
    for at in range(70):
        row = slice(at, at + 1)
        for memory in (now, later):
            reading = memory.read(hidden[row], logits[row], tokens[row])
            memory.learn(reading, tokens[at + 1 : at + 2], put_off=memory is later)
        assert not now.due
        due += later.due
        assert later.room == now.room
        assert later.tokens_seen == now.tokens_seen
    assert due == 70 // SMALL.chunk_size
    assert later.pin().counters["learned"] == now.pin().counters["learned"]
    for group, arrays in now.state.groups().items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(getattr(later.state, group)[name], array)
    for name, array in now.waiting().items():
        np.testing.assert_array_equal(later.waiting()[name], array)


def test_states_read_ahead_are_read_the_same():
    """Side by side, memories of two kinds; one asks for another state than was read ahead."""
    model, tokens = Model(), text(80)
    hidden, logits = model.outputs(tokens)
    settings = [SMALL, SMALL, SMALL.replace(memory_dim=5), SMALL, SMALL.replace(learning_rate=0)]
    alone, ahead = ([TokenMemory(model.rows, one) for one in settings] for _ in range(2))
    assert alone[0].memory is ahead[3].memory is not ahead[2].memory
    for at in range(40):
        rows = [at, at + 7, at + 3, at + 1, at]
        read_ahead(ahead, hidden[rows], logits[rows], tokens[rows])
        rows[3] = at + 2
        for one, other, row in zip(alone, ahead, rows, strict=True):
            place = slice(row, row + 1)
            expected = one.read(hidden[place], logits[place], tokens[place])
            found = other.read(hidden[place], logits[place], tokens[place])
            for name in ("corrected", "log_z", "weights", "features"):
                assert getattr(found, name).tobytes() == getattr(expected, name).tobytes()
            assert found.window.weights.tobytes() == expected.window.weights.tobytes()
            one.learn(expected, tokens[row + 1 : row + 2])
            other.learn(found, tokens[row + 1 : row + 2], put_off=True)


def test_watching_learns_nothing():
    model, tokens = Model(), text(60)
    memory = TokenMemory(model.rows, SMALL)
    read_all(memory, model, tokens[:31])
    before = {name: array.copy() for name, array in memory.waiting().items()}
    kept = {name: array.copy() for name, array in memory.state.parameters.items()}
    hidden, logits = model.outputs(tokens)
    together = memory.read(hidden[30:50], logits[30:50], tokens[30:50])
    expected = together.probabilities_of(tokens[31:51])
    found = []
    for at in range(30, 50):
        reading = memory.read(hidden[at : at + 1], logits[at : at + 1], tokens[at : at + 1])
        found.append(memory.watch(reading, tokens[at + 1 : at + 2]))
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-4, atol=1e-7)
    after = memory.waiting()
    assert after.keys() == before.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    for name, array in kept.items():
        np.testing.assert_array_equal(memory.state.parameters[name], array)


def test_resetting_is_starting_anew():
    model, tokens = Model(), text(60)
    memory = TokenMemory(model.rows, SMALL)
    first = read_all(memory, model, tokens)
    memory.reset()
    assert memory.tokens_seen == 0
    np.testing.assert_array_equal(read_all(memory, model, tokens), first)


def test_what_is_kept_does_not_grow():
    model = Model()
    memory = TokenMemory(model.rows, SMALL)
    tokens = text(1500)
    sizes = []
    for start in range(0, 1400, 100):
        read_all(memory, model, tokens[start : start + 101])
        sizes.append(memory.state_bytes)
    assert len(set(sizes[-3:])) == 1  # 1,024 recent tokens fill up first
    assert memory.stats()["tokens_seen"] == 1400
    assert memory.stats()["window"] == 14


# --- keeping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4, 5, 30, 31, 33])
def test_going_on_from_what_was_kept(count):
    model, tokens = Model(), text(70)
    memory = TokenMemory(model.rows, SMALL)
    read_all(memory, model, tokens[: count + 1])
    state = dataclasses.replace(memory.state)
    state = memory.memory.init() if count == 0 else copied(state)
    waiting = {name: array.copy() for name, array in memory.waiting().items()}
    expected = read_all(memory, model, tokens[count:])
    other = TokenMemory(model.rows, SMALL)
    other.restore(state, waiting)
    np.testing.assert_array_equal(read_all(other, model, tokens[count:]), expected)
    assert other.stats() == memory.stats()


def copied(state):
    groups = ("parameters", "momentum", "window", "adaptation", "gate", "counters")
    return dataclasses.replace(
        state, **{g: {n: np.array(a) for n, a in getattr(state, g).items()} for g in groups}
    )


DAMAGES = {
    "another width": lambda w: {**w, "hidden": w["hidden"][:, :5]},
    "fewer rows": lambda w: {**w, "lse": w["lse"][:1]},
    "more than a step": lambda w: {
        name: array if name in ("recent", "log_eta") else np.concatenate((array, array))
        for name, array in w.items()
    },
    "tokens that are none": lambda w: {**w, "token": w["token"] + V},
    "negative tokens": lambda w: {**w, "recent": w["recent"] - V},
    "tokens with fractions": lambda w: {**w, "token": w["token"] + 0.5},
    "candidates that are none": lambda w: {**w, "top": w["top"] + V},
    "another number of candidates": lambda w: {**w, "top": w["top"][:, :2]},
    "recent in two rows": lambda w: {**w, "recent": w["recent"].reshape(2, -1)},
    "a step size beyond its bounds": lambda w: {**w, "log_eta": np.asarray(9.0)},
    "a step size that is no number": lambda w: {**w, "log_eta": np.asarray(math.nan)},
    "several step sizes": lambda w: {**w, "log_eta": np.zeros(3)},
    "something missing": lambda w: {name: array for name, array in w.items() if name != "slope"},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_waits_and_does_not_fit_is_refused(damage):
    model, tokens = Model(), text(70)
    memory = TokenMemory(model.rows, SMALL)
    read_all(memory, model, tokens[:32])
    waiting = memory.waiting()
    assert len(waiting["token"]) == 3
    with pytest.raises((InvalidParamError, KeyError), match=r"waited|slope"):
        TokenMemory(model.rows, SMALL).restore(copied(memory.state), DAMAGES[damage](waiting))


# --- settings ---------------------------------------------------------------------------------------------


def test_what_may_change_later():
    model, tokens = Model(), text(60)
    memory = TokenMemory(model.rows, SMALL)
    read_all(memory, model, tokens)
    memory.retune({"blend_ratio": 1.0, "learning_rate": 0.1, "candidates": 3})
    hidden, logits = model.outputs(tokens)
    reading = memory.read(hidden[-1:], logits[-1:], tokens[-1:])
    assert reading.weights[0, 2] == pytest.approx(1, abs=1e-5)
    assert reading.top.shape == (1, 3)
    assert np.isfinite(read_all(memory, model, tokens)).all()  # three tokens waited
    memory.retune({"candidates": 0})
    assert np.isfinite(read_all(memory, model, tokens)).all()
    memory.retune({})


@pytest.mark.parametrize(
    "changes",
    [{"window_size": 3}, {"memory_dim": 5}, {"chunk_size": 2}, {"learning_rate": 0}, {"ranking": False}],
)
def test_what_may_not(changes):
    memory = TokenMemory(Model().rows, SMALL)
    with pytest.raises(InvalidParamError, match="keeps its sizes"):
        memory.retune(changes)
    assert memory.settings == SMALL


# --- helpers ----------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(1, 60), st.integers(0, 2**32 - 1), st.booleans())
def test_the_most_likely_tokens(size, count, seed, ties):
    random = np.random.default_rng(seed)
    z = random.standard_normal(size).astype(np.float32)
    if ties:
        z = np.round(z)
    found = most_likely(z, count)
    assert len(found) == len(set(found.tolist())) == min(count, size)
    np.testing.assert_array_equal(np.sort(z[found])[::-1], np.sort(z)[::-1][:count])


def test_summaries():
    z = np.random.default_rng(0).standard_normal((3, 100)).astype(np.float32) * 4
    z[1, 5] = -np.inf
    top, lse, entropy = summarize(z, 7)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.exp(z.astype("f8"))
        np.testing.assert_allclose(lse, np.log(p.sum(axis=1)), atol=1e-5)
        p /= p.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(entropy, -np.nansum(p * np.log(p), axis=1), atol=1e-5)
    assert top.shape == (3, 7)
    assert summarize(z, 0)[0].shape == (3, 0)


@pytest.mark.parametrize("size", [1e-40, 1.0, 1e4, 1e30])
def test_an_entropy_is_that_of_a_distribution(size):
    z = np.random.default_rng(0).standard_normal((20, 100)).astype(np.float32) * np.float32(size)
    z[1], z[2] = -size, 0
    z[2, 3:] = -np.inf
    _, _, entropy = summarize(z, 0)
    assert (entropy >= 0).all()
    np.testing.assert_allclose(entropy[1:3], np.log([100, 3]), rtol=1e-6)
    wide = z.astype(np.float64) - z.max(axis=1, keepdims=True)
    p = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(entropy, -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1), atol=2e-5)


# --- turns ---------------------------------------------------------------------------------------------------


def test_control_tokens_are_counted_as_they_come_and_anew():
    """What tokens since the last control token are is counted on the way, and found again after a restart."""
    settings = AtlasSettings(window_size=64, memory_dim=8)
    with FakeEngine(n_batch=64) as engine:
        memory, longest = TokenMemory(engine.output_rows(), settings), 16
        tokens = [1, 256, 256, 2, 3, 3, 256, *range(4, 30), 256, 5, 5, 6, 7, 8, 256, 9]
        out = engine.decode([Feed(0, tokens, 0, len(tokens))], hidden=True)[0]
        hidden, logits = np.array(out.hidden), np.array(out.logits)
        for at in range(len(tokens) - 1):
            memory.learn(memory.read(hidden[at : at + 1], logits[at : at + 1], np.array([tokens[at]])),
                         np.array([tokens[at + 1]]))  # fmt: skip
            if at < longest:  # the window is empty until then
                continue
            for current in (tokens[at + 1], 11, 256):
                every = [
                    one for one in memory._histories(np.array([current]), longest)[0].tolist() if one >= 0
                ]
                assert list(memory.history(current, longest)) == every
                assert memory.settled(current) == bool(memory._settled(np.array([current]))[0])
                counted, memory._plain = memory._plain, None
                assert list(memory.history(current, longest)) == every
                assert memory._plain_tokens == counted


def _turns(n_control: int = 256) -> list[int]:
    """Three turns that begin alike: a control token, two tokens of its form, and six of which the first are alike."""
    return [
        token for turn in range(3) for token in (n_control, 1, 2, 7, 8, 9, 10 + turn, 20 + turn, 30 + turn)
    ]


@pytest.mark.parametrize("at_once", [True, False])
def test_the_window_does_not_begin_a_turn_like_the_one_before(at_once):
    """Within four tokens behind a control token it has no weight, and no match goes across one, however it is read."""
    settings = AtlasSettings(window_size=64, memory_dim=8)
    with FakeEngine() as engine:
        rows, tokens = engine.output_rows(), np.array(_turns())
        assert rows.is_control(256)
        assert not rows.is_control(1)
        memory = TokenMemory(rows, settings)
        out = engine.decode([Feed(0, tokens.tolist(), 0, len(tokens))], hidden=True)[0]
        hidden, logits = np.array(out.hidden), np.array(out.logits)
        weights, at = [], 0
        while at < len(tokens) - 1:
            count = min(memory.room, len(tokens) - 1 - at) if at_once else 1
            reading = memory.read(hidden[at : at + count], logits[at : at + count], tokens[at : at + count])
            weights += reading.weights[:, 2].tolist()
            memory.learn(reading, tokens[at + 1 : at + 1 + count])
            at += count
        # what stands before the last turn's control token is no part of a match
        assert list(memory.history(33, 16)) == [1, 2, 7, 8, 9, 12, 22, 32, 33]
        assert [one for one in memory._histories(np.array([32, 33]), 16)[1].tolist() if one >= 0] == (
            [1, 2, 7, 8, 9, 12, 22, 32, 33]
        )
    since = [at % 9 for at in range(len(tokens) - 1)]
    known = [at >= 16 for at in range(len(tokens) - 1)]  # the first step has no window
    assert all(weight == 0 for weight, one in zip(weights, since, strict=True) if one < 4)
    assert all(weight > 0 for weight, one, has in zip(weights, since, known, strict=True) if one >= 4 and has)
