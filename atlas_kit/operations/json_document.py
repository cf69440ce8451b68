"""Memory files as readable JSON, losslessly, and back: edit it by hand, convert it back, get the same bytes.

A payload is shown in the most readable form that reproduces its bytes exactly: parsed JSON, text, a list of
numbers, else base64. A coded payload names its codec; where coding it again does not give the same bytes
(another library, another level), the coded bytes are kept in ``stored_base64`` and used as long as they still
hold the payload beside them.

The document::

    {"format": "atlas-kit/memory", "version": 1, "created": 0, "modified": 0, "model_hash": "00...",
     "entries": [{"key": "k", "type": "text", "timestamp": 0, "text": "..."}, ...]}
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import IO, TYPE_CHECKING, Any

from atlas_kit.codecs import table as codecs
from atlas_kit.codecs.json_text import dumps, json_bytes, loads, name_from, named, to_utf8
from atlas_kit.errors import AtlasError, FileCorruptError, Remedy, VersionMismatchError
from atlas_kit.formats.atlas import tables
from atlas_kit.formats.atlas.entry import Entry, MemoryPayload

if TYPE_CHECKING:
    from collections.abc import Callable

    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.storage.given import Progress

FORMAT = "atlas-kit/memory"

#: Payloads up to this size are looked at for a readable form; larger ones are written as base64 in pieces.
READABLE = 1 << 24
#: Tensors of up to this many elements are listed number by number.
MAX_VALUES = 4096
#: Bytes of one piece of base64: a multiple of 3, so that pieces join without padding.
PIECE = 3 << 18

#: How a JSON payload was written; the first one that reproduces it is named in the document.
JSON_STYLES: dict[str, dict[str, Any]] = {
    "spaced": {"ensure_ascii": False},
    "compact": {"ensure_ascii": False, "separators": (",", ":")},
    "spaced-ascii": {},
    "compact-ascii": {"separators": (",", ":")},
    "indent-2": {"ensure_ascii": False, "indent": 2},
    "indent-4": {"ensure_ascii": False, "indent": 4},
    "indent-2-ascii": {"indent": 2},
    "indent-4-ascii": {"indent": 4},
}

# --- facts: what a file and an entry are, without the payload ------------------------------------------


def file_facts(memory: MemoryFile) -> dict[str, Any]:
    """Return what the header says, as JSON-ready data."""
    facts: dict[str, Any] = {
        "version": memory.version,
        "created": memory.created,
        "modified": memory.modified,
        "model_hash": bytes(memory.model_hash).hex(),
    }
    info = memory.info
    if any(info.reserved):
        facts["reserved"] = info.reserved.hex()
    if info.file_flags:
        facts["file_flags"] = info.file_flags
    return facts


def entry_facts(entry: Entry) -> dict[str, Any]:
    """Return what an entry's header says, without what the payload or the place in the file implies."""
    facts: dict[str, Any] = {
        **named("key", entry.key),
        "type": tables.DATA_TYPE_NAMES.get(entry.type, int(entry.type)),
        "timestamp": entry.timestamp,
    }
    attributes = entry.attributes & ~(tables.REMOVED | tables.ENCRYPTED)
    for name, value in (("flags", entry.flags), ("reserved", entry.reserved), ("attributes", attributes)):
        if value:
            facts[name] = value
    if entry.codec_id:
        facts["codec"] = entry.codec
    if entry.filter_id:
        facts["filter"] = entry.filter
        facts["item_size"] = entry.item_size
    if entry.dtype_id:
        facts["dtype"] = entry.dtype
        facts["shape"] = list(entry.shape or ())
    return facts


def _whole(facts: dict[str, Any], name: str, limit: int, default: int = 0) -> int:
    """Return an unsigned number of ``facts``, checked."""
    value = facts.get(name, default)
    if type(value) is not int or not 0 <= value <= limit:
        raise FileCorruptError(f'"{name}" is not a whole number from 0 to {limit}')
    return value


