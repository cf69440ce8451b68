"""What a lab that is closed still knows: numbers, words and memory, on the shelf until somebody asks.

A notebook's Out keeps every lab that a cell gave, whatever became of it; so one that is closed holds next to nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_kit.llama.trace import Trace
from atlas_kit.llama.trace_frames import GivenWords, Words
from atlas_kit.persistence.session_file import read_session_state
from atlas_kit.widgets.shelf import SHELF, Kept

if TYPE_CHECKING:
    from atlas_kit.memory import MemoryState
    from atlas_kit.persistence.session_state import SessionState
    from atlas_kit.settings.atlas_settings import AtlasSettings


@dataclass(frozen=True, eq=False)
class Past:
    """What there was when it ended.

    Attributes
    ----------
    facts, settings
        The numbers of that moment, and the settings that were in force; None for who only looked on.
    """

    facts: dict[str, Any]
    settings: AtlasSettings | None
    _columns: dict[str, tuple[str, tuple[int, ...], Kept]]
    _words: Kept
    _text: Kept
    _memory: Kept | None

    @classmethod
    def of(
        cls, facts: dict[str, Any], settings: AtlasSettings | None, trace: Trace, words: Words | GivenWords,
        text: str = "", memory: bytes | None = None,
    ) -> Past:  # fmt: skip
        """Put it away; ``memory`` is its file, where it had one of its own."""
        count = len(trace)
        rows = trace.rows()
        known = {*rows["tokens"].tolist(), *rows["top"].ravel().tolist()}
        names = [(token, words.name(token)) for token in sorted(known) if token >= 0]
        return cls(
            facts,
            settings,
            {
                name: (array.dtype.str, array.shape, SHELF.put(array.tobytes()))
                for name, array in rows.items()
            },
            SHELF.put(json.dumps([words.texts(0, count), names]).encode("ascii")),
            SHELF.put(text.encode("utf-8", "surrogatepass")),
            None if memory is None else SHELF.put(memory),
        )

    @property
    def trace(self) -> Trace:
        """What was read, and what was expected."""
        trace = Trace()
        trace.extend({
            name: np.frombuffer(kept.read(), dtype).reshape(shape)
            for name, (dtype, shape, kept) in self._columns.items()
        })  # fmt: skip
        return trace

    @property
    def words(self) -> GivenWords:
        """How it is spelled, without the model."""
        texts, names = json.loads(self._words.read())
        words = GivenWords()
        words.take(texts, map(tuple, names))
        return words

    @property
    def text(self) -> str:
        """The text that was to be read."""
        return self._text.read().decode("utf-8", "surrogatepass")

    @property
    def session_state(self) -> SessionState | None:
        """What the session knew, without its context; None where it goes on without the lab."""
        return None if self._memory is None else read_session_state(self._memory.read())

    @property
    def memory(self) -> MemoryState | None:
        """What was learned; None where it is learned on."""
        state = self.session_state
        return None if state is None else state.memory
