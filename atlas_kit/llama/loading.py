"""Loading a model, by the one engine that there is for files: llama.cpp, imported when the first model is."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import InvalidParamError

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine


def open_engine(path: str, **options: Any) -> Engine:
    """Load a GGUF model with llama.cpp; see ``LlamaEngine`` for the options.

    Raises
    ------
    MissingExtraError
        When llama-cpp-python is not installed.
    InvalidParamError
        When there is no such option.
    """
    from atlas_kit.llama.llama_engine import LlamaEngine

    known = [name for name in inspect.signature(LlamaEngine).parameters if name != "path"]
    for name in options:
        if name not in known:
            raise InvalidParamError(
                f"there is no option {name!r} for loading a model", key="engine_options",
                hint=f"Options: {', '.join(known)}.",
            )  # fmt: skip
    return LlamaEngine(path, **options)
