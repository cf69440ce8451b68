"""Two memories on one text: against sessions that were run separately, and against the definitions."""

from __future__ import annotations

import doctest
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from atlas_kit.errors import InvalidParamError, WrongModelError
from atlas_kit.llama import AtlasSession, AtlasSettings, FakeEngine, Sampling
from atlas_kit.memory import snapshot
from atlas_kit.operations import behaviour as module
from atlas_kit.operations.behaviour import compare_behaviour, jensen_shannon, kullback_leibler, memory_beside

SMALL = AtlasSettings(window_size=64, memory_dim=16, omega_window=8, chunk_size=4)
ONE = "to be or not to be, that is the question. " * 6
TWO = "it was the best of times, it was the worst of times. " * 6
PROBE = "it was the worst question of times, or not to be"


def test_examples_computed_by_hand():
    result = doctest.testmod(module, extraglobs={"np": np})
    assert result.attempted >= 5
    assert not result.failed


@pytest.fixture
def pair(open_engine):
    """Return an engine, and two sessions on it that have read different texts; a sequence is left."""
    engine = open_engine(n_ctx=256, n_sequences=3)
    with AtlasSession(engine, SMALL) as a, AtlasSession(engine, SMALL) as b:
        a.feed(ONE)
        b.feed(TWO)
        yield engine, a, b


def alone(session, text):
    """Return what a session gives to a text that it reads by itself, from an empty context and without learning."""
    with session.aside():
        session.forget_context()
        return session.feed(text).logprob


def kept(session):
    arrays_of = snapshot(session.memory.state)
    stats = session.stats
    del stats["memory"]["row_cache_bytes"]
    return arrays_of, stats, session.context_tokens, session.position, session.memory.watched.tolist()


def same(x, y):
    assert x[1:] == y[1:]
    for name, array in x[0].items():
        np.testing.assert_array_equal(array, y[0][name])


def test_each_side_is_what_its_session_says_alone(pair):
    engine, a, b = pair
    expected = alone(a, PROBE), alone(b, PROBE)
    found = compare_behaviour(engine, a, b, PROBE)
    assert "".join(found.pieces).endswith(PROBE)
    assert len(found) == len(found.tokens) - 1 == len(expected[0])
    np.testing.assert_allclose(found.logprob[:, 0], expected[0][:, 0], atol=2e-4)
    np.testing.assert_allclose(found.logprob[:, 1], expected[0][:, 1], atol=2e-4)
    np.testing.assert_allclose(found.logprob[:, 2], expected[1][:, 1], atol=2e-4)
    np.testing.assert_allclose(found.gain, found.logprob[:, 2] - found.logprob[:, 1])
    assert found.perplexity["b"] == pytest.approx(np.exp(-found.logprob[:, 2].mean()))


