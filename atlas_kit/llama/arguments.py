"""What callers give to a session, checked before any work begins: one sentence instead of Python's own error.

Knows no model.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.sampling import Sampling


def count_of(name: str, value: Any, hint: str = "Give a whole number, or None.") -> int | None:
    """Return a number of tokens or of jobs; None stays None.

    Raises
    ------
    InvalidParamError
        It is no whole number, or negative.
    """
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise InvalidParamError(f"{name} is {value!r}", key=name, hint=hint)
    if value < 0:
        raise InvalidParamError(f"{name} is {value}", key=name)
    return int(value)


def stops_of(stop: str | Iterable[str]) -> list[str]:
    """Return stop strings as a list.

    Raises
    ------
    InvalidParamError
        They are no strings.
    """
    found = [stop] if isinstance(stop, str) else list(stop) if isinstance(stop, Iterable) else [stop]
    for item in found:
        if not isinstance(item, str):
            raise InvalidParamError(
                f"a stop string cannot be {item!r}", key="stop", hint="Give a string, or several in a list."
            )
    return found


def sampling_of(sampling: Sampling | None) -> Sampling:
    """Return settings of a sampler; the defaults for None.

    Raises
    ------
    InvalidParamError
        They are something else.
    """
    if sampling is None:
        return Sampling()
    if not isinstance(sampling, Sampling):
        raise InvalidParamError(
            f"sampling is {sampling!r}", key="sampling", hint="Give Sampling(...), such as Sampling(seed=1)."
        )
    return sampling


def tokens_of(tokens: Sequence[int], n_vocab: int) -> list[int]:
    """Return tokens as a list of integers.

    Raises
    ------
    InvalidParamError
        They are none of this vocabulary.
    """
    try:
        found = [operator.index(token) for token in tokens]
    except TypeError as error:
        raise InvalidParamError(
            f"a text cannot be {tokens!r:.80}", key="tokens", hint="Give a string, or tokens as integers."
        ) from error
    if any(not 0 <= token < n_vocab for token in found):
        raise InvalidParamError("a token lies outside the vocabulary", key="tokens")
    return found
