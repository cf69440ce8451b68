"""Our npz against NumPy's, and against archives that lie."""

from __future__ import annotations

import io
import itertools
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from atlas_kit.errors import AtlasError, DataTooLargeError, FileCorruptError, InvalidParamError
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.formats.npz import NewArray, NpzFile, check_npz, write_npz

DTYPES = ["?", "u1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8", "<c8", ">f4", "<U3", "<M8[s]", "S5"]
NAMES = st.text("abcXYZ-_ .\u00e9", min_size=1, max_size=8).filter(lambda s: s != "file")
ARRAYS = st.dictionaries(
    NAMES,
    st.sampled_from(DTYPES).flatmap(
        lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
    ),
    max_size=4,
)


@given(ARRAYS, st.booleans())
def test_we_read_what_numpy_writes(arrays, compressed):
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **arrays)
    assert check_npz(out.getvalue()) == []
    with NpzFile.open(out.getvalue()) as file:
        assert set(file.members) == set(arrays)
        for name, array in arrays.items():
            again = file.array(name)
            assert again.dtype == array.dtype
            assert again.shape == array.shape
            assert again.tobytes() == array.tobytes()
            assert np.load(io.BytesIO(file.raw(name)), allow_pickle=False).tobytes() == array.tobytes()


def test_fortran_order():
    array = np.asfortranarray(np.arange(12).reshape(3, 4))
    out = io.BytesIO()
    np.savez(out, a=array)
    with NpzFile.open(out.getvalue()) as file:
        assert file.members["a"].fortran_order
        assert np.array_equal(file.array("a"), array)


@given(ARRAYS)
def test_numpy_reads_what_we_write(arrays):
    out = io.BytesIO()
    write_npz(out, [NewArray(n, a.dtype.str, a.shape, lambda a=a: [a.tobytes()]) for n, a in arrays.items()])
    loaded = np.load(io.BytesIO(out.getvalue()), allow_pickle=False)
    assert set(loaded.files) == set(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].tobytes() == array.tobytes()


def test_the_same_arrays_give_the_same_bytes():
    def make():
        out = io.BytesIO()
        write_npz(out, [NewArray("a", "<f4", (2,), lambda: [bytes(8)])])
        return out.getvalue()

    assert make() == make()


def archive(**members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(f"{name}.npy", data)
    return out.getvalue()


def npy(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    raw = header.encode().ljust(118)
    return b"\x93NUMPY" + version + len(raw).to_bytes(2, "little") + raw + data


OBJECTS = io.BytesIO()
np.save(OBJECTS, np.array([{}], dtype=object), allow_pickle=True)
LIES = {
    "empty": b"",
    "no archive": b"PK\3\4" + bytes(50),
    "objects": archive(a=OBJECTS.getvalue()),
    "not npy": archive(a=b"hello"),
    "no bytes": archive(a=b""),
    "version 9": archive(
        a=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", bytes(4), b"\x09\0")
    ),
    "huge shape": archive(a=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976,)}")),
    "overflow": archive(a=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}")),
    "negative": archive(a=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}")),
    "short": archive(a=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", bytes(8))),
    "long": archive(a=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", bytes(8))),
    "code": archive(a=npy("{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': ()}")),
    "deep": archive(a=npy("(" * 60)),
    "no header": archive(a=npy("")),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_errors(name):
    with pytest.raises(FileCorruptError):
        NpzFile.open(LIES[name])
    assert [finding.severity for finding in check_npz(LIES[name])] == ["error"]


def test_bombs_and_twins():
    data = bytearray(archive(a=npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1,)}", b"x")))
    place = data.index(b"PK\1\2") + 24
    data[place : place + 4] = (2**31).to_bytes(4, "little")
    with pytest.raises((DataTooLargeError, FileCorruptError)):
        NpzFile.open(bytes(data))
    one = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1,)}", b"x")
    twins = archive(a=one, b=one).replace(b"b.npy", b"a.npy")
    with pytest.raises(FileCorruptError, match="twice"):
        NpzFile.open(twins)


def test_a_flipped_bit_is_found():
    out = io.BytesIO()
    np.savez(out, a=np.arange(1000))
    data = bytearray(out.getvalue())
    data[2000] ^= 1
    (finding,) = check_npz(bytes(data))
    assert "CRC-32" in finding.message
    assert check_npz(bytes(data), deep=False) == []


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_mutants_never_escape(place, value):
    data = bytearray(LIES["long"])
    data[place % len(data)] = value
    try:
        with NpzFile.open(bytes(data)) as file:
            for name in file.members:
                file.array(name)
    except AtlasError:
        pass


def test_writer_counts():
    with pytest.raises(InvalidParamError):
        write_npz(io.BytesIO(), [NewArray("a", "<f4", (2,), lambda: [b"abc"])])


def test_arrays_of_any_dtype_come_back_from_a_memory_file(tmp_path, run_cli):
    """Text, records and dates have no type in .atlas; the archive that is made of it has them again."""
    records = np.array([(1, 2.5, "a"), (3, 4.5, "bc")], dtype=[("i", "<i4"), ("f", "<f8"), ("s", "<U4")])
    arrays = {
        "n": np.arange(6.0).reshape(2, 3),
        "text": np.array(["a", "b\u00e9", "\n"]),
        "records": records,
        "date": np.array(["2020-01-01", "NaT"], "M8[D]"),
        "span": np.array([1, 2], "m8[s]"),
        "bytes": np.array([b"ab", b"c"]),
        "empty": np.array([], "<U3"),
        "scalar": np.array("x"),
        "columns": np.asfortranarray(np.array([["a", "b"], ["c", "d"]])),
        "big": np.array(["x"], ">U1"),
        "a.npy": np.array(["two"]),
    }
    np.savez(tmp_path / "in.npz", **arrays)
    names = ["in.npz", "a.atlas", "b.npz", "c.atlas", "d.npz", "e.json", "f.npz"]
    for before, after in itertools.pairwise(names):
        assert run_cli("convert", tmp_path / before, tmp_path / after).exit_code == 0
    assert run_cli("diff", tmp_path / "a.atlas", tmp_path / "c.atlas").exit_code == 0
    for name in ("b.npz", "d.npz", "f.npz"):
        with np.load(tmp_path / name) as found:
            assert {*found.files} == {*arrays, "__atlas_kit__"}
            for key, array in arrays.items():
                assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape)
                assert found[key].tobytes() == array.tobytes()


def test_entries_that_look_like_arrays_keep_their_keys(tmp_path, run_cli):
    """An entry whose key ends so need not hold an array, and its name may be taken."""
    out = io.BytesIO()
    np.save(out, np.array(["text"]))
    memory = MemoryFile()
    array = out.getvalue()
    entries = {"a.npy": array, "a": b"taken", "a.npy.npy": array, "b.npy": b"none", "c.npy": array + b"more"}
    for key, data in (entries | {".npy": array}).items():
        memory.set(key, data, timestamp=7)
    memory.save(tmp_path / "in.atlas")
    assert run_cli("convert", tmp_path / "in.atlas", tmp_path / "m.npz").exit_code == 0
    assert run_cli("convert", tmp_path / "m.npz", tmp_path / "out.atlas").exit_code == 0
    assert run_cli("diff", "--strict", tmp_path / "in.atlas", tmp_path / "out.atlas").exit_code == 0


# --- byte order and order of axes -------------------------------------------------------------------------------

TURNED = {
    "big": np.arange(12, dtype=">f4").reshape(3, 4),
    "big-half": np.arange(4, dtype=">f2"),
    "big-long": np.array(-5, dtype=">i8"),
    "big-empty": np.zeros((0, 3), ">u2"),
    "fortran": np.asfortranarray(np.arange(24, dtype="<i4").reshape(2, 3, 4)),
    "big-fortran": np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3)),
    "little": np.arange(5, dtype="<u2"),
    "text": np.array(["a", "b"], dtype=">U3"),
    "bytes": np.arange(5, dtype="u1"),
    "complex": np.array([1 + 2j], dtype=">c8"),
    "\u00fc": np.arange(3, dtype=">i2"),
}


