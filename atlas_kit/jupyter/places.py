"""Which file a path in the address bar means: a regular file below the server's root, or none.

Stricter than Jupyter's own contents service, which follows links out of the root. Knows no HTTP.
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
        ``..``, a drive, a null byte or a link that leads out of ``root`` is never a file.
    """
    names = [name for name in path.split("/") if name]
    if not names or any(_is_unsafe(name) for name in names):
        return None
    try:
        top = Path(root).resolve(strict=True)
        real = top.joinpath(*names).resolve(strict=True)
        inside = real.is_relative_to(top) and real.is_file()
    except (OSError, RuntimeError, ValueError):  # missing, not readable, a loop of links, not encodable
        return None
    return real if inside else None


def _is_unsafe(name: str) -> bool:
    separators = {"\0", os.sep, os.altsep} - {None}
    return name in {".", ".."} or bool(os.path.splitdrive(name)[0]) or any(s in name for s in separators if s)
