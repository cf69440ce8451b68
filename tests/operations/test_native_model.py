"""Settings and a learned memory that an ATLAS-native model carries: written, read, bound, and hostile."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_builder import (
    ARR,
    BOOL,
    F32,
    F64,
    I32,
    KV,
    STR,
    U8,
    U32,
    U64,
    Array,
    File,
    split_llama,
    tiny_llama,
)
from llama_oracle import LlamaOracle, OracleUnavailableError

from atlas_kit import MemoryFile
from atlas_kit.errors import (
    FileAccessError,
    FileCorruptError,
    InvalidParamError,
    KeyNotFoundError,
    NoSuchFileError,
    Remedy,
    TruncatedError,
    VersionMismatchError,
    WrongModelError,
)
from atlas_kit.formats.gguf import GGUFFile, Set, edit_metadata, model_identity, tables
from atlas_kit.memory import Memory
from atlas_kit.operations import native_model
from atlas_kit.operations.convert import ConvertOptions, convert_file
from atlas_kit.persistence.snapshot import save_memory
from atlas_kit.settings.atlas_settings import AtlasSettings, settings_table
from atlas_kit.settings.native import native_settings, native_values
from atlas_kit.settings.recommend import recommend
from atlas_kit.storage.keys import Keys

TINY = tiny_llama(layers=1)
#: Every setting away from its default, so that nothing passes by luck.
ODD = AtlasSettings(
    window_size=77, learning_rate=0.1, polynomial_degree=1, use_muon=True, memory_dim=9, warmup_tokens=5,
    blend_ratio=0.3, features="sparse", memory_rank=55, even_steps=44, states="middle", omega_window=33, chunk_size=7,
    sharpness=12.5, likeness="learned",
    ranking=False, candidates=99, episode_tokens=5, recall="off", recall_segments=2, recall_gate=0.25,
)  # fmt: skip
BASE = (KV("atlas.version", U32, 1), KV("atlas.enabled", BOOL, 1))


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(TINY.bytes())
    return path


@pytest.fixture
def learned(tmp_path: Path, stock: Path) -> Callable[..., Path]:
    """Return a function that writes a memory of the model (or of another, or of none)."""

    def write(name: str = "session.atlas", whose: str | None = "", width: int = 32, **options: Any) -> Path:
        settings = AtlasSettings(window_size=16, memory_dim=8)
        memory = Memory(settings.memory_config(width))
        with GGUFFile.open(stock) as file:
            identity = model_identity(file) if whose == "" else whose
        (tmp_path / "memories").mkdir(exist_ok=True)
        path = tmp_path / "memories" / name
        save_memory(path, memory, memory.init(), model_hash=identity, **options)
        return path

    return write


def native(*pairs: KV, model: File = TINY) -> GGUFFile:
    return GGUFFile.from_bytes(model.with_kv(*BASE).with_kv(*pairs).bytes())


def make_native(stock: Path, out: Path, **options: Any) -> Any:
    return convert_file(stock, out, ConvertOptions(**options))


def all_settings(settings: AtlasSettings) -> Callable[[AtlasSettings], AtlasSettings]:
    return lambda _: settings


# --- the keys ------------------------------------------------------------------------------------------------


def test_there_is_a_key_for_every_setting_and_it_says_the_same() -> None:
    """``formats`` may not import ``operations``, so both have a table: this keeps them equal."""
    named = {"bool": "bool", "int": "u32", "float": "f64", "str": "str"}
    wanted = [
        (f"atlas.memory.{row.name}", named[type(row.default).__name__], row.note) for row in settings_table()
    ]
    rows = [
        (row.key, row.type, row.meaning) for row in tables.ATLAS_KEYS if row.key.startswith("atlas.memory.")
    ]
    assert rows[: len(wanted)] == wanted
    assert [key for key, _, _ in rows[len(wanted) :]] == [
        f"atlas.memory.{n}" for n in ("file", "hash", "model")
    ]


@pytest.mark.parametrize("settings", [AtlasSettings(), ODD], ids=["defaults", "odd"])
def test_settings_come_back_exactly(tmp_path: Path, stock: Path, settings: AtlasSettings) -> None:
    out = tmp_path / "native.gguf"
    make_native(stock, out, settings=all_settings(settings))
    with GGUFFile.open(out) as file:
        assert native_settings(file) == (settings, None)
        types = {row.key: row.type for row in tables.ATLAS_KEYS}
        for key in native_values(settings):
            assert file.metadata[key].type_name == types[key]
    back = tmp_path / "back.gguf"
    result = convert_file(out, back)
    assert back.read_bytes() == stock.read_bytes()
    assert result.notes == []


def test_the_odd_settings_are_all_odd() -> None:
    assert [row.name for row in settings_table() if getattr(ODD, row.name) == row.default] == []


def test_models_without_settings(stock: Path) -> None:
    with GGUFFile.open(stock) as file:
        assert native_settings(file) == (None, None)
    assert native_settings(native()) == (AtlasSettings(), None)
    off = (KV("atlas.enabled", BOOL, 0), KV("atlas.memory.window_size", U32, 2**31))
    assert native_settings(native(*off)) == (None, None)
    without = TINY.with_kv(KV("atlas.memory.window_size", U32, 5))
    assert native_settings(GGUFFile.from_bytes(without.bytes())) == (None, None)


def test_other_number_types_and_unknown_keys_are_read() -> None:
    pairs = (
        KV("atlas.memory.window_size", U64, 64),
        KV("atlas.memory.memory_dim", U8, 7),
        KV("atlas.memory.learning_rate", F32, 0.5),
        KV("atlas.memory.blend_ratio", F64, 0.25),
        KV("atlas.memory.sharpness", I32, 3),
        KV("atlas.memory.of_a_later_version", ARR, Array(U32, [1])),
    )
    settings, _ = native_settings(native(*pairs))
    assert settings == AtlasSettings(
        window_size=64, memory_dim=7, learning_rate=0.5, blend_ratio=0.25, sharpness=3.0
    )


def key(name: str) -> str:
    return f"atlas.memory.{name}"


HOSTILE = [
    KV(key("window_size"), I32, -1),
    KV(key("window_size"), U64, 2**64 - 1),
    KV(key("window_size"), F32, 1.5),
    KV(key("window_size"), BOOL, 1),
    KV(key("window_size"), STR, "1024"),
    KV(key("window_size"), ARR, Array(U32, [1024])),
    KV(key("window_size"), ARR, Array(STR, ["1"])),
    KV(key("learning_rate"), F32, float("nan")),
    KV(key("learning_rate"), F64, float("inf")),
    KV(key("learning_rate"), F64, -0.5),
    KV(key("polynomial_degree"), U32, 40),
    KV(key("use_muon"), BOOL, 2),
    KV(key("use_muon"), U32, 1),
    KV(key("memory_dim"), U32, 0),
    KV(key("blend_ratio"), STR, "nan"),
    KV(key("blend_ratio"), STR, "sometimes"),
    KV(key("blend_ratio"), STR, "x" * 100_000),
    KV(key("features"), STR, "\x1b[31m"),
    KV(key("features"), STR, b"\xff"),
    KV(key("features"), U32, 0),
    KV(key("chunk_size"), U32, 256),  # more than omega_window
    KV(key("sharpness"), F64, 0.0),
    KV(key("candidates"), I32, -3),
    KV(key("file"), U32, 1),
    *(
        KV(key("file"), STR, name)
        for name in ("", ".", "..", "../x.atlas", "/etc/passwd", "a/b", "a\\b", "a\0b", "x" * 300)
    ),
    KV("atlas.version", U32, 0),
    KV("atlas.version", STR, "1"),
    KV("atlas.enabled", U32, 1),
    KV("atlas.enabled", BOOL, 7),
]


@pytest.mark.parametrize("pair", HOSTILE, ids=lambda p: f"{p.key}={p.value!r}"[:60])
def test_hostile_values_are_one_sentence(pair: KV) -> None:
    with pytest.raises(FileCorruptError) as caught:
        native_settings(native(pair))
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 500
    assert pair.key.rpartition(".")[2] in text or caught.value.key in text


def test_a_later_version_is_not_guessed_at() -> None:
    with pytest.raises(VersionMismatchError, match="newer atlas_kit"):
        native_settings(native(KV("atlas.version", U32, 2)))


def test_settings_that_only_together_are_wrong() -> None:
    pairs = (KV(key("window_size"), U32, 0), KV(key("learning_rate"), F64, 0.0))
    with pytest.raises(FileCorruptError, match="no memory"):
        native_settings(native(*pairs))


# --- making a model native -----------------------------------------------------------------------------------


def test_auto_is_what_is_recommended(tmp_path: Path, stock: Path) -> None:
    out = tmp_path / "n.gguf"
    make_native(stock, out, auto=True)
    with GGUFFile.open(out) as file:
        assert native_settings(file)[0] == recommend(stock).settings
    make_native(stock, out, auto=True, force=True, settings=lambda base: base.replace(sharpness=3.0))
    with GGUFFile.open(out) as file:
        assert native_settings(file)[0] == recommend(stock).settings.replace(sharpness=3.0)


def test_without_settings_only_the_known_keys_are_written(tmp_path: Path, stock: Path) -> None:
    out = tmp_path / "n.gguf"
    make_native(stock, out, to="atlas-gguf")
    with GGUFFile.open(out) as file:
        assert not any(name.startswith("atlas.memory.") for name in file.metadata)
        assert native_settings(file) == (AtlasSettings(), None)


def test_what_cannot_be(tmp_path: Path, stock: Path) -> None:
    settings = all_settings(ODD)
    out = tmp_path / "x.gguf"
    with pytest.raises(InvalidParamError, match="stock GGUF file has no settings"):
        make_native(stock, out, to="gguf", settings=settings)
    with pytest.raises(InvalidParamError, match="converts to atlas-gguf"):
        make_native(stock, tmp_path / "x.json", settings=settings)
    memory = tmp_path / "m.atlas"
    MemoryFile().save(memory)
    with pytest.raises(InvalidParamError, match="only a GGUF model"):
        convert_file(memory, tmp_path / "m.json", ConvertOptions(auto=True))
    with pytest.raises(InvalidParamError, match="from a file"):
        convert_file(stock.read_bytes(), out, ConvertOptions(auto=True))
    encoder = tmp_path / "e.gguf"
    encoder.write_bytes(tiny_llama(arch="bert").bytes())
    with pytest.raises(Exception, match="encoder"):
        make_native(encoder, out, auto=True)
    make_native(stock, out, settings=settings)
    with pytest.raises(InvalidParamError, match="already"):
        make_native(out, tmp_path / "y.gguf", settings=settings)
    assert sorted(p.name for p in tmp_path.glob("*.gguf")) == ["e.gguf", "model.gguf", "x.gguf"]


def test_edited_settings_do_not_hinder_the_way_back(tmp_path: Path, stock: Path) -> None:
    out, back = tmp_path / "n.gguf", tmp_path / "b.gguf"
    make_native(stock, out, settings=all_settings(ODD))
    edit_metadata(out, [Set("atlas.memory.window_size", 4096)])
    with GGUFFile.open(out) as file:
        assert native_settings(file)[0] == ODD.replace(window_size=4096)
    convert_file(out, back)
    assert back.read_bytes() == stock.read_bytes()
    edit_metadata(out, [Set("general.name", "mine")])
    assert "edits were kept" in convert_file(out, tmp_path / "c.gguf").notes[0]


# --- a learned memory beside it ------------------------------------------------------------------------------


def test_a_memory_is_copied_and_bound(tmp_path: Path, stock: Path, learned: Any) -> None:
    source, out = learned(), tmp_path / "model-atlas.gguf"
    result = make_native(stock, out, memory=source)
    placed = tmp_path / "model-atlas.atlas"
    assert result.memory == str(placed)
    assert result.to_json()["memory"] == str(placed)
    assert placed.read_bytes() == source.read_bytes()
    with GGUFFile.open(out) as file:
        assert native_settings(file) == (AtlasSettings(), str(placed))
        assert file.get("atlas.memory.file") == "model-atlas.atlas"
        assert file.get("atlas.memory.hash") == hashlib.sha256(source.read_bytes()).hexdigest()
        assert file.get("atlas.memory.model") == model_identity(file)
    convert_file(out, tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == stock.read_bytes()
    assert placed.exists()


def test_a_memory_that_is_replaced_meanwhile_is_copied_as_it_was_checked(
    tmp_path: Path, stock: Path, learned: Any, monkeypatch: Any
) -> None:
    source, other = learned(), learned("other.atlas", metadata={"which": "other"})
    expected = source.read_bytes()
    check = native_model.check_memory

    def checking(*arguments: Any, **options: Any) -> Any:
        bound = check(*arguments, **options)
        other.replace(source)
        return bound

    monkeypatch.setattr(native_model, "check_memory", checking)
    make_native(stock, tmp_path / "n.gguf", memory=source)
    assert source.read_bytes() != expected
    assert (tmp_path / "n.atlas").read_bytes() == expected
    with GGUFFile.open(tmp_path / "n.gguf") as file:
        assert file.get("atlas.memory.hash") == hashlib.sha256(expected).hexdigest()


def test_native_files_may_be_moved_together(tmp_path: Path, stock: Path, learned: Any) -> None:
    make_native(stock, tmp_path / "n.gguf", memory=learned())
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("n.gguf", "n.atlas"):
        shutil.move(tmp_path / name, folder / name)
    with GGUFFile.open(folder / "n.gguf") as file:
        assert native_settings(file)[1] == str(folder / "n.atlas")


def kept(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a session keeps beside its memory."""
    return {"runtime": {"settings": settings}}


