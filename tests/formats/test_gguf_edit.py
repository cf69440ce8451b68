"""Editing metadata: tensor data untouched, unedited values byte for byte, crashes recoverable."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf_builder import (
    ARR,
    BOOL,
    F32_T,
    I32,
    KV,
    STR,
    U8,
    U32,
    Array,
    File,
    Tensor,
    split_llama,
    tiny_llama,
    vocab_only,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlas_kit.errors import (
    AtlasError,
    ConflictError,
    DataTooLargeError,
    FileAccessError,
    FileCorruptError,
    InvalidParamError,
    KeyNotFoundError,
    VersionMismatchError,
)
from atlas_kit.formats.gguf import (
    Delete,
    GGUFFile,
    MetadataField,
    Rename,
    Set,
    TensorSource,
    ValueType,
    edit_metadata,
    hash_tensors,
    journal,
    write,
    write_gguf,
)
from atlas_kit.formats.gguf.journal import journal_path, recover_journal
from atlas_kit.formats.gguf.tables import PAD_KEY
from atlas_kit.storage.atomic import lock
from atlas_kit.storage.given import open_source


def save(path: Path, file: File | bytes) -> Path:
    path.write_bytes(file if isinstance(file, bytes) else file.bytes())
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "m.gguf", tiny_llama())


def contents(path: Path) -> dict[str, object]:
    """Return the metadata without reserved space, as plain values."""
    with GGUFFile.open(path, shards=False) as file:
        return {f.key: f.items if not f.is_array else list(f.items) for f in file.fields if f.key != PAD_KEY}


def test_set_keeps_the_type(model: Path) -> None:
    before = contents(model)
    edit_metadata(model, [Set("llama.context_length", 128), Set("general.name", "small")])
    after = contents(model)
    assert after == {**before, "llama.context_length": 128, "general.name": "small"}
    assert list(after) == list(before)
    with GGUFFile.open(model) as file:
        assert file.metadata["llama.context_length"].type == ValueType.UINT32


def test_every_kind_of_change(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    original = model.read_bytes()
    tokens = contents(model)["tokenizer.ggml.tokens"]
    result = edit_metadata(
        model,
        [
            Set("new.number", -5),
            Set("new.strings", ["a", "ü" * 300, ""]),
            Set("new.empty", [], ValueType.ARRAY, ValueType.STRING),
            Set("new.nested", [[1], ["x"]]),
            Set("new.numpy", np.arange(5, dtype="f8")),
            Set("tokenizer.ggml.tokens", [*tokens[:-1], "last"]),
            Set("llama.context_length", 2**40, ValueType.UINT64),
            Delete("general.name"),
            Rename("llama.block_count", "llama.layers"),
        ],
        out,
    )
    assert result.mode == "rewritten"
    assert model.read_bytes() == original
    found = contents(out)
    assert found["tokenizer.ggml.tokens"][-1] == "last"
    assert found["llama.context_length"] == 2**40
    assert found["new.strings"] == ["a", "ü" * 300, ""]
    assert found["new.numpy"] == [0, 1, 2, 3, 4]
    assert "general.name" not in found
    assert "llama.block_count" not in found
    assert found["llama.layers"] == 2
    with GGUFFile.open(out) as edited, GGUFFile.open(model) as stock:
        assert hash_tensors(edited).whole == hash_tensors(stock).whole
        inner = edited.get("new.nested")
        assert [int(item.element_type) for item in inner] == [ValueType.INT32, ValueType.STRING]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (Delete("nothing"), KeyNotFoundError),
        (Rename("nothing", "x"), KeyNotFoundError),
        (Rename("general.name", "general.architecture"), InvalidParamError),
        (Set("llama.context_length", "many"), InvalidParamError),
        (Set("llama.context_length", -1), InvalidParamError),
        (Set("", 1), InvalidParamError),
        (Set("k" * 70_000, 1), InvalidParamError),
        (Set(PAD_KEY, "x"), InvalidParamError),
        (Set("x", None), InvalidParamError),
        (Set("general.alignment", 64), InvalidParamError),
        (Set("tokenizer.ggml.tokens", [1, 2]), InvalidParamError),
    ],
)
def test_changes_that_cannot_be(model: Path, change: object, error: type[AtlasError]) -> None:
    original = model.read_bytes()
    with pytest.raises(error):
        edit_metadata(model, [Set("x.y", 1), change])  # type: ignore[list-item]
    assert model.read_bytes() == original


def test_duplicate_keys_are_not_guessed_at(tmp_path: Path) -> None:
    path = save(tmp_path / "d.gguf", File((KV("k", U8, 1), KV("k", U8, 2), KV("a", U8, 3))))
    with pytest.raises(InvalidParamError, match="more than once"):
        edit_metadata(path, [Set("k", 5)])
    edit_metadata(path, [Set("a", 5)])
    with GGUFFile.open(path) as file:
        assert [(f.key, f.value) for f in file.fields if f.key == "k"] == [("k", 1), ("k", 2)]
    edit_metadata(path, [Delete("k")])
    assert contents(path) == {"a": 5}


def test_values_that_are_not_touched_keep_their_bytes(tmp_path: Path) -> None:
    odd = (
        KV("b", BOOL, 2),
        KV("s", STR, b"\xff\xfe"),
        KV("f", 6, b"\x01\x00\x80\x7f"),
        KV("n", ARR, Array(ARR, [Array(U8, [1]), Array(STR, [b"\x80"])])),
    )
    path = save(tmp_path / "o.gguf", File((*odd, KV("x", U8, 1)), (Tensor("t", (8,)),)))
    edit_metadata(path, [Delete("x")], in_place=False)
    wanted = File(odd, (Tensor("t", (8,)),)).bytes()
    assert path.read_bytes() == wanted


# --- in place --------------------------------------------------------------------------------------------


def test_in_place_writes_the_header_only(model: Path) -> None:
    before = model.read_bytes()
    with GGUFFile.open(model) as file:
        start = file.data_start
    inode = model.stat().st_ino
    result = edit_metadata(model, [Set("llama.context_length", 99)], in_place=True)
    after = model.read_bytes()
    assert (result.mode, result.bytes_written) == ("in-place", start)
    assert after[start:] == before[start:]
    assert len(after) == len(before)
    assert model.stat().st_ino == inode
    assert not journal_path(model).exists()
    differing = [i for i in range(start) if after[i] != before[i]]
    assert len(differing) == 1


def test_shrinking_leaves_room_that_growing_takes(model: Path) -> None:
    before = contents(model)
    start = GGUFFile.open(model).data_start
    size = model.stat().st_size
    shrunk = edit_metadata(model, [Delete("tokenizer.ggml.scores")], in_place=True)
    assert shrunk.reserved > 1000
    with GGUFFile.open(model) as file:
        assert file.data_start == start
        assert PAD_KEY in file.metadata
    grown = edit_metadata(model, [Set("description", "x" * 900)], in_place=True)
    assert grown.mode == "in-place"
    assert grown.reserved < shrunk.reserved
    wanted = {k: v for k, v in before.items() if k != "tokenizer.ggml.scores"}
    assert contents(model) == {**wanted, "description": "x" * 900}
    assert model.stat().st_size == size
    with pytest.raises(DataTooLargeError):
        edit_metadata(model, [Set("more", "x" * 9000)], in_place=True)
    assert edit_metadata(model, [Set("more", "x" * 9000)]).mode == "rewritten"
    with GGUFFile.open(model) as file:
        assert PAD_KEY not in file.metadata


@pytest.mark.slow
@pytest.mark.parametrize("alignment", [8, 16, 32, 64, 4096])
def test_every_length_fits_or_is_rewritten(tmp_path: Path, alignment: int) -> None:
    data = np.arange(8, dtype="<f4").tobytes()
    base = File(
        (KV("general.alignment", U32, alignment), KV("text", STR, "x" * 200)),
        (Tensor("t", (8,), F32_T, data),),
        align=alignment,
    )
    for length in range(210):
        path = save(tmp_path / "a.gguf", base)
        result = edit_metadata(path, [Set("text", "y" * length)])
        assert contents(path)["text"] == "y" * length
        with GGUFFile.open(path) as file:
            assert file.array("t").tobytes() == data
        if alignment >= 32 and length <= 200:
            assert result.mode in ("in-place", "unchanged")


def test_vocabulary_only_in_place(tmp_path: Path) -> None:
    for tail in (b"", b"trailing bytes"):
        path = save(tmp_path / "v.gguf", vocab_only())
        path.write_bytes(path.read_bytes() + tail)
        for name in ("lla", "l", "a" * 500, ""):
            edit_metadata(path, [Set("general.architecture", name)])
            assert contents(path)["general.architecture"] == name


def test_nothing_changed_writes_nothing(model: Path) -> None:
    before = model.stat().st_mtime_ns
    assert edit_metadata(model, []).mode == "unchanged"
    assert edit_metadata(model, [Set("general.name", "tiny")]).mode == "unchanged"
    assert model.stat().st_mtime_ns == before


def test_reserved_room(model: Path) -> None:
    result = edit_metadata(model, [], in_place=False, reserve=5000)
    assert result.reserved == 5000
    assert edit_metadata(model, [Set("k", "x" * 4900)], in_place=True).mode == "in-place"


def test_backup_and_permissions(model: Path) -> None:
    original = model.read_bytes()
    os.chmod(model, 0o640)
    edit_metadata(model, [Set("k", "x" * 9000)], backup=True)
    assert model.with_name("m.gguf.bak").read_bytes() == original
    assert stat.S_IMODE(model.stat().st_mode) == 0o640


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.one_of(
            st.builds(
                Set,
                st.sampled_from("abcdef"),
                st.text(max_size=120) | st.lists(st.integers(0, 9), min_size=1),
            ),
            st.builds(Delete, st.sampled_from("abcdef")),
            st.builds(Rename, st.sampled_from("abcdef"), st.sampled_from("abcdef")),
        ),
        max_size=8,
    )
)
def test_any_sequence_of_edits(tmp_path: Path, changes: list[object]) -> None:
    """One edit after the other, in place or not, does what a dict does."""
    data = np.arange(16, dtype="<f4").tobytes()
    path = save(
        tmp_path / "s.gguf",
        File((KV("a", STR, "1" * 50), KV("b", U32, 7)), (Tensor("t", (16,), F32_T, data),)),
    )
    expected: dict[str, object] = {"a": "1" * 50, "b": 7}
    for change in changes:
        model = dict(expected)
        if isinstance(change, Set):
            model[change.key] = change.value
        elif isinstance(change, Delete):
            model.pop(change.key, None)
        else:
            model = {change.new_key if k == change.key else k: v for k, v in model.items()}
        try:
            edit_metadata(path, [change])  # type: ignore[list-item]
            expected = model
        except AtlasError:
            pass
        assert contents(path) == expected
        with GGUFFile.open(path) as file:
            assert file.array("t").tobytes() == data


# --- what can go wrong -------------------------------------------------------------------------------------


def test_version_1_is_read_only(tmp_path: Path) -> None:
    path = save(tmp_path / "v1.gguf", File((KV("a", U8, 1),), version=1))
    with pytest.raises(VersionMismatchError):
        edit_metadata(path, [Set("a", 2)])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [2, 3])
def test_dialects_stay(tmp_path: Path, order: str, version: int) -> None:
    path = save(
        tmp_path / "d.gguf",
        File((KV("a", U32, 1),), (Tensor("t", (4,), F32_T, bytes(16)),), version=version, order=order),
    )
    edit_metadata(path, [Set("a", 2), Set("b", ["x"])])
    with GGUFFile.open(path) as file:
        assert (file.version, file.byte_order, file.get("a")) == (version, order, 2)


def test_a_damaged_header_is_not_edited(tmp_path: Path) -> None:
    path = save(tmp_path / "x.gguf", tiny_llama().bytes()[:900])
    with pytest.raises(FileCorruptError):
        edit_metadata(path, [Set("a", 1)])


def test_truncated_data_and_trailing_bytes_stay(tmp_path: Path) -> None:
    for data in (tiny_llama().bytes()[:-5000], tiny_llama().bytes() + b"appended"):
        path = save(tmp_path / "t.gguf", data)
        start = GGUFFile.open(path).data_start
        edit_metadata(path, [Set("x", "y" * 2000)])
        with GGUFFile.open(path) as file:
            assert path.read_bytes()[file.data_start :] == data[start:]


def test_one_shard_is_edited(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"m-{i + 1:05d}-of-00002.gguf", f) for i, f in enumerate(split_llama(2))]
    second = paths[1].read_bytes()
    edit_metadata(paths[0], [Set("general.name", "x" * 500)])
    assert paths[1].read_bytes() == second
    with GGUFFile.open(paths[1]) as model:
        assert model.get("general.name") == "x" * 500


@pytest.mark.parametrize("cut", [0, 1, 100, 5000])
def test_an_interrupted_edit_is_noticed_and_undone(
    model: Path, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = model.read_bytes()

    def torn(path: Path, data: bytes) -> None:
        with open(path, "r+b") as file:
            file.write(data[:cut])
        raise KeyboardInterrupt

    monkeypatch.setattr(journal, "overwrite_start", torn)
    with pytest.raises(KeyboardInterrupt):
        edit_metadata(
            model, [Set("general.architecture", "GPT"), Set("llama.context_length", 77)], in_place=True
        )
    monkeypatch.undo()
    assert journal_path(model).exists()
    if model.read_bytes() != original:
        with pytest.raises(FileCorruptError, match="interrupted"):
            GGUFFile.open(model)
    assert recover_journal(model) == (model.read_bytes() == original and cut > 30)
    assert model.read_bytes() == original
    assert not journal_path(model).exists()
    assert recover_journal(model) is False


def test_the_next_edit_recovers_first(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(path: Path, data: bytes) -> None:
        with open(path, "r+b") as file:
            file.write(data[:3000])
        raise KeyboardInterrupt

    monkeypatch.setattr(journal, "overwrite_start", torn)
    with pytest.raises(KeyboardInterrupt):
        edit_metadata(model, [Set("general.architecture", "GPT")], in_place=True)
    monkeypatch.undo()
    edit_metadata(model, [Set("llama.context_length", 5)])
    found = contents(model)
    assert (found["general.architecture"], found["llama.context_length"]) == ("llama", 5)


def test_a_stale_or_broken_journal_does_no_harm(model: Path) -> None:
    original = model.read_bytes()
    whole = journal.Journal(original[:500], bytes(500)).encoded()
    for junk in (b"", b"ATLASJN1", b"x" * 100, whole[:-1], whole[:40] + b"?" + whole[41:]):
        journal_path(model).write_bytes(junk)
        GGUFFile.open(model).close()
        assert recover_journal(model) is False
        assert model.read_bytes() == original
    for old, new in ((original[:500], bytes(500)), (bytes(500), original[:500])):
        journal_path(model).write_bytes(journal.Journal(old, new).encoded())
        GGUFFile.open(model).close()
        assert recover_journal(model) is False
        assert model.read_bytes() == original


def test_a_journal_is_never_put_back_into_another_file(model: Path) -> None:
    """The model was downloaded again, or another one took its name, before anybody looked at the journal."""
    original = model.read_bytes()
    for old in (b"GGUF" + bytes(496), bytes(len(original) + 1)):
        journal_path(model).write_bytes(journal.Journal(old, old[::-1]).encoded())
        GGUFFile.open(model).close()
        edit_metadata(model, [Set("general.architecture", "llama")])
        assert contents(model)["general.architecture"] == "llama"
        journal_path(model).write_bytes(journal.Journal(old, old[::-1]).encoded())
        before = model.read_bytes()
        assert recover_journal(model) is False
        assert model.read_bytes() == before
        assert not journal_path(model).exists()


KILLED = """
import os, sys
from atlas_kit.formats.gguf import journal, edit_metadata, Set
real = open
def dying(path, data):
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, data[: int(sys.argv[2])])
    os.kill(os.getpid(), 9)
