"""Opening GGUF files: the same values as the ``gguf`` package, shards as one model, errors that say where."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFWriter, quants
from gguf_builder import (
    ARR,
    BF16_T,
    F16_T,
    F32_T,
    I32,
    KV,
    Q8_0_T,
    STR,
    U8,
    U16,
    U32,
    Array,
    File,
    Tensor,
    split_llama,
    tiny_llama,
    vocab_only,
)

from atlas_kit.errors import (
    ConflictError,
    FileCorruptError,
    InvalidParamError,
    KeyNotFoundError,
    MagicMismatchError,
    NoSuchFileError,
    TruncatedError,
)
from atlas_kit.formats.gguf import GGUFFile, TensorInfo, hash_tensors, hex_fields, scan_header, tables
from atlas_kit.formats.gguf.tables import GGML_TYPES, GGMLType, ValueType
from atlas_kit.formats.gguf.values import LazyStrings
from atlas_kit.storage.given import open_source
from atlas_kit.storage.source import LocalSource, Source


def save(path: Path, file: File | bytes) -> Path:
    path.write_bytes(file if isinstance(file, bytes) else file.bytes())
    return path


def values_of(field: gguf.ReaderField) -> object:
    """Return what the gguf package reads, as plain Python values."""
    found = field.contents()
    return found.tolist() if isinstance(found, np.ndarray) else found


def assert_equal_reading(path: Path) -> None:
    """Compare every value and every tensor with the gguf package's reading."""
    reader = GGUFReader(path)
    with GGUFFile.open(path, shards=False) as ours:
        theirs = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        assert list(ours.metadata) == list(theirs)
        for key, field in theirs.items():
            mine = ours.metadata[key]
            assert mine.offset == field.offset, key
            assert [mine.type, mine.element_type][: len(field.types)] == [int(t) for t in field.types], key
            value = mine.value
            value = value.tolist() if isinstance(value, (np.ndarray, LazyStrings)) else value
            assert (
                value == pytest.approx(values_of(field), nan_ok=True)
                if isinstance(value, float)
                else value == values_of(field)
            ), key
        assert ours.data_start == reader.data_offset
        assert ours.alignment == reader.alignment
        assert list(ours.tensors) == [t.name for t in reader.tensors]
        for tensor in reader.tensors:
            info = ours.tensors[tensor.name]
            assert (info.dims, info.type) == (tuple(tensor.shape.tolist()), tensor.tensor_type)
            assert (info.nbytes, info.file_offset) == (tensor.n_bytes, tensor.data_offset)
            assert ours.array(tensor.name).tobytes() == tensor.data.tobytes()
            assert b"".join(ours.iter_raw(tensor.name, 100)) == tensor.data.tobytes()


# --- against the gguf package -----------------------------------------------------------------------------


def test_type_tables_equal_the_gguf_packages() -> None:
    ours = {int(row.type): (row.block, row.size) for row in GGML_TYPES}
    theirs = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    # ggml's block_q8_1 has 36 bytes since its scale and sum became f16; the gguf package still says 40
    theirs[int(GGMLQuantizationType.Q8_1)] = (32, 36)
    assert ours.items() >= theirs.items()
    names = {row.type.name: int(row.type) for row in GGML_TYPES}
    assert names.items() >= {kind.name: int(kind) for kind in GGMLQuantizationType}.items()
    assert {kind.name: int(kind) for kind in ValueType} == {t.name: int(t) for t in gguf.GGUFValueType}
    assert {n for n in tables.FILE_TYPES if "removed" not in tables.FILE_TYPES[n]} >= {
        int(kind) for kind in gguf.LlamaFileType
    }


def test_known_keys_are_spelled_as_in_the_gguf_package() -> None:
    def strings(cls: type) -> set[str]:
        found = set()
        for name, value in vars(cls).items():
            if isinstance(value, str) and not name.startswith("_"):
                found.add(value.replace("{id}", "{n}"))
            elif isinstance(value, type):
                found |= strings(value)
        return found

    theirs = strings(gguf.Keys)
    extra = {
        "general.datasets",  # in the specification, not in the package
        "general.source.huggingface.repository",
        "tokenizer.ggml.added_tokens",
        "tokenizer.ggml.cls_token_id",
        "{arch}.rope.scale_linear",
    }
    assert {row.key for row in tables.KNOWN_KEYS} - theirs <= extra


@pytest.mark.slow
def test_real_vocabularies_read_like_the_gguf_package(vocabularies: list[Path]) -> None:
    for path in vocabularies:
        assert_equal_reading(path)
        with GGUFFile.open(path) as file:
            assert file.is_vocabulary_only


