"""Where the index of a memory lies: beside its file, or where nothing can be written there, in a folder of the user."""

from __future__ import annotations

import contextlib
import hashlib
import os

from atlas_kit.persistence.index_tables import ENDING
from atlas_kit.storage.urls import chain, is_url, last_part, local_path, shown

#: Names the folder for indexes of files beside which nothing can be written.
CACHE_VARIABLE = "ATLAS_INDEX_DIR"


def beside(name: str) -> str | None:
    """Return the name of the index beside a file; None where an address has more behind the file's name."""
    first, *rest = chain(name) if is_url(name) else [name]
    if is_url(name) and local_path(name) is None and not first.endswith(last_part(first) or "/"):
        return None
    return "::".join([first + ENDING, *rest])


def cached(name: str) -> str:
    """Return the path of the index of a file beside which nothing can be written."""
    folder = os.environ.get(CACHE_VARIABLE)
    if not folder:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        folder = os.path.join(base, "atlas-kit", "indexes")
    whole = shown(name) if is_url(name) and local_path(name) is None else os.path.realpath(name)
    return os.path.join(folder, hashlib.sha256(os.fsencode(whole)).hexdigest()[:32] + ".atlas" + ENDING)


def drop_indexes(path: str | os.PathLike[str]) -> list[str]:
    """Remove the indexes of a file of this machine, because something of it was forgotten; return their names."""
    name = os.fspath(path)
    gone = []
    for place in filter(None, (beside(name), cached(name))):
        with contextlib.suppress(OSError):
            os.remove(place)
            gone.append(place)
    return gone
