"""How a session's state lies in a ``.atlas`` file: written and read whole, from one opened file.

The memory itself is ``snapshot``'s. Beside it, in its metadata under ``runtime``: the settings, what waits for its
step, and the context (``tables.RUNTIME_FIELDS``); the engine's own copy of the context is an entry of its own, and so
are the texts that were read. The episodes are ``episode_entries``'. Needs neither session nor engine. Follows
``formats/atlas-session.md``.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import (
    AtlasError,
    ConflictError,
    FileCorruptError,
    InvalidParamError,
    VersionMismatchError,
    WrongModelError,
)
from atlas_kit.persistence.entry_keys import CONTEXT, TEXTS
from atlas_kit.persistence.session_state import SessionState, require_identity
from atlas_kit.storage.given import Given, StrPath

if TYPE_CHECKING:
    from atlas_kit.episodes import EpisodeArrays
    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.persistence.snapshot import LoadedMemory, MemoryDescription
    from atlas_kit.storage.keys import Keys

#: Where a file's metadata says when text was last forgotten from it on purpose, in milliseconds since 1970.
FORGOTTEN = "forgotten_ms"
#: How often a file is opened at most that is touched while it is read.
OPENS = 4


def write_session_state(
    path: StrPath,
    state: SessionState,
    *,
    metadata: Mapping[str, Any] | None = None,
    read_from: MemoryFile | None = None,
    **options: Any,
) -> MemoryDescription:
    """Write a state into a ``.atlas`` file; other entries of the file stay, and it is replaced whole.

    It may be written by another thread than the session's, which goes on meanwhile.

    Parameters
    ----------
    path
        The file.
    metadata
        Whatever JSON can say that should stay beside it.
    read_from
        The opened file that the state was read from: nothing is written over what somebody else has saved since.
    options
        Those of ``save_memory``: ``version``, ``codec``, ``dtype``, ``backup``, ``passphrase`` and others.

    Raises
    ------
    WrongModelError
        When the file holds the memory of another model, unless ``force=True``.
    ConflictError
        When somebody else has written to ``read_from`` meanwhile.
    InvalidParamError
        When the state was put together by hand and could not be read back.
    """
    from atlas_kit.persistence.snapshot import save_memory

    beside = _in_file(state, metadata, options)
    put = beside.pop("further")

    def further(file: MemoryFile) -> bool:
        if read_from is not None and _place_of(file) != _place_of(read_from):
            raise ConflictError(
                "another process changed the file since it was read", path=file.path, hint="Try again."
            )
        return bool(put(file))

    return save_memory(path, state.config, state.memory, further=further, **beside, **options)


def _place_of(file: MemoryFile) -> tuple[int, ...] | None:
    """Return what changes whenever a file is replaced or written to: of an opened one, as it was then."""
    return None if file.store is None else file.store.source.identity


def forgotten_at(path: StrPath, keys: Keys) -> int:
    """Return when text was last forgotten from a memory's file on purpose, in milliseconds since 1970; 0: never.

    Raises
    ------
    AtlasError
        It cannot be read, or is no memory's.
    """
    from atlas_kit.formats.opening import open_memory
    from atlas_kit.persistence.snapshot import describe_memory

    with open_memory(path, keys) as file:
        found = describe_memory(file).metadata.get(FORGOTTEN)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def save_episodes(
    path: StrPath,
    episodes: EpisodeArrays,
    *,
    identity: str,
    codec: str | None = None,
    level: int | None = None,
    passphrase: str | bytes | None = None,
    key: bytes | None = None,
) -> None:
    """Write what was read and said into a memory's file, and leave the rest of it as it is: quick, for it appends.

    The memory in it may be of a moment before. A file that does not exist is made; it has no memory yet.

    Parameters
    ----------
    path, episodes
        Where, and what.
    identity
        Of the model whose tokens they are.
    codec, level
        How to store them: ``none``, ``lz4``, ``zlib`` or ``zstd`` (versions 2 and 3).
    passphrase, key
        The secret of a version 3 file.

    Raises
    ------
    WrongModelError
        The file is another model's.
    InvalidParamError
        The episodes contradict themselves.
    """
    from atlas_kit.formats.opening import edit_memory
    from atlas_kit.persistence.episode_entries import put_episodes
    from atlas_kit.persistence.snapshot import is_small_change
    from atlas_kit.storage.keys import Keys, passphrase_bytes

    require_identity(identity)
    keys = Keys(None if passphrase is None else passphrase_bytes(passphrase), key)
    new = not os.path.lexists(path)
    with edit_memory(path, keys, create=new, version=3 if keys.given else 2) as file:
        if any(file.model_hash) and file.model_hash != bytes.fromhex(identity):
            raise WrongModelError(file.model_hash, bytes.fromhex(identity), path=os.fspath(path))
        if file.model_hash != bytes.fromhex(identity):
            file.model_hash = identity
        grown = put_episodes(file, episodes, codec=codec, level=level)
        if not new and not (grown and is_small_change(file)):
            file.save()  # whole: what went is to be gone, and updates are not to pile up


def session_state_bytes(
    state: SessionState, *, metadata: Mapping[str, Any] | None = None, **options: Any
) -> bytes:
    """Return the file that `write_session_state` would make anew, without any disk.

    Parameters
    ----------
    metadata
        Whatever JSON can say that should stay beside it.
    options
        Those of ``memory_bytes``: ``optimizer``, ``window``, ``dtype``, ``codec``, ``level``.

    Raises
    ------
    InvalidParamError
        When the state was put together by hand and could not be read back.
    """
    from atlas_kit.persistence.snapshot import memory_bytes

    return memory_bytes(state.config, state.memory, **_in_file(state, metadata, options), **options)


def _in_file(
    state: SessionState, metadata: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what lies beside the memory in a file."""
    from atlas_kit.persistence.episode_entries import put_episodes

    def further(file: MemoryFile) -> bool:
        before = file.store
        gone = before is not None and any(
            before.find(key) is not None and key not in file for key in (CONTEXT, TEXTS)
        )
        how = {name: options.get(name) for name in ("codec", "level")}
        return put_episodes(file, state.episodes, **how) and not gone  # what was to go is to be gone

    return {
        "further": further,
        "metadata": {"runtime": _runtime(state), **(metadata or {})},
        "model_hash": state.identity or None,
        "entries": {  # None: an older one is removed
            CONTEXT: state.context if state.tokens else None,
            TEXTS: packed_texts(state.texts) if state.texts else None,
        },
    }


