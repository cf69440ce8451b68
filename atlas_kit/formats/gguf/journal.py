"""The journal of an edit in place: what lets a header that was half overwritten be put back.

Overwriting bytes of a file is not atomic. So old and new bytes go to ``.NAME.journal`` beside the file first,
and reach the disk before the file is touched; the journal is removed when the new bytes have reached the
file. Who finds a journal compares the file with both states: if it is wholly old or wholly new, or holds
bytes of neither (the file was replaced by another one since), the journal is stale; if it is a mixture, the
edit was interrupted, and ``recover_journal`` puts the old bytes back. Reading never writes: opening such a
file is a clear error that names the way out.

A header that needs more room gets it from the file system, which moves the data back (``storage/ranges.py``). Then
the journal says how many bytes were put in, and putting back takes them out again.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Literal

from atlas_kit.errors import FileAccessError, FileCorruptError, Remedy
from atlas_kit.storage.atomic import lock, sync_folder
from atlas_kit.storage.ranges import collapse_range, insert_range
from atlas_kit.storage.source import StrPath, access_error

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC, _GROWN = b"ATLASJN1", b"ATLASJN2"
_HEAD = 8 + 8 + 16  # magic, size of the region, XXH3-128 of these and of what follows
_MORE = 16  # of a file that grows: its size before, and the bytes that are put in
#: What is compared at once: no disk writes less.
_SECTOR = 512
#: What data is moved by is a multiple of this.
_BLOCK = 4096


def _hash(data: bytes) -> bytes:
    import xxhash  # here, because every opening of a file imports this module

    digest: bytes = xxhash.xxh3_128_digest(data)
    return digest


State = Literal["old", "new", "torn", "foreign"]


@dataclass(frozen=True)
class Journal:
    """The old bytes of a file's start, and what they are being replaced with (as many bytes).

    ``grown`` bytes are put in before the start of a file that had ``size``: ``old`` begins with as many zeros.
    """

    old: bytes
    new: bytes
    grown: int = 0
    size: int = 0

    def encoded(self) -> bytes:
        """Return the journal's bytes."""
        head = (_GROWN if self.grown else _MAGIC) + len(self.old).to_bytes(8, "little")
        more = (
            b"".join(number.to_bytes(8, "little") for number in (self.size, self.grown))
            if self.grown
            else b""
        )
        body = more + self.old + self.new
        return head + _hash(head + body) + body

    @classmethod
    def decode(cls, data: bytes) -> Journal | None:
        """Return the journal in ``data``, or ``None`` when it was not written to the end."""
        size = int.from_bytes(data[8:16], "little")
        more = _MORE if data[:8] == _GROWN else 0
        start = _HEAD + more
        if data[:8] not in (_MAGIC, _GROWN) or len(data) != start + 2 * size:
            return None
        if _hash(data[:16] + data[_HEAD:]) != data[16:_HEAD]:
            return None
        old, new = data[start : start + size], data[start + size :]
        if not more:
            return cls(old, new)
        before, grown = (int.from_bytes(data[at : at + 8], "little") for at in (_HEAD, _HEAD + 8))
        return cls(old, new, grown, before)

    @property
    def header(self) -> bytes:
        """The old header, as it was at the start of the file."""
        return self.old[self.grown :]

    def state_of(self, path: StrPath) -> State:
        """Tell which state the start of the file is in: ``foreign`` when it was never being edited."""
        try:
            with open(path, "rb") as file:
                now, size = file.read(len(self.old)), os.fstat(file.fileno()).st_size
        except OSError as error:
            raise access_error(error, path) from error
        if self.grown:
            return self._state_of_grown(now, size)
        if now == self.old:
            return "old"
        if now == self.new:
            return "new"
        return "torn" if self._is_mixture(now) else "foreign"

    def _state_of_grown(self, now: bytes, size: int) -> State:
        """Tell the state of a file that is put back by taking bytes out: header first, so that its size tells."""
        if size == self.size:
            return "old" if now.startswith(self.header) else "foreign"
        if size != self.size + self.grown:
            return "foreign"
        if now == self.new:
            return "new"
        return "torn" if self._is_mixture(now) or self.unmoved(now) else "foreign"

    def unmoved(self, now: bytes) -> int:
        """Return how much of the header's room has not moved, 0 where all has.

        Data is moved from the file's end on; where the power went meanwhile, a first part is where it was.
        """
        if now.startswith(self.header):
            return len(self.header)
        for at in range(_BLOCK, len(self.header), _BLOCK):
            if now == self.header[:at] + bytes(self.grown) + self.header[at:]:
                return at
        return 0

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
        if journal.grown:
            _shrink(path, journal)
        else:
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
    _keep(path, Journal(old, new))
    overwrite_start(path, new)
    _drop(path)


def grow_start(path: StrPath, old: bytes, new: bytes, size: int) -> bool:
    """Put a longer header into a file of ``size`` bytes whose data the file system moves back, through a journal.

    ``new`` is longer than ``old`` by whole blocks. The caller holds the file's lock and knows that nobody else
    reads the file. Returns whether it was done; where the file system cannot, the file is as it was.

    Raises
    ------
    FileAccessError
        It cannot be written; the file is put back, or the journal can do that.
    """
    grown = len(new) - len(old)
    journal = Journal(bytes(grown) + old, new, grown, size)
    _keep(path, journal)
    try:
        with open(path, "r+b", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != size or not insert_range(file.fileno(), 0, grown):
                _drop(path)
                return False
            _write_at(file, 0, new)
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError, FileAccessError, FileCorruptError):
            recover_journal(path, locked=True)
        raise access_error(error, path, "write") from error
    _drop(path)
    return True


def _shrink(path: StrPath, journal: Journal) -> None:
    """Undo ``grow_start``, however far it came."""
    try:
        with open(path, "r+b", buffering=0) as file:
            fd = file.fileno()
            start = journal.unmoved(os.pread(fd, len(journal.old), 0))
            if start == len(journal.header):
                start = _gap(fd, journal)
            elif not start:
                _write_at(file, journal.grown, journal.header)
                os.fsync(fd)
            if start < 0 or not collapse_range(fd, start, journal.grown):
                raise FileCorruptError(
                    "the data of this file was being moved, and the file system cannot move it back here",
                    path=path,
                    hint="Copy it back to where it was edited, with the journal beside it.",
                )
            os.fsync(fd)
    except OSError as error:
        raise access_error(error, path, "write") from error


def _gap(fd: int, journal: Journal) -> int:
    """Return where the hole is behind which the data has moved already; -1 where there is none of its size."""
    size, at = os.fstat(fd).st_size, 0
    while at < size:
        try:
            hole = os.lseek(fd, at, os.SEEK_HOLE)
            at = os.lseek(fd, hole, os.SEEK_DATA)
        except OSError:  # no data behind it
            break
        if at - hole == journal.grown:
            return hole
    return -1


def _write_at(file: IO[bytes], offset: int, data: bytes) -> None:
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(file.fileno(), view[done:], offset + done)


def _keep(path: StrPath, journal: Journal) -> None:
    """Write a journal and wait until it is on the disk."""
    place = journal_path(path)
    try:
        with open(place, "wb") as file:
            file.write(journal.encoded())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        place.unlink(missing_ok=True)
        raise access_error(error, place, "write") from error
    sync_folder(place.parent)


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
