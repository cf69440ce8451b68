"""Chat templates: messages become the tokens that a model was trained to answer.

A template is a program from a file that somebody made, and what people write may look like control tokens. So it
runs in a sandbox, and it never sees the messages: it is given placeholders, its own parts are then read with control
tokens, and the contents are put in their places as plain text.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atlas_kit.errors import InvalidParamError, ModelError, Remedy
from atlas_kit.formats.gguf.chat_template import environment
from atlas_kit.llama.engine import Engine

#: What stands for the content of message ``i``: templates trim, test and join it, and leave letters alone.
_PLACE = "AtlasContent{}End"
_PLACES = re.compile(r"AtlasContent(\d+)(Json)?End")
_REMAINS = re.compile(r"atlascon", re.IGNORECASE)
#: Texts in tools that stay as they are, for templates that look at them; others get placeholders.
_PLAIN = re.compile(r"[\w\s.,:;()'/-]*")
_ROLE = re.compile(r"\w{1,32}", re.ASCII)
#: What may be a name, and no template.
_BUILT_IN = re.compile(r"[\w.-]{1,64}", re.ASCII)
_REMEDY = Remedy("no-chat")
#: What a template is given in any case; other variables are whoever asks's.
_OWN = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})

Message = Mapping[str, Any]


class Place(NamedTuple):
    """Where the content of a message stands: in the plain text that the tokens ``first`` to ``last`` are read from.

    It begins ``before`` bytes before the end of that, and ends ``behind`` bytes before it. A tokenizer may put a space
    in front of a text, so that places are counted from its end.
    """

    first: int
    last: int
    before: int
    behind: int

    def shifted(self, count: int) -> Place:
        """Return it behind so many more tokens."""
        return self._replace(first=self.first + count, last=self.last + count)


class Placed(NamedTuple):
    """The tokens of a conversation, and the places of its messages by their numbers, as far as the template shows."""

    tokens: list[int]
    places: dict[int, Place]

    def behind(self, tokens: Sequence[int]) -> Placed:
        """Return it with other tokens in front."""
        shift = len(tokens)
        places = {number: place.shifted(shift) for number, place in self.places.items()}
        return Placed([*tokens, *self.tokens], places)


class ChatTemplate:
    """A model's chat template.

    Parameters
    ----------
    engine
        Whose vocabulary the tokens are of.
    source
        Jinja, or the name of one that llama.cpp has built in (``chatml``); None takes the model's own.
    variables
        What the template is given where a conversation does not say: ``{"enable_thinking": False}``.

    Raises
    ------
    InvalidParamError
        The model has none.
    ModelError
        The template is no Jinja.
    MissingExtraError
        jinja2 is not installed.
    """

    def __init__(
        self, engine: Engine, source: str | None = None, variables: Mapping[str, Any] | None = None
    ) -> None:
        source = engine.info.chat_template if source is None else source
        if source is None:
            raise InvalidParamError(
                "the model has no chat template", path=engine.info.path, key="chat_template"
            )
        self._engine, self._variables = engine, dict(variables or {})
        #: The template itself.
        self.source = source
        named = _named(source)
        #: llama.cpp's templates leave the begin token to whoever reads the text.
        self._begin = () if named is None else engine.begin
        self._template = named or _compile(source, engine.info.path)
        self._names = _token_names(engine)

    def tokens(
        self,
        messages: Sequence[Message],
        *,
        answer: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the tokens of a conversation; ``answer``: up to where the model's answer starts.

        Parameters
        ----------
        messages
            Each with ``role`` (``system``, ``user``, ``assistant``, ``tool``) and ``content``: a text, or a list of
            parts ``{"type": "text", "text": ...}``; ``tool_calls`` and other names as the template knows them. Where
            an answer is wanted and the last message is the assistant's, that is how the answer begins.
        tools
            Functions that the model may call, as JSON-like objects.
        variables
            What else the template asks for, such as ``{"enable_thinking": False}``, as JSON-like data.

        Raises
        ------
        InvalidParamError
            A message has no role or no text; a part is no text; a tool is not JSON.
        ModelError
            The template refuses the messages, or leaves out an answer that is to be continued.
        """
        return self.placed(messages, answer=answer, tools=tools, variables=variables).tokens

    def placed(
        self,
        messages: Sequence[Message],
        *,
        answer: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Placed:
        """Return the tokens of a conversation, as ``tokens`` does, and where each message stands among them."""
        begun = answer and bool(messages) and messages[-1].get("role") == "assistant"
        text, contents = self._rendered(messages, answer and not begun, tools, variables)
        if begun:
            place, last = _PLACE.format(len(messages) - 1), _text_of(messages[-1])
            end = text.rfind(place) + len(place)
            if end < len(place):
                raise ModelError(
                    "the chat template leaves out the answer that is to go on", path=self._engine.info.path
                )
            text, contents[len(messages) - 1] = text[:end], last  # with the space at its end
        places: dict[int, Place] = {}
        found = self._read(text, contents, places)
        whole = Placed(found, {number: place for number, place in places.items() if number < len(messages)})
        return whole if tuple(found[: len(self._begin)]) == self._begin else whole.behind(self._begin)

    def text(
        self,
        messages: Sequence[Message],
        *,
        answer: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return a conversation as the model reads it; see ``tokens``."""
        return _spliced(*self._rendered(messages, answer, tools, variables))

    def following(self, content: str, system: str | None = None) -> list[int]:
        """Return the tokens that go on a conversation: the end of the answer before, and the next message.

        What came before is in the model's context already, and may have left it again; a short conversation of the
        same form stands in for it.
        """
        before = [*([_message("system", system)] if system else []), _message("user", "-")]
        messages = [*before, _message("assistant", "-"), _message("user", content)]
        text, contents = self._rendered(messages, True)
        start = text.find(answered := _PLACE.format(len(before)))
        if start < 0:  # it leaves answers out
            return self.tokens(messages[-1:])
        return self._read(text[start + len(answered) :], contents)

    def around(
        self, system: str | None = None, *, going_on: bool = False, talk: Sequence[tuple[str, str]] = ()
    ) -> tuple[list[int], list[int]]:
        """Return the tokens before and behind what a user says, up to where the answer starts.

        Parameters
        ----------
        going_on
            Behind an answer, as ``following``; else at the beginning of a conversation.
        talk
            What was said and answered before, and stands in front.

        Raises
        ------
        ModelError
            The template does not show where what is said stands.
        """
        messages = [_message("system", system)] if system else []
        for said, answered in [("-", "-")] if going_on else talk:
            messages += [_message("user", said), _message("assistant", answered)]
        messages.append(_message("user", "-"))
        text, contents = self._rendered(messages, True)
        start = 0
        if going_on:
            last = _PLACE.format(len(messages) - 2)
            start = text.find(last) + len(last)
        place = _PLACE.format(len(messages) - 1)
        if text.count(place) != 1 or start > text.index(place):
            raise ModelError(
                "the chat template does not show where messages stand", path=self._engine.info.path
            )
        before, behind = text[start:].split(place)
        found = self._read(before, contents)
        if not going_on and tuple(found[: len(self._begin)]) != self._begin:
            found = [*self._begin, *found]
        return found, self._read(behind, contents)

    def _rendered(
        self,
        messages: Sequence[Message],
        answer: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[str, list[str]]:
        """Return the text with placeholders, and what belongs in each place."""
        texts = [_text_of(message) for message in messages]
        count = len(texts)
        made = [
            {"role": message["role"], "content": _PLACE.format(number), **self._placed(_more(message), texts)}
            for number, message in enumerate(messages)
        ]
        given = {**self._variables, **(variables or {})}
        more = {key: self._placed(one, texts) for key, one in given.items() if key not in _OWN}
        if tools is not None:
            more["tools"] = self._placed(_listed(tools), texts)
        if "functions" in self.source:  # as Firefunction's template calls the tools, written out
            more.setdefault("functions", _to_json(more.get("tools", []), indent=4))
        text, made = self._with_arguments(made, answer, more)
        if _REMAINS.search(_PLACES.sub("", text)):
            raise ModelError(
                "the chat template takes messages apart, which is not supported",
                path=self._engine.info.path,
                remedy=_REMEDY,
            )
        stripped = [content.strip() for content in texts[:count]] + texts[count:]
        if stripped != texts:  # the template may remove the space around contents
            real = [{**one, "content": content} for one, content in zip(made, texts[:count], strict=True)]
            found = _spliced(self._render(real, answer, more), texts)
            if _spliced(text, texts) != found == _spliced(text, stripped):
                texts = stripped
        return text, texts

    def _placed(self, value: Any, texts: list[str]) -> Any:
        """Return JSON-like data with placeholders for each text in it that could be read as control tokens."""
        if isinstance(value, str):
            if self._harmless(value):
                return value
            texts.append(value)
            return _PLACE.format(len(texts) - 1)
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) and self._harmless(key) for key in value):
                raise InvalidParamError("a name in the tools is no plain text", key="tools")
            return {key: self._placed(one, texts) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._placed(one, texts) for one in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        raise InvalidParamError(f"{type(value).__name__} is not JSON", key="tools")

    def _harmless(self, text: str) -> bool:
        if not _PLAIN.fullmatch(text) or _REMAINS.search(text):
            return False
        return all(self._engine.piece(token) for token in self._engine.tokenize(text, special=True))

    def _with_arguments(
        self, messages: list[dict[str, Any]], answer: bool, more: dict[str, Any]
    ) -> tuple[str, list[dict[str, Any]]]:
        """Render calls of tools with their arguments as data, or as JSON text where the template wants that."""
        try:
            return self._render(messages, answer, more), messages
        except ModelError:
            written = [_arguments_written(message) for message in messages]
            if written == messages:
                raise
            return self._render(written, answer, more), written

    def _render(self, messages: list[dict[str, Any]], answer: bool, more: Mapping[str, Any]) -> str:
        try:
            given = {**_today(), **more, **self._names}
            text = self._template.render(messages=messages, add_generation_prompt=answer, **given)
        except Exception as error:  # a template can raise whatever a program can
            raise _failed(error, self._engine.info.path) from error
        return str(text)

    def _read(self, text: str, contents: list[str], places: dict[int, Place] | None = None) -> list[int]:
        """Return the tokens of a text with placeholders: control tokens in the template's own parts only.

        Plain text of both is joined before it is read, so that tokens across the seam are as in training. ``places``
        takes where the contents stand.
        """
        tokens: list[int] = []
        plain, size = "", 0  # what is to be joined, and its bytes
        inside: dict[int, tuple[int, int]] = {}

        def join() -> None:
            nonlocal plain, size
            first = len(tokens)
            tokens.extend(self._engine.tokenize(plain) if plain else [])
            if places is not None:
                places.update(
                    (number, Place(first, len(tokens), size - start, size - stop))
                    for number, (start, stop) in inside.items()
                )
            inside.clear()
            plain, size = "", 0

        at = 0
        for place in [*_PLACES.finditer(text), None]:
            for piece in self._split(text[at : len(text) if place is None else place.start()]):
                if isinstance(piece, str):
                    plain, size = plain + piece, size + len(piece.encode("utf-8", "replace"))
                    continue
                join()
                tokens.append(piece)
            if place is None:
                break
            content, at = _content(place, contents), place.end()
            start, size = size, size + len(content.encode("utf-8", "replace"))
            plain += content
            if not place[2]:
                inside[int(place[1])] = start, size
        join()
        return tokens

    def _split(self, text: str) -> Iterator[int | str]:
        """Take a part of the template apart: control tokens as numbers, the rest as text."""
        at = 0
        for token in self._engine.tokenize(text, special=True):
            if self._engine.piece(token):
                continue
            name = self._engine.piece(token, special=True).decode("utf-8", "replace")
            found = text.find(name, at) if name else -1
            if found >= 0:
                if found > at:
                    yield text[at:found]
                yield token
                at = found + len(name)
        if at < len(text):
            yield text[at:]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _text_of(message: Message) -> str:
    """Return a message's text; text parts are joined by line breaks, as llama.cpp does."""
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        content = ""
    if isinstance(content, (list, tuple)):
        parts = []
        for part in content:
            if (
                not isinstance(part, Mapping)
                or part.get("type") != "text"
                or not isinstance(part.get("text"), str)
            ):
                raise InvalidParamError("only text can be a part of a message", key="messages")
            parts.append(part["text"])
        content = "\n".join(parts)
    if not isinstance(content, str) or not _ROLE.fullmatch(str(message.get("role"))):
        raise InvalidParamError("a message needs a role and a text as its content", key="messages")
    return content


def _more(message: Message) -> dict[str, Any]:
    """Return what a message has beside role and content, the arguments of calls as data."""
    found = {key: value for key, value in message.items() if key not in ("role", "content")}
    if calls := found.get("tool_calls"):
        found["tool_calls"] = [_call(call) for call in _listed(calls)]
    return found


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping):
        raise InvalidParamError("a call of a tool needs a function", key="tool_calls")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise InvalidParamError("the arguments of a call are not JSON", key="tool_calls") from error
    return {**call, "function": {**function, "arguments": arguments}}


def _arguments_written(message: dict[str, Any]) -> dict[str, Any]:
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        written = _to_json(call["function"]["arguments"])
        calls.append({**call, "function": {**call["function"], "arguments": written}})
    return {**message, "tool_calls": calls}


def _listed(values: Any) -> list[Mapping[str, Any]]:
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, Mapping) for value in values):
        raise InvalidParamError("tools and their calls are lists of objects", key="tools")
    return list(values)


