"""The exception tree: one base class, one subclass per code of the C library's ``atlas_error_t``.

Messages are one sentence that says what was found; where it was found (file, offset, key) and what to
try are fields, so that a program can use them and ``str()`` can put them together in one way.
This module imports nothing of atlas_kit.
"""

from __future__ import annotations

import enum
import os
from typing import ClassVar


class ErrorCode(enum.IntEnum):
    """Values of ``atlas_error_t`` in the C library, in its order."""

    NONE = 0
    INVALID_PARAM = 1
    FILE_NOT_FOUND = 2
    FILE_CORRUPT = 3
    FILE_ACCESS = 4
    MEMORY_ERROR = 5
    KEY_NOT_FOUND = 6
    KEY_TOO_LONG = 7
    DATA_TOO_LARGE = 8
    CHECKSUM_MISMATCH = 9
    VERSION_MISMATCH = 10
    MAGIC_MISMATCH = 11
    # Not the C library's, which has no models.
    BUSY = 64
    CLOSED = 65


def printable(text: str) -> str:
    r"""Make any string safe to print: surrogate escapes and control characters become ``\xNN``."""
    if text.isprintable():
        return text
    out = []
    for char in text:
        code = ord(char)
        if char.isprintable():
            out.append(char)
        elif 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8 (PEP 383)
            out.append(f"\\x{code - 0xDC00:02x}")
        elif code < 0x100:
            out.append(f"\\x{code:02x}")
        else:
            out.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return "".join(out)


class AtlasError(Exception):
    """Base of every error that atlas_kit raises on purpose.

    Parameters
    ----------
    message
        One sentence without the place: what was found.
    path, offset, key
        Where: the file, the byte offset in it, the entry, metadata key or tensor.
    hint
        What to try next.
    """

    code: ClassVar[ErrorCode] = ErrorCode.INVALID_PARAM

    def __init__(
        self,
        message: str,
        *,
        path: str | os.PathLike[str] | None = None,
        offset: int | None = None,
        key: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = None if path is None else os.fspath(path)
        self.offset = offset
        self.key = key
        self.hint = hint

    def __str__(self) -> str:
        text = self.message
        if self.key is not None and not self._names_key():
            text = f'"{self.key}": {text}'
        if self.offset is not None:
            text = f"at byte {self.offset}: {text}"
        if self.path is not None:
            text = f"{self.path}: {text}"
        if self.hint:
            text = f"{text.rstrip('.')}. {self.hint}"
        return printable(text)

    def _names_key(self) -> bool:
        """Tell whether the message names the key already; short ones are found in any sentence."""
        key = repr(self.key)[1:-1]
        quoted = f'"{key}"' in self.message or f"'{key}'" in self.message
        return quoted or self.message.startswith(f"{key} ") or (len(key) > 6 and key in self.message)


class InvalidParamError(AtlasError, ValueError):
    """A caller's argument makes no sense (code 1)."""

    code = ErrorCode.INVALID_PARAM


class NoSuchFileError(AtlasError, FileNotFoundError):
    """The file does not exist (code 2)."""

    code = ErrorCode.FILE_NOT_FOUND


class FileCorruptError(AtlasError):
    """The bytes contradict the format (code 3)."""

    code = ErrorCode.FILE_CORRUPT


class TruncatedError(FileCorruptError):
    """The file ends before the bytes that it promises."""


class FileAccessError(AtlasError, OSError):
    """The file cannot be read, written or locked (code 4)."""

    code = ErrorCode.FILE_ACCESS


class LockedError(FileAccessError):
    """Another process holds the file's lock."""


class ConflictError(FileAccessError):
    """Another process changed the file since it was opened."""


class KeyRequiredError(FileAccessError):
    """The file is encrypted and no passphrase or key was given."""


class WrongKeyError(FileAccessError):
    """The passphrase or key is not the one that the file was written with."""


class OutOfMemoryError(AtlasError, MemoryError):
    """An allocation was refused or failed (code 5)."""

    code = ErrorCode.MEMORY_ERROR


class KeyNotFoundError(AtlasError, KeyError):
    """No entry has that key (code 6)."""

    code = ErrorCode.KEY_NOT_FOUND


class KeyTooLongError(AtlasError, ValueError):
    """The key is longer than the format allows (code 7)."""

    code = ErrorCode.KEY_TOO_LONG


class DataTooLargeError(AtlasError, ValueError):
    """The payload, or what it would unpack to, is larger than allowed (code 8)."""

    code = ErrorCode.DATA_TOO_LARGE


class ChecksumMismatchError(FileCorruptError):
    """A stored checksum differs from the bytes' own (code 9)."""

    code = ErrorCode.CHECKSUM_MISMATCH


class AuthenticationError(ChecksumMismatchError):
    """Encrypted bytes were altered, swapped, or replayed."""


class VersionMismatchError(AtlasError):
    """The format version is not one that this library reads or writes (code 10)."""

    code = ErrorCode.VERSION_MISMATCH


class MagicMismatchError(AtlasError):
    """The file does not start with the format's magic bytes (code 11)."""

    code = ErrorCode.MAGIC_MISMATCH


class WrongModelError(AtlasError):
    """The memory belongs to another model.

    ``found`` (None where the file names no model) and ``expected`` are model hashes, 64 hexadecimal digits;
    the message has the first 16 of each.
    """

    def __init__(self, found: bytes, expected: bytes, *, path: str | None, hint: str) -> None:
        self.found = found.hex() if any(found) else None
        self.expected = expected.hex()
        whose = f"belongs to the model {self.found[:16]}" if self.found else "does not say whose it is"
        super().__init__(
            f"the memory {whose}, and this is the model {self.expected[:16]}", path=path, hint=hint
        )


class ModelError(AtlasError):
    """The model cannot be loaded or run: llama.cpp refused it, or it is of a kind that does not generate text."""


class BusyError(AtlasError):
    """What was asked for is in use, or has as much to do as it takes: the same call may succeed later (code 64)."""

    code = ErrorCode.BUSY


class ClosedError(ModelError):
    """The session, the model or the scheduler was closed (code 65)."""

    code = ErrorCode.CLOSED


class DivergedError(AtlasError, ArithmeticError):
    """In strict mode: a step of the memory gave NaN, infinity or an exploding norm."""


class MissingExtraError(AtlasError, ImportError):
    """An optional dependency is needed and not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs a package that is not installed",
            hint=f'Try: pip install "atlas-kit[{extra}]"',
        )


#: The class that stands for each code of the C enum (NONE has none).
BY_CODE: dict[ErrorCode, type[AtlasError]] = {
    ErrorCode.INVALID_PARAM: InvalidParamError,
    ErrorCode.FILE_NOT_FOUND: NoSuchFileError,
    ErrorCode.FILE_CORRUPT: FileCorruptError,
    ErrorCode.FILE_ACCESS: FileAccessError,
    ErrorCode.MEMORY_ERROR: OutOfMemoryError,
    ErrorCode.KEY_NOT_FOUND: KeyNotFoundError,
    ErrorCode.KEY_TOO_LONG: KeyTooLongError,
    ErrorCode.DATA_TOO_LARGE: DataTooLargeError,
    ErrorCode.CHECKSUM_MISMATCH: ChecksumMismatchError,
    ErrorCode.VERSION_MISMATCH: VersionMismatchError,
    ErrorCode.MAGIC_MISMATCH: MagicMismatchError,
    ErrorCode.BUSY: BusyError,
    ErrorCode.CLOSED: ClosedError,
}
