"""An index of a memory's episodes in a file beside it, of which a question reads what it needs and no more.

It is a ``.atlas`` file of its own: what says where something stands is read whole, words, their places and the tokens
in ranges. Knows no model and no session; follows ``formats/atlas-index.md``.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_kit.codecs.json_text import loads
from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import AtlasError, FileCorruptError, InvalidParamError, VersionMismatchError
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.formats.atlas.tables import DataType
from atlas_kit.persistence import index_tables as tables
from atlas_kit.persistence.episode_entries import MAX_DESCRIPTION, MOST_TOKENS
from atlas_kit.persistence.index_tables import PAGE, key_of
from atlas_kit.persistence.tables import JSON_TYPES
from atlas_kit.storage.given import Given, open_source

if TYPE_CHECKING:
    from atlas_kit.episodes import Episodes
    from atlas_kit.episodes.search import Wanted
    from atlas_kit.formats.atlas import Entry

#: Ranges that are nearer to each other than so many bytes are read as one.
_NEAR = 1 << 14
#: What is read at once when an index is opened: of most memories all that is read whole.
_SMALL = 1 << 22


# --- writing -------------------------------------------------------------------------------------------


def index_of(
    episodes: Episodes,
    piece: Callable[[int], bytes],
    n_vocab: int,
    *,
    model_hash: bytes,
    size: int,
    state: str,
) -> MemoryFile:
    """Return the index of episodes, to be saved.

    Parameters
    ----------
    episodes
        By time, and none twice.
    piece, n_vocab
        The bytes of the model's tokens, and how many there are.
    model_hash
        Of the memory's model.
    size, state
        How large the memory's file is, and what its state is called.
    """
    arrays = episodes.arrays()
    posts, lengths, asks, lines = episodes.looked_up()
    edges = np.append(arrays.block_start, len(arrays)).astype(np.int64)
    kinds, counts = np.unique(arrays.tokens, return_counts=True)
    block = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    pairs = np.unique((np.searchsorted(kinds, arrays.tokens).astype(np.int64) << 31) | block)
    token_first = np.searchsorted(pairs, np.arange(len(kinds) + 1, dtype=np.int64) << 31)
    token_posts, token_at = _encoded(_steps(pairs & ((1 << 31) - 1), token_first)[:, None], token_first)
    word_posts, word_at = _encoded(
        np.stack([_steps(posts.blocks, posts.first), posts.times], axis=1), posts.first
    )
    pieces = [piece(token) for token in kinds.tolist()]
    lined = [word.encode() + b"\n" for word in posts.words]
    pages = [b"".join(lined[at : at + PAGE]) for at in range(0, len(lined), PAGE)]
    values: dict[str, Any] = {
        "block_size": np.diff(edges).astype(np.uint8),
        "block_words": lengths.astype(np.uint32),
        "block_lines": lines.astype(np.uint32),
        "block_asks": asks.astype(np.uint8),
        "episode_start": np.searchsorted(arrays.block_start, arrays.episode_start).astype(np.uint32),
        **{name: getattr(arrays, name) for name in ("kind", "source", "time_ms", "line")},
        "token": kinds.astype(np.uint32),
        "token_count": counts.astype(np.uint32),
        "token_at": token_at,
        "piece_at": _ends([len(one) for one in pieces]).astype(np.uint32),
        "page_at": _ends([len(one) for one in pages]),
    }
    ranges = {
        "first_words": b"".join(lined[::PAGE]),
        "word_at": word_at.astype("<i8").tobytes(),
        "words": b"".join(pages),
        "word_posts": word_posts,
        "pieces": b"".join(pieces),
        "token_posts": token_posts,
        "tokens": arrays.tokens.astype("<u4").tobytes(),
    }
    file = MemoryFile(version=2, model_hash=model_hash)
    description = {
        "format": tables.FORMAT,
        "version": tables.VERSION,
        "file_size": size,
        "file_state": state,
        "vocabulary": n_vocab,
        "sources": list(arrays.sources),
        "dropped": arrays.dropped,
    }
    file.set(tables.INDEX, description, type=DataType.METADATA)
    for row in tables.ARRAYS:
        file.set(key_of(row.name), values[row.name], type=DataType.CONTEXT, codec="zlib")
    for field in tables.RANGES:
        file.set(key_of(field.name), ranges[field.name], codec="none")
    return file


def _ends(sizes: Sequence[int] | Array) -> Array:
    """Return where things of these sizes begin, one behind the other, and where the last ends."""
    return np.append([0], np.cumsum(np.asarray(sizes, np.int64))).astype(np.int64)


def _steps(blocks: Array, first: Array) -> Array:
    """Return how far each number is from the one before, and the first of each row from 0."""
    steps = np.diff(blocks, prepend=0)
    begins = first[:-1][first[:-1] < first[1:]]
    steps[begins] = blocks[begins]
    return np.asarray(steps, np.int64)


def _encoded(rows: Array, first: Array) -> tuple[bytes, Array]:
    """Return numbers (n, c) as LEB128, and where those of each row of ``first`` begin, and the end."""
    values = rows.ravel().astype(np.int64)
    sizes = np.ones(len(values), np.int64)
    for bits in range(7, 63, 7):
        sizes += values >= 1 << bits
    at = np.append([0], np.cumsum(sizes))
    out = np.zeros(int(at[-1]), np.uint8)
    for number in range(int(sizes.max(initial=0))):
        has = sizes > number
        more = (sizes[has] > number + 1).astype(np.int64) << 7
        out[at[:-1][has] + number] = ((values[has] >> (7 * number)) & 127) | more
    return out.tobytes(), at[first * rows.shape[1]]


def _decoded(data: bytes) -> Array:
    """Return the numbers of LEB128."""
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 128)
    if not len(raw):
        return np.zeros(0, np.int64)
    if not len(ends) or ends[-1] != len(raw) - 1:
        raise FileCorruptError("a number is cut off")
    starts = np.append([0], ends[:-1] + 1)
    sizes = ends - starts + 1
    if sizes.max() > 5:
        raise FileCorruptError("a number is too large")
    values = np.zeros(len(ends), np.int64)
    for number in range(int(sizes.max())):
        has = sizes > number
        values[has] |= (raw[starts[has] + number].astype(np.int64) & 127) << (7 * number)
    return values


# --- reading -------------------------------------------------------------------------------------------


class IndexPart:
    """The index of one memory, opened.

    Attributes
    ----------
    model_hash
        Of the memory's model.
    size, state
        Of the memory's file, as it was when it was indexed.
    n_vocab
        Tokens of the model's vocabulary.
    block_size, block_words, block_lines, block_asks, episode_start, kind, source, time_ms, line
        As in the file.
    """

    block_size: Array
    block_words: Array
    block_lines: Array
    block_asks: Array
    episode_start: Array
    kind: Array
    source: Array
    time_ms: Array
    line: Array

    def __init__(self, given: Given) -> None:
        """Open an index.

        Raises
        ------
        FileCorruptError, VersionMismatchError
            It is damaged, or newer than this library; or the file is something else.
        """
        self._source = open_source(given)
        try:
            self._file = MemoryFile.open(self._source)
            self._edges = np.zeros(1, np.int64)
            self._describe()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    @property
    def received(self) -> tuple[int, int]:
        """How often something was asked for over a network, and how many bytes came."""
        return getattr(self._source, "requests", 0), getattr(self._source, "received", 0)

    def _describe(self) -> None:
        entry = self._file.get(tables.INDEX)
        if entry is None or entry.type != DataType.METADATA or entry.size > MAX_DESCRIPTION:
            raise self._odd("this is no index")
        document = loads(entry.data, what="description of the index")
        if not isinstance(document, dict) or document.get("format") != tables.FORMAT:
            raise self._odd("this is no index")
        version = document.get("version")
        if isinstance(version, int) and version > tables.VERSION:
            raise VersionMismatchError(
                f"the index is of version {version}, and this library reads {tables.VERSION}",
                path=self._source.path,
            )
        for row in tables.FIELDS:
            value = document.get(row.name, ...)
            if not isinstance(value, JSON_TYPES[row.type]) or isinstance(value, bool):
                raise self._odd(f'the field "{row.name}" is missing or not a {row.type}')
        self.model_hash = self._file.model_hash
        self.size, self.state = document["file_size"], document["file_state"]
        self.n_vocab, self.dropped = document["vocabulary"], document["dropped"]
        self.sources: tuple[str, ...] = tuple(document["sources"])
        if not 0 < self.n_vocab <= 1 << 31 or not 0 <= self.dropped < 1 << 62:
            raise self._odd("its counts are out of range")

    def load(self) -> None:
        """Read what says where everything stands.

        Raises
        ------
        FileCorruptError
            It contradicts itself.
        """
        first = self._entry("block_size").payload_offset or 0
        last = self._entry("word_at")
        self._source.prepare(first, min(_SMALL, max(0, (last.payload_offset or 0) - first)))
        for row in tables.ARRAYS[:9]:
            setattr(self, row.name, self._array(row.name, row.type))
        self._edges = _ends(self.block_size)
        blocks, episodes = len(self.block_size), len(self.episode_start)
        wrong = (
            len({len(self.block_words), len(self.block_lines), len(self.block_asks), blocks}) > 1
            or len({len(self.kind), len(self.source), len(self.time_ms), len(self.line), episodes}) > 1
            or bool((self.block_size == 0).any() or (self.block_size > 128).any())
            or (blocks > 0) != (episodes > 0)
            or bool(episodes and int(self.episode_start[0]) != 0)
            or bool(episodes and int(self.episode_start[-1]) >= blocks)
            or bool((np.diff(self.episode_start.astype(np.int64)) <= 0).any())
            or bool((np.diff(self.time_ms) < 0).any())
            or self._edges[-1] > MOST_TOKENS
            or self._entry("tokens").size != 4 * int(self._edges[-1])
            or not all(isinstance(name, str) for name in self.sources)
        )
        if wrong:
            raise self._odd("its arrays contradict each other")

    def __len__(self) -> int:
        """Return the number of tokens."""
        return int(self._edges[-1])

    def posts(self, wanted: Wanted) -> Iterator[tuple[str, Array, Array]]:
        """Yield what a question needs: words, each with the blocks (n,) in which it is and how often (n,).

        Raises
        ------
        FileCorruptError
            Its words, or their places, contradict each other.
        """
        at = self._array("page_at", "int64")
        words = self._entry("words")
        self._require_ends(at, words.size, None)
        found: dict[int, str] = {}
        firsts = self._range("first_words", 0, self._entry("first_words").size).split(b"\n")[:-1]
        if len(firsts) != len(at) - 1:
            raise self._odd("its pages of words contradict each other")
        pages = sorted(_pages(firsts, wanted))
        spans = [(int(at[page]), int(at[page + 1])) for page in pages]
        for page, data in zip(pages, self._ranges("words", spans), strict=True):
            for number, raw in enumerate(data.split(b"\n")[:-1]):
                if wanted.takes(word := raw.decode("utf-8", "replace")):
                    found[page * PAGE + number] = word
        numbers = sorted(found)
        if numbers and 8 * numbers[-1] + 16 > self._entry("word_at").size:
            raise self._odd("it has more words than places of words")
        places = [
            np.frombuffer(data, "<i8")
            for data in self._ranges("word_at", [(8 * number, 8 * number + 16) for number in numbers])
        ]
        size = self._entry("word_posts").size
        if any(not 0 <= one[0] <= one[1] <= size for one in places):
            raise self._odd("a word's place is outside of the file")
        spans = [(int(one[0]), int(one[1])) for one in places]
        for number, data in zip(numbers, self._ranges("word_posts", spans), strict=True):
            values = self._numbers(data)
            if len(values) % 2:
                raise self._odd("a word's places are cut off")
            yield found[number], self._blocks(values[::2]), values[1::2]

    def token_counts(self) -> tuple[Array, Array]:
        """Return the different tokens (k,), ascending, and how often each is there (k,).

        Raises
        ------
        FileCorruptError
            They contradict each other, or are not of the vocabulary.
        """
        tokens, counts = self._array("token", "uint32"), self._array("token_count", "uint32")
        if len(tokens) != len(counts) or (np.diff(tokens.astype(np.int64)) <= 0).any():
            raise self._odd("its tokens contradict each other")
        if len(tokens) and int(tokens[-1]) >= self.n_vocab:
            raise self._odd(f"token {int(tokens[-1])} is not one of the vocabulary's {self.n_vocab}")
        return tokens.astype(np.int64), counts.astype(np.int64)

    def token_blocks(self, tokens: Array) -> Iterator[tuple[int, Array]]:
        """Yield those of some tokens (k,) that are there, each with the blocks (n,) in which it is.

        Raises
        ------
        FileCorruptError
            Their places contradict each other.
        """
        known = self._array("token", "uint32").astype(np.int64)
        at = self._array("token_at", "int64")
        self._require_ends(at, self._entry("token_posts").size, len(known))
        places = np.flatnonzero(np.isin(known, tokens)).tolist()
        spans = [(int(at[place]), int(at[place + 1])) for place in places]
        for place, data in zip(places, self._ranges("token_posts", spans), strict=True):
            yield int(known[place]), self._blocks(self._numbers(data))

    def pieces(self) -> dict[int, bytes]:
        """Return the bytes of all tokens that are there."""
        known, at = self._array("token", "uint32"), self._array("piece_at", "uint32").astype(np.int64)
        entry = self._entry("pieces")
        self._require_ends(at, entry.size, len(known))
        data = self._range("pieces", 0, entry.size)
        return {
            token: data[first:last]
            for token, first, last in zip(known.tolist(), at[:-1].tolist(), at[1:].tolist(), strict=True)
        }

    def tokens(self, first: int, last: int) -> Array:
        """Return the tokens (n,) of the blocks from ``first`` to ``last``, without that.

        Raises
        ------
        FileCorruptError
            One of them is not of the vocabulary.
        """
        start, stop = int(self._edges[first]), int(self._edges[last])
        tokens = np.frombuffer(self._range("tokens", 4 * start, 4 * stop), "<u4")
        if len(tokens) and int(tokens.max()) >= self.n_vocab:
            raise self._odd(f"token {int(tokens.max())} is not one of the vocabulary's {self.n_vocab}")
        return tokens

    # --- inside ---

    def _entry(self, name: str) -> Entry:
        entry: Entry | None = self._file.get(key_of(name))
        if entry is None:
            raise self._odd(f"{name} is missing")
        return entry

    def _array(self, name: str, dtype: str) -> Array:
        entry = self._entry(name)
        if entry.dtype != dtype or entry.shape is None or len(entry.shape) != 1:
            raise self._odd(f"{name} is not a row of {dtype}")
        if entry.size > 8 * MOST_TOKENS:
            raise self._odd(f"{name} is too large")
        return entry.array()

    def _range(self, name: str, start: int, stop: int) -> bytes:
        entry = self._entry(name)
        try:
            if stop - start > _NEAR:
                self._source.prepare((entry.payload_offset or 0) + start, stop - start)
            return entry.part(start, stop - start)
        except InvalidParamError as error:
            raise self._odd(f"{name}: {error.message}") from None

    def _ranges(self, name: str, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """Yield ranges of an entry, in their order; what is near is read at once."""
        at = 0
        while at < len(spans):
            behind = at + 1
            start, stop = spans[at]
            while behind < len(spans) and start <= spans[behind][0] <= stop + _NEAR:
                stop = max(stop, spans[behind][1])
                behind += 1
            data = self._range(name, start, stop)
            for first, last in spans[at:behind]:
                yield data[first - start : last - start]
            at = behind

    def _numbers(self, data: bytes) -> Array:
        try:
            return _decoded(data)
        except FileCorruptError as error:
            raise self._odd(error.message) from None

    def _blocks(self, steps: Array) -> Array:
        blocks = np.cumsum(steps)
        if len(blocks) and (int(blocks[-1]) >= len(self.block_size) or (np.diff(blocks) <= 0).any()):
            raise self._odd("a place is behind the last block")
        return np.asarray(blocks)

    def _require_ends(self, at: Array, size: int, count: int | None) -> None:
        right = len(at) > 0 and at[0] == 0 and at[-1] == size and not (np.diff(at) < 0).any()
        if not right or (count is not None and len(at) != count + 1):
            raise self._odd("its places contradict each other")

    def _odd(self, what: str) -> FileCorruptError:
        return FileCorruptError(f"the index cannot be used: {what}", path=self._source.path)


def _pages(firsts: Sequence[bytes], wanted: Wanted) -> Iterable[int]:
    """Return the pages in which what a question looks for may be."""
    if wanted.letters:  # they may be anywhere
        return range(len(firsts))
    found: set[int] = set()
    for word in wanted.words:
        found.add(bisect_right(firsts, word.encode()) - 1)
    for family in wanted.families:
        first = bisect_right(firsts, family.encode()) - 1
        found.update(range(first, bisect_left(firsts, family.encode() + b"\xff")))
    return [page for page in found if page >= 0]


def open_index(given: Given) -> IndexPart | None:
    """Return an index, None where there is none or it cannot be used."""
    try:
        return IndexPart(given)
    except AtlasError:
        return None