journal.overwrite_start = dying
edit_metadata(sys.argv[1], [Set("general.architecture", "GPT")], in_place=True)
"""


def test_kill_in_the_middle(model: Path) -> None:
    original = model.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, str(model), "2000"], check=False)
    assert done.returncode == -9
    with pytest.raises(FileCorruptError):
        GGUFFile.open(model)
    edit_metadata(model, [Set("general.architecture", "llama")])  # recovers, then has nothing to do
    assert model.read_bytes() == original


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_file(model: Path) -> None:
    os.chmod(model, 0o400)
    with pytest.raises(FileAccessError):
        edit_metadata(model, [Set("llama.context_length", 1)], in_place=True)
    assert not journal_path(model).exists()


def test_a_full_disk_leaves_the_file_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = model.read_bytes()

    def full(*args: object, **kwargs: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "copy_range", full)
    with pytest.raises(FileAccessError, match="disk is full"):
        edit_metadata(model, [Set("k", "x" * 9000)])
    assert model.read_bytes() == original
    assert [p.name for p in model.parent.iterdir()] == ["m.gguf"]


def test_a_locked_file_is_not_edited(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_kit.formats.gguf import edit

    monkeypatch.setattr(edit, "lock", lambda path: lock(path, timeout=0.05))
    with lock(model), pytest.raises(FileAccessError, match="another process"):
        edit_metadata(model, [Set("a", 1)])


def test_a_source_that_changes_while_copied(model: Path, tmp_path: Path) -> None:
    with open_source(model) as source, open(tmp_path / "out", "w+b") as out:
        with open(model, "ab") as file:
            file.write(b"more")
        with pytest.raises(ConflictError):
            write.copy_range(source, 0, source.size, out)


def test_copying_without_the_kernel(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    wanted = model.read_bytes()
    for replacement in (refused, None):
        if replacement is None:
            monkeypatch.delattr(os, "copy_file_range", raising=False)
        else:
            monkeypatch.setattr(os, "copy_file_range", replacement, raising=False)
        with open_source(model) as source, open(tmp_path / "out", "w+b") as out:
            out.write(b"head")
            assert write.copy_range(source, 5, 9000, out) == 9000
            out.write(b"tail")
        assert (tmp_path / "out").read_bytes() == b"head" + wanted[5:9005] + b"tail"


# --- writing whole files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
def test_write_gguf(tmp_path: Path, order: str) -> None:
    path = tmp_path / "w.gguf"
    blocks = np.arange(68, dtype=np.uint8).reshape(2, 34)
    tensors = [
        TensorSource.from_array("a", np.arange(6, dtype="f4").reshape(2, 3)),
        TensorSource.from_array("b", np.array([0x3F80], np.uint16), 30),
        TensorSource.from_array("q", blocks, 8),
        TensorSource("raw", (3,), 24, b"abc", 3),
        TensorSource("lazy", (4,), 24, lambda: iter([b"ab", b"cd"]), 4),
    ]
    fields = [
        MetadataField.make("general.architecture", "llama"),
        MetadataField.make("general.alignment", 64),
    ]
    size = write_gguf(path, fields, tensors, byte_order=order)
    assert size == path.stat().st_size
    with GGUFFile.open(path) as file:
        assert file.byte_order == order
        assert file.array("a").tolist() == [[0, 1, 2], [3, 4, 5]]
        assert file.dequantize("b").tolist() == [1.0]
        assert file.array("q").tolist() == blocks.tolist()
        assert [file.array(n).tobytes() for n in ("raw", "lazy")] == [b"abc", b"abcd"]
        assert all(info.offset % 64 == 0 for info in file.tensor_infos)
        copies = [TensorSource.from_file(file, info) for info in file.tensor_infos]
        write_gguf(tmp_path / "copy.gguf", file.fields, copies, byte_order=order)
    assert (tmp_path / "copy.gguf").read_bytes() == path.read_bytes()


def test_rewriting_an_untouched_model_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    with GGUFFile.open(model) as file:
        sources = [TensorSource.from_file(file, info) for info in file.tensor_infos]
        write_gguf(tmp_path / "same.gguf", file.fields, sources)
    assert (tmp_path / "same.gguf").read_bytes() == model.read_bytes()


def test_version_1_can_become_version_3(tmp_path: Path) -> None:
    pairs = (
        KV("a", U32, 1),
        KV("s", ARR, Array(STR, ["x", "yy"])),
        KV("n", ARR, Array(ARR, [Array(I32, [5])])),
    )
    old = GGUFFile.from_bytes(File(pairs, (Tensor("t", (4,), F32_T, bytes(16)),), version=1).bytes())
    path = tmp_path / "new.gguf"
    write_gguf(path, old.fields, [TensorSource.from_file(old, info) for info in old.tensor_infos])
    assert path.read_bytes() == File(pairs, (Tensor("t", (4,), F32_T, bytes(16)),)).bytes()


@pytest.mark.parametrize(
    ("fields", "tensors"),
    [
        ([MetadataField.make("a", 1), MetadataField.make("a", 2)], []),
        ([MetadataField.make("", 1)], []),
        ([], [TensorSource("t", (4,), 0, bytes(16), 16), TensorSource("t", (4,), 0, bytes(16), 16)]),
        ([], [TensorSource("t", (4,), 0, bytes(12), 12)]),
        ([], [TensorSource("t", (4,), 0, bytes(12), 16)]),
        ([], [TensorSource("t", (1, 1, 1, 1, 1), 0, bytes(4), 4)]),
        ([MetadataField.make("general.alignment", 3)], []),
    ],
)
def test_what_write_gguf_refuses(tmp_path: Path, fields, tensors) -> None:
    with pytest.raises(InvalidParamError):
        write_gguf(tmp_path / "x.gguf", fields, tensors)
    assert list(tmp_path.iterdir()) == []


def test_write_gguf_refuses_version_1(tmp_path: Path) -> None:
    with pytest.raises(VersionMismatchError):
        write_gguf(tmp_path / "x.gguf", [], version=1)
    with pytest.raises(InvalidParamError):
        TensorSource.from_array("t", np.zeros(3, "c8"))
    with pytest.raises(InvalidParamError):
        TensorSource.from_array("t", np.zeros(33, "u1"), 8)
