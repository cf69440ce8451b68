"""The engine's contract, kept by the fake engine and by llama.cpp; then what only llama.cpp can get wrong."""

from __future__ import annotations

import ctypes
import os
import tracemalloc

import numpy as np
import pytest

from atlas_kit.errors import (
    AtlasError,
    FileCorruptError,
    InvalidParamError,
    MissingExtraError,
    ModelError,
    NoSuchFileError,
)
from atlas_kit.llama import FakeEngine, llama_engine, llama_library
from atlas_kit.llama.engine import DecodeError, Feed

TOKENS = [72, 101, 108, 108, 111, 44, 32, 119, 111, 114, 108, 100, 33, 10, 72, 101]


def read(engine, tokens, sequence=0, position=0, outputs=None, hidden=False):
    """Decode and return copies of (logits, hidden)."""
    feed = Feed(sequence, tokens, position, len(tokens) if outputs is None else outputs)
    out = engine.decode([feed], hidden=hidden)[0]
    return out.logits.copy(), None if out.hidden is None else out.hidden.copy()


# --- decoding ---------------------------------------------------------------------------------------------


def test_outputs_are_the_last_rows(engine):
    whole, states = read(engine, TOKENS, hidden=True)
    assert whole.shape == (16, engine.info.n_vocab)
    assert states.shape == (16, engine.info.n_embd)
    assert whole.dtype == states.dtype == np.float32
    for count in (0, 1, 5, 16):
        engine.forget(0)
        logits, hidden = read(engine, TOKENS, outputs=count, hidden=True)
        assert len(logits) == len(hidden) == count
        np.testing.assert_allclose(logits, whole[16 - count :], atol=1e-5)
        np.testing.assert_allclose(hidden, states[16 - count :], atol=1e-5)
        engine.forget(0)
        logits, hidden = read(engine, TOKENS, outputs=count)
        assert hidden is None
        # llama.cpp sums in another order when it computes fewer rows
        np.testing.assert_allclose(logits, whole[16 - count :], atol=2e-3)


def test_parts_continue_each_other(engine):
    whole, _ = read(engine, TOKENS)
    first, _ = read(engine, TOKENS[:5], sequence=1)
    second, _ = read(engine, TOKENS[5:], sequence=1, position=5)
    np.testing.assert_allclose(np.concatenate((first, second)), whole, atol=1e-3)


def test_sequences_do_not_see_each_other(engine):
    alone, _ = read(engine, TOKENS)
    engine.forget(0)
    out = engine.decode([Feed(0, TOKENS[:10], 0, 10), Feed(1, TOKENS[::-1], 0, 3)])
    assert [len(one.logits) for one in out] == [10, 3]
    assert [one.index for one in out] == [0, 23]
    np.testing.assert_allclose(out[0].logits, alone[:10], atol=1e-3)
    out = engine.decode([Feed(1, TOKENS[:4], 16, 0), Feed(0, TOKENS[10:], 10, 6)], hidden=True)
    assert [len(one.hidden) for one in out] == [0, 6]
    np.testing.assert_allclose(out[1].logits, alone[10:], atol=1e-3)


def test_a_context_is_saved_without_a_list_of_its_bytes(real):
    engine = real(n_ctx=1024, n_batch=512)
    read(engine, [1 + i % 200 for i in range(500)], outputs=1)
    size = len(engine.save_sequence(0))
    tracemalloc.start()
    try:
        data = engine.save_sequence(0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data) == size > 50_000
    assert peak < 2.5 * size + 20_000
    assert engine.load_sequence(0, data)
    assert engine.save_sequence(0) == data


def test_the_order_of_feeds_does_not_matter(engine):
    ordered = [
        one.logits.copy() for one in engine.decode([Feed(0, TOKENS[:9], 0, 2), Feed(1, TOKENS[3:], 0, 3)])
    ]
    for sequence in (0, 1):
        engine.forget(sequence)
    swapped = engine.decode([Feed(1, TOKENS[3:], 0, 3), Feed(0, TOKENS[:9], 0, 2)])
    np.testing.assert_array_equal(swapped[1].logits, ordered[0])
    np.testing.assert_array_equal(swapped[0].logits, ordered[1])
    if not isinstance(engine, FakeEngine):  # and samplers find the rows
        from atlas_kit.llama import Sampling

        for one in swapped:
            assert (
                engine.sampler(Sampling(temperature=0)).sample(one.logits[0], one.index)
                == one.logits[0].argmax()
            )


