"""Ask a session about what it has read, one question after the other, each as if it were alone. Knows no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.asking import Answer
from atlas_kit.llama.asking import ask as answer_to
from atlas_kit.llama.recalling import recall_of
from atlas_kit.llama.session import AtlasSession
from atlas_kit.llama.steps import Token


@dataclass
class Asked:
    """The answers, of which memory they are, and how much it has to look in."""

    name: str
    model: str
    stored: int
    answers: list[Answer] = field(default_factory=list)
    interrupted: bool = False

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        file = {key.replace("path", "memory_file"): value for key, value in named("path", self.name).items()}
        return {
            **file,
            "model": self.model,
            "tokens_stored": self.stored,
            "interrupted": self.interrupted,
            "answers": [answer.to_json() for answer in self.answers],
        }


def ask(
    session: AtlasSession,
    questions: Iterable[str],
    *,
    name: str = "",
    recall: dict[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
    told: Callable[[str | Token | Answer], None] | None = None,
    **options: Any,
) -> Asked:
    """Answer questions from what a session has read; none of them leaves a trace in it.

    Parameters
    ----------
    name
        Of the memory's file, for the result.
    recall
        What is to be different from the memory's own settings: ``mode``, ``segments``, ``gate`` and the others of
        ``Recall``.
    stop
        Asked between questions and between tokens; True ends the answer and what comes after it.
    told
        Is given each question, each token of its answer as it comes, and the answer.
    options
        ``max_tokens``, ``sampling`` and the others of ``AtlasSession.ask``.

    Raises
    ------
    InvalidParamError
        The session keeps nothing that could be asked about.
    AtlasError
        llama.cpp fails.
    """
    if session.episodes is None or not len(session.episodes):
        raise InvalidParamError(
            "there is nothing in this memory to ask about",
            path=name or None,
            hint="Let it learn documents, or talk with it."
            if session.episodes is not None
            else "It keeps no text, for its episode_tokens is 0.",
        )
    result = Asked(name, session.engine.info.name, len(session.episodes))
    chosen = recall_of(None if session.memory is None else session.memory.settings, **(recall or {}))
    for question in questions:
        if stop():
            result.interrupted = True
            break
        if told is not None:
            told(question)
        answer = answer_to(session, question, recall=chosen, keep=False, told=told, until=stop, **options)
        if answer is None:  # stopped before anything was said
            result.interrupted = True
            break
        result.answers.append(answer)
        result.interrupted = answer.reason == "cancelled"
        if told is not None:
            told(answer)
    return result
