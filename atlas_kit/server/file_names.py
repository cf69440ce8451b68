"""Names of files that clients choose: what is allowed, and where such a file lies.

A name is one part of a path, means the same file on every system, and looks like what it is.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from atlas_kit.errors import InvalidParamError

MOST_BYTES = 255
#: Characters that mean something else somewhere, or look like those that do: slashes, backslashes, colons, stars.
_FORBIDDEN = frozenset(
    '/\\:*?"<>|\ufffd\u2044\u2215\u29f8\u2571\u2216\u29f5\u29f9\u2572\u2236\ua789\u02d0\u2217\u066d'
)
#: What Windows keeps for devices, whatever comes behind the first dot.
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{name}{digit}" for name in ("com", "lpt") for digit in range(1, 10))]
)


def checked_file_name(name: object, key: str = "filename") -> str:
    """Return a file's name that a client has sent.

    Raises
    ------
    InvalidParamError
        It is none, or one that nobody needs: with separators, ``..``, control or look-alike characters, too long.
    """
    if not isinstance(name, str) or not _is_plain(name):
        raise InvalidParamError(
            f"this is not the name of a file: 1 to {MOST_BYTES} bytes, without separators, '..', or characters that "
            "cannot be seen",
            key=key,
        )
    return name


def _is_plain(name: str) -> bool:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # half a character
        return False
    if (
        not 0 < size <= MOST_BYTES
        or ".." in name
        or name.startswith((".", " ", "-"))
        or name.endswith((".", " "))
    ):
        return False
    if name.split(".")[0].lower() in _DEVICES:
        return False
    return all(map(_may_stand, name))


def _may_stand(one: str) -> bool:
    """Tell whether a character may be in a name: one that is seen, and taken for no other."""
    if one == " ":
        return True
    return (
        one not in _FORBIDDEN
        and unicodedata.category(one)[0] not in "CZ"
        and unicodedata.normalize("NFKC", one) == one
    )


def inside(folder: str | os.PathLike[str], name: str, key: str = "filename") -> Path:
    """Return where a file of a checked name lies in a folder.

    Raises
    ------
    InvalidParamError
        The name is not allowed, or leads out of the folder through a link.
    """
    path = Path(folder) / checked_file_name(name, key)
    if path.is_symlink() or path.parent.resolve() / path.name != path.resolve():
        raise InvalidParamError("this file leads somewhere else", key=key)
    return path
