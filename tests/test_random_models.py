"""Models with random weights: every family decodes in llama.cpp, and its logits are what we think they are."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_kit import GGUFFile
from atlas_kit.formats.gguf import check_gguf
from tools import make_random_model as maker

#: These make no text, so there is nothing to read out.
ENCODERS = {"bert"}
DECODERS = sorted(set(maker.FAMILIES) - ENCODERS)
#: llama.cpp leaves the logits out when hidden states are asked for.
NOT_BOTH = {"lfm2"}
#: These divide their logits by ``logit_scale``; the others multiply.
DIVIDE = {"granite", "granitemoe", "granitehybrid", "minicpm"}
TEXT = "Hello, this is a test: na\u00efve \u2603 and 12345.\n"


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Return a function that makes a model once and returns its path."""
    folder, made = tmp_path_factory.mktemp("random"), {}

    def make_once(arch: str, type: str = "f32", **options: Any) -> Path:
        key = (arch, type, *sorted(options.items()))
        if key not in made:
            made[key] = maker.make_model(folder / f"{len(made)}.gguf", arch, type=type, **options)
        return made[key]

    return make_once


# --- the file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", sorted(maker.FAMILIES))
def test_tiny_files_are_valid_and_small(arch, make):
    path = make(arch, "f16")
    assert path.stat().st_size < 2_000_000
    with GGUFFile.open(path) as file:
        assert file.architecture == maker.FAMILIES[arch].architecture
        assert not [found for found in check_gguf(file.source) if found.severity != "note"]


@pytest.mark.parametrize("type", maker.TYPES)
def test_the_same_arguments_give_the_same_bytes(type, tmp_path):
    first, again, other = (
        maker.make_model(tmp_path / name, "llama", type=type, seed=seed).read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first != other
    assert len(first) == len(other)


@pytest.mark.parametrize("type", maker.TYPES)
def test_weights_have_the_stated_spread(type, make):
    with GGUFFile.open(make("llama", type, width=256)) as file:
        for name, deviation in (("output.weight", 3 / 16), ("blk.0.attn_q.weight", 1 / 16)):
            values = file.dequantize(name)
            assert values.std() == pytest.approx(deviation, rel=0.05)
            assert abs(values.mean()) < deviation / 20


def test_a_4_bit_file_has_a_6_bit_read_out(make):
    def types(**options: Any) -> dict[str, str]:
        with GGUFFile.open(make("llama", "q4_0", **options)) as file:
            return {name: file.tensor(name).type.name for name in file.tensors}

    wide = types(width=256)
    assert (wide["output.weight"], wide["token_embd.weight"]) == ("Q6_K", "Q4_0")
    assert types(width=256, tied=True)["token_embd.weight"] == "Q6_K"
    assert types()["output.weight"] == "Q8_0"  # a row of 128 holds no block of 256
    assert {wide[name] for name in wide if "norm" in name} == {"F32"}


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("1b", 1_235_814_400), ("7b", 6_738_415_616)],
    ids=["Llama 3.2 1B", "Llama 2 7B"],
)
def test_real_shapes_have_the_models_own_number_of_parameters(size, parameters):
    family, shape = maker.family_of("llama"), maker.SIZES[size]
    listed = maker.tensors(family, shape, maker.metadata(family, shape))
    assert sum(math.prod(dims) for _, dims in listed) == parameters


def test_a_family_of_the_table_needs_no_recipe(make):
    with GGUFFile.open(make("olmo2")) as file:
        assert file.architecture == "olmo2"


def test_unknown_families_are_refused(tmp_path):
    with pytest.raises(KeyError, match="no recipe for nonsense"):
        maker.make_model(tmp_path / "x", "nonsense")


# --- the tokenizer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [262, 263, 512, 5000])
def test_vocabularies_of_any_size(count):
    tokens, merges = maker.vocabulary(count)
    assert len(tokens) == len(set(tokens)) == count
    assert {merge.replace(" ", "") for merge in merges} <= set(tokens)


def test_a_vocabulary_needs_room_for_every_byte():
    with pytest.raises(ValueError, match="needs 262 tokens, not 261"):
        maker.vocabulary(261)


# --- in llama.cpp ----------------------------------------------------------------------------------------