def test_batches_reach_llama_cpp_sorted(real, monkeypatch):
    engine, seen = real(n_sequences=4), []
    decode = engine._lib.api.llama_decode

    def look(context, batch):
        seen.append([batch.seq_id[i][0] for i in range(batch.n_tokens)])
        return decode(context, batch)

    monkeypatch.setattr(engine._lib.api, "llama_decode", look)
    engine.decode([Feed(2, [1, 2], 0, 1), Feed(0, [3], 0, 1), Feed(3, [4], 0, 1), Feed(1, [5, 6], 0, 1)])
    assert seen == [[0, 1, 1, 2, 2, 3]]


@pytest.mark.parametrize("arch", ["llama", "mamba"])
@pytest.mark.parametrize("status", [1, -1, -3])
def test_a_failed_batch_is_taken_back(arch, status, real, monkeypatch):
    try:
        engine = real(arch, n_sequences=2)
    except KeyError:
        pytest.skip(f"no recipe for {arch}")
    expected, _ = read(engine, TOKENS, outputs=1)
    engine.forget(0)
    read(engine, TOKENS[:8], outputs=1)
    with monkeypatch.context() as patch:
        patch.setattr(engine._lib.api, "llama_decode", lambda *_: status)
        with pytest.raises(DecodeError) as caught:
            engine.decode([Feed(1, [1, 2], 0, 1), Feed(0, TOKENS[8:], 8, 1)])
    whole = engine.info.recurrent and status == -3
    assert caught.value.emptied == ({0, 1} if whole else frozenset())
    again, _ = read(engine, TOKENS if whole else TOKENS[8:], position=0 if whole else 8, outputs=1)
    np.testing.assert_allclose(again, expected, atol=5e-3)


def test_decodes_are_counted(engine):
    before = engine.decodes
    read(engine, TOKENS)
    assert engine.decodes == before + 1


def test_a_batch_has_a_bound(engine):
    for tokens in ([], [1] * 33):
        with pytest.raises(InvalidParamError, match=f"{len(tokens)} tokens are not 1 to 32"):
            engine.decode([Feed(0, tokens, 0, 0)])
    assert read(engine, [1] * 32)[0].shape[0] == 32


@pytest.mark.parametrize(("sequence", "outputs"), [(2, 1), (-1, 1), (0, 3), (0, -1)])
def test_what_there_is_not_cannot_be_asked_for(sequence, outputs, engine):
    with pytest.raises(InvalidParamError, match="cannot give"):
        engine.decode([Feed(sequence, [1, 2], 0, outputs)])


def test_a_full_context_is_an_error_and_leaves_an_empty_one(engine):
    whole, _ = read(engine, TOKENS)
    engine.forget(0)

    def fill():
        for position in range(0, 600, 16):  # llama.cpp rounds sizes up to 256
            read(engine, TOKENS, position=position)

    with pytest.raises(ModelError, match="could not read") as caught:
        fill()
    assert "\n" not in str(caught.value)
    again, _ = read(engine, TOKENS)
    np.testing.assert_allclose(again, whole, atol=1e-3)


def test_shifting_is_as_if_the_rest_had_been_said(engine):
    assert engine.can_shift
    read(engine, TOKENS)
    engine.shift(0, 4, 8)  # 4 + the last 4
    shifted, _ = read(engine, [65], position=8)
    read(engine, TOKENS[:4] + TOKENS[12:], sequence=1)
    plain, _ = read(engine, [65], sequence=1, position=8)
    if isinstance(engine, FakeEngine):
        np.testing.assert_allclose(shifted, plain, atol=1e-5)
    else:  # the states kept were computed beside what was dropped
        assert np.corrcoef(shifted.ravel(), plain.ravel())[0, 1] > 0.7


def test_forgetting(engine):
    whole, _ = read(engine, TOKENS)
    assert engine.forget(0, 10)
    again, _ = read(engine, TOKENS[10:], position=10)
    np.testing.assert_allclose(again, whole[10:], atol=1e-3)
    assert engine.forget(0)
    again, _ = read(engine, TOKENS)
    np.testing.assert_allclose(again, whole, atol=1e-3)


def test_a_saved_sequence_goes_on(engine):
    read(engine, TOKENS)
    data = engine.save_sequence(0)
    assert isinstance(data, bytes)
    went_on, _ = read(engine, [65, 66], position=16)
    read(engine, TOKENS[::-1], sequence=1)
    assert engine.load_sequence(1, data)
    loaded, _ = read(engine, [65, 66], sequence=1, position=16)
    np.testing.assert_allclose(loaded, went_on, atol=1e-4)


