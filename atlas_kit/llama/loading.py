"""Loading a model, by the one engine that there is for files (llama.cpp), and taking one of its sequences."""

from __future__ import annotations

import inspect
import os
import threading
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import InvalidParamError

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine

_claiming = threading.Lock()


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


def engine_of(model: Any, options: dict[str, Any]) -> Engine:
    """Return an engine for a model's path, or the engine that it is."""
    if isinstance(model, (str, os.PathLike)):
        return open_engine(os.fspath(model), **options)
    if not hasattr(model, "decode") or not hasattr(model, "info"):
        raise InvalidParamError(f"a model cannot be {model!r}", key="model", hint="Give a path or an engine.")
    engine: Engine = model
    return engine


def claim(engine: Engine) -> int:
    """Take a free sequence of an engine."""
    with _claiming:  # not the engine's own lock, which is held while it decodes
        for sequence in range(engine.n_sequences):
            if sequence not in engine.taken:
                engine.taken.add(sequence)
                return sequence
    raise InvalidParamError(
        f"all {engine.n_sequences} sequences of this model are in use",
        key="n_sequences",
        hint="Close a session, or open the model with more sequences.",
    )
