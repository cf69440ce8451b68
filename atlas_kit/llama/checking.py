"""Whether an answer says anything of what was read again for it; where it does not, it is asked for once more.

A small model that finds nothing in a piece repeats the question, or says something of its own. With the question in
front of the piece as well it reads the piece with the question in mind: of 65 questions with the right piece in front
SmolLM2-135M answered 36 rightly, and 39 where the 14 answers that said nothing of the piece were asked for so. Asked
for so at once, it answered 37, and others. Knows neither engines nor sessions.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

from atlas_kit.episodes.words import words
from atlas_kit.llama.steps import Step, Token, Work

T = TypeVar("T")
#: Tokens in which an answer must have said something of a piece; of a shorter one that was cut off nobody can say.
SOON, LEAST = 32, 8
#: Words that say nothing by themselves, and those with which answers begin.
SMALL = frozenset(
    """
    a an and are as at be been but by can could did do does for from had has have he her his how i in into is it its
    me my no not of off on or our out she so than that the their them then there they this to up was we were what
    when where which who whom whose will with would yes you your answer question given text passage based according
    aber als am an auf aus bei bin bis das dem den der des die du ein eine einem einen einer er es für hat ich ihr
    im in ist ja kein man mein mit nein nicht oder sein seine sich sie sind um und uns von war was wer wie wir wird
    wo zu zum zur antwort frage au aux avec ce ces cette dans de des du elle en est et il ils je la le les leur lui
    mais ne non nous on ou où par pas pour qu que qui sa se ses son sont sur un une vous à réponse al como con del
    el ella en es esta este la las lo los más mi no para pero por que se si sin su sus un una y respuesta
    """.split()  # noqa: SIM905 (a list of them would take a page)
)


def saying(question: str, pieces: Iterable[str]) -> Callable[[str], bool]:
    """Return what tells whether an answer says something of some pieces that its question does not say.

    >>> says = saying("What is my doctor called?", ["My doctor is Wilhelmina Tarr, in Bow Street."])
    >>> says("The answer to this question is: your doctor"), says("She is called Tarr.")
    (False, True)
    """
    news = {word for piece in pieces for word in words(piece)}.difference(words(question), SMALL)
    return lambda answer: not news.isdisjoint(words(answer))


def held_back(
    work: Generator[Step | Token, Any, T], says: Callable[[str], bool]
) -> Generator[Step | Token, Any, tuple[T | None, list[Token], float]]:
    """Do some work in steps, and let its tokens through once they say something.

    Returns what the work returned, the tokens that were held back (none once something was said), and when the first
    was let through. None for work that was given up, as it said nothing for long.
    """
    held: list[Token] = []
    through, outputs, when = False, None, 0.0
    try:
        while True:
            item = work.send(outputs)
            outputs = None
            if through or not isinstance(item, Token):
                if not through and isinstance(item, Step):  # it would tell its token
                    item = dataclasses.replace(item, token=None)
                outputs = yield item
                continue
            held.append(item)
            # the last word may go on in the next token
            through = says("".join(token.text for token in held))
            if through:
                when = time.perf_counter()
                yield from held
                held = []
            elif len(held) >= SOON:
                return None, held, when
    except StopIteration as done:
        return done.value, held, when
    finally:
        work.close()


def checked(
    answer: Callable[[], Generator[Step | Token, Any, T]], otherwise: Callable[[], Work[None]],
    says: Callable[[str], bool], reason: Callable[[T], str],
) -> Generator[Step | Token, Any, tuple[T, list[Token], float]]:  # fmt: skip
    """Answer in steps, and once more where that says nothing.

    Returns what the work of the answer that is taken returned, its tokens where they are still to be told, and when the
    first was told (0.0 where that is not known).

    Parameters
    ----------
    answer
        Begins an answer.
    otherwise
        Reads what stands in front of it in another way.
    reason
        Returns why an answer ended: one that nobody wants any more, or that had no room, is not asked for again.
    """
    first, held, when = yield from held_back(answer(), says)
    if first is not None:
        ended = reason(first)
        if when or ended == "cancelled" or (ended == "length" and len(held) < LEAST):
            return first, held, when
    yield from otherwise()
    if first is None:  # nothing was said in time, so whatever comes is as good
        return (yield from answer()), [], 0.0
    second, _, when = yield from held_back(answer(), says)
    return (second, [], when) if second is not None and when else (first, held, 0.0)
