"""A generated text taken apart while it comes: thoughts, what is said, and calls of tools. Knows no HTTP and no model.

How a model writes calls follows from its chat template (``CallFormat``): JSON between tags (Hermes, Qwen, Granite,
Phi), a list behind a control token (Mistral), the answer itself (Llama 3), or a tag with the name in it (Functionary,
Qwen3-Coder). What was begun like a call and is none is content.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from atlas_kit.llama.steps import Token

#: What stands around thoughts, by templates: the first whose end a template mentions.
THOUGHTS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<reasoning>", "</reasoning>"),
)
_BETWEEN = "[],;"
_SHORT = string.ascii_letters + string.digits


@dataclass(frozen=True)
class CallFormat:
    """How a model writes calls of tools.

    Attributes
    ----------
    opens, closes
        What stands before one call or several, and behind them; ``closes`` may be missing.
    bare
        The answer as a whole may be a call.
    name, arguments
        The keys of the name and of the arguments.
    listed
        Calls stand in an array.
    named
        The name stands outside the JSON: between the mark that begins a call and this text.
    short_ids
        Ids have nine letters and digits.
    """

    opens: str
    closes: str = ""
    bare: bool = False
    name: str = "name"
    arguments: str = "arguments"
    listed: bool = False
    named: str = ""
    short_ids: bool = False

    def new_id(self) -> str:
        """Return an id for a call."""
        if self.short_ids:
            return "".join(secrets.choice(_SHORT) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"

    def marks(self) -> tuple[str, ...]:
        """Return what may be control tokens, whose names are looked for in the text."""
        return tuple(mark for mark in (self.opens, self.closes, self.named) if len(mark) > 1)


HERMES = CallFormat("<tool_call>", "</tool_call>")
_LLAMA = CallFormat("<|python_tag|>", bare=True, arguments="parameters")
#: Formats by what the templates of their models write; the first that fits.
_FORMATS = (
    ("<seed:tool_call>", CallFormat("<seed:tool_call>", "</seed:tool_call>")),
    ("<tool_call>", HERMES),
    ("<tool_calls>", CallFormat("<tool_calls>", "</tool_calls>", listed=True)),
    ("<|tool_call|>", CallFormat("<|tool_call|>", "<|/tool_call|>", listed=True)),
    ("<TOOLCALL>", CallFormat("<TOOLCALL>", "</TOOLCALL>", listed=True)),
    (
        "<|START_ACTION|>",
        CallFormat(
            "<|START_ACTION|>", "<|END_ACTION|>", name="tool_name", arguments="parameters", listed=True
        ),
    ),
    ("<function=", CallFormat("<function=", "</function>", named=">")),
    ("<|python_tag|>", _LLAMA),
    ("dictionary of argument name and its value", _LLAMA),
)


def call_format(source: str) -> CallFormat | None:
    """Return how the models of a chat template write calls; None: it knows no tools, or calls of another kind.

    >>> call_format("{% if tools %}<tool_call>{% endif %}").closes
    '</tool_call>'
    """
    if not re.search(r"\btools\b", source) or "<arg_key>" in source or "<|channel|>" in source:
        return None
    if "[TOOL_CALLS]" in source:
        named = "[ARGS]" if "[ARGS]" in source else ""
        return CallFormat("[TOOL_CALLS]", listed=True, named=named, short_ids=not named)
    return next((form for mark, form in _FORMATS if mark in source), None)


def thought_tags(source: str) -> tuple[str, str] | None:
    """Return what stands around thoughts where a chat template knows them."""
    return next((pair for pair in THOUGHTS if pair[1] in source), None)


@dataclass
class Part:
    """Something that an answer goes on with.

    ``kind`` is ``"reasoning"`` or ``"content"`` with its ``text``; ``"call"``, which begins the call number ``index``
    with its ``id`` and ``name``; or ``"arguments"``, the next piece of that call's JSON.
    """

    kind: Literal["reasoning", "content", "call", "arguments"]
    text: str = ""
    index: int = 0
    id: str = ""
    name: str = ""


@dataclass
class Call:
    """A call of a tool, as far as it has come."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Answer:
    """A whole answer."""

    reasoning: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)

    def add(self, parts: Iterable[Part]) -> None:
        """Take in what has come."""
        for part in parts:
            if part.kind == "reasoning":
                self.reasoning += part.text
            elif part.kind == "content":
                self.content += part.text
            elif part.kind == "call":
                self.calls.append(Call(part.id, part.name))
            else:
                self.calls[part.index].arguments += part.text


