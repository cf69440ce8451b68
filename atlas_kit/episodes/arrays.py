"""Episodes as a value: the arrays that are saved, and what must hold for them wherever they came from.

Knows no vocabulary and no index: what can be looked up in these arrays is ``store.py``'s.
"""

from __future__ import annotations

import datetime
import enum
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from atlas_kit.episodes.cut import BLOCK_TOKENS
from atlas_kit.errors import InvalidParamError, printable

Array: TypeAlias = NDArray[Any]

#: The last millisecond of the year 9999, which is the last that can be written as a date.
LAST_TIME_MS = 253_402_300_799_999
#: Characters of a source's name at most.
SOURCE_CHARACTERS = 1024
#: No position is larger: it is far from where 64 bits end.
LAST_POSITION = 1 << 62


class Kind(enum.IntEnum):
    """What an episode is: a document, or a turn of a conversation and whose it was."""

    DOCUMENT = 0
    USER = 1
    ASSISTANT = 2
    SYSTEM = 3
    TOOL = 4


#: The kinds that are a conversation. What a tool gave is read like a document.
TURNS = frozenset({Kind.USER, Kind.ASSISTANT, Kind.SYSTEM})


@dataclass(frozen=True, eq=False)
class EpisodeArrays:
    """Episodes as they are saved. Nobody writes into the arrays.

    ``n`` tokens stand one behind another in ``b`` blocks and ``e`` episodes. Within a store all arrays only grow at
    their ends until something is dropped or forgotten: ``extends`` tells.

    Parameters
    ----------
    tokens
        (n,) uint32: token ids.
    block_start
        (b,) uint32: index in ``tokens`` of each block's first token; ascending, from 0.
    episode_start
        (e,) uint32: index in ``tokens`` of each episode's first token; each is a block's start too.
    kind
        (e,) uint8: values of ``Kind``.
    source
        (e,) uint32: index in ``sources``.
    time_ms
        (e,) int64: when it was read or said, in milliseconds since 1970, UTC.
    position
        (e,) int64: the absolute position of each episode's first token, which stays when others are dropped.
    line
        (e,) uint32: the line of its document on which the episode's first token stands, from 1; more than 1 where
        what stood before it was dropped or forgotten.
    sources
        Names of files; "" for talk and for what has no name. Each once.
    end
        The absolute position that the next token will have.
    dropped
        Tokens that went because of the bound.
    """

    tokens: Array
    block_start: Array
    episode_start: Array
    kind: Array
    source: Array
    time_ms: Array
    position: Array
    line: Array
    sources: tuple[str, ...]
    end: int
    dropped: int = 0

    @classmethod
    def empty(cls) -> EpisodeArrays:
        """Return the arrays of a store into which nothing was read."""
        arrays: dict[str, Any] = {name: np.zeros(0, dtype) for name, dtype in DTYPES.items()}
        return cls(**arrays, sources=(), end=0)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.tokens)

    @property
    def gone(self) -> int:
        """Tokens that stood here once: dropped, or forgotten on purpose."""
        return self.end - len(self.tokens)

    def extends(self, earlier: EpisodeArrays) -> bool:
        """Tell whether ``earlier``, of the same store, is the beginning of each of these arrays."""
        return self.gone == earlier.gone and all(
            len(getattr(self, name)) >= len(getattr(earlier, name)) for name in (*DTYPES, "sources")
        )

    def check(self, n_vocab: int | None = None) -> None:
        """Check all that is promised above, and with ``n_vocab`` that each token is of the vocabulary.

        Raises
        ------
        InvalidParamError
            If something does not hold: one sentence that says what.
        """
        for name, dtype in DTYPES.items():
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != np.dtype(dtype):
                raise _wrong(f"{name} must be a row of {np.dtype(dtype).name}")
        self._check_starts()
        self._check_episodes()
        self._check_sources()
        if n_vocab is not None and len(self.tokens) and int(self.tokens.max()) >= n_vocab:
            raise _wrong(f"token {int(self.tokens.max())} is not one of the vocabulary's {n_vocab}")

    def _check_starts(self) -> None:
        n = len(self.tokens)
        for what, starts in (("block", self.block_start), ("episode", self.episode_start)):
            if (len(starts) > 0) != (n > 0) or (n and int(starts[0]) != 0):
                raise _wrong(f"the first {what} must start at the first token")
            if n and int(starts[-1]) >= n:
                raise _wrong(f"the last {what} starts at {int(starts[-1])}, behind the {n} tokens")
            if (starts[1:] <= starts[:-1]).any():
                raise _wrong(f"{what}s must start one behind another")
        if not n:
            return
        # 64 bits: a difference of unsigned numbers must not wrap around.
        if np.diff(self.block_start.astype(np.int64), append=n).max() > BLOCK_TOKENS:
            raise _wrong(f"a block has at most {BLOCK_TOKENS} tokens")
        at = np.searchsorted(self.block_start, self.episode_start)
        if (self.block_start[np.minimum(at, len(self.block_start) - 1)] != self.episode_start).any():
            raise _wrong("an episode must start where a block starts")

    def _check_episodes(self) -> None:
        count = len(self.episode_start)
        for name in ("kind", "source", "time_ms", "position", "line"):
            if len(getattr(self, name)) != count:
                raise _wrong(f"{name} must have one value for each of the {count} episodes")
        for name in ("end", "dropped"):
            if type(getattr(self, name)) is not int or not 0 <= getattr(self, name) <= LAST_POSITION:
                raise _wrong(f"{name} must be a count of tokens")
        if self.end < len(self.tokens):
            raise _wrong(f"there are {len(self.tokens)} tokens, and the next is said to be number {self.end}")
        if self.dropped > self.gone:
            raise _wrong(f"{self.dropped} tokens were dropped, and only {self.gone} are gone")
        if not count:
            return
        if int(self.kind.max()) not in set(Kind):
            raise _wrong(f"kind {int(self.kind.max())} is not known")
        if int(self.source.max()) >= len(self.sources):
            raise _wrong(f"source {int(self.source.max())} is not one of the {len(self.sources)}")
        if int(self.time_ms.min()) < 0 or int(self.time_ms.max()) > LAST_TIME_MS:
            raise _wrong("a time is not between the years 1970 and 9999")
        if int(self.line.min()) < 1:
            raise _wrong("lines count from 1")
        if int(self.position.min()) < 0 or int(self.position.max()) > self.end:
            raise _wrong("an episode's position lies outside of what was read")
        lengths = np.diff(self.episode_start.astype(np.int64), append=len(self.tokens))
        if (self.position + lengths > np.append(self.position[1:], self.end)).any():
            raise _wrong("the positions of two episodes overlap")

    def _check_sources(self) -> None:
        if len(self.sources) > len(self.episode_start):
            raise _wrong(f"{len(self.sources)} sources are more than the {len(self.episode_start)} episodes")
        for name in self.sources:
            if not isinstance(name, str) or len(name) > SOURCE_CHARACTERS or printable(name) != name:
                raise _wrong(f"a source's name must be at most {SOURCE_CHARACTERS} printable characters")
        if len(set(self.sources)) != len(self.sources):
            raise _wrong("two sources have the same name")