def test_the_predictions_are_those_of_the_readings(pair):
    """By another path: the blend of readings in a session's own steps, over the whole vocabulary."""
    engine, a, b = pair
    found = compare_behaviour(engine, a, b, PROBE)
    blends = [[], []]

    def listen(hidden, logits, tokens, following):
        for session, rows in zip((a, b), blends, strict=True):
            for at in range(0, len(following), session.memory.room):
                step = slice(at, at + session.memory.room)
                reading = session.memory.read(hidden[step], logits[step], tokens[step])
                for row in range(len(reading)):
                    p = np.exp(reading.log_probabilities(row).astype(np.float64))
                    rows.append(p / p.sum())
                session.memory.watch(reading, following[step])

    with AtlasSession(engine, None) as reader:
        reader.run(reader.reading(reader.tokens_of(PROBE), listen=listen))
    for row, (p, q) in enumerate(zip(*blends, strict=True)):
        assert found.kl_ab[row] == pytest.approx(float((p * np.log(p / q)).sum()), abs=1e-4)
        assert found.kl_ba[row] == pytest.approx(float((q * np.log(q / p)).sum()), abs=1e-4)
        m = (p + q) / 2
        js = float((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()) / 2
        assert found.js[row] == pytest.approx(js, abs=1e-5)
        assert found.top[row, 1, 0] in np.flatnonzero(p >= p.max() - 1e-5)
        np.testing.assert_allclose(found.top_p[row, :, :, 2], q[found.top[row]], atol=1e-4)


def test_the_gate_and_the_experts_make_the_blend(pair):
    found = compare_behaviour(pair[0], pair[1], pair[2], PROBE)
    np.testing.assert_allclose(found.weights.sum(axis=2), 1, atol=1e-6)
    mixed = (found.weights * found.parts).sum(axis=2)
    np.testing.assert_allclose(np.log(mixed), found.logprob[:, 1:], atol=2e-4)


def test_nothing_is_learned_and_the_sessions_go_on_as_before(pair):
    engine, a, b = pair
    before = kept(a), kept(b)
    compare_behaviour(engine, a, b, PROBE)
    compare_behaviour(a, a, b, PROBE)  # a lends its own sequence
    same(kept(a), before[0])
    same(kept(b), before[1])
    compared = [token.id for token in a.generate(max_tokens=12, sampling=Sampling(temperature=0))]
    engine.forget(a.sequence)
    with AtlasSession(engine, SMALL) as c:
        c.feed(ONE)
        assert [t.id for t in c.generate(max_tokens=12, sampling=Sampling(temperature=0))] == compared


def test_a_session_that_lent_itself_learns_again():
    with AtlasSession(FakeEngine(n_ctx=256, n_sequences=1), SMALL) as session:
        session.feed(ONE)
        compare_behaviour(session, session, None, PROBE)
        seen = session.memory.tokens_seen
        list(session.generate(max_tokens=5, sampling=Sampling(temperature=0)))
        assert session.memory.tokens_seen == seen + 5


def test_no_free_sequence_is_said_and_a_session_lends_its_own(open_engine):
    engine = open_engine(n_ctx=256, n_sequences=1)
    with AtlasSession(engine, SMALL) as session:
        session.feed(ONE)
        with pytest.raises(InvalidParamError, match="all 1 sequences"):
            compare_behaviour(engine, session, None, PROBE)
        found = compare_behaviour(session, None, session, PROBE)
    np.testing.assert_array_equal(found.logprob[:, 0], found.logprob[:, 1])  # no memory: the model alone
    np.testing.assert_array_equal(found.parts[:, 0, 1:], 0)


def test_a_text_longer_than_the_context(open_engine):
    engine = open_engine()  # 64 tokens
    with AtlasSession(engine, SMALL) as a:
        a.feed(ONE)
        found = compare_behaviour(engine, a, None, TWO)
        assert len(found) == len(found.tokens) - 1 > engine.n_ctx
        assert np.isfinite(found.logprob).all()


def test_files_and_sessions_are_the_same(pair, tmp_path):
    engine, a, b = pair
    a.save(tmp_path / "a.atlas", context=False)
    b.save(tmp_path / "b.atlas", context=False, version=3, passphrase="x")
    expected = compare_behaviour(engine, a, b, PROBE)
    found = compare_behaviour(engine, str(tmp_path / "a.atlas"), tmp_path / "b.atlas", PROBE, passphrase="x")
    np.testing.assert_array_equal(found.logprob, expected.logprob)
    np.testing.assert_array_equal(found.js, expected.js)


def test_a_snapshot_is_enough(pair):
    engine, a, b = pair
    memory = b.memory
    copied = memory.state.map(np.copy)
    moment = SimpleNamespace(
        settings=memory.settings, waiting=memory.waiting(), memory_state=lambda: copied, arrays={}
    )
    expected = compare_behaviour(engine, a, b, PROBE)
    b.feed(ONE)  # what comes later does not change a snapshot
    found = compare_behaviour(engine, a, moment, PROBE)
    np.testing.assert_array_equal(found.logprob, expected.logprob)


def test_memories_that_do_not_fit(pair, tmp_path):
    engine, a, _ = pair
    other = FakeEngine(n_ctx=256, n_embd=16, seed=1)
    other.info = other.info.__class__(**{**vars(other.info), "identity": "11" * 32})
    a.save(tmp_path / "a.atlas", context=False)
    with pytest.raises(WrongModelError):
        compare_behaviour(other, tmp_path / "a.atlas", None, PROBE)
    with pytest.raises(InvalidParamError, match="belongs to another model"):
        compare_behaviour(other, a, None, PROBE)
    with pytest.raises(InvalidParamError, match="does not say which model"):
        memory_beside(engine, a.memory.state)
    for text in ("", []):
        with pytest.raises(InvalidParamError, match="too short"):
            compare_behaviour(engine, a, None, text)


def test_what_progress_raises_ends_it_and_leaves_the_session_whole(pair):
    _, a, b = pair
    before, seen = kept(a), []

    def progress(done, total):
        seen.append((done, total))
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_behaviour(a, a, b, PROBE, progress=progress)
    assert seen == sorted(seen)
    assert seen[-1][0] < seen[-1][1]
    same(kept(a), before)


def test_the_greatest_differences_come_first(pair):
    found = compare_behaviour(*pair, PROBE)
    rows = found.largest(5)
    assert rows == sorted(range(len(found)), key=lambda row: -found.js[row])[:5]
    by_gain = found.largest(3, by="gain")
    assert abs(found.gain[by_gain[0]]) == np.abs(found.gain).max()
    with pytest.raises(InvalidParamError, match="no difference"):
        found.largest(by="size")
    document = json.loads(json.dumps(found.to_json()))
    assert document["largest"][0] == rows[0]
    assert document["perplexity"] == found.perplexity


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.text("abc \n☃é", min_size=2, max_size=40))
def test_a_memory_does_not_differ_from_itself_and_the_order_of_two_only_turns_signs(text):
    engine = FakeEngine(n_ctx=256)
    with AtlasSession(engine, SMALL) as a, AtlasSession(engine, SMALL) as b:
        a.feed(ONE)
        b.feed(text)
        same_one = compare_behaviour(engine, a, a, text)
        there, back = compare_behaviour(engine, a, b, text), compare_behaviour(engine, b, a, text)
    assert "".join(same_one.pieces) == text
    for zero in (same_one.js, same_one.kl_ab, same_one.kl_ba, same_one.gain):
        np.testing.assert_array_equal(zero, 0)
    assert same_one.largest() == []
    np.testing.assert_array_equal(there.gain, -back.gain)
    np.testing.assert_array_equal(there.js, back.js)
    np.testing.assert_array_equal(there.kl_ab, back.kl_ba)


