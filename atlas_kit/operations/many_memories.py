"""What many memories have read and heard, as one to be searched: each piece says in which of the files it is.

Of each file what was read and said is taken, and not what the memory has learned of it, which is one model's state and
cannot be put together. Files that hold none, or another model's, are left out, and that is said. Knows no terminal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atlas_kit.errors import AtlasError, InvalidParamError
from atlas_kit.storage.given import Given, name_of
from atlas_kit.storage.keys import Keys

if TYPE_CHECKING:
    from atlas_kit.episodes import EpisodeArrays
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.session import AtlasSession

#: So many files are read at once, each of which waits for its store most of the time.
_THREADS = 8


@dataclass
class Gathered:
    """What was gathered: from how many files, and why the others were left out."""

    arrays: EpisodeArrays
    files: int
    left_out: list[str] = field(default_factory=list)


def gather(
    files: Sequence[Given], identity: str, *, keys: Keys | None = None, force: bool = False
) -> Gathered:
    """Return what the memories in ``files`` have read and heard, as one; what is wrong with one stops no other.

    Parameters
    ----------
    identity
        Of the model whose tokens they are to be (hexadecimal).
    force
        Take another model's, too: its tokens may mean other words.

    Raises
    ------
    InvalidParamError
        None of them holds anything.
    """
    from atlas_kit.operations.episodes import joined

    keys = Keys() if keys is None else keys
    found: list[EpisodeArrays] = []
    left_out: list[str] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for file, one in zip(
            files, pool.map(lambda file: _read(file, identity, keys, force), files), strict=True
        ):
            if isinstance(one, str):
                left_out.append(f"{name_of(file)}: {one}")
            else:
                found.append(one)
    if not found:
        raise InvalidParamError(
            f"none of the {len(files):,} files holds anything that could be asked about",
            hint=f"{left_out[0]}." if left_out else None,
        )
    return Gathered(joined(found), len(found), left_out)


def _read(file: Given, identity: str, keys: Keys, force: bool) -> EpisodeArrays | str:
    """Return what one memory has read and heard, under its file's name; or why not."""
    from atlas_kit.formats.opening import open_memory
    from atlas_kit.persistence.episode_entries import read_episodes

    try:
        with open_memory(file, keys) as memory:
            if memory.model_hash.hex() != identity and not force:
                return "it is another model's" if any(memory.model_hash) else "it does not say whose it is"
            arrays = read_episodes(memory)
    except AtlasError as error:
        return error.message
    if arrays is None or not len(arrays):
        return "it holds nothing to ask about"
    return dataclasses.replace(arrays, sources=tuple(_named(name_of(file), arrays.sources)))


def _named(file: str, sources: Iterable[str]) -> Iterable[str]:
    from atlas_kit.episodes.arrays import source_name

    return (source_name(f"{file}: {source}" if source else file) for source in sources)


def session_over(engine: Engine, gathered: Gathered, *, device: str = "cpu") -> AtlasSession:
    """Return a session that can be asked about what was gathered; it learns nothing."""
    from atlas_kit.episodes.store import LEAST_LIMIT, Episodes
    from atlas_kit.llama.session import AtlasSession

    session = AtlasSession(engine, None, device=device, learn=False)
    try:
        limit = max(LEAST_LIMIT, len(gathered.arrays))
        session.episodes = Episodes.from_arrays(
            gathered.arrays, engine.piece, engine.info.n_vocab, limit=limit
        )
    except BaseException:
        session.close()
        raise
    return session


__all__ = ["Gathered", "gather", "session_over"]
