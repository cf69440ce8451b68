"""Readings of one token each of several sessions: those that a longer text would give, and each as if it were alone."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from atlas_kit.llama import AtlasSession, FakeEngine, Sampling, SessionPool
from atlas_kit.llama.side_by_side import Ends, read_side_by_side
from atlas_kit.llama.stage_times import StageTimes
from atlas_kit.llama.token_memory import TokenMemory
from atlas_kit.settings.atlas_settings import AtlasSettings

SMALL = AtlasSettings(
    window_size=24, memory_dim=6, omega_window=12, chunk_size=4, candidates=6, learning_rate=0.5
)
FIELDS = (
    "lse", "own", "corrected", "log_z", "before", "behind", "expected", "weights", "features",
)  # fmt: skip


def streams(count, length, seed=0):
    """Return the output matrix, and states, logits and tokens of ``count`` streams."""
    rng = np.random.default_rng(seed)
    with FakeEngine() as engine:
        rows = engine.output_rows()
    hidden = rng.standard_normal((count, length, rows.n_embd)).astype(np.float32)
    tokens = rng.integers(0, 7, (count, length + 1))  # few, so that much is repeated
    return rows, hidden, [rows.logits(one, rows.whole()) for one in hidden], tokens


def read(memory, hidden, logits, tokens):
    for reading, came, _ in memory.follow(hidden, logits, tokens[:-1], tokens[1:]):
        assert len(reading) == len(came)


@pytest.mark.parametrize("blend", ["adaptive", 0.25])
@pytest.mark.parametrize("known", [0, 3, 40])
def test_one_token_is_read_as_among_others(known, blend, monkeypatch):
    """The readings of one token and of several are written apart; here both read the same one."""
    rows, hidden, (logits,), (tokens,) = streams(1, known + 1)
    memory = TokenMemory(rows, SMALL.replace(blend_ratio=blend))
    read(memory, hidden[0, :known], logits[:known], tokens[: known + 1])
    given = hidden[0, known:], logits[known:], tokens[known : known + 1]
    found = memory.read(*given)
    monkeypatch.setattr(TokenMemory, "kind", None)
    expected = memory.read(*given)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    for name in ("weights", "similarity", "length", "confidence", "features", "mean"):
        one, other = getattr(found.window, name), getattr(expected.window, name)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.log_probabilities(), expected.log_probabilities(), rtol=1e-4, atol=1e-5)
    ranking = memory.memory.config.ranking
    for came in range(rows.n_vocab):
        token = np.array([came])
        p, slope = found.outcome(token, ranking)
        hits = expected.hits(token)
        np.testing.assert_allclose(p[0, 2], (expected.window.weights * hits).sum(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(slope[:, :-1], ranking.slope(expected.window, hits), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(slope[:, -1], expected.gain(token), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("blend", ["adaptive", 0.0, 0.25, 1.0])
@pytest.mark.parametrize("known", [0, 3, 40])
def test_the_likeliest_of_all_are_known_from_some(known, blend):
    rows, hidden, (logits,), (tokens,) = streams(1, known + 8, seed=known)
    memory = TokenMemory(rows, SMALL.replace(blend_ratio=blend, candidates=8))
    read(memory, hidden[0, :known], logits[:known], tokens[: known + 1])
    answered = 0
    for at in range(known, known + 8):
        reading = memory.read(hidden[0, at : at + 1], logits[at : at + 1], tokens[at : at + 1])
        logp = reading.log_probabilities()
        for count in (1, 5, 8, 31):
            if (found := reading.likeliest(count)) is None:
                continue
            some, chance = found
            assert len(set(some.tolist())) == len(some) >= count
            np.testing.assert_allclose(chance, logp[some], rtol=1e-4, atol=1e-4)
            assert set(np.argsort(-logp)[:count].tolist()) <= set(some.tolist())
            answered += 1
        memory.watch(reading, tokens[at + 1 : at + 2])
    assert answered >= 24


def test_without_candidates_the_likeliest_are_not_known():
    rows, hidden, (logits,), (tokens,) = streams(1, 4)
    memory = TokenMemory(rows, SMALL.replace(learning_rate=0.0))
    assert memory.read(hidden[0, :1], logits[:1], tokens[:1]).likeliest(1) is None


def test_tokens_that_are_ruled_out_are_not_the_likeliest():
    rows, hidden, (logits,), (tokens,) = streams(1, 2)
    logits = np.array(logits)
    logits[:, 3:] = -np.inf
    reading = TokenMemory(rows, SMALL).read(hidden[0, :1], logits[:1], tokens[:1])
    assert sorted(reading.likeliest(3)[0].tolist()) == [0, 1, 2]
    assert reading.likeliest(4) is None


def test_company_changes_no_bit():
    """Windows of different lengths, one of them empty."""
    rows, hidden, logits, tokens = streams(5, 31, seed=1)
    memories = [TokenMemory(rows, SMALL) for _ in range(5)]
    for at, count in enumerate((0, 2, 4, 17, 30)):
        read(memories[at], hidden[at, :count], logits[at][:count], tokens[at, : count + 1])
        memories[at].commit()
    given = hidden[:, 30], [one[30] for one in logits], tokens[:, 30].tolist()
    together = read_side_by_side(memories, *given)
    for at, found in enumerate(together):
        alone = read_side_by_side(memories[at : at + 1], *(one[at : at + 1] for one in given))[0]
        for name in FIELDS:
            assert getattr(found, name).tobytes() == getattr(alone, name).tobytes()
        assert found.window.weights.tobytes() == alone.window.weights.tobytes()
        assert found.log_probabilities().tobytes() == alone.log_probabilities().tobytes()
        for came in range(7):
            outcomes = (
                one.outcome(np.array([came]), memories[0].memory.config.ranking) for one in (found, alone)
            )
            (p, slope), (same_p, same_slope) = outcomes
            assert p.tobytes() == same_p.tobytes()
            assert slope.tobytes() == same_slope.tobytes()


def test_ends_of_one_row_are_spread_by_numpy_itself():
    one = Ends([3])
    assert (one.spread(np.array([2.0])) * np.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert one.max(np.array([1.0, 5.0, 2.0])).tolist() == [5.0]
    assert Ends([1, 2]).max(np.array([1.0, 5.0, 6.0])).tolist() == [1.0, 6.0]


def test_a_memory_learns_beside_a_decode_where_there_is_room(monkeypatch):
    """What is learned and generated is the same on which thread ever."""
    prompts, found = ["to be or not to be, " * 3, "abc" * 9, "x1y2z3" * 6], {}
    monkeypatch.setattr(StageTimes, "gains", lambda *_: False)  # in two stages either thread learns
    plain = TokenMemory.commit
    for processors in (1, 2):
        threads = set()

        def commit(memory, threads=threads):
            if memory.due:
                threads.add(threading.current_thread().name)
            plain(memory)

        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=processors: set(range(n)))
        monkeypatch.setattr(TokenMemory, "commit", commit)
        engine = FakeEngine(n_ctx=128, n_sequences=3)
        sessions = [AtlasSession(engine, SMALL) for _ in prompts]
        pool = SessionPool(engine)
        jobs = [
            pool.generate(session, prompt, max_tokens=20, sampling=Sampling(temperature=0))
            for session, prompt in zip(sessions, prompts, strict=True)
        ]
        pool.run()
        found[processors] = [
            ([token.id for token in job.tokens], job.session.memory.state.parameters["W"].tobytes())
            for job in jobs
        ]
        assert any(name.startswith("atlas-learner") for name in threads) == (processors > 1)
        for session in sessions:
            session.close()
    assert found[1] == found[2]