def _hash(facts: dict[str, Any], name: str) -> bytes:
    value = facts.get(name, "")
    try:
        raw = bytes.fromhex(value)
    except (ValueError, TypeError) as error:
        raise FileCorruptError(f'"{name}" is not hexadecimal') from error
    if len(raw) > 32:
        raise FileCorruptError(f'"{name}" has {len(raw)} bytes, and the format has room for 32')
    return raw.ljust(32, b"\0")


def make_memory(facts: dict[str, Any]) -> MemoryFile:
    """Make an empty memory file with the header that ``file_facts`` described."""
    from atlas_kit.formats.atlas import MemoryFile

    version = _whole(facts, "version", 3, 2)
    if version == 0:
        raise FileCorruptError('"version" is not 1, 2 or 3')
    # A version 3 document becomes a file in memory that is encrypted when it is saved, not before.
    memory = MemoryFile(version=min(version, 2))
    info = memory.info
    info.created = _whole(facts, "created", tables.U64)
    info.modified = _whole(facts, "modified", tables.U64)
    info.model_hash = _hash(facts, "model_hash")
    info.reserved = _hash(facts, "reserved")
    info.file_flags = _whole(facts, "file_flags", tables.U32)
    return memory


def make_entry(facts: dict[str, Any], payload: Any, *, stored: bytes | None = None) -> Entry:
    """Make the entry that ``entry_facts`` described.

    ``payload`` is decoded (bytes, or a buffer); with a codec it is coded as ``facts`` say, unless ``stored``
    already is the coded form of it.
    """
    key = name_from(facts, "key")
    dtype_id, shape = _tensor_of(facts, len(payload))
    codec_id, filter_id, item_size = _coding_of(facts)
    if stored is None:
        stored, codec_id, filter_id = _code(payload, codec_id, filter_id, item_size, facts.get("level"))
    return Entry(
        key,
        MemoryPayload(stored),
        type=_type_of(facts),
        flags=_whole(facts, "flags", tables.U32),
        timestamp=_whole(facts, "timestamp", tables.U64),
        size=len(payload),
        codec_id=codec_id,
        filter_id=filter_id,
        item_size=item_size if filter_id else 0,
        dtype_id=dtype_id,
        shape=shape,
        attributes=_whole(facts, "attributes", tables.U32),
        reserved=_whole(facts, "reserved", tables.U32),
        offset=0,  # says "stored as it should be": saving copies it and does not code it again
    )


def _type_of(facts: dict[str, Any]) -> int:
    value = facts.get("type", 0)
    if isinstance(value, str):
        if value not in tables.DATA_TYPE_BY_NAME:
            raise FileCorruptError(f'there is no entry type "{value}"')
        return tables.DATA_TYPE_BY_NAME[value]
    return _whole(facts, "type", tables.U32)


def _number_of(name: Any, known: dict[str, int], what: str) -> int:
    """Return the number of a codec, filter or dtype, also of one called ``unknown-9``."""
    if isinstance(name, str):
        if name in known:
            return known[name]
        prefix, _, digits = name.partition("-")
        if prefix == "unknown" and digits.isdecimal() and len(digits) < 4 and int(digits) < 256:
            return int(digits)
    raise FileCorruptError(f"there is no {what} {str(name)[:40]!r}")


_CODEC_IDS = {codec.name: codec.id for codec in codecs.CODECS}
_FILTER_IDS = {name: number for number, name in codecs.FILTER_NAMES.items()}
_DTYPE_IDS = {row.name: row.id for row in tables.DTYPES}


def _coding_of(facts: dict[str, Any]) -> tuple[int, int, int]:
    codec_id = _number_of(facts.get("codec", "none"), _CODEC_IDS, "codec")
    filter_id = _number_of(facts.get("filter", "none"), _FILTER_IDS, "filter")
    return codec_id, filter_id, _whole(facts, "item_size", 255)


def _tensor_of(facts: dict[str, Any], size: int) -> tuple[int, tuple[int, ...] | None]:
    if facts.get("dtype") is None:
        return 0, None
    dtype_id = _number_of(facts["dtype"], _DTYPE_IDS, "element type")
    shape = shape_of(facts)
    row = tables.DTYPE_BY_ID.get(dtype_id)
    if row is not None and tables.tensor_bytes(row, shape) != size:
        raise FileCorruptError(f"{size} bytes are not a {row.name} tensor of shape {list(shape)}")
    return dtype_id, shape


