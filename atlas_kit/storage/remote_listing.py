"""What lies in a store: the files below an address, or those that a pattern matches, with size and state.

One request tells of many files, so that a million of them can be listed; none of them is opened.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from atlas_kit.errors import AtlasError, FileAccessError, MissingExtraError, NoSuchFileError
from atlas_kit.storage.remote_stores import CREDENTIALS, Patience, file_system_of, state_of, store_of
from atlas_kit.storage.urls import chain, is_url, shown


@dataclass(frozen=True)
class Listed:
    """One file of a store: its address (``name``), how large it is, and what its state is called."""

    name: str
    size: int | None
    mark: str


def is_pattern(url: str) -> bool:
    """Tell whether an address may stand for several files: ``*`` or ``[``, and ``?`` where it begins no query."""
    first = chain(url)[0]
    if first.lower().startswith("http"):  # before the path may be brackets, behind it anything
        first = re.sub(r"^[^:]+://[^/]*", "", first).partition("?")[0]
    return any(mark in first.rpartition("@")[2] for mark in "*[?")


def stands_for_many(url: str) -> bool:
    """Tell whether an address is a folder's (it ends in ``/``) or a pattern; one that is a file's name is neither."""
    if url.endswith("/"):
        return True
    if not is_pattern(url):
        return False
    if "*" not in url:  # who names a file so? but brackets and question marks are in some
        with contextlib.suppress(AtlasError):
            look(url)
            return False
    return True


def listed(url: str, endings: Iterable[str] = ()) -> Iterator[Listed]:
    """Yield the files that a pattern matches, or those with an ending below an address that ends in ``/``, sorted.

    Raises
    ------
    NoSuchFileError
        There is none.
    FileAccessError
        The store cannot be asked.
    """
    fs, place = file_system_of(url, shown(url))
    whole = not is_pattern(url)
    try:
        found = fs.find(place, detail=True) if whole else fs.glob(place, detail=True)
    except AtlasError:
        raise
    except FileNotFoundError:
        found = {}
    except ImportError:
        raise MissingExtraError("listing a store", "cloud") from None
    except Exception as error:
        why, hint = f"the store refuses ({type(error).__name__})", None
        if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
            why, hint = "permission is denied", CREDENTIALS
        elif isinstance(error, ValueError):
            why = "the address is not a valid one for its store"
        elif isinstance(error, (ConnectionError, TimeoutError)) or "Connect" in type(error).__name__:
            why = "the store cannot be reached"
        raise FileAccessError(f"cannot list: {why}", path=shown(url), hint=hint) from None
    wanted = tuple(endings)
    some = False
    for name, info in sorted(found.items()):
        if (
            info.get("type") == "directory"
            or name.endswith("/")
            or (whole and wanted and not name.lower().endswith(wanted))
        ):
            continue
        some = True
        yield Listed(_whole_name(fs, name, url), _size(info), state_of(info)[0])
    if not some:
        what = "no file is below this address" if whole else "the pattern matches no file"
        raise NoSuchFileError(what, path=shown(url))


def look(url: str) -> Listed:
    """Return size and state of one file, which one request tells."""
    now = store_of(url, Patience(tries=2)).look()
    return Listed(url, now.total, now.state)


def _whole_name(fs: Any, name: str, url: str) -> str:
    parts = chain(url)
    full = name if is_url(name) else str(fs.unstrip_protocol(name))
    scheme = parts[0].split("://", 1)[0]
    if len(parts) == 1 and "://" in full:  # the same scheme as was asked with: gs and gcs are one
        full = f"{scheme}://{full.split('://', 1)[1]}"
    return "::".join([full, *parts[1:]])


def _size(info: dict[str, Any]) -> int | None:
    size = info.get("size")
    return int(size) if size is not None else None
