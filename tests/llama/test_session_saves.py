"""Saving and loading: the same tokens as going on, whatever the model; other files, other models, damage, kills."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from memory_arrays import arrays, assert_same

from atlas_kit import MemoryFile
from atlas_kit.errors import (
    AtlasError,
    InvalidParamError,
    KeyRequiredError,
    VersionMismatchError,
    WrongModelError,
)
from atlas_kit.llama import AtlasSession, FakeEngine, Sampling
from atlas_kit.llama.memory_choice import settings_of
from atlas_kit.persistence.entry_keys import CONTEXT as CONTEXT_KEY
from atlas_kit.persistence.session_file import packed as _packed
from atlas_kit.persistence.session_file import unpacked as _unpacked
from atlas_kit.persistence.snapshot import load_memory, save_memory
from atlas_kit.settings.atlas_settings import AtlasSettings

REPOSITORY = Path(__file__).resolve().parent.parent.parent
GREEDY = Sampling(temperature=0)
TEXT = "to be or not to be, that is the question: whether 'tis nobler in the mind to suffer. "
SMALL = AtlasSettings(window_size=64, memory_dim=8, omega_window=16, chunk_size=8, candidates=16)


def go_on(session, count=10):
    """Generate greedily; return the tokens and their log-probabilities."""
    found = [token for token in session.generate(max_tokens=count, sampling=GREEDY) if token.id >= 0]
    return [token.id for token in found], [token.logprob for token in found]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "memory.atlas"


# --- the same as going on ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 3, 9, 20, 75])
@pytest.mark.parametrize("memory", [SMALL, SMALL.replace(learning_rate=0), SMALL.replace(window_size=0)])
def test_loading_is_going_on(length, memory, open_engine, path):
    engine = open_engine()
    with AtlasSession(engine, memory) as session, AtlasSession(engine, None) as other:
        session.feed(TEXT[:length])  # mid-step, or not
        session.save(path)
        kept, context = arrays(session), session.context_tokens
        expected = go_on(session)
        other.load(path)
        assert_same(arrays(other), kept)
        assert other.context_tokens == context
        assert go_on(other) == expected
        assert other.memory.stats() == {
            **session.memory.stats(),
            "row_cache_bytes": other.memory.stats()["row_cache_bytes"],
        }


def test_saving_while_generating(open_engine, path):
    with AtlasSession(open_engine(n_ctx=256), SMALL) as session:
        session.feed(TEXT)
        for count, _ in enumerate(session.generate(max_tokens=9, sampling=GREEDY)):
            if count == 4:
                session.save(path)
                break
        expected = go_on(session)
    with AtlasSession(open_engine(n_ctx=256), None) as session:
        session.load(path)
        assert go_on(session) == expected


def test_the_context_may_stay_behind(open_engine, path):
    with AtlasSession(open_engine(), SMALL) as session:
        session.feed(TEXT[:50])
        session.save(path, context=False)
        kept = arrays(session)
    with MemoryFile.open(path) as file:
        assert CONTEXT_KEY not in file
    with AtlasSession(open_engine(), None) as session:
        session.load(path)
        assert session.context_tokens == ()
        assert_same(arrays(session), kept)
        session.feed(TEXT)
        session.save(path)
        session.save(path, context=False)  # an older context goes
    with MemoryFile.open(path) as file:
        assert CONTEXT_KEY not in file
        assert "context" not in file_runtime(path)


def test_a_context_may_be_left_in_the_file(open_engine, path):
    with AtlasSession(open_engine(), SMALL) as session:
        session.feed(TEXT[:50])
        session.save(path)
    with AtlasSession(open_engine(), None) as session:
        session.load(path, context=False)
        assert session.context_tokens == ()
        assert session.memory.tokens_seen > 30


@pytest.mark.parametrize("n_ctx", [32, 128])
def test_another_context_size(n_ctx, open_engine, path):
    with AtlasSession(open_engine(), SMALL) as session:
        session.feed(TEXT[:60])
        session.save(path)
        kept, context = arrays(session), session.context_tokens
    with AtlasSession(open_engine(n_ctx=n_ctx), None) as session:
        session.load(path)
        assert session.context_tokens == context[-n_ctx:]
        assert_same(arrays(session), kept)
        assert go_on(session)[0]


def test_sessions_are_started_from_a_file(open_engine, path):
    with AtlasSession(open_engine(), SMALL) as session:
        session.feed(TEXT)
        session.save(path)
        kept = arrays(session)
    assert settings_of(str(path)) == SMALL
    with AtlasSession(open_engine(), path, blend_ratio=0.5) as session:
        assert_same(arrays(session), kept)
        assert session.memory.settings == SMALL.replace(blend_ratio=0.5)
        assert session.context_tokens == ()
    with pytest.raises(InvalidParamError, match="keeps its sizes"):
        AtlasSession(open_engine(), path, window=65)


SCRIPT = """
import sys
sys.path[:0] = [{repository!r}]
from atlas_kit.llama import AtlasSession, Sampling
from atlas_kit.llama.llama_engine import LlamaEngine
with LlamaEngine({model!r}, n_ctx=64, n_batch=32, n_threads=1) as engine, AtlasSession(engine, None) as session:
    session.load({path!r})
    print([token.id for token in session.generate(max_tokens=12, sampling=Sampling(temperature=0))])
