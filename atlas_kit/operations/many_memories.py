"""What many memories have read and heard, as one to be searched: each piece says in which of the files it is.

Of each file what was read and said is taken, and not what the memory has learned of it, which is one model's state and
cannot be put together. Of a file with an index only what a question needs is read; the others are read whole, and the
same is found in both. Files that hold none, or another model's, are left out, and that is said. Knows no terminal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from atlas_kit.errors import AtlasError, InvalidParamError, Remedy
from atlas_kit.formats.detect import is_encrypted
from atlas_kit.operations.memory_indexes import Memory, find_index, other_model
from atlas_kit.storage.given import Given, name_of
from atlas_kit.storage.keys import Keys

if TYPE_CHECKING:
    from atlas_kit.episodes import EpisodeArrays, Episodes
    from atlas_kit.episodes.search import Index
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.persistence.episode_index import IndexPart

_T = TypeVar("_T")
_R = TypeVar("_R")
#: So many files are read at once, each of which waits for its store most of the time.
_THREADS = 16
#: Why an encrypted memory is left out where there is no model.
_ENCRYPTED = "it is encrypted, and has no index, which would lie open: it needs its model and its key"


@dataclass
class Gathered:
    """What was gathered: from how many files, with how many indexes, and why the others were left out.

    Attributes
    ----------
    parts
        An index of each file, one that lies beside it or one that was made of it here.
    """

    parts: list[_Part]
    indexed: int = 0
    left_out: list[str] = field(default_factory=list)

    @property
    def files(self) -> int:
        """From how many files."""
        return len(self.parts)

    def close(self) -> None:
        """Let go of the files."""
        for part in self.parts:
            part.index.close()


@dataclass
class _Part:
    name: str
    index: IndexPart


def gather(
    files: Sequence[Given | Memory], identity: str | None, *, keys: Keys | None = None, force: bool = False,
    words: tuple[Callable[[int], bytes], int] | None = None,
) -> Gathered:  # fmt: skip
    """Open what the memories in ``files`` have read and heard; what is wrong with one stops no other.

    Parameters
    ----------
    identity
        Of the model whose tokens they are to be (hexadecimal); None: of any, and only files with an index.
    force
        Take another model's, too: its tokens may mean other words.
    words
        The bytes of the model's tokens, and how many there are: for files without an index.

    Raises
    ------
    InvalidParamError
        None of them holds anything.
    """
    keys = Keys() if keys is None else keys
    memories = [file if isinstance(file, Memory) else None for file in files]
    result = Gathered([])

    def one(number: int) -> tuple[IndexPart, bool] | str:
        file, memory = files[number], memories[number]
        try:
            if memory is not None and (part := find_index(memory)) is not None:
                try:
                    return _loaded(part, identity, force), True
                except AtlasError:  # it is damaged: as if there were none
                    part.close()
                except _LeftOutError as other:
                    part.close()
                    return str(other)
            if words is None:
                if is_encrypted(_given(file)):
                    return _ENCRYPTED
                return "it has no index, and without its model none can be made"
            return _read(_given(file), identity or "", keys, force, words), False
        except AtlasError as error:
            return error.message
        except _LeftOutError as other:
            return str(other)

    for file, found in zip(files, _each(one, range(len(files))), strict=True):
        if isinstance(found, str):
            result.left_out.append(f"{name_of(_given(file))}: {found}")
        else:
            result.parts.append(_Part(name_of(_given(file)), found[0]))
            result.indexed += found[1]
    if not result.parts:
        hint = f"{result.left_out[0]}." if result.left_out else None
        raise InvalidParamError(
            "the file holds nothing that could be asked about" if len(files) == 1
            else f"none of the {len(files):,} files holds anything that could be asked about", hint=hint,
            remedy=Remedy("index-memories") if words is None and not all(
                one.endswith(_ENCRYPTED) for one in result.left_out
            ) else None,
        )  # fmt: skip
    return result


class _LeftOutError(Exception):
    """Why a file is left out, in words: its tokens are another model's, or it holds nothing."""