def assert_as_they_were(path, arrays=TURNED):
    with np.load(path, allow_pickle=False) as loaded:
        assert set(loaded.files) - {"__atlas_kit__"} == set(arrays)
        for name, array in arrays.items():
            again = loaded[name]
            assert again.dtype.str == array.dtype.str, name
            assert again.shape == array.shape
            assert np.array_equal(again, array)
            assert again.flags.f_contiguous == array.flags.f_contiguous, name


def test_arrays_of_any_order_come_back_from_a_memory_file(tmp_path, run_cli):
    source, memory, back = tmp_path / "a.npz", tmp_path / "m.atlas", tmp_path / "b.npz"
    np.savez(source, **TURNED)
    assert run_cli("convert", source, memory).exit_code == 0
    assert run_cli("convert", memory, back).exit_code == 0
    assert_as_they_were(back)
    with MemoryFile.open(memory) as file:
        for name in ("big", "fortran", "big-fortran"):
            assert np.array_equal(file[name].array(), TURNED[name])


@pytest.mark.parametrize("through", ["atlas", "json", "safetensors", "npz"])
def test_orders_survive_other_formats(tmp_path, run_cli, through):
    source, between = tmp_path / "a.npz", tmp_path / f"between.{through}"
    first, second = tmp_path / "first.atlas", tmp_path / "second.atlas"
    np.savez(source, **TURNED)
    for line in ((source, first), (first, between), (between, second), (second, tmp_path / "b.npz")):
        ran = run_cli("convert", *line)
        assert ran.exit_code == 0, ran.stderr
    assert second.read_bytes() == first.read_bytes()
    assert_as_they_were(tmp_path / "b.npz")


def test_an_array_that_was_changed_is_written_as_it_is(tmp_path, run_cli):
    source, memory, back = tmp_path / "a.npz", tmp_path / "m.atlas", tmp_path / "b.npz"
    np.savez(source, big=TURNED["big"], other=TURNED["big-long"])
    assert run_cli("convert", source, memory).exit_code == 0
    with MemoryFile.open(memory) as file:
        file.set("big", np.arange(6, dtype="<i4"))
        file.save()
    assert run_cli("convert", memory, back).exit_code == 0
    assert_as_they_were(back, {"big": np.arange(6, dtype="<i4"), "other": TURNED["big-long"]})


@pytest.mark.parametrize(
    "record",
    [b"", b"{", b"[]", b'{"arrays": 3}', b'{"arrays": {"big": 3}}', b'{"arrays": {"big": {"descr": "O"}}}',
     b'{"arrays": {"big": {"descr": ">f4", "fortran_order": 2}}}', b"\xff", b'{"arrays": {"none": {}}}',
     b'{"arrays": {"big": {"descr": ["x"], "fortran_order": true}}}'],
)  # fmt: skip
def test_a_record_that_makes_no_sense_is_an_entry_like_any(tmp_path, run_cli, record):
    memory = MemoryFile()
    memory.set("big", np.arange(3, dtype="<f4"))
    memory.set("__npz__", record)
    memory.save(tmp_path / "m.atlas")
    for line in (("m.atlas", "b.npz"), ("b.npz", "again.atlas")):
        ran = run_cli("convert", *(tmp_path / name for name in line))
        assert ran.exit_code == 0, ran.stderr
    assert (tmp_path / "again.atlas").read_bytes() == (tmp_path / "m.atlas").read_bytes()
