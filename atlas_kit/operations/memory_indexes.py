"""Indexes of memories, each in a file beside the memory: made, found again, and removed. Knows no terminal.

An index holds the words of what was read and said, as readable as they are in the memory. So none is made of a memory
that is encrypted, and it goes when something is forgotten. Where nothing can be written beside a memory, its index lies
in the user's folder for such things.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import AtlasError, InvalidParamError
from atlas_kit.persistence.index_places import beside, cached
from atlas_kit.storage.given import Progress, name_of
from atlas_kit.storage.source import access_error
from atlas_kit.storage.urls import is_url, local_path

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.operations.token_words import Words
    from atlas_kit.persistence.episode_index import IndexPart

ENCRYPTED = "it is encrypted, and an index would hold its words for all to read"


@dataclass(frozen=True)
class Memory:
    """A memory's file: its name as it is opened, its size and what its state is called, where that is known."""

    name: str
    size: int | None = None
    state: str = ""

    @property
    def known(self) -> bool:
        """Whether it can be told later if the file is still the same."""
        return self.size is not None and bool(self.state)


@dataclass
class Indexed:
    """Which indexes were made, which stood already, and why the other files have none."""

    model: str
    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Return 1 where no file has an index."""
        return int(not self.made and not self.kept)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        rows = {name: getattr(self, name) for name in ("made", "kept", "cached", "left_out")}
        return {"model": self.model, **{name: [named("path", one) for one in row] if name != "left_out" else row
                                        for name, row in rows.items()}}  # fmt: skip


def find_index(memory: Memory) -> IndexPart | None:
    """Return the opened index of a memory as it is now; None where there is none, or it is of another state."""
    from atlas_kit.persistence.episode_index import open_index

    if not memory.known:
        return None
    for place in (beside(memory.name), cached(memory.name)):
        if place is None or (not is_url(place) and not os.path.exists(place)):
            continue
        part = open_index(place)
        if part is not None:
            if (part.size, part.state) == (memory.size, memory.state):
                return part
            part.close()
    return None


def make_indexes(
    memories: Sequence[Memory], words: Words, identity: str, *, model: str = "", force: bool = False,
    progress: Progress | None = None, stop: Callable[[], bool] = lambda: False,
) -> Indexed:  # fmt: skip
    """Write the index of each memory that has none of its present state, beside it or in the user's folder.

    Parameters
    ----------
    words, identity
        What the model's tokens are called, and which model it is (hexadecimal).
    force
        Of another model's memories, too: its tokens may mean other words.
    """
    result = Indexed(model)
    for number, memory in enumerate(memories):
        if stop():
            break
        try:
            _index_one(memory, words, identity, force, result)
        except AtlasError as error:
            result.left_out.append(f"{name_of(memory.name)}: {error.message}")
        if progress:
            progress("indexing", number + 1, len(memories))
    return result


def _index_one(memory: Memory, words: Words, identity: str, force: bool, result: Indexed) -> None:
    part = find_index(memory)
    if part is not None:
        part.close()
        result.kept.append(name_of(memory.name))
        return
    why, made = _made(memory, words, identity, force)
    if made is None:
        result.left_out.append(f"{name_of(memory.name)}: {why}")
        return
    place = beside(memory.name)
    try:
        if place is None:
            raise InvalidParamError("nothing lies beside what has more behind its name")
        _save(made, place)
        _as_private_as(memory.name, place)
    except AtlasError:
        place = cached(memory.name)
        _make_private(os.path.dirname(place))
        _save(made, place)
        result.cached.append(place)
    result.made.append(name_of(place))


def _made(memory: Memory, words: Words, identity: str, force: bool) -> tuple[str, MemoryFile | None]:
    from atlas_kit.episodes.store import LEAST_LIMIT, Episodes
    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.formats.detect import is_encrypted
    from atlas_kit.operations.episodes import joined
    from atlas_kit.persistence.episode_entries import read_episodes
    from atlas_kit.persistence.episode_index import index_of
    from atlas_kit.storage.given import use_source

    if not memory.known:
        return "its store does not tell one state of a file from another", None
    with use_source(memory.name) as source:
        if is_encrypted(source):
            return ENCRYPTED, None
        with MemoryFile.open(source) as file:
            if (why := other_model(file, identity)) and not force:
                return why, None
            arrays = read_episodes(file)
            model_hash = file.model_hash
    if arrays is None or not len(arrays):
        return "it holds nothing to ask about", None
    once = joined([arrays])
    episodes = Episodes.from_arrays(once, words.piece, len(words), limit=max(LEAST_LIMIT, len(once)))
    return "", index_of(
        episodes, words.piece, len(words), model_hash=model_hash, size=memory.size or 0, state=memory.state
    )


def other_model(file: MemoryFile, identity: str) -> str:
    """Return why a memory's tokens are not those of a model; nothing where they are."""
    if file.model_hash.hex() == identity:
        return ""
    return "it is another model's" if any(file.model_hash) else "it does not say whose it is"


def _make_private(folder: str) -> None:
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise access_error(error, folder, "write") from error


def _as_private_as(name: str, place: str) -> None:
    """Let nobody read an index who may not read its memory."""
    here, path = (local_path(one) if is_url(one) else one for one in (name, place))
    if here is not None and path is not None:
        with contextlib.suppress(OSError):
            os.chmod(path, os.stat(here).st_mode & 0o666)


def _save(made: MemoryFile, place: str) -> None:
    from atlas_kit.storage.remote_writing import published, require_writable

    path = local_path(place) if is_url(place) else place
    if path is not None:
        made.save(path, durable=False)
        return
    require_writable(place, force=True)
    with published(place) as here:
        made.save(here, durable=False)


def memories_of(files: Iterable[Any]) -> list[Memory]:
    """Return memories of listed files (``fleet.files.FleetFile``), each with the state that a listing knows."""
    return [Memory(file.name, file.size, file.mark) for file in files]