def test_the_settings_of_the_memory_are_taken_over(tmp_path: Path, stock: Path, learned: Any) -> None:
    saved = AtlasSettings(window_size=16, memory_dim=8)
    source = learned(metadata=kept({**saved.to_json(), "of_a_later_version": 1}))
    make_native(stock, tmp_path / "n.gguf", memory=source, settings=lambda base: base.replace(sharpness=2.0))
    with GGUFFile.open(tmp_path / "n.gguf") as file:
        assert native_settings(file)[0] == saved.replace(sharpness=2.0)
    odd = learned("odd.atlas", metadata=kept({"window_size": -1}))
    make_native(stock, tmp_path / "o.gguf", memory=odd)
    with GGUFFile.open(tmp_path / "o.gguf") as file:
        assert native_settings(file)[0] == AtlasSettings()


def test_a_model_that_is_cut_off_is_not_made_native(tmp_path: Path, stock: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(stock.read_bytes()[:-1])
    with pytest.raises(TruncatedError, match="should end at byte"):
        make_native(cut, tmp_path / "n.gguf", auto=True)
    assert not (tmp_path / "n.gguf").exists()


@pytest.mark.parametrize("whose", ["ab" * 32, None])
def test_a_memory_of_another_model_is_refused(
    tmp_path: Path, stock: Path, learned: Any, whose: str | None
) -> None:
    out = tmp_path / "n.gguf"
    with pytest.raises(WrongModelError) as caught:
        make_native(stock, out, memory=learned(whose=whose))
    with GGUFFile.open(stock) as file:
        assert caught.value.expected == model_identity(file)
    assert caught.value.found == whose
    assert caught.value.remedy == Remedy("force-beside-model")
    assert not out.exists()
    assert not out.with_suffix(".atlas").exists()
    result = make_native(stock, out, memory=learned("again.atlas", whose=whose), force=True)
    assert "forced" in result.notes[0]
    assert out.with_suffix(".atlas").exists()


def test_memories_that_do_not_fit(tmp_path: Path, stock: Path, learned: Any) -> None:
    out = tmp_path / "n.gguf"
    with pytest.raises(InvalidParamError, match="width 64, and this one has 32"):
        make_native(stock, out, memory=learned(width=64))
    chat = tmp_path / "chat.atlas"
    MemoryFile(model_hash="ab" * 32).save(chat)
    with pytest.raises(KeyNotFoundError, match="no learned memory"):
        make_native(stock, out, memory=chat, force=True)
    whole = learned("whole.atlas").read_bytes()
    damaged = tmp_path / "damaged.atlas"
    middle = len(whole) // 2
    damaged.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(FileCorruptError):
        make_native(stock, out, memory=damaged)
    with pytest.raises(NoSuchFileError):
        make_native(stock, out, memory=tmp_path / "none.atlas")
    assert not out.exists()
    assert not out.with_suffix(".atlas").exists()


def test_another_file_in_the_memory_s_place(tmp_path: Path, stock: Path, learned: Any) -> None:
    out, place = tmp_path / "n.gguf", tmp_path / "n.atlas"
    place.write_bytes(b"precious")
    with pytest.raises(FileAccessError, match="another file"):
        make_native(stock, out, memory=learned())
    assert place.read_bytes() == b"precious"
    assert not out.exists()
    source = learned()
    shutil.copy(source, place)
    stamp = place.stat().st_mtime_ns
    make_native(stock, out, memory=source)  # the same bytes are there: nothing to do
    assert place.stat().st_mtime_ns == stamp
    make_native(stock, out, memory=place, force=True)  # it is the memory itself
    assert place.read_bytes() == source.read_bytes()


def test_a_conversion_that_fails_leaves_no_memory_behind(
    tmp_path: Path, stock: Path, learned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise FileAccessError("the disk is full")

    monkeypatch.setattr("atlas_kit.formats.gguf.native.write_with_header", full)
    with pytest.raises(FileAccessError, match="full"):
        make_native(stock, tmp_path / "n.gguf", memory=learned())
    assert not (tmp_path / "n.atlas").exists()


def test_a_stream_has_no_place_for_a_memory(stock: Path, learned: Any) -> None:
    import io

    with pytest.raises(InvalidParamError, match="standard output"):
        convert_file(stock, io.BytesIO(), ConvertOptions(to="atlas-gguf", memory=learned()))
    out = io.BytesIO()
    convert_file(stock, out, ConvertOptions(to="atlas-gguf", settings=all_settings(ODD)))
    assert native_settings(GGUFFile.from_bytes(out.getvalue())) == (ODD, None)


def test_an_encrypted_memory(tmp_path: Path, stock: Path, learned: Any) -> None:
    pytest.importorskip("cryptography")
    source = learned("secret.atlas", passphrase="pass")
    asked = []

    def ask(question: str, confirm: bool) -> bytes:
        asked.append(question)
        return b"pass"

    options = ConvertOptions(memory=source)
    convert_file(stock, tmp_path / "n.gguf", options, keys=Keys(ask=ask))
    assert len(asked) == 1
    assert (tmp_path / "n.atlas").read_bytes() == source.read_bytes()


def test_a_split_model_is_bound_as_a_whole(tmp_path: Path, stock: Path, learned: Any) -> None:
    first, second = split_llama(2, layers=1)
    for folder in (tmp_path / "stock", tmp_path / "native"):
        folder.mkdir()
        (folder / "m-00002-of-00002.gguf").write_bytes(second.bytes())
    path = tmp_path / "stock" / "m-00001-of-00002.gguf"
    path.write_bytes(first.bytes())
    out = tmp_path / "native" / path.name
    make_native(path, out, memory=learned())  # the same tensors as the unsplit model
    with GGUFFile.open(tmp_path / "native" / "m-00002-of-00002.gguf") as model:
        assert native_settings(model) == (AtlasSettings(), str(out.with_suffix(".atlas")))


@pytest.mark.model
def test_stock_llama_cpp_loads_it(tmp_path: Path, stock: Path, learned: Any) -> None:
    out = tmp_path / "n.gguf"
    make_native(stock, out, memory=learned(), settings=all_settings(ODD))
    try:
        with LlamaOracle() as oracle:
            assert oracle.load(out).ok
    except OracleUnavailableError as error:
        pytest.skip(str(error))


def test_a_loaded_memory_is_the_one_that_was_bound(tmp_path: Path, stock: Path, learned: Any) -> None:
    from atlas_kit.persistence.snapshot import load_memory

    make_native(stock, tmp_path / "n.gguf", memory=learned())
    with GGUFFile.open(tmp_path / "n.gguf") as file:
        _, path = native_settings(file)
        assert path is not None
        loaded = load_memory(path, expect_model_hash=model_identity(file))
    assert np.all(loaded.state.parameters["W"] == 0)


def test_sidecars_are_named_after_the_model() -> None:
    assert native_model.sidecar_of("a/b-atlas.gguf") == "a/b-atlas.atlas"
    assert native_model.sidecar_of("a.b/model") == "a.b/model.atlas"
    assert dataclasses.is_dataclass(native_model.BoundMemory)


def test_what_can_be_read_from_a_memory_is_said_and_can_be_left_out(tmp_path: Path, stock: Path) -> None:
    from atlas_kit.episodes import Kind
    from atlas_kit.llama import AtlasSession, FakeEngine
    from atlas_kit.persistence.session_file import read_session_state, write_session_state

    engine = FakeEngine(n_embd=32)
    with GGUFFile.open(stock) as file:
        engine.info = dataclasses.replace(engine.info, identity=model_identity(file))
    with AtlasSession(engine, AtlasSettings(window_size=16, memory_dim=8)) as session:
        session.feed("the blue stone lies in the harbour", kind=Kind.USER)
        state = session.state()
    source = tmp_path / "memories.atlas"
    write_session_state(source, state)
    text = b"blue stone"
    result = make_native(stock, tmp_path / "a.gguf", memory=source)
    assert "34 tokens of 1 turn of talk can be read from the memory beside the model" in result.notes
    assert text in (tmp_path / "a.atlas").read_bytes().replace(b"\0", b"")
    result = make_native(stock, tmp_path / "b.gguf", memory=source, text=False)
    assert "34 tokens of 1 turn of talk were left out of the memory" in result.notes
    assert text not in (tmp_path / "b.atlas").read_bytes().replace(b"\0", b"")
    with GGUFFile.open(tmp_path / "b.gguf") as file:
        placed = (tmp_path / "b.atlas").read_bytes()
        assert file.get("atlas.memory.hash") == hashlib.sha256(placed).hexdigest()
    kept = read_session_state(tmp_path / "b.atlas")
    assert kept.episodes is None
    assert int(kept.memory.counters["seen"]) == int(state.memory.counters["seen"])
    secret = Keys("secret")
    source = tmp_path / "secret.atlas"
    write_session_state(source, state, passphrase="secret")
    convert_file(stock, tmp_path / "c.gguf", ConvertOptions(memory=source, text=False), secret)
    assert read_session_state(tmp_path / "c.atlas", passphrase="secret").episodes is None
