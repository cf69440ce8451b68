"""Which file a path in the address bar means: a regular file that has a name below the server's root, or none.

Links are followed wherever they lead, as Jupyter's own contents service does: models lie in caches and on other disks,
and who may open a link in the Lab gets what it leads to. A path itself never leaves the root. Knows no HTTP.
"""

from __future__ import annotations

import os
from pathlib import Path


def find_file(root: str | os.PathLike[str], path: str) -> Path | None:
    """Return the real path of a file below ``root``, or None if there is none that may be shown.

    Parameters
    ----------
    root
        A folder; links in its own path are followed.
    path
        Names separated by ``/``, relative to ``root``, as Jupyter's contents service writes them.
        ``..``, a drive or a null byte is never a file.
    """
    names = [name for name in path.split("/") if name]
    if not names or any(_is_unsafe(name) for name in names):
        return None
    try:
        top = Path(root).resolve(strict=True)
        real = top.joinpath(*names).resolve(strict=True)
        regular = real.is_file()
    except (OSError, RuntimeError, ValueError):  # missing, not readable, a loop of links, not encodable
        return None
    return real if regular else None


def is_dangling(root: str | os.PathLike[str], path: str) -> bool:
    """Tell whether a path below ``root`` is a link to what is not there."""
    names = [name for name in path.split("/") if name]
    if not names or any(_is_unsafe(name) for name in names):
        return False
    place = Path(root).joinpath(*names)
    try:
        return place.is_symlink() and not place.exists()
    except (OSError, RuntimeError, ValueError):  # a loop of links: it leads nowhere, too
        return True


def _is_unsafe(name: str) -> bool:
    separators = {"\0", os.sep, os.altsep} - {None}
    return name in {".", ".."} or bool(os.path.splitdrive(name)[0]) or any(s in name for s in separators if s)
