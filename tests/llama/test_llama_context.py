"""A context that is made while others still import what is to use it."""

from __future__ import annotations

import os

import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama import llama_context
from atlas_kit.llama.engine import Feed
from atlas_kit.llama.llama_context import Wanted, context_of, prepare
from atlas_kit.llama.llama_engine import LlamaEngine
from atlas_kit.llama.llama_library import LoadedModel


@pytest.fixture
def loaded(real, monkeypatch):
    """A model, and the contexts that were made and freed since."""
    path = real().info.path
    model = LoadedModel(path, check_later=True)
    made: list[str] = []
    api = model.library.api

    def count(name, call):
        monkeypatch.setattr(api, name, lambda *arguments: (made.append(name), call(*arguments))[1])

    for name in ("llama_init_from_model", "llama_free"):
        count(name, getattr(api, name))
    yield model, made
    model.close()


def test_an_engine_takes_over_the_context_that_was_prepared(loaded):
    model, made = loaded
    prepare(model, Wanted(n_ctx=64, n_sequences=2, n_threads=1))
    with LlamaEngine(model.path, n_ctx=64, n_sequences=2, n_threads=1, loaded=model) as engine:
        assert made == ["llama_init_from_model"]
        assert (engine.n_ctx, engine.n_sequences, engine.n_threads) == (64, 2, 1)
        assert engine.n_batch == 64
        assert model.prepared is None
    assert made == ["llama_init_from_model", "llama_free"]


def test_another_context_than_is_wanted_is_freed(loaded):
    model, made = loaded
    prepare(model, Wanted(n_ctx=64))
    prepare(model, Wanted(n_ctx=32))
    with LlamaEngine(model.path, n_ctx=64, n_threads=1, loaded=model) as engine:
        assert engine.n_ctx == 64
    assert made.count("llama_init_from_model") == made.count("llama_free") == 3


def test_what_nobody_takes_goes_with_the_model(loaded):
    model, made = loaded
    prepare(model, Wanted(n_ctx=32))
    model.close()
    assert made == ["llama_init_from_model", "llama_free"]


def test_what_is_wanted_is_checked_and_a_long_context_is_said(loaded):
    model, made = loaded
    with pytest.raises(InvalidParamError, match="n_sequences is 0"):
        prepare(model, Wanted(n_sequences=0))
    assert made == []
    context = context_of(model, Wanted(n_ctx=1 << 14))
    assert context.n_threads == len(os.sched_getaffinity(0))
    assert "more than the" in context.notes[0]
    model.library.api.llama_free(context.pointer)


@pytest.mark.parametrize(("wanted", "sizes"), [
    ({"n_ctx": 64}, (64, 64, 64)), ({"n_ctx": 64, "n_sequences": 4}, (64, 256, 256)),
    ({"n_ctx": 128, "n_sequences": 50}, (128, 512, 512)), ({"n_ctx": 256, "n_batch": 48}, (48, 48, 48)),
    ({"n_ctx": 16, "n_sequences": 2}, (16, 32, 32)),
])  # fmt: skip
def test_a_decode_takes_more_for_many_sequences_than_for_one(wanted, sizes, loaded):
    model, _ = loaded
    with LlamaEngine(model.path, n_threads=1, loaded=model, **wanted) as engine:
        assert (engine.n_batch, engine.n_together, engine.n_outputs) == sizes


def test_a_large_vocabulary_gives_fewer_outputs(loaded, monkeypatch):
    model, _ = loaded
    n_vocab = model.library.api.llama_vocab_n_tokens(model.vocab)
    monkeypatch.setattr(llama_context, "OUTPUT_BYTES", 4 * n_vocab * 40)
    monkeypatch.setattr(llama_context, "TOGETHER_BYTES", 4 * n_vocab * 100)
    with LlamaEngine(model.path, n_threads=1, loaded=model, n_ctx=64, n_sequences=8) as engine:
        assert (engine.n_batch, engine.n_together, engine.n_outputs) == (32, 512, 96)
        texts = [Feed(at, [1 + at] * 60, 0, 1) for at in range(8)]
        assert [len(one.logits) for one in engine.decode(texts)] == [1] * 8
        for outputs, hidden in ((60, False), (1, True)):
            with pytest.raises(InvalidParamError):
                engine.decode([Feed(at, [1] * 60, 0, outputs) for at in range(2)], hidden=hidden)
