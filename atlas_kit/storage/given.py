"""What somebody gives to be read or written: a path, or the content itself."""

from __future__ import annotations

import os
from collections.abc import Callable

from atlas_kit.errors import FileAccessError, InvalidParamError, Remedy

StrPath = str | os.PathLike[str]
#: A path, or the content itself (what came through standard input).
Given = str | os.PathLike[str] | bytes
#: Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]
#: What standard input is called in messages and results.
STDIN = "-"


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
            raise FileAccessError("the file exists already", path=output, remedy=Remedy("overwrite"))
    except ValueError as error:
        raise FileAccessError("the name is not a valid path", path=output) from error


def _is_device(path: StrPath) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
