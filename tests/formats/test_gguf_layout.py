"""The schema: builds what it parses, plans what it interprets, and refuses what cannot be."""

from __future__ import annotations

import contextlib
import math
import struct

import construct as cs
import pytest
from gguf_builder import ARR, BOOL, F32, F64, HOSTILE, KV, STR, U8, Array, File, Tensor, tiny_llama
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import AtlasError, InvalidParamError
from atlas_kit.formats.gguf import GGUFFile, MetadataField, tables
from atlas_kit.formats.gguf.layout import Record, layout
from atlas_kit.formats.gguf.tables import GGMLType, ValueType
from atlas_kit.formats.gguf.tensors import TensorInfo
from atlas_kit.formats.gguf.values import ArrayValue, infer_type
from atlas_kit.formats.gguf.write import build, build_header
from atlas_kit.formats.schema import BufferStream, parse, trace

RANGES = {
    ValueType.UINT8: (0, 2**8 - 1),
    ValueType.INT8: (-(2**7), 2**7 - 1),
    ValueType.UINT16: (0, 2**16 - 1),
    ValueType.INT16: (-(2**15), 2**15 - 1),
    ValueType.UINT32: (0, 2**32 - 1),
    ValueType.INT32: (-(2**31), 2**31 - 1),
    ValueType.UINT64: (0, 2**64 - 1),
    ValueType.INT64: (-(2**63), 2**63 - 1),
}
TEXT = st.binary(max_size=40).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
SCALARS = {kind: st.integers(low, high) for kind, (low, high) in RANGES.items()} | {
    ValueType.FLOAT32: st.floats(width=32),
    ValueType.FLOAT64: st.floats(),
    ValueType.BOOL: st.booleans() | st.integers(2, 255),
    ValueType.STRING: TEXT,
}


def arrays(depth: int) -> st.SearchStrategy[ArrayValue]:
    plain = st.sampled_from(list(SCALARS)).flatmap(
        lambda kind: st.builds(ArrayValue, st.just(kind), st.lists(SCALARS[kind], max_size=70))
    )
    if depth == 0:
        return plain
    nested = st.builds(ArrayValue, st.just(ValueType.ARRAY), st.lists(arrays(depth - 1), max_size=4))
    return plain | nested


FIELDS = st.sampled_from(list(SCALARS)).flatmap(
    lambda kind: st.builds(MetadataField, TEXT, st.just(kind), SCALARS[kind])
) | st.builds(lambda key, a: MetadataField(key, ValueType.ARRAY, a.items, a.element_type), TEXT, arrays(2))
TENSORS = st.builds(
    TensorInfo,
    TEXT,
    st.lists(st.integers(0, 2**32 - 1), max_size=4).map(tuple),
    st.sampled_from(list(GGMLType)) | st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 2**64 - 1),
)
DIALECTS = [(version, order) for version in (1, 2, 3) for order in "<>"]


def plain(value):
    """Turn any value into nested lists; NaN becomes its bits, so that equal means the same."""
    if isinstance(value, ArrayValue):
        return [int(value.element_type), plain(value.items)]
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return value if isinstance(value, (bool, int, float, str)) else [plain(item) for item in value]


@pytest.mark.parametrize(("version", "order"), DIALECTS)
@given(fields=st.lists(FIELDS, max_size=6), tensors=st.lists(TENSORS, max_size=4))
def test_round_trip(version: int, order: str, fields, tensors) -> None:
    schema = layout(version, order)
    data = build_header(schema, fields, tensors)
    parsed = parse(schema.header, data)
    assert build(schema.header, parsed) == data
    file = GGUFFile.from_bytes(data)
    assert file.header_size == len(data)
    assert [(f.key, int(f.type), plain(f.items)) for f in file.fields] == [
        (f.key, int(f.type), plain(f.items)) for f in fields
    ]
    assert [(t.name, t.dims, int(t.type), t.offset) for t in file.tensor_infos] == [
        (t.name, t.dims, int(t.type), t.offset) for t in tensors
    ]
    assert build_header(schema, file.fields, file.tensor_infos) == data


@pytest.mark.parametrize(("version", "order"), DIALECTS)
@given(fields=st.lists(FIELDS, max_size=4), tensors=st.lists(TENSORS, max_size=3), cut=st.integers(0, 2000))
def test_cut_anywhere_is_our_error_and_keeps_what_is_whole(version, order, fields, tensors, cut) -> None:
    data = build_header(layout(version, order), fields, tensors)
    data = data[: len(data) - 1 - cut % len(data)]
    file = GGUFFile.from_bytes(data, tolerant=True)
    assert file.error is not None
    assert file.error.offset is not None
    assert file.error.offset <= len(data)
    whole = [f.key for f in fields][: len(file.fields)]
    assert [f.key for f in file.fields] == whole
    assert file.scan.end <= len(data)


