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


#: What can be done about errors and findings: its name, and a sentence that holds wherever the library is used.
#: Placeholders are the remedy's arguments. The command line has words of its own for each (``cli._remedies``).
REMEDIES: dict[str, str] = {
    # damaged files
    "repair": "A repair writes what is intact to a new file.",
    "repair-if-damaged": "If the file is damaged, a repair writes what is intact to a new file.",
    "rescue-entries": "A repair rescues the entries in them.",
    "mend": "A repair writes a mended copy.",
    "recover": "Restore an earlier version, if there is a backup.",
    "recover-number": "{backup} would load: restore it.",
    "recover-journal": "Put it back by restoring the file from its journal.",
    "list-backups": "List the backups of the file.",
    "restore-locked": "Give its passphrase or key, or force it to be restored as it is.",
    "restore-damaged": "Repair the backup, or force it to be restored as it is.",
    # files to be written anew
    "rewrite": "Convert the file to write it anew.",
    "canonical": "Converting the file to atlas-v1 writes the canonical form.",
    "change-version": "Convert the file to atlas-v{version}.",
    "to-byte-order": "Convert the file to {order}-endian byte order.",
    "choose-format": "Choose one of these formats: {formats}.",
    "make-native": "Choose the format atlas-gguf, or settings, to make it ATLAS-native.",
    "leave-settings-out": "Leave out the memory and its settings.",
    "quantise": "Quantise it, for example to q8_0 or q4_k_m.",
    "requantise": "Start from the model before that, or allow it to be quantised again.",
    "name-output": "Name the file to write.",
    "as-array": "Write it as a NumPy array (.npy) instead.",
    "fit-ending": "Choose a name that ends in {ending}; other formats are converted to.",
    "overwrite": "Allow it to be overwritten, or choose another name.",
    "overwrite-sidecar": "Move it away, or allow it to be overwritten.",
    # models in several files
    "one-shard": "This shard can be opened alone.",
    "join-shards": "Joining the shards makes one file of them.",
    "first-shard": "Change the first shard instead: {first}.",
    # what a file holds
    "list-entries": "List what the file holds.",
    "inspect": "Inspect the file to see what it holds.",
    "example-document": "Convert a memory file to JSON to see what one looks like.",
    "set-value": "Set it, for example to {value}.",
    "new-file": "A new memory file has a name that ends in .atlas, or must be asked for.",
    "replace-or-append": "Have it replaced, or gone on with.",
    "append-exact": "Ask for the bytes exactly if they are meant.",
    "append-message": "Say whose message it is, or add the exact bytes if that is meant.",
    "set-type": "Set it again, as a value of type {type}.",
    "set-missing": "Convert the model again, or set the key.",
    "change-value": "Change the value, or convert the model again.",
    "remove-tensor": "Remove the tensor, or convert the model again.",
    "remove-prefix": "Rename the tensors {pattern}, to be called what stands for the star.",
    "rename-tensor": "Rename the tensor.",
    "index-memories": "Make indexes of them, with the model whose memories they are.",
    # secrets
    "give-secret": "Give a passphrase or a key.",
    "give-new-secret": "Give a new passphrase or key.",
    "give-passphrase": "Give the passphrase.",
    "give-key": "Give the key.",
    "give-server-key": "Give the server its key.",
    "leave-secret-out": "Leave out the passphrase or key, or encrypt the file.",
    "make-key": "Make a key of 32 random bytes.",
    "write-plain": "Only atlas-v3 is encrypted; ask for plain text if that is meant.",
    "restore-plain": "Ask for plain text if that is meant, or encrypt the backup first.",
    "encrypt": "Encrypt it first.",
    "rekey": "Its passphrase or key can be changed.",
    # memories and models that do not belong together
    "force-load": "Force it to be loaded all the same.",
    "force-into-file": "Force this memory to be put into the file.",
    "force-beside-model": "Force it to be put beside this model all the same.",
    # running a model
    "no-chat": "Leave the template out.",
}


class Remedy:
    """What can be done about an error or a finding, as data: a name of ``REMEDIES`` and its arguments.

    Who shows it words it: the command line names a command, a page makes a button of it.
    """

    __slots__ = ("arguments", "name")

    def __init__(self, name: str, **arguments: str) -> None:
        self.name = name
        self.arguments = arguments
        self.sentence  # noqa: B018 (an unknown name or a missing argument fails here, not when it is shown)

    @property
    def sentence(self) -> str:
        """The remedy in plain words, without a command."""
        return REMEDIES[self.name].format(**self.arguments)

    def to_json(self) -> dict[str, str]:
        """Return the name, and each argument under its own."""
        return {"name": self.name, **self.arguments}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remedy) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.name, *sorted(self.arguments.items())))

    def __repr__(self) -> str:
        return f"Remedy({', '.join([repr(self.name), *(f'{k}={v!r}' for k, v in self.arguments.items())])})"


def advice(hint: str | None, remedy: Remedy | None) -> str:
    """Return a hint and a remedy as one text in plain words; empty where there is neither."""
    return " ".join(filter(None, (hint, remedy.sentence if remedy else "")))


class AtlasError(Exception):
    """Base of every error that atlas_kit raises on purpose.

    Parameters
    ----------
    message
        One sentence without the place: what was found.
    path, offset, key
        Where: the file, the byte offset in it, the entry, metadata key or tensor.
    hint
        What to try next, or to know, in a sentence that holds wherever the library is used.
    remedy
        What to do next, where it is one of the things that the library can do.
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
        remedy: Remedy | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = None if path is None else os.fspath(path)
        self.offset = offset
        self.key = key
        self.hint = hint
        self.remedy = remedy

    @property
    def advice(self) -> str:
        """The hint and the remedy in plain words; empty where there is neither."""
        return advice(self.hint, self.remedy)

    def __str__(self) -> str:
        return self.sentence(self.advice)

    def sentence(self, advice: str) -> str:
        """Return place and message as one line, followed by ``advice``."""
        text = self.message
        if self.key is not None and not self._names_key():
            text = f'"{self.key}": {text}'
        if self.offset is not None:
            text = f"at byte {self.offset}: {text}"
        if self.path is not None:
            text = f"{self.path}: {text}"
        if advice:
            text = f"{text.rstrip('.')}. {advice}"
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

    def __init__(
        self,
        found: bytes,
        expected: bytes,
        *,
        path: str | None,
        hint: str | None = None,
        remedy: Remedy | None = None,
    ) -> None:
        self.found = found.hex() if any(found) else None
        self.expected = expected.hex()
        whose = f"belongs to the model {self.found[:16]}" if self.found else "does not say whose it is"
        super().__init__(
            f"the memory {whose}, and this is the model {self.expected[:16]}",
            path=path,
            hint=hint,
            remedy=remedy,
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
