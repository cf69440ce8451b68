"""What was read and said goes into a conversation's episodes, each turn and each document once. Knows no HTTP.

A client sends a conversation whole each time. Where its beginning is no longer what was read (a date in the system
prompt, an edited turn), all of it is read again; what was said in it was said once.

Where an answer is asked for again, or the question before it was corrected, the newest counts: what was left goes from
the episodes. Whether a client has gone back to an earlier place, or begins another talk in the same words, a request
says with ``replaces``, or nobody does: then only what was certainly replaced goes, and never what stands behind an
opening that two talks may share. The first question of all is such an opening: "Anna's code is 1234." and "Berta's code
is 1234." are two facts, and no correction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_kit.episodes import Kind
from atlas_kit.llama.steps import common_length
from atlas_kit.server.said import Said, Span

if TYPE_CHECKING:
    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.llama.steps import Token


#: What an exchange is made of.
_TALK = (Kind.USER, Kind.ASSISTANT, Kind.TOOL)


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
    common, left
        So many tokens are the beginning of a text that was read; and what that goes on with.
    returned
        It is a text that was left before: turns of it may have gone from the episodes.
    replaces
        It is said to correct the text before it: all that this left goes, also a first question.

    Attributes
    ----------
    spans
        As given.
    """

    def __init__(
        self,
        session: AtlasSession,
        said: Said,
        tokens: Sequence[int],
        spans: Sequence[Span],
        since: int,
        *,
        common: int = 0,
        left: Sequence[int] = (),
        returned: bool = False,
        replaces: bool = False,
    ) -> None:
        self._session, self._said, self._tokens, self.spans = session, said, tokens, list(spans)
        self._since, self._next = since, 0
        self._common, self._left, self._returned, self._replaces = common, left, returned, replaces
        self._before: dict[int, bool] | None = None
        self._held = 0 if session.episodes is None else session.episodes.count
        #: Whether something was taken out of the episodes.
        self.left_out = False

    @property
    def unread(self) -> list[Span]:
        """The turns before the last that are not read to their end."""
        return [span for span in self.spans[:-1] if span.stop > self._since]

    @property
    def _read_before(self) -> list[Span]:
        """The turns of the text that was read before."""
        return [span for span in self.spans if span.stop <= self._common]

    @property
    def takes_long(self) -> bool:
        """Whether all that is held has to be looked through."""
        return self._returned or (bool(self._left) and (self._replaces or bool(self._read_before)))

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
                if self._returned and not self._known().get(span.turn, True):
                    self._keep_whole(span)
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
            self._leave()
            self._session.remember(Kind.ASSISTANT, said)

    def _leave(self) -> None:
        """Take what this answer replaces out of the episodes."""
        session, episodes = self._session, self._session.episodes
        common = self._read_before
        if episodes is None or not session.learns or not self._left or not (common or self._replaces):
            return
        new = self.spans[len(common) :]
        begun = min(new[0].start, self._common) if new else self._common
        left = _text(session, [*self._tokens[begun : self._common], *self._left])
        first, found = self._gone(common[-1] if common else None, left) if left.strip() else (0, [])
        if not found or (not self._replaces and not self._certainly_gone(found, new, common)):
            return
        # a question that is answered again stands before its answer
        asked = not new and common[-1].kind == Kind.USER
        episodes.leave_out(range(first - asked, first + len(found)))
        self.left_out = True
        if asked:
            self._keep_whole(common[-1])

    def _certainly_gone(
        self, found: list[tuple[Kind, str]], new: Sequence[Span], common: Sequence[Span]
    ) -> bool:
        """Tell whether turns that were left are replaced; leave out those that may be another talk's."""
        if new and not self._corrects(found[0], new, common):
            return False
        whose = [turn[0] for turn in found]
        if Kind.USER in whose[1:]:  # what was said behind that may be another talk's
            del found[whose.index(Kind.USER, 1) :]
        return bool(new) or whose[0] != Kind.USER

    def _corrects(self, old: tuple[Kind, str], new: Sequence[Span], common: Sequence[Span]) -> bool:
        """Tell whether what comes behind the common turns is a correction of a turn that was left."""
        texts = [(span.kind, self._text(span)) for span in new]
        if texts[0][0] != old[0] or old in texts or not _corrected(old[1], texts[0][1]):
            return False
        # an answer tells one talk from another; a greeting does not
        return old[0] != Kind.USER or any(span.kind == Kind.ASSISTANT for span in common)

    def _gone(self, last: Span | None, text: str) -> tuple[int, list[tuple[Kind, str]]]:
        """Return which episodes stand behind a turn and are in the text that was left: their first number, and they.

        Those of another talk that was kept in between end that. ``last`` is None: the text begins with the first.
        """
        episodes = self._session.episodes
        assert episodes is not None
        starts = range(self._held) if last is None else episodes.numbers_of(last.kind, self._text(last))
        for number in reversed(starts):
            found: list[tuple[Kind, str]] = []
            at = 0
            for turn in map(episodes.turn, range(number + (last is not None), self._held)):
                at = text.find(turn[1], at)
                if turn[0] not in _TALK or at < 0 or (last is None and not found and text[:at].strip()):
                    break
                at += len(turn[1])
                found.append(turn)
            if found:
                return number + (last is not None), found
        return 0, []

    def _text(self, span: Span) -> str:
        return _text(self._session, self._tokens[span.start : span.stop]).strip()

    def _keep_whole(self, span: Span) -> None:
        self._session.remember(span.kind, self._tokens[span.start : span.stop], self._said.source)

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
            spans = self.spans if self._returned and turns else self.spans[:-1]
            earlier = [turns[span.turn][:2] for span in spans]
            self._before = {}
            if episodes is not None and len(episodes):
                kept, seen = episodes.count_of(earlier), Counter[tuple[Kind, str]]()
                for span, one in zip(spans, earlier, strict=True):
                    seen[one] += 1
                    self._before[span.turn] = seen[one] <= kept[one]
        return self._before


def _text(session: AtlasSession, tokens: Sequence[int]) -> str:
    """Return tokens as text, without control tokens."""
    return b"".join(map(session.engine.piece, tokens)).decode("utf-8", "replace")


def _corrected(old: str, new: str) -> bool:
    """Tell whether a text is another one that was changed in one place, but for less than half of it, or cut short.

    >>> _corrected("My cat is called Tom.", "My cat is called Tim.")
    True
    >>> _corrected("My name is Bertram.", "What is my name?")
    False
    """
    shortest = min(len(old), len(new))
    before = common_length([*old], [*new])
    behind = common_length([*old[before:]][::-1], [*new[before:]][::-1])
    same = before + behind
    return bool(same) and (same == shortest or 2 * same >= max(len(old), len(new)))
