"""A model's vocabulary in llama.cpp, without its weights: how it cuts a text into tokens, in a fraction of a second.

Knows no session. The file is checked before llama.cpp reads it, which would crash on some that are damaged.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Any

from atlas_kit.errors import InvalidParamError, ModelError
from atlas_kit.llama.engine import encoded
from atlas_kit.llama.llama_library import library
from atlas_kit.llama.model_file import ModelFile

#: Characters of a text that is cut at once.
MOST = 100_000


class WordsOnly:
    """The vocabulary of the model at ``path``; a context manager.

    Raises
    ------
    MissingExtraError, ModelError, FileCorruptError
        llama.cpp is not installed; it refuses the model; the file is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = os.fspath(path)
        with contextlib.closing(ModelFile(path)) as file:
            file.check()
        self._count = _count_of(path)
        self._library = library()
        api = self._library.api
        params = api.llama_model_default_params()
        params.vocab_only = True
        self._model: Any = self._library.heard(
            lambda: api.llama_model_load_from_file(os.fsencode(path), params)
        )
        if not self._model:
            raise ModelError(f"llama.cpp does not load this model: {self._library.last_error()}", path=path)
        self._vocab = api.llama_model_get_vocab(self._model)

    def __enter__(self) -> WordsOnly:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the vocabulary."""
        model, self._model = self._model, None
        if model:
            self._library.api.llama_model_free(model)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Return the tokens of a text; ``special``: names of control tokens in it become those tokens.

        Raises
        ------
        InvalidParamError
            The text is longer than ``MOST``.
        """
        if len(text) > MOST:
            raise InvalidParamError(f"the text has more than {MOST:,} characters")
        data = encoded(text)
        room = len(data) + 16
        while True:
            tokens = (self._library.api.llama_token * room)()
            count = self._library.api.llama_tokenize(
                self._vocab, data, len(data), tokens, room, False, special
            )
            if count >= 0:
                return list(tokens[:count])
            if -count <= room:
                raise InvalidParamError("the text is too long to be tokenised at once")
            room = -count

    def piece(self, token: int) -> bytes:
        """Return a token's bytes, which may be part of a character; control tokens have their names."""
        if not 0 <= token < self._count:  # llama.cpp would end the process
            raise InvalidParamError(f"there is no token {token}", key="token")
        room = 64
        while True:
            text = ctypes.create_string_buffer(room)
            count = self._library.api.llama_token_to_piece(self._vocab, token, text, room, 0, True)
            if count >= 0:
                return text.raw[:count]
            room = -count


def _count_of(path: str) -> int:
    """Return how many tokens a model has; one without any is refused: llama.cpp would end the process over it."""
    from atlas_kit.formats.gguf.file import GGUFFile

    with GGUFFile.open(path) as file:
        kind, tokens = file.get("tokenizer.ggml.model"), file.metadata.get("tokenizer.ggml.tokens")
        if (
            kind in (None, "", "none", "no_vocab")
            or tokens is None
            or not tokens.is_array
            or not tokens.count
        ):
            raise ModelError("the model has no vocabulary", path=path)
        return int(tokens.count)