class AnswerParser:
    """Takes one answer apart.

    Parameters
    ----------
    thoughts
        What stands around thoughts; None: they stay in the text.
    thinking
        The answer begins within them.
    calls
        How calls are written; None: there are none.
    tools
        The schemas of the tools' arguments, by name.
    name_of
        The name of a control token, which has no text.
    strip
        Space at the beginning is none of the answer.
    several
        False: only the first call counts.
    """

    def __init__(
        self,
        *,
        thoughts: tuple[str, str] | None = None,
        thinking: bool = False,
        calls: CallFormat | None = None,
        tools: Mapping[str, Any] | None = None,
        name_of: Callable[[int], str] | None = None,
        strip: bool = False,
        several: bool = True,
    ) -> None:
        self._thoughts, self._format, self._tools = thoughts, calls, tools or {}
        self._name_of, self._skip, self._several = name_of, strip, several
        marks = set(thoughts or ()) | set(() if calls is None else calls.marks())
        self._marks = frozenset(marks | ({"<|python_tag|>"} if calls is not None and calls.bare else set()))
        self._names: dict[int, str] = {}
        self._text = ""
        self._space = ""  # at the end of what was said, which counts only where something follows
        self._state: Callable[[bool], bool] = self._begin if thoughts and not thinking else self._say
        if thoughts and thinking:
            self._state = self._think
        self._fresh = True  # nothing was said yet
        self._count, self._tool = 0, ""  # calls that were begun, and the last one's name
        self._reader: _Object | None = None
        self._value, self._parameters = _Value(), 0  # of a call whose name stands outside
        self._parts: list[Part] = []
        self.answer = Answer()
        self.finish_reason: str | None = None

    def add(self, tokens: Iterable[Token]) -> list[Part]:
        """Take the tokens that have come; return what the answer goes on with."""
        for token in tokens:
            self._text += token.text + self._name(token.id)
        return self._advance(final=False)

    def finish(self, reason: str | None) -> list[Part]:
        """Return what was held back, when nothing more comes; ``finish_reason`` says then why the answer ended."""
        found = self._advance(final=True)
        self.finish_reason = "tool_calls" if reason == "stop" and self.answer.calls else reason
        return found

    def _name(self, token: int) -> str:
        if token < 0 or self._name_of is None or not self._marks:
            return ""
        if token not in self._names:
            name = self._name_of(token)
            self._names[token] = name if name in self._marks else ""
        return self._names[token]

    def _advance(self, *, final: bool) -> list[Part]:
        self._parts = []
        while self._state(final):
            pass
        parts = self._parts
        self.answer.add(parts)
        return parts

    # --- the states: each tells whether another one goes on -----------------------------------------------

    def _begin(self, final: bool) -> bool:
        """At the start, where thoughts may begin."""
        assert self._thoughts is not None
        text, mark = self._text.lstrip(), self._thoughts[0]
        if text.startswith(mark):
            self._text, self._state = text[len(mark) :], self._think
            return True
        if mark.startswith(text) and not final:
            return False
        self._state = self._say
        return True

    def _think(self, final: bool) -> bool:
        assert self._thoughts is not None
        before, mark = self._until(self._thoughts[1:], final)
        self._emit("reasoning", before)
        if not mark:
            return False
        self._space, self._skip, self._state = "", True, self._say
        return True

    def _say(self, final: bool) -> bool:
        form = self._format
        if form is None:
            text, self._text = self._text, ""
            self._emit("content", text, hold=False)
            return False
        if form.bare and self._fresh and self._text.lstrip().startswith("{"):
            self._state = self._between
            return True
        before, mark = self._until((form.opens,), final)
        self._emit("content", before)
        if mark:
            self._space, self._state = "", self._named if form.named else self._between
            return True
        if final and self._space:
            self._emit("content", "", hold=False)
        return False

    def _between(self, final: bool) -> bool:
        """Where a call may begin, or the list of calls end."""
        form = self._format
        assert form is not None
        text = self._text = self._text.lstrip()
        if not text:
            return False
        if text[0] == "{":
            self._reader, self._state = _Object(self._tools if form.bare else None), self._call
            return True
        again = self._named if form.named else self._between
        for mark, state in (
            (form.closes, self._say), (form.opens, again), ("<function=", self._named),
        ):  # fmt: skip
            if mark and text.startswith(mark):
                self._text, self._state = text[len(mark) :], state
                self._skip |= state == self._say
                return True
            if mark and mark.startswith(text) and not final:
                return False
        if text[0] in _BETWEEN:
            self._text = text[1:]
            return True
        self._state, self._fresh = self._say, False
        return True

    def _call(self, final: bool) -> bool:
        """Within a call that is an object of JSON."""
        reader = self._reader
        assert reader is not None
        at = 0
        while at < len(self._text) and not reader.over:
            reader.take(self._text[at])
            at += 1
        self._text = self._text[at:]
        if reader.name is not None and not reader.begun and not reader.failed:
            reader.begun = True
            self._start(reader.name, reader.id)
        if reader.begun:
            self._argue(reader.arguments_since())
        elif reader.over or final:  # it only looked like a call
            self._emit("content", reader.raw)
            self._state, self._fresh = self._say, False
            return True
        self._state = self._between if reader.over else self._call
        return reader.over

    def _named(self, final: bool) -> bool:
        """Behind the mark of a call, where its name stands."""
        form = self._format
        assert form is not None
        ends = form.named or ">"
        text = self._text.lstrip()
        if text[:1] in ("[", "{"):  # an older form of the same family: JSON that holds the name
            self._state = self._between
            return True
        at = text.find(ends)
        if at < 0:
            if final or len(text) > 256:
                self._state, self._fresh = self._say, False
                self._emit("content", self._text)
                self._text = ""
            return False
        name, self._text = text[:at].strip(), text[at + len(ends) :]
        self._start(name)
        self._value, self._parameters, self._state = _Value(), 0, self._named_arguments
        return True

    def _named_arguments(self, final: bool) -> bool:
        """Behind the name of a call: an object of JSON, or parameters between tags."""
        if not self._value.raw:
            text = self._text = self._text.lstrip()
            if text and text[0] != "{":
                return self._parameter(final)
        at = 0
        while at < len(self._text) and not self._value.done:
            self._value.take(self._text[at])
            at += 1
        self._argue(self._text[:at])
        self._text = self._text[at:]
        if not self._value.done:
            return False
        self._state = self._between
        return True

    def _parameter(self, final: bool) -> bool:
        """Qwen3-Coder's form: ``<parameter=key>value</parameter>``, one after the other."""
        found = re.match(r"<parameter=([^>\n]{1,256})>(.*?)</parameter>\s*", self._text, re.DOTALL)
        if found is not None:
            written = _written(found[2], self._tools.get(self._tool), found[1])
            self._argue(f"{', ' if self._parameters else '{'}{json.dumps(found[1])}: {written}")
            self._parameters += 1
            self._text = self._text[found.end() :]
            return True
        waits = self._text.startswith("<parameter=") or "<parameter=".startswith(self._text)
        if waits and not final:
            return False
        if "</function>".startswith(self._text[:11]) and len(self._text) < 11 and not final:
            return False
        self._argue("}" if self._parameters else "{}")
        self._text = self._text.removeprefix("</function>")
        self._state = self._between
        return True

    # --- what comes out -----------------------------------------------------------------------------------

    def _until(self, marks: Sequence[str], final: bool) -> tuple[str, str]:
        """Take the text up to a mark; what may yet become one stays."""
        text = self._text
        places = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
        if places:
            at, mark = min(places)
            self._text = text[at + len(mark) :]
            return text[:at], mark
        keep = 0 if final else max(_overlap(text, mark) for mark in marks)
        self._text = text[len(text) - keep :]
        return text[: len(text) - keep], ""

    def _emit(self, kind: Literal["reasoning", "content"], text: str, *, hold: bool = True) -> None:
        """Give out a text; ``hold``: space at its end waits for what follows it."""
        text = self._space + text
        self._space = ""
        if kind == "reasoning" and not self.answer.reasoning and not self._parts:
            text = text.lstrip()
        elif kind == "content" and self._skip:
            text = text.lstrip()
            self._skip = not text
        if hold:
            kept = text.rstrip()
            self._space, text = text[len(kept) :], kept
        if not text:
            return
        if kind == "content":
            self._fresh = False
        if self._parts and self._parts[-1].kind == kind:
            self._parts[-1].text += text
        else:
            self._parts.append(Part(kind, text))

    def _start(self, name: str, given: str = "") -> None:
        assert self._format is not None
        self._fresh, self._tool = False, name
        self._count += 1
        if self._too_many:
            return
        self._parts.append(Part("call", index=self._count - 1, id=given or self._format.new_id(), name=name))

    @property
    def _too_many(self) -> bool:
        return self._count > 1 and not self._several

    def _argue(self, text: str) -> None:
        if not text or self._too_many:
            return
        if self._parts and self._parts[-1].kind == "arguments":
            self._parts[-1].text += text
        else:
            self._parts.append(Part("arguments", text, self._count - 1))