@given(data=st.binary(max_size=300))
def test_noise_behind_a_good_start(data: bytes) -> None:
    for version in (1, 2, 3):
        head = b"GGUF" + struct.pack("<I", version) + data
        GGUFFile.from_bytes(head, tolerant=True)


def test_planned_records_read_what_construct_would() -> None:
    """``Record`` must be no second truth: the same schema as plain ``Struct`` gives the same values."""
    data = tiny_llama().bytes()
    schema = layout(3, "<")
    planned = parse(schema.header, data)

    planned_ones = []

    def unplanned(con):
        if isinstance(con, cs.Renamed):
            return cs.Renamed(unplanned(con.subcon), newname=con.name)
        if isinstance(con, cs.Struct):
            planned_ones.append(isinstance(con, Record))
            return cs.Struct(*map(unplanned, con.subcons))
        if isinstance(con, cs.Switch):
            cases = {key: unplanned(case) for key, case in con.cases.items()}
            return cs.Switch(con.keyfunc, cases, default=con.default)
        return cs.Array(con.count, unplanned(con.subcon)) if isinstance(con, cs.Array) else con

    plain_schema = unplanned(schema.header)
    assert planned_ones.count(True) == 3  # pairs, arrays, tensor infos
    slow = parse(plain_schema, data)
    assert [t["dimensions"] for t in slow.tensor_infos] == [t["dimensions"] for t in planned.tensor_infos]
    for a, b in zip(slow.metadata_kv, planned.metadata_kv, strict=True):
        assert (a.key, a.value_type, a.value_offset) == (b.key, b.value_type, b.value_offset)
    assert build(schema.header, slow) == build(schema.header, planned)


def test_signalling_nans_keep_their_bits() -> None:
    bits = [struct.pack("<I", word) for word in (0x7F800001, 0xFFC12345, 0x7FC00000)]
    file = File((*(KV(f"f{i}", F32, raw) for i, raw in enumerate(bits)), KV("a", ARR, Array(F32, bits))))
    data = file.bytes()
    schema = layout(3, "<").header
    assert build(schema, parse(schema, data)) == data
    wide = File((KV("d", F64, struct.pack("<Q", 0x7FF0000000000001)),)).bytes()
    assert build(schema, parse(schema, wide)) == wide


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_end_in_our_errors(name: str) -> None:
    data = HOSTILE[name]()
    file = None
    with contextlib.suppress(AtlasError):
        file = GGUFFile.from_bytes(data)
    tolerant = GGUFFile.from_bytes(data, tolerant=True)
    assert (tolerant.error is None) == (file is not None)
    for info in tolerant.tensor_infos:
        with contextlib.suppress(AtlasError):
            tolerant.array(info)
            list(tolerant.iter_raw(info))
    if tolerant.scan.version:
        trace(tolerant.scan.layout.header, data, limit=500)


@pytest.mark.slow
def test_many_tiny_records_are_read_quickly_enough_to_count() -> None:
    """80,000 pairs in a MiB: planned records keep this far below a second, and all of them are found."""
    count = 80_000
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, count) + (struct.pack("<Qi", 0, U8) + b"\1") * count
    file = GGUFFile.from_bytes(data)
    assert len(file.fields) == count
    assert len(file.metadata) == 1


def test_nested_arrays_up_to_the_limit() -> None:
    def nested(depth: int) -> bytes:
        raw = struct.pack("<iQ", ARR, 1) * depth + struct.pack("<iQB", U8, 1, 7)
        return File((KV("k", ARR, raw=raw),)).bytes()

    good = GGUFFile.from_bytes(nested(tables.MAX_DEPTH))
    value = good.fields[0].value
    depth = 0
    while good.fields[0].element_type == ValueType.ARRAY and not hasattr(value, "dtype"):
        value = value[0].value
        depth += 1
    assert (depth, value.tolist()) == (tables.MAX_DEPTH, [7])
    assert GGUFFile.from_bytes(nested(tables.MAX_DEPTH + 1), tolerant=True).error is not None


def test_bool_arrays() -> None:
    file = GGUFFile.from_bytes(
        File((KV("a", ARR, Array(BOOL, [0, 1])), KV("b", ARR, Array(BOOL, [0, 2])))).bytes()
    )
    assert file.get("a").dtype == bool
    assert file.get("b").tolist() == [0, 2]
    assert file.fields[1].head(2) == [False, 2]


