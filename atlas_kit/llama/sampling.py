"""How the next token is chosen: settings that every engine understands, and what a sampler offers."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from atlas_kit.errors import InvalidParamError

Floats = np.ndarray[Any, np.dtype[np.float32]]
#: llama.cpp's word for "draw one".
_RANDOM_SEED = 0xFFFFFFFF
#: (name, least, most)
_RANGES = (
    ("temperature", 0.0, 100.0),
    ("top_k", 0, 1 << 24),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("repeat_penalty", 0.01, 100.0),
    ("repeat_last_n", -1, 1 << 20),
    ("frequency_penalty", -100.0, 100.0),
    ("presence_penalty", -100.0, 100.0),
)


@dataclass(frozen=True)
class Sampling:
    """Settings of a sampler, with llama.cpp's names and defaults.

    Parameters
    ----------
    temperature
        0 takes the most likely token each time.
    top_k, top_p, min_p
        Tokens that may be chosen: the k most likely (0: all); the most likely ones that together have probability
        p; those at least min_p times as likely as the most likely.
    repeat_penalty, repeat_last_n, frequency_penalty, presence_penalty
        Penalties on tokens of the last ``repeat_last_n`` (-1: of the whole context).
    seed
        Of the random numbers, any signed 64-bit integer; None draws one.
    grammar
        GBNF that the text must follow.
    json_schema
        A JSON schema (text or mapping) that the text must follow; ``{}`` allows any JSON.
    logit_bias
        Token -> what is added to its logit.

    Raises
    ------
    InvalidParamError
        For a setting out of range, or both a grammar and a schema.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    grammar: str | None = None
    json_schema: str | Mapping[str, Any] | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least, most in _RANGES:
            value = getattr(self, name)
            kinds = int if isinstance(least, int) else (int, float)
            number = isinstance(value, kinds) and not isinstance(value, bool)
            if not number or not least <= value <= most:
                raise InvalidParamError(
                    f"{name} is {value!r}", key=name, hint=f"Choose {least:.10g} to {most:.10g}."
                )
        if self.seed is not None and (type(self.seed) is not int or not -(1 << 63) <= self.seed < 1 << 63):
            raise InvalidParamError(f"seed is {self.seed!r}", key="seed", hint="Choose a 64-bit integer.")
        if self.grammar is not None and self.json_schema is not None:
            raise InvalidParamError("a grammar and a JSON schema cannot both be followed", key="grammar")
        if self.grammar is not None and not isinstance(self.grammar, str):
            raise InvalidParamError(f"grammar is {self.grammar!r}", key="grammar", hint="Give GBNF as text.")
        if self.json_schema is not None and not isinstance(self.json_schema, (str, Mapping)):
            raise InvalidParamError(f"json_schema is {self.json_schema!r}", key="json_schema")
        if not isinstance(self.logit_bias, Mapping):
            raise InvalidParamError(
                f"logit_bias is {self.logit_bias!r:.80}",
                key="logit_bias",
                hint="Give a mapping from token numbers to numbers.",
            )
        for token, bias in self.logit_bias.items():
            # -inf forbids a token
            known = type(token) is int and isinstance(bias, (int, float)) and bias < float("inf")
            if not known or isinstance(bias, bool):
                raise InvalidParamError(
                    f"{token!r}: {bias!r} is not a logit bias",
                    key="logit_bias",
                    hint="Give a mapping from token numbers to numbers.",
                )

    @property
    def short_seed(self) -> int | None:
        """The seed as llama.cpp takes it: itself from 0 to 4294967294, and for every other one always the same."""
        if self.seed is None or 0 <= self.seed < _RANDOM_SEED:
            return self.seed
        data = self.seed.to_bytes(8, "little", signed=True)
        hashed = zlib.crc32(
            data
        )  # of 4294967295 it is that number again: such a one is hashed from another start
        return hashed if hashed != _RANDOM_SEED else zlib.crc32(data, 1)

    @property
    def schema_text(self) -> str | None:
        """The JSON schema as text.

        Raises
        ------
        InvalidParamError
            When it is not JSON.
        """
        if self.json_schema is None:
            return None
        if isinstance(self.json_schema, str):
            try:
                json.loads(self.json_schema)
            except (ValueError, RecursionError) as error:
                raise InvalidParamError(f"the schema is not JSON: {error}", key="json_schema") from error
            return self.json_schema
        try:
            return json.dumps(dict(self.json_schema))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidParamError(f"the schema is not JSON: {error}", key="json_schema") from error


class Sampler(Protocol):
    """Chooses tokens one after the other, and remembers them for its penalties and grammar."""

    def sample(self, logits: Floats, index: int | None = None) -> int:
        """Choose a token from logits (n_vocab,), and accept it.

        ``index`` is the place of the row in the engine's batch where ``logits`` are as the engine gave them; they
        need not be copied then.
        """

    def close(self) -> None:
        """Free it."""