class _Value:
    """Reads one value of JSON, character by character."""

    def __init__(self) -> None:
        self.raw = ""
        self.done = False
        self._depth, self._quoted, self._escaped = 0, False, False

    @property
    def nested(self) -> bool:
        """Whether it is an object or an array."""
        return self.raw[:1] in ("{", "[")

    def take(self, char: str) -> bool:
        """Take a character; tell whether it is one of the value's, and none behind it."""
        if self._quoted:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._quoted = False
        elif char == '"':
            self._quoted = True
        elif char in "{[":
            self._depth += 1
        elif not self._depth and char in ",}]":
            self.done = True
            return False
        elif char in "}]":
            self._depth -= 1
        self.raw += char
        if not self._depth and not self._quoted and (self.nested or self.raw[0] == '"'):
            self.done = True
        return True


class _Object:
    """Reads the object of a call: name, id and arguments, in any order.

    ``known``: only these names make it a call, where the text as a whole may as well be something else.
    """

    def __init__(self, known: Mapping[str, Any] | None) -> None:
        self.raw, self.id = "", ""
        self.name: str | None = None
        self.begun = self.done = self.failed = False
        self._known, self._key = known, ""
        self._value: _Value | None = None
        self._at = "start"
        self._ready, self._given = "", 0
        self._has_arguments = self._streams = False

    @property
    def over(self) -> bool:
        """Whether it is whole, or no call."""
        return self.done or self.failed

    def arguments_since(self) -> str:
        """Return what has come of the arguments since this was asked last."""
        found, self._given = self._ready[self._given :], len(self._ready)
        return found

    def take(self, char: str) -> None:
        """Take a character."""
        self.raw += char
        if self._at == "value":
            assert self._value is not None
            own = self._value.take(char)
            if self._streams and own:
                self._ready += char
            if self._value.done:
                self._end_value()
            if own:
                return
        elif self._at == "space":
            if not char.isspace():
                self._value, self._at = _Value(), "value"
                self._streams = self._key in ("arguments", "parameters") and char in "{["
                self._has_arguments |= self._key in ("arguments", "parameters")
                self._value.take(char)
                self._ready += char if self._streams else ""
            return
        elif self._at == "key":
            assert self._value is not None
            self._value.take(char)
            if self._value.done:
                self._key, self._at = str(_loaded(self._value.raw)), "colon"
                if self._known is not None and self.name is None and self._key not in _KEYS:
                    self.failed = True
            return
        if char.isspace() or (char == "{" and self._at == "start"):
            self._at = "next" if char == "{" else self._at
        elif char == ":" and self._at == "colon":
            self._at = "space"
        elif char == "}" and self._at == "next":
            self._end()
        elif char == '"' and self._at == "next":
            self._value, self._at = _Value(), "key"
            self._value.take(char)
        elif char != "," or self._at != "next":
            self.failed = True

    def _end_value(self) -> None:
        assert self._value is not None
        raw, self._at = self._value.raw.strip(), "next"
        if self._streams:
            self._streams = False
            return
        value = _loaded(raw)
        if self._key in ("name", "tool_name", "function") and isinstance(value, str) and self.name is None:
            self._named(value)
        elif self._key == "function" and isinstance(value, dict) and isinstance(value.get("name"), str):
            self._named(value["name"])
            inner = value.get("arguments", value.get("parameters", {}))
            self._ready += inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
            self._has_arguments = True
        elif self._key == "id" and isinstance(value, str):
            self.id = value
        elif self._key in ("arguments", "parameters"):
            self._ready += value if isinstance(value, str) and value else "{}"

    def _named(self, name: str) -> None:
        self.name = name
        self.failed = not name or (self._known is not None and name not in self._known)

    def _end(self) -> None:
        self.done = True
        if self.name is not None and not self._has_arguments:
            self._ready += "{}"


_KEYS = frozenset({"name", "tool_name", "function", "id", "type", "arguments", "parameters"})


def _loaded(raw: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _written(text: str, schema: Any, key: str) -> str:
    """Return the JSON of a parameter that was written as text."""
    text = text.removeprefix("\n").removesuffix("\n")
    wanted = None
    with_properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if isinstance(with_properties, Mapping) and isinstance(with_properties.get(key), Mapping):
        wanted = with_properties[key].get("type")
    if wanted != "string":
        try:
            return json.dumps(json.loads(text), ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
    return json.dumps(text, ensure_ascii=False)


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of a text that a mark starts with."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