def shape_of(facts: dict[str, Any]) -> tuple[int, ...]:
    """Return the shape of ``facts``, checked."""
    shape = facts.get("shape")
    if not isinstance(shape, list) or len(shape) > 255:
        raise FileCorruptError('"shape" is not a list of sizes')
    if any(type(dim) is not int or not 0 <= dim <= tables.U64 for dim in shape):
        raise FileCorruptError('"shape" is not a list of sizes')
    return tuple(shape)


def _code(payload: Any, codec_id: int, filter_id: int, item_size: int, level: Any) -> tuple[Any, int, int]:
    """Code a payload; what does not get smaller by it is stored as it is."""
    if not codec_id and not filter_id:
        return payload, 0, 0
    codec = codecs.BY_ID.get(codec_id)
    if codec is None or filter_id not in codecs.FILTER_NAMES:
        raise VersionMismatchError("the codec is not one that this version knows")
    if level is not None and type(level) is not int:
        raise FileCorruptError('"level" is not a whole number')
    stored = _coded(payload, codec, level, item_size if filter_id else 0)
    if codec_id and len(stored) >= len(payload):
        return payload, 0, 0
    return stored, codec_id, filter_id


def _coded(payload: Any, codec: codecs.Codec, level: int | None, item_size: int) -> bytes:
    return b"".join(codecs.encode_stream([payload], codec, level=level, shuffle_size=item_size))


# --- memory file -> JSON -------------------------------------------------------------------------------


def write_document(memory: MemoryFile, file: IO[bytes], progress: Progress | None = None) -> None:
    """Write a memory file as JSON, entry by entry."""
    head = dumps({"format": FORMAT, **file_facts(memory)}, indent=2)
    file.write(head.removesuffix("\n}").encode() + b',\n  "entries": [')
    count = len(memory)
    for number, entry in enumerate(memory.values()):
        file.write(b",\n" if number else b"\n")
        _write_entry(entry, file)
        if progress:
            progress("writing JSON", number + 1, count)
    file.write(b"\n  ]\n}\n" if count else b"]\n}\n")


def _write_entry(entry: Entry, file: IO[bytes]) -> None:
    decodable = entry.codec_id in codecs.BY_ID and entry.filter_id in codecs.FILTER_NAMES
    if entry.size > READABLE and decodable:
        facts = entry_facts(entry)
        if entry.codec_id or entry.filter_id:
            facts["stored_base64"] = base64.b64encode(entry.payload.read()).decode()
        text = dumps(facts, indent=2).removesuffix("\n}") + ',\n  "base64": "'
        file.write(_indented(text))
        _write_base64(entry, file)
        file.write(b'"\n    }')
    else:
        file.write(_indented(dumps(entry_to_json(entry), indent=2)))


def _indented(text: str) -> bytes:
    return "\n".join(f"    {line}" for line in text.split("\n")).encode()


def _write_base64(entry: Entry, file: IO[bytes]) -> None:
    held = bytearray()
    for chunk in entry.chunks():
        held += chunk
        whole = len(held) // PIECE * PIECE
        file.write(base64.b64encode(held[:whole]))
        del held[:whole]
    file.write(base64.b64encode(held))


def entry_to_json(entry: Entry) -> dict[str, Any]:
    """Return one entry as JSON-ready data from which ``entry_from_json`` makes the same bytes."""
    facts = entry_facts(entry)
    if entry.codec_id not in codecs.BY_ID or entry.filter_id not in codecs.FILTER_NAMES:
        facts["size"] = entry.size  # not ours to decode
        facts["stored_base64"] = base64.b64encode(entry.payload.read()).decode()
        return facts
    data = entry.data
    if entry.codec_id or entry.filter_id:
        facts.update(_recipe(entry, data))
    facts.update(_readable(entry, data))
    return facts