"""


def test_another_process_goes_on_with_the_same_tokens(real, random_model, path):
    with AtlasSession(real(n_sequences=1), SMALL) as session:
        session.feed(TEXT * 2)
        session.save(path)
        expected = [token.id for token in session.generate(max_tokens=12, sampling=GREEDY)]
    script = SCRIPT.format(repository=str(REPOSITORY), model=str(random_model()), path=str(path))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout) == expected


# --- the file ---------------------------------------------------------------------------------------------


def file_runtime(path):
    from atlas_kit.persistence.snapshot import describe_memory

    return describe_memory(path).metadata["runtime"]


def test_other_entries_survive(open_engine, path):
    with MemoryFile.edit(path, create=True) as file:
        file.set("notes/mine", b"keep this")
    with AtlasSession(open_engine(), SMALL) as session:
        for _ in range(3):
            session.feed(TEXT[:20])
            session.save(path, metadata={"mine": [1, 2]})
    with MemoryFile.open(path) as file:
        assert bytes(file.get("notes/mine").data) == b"keep this"
    assert settings_of(str(path)) == SMALL


def test_a_file_says_whose_it_is(open_engine, path):
    engine = open_engine()
    with AtlasSession(engine, SMALL) as session:
        session.feed(TEXT)
        session.save(path)
    runtime = file_runtime(path)
    assert runtime["model"]["identity"] == engine.info.identity
    assert runtime["settings"] == SMALL.to_json()
    assert AtlasSettings.from_json(runtime["settings"]) == SMALL


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_of_the_format(version, path):
    secret = {"passphrase": "secret"} if version == 3 else {}
    with AtlasSession(FakeEngine(), SMALL) as session:
        session.feed(TEXT)
        try:
            session.save(path, version=version, **secret)
        except InvalidParamError as error:
            assert version == 1
            pytest.skip(str(error))
        expected = go_on(session)
    with AtlasSession(FakeEngine(), None) as session:
        session.load(path, **secret)
        assert go_on(session) == expected


def test_a_passphrase(path):
    with AtlasSession(FakeEngine(), SMALL) as session:
        session.feed(TEXT)
        session.save(path, passphrase="secret")
        expected = go_on(session)
    with AtlasSession(FakeEngine(), None) as session:
        with pytest.raises(KeyRequiredError):
            session.load(path)
        with pytest.raises(AtlasError):
            session.load(path, passphrase="wrong")
        assert session.memory is None
        session.load(path, passphrase="secret")
        assert go_on(session) == expected
    assert settings_of(str(path), passphrase="secret") == SMALL


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_narrower_type_is_another_memory_but_loads(dtype, path):
    with AtlasSession(FakeEngine(), SMALL) as session:
        session.feed(TEXT)
        try:
            session.save(path, dtype=dtype)
        except InvalidParamError as error:
            pytest.skip(str(error))
    with AtlasSession(FakeEngine(), None) as session:
        session.load(path)
        assert np.isfinite(session.feed(TEXT).logprob).all()


def test_no_memory_to_save(open_engine, path):
    with (
        AtlasSession(open_engine(), None) as session,
        pytest.raises(InvalidParamError, match="no memory to save"),
    ):
        session.save(path)
    assert not path.exists()


# --- other models -----------------------------------------------------------------------------------------


def test_another_models_memory(real, random_model, path):
    other = random_model(seed=1)
    with AtlasSession(real(), SMALL) as session:
        session.feed(TEXT)
        session.save(path)
        mine = session.engine.info.identity
    engine = real(path=other)
    with AtlasSession(engine, SMALL) as session:
        session.feed(TEXT)
        before, context = arrays(session), session.context_tokens
        with pytest.raises(WrongModelError) as caught:
            session.load(path)
        text = str(caught.value)
        assert mine[:12] in text
        assert engine.info.identity[:12] in text
        with pytest.raises(WrongModelError):
            session.save(path)
        assert_same(arrays(session), before)
        assert session.context_tokens == context
        # the context is read anew by this model: the other's cache is none of its own
        session.load(path, force=True)
        found = session.open_output()["logits"]
        tokens = session.context_tokens
    with AtlasSession(real(path=other), None) as session:
        session.feed(list(tokens))
        np.testing.assert_allclose(session.open_output()["logits"], found, atol=0.02)


def test_a_memory_of_another_width(path):
    with AtlasSession(FakeEngine(n_embd=16), SMALL) as session:
        session.feed(TEXT)
        session.save(path)
    with AtlasSession(FakeEngine(n_embd=32), SMALL) as session:
        session.feed(TEXT)
        before, expected = arrays(session), session.context_tokens
        with pytest.raises(InvalidParamError, match="16 numbers, the model's have 32") as caught:
            session.load(path)
        assert caught.value.path == str(path)
        assert_same(arrays(session), before)
        assert session.context_tokens == expected


def test_a_memory_that_no_session_made(path):
    from atlas_kit.memory import Memory, MemoryConfig

    memory = Memory(MemoryConfig(4, 4))
    save_memory(path, memory, memory.init())
    with (
        AtlasSession(FakeEngine(), SMALL) as session,
        pytest.raises(InvalidParamError, match="not made beside"),
    ):
        session.load(path)


# --- damage -----------------------------------------------------------------------------------------------


@pytest.fixture
def damage(path):
    """Return a function that writes a session's file with changed metadata, all checksums right."""
    with AtlasSession(FakeEngine(), SMALL) as session:
        session.feed(TEXT[:45])
        session.save(path)

    def rewrite(change, context=None):
        loaded = load_memory(path)
        metadata = json.loads(json.dumps(loaded.metadata))
        change(metadata["runtime"])
        entries = {} if context is None else {CONTEXT_KEY: context}
        save_memory(
            path, loaded.memory, loaded.state, metadata=metadata, model_hash=FakeEngine().info.identity,
            entries=entries,
        )  # fmt: skip

    return rewrite