def _runtime(state: SessionState) -> dict[str, Any]:
    """Return what is kept in the metadata.

    Raises
    ------
    InvalidParamError
        A session would not give that.
    """
    from atlas_kit.persistence.tables import RUNTIME_VERSION

    _require_sound(state)
    runtime: dict[str, Any] = {
        "version": RUNTIME_VERSION,
        "model": {"name": state.model, "architecture": state.architecture, "identity": state.identity},
        "settings": dict(state.settings),
        "waiting": {name: packed(array) for name, array in state.waiting.items()},
    }
    if state.tokens:
        runtime["context"] = [int(token) for token in state.tokens]
        runtime["position"] = int(state.position)
        runtime["open"] = {name: packed(array) for name, array in state.output.items()}
        if state.context is not None and state.build:
            runtime["build"] = state.build
    return runtime


def _require_sound(state: SessionState) -> None:
    from atlas_kit.persistence.tables import OPEN, WAITING

    require_identity(state.identity)
    for name, kinds in _KINDS.items():
        value = getattr(state, name)
        if not isinstance(value, kinds):
            raise _odd(name, f"it is of type {type(value).__name__}")
    if not all(isinstance(token, (int, np.integer)) and 0 <= token < 1 << 31 for token in state.tokens):
        raise _odd("tokens", "one of them is no token")
    # a context that is endless keeps the last of its tokens
    if isinstance(state.position, bool) or not len(state.tokens) <= state.position < 1 << 63:
        raise _odd("position", f"it is {state.position}, and {len(state.tokens)} tokens stand before it")
    if state.output and set(state.output) != {row.name for row in OPEN}:
        raise _odd("output", f"it has {', '.join(map(repr, state.output))}")
    if state.episodes is not None:
        from atlas_kit.episodes import EpisodeArrays

        if not isinstance(state.episodes, EpisodeArrays):
            raise _odd("episodes", f"it is of type {type(state.episodes).__name__}")
    known = {row.name for row in WAITING}
    if unknown := [name for name in state.waiting if name not in known]:
        raise _odd("waiting", f"there is no array {unknown[0]!r} in it")
    for name, arrays, least in (("waiting", state.waiting, None), ("output", state.output, -np.inf)):
        try:
            kept = {key: unpacked(packed(array), least) for key, array in arrays.items()}
            if name == "waiting":
                _require_aligned(kept)
        except (TypeError, ValueError) as error:
            raise _odd(name, str(error)) from error


