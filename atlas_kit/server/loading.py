"""The model of a server, loaded by llama.cpp while Python imports what the server is made of.

Imports next to nothing itself, so that loading can begin first. Knows no HTTP.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import TYPE_CHECKING, Any

from atlas_kit.background import start_thread
from atlas_kit.errors import InvalidParamError

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine
    from atlas_kit.server.config import ServerConfig

#: The option of glibc's mallopt that says how many arenas there may be.
M_ARENA_MAX = -8


def share_one_heap() -> None:
    """Let all threads take memory from one heap, unless ``MALLOC_ARENA_MAX`` says something else.

    glibc gives threads heaps of their own, of which each keeps what was free in it at its fullest. A memory's arrays
    are made on one thread and freed on another: with fifty sessions on the sample model the process took 329 MB, and
    takes 246 MB so. Other C libraries have no such option.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


class Loading:
    """Loads the model that is configured, from now on, on a thread of its own."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._model: Any = None
        self._error: BaseException | None = None
        if not config.model:
            raise InvalidParamError("no model is named", key="model", hint="Name a GGUF file.")
        # in this thread: once llama.cpp is at work it does not need the interpreter, which the caller keeps busy
        from atlas_kit.llama.llama_context import Wanted, prepare
        from atlas_kit.llama.llama_library import LoadedModel, library
        from atlas_kit.llama.model_file import ModelFile

        self._load, self._file, self._prepare = LoadedModel, ModelFile(config.model), prepare
        self._context: dict[str, Any] = {
            "n_ctx": config.n_ctx_slot or None, "n_sequences": config.n_parallel, "n_threads": config.n_threads,
            "n_batch": config.n_batch,
        }  # fmt: skip
        self._wanted = Wanted(**{name: one for name, one in self._context.items() if one is not None})
        library()
        share_one_heap()  # before there are threads
        self._thread = start_thread(self._work, name="atlas-loading", stop=lambda: None)

    def _work(self) -> None:
        config = self._config
        more: dict[str, Any] = {} if config.n_gpu_layers is None else {"n_gpu_layers": config.n_gpu_layers}
        try:
            self._model = self._load(config.model, check_later=True, file=self._file, **more)
            self._prepare(self._model, self._wanted)
        except BaseException as error:  # whoever waits is told
            self._error = error

    def engine(self) -> Engine:
        """Return the engine, once the model is loaded.

        Raises
        ------
        AtlasError
            The model cannot be loaded.
        """
        from atlas_kit.llama.loading import open_engine

        config = self._config
        options = {**self._context, "sleeps": config.sleep_idle_seconds >= 0 or None}
        self._thread.join()
        if self._error is not None:
            if self._model is not None:
                self._model.close()
            raise self._error
        given = {name: one for name, one in options.items() if one is not None}
        return open_engine(config.model, loaded=self._model, **given)


def load_engine(config: ServerConfig) -> Engine:
    """Load the model that is configured, with llama.cpp.

    Raises
    ------
    AtlasError
        It cannot be loaded, or none is named.
    """
    return Loading(config).engine()
