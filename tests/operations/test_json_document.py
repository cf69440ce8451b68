"""JSON documents and carriers: whatever a memory file holds comes back, byte for byte."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.codecs.json_text import dumps, loads, plain, to_bytes
from atlas_kit.errors import AtlasError
from atlas_kit.formats.atlas import Entry, MemoryFile
from atlas_kit.formats.atlas.entry import MemoryPayload
from atlas_kit.operations import interchange
from atlas_kit.operations.json_document import (
    JSON_STYLES,
    entry_from_json,
    entry_to_json,
    read_document,
    write_document,
)
from atlas_kit.storage.given import open_source

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
KEYS = (
    st.binary(min_size=1, max_size=20)
    .filter(lambda k: 0 not in k)
    .map(lambda k: k.decode("utf-8", "surrogateescape"))
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
JSON_BYTES = st.builds(
    lambda value, style: json.dumps(value, **JSON_STYLES[style]).encode("utf-8", "surrogatepass"),
    st.lists(JSON, max_size=3) | st.dictionaries(st.text(), JSON, max_size=3),
    st.sampled_from(sorted(JSON_STYLES)),
)
PAYLOADS = (
    st.binary(min_size=1) | st.text(min_size=1).map(lambda t: t.encode("utf-8", "surrogatepass")) | JSON_BYTES
)
DTYPES = ["bool", "uint8", "int8", "uint16", "int32", "uint64", "int64", "float16", "bfloat16", "float32",
          "float64", "complex64"]  # fmt: skip
SIZES = {"bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int32": 4, "uint64": 8, "int64": 8, "float16": 2,
         "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8}  # fmt: skip


@st.composite
def entries(draw, tensors=True):
    key, kind = draw(KEYS), draw(st.integers(0, 4) | U32)
    common = {"type": kind, "flags": draw(U32), "timestamp": draw(U64)}
    if tensors and draw(st.booleans()):
        dtype = draw(st.sampled_from(DTYPES))
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        size = int(np.prod(shape, dtype=int)) * SIZES[dtype]
        return key, draw(st.binary(min_size=size, max_size=size)), {**common, "dtype": dtype, "shape": shape}
    return key, draw(PAYLOADS), common


def saved(tmp_path_factory, version, items, codec="none"):
    memory = MemoryFile(version=version, created=5, codec=codec)
    for key, payload, options in items:
        memory.set(key, payload, **options)
    path = tmp_path_factory.mktemp("m") / "m.atlas"
    memory.save(path, durable=False)
    return path


def through_json(path, back):
    out = io.BytesIO()
    with MemoryFile.open(path) as memory:
        write_document(memory, out)
    json.loads(out.getvalue(), parse_constant=lambda name: pytest.fail(name))
    memory, version = read_document(out.getvalue())
    memory.save(back, version=version, durable=False)
    return back.read_bytes()


@given(st.lists(entries(tensors=False), max_size=4))
def test_version_1_through_json(tmp_path_factory, items):
    path = saved(tmp_path_factory, 1, items)
    assert through_json(path, path.with_suffix(".back")) == path.read_bytes()


@given(st.lists(entries(), max_size=4), st.sampled_from(["none", "lz4", "zlib", "zstd"]))
def test_version_2_through_json(tmp_path_factory, items, codec):
    path = saved(tmp_path_factory, 2, items, codec)
    assert through_json(path, path.with_suffix(".back")) == path.read_bytes()


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
@given(items=st.lists(entries(), max_size=4))
def test_version_2_through_carriers(tmp_path_factory, items, kind):
    path = saved(tmp_path_factory, 2, items)
    out = io.BytesIO()
    with MemoryFile.open(path) as memory:
        getattr(interchange, f"write_as_{kind}")(memory, out)
    memory, version = interchange.read_carrier(open_source(out.getvalue()), kind)
    back = path.with_suffix(".back")
    memory.save(back, version=version, durable=False)
    assert back.read_bytes() == path.read_bytes()


def test_odd_levels_come_back(tmp_path):
    path = tmp_path / "m.atlas"
    memory = MemoryFile(created=5)
    text = "hello there, this is a line of text that repeats itself\n" * 200
    for codec, level in (("zlib", 1), ("zlib", 9), ("zstd", 12), ("lz4", 9), ("zstd", 19), ("zstd", -3)):
        memory.set(f"{codec} {level}", text, codec=codec, level=level, timestamp=1)
    memory.save(path)
    assert through_json(path, tmp_path / "back.atlas") == path.read_bytes()


def test_large_payloads_are_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("atlas_kit.operations.json_document.READABLE", 1000)
    path = tmp_path / "m.atlas"
    memory = MemoryFile(created=5)
    rng = np.random.default_rng(4)
    memory.set("a", rng.bytes(3_000_001), timestamp=1)
    memory.set("b", bytes(2_000_000), timestamp=1, codec="zstd")
    memory.set("c", rng.standard_normal(5000), timestamp=1)
    memory.save(path)
    assert through_json(path, tmp_path / "back.atlas") == path.read_bytes()


def test_an_unknown_codec_travels_unread():
    entry = Entry(
        "k", MemoryPayload(b"sealed"), size=99, codec_id=77, filter_id=0, dtype_id=200, shape=(3,), offset=0
    )
    item = entry_to_json(entry)
    assert item["codec"] == "unknown-77"
    again = entry_from_json(json.loads(dumps(item)))
    assert (again.codec_id, again.size, again.payload.read()) == (77, 99, b"sealed")
    assert (again.dtype_id, again.shape) == (200, (3,))


def test_text_wins_over_stale_stored_bytes(tmp_path):
    path = tmp_path / "m.atlas"
    memory = MemoryFile(created=5)
    memory.set("k", "abc " * 500, codec="zstd", level=19, timestamp=1)
    memory.save(path)
    item = entry_to_json(memory["k"])
    assert "stored_base64" in item or "level" in item
    item["text"] = "xyz " * 500
    assert entry_from_json(item).data == b"xyz " * 500


@given(JSON)
def test_dumps_is_strict_and_prints_nothing_odd(value):
    text = dumps(value)
    assert text.isprintable()
    assert json.loads(text, parse_constant=pytest.fail) == json.loads(json.dumps(plain(value)))


@given(st.binary(max_size=60))
def test_loads_raises_only_ours(data):
    with contextlib.suppress(AtlasError):
        loads(data)


@given(st.text())
def test_keys_always_have_bytes(text):
    assert isinstance(to_bytes(text), bytes)


# --- foreign carriers ----------------------------------------------------------------------------------


def test_foreign_safetensors_keep_metadata_and_odd_types(tmp_path):
    from atlas_kit.formats.safetensors import NewTensor, SafetensorsFile, write_safetensors

    source = io.BytesIO()
    tensors = [
        NewTensor("w", "BF16", (2, 2), lambda: [bytes(range(8))]),
        NewTensor("f8", "F8_E4M3", (3,), lambda: [b"abc"]),
        NewTensor("", "U8", (1,), lambda: [b"x"]),
    ]
    write_safetensors(source, tensors[:2], {"format": "pt", "note": "\u00e9"})
    memory, version = interchange.read_carrier(open_source(source.getvalue()), "safetensors")
    assert version is None
    assert memory["w"].dtype == "bfloat16"
    assert memory["f8"].data == b"abc"
    memory.save(tmp_path / "m.atlas")
    out = io.BytesIO()
    with MemoryFile.open(tmp_path / "m.atlas") as again:
        interchange.write_as_safetensors(again, out)
    assert out.getvalue() == source.getvalue()
    with SafetensorsFile.open(out.getvalue()) as file:
        assert file.tensors["f8"].dtype == "F8_E4M3"


def test_foreign_npz(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {
        "a": np.arange(4, dtype=">f4").reshape(2, 2),
        "f": np.asfortranarray(np.eye(3)),
        "t": np.array(["x", "yy"]),
    }
    np.savez_compressed(path, **arrays)
    memory, _ = interchange.read_carrier(open_source(path), "npz")
    assert memory["a"].array().tolist() == arrays["a"].tolist()
    assert memory["f"].array().tolist() == np.eye(3).tolist()
    assert np.load(io.BytesIO(memory["t.npy"].data)).tolist() == ["x", "yy"]
    assert memory["a"].timestamp == int(path.stat().st_mtime)


def test_arrays_win_over_the_side_record(tmp_path):
    path = tmp_path / "m.npz"
    memory = MemoryFile(created=5)
    memory.set("w", np.zeros((2, 2), np.float32), timestamp=9, flags=3)
    memory.set("b", np.zeros(4, np.uint16), dtype="bfloat16", timestamp=9)
    memory.set("gone", "x", timestamp=9)
    with path.open("wb") as out:
        interchange.write_as_npz(memory, out)
    arrays = dict(np.load(path))
    arrays["w"] = np.ones((3, 1), np.float64)
    arrays["b"] = np.ones((2, 2), np.uint16)
    arrays["new"] = np.arange(3)
    del arrays["gone"]
    np.savez(path, **arrays)
    again, _ = interchange.read_carrier(open_source(path), "npz")
    assert again["w"].array().tolist() == [[1], [1], [1]]
    assert (again["w"].flags, again["w"].timestamp) == (3, 9)
    assert (again["b"].dtype, again["b"].shape) == ("bfloat16", (2, 2))
    assert again["new"].array().tolist() == [0, 1, 2]
    assert "gone" not in again


@pytest.mark.parametrize(
    "key",
    [
        "../../etc/passwd",
        "/abs",
        "a\\b",
        "c:d",
        "a/./b",
        "dir/",
        "\x1b",
        "x" * 300,
        "\udcff",
        "__atlas_kit__",
    ],
)
def test_archive_names_are_harmless(key):
    memory = MemoryFile(created=5)
    memory.set(key, "payload", timestamp=1)
    out = io.BytesIO()
    interchange.write_as_npz(memory, out)
    names = np.load(io.BytesIO(out.getvalue())).files
    assert sorted(names) == ["__atlas_kit__", "entry-0"]
    assert interchange.read_carrier(open_source(out.getvalue()), "npz")[0][key].data == b"payload"


@pytest.mark.parametrize(
    "side", ["[]", "{}", '{"entries": [1]}', '{"entries": [{"name": 1}]}', '{"entries": [{"name": "a"}]}',
             '{"entries": [{"name": "a", "key": "k", "type": "odd"}]}', "{", '{"version": 8, "entries": []}',
             '{"entries": [{"name": "a", "key": "k", "dtype": "q8_0", "shape": [32]}]}',
             '{"entries": [{"name": "a", "key": "k", "key_hex": "zz"}]}'],
)  # fmt: skip
def test_damaged_side_records(side):
    from atlas_kit.formats.safetensors import NewTensor, write_safetensors

    out = io.BytesIO()
    write_safetensors(out, [NewTensor("a", "U8", (1,), lambda: [b"x"])], {"atlas_kit": side})
    with pytest.raises(AtlasError):
        interchange.read_carrier(open_source(out.getvalue()), "safetensors")