#: What the parts of a state are, where its arrays are not meant.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "tokens": (tuple, list),
    "position": (int, np.integer),
    "output": Mapping,
    "waiting": Mapping,
    "settings": Mapping,
    "context": (bytes, type(None)),
    "model": str,
    "architecture": str,
    "build": str,
}


def _odd(name: str, why: str) -> InvalidParamError:
    return InvalidParamError(
        f"the {name} of this state cannot be kept: {why}",
        key=name,
        hint="Write what session.state() returned.",
    )


def read_session_state(
    given: Given | MemoryFile,
    *,
    context: bool = True,
    episodes: bool = True,
    expect_model: str | None = None,
    force: bool = False,
    passphrase: str | bytes | None = None,
    key: bytes | None = None,
    **options: Any,
) -> SessionState:
    """Read a state; all of it comes from one opened file, whatever takes its place meanwhile.

    A path is opened once more where the file was touched while it was read: whatever that was, it is over by then.

    Parameters
    ----------
    given
        The file by path, its bytes, or an opened one, which stays open.
    context
        False: without the context, also where that is damaged.
    episodes
        False: without what was read and said, also where that is damaged.
    expect_model
        The identity of the model beside which it is to go on: refuse another one's, unless ``force``.
    passphrase, key
        The secret of a version 3 file.
    options
        Those of ``load_memory``: ``backend``, ``optimizer``, ``window``, ``max_bytes``.

    Raises
    ------
    WrongModelError
        When it is another model's.
    ConflictError
        When the file was overwritten in place while it was read, time and again.
    AtlasError
        When the file is damaged, or holds no memory that a session made.
    """
    options.update(expect_model=expect_model, force=force, passphrase=passphrase, key=key)
    for _ in range(OPENS - 1 if isinstance(given, (str, os.PathLike)) else 0):
        with contextlib.suppress(ConflictError):
            return _read_state(given, context, episodes, **options)
    return _read_state(given, context, episodes, **options)


def _read_state(
    given: Given | MemoryFile,
    context: bool,
    episodes: bool,
    *,
    expect_model: str | None,
    force: bool,
    passphrase: str | bytes | None,
    key: bytes | None,
    **options: Any,
) -> SessionState:
    from atlas_kit.persistence.episode_entries import read_episodes
    from atlas_kit.persistence.snapshot import describe_memory, opened_memory

    with opened_memory(given, passphrase=passphrase, key=key) as file:
        description = describe_memory(file)
        runtime = _runtime_of(description)
        loaded = load_memory(file, expect_model_hash=expect_model, force=force, **options)
        with about_session(file.path):
            identity = description.model_hash or ""
            with about_session(file.path, "Load the memory without its context: context=False."):
                kept = _context_of(file, runtime, identity) if context else {}
            waiting = _waiting_of(runtime)
            model = dict(runtime.get("model", {}))
            name, architecture = str(model.get("name", "")), str(model.get("architecture", ""))
            settings = runtime["settings"]
        texts = _texts_of(file)
        told = read_episodes(file) if episodes else None
        file.require_unchanged()
        return SessionState(
            loaded.memory.config,
            loaded.state,
            settings,
            waiting,
            identity,
            name,
            architecture,
            texts=texts,
            episodes=told,
            **kept,
        )