@pytest.mark.parametrize("endian", list(GGUFEndian))
def test_files_of_the_gguf_package(tmp_path: Path, endian: GGUFEndian) -> None:
    path = tmp_path / "w.gguf"
    writer = GGUFWriter(path, "llama", endianess=endian)
    for name, value in (("uint8", 200), ("int8", -5), ("uint16", 60000), ("int16", -30000)):
        getattr(writer, f"add_{name}")(f"v.{name}", value)
    for name, value in (
        ("uint32", 4_000_000_000),
        ("int32", -2_000_000_000),
        ("uint64", 2**63),
        ("int64", -(2**62)),
    ):
        getattr(writer, f"add_{name}")(f"v.{name}", value)
    writer.add_float32("v.f32", 0.1)
    writer.add_float64("v.f64", 1e-300)
    writer.add_bool("v.bool", True)
    writer.add_string("v.str", "grüße")
    writer.add_array("v.ints", [1, -2, 3])
    writer.add_array("v.floats", [0.5, 1.5])
    writer.add_array("v.bools", [True, False])
    writer.add_array("v.strings", ["a", "ü", "x" * 300, *(f"t{i}" for i in range(200))])
    rng = np.random.default_rng(0)
    for dtype in ("f4", "f2", "f8", "i1", "i2", "i4", "i8"):
        writer.add_tensor(f"t.{dtype}", (rng.standard_normal((3, 5)) * 50).astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_equal_reading(path)
    with GGUFFile.open(path) as file:
        assert file.byte_order == ("<" if endian == GGUFEndian.LITTLE else ">")
        assert file.array("t.i4").tolist() == GGUFReader(path).tensors[5].data.tolist()


QUANTISED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16", "F32", "TQ1_0", "TQ2_0"]
DEQUANTISED = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ1_M", "IQ3_S", "MXFP4"]


@pytest.mark.filterwarnings("ignore:overflow")
def test_dequantised_like_the_gguf_package(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "q.gguf"
    writer = GGUFWriter(path, "llama")
    wanted = {}
    for name in QUANTISED:
        kind = GGMLQuantizationType[name]
        raw = quants.quantize(rng.standard_normal((3, 4, 512)).astype("f4"), kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
        wanted[name] = quants.dequantize(raw, kind)
    for name in DEQUANTISED:  # any bytes are blocks: scales are made small enough to stay finite
        kind = GGMLQuantizationType[name]
        size = gguf.GGML_QUANT_SIZES[kind][1] * 512 // gguf.GGML_QUANT_SIZES[kind][0]
        raw = rng.integers(0, 60, (4, size), dtype=np.uint8)
        writer.add_tensor(name, raw, raw_dtype=kind)
        wanted[name] = quants.dequantize(raw, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_equal_reading(path)
    with GGUFFile.open(path) as file:
        for name, values in wanted.items():
            ours = file.dequantize(name)
            assert ours.dtype == np.float32
            assert ours.shape == file.tensors[name].shape
            np.testing.assert_array_equal(ours, values)
            rows = values.reshape(-1, 512)
            np.testing.assert_array_equal(file.dequantize(name, slice(1, 3)), rows[1:3])
            np.testing.assert_array_equal(np.concatenate(list(file.iter_dequantized(name, 1000))), rows)


def test_big_endian_quantised(tmp_path: Path) -> None:
    """Swapped as ``gguf-convert-endian`` does it: the numbers of several bytes in a block."""
    rng = np.random.default_rng(2)
    tensors, wanted = [], {}
    for row in GGML_TYPES:
        if row.dtype is None and row.swap is not None:
            raw = rng.integers(0, 60, (2, row.size), dtype=np.uint8)
            wanted[row.type.name] = quants.dequantize(raw, GGMLQuantizationType(int(row.type)))
            raw = raw.copy()
            for offset, size in row.swap:
                raw[:, offset : offset + size] = raw[:, offset : offset + size][:, ::-1].copy()
            tensors.append(Tensor(row.type.name, (row.block, 2), int(row.type), raw.tobytes()))
    tensors.append(Tensor("no", (256, 1), 16, bytes(66)))
    file = GGUFFile.from_bytes(File((), tuple(tensors), order=">").bytes())
    for name, values in wanted.items():
        np.testing.assert_array_equal(file.dequantize(name), values.reshape(file.tensors[name].shape))
    with pytest.raises(InvalidParamError, match="big-endian"):
        file.dequantize("no")


# --- behaviour --------------------------------------------------------------------------------------------


def test_attributes(tmp_path: Path) -> None:
    path = save(tmp_path / "m.gguf", tiny_llama(align=64, kind=Q8_0_T))
    with GGUFFile.open(path) as file:
        assert (file.version, file.byte_order, file.alignment, file.size) == (3, "<", 64, path.stat().st_size)
        assert file.header_size <= file.data_start < file.header_size + 64
        assert file.architecture == "llama"
        assert (file.is_vocabulary_only, file.is_split, file.shards) == (False, False, (file,))
        info = file.tensor("blk.0.attn_q.weight")
        assert (info.shape, info.type_name, info.nbytes, info.rows) == ((32, 32), "Q8_0", 32 * 34, 32)
        assert file.array(info.name).shape == (32, 34)
        assert not file.array(info.name).flags.writeable
        assert file.get("nothing", 5) == 5
        with pytest.raises(KeyNotFoundError):
            file.array("nothing")
        with pytest.raises(InvalidParamError):
            file.dequantize(info, slice(0, 4, 2))
        assert path.name in repr(file)
    assert file.get("tokenizer.ggml.tokens")[1] == "<s>"  # metadata outlives the file
    assert len(file.get("tokenizer.ggml.scores")) == 288


def test_views_do_not_copy_and_outlive_the_file(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.gguf", File((), (Tensor("a", (4,), F32_T, np.arange(4, dtype="f4").tobytes()),))
    )
    with GGUFFile.open(path) as file:
        first, second = file.array("a"), file.array("a")
        assert np.shares_memory(first, second)
    assert first.tolist() == [0, 1, 2, 3]


def test_bfloat16(tmp_path: Path) -> None:
    data = np.array([0x3F80, 0xC000, 0x7FC0], "<u2").tobytes()
    for order in "<>":
        raw = data if order == "<" else np.frombuffer(data, "<u2").astype(">u2").tobytes()
        file = GGUFFile.from_bytes(File((), (Tensor("a", (3,), BF16_T, raw),), order=order).bytes())
        assert file.array("a").tolist() == [0x3F80, 0xC000, 0x7FC0]
        assert file.dequantize("a")[:2].tolist() == [1.0, -2.0]


def test_duplicates_lose_nothing() -> None:
    file = GGUFFile.from_bytes(
        File(
            (KV("k", U8, 1), KV("k", U32, 2)),
            (Tensor("t", (8,), F32_T), Tensor("t", (4,), F16_T)),
        ).bytes()
    )
    assert [(f.key, f.value) for f in file.fields] == [("k", 1), ("k", 2)]
    assert file.get("k") == 1
    assert [t.type for t in file.tensor_infos] == [GGMLType.F32, GGMLType.F16]
    assert file.array(file.tensor_infos[1]).dtype == np.float16
    assert len(hash_tensors(file).tensors) == 2


def test_unknown_tensor_types_do_not_hide_the_rest() -> None:
    file = GGUFFile.from_bytes(File((), (Tensor("odd", (32,), 999, bytes(32)), Tensor("t", (8,)))).bytes())
    assert file.tensor("odd").nbytes is None
    assert file.tensor("odd").type_name == "type 999"
    with pytest.raises(FileCorruptError, match="type 999"):
        file.array("odd")
    assert file.array("t").shape == (8,)
    digest = hash_tensors(file)
    assert digest.whole is None
    assert digest.by_name()["odd"].error is not None


@pytest.mark.parametrize(
    ("tensor", "error"),
    [
        (Tensor("t", (1 << 40,), data=b""), TruncatedError),
        (Tensor("t", (1 << 40, 1 << 40), data=b""), TruncatedError),
        (Tensor("t", (33,), Q8_0_T, bytes(68)), FileCorruptError),
        (Tensor("t", (), Q8_0_T, bytes(34)), FileCorruptError),
        (Tensor("t", (0, 1 << 63), data=b""), FileCorruptError),
        (Tensor("t", (8,), offset=2**64 - 32), TruncatedError),
    ],
)
def test_tensors_that_cannot_be_read(tensor: Tensor, error: type[Exception]) -> None:
    file = GGUFFile.from_bytes(File((), (tensor,)).bytes())
    for read in (file.array, file.dequantize, lambda n: list(file.iter_raw(n))):
        with pytest.raises(error) as caught:
            read("t")
        assert caught.value.key == "t"


def test_empty_tensors() -> None:
    file = GGUFFile.from_bytes(
        File((), (Tensor("t", (0, 4), data=b""), Tensor("s", (), data=bytes(4)))).bytes()
    )
    assert file.array("t").shape == (4, 0)
    assert file.dequantize("t").shape == (4, 0)
    assert list(file.iter_dequantized("t")) == []
    assert file.array("s").shape == ()


def test_errors_say_where(tmp_path: Path) -> None:
    good = tiny_llama().bytes()
    path = save(tmp_path / "cut.gguf", good[:1000])
    with pytest.raises(TruncatedError) as caught:
        GGUFFile.open(path)
    assert caught.value.path == str(path)
    assert 0 < caught.value.offset <= 1000
    with GGUFFile.open(path, tolerant=True) as file:
        assert file.architecture == "llama"
        assert file.error is not None
        assert file.scan.stage == "metadata"
    with pytest.raises(MagicMismatchError):
        GGUFFile.open(save(tmp_path / "x.gguf", b"PK\3\4" + bytes(100)))
    with pytest.raises(NoSuchFileError):
        GGUFFile.open(tmp_path / "nothing.gguf")


@pytest.mark.parametrize(
    "value",
    [KV("general.alignment", U32, n) for n in (0, 3, 33, 1 << 21)]
    + [KV("general.alignment", STR, "32"), KV("general.alignment", U16, 32)],
)
def test_bad_alignment(value: KV) -> None:
    data = File((value,), (Tensor("t", (8,)),)).bytes()
    with pytest.raises(FileCorruptError) as caught:
        GGUFFile.from_bytes(data)
    assert caught.value.key == "general.alignment"
    assert GGUFFile.from_bytes(data, tolerant=True).alignment == 32


def test_scan_keeps_what_is_whole(tmp_path: Path) -> None:
    file = File(
        (KV("a", U8, 1), KV("b", ARR, Array(STR, ["x", "y"]))), (Tensor("t", (8,)), Tensor("u", (8,)))
    )
    data = file.bytes()
    whole = scan_header(open_source(data))
    assert (whole.stage, whole.error, whole.tensor_count, whole.field_count) == ("done", None, 2, 2)
    stages = set()
    for cut in range(len(data)):
        scan = scan_header(open_source(data[:cut]))
        stages.add(scan.stage)
        assert (scan.error is None) == (cut >= whole.end)
        assert [f.key for f in scan.fields] == ["a", "b"][: len(scan.fields)]
        assert [t.name for t in scan.tensors] == ["t", "u"][: len(scan.tensors)]
        assert scan.header_bytes() == data[: scan.end]
    assert stages == {"prefix", "metadata", "tensors", "done"}


def test_a_count_too_large_still_shows_the_pairs() -> None:
    scan = scan_header(open_source(File((KV("a", U8, 1), KV("b", U8, 2)), n_kv=1 << 50).bytes()))
    assert [f.key for f in scan.fields] == ["a", "b"]
    assert scan.error is not None


def test_hex_rows_cover_the_header(tmp_path: Path) -> None:
    data = tiny_llama().bytes()
    path = save(tmp_path / "m.gguf", data)
    rows, error = hex_fields(path, None)
    assert error is None
    position = 0
    for row in rows:
        assert row.offset == position
        assert row.data == data[row.offset : row.offset + min(row.size, 16)]
        assert row.meaning
        position += row.size
    assert position == GGUFFile.from_bytes(data).header_size
    tokens = next(r for r in rows if r.type == "str[]")
    assert tokens.value.startswith("288: ['<unk>'")
    assert tokens.meaning == "the vocabulary: token number -> text"
    assert len(hex_fields(path, 10)[0]) == 10
    rows, error = hex_fields(save(tmp_path / "cut.gguf", data[:200]), None)
    assert rows
    assert isinstance(error, TruncatedError)
    assert hex_fields(save(tmp_path / "no.gguf", b"what is this"))[0] == []


def test_reading_from_several_threads(tmp_path: Path) -> None:
    path = save(tmp_path / "m.gguf", tiny_llama())
    problems = []
    with GGUFFile.open(path) as file:
        wanted = {name: file.array(name).copy() for name in file.tensors}

        def read() -> None:
            for name, values in wanted.items():
                if not np.array_equal(file.dequantize(name), values):
                    problems.append(name)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []


def test_opening_a_small_file_imports_neither_numpy_nor_gguf(tmp_path: Path) -> None:
    path = save(tmp_path / "m.gguf", tiny_llama())
    code = (
        "import sys; from atlas_kit.formats.gguf import GGUFFile, hex_fields; f = GGUFFile.open(sys.argv[1]);"
        "f.metadata['tokenizer.ggml.scores'].head(3); hex_fields(sys.argv[1], 500);"
        "sys.exit(any(m in sys.modules for m in ('numpy', 'gguf', 'rich', 'click')))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 0


# --- shards -----------------------------------------------------------------------------------------------


def save_shards(folder: Path, count: int = 3) -> list[Path]:
    return [
        save(folder / f"model-{i + 1:05d}-of-{count:05d}.gguf", file)
        for i, file in enumerate(split_llama(count))
    ]


def test_any_shard_opens_the_model(tmp_path: Path) -> None:
    paths = save_shards(tmp_path)
    whole = GGUFFile.from_bytes(tiny_llama().bytes())
    for path in paths:
        with GGUFFile.open(path) as model:
            assert model.is_split
            assert model.path == str(path)
            assert [s.path for s in model.shards] == [str(p) for p in paths]
            assert model.size == sum(p.stat().st_size for p in paths)
            assert model.architecture == "llama"
            assert list(model.tensors) == list(whole.tensors)
            for info in model.tensor_infos:
                np.testing.assert_array_equal(model.array(info.name), whole.array(info.name))
                np.testing.assert_array_equal(model.array(info), whole.array(info.name))
            assert hash_tensors(model).whole == hash_tensors(whole).whole
    with GGUFFile.open(paths[1], shards=False) as one:
        assert not one.is_split
        assert one.architecture is None


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    paths = save_shards(tmp_path)
    second = paths[1].read_bytes()
    paths[1].unlink()
    with pytest.raises(NoSuchFileError, match="00002-of-00003"):
        GGUFFile.open(paths[0])
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(FileCorruptError, match=r"split\.no is 2 instead of 1"):
        GGUFFile.open(paths[0])
    shard = split_llama(3)[1]
    save(paths[1], shard.with_kv(KV("split.tensors.count", I32, 999)))
    with pytest.raises(FileCorruptError, match="999"):
        GGUFFile.open(paths[0])
    save(paths[1], shard.without("split.no"))
    with pytest.raises(FileCorruptError, match=r"split\.no is missing"):
        GGUFFile.open(paths[0])
    save(paths[1], tiny_llama(layers=1).with_kv(*shard.kv))
    with pytest.raises(FileCorruptError):
        GGUFFile.open(paths[0])
    save(paths[1], second[:100])
    with pytest.raises(TruncatedError) as caught:
        GGUFFile.open(paths[0])
    assert caught.value.path == str(paths[1])
    paths[1].write_bytes(second)
    odd = paths[0].rename(tmp_path / "model.gguf")
    with pytest.raises(FileCorruptError, match="name does not say which"):
        GGUFFile.open(odd)
    other = odd.rename(tmp_path / "model-00001-of-00004.gguf")
    with pytest.raises(FileCorruptError, match="4 shards"):
        GGUFFile.open(other)


def test_hashes_do_not_depend_on_metadata_or_order() -> None:
    model = tiny_llama()
    base = hash_tensors(GGUFFile.from_bytes(model.bytes()))
    edited = File((*model.kv, KV("x", U8, 1)), tuple(reversed(model.tensors)), align=64).with_kv(
        KV("general.alignment", U32, 64)
    )
    assert hash_tensors(GGUFFile.from_bytes(edited.bytes())).whole == base.whole
    changed = model.with_tensor("output_norm.weight", data=bytes(128))
    other = hash_tensors(GGUFFile.from_bytes(changed.bytes()))
    assert other.whole != base.whole
    same = [n for n, d in base.by_name().items() if other.by_name()[n].xxh3_64 == d.xxh3_64]
    assert len(same) == len(model.tensors) - 1


def test_tensor_info_is_exact() -> None:
    info = TensorInfo("t", (2**40, 2**40, 2**40), GGMLType.F32, 0)
    assert info.nbytes == 2**122
    assert vocab_only().bytes()[:4] == b"GGUF"


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "m.gguf", tiny_llama())
    real = LocalSource.read_upto

    def changing(self: Source, offset: int, size: int) -> bytes:
        with open(path, "r+b") as file:
            file.truncate(2000)
        return real(self, offset, size)

    monkeypatch.setattr(LocalSource, "read_upto", changing)
    with pytest.raises(ConflictError):
        GGUFFile.open(path)


def test_the_header_of_the_benchmark(tmp_path: Path, repository: Path) -> None:
    """The file that the speed is measured on reads like with the gguf package (here a small one)."""
    spec = importlib.util.spec_from_file_location("gguf_header", repository / "tools/bench/gguf_header.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    sys.modules["gguf_header"] = bench  # dataclasses look their module up
    spec.loader.exec_module(bench)
    path = tmp_path / "h.gguf"
    assert bench.make_header_file(path, tokens=700, merges=500) == path.stat().st_size
    assert_equal_reading(path)
    result = bench.measure(path, runs=1)
    assert result.ratio > 0
    assert result.ours_mb > 0
