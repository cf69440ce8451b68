"""The words around what is read again and what is asked, as tokens: in the model's chat template, or as plain text.

What is read again is data: its tokens are put between these, and none of them is a control token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas_kit.errors import AtlasError

if TYPE_CHECKING:
    from atlas_kit.llama.chat import ChatTemplate
    from atlas_kit.llama.engine import Engine

#: Of ten forms the one in which SmolLM2-135M read most from the right piece: 30 of 41 questions right, 24 without the
#: quotation marks and the word "question". It marks the piece's end and the question's beginning.
LEAD, MIDDLE = 'This was read or said earlier: "', '"\n\nAnswer the question with it. Question: '
PARTS = "\n\n"  # between two pieces


@dataclass(frozen=True)
class Form:
    """How a question is put to a model.

    Attributes
    ----------
    before, behind
        What stands before what is said, and behind it up to where the answer starts.
    lead, middle
        What stands before what is read again, and between it and the question.
    plain
        What stands before the question where nothing is read again.
    parts
        What stands between two pieces.
    stops
        Where the answer of a model without a chat template ends.
    """

    before: tuple[int, ...]
    lead: tuple[int, ...]
    middle: tuple[int, ...]
    plain: tuple[int, ...]
    behind: tuple[int, ...]
    parts: tuple[int, ...]
    stops: tuple[str, ...] = ()
    space: str = ""  # before the question's first word

    def room(self, n_ctx: int, asked: Sequence[int]) -> int:
        """Return how many tokens of a context are left for pieces, where a quarter of it is for the answer."""
        around = (self.before, self.lead, self.middle, self.behind, asked)
        return n_ctx - n_ctx // 4 - sum(map(len, around))

    def question(self, engine: Engine, question: str) -> list[int]:
        """Return the tokens of a question, none of which is a control token."""
        return engine.tokenize(self.space + question.strip())


def form_of(
    engine: Engine, template: ChatTemplate | None, *, system: str | None = None, going_on: bool = False,
    talk: Sequence[tuple[str, str]] = (),
) -> Form:  # fmt: skip
    """Return the form for a model.

    Parameters
    ----------
    going_on
        There is something in the context already.
    talk
        Questions and answers that stand in front.
    """
    read = engine.tokenize
    if template is not None:
        before, behind = template.around(system, going_on=going_on, talk=talk)
        return Form(
            tuple(before), tuple(read(LEAD)), tuple(read(MIDDLE)), (), tuple(behind), tuple(read(PARTS))
        )
    said = "".join(f"Question: {asked}\nAnswer: {answered}\n\n" for asked, answered in talk)
    before = read("\n\n") if going_on else [*engine.begin, *read(said)]
    return Form(
        tuple(before), (), tuple(read("\n\nQuestion:")), tuple(read("Question:")), tuple(read("\nAnswer:")),
        tuple(read(PARTS)), ("\n",), " ",
    )  # fmt: skip


def template_of(engine: Engine) -> ChatTemplate | None:
    """Return the model's chat template; None where it has none, or one that cannot be used for this."""
    if engine.info.chat_template is None:
        return None
    from atlas_kit.llama.chat import ChatTemplate

    try:
        template = ChatTemplate(engine)
        template.around()
    except AtlasError:
        return None
    return template
