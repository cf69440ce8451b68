"""Where operations write: a path, replaced whole or not at all, or a stream such as standard output."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from atlas_kit.storage.atomic import atomic_write
from atlas_kit.storage.source import CHUNK, StrPath

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import MemoryFile

#: A path, or a binary stream that need not be seekable.
Output = str | os.PathLike[str] | IO[bytes]


def is_path(output: Output) -> bool:
    """Tell whether an output is a path."""
    return isinstance(output, (str, os.PathLike))


def is_stream(path: StrPath) -> bool:
    """Tell whether a path is a pipe or a device (``/dev/stdout``), which is written to and not replaced."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


@contextmanager
def scratch_path(output: Output, suffix: str = "") -> Iterator[StrPath]:
    """Yield a path to write to: the output itself, or a temporary file that is then copied to the stream."""
    if isinstance(output, (str, os.PathLike)):
        if not is_stream(output):
            yield output
            return
        with open(output, "wb") as stream, scratch_path(stream, suffix) as path:
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
        if not is_stream(output):
            with atomic_write(output) as file:
                yield file
            return
        with open(output, "wb") as stream, output_file(stream) as file:
            yield file
        return
    with tempfile.TemporaryFile() as scratch:
        yield scratch
        scratch.seek(0)
        shutil.copyfileobj(scratch, output, CHUNK)
    output.flush()


def write_memory_file(memory: MemoryFile, output: Output, **options: Any) -> int:
    """Save a memory file to a path or a stream; return its size in bytes."""
    with scratch_path(output, ".atlas") as path:
        memory.save(path, durable=is_path(output), **options)
        return os.stat(path).st_size
