"""The state of a middle layer as what a memory looks at: where it comes from, and where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atlas_kit.errors import ModelError
from atlas_kit.llama import AtlasSession, FakeEngine, Sampling
from atlas_kit.llama.engine import Feed
from atlas_kit.llama.middle_layers import fitting, middle_of, seen
from atlas_kit.llama.parking import new_parked, parked_of, state_of, unpark
from atlas_kit.llama.pool import SessionPool
from atlas_kit.llama.pooling import pooled_states
from atlas_kit.llama.session_states import token_memory
from atlas_kit.settings.atlas_settings import AtlasSettings
from atlas_kit.settings.recommend import recommend

TINY = Path(__file__).resolve().parents[2] / "sample_data" / "models" / "tiny-python.gguf"
GREEDY = Sampling(temperature=0)
TEXT = "the cat sat on the mat, and the dog sat on the log. " * 14  # more than whitening asks for
INSIDE = AtlasSettings(states="middle", memory_rank=16, memory_dim=8, window_size=128, candidates=32)
FINAL = INSIDE.replace(states="final")


class Shut(FakeEngine):
    """An engine that gives final states only."""

    def show_middle(self) -> bool:
        return False


def numbers(session: AtlasSession) -> dict[str, np.ndarray]:
    groups = session.memory.state.groups()
    return {
        f"{group}.{name}": array.copy() for group, arrays in groups.items() for name, array in arrays.items()
    }


def said(session: AtlasSession, count: int = 12) -> list[int]:
    return [token.id for token in session.generate(max_tokens=count, sampling=GREEDY)]


def test_it_lies_behind_the_middle_and_before_the_end():
    assert [middle_of(n) for n in (4, 16, 24, 30, 48)] == [3, 13, 20, 25, 40]
    assert all(0 < middle_of(n) < n for n in range(2, 200))


def test_the_memory_learns_from_it_and_not_from_the_final_state():
    with AtlasSession(FakeEngine(), INSIDE) as inside, AtlasSession(FakeEngine(), FINAL) as final:
        assert (inside.memory.width, final.memory.width) == (64, 32)
        inside.feed(TEXT)
        final.feed(TEXT)
        assert inside.memory.state.counters["averaged"] == final.memory.state.counters["averaged"] > 0
        # the last states that were kept are those of the last two tokens, whatever stood before them
        kept = inside.memory.state.window["hidden"]
        engine, at = inside.engine, int(inside.memory.state.counters["seen"]) - 1
        np.testing.assert_array_equal(
            kept[at % len(kept)], engine._state(list(TEXT.encode())[at - 1 : at + 1])
        )
        assert not np.array_equal(kept, final.memory.state.window["hidden"])
        assert inside.memory.state.parameters["W"].any()


def test_any_split_of_a_text_gives_the_same_memory():
    found = []
    for parts in ((len(TEXT),), (100, 7, 1, 1, 300, len(TEXT) - 409)):
        with AtlasSession(FakeEngine(n_ctx=2048), INSIDE) as session:
            at = 0
            for size in parts:
                session.feed(TEXT[at : at + size])
                at += size
            found.append(numbers(session))
    for name, array in found[0].items():
        np.testing.assert_allclose(array, found[1][name], rtol=2e-4, atol=2e-5, err_msg=name)


def test_it_is_saved_and_goes_on_with_the_same_tokens(tmp_path):
    path = tmp_path / "inside.atlas"
    with AtlasSession(FakeEngine(n_ctx=2048), INSIDE) as session:
        session.feed(TEXT)
        assert session.open_output()["hidden"].shape == (1, 64)
        session.save(path)
        expected = said(session)
    with AtlasSession(
        FakeEngine(n_ctx=2048), None
    ) as session:  # an engine that has not been asked for it yet
        session.load(path)
        assert session.memory.settings.states == "middle"
        assert session.open_output()["hidden"].shape == (1, 64)
        assert said(session) == expected


def test_a_parked_session_wakes_with_it():
    engine = FakeEngine(n_ctx=2048)
    with AtlasSession(engine, None) as session:
        unpark(session, new_parked(engine, INSIDE))
        session.feed(TEXT)
        parked = parked_of(engine, session.state(context=True))
        expected = said(session)
        assert state_of(engine, parked).output["hidden"].shape == (1, 64)
    with AtlasSession(engine, None) as session:
        unpark(session, parked)
        assert said(session) == expected


def test_sessions_that_look_elsewhere_are_not_disturbed():
    with AtlasSession(FakeEngine(n_ctx=2048), FINAL) as alone:
        alone.feed(TEXT)
        expected, tokens = numbers(alone), said(alone)
    engine = FakeEngine(n_ctx=2048)
    with AtlasSession(engine, FINAL) as final:
        final.feed(TEXT[:100])
        with AtlasSession(engine, INSIDE) as inside:  # from here on the engine gives more
            inside.feed(TEXT)
            final.feed(TEXT[100:])
            for name, array in numbers(final).items():
                np.testing.assert_allclose(array, expected[name], rtol=2e-4, atol=2e-5, err_msg=name)
            assert final.open_output()["hidden"].shape == (1, 32)
            pool = SessionPool(engine)
            jobs = [pool.generate(one, max_tokens=12, sampling=GREEDY) for one in (inside, final)]
            pool.run()
            assert list(jobs[1].text.encode()) == tokens
            assert jobs[0].text


def test_where_there_is_none_a_new_memory_takes_the_final_state_and_an_old_one_is_refused(tmp_path):
    path = tmp_path / "inside.atlas"
    with AtlasSession(FakeEngine(), INSIDE) as session:
        session.feed(TEXT)
        session.save(path)
        state = session.state()
    assert fitting(Shut(), INSIDE) == FINAL
    assert fitting(Shut(), INSIDE.replace(features="polynomial")).states == "middle"  # of no effect there
    with AtlasSession(Shut(), INSIDE) as session:
        assert session.memory.settings == FINAL
        session.feed(TEXT)
    with AtlasSession(Shut(), None) as session:
        with pytest.raises(ModelError, match="middle layer"):
            session.load(path)
        assert session.memory is None
    with pytest.raises(ModelError, match="middle layer"):
        token_memory(Shut(), state)
    with pytest.raises(ModelError, match="did not give"):
        seen(np.zeros((2, 32), np.float32), 64)


def test_vectors_of_texts_are_of_the_final_state():
    def vector(engine: FakeEngine) -> np.ndarray:
        with AtlasSession(engine, None) as session:
            return session.run(pooled_states(session, [list(b"a text")], lambda: None))[0]

    shown = FakeEngine()
    assert shown.show_middle()
    np.testing.assert_array_equal(vector(shown), vector(FakeEngine()))


# --- llama.cpp ---------------------------------------------------------------------------------------------


def test_llama_cpp_gives_each_sequence_its_own(real):
    engine = real(path=TINY, n_ctx=64, n_sequences=3)
    tokens = engine.tokenize("def hello(world):\n    return world + 1\n\nclass A:\n")[:12]
    before = engine.decode([Feed(0, tokens, 0, len(tokens))], hidden=True)[0].hidden.copy()
    assert engine.show_middle()
    width = engine.info.n_embd
    engine.forget(0)
    alone = engine.decode([Feed(0, tokens, 0, len(tokens))], hidden=True)[0].hidden
    np.testing.assert_array_equal(alone[:, :width], before)
    assert (
        2 * np.abs(alone[:, :width]).mean() < np.abs(alone[:, width:]).mean()
    )  # before the norm, it is longer
    engine.forget(0)
    feeds = [Feed(2, tokens[:7], 0, 7), Feed(0, tokens, 0, len(tokens)), Feed(1, tokens[:1], 0, 1)]
    several = engine.decode(feeds, hidden=True)
    for feed, outputs in zip(feeds, several, strict=True):
        np.testing.assert_allclose(outputs.hidden, alone[: len(feed.tokens)], rtol=1e-4, atol=1e-4)
    assert engine.decode([Feed(1, tokens[1:2], 1, 1)])[0].hidden is None
    later = engine.decode([Feed(1, tokens[2:3], 2, 1), Feed(2, tokens[7:9], 7, 2)], hidden=True)
    np.testing.assert_allclose(later[0].hidden, alone[2:3], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(later[1].hidden, alone[7:9], rtol=1e-4, atol=1e-4)


def test_llama_cpp_gives_it_again_when_the_model_wakes(real):
    engine = real(path=TINY, sleeps=True)
    assert engine.show_middle()
    tokens = engine.tokenize("import os\n")
    first = engine.decode([Feed(0, tokens, 0, len(tokens))], hidden=True)[0].hidden.copy()
    engine.sleep()
    again = engine.decode([Feed(0, tokens, 0, len(tokens))], hidden=True)[0].hidden
    np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize("arch", ["llama", "qwen3", "qwen3moe"])
def test_families_that_give_it(arch, real, monkeypatch):
    monkeypatch.setattr("atlas_kit.llama.llama_engine.LEAST_LAYERS", 2)
    engine = real(arch)
    with AtlasSession(engine, INSIDE) as session:
        assert session.memory.settings.states == "middle"
        fed = session.feed("to be or not to be, that is the question: " * 2)
        assert np.isfinite(fed.logprob).all()


def test_others_are_not_asked_because_llama_cpp_would_end_the_process(real):
    assert not real("gemma3").show_middle()


def test_it_is_recommended_for_deep_models_only():
    assert recommend(TINY).settings.states == "final"  # nine layers
