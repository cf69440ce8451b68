"""Names of a package that are imported the first time that somebody asks for them (PEP 562).

Knows no package: each hands over a table of its names and the modules that they live in.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str], *own: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package whose names live in the modules ``homes``.

    Modules are named in full, or from the package on with a dot in front; ``own`` are public names that the package
    has without them.
    """

    def getattr_(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home, package), name)

    def dir_() -> list[str]:
        return sorted({*homes, *own})

    return getattr_, dir_