def _recipe(entry: Entry, data: bytes) -> dict[str, Any]:
    """Return how to get the stored bytes from the payload again: a level, or else the bytes themselves."""
    stored, codec = entry.payload.read(), codecs.BY_ID[entry.codec_id]
    item_size = entry.item_size if entry.filter_id else 0
    for level in (None, *codec.levels):
        # high levels take long, and the shortest way out of that is to keep the bytes
        if level is not None and (level < 0 or len(data) > 1 << 20 or level > 12):
            continue
        if _coded(data, codec, level, item_size) == stored:
            return {} if level is None else {"level": level}
    return {"stored_base64": base64.b64encode(stored).decode()}


def _readable(entry: Entry, data: bytes) -> dict[str, Any]:
    """Return the payload in the most readable form that keeps every byte."""
    if entry.dtype_id:
        values = _values_of(entry, data)
        return {"values": values} if values is not None else _base64(data)
    if data[:1] in (b"{", b"["):
        found = _json_of(data)
        if found is not None:
            return found
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return _base64(data)


def _base64(data: bytes) -> dict[str, Any]:
    return {"base64": base64.b64encode(data).decode()}


def _json_of(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
        again = json.loads(dumps(value))  # what a reader of the document will see
        for name, style in JSON_STYLES.items():
            if json.dumps(again, **style).encode() == data:
                return {"json": value} if name == "spaced" else {"json": value, "json_style": name}
    except (ValueError, RecursionError):
        pass
    return None


def _values_of(entry: Entry, data: bytes) -> Any:
    """Return the numbers of a small tensor as nested lists, or ``None`` if they would not survive."""
    if math.prod(entry.shape or ()) > MAX_VALUES:
        return None
    try:
        array = entry.numbers()
        if entry.dtype == "q8_0" or array.dtype.kind not in "fiub":
            return None
        values = _shortest(array)
        again = _bytes_of_values(values, str(entry.dtype), entry.shape or ())[0]
    except (ValueError, AtlasError, OverflowError):
        return None
    return values if again == data else None


def _shortest(array: Any) -> Any:
    """Return nested lists in which a float32 reads ``0.1`` and not ``0.10000000149011612``."""
    if array.dtype.kind != "f" or array.dtype.itemsize == 8:
        return array.tolist()
    import numpy as np

    flat = [float(str(number)) for number in array.reshape(-1)]
    if not all(map(math.isfinite, flat)):
        return None
    return np.array(flat, dtype=np.float64).reshape(array.shape).tolist()


# --- JSON -> memory file -------------------------------------------------------------------------------


def recorded_version(facts: dict[str, Any]) -> int | None:
    """Return the ``.atlas`` version that a document or side record names."""
    return _whole(facts, "version", 3) if "version" in facts else None


def read_document(data: bytes, path: str | None = None) -> tuple[MemoryFile, int | None]:
    """Make a memory file from a document; return it and the version that the document names.

    Raises
    ------
    FileCorruptError
        It is not such a document, or something in it makes no sense; the message names the entry.
    """
    document = loads(data.removeprefix(b"\xef\xbb\xbf"), what="JSON document", path=path, unique=True)
    if not isinstance(document, dict) or not isinstance(document.get("entries"), list):
        raise FileCorruptError(
            'this is not the JSON of a memory file: there is no list "entries"', path=path,
            remedy=Remedy("example-document"),
        )  # fmt: skip
    if document.get("format", FORMAT) != FORMAT:
        raise FileCorruptError(f'"format" is not "{FORMAT}"', path=path)
    try:
        memory = make_memory(document)
        for number, item in enumerate(document["entries"]):
            add_entry(memory, item, number, entry_from_json)
    except AtlasError as error:
        error.path = error.path or path
        raise
    return memory, recorded_version(document)


def add_entry(memory: MemoryFile, item: Any, number: int, make: Callable[[dict[str, Any]], Entry]) -> None:
    """Add the entry that an item describes; say which one it was when that fails."""
    try:
        if not isinstance(item, dict):
            raise FileCorruptError("the item is not a JSON object")
        entry = make(item)
        if entry.key in memory:
            raise FileCorruptError("the key occurs twice", key=entry.key)
        memory[entry.key] = entry
    except AtlasError as error:
        error.message = f"entry {number + 1}: {error.message}"
        raise


def entry_from_json(item: dict[str, Any]) -> Entry:
    """Make an entry from one item of ``entries``."""
    stored = _decode64(item, "stored_base64") if "stored_base64" in item else None
    given = [name for name in ("text", "json", "values", "base64") if name in item]
    if not given and stored is not None:
        return _undecodable(item, stored)
    if len(given) != 1:
        raise FileCorruptError('an entry has one of "text", "json", "values" and "base64"')
    payload, facts = _payload_of(item, given[0])
    if stored is not None and not _holds(facts, stored, payload):
        stored = None  # the payload was edited
    return make_entry(facts, payload, stored=stored)


def _undecodable(item: dict[str, Any], stored: bytes) -> Entry:
    size = _whole(item, "size", tables.U64)
    facts = {name: value for name, value in item.items() if name not in ("dtype", "shape")}
    entry = make_entry(facts, b"", stored=stored)
    if item.get("dtype") is None:
        return entry.replace(size=size)
    dtype_id = _number_of(item["dtype"], _DTYPE_IDS, "element type")
    return entry.replace(size=size, dtype_id=dtype_id, shape=shape_of(item))


def _payload_of(item: dict[str, Any], form: str) -> tuple[bytes, dict[str, Any]]:
    """Return the payload of an item, and its facts (the shape follows edited numbers)."""
    value = item[form]
    if form == "base64":
        return _decode64(item, "base64"), item
    if form == "text":
        if not isinstance(value, str):
            raise FileCorruptError('"text" is not text')
        return to_utf8(value), item
    if form == "json":
        style = JSON_STYLES.get(str(item.get("json_style", "spaced")))
        if style is None:
            raise FileCorruptError(f'"json_style" is not one of {", ".join(JSON_STYLES)}')
        return json_bytes(value, **style), item
    try:
        data, shape = _bytes_of_values(value, str(item.get("dtype", "float32")), item.get("shape"))
    except (ValueError, TypeError, OverflowError) as error:
        raise FileCorruptError(f'"values" are not numbers of type {item.get("dtype")}') from error
    return data, {**item, "dtype": item.get("dtype", "float32"), "shape": list(shape)}


def _bytes_of_values(values: Any, dtype: str, shape: Any) -> tuple[bytes, tuple[int, ...]]:
    """Return nested lists of numbers as a tensor's bytes, and their shape."""
    import numpy as np

    row = tables.DTYPE_BY_NAME.get(dtype)
    if row is None or row.block > 1 or row.numpy.startswith("<c"):
        raise FileCorruptError(f'"values" cannot be of type {dtype[:40]!r}; use "base64"')
    with np.errstate(over="ignore"):
        if dtype == "bfloat16":
            from atlas_kit.codecs.numbers import to_bfloat16

            array = to_bfloat16(np.array(values, np.float64).astype(np.float32))
        elif row.numpy[1:2] == "f":
            array = np.array(values, np.float64).astype(row.numpy)
        else:
            array = np.array(values, row.numpy)
    if shape is not None and math.prod(shape) == array.size:
        return array.tobytes(), tuple(shape)
    return array.tobytes(), tuple(array.shape)


def _decode64(item: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode("".join(item[name].split()), validate=True)
    except (binascii.Error, ValueError, AttributeError) as error:
        raise FileCorruptError(f'"{name}" is not base64') from error


def _holds(facts: dict[str, Any], stored: bytes, payload: bytes) -> bool:
    """Tell whether coded bytes still hold the payload."""
    codec_id, filter_id, item_size = _coding_of(facts)
    codec = codecs.BY_ID.get(codec_id)
    if codec is None or filter_id not in codecs.FILTER_NAMES:
        return False
    pieces = codecs.decode_stream(
        iter([stored]), codec, len(payload), shuffle_size=item_size if filter_id else 0
    )
    try:
        return b"".join(pieces) == payload
    except AtlasError:
        return False
