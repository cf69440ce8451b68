"""Loading a model, by the one engine that there is for files: llama.cpp, imported when the first model is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine


def open_engine(path: str, **options: Any) -> Engine:
    """Load a GGUF model with llama.cpp; see ``LlamaEngine`` for the options.

    Raises
    ------
    MissingExtraError
        When llama-cpp-python is not installed.
    """
    from atlas_kit.llama.llama_engine import LlamaEngine

    return LlamaEngine(path, **options)
