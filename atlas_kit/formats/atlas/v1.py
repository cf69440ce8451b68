"""Version 1: reading and writing the C library's bytes. See "Version 1" in ``formats/atlas.md``.

The file has no index: opening it walks the entry headers once and remembers where each key is. Payloads are
read, and their checksums verified, when they are asked for (or all at once with ``verify``).
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from atlas_kit.errors import (
    ChecksumMismatchError,
    DataTooLargeError,
    FileCorruptError,
    InvalidParamError,
    KeyTooLongError,
    Remedy,
    TruncatedError,
)
from atlas_kit.formats.atlas import checksums, layout
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.atlas.entry import Entry, FnvPayload
from atlas_kit.formats.atlas.store import Info, decode_key, encode_key
from atlas_kit.formats.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from atlas_kit.storage.source import Source

#: How much of the file the walk reads ahead: much among small entries, little behind a large one.
WINDOW = 1 << 22
SMALL_WINDOW = 1 << 16

#: (header size, checksum) of each dialect, the canonical one first.
DIALECTS = {
    "v1": (layout.HEADER_V1.size, checksums.fnv1a),
    "v1-96": (layout.HEADER_V1_SHORT.size, checksums.fnv1a),
    "v1-crc32": (layout.HEADER_V1.size, checksums.crc32),
    "v1-96-crc32": (layout.HEADER_V1_SHORT.size, checksums.crc32),
}

_REPAIR = Remedy("repair")


def dialect_of(top: bytes) -> str | None:
    """Tell which dialect's header checksum fits the first 104 bytes (fewer at the end of the file)."""
    stored = int.from_bytes(top[layout.AT["checksum"]], "little")
    for name, (size, checksum) in DIALECTS.items():
        if len(top) >= size and checksum(top[layout.SUMMED.start : size]) == stored:
            return name
    return None


class StoreV1:
    """A version 1 file: a dictionary from key to the offset of its entry."""

    cipher = None

    def __init__(self, source: Source, *, verify: bool = False) -> None:
        self.source = source
        top = source.read_upto(0, layout.HEADER_V1.size)
        if len(top) < layout.HEADER_V1_SHORT.size:
            raise TruncatedError(
                f"the header has 104 bytes, and the file ends at byte {source.size}",
                path=source.path,
                offset=0,
                remedy=Remedy("recover"),
            )
        dialect = dialect_of(top)
        if dialect is None:
            raise ChecksumMismatchError(
                "the header's checksum does not match its bytes", path=source.path, offset=8, remedy=_REPAIR
            )
        self._start = DIALECTS[dialect][0]
        if self._start == layout.HEADER_V1.size:
            fields = layout.HEADER_V1.unpack(top)
        else:
            fields = layout.HEADER_V1_SHORT.unpack_from(top)
        _, _, _, count, created, modified, total, model_hash, reserved = fields
        self.info = Info(
            1, dialect, created, modified, model_hash, reserved.ljust(32, b"\0"), total_size=total
        )
        if dialect != "v1":
            self.info.warnings.append(dialect_warning(dialect))
        self._offsets: dict[str, int] = {}
        self._walk(count, verify)

    def _walk(self, count: int, verify: bool) -> None:
        source, offsets = self.source, self._offsets
        if count > t.V1_MAX_ENTRIES:
            raise FileCorruptError(
                f"the header counts {count} entries, and the format allows {t.V1_MAX_ENTRIES}",
                path=source.path, offset=layout.offset_of("entry_count"), remedy=_REPAIR,
            )  # fmt: skip
        total, end = 0, self._start
        for at, fields, raw, payload in walk(source, self._start, count, payloads=verify):
            key = decode_key(raw)
            if key in offsets:
                raise FileCorruptError(
                    "two entries have this key", path=source.path, offset=at, key=key, remedy=_REPAIR
                )
            offsets[key] = at
            size = fields[1]
            total += 33 + len(raw) + size
            end = at + 33 + len(raw) + size
            if payload is not None and checksums.fnv1a(payload) != fields[5]:
                self.find(key).verify()  # type: ignore[union-attr]  # accepts CRC-32, else tells what is wrong
        if total != self.info.total_size:
            raise FileCorruptError(
                f"the header gives the entries {self.info.total_size} bytes, and they have {total}",
                path=source.path, offset=layout.offset_of("total_size"), remedy=_REPAIR,
            )  # fmt: skip
        if end != source.size:
            self.info.warnings.append(
                Finding(
                    "trailing-bytes", "warning", f"{source.size - end} bytes follow the last entry",
                    "They are ignored when the file is read.", end, remedy=Remedy("rescue-entries"),
                )
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self._offsets)

    def keys(self) -> Iterator[str]:
        """Yield every key in order."""
        return iter(self._offsets)

    def find(self, key: str) -> Entry | None:
        """Return the entry of that key."""
        at = self._offsets.get(key)
        if at is None:
            return None
        fields = layout.ENTRY_V1.unpack(self.source.read(at, layout.ENTRY_V1.size))
        return entry_of(self.source, at, fields, key)

    def entries(self) -> Iterator[Entry]:
        """Yield every entry in order."""
        for at, fields, raw, _ in walk(self.source, self._start, len(self._offsets)):
            yield entry_of(self.source, at, fields, decode_key(raw))


