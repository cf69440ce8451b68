"""The state of a middle layer, which a whitened memory may look at instead of the final one.

The final state is what the next token is told from; a sixth of the layers before that, it still says more of what the
text is about, and keys of it tell places in a text apart better. An engine that gives it puts it behind the final one:
``hidden`` is (n, 2 n_embd) then, for all who ask for states. Once shown it stays, because sessions share the engine;
whoever wants the final state alone cuts it off. Knows neither llama.cpp nor what a memory does with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import ModelError

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine
    from atlas_kit.settings.atlas_settings import AtlasSettings


def middle_of(n_layer: int) -> int:
    """Return the layer whose input is given, of as many layers counted from 0.

    >>> middle_of(30), middle_of(12), middle_of(4)
    (25, 10, 3)
    """
    return max(1, min(n_layer - 1, round(n_layer * 5 / 6)))


def _shown(engine: Engine) -> bool:
    show = getattr(engine, "show_middle", None)
    return show is not None and bool(show())


def fitting(engine: Engine, settings: AtlasSettings) -> AtlasSettings:
    """Return the settings of a new memory beside an engine: on final states where it gives no others."""
    if not settings.looks_inside or _shown(engine):
        return settings
    return settings.replace(states="final")


def require(engine: Engine, settings: AtlasSettings) -> None:
    """Let an engine give what a memory looks at that there is already.

    Raises
    ------
    ModelError
        It cannot.
    """
    if settings.looks_inside and not _shown(engine):
        raise ModelError(
            "this memory looks at states of a middle layer, which are not to be had of this model here: they come with "
            "some builds of llama.cpp, for some architectures, on the processor",
            path=engine.info.path,
        )


def seen(hidden: Array, width: int) -> Array:
    """Return of states (n, at least ``width``) what a memory looks at (n, width).

    Raises
    ------
    ModelError
        The state of a middle layer is missing.
    """
    if hidden.shape[1] == width:
        return hidden
    if hidden.shape[1] < width:
        raise ModelError(
            "this memory looks at states of a middle layer, which the model did not give",
            hint='Use a memory with states="final".',
        )
    return np.ascontiguousarray(hidden[:, :width])
