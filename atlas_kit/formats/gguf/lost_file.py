"""The lost-and-found file beside a mended model, ``OUT.lost.json``: what could not be kept, byte for byte.

It is written piece by piece, so that a tensor of any size fits into it, and it is there if and only if
something was lost: one from an earlier repair does not stay beside a new output. Knows nothing of mending.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atlas_kit.errors import printable
from atlas_kit.storage.atomic import atomic_write
from atlas_kit.storage.source import StrPath

_SUFFIX, _LONGEST = ".lost.json", 255
#: Whole groups of three bytes become whole groups of four letters.
_PIECE = 3 << 18


@dataclass
class Lost:
    """One thing that is not in the output.

    ``facts`` say what it is, as JSON; ``data`` yields its bytes (as many as there are), ``None`` where there
    are none to keep.
    """

    facts: dict[str, Any]
    data: Iterable[bytes | memoryview] | None = field(default=None, repr=False)


def lost_name(out: StrPath) -> Path:
    """Return where the lost-and-found file of an output is."""
    path = Path(os.fsdecode(out))
    raw = os.fsencode(path.name)[
        : _LONGEST - len(_SUFFIX)
    ]  # a long name is cut, as no file system takes more
    return path.with_name(os.fsdecode(raw) + _SUFFIX)


def write_lost(out: StrPath, path: str | None, lost: Sequence[Lost]) -> str | None:
    """Write the lost-and-found file of ``out``, or remove an old one where nothing was lost; return its name.

    ``path`` is the damaged file.
    """
    place = lost_name(out)
    if not lost:
        with contextlib.suppress(FileNotFoundError):
            place.unlink()
        return None
    with atomic_write(place) as file:
        name = json.dumps(None if path is None else printable(path))
        file.write(f'{{\n "file": {name},\n "lost": ['.encode())
        for number, item in enumerate(lost):
            file.write(b",\n  " if number else b"\n  ")
            facts = json.dumps(item.facts)
            if item.data is None:
                file.write(facts.encode())
                continue
            file.write(f'{facts[:-1]}{", " if item.facts else ""}"base64": "'.encode())
            for piece in _in_groups(item.data):
                file.write(base64.b64encode(piece))
            file.write(b'"}')
        file.write(b"\n ]\n}\n")
    return os.fspath(place)


def _in_groups(data: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Yield the same bytes in pieces whose sizes are multiples of three, but for the last."""
    held = bytearray()
    for piece in data:
        held += piece
        if len(held) >= _PIECE:
            whole = len(held) - len(held) % 3
            yield bytes(held[:whole])
            del held[:whole]
    yield bytes(held)