class Decoded:
    """What llama.cpp gives for ``TEXT``: the last token's logits and hidden state."""

    def __init__(self, api: Any, path: Path, hidden: bool) -> None:
        with contextlib.ExitStack() as stack:
            parameters = api.llama_model_default_params()
            model = api.llama_model_load_from_file(str(path).encode(), parameters)
            assert model, "llama.cpp does not load it"
            stack.callback(api.llama_model_free, model)
            options = api.llama_context_default_params()
            options.n_ctx = options.n_batch = options.n_ubatch = 256
            options.n_threads = options.n_threads_batch = 1
            options.embeddings = hidden
            options.pooling_type = api.LLAMA_POOLING_TYPE_NONE
            context = api.llama_init_from_model(model, options)
            assert context, "llama.cpp makes no context"
            stack.callback(api.llama_free, context)
            self.has_memory = bool(api.llama_get_memory(context))
            vocabulary = api.llama_model_get_vocab(model)
            text, tokens = TEXT.encode(), (api.llama_token * 256)()
            count = api.llama_tokenize(vocabulary, text, len(text), tokens, 256, True, False)
            assert count > 0
            self.tokens = tokens[:count]
            self.text = b"".join(_pieces(api, vocabulary, self.tokens))
            assert api.llama_decode(context, api.llama_batch_get_one(tokens, count)) == 0
            sizes = (api.llama_vocab_n_tokens(vocabulary), api.llama_model_n_embd_out(model))
            self.logits = np.ctypeslib.as_array(api.llama_get_logits_ith(context, -1), sizes[:1]).copy()
            if hidden:
                row = api.llama_get_embeddings_ith(context, -1)
                self.hidden = np.ctypeslib.as_array(row, sizes[1:]).copy()


def _pieces(api: Any, vocabulary: Any, tokens: list[int]) -> Iterator[bytes]:
    for token in tokens:
        room = ctypes.create_string_buffer(64)
        count = api.llama_token_to_piece(vocabulary, token, room, len(room), 0, False)
        yield room.raw[:count]


@pytest.fixture(scope="module")
def decode():
    """Return a function that lets llama.cpp read ``TEXT``."""
    api = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    api.llama_backend_init()
    return lambda path, hidden=True: Decoded(api, path, hidden)


def read_out(file: GGUFFile, hidden: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Compute the logits from the hidden state as llama.cpp's graphs do, for the families tested here."""
    name = "output.weight" if "output.weight" in file.tensors else "token_embd.weight"
    logits = file.dequantize(name) @ hidden
    if "output.bias" in file.tensors:
        logits += file.dequantize("output.bias")
    if scale := file.get(f"{file.architecture}.logit_scale"):
        logits = logits / scale if file.architecture in DIVIDE else logits * scale
    if cap := file.get(f"{file.architecture}.final_logit_softcapping"):
        logits = cap * np.tanh(logits / cap)
    return logits


@pytest.mark.parametrize("arch", DECODERS)
def test_logits_come_from_the_hidden_state(arch, make, decode):
    path = make(arch)
    found = decode(path)
    logits = decode(path, hidden=False).logits if arch in NOT_BOTH else found.logits
    assert np.isfinite(found.hidden).all()
    with GGUFFile.open(path) as file:
        np.testing.assert_allclose(read_out(file, found.hidden), logits, atol=2e-5)


@pytest.mark.parametrize("arch", DECODERS)
def test_the_next_token_is_neither_certain_nor_anything(arch, make, decode):
    logits = decode(make(arch), hidden=False).logits.astype("f8")
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    entropy = -(chances * np.log(chances)).sum()
    assert 0.5 < entropy < math.log(len(chances)) - 0.5


@pytest.mark.parametrize("type", ["q8_0", "q4_0"])
def test_quantised_models_read_out_nearly_the_same(type, make, decode):
    # llama.cpp rounds the hidden state to 8 bits before it multiplies
    path = make("llama", type, width=256)
    found = decode(path)
    with GGUFFile.open(path) as file:
        np.testing.assert_allclose(read_out(file, found.hidden), found.logits, atol=0.2)


def test_text_survives_the_tokenizer(make, decode):
    found = decode(make("llama"))
    assert found.tokens[0] == maker.BOS
    assert found.text == TEXT.encode()


@pytest.mark.parametrize("arch", sorted(ENCODERS))
def test_encoders_have_no_context_to_go_on_from(arch, make, decode):
    assert not decode(make(arch)).has_memory