def seal(path: StrPath, *, passphrase: str | bytes | None = None, key: bytes | None = None) -> bool:
    """Encrypt a memory's file if it is not; tell whether it was not. Without a secret nothing is done.

    Raises
    ------
    AtlasError
        The file cannot be read or written; it stays as it was.
    """
    from atlas_kit.formats.atlas import MemoryFile

    if passphrase is None and key is None:
        return False
    with MemoryFile.open(path, passphrase=passphrase, key=key) as file:
        if file.version == 3:
            return False
        file.save(version=3)
        return True


def context_bytes(given: Given | MemoryFile, **secret: Any) -> int:
    """Return how large the engine's own copy of the context is in a file; 0 where there is none.

    Raises
    ------
    AtlasError
        The file cannot be opened.
    """
    from atlas_kit.persistence.snapshot import opened_memory

    with opened_memory(given, **secret) as file:
        entry = file.get(CONTEXT)
        return 0 if entry is None else int(entry.size)


def drop_context(path: StrPath, **secret: Any) -> None:
    """Remove the engine's own copy of the context from a file: its tokens stay, and are read again.

    Raises
    ------
    AtlasError
        The file cannot be read or written; it stays as it was.
    """
    from atlas_kit.formats.atlas import MemoryFile

    with MemoryFile.edit(path, **secret) as file:
        if file.remove(CONTEXT):
            file.save()  # whole, or it would keep its size


def load_memory(file: MemoryFile, **options: Any) -> LoadedMemory:
    """Read the memory itself; what that takes is imported with the first file."""
    from atlas_kit.persistence import snapshot

    return snapshot.load_memory(file, **options)


def saved_settings(
    given: Given | MemoryFile, *, passphrase: str | bytes | None = None, key: bytes | None = None
) -> Mapping[str, Any]:
    """Return the settings that a session kept beside its memory; no array is read for it.

    Raises
    ------
    AtlasError
        When the file holds no memory, or one that was not made by a session.
    """
    from atlas_kit.persistence.snapshot import describe_memory

    settings: Mapping[str, Any] = _runtime_of(describe_memory(given, passphrase=passphrase, key=key))[
        "settings"
    ]
    return settings


def settings_in(description: MemoryDescription) -> Mapping[str, Any] | None:
    """Return the settings that a memory's description holds, of whatever version; None where there are none."""
    runtime = description.metadata.get("runtime")
    settings = runtime.get("settings") if isinstance(runtime, dict) else None
    return settings if isinstance(settings, dict) else None


def _runtime_of(description: MemoryDescription) -> dict[str, Any]:
    """Return what a session kept beside its memory; its settings are there."""
    from atlas_kit.persistence.tables import RUNTIME_VERSION

    if settings_in(description) is None:
        raise InvalidParamError(
            "the memory in this file was not made beside a language model",
            path=description.path,
            key="runtime",
        )
    runtime: dict[str, Any] = description.metadata["runtime"]
    if runtime.get("version") != RUNTIME_VERSION:
        raise VersionMismatchError(
            f"the saved session has version {runtime.get('version')!r}; this library reads version {RUNTIME_VERSION}",
            path=description.path,
            key="runtime",
        )
    return runtime


def _waiting_of(runtime: Mapping[str, Any]) -> dict[str, Array]:
    found = {name: unpacked(value) for name, value in dict(runtime.get("waiting", {})).items()}
    _require_aligned(found)
    return found


def _require_aligned(found: Mapping[str, Array]) -> None:
    """Raise ``ValueError`` for arrays that do not belong together as ``WAITING`` says."""
    from atlas_kit.persistence.tables import WAITING

    rows = [row for row in WAITING if row.shape[:1] == ("n",)]
    there = [row for row in rows if row.name in found]
    whitened = any(row.whitened for row in there)
    missing = [row.name for row in rows if row.name not in found and (whitened or not row.whitened)]
    if there and missing:
        raise ValueError(f'the array "{min(missing)}" is missing')
    for row in WAITING:
        array = found.get(row.name)
        if array is not None and array.ndim != len(row.shape):
            raise ValueError(f"{row.name} has {array.ndim} axes and not {len(row.shape)}")
    if len({len(found[row.name]) for row in there}) > 1:
        raise ValueError("the arrays that wait are of different lengths")


