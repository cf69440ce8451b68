"""Verifying payloads within bounds: what a small file may claim to unpack to has a limit here.

Shared by checking and rescuing. Knows entries; knows nothing of files.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from atlas_kit.codecs import table as codecs
from atlas_kit.errors import AtlasError, FileCorruptError
from atlas_kit.formats.atlas import tables as t

if TYPE_CHECKING:
    from atlas_kit.formats.atlas.entry import Entry

#: What may be unpacked to verify one file: bytes, beyond a multiple of the file.
UNPACK = 1 << 28
UNPACK_RATIO = 100


class Verifier:
    """Verifies the entries of one file; safe to use from several threads."""

    def __init__(self, file_size: int) -> None:
        self._left = UNPACK + UNPACK_RATIO * file_size
        self._lock = threading.Lock()
        self.skipped: list[Entry] = []  # their checksums were verified; they were not unpacked

    def problem(self, entry: Entry) -> AtlasError | None:
        """Return what is wrong with an entry's payload: checksum, seal, codec, size, shape."""
        try:
            if entry.codec_id not in codecs.BY_ID or entry.filter_id not in codecs.FILTER_NAMES:
                _drain(entry.payload.chunks())  # not known here, and perhaps fine
            elif not entry.codec_id and not entry.filter_id:
                _drain(entry.payload.chunks())
                if entry.payload.size != entry.size:
                    raise FileCorruptError(
                        f"the payload has {entry.payload.size} bytes, not the {entry.size} it claims"
                    )
            elif codecs.BY_ID[entry.codec_id].plausible(entry.stored_size, entry.size) and not self._take(
                entry
            ):
                _drain(entry.payload.chunks())
            else:
                _drain(entry.chunks())
            _require_shape(entry)
        except AtlasError as error:
            error.key = entry.key if error.key is None else error.key
            return error
        return None

    def _take(self, entry: Entry) -> bool:
        with self._lock:
            if entry.size > self._left:
                self.skipped.append(entry)
                return False
            self._left -= entry.size
            return True


def _drain(chunks: object) -> None:
    for _ in chunks:  # type: ignore[attr-defined]
        pass


def _require_shape(entry: Entry) -> None:
    row = t.DTYPE_BY_ID.get(entry.dtype_id)
    if row is None or entry.shape is None:
        return
    needed = t.tensor_bytes(row, entry.shape)
    if needed != entry.size:
        raise FileCorruptError(
            f"the tensor has {entry.size} bytes, which is not what {row.name}{list(entry.shape)} needs"
        )
