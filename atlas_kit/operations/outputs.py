"""Where operations write: a path, replaced whole or not at all, or a stream such as standard output."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TypeGuard

from atlas_kit.errors import AtlasError, FileAccessError, InvalidParamError, printable
from atlas_kit.formats.endings import require_ending
from atlas_kit.storage.atomic import atomic_write
from atlas_kit.storage.given import Given, check_apart, check_output
from atlas_kit.storage.source import CHUNK, StrPath, access_error
from atlas_kit.storage.urls import is_url, local_path, shown

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import MemoryFile

#: A path, or a binary stream that need not be seekable.
Output = str | os.PathLike[str] | IO[bytes]


def is_path(output: Output | None) -> TypeGuard[StrPath]:
    """Tell whether an output is a path."""
    return isinstance(output, (str, os.PathLike))


def output_name(output: Output) -> str:
    """Return what to call an output: its path, or ``-`` for a stream."""
    return shown(os.fsdecode(output)) if is_path(output) else "-"


def require_free(output: Output | None, inputs: Sequence[Given], force: bool) -> None:
    """Refuse an output that is one of the inputs, or a file that exists already unless ``force``.

    Raises
    ------
    InvalidParamError, FileAccessError
    """
    if is_path(output):
        check_output(output, list(inputs), force)


def require_apart(output: Output | None, inputs: Sequence[Given]) -> None:
    """Refuse an output that is one of the inputs, where it is known already that nothing else is in its place."""
    if is_path(output):
        check_apart(output, list(inputs))


def check_place(
    source: Given, output: Output | None, kind: str, *, force: bool, backup: bool | int, dry_run: bool
) -> None:
    """See that a file of this kind can be changed where somebody wants it: in place, or (``output``) in a new file.

    Raises
    ------
    InvalidParamError, FileAccessError
        The new file is the old one, or exists already, or its name promises another kind; or a backup is asked for,
        which only a change in place needs.
    """
    if output is not None and backup:
        raise InvalidParamError("a new file leaves the old one as it is: there is nothing to back up")
    require_ending(output, kind)
    if not dry_run:
        require_free(output, [source], force)


def is_stream(path: StrPath) -> bool:
    """Tell whether a path is a pipe or a device (``/dev/stdout``), which is written to and not replaced."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def address_of(output: Output) -> str | None:
    """Return the address that an output is, None for a path, a stream, and what is a file here after all."""
    return (
        os.fspath(output)
        if isinstance(output, str) and is_url(output) and local_path(output) is None
        else None
    )


def _as_path(output: StrPath) -> StrPath:
    return (local_path(output) or output) if isinstance(output, str) and is_url(output) else output


@contextmanager
def published_at(url: str) -> Iterator[str]:
    """Yield a path to write to, of which the file goes to an address when the block ends well."""
    from atlas_kit.storage.remote_writing import published

    with published(url) as path:
        yield path


@contextmanager
def _writing(output: StrPath) -> Iterator[None]:
    """Name the device or pipe that cannot be written to."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if isinstance(error, AtlasError):
            raise
        raise access_error(error, output, "write") from error


@contextmanager
def scratch_path(output: Output, suffix: str = "") -> Iterator[StrPath]:
    """Yield a path to write to: the output itself, or a temporary file that is then copied to the stream."""
    if isinstance(output, (str, os.PathLike)):
        if (url := address_of(output)) is not None:
            with published_at(url) as here:
                yield here
            return
        output = _as_path(output)
        if not is_stream(output):
            yield output
            return
        with _writing(output), open(output, "wb") as stream, scratch_path(stream, suffix) as path:
            yield path
        return
    with tempfile.TemporaryDirectory(prefix="atlas-kit-") as folder:
        path = os.path.join(folder, f"output{suffix}")
        yield path
        with open(path, "rb") as file:
            shutil.copyfileobj(file, output, CHUNK)
    output.flush()


@contextmanager
def output_file(output: Output) -> Iterator[IO[bytes]]:
    """Yield a seekable binary file whose bytes become the output when the block ends well."""
    if isinstance(output, (str, os.PathLike)):
        if (url := address_of(output)) is not None:
            with published_at(url) as path, open(path, "w+b") as file:
                yield file
                file.flush()
            return
        output = _as_path(output)
        if not is_stream(output):
            with atomic_write(output) as file:
                yield file
            return
        with _writing(output), open(output, "wb") as stream, output_file(stream) as file:
            yield file
        return
    with tempfile.TemporaryFile() as scratch:
        yield scratch
        scratch.seek(0)
        shutil.copyfileobj(scratch, output, CHUNK)
    output.flush()


def make_folder(folder: str) -> None:
    """Make a folder for files to be written into, unless it is there.

    Raises
    ------
    FileAccessError
        It is a file, or cannot be made.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError:
        raise FileAccessError("this is a file, and not a folder", path=folder) from None
    except OSError as error:
        raise access_error(error, folder, "write") from error


def file_names(keys: Iterable[str], suffix: str) -> list[str]:
    """Return a file name for each key, in one folder and none twice, whatever is in the keys."""
    used: set[str] = set()
    names = []
    for key in keys:
        stem = re.sub(r"[^\w.,;+@ ()-]", "_", printable(key)).strip(" .") or "_"
        if len(stem.encode()) > 150:
            import hashlib

            digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
            stem = f"{stem.encode()[:110].decode('utf-8', 'ignore')}_{digest[:16]}"
        name, number = stem, 1
        while name.casefold() in used:  # some file systems do not tell upper from lower case
            number += 1
            name = f"{stem}-{number}"
        used.add(name.casefold())
        names.append(name + suffix)
    return names


def write_memory_file(memory: MemoryFile, output: Output, **options: Any) -> int:
    """Save a memory file to a path or a stream; return its size in bytes."""
    with scratch_path(output, ".atlas") as path:
        memory.save(path, durable=is_path(output), **options)
        return os.stat(path).st_size
