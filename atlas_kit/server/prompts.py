"""Prompts in all of llama-server's forms become tokens. Knows no HTTP.

A string, a list of tokens, a list of tokens and strings mixed, an object with ``prompt_string``; or a list of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import InvalidParamError

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine

MOST_PROMPTS = 64
#: What stands between files where the vocabulary has no token for it, as in llama-server.
_SNIPPET = "\n\n--- snippet ---\n\n"


def prompts_of(engine: Engine, given: Any) -> tuple[list[list[int]], bool]:
    """Return the tokens of each prompt, and whether it was one.

    Raises
    ------
    InvalidParamError
        It is in none of these forms.
    """
    # a list with a number in it is one prompt
    several = isinstance(given, list) and not any(isinstance(one, int) for one in given)
    found = given if several else [given]
    if not found or len(found) > MOST_PROMPTS:
        raise InvalidParamError(f"1 to {MOST_PROMPTS} prompts are possible", key="prompt")
    return [_one(engine, one) for one in found], len(found) == 1


def _one(engine: Engine, given: Any) -> list[int]:
    if isinstance(given, dict) and isinstance(given.get("prompt_string"), str):
        if given.get("multimodal_data"):
            raise InvalidParamError("this server reads text only: leave out multimodal_data", key="prompt")
        given = given["prompt_string"]
    return mixed(engine, given, begin=True, special=True)


def mixed(engine: Engine, given: Any, *, begin: bool, special: bool, key: str = "prompt") -> list[int]:
    """Return the tokens of a text, or of a list of texts and tokens.

    Parameters
    ----------
    begin
        Put the begin token before a text at the beginning.
    special
        Names of control tokens in texts become those tokens.

    Raises
    ------
    InvalidParamError
        It is neither, or a token lies outside the vocabulary.
    """
    parts = [given] if isinstance(given, str) else given
    if not isinstance(parts, list):
        raise InvalidParamError("a prompt is a text, a list of tokens, or a list of both mixed", key=key)
    found: list[int] = []
    if begin and parts and isinstance(parts[0], str):
        found += engine.begin
    for part in parts:
        if isinstance(part, str):
            tokens = tokens_of(engine, part, key, special=special)
            if part is parts[0] and tuple(tokens[: len(engine.begin)]) == engine.begin and found:
                tokens = tokens[len(engine.begin) :]  # it says so itself
            found += tokens
        else:
            found.append(checked_token(engine, part, key))
    return found


def tokens_of(engine: Engine, text: str, key: str, *, special: bool = False) -> list[int]:
    """Return the tokens of a text that a client has sent, as ``Engine.tokenize`` does.

    Raises
    ------
    InvalidParamError
        It cannot be tokenised; ``key`` is the request's property.
    """
    try:
        return engine.tokenize(text, special=special)
    except InvalidParamError as error:
        error.key = key
        raise


def checked_token(engine: Engine, token: Any, key: str) -> int:
    """Return a token that a client has sent.

    Raises
    ------
    InvalidParamError
        It is none of the vocabulary's.
    """
    if type(token) is not int or not 0 <= token < engine.info.n_vocab:
        raise InvalidParamError("a token lies outside the vocabulary", key=key)
    return token


def shown(engine: Engine, tokens: Sequence[int], *, special: bool = True) -> str:
    """Return the text of tokens; ``special``: with the names of control tokens."""
    return b"".join(engine.piece(token, special=special) for token in tokens).decode("utf-8", "replace")


def gap(
    engine: Engine, before: str, behind: str, begun: str, files: Sequence[tuple[str, str]], room: int
) -> list[int] | None:
    """Return the tokens of a text with a gap, as models with tokens for it read it; None where this one has none.

    Parameters
    ----------
    before, behind, begun
        The text before and behind the gap, and how the text in it begins.
    files
        (name, text) of other files.
    room
        Tokens that all of it may have: of what is before, behind and in other files, the nearest is kept.
    """
    marks = engine.infill_tokens
    if marks is None:
        return None
    inner = tokens_of(engine, begun, "prompt")
    own = max(0, room - len(inner) - len(engine.begin) - 3)
    # before : behind as 3 : 1, and what one leaves is the other's
    prefix, suffix = tokens_of(engine, before, "input_prefix"), tokens_of(engine, behind, "input_suffix")
    most_behind = max(own // 4, own - len(prefix))
    suffix = suffix[:most_behind]
    prefix = prefix[max(0, len(prefix) - (own - len(suffix))) :]
    others = _others(engine, files)
    left = own - len(prefix) - len(suffix)
    others = others[max(0, len(others) - left) :] if left else []
    return [*others, *engine.begin, marks.pre, *prefix, *inner, marks.suf, *suffix, marks.mid]


def _others(engine: Engine, files: Sequence[tuple[str, str]]) -> list[int]:
    marks = engine.infill_tokens
    assert marks is not None
    found: list[int] = []
    if marks.rep is not None:
        found += [marks.rep, *engine.tokenize("myproject\n")]
    for name, text in files:
        found += (
            engine.tokenize(_SNIPPET)
            if marks.sep is None
            else [marks.sep, *tokens_of(engine, f"{name}\n", "input_extra")]
        )
        found += tokens_of(engine, text, "input_extra")
    if marks.sep is not None:
        found += [marks.sep, *engine.tokenize("filename\n")]
    return found
