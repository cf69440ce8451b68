"""The chat templates that llama.cpp has built in and calls by names: ``chatml``, ``llama3``, ``command-r``.

Older models come without a template of their own, and people name one. llama.cpp writes the text; it is shown
placeholders only, as any template is (``llama/chat.py``).
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_kit.errors import MissingExtraError


class BuiltInTemplate:
    """One of llama.cpp's templates, with the one method of a Jinja template that is used.

    Parameters
    ----------
    name
        One of ``built_in_names()``.
    """

    def __init__(self, name: str) -> None:
        self._name = name.encode()

    def render(
        self, *, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False, **_: Any
    ) -> str:
        """Return a conversation as text; other variables have no effect.

        Raises
        ------
        ValueError
            llama.cpp cannot write it.
        """
        library = _library()
        texts = [(str(one["role"]).encode(), str(one["content"]).encode()) for one in messages]
        chat = (library.llama_chat_message * len(texts))(*texts)
        room = 1024 + sum(len(role) + 2 * len(content) for role, content in texts)
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = library.llama_chat_apply_template(
                self._name, chat, len(texts), add_generation_prompt, buffer, room
            )
            if size < 0:
                raise ValueError("llama.cpp cannot write the conversation in this form")
            if size <= room:
                return buffer.raw[:size].decode()
            room = size


def built_in_names() -> tuple[str, ...]:
    """Return the names of llama.cpp's templates; none where llama.cpp is not installed."""
    try:
        library = _library()
    except MissingExtraError:
        return ()
    names = (ctypes.c_char_p * 256)()
    count = min(library.llama_chat_builtin_templates(names, len(names)), len(names))
    return tuple(bytes(name or b"").decode() for name in names[: max(0, count)])


def _library() -> Any:
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    except ImportError as error:
        raise MissingExtraError("llama.cpp's chat templates", "llama") from error
