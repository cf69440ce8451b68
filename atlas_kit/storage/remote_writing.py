"""A new file at an address: written here first, and put into the store whole, or not at all.

What is made of files may have to be read again while it is written, which no store allows; so a temporary file takes
it. Object stores show a file when all of it is there; in others it gets another name first and is then renamed. Where
nothing may be overwritten, the store itself is told so if it can be.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from atlas_kit.errors import AtlasError, FileAccessError, InvalidParamError, MissingExtraError, Remedy
from atlas_kit.storage.remote_stores import (
    CREDENTIALS,
    READ_ONLY,
    file_system_of,
    is_refused_condition,
    room_for,
)
from atlas_kit.storage.urls import chain, last_part, shown

#: Parts of a large file that go at once, and how large they are: so much of it is in main memory.
_PART, _PARTS = 1 << 24, 2
#: Stores that can be told to put a file only where none is.
_CONDITIONAL = frozenset({"s3", "s3a", "gs", "gcs"})
#: Addresses at which there was no file when somebody looked who may not overwrite one.
_FREE: ContextVar[frozenset[str]] = ContextVar("free", default=frozenset())
#: Stores in which a file is there when all of it is.
_WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "hf", "memory"})
#: Stores of which the first part of an address is a bucket.
_BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "oci", "oss"})


def require_writable(url: str, *, force: bool) -> None:
    """Refuse an address that nothing can be written to, or (unless ``force``) at which a file is already.

    Where none is, ``published`` puts one there only if that is so still.

    Raises
    ------
    InvalidParamError, FileAccessError
    """
    scheme = url.split(":", 1)[0].lower()
    if scheme in READ_ONLY or len(chain(url)) > 1:
        raise InvalidParamError(
            f"nothing can be written to an address of the kind {scheme}://", path=shown(url)
        )
    if not last_part(url) or (scheme in _BUCKETS and "/" not in url.split("://", 1)[1].strip("/")):
        raise InvalidParamError("the address of a file ends in its name", path=shown(url))
    if force:
        _FREE.set(_FREE.get() - {url})
        return
    _require_free(url)
    _FREE.set(_FREE.get() | {url})


def _require_free(url: str) -> None:
    with _told(url):
        fs, place = file_system_of(url, shown(url))
        fs.invalidate_cache()
        if fs.exists(place):
            raise _taken(url)


def _taken(url: str) -> FileAccessError:
    return FileAccessError("the file exists already", path=shown(url), remedy=Remedy("overwrite"))


@contextlib.contextmanager
def published(url: str) -> Iterator[str]:
    """Yield a path to write to; when the block ends well, what is there, and beside it, goes to the address.

    Raises
    ------
    FileAccessError
        The store did not take it; then it has what it had before.
    """
    with tempfile.TemporaryDirectory(prefix="atlas-kit-") as folder:
        path = os.path.join(folder, last_part(url) or "output")
        with room_for(shown(url), "write"):
            yield path
        names = sorted(
            os.listdir(folder), key=lambda name: name == os.path.basename(path)
        )  # the file itself last
        for name in names:
            here = os.path.join(folder, name)
            if os.path.isfile(here) and not name.startswith("."):
                if name != os.path.basename(path):
                    put(here, f"{url.rpartition('/')[0]}/{name}")
                else:
                    put(here, url, new=url in _FREE.get())


def put(path: str, url: str, *, new: bool = False) -> None:
    """Put a file of this machine to an address, whole; with ``new``, only if none is there.

    Raises
    ------
    FileAccessError
        The store did not take it, or has a file already.
    """
    scheme = url.split(":", 1)[0].lower()
    with _told(url):
        fs, place = file_system_of(url, shown(url))
        if new and scheme in _CONDITIONAL:
            try:
                _put_whole(fs, path, place, scheme, mode="create")
            except Exception as error:
                if is_refused_condition(error):
                    if _holds(fs, place, path):
                        return  # it is our own write, of which the answer was lost
                    raise _taken(url) from None
                if getattr(error, "errno", None) != errno.ENOSYS:  # else it is like S3, without conditions
                    raise
            else:
                return
        if new:
            _require_free(url)
        if scheme in _WHOLE:
            _put_whole(fs, path, place, scheme)
            return
        folder, _, name = place.rpartition("/")
        with contextlib.suppress(NotImplementedError, FileExistsError):
            fs.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/.{name}.{os.urandom(4).hex()}.tmp"
        try:
            fs.put_file(path, temporary)
            fs.mv(temporary, place)
        except BaseException:
            with contextlib.suppress(Exception):
                fs.rm_file(temporary)
            raise


def _put_whole(fs: Any, path: str, place: str, scheme: str, **options: Any) -> None:
    if scheme in ("s3", "s3a"):
        options |= {"chunksize": _PART, "max_concurrency": _PARTS}
    fs.put_file(path, place, **options)


def _holds(fs: Any, place: str, path: str) -> bool:
    """Tell whether a store has just the bytes of a file of this machine."""
    fs.invalidate_cache()
    if fs.info(place)["size"] != os.path.getsize(path):
        return False
    with fs.open(place, "rb", block_size=_PART) as there, open(path, "rb") as here:
        while piece := here.read(_PART):
            if there.read(len(piece)) != piece:
                return False
    return True


@contextlib.contextmanager
def _told(url: str) -> Iterator[Any]:
    """Turn what a store says against a file into one sentence without addresses and keys."""
    try:
        yield
    except AtlasError:
        raise
    except ImportError:
        raise MissingExtraError("writing to an address", "cloud") from None
    except Exception as error:
        name, hint = type(error).__name__, None
        if isinstance(error, PermissionError) or "Credentials" in name:
            why, hint = "permission is denied", CREDENTIALS
        elif isinstance(error, FileNotFoundError):
            why = "there is no such bucket or folder"
        elif isinstance(error, (ConnectionError, TimeoutError)) or "Connect" in name:
            why = "the store cannot be reached"
        else:
            why = f"the store refuses it ({name})"
        raise FileAccessError(f"cannot write: {why}", path=shown(url), hint=hint) from None
