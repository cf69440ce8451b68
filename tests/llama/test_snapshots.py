"""``Snapshots``: copies that learning leaves alone, evenly spread, bounded in number and bytes."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama import AtlasSession, FakeEngine
from atlas_kit.llama import snapshots as module
from atlas_kit.llama.snapshots import Snapshots, take_snapshot
from atlas_kit.operations.behaviour import memory_beside
from atlas_kit.settings.atlas_settings import AtlasSettings


@pytest.fixture
def session():
    # of a form that learns from its first step on
    with AtlasSession(FakeEngine(), AtlasSettings(features="polynomial")) as session:
        yield session


def test_a_snapshot_does_not_change_when_the_session_learns_on(session):
    session.feed("abc" * 40)
    taken = take_snapshot(session)
    before = {name: array.copy() for name, array in taken.arrays.items()}
    session.feed("xyz" * 40)
    for name, array in taken.arrays.items():
        assert np.array_equal(array, before[name])
        assert not np.array_equal(array, session.memory.state.parameters[name])
    assert taken.label == "119 tokens"
    assert taken.step == int(taken.memory_state().counters["steps"])
    assert "119 tokens" in repr(taken)


def test_a_snapshot_can_read_on_as_the_memory_did(session):
    session.feed("to be or not to be " * 10)
    taken = take_snapshot(session)
    with session.aside():
        expected = session.feed("to be or not").logprob
    memory = memory_beside(session.engine, taken)
    assert memory.tokens_seen == taken.tokens_seen
    session.memory = memory
    session.learns = False
    np.testing.assert_allclose(session.feed("to be or not").logprob, expected)


def test_they_are_thinned_evenly_and_keep_the_first(session):
    taken = Snapshots(every=16, most=8)
    for _ in range(100):
        taken.offer(session)
        session.feed("abcdefghijklmnop")
    seen = [one.tokens_seen for one in taken]
    assert 3 <= len(taken) <= 8
    assert seen[0] == 0
    assert max(np.diff(seen)) <= 2 * min(np.diff(seen))
    taken.keep(session)
    taken.keep(session)
    assert taken[-1].tokens_seen == session.memory.tokens_seen
    assert len(taken) <= 8
    assert [one.tokens_seen for one in taken[:2]] == seen[:2]
    taken.clear()
    assert not list(taken)


def test_large_memories_have_fewer(session, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 4 * session.memory.state_bytes)
    taken = Snapshots(every=16, most=24)
    for _ in range(30):
        taken.offer(session)
        session.feed("abcdefghijklmnop")
    assert len(taken) <= 4


def test_without_a_memory_there_is_nothing_to_take():
    with AtlasSession(FakeEngine(), None) as session:
        assert not Snapshots().offer(session)
        with pytest.raises(InvalidParamError, match="no memory"):
            take_snapshot(session)
    with pytest.raises(InvalidParamError):
        Snapshots(every=0)
