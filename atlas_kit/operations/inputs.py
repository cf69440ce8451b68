"""What every operation is given: a file by path or by content, and the keys that open encrypted ones.

``open_given`` hides the difference between formats where a command does not care: JSON documents,
safetensors and npz files come back as memory files, like ``.atlas`` files do.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import (
    AtlasError,
    FileAccessError,
    InvalidParamError,
    KeyRequiredError,
    MagicMismatchError,
)

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.formats.gguf import GGUFFile

StrPath = str | os.PathLike[str]
#: A path, or the content itself (what came through standard input).
Given = str | os.PathLike[str] | bytes

#: Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]

#: What standard input is called in messages and results.
STDIN = "-"
_MAX_KEY_FILE = 4096


class Keys:
    """What opens encrypted files. ``ask(question, confirm)`` is called only when a file needs it."""

    def __init__(
        self,
        passphrase: bytes | None = None,
        key: bytes | None = None,
        ask: Callable[[str, bool], bytes] | None = None,
    ) -> None:
        self.passphrase = passphrase
        self.key = key
        self.ask = ask

    def __bool__(self) -> bool:
        return self.passphrase is not None or self.key is not None

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments that the library's functions take."""
        return {"passphrase": self.passphrase, "key": self.key} if self else {}

    def for_writing(self) -> dict[str, Any]:
        """Return the same for a new encrypted file, asking for a passphrase (twice) if there is none."""
        if not self:
            if self.ask is None:
                raise KeyRequiredError(
                    "an encrypted file needs a passphrase or a key",
                    hint="Give --passphrase-file or --key-file, or set ATLAS_PASSPHRASE.",
                )
            self.passphrase = self.ask("New passphrase", True)
        return self.options()

    def ask_for(self, name: str) -> bool:
        """Ask for the passphrase of ``name``; tell whether there is one now."""
        if self or self.ask is None:
            return False
        self.passphrase = self.ask(f"Passphrase for {name}", False)
        return True


def passphrase_from_file(path: StrPath) -> bytes:
    """Return the first line of a file, without its end."""
    line = _read_small(path, "passphrase").split(b"\n", 1)[0].rstrip(b"\r")
    if not line:
        raise InvalidParamError("the passphrase file is empty", path=path)
    return line


def key_from_file(path: StrPath) -> bytes:
    """Return the 32 bytes of a key file."""
    data = _read_small(path, "key")
    if len(data) != 32:
        raise InvalidParamError(
            f"a key file holds exactly 32 bytes, and this one has {len(data)}",
            path=path,
            hint="Make one with: head -c 32 /dev/urandom > FILE",
        )
    return data


def _read_small(path: StrPath, what: str) -> bytes:
    from atlas_kit.storage.files import Source

    with Source("/dev/stdin" if path == STDIN else path) as source:
        if source.size > _MAX_KEY_FILE:
            raise InvalidParamError(f"the file is too long for a {what}", path=path)
        return source.read(0, source.size)


def name_of(given: Given) -> str:
    """Return what to call an input in messages: its path, or ``-``."""
    return STDIN if isinstance(given, bytes) else os.fsdecode(given)


def size_of(given: Given) -> int:
    """Return how many bytes an input has."""
    if isinstance(given, bytes):
        return len(given)
    try:
        return os.stat(given).st_size
    except OSError as error:
        from atlas_kit.storage.files import access_error

        raise access_error(error, given) from error


class Opened:
    """An input that was recognised and opened.

    ``kind`` is atlas, gguf, safetensors, npz or json; ``recorded`` the ``.atlas`` version that a file of the
    last three kinds says it came from.
    """

    def __init__(self, name: str, kind: str, file: Any, recorded: int | None = None) -> None:
        self.name = name
        self.kind = kind
        self.file = file
        self.recorded = recorded

    @property
    def memory(self) -> MemoryFile:
        """Return the file as a memory file, or say that it is a model."""
        if self.kind == "gguf":
            raise InvalidParamError(
                "this is a GGUF model file, and the command works on memory files", path=self.name
            )
        memory: MemoryFile = self.file
        return memory

    @property
    def gguf(self) -> GGUFFile:
        """Return the file as a model file."""
        model: GGUFFile = self.file
        return model

    def close(self) -> None:
        """Release the file."""
        self.file.close()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def kind_of(given: Given) -> str | None:
    """Return the format's name, by content and then by suffix, or ``None``."""
    from atlas_kit.formats.detect import detect

    return detect(given)


def open_given(given: Given, keys: Keys | None = None) -> Opened:
    """Open a file of any format that holds entries or tensors.

    Raises
    ------
    MagicMismatchError
        It is none of them.
    """
    keys = keys or Keys()
    kind, name = kind_of(given), name_of(given)
    if kind == "atlas":
        return Opened(name, kind, open_memory(given, keys))
    if kind == "gguf":
        from atlas_kit.formats.gguf import GGUFFile

        model = GGUFFile.from_bytes(given) if isinstance(given, bytes) else GGUFFile.open(given)
        return Opened(name, kind, model)
    if kind in ("json", "safetensors", "npz"):
        from atlas_kit.operations.interchange import read_carrier

        try:
            return Opened(name, kind, *read_carrier(given, kind))
        except AtlasError as error:  # what only a key or an array is wrong with does not know the file
            error.path = error.path or (None if isinstance(given, bytes) else name)
            raise
    raise unknown_format(given)


def unknown_format(given: Given) -> MagicMismatchError:
    """Return the error for a file that no reader recognises."""
    if size_of(given) == 0:
        return MagicMismatchError("the file is empty", path=name_of(given))
    return MagicMismatchError(
        "this is not a file that atlas-tool knows",
        path=name_of(given),
        hint="It reads .atlas, GGUF, safetensors, npz and its own JSON; if this was a damaged .atlas file,"
        " try: atlas-tool repair",
    )


def open_memory(given: Given, keys: Keys) -> MemoryFile:
    """Open an ``.atlas`` file, asking for its passphrase if it needs one."""
    from atlas_kit.formats.atlas import MemoryFile

    try:
        return MemoryFile.open(given, **keys.options())
    except KeyRequiredError:
        if not keys.ask_for(name_of(given)):
            raise
        return MemoryFile.open(given, **keys.options())


def same_file(first: Given, second: Given) -> bool:
    """Tell whether two paths are one file, through links too."""
    if isinstance(first, bytes) or isinstance(second, bytes):
        return False
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):
        return False


def check_output(output: StrPath, inputs: list[Given], force: bool) -> None:
    """Refuse an output that is one of the inputs, or that exists already unless ``force``."""
    for given in inputs:
        if same_file(output, given):
            raise InvalidParamError(
                "the output is the input itself", path=output, hint="Choose another name for the output."
            )
    try:
        if os.path.lexists(output) and not force and not _is_device(output):
            raise FileAccessError(
                "the file exists already", path=output, hint="Use --force to overwrite it, or another name."
            )
    except ValueError as error:
        raise FileAccessError("the name is not a valid path", path=output) from error


def _is_device(path: StrPath) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
