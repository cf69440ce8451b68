"""The memory that an ATLAS-native model asks for: settings under ``atlas.memory.*``, and a learned one beside it.

Writes them when a model is converted, and reads them for the runtime; what a file says is checked before it is used.
``formats/gguf.md`` describes the keys.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import (
    AtlasError,
    FileAccessError,
    InvalidParamError,
    Remedy,
    WrongModelError,
)
from atlas_kit.settings.atlas_settings import AtlasSettings
from atlas_kit.settings.native import FILE_KEY, HASH_KEY, MODEL_KEY
from atlas_kit.storage.given import Given, StrPath
from atlas_kit.storage.keys import Keys

if TYPE_CHECKING:
    from atlas_kit.persistence.snapshot import MemoryDescription
    from atlas_kit.storage.source import Source


@dataclass(frozen=True)
class BoundMemory:
    """A learned memory that was checked against a model; ``settings`` are those that it was saved with, if it says."""

    source: Source
    identity: str
    settings: AtlasSettings | None
    notes: tuple[str, ...]


def check_memory(
    model: Given, memory: Source, *, keys: Keys | None = None, force: bool = False, decrypt: bool = False,
    text: bool = True,
) -> BoundMemory:  # fmt: skip
    """See that a learned memory is whole and belongs to a model; its source stays open for ``placed_memory``.

    ``text``: with what was read and said; False leaves that out, and the context and the window with it, which hold
    text, too.

    Raises
    ------
    WrongModelError
        It belongs to another model, or does not say to which, and ``force`` is off.
    KeyNotFoundError, FileCorruptError
        The file holds no learned memory, or a damaged one.
    InvalidParamError
        It is of another width than the model; or there is a secret, the memory is not encrypted, and nobody said that
        it need not be (``decrypt``).
    """
    from atlas_kit.formats.gguf import GGUFFile, model_identity
    from atlas_kit.formats.opening import open_memory, require_encrypted
    from atlas_kit.persistence.snapshot import load_memory
    from atlas_kit.settings.model_facts import model_facts

    keys = Keys() if keys is None else keys
    with GGUFFile.open(model) as file:
        identity, width = model_identity(file), model_facts(file).width
    with open_memory(memory, keys) as opened:
        if not decrypt:
            require_encrypted(opened, keys)
        try:
            loaded = load_memory(opened, expect_model_hash=identity, force=force)
        except WrongModelError as error:
            error.hint, error.remedy = None, Remedy("force-beside-model")
            raise
    for config in loaded.description.configs:
        if (config.d_k, config.d_v) != (width, width):
            raise InvalidParamError(
                f"the memory was made for a model of width {config.d_k}, and this one has {width}",
                path=memory.name,
            )
    notes = _without_text_noted(memory, keys, text)
    if not text:
        memory = _without_text(memory, keys)
    if loaded.description.model_hash != identity:
        notes.append("the memory does not belong to this model: loading it will have to be forced as well")
    return BoundMemory(memory, identity, _saved_settings(loaded.description), tuple(notes))


def _saved_settings(description: MemoryDescription) -> AtlasSettings | None:
    """Return the settings that a session keeps beside its memory, if they are readable."""
    from atlas_kit.persistence.session_file import settings_in

    found = settings_in(description)
    if found is not None:
        with contextlib.suppress(AtlasError):
            return AtlasSettings.from_saved(found)
    return None


def _without_text_noted(memory: Source, keys: Keys, text: bool) -> list[str]:
    """Say how much can be read from a memory, and what becomes of it."""
    from atlas_kit.formats.opening import open_memory
    from atlas_kit.persistence.episode_entries import counts_of, read_episodes

    with open_memory(memory, keys) as opened:
        arrays = read_episodes(opened)
    if arrays is None or not len(arrays):
        return []
    amount = counts_of(arrays).amount
    return [
        f"{amount} {'can be read from the memory beside the model' if text else 'were left out of the memory'}"
    ]


def _without_text(memory: Source, keys: Keys) -> Source:
    """Return a memory of which nothing that was read or said can be read."""
    import dataclasses
    import tempfile

    from atlas_kit.formats.opening import open_memory
    from atlas_kit.persistence.session_file import read_session_state, write_session_state
    from atlas_kit.persistence.snapshot import describe_memory
    from atlas_kit.storage.given import open_source

    with open_memory(memory, keys) as opened:
        description, version = describe_memory(opened), opened.version
        state = read_session_state(opened, episodes=False)
    waiting = {name: array for name, array in state.waiting.items() if name == "log_eta"}
    state = dataclasses.replace(
        state, waiting=waiting, tokens=(), position=0, output={}, context=None, texts=(), episodes=None
    )
    kept = {name: value for name, value in description.metadata.items() if name != "runtime"}
    secret = keys.options() if version == 3 else {}
    with tempfile.TemporaryDirectory() as folder:  # encrypted, if it is to be
        path = os.path.join(folder, "memory.atlas")
        write_session_state(
            path, state, metadata=kept, window=False, optimizer=description.optimizer, dtype=description.dtype,
            **secret,
        )  # fmt: skip
        with open(path, "rb") as file:
            return open_source(file.read())


def sidecar_of(output: StrPath) -> str:
    """Return where the memory of a native model goes: its name with ``.atlas`` instead of ``.gguf``."""
    return os.path.splitext(os.fspath(output))[0] + ".atlas"


@contextlib.contextmanager
def placed_memory(bound: BoundMemory, output: StrPath, *, force: bool = False) -> Iterator[dict[str, Any]]:
    """Copy a memory beside the model that is being written to ``output``; yield the keys that bind it.

    What is there already and is the same stays. A copy that was made is removed again when the block fails.

    Raises
    ------
    FileAccessError
        Another file is in its place, and ``force`` is off.
    """
    from atlas_kit.storage.atomic import atomic_write
    from atlas_kit.storage.given import sha256_of
    from atlas_kit.storage.source import CHUNK

    target = sidecar_of(output)
    digest = sha256_of(bound.source).hex()
    made = False
    if not os.path.lexists(target) or sha256_of(target).hex() != digest:
        if os.path.lexists(target) and not force:
            raise FileAccessError(
                "another file is where the memory should go", path=target,
                remedy=Remedy("overwrite-sidecar"),
            )  # fmt: skip
        made = not os.path.lexists(target)
        with atomic_write(target) as out:
            for piece in bound.source.chunks(0, bound.source.size, CHUNK):
                out.write(piece)
    try:
        yield {FILE_KEY: os.path.basename(target), HASH_KEY: digest, MODEL_KEY: bound.identity}
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                os.unlink(target)
        raise
