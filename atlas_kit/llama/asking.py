"""Asking a session about what it has read and what was said, long after that has left the model's context.

The answer is made in a branch (branching.py), in front of which stands what the episodes hold (recalling.py):
nothing of that is learned or stored. Question and answer then enter the conversation without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.episodes import Kind
from atlas_kit.errors import InvalidParamError
from atlas_kit.llama import arguments
from atlas_kit.llama.asking_prompts import Form, form_of, template_of
from atlas_kit.llama.branching import Branch
from atlas_kit.llama.recalling import (
    LONGEST_QUESTION,
    Piece,
    Recall,
    Recalled,
    candidates,
    recall_of,
    recalling,
)
from atlas_kit.llama.sampling import Sampling
from atlas_kit.llama.steps import Finish, Step, Token

if TYPE_CHECKING:
    from atlas_kit.llama.chat import ChatTemplate
    from atlas_kit.llama.inside import Inside

#: Tokens of an answer, where nobody says how many.
MAX_TOKENS = 256


@dataclass(frozen=True)
class Answer:
    """What came of a question.

    Attributes
    ----------
    text
        The answer.
    recalled
        What was read again for it, what else was judged, and why.
    tokens
        Its tokens.
    reason
        ``stop`` or ``length``.
    first_token
        Seconds until its first token.
    seconds
        Seconds in all.
    """

    question: str
    text: str
    recalled: Recalled
    tokens: tuple[Token, ...] = field(repr=False)
    reason: str
    first_token: float
    seconds: float

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What was read again for it."""
        return self.recalled.pieces

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {
            "question": self.question,
            "answer": self.text,
            "finish_reason": self.reason,
            "gain": self.recalled.gain,
            "reason": self.recalled.reason,
            "pieces": [piece.to_json() for piece in self.pieces],
            "candidates": [piece.to_json() for piece in self.recalled.candidates],
            "first_token_seconds": round(self.first_token, 3),
            "seconds": round(self.seconds, 3),
        }


def asking(
    session: Inside,
    question: str,
    *,
    recall: Recall | None = None,
    keep: bool = True,
    max_tokens: int | None = MAX_TOKENS,
    stop: str | tuple[str, ...] = (),
    sampling: Sampling | None = None,
    system: str | None = None,
    template: ChatTemplate | bool | None = True,
) -> Generator[Step | Token, Any, Answer]:
    """Do ``AtlasSession.ask`` in steps: yields a step, and is sent its outputs, or a token; returns the answer.

    ``template``: True takes the model's own, None or False none.
    """
    started = time.perf_counter()
    max_tokens = arguments.count_of("max_tokens", max_tokens)
    if not question.strip():
        raise InvalidParamError("the question is empty", key="question")
    yield from session.catching_up()
    engine = session.engine
    chosen = template_of(engine) if template is True else template or None
    form = form_of(engine, chosen, system=system, going_on=bool(session.context_tokens))
    asked = form.question(engine, question)
    if recall is None:
        recall = recall_of(None if session.memory is None else session.memory.settings)
    found = [] if session.episodes is None else _found(session, question, asked, recall)
    talk = _Talk(session, form, asked, sampling or Sampling(temperature=0), max_tokens, stop)
    recalled = Recalled(reason="off" if recall.mode == "off" else "nothing was found by its words")
    said: tuple[Finish, list[Token], float] | None = None
    if found or not keep:
        most = _most(form, asked, recall) + (engine.n_ctx if max_tokens is None else max_tokens)
        yield from session._make_room(min(most, engine.n_ctx // 2))
        # what was read for the gate would have to be learned, too: where nothing is taken, it is read anew
        branch, failed = Branch(session, most), True
        try:
            assert session.episodes is not None or not found
            if found:
                recalled = yield from recalling(branch, session.episodes, form, asked, found, recall)  # type: ignore[arg-type]
            if recalled.pieces:
                said = yield from talk.answering(list(form.behind))
            elif not keep:
                branch.remembers()
                said = yield from talk.answering(talk.plain)
            failed = False
        except GeneratorExit:
            failed = False
            raise
        finally:
            branch.close(failed=failed)
    if said is None:
        said = yield from talk.answering(talk.plain)
        answered: list[int] = []
    else:
        answered = [token.id for token in said[1] if token.id >= 0]
    finish, tokens, first = said
    text = "".join(token.text for token in tokens)
    if keep:
        if recalled.pieces:
            yield from session.reading([*talk.plain, *answered], score=False)
        session.remember(Kind.USER, question)
        session.remember(Kind.ASSISTANT, [token.id for token in tokens if token.id >= 0])
    now = time.perf_counter()
    return Answer(
        question, text.strip(), recalled, tuple(tokens), finish.reason, first - started, now - started
    )


def ask(
    session: Inside, question: str, *, told: Callable[[Token], None] | None = None, **options: Any
) -> Answer:
    """Do ``AtlasSession.ask``; ``told`` gets each token as it comes."""
    work = asking(session, question, **options)
    item: Step | Token | None = None
    try:
        while True:
            item = session._next(work, item)
            if isinstance(item, Token) and told is not None:
                told(item)
    except StopIteration as done:
        answer: Answer = done.value
        return answer
    finally:
        work.close()


class _Talk:
    """A question and how it is answered."""

    def __init__(
        self, session: Inside, form: Form, asked: list[int], sampling: Sampling, max_tokens: int | None,
        stop: str | tuple[str, ...],
    ) -> None:  # fmt: skip
        self._session, self._sampling, self._max_tokens = session, sampling, max_tokens
        self._stops = (*form.stops, *arguments.stops_of(stop))
        #: What is read where nothing is read again.
        self.plain = [*form.before, *form.plain, *asked, *form.behind]

    def answering(self, tokens: list[int]) -> Generator[Step | Token, Any, tuple[Finish, list[Token], float]]:
        """Read tokens and say what follows; return why it ended, what was said, and when the first token came."""
        session, said, first = self._session, list[Token](), 0.0
        work = session.generating(
            tokens, max_tokens=self._max_tokens, stop=self._stops, sampling=self._sampling
        )
        outputs: Any = None
        try:
            while True:
                item = work.send(outputs)
                if isinstance(item, Token):
                    first = first or time.perf_counter()
                    said.append(item)
                outputs = yield item
        except StopIteration as done:
            return done.value, said, first or time.perf_counter()
        finally:
            work.close()


def _found(session: Inside, question: str, asked: list[int], recall: Recall) -> list[Piece]:
    """Return what words find, where something is to be found at all."""
    if recall.mode == "off" or len(asked) > LONGEST_QUESTION:
        return []
    assert session.episodes is not None
    return candidates(session.episodes, question, recall, context=session.context_tokens)


def _most(form: Form, asked: list[int], recall: Recall) -> int:
    """Return how many tokens stand before an answer at most."""
    around = (form.before, form.lead, form.middle, form.behind, form.plain)
    return sum(map(len, around)) + len(asked) + recall.segments * (recall.tokens + len(form.parts))