def _content(place: re.Match[str], contents: Sequence[str]) -> str:
    """Return what belongs in a place; inside JSON, as JSON writes it between its quotes."""
    content = contents[int(place[1])]
    return json.dumps(content, ensure_ascii=False)[1:-1] if place[2] else content


def _spliced(text: str, contents: Sequence[str]) -> str:
    return _PLACES.sub(lambda place: _content(place, contents), text)


def _to_json(value: Any, **options: Any) -> str:
    text = json.dumps(value, **{"ensure_ascii": False, "default": list, **options})  # a generator is a list
    return re.sub(r"(AtlasContent\d+)End", r"\1JsonEnd", text)


def _failed(error: BaseException, path: str) -> ModelError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ModelError(f"the model's chat template failed: {reason}", path=path, remedy=_REMEDY)


def _today() -> dict[str, str]:
    """Return the date under the names by which templates of 2024 and llama.cpp know it."""
    now = datetime.datetime.now()
    return {"date_string": now.strftime("%d %b %Y"), "datetime": now.strftime("%b %d %Y")}


def _named(source: str) -> Any:
    """Return the template that llama.cpp has under a name; None where it is no such name."""
    if not _BUILT_IN.fullmatch(source):
        return None
    from atlas_kit.llama.builtin_templates import BuiltInTemplate, built_in_names

    return BuiltInTemplate(source) if source in built_in_names() else None


