"""Which files a fleet works on: names, patterns and folders, here and in stores, each with its size and state.

Nothing is opened; what is listed is enough to know later whether a file is still the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from atlas_kit.errors import InvalidParamError
from atlas_kit.operations.validate import SUFFIXES, expand
from atlas_kit.storage.urls import is_url, local_path, shown

#: Stores are asked for so many files at once.
_AT_ONCE = 16


@dataclass(frozen=True)
class FleetFile:
    """One file: its name as it is opened and as it is shown, its size and what its state is called, if known."""

    name: str = field(repr=False)  # may have a password in it, or a signature
    path: str
    size: int | None = None
    mark: str = ""
    #: The file that it is compared with, or what it is made into, below the folder for all.
    other: str = field(default="", repr=False)


def found(names: Sequence[str], endings: Sequence[str] = SUFFIXES) -> Iterator[FleetFile]:
    """Yield the files that names stand for: themselves, what patterns match, what is below folders; none twice.

    Raises
    ------
    NoSuchFileError
        A pattern matches nothing, or a folder holds nothing of a known kind.
    """
    seen: set[str] = set()
    for name in names:
        for file in _of(name, endings):
            if file.name not in seen:
                seen.add(file.name)
                yield file


def told_apart(files: Sequence[FleetFile]) -> list[FleetFile]:
    """Return files of which no two are shown in the same way: addresses may differ only in what is not shown.

    Then a few letters stand for that, which are the same in the next run.
    """
    names: dict[str, set[str]] = {}
    for file in files:
        names.setdefault(file.path, set()).add(file.name)
    return [
        file
        if len(names[file.path]) < 2
        else replace(file, path=f"{file.path}?...{hashlib.sha256(file.name.encode()).hexdigest()[:8]}")
        for file in files
    ]


def all_current(files: Sequence[FleetFile]) -> list[FleetFile]:
    """Return files with their present sizes and states; stores are asked for several at once."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(current, files))


def _of(name: str, endings: Sequence[str]) -> Iterator[FleetFile]:
    path = local_path(name) if is_url(name) else name
    if path is None:
        from atlas_kit.storage.remote_listing import listed, stands_for_many

        if stands_for_many(name):
            for one in listed(name, endings):
                yield FleetFile(one.name, shown(one.name), one.size, one.mark)
        else:
            yield FleetFile(name, shown(name))
        return
    for each in expand([path]):
        yield here(each)


def here(path: str) -> FleetFile:
    """Return a file of this machine; one that cannot be looked at is somebody's finding later."""
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        return FleetFile(path, path)
    return FleetFile(path, path, info.st_size, str(info.st_mtime_ns))


def current(file: FleetFile) -> FleetFile:
    """Return a file with its present size and state, asking its store if it was only named."""
    if file.mark or not is_url(file.name) or local_path(file.name) is not None:
        return file
    from atlas_kit.errors import AtlasError
    from atlas_kit.storage.remote_listing import look

    try:
        now = look(file.name)
    except AtlasError:
        return file
    return replace(file, size=now.size, mark=now.mark)


def pairs(first: str, second: str) -> Iterator[FleetFile]:
    """Yield the files below two folders (or addresses that end in ``/``) by what they are called in both.

    One that is in the second only has an empty ``name``, one in the first only an empty ``other``.
    """
    left, right = (
        {relative(file.path, place): file for file in found([_folder(place)])} for place in (first, second)
    )
    for name in sorted({*left, *right}):
        a, b = left.get(name), right.get(name)
        if a is None and b is not None:
            yield FleetFile("", b.path, b.size, b.mark, b.name)
        elif a is not None:
            marks = f"{a.mark}|{b.mark}" if b else a.mark
            yield FleetFile(a.name, a.path, a.size, marks, b.name if b else "")


def _folder(place: str) -> str:
    return place if not is_url(place) or place.endswith("/") else f"{place}/"


def relative(path: str, folder: str) -> str:
    """Return what a file is called below a folder, with slashes."""
    if is_url(path):
        return path.removeprefix(shown(_folder(folder)))
    return os.path.relpath(path, folder).replace(os.sep, "/")


def placed(files: Sequence[FleetFile], folder: str) -> list[FleetFile]:
    """Return files with what each is made into below a folder: its name below the deepest one that holds all.

    One whose name would lead out of the folder (a key of a store may have ``..`` in it) gets an empty ``other``.

    Raises
    ------
    InvalidParamError
        Two would be made into the same file.
    """
    cut = [_parts(file.path) for file in files]
    depth = 0
    for same in zip(*(parts[:-1] for parts in cut), strict=False):
        if len(set(same)) > 1:
            break
        depth += 1
    made = []
    taken: dict[str, str] = {}
    for file, parts in zip(files, cut, strict=True):
        name = "/".join(parts[depth:])
        if "." in parts[depth:] or ".." in parts[depth:]:
            name = ""
        elif (before := taken.setdefault(_key(name, folder), file.path)) != file.path:
            raise InvalidParamError(
                f"{before} would be written to the same file",
                path=file.path,
                hint="Do one of them by itself.",
            )
        made.append(replace(file, other=name))
    return made


def _parts(path: str) -> list[str]:
    """Return the folders, and last the name, on the way to a file; of an address its scheme is the first."""
    if is_url(path):
        scheme, _, rest = path.partition("://")
        return [scheme, *rest.split("/")]
    return os.path.abspath(path).strip(os.sep).split(os.sep)


def _key(name: str, folder: str) -> str:
    return name if is_url(folder) else os.path.normpath(name).lstrip("/")
