"""The store of episodes: what was read and said as token ids, bounded, searched by words, forgotten on purpose.

Knows what a token's bytes are and no model. Positions are absolute: the first token that was ever appended has
position 0, and nothing that is dropped or forgotten changes another token's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from atlas_kit.episodes.arrays import (
    DTYPES,
    LAST_TIME_MS,
    TURNS,
    EpisodeArrays,
    Kind,
    source_name,
)
from atlas_kit.episodes.cut import BLOCK_TOKENS, cuts
from atlas_kit.episodes.pieces import Pieces
from atlas_kit.episodes.search import Index, Posts
from atlas_kit.episodes.words import words
from atlas_kit.errors import InvalidParamError

Array: TypeAlias = NDArray[Any]

_KINDS = tuple(Kind)
#: How much more the newest turn counts than the oldest: of two that say the same the newer is first.
_NEWEST = 0.1
#: What a question of the user counts: it is most like the same question, and holds no answer.
_ASKED = 0.1
#: Bytes of space around a turn at most, for it to be known again.
_SPACE = 8
#: Parts of the bound of which one goes at a time.
_DROPS = 16
#: A bound smaller than this leaves no room for what is being read.
LEAST_LIMIT = 4 * BLOCK_TOKENS
#: The most, so that every index fits into the arrays' 32 bits.
MOST_LIMIT = 1 << 30


class Episode(NamedTuple):
    """One document or one turn: its absolute token positions, and when and from where it came."""

    start: int
    stop: int
    kind: Kind
    source: str
    time_ms: int


class Segment(NamedTuple):
    """What is found and read again, as absolute token positions: a block and the next one, where that belongs to it.

    Where it is a question and its answer, ``kind``, ``source`` and ``time_ms`` are the answer's. ``line`` is the line
    of the document on which the first token stands, from 1.
    """

    start: int
    stop: int
    kind: Kind
    source: str
    time_ms: int
    line: int


class Found(NamedTuple):
    """A segment and its score for a question: BM25, and for turns how new they are."""

    segment: Segment
    score: float


class Episodes:
    """Documents and turns as token ids.

    Parameters
    ----------
    piece
        The bytes of a token, which may be part of a character; empty for control tokens, so that no text that
        is taken from here has a control token in it.
    n_vocab
        Number of tokens of the vocabulary.
    limit
        Tokens to keep at most. The oldest documents go first, turns last; a sixteenth goes at a time.

    Raises
    ------
    InvalidParamError
        If the limit is not between ``LEAST_LIMIT`` and ``MOST_LIMIT``.
    """

    def __init__(self, piece: Callable[[int], bytes], n_vocab: int, *, limit: int = 1_000_000) -> None:
        if not LEAST_LIMIT <= limit <= MOST_LIMIT:
            raise InvalidParamError(
                f"the bound of the episodes must be from {LEAST_LIMIT} to {MOST_LIMIT} tokens", key="limit"
            )
        self.limit = limit
        self._pieces = Pieces(piece, n_vocab)
        self._begun: tuple[Kind, str, int] | None = None
        self._take(EpisodeArrays.empty())

    @classmethod
    def from_arrays(
        cls, arrays: EpisodeArrays, piece: Callable[[int], bytes], n_vocab: int, *, limit: int = 1_000_000
    ) -> Episodes:
        """Return a store of what was saved, which goes on as the one it was saved from.

        The arrays are checked and not copied; the index is made at the first search.

        Raises
        ------
        InvalidParamError
            If the arrays contradict themselves or the vocabulary.
        """
        arrays.check(n_vocab)
        store = cls(piece, n_vocab, limit=limit)
        store._take(arrays)
        if len(store) > limit:
            store._drop(len(store) - limit)
        return store

    def _take(self, arrays: EpisodeArrays) -> None:
        """Hold these arrays instead of what was held."""
        self._rows = {name: _Growing(getattr(arrays, name)) for name in DTYPES}
        self._sources = list(arrays.sources)
        self._source_ids = {name: i for i, name in enumerate(arrays.sources)}
        self._end = arrays.end
        self.dropped = arrays.dropped
        self._index: Index | None = None
        self._indexed_end = self._follows_at = -1
        self._followed = np.zeros(0, bool)
        self._lines = _Growing(np.zeros(0, np.int64))

    # What is held.

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self._rows["tokens"])

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return len(self._rows["block_start"])

    @property
    def count(self) -> int:
        """The number of documents and turns."""
        return len(self._rows["kind"])

    @property
    def end(self) -> int:
        """The absolute position that the next token will have."""
        return self._end

    @property
    def episodes(self) -> list[Episode]:
        """All documents and turns, oldest first. One from whose middle something was forgotten is two."""
        rows = {name: row.values for name, row in self._rows.items()}
        lengths = np.diff(rows["episode_start"].astype(np.int64), append=len(self))
        starts, stops = rows["position"].tolist(), (rows["position"] + lengths).tolist()
        kinds = [_KINDS[kind] for kind in rows["kind"].tolist()]
        sources = [self._sources[i] for i in rows["source"].tolist()]
        return list(map(Episode, starts, stops, kinds, sources, rows["time_ms"].tolist()))

    def arrays(self) -> EpisodeArrays:
        """Return what is held as a value, which stays as it is while the store goes on."""
        rows = {name: row.values for name, row in self._rows.items()}
        return EpisodeArrays(**rows, sources=tuple(self._sources), end=self._end, dropped=self.dropped)

    def text(self, start: int, stop: int) -> str:
        """Return what is held of a range of absolute positions as text.

        A character of which only a part lies in the range is left out; bytes that are no text become U+FFFD.
        """
        first, last = self._held(start), self._held(stop)
        return self._pieces.text(self._rows["tokens"].values[first:last])

    def texts(self, start: int, stop: int) -> list[str]:
        """Return what is held of a range of absolute positions as text, token by token."""
        first, last = self._held(start), self._held(stop)
        return self._pieces.texts(self._rows["tokens"].values[first:last], np.arange(last - first + 1))

    def tokens(self, start: int, stop: int) -> list[int]:
        """Return the token ids that are held of a range of absolute positions."""
        return [int(t) for t in self._rows["tokens"].values[self._held(start) : self._held(stop)]]

    def ends_with(self, kind: Kind, source: str, tokens: Sequence[int]) -> bool:
        """Tell whether the last episode is of a kind and a source, ends with these tokens, and can go on."""
        if not len(tokens) or self._begun is not None or not self._is_open():
            return False
        last = self._episode(len(self._rows["kind"]) - 1)
        if (last.kind, last.source) != (kind, source_name(source)) or last.stop - last.start < len(tokens):
            return False
        return bool(np.array_equal(self._rows["tokens"].values[-len(tokens) :], list(tokens)))

    def count_of(self, texts: Iterable[tuple[Kind, str]]) -> Counter[tuple[Kind, str]]:
        """Count the episodes that are of a kind and have a text, but for space around it; for several at once."""
        return Counter(one for _, one in self._like(texts))

    def numbers_of(self, kind: Kind, text: str) -> list[int]:
        """Return the numbers of the episodes that are of a kind and have a text, but for space; the oldest first."""
        return [number for number, _ in self._like([(kind, text)])]

    def turn(self, number: int) -> tuple[Kind, str]:
        """Return the kind and the text, without space around it, of the episode of a number."""
        one = self._episode(number)
        return one.kind, self.text(one.start, one.stop).strip()

    def _like(self, texts: Iterable[tuple[Kind, str]]) -> Iterator[tuple[int, tuple[Kind, str]]]:
        """Yield the numbers of episodes of these kinds and texts, each with both."""
        by_kind = dict[Kind, set[str]]()
        for kind, text in texts:
            by_kind.setdefault(kind, set()).add(text.strip())
        tokens, starts = self._rows["tokens"].values, self._rows["episode_start"].values
        edges = np.append(starts, len(self)).astype(np.int64)
        sizes = np.append([0], np.cumsum(self._pieces.sizes(tokens), dtype=np.int64))
        sizes = np.diff(sizes[edges])
        for kind, wanted in by_kind.items():
            lengths = np.array(sorted({len(text.encode("utf-8", "replace")) for text in wanted}))
            # the shortest that it may be; of longer ones some are tried in vain
            near = np.searchsorted(lengths, sizes, side="right") - 1
            likely = (self._rows["kind"].values == kind) & (near >= 0)
            likely &= sizes - lengths[np.maximum(near, 0)] <= _SPACE
            for i in np.flatnonzero(likely).tolist():
                text = self._pieces.text(tokens[edges[i] : edges[i + 1]]).strip()
                if text in wanted:
                    yield i, (kind, text)

    def segment(self, block: int) -> Segment:
        """Return a block and what follows it, as ``search`` finds them."""
        if not 0 <= block < self.blocks:
            raise InvalidParamError(f"there is no block {block}", key="block")
        return self._segments(np.array([block]), np.array([block + 1 + self.follows()[block]]))[0]

    def episode_at(self, position: int) -> Episode:
        """Return the document or turn that an absolute position lies in; of one that is not held, the one before."""
        if not len(self):
            raise InvalidParamError("nothing is held", key="position")
        starts = self._rows["position"].values
        return self._episode(max(0, int(np.searchsorted(starts, position, side="right")) - 1))

    def follows(self) -> Array:
        """Return (b,) bool: whether a block is read with the next one.

        That is the next of its episode, or the user's answer to the question that the block ends with. Where blocks
        are ranked in another way than by words, they are the same segments so.
        """
        if self._follows_at != self._end:
            asks = self._indexed().asks
            same = self._same_episode()
            kind, position = self._rows["kind"].values, self._rows["position"].values
            lengths = np.diff(self._rows["episode_start"].values.astype(np.int64), append=len(self))
            asked = (kind == Kind.ASSISTANT) & (_shifted(kind) == Kind.USER)
            asked &= position + lengths == _shifted(position)
            answered = asks & ~_shifted(asks) & asked[self._episode_of_blocks()] & ~same
            self._followed, self._follows_at = same | answered, self._end
            self._followed.flags.writeable = False
        return self._followed

    # What is read and said.

    def begin(self, kind: Kind, source: str = "", time_ms: int | None = None) -> None:
        """Begin a document or a turn; what was open before is closed.

        Nothing is kept of an episode that gets no tokens.

        Parameters
        ----------
        source
            A file's name; empty for talk.
        time_ms
            When it was read or said, in milliseconds since 1970, UTC; None is now.
        """
        time_ms = int(time.time() * 1000) if time_ms is None else int(time_ms)
        if not 0 <= time_ms <= LAST_TIME_MS:
            raise InvalidParamError("the time must be between the years 1970 and 9999", key="time_ms")
        self._begun = Kind(kind), source_name(source), time_ms

    def append(self, tokens: Iterable[int]) -> None:
        """Append tokens to what is open; where nothing is, a document without a source begins.

        Raises
        ------
        InvalidParamError
            If a token is not of the vocabulary. Nothing is appended then.
        """
        new = self._pieces.checked(tokens)
        while len(new):
            room = self.limit - len(self)
            if room <= 0:
                self._drop(self.limit // _DROPS)
                continue
            self._extend(new[:room])
            new = new[room:]

    def _extend(self, new: Array) -> None:
        if self._begun is not None or not self._is_open():
            self._open(*(self._begun or (Kind.DOCUMENT, "", int(time.time() * 1000))))
            self._begun = None
        self._rows["tokens"].extend(new)
        self._end += len(new)
        blocks = self._rows["block_start"]
        start = int(blocks.values[-1])
        if len(self) - start > BLOCK_TOKENS:
            marks = self._pieces.marks(self._rows["tokens"].values[start:])
            blocks.extend([start + at for at in cuts(*marks)])

    def _open(self, kind: Kind, source: str, time_ms: int) -> None:
        n = len(self)
        if source not in self._source_ids:
            self._source_ids[source] = len(self._sources)
            self._sources.append(source)
        values = {
            "block_start": n,
            "episode_start": n,
            "kind": kind,
            "source": self._source_ids[source],
            "time_ms": time_ms,
            "position": self._end,
            "line": 1,
        }
        for name, value in values.items():
            self._rows[name].extend([value])

    # What is asked.

    def looked_up(self) -> tuple[Posts, Array, Array, Array]:
        """Return the index, to be kept elsewhere: where words are; of each block words, question, line ends."""
        index = self._indexed()
        ends = self._pieces.line_ends(self._rows["tokens"].values).astype(np.int64)
        lines = (
            np.add.reduceat(ends, self._rows["block_start"].values.astype(np.int64)) if len(ends) else ends
        )
        return index.posts(), index.lengths, index.asks, lines

    def search(
        self,
        question: str,
        count: int,
        *,
        kinds: Collection[Kind] | None = None,
        before: int | None = None,
    ) -> list[Found]:
        """Return the segments whose words are most like a question's, best first; none overlaps another.

        Of turns that say the same the newer is first, and questions of the user come late. A question that the
        user was asked is found together with the answer.

        Parameters
        ----------
        count
            Segments at most.
        kinds
            Which to search; words are as rare as they are among these. None is all.
        before
            Only what ends before this absolute position.
        """
        index = self._indexed()
        blocks = self.blocks
        if before is not None:
            stops = np.append(self._rows["block_start"].values[1:], len(self))
            blocks = int(np.searchsorted(stops, self._held(before), side="right"))
        searched = np.arange(self.blocks) < blocks
        if kinds is not None:
            wanted = np.isin(self._rows["kind"].values, [int(kind) for kind in kinds])
            searched &= wanted[self._episode_of_blocks()]
        follows = self.follows() & _shifted(searched)
        scores = index.search(question, follows, searched) * self._worth(index.asks, follows)
        best = _apart(scores, follows, count)
        firsts = np.array(best, np.int64)
        lasts = firsts + 1 + follows[firsts]
        return [
            Found(segment, float(scores[i]))
            for i, segment in zip(best, self._segments(firsts, lasts), strict=True)
        ]

    def _worth(self, asks: Array, follows: Array) -> Array:
        """(b,) by what a segment's score is multiplied."""
        kind = self._rows["kind"].values[self._episode_of_blocks()]
        turn = np.isin(kind, [int(kind) for kind in TURNS])
        worth = np.ones(self.blocks, np.float32)
        turns = int(np.count_nonzero(turn))
        worth[turn] += _NEWEST * np.arange(1, turns + 1) / max(1, turns)
        ends = np.where(follows, _shifted(asks), asks)
        worth[(kind == Kind.USER) & ends] *= _ASKED
        return worth

    # What goes.

    def select(
        self, source: str | None = None, about: str | None = None, before_ms: int | None = None
    ) -> list[Segment]:
        """Return what ``forget`` would forget: whole turns and documents, or the blocks that are about something.

        Parameters
        ----------
        source
            The name of a document.
        about
            Words that all occur in a turn, or in a block of a document.
        before_ms
            A time: what was read or said before it. With several of these, what all of them hold for.
        """
        chosen = self._chosen(source, about, before_ms)
        return self._segments(*_spans(chosen, self._episode_of_blocks()))

    def forget(
        self, source: str | None = None, about: str | None = None, before_ms: int | None = None
    ) -> int:
        """Forget what ``select`` selects, and return how many tokens that were: they are in no array any more."""
        chosen = self._chosen(source, about, before_ms)
        before = len(self)
        if chosen.any():
            self._keep(~chosen)
        return before - len(self)

    def leave_out(self, numbers: Iterable[int]) -> None:
        """Forget the episodes of some numbers; those behind them have others then."""
        kept = ~np.isin(self._episode_of_blocks(), list(numbers))
        if not kept.all():
            self._keep(kept)

    def _chosen(self, source: str | None, about: str | None, before_ms: int | None) -> Array:
        """(b,) bool: the blocks that are selected."""
        if source is None and about is None and before_ms is None:
            raise InvalidParamError("say which episodes: a source, what they are about, or a time")
        chosen = np.ones(self.blocks, bool)
        episode = self._episode_of_blocks()
        if source is not None:
            chosen &= (self._rows["source"].values == self._source_ids.get(source_name(source), -1))[episode]
        if before_ms is not None:
            chosen &= (self._rows["time_ms"].values < before_ms)[episode]
        if about is not None:
            chosen &= self._about(about, episode)
        return chosen

    def _about(self, about: str, episode: Array) -> Array:
        """(b,) bool: whole turns, and blocks of documents, in which all words of a text occur."""
        if not words(about):
            raise InvalidParamError("there is no word in it to look for", key="about")
        index = self._indexed()
        holds = index.holding(about)
        # How many of an episode's blocks hold each word.
        in_episode: Array = np.stack([np.bincount(episode, row, len(self._rows["kind"])) for row in holds])
        turn = np.isin(self._rows["kind"].values, [int(kind) for kind in TURNS])
        alone: Array = np.all(holds, axis=0)
        chosen: Array = np.where(turn[episode], np.all(in_episode > 0, axis=0)[episode], alone)
        # A phrase may reach over the end of a block: then it is in two of them.
        joined: Array = np.all(holds[:, :-1] | holds[:, 1:], axis=0) & ~alone[:-1] & ~alone[1:]
        joined &= episode[:-1] == episode[1:]
        chosen[:-1] |= joined
        chosen[1:] |= joined
        return chosen

    def _keep(self, kept: Array) -> None:
        """Keep the blocks for which (b,) bool is true, in arrays of their own."""
        rows = {name: row.values for name, row in self._rows.items()}
        starts, first = rows["block_start"].astype(np.int64), rows["episode_start"].astype(np.int64)
        lengths = np.diff(starts, append=len(self))
        episode = self._episode_of_blocks()
        before = np.append([-1], np.flatnonzero(kept)[:-1])
        blocks = np.flatnonzero(kept)
        # An episode begins anew behind what is gone from it.
        begins = (blocks != before + 1) | (episode[blocks] != episode[before])
        if len(blocks):
            begins[0] = True
        heads = blocks[begins]
        of = episode[heads]
        inside = starts[heads] - first[of]
        line = rows["line"][of].astype(np.int64)
        if inside.any():
            ends = np.append([0], np.cumsum(self._pieces.line_ends(rows["tokens"]), dtype=np.int64))
            line += ends[starts[heads]] - ends[first[of]]
        new_starts = np.cumsum(lengths[blocks]) - lengths[blocks]
        used, source = np.unique(rows["source"][of], return_inverse=True)
        open_one = self._episode(len(rows["kind"]) - 1)[2:] if self._is_open() else None
        values = {
            "tokens": rows["tokens"][np.repeat(kept, lengths)],
            "block_start": new_starts,
            "episode_start": new_starts[begins],
            "kind": rows["kind"][of],
            "source": source,
            "time_ms": rows["time_ms"][of],
            "position": rows["position"][of] + inside,
            "line": line,
        }
        self._take(
            EpisodeArrays(
                **{name: np.asarray(values[name], dtype) for name, dtype in DTYPES.items()},
                sources=tuple(self._sources[i] for i in used),
                end=self._end,
                dropped=self.dropped,
            )
        )
        if open_one and not self._is_open() and self._begun is None:
            self._begun = open_one

    def _drop(self, count: int) -> None:
        """Make room for at least ``count`` tokens: the oldest documents and results of tools, turns last."""
        lengths = np.diff(self._rows["block_start"].values.astype(np.int64), append=len(self))
        turn = np.isin(self._rows["kind"].values, [int(kind) for kind in TURNS])[self._episode_of_blocks()]
        order = np.concatenate((np.flatnonzero(~turn), np.flatnonzero(turn)))
        if self._is_open():
            order = order[order != self.blocks - 1]  # it is still being read
        enough = int(np.searchsorted(np.cumsum(lengths[order]), count)) + 1
        kept = np.ones(self.blocks, bool)
        kept[order[:enough]] = False
        before, index = len(self), self._index
        self._keep(kept)
        self.dropped += before - len(self)
        if index is not None:
            index.keep(kept[: index.blocks])
            # About as much went by then as there is: the words of what is gone need room, too.
            self._index = index if index.thinned < _DROPS else None

    # Positions and places.

    def _is_open(self) -> bool:
        """Tell whether the next token goes on with the last episode, as far as the arrays tell."""
        return bool(len(self)) and self._episode(len(self._rows["kind"]) - 1).stop == self._end

    def _held(self, position: int) -> int:
        """Return the index in ``tokens`` of an absolute position, or of the first that is held after it."""
        positions, starts = self._rows["position"].values, self._rows["episode_start"].values
        i = int(np.searchsorted(positions, position, side="right")) - 1
        if i < 0:
            return 0
        stop = int(starts[i + 1]) if i + 1 < len(starts) else len(self)
        return min(int(starts[i]) + position - int(positions[i]), stop)

    def _episode(self, i: int) -> Episode:
        rows = {name: row.values for name, row in self._rows.items()}
        starts = rows["episode_start"]
        length = (int(starts[i + 1]) if i + 1 < len(starts) else len(self)) - int(starts[i])
        start, source = int(rows["position"][i]), self._sources[int(rows["source"][i])]
        return Episode(start, start + length, Kind(int(rows["kind"][i])), source, int(rows["time_ms"][i]))

    def _episode_of_blocks(self) -> Array:
        """(b,) the index of each block's episode."""
        starts = self._rows["episode_start"].values
        return np.searchsorted(starts, self._rows["block_start"].values, side="right") - 1

    def _segments(self, firsts: Array, lasts: Array) -> list[Segment]:
        """Return segments: the first block of each, and the one behind the last. The last block says whose it is."""
        if not len(firsts):
            return []
        rows = {name: row.values for name, row in self._rows.items()}
        edges = np.append(rows["block_start"], len(self)).astype(np.int64)
        of = np.searchsorted(rows["episode_start"], edges[firsts], side="right") - 1
        begun = rows["episode_start"][of]
        starts = rows["position"][of] + edges[firsts] - begun
        whose = np.searchsorted(rows["episode_start"], edges[lasts - 1], side="right") - 1
        ends = self._line_ends(int(firsts.max()) + 1)
        lines = rows["line"][of] + ends[firsts] - ends[np.searchsorted(rows["block_start"], begun)]
        return list(
            map(
                Segment,
                starts.tolist(),
                (starts + edges[lasts] - edges[firsts]).tolist(),
                [_KINDS[kind] for kind in rows["kind"][whose].tolist()],
                [self._sources[i] for i in rows["source"][whose].tolist()],
                rows["time_ms"][whose].tolist(),
                lines.tolist(),
            )
        )

    def _line_ends(self, blocks: int) -> Array:
        """Count the line ends in all tokens before each of the first ``blocks`` blocks."""
        known = len(self._lines)
        if blocks > known:
            edges = self._rows["block_start"].values[max(0, known - 1) : blocks].astype(np.int64)
            before = int(self._lines.values[-1]) if known else 0
            ends = self._pieces.line_ends(self._rows["tokens"].values[edges[0] : edges[-1]])
            sums = before + np.append([0], np.cumsum(ends, dtype=np.int64))[edges - edges[0]]
            self._lines.extend(sums[min(1, known) :])
        return self._lines.values

    def _same_episode(self) -> Array:
        """(b,) bool: whether the next block belongs to the same episode."""
        episode = self._episode_of_blocks()
        return np.asarray(_shifted(episode) == episode)

    def _indexed(self) -> Index:
        """Return the index of all that is held: only what is new is looked at."""
        if self._index is None:
            self._index, self._indexed_end = Index(), -1
        if self._indexed_end != self._end:
            tokens, starts = self._rows["tokens"].values, self._rows["block_start"].values
            grows = self._begun is None and self._is_open()
            edges = np.append(starts, len(self))[self._index.blocks :]
            texts = self._pieces.texts(tokens, edges)
            self._index.add(texts[: len(texts) - grows])
            self._index.grow(texts[-1] if grows else None)
            self._indexed_end = self._end
        return self._index


