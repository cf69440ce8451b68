"""The published vectors (hex <-> values) of formats/vectors/gguf.json: read, rebuilt, refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.errors import FileCorruptError, MagicMismatchError, TruncatedError, VersionMismatchError
from atlas_kit.formats.gguf import GGUFFile, tables
from atlas_kit.formats.gguf.layout import layout
from atlas_kit.formats.gguf.values import ArrayValue
from atlas_kit.formats.gguf.write import build, build_header
from atlas_kit.formats.schema import parse

FILE = Path(__file__).resolve().parents[2] / "formats" / "vectors" / "gguf.json"
VECTORS = json.loads(FILE.read_text(encoding="utf-8"))["vectors"]
VALID = [pytest.param(v, id=v["name"]) for v in VECTORS if v["valid"]]
INVALID = [pytest.param(v, id=v["name"]) for v in VECTORS if not v["valid"]]
ERRORS = {
    "magic": MagicMismatchError,
    "version": VersionMismatchError,
    "truncated": TruncatedError,
    "corrupt": FileCorruptError,
}


def as_json(value: Any) -> Any:
    """Write a value the way the vectors do."""
    if isinstance(value, ArrayValue):
        return {"type": tables.value_type_name(value.element_type), "value": as_json(value.items)}
    if isinstance(value, str):
        raw = value.encode("utf-8", "surrogateescape")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return {"bytes": raw.hex()}
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        return str(value)
    if isinstance(value, (bool, int, float)):
        return value
    return [as_json(item) for item in value]


@pytest.mark.parametrize("vector", VALID)
def test_values(vector: dict[str, Any]) -> None:
    file = GGUFFile.from_bytes(bytes.fromhex(vector["hex"]))
    assert file.version == vector["version"]
    assert {"<": "little", ">": "big"}[file.byte_order] == vector["byte_order"]
    assert (file.header_size, file.alignment) == (vector["header_size"], vector["alignment"])
    assert file.data_start == vector["data_start"]
    found = []
    for field in file.fields:
        row = {"key": as_json(field.key), "type": tables.value_type_name(field.type)}
        if field.element_type is not None:
            row["element_type"] = tables.value_type_name(field.element_type)
        found.append({**row, "value": as_json(field.items)})
    assert found == vector["fields"]
    tensors = [
        {"name": t.name, "dims": list(t.dims), "type": t.type, "offset": t.offset} for t in file.tensor_infos
    ]
    assert tensors == vector["tensors"]


@pytest.mark.parametrize("vector", VALID)
def test_the_schema_alone_rebuilds_the_same_bytes(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    schema = layout(vector["version"], {"little": "<", "big": ">"}[vector["byte_order"]]).header
    assert build(schema, parse(schema, data)) == data[: vector["header_size"]]


@pytest.mark.parametrize("vector", VALID)
def test_fields_rebuild_the_same_bytes(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    file = GGUFFile.from_bytes(data)
    assert build_header(file.scan.layout, file.fields, file.tensor_infos) == data[: vector["header_size"]]


@pytest.mark.parametrize("vector", VALID)
def test_plain_python_values_rebuild_the_same_bytes(vector: dict[str, Any]) -> None:
    """Not from lazy views of the file: from the JSON values, through inference-free field making."""
    from atlas_kit.formats.gguf import MetadataField

    def value_of(value: Any) -> Any:
        if isinstance(value, dict) and "bytes" in value:
            return bytes.fromhex(value["bytes"])
        if isinstance(value, dict):
            element = tables.value_type_of_name(value["type"])
            assert element is not None
            return ArrayValue(element[0], [value_of(item) for item in value["value"]])
        return [value_of(item) for item in value] if isinstance(value, list) else value

    def number(kind: str, value: Any) -> Any:
        if isinstance(value, list):
            return [number(kind, item) for item in value]
        return int(value) if kind[0] in "ui" and isinstance(value, str) else value

    fields = []
    for row in vector["fields"]:
        kinds = [tables.value_type_of_name(row[k]) for k in ("type", "element_type") if k in row]
        value = number(row.get("element_type", row["type"]), value_of(row["value"]))
        key = value_of(row["key"])
        key = key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else key
        fields.append(MetadataField.make(key, value, *[kind[0] for kind in kinds if kind]))
    file = GGUFFile.from_bytes(bytes.fromhex(vector["hex"]))
    built = build_header(file.scan.layout, fields, file.tensor_infos)
    assert built == bytes.fromhex(vector["hex"])[: vector["header_size"]]


@pytest.mark.parametrize("vector", INVALID)
def test_errors(vector: dict[str, Any]) -> None:
    with pytest.raises(ERRORS[vector["error"]]) as caught:
        GGUFFile.from_bytes(bytes.fromhex(vector["hex"]))
    assert caught.value.offset == vector["offset"]
    if vector["error"] == "corrupt":
        assert not isinstance(caught.value, TruncatedError)


def test_every_value_type_has_a_vector() -> None:
    rows = [row for v in VECTORS if v["valid"] for row in v["fields"]]
    wanted = {row.short for row in tables.VALUE_TYPES}
    assert {row["type"] for row in rows} == wanted
    assert {row["element_type"] for row in rows if "element_type" in row} == wanted
    assert {v["version"] for v in VECTORS if v["valid"]} == set(tables.VERSIONS)
    assert {v["byte_order"] for v in VECTORS if v["valid"]} == {"little", "big"}
    assert not any(isinstance(row["value"], float) and math.isnan(row["value"]) for row in rows)