def _context_of(file: MemoryFile, runtime: Mapping[str, Any], identity: str) -> dict[str, Any]:
    tokens = tuple(int(token) for token in runtime.get("context", ()))
    position = int(runtime.get("position", len(tokens)))
    output = {name: unpacked(value, least=-np.inf) for name, value in dict(runtime.get("open", {})).items()}
    # what the model computed is of no use to a file that has become another model's
    own = dict(runtime.get("model", {})).get("identity") == identity
    entry = file.get(CONTEXT) if own and output else None
    return {
        "tokens": tokens,
        "position": position,
        "output": output if own else {},
        "context": None if entry is None else bytes(entry.data),
        "build": str(runtime.get("build", "")),
    }


#: Tokens of texts that are kept in a file; of more, the oldest texts are left out.
MOST_TEXT = 1 << 20


def packed_texts(texts: Sequence[Sequence[int]]) -> bytes:
    """Return texts as the entry ``runtime/texts`` holds them: how many, how long each is, and their tokens.

    >>> packed_texts([[5, 6], [7]]).hex(" ", 4)
    '02000000 02000000 01000000 05000000 06000000 07000000'
    """
    kept: list[Sequence[int]] = []
    room = MOST_TEXT
    for text in reversed(texts):
        room -= len(text)
        if room < 0:
            break
        kept.insert(0, text)
    head = np.asarray([len(kept), *map(len, kept)], "<i4")
    return b"".join((head.tobytes(), *(np.asarray(text, "<i4").tobytes() for text in kept)))


def unpacked_texts(data: bytes) -> tuple[Sequence[int], ...]:
    """Return the texts that ``packed_texts`` put together; ValueError for anything else."""
    numbers = np.frombuffer(data, "<i4")
    count = int(numbers[0]) if len(numbers) else -1
    lengths = numbers[1 : count + 1].astype(np.int64) if count >= 0 else numbers
    if count < 0 or len(lengths) != count or (numbers < 0).any() or lengths.sum() != len(numbers) - 1 - count:
        raise ValueError("the texts do not fill their entry")
    ends = 1 + count + np.cumsum(lengths)
    return tuple(numbers[end - length : end].tolist() for end, length in zip(ends, lengths, strict=True))


def _texts_of(file: MemoryFile) -> tuple[Sequence[int], ...]:
    """Return the texts in a file; where they are damaged, none: they are only there to save reading."""
    entry = file.get(TEXTS)
    with contextlib.suppress(AtlasError, ValueError):
        return () if entry is None else unpacked_texts(bytes(entry.data))
    return ()


@contextlib.contextmanager
def about_session(path: str | os.PathLike[str] | None, hint: str | None = None) -> Iterator[None]:
    """Turn what goes wrong with a session's own data into a sentence about the file."""
    try:
        yield
    except AtlasError as error:
        error.path = error.path or (None if path is None else os.fspath(path))
        raise
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise FileCorruptError(
            f"the saved session is damaged: {error}", path=path, key="runtime", hint=hint
        ) from error


def packed(array: Array) -> dict[str, Any]:
    """Return an array as JSON values, bit by bit."""
    array = np.asarray(array, order="C")  # `ascontiguousarray` would give a number an axis
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    data = base64.b64encode(little.tobytes()).decode("ascii")
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def unpacked(value: Mapping[str, Any], least: float | None = None) -> Array:
    """Return the array that ``packed`` took apart; ValueError for anything else.

    ``least``: -inf where that is a number too, as for the logit of a token that the model rules out.
    """
    dtype = np.dtype(str(value["dtype"]))
    if dtype.kind not in "iuf":
        raise ValueError(f"an array has the unsupported type {dtype}")
    try:
        raw = base64.b64decode(value["data"], validate=True)
    except binascii.Error as error:
        raise ValueError("an array is not valid base64") from error
    array: Array = np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype)
    if dtype.kind == "f" and not (np.isfinite(array) | (array == least)).all():
        raise ValueError("an array has NaN or infinity in it")
    return array.reshape([int(n) for n in value["shape"]])
