"""Our safetensors against the safetensors package, and against files that lie."""

from __future__ import annotations

import contextlib
import io
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import SafetensorError, safe_open
from safetensors import numpy as theirs

from atlas_kit.errors import AtlasError, FileCorruptError, InvalidParamError, KeyNotFoundError, TruncatedError
from atlas_kit.formats.safetensors import (
    BITS,
    NewTensor,
    SafetensorsFile,
    check_safetensors,
    tensor_size,
    write_safetensors,
)

NAMES = {"bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32",
         "int32": "I32", "uint64": "U64", "int64": "I64", "float16": "F16", "float32": "F32",
         "float64": "F64"}  # fmt: skip
ARRAYS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda s: s != "__metadata__"),
    st.sampled_from(list(NAMES)).flatmap(
        lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
    ),
    max_size=5,
)
METADATA = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(st.characters(exclude_categories=["Cs"])),
    max_size=3,
)


def write(arrays, metadata=None):
    out = io.BytesIO()
    tensors = [
        NewTensor(name, NAMES[array.dtype.name], array.shape, lambda array=array: [array.tobytes()])
        for name, array in arrays.items()
    ]
    write_safetensors(out, tensors, metadata)
    return out.getvalue()


@given(ARRAYS, METADATA)
def test_the_package_reads_what_we_write(tmp_path_factory, arrays, metadata):
    data = write(arrays, metadata)
    loaded = theirs.load(data)
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.tobytes()
    path = tmp_path_factory.mktemp("s") / "x.safetensors"
    path.write_bytes(data)
    with safe_open(path, "numpy") as opened:
        assert (opened.metadata() or {}) == metadata


@given(ARRAYS, METADATA)
def test_we_read_what_the_package_writes(arrays, metadata):
    # without tensors and with an empty map the package (0.8.0) writes a header that it cannot read itself
    with SafetensorsFile.open(theirs.save(arrays, metadata or None)) as file:
        assert file.metadata == metadata
        assert set(file.tensors) == set(arrays)
        for name, array in arrays.items():
            info = file.tensors[name]
            assert (info.dtype, info.shape) == (NAMES[array.dtype.name], array.shape)
            assert bytes(file.view(name)) == b"".join(file.chunks(name)) == array.tobytes()


@given(ARRAYS)
def test_every_tensor_is_aligned_to_its_elements(arrays):
    data = write(arrays)
    assert check_safetensors(data) == []
    with SafetensorsFile.open(data) as file:
        assert file.data_start % 8 == 0
        assert all(info.offset % (BITS[info.dtype] // 8) == 0 for info in file.tensors.values())


def packed(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def row(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "empty": b"",
    "short": b"\1\0\0",
    "huge length": packed(b"{}", length=2**63),
    "long length": packed(b"{}", length=1000),
    "not an object": packed(b"[]"),
    "space first": packed(b" {}"),
    "not utf-8": packed(b'{"\xff": 1}'),
    "not json": packed(b'{"a": }'),
    "deep": packed(b'{"a":' + b"[" * 100_000),
    "a name twice": packed(b'{"a": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}, "a": 1}'),
    "row is a list": packed({"a": []}),
    "unknown dtype": packed({"a": row("F99")}, bytes(8)),
    "dtype is a list": packed({"a": row(["F32"])}, bytes(8)),
    "negative dim": packed({"a": row(shape=(-2,))}, bytes(8)),
    "bool dim": packed({"a": row(shape=(True,), offsets=(0, 4))}, bytes(4)),
    "float dim": packed({"a": row(shape=(2.0,))}, bytes(8)),
    "huge dims": packed({"a": row(shape=(2**62, 2**62, 4))}, bytes(8)),
    "too many dims": packed({"a": row(shape=(1,) * 5000, offsets=(0, 4))}, bytes(4)),
    "offsets swapped": packed({"a": row(offsets=(8, 0))}, bytes(8)),
    "offsets short": packed({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, bytes(8)),
    "offsets negative": packed({"a": row(offsets=(-8, 0))}, bytes(8)),
    "hole": packed({"a": row(offsets=(8, 16))}, bytes(16)),
    "overlap": packed({"a": row(), "b": row(offsets=(4, 12))}, bytes(12)),
    "beyond the end": packed({"a": row()}, bytes(7)),
    "trailing": packed({"a": row()}, bytes(9)),
    "metadata list": packed({"__metadata__": []}),
    "metadata numbers": packed({"__metadata__": {"a": 1}}),
    "half bytes": packed({"a": row("F4", (3,), (0, 2))}, bytes(2)),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_errors(name):
    with pytest.raises(FileCorruptError):
        SafetensorsFile.open(LIES[name])
    findings = check_safetensors(LIES[name])
    assert [finding.severity for finding in findings] == ["error"]


@pytest.mark.parametrize("name", [n for n in LIES if n not in ("too many dims", "space first")])
def test_the_package_refuses_them_too(name):
    with pytest.raises((SafetensorError, ValueError)):
        theirs.load(LIES[name])


def test_a_cut_file_is_told_apart():
    whole = write({"a": np.arange(100)})
    with pytest.raises(TruncatedError):
        SafetensorsFile.open(whole[:-1])
    assert check_safetensors(whole[:-1])[0].code == "truncated"


@given(st.binary(max_size=200))
def test_noise_never_escapes(data):
    with contextlib.suppress(AtlasError):
        SafetensorsFile.open(packed(data)).close()


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("F32", (2, 3), 24), ("F4", (3, 2), 3), ("F4", (3,), None), ("X", (), None), ("I64", (), 8)],
)
def test_sizes(dtype, shape, size):
    assert tensor_size(dtype, shape) == size


def test_writer_refuses_what_it_cannot_say():
    def new(name="a", dtype="U8", shape=(2,), data=b"ab"):
        return NewTensor(name, dtype, shape, lambda: [data])

    for tensors in ([new(), new()], [new("__metadata__")], [new(dtype="Q8_0")], [new(data=b"abc")]):
        with pytest.raises(InvalidParamError):
            write_safetensors(io.BytesIO(), tensors)


def test_missing_tensor():
    with SafetensorsFile.open(write({})) as file, pytest.raises(KeyNotFoundError):
        file.view("nope")