#: The arrays' types, by their names.
DTYPES: dict[str, type] = {
    "tokens": np.uint32,
    "block_start": np.uint32,
    "episode_start": np.uint32,
    "kind": np.uint8,
    "source": np.uint32,
    "time_ms": np.int64,
    "position": np.int64,
    "line": np.uint32,
}


def source_name(source: str) -> str:
    """Return a source's name as it is kept: printable, and no longer than names may be."""
    name = printable(source)
    return name if len(name) <= SOURCE_CHARACTERS else "…" + name[1 - SOURCE_CHARACTERS :]


def place_of(kind: str, source: str, line: int, time_ms: int) -> str:
    """Return where and when something was read or said, for people.

    >>> place_of("document", "a.txt", 3, 0), place_of("user", "", 1, 0)
    ('a.txt, line 3, 1970-01-01 00:00 UTC', 'user, 1970-01-01 00:00 UTC')
    """
    when = datetime.datetime.fromtimestamp(time_ms / 1000, datetime.timezone.utc)
    what = f"{kind} in {source}" if source else kind
    if kind == "document":
        what = f"{source or 'text'}, line {line}"
    return f"{what}, {when:%Y-%m-%d %H:%M} UTC"


def _wrong(sentence: str) -> InvalidParamError:
    return InvalidParamError(f"the episodes contradict themselves: {sentence}")
