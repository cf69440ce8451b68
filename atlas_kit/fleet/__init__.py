"""Many files at once: one operation on each of them, over processes of this machine or a Dask cluster.

``scan`` gives a table of metadata; ``run_fleet`` is what the command line's ``--workers`` does. A thin layer: what is
done to a file is an operation's business, where files lie is the storage's, and a cluster is Dask's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlas_kit.fleet.running import run_fleet
    from atlas_kit.fleet.scanning import scan
    from atlas_kit.fleet.tasks import Task

__all__ = ["Task", "run_fleet", "scan"]

_HOMES = {"Task": "tasks", "run_fleet": "running", "scan": "scanning"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"atlas_kit.fleet.{_HOMES[name]}"), name)
