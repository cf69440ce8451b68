"""Asking a session about what it has read and what was said, long after that has left the model's context.

The answer is made in a branch (branching.py), in front of which stands what the episodes hold (recalling.py):
nothing of that is learned or stored. Question and answer then enter the conversation without it.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.episodes import Kind
from atlas_kit.episodes.words import words
from atlas_kit.errors import InvalidParamError
from atlas_kit.llama import arguments
from atlas_kit.llama.asking_prompts import Form, form_of, template_of
from atlas_kit.llama.branching import Branch, Place
from atlas_kit.llama.checking import checked, saying
from atlas_kit.llama.inside import unblended, unlearned
from atlas_kit.llama.recalling import (
    LONGEST_QUESTION,
    Piece,
    Recall,
    Recalled,
    again,
    candidates,
    recall_of,
    recalling,
    within,
)
from atlas_kit.llama.sampling import Sampling
from atlas_kit.llama.steps import Finish, Step, Token, Work

if TYPE_CHECKING:
    from atlas_kit.llama.chat import ChatTemplate
    from atlas_kit.llama.inside import Inside

#: Words of a question that is too short to stand alone.
SHORT = 3
#: Words that stand for something that was said before, or go on with it.
_LEANING = frozenset(
    """
    he she it they him her them his hers its their theirs that this those these there then and also
    er sie es ihn ihm ihr ihnen sein seine das dies diese dort dann und auch
    il elle ils elles lui leur cela ça ce cette ces y alors et aussi
    él ella ellos eso esto ese esta allí entonces también
    """.split()  # noqa: SIM905 (a list of them would take a page)
)
#: What a statement of somebody begins with, in the languages that are known here.
_STATES = frozenset(
    """
    i my we our he she it they his her their the this that these those there yes no ok okay thanks thank hello hi bye
    ich mein meine wir unser unsere er sie es der die das ja nein danke hallo
    je mon ma mes nous notre nos il elle le la les oui non merci bonjour
    yo mi mis nosotros el los las sí no gracias hola
    """.split()  # noqa: SIM905 (a list of them would take a page)
)
#: Words by which somebody asks for something without a question mark. In doubt it is a question.
_ASKS = frozenset(
    """
    who whom whose what when where which why how tell remind name list show say explain describe give recall remember
    know wonder ask question forgot forget look find please want need can could would should
    wer wen wem wessen was wann wo wohin woher welche welcher welches warum wieso wie sag sage erzähl erzähle nenn nenne
    zeig zeige erklär erkläre beschreib beschreibe erinnere erinner weiß weiss frage such bitte will kann
    qui que quoi quand où quel quelle quels quelles pourquoi comment combien dis dites raconte rappelle nomme explique
    montre sais cherche veux peux
    quién qué cuándo dónde cuál cuáles cómo cuánto di dime cuenta recuerda explica muestra sé busca quiero puedes
    """.split()  # noqa: SIM905
)
_LEANS = re.compile("[他她它那这其]|それ|その|彼")
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
        ``stop``, ``length``, or ``cancelled`` where somebody did not want more.
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
            "earlier": [piece.to_json() for piece in self.recalled.earlier],
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
    until: Callable[[], bool] = lambda: False,
    before: Sequence[tuple[str, str]] | None = None,
) -> Generator[Step | Token, Any, Answer]:
    """Do ``AtlasSession.ask`` in steps: yields a step, and is sent its outputs, or a token; returns the answer.

    ``before`` are the questions and answers before, on which a follow-up leans; None are those that were asked here
    since the context was emptied. ``template``: True takes the model's own, None or False none. ``until`` is asked
    between tokens: True ends the answer, and what was said of it enters the conversation.
    """
    started = time.perf_counter()
    max_tokens = arguments.count_of("max_tokens", max_tokens)
    if not question.strip():
        raise InvalidParamError("the question is empty", key="question")
    yield from session.catching_up()
    engine = session.engine
    chosen = template_of(engine) if template is True else template or None
    if recall is None:
        recall = recall_of(None if session.memory is None else session.memory.settings)
    talked = session.talked if before is None else before
    leading = " ".join(talked[-1]) if talked and follows_up(question) else ""
    found = [] if session.episodes is None else found_for(session, question, leading, recall)
    form = form_of(engine, chosen, system=system, going_on=bool(session.context_tokens))
    asked = form.question(engine, question)
    talk = _Talk(session, form, asked, sampling or Sampling(temperature=0), max_tokens, stop, until)
    recalled = Recalled(reason="off" if recall.mode == "off" else "nothing was found")
    fresh = form_of(engine, chosen, system=system)
    whole = fresh.question(engine, f"{leading} {question}")
    fitting = within(recall, fresh, engine.n_ctx, whole)
    if found and fitting is None:
        found, recalled = [], Recalled(reason="the context has no room for it")
    said: tuple[Finish, list[Token], float] | None = None
    if found or not keep:
        branch = Branch(session)  # apart from the conversation, in which a question is likely anyway
        try:
            empty, behind = branch.place(), None
            if found and session.episodes is not None:
                if leading:
                    behind = form_of(engine, chosen, system=system, talk=talked[-1:]), asked
                recalled = yield from recalling(
                    branch, session.episodes, fresh, whole, found, fitting or recall, behind=behind
                )
            if recalled.pieces:
                said = yield from _checked(
                    talk, branch, empty, recalled.pieces, question, *(behind or (fresh, whole))
                )
            elif not keep:
                branch.remember()
                said = yield from talk.answering(talk.plain, alone=recalled.unrelated)
        finally:
            branch.close()
    if said is None:
        said = yield from talk.answering(talk.plain, alone=recalled.unrelated)
        answered: list[int] = []
    else:
        answered = [token.id for token in said[1] if token.id >= 0]
    finish, tokens, first = said
    text = "".join(token.text for token in tokens)
    if keep:
        if recalled.pieces:
            yield from session.reading(talk.plain, score=False)
            yield from talk.repeating(answered)
            session._counts.tokens_generated += len(answered)
            session._counts.seconds_generating += branch.counts.seconds_generating
        session.talked.append((question, text.strip()))
        session.remember(Kind.USER, question)
        session.remember(Kind.ASSISTANT, [token.id for token in tokens if token.id >= 0])
    now = time.perf_counter()
    return Answer(
        question, text.strip(), recalled, tuple(tokens), finish.reason, first - started, now - started
    )


def _checked(
    talk: _Talk, branch: Branch, empty: Place, pieces: Sequence[Piece], question: str, form: Form,
    asked: Sequence[int],
) -> Generator[Step | Token, Any, tuple[Finish, list[Token], float]]:  # fmt: skip
    """Answer behind pieces and question; an answer that says nothing of the pieces is asked for in another way."""

    def otherwise() -> Work[None]:
        branch.back(empty)
        yield from branch.read([*form.before, *branch.written(*again(form, pieces, asked))])

    says = saying(question, [piece.text for piece in pieces])
    made, held, when = yield from checked(
        lambda: talk.answering(list(form.behind)), otherwise, says, lambda made: made[0].reason
    )
    return (yield from talk.telling(held, made)) if held else (made[0], made[1], when or made[2])


def ask(
    session: Inside, question: str, *, told: Callable[[Token], None] | None = None, **options: Any
) -> Answer | None:
    """Do ``AtlasSession.ask``; ``told`` gets each token as it comes.

    None where ``until`` said so before anything was said: the question may be half read.
    """
    until = options.get("until", lambda: False)
    work = asking(session, question, **options)
    item: Step | Token | None = None
    said = False
    try:
        while True:
            item = session._next(work, item)
            if isinstance(item, Token):
                said = True
                if told is not None:
                    told(item)
            elif not said and until():
                return None
    except StopIteration as done:
        answer: Answer = done.value
        return answer
    finally:
        work.close()


class _Talk:
    """A question and how it is answered."""

    def __init__(
        self, session: Inside, form: Form, asked: list[int], sampling: Sampling, max_tokens: int | None,
        stop: str | tuple[str, ...], until: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._until = until
        self._session, self._sampling, self._max_tokens = session, sampling, max_tokens
        self._stops = (*form.stops, *arguments.stops_of(stop))
        #: What is read where nothing is read again.
        self.plain = [*form.before, *form.plain, *asked, *form.behind]

    def answering(
        self, tokens: list[int], *, alone: bool = False
    ) -> Generator[Step | Token, Any, tuple[Finish, list[Token], float]]:
        """Read tokens and say what follows; return why it ended, what was said, and when the first token came.

        ``alone``: the memory has no say in it. Where the episodes know nothing of a question, what was learned of the
        same texts makes it worse: 3 of 50 general questions, of SmolLM2-135M.
        The memory does not learn what is said: a model that learns its own answers begins the next one like them.
        SmolLM2-135M said 3 of 20 capitals, painters and the like in one conversation so, and 13 without.
        """
        session, said, first = self._session, list[Token](), 0.0
        # first, so that a grammar that cannot be followed costs no reading
        sampler = session.engine.sampler(arguments.sampling_of(self._sampling))
        work = session.generating(max_tokens=self._max_tokens, stop=self._stops, sampler=sampler)
        outputs = None
        try:
            yield from session.reading(tokens, score=False)
            with unlearned(session), unblended(session) if alone else contextlib.nullcontext():
                while True:
                    item = work.send(outputs)
                    if isinstance(item, Token):
                        first = first or time.perf_counter()
                        said.append(item)
                    outputs = yield item
                    if isinstance(item, Token) and self._until():
                        return Finish("cancelled"), said, first
        except StopIteration as done:
            return done.value, said, first or time.perf_counter()
        finally:
            sampler.close()
            work.close()

    def telling(
        self, held: Sequence[Token], made: tuple[Finish, list[Token], float]
    ) -> Generator[Token, Any, tuple[Finish, list[Token], float]]:
        """Tell the tokens of an answer that were held back, while somebody wants them; return the answer."""
        when = time.perf_counter()
        for count, token in enumerate(held, 1):
            yield token
            if self._until():
                return Finish("cancelled"), list(held[:count]), when
        return made[0], made[1], when

    def repeating(self, answered: list[int]) -> Work[None]:
        """Read an answer that was made on the side; it is not learned either."""
        with unlearned(self._session):
            yield from self._session.reading(answered, score=False)


def found_for(session: Inside, question: str, leading: str, recall: Recall) -> list[Piece]:
    """Return what may help with a question behind ``leading``, where something is to be found at all."""
    if recall.mode == "off" or (recall.mode == "auto" and states(question)):
        return []
    if len(session.engine.tokenize(question)) > LONGEST_QUESTION:
        return []
    assert session.episodes is not None
    return candidates(
        session.engine, session.episodes, question, recall, context=session.context_tokens, before=leading
    )


def follows_up(question: str) -> bool:
    """Tell whether a question leans on what was said before it: it is very short, or says ``he`` or ``that``.

    >>> follows_up("And when was that?"), follows_up("When was the bridge built?")
    (True, False)
    """
    found = words(question)
    return len(found) <= SHORT or not _LEANING.isdisjoint(found) or bool(_LEANS.search(question))


def states(text: str) -> bool:
    """Tell whether a text plainly asks for nothing, so that nothing need be looked up for it.

    In doubt it asks: a question that is not looked up is worse than a statement that is.

    >>> states("I like tea."), states("I like tea, and you?"), states("Tell me about tea."), states("My tea")
    (True, False, False, False)
    """
    if not text.rstrip().endswith((".", "!")) or any(mark in text for mark in "?？؟;՞"):
        return False
    found = words(text)
    folded = {word.casefold() for word in re.findall(r"[^\W_]+", text)}
    return bool(found) and found[0] in _STATES and _ASKS.isdisjoint(folded.union(found))