def _given(file: Given | Memory) -> Given:
    return file.name if isinstance(file, Memory) else file


def _each(work: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(work, items)


def _loaded(part: IndexPart, identity: str | None, force: bool) -> IndexPart:
    if identity is not None and part.model_hash.hex() != identity and not force:
        raise _LeftOutError("it is another model's")
    part.load()
    return part


def _read(
    file: Given, identity: str, keys: Keys, force: bool, words: tuple[Callable[[int], bytes], int]
) -> IndexPart:
    """Return an index of one memory that was read whole, in main memory."""
    from atlas_kit.episodes.store import LEAST_LIMIT, Episodes
    from atlas_kit.formats.opening import open_memory
    from atlas_kit.operations.episodes import joined
    from atlas_kit.persistence.episode_entries import read_episodes
    from atlas_kit.persistence.episode_index import IndexPart, index_of

    with open_memory(file, keys) as memory:
        if (why := other_model(memory, identity)) and not force:
            raise _LeftOutError(why)
        arrays = read_episodes(memory)
        model_hash = memory.model_hash
    if arrays is None or not len(arrays):
        raise _LeftOutError("it holds nothing to ask about")
    arrays = joined([arrays])
    episodes = Episodes.from_arrays(arrays, *words, limit=max(LEAST_LIMIT, len(arrays)))
    made = index_of(episodes, *words, model_hash=model_hash, size=0, state="")
    part = IndexPart(made.to_bytes())
    part.load()
    return part


def _named(file: str, sources: Iterable[str]) -> Iterable[str]:
    from atlas_kit.episodes.arrays import source_name

    return (source_name(f"{file}: {source}" if source else file) for source in sources)


# --- as one ----------------------------------------------------------------------------------------------


class JoinedIndexes:
    """Several indexes as one: blocks by the time of their episodes, words and tokens of all.

    Parameters
    ----------
    parts
        One for each file.
    apart
        Tell the tokens of different models from each other, so that each keeps its bytes.
    """

    def __init__(self, parts: Sequence[_Part], *, apart: bool = False) -> None:
        import numpy as np

        self._parts = parts
        self._lock = threading.Lock()
        models = list(dict.fromkeys(part.index.model_hash for part in parts))
        rooms = [max(part.index.n_vocab for part in parts if part.index.model_hash == one) for one in models]
        begins = dict(zip(models, np.cumsum([0, *rooms[:-1]]).tolist(), strict=True))
        #: what is added to a file's tokens, for each file
        self._shift = [begins[part.index.model_hash] if apart else 0 for part in parts]
        self.n_vocab = sum(rooms) if apart else max(rooms)
        self._order()

    def _order(self) -> None:
        """Number blocks and episodes of all files by time."""
        import numpy as np

        parts = [part.index for part in self._parts]
        times = np.concatenate([part.time_ms for part in parts])
        owner = np.repeat(np.arange(len(parts)), [len(part.kind) for part in parts])
        order = np.argsort(times, kind="stable")
        sources: dict[str, int] = {}
        ids = [np.zeros(len(part.sources), np.int64) for part in parts]
        names = [list(_named(one.name, part.sources)) for one, part in zip(self._parts, parts, strict=True)]
        counts = [np.diff(np.append(part.episode_start, len(part.block_size))) for part in parts]
        blocks = np.concatenate(counts)[order].astype(np.int64)
        source = np.concatenate([part.source for part in parts]).astype(np.int64)[order]
        for number, (file, one) in enumerate(zip(owner[order].tolist(), source.tolist(), strict=True)):
            if one >= len(names[file]):
                raise InvalidParamError(
                    "an index names a source that it does not have", path=self._parts[file].name
                )
            ids[file][one] = sources.setdefault(names[file][one], len(sources))
            source[number] = ids[file][one]
        # each block: of which file, and its number there
        begins = np.cumsum(np.append([0], blocks))
        first = np.concatenate([part.episode_start for part in parts])[order].astype(np.int64)
        within = np.arange(int(begins[-1])) - np.repeat(begins[:-1], blocks)
        self._file = np.repeat(owner[order], blocks)
        self._own = np.repeat(first, blocks) + within
        #: for each file: the number that each of its blocks has here
        self._here = [np.zeros(len(part.block_size), np.int64) for part in parts]
        for file in range(len(parts)):
            mine = self._file == file
            self._here[file][self._own[mine]] = np.flatnonzero(mine)

        self._columns = {
            name: self._of_blocks(name) for name in ("block_size", "block_words", "block_lines", "block_asks")
        }
        edges = np.append([0], np.cumsum(self._columns["block_size"].astype(np.int64)))
        self._episodes = {
            "block_start": edges[:-1].astype(np.uint32),
            "episode_start": edges[begins[:-1]].astype(np.uint32),
            "source": source.astype(np.uint32),
            **{
                name: np.concatenate([getattr(part, name) for part in parts])[order]
                for name in ("kind", "time_ms", "line")
            },
        }  # fmt: skip
        self._sources = tuple(sources)

    def _of_blocks(self, name: str) -> Any:
        import numpy as np

        out: Any = np.zeros(len(self._file), getattr(self._parts[0].index, name).dtype)
        for file, part in enumerate(self._parts):
            out[self._here[file]] = getattr(part.index, name)
        return out

    def arrays(self) -> EpisodeArrays:
        """Return all but the tokens, in the place of which are zeros."""
        import numpy as np

        from atlas_kit.episodes import EpisodeArrays

        total = int(self._columns["block_size"].sum(dtype=np.int64))
        dropped = sum(part.index.dropped for part in self._parts)
        made = EpisodeArrays(
            tokens=np.zeros(total, np.uint32), position=self._episodes["episode_start"].astype(np.int64) + dropped,
            sources=self._sources, end=total + dropped, dropped=dropped, **self._episodes,
        )  # fmt: skip
        made.check()
        return made

    def episodes(self, piece: Callable[[int], bytes] | None = None) -> Episodes:
        """Return what is searched: with the model's ``piece``, or else with the bytes that the indexes know."""
        from atlas_kit.episodes.far import FarEpisodes

        self._bytes: dict[int, bytes] | None = None if piece else {}
        self._known: set[int] = set()
        return FarEpisodes(
            self.arrays(), piece or self._piece, self.n_vocab, line_ends=self._columns["block_lines"],
            index_for=self._index_for, fetch=self._fetch,
        )  # fmt: skip

    def _piece(self, token: int) -> bytes:
        return (self._bytes or {}).get(token, b"")

    def _index_for(self, question: str) -> Index:
        """Return the index of what a question looks for."""
        from atlas_kit.episodes.search import PartOfIndex, wanted

        sought = wanted(question)

        def of(file: int) -> list[tuple[str, Any, Any]]:
            if not any(sought):
                return []
            posts = self._parts[file].index.posts(sought)
            return [(word, self._here[file][blocks], times) for word, blocks, times in posts]

        found = [row for rows in _each(of, range(len(self._parts))) for row in rows]
        return PartOfIndex(self._columns["block_words"], self._columns["block_asks"], found)

    def _fetch(self, first: int, last: int) -> Any:
        """Return the tokens of some blocks, file by file."""
        import numpy as np

        rows = []
        while first < last:
            file, own = int(self._file[first]), int(self._own[first])
            behind = first + 1
            while behind < last and self._file[behind] == file and self._own[behind] == own + behind - first:
                behind += 1
            index = self._parts[file].index
            if self._bytes is not None and file not in self._known:
                self._known.add(file)
                shift = self._shift[file]
                self._bytes.update((token + shift, data) for token, data in index.pieces().items())
            rows.append(index.tokens(own, own + behind - first).astype(np.int64) + self._shift[file])
            first = behind
        return np.concatenate(rows).astype(np.uint32)

    def token_counts(self) -> tuple[Any, Any]:
        """Return the different tokens of all files, ascending, and how often each is there."""
        import numpy as np

        found = list(_each(lambda part: part.index.token_counts(), self._parts))
        tokens = np.concatenate([one for one, _ in found])
        kinds, inverse = np.unique(tokens, return_inverse=True)
        counts = np.bincount(inverse, np.concatenate([one for _, one in found]), minlength=len(kinds))
        return kinds, counts.astype(np.int64)

    def token_blocks(self, tokens: Any) -> Iterator[tuple[int, Any]]:
        """Yield some tokens with the blocks in which they are, in parts."""

        def of(file: int) -> list[tuple[int, Any]]:
            found = self._parts[file].index.token_blocks(tokens)
            return [(token, self._here[file][blocks]) for token, blocks in found]

        for rows in _each(of, range(len(self._parts))):
            yield from rows


def session_over(engine: Engine, gathered: Gathered, *, device: str = "cpu") -> AtlasSession:
    """Return a session that can be asked about what was gathered; it learns nothing."""
    from atlas_kit.llama.likeness import FarLikeness, use_likeness
    from atlas_kit.llama.session import AtlasSession

    indexes = JoinedIndexes(gathered.parts)
    session = AtlasSession(engine, None, device=device, learn=False)
    try:
        if indexes.n_vocab > engine.info.n_vocab:
            raise InvalidParamError("there are tokens that the model does not have")
        indexes.n_vocab = engine.info.n_vocab
        episodes = indexes.episodes(engine.piece)
        tokens, counts = indexes.token_counts()
        use_likeness(episodes, FarLikeness(engine, tokens, counts, len(episodes), indexes.token_blocks))
        session.episodes = episodes
    except BaseException:
        session.close()
        raise
    return session


# --- without a model -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundPiece:
    """A piece that has words of a question: where it stands, its text, and how well it fits."""

    source: str
    kind: str
    time_ms: int
    line: int
    score: float
    text: str

    @property
    def place(self) -> str:
        """Where and when it was read or said, for people."""
        from atlas_kit.episodes.arrays import place_of

        return place_of(self.kind, self.source, self.line, self.time_ms)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        from atlas_kit.codecs.json_text import named

        found = dataclasses.asdict(self)
        return {**named("source", found.pop("source")), **found}


@dataclass
class Searched:
    """What was found for each question, in how many files."""

    name: str
    files: int
    questions: list[tuple[str, list[FoundPiece]]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Return 1 where nothing was found for any question."""
        return int(not any(found for _, found in self.questions))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        rows = [
            {"question": text, "pieces": [one.to_json() for one in found]} for text, found in self.questions
        ]
        from atlas_kit.codecs.json_text import named

        file = {key.replace("path", "memory_file"): value for key, value in named("path", self.name).items()}
        return {**file, "files": self.files, "left_out": self.left_out, "questions": rows}


def search_memories(
    files: Sequence[Memory], questions: Iterable[str], *, count: int = 5, name: str = ""
) -> Searched:
    """Look for the words of questions in memories that have an index; no model is needed, and none answers.

    Parameters
    ----------
    count
        Pieces for each question at most.
    name
        What the files were given as, for the result.

    Raises
    ------
    InvalidParamError
        None of the files has an index.
    """
    gathered = gather(files, None)
    with contextlib.closing(gathered):
        episodes = JoinedIndexes(gathered.parts, apart=True).episodes()
        result = Searched(name or os.fspath(files[0].name), gathered.files, left_out=gathered.left_out)
        for question in questions:
            found = [
                FoundPiece(
                    segment.source, segment.kind.name.lower(), segment.time_ms, segment.line, round(score, 4),
                    episodes.text(segment.start, segment.stop),
                )
                for segment, score in episodes.search(question, count)
            ]  # fmt: skip
            result.questions.append((question, found))
    return result


__all__ = ["FoundPiece", "Gathered", "JoinedIndexes", "Searched", "gather", "search_memories", "session_over"]
