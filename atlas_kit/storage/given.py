"""What somebody gives to be read: a path or an address, the content itself, or a source that is open already.

The one place where that is told apart. An operation says ``@takes_source`` (or ``use_source``, for more than one)
and sees an opened ``Source``; what it hands the source on to shares it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from atlas_kit.errors import FileAccessError, InvalidParamError, Remedy
from atlas_kit.storage.source import STDIN, BytesSource, Source, StrPath, open_path
from atlas_kit.storage.urls import is_url, local_path, shown

__all__ = ["STDIN", "Given", "Progress", "StrPath", "as_it_is_now", "check_apart", "check_output", "name_of",
           "open_source", "path_of", "same_file", "sha256_of", "takes_source", "use_source"]  # fmt: skip

#: A path or an address (``https://``, ``s3://``, ...), the content itself, or an opened source of it.
Given = StrPath | bytes | Source
#: Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def open_source(given: Given) -> Source:
    """Return an opened source; one that is open already comes back itself, and is its opener's to close.

    Raises
    ------
    NoSuchFileError, FileAccessError
        There is no such file, or it cannot be read.
    """
    if isinstance(given, Source):
        return given
    if isinstance(given, bytes):
        return BytesSource(given)
    if is_url(given):
        return _open_address(os.fspath(given))
    return open_path(given)


def _open_address(url: str) -> Source:
    path = local_path(url)
    if path is not None:
        return open_path(path)
    from atlas_kit.storage.remote import open_url

    return open_url(url)


@contextmanager
def use_source(given: Given) -> Iterator[Source]:
    """Yield an opened source, and close it afterwards if it was opened here."""
    source = open_source(given)
    try:
        yield source
    finally:
        if source is not given:
            source.close()


def takes_source(operation: Callable[Concatenate[Source, _P], _R]) -> Callable[Concatenate[Given, _P], _R]:
    """Let an operation on an opened source be called with a path or with bytes, too."""

    @wraps(operation)
    def wrapper(given: Given, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with use_source(given) as source:
            return operation(source, *args, **kwargs)

    return wrapper


def name_of(given: Given) -> str:
    """Return what to call an input in messages: its path, or ``-``."""
    if isinstance(given, Source):
        return given.name
    return STDIN if isinstance(given, bytes) else shown(os.fsdecode(given))


def path_of(given: Given) -> StrPath:
    """Return the path of a file that is to be changed in place.

    Raises
    ------
    InvalidParamError
        There is none: bytes lie in no file, or it is not on this machine.
    """
    path = given.path if isinstance(given, Source) else given
    if path is None or isinstance(path, bytes):
        raise InvalidParamError("only a file can be changed in place, and these are bytes without one")
    if is_url(path):
        raise InvalidParamError(
            "only a file on this machine can be changed in place", path=shown(os.fspath(path)),
            hint="Write the result to a new file.",
        )  # fmt: skip
    return path


def as_it_is_now(given: Given) -> Given:
    """Return what to read under a lock: an opened source whose file is still the same, else the path.

    So a file that was looked at before the lock was held need not be opened a second time, and one that was
    changed in between is not mixed with what it was.
    """
    return path_of(given) if isinstance(given, Source) and given.changed() else given


def sha256_of(given: Given) -> bytes:
    """Return the SHA-256 of a whole file."""
    import hashlib

    digest = hashlib.sha256()
    with use_source(given) as source:
        for piece in source.chunks(0, source.size):
            digest.update(piece)
    return digest.digest()


def same_file(first: Given, second: Given) -> bool:
    """Tell whether two paths are one file, through links too."""
    a, b = (given.path if isinstance(given, Source) else given for given in (first, second))
    if a is None or b is None or isinstance(a, bytes) or isinstance(b, bytes):
        return False
    if is_url(a) or is_url(b):
        return shown(os.fsdecode(a)) == shown(os.fsdecode(b))
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):
        return False


def check_output(output: StrPath, inputs: list[Given], force: bool) -> None:
    """Refuse an output that is one of the inputs, or that exists already unless ``force``."""
    check_apart(output, inputs)
    if is_url(output):
        where = local_path(os.fspath(output))
        if where is None:
            from atlas_kit.storage.remote_writing import require_writable

            require_writable(os.fspath(output), force=force)
            return
        output = where
    try:
        if os.path.lexists(output) and not force and not _is_device(output):
            raise FileAccessError("the file exists already", path=output, remedy=Remedy("overwrite"))
    except ValueError as error:
        raise FileAccessError("the name is not a valid path", path=output) from error


def check_apart(output: StrPath, inputs: list[Given]) -> None:
    """Refuse an output that is one of the inputs."""
    for given in inputs:
        if same_file(output, given):
            raise InvalidParamError(
                "the output is the input itself",
                path=name_of(output),
                hint="Choose another name for the output.",
            )


def _is_device(path: StrPath) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
