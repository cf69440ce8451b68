"""Sources: the bytes of a file, or bytes in memory, opened once and read at random by whoever needs them.

Reads of a file go through ``pread`` so that a file which shrinks under the reader is an error, not the ``SIGBUS``
that a memory map would raise; maps are made only for zero-copy views of large payloads. What is opened, and when,
is decided in ``given``; nothing here knows a format.
"""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import os
import stat
from abc import ABC, abstractmethod
from typing import IO, TYPE_CHECKING

from atlas_kit.errors import AtlasError, FileAccessError, InvalidParamError, NoSuchFileError, TruncatedError
from atlas_kit.storage.urls import is_url, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

StrPath = str | os.PathLike[str]

#: How much bulk loops read, hash or copy at a time: large enough to be fast, small enough for the L2 cache.
CHUNK = 1 << 20

#: What standard input, and whatever else has no name, is called in messages and results.
STDIN = "-"

_WHY = {
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EISDIR: "it is a directory",
    errno.ENOTDIR: "a part of the path is not a directory",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "it is a loop of symbolic links",
    errno.EFBIG: "the file would be too large for this file system",
}


def access_error(error: OSError, path: StrPath, doing: str = "read") -> AtlasError:
    """Turn an ``OSError`` into one of ours, in one sentence."""
    if isinstance(error, AtlasError):
        return error
    if error.errno == errno.ENOENT and doing == "read":
        return NoSuchFileError("there is no such file", path=path, hint="Check the path.")
    if error.errno == errno.ENOENT:
        return FileAccessError(
            f"cannot {doing}: the folder does not exist", path=path, hint="Create the folder first."
        )
    why = _WHY.get(error.errno or 0) or (error.strerror or str(error)).lower()
    return FileAccessError(f"cannot {doing}: {why}", path=path)


