"""Answers in channels, as gpt-oss writes them: thoughts, calls and what is said each have a header of their own.

``<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...``; a call is a message
``to=functions.name``.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from atlas_kit.llama.schema_grammar import quoted, schema_rules, up_to
from atlas_kit.server.answers import AnswerParser, CallFormat

CHANNEL, MESSAGE, END, START = "<|channel|>", "<|message|>", "<|end|>", "<|start|>"
#: How calls are written; their marks are what has no text.
FORMAT = CallFormat(CHANNEL, MESSAGE)
_MARKS = (CHANNEL, MESSAGE, END, START, "<|return|>", "<|call|>", "<|constrain|>")
_ENDS = (END, START, "<|return|>", "<|call|>")
_TO = re.compile(r"\bto=(?:functions\.)?([\w.:-]+)")
_BEGINS = (CHANNEL, START, "assistant", "to=", "<|constrain|>")


def in_channels(source: str) -> bool:
    """Tell whether the models of a chat template answer in channels."""
    return CHANNEL in source and MESSAGE in source


class ChannelParser(AnswerParser):
    """Takes an answer in channels apart; parameters as of ``AnswerParser``.

    ``split``: thoughts are reasoning; else they are content like all the rest.
    """

    def __init__(self, *, split: bool = True, **options: Any) -> None:
        super().__init__(**{**options, "thoughts": None, "calls": FORMAT})
        self._marks = frozenset(_MARKS)
        self._split = split
        self._state = self._header
        self._kind: Literal["reasoning", "content", "arguments"] = "content"

    def _header(self, final: bool) -> bool:
        """Before a message, where it says what it is."""
        text = self._text.lstrip()
        at = text.find(MESSAGE)
        known = any(text.startswith(mark) or mark.startswith(text) for mark in _BEGINS)
        if at < 0 and text and (final or not known):  # a model that knows no channels
            self._kind, self._state = "content", self._body
            return True
        if at < 0:
            return False
        head, self._text = text[:at], text[at + len(MESSAGE) :]
        called = _TO.search(head)
        if called is not None and called[1] != "assistant":
            self._start(called[1])
            self._kind = "arguments"
        else:
            self._kind = "reasoning" if self._split and f"{CHANNEL}analysis" in head else "content"
        self._space, self._state = "", self._body
        return True

    def _body(self, final: bool) -> bool:
        before, mark = self._until(_ENDS, final)
        if self._kind == "arguments":
            self._argue(before)
        else:
            self._emit(self._kind, before)
        if mark:
            self._space, self._state = "", self._header
        elif final and self._kind == "content" and self._space:
            self._emit("content", "", hold=False)
        return bool(mark)


def channel_rules(schemas: dict[str, Any], shape: dict[str, Any] | None) -> str:
    """Return a grammar: thoughts if any, then a call of one of the tools, or what has the shape."""
    thoughts = f"{quoted(CHANNEL + 'analysis' + MESSAGE)} thought {quoted(START + 'assistant')}"
    rules, answers = [up_to(END, "thought")], []
    for number, (name, schema) in enumerate(schemas.items()):
        head = quoted(f"{CHANNEL}commentary to=functions.{name} <|constrain|>json{MESSAGE}")
        answers.append(f"{head} call{number}")
        rules.append(schema_rules(schema, f"call{number}"))
    if shape is not None:
        answers.append(f"{quoted(CHANNEL + 'final' + MESSAGE)} shape")
        rules.append(schema_rules(shape, "shape"))
    return "\n".join([f"root ::= ( {thoughts} )? ( {' | '.join(answers)} )", *rules]) + "\n"
