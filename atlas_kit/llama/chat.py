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
from typing import Any

from atlas_kit.errors import InvalidParamError, MissingExtraError, ModelError, Remedy
from atlas_kit.llama.engine import Engine

#: What stands for the content of message ``i``: templates trim, test and join it, and leave letters alone.
_PLACE = "AtlasContent{}End"
_PLACES = re.compile(r"AtlasContent(\d+)End")
_REMAINS = re.compile(r"atlascon", re.IGNORECASE)
_ROLE = re.compile(r"\w{1,32}", re.ASCII)
_REMEDY = Remedy("no-chat")

Message = Mapping[str, str]


class ChatTemplate:
    """A model's chat template.

    Parameters
    ----------
    engine
        Whose vocabulary the tokens are of.
    source
        Jinja; None takes the model's own.

    Raises
    ------
    InvalidParamError
        The model has none.
    ModelError
        The template is no Jinja.
    MissingExtraError
        jinja2 is not installed.
    """

    def __init__(self, engine: Engine, source: str | None = None) -> None:
        source = engine.info.chat_template if source is None else source
        if source is None:
            raise InvalidParamError(
                "the model has no chat template", path=engine.info.path, key="chat_template"
            )
        self._engine = engine
        self._template = _compile(source, engine.info.path)
        self._names = _token_names(engine)

    def tokens(self, messages: Sequence[Message], *, answer: bool = True) -> list[int]:
        """Return the tokens of a conversation; ``answer``: up to where the model's answer starts.

        Parameters
        ----------
        messages
            Each with ``role`` (``system``, ``user``, ``assistant``) and ``content``.

        Raises
        ------
        InvalidParamError
            A message has no role or no text.
        ModelError
            The template refuses the messages.
        """
        text, contents = self._rendered(messages, answer)
        return self._read(text, contents)

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

    def _rendered(self, messages: Sequence[Message], answer: bool) -> tuple[str, list[str]]:
        """Return the text with placeholders, and what belongs in each place."""
        for message in messages:
            if not isinstance(message.get("content"), str) or not _ROLE.fullmatch(str(message.get("role"))):
                raise InvalidParamError("a message needs a role and a text as its content", key="messages")
        roles = [message["role"] for message in messages]
        contents = [message["content"] for message in messages]
        places = [_PLACE.format(number) for number in range(len(messages))]
        text = self._render([_message(*pair) for pair in zip(roles, places, strict=True)], answer)
        if _REMAINS.search(_PLACES.sub("", text)):
            raise ModelError(
                "the chat template takes messages apart, which is not supported",
                path=self._engine.info.path,
                remedy=_REMEDY,
            )
        return text, self._trimmed(roles, contents, text, answer)

    def _trimmed(self, roles: list[str], contents: list[str], text: str, answer: bool) -> list[str]:
        """Return the contents without the space around them where the template would remove it."""
        stripped = [content.strip() for content in contents]
        if stripped == contents:
            return contents
        real = self._render([_message(*pair) for pair in zip(roles, contents, strict=True)], answer)
        if _spliced(text, contents) != real == _spliced(text, stripped):
            return stripped
        return contents

    def _render(self, messages: list[dict[str, str]], answer: bool) -> str:
        try:
            text = self._template.render(messages=messages, add_generation_prompt=answer, **self._names)
        except Exception as error:  # a template can raise whatever a program can
            raise _failed(error, self._engine.info.path) from error
        return str(text)

    def _read(self, text: str, contents: list[str]) -> list[int]:
        """Return the tokens of a text with placeholders: control tokens in the template's own parts only.

        Plain text of both is joined before it is read, so that tokens across the seam are as in training.
        """
        tokens: list[int] = []
        plain = ""
        for number, part in enumerate(_PLACES.split(text)):
            pieces: Iterator[int | str] = iter([contents[int(part)]]) if number % 2 else self._split(part)
            for piece in pieces:
                if isinstance(piece, str):
                    plain += piece
                    continue
                if plain:
                    tokens += self._engine.tokenize(plain)
                plain = ""
                tokens.append(piece)
        return tokens + (self._engine.tokenize(plain) if plain else [])

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


def _spliced(text: str, contents: Sequence[str]) -> str:
    return _PLACES.sub(lambda match: contents[int(match[1])], text)


def _failed(error: BaseException, path: str) -> ModelError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ModelError(f"the model's chat template failed: {reason}", path=path, remedy=_REMEDY)


def _compile(source: str, path: str) -> Any:
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingExtraError("a chat template", "llama") from error

    def refuse(message: object) -> None:
        raise TemplateError(str(message))

    def to_json(value: Any, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation()]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except Exception as error:  # a syntax error, or one of the compiler that a hostile source provokes
        raise _failed(error, path) from error


def _generation() -> type:
    """Return the extension that lets ``{% generation %}``, which marks answers for training, stand for nothing."""
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


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
