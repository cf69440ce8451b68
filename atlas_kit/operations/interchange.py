"""Memory files inside safetensors and npz, and back without loss.

Both formats hold named arrays and nothing else. Plain payloads travel as arrays of bytes; what the arrays
cannot say (keys that are no valid names, types, timestamps, codecs, order, the header) travels in a side
record: the text ``atlas_kit`` of safetensors' ``__metadata__``, or the npz array ``__atlas_kit__``. A file of
other origin has no side record: its arrays become tensor entries, and what ``.atlas`` has no field for is
kept in the entry ``__safetensors__`` or as the array's ``.npy`` bytes, in an entry ``NAME.npy`` that becomes the
array NAME again. Byte order and order of axes are kept in the entry ``__npz__`` (``npz_orders``).
"""

from __future__ import annotations

import re
from typing import IO, TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import dumps, is_utf8, loads, name_from
from atlas_kit.errors import AtlasError, FileCorruptError, InvalidParamError
from atlas_kit.formats.atlas import tables
from atlas_kit.formats.atlas.entry import Entry, MemoryPayload
from atlas_kit.operations.json_document import (
    entry_facts,
    file_facts,
    make_entry,
    make_memory,
    read_document,
    recorded_version,
)
from atlas_kit.operations.npz_orders import ORDERS, is_turned, orders_of, record_of, turned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.formats.npz import Member, NpzFile
    from atlas_kit.formats.safetensors import SafetensorsFile
    from atlas_kit.storage.source import Source

SIDE_TEXT = "atlas_kit"
SIDE_ARRAY = "__atlas_kit__"
#: The entry that keeps what a foreign safetensors file says beyond what tensors can say.
FOREIGN = "__safetensors__"
#: In a side record: the text of an entry that is no array of the file.
INLINE = "text"

_BY_SAFETENSORS = {row.safetensors: row for row in tables.DTYPES if row.safetensors}


def read_carrier(source: Source, kind: str) -> tuple[MemoryFile, int | None]:
    """Open a JSON document, safetensors or npz file as a memory file, with the version that it names."""
    if kind == "safetensors":
        return _read_safetensors(source)
    if kind == "npz":
        return _read_npz(source)
    return read_document(source.read(0, source.size), source.path)


def read_remains(source: Source, kind: str, *, read: bool) -> tuple[MemoryFile, int | None, str]:
    """Open what is intact of a damaged safetensors or npz file as ``read_carrier`` does, and say how much that is.

    ``read``: also read the arrays of an npz archive, which have checksums.

    Raises
    ------
    FileCorruptError
        Nothing of the format can be found.
    """
    if kind == "npz":
        from atlas_kit.formats.npz import NpzFile

        archive, count = NpzFile.remains(source, read=read)
        said = f"{len(archive.members)} of {count} arrays are intact" if count else "no array is intact"
        try:
            return *_of_npz(archive, source), said
        except AtlasError:  # the side record itself is damaged
            archive, _ = NpzFile.remains(source, read=read)
            archive.members.pop(SIDE_ARRAY, None)
            return _from_foreign_npz(archive, _NpzArrays(archive), source.modified), None, said
    from atlas_kit.formats.safetensors import remains

    file, count = remains(source)
    said = f"{len(file.tensors)} of {count} tensors are intact" if count else "no tensor is intact"
    try:
        return *_of_safetensors(file, source), said
    except AtlasError:
        return _from_foreign_safetensors(file, source.modified), None, said


def _side_record(memory: MemoryFile, names: dict[str, str], key: str | None = None, inline: str = "") -> str:
    """Return the side record; the text of one entry, which is no array then, may be in it."""
    entries = [
        {"name": names[entry.key], **entry_facts(entry), **({INLINE: inline} if entry.key == key else {})}
        for entry in memory.values()
    ]
    return dumps({**file_facts(memory), "entries": entries})


def _parse_side(text: str | bytes, path: str | None) -> dict[str, Any]:
    side = loads(text, what="side record of atlas_kit", path=path)
    if not isinstance(side, dict) or not isinstance(side.get("entries"), list):
        raise FileCorruptError("the side record of atlas_kit is damaged", path=path)
    if not all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in side["entries"]):
        raise FileCorruptError("the side record of atlas_kit is damaged", path=path)
    return side


def _names(memory: MemoryFile, allowed: Any) -> dict[str, str]:
    """Give every key a name that the format allows: the key itself where possible."""
    names, taken = {}, set(memory)
    for number, key in enumerate(memory):
        name = key
        if not allowed(key):
            name = f"entry-{number}"
            while name in taken:
                name += "_"
            taken.add(name)
        names[key] = name
    return names


