"""What makes no sense as an argument is one sentence of ours, before anything is done; sessions and jobs go on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from atlas_kit.errors import InvalidParamError, WrongModelError
from atlas_kit.llama import AtlasSession, FakeEngine, Sampling, Scheduler, SessionPool
from atlas_kit.persistence.session_file import write_session_state
from atlas_kit.settings.atlas_settings import AtlasSettings
from tests.waiting import LONG

SMALL = AtlasSettings(window_size=64, memory_dim=8, omega_window=16, chunk_size=8, candidates=16)
ODD_GENERATION: list[dict[str, Any]] = [
    {"max_tokens": "3"},
    {"max_tokens": 2.5},
    {"max_tokens": True},
    {"max_tokens": -1},
    {"max_tokens": [3]},
    {"stop": 5},
    {"stop": [5]},
    {"stop": ["a", None]},
    {"stop": b"x"},
    {"sampling": 5},
    {"sampling": {"seed": 1}},
    {"prompt": 5},
    {"prompt": ["a"]},
    {"prompt": [1.5]},
    {"prompt": [9999]},
]


@pytest.fixture
def session():
    with AtlasSession(FakeEngine(n_sequences=2), SMALL) as opened:
        opened.feed("to be or not to be")
        yield opened


def refused(function):
    with pytest.raises(InvalidParamError) as caught:
        function()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def named(option: dict[str, Any]) -> str:
    return "-".join(f"{name}-{value!r}" for name, value in option.items())


@pytest.mark.parametrize("option", ODD_GENERATION, ids=named)
def test_generating(option, session):
    before = session.context_tokens
    refused(lambda: list(session.generate(**{"max_tokens": 2, **option})))
    assert session.context_tokens == before
    assert len(list(session.generate(max_tokens=np.int64(2), stop=("x", "y")))) >= 2


@pytest.mark.parametrize("option", [o for o in ODD_GENERATION if "prompt" not in o], ids=named)
def test_a_scheduler_refuses_at_once(option, session):
    with Scheduler(session.engine) as scheduler:
        refused(lambda: scheduler.generate(session, **{"max_tokens": 2, **option}))
        assert len(scheduler) == 0
        assert scheduler.generate(session, max_tokens=2).wait(LONG)


@pytest.mark.parametrize("option", ODD_GENERATION, ids=named)
def test_jobs_end_with_the_sentence(option, session):
    pool = SessionPool(session.engine)
    job = pool.generate(session, **{"max_tokens": 2, **option})
    refused(pool.run)
    assert isinstance(job.error, InvalidParamError)


@pytest.mark.parametrize("text", [5, None, ["a"], [1.5], [9999], [-1], [[1]]], ids=repr)
def test_reading(text, session):
    before = session.context_tokens
    refused(lambda: session.feed(text))
    assert session.context_tokens == before


def test_opening():
    said = refused(lambda: AtlasSession("no.gguf", engine_options={"threads": 5}))
    assert "n_threads" in said
    for option in ({"device": []}, {"rollover": []}, {"device": "tpu"}):
        refused(lambda option=option: AtlasSession(FakeEngine(), **option))
    for bias in (5, [1], "ab"):
        refused(lambda bias=bias: Sampling(logit_bias=bias))
    for count in ("3", 1.5, -1):
        refused(lambda count=count: Scheduler(FakeEngine(), max_jobs=count))


def test_a_recommended_memory_needs_a_model_file():
    engine = FakeEngine()
    said = refused(lambda: AtlasSession(engine, "auto"))
    assert said == (
        "memory \"auto\" needs a model file: settings are recommended from its metadata, and 'fake' is none. "
        "Try memory=True."
    )
    AtlasSession(engine, True).close()


@pytest.mark.parametrize("name", ["a\0b.atlas", "a\ud800b.atlas"])
def test_names_that_no_file_can_have(name, session, tmp_path):
    path = str(tmp_path / name)
    assert "not a valid path" in refused(lambda: session.save(path))
    state = session.state()
    assert "not a valid path" in refused(lambda: write_session_state(path, state))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [None, 5, 5.5], ids=repr)
def test_what_is_no_name(path, session):
    refused(lambda: session.save(path))
    refused(lambda: session.load(path))


@pytest.mark.parametrize(
    "secret",
    [{"passphrase": "open \ud800"}, {"passphrase": 5}, {"key": 5}, {"key": "k" * 32}, {"key": b"k"}],
    ids=["half a character", "a number", "a number as key", "text as key", "a short key"],
)
def test_secrets_that_are_none(secret, session, tmp_path):
    path = tmp_path / "m.atlas"
    said = refused(lambda: session.save(path, version=3, **secret))
    assert "open" not in said
    assert list(tmp_path.iterdir()) == []
    session.save(path, version=3, passphrase="open \udcff")  # a byte that is no text
    refused(lambda: session.load(path, **secret))
    session.load(path, passphrase=b"open \xff")


@pytest.mark.parametrize("identity", ["made up", "zz" * 32, "ab", 5, None], ids=repr)
def test_made_up_identities(identity, session):
    state, memory = session.state(), session.memory
    refused(lambda: session.restore(dataclasses.replace(state, identity=identity)))
    assert session.memory is memory
    with pytest.raises(WrongModelError):
        session.restore(dataclasses.replace(state, identity="ab" * 32))


@pytest.mark.parametrize(
    "change",
    [{"tokens": ("a",)}, {"tokens": (1.5,)}, {"tokens": (9999,)}, {"waiting": 5}, {"waiting": {"token": 5}}],
    ids=named,
)
def test_states_made_by_hand(change, session):
    state, memory, context = session.state(), session.memory, session.context_tokens
    refused(lambda: session.restore(dataclasses.replace(state, **change)))
    refused(lambda: session.restore(5))
    assert (session.memory, session.context_tokens) == (memory, context)
