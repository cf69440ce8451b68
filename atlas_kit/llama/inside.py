"""What modules that work inside of a session see of it. ``AtlasSession`` is the one there is, and uses them."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from atlas_kit.llama.engine import Engine, Outputs
from atlas_kit.llama.last_output import LastOutput
from atlas_kit.llama.sampling import Sampling
from atlas_kit.llama.steps import Finish, Observer, Stats, Step, Token, Work

if TYPE_CHECKING:  # the first answer of a server without memories needs none of these
    from atlas_kit.episodes import Episodes, Kind
    from atlas_kit.llama.token_memory import TokenMemory


class Inside(Protocol):
    """A session's inside; see ``AtlasSession`` for what each of these is."""

    engine: Engine
    memory: TokenMemory | None
    episodes: Episodes | None
    sequence: int
    learns: bool
    blends: bool
    observer: Observer | None
    feed_limit: int
    keeps: int
    talked: list[tuple[str, str]]
    _context: list[int]
    _position: int
    _last_output: LastOutput | None
    _owed: list[int]
    _aside: TokenMemory | None
    _said: Token | None
    _counts: Stats

    @property
    def closed(self) -> bool:
        """Whether it was closed."""

    @property
    def context_tokens(self) -> tuple[int, ...]:
        """The tokens in the model's context."""

    def catching_up(self) -> Work[None]:
        """Read what the context lacks."""

    def reading(self, tokens: Sequence[int], *, score: bool = True) -> Work[None]:
        """Read tokens in steps."""

    def generating(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        sampling: Sampling | None = None,
        sampler: Any = None,
        leaves_last: bool = False,
    ) -> Generator[Step | Token, Any, Finish]:
        """Read and say what follows, in steps."""

    def remember(self, kind: Kind, text: str | Sequence[int], source: str = "") -> None:
        """Keep a turn or a document in the episodes."""

    def forget_context(self) -> None:
        """Empty the model's context."""

    def run(self, work: Work[Any]) -> Any:
        """Carry out work alone."""

    def _decoded(self, tokens: list[int], outputs: int, *, hidden: bool | None = None) -> Work[Outputs]:
        """Append tokens to the context."""

    def _kept(self) -> int:
        """Return how many tokens at the beginning of the context stay when it is full."""

    def _output_at(self, outputs: Outputs, index: int, token: int) -> LastOutput:
        """Keep the last row of some outputs."""

    def _next(self, work: Generator[Any, Any, Any], item: Step | Token | None) -> Any:
        """Do what some work asked for, and return what it asks for next."""


@contextlib.contextmanager
def unlearned(session: Inside) -> Iterator[None]:
    """While it lasts, a session learns nothing of what it reads and says, and keeps none of it."""
    learns, session.learns = session.learns, False
    try:
        yield
    finally:
        session.learns = learns


@contextlib.contextmanager
def unblended(session: Inside) -> Iterator[None]:
    """While it lasts, what a session says is what the model alone would say."""
    blends, session.blends = session.blends, False
    try:
        yield
    finally:
        session.blends = blends
