"""Every family of models: it reads, learns, generates, is saved and loaded, and goes on with the same tokens."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_kit.errors import ModelError
from atlas_kit.llama import AtlasSession, Sampling
from atlas_kit.llama.engine import Feed
from atlas_kit.settings.atlas_settings import AtlasSettings
from tools import make_random_model as maker

DECODERS = sorted(set(maker.FAMILIES) - {"bert"})
GREEDY = Sampling(temperature=0)
SMALL = AtlasSettings(window_size=64, memory_dim=16, omega_window=16, chunk_size=8, candidates=32)
TEXT = "to be or not to be, that is the question: to be or not to be. "


def tokens_of(session, count=8):
    found = [token.id for token in session.generate(max_tokens=count, sampling=GREEDY)]
    return [token for token in found if token >= 0]


def test_these_are_all():
    assert len(DECODERS) >= 22


@pytest.mark.parametrize("arch", DECODERS)
def test_a_family_learns_is_kept_and_goes_on(arch, real, tmp_path):
    path = tmp_path / "memory.atlas"
    engine = real(arch)
    with AtlasSession(engine, SMALL) as session:
        fed = session.feed(TEXT * 2)  # more than the context
        assert np.isfinite(fed.logprob).all()
        assert fed.loss < fed.model_loss  # random weights know nothing, and the text repeats itself
        assert session.stats["rollovers"] == (0 if engine.info.recurrent else session.stats["rollovers"])
        session.save(path)
        learned = {n: a.copy() for n, a in session.memory.state.parameters.items()}
        context = session.context_tokens
        expected = tokens_of(session)
    assert any(array.any() for array in learned.values())
    with AtlasSession(engine, None) as session:
        session.load(path)
        assert session.context_tokens == context
        for name, array in learned.items():
            np.testing.assert_array_equal(session.memory.state.parameters[name], array)
        assert tokens_of(session) == expected


@pytest.mark.parametrize("arch", DECODERS)
def test_a_family_without_a_memory(arch, real):
    engine = real(arch)
    with AtlasSession(engine, None) as session:
        tokens = [*engine.begin, *engine.tokenize(TEXT[:30])]
        session.feed(tokens, score=False)
        found = tokens_of(session, 4)
    logits = engine.decode([Feed(0, tokens, 0, 1)])[0].logits[0]
    assert not found or found[0] == logits.argmax()


@pytest.mark.parametrize("arch", DECODERS)
def test_two_sequences_of_a_family_are_independent(arch, real):
    # recurrent and hybrid models are cut into batches in another order
    engine = real(arch)
    tokens = engine.tokenize(TEXT[:30])
    n = len(tokens) // 2
    alone = engine.decode([Feed(0, tokens, 0, len(tokens))], hidden=True)[0]
    logits, hidden = alone.logits.copy(), alone.hidden.copy()
    engine.forget(0)
    one, two = engine.decode([Feed(0, tokens[:n], 0, n), Feed(1, tokens[::-1][:5], 0, 2)], hidden=True)
    np.testing.assert_allclose(one.hidden, hidden[:n], atol=0.02)
    np.testing.assert_allclose(one.logits, logits[:n], atol=0.05)
    assert two.logits.shape == (2, 512)
    two, one = engine.decode(
        [Feed(1, tokens[:3], 5, 1), Feed(0, tokens[n:], n, len(tokens) - n)], hidden=True
    )
    np.testing.assert_allclose(one.logits, logits[n:], atol=0.05)


def test_an_encoder_is_refused(real):
    with pytest.raises(ModelError, match="encoder"):
        real("bert")


@pytest.mark.parametrize("type", ["f32", "q8_0", "q4_0"])
def test_quantised_models(type, real, tmp_path):
    engine = real("llama", type)
    with AtlasSession(engine, SMALL) as session:
        assert np.isfinite(session.feed(TEXT).logprob).all()
        session.save(tmp_path / "m.atlas")
        expected = tokens_of(session)
    with AtlasSession(engine, None) as session:
        session.load(tmp_path / "m.atlas")
        assert tokens_of(session) == expected