# --- safetensors ---------------------------------------------------------------------------------------


def write_as_safetensors(memory: MemoryFile, file: IO[bytes]) -> None:
    """Write a memory file as safetensors."""
    from atlas_kit.formats.safetensors import METADATA, NewTensor, write_safetensors

    foreign = _foreign_record(memory)
    names = _names(memory, lambda key: is_utf8(key) and key != METADATA)
    tensors = []
    for entry in memory.values():
        if foreign and entry.key == FOREIGN:
            continue
        row = tables.DTYPE_BY_ID.get(entry.dtype_id)
        dtype, shape = "U8", (entry.size,)
        if row is not None and row.safetensors and entry.shape is not None:
            dtype, shape = row.safetensors, entry.shape
        known = foreign.get("dtypes", {}).get(entry.key)
        if known:
            dtype, shape = known["dtype"], tuple(known["shape"])
        tensors.append(NewTensor(names[entry.key], dtype, shape, entry.chunks))
    metadata = dict(foreign.get("metadata", {}))
    if not foreign or FOREIGN_PLAIN not in foreign:
        metadata[SIDE_TEXT] = _side_record(memory, names)
    write_safetensors(file, tensors, metadata)


#: Set in the entry ``FOREIGN``: the file had no side record, and needs none to come back.
FOREIGN_PLAIN = "plain"


def _foreign_record(memory: MemoryFile) -> dict[str, Any]:
    """Return what the entry ``FOREIGN`` keeps, if it is there and makes sense."""
    if FOREIGN not in memory:
        return {}
    try:
        record = loads(memory[FOREIGN].data)
    except FileCorruptError:
        return {}
    ok = (
        isinstance(record, dict)
        and isinstance(record.get("metadata"), dict)
        and all(isinstance(value, str) for value in record["metadata"].values())
        and isinstance(record.get("dtypes"), dict)
        and all(_fits(memory, key, value) for key, value in record["dtypes"].items())
    )
    return record if ok else {}


def _fits(memory: MemoryFile, key: str, value: Any) -> bool:
    from atlas_kit.formats.safetensors import tensor_size

    if key not in memory or not isinstance(value, dict):
        return False
    dtype, shape = value.get("dtype"), value.get("shape")
    if not isinstance(dtype, str) or not isinstance(shape, list):
        return False
    if any(type(dim) is not int or dim < 0 for dim in shape):
        return False
    return tensor_size(dtype, shape) == memory[key].size


def _read_safetensors(source: Source) -> tuple[MemoryFile, int | None]:
    from atlas_kit.formats.safetensors import SafetensorsFile

    with SafetensorsFile.open(source) as file:
        return _of_safetensors(file, source)


def _of_safetensors(file: SafetensorsFile, source: Source) -> tuple[MemoryFile, int | None]:
    side = file.metadata.get(SIDE_TEXT)
    if side is not None:
        record = _parse_side(side, source.path)
        arrays = _SafetensorsArrays(file)
        return _from_side(record, arrays, source.modified), recorded_version(record)
    return _from_foreign_safetensors(file, source.modified), None


def _from_foreign_safetensors(file: SafetensorsFile, now: int) -> MemoryFile:
    memory = make_memory({"created": now, "modified": now})
    arrays = _SafetensorsArrays(file)
    for name in file.tensors:
        memory[name] = arrays.entry(name, now)
    dtypes = {
        info.name: {"dtype": info.dtype, "shape": list(info.shape)}
        for info in file.tensors.values()
        if info.dtype not in _BY_SAFETENSORS
    }
    if (file.metadata or dtypes) and FOREIGN not in memory:
        record = dumps({FOREIGN_PLAIN: True, "metadata": file.metadata, "dtypes": dtypes})
        facts = {"key": FOREIGN, "type": "metadata", "timestamp": now}
        memory[FOREIGN] = make_entry(facts, record.encode())
    return memory