def test_dimensions_are_checked_before_they_are_read() -> None:
    data = File((), (Tensor("x", (1,), n_dims=2**32 - 1),)).bytes()
    file = GGUFFile.from_bytes(data, tolerant=True)
    assert "4294967295 dimensions" in str(file.error)
    assert file.error is not None
    assert file.error.key == "x"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, (ValueType.BOOL, None)),
        (7, (ValueType.UINT32, None)),
        (-7, (ValueType.INT32, None)),
        (2**40, (ValueType.UINT64, None)),
        (-(2**40), (ValueType.INT64, None)),
        (0.5, (ValueType.FLOAT32, None)),
        ("x", (ValueType.STRING, None)),
        ([1, 2], (ValueType.ARRAY, ValueType.INT32)),
        ([1, 2**40], (ValueType.ARRAY, ValueType.INT64)),
        ([1, 2**63], (ValueType.ARRAY, ValueType.UINT64)),
        ([1, 0.5], (ValueType.ARRAY, ValueType.FLOAT32)),
        ([True, False], (ValueType.ARRAY, ValueType.BOOL)),
        (["a", b"b"], (ValueType.ARRAY, ValueType.STRING)),
        ([[1], ["a"]], (ValueType.ARRAY, ValueType.ARRAY)),
    ],
)
def test_types_are_inferred(value, expected) -> None:
    assert infer_type(value) == expected


@pytest.mark.parametrize("value", [None, {}, [], [1, "a"], 2**64, [2**64], object()])
def test_what_has_no_type_is_refused(value) -> None:
    with pytest.raises(InvalidParamError):
        infer_type(value)


@pytest.mark.parametrize(
    ("value", "kind", "element"),
    [
        (256, ValueType.UINT8, None),
        (-1, ValueType.UINT32, None),
        ("7", ValueType.UINT32, None),
        (True, ValueType.INT32, None),
        (1.5, ValueType.INT32, None),
        (1e300, ValueType.FLOAT32, None),
        (7, ValueType.STRING, None),
        ("yes", ValueType.BOOL, None),
        ([1, 300], ValueType.ARRAY, ValueType.UINT8),
        ("abc", ValueType.ARRAY, ValueType.STRING),
        (1, 99, None),
        ([1], ValueType.ARRAY, 99),
    ],
)
def test_values_that_do_not_fit_are_refused(value, kind, element) -> None:
    with pytest.raises(InvalidParamError):
        MetadataField.make("k", value, kind, element)


def test_numpy_values_become_fields() -> None:
    import numpy as np

    for dtype, kind in (("<f4", ValueType.FLOAT32), (">i2", ValueType.INT16), ("u8", ValueType.UINT64)):
        field = MetadataField.make("k", np.arange(3, dtype=dtype))
        assert (field.element_type, list(field.items)) == (kind, [0, 1, 2])
    assert MetadataField.make("k", np.float64(0.5)).type == ValueType.FLOAT64
    with pytest.raises(InvalidParamError):
        infer_type(np.zeros(2, np.complex64))


def test_unknown_construct_errors_become_ours() -> None:
    with pytest.raises(InvalidParamError):
        build(layout(3, "<").key_value, {"key": "a", "value_type": 4, "value": -1})
    assert BufferStream(b"abc").ensure(9) == 3


def test_type_names() -> None:
    assert tables.value_type_of_name("arr[f32]") == (ValueType.ARRAY, ValueType.FLOAT32)
    assert tables.value_type_of_name("UINT64") == (ValueType.UINT64, None)
    assert tables.value_type_of_name("str[]") == (ValueType.ARRAY, ValueType.STRING)
    assert tables.value_type_of_name("nope") is None
    assert tables.value_type_name(9, 8) == "arr[str]"
    assert tables.value_type_name(99) == "type 99"
    assert tables.ggml_type_name(4) == "Q4_2 (removed)"
    assert tables.ggml_type_name(999) == "type 999"


def test_known_keys() -> None:
    assert tables.describe_key("llama.block_count").meaning == "number of layers"
    assert tables.describe_key("general.base_model.0.name") is not None
    assert tables.describe_key("tokenizer.chat_template.tool_use") is not None
    assert tables.describe_key("nobody.knows.this") is None
    assert tables.describe_value("general.file_type", 7) == "mostly Q8_0"
    assert {STR} == {ValueType.STRING}
