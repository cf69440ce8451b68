"""Log-probabilities as OpenAI's clients read them: of chats, and the older object of completions.

A token is told when its text is: what is held back, because it may become a stop string, may never be said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from atlas_kit.llama.steps import Token

#: Where a log-probability is -infinity, which JSON does not know.
LEAST = -9999.0
Piece = Callable[[int], bytes]


class Told(Protocol):
    """A token with what it was expected with: of a text that was sent, or generated."""

    @property
    def id(self) -> int:
        """Its number."""

    @property
    def logprob(self) -> float | None:
        """In nats."""

    @property
    def top(self) -> tuple[tuple[int, float], ...]:
        """The most likely tokens, with theirs."""


class Released:
    """Holds tokens back until their text is out.

    Parameters
    ----------
    piece
        The bytes of a token.
    wanted
        False: nothing is held, and nothing told.
    """

    def __init__(self, piece: Piece, wanted: bool = True) -> None:
        self._piece, self._wanted = piece, wanted
        self._held: list[Token] = []
        self._behind = 0  # bytes of text that are out and belong to no token that is

    def add(self, tokens: Iterable[Token]) -> list[Token]:
        """Take tokens that have come; return those whose text is out whole."""
        if not self._wanted:
            return []
        for token in tokens:
            self._behind += len(token.text.encode("utf-8", "replace"))
            if token.id >= 0:
                self._held.append(token)
        found = 0
        for token in self._held:
            size = len(self._piece(token.id))
            if size > self._behind:
                break
            self._behind -= size
            found += 1
        out, self._held = self._held[:found], self._held[found:]
        return out

    def rest(self, *, stopped: bool) -> list[Token]:
        """Return what is left at the end; ``stopped``: by a stop string, of which nothing is told."""
        if not stopped:
            return self._held
        return self._held[:1] if self._behind and self._held else []


def chat_logprobs(tokens: Iterable[Told], piece: Piece) -> list[dict[str, Any]]:
    """Return the ``content`` of a chat's ``logprobs``."""
    return [
        {
            **_entry(token.id, token.logprob, piece),
            "top_logprobs": [_entry(other, logprob, piece) for other, logprob in token.top],
        }
        for token in tokens
    ]


def _entry(token: int, logprob: float | None, piece: Piece) -> dict[str, Any]:
    data = piece(token)
    return {
        "id": token,
        "token": data.decode("utf-8", "replace"),
        "bytes": list(data),
        "logprob": finite(logprob),
    }


def finite(logprob: float | None) -> float | None:
    """Return a log-probability that JSON can hold."""
    return logprob if logprob is None else max(LEAST, logprob)


def legacy_logprobs(tokens: Sequence[Told], piece: Piece, *, top: int, offset: int = 0) -> dict[str, Any]:
    """Return the ``logprobs`` of completions.

    Parameters
    ----------
    top
        How many of the most likely tokens are told.
    offset
        Characters of the text before the first of the tokens.
    """
    names, offsets, likeliest = [], [], []
    data = b""
    for token in tokens:
        offsets.append(offset + len(data.decode("utf-8", "ignore")))
        data += piece(token.id)
        names.append(_name(piece(token.id)))
        most = {_name(piece(other)): finite(logprob) for other, logprob in token.top}
        likeliest.append(most if token.logprob is not None and top else None)
    return {
        "tokens": names,
        "token_logprobs": [finite(token.logprob) for token in tokens],
        "top_logprobs": likeliest if top else None,
        "text_offset": offsets,
    }


def _name(data: bytes) -> str:
    """Return a token's text; parts of characters as OpenAI writes them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
