"""The journal of an edit in place: what lets a header that was half overwritten be put back.

Overwriting bytes of a file is not atomic. So old and new bytes go to ``.NAME.journal`` beside the file first,
and reach the disk before the file is touched; the journal is removed when the new bytes have reached the
file. Who finds a journal compares the file with both states: if it is wholly old or wholly new, or holds
bytes of neither (the file was replaced by another one since), the journal is stale; if it is a mixture, the
edit was interrupted, and ``recover_journal`` puts the old bytes back. Reading never writes: opening such a
file is a clear error that names the way out.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from atlas_kit.errors import FileAccessError, FileCorruptError, Remedy
from atlas_kit.storage.atomic import lock, sync_folder
from atlas_kit.storage.source import StrPath, access_error

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC = b"ATLASJN1"
_HEAD = 8 + 8 + 16  # magic, size of the region, XXH3-128 of these and of what follows
#: What is compared at once: no disk writes less.
_SECTOR = 512


def _hash(data: bytes) -> bytes:
    import xxhash  # here, because every opening of a file imports this module

    digest: bytes = xxhash.xxh3_128_digest(data)
    return digest


State = Literal["old", "new", "torn", "foreign"]


@dataclass(frozen=True)
class Journal:
    """The old bytes of a file's start, and what they are being replaced with (as many bytes)."""

    old: bytes
    new: bytes

    def encoded(self) -> bytes:
        """Return the journal's bytes."""
        head = _MAGIC + len(self.old).to_bytes(8, "little")
        return head + _hash(head + self.old + self.new) + self.old + self.new

    @classmethod
    def decode(cls, data: bytes) -> Journal | None:
        """Return the journal in ``data``, or ``None`` when it was not written to the end."""
        size = int.from_bytes(data[8:16], "little")
        if data[:8] != _MAGIC or len(data) != _HEAD + 2 * size:
            return None
        if _hash(data[:16] + data[_HEAD:]) != data[16:_HEAD]:
            return None
        return cls(data[_HEAD : _HEAD + size], data[_HEAD + size :])

    def state_of(self, path: StrPath) -> State:
        """Tell which state the start of the file is in: ``foreign`` when it was never being edited."""
        try:
            with open(path, "rb") as file:
                now = file.read(len(self.old))
        except OSError as error:
            raise access_error(error, path) from error
        if now == self.old:
            return "old"
        if now == self.new:
            return "new"
        return "torn" if self._is_mixture(now) else "foreign"

    def _is_mixture(self, now: bytes) -> bool:
        """Tell whether every byte is the old or the new one."""
        if len(now) != len(self.old):
            return False
        for at in range(0, len(now), _SECTOR):
            place = slice(at, at + _SECTOR)
            sector, old, new = now[place], self.old[place], self.new[place]
            if sector in (old, new):
                continue
            if any(byte not in pair for byte, *pair in zip(sector, old, new, strict=True)):
                return False
        return True


def journal_path(path: StrPath) -> Path:
    """Return where the journal of ``path`` would be: ``.NAME.journal`` beside the real file."""
    from pathlib import Path

    return Path(_name(path))


def _name(path: StrPath) -> str:
    folder, name = os.path.split(os.path.realpath(path))
    return os.path.join(folder, f".{name}.journal")


def _load(path: StrPath) -> tuple[Journal | None, bool]:
    """Return (journal, whether a journal file exists)."""
    if not os.path.lexists(_name(path)):  # as nearly always: pathlib would be a tenth of the time of opening
        return None, False
    try:
        data = journal_path(path).read_bytes()
    except FileNotFoundError:
        return None, False
    except OSError as error:
        raise access_error(error, journal_path(path)) from error
    return Journal.decode(data), True


def check_journal(path: StrPath | None) -> None:
    """Raise when the header of ``path`` was only half overwritten (bytes without a path have no journal).

    A journal that is itself incomplete was cut off before the file was touched, so the file is whole.

    Raises
    ------
    FileCorruptError
        An edit in place was interrupted (or is under way in another process).
    """
    if path is not None and is_interrupted(path):
        raise FileCorruptError(
            "an edit of this file was interrupted, or is under way",
            path=path,
            hint="Its old header is safe in the journal beside it.",
            remedy=Remedy("recover-journal"),
        )


def is_interrupted(path: StrPath) -> bool:
    """Tell whether the header of ``path`` is only half overwritten, and its journal can put it back."""
    if not os.path.exists(journal_path(path)):
        return False
    journal, _ = _load(path)
    return journal is not None and journal.state_of(path) == "torn"


def recover_journal(path: StrPath, *, locked: bool = False) -> bool:
    """Finish what an interrupted edit left: put the old header back if needed, and drop the journal.

    Returns
    -------
    bool
        Whether old bytes had to be put back.
    """
    if not locked:
        with lock(path):
            return recover_journal(path, locked=True)
    journal, exists = _load(path)
    if not exists:
        return False
    torn = journal is not None and journal.state_of(path) == "torn"
    if torn and journal is not None:
        overwrite_start(path, journal.old)
    _drop(path)
    return torn


def replace_start(path: StrPath, old: bytes, new: bytes) -> None:
    """Overwrite the first bytes of a file, ``old`` by ``new`` of the same length, through a journal.

    The caller holds the file's lock.

    Raises
    ------
    FileAccessError
        It cannot be written; the file then still holds the old bytes, or the journal can put them back.
    """
    if len(old) != len(new):
        raise FileAccessError("a header can only be replaced by one of the same size", path=path)
    place = journal_path(path)
    journal = Journal(old, new)
    try:
        with open(place, "wb") as file:
            file.write(journal.encoded())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        place.unlink(missing_ok=True)
        raise access_error(error, place, "write") from error
    sync_folder(place.parent)
    overwrite_start(path, new)
    _drop(path)


def overwrite_start(path: StrPath, data: bytes) -> None:
    """Write ``data`` over the start of an existing file and wait until it is on the disk."""
    try:
        with open(path, "r+b") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise access_error(error, path, "write") from error


def _drop(path: StrPath) -> None:
    journal_path(path).unlink(missing_ok=True)
    sync_folder(journal_path(path).parent)