def entry_of(source: Source, at: int, fields: tuple[int, ...], key: str) -> Entry:
    """Make an ``Entry`` of an entry header that was read at offset ``at``."""
    key_length, data_size, data_type, flags, timestamp, checksum, reserved = fields
    start = at + layout.ENTRY_V1.size + key_length + 1
    return Entry(
        key,
        FnvPayload(source, start, data_size, checksum),
        type=data_type,
        flags=flags,
        timestamp=timestamp,
        reserved=reserved,
        offset=at,
        payload_offset=start,
        checksum=checksum,
    )


def walk(
    source: Source, start: int, count: int, *, payloads: bool = False
) -> Iterator[tuple[int, tuple[int, ...], bytes, bytes | None]]:
    """Walk ``count`` entries from ``start``: (offset, header fields, key, payload if wanted).

    Raises
    ------
    TruncatedError, FileCorruptError
        At the first entry that breaks the format's rules.
    """
    unpack, head = layout.ENTRY_V1.unpack_from, layout.ENTRY_V1.size
    file_size = source.size
    reach = head + t.V1_MAX_KEY + 1
    base, window = start, b""
    at = start
    for index in range(count):
        if at + reach > base + len(window) and base + len(window) < file_size:
            ahead = WINDOW if at <= base + len(window) else min(SMALL_WINDOW, WINDOW)
            base, window = at, source.read_upto(at, ahead)
        place = at - base
        if place + head > len(window):
            raise _cut(source, at, index, count)
        fields = unpack(window, place)
        length, size = fields[0], fields[1]
        if not 0 < length <= t.V1_MAX_KEY or size > t.V1_MAX_DATA:
            raise _bad_length(source, at, length, size)
        place += head
        stop = place + length
        data_at = at + head + length + 1
        if data_at + size > file_size or stop >= len(window):
            raise _cut(source, at, index, count)
        key = window[place:stop]
        if window[stop] or 0 in key:
            raise FileCorruptError(
                "the key does not end where its length says", path=source.path, offset=at, remedy=_REPAIR
            )
        payload = None
        if payloads:
            end = stop + 1 + size
            payload = window[stop + 1 : end] if end <= len(window) else source.read(data_at, size)
        yield at, fields, key, payload
        at = data_at + size


def _cut(source: Source, at: int, index: int, count: int) -> TruncatedError:
    return TruncatedError(
        f"entry {index + 1} of {count} is cut off: the file ends at byte {source.size}",
        path=source.path, offset=at, remedy=_REPAIR,
    )  # fmt: skip


