"""What a session knows at one moment, as a plain value: its memory, what waits for a step, and its context.

A session gives one and takes one (``AtlasSession.state`` and ``restore``); ``session_file`` writes and reads them.
Knows no model, no settings by name and no file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import InvalidParamError, WrongModelError

if TYPE_CHECKING:
    from atlas_kit.codecs.numbers import Array
    from atlas_kit.episodes import EpisodeArrays
    from atlas_kit.memory import MemoryConfig, MemoryState


@dataclass(frozen=True, eq=False, repr=False)
class SessionState:
    """A session at one moment. Nobody writes to its arrays: it may be kept, written or restored at any later time.

    Attributes
    ----------
    config, memory
        What kind of memory it is, and its arrays.
    settings
        The settings of the memory under their usual names, as JSON values.
    waiting
        Arrays of the tokens whose step is not full yet, (n, ...), and of the recent ones: ``tables.WAITING``.
    identity, model, architecture
        The model beside which it learned: 64 hexadecimal digits, and its names.
    tokens
        The tokens in the model's context; none where the context was left out.
    position
        Where the next token stands in it.
    output
        ``logits`` (1, vocabulary) and ``hidden`` (1, width) of the last token, from which the next is predicted.
    context
        The engine's own bytes of the context.
    build
        What gave the bytes of the context, with its version; empty where nobody knows.
    texts
        The tokens of each text that it has read, whole, that of the context last; none where nobody keeps them.
    episodes
        What was read and said, to be found again; None where nobody keeps it.
    """

    config: MemoryConfig
    memory: MemoryState
    settings: Mapping[str, Any]
    waiting: Mapping[str, Array]
    identity: str
    model: str = ""
    architecture: str = ""
    tokens: tuple[int, ...] = ()
    position: int = 0
    output: Mapping[str, Array] = field(default_factory=dict)
    context: bytes | None = None
    texts: tuple[Sequence[int], ...] = ()
    build: str = ""
    episodes: EpisodeArrays | None = None

    def __repr__(self) -> str:
        """Say it in one line: the arrays may be megabytes."""
        kept = f"{len(self.tokens):,} tokens of context" if self.tokens else "no context"
        return f"<SessionState beside {self.model or self.identity[:16]}: {self.memory!r}, {kept}>"

    def context_for(self, identity: str, build: str) -> bytes | None:
        """Return the bytes of the context where they are this model's and this engine's; else its tokens are read."""
        return self.context if self.identity == identity and self.build in ("", build) else None

    def require_model(
        self, identity: str, *, path: str | os.PathLike[str] | None = None, hint: str = ""
    ) -> None:
        """Raise ``WrongModelError`` where the memory is not of the model of this identity.

        Raises
        ------
        InvalidParamError
            One of the identities is none.
        """
        for one in (self.identity, identity):
            require_identity(one)
        if self.identity != identity:
            raise WrongModelError(
                bytes.fromhex(self.identity), bytes.fromhex(identity),
                path=None if path is None else os.fspath(path), hint=hint or "Use force to load it anyway.",
            )  # fmt: skip


def require_identity(identity: str) -> None:
    """Raise ``InvalidParamError`` for what cannot be a model's identity; an empty one is that of no known model."""
    if not isinstance(identity, str) or not re.fullmatch("([0-9a-fA-F]{64})?", identity):
        raise InvalidParamError(
            f"{identity!r:.80} is not the identity of a model",
            key="identity",
            hint="It is 64 hexadecimal digits.",
        )
