"""Double-click in JupyterLab and Notebook 7: ``.atlas`` and ``.gguf`` files open in the explorer.

An extension of the server, which answers what the explorer asks about a file below its root, and an extension of
the Lab, written by hand as plain JavaScript. The wheel puts both where Jupyter looks; nothing is built.
Knows nothing of widgets and kernels, and imports Jupyter's server only when that loads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp

__all__: list[str] = []


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "atlas_kit.jupyter"}]


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "atlas-kit"}]


def _load_jupyter_server_extension(app: ServerApp) -> None:
    from atlas_kit.jupyter.handlers import handlers

    web_app = app.web_app
    web_app.add_handlers(".*$", handlers(web_app.settings["base_url"]))  # type: ignore[no-untyped-call]
