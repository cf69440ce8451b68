"""A model's file that is looked into when somebody asks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from gguf_builder import split_llama

from atlas_kit.errors import AtlasError, ClosedError, FileCorruptError, ModelError, NoSuchFileError
from atlas_kit.formats.gguf import GGUFFile
from atlas_kit.formats.gguf.digest import model_identity
from atlas_kit.llama import AtlasSession
from atlas_kit.llama.model_file import ModelFile
from atlas_kit.settings.atlas_settings import WHITENED_AFTER


def test_what_is_asked_for_late_is_of_the_file_that_was_opened(random_model, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(random_model().read_bytes())
    with GGUFFile.open(path) as file:
        expected = model_identity(file)
    found = ModelFile(str(path))
    path.unlink()
    path.write_bytes(b"another")
    assert found.identity() == expected
    assert found.check().architecture == "llama"
    assert found.rows(lambda token: False) is found.rows(lambda token: False)
    found.close()
    found.close()
    with pytest.raises(ClosedError):
        found.rows(lambda token: False)
    assert found.identity() == expected  # it is known by now


def test_an_engine_that_looks_later_is_the_same(real):
    now, later = real(), real(check_later=True)
    assert later._loaded.file._file is None  # nothing was read of it
    assert later.info.identity == now.info.identity
    assert dataclasses.asdict(later.info) == dataclasses.asdict(now.info)
    assert later.metadata("general.architecture") == "llama"
    assert later.metadata("no.such.key") is None
    assert later.metadata("tokenizer.ggml.tokens") is None  # a list


def test_what_is_wrong_with_a_file_is_said_as_clearly(real, random_model, tmp_path):
    whole = random_model().read_bytes()
    (tmp_path / "text.gguf").write_text("hello " * 100)
    (tmp_path / "cut.gguf").write_bytes(whole[:-1000])
    (tmp_path / "empty.gguf").write_bytes(b"")
    for name, kind in (
        ("none", NoSuchFileError),
        ("text", AtlasError),
        ("cut", FileCorruptError),
        ("empty", AtlasError),
    ):
        with pytest.raises(kind) as later:
            real(path=tmp_path / f"{name}.gguf", check_later=True)
        with pytest.raises(kind) as now:
            real(path=tmp_path / f"{name}.gguf")
        assert str(later.value) == str(now.value)
    with pytest.raises(ModelError, match="encoder"):
        real("bert", check_later=True)


def test_a_shard_that_is_not_the_first_names_it(real, tmp_path):
    paths = [tmp_path / f"m-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    for path, file in zip(paths, split_llama(3), strict=True):
        path.write_bytes(file.bytes())
    for number, path in enumerate(paths[1:], 2):
        with pytest.raises(ModelError, match=f"this is shard {number} of 3") as found:
            ModelFile(str(path)).check()
        assert str(paths[0]) in found.value.hint
        with pytest.raises(ModelError, match=f"this is shard {number} of 3"):
            real(path=path, check_later=True)
    first = ModelFile(str(paths[0]))
    assert first.check().architecture == "llama"
    first.close()


def test_a_memory_reads_the_file_when_it_has_something_to_correct(real):
    now, later = real(n_ctx=64), real(n_ctx=64, check_later=True)
    tokens = [one % 60 + 3 for one in range(WHITENED_AFTER + 40)]
    sessions = [AtlasSession(engine, True, candidates=16) for engine in (now, later)]
    for part in (slice(0, 40), slice(40, len(tokens))):
        expected, found = (session.feed(tokens[part], score=True) for session in sessions)
        assert found.loss == expected.loss
        assert (later._loaded.file._file is None) is (part.start == 0)
        assert sessions[0].stats["memory"]["state_bytes"] == sessions[1].stats["memory"]["state_bytes"]
    for session in sessions:
        session.close()


def test_what_a_memory_waits_with_takes_as_much_once_it_is_asked_for(real):
    engine = real(n_ctx=64)
    with AtlasSession(engine, True) as session:
        session.feed([5, 6, 7, 8, 9])
        memory = session.memory
        assert memory._asking
        before = memory.state_bytes
        memory.waiting()
        assert not memory._asking
        assert memory.state_bytes == before


def test_what_was_found_to_be_wrong_is_said_to_the_next_who_asks(random_model, monkeypatch):
    found, plain = ModelFile(str(random_model())), (64, 32)
    rows = found.rows(lambda token: False, plain)
    assert not rows.opened
    monkeypatch.setattr(
        "atlas_kit.llama.output_matrix.rows_of_model",
        lambda *_, **__: (_ for _ in ()).throw(FileCorruptError("no")),
    )
    for ask in (rows.prepare, lambda: rows.bias, lambda: found.rows(lambda token: False, plain)):
        with pytest.raises(FileCorruptError, match="no"):
            ask()
    found.close()


def test_a_matrix_of_another_shape_is_refused(random_model):
    found = ModelFile(str(random_model()))
    rows = found.rows(lambda token: False, (3, 2))
    with pytest.raises(FileCorruptError, match="not the one of the loaded model"):
        rows(np.zeros(1, np.int64))
    found.close()
