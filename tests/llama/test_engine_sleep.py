"""A model that leaves main memory for a while, in llama.cpp."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_kit.errors import ClosedError, InvalidParamError, ModelError
from atlas_kit.llama import Sampling
from atlas_kit.llama.engine import Feed


def test_a_model_that_slept_answers_as_before(real):
    engine = real(sleeps=True)
    tokens = engine.tokenize("def add(a, b):")
    before = engine.decode([Feed(0, tokens, 0, 1)])[0].logits.copy()
    engine.sleep()
    assert engine._context is None
    assert engine.tokenize("def add(a, b):") == tokens
    assert b"".join(map(engine.piece, tokens)).strip() == b"def add(a, b):"
    assert engine.forget(0)
    assert engine._context is None
    engine.sleep()
    after = engine.decode([Feed(0, tokens, 0, 1)])[0].logits
    np.testing.assert_array_equal(before, after)
    engine.sleep()
    engine.wake()
    engine.wake()
    assert list(engine.sampler(Sampling(grammar='root ::= "a"')).candidates) == []
    engine.sleep()
    engine.close()
    with pytest.raises(ClosedError):
        engine.tokenize("a")


def test_texts_are_read_while_it_falls_asleep(real, monkeypatch):
    engine = real(sleeps=True)
    free, read = engine._loaded.sleep, []

    def slowly():
        free()
        read.append((engine.tokenize("def"), engine.piece(5), engine.metadata("general.architecture")))

    before = engine.tokenize("def"), engine.piece(5), engine.metadata("general.architecture")
    monkeypatch.setattr(engine._loaded, "sleep", slowly)
    engine.sleep()
    assert read == [before]
    assert engine._context is None
    rows = engine.output_rows()  # the file's
    assert rows(np.array([1, 2])).shape == (2, engine.info.n_embd)
    assert engine._context is None
    engine.wake()
    monkeypatch.undo()
    engine.sleep()
    assert rows.cached_bytes == 0
    assert engine._context is None


def test_only_who_was_opened_for_it_sleeps(real):
    with pytest.raises(InvalidParamError, match="so that it can sleep"):
        real().sleep()


def test_another_model_does_not_wake_up(real, random_model, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(random_model("llama", "f16").read_bytes())
    engine = real(path=path, sleeps=True)
    engine.sleep()
    other = random_model("llama", "q8_0").read_bytes()
    path.unlink()
    path.write_bytes(other)
    with pytest.raises(ModelError, match="replaced"):
        engine.wake()
    path.unlink()
    path.write_bytes(random_model("llama", "f16").read_bytes())
    assert engine.decode([Feed(0, [1, 2], 0, 1)])