def _compile(source: str, path: str) -> Any:
    made = environment()
    made.filters["tojson"] = _to_json
    try:
        return made.from_string(source)
    except Exception as error:  # a syntax error, or one of the compiler that a hostile source provokes
        raise _failed(error, path) from error


def written_out(
    source: str, messages: Sequence[Message], names: Mapping[str, str], *, answer: bool = True, path: str = ""
) -> str:
    """Return a conversation as a template writes it, for people to look at; no model is needed.

    ``names``: what the template calls ``bos_token`` and ``eos_token``. What is not plain text stays in it: only
    ``ChatTemplate`` keeps messages from being read as control tokens.

    Raises
    ------
    ModelError
        The template is no Jinja, or refuses the messages.
    """
    template = _named(source) or _compile(source, path)
    try:
        return str(
            template.render(messages=list(messages), add_generation_prompt=answer, **{**_today(), **names})
        )
    except Exception as error:  # a template can raise whatever a program can
        raise _failed(error, path) from error


def _token_names(engine: Engine) -> dict[str, str]:
    """Return the names of the tokens that begin and end a text, which templates write out."""
    names = {"bos_token": "", "eos_token": ""}
    if not Path(engine.info.path).is_file():
        return names
    from atlas_kit.formats.gguf import GGUFFile

    with GGUFFile.open(engine.info.path) as file:
        for name in names:
            token = file.get(f"tokenizer.ggml.{name[:3]}_token_id")
            if token is not None and 0 <= int(token) < engine.info.n_vocab:
                names[name] = engine.piece(int(token), special=True).decode("utf-8", "replace")
    return names
