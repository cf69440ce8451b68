"""Going on with a text as it went on when it was read, however long ago that is.

As asking.py does with questions: a beginning (``The code of Bamiru is``) takes the place of a question, and no words
stand around it. Knows no chat templates.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_kit.llama.asking_prompts import Form
from atlas_kit.llama.branching import Branch
from atlas_kit.llama.recalling import (
    Piece,
    Recall,
    Recalled,
    candidates,
    recall_of,
    recalling,
    stands_in,
    within,
)
from atlas_kit.llama.sampling import Sampling
from atlas_kit.llama.steps import Step, Token, Work

if TYPE_CHECKING:
    from atlas_kit.llama.inside import Inside


def completing(
    session: Inside, beginning: Sequence[int], max_tokens: int, *, recall: Recall | None = None,
    given: Sequence[int] = (),
) -> Generator[Step | Token, Any, Recalled]:  # fmt: skip
    """Go on greedily behind some tokens, in steps; yields tokens as they come, and leaves no trace.

    What helps is read again in front of them, in place of the context; where nothing does, they stand behind it. The
    memory answers, too. Where its exact window still holds what helps, it may know better without: then both are
    asked, and of the two the one that is surer of what it says is told.
    ``given`` are tokens to read in front of them instead, as if just these had been found.
    """
    yield from session.catching_up()
    engine = session.engine
    if recall is None:
        recall = recall_of(None if session.memory is None else session.memory.settings)
    line = tuple(engine.tokenize("\n"))
    form = Form((*engine.begin, *line), (), line, (), (), line)
    recalled = Recalled(reason="off" if recall.mode == "off" else "nothing was found")
    fitting = within(recall, form, engine.n_ctx, beginning)
    found, asked, rest = [], list(beginning[:-1]), list(beginning)
    searched = asked and not given and recall.mode != "off"
    if searched and session.episodes is not None and fitting is not None:
        text = b"".join(map(engine.piece, beginning)).decode("utf-8", "replace")
        found = candidates(engine, session.episodes, text, fitting, context=session.context_tokens)
    branch = Branch(session)
    try:
        if found and fitting is not None and session.episodes is not None:
            recalled = yield from recalling(branch, session.episodes, form, asked, found, fitting)
        if given:
            told = b"".join(map(engine.piece, given)).decode("utf-8", "replace").strip()
            yield from branch.read([*form.before, *branch.written(told, line, beginning[:-1])])
        said: list[Token] | None = None
        if recalled.pieces:
            branch.blend(asked)
            rest = rest[-1:]
            if _in_window(session, recalled.pieces):
                behind = yield from _held_back(session, rest, max_tokens)
                branch.remember()
                alone = yield from _held_back(session, beginning, max_tokens)
                said = behind if _sureness(behind) > _sureness(alone) else alone
        elif given:
            rest = rest[-1:]
        else:
            branch.remember()
        if said is None:
            yield from session.reading(rest, score=False)
            yield from session.generating(max_tokens=max_tokens, sampling=Sampling(temperature=0))
        else:
            yield from said
    finally:
        branch.close()
    return recalled


def _in_window(session: Inside, pieces: Sequence[Piece]) -> bool:
    """Tell whether the exact window of a memory holds all of some pieces."""
    if session.memory is None or session.episodes is None:
        return False
    held = np.asarray(session.memory.slots().tokens, np.int32).tobytes()
    return all(stands_in(session.episodes.tokens(piece.start, piece.stop), held) for piece in pieces)


def _held_back(session: Inside, tokens: Sequence[int], max_tokens: int) -> Work[list[Token]]:
    """Read tokens and return what follows greedily, without telling it as it comes."""
    yield from session.reading(tokens, score=False)
    work = session.generating(max_tokens=max_tokens, sampling=Sampling(temperature=0))
    said, outputs = list[Token](), None
    try:
        while True:
            item = work.send(outputs)
            outputs = None
            if isinstance(item, Token):
                said.append(item)
            else:
                outputs = yield dataclasses.replace(item, token=None)  # which would be told otherwise
    except StopIteration:
        return said
    finally:
        work.close()


def _sureness(said: Sequence[Token]) -> float:
    """Return the mean log-probability of tokens, in nats; the least possible where nothing was said."""
    return statistics.fmean([token.logprob for token in said if token.logprob is not None] or [-np.inf])


def complete(
    session: Inside, beginning: Sequence[int], max_tokens: int, **options: Any
) -> tuple[str, Recalled]:
    """Do ``completing``; return what was said, and what was read again for it."""
    work = completing(session, beginning, max_tokens, **options)
    item: Step | Token | None = None
    said: list[str] = []
    try:
        while True:
            item = session._next(work, item)
            if isinstance(item, Token):
                said.append(item.text)
    except StopIteration as done:
        recalled: Recalled = done.value
        return "".join(said), recalled
    finally:
        work.close()
