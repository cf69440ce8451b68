"""A session's memory in a ``.atlas`` file: what is written beside the memory, and how it is found again.

The memory itself is ``persistence/snapshot.py``'s. Beside it, in its metadata under ``runtime``: the settings, what
waits for its step, and the context; the engine's own copy of the context is an entry of its own.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import (
    AtlasError,
    FileCorruptError,
    InvalidParamError,
    NoSuchFileError,
    VersionMismatchError,
)
from atlas_kit.persistence.snapshot import load_memory, save_memory
from atlas_kit.settings.atlas_settings import AtlasSettings, settings_table

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.token_memory import TokenMemory


#: The entry that holds llama.cpp's own bytes of a context.
CONTEXT_KEY = "runtime/context"
VERSION = 1


class OpenSession(Protocol):
    """What is saved of a session, and what takes it back: ``AtlasSession``, which knows more."""

    engine: Engine
    memory: TokenMemory | None
    sequence: int
    backend: str

    @property
    def position(self) -> int:
        """Where the next token will stand in the model's context."""

    @property
    def context_tokens(self) -> tuple[int, ...]:
        """The tokens in the model's context."""

    def open_output(self) -> dict[str, Array]:
        """Return the last token's output, from which the next is predicted."""

    def adopt(
        self,
        memory: TokenMemory,
        tokens: Sequence[int],
        position: int,
        output: dict[str, Array],
        context: bytes | None,
    ) -> None:
        """Take over a memory and, if there are ``tokens``, the context that it was saved with."""


def choose(
    engine: Engine, memory: Any, changes: Mapping[str, Any]
) -> tuple[AtlasSettings | None, str | None]:
    """Return the settings of the memory that is asked for (None: no memory), and the file to load it from."""
    if memory is None or memory is False:
        if changes:
            raise InvalidParamError(
                f"{', '.join(changes)} make no sense without a memory", key="memory", hint="Try memory=True."
            )
        return None, None
    if isinstance(memory, AtlasSettings):
        return memory.replace(**changes), None
    if memory == "auto":
        from atlas_kit.settings.recommend import recommend

        return recommend(engine.info.path).settings.replace(**changes), None
    if memory is True:
        settings, sidecar = of_native(engine)
        if sidecar is not None and not os.path.lexists(sidecar):
            raise NoSuchFileError(
                "the learned memory that the model asks for is not there", path=sidecar,
                hint="Put it beside the model, or name another memory or none.",
            )  # fmt: skip
        return (settings or AtlasSettings()).replace(**changes), sidecar
    if isinstance(memory, (str, os.PathLike)):
        path = os.fspath(memory)
        return settings_of(path).replace(**changes), path
    raise InvalidParamError(
        f"a memory cannot be {memory!r}", key="memory", hint='Give True, "auto", AtlasSettings or a path.'
    )


def of_native(engine: Engine) -> tuple[AtlasSettings | None, str | None]:
    """Return what an ATLAS-native model asks for: settings, and the file of a learned memory; None for any other."""
    if not Path(engine.info.path).is_file():
        return None, None
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.settings.native import native_settings

    with GGUFFile.open(engine.info.path) as file:
        return native_settings(file)


def settings_of(path: str, **secret: Any) -> AtlasSettings:
    """Return the settings of the memory in a file; ``secret`` is a passphrase or a key, where it is encrypted.

    Raises
    ------
    AtlasError
        When the file holds no memory, or one that was not made by a session.
    """
    from atlas_kit.persistence.snapshot import describe_memory

    description = describe_memory(path, **secret)
    runtime = description.metadata.get("runtime")
    if not isinstance(runtime, dict) or not isinstance(runtime.get("settings"), dict):
        raise InvalidParamError(
            "the memory in this file was not made beside a language model", path=path, key="runtime"
        )
    if runtime.get("version") != VERSION:
        raise VersionMismatchError(
            f"what belongs to the session is of version {runtime.get('version')!r}, not {VERSION}",
            path=path,
            key="runtime",
        )
    known = {row.name for row in settings_table()}
    try:
        return AtlasSettings.from_json({k: v for k, v in runtime["settings"].items() if k in known})
    except AtlasError as error:
        error.path = path
        raise


def save(session: OpenSession, path: str | os.PathLike[str], *, context: bool, **options: Any) -> Any:
    """Write a session's memory; see ``AtlasSession.save``."""
    memory = session.memory
    if memory is None:
        raise InvalidParamError("this session has no memory to save", path=path, hint="Try memory=True.")
    info = session.engine.info
    runtime: dict[str, Any] = {
        "version": VERSION,
        "model": {"name": info.name, "architecture": info.architecture, "identity": info.identity},
        "settings": memory.settings.to_json(),
        "waiting": {name: _packed(array) for name, array in memory.waiting().items()},
    }
    entries: dict[str, bytes | None] = {CONTEXT_KEY: None}  # None: an older one is removed
    if context and session.context_tokens:
        runtime["context"] = list(session.context_tokens)
        runtime["position"] = session.position
        runtime["open"] = {name: _packed(array) for name, array in session.open_output().items()}
        data = entries[CONTEXT_KEY] = session.engine.save_sequence(session.sequence)
        # Loading lays the cache out anew, and sums of float16 depend on their order: so that going on and loading
        # give the same tokens, this session goes on from what it saved, too.
        session.engine.load_sequence(session.sequence, data)
    metadata = {"runtime": runtime, **options.pop("metadata", {})}
    return save_memory(
        path,
        memory.memory,
        memory.state,
        metadata=metadata,
        model_hash=info.identity,
        entries=entries,
        **options,
    )


