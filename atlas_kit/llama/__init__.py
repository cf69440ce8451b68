"""Any GGUF model with an ATLAS memory beside it: ``AtlasSession`` and what it stands on.

Nothing here imports llama.cpp until a model is loaded (the ``[llama]`` extra).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kit.lazy_names import lazy_names

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine as Engine
    from atlas_kit.llama.engine import ModelInfo as ModelInfo
    from atlas_kit.llama.fake_engine import FakeEngine as FakeEngine
    from atlas_kit.llama.loading import open_engine as open_engine
    from atlas_kit.llama.pool import SessionPool as SessionPool
    from atlas_kit.llama.sampling import Sampling as Sampling
    from atlas_kit.llama.scheduler import Scheduler as Scheduler
    from atlas_kit.llama.session import AtlasSession as AtlasSession
    from atlas_kit.llama.snapshots import Snapshots as Snapshots
    from atlas_kit.llama.trace import Trace as Trace
    from atlas_kit.settings.atlas_settings import AtlasSettings as AtlasSettings

_HOMES = {
    "AtlasSession": "atlas_kit.llama.session",
    "AtlasSettings": "atlas_kit.settings.atlas_settings",
    "Engine": "atlas_kit.llama.engine",
    "FakeEngine": "atlas_kit.llama.fake_engine",
    "ModelInfo": "atlas_kit.llama.engine",
    "SessionPool": "atlas_kit.llama.pool",
    "Sampling": "atlas_kit.llama.sampling",
    "Scheduler": "atlas_kit.llama.scheduler",
    "Snapshots": "atlas_kit.llama.snapshots",
    "Trace": "atlas_kit.llama.trace",
    "open_engine": "atlas_kit.llama.loading",
}
__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