class _Growing:
    """A row that grows at its end: what was taken of it before stays as it was."""

    def __init__(self, values: Array) -> None:
        self._room, self._length = values, len(values)

    def __len__(self) -> int:
        return self._length

    @property
    def values(self) -> Array:
        """What is held, not to be written to."""
        values = self._room[: self._length]
        values.flags.writeable = False
        return values

    def extend(self, more: Any) -> None:
        length = self._length + len(more)
        if length > len(self._room):
            room = np.empty(max(2 * self._length, length, 16), self._room.dtype)
            room[: self._length] = self.values
            self._room = room
        self._room[self._length : length] = more
        self._length = length


def _shifted(row: Array) -> Array:
    """Return what comes after each value of a row; after the last, what is no kind, position or truth."""
    out = np.zeros(len(row), bool) if row.dtype == bool else np.full(len(row), -1, np.int64)
    out[:-1] = row[1:]
    return out


def _apart(scores: Array, follows: Array, count: int) -> list[int]:
    """Return the first blocks of the best segments, best first, of which no two share a block."""
    best: list[int] = []
    left = scores.copy()
    while len(left) and len(best) < count:
        i = int(left.argmax())
        if left[i] <= 0:
            break
        best.append(i)
        left[i] = 0
        if follows[i]:
            left[i + 1] = 0
        if i and follows[i - 1]:
            left[i - 1] = 0
    return best


def _spans(chosen: Array, episode: Array) -> tuple[Array, Array]:
    """Return runs of chosen blocks of one episode each: the first of each, and the one behind the last."""
    blocks = np.flatnonzero(chosen)
    cut = (np.diff(blocks) != 1) | (np.diff(episode[blocks]) != 0)
    edge = np.ones(min(1, len(blocks)), bool)
    return blocks[np.append(edge, cut)], blocks[np.append(cut, edge)] + 1