class Source(ABC):
    """Random access to bytes that lie somewhere: ``read`` copies them, ``view`` does not.

    Who opened a source closes it; whoever is handed one leaves it open. Safe to use from several threads.

    Attributes
    ----------
    size
        How many bytes there are.
    path
        Where they lie in the file system, ``None`` for bytes that came without a name.
    identity
        What another file, or other bytes, at the same place would not have; empty where nothing can change.
    is_file
        Whether ``path`` is a regular file, beside which others may lie; False for what a pipe held.
    far
        Whether each read may be a journey, so that few large ones are better than many small ones.
    """

    size: int
    path: str | None
    identity: tuple[int, ...] = ()
    is_file = False
    far = False

    @property
    def name(self) -> str:
        """What to call the source in messages and results: its path, or ``-``."""
        return STDIN if self.path is None else os.fsdecode(self.path)

    @property
    def modified(self) -> int:
        """When the bytes were last changed, Unix seconds; 0 where that is not known."""
        return 0

    @abstractmethod
    def read_upto(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``, fewer at the end."""

    @abstractmethod
    def view(self, offset: int, size: int) -> memoryview:
        """Return a read-only view of a range, without copying it where that can be.

        Raises
        ------
        TruncatedError
            The source ends before that.
        """

    def beside(self, name: str) -> str | None:
        """Return the path or address of a file of that name in the same folder; None where this lies in none."""
        if not self.is_file or self.path is None:
            return None
        return os.path.join(os.path.dirname(os.fsdecode(self.path)), name)

    def prepare(self, offset: int, size: int) -> None:  # noqa: B027 (what is near needs nothing)
        """Be told that all of a range is going to be read; what is far away is then asked for at once."""

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly ``size`` bytes at ``offset``.

        Raises
        ------
        TruncatedError
            The file ends before that (now, or already when it was opened).
        """
        # do not allocate for a hostile length
        data = b"" if offset + size > self.size else self.read_upto(offset, size)
        if len(data) != size:
            raise TruncatedError(
                f"{size} bytes are expected, and the file ends at byte {self.size}"
                if offset + size > self.size
                else "the file became shorter while it was being read",
                path=self.path,
                offset=offset,
            )
        return data

    def chunks(self, offset: int, size: int, chunk: int = CHUNK) -> Iterator[bytes]:
        """Yield the bytes of a range in pieces of bounded size."""
        end = offset + size
        while offset < end:
            piece = self.read(offset, min(chunk, end - offset))
            yield piece
            offset += len(piece)

    def read_into(self, offset: int, room: memoryview) -> None:
        """Fill a buffer with the bytes at ``offset``, without making another.

        Raises
        ------
        TruncatedError
            The file ends before that.
        """
        room[:] = self.read(offset, len(room))

    def holes(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of (start, stop) for which the file system keeps no bytes: they read as zeros."""
        yield from ()

    def gather(self, offsets: Sequence[int], size: int) -> bytearray:
        """Return the ``size`` bytes at each of ``offsets``, one after the other.

        Unlike pages of a view, what is read so does not stay in the process's memory.

        Raises
        ------
        TruncatedError
            The file ends before that.
        """
        found = bytearray(len(offsets) * size)
        for at, offset in zip(range(0, len(found), max(1, size)), offsets, strict=False):
            found[at : at + size] = self.read(offset, size)
        return found

    def stream(self) -> IO[bytes]:
        """Return a seekable file over the bytes, for readers that want one; closing it leaves the source open."""
        return io.BufferedReader(_Stream(self), 1 << 16)

    def fileno(self) -> int | None:
        """Return the file descriptor for copying inside the kernel, ``None`` where there is none."""
        return None

    def duplicate(self) -> Source:
        """Return a source of the same file, not of its path, with the size that it has now; closed by itself.

        For a thread that reads on when the first source may be closed: a file's number, once closed, may be another's.
        """
        return self  # bytes in memory: closing does nothing

    def changed(self) -> bool:
        """Tell whether the path now holds another file, or other bytes, than were opened."""
        return False

    @abstractmethod
    def refresh(self) -> None:
        """Take the present size and time as the ones that the source was opened with."""

    @abstractmethod
    def close(self) -> None:
        """Release what is held; views that are still in use stay valid."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class BytesSource(Source):
    """Bytes in memory: what came through standard input, or what a pipe at ``path`` held."""

    def __init__(self, data: bytes, path: StrPath | None = None) -> None:
        self.path = None if path is None else os.fspath(path)
        self.size = len(data)
        self._data = data

    def read_upto(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``, fewer at the end."""
        return self._data[offset : offset + max(0, size)]

    def view(self, offset: int, size: int) -> memoryview:
        """Return a view of a range."""
        _require_inside(self, offset, size)
        return memoryview(self._data)[offset : offset + size]

    def stream(self) -> IO[bytes]:
        """Return a seekable file over the bytes."""
        return io.BytesIO(self._data)

    def refresh(self) -> None:
        """Do nothing: the bytes cannot change."""

    def close(self) -> None:
        """Do nothing: there is no file to release."""


class LocalSource(Source):
    """A regular file that is open as ``fd``, which belongs to the source from here on."""

    path: str
    is_file = True

    def __init__(self, path: StrPath, fd: int, info: os.stat_result) -> None:
        self.path = os.fspath(path)
        self._fd = fd
        self._map: mmap.mmap | None = None
        self._take(info)

    def _take(self, info: os.stat_result) -> None:
        self.size = info.st_size
        self.identity = _identity(info)

    @property
    def modified(self) -> int:
        """When the file was last changed, Unix seconds."""
        return max(0, self.identity[3] // 1_000_000_000)

    def read_upto(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``, fewer at the end of the file."""
        size = max(0, min(size, self.size - offset))
        return self._pread(offset, size) if size else b""

    def _pread(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._fd, size, offset)
            if 0 < len(data) < size:  # Linux returns at most 2 GiB a call
                parts, got = [data], len(data)
                while got < size and (data := os.pread(self._fd, size - got, offset + got)):
                    parts.append(data)
                    got += len(data)
                data = b"".join(parts)
        except OSError as error:
            raise access_error(error, self.path) from error
        return data

    def view(self, offset: int, size: int) -> memoryview:
        """Return a read-only view of a range without copying it (a memory map, made on first use)."""
        _require_inside(self, offset, size)
        if size == 0:
            return memoryview(b"")
        if self._map is None:
            try:
                if os.fstat(self._fd).st_size < self.size:
                    raise TruncatedError("the file became shorter while it was being read", path=self.path)
                self._map = mmap.mmap(self._fd, self.size, access=mmap.ACCESS_READ)
            except OSError as error:
                raise access_error(error, self.path) from error
        return memoryview(self._map)[offset : offset + size]

    def read_into(self, offset: int, room: memoryview) -> None:
        """Fill a buffer with the bytes at ``offset``, without making another."""
        read = getattr(os, "preadv", None)
        if read is None or offset + len(room) > self.size or read(self._fd, (room,), offset) != len(room):
            super().read_into(offset, room)

    def holes(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of (start, stop) for which the file system keeps no bytes; none where it cannot tell."""
        hole, data = getattr(os, "SEEK_HOLE", None), getattr(os, "SEEK_DATA", None)
        if hole is None or data is None:
            return
        stop = min(stop, self.size)
        with contextlib.suppress(OSError):  # a file system without holes
            while start < stop:
                start = os.lseek(self._fd, start, hole)
                if start >= stop:
                    return
                try:
                    end = min(stop, os.lseek(self._fd, start, data))
                except OSError as error:
                    if error.errno != errno.ENXIO:
                        return
                    end = stop  # nothing but a hole is left
                yield start, end
                start = end

    def gather(self, offsets: Sequence[int], size: int) -> bytearray:
        """Return the ``size`` bytes at each of ``offsets``, read into one buffer."""
        read = getattr(os, "preadv", None)
        if read is None:
            return super().gather(offsets, size)
        found = bytearray(len(offsets) * size)
        room = memoryview(found)
        for at, offset in zip(range(0, len(found), max(1, size)), offsets, strict=False):
            piece = room[at : at + size]
            if read(self._fd, (piece,), offset) != size:
                piece[:] = self.read(offset, size)
        return found

    def fileno(self) -> int | None:
        """Return the file descriptor, ``None`` once the file is closed."""
        return self._fd if self._fd >= 0 else None

    def duplicate(self) -> Source:
        """Return a source of the same file, closed by itself.

        Raises
        ------
        FileAccessError
            The file was closed, or too many are open.
        """
        try:
            fd = os.dup(self._fd)
            return LocalSource(self.path, fd, os.fstat(fd))
        except OSError as error:
            raise access_error(error, self.path) from error

    def changed(self) -> bool:
        """Tell whether the path now holds another file, or other bytes, than were opened."""
        try:
            return _identity(os.stat(self.path)) != self.identity
        except OSError:
            return True

    def refresh(self) -> None:
        """Take the file's present size and time as the ones that it was opened with."""
        self._take(os.fstat(self._fd))

    def close(self) -> None:
        """Release the file; views that are still in use keep their map alive."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self._map = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


class _Stream(io.RawIOBase):
    """A source as the raw file that ``io.BufferedReader`` asks for."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._source.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "negative seek position")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._source.read_upto(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def resolved(path: StrPath) -> str:
    """Return where a file to be written really lies, links followed.

    Raises
    ------
    InvalidParamError
        No file can have that name, or it is an address.
    """
    if is_url(path):
        raise InvalidParamError(
            "cannot write: this is an address, and not a file here", path=shown(os.fspath(path))
        )
    try:
        return os.path.realpath(os.fspath(path))
    except (ValueError, TypeError) as error:  # a NUL, half a character, or no path at all
        what = path if isinstance(path, (str, os.PathLike)) else repr(path)
        raise InvalidParamError("cannot write: the name is not a valid path", path=what) from error


def open_path(path: StrPath) -> Source:
    """Open a file for reading; what a pipe or a terminal holds is read at once.

    Raises
    ------
    NoSuchFileError, FileAccessError
        There is no such file, or it cannot be read.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidParamError(f"a file cannot be {path!r}", hint="Give its path.")
    fd = -1
    try:
        # O_NONBLOCK: opening a named pipe must not hang before we can see that it is one
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
        fd = os.open(path, flags | getattr(os, "O_BINARY", 0))
        info = os.fstat(fd)
        if stat.S_ISREG(info.st_mode):
            source, fd = LocalSource(path, fd, info), -1
            return source
        if stat.S_ISDIR(info.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        _require_end(fd, info.st_mode)
        with open(fd, "rb", closefd=False) as pipe:
            os.set_blocking(fd, True)
            return BytesSource(pipe.read(), path)
    except OSError as error:
        raise access_error(error, path) from error
    except ValueError as error:  # a NUL byte in the path
        raise FileAccessError("cannot read: the name is not a valid path", path=path) from error
    finally:
        if fd >= 0:
            os.close(fd)


def _identity(info: os.stat_result) -> tuple[int, ...]:
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)


def _require_inside(source: Source, offset: int, size: int) -> None:
    if offset < 0 or size < 0 or offset + size > source.size:
        raise TruncatedError(
            f"{size} bytes are expected, and the file ends at byte {source.size}",
            path=source.path,
            offset=offset,
        )


def _require_end(fd: int, mode: int) -> None:
    """Refuse a device that has something to read: it may never end. Pipes and terminals do."""
    if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not os.isatty(fd) and os.read(fd, 1)):
        raise OSError(errno.ENOTSUP, "it is a device")