def _bad_length(source: Source, at: int, length: int, size: int) -> FileCorruptError:
    if size > t.V1_MAX_DATA:
        what = f"an entry claims {size} bytes of payload, and the format allows {t.V1_MAX_DATA}"
    else:
        what = f"an entry claims a key of {length} bytes, and the format allows 1 to {t.V1_MAX_KEY}"
    return FileCorruptError(what, path=source.path, offset=at, remedy=_REPAIR)


def dialect_warning(dialect: str) -> Finding:
    """Say what a dialect is."""
    parts = []
    if "96" in dialect:
        parts.append("its header has 96 bytes instead of 104")
    if "crc32" in dialect:
        parts.append("its checksums are CRC-32 instead of FNV-1a")
    return Finding(
        f"dialect-{dialect}", "warning", f"the file is in the dialect {dialect}: {' and '.join(parts)}",
        "The C library may not read it.", 8, remedy=Remedy("canonical"),
    )  # fmt: skip


def require_key(key: str) -> bytes:
    """Return a key's bytes if version 1 allows it.

    Raises
    ------
    InvalidParamError, KeyTooLongError
        The key is empty, holds a NUL, or has more than 256 bytes.
    """
    raw = encode_key(key)
    if not raw or 0 in raw:
        raise InvalidParamError("a key must have at least one byte and no NUL", key=key)
    if len(raw) > t.V1_MAX_KEY:
        raise KeyTooLongError(
            f"the key has {len(raw)} bytes, and version 1 allows {t.V1_MAX_KEY}", key=key,
            hint="Shorten it, or save as version 2.",
        )  # fmt: skip
    return raw


def require_size(key: str, size: int, *, old: bool = False) -> None:
    """See that version 1 allows a payload of that size (``old``: an empty one that a file already had)."""
    if size == 0 and not old:
        raise InvalidParamError(
            "version 1 does not allow an empty payload", key=key, hint="Save as version 2."
        )
    if size > t.V1_MAX_DATA:
        raise DataTooLargeError(
            f"the payload has {size} bytes, and version 1 allows {t.V1_MAX_DATA}",
            key=key,
            hint="Save as version 2.",
        )


def write(file: IO[bytes], info: Info, entries: Iterable[Entry], count: int) -> None:
    """Write a whole version 1 file, canonical whatever dialect it was read from."""
    if count > t.V1_MAX_ENTRIES:
        raise DataTooLargeError(
            f"there are {count} entries, and version 1 allows {t.V1_MAX_ENTRIES}", hint="Save as version 2."
        )
    file.write(bytes(layout.HEADER_V1.size))
    total = 0
    for entry in entries:
        raw = require_key(entry.key)
        data = _plain(entry)
        require_size(entry.key, len(data), old=entry.offset is not None)
        file.write(
            layout.ENTRY_V1.pack(
                len(raw),
                len(data),
                entry.type,
                entry.flags,
                entry.timestamp,
                checksums.fnv1a(data),
                entry.reserved,
            )
        )
        file.write(raw + b"\0")
        file.write(data)
        total += 33 + len(raw) + len(data)
    body = layout.HEADER_V1.pack(
        t.MAGIC, 1, 0, count, info.created, info.modified, total, info.model_hash, info.reserved
    )
    file.seek(0)
    checksum = checksums.fnv1a(body[layout.SUMMED])
    file.write(layout.patched(body, "checksum", checksum.to_bytes(4, "little")))
    file.seek(0, 2)


def _plain(entry: Entry) -> bytes:
    """Return what version 1 stores of an entry: tensors, for which it has no field, as `.npy` files."""
    if entry.dtype_id == 0:
        return entry.data
    import io

    import numpy as np

    out = io.BytesIO()
    np.save(out, entry.numbers(), allow_pickle=False)
    return out.getvalue()