def packed(array):
    return _packed(np.asarray(array))


HARMS = {
    "tokens that are none": lambda r: r.update(context=[1, 2, 999]),
    "tokens that are negative": lambda r: r.update(context=[-5]),
    "tokens that are words": lambda r: r.update(context=["a"]),
    "a context that is a number": lambda r: r.update(context=7),
    "a position that is a word": lambda r: r.update(position="x"),
    "no waiting": lambda r: r.update(waiting=[1]),
    "waiting that is short": lambda r: r["waiting"].update(lse=packed(np.zeros(1))),
    "waiting that is missing": lambda r: r["waiting"].pop("hidden"),
    "waiting that is no base64": lambda r: r["waiting"]["hidden"].update(data="***"),
    "waiting of another length": lambda r: r["waiting"]["hidden"].update(shape=[3, 3]),
    "waiting of objects": lambda r: r["waiting"]["hidden"].update(dtype="O"),
    "waiting of a strange type": lambda r: r["waiting"]["hidden"].update(dtype="nonsense"),
    "waiting that is infinite": lambda r: r["waiting"].update(lse=packed([np.inf] * 4)),
    "waiting that is NaN": lambda r: r["waiting"].update(slope=packed(np.full((4, 4), np.nan))),
    "an output of another size": lambda r: r["open"].update(logits=packed(np.zeros((1, 5)))),
    "an output without a state": lambda r: r["open"].pop("hidden"),
    "an output that is a list": lambda r: r.update(open=[1]),
    "a step size beyond": lambda r: r["waiting"].update(log_eta=packed(99.0)),
    "settings of another memory": lambda r: r["settings"].update(window_size=3),
    "settings that are none": lambda r: r["settings"].update(window_size="x"),
    "no settings": lambda r: r.pop("settings"),
    "another model": lambda r: r.update(model=[1, 2]),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_damaged_is_refused_in_one_sentence(harm, damage, path):
    damage(HARMS[harm])
    with AtlasSession(FakeEngine(), SMALL) as session:
        session.feed(TEXT)
        before, context = arrays(session), session.context_tokens
        with pytest.raises(AtlasError) as caught:
            session.load(path)
        text = str(caught.value)
        assert "\n" not in text
        assert str(path) in text
        assert len(text) < 400
        assert_same(arrays(session), before)
        assert session.context_tokens == context
        assert go_on(session, 3)[0]


@pytest.mark.parametrize("position", [-3, 0, 7, 1 << 70])
def test_a_position_that_does_not_fit_is_not_believed(position, damage, path):
    damage(lambda r: r.update(position=position))
    with AtlasSession(FakeEngine(), None) as session:
        session.load(path)
        assert session.position == len(session.context_tokens) == 45
        assert go_on(session, 3)[0]


@pytest.mark.parametrize("context", [b"", b"x" * 50])
def test_a_context_that_the_engine_does_not_take_is_read_again(context, damage, path):
    with AtlasSession(FakeEngine(), None) as session:
        session.load(path)
        expected = go_on(session)
    damage(lambda r: None, context)
    with AtlasSession(FakeEngine(), None) as session:
        session.load(path)
        tokens, logprob = go_on(session)
    assert tokens == expected[0]
    np.testing.assert_allclose(logprob, expected[1], atol=1e-4)


def test_bits_that_flip_are_found(damage, path):
    whole = path.read_bytes()
    place = random.Random(0)
    for _ in range(12):
        data = bytearray(whole)
        data[place.randrange(64, len(data))] ^= 1 << place.randrange(8)
        path.write_bytes(data)
        with AtlasSession(FakeEngine(), None) as session:
            try:
                session.load(path)
            except AtlasError as error:
                assert "\n" not in str(error)  # noqa: PT017
                assert session.memory is None
    path.write_bytes(whole[: len(whole) // 2])
    with AtlasSession(FakeEngine(), None) as session, pytest.raises(AtlasError):
        session.load(path)


def test_a_save_that_fails_leaves_file_and_session(open_engine, path, tmp_path):
    with AtlasSession(open_engine(), SMALL) as session:
        session.feed(TEXT[:30])
        before = arrays(session)
        with pytest.raises(AtlasError):
            session.save(tmp_path / "no" / "such" / "folder.atlas")
        path.write_bytes(b"precious, and no memory")
        with pytest.raises(AtlasError):
            session.save(path)
        assert path.read_bytes() == b"precious, and no memory"
        assert_same(arrays(session), before)
        assert go_on(session)[0]


VICTIM = """
import sys
sys.path[:0] = [{repository!r}]
from atlas_kit.llama import AtlasSession, FakeEngine
from atlas_kit.settings.atlas_settings import AtlasSettings
with AtlasSession(FakeEngine(), AtlasSettings(window_size=64, memory_dim=8, omega_window=16, chunk_size=8)) as session:
    print("ready", flush=True)
    while True:
        session.feed("to be or not to be ")
        session.save({path!r})
        print(session.memory.tokens_seen, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no signals here")
def test_a_process_that_is_killed_while_saving_leaves_a_whole_file(path):
    script = VICTIM.format(repository=str(REPOSITORY), path=str(path))
    place = random.Random(1)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    with AtlasSession(FakeEngine(), None) as session:
        for _ in range(4):
            process = subprocess.Popen(
                [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
            )
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            saved = int(process.stdout.readline())
            time.sleep(place.uniform(0, 0.15))
            process.kill()
            rest = process.stdout.read().split()
            process.wait()
            process.stdout.close()
            session.load(path)
            said = int(rest[-1]) if rest else saved
            assert session.memory.tokens_seen in (said, said + 19)
            path.unlink()


# --- arrays as JSON ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [np.float32([[1.5, -2]]), np.float64(0.1), np.arange(5, dtype=np.int64), np.empty((0, 3), np.float32),
     np.float16([1]), np.array([1, 2], ">i4")],
)  # fmt: skip
def test_arrays_survive(array):
    found = _unpacked(json.loads(json.dumps(_packed(np.asarray(array)))))
    assert found.dtype == np.asarray(array).dtype.newbyteorder("=")
    assert found.shape == np.asarray(array).shape
    np.testing.assert_array_equal(found, array)


def test_arrays_that_are_none():
    good = _packed(np.float32([1, 2]))
    for changes in ({"dtype": "U4"}, {"dtype": "c16"}, {"shape": [3]}, {"data": good["data"][:-3]},
                    {"data": base64.b64encode(b"\x00\x00\xc0\x7f" * 2).decode()}):  # fmt: skip
        with pytest.raises((ValueError, TypeError)):
            _unpacked({**good, **changes})


def test_a_model_that_rules_tokens_out_can_be_saved(path):
    class Refusing(FakeEngine):
        def decode(self, feeds, *, hidden=False):
            found = super().decode(feeds, hidden=hidden)
            for out in found:
                out.logits[:, 200:256] = -np.inf
            return found

    settings = SMALL.replace(learning_rate=0)
    with AtlasSession(Refusing(), settings) as session:
        session.feed(TEXT[:45])
        session.save(path)
        expected = go_on(session)
    with AtlasSession(Refusing(), None) as session:
        session.load(path)
        assert go_on(session) == expected


def test_an_unknown_version_of_what_belongs_to_the_session(damage, path):
    damage(lambda r: r.update(version=99))
    with AtlasSession(FakeEngine(), None) as session, pytest.raises(VersionMismatchError):
        session.load(path)


def test_a_memory_on_whitened_states_goes_on_from_its_file(tmp_path):
    text = list(b"the quick brown fox jumps over the lazy dog, and so on and on. " * 12)
    settings = AtlasSettings(window_size=64, memory_dim=8, memory_rank=16, candidates=16)
    path = tmp_path / "whitened.atlas"
    with AtlasSession(FakeEngine(), settings) as session:
        session.feed(text[:645])
        session.save(path)
        session.feed(text[645:])
        wanted = {**session.memory.state.parameters, **session.memory.state.window}
        assert int(session.memory.state.counters["steps"]) > 8
    with AtlasSession(FakeEngine(), str(path)) as session:
        session.load(path)
        session.feed(text[645:])
        found = {**session.memory.state.parameters, **session.memory.state.window}
        assert session.memory.settings == settings
    for name, array in wanted.items():
        assert found[name].tobytes() == array.tobytes(), name
