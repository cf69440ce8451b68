"""One engine for each model's file in this process, whichever labs read: a cell that is run again loads nothing.

An engine is counted: it is closed when the last lab that took it has given it back. Knows labs by nothing but that.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.llama.loading import open_engine

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine


@dataclass
class _Open:
    """An engine, what it was opened with, and how many have it."""

    engine: Engine
    options: dict[str, Any]
    count: int = 0


_lock = threading.RLock()
_open: dict[tuple[int, ...], _Open] = {}


class Loan:
    """An engine for a model's file, which is the same for all who ask with the same options.

    Parameters
    ----------
    path
        Of the model; a link to it is the same model.
    options
        For loading, as ``open_engine`` takes them.
    clear
        Is called where the file is open with other options, and has those who took it give it back.

    Raises
    ------
    AtlasError
        The model cannot be loaded.
    """

    def __init__(
        self, path: str | os.PathLike[str], options: dict[str, Any], clear: Callable[[Engine], None]
    ) -> None:
        with _lock:
            key = _identity(path)
            found = None if key is None else _open.get(key)
            if found is not None and found.options != options:
                clear(found.engine)
                found = None
            if found is None:
                found = _Open(open_engine(os.fspath(path), **options), dict(options))
                if key is not None:
                    _open[key] = found
            found.count += 1
            self._found: _Open | None = found
            self.engine = found.engine

    def give_back(self) -> None:
        """Have it no longer; the last one closes the engine. Giving it back twice is fine."""
        with _lock:
            found, self._found = self._found, None
            if found is None:
                return
            found.count -= 1
            if found.count:
                return
            for key in [key for key, one in _open.items() if one is found]:
                del _open[key]
        found.engine.close()


def in_use() -> int:
    """Return how many engines are open."""
    with _lock:
        return len(_open)


def _identity(path: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """Return what tells one file from another, and from what it was before it was written anew."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None  # opening it says what is wrong
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
