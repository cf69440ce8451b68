"""What ``MemoryCompare`` is given, as sides that can be compared: files, sessions, states, snapshots of a run, servers.

Knows where each keeps its arrays, settings and model; what is compared is ``operations/compare.py``'s.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import AtlasError, InvalidParamError
from atlas_kit.llama.session import AtlasSession
from atlas_kit.llama.snapshots import take_snapshot
from atlas_kit.llama.token_memory import TokenMemory
from atlas_kit.memory import Memory, MemoryConfig, MemoryState
from atlas_kit.operations.compare import Side, difference, peak, side_of_file, side_of_state
from atlas_kit.persistence.snapshot import LoadedMemory
from atlas_kit.storage.given import Given
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import Source
from atlas_kit.widgets.remote import ServerMemory
from atlas_kit.widgets.sources import as_matrix


def side_of(given: Any, label: str | None = None, keys: Keys | None = None) -> Side:
    """Return what there is to compare about anything that holds a memory.

    Parameters
    ----------
    given
        A file, by path or opened; an ``AtlasSession``, ``TokenMemory``, ``LoadedMemory``, ``MemoryState``, or a pair of
        ``Memory`` and state; a snapshot (``label``, ``arrays``, ``memory_state()``); or a mapping of names to matrices.

    Raises
    ------
    AtlasError
        It holds no memory, or the file cannot be read.
    """
    if isinstance(given, Side):
        return given
    if isinstance(given, (str, os.PathLike, Source)):
        return side_of_file(given, label=label, keys=keys)
    if isinstance(given, AtlasSession):
        if given.memory is None:
            raise InvalidParamError(
                "this session has no memory", key="memory", hint="Open it with memory=True."
            )
        return _of_token_memory(given.memory, label or "session", given.engine.info.identity)
    if isinstance(given, TokenMemory):
        return _of_token_memory(given, label or "memory", None)
    if isinstance(given, LoadedMemory):
        config = given.description.configs[0]
        return side_of_state(
            given.state, config, label=label or _name(given), model=given.description.model_hash
        )
    if isinstance(given, MemoryState):
        return side_of_state(given, label=label or "state")
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], MemoryState):
        config = given[0].config if isinstance(given[0], Memory) else given[0]
        return side_of_state(given[1], config, label=label or "state")
    if hasattr(given, "memory_state") and hasattr(given, "arrays"):
        return _of_snapshot(given, label)
    if isinstance(given, Mapping):
        return Side(label or "matrices", {str(name): _matrix(str(name), one) for name, one in given.items()})
    raise InvalidParamError(
        f"{type(given).__name__} is not a memory that can be compared",
        hint="Give .atlas files, sessions, states, or snapshots of a run.",
    )


def _matrix(name: str, given: Any) -> Array:
    try:
        return np.array(as_matrix(given))
    except InvalidParamError as error:
        error.key = name
        raise


def _name(loaded: LoadedMemory) -> str:
    return os.path.basename(loaded.description.path or "") or "memory"


def _of_token_memory(memory: TokenMemory, label: str, model: str | None) -> Side:
    facts = {
        "settings": memory.settings.to_json(),
        "learning rate at present": round(memory.learning_rate, 6),
    }
    return side_of_state(memory.state, memory.memory.config, label=label, facts=facts, model=model)


def _of_snapshot(given: Any, label: str | None) -> Side:
    state, config = given.memory_state(), getattr(given, "config", None)
    label = label or str(given.label)
    settings = getattr(given, "settings", None)
    facts = {} if settings is None else {"settings": settings.to_json()}
    if not isinstance(state, MemoryState):
        return Side(label, {name: np.atleast_2d(array) for name, array in given.arrays.items()}, facts)
    known = config if isinstance(config, MemoryConfig) else None
    return side_of_state(
        state, known, label=label, facts=facts, model=getattr(given, "model", None), copy=False
    )


class Moments:
    """Two memories, or a run's snapshots in order; sides are made when they are looked at.

    What cannot be read becomes a side without matrices whose note says why.
    """

    def __init__(
        self, given: Sequence[Any], labels: Sequence[str] | None = None, keys: Keys | None = None
    ) -> None:
        if len(given) < 2:
            raise InvalidParamError(
                "two memories are needed for a comparison",
                key="b",
                hint="Give a second one, or several snapshots.",
            )
        if labels is not None and len(labels) != len(given):
            raise InvalidParamError(f"{len(labels)} labels for {len(given)} memories", key="labels")
        self._given = list(given)
        self.labels = list(labels) if labels is not None else _labels(given)
        self._keys = keys
        self.forget()

    def __len__(self) -> int:
        return len(self._given)

    def forget(self) -> None:
        """Look at everything anew: sessions go on learning, files change."""
        self._sides: dict[int, Side] = {}
        self._peaks: dict[str, float] = {}
        # what a session learns from now on must show neither in its matrices nor in its behaviour
        self._frozen = [_frozen(one) for one in self._given]

    def frozen(self, index: int) -> Any:
        """Return what was given; a session, and a server's memory, as it was when it was looked at.

        Raises
        ------
        AtlasError
            The server did not give it.
        """
        found = self._frozen[index]
        if isinstance(found, AtlasError):
            raise found
        return found

    def file(self, index: int) -> Given | None:
        """Return the file that a side was read from; None: it was none."""
        found = self._frozen[index]
        return found if isinstance(found, (str, os.PathLike, Source)) else self.side(index).path

    def side(self, index: int) -> Side:
        """Return one side."""
        if index not in self._sides:
            try:
                self._sides[index] = side_of(self.frozen(index), self.labels[index], self._keys)
            except AtlasError as error:
                self._sides[index] = Side(self.labels[index], {}, notes=(f"{self.labels[index]}: {error}",))
        return self._sides[index]

    def matrix(self, name: str, moment: int, later: int | None = None) -> Array | None:
        """Return a matrix at one moment, or what it has become at a later one less that."""
        if later is None:
            return self.side(moment).matrices.get(name)
        return difference(self.side(moment), self.side(later), name)

    def peak(self, name: str) -> float:
        """Return the greatest finite absolute value that a matrix ever has: a colour scale that stands still."""
        if name not in self._peaks:
            sides = map(self.side, range(len(self)))
            found = [peak(side.matrices[name]) for side in sides if name in side.matrices]
            self._peaks[name] = max((value for value in found if np.isfinite(value)), default=0.0)
        return self._peaks[name]


def _frozen(given: Any) -> Any:
    """Return what goes on by itself as it is now; where it cannot be had, the error."""
    if isinstance(given, AtlasSession) and given.memory is not None:
        return take_snapshot(given)
    if isinstance(given, ServerMemory):
        try:
            return given.fetch()
        except AtlasError as error:
            return error
    return given


def _labels(given: Sequence[Any]) -> list[str]:
    """Name every memory: by file, or as it calls itself, or by letter; no two alike."""
    found = [_label(one, place) for place, one in enumerate(given)]
    if len(set(found)) == len(found):
        return found
    paths = [
        os.fspath(one) if isinstance(one, (str, os.PathLike)) else found[n] for n, one in enumerate(given)
    ]
    if len(set(paths)) == len(paths):
        return [str(path) for path in paths]
    return [f"{name} ({place + 1})" for place, name in enumerate(found)]


def _label(given: Any, place: int) -> str:
    if isinstance(given, (str, os.PathLike)):
        return os.path.basename(os.fspath(given))
    if isinstance(given, LoadedMemory):
        return _name(given)
    label = getattr(given, "label", None)
    if isinstance(label, str) and label:
        return label
    return "AB"[place] if place < 2 else str(place + 1)
