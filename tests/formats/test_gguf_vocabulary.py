"""The text of tokens from a model's metadata: what llama.cpp says, without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_builder import ARR, I32, KV, STR, Array, File, tiny_llama

from atlas_kit.errors import InvalidParamError
from atlas_kit.formats.gguf import GGUFFile
from atlas_kit.formats.gguf.vocabulary import Vocabulary

SAMPLE = Path(__file__).resolve().parents[2] / "sample_data" / "models" / "tiny-python.gguf"


def words(*tokens: str, kind: str = "llama", types: list[int] | None = None) -> Vocabulary:
    pairs = [KV("tokenizer.ggml.model", STR, kind), KV("tokenizer.ggml.tokens", ARR, Array(STR, tokens))]
    if types is not None:
        pairs.append(KV("tokenizer.ggml.token_type", ARR, Array(I32, types)))
    with GGUFFile.open(File(tuple(pairs)).bytes()) as model:
        return Vocabulary(model)


def test_a_low_line_block_is_a_space_and_a_byte_is_one():
    found = words("<s>", "▁the", "<0xE2>", "<think>", "▁", "<0xZZ>", types=[3, 1, 6, 4, 5, 6])
    assert [found.piece(token) for token in range(len(found))] == [
        b"",
        b" the",
        b"\xe2",
        b"<think>",
        b"",
        b"",
    ]


def test_a_character_stands_for_a_byte():
    found = words("ĠHel", "Ċ", "Ã¼", "中", kind="gpt2")
    assert [found.piece(token) for token in range(4)] == [b" Hel", b"\n", "ü".encode(), "中".encode()]


def test_every_byte_has_its_character():
    with GGUFFile.open(tiny_llama(tokenizer="gpt2").bytes()) as model:
        found = Vocabulary(model)
    assert b"".join(found.piece(token) for token in range(2, 258)) == bytes(range(256))


def test_without_types_all_are_normal():
    assert words("▁a", "b").piece(0) == b" a"


@pytest.mark.parametrize("kind", ["none", "rwkv", "new"])
def test_another_kind_is_refused(kind):
    with pytest.raises(InvalidParamError, match=f"of the kind '{kind}'"):
        words("a", kind=kind)


def test_a_model_without_a_vocabulary_is_refused():
    with (
        GGUFFile.open(tiny_llama(tokenizer="none").bytes()) as model,
        pytest.raises(InvalidParamError, match="has no vocabulary"),
    ):
        Vocabulary(model)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "sample"])
def test_it_is_what_llama_cpp_says(kind, tmp_path):
    pytest.importorskip("llama_cpp")
    from atlas_kit.llama import open_engine

    path = SAMPLE
    if kind != "sample":
        path = tmp_path / "tiny.gguf"
        path.write_bytes(tiny_llama(tokenizer=kind).bytes())
    with GGUFFile.open(path) as model:
        found = Vocabulary(model)
    engine = open_engine(str(path), n_ctx=64, n_threads=1)
    try:
        assert len(found) == engine.info.n_vocab
        assert [found.piece(n) for n in range(len(found))] == [engine.piece(n) for n in range(len(found))]
    finally:
        engine.close()
