"""What a model makes of language, as the explorer shows it: a text in tokens, a conversation in its template.

Both run what the file holds or let llama.cpp read it: who asks says whether that is wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atlas_kit.errors import InvalidParamError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.llama.words_only import WordsOnly

#: Characters of a conversation, and its messages.
MOST_TEXT, MOST_MESSAGES = 50_000, 50
EXAMPLE = (
    {"role": "system", "content": "You answer briefly."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
)
TEMPLATE = "tokenizer.chat_template"


def tokens_of(words: WordsOnly, text: str, special: bool = False) -> list[dict[str, Any]]:
    """Return how a vocabulary cuts a text: ``id``, ``text`` and ``bytes`` (in hexadecimal) of each token."""
    found = []
    for token in words.tokenize(text, special=special):
        piece = words.piece(token)
        shown = printable(piece.decode("utf-8", "surrogateescape"))
        found.append({"id": token, "text": shown, "bytes": piece.hex(" ")})
    return found


def in_template(model: GGUFFile, messages: Sequence[dict[str, Any]], answer: bool = True) -> str:
    """Return a conversation as the model's template writes it.

    Raises
    ------
    InvalidParamError
        The model has no template, or the conversation is too long.
    ModelError
        The template fails.
    """
    from atlas_kit.llama.chat import written_out

    source = model.get(TEMPLATE)
    if not isinstance(source, str):
        raise InvalidParamError("the model has no chat template", path=model.path)
    given = [{"role": str(m.get("role", "")), "content": str(m.get("content", ""))} for m in messages]
    if len(given) > MOST_MESSAGES or sum(len(m["content"]) for m in given) > MOST_TEXT:
        raise InvalidParamError("the conversation is too long to be shown", path=model.path)
    names = {f"{name}_token": _token(model, name) for name in ("bos", "eos")}
    return written_out(source, given, names, answer=answer, path=str(model.path or ""))


def _token(model: GGUFFile, name: str) -> str:
    """Return the text of the token that begins or ends a text; empty where there is none."""
    number, tokens = model.get(f"tokenizer.ggml.{name}_token_id"), model.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(number, int) or tokens is None or not tokens.is_array or not 0 <= number < tokens.count:
        return ""
    return str(tokens.items[number])
