"""The text of tokens, from a model's metadata alone: no weights are read and nothing is run.

Follows ``llama_token_to_piece`` for the three kinds of vocabulary that nearly all models have. Turns tokens into
text, not text into tokens.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from atlas_kit.errors import InvalidParamError

if TYPE_CHECKING:
    from atlas_kit.formats.gguf.file import GGUFFile

#: ``tokenizer.ggml.model`` of vocabularies in which a low line block stands for a space.
SPACE_MARKED = frozenset({"llama", "t5", "bert"})
#: That of vocabularies in which a character stands for a byte.
BYTE_MARKED = frozenset({"gpt2"})
_NORMAL, _USER_DEFINED, _BYTE = 1, 4, 6
_BYTE_TOKEN = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """The bytes of each token of a model.

    Parameters
    ----------
    model
        An opened model; it may be closed afterwards.

    Raises
    ------
    InvalidParamError
        The model has no vocabulary, or one of another kind.
    """

    def __init__(self, model: GGUFFile) -> None:
        kind = model.get("tokenizer.ggml.model")
        tokens, types = model.get("tokenizer.ggml.tokens"), model.get("tokenizer.ggml.token_type")
        if kind not in SPACE_MARKED | BYTE_MARKED or tokens is None:
            what = "has no vocabulary" if tokens is None else f"has a vocabulary of the kind {kind!r}"
            raise InvalidParamError(
                f"the model {what}, whose tokens cannot be turned into text without loading it",
                path=model.path,
                key="tokenizer.ggml.model",
            )
        self._tokens: list[bytes] = [token.encode("utf-8", "surrogateescape") for token in tokens]
        self._types = [_NORMAL] * len(self._tokens) if types is None else [int(number) for number in types]
        self._bytes = _byte_of_character() if kind in BYTE_MARKED else None

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self._tokens)

    def piece(self, token: int) -> bytes:
        """Return a token's bytes, which may be part of a character; control tokens are empty."""
        raw = self._tokens[token]
        kind = self._types[token] if token < len(self._types) else _NORMAL
        if kind == _USER_DEFINED:
            return raw
        if kind == _BYTE and self._bytes is None and (match := _BYTE_TOKEN.fullmatch(raw)):
            return bytes([int(match[1], 16)])
        if kind != _NORMAL:
            return b""
        if self._bytes is None:
            return raw.replace("▁".encode(), b" ")
        return b"".join(self._bytes.get(char, char.encode()) for char in raw.decode("utf-8", "replace"))


def _byte_of_character() -> dict[str, bytes]:
    """Return which byte each character stands for: GPT-2's table, in which every byte can be seen."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in seen]
    table = {chr(byte): bytes([byte]) for byte in seen}
    return table | {chr(256 + number): bytes([byte]) for number, byte in enumerate(rest)}
