"""A vocabulary without weights cuts texts as the whole model does, and a model without one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_kit.errors import AtlasError, InvalidParamError, ModelError
from atlas_kit.llama.words_only import MOST, WordsOnly

pytestmark = pytest.mark.model
TEXTS = ["", "Hello", "naïve 記憶 \U0001f389", "\x00", "def f():\n    return 1\n", "\udcff"]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_cut_as_the_model_cuts_them(sample_data: Path, text: str):
    from atlas_kit.llama.llama_engine import LlamaEngine

    path = sample_data / "models/tiny-python.gguf"
    with WordsOnly(path) as words, LlamaEngine(path, n_ctx=64) as engine:
        tokens = words.tokenize(text)
        assert tokens == engine.tokenize(text)
        assert [words.piece(token) for token in tokens] == [
            engine.piece(token, special=True) for token in tokens
        ]
        assert words.tokenize(text, special=True) == engine.tokenize(text, special=True)


@pytest.mark.parametrize(
    "name", ["gguf/micro.gguf", "broken/truncated.gguf", "atlas/assistant.atlas", "none.gguf"]
)
def test_what_has_no_words_is_refused_before_llama_cpp_sees_it(sample_data: Path, name: str):
    with pytest.raises(AtlasError) as refused:
        WordsOnly(sample_data / name)
    if name.endswith("micro.gguf"):
        assert refused.type is ModelError
        assert "no vocabulary" in str(refused.value)


def test_a_text_without_end_is_refused(sample_data: Path):
    words = WordsOnly(sample_data / "gguf/tiny.gguf")
    with pytest.raises(InvalidParamError):
        words.tokenize("x" * (MOST + 1))
    with pytest.raises(InvalidParamError):
        words.piece(10**6)
    words.close()
    words.close()
