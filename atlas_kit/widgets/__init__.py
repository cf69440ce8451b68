"""Widgets for notebooks: matrices, files and memories that can be looked at, in JupyterLab, Notebook 7 and VS Code.

In marimo, which shows nothing of ipywidgets, ``FileExplorer`` and ``MatrixView`` are live, and the others are pages
that one can look around in.

The names below are loaded when they are used, so that importing this package needs nothing of the ``notebook`` extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atlas_kit.errors import MissingExtraError
from atlas_kit.lazy_names import lazy_names

if TYPE_CHECKING:
    from atlas_kit.widgets.compare.memory_compare import MemoryCompare
    from atlas_kit.widgets.compare.model_compare import ModelCompare
    from atlas_kit.widgets.explorer.file_explorer import FileExplorer
    from atlas_kit.widgets.figures import use_page_style
    from atlas_kit.widgets.folding import folded
    from atlas_kit.widgets.lab.memory_lab import MemoryLab
    from atlas_kit.widgets.matrix import MatrixView
    from atlas_kit.widgets.playground import CapacityPlayground
    from atlas_kit.widgets.remote import ServerMemory

__all__ = [
    "CapacityPlayground",
    "FileExplorer",
    "MatrixView",
    "MemoryCompare",
    "MemoryLab",
    "ModelCompare",
    "ServerMemory",
    "folded",
    "use_page_style",
]

_HOMES = {
    "CapacityPlayground": ".playground",
    "FileExplorer": ".explorer.file_explorer",
    "MatrixView": ".matrix",
    "MemoryCompare": ".compare.memory_compare",
    "MemoryLab": ".lab.memory_lab",
    "ModelCompare": ".compare.model_compare",
    "ServerMemory": ".remote",
    "folded": ".folding",
    "use_page_style": ".figures",
}
_EXTRA = ("ipywidgets", "anywidget", "traitlets", "matplotlib")

_imported, __dir__ = lazy_names(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    try:
        return _imported(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        raise MissingExtraError(name, "notebook") from error