def load(
    session: OpenSession, path: str | os.PathLike[str], *, context: bool, force: bool, **options: Any
) -> None:
    """Read a session's memory; see ``AtlasSession.load``."""
    path = os.fspath(path)
    memory, runtime = token_memory(session.engine, path, backend=session.backend, force=force, **options)
    with _about_session(path):
        tokens, output = _context_of(runtime) if context else ([], {})
        position = int(runtime.get("position", len(tokens)))
        # another model's cache is of no use, though it may have the same shape
        own = dict(runtime.get("model", {})).get("identity") == session.engine.info.identity
        output = output if own else {}
        saved = _engine_bytes(path, _secret(options)) if output else None
        session.adopt(memory, tokens, position, output, saved)


def token_memory(
    engine: Engine,
    path: str | os.PathLike[str],
    *,
    backend: str = "numpy",
    force: bool = False,
    **options: Any,
) -> tuple[TokenMemory, dict[str, Any]]:
    """Return the memory in a file, beside a model, and what else its session kept.

    ``options`` are those of ``load_memory``.

    Raises
    ------
    WrongModelError
        When it is another model's, unless ``force``.
    AtlasError
        When the file is damaged or does not fit.
    """
    from atlas_kit.llama.token_memory import TokenMemory

    path = os.fspath(path)
    settings = settings_of(path, **_secret(options))
    loaded = load_memory(
        path, expect_model_hash=engine.info.identity, force=force, backend=backend, **options
    )
    memory = TokenMemory(engine.output_rows(), settings, backend)
    runtime = loaded.metadata["runtime"]
    with _about_session(path):
        _require_fit(memory, loaded.memory.config)
        waiting = {name: _unpacked(value) for name, value in dict(runtime.get("waiting", {})).items()}
        memory.restore(loaded.state, waiting)
    return memory, runtime


@contextlib.contextmanager
def _about_session(path: str) -> Iterator[None]:
    """Turn what goes wrong with a session's own data into a sentence about the file."""
    try:
        yield
    except AtlasError as error:
        error.path = error.path or path
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise FileCorruptError(
            f"what belongs to the session is damaged: {error}", path=path, key="runtime",
            hint="Load the memory without its context: context=False.",
        ) from error  # fmt: skip


def _require_fit(memory: Any, config: Any) -> None:
    expected = memory.memory.config
    for name in ("d_k", "d_v"):
        if getattr(config, name) != getattr(expected, name):
            raise InvalidParamError(
                f"the memory corrects states of {getattr(config, name)} numbers, the model's have "
                f"{getattr(expected, name)}",
                key=name,
                hint="This memory belongs to another model.",
            )
    if config != expected:
        raise InvalidParamError("the memory is not of the kind that its settings say", key="runtime")


def _context_of(runtime: Mapping[str, Any]) -> tuple[list[int], dict[str, Array]]:
    tokens = [int(token) for token in runtime.get("context", ())]
    output = dict(runtime.get("open", {}))
    return tokens, {name: _unpacked(value, least=-np.inf) for name, value in output.items()}


def _secret(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("passphrase", "key") if options.get(name) is not None}


def _engine_bytes(path: str, secret: Mapping[str, Any]) -> bytes | None:
    from atlas_kit.formats.atlas import MemoryFile

    with MemoryFile.open(path, **secret) as file:
        return bytes(file.get(CONTEXT_KEY).data) if CONTEXT_KEY in file else None


def _packed(array: Array) -> dict[str, Any]:
    """Return an array as JSON values, bit by bit."""
    array = np.asarray(array, order="C")  # `ascontiguousarray` would give a number an axis
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    data = base64.b64encode(little.tobytes()).decode("ascii")
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def _unpacked(value: Mapping[str, Any], least: float | None = None) -> Array:
    """Return the array that ``_packed`` took apart; ValueError for anything else.

    ``least``: -inf where that is a number too, as for the logit of a token that the model rules out.
    """
    dtype = np.dtype(str(value["dtype"]))
    if dtype.kind not in "iuf":
        raise ValueError(f"an array of {dtype}")
    try:
        raw = base64.b64decode(value["data"], validate=True)
    except binascii.Error as error:
        raise ValueError("an array that is not base64") from error
    array: Array = np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype)
    if dtype.kind == "f" and not (np.isfinite(array) | (array == least)).all():
        raise ValueError("an array with NaN or infinity")
    return array.reshape([int(n) for n in value["shape"]])
