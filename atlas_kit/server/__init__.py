"""An OpenAI-compatible server whose memory outlives a restart: ``serve``, and ``create_app`` for other hosts.

Needs the ``[serve]`` extra. Nothing here is imported before somebody asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kit.lazy_names import lazy_names

if TYPE_CHECKING:
    from atlas_kit.server.app import create_app as create_app
    from atlas_kit.server.config import ServerConfig as ServerConfig
    from atlas_kit.server.run import serve as serve
    from atlas_kit.server.service import Service as Service

_HOMES = {
    "ServerConfig": "atlas_kit.server.config",
    "Service": "atlas_kit.server.service",
    "create_app": "atlas_kit.server.app",
    "serve": "atlas_kit.server.run",
}
__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
