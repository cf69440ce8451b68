"""A session's memory as it was at several moments: copies that learning does not change any more.

``Snapshots`` keeps a bounded number of them, evenly spread over the run whatever its length. Knows no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import MemoryConfig, MemoryState
from atlas_kit.memory.backend import to_host
from atlas_kit.settings.atlas_settings import AtlasSettings

if TYPE_CHECKING:
    from atlas_kit.llama.session import AtlasSession


#: Bytes that the snapshots of one run may take.
MOST_BYTES = 256 << 20


@dataclass(frozen=True, eq=False, repr=False)
class Snapshot:
    """A memory at one moment.

    Attributes
    ----------
    label, tokens_seen, step
        What to call it; tokens taken in and steps of the optimiser so far.
    settings, config, model
        What kind of memory it is, and the identity of the model that it is bound to.
    state, waiting
        The arrays, on the host, and what waited for its step to fill (``TokenMemory.waiting``).
    """

    label: str
    tokens_seen: int
    step: int
    settings: AtlasSettings
    config: MemoryConfig
    model: str
    state: MemoryState
    waiting: Mapping[str, Array]

    def __repr__(self) -> str:
        return f"<Snapshot {self.label!r}: {self.state!r}>"

    @property
    def arrays(self) -> dict[str, Array]:
        """The learned matrices by name, (rows, cols)."""
        return dict(self.state.parameters)

    def memory_state(self) -> MemoryState:
        """Return the whole state."""
        return self.state


def take_snapshot(session: AtlasSession, label: str | None = None) -> Snapshot:
    """Copy a session's memory.

    Raises
    ------
    InvalidParamError
        When the session has none.
    """
    memory = session.memory
    if memory is None:
        raise InvalidParamError("this session has no memory", key="memory", hint="Open it with memory=True.")
    memory.commit()
    seen = memory.tokens_seen
    return Snapshot(
        label or f"{seen:,} tokens",
        seen,
        int(memory.state.counters["steps"]),
        memory.settings,
        memory.memory.config,
        session.engine.info.identity,
        memory.state.map(lambda array: np.array(to_host(array))),
        {name: np.array(array) for name, array in memory.waiting().items()},
    )


class Snapshots(Sequence[Snapshot]):
    """The snapshots of a run, oldest first.

    Parameters
    ----------
    every
        Tokens from one to the next at first; whenever there would be too many, every second one goes and the
        distance doubles.
    most
        How many are kept at most, the first and the last among them; fewer where they would take more than a quarter
        of a gigabyte.

    Examples
    --------
    >>> from atlas_kit.llama import AtlasSession, FakeEngine
    >>> taken = Snapshots(every=16, most=6)
    >>> with AtlasSession(FakeEngine()) as session:
    ...     for _ in range(10):
    ...         _ = taken.offer(session)
    ...         _ = session.feed("x" * 16)
    ...     taken.keep(session)
    >>> [one.tokens_seen for one in taken]
    [0, 47, 79, 111, 143, 159]
    """

    def __init__(self, every: int = 256, most: int = 24) -> None:
        if every < 1 or most < 3:
            raise InvalidParamError(f"every is {every} and most is {most}", hint="At least 1 and 3.")
        self._every, self._most = every, most
        self._taken: list[Snapshot] = []
        self._last: Snapshot | None = None

    def offer(self, session: AtlasSession) -> bool:
        """Take a snapshot if it is time for one."""
        memory = session.memory
        if memory is None:
            return False
        if self._taken and memory.tokens_seen // self._every <= self._taken[-1].tokens_seen // self._every:
            return False
        self._taken = [*self._taken, take_snapshot(session)]
        room = min(self._most, max(3, MOST_BYTES // max(1, memory.state_bytes)))
        if len(self._taken) >= room:  # one place is for the last moment
            self._taken, self._every = self._taken[::2], 2 * self._every
        return True

    def keep(self, session: AtlasSession) -> None:
        """Make the present the last moment, until it is kept again."""
        self._last = take_snapshot(session)

    def clear(self) -> None:
        """Forget them all."""
        self._taken, self._last = [], None

    def _all(self) -> list[Snapshot]:
        taken, last = self._taken, self._last
        newer = last is not None and (not taken or last.tokens_seen > taken[-1].tokens_seen)
        return [*taken, last] if newer and last is not None else taken

    def __len__(self) -> int:
        return len(self._all())

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self._all())

    @overload
    def __getitem__(self, index: int) -> Snapshot: ...
    @overload
    def __getitem__(self, index: slice) -> list[Snapshot]: ...
    def __getitem__(self, index: int | slice) -> Snapshot | list[Snapshot]:
        return self._all()[index]
