"""What was read and said goes into a conversation's episodes, each turn and each document once. Knows no HTTP.

A client sends a conversation whole each time. Where its beginning is no longer what was read (a date in the system
prompt, an edited turn), all of it is read again; what was said in it was said once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_kit.episodes import Kind
from atlas_kit.server.said import Said, Span

if TYPE_CHECKING:
    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.llama.steps import Token


class Keeping:
    """Keeps the turns of one request.

    Parameters
    ----------
    session
        Whose episodes keep them.
    said, tokens, spans
        What is said in the text, its tokens, and which of them are whose.
    since
        The first token that nobody has read yet.

    Attributes
    ----------
    spans
        As given.
    """

    def __init__(
        self, session: AtlasSession, said: Said, tokens: Sequence[int], spans: Sequence[Span], since: int
    ) -> None:
        self._session, self._said, self._tokens, self.spans = session, said, tokens, list(spans)
        self._since, self._next = since, 0
        self._before: dict[int, bool] | None = None

    @property
    def unread(self) -> list[Span]:
        """The turns before the last that are not read to their end."""
        return [span for span in self.spans[:-1] if span.stop > self._since]

    @property
    def left(self) -> int:
        """How many tokens there are to be kept."""
        return sum(max(0, span.stop - max(self._since, span.start)) for span in self.spans[self._next :])

    def read(self, end: int) -> None:
        """Keep what was read up to a token."""
        while self._next < len(self.spans) and self.spans[self._next].start < end:
            span = self.spans[self._next]
            self._next += 1
            if span.stop <= self._since:
                continue
            last = span is self.spans[-1]  # who says it now says it, however often it was said before
            if not last and self._known().get(span.turn, False):
                continue
            self._keep(span, min(span.stop, end))

    def answered(self, tokens: Sequence[Token]) -> None:
        """Keep what was answered, without its thoughts."""
        if not self.spans:
            return
        said: Sequence[int] | str = [token.id for token in tokens if token.id >= 0]
        if self._said.spoken is not None and (text := self._said.spoken(tokens)) is not None:
            said = text.strip()
        if said:
            self._session.remember(Kind.ASSISTANT, said)

    def _keep(self, span: Span, stop: int) -> None:
        session, source, start, since = self._session, self._said.source, span.start, self._since
        if start < since:  # a text that goes on, or one that was read in part
            plain = [token for token in self._tokens[start:since] if session.engine.piece(token)]
            open_one = session.episodes is not None and session.episodes.ends_with(span.kind, source, plain)
            if open_one and session.episodes is not None and session.learns:
                more = [token for token in self._tokens[since:stop] if session.engine.piece(token)]
                session.episodes.append(more)
                return
            start = start if self._said.turns else since
        session.remember(span.kind, self._tokens[start:stop], source)

    def _known(self) -> dict[int, bool]:
        """Return by the numbers of turns whether they were kept when they were read before."""
        if self._before is None:
            episodes, turns = self._session.episodes, self._said.turns
            earlier = [turns[span.turn][:2] for span in self.spans[:-1]]
            self._before = {}
            if episodes is not None and len(episodes):
                kept, seen = episodes.count_of(earlier), Counter[tuple[Kind, str]]()
                for span, one in zip(self.spans[:-1], earlier, strict=True):
                    seen[one] += 1
                    self._before[span.turn] = seen[one] <= kept[one]
        return self._before
