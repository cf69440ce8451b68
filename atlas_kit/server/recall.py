"""Answers for which something of a conversation's episodes is read again, in steps of its session. Knows no HTTP.

The text is read, and learned, as far as the question; what helps with that is looked for, judged and put in front of
it in a branch (``atlas_kit.llama.branching``), and answered there. Question and answer then follow the text.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from atlas_kit.llama.asking_prompts import LEAD, MIDDLE, PARTS, Form
from atlas_kit.llama.branching import Branch
from atlas_kit.llama.recalling import LONGEST_QUESTION, Recalled, candidates, recall_of, recalling
from atlas_kit.llama.steps import Finish, Step, Token
from atlas_kit.server.said import Span

if TYPE_CHECKING:
    from atlas_kit.llama.session import AtlasSession

#: Tokens that an answer has room for at least, before the older half of the context goes.
LEAST_ANSWER = 64
Answering = Callable[[Sequence[int]], Generator[Any, Any, Finish]]


class Question:
    """The end of a text, that a user wants to know something with.

    Attributes
    ----------
    at
        How many tokens are read before anything is looked for.
    recalled
        What was found, and why it is used or not.
    aside
        Whether the answer is made in a branch.

    Parameters
    ----------
    tokens
        The whole text.
    span
        Where in it the question is; it is not the first token.
    before
        What was said last before it.
    """

    def __init__(self, tokens: Sequence[int], span: Span, before: str) -> None:
        self.at = span.start - 1  # one token more: from its output the question's first one is predicted
        self._rest = list(tokens[self.at :])
        self._lead, self._asked = self._rest[:1], self._rest[1 : 1 + span.stop - span.start]
        self._behind = self._rest[1 + span.stop - span.start :]
        self._before = before
        self.recalled = Recalled()
        self.aside = False

    @staticmethod
    def in_text(tokens: Sequence[int], spans: Sequence[Span], before: str) -> Question | None:
        """Return the question at the end of a text; None where there is none that could be looked up."""
        if not spans or spans[-1].start < 1 or spans[-1].stop - spans[-1].start > LONGEST_QUESTION:
            return None
        return Question(tokens, spans[-1], before)

    def words(self, session: AtlasSession) -> str:
        """Return the question as a text."""
        pieces = [session.engine.piece(token) for token in self._asked]
        return b"".join(pieces).decode("utf-8", "replace")

    def answering(
        self, session: AtlasSession, answer: Answering, most: int
    ) -> Generator[Step | Token, Any, Finish]:
        """Look for what helps, once the text was read as far as ``at``, and answer with it or without.

        Parameters
        ----------
        answer
            Reads tokens and says what follows, at most ``most`` tokens.
        """
        assert session.memory is not None
        assert session.episodes is not None
        recall, engine = recall_of(session.memory.settings), session.engine
        found = candidates(
            session.episodes, self.words(session), recall, context=session.context_tokens, before=self._before
        )
        if not found:
            self.recalled = Recalled(reason="nothing was found by its words")
            return (yield from self._plainly(session, answer))
        form = Form(
            tuple(self._lead), tuple(engine.tokenize(LEAD)), tuple(engine.tokenize(MIDDLE)), (),
            tuple(self._behind), tuple(engine.tokenize(PARTS)),
        )  # fmt: skip
        around = len(self._rest) + len(form.lead) + len(form.middle)
        around += recall.segments * (recall.tokens + len(form.parts))
        # where a long answer has no room behind the context, the branch keeps a copy of it
        yield from session._make_room(min(around + LEAST_ANSWER, engine.n_ctx // 2))
        branch, failed = Branch(session, around + most), True
        finish, said = None, list[int]()
        try:
            self.recalled = yield from recalling(branch, session.episodes, form, self._asked, found, recall)
            if self.recalled.pieces:
                self.aside = True
                finish = yield from _noting(answer(self._behind), said)
            failed = False
        except GeneratorExit:  # whoever listened has gone
            failed = False
            raise
        finally:
            branch.close(failed=failed)
        if finish is None:
            return (yield from self._plainly(session, answer))
        if finish.stop is not None and said:
            said.pop()  # what completed a stop string ends the text, and is not read
        yield from session.reading([*self._rest, *said], score=False)
        return finish

    def _plainly(self, session: AtlasSession, answer: Answering) -> Generator[Step | Token, Any, Finish]:
        yield from session.reading(self._rest)
        return (yield from answer([]))


def _noting(work: Generator[Any, Any, Finish], said: list[int]) -> Generator[Any, Any, Finish]:
    """Do some work, and take down the tokens that it says."""
    outputs: Any = None
    try:
        while True:
            item = work.send(outputs)
            if isinstance(item, Token) and item.id >= 0:
                said.append(item.id)
            outputs = yield item
    except StopIteration as done:
        found: Finish = done.value
        return found
    finally:
        work.close()