class _SafetensorsArrays:
    """The tensors of a safetensors file as payloads."""

    def __init__(self, file: SafetensorsFile) -> None:
        self._file = file

    def names(self) -> list[str]:
        """Return the names of all arrays."""
        return list(self._file.tensors)

    def payload(self, name: str) -> Any:
        """Return the bytes of an array, mapped and not copied."""
        return self._file.view(name)

    def described(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Return dtype and shape in the words of ``.atlas`` (bytes where it has none)."""
        info = self._file.tensors[name]
        row = _BY_SAFETENSORS.get(info.dtype)
        return (row.name, info.shape) if row else ("uint8", (info.size,))

    def entry(self, name: str, now: int) -> Entry:
        """Return an array of a file without side record as an entry."""
        info = self._file.tensors[name]
        row = _BY_SAFETENSORS.get(info.dtype)
        return Entry(
            name,
            MemoryPayload(self._file.view(name)),
            type=tables.DataType.CONTEXT,
            timestamp=now,
            dtype_id=row.id if row else 0,
            shape=info.shape if row else None,
        )


# --- npz -----------------------------------------------------------------------------------------------

#: What the key of an array's ``.npy`` bytes ends with.
NPY = ".npy"
_ODD_NAME = re.compile(r"(^|/)\.{0,2}(/|$)|[\\:]")


def _is_npz_name(key: str) -> bool:
    """Tell whether a key can be a file name in an archive that people unpack."""
    if not is_utf8(key) or not key.isprintable() or len(key.encode()) > 250:
        return False
    return not _ODD_NAME.search(key) and key != SIDE_ARRAY


def write_as_npz(memory: MemoryFile, file: IO[bytes]) -> None:
    """Write a memory file as an npz archive."""
    from atlas_kit.formats.npz import NewArray, NewMember, write_npz

    whole = _npy_entries(memory)
    names = {**_names(memory, _is_npz_name), **whole}
    orders = orders_of(memory)
    aside = ORDERS if orders else None
    inline = bytes(memory[ORDERS].data).decode() if orders else ""
    side = _side_record(memory, names, aside, inline).encode()
    arrays: list[NewArray | NewMember] = [NewArray(SIDE_ARRAY, "|u1", (len(side),), lambda: [side])]
    for entry in memory.values():
        if entry.key in whole:
            arrays.append(NewMember(names[entry.key], entry.chunks))
            continue
        if entry.key == aside:
            continue
        if entry.key in orders:
            order, shape = orders[entry.key], entry.shape or ()
            arrays.append(NewArray(names[entry.key], order[0], shape, turned(entry, *order), order[1]))
            continue
        row = tables.DTYPE_BY_ID.get(entry.dtype_id)
        dtype, shape = "|u1", (entry.size,)
        if row is not None and row.block == 1 and entry.shape is not None:
            dtype, shape = row.numpy, entry.shape
        arrays.append(NewArray(names[entry.key], dtype, shape, entry.chunks))
    write_npz(file, arrays)


def _npy_entries(memory: MemoryFile) -> dict[str, str]:
    """Return, by key, the names of arrays that are in entries as they were in an npz archive."""
    found = {}
    for entry in memory.values():
        stem = entry.key.removesuffix(NPY)
        if stem != entry.key and not entry.dtype_id and _is_npz_name(stem) and _holds_npy(entry):
            found[entry.key] = stem
    clashing = [*found]
    while clashing:  # who keeps its own key for a name may be in the way of another one
        clashing = [key for key, stem in found.items() if stem in memory and stem not in found]
        for key in clashing:
            del found[key]
    return found


def _holds_npy(entry: Entry) -> bool:
    from atlas_kit.formats.npz import MAX_HEADER, is_npy

    start = b""
    for chunk in entry.chunks():
        start += bytes(chunk)
        if len(start) > MAX_HEADER + 16:
            break
    return is_npy(start, entry.size)


def _read_npz(source: Source) -> tuple[MemoryFile, int | None]:
    from atlas_kit.formats.npz import NpzFile

    return _of_npz(NpzFile.open(source), source)


def _of_npz(file: NpzFile, source: Source) -> tuple[MemoryFile, int | None]:
    try:
        now = source.modified
        arrays = _NpzArrays(file)
        if SIDE_ARRAY in file.members:
            side = _parse_side(b"".join(file.chunks(SIDE_ARRAY)), source.path)
            return _from_side(side, arrays, now), recorded_version(side)
        return _from_foreign_npz(file, arrays, now), None
    except BaseException:
        file.close()
        raise


def _from_foreign_npz(file: NpzFile, arrays: _NpzArrays, now: int) -> MemoryFile:
    memory = make_memory({"created": now, "modified": now})
    for name in file.members:
        entry = arrays.entry(name, now)
        if entry.key in memory:
            raise FileCorruptError("two arrays would get this key", path=file.path, key=entry.key)
        memory[entry.key] = entry
    record = record_of(
        member for member in file.members.values() if member.name in memory and memory[member.name].dtype_id
    )
    if record is not None and ORDERS not in memory:
        memory[ORDERS] = make_entry({"key": ORDERS, "type": "metadata", "timestamp": now}, record.encode())
    return memory


class _NpzPayload:
    """An array of an archive, read when it is asked for; holding it keeps the archive open."""

    def __init__(self, file: NpzFile, name: str, size: int) -> None:
        self._file = file
        self._name = name
        self.size = size

    def chunks(self) -> Iterator[bytes]:
        """Yield the elements' bytes; the archive's CRC-32 is checked at the end."""
        return self._file.chunks(self._name)

    def read(self) -> bytes:
        """Return the elements' bytes."""
        return b"".join(self.chunks())

    def view(self) -> memoryview:
        """Return the elements' bytes."""
        return memoryview(self.read())

    def __len__(self) -> int:
        return self.size


class _NpzArrays:
    """The arrays of an archive as payloads."""

    def __init__(self, file: NpzFile) -> None:
        self._file = file

    def names(self) -> list[str]:
        """Return the names of all arrays but the side record."""
        return [name for name in self._file.members if name != SIDE_ARRAY]

    def payload(self, name: str) -> Any:
        """Return the bytes of an array, read when they are asked for if they are as ``.atlas`` wants them."""
        member = self._file.members[name]
        if _is_plain(member):
            return _NpzPayload(self._file, name, member.size)
        array = self._file.array(name)
        return array.astype(array.dtype.newbyteorder("<"), order="C").tobytes()

    def raw(self, name: str) -> bytes:
        """Return an array's ``.npy`` bytes."""
        return self._file.raw(name)

    def described(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Return dtype and shape in the words of ``.atlas``."""
        member = self._file.members[name]
        row = tables.DTYPE_BY_NAME.get(member.dtype.name)
        return (row.name, member.shape) if row else ("uint8", (member.size,))

    def entry(self, name: str, now: int) -> Entry:
        """Return an array of an archive without side record as an entry."""
        member = self._file.members[name]
        row = tables.DTYPE_BY_NAME.get(member.dtype.name)
        if row is None or member.dtype.names is not None:
            return Entry(f"{name}.npy", MemoryPayload(self._file.raw(name)), timestamp=now)
        payload = self.payload(name)
        return Entry(
            name,
            MemoryPayload(payload) if isinstance(payload, bytes) else payload,
            type=tables.DataType.CONTEXT,
            timestamp=now,
            dtype_id=row.id,
            shape=member.shape,
        )


def _is_plain(member: Member) -> bool:
    return not is_turned(member)


# --- both ----------------------------------------------------------------------------------------------


def _from_side(side: dict[str, Any], arrays: _SafetensorsArrays | _NpzArrays, now: int) -> MemoryFile:
    """Put a memory file together from its side record and the arrays that it names.

    Arrays win over the record: one that was changed keeps its new shape, one that is gone stays away, and
    new ones are added.
    """
    memory = make_memory(side)
    left = dict.fromkeys(arrays.names())
    for item in side["entries"]:
        name, inline = item["name"], item.pop(INLINE, None)
        if name not in left and not isinstance(inline, str):
            continue
        key = name_from(item, "key")
        if key in memory:
            raise FileCorruptError("the side record names this key twice", key=key)
        if name not in left:
            memory[key] = make_entry(item, str(inline).encode("utf-8", "surrogateescape"))
            continue
        del left[name]
        if key == name + NPY and "dtype" not in item and isinstance(arrays, _NpzArrays):
            payload: Any = arrays.raw(name)
            memory[key] = _carried(item, payload, "uint8", (len(payload),))
        else:
            memory[key] = _carried(item, arrays.payload(name), *arrays.described(name))
    for name in left:
        entry = arrays.entry(name, now)
        if entry.key in memory:
            raise InvalidParamError("an array that was added has the key of an entry", key=entry.key)
        memory[entry.key] = entry
    return memory


def _carried(item: dict[str, Any], payload: Any, dtype: str, shape: tuple[int, ...]) -> Entry:
    """Make an entry of a side record's item and the array that came with it."""
    facts = dict(item)
    recorded = tables.DTYPE_BY_NAME.get(str(item.get("dtype")))
    stands_for_itself = recorded is not None and recorded.block == 1 and recorded.safetensors
    if stands_for_itself and (dtype, list(shape)) != (item["dtype"], item.get("shape")):
        same = recorded is not None and tables.DTYPE_BY_NAME[dtype].numpy == recorded.numpy
        facts["shape"] = list(shape)
        if not same:  # npz has bfloat16 as uint16, which is no change
            facts["dtype"] = dtype
    wanted = None
    if facts.get("codec", "none") != "none":
        wanted = {"codec": facts["codec"], "shuffle": facts.get("filter") == "shuffle"}
    for name in ("codec", "filter", "item_size", "level"):
        facts.pop(name, None)
    if not isinstance(payload, _NpzPayload):
        return make_entry(facts, payload).replace(wanted=wanted)
    return make_entry(facts, payload).replace(payload=payload, wanted=wanted)