SMALLEST = 5e-324
#: Numbers of every size, so that some sums are tiny and some shares are no normal numbers.
numbers = st.floats(0, 1) | st.sampled_from((0.0, SMALLEST, 1e-310, 2.3e-308, 1e-160, 1e-16, 0.5, 1.0))
distributions = arrays.arrays(np.float64, 8, elements=numbers).filter(lambda p: p.sum() > 0)
CERTAIN = np.eye(8)[0]


@settings(derandomize=True, max_examples=300)
@given(distributions, distributions)
@example(CERTAIN, CERTAIN + SMALLEST * np.eye(8)[1])
@example(CERTAIN, np.full(8, SMALLEST))
@example(CERTAIN + SMALLEST, np.eye(8)[1])
@example(np.eye(8)[1], CERTAIN)
@example(np.full(8, 0.125), np.full(8, 0.125) + 1e-17)
def test_divergences_keep_their_bounds(p, q):
    p, q = p / p.sum(), q / q.sum()
    assert jensen_shannon(p, p) == kullback_leibler(p, p) == 0
    assert 0 <= jensen_shannon(p, q) <= np.log(2) + 1e-12
    assert jensen_shannon(p, q) == pytest.approx(jensen_shannon(q, p), abs=1e-12)
    assert kullback_leibler(p, q) >= 0
    total = np.abs(p - q).sum() / 2
    assert jensen_shannon(p, q) >= total**2 / 2 - 1e-9  # Pinsker, both halves: |p - m| = |p - q| / 2