def test_bytes_that_are_no_saved_sequence(engine):
    read(engine, TOKENS)
    data = engine.save_sequence(0)
    read(engine, TOKENS[:3], sequence=1)
    for damaged in (b"", b"x" * 100, data[: len(data) // 2], b"\xff" * len(data)):
        assert not engine.load_sequence(1, damaged)
    engine.forget(1)
    assert engine.load_sequence(1, data)  # and it is none the worse


def test_closing_twice(open_engine):
    engine = open_engine()
    with engine:
        read(engine, TOKENS)
    engine.close()
    engine.close()


# --- text -------------------------------------------------------------------------------------------------

TEXTS = [
    "",
    "plain",
    "a\x00b\x00",
    "na\u00efve \u2603 \U0001f389\u200d\U0010ffff",
    "\ufeff\u202e\u0301",
    "<|end|>",
    "\r\n\t  ",
    "x" * 4000,
]


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_text_survives(text, engine):
    tokens = engine.tokenize(text)
    assert all(0 <= token < engine.info.n_vocab for token in tokens)
    assert b"".join(engine.piece(token) for token in tokens) == text.encode()


def test_text_that_was_no_utf8(engine):
    engine.tokenize(b"caf\xe9".decode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidParamError, match="half a character"):
        engine.tokenize("\ud83c")


def test_the_end_has_no_text(engine):
    ends = [token for token in range(engine.info.n_vocab) if engine.is_end(token)]
    assert ends
    assert all(not engine.piece(token) for token in ends)
    assert all(engine.piece(token, special=True) for token in ends)


# --- the read-out -----------------------------------------------------------------------------------------


def test_logits_follow_from_states(engine):
    logits, hidden = read(engine, TOKENS, hidden=True)
    rows = engine.output_rows()
    assert rows is engine.output_rows() or isinstance(engine, FakeEngine)
    np.testing.assert_allclose(rows.logits(hidden, rows.whole()), logits, atol=0.02)
    tokens = np.array([3, 50, 200])
    np.testing.assert_array_equal(rows(tokens), rows.whole()[tokens])


# --- llama.cpp alone --------------------------------------------------------------------------------------


def plain_logits(path, parts, n_ctx=64, n_batch=32):
    """Drive llama.cpp directly and return all logits."""
    import llama_cpp as api

    llama_library.library()  # for its silence
    model = api.llama_model_load_from_file(os.fsencode(path), api.llama_model_default_params())
    params = api.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_batch, n_batch
    params.n_threads = params.n_threads_batch = 1
    context = api.llama_init_from_model(model, params)
    n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    batch, found, position = api.llama_batch_init(n_batch, 0, 1), [], 0
    for part in parts:
        batch.n_tokens = len(part)
        for i, token in enumerate(part):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position + i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, 1
        assert api.llama_decode(context, batch) == 0
        position += len(part)
        view = np.ctypeslib.as_array(api.llama_get_logits(context), (len(part), n_vocab))
        found.append(view.copy())
    api.llama_batch_free(batch)
    api.llama_free(context)
    api.llama_model_free(model)
    return np.concatenate(found)


@pytest.mark.parametrize("arch", ["llama", "gemma2", "mamba"])
def test_without_states_logits_are_those_of_plain_llama_cpp(arch, real, random_model):
    engine = real(arch, n_sequences=1)
    parts = [TOKENS, TOKENS[:3], TOKENS[5:6]]
    position, found = 0, []
    for part in parts:
        found.append(read(engine, part, position=position)[0])
        position += len(part)
    np.testing.assert_array_equal(np.concatenate(found), plain_logits(random_model(arch), parts))


def test_states_do_not_change_logits(real):
    engine = real(n_sequences=1)
    plain, _ = read(engine, TOKENS)
    engine.forget(0)
    beside, _ = read(engine, TOKENS, hidden=True)
    np.testing.assert_array_equal(plain, beside)


def test_arrays_are_views(real):
    engine = real()
    out = engine.decode([Feed(0, TOKENS, 0, 16)], hidden=True)[0]
    before = out.logits.copy()
    engine.decode([Feed(0, TOKENS[::-1], 16, 16)], hidden=True)
    assert not np.array_equal(out.logits, before)


def test_the_fake_engines_arrays_end_with_the_next_decode():
    engine = FakeEngine()
    out = engine.decode([Feed(0, TOKENS, 0, 16)], hidden=True)[0]
    engine.decode([Feed(1, TOKENS, 0, 16)])
    assert np.isnan(out.logits).all()
    assert np.isnan(out.hidden).all()


def test_where_llama_cpp_gives_no_logits_beside_states(real):
    engine = real("lfm2")
    plain, _ = read(engine, TOKENS)  # leaves logits behind, which are not the next decode's
    engine.forget(0)
    beside, _ = read(engine, TOKENS[::-1], hidden=True)
    engine.forget(0)
    expected, _ = read(engine, TOKENS[::-1])
    np.testing.assert_allclose(beside, expected, atol=0.02)
    assert sum("computed here" in note for note in engine.notes) == 1
    engine.forget(0)
    again, _ = read(engine, TOKENS, hidden=True)
    np.testing.assert_allclose(again, plain, atol=0.02)
    assert sum("computed here" in note for note in engine.notes) == 1


@pytest.mark.parametrize(
    ("arch", "can"), [("llama", True), ("mamba", False), ("jamba", False), ("gemma2", False)]
)
def test_which_contexts_can_be_shifted(arch, can, real):
    assert real(arch).can_shift is can


def test_what_a_model_is(real, random_model):
    info = real().info
    assert (info.n_vocab, info.n_embd, info.n_layer, info.n_ctx_train) == (512, 128, 3, 512)
    assert info.architecture == "llama"
    assert info.name == "random weights, tiny"
    assert len(bytes.fromhex(info.identity)) == 32
    assert "add_generation_prompt" in info.chat_template
    assert real(path=random_model(seed=1)).info.identity != info.identity
    assert real("mamba").info.recurrent
    assert real("jamba").info.hybrid
    assert not info.recurrent
    assert not info.hybrid


def test_names_of_control_tokens(real):
    engine = real()
    assert engine.begin == (0,)
    assert engine.tokenize("<|end|>", special=True) == [5]
    assert len(engine.tokenize("<|end|>")) > 1
    assert engine.piece(5, special=True) == b"<|end|>"


@pytest.mark.parametrize("token", [-1, 512, 1 << 31])
def test_tokens_that_are_none(token, real):
    with pytest.raises(InvalidParamError, match="there is no token"):
        real().piece(token)


@pytest.mark.parametrize("token", [-1, 512])
def test_a_token_outside_the_vocabulary_is_not_read(token, real):
    with pytest.raises(ModelError, match="could not read"):
        read(real(), [token])


def test_a_closed_model_says_so(real):
    from atlas_kit.llama import Sampling

    engine = real()
    engine.close()
    calls = [
        lambda: read(engine, TOKENS),
        lambda: engine.tokenize("a"),
        lambda: engine.piece(1),
        lambda: engine.is_end(1),
        lambda: engine.can_shift,
        lambda: engine.shift(0, 0, 1),
        lambda: engine.save_sequence(0),
        lambda: engine.load_sequence(0, b""),
        lambda: engine.sampler(Sampling()),
    ]
    for call in calls:
        with pytest.raises(ModelError, match="the model is closed"):
            call()
    assert not engine.forget(0)


# --- loading ----------------------------------------------------------------------------------------------


def refused(call, kind, words):
    """Check that a call fails in one sentence that has some words."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert words in text
    assert "\n" not in text
    assert len(text) < 400


def test_files_that_are_no_models(real, random_model, tmp_path):
    whole = random_model().read_bytes()
    (tmp_path / "text.gguf").write_text("hello " * 100)
    (tmp_path / "cut.gguf").write_bytes(whole[:-1000])
    (tmp_path / "head.gguf").write_bytes(whole[:3000])
    (tmp_path / "empty.gguf").write_bytes(b"")
    refused(lambda: real(path=tmp_path / "none.gguf"), NoSuchFileError, "none.gguf")
    refused(lambda: real(path=tmp_path), AtlasError, str(tmp_path))
    refused(lambda: real(path=tmp_path / "text.gguf"), AtlasError, "text.gguf")
    refused(lambda: real(path=tmp_path / "cut.gguf"), FileCorruptError, "cut.gguf")
    refused(lambda: real(path=tmp_path / "head.gguf"), AtlasError, "head.gguf")
    refused(lambda: real(path=tmp_path / "empty.gguf"), AtlasError, "empty.gguf")


def test_a_vocabulary_alone_is_refused(real, tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "vocab.gguf", "llama")
    from tools.make_random_model import _add_tokenizer

    _add_tokenizer(writer, 512)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(lambda: real(path=tmp_path / "vocab.gguf"), AtlasError, "vocab.gguf")


def test_an_encoder_is_refused(real):
    refused(lambda: real("bert"), ModelError, "encoder")


def test_an_architecture_that_llama_cpp_does_not_know(real, random_model, tmp_path):
    path = tmp_path / "new.gguf"
    path.write_bytes(random_model().read_bytes().replace(b"llama", b"lhama"))
    refused(lambda: real(path=path), AtlasError, "new.gguf")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("n_ctx", 0), ("n_ctx", 15), ("n_ctx", -1), ("n_ctx", 1 << 25), ("n_ctx", True), ("n_ctx", 64.0),
        ("n_batch", 0), ("n_batch", -5), ("n_sequences", 0), ("n_sequences", 257),
        ("n_threads", 0), ("n_threads", 100_000),
    ],
)  # fmt: skip
def test_options_out_of_range(option, value, real):
    with pytest.raises(InvalidParamError, match=f"{option} is {value}") as caught:
        real(**{option: value})
    assert caught.value.key == option
    assert "Choose" in caught.value.hint


def test_defaults(real, random_model):
    engine = real(n_ctx=None, n_batch=None, n_sequences=1, n_threads=None)
    assert engine.n_ctx == 512  # what it was trained with
    assert engine.n_batch == 512
    assert not [note for note in engine.notes if "trained" in note]
    assert real(n_ctx=1024).notes[-1].startswith("a context of 1024 tokens is more than the 512")


def test_a_missing_library(monkeypatch, random_model):
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp", None)
    monkeypatch.setattr(llama_library, "_library", None)
    refused(lambda: llama_engine.LlamaEngine(random_model()), MissingExtraError, "llama")


# --- AMX --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("has_amx", "wanted", "environment", "expected"),
    [
        (False, None, None, True), (True, None, None, False),
        (True, True, None, True), (False, False, None, False),
        (True, None, "1", True), (False, None, "0", False),
        (True, False, "1", False), (False, True, "0", True),  # the caller comes first
        (True, None, "yes", False), (False, None, "", True),
    ],
)  # fmt: skip
def test_special_buffers(has_amx, wanted, environment, expected, monkeypatch):
    monkeypatch.delenv("ATLAS_KIT_EXTRA_BUFFERS", raising=False)
    if environment is not None:
        monkeypatch.setenv("ATLAS_KIT_EXTRA_BUFFERS", environment)
    assert llama_library._safe_buffers(has_amx, wanted) is expected


def test_a_cpu_with_amx_is_told_about_once(real, monkeypatch):
    library = llama_library.library() if pytest.importorskip("llama_cpp") else None
    monkeypatch.delenv("ATLAS_KIT_EXTRA_BUFFERS", raising=False)
    monkeypatch.setattr(library, "has_amx", True)
    engine = real()
    assert [note for note in engine.notes if "AMX" in note] == [llama_library._AMX_NOTE]
    read(engine, TOKENS)
    assert len([note for note in engine.notes if "AMX" in note]) == 1
    assert not [note for note in real(extra_buffers=False).notes if "AMX" in note]
    monkeypatch.setattr(library, "has_amx", False)
    assert not [note for note in real().notes if "AMX" in note]


def test_what_llama_cpp_says_is_kept_and_not_printed(real, random_model, tmp_path, capfd):
    path = tmp_path / "wrong.gguf"
    path.write_bytes(random_model().read_bytes().replace(b"blk.1.attn_q.weight", b"blk.1.attn_x.weight"))
    with pytest.raises(ModelError, match="attn_q"):
        real(path=path)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


@pytest.mark.model
def test_the_log_callback_keeps_whole_lines():
    pytest.importorskip("llama_cpp")
    library = llama_library.library()
    library.log.clear()
    library._logged(2, b"information\n", ctypes.c_void_p(0))
    library._logged(5, b"that goes on\n", ctypes.c_void_p(0))
    library._logged(4, b"load: error: bad \xff\n", ctypes.c_void_p(0))
    assert list(library.log) == ["load: error: bad \ufffd"]
    assert library.last_error() == "error: bad \ufffd"
    library.log.clear()
    assert library.last_error() == "no reason given"
