"""Answers for which something of a conversation's episodes is read again, in steps of its session. Knows no HTTP.

What helps with a question is looked for and judged in a branch (``atlas_kit.llama.branching``), behind what the model
is told at the beginning and nothing else, and answered there. Question and answer then enter the conversation. What
the same request says before its question is read and kept first, as if it had been said by itself; the answer stands
behind as much of it as there is room for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from atlas_kit.episodes import Episodes, Kind
from atlas_kit.errors import AtlasError
from atlas_kit.llama.asking import follows_up, found_for
from atlas_kit.llama.asking_prompts import LEAD, MIDDLE, PARTS, Form
from atlas_kit.llama.branching import Branch, Place
from atlas_kit.llama.checking import checked, saying
from atlas_kit.llama.inside import unblended, unlearned
from atlas_kit.llama.likeness import likeness_of
from atlas_kit.llama.recalling import (
    LONGEST_QUESTION,
    Piece,
    Recall,
    Recalled,
    again,
    recall_of,
    recalling,
    within,
)
from atlas_kit.llama.steps import Finish, Step, Token, Work
from atlas_kit.server.said import Said, Turn

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.session import AtlasSession

#: Characters of a question, and of its answer, that whoever looks on is told.
MOST_TOLD = 20_000
#: Tokens of each turn before a follow-up with which it is looked up and judged.
MOST_LEADING = 128
Answering = Callable[[Sequence[int]], Generator[Any, Any, Finish]]


class Question:
    """What a user wants to know at the end of a text.

    Attributes
    ----------
    recalled
        What was found, and why it is used or not.
    aside
        Whether the answer is made in a branch.

    Parameters
    ----------
    engine
        The model.
    said
        What is said in the text; it asks something.
    unread
        How many turns before the question nobody has read yet.
    """

    def __init__(self, engine: Engine, said: Said, unread: int = 0) -> None:
        self.recalled, self.aside = Recalled(), False
        self.text = said.turns[-1].text
        talk = [_telling(engine, turn) for turn in said.turns[-3:-1]]
        self._leading = " ".join(talk) if talk and follows_up(self.text) else ""
        self._form, self._asked = _form(engine, said, 1)
        #: Where a follow-up is judged together with what was said before it: how it is answered behind that.
        self._behind: tuple[Form, list[int]] | None = None
        #: Whether it can be looked up at all.
        self.usable = bool(self._form.before) and 0 < len(self._asked) <= LONGEST_QUESTION
        if self._leading and self.usable:
            with contextlib.suppress(AtlasError):  # the template does not take these messages alone
                self._behind = _form(engine, said, 1 + len(talk))
            if self._behind is None or not self._behind[0].before:
                self._leading, self._behind = "", None
            else:
                self._asked = engine.tokenize(f"{self._leading} {self.text}")
        if self.usable and unread > (len(talk) if self._behind else 0):
            self._behind = self._behind_unread(engine, said, unread) or self._behind

    @staticmethod
    def _behind_unread(engine: Engine, said: Said, unread: int) -> tuple[Form, list[int]] | None:
        """Return how the question is answered behind as many turns that nobody has read as there is room for."""
        while unread:
            form, asked = Form((), (), (), (), (), ()), list[int]()
            with contextlib.suppress(AtlasError):  # the template does not take these messages alone
                form, asked = _form(engine, said, 1 + unread)
            if form.before and within(Recall(), form, engine.n_ctx, asked) is not None:
                return form, asked
            unread = unread // 2 if form.before else unread - 1
        return None

    def answering(
        self,
        session: AtlasSession,
        fresh: Sequence[int],
        answer: Answering,
        progress: Callable[[int], None] | None = None,
        *,
        ahead: int = 0,
        keep: Callable[[], None] = lambda: None,
    ) -> Generator[Step | Token, Any, Finish]:
        """Look for what helps, and answer with it or without.

        Parameters
        ----------
        fresh
            What of the text is not read yet.
        ahead
            How much of that stands before the question and is said by itself: it is read first, and kept.
        answer
            Reads tokens and says what follows.
        progress
            Is told how much of the text is read, where nothing helps.
        keep
            Keeps what was read ahead.
        """
        if ahead:
            yield from session.reading(fresh[:ahead], progress=progress)
            fresh, told = fresh[ahead:], progress
            progress = None if told is None else lambda count: told(ahead + count)
        keep()
        found, recall = self._found(session)
        if not found or session.episodes is None:
            return (yield from _plainly(session, fresh, answer, progress))
        branch, said = Branch(session), list[int]()
        empty = branch.place()
        finish: Finish | None = None
        try:
            self.recalled = yield from recalling(
                branch, session.episodes, self._form, self._asked, found, recall, behind=self._behind
            )
            if self.recalled.pieces:
                self.aside = True
                finish = yield from _noting(self._checked(branch, empty, answer), said)
        finally:
            branch.close()
        if finish is None:
            with unblended(session) if self.recalled.unrelated else contextlib.nullcontext():
                return (yield from _plainly(session, fresh, answer, progress))
        if finish.stop is not None and said:
            said.pop()  # what completed a stop string ends the text, and is not read
        yield from session.reading(fresh, score=False)
        with unlearned(session):
            yield from session.reading(said, score=False)
        return finish

    def _checked(
        self, branch: Branch, empty: Place, answer: Answering
    ) -> Generator[Step | Token, Any, Finish]:
        """Answer behind what is read again; what says nothing of it is asked for in another way."""
        form, asked = self._behind or (self._form, self._asked)
        pieces = self.recalled.pieces

        def otherwise() -> Work[None]:
            branch.back(empty)
            yield from branch.read([*form.before, *branch.written(*again(form, pieces, asked))])

        says = saying(self.text, [piece.text for piece in pieces])
        finish, held, _ = yield from checked(
            lambda: answer(form.behind), otherwise, says, lambda finish: finish.reason
        )
        yield from held
        return finish

    def _found(self, session: AtlasSession) -> tuple[list[Piece], Recall]:
        """Return what may help, and how the memory is asked."""
        assert session.memory is not None
        recall = recall_of(session.memory.settings)
        forms = [(self._form, self._asked), *([self._behind] if self._behind else [])]
        fitting: Recall | None = recall
        for form, asked in forms:
            fitting = fitting and within(fitting, form, session.engine.n_ctx, asked)
        if fitting is None:
            self.recalled = Recalled(reason="the context has no room for it")
            return [], recall
        recall = fitting
        found = found_for(session, self.text, self._leading, recall)
        if not found:
            self.recalled = Recalled(reason="nothing was found")
        return found, recall


def question_of(engine: Engine, episodes: Episodes, said: Said, unread: int = 0) -> Question | None:
    """Return a question that can be looked up, and make the indexes for that; None: the answer does without."""
    try:
        question = Question(engine, said, unread)
    except AtlasError:  # the template does not take the last message alone
        return None
    if not question.usable:
        return None
    if len(episodes):
        episodes.search(question.text, 1)
        likeness_of(engine, episodes).question(episodes.arrays(), ())
    return question


def told_of(
    session: AtlasSession, said: Said | None, question: Question | None, answer: str, reason: str | None,
    seconds: float,
) -> dict[str, Any] | None:  # fmt: skip
    """Return an answer with what was recalled for it, or why nothing was; None: nobody asked a memory anything.

    ``reason`` is why the answer ended, ``seconds`` what it took.
    """
    memory, episodes = session.memory, session.episodes
    if said is None or not said.asks or memory is None:
        return None
    found = Recalled(reason="it was not looked for") if question is None else question.recalled
    recall = recall_of(memory.settings)
    return {
        "object": "atlas.recalled",
        "question": said.turns[-1].text[:MOST_TOLD],
        "answer": answer[:MOST_TOLD],
        "finish_reason": reason,
        "seconds": seconds,
        "stored_tokens": None if episodes is None else len(episodes),
        "recalled": [piece.to_json() for piece in found.pieces],
        "candidates": [piece.to_json() for piece in found.candidates],
        "recall": {
            "mode": recall.mode, "gate": recall.gate,
            "reason": found.reason, "gain": found.gain, "judged": len(found.candidates),
        },
    }  # fmt: skip


def _form(engine: Engine, said: Said, turns: int) -> tuple[Form, list[int]]:
    """Return what stands around the last of so many turns, and its tokens; nothing, where the template hides it."""
    tokens, alone = said.alone(turns)
    read, last = engine.tokenize, len(alone.turns) - 1
    start, stop = next(((s.start, s.stop) for s in alone.spans(engine, tokens) if s.turn == last), (0, 0))
    before, behind = tuple(tokens[:start]), tuple(tokens[stop:])
    form = Form(before, tuple(read(LEAD)), tuple(read(MIDDLE)), (), behind, tuple(read(PARTS)))
    return form, list(tokens[start:stop])


def _telling(engine: Engine, turn: Turn) -> str:
    """Return what a follow-up leans on: a question stands at its turn's end, an answer at its beginning."""
    tokens = engine.tokenize(turn.text)
    if len(tokens) <= MOST_LEADING:
        return turn.text
    some = tokens[-MOST_LEADING:] if turn.kind == Kind.USER else tokens[:MOST_LEADING]
    return b"".join(map(engine.piece, some)).decode("utf-8", "ignore")


def _plainly(
    session: AtlasSession, fresh: Sequence[int], answer: Answering, progress: Callable[[int], None] | None
) -> Generator[Step | Token, Any, Finish]:
    if fresh:
        yield from session.reading(fresh, progress=progress)
    return (yield from answer(()))


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
