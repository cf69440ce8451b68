"""How the next token is chosen: settings that every engine understands, and what a sampler offers."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import InvalidParamError

Floats = np.ndarray[Any, np.dtype[np.float32]]
#: llama.cpp's word for "draw one".
_RANDOM_SEED = 0xFFFFFFFF
#: Temperatures up to this are none: the most likely token is taken.
COLD = 1e-6
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
    ("typical_p", 0.0, 1.0),
    ("top_n_sigma", -1.0, 100.0),
    ("xtc_probability", 0.0, 1.0),
    ("xtc_threshold", 0.0, 1.0),
    ("dynatemp_range", 0.0, 100.0),
    ("dynatemp_exponent", 0.01, 100.0),
    ("dry_multiplier", 0.0, 100.0),
    ("dry_base", 1.0, 100.0),
    ("dry_allowed_length", 0, 1 << 20),
    ("dry_penalty_last_n", -1, 1 << 16),
    ("mirostat", 0, 2),
    ("mirostat_tau", 0.0, 100.0),
    ("mirostat_eta", 0.0, 1.0),
    ("adaptive_target", -1.0, 1.0),
    ("adaptive_decay", 0.0, 0.99),
    ("min_keep", 0, 1 << 20),
)
#: llama.cpp's names and letters of the samplers.
LETTERS = {
    "penalties": "e", "dry": "d", "top_n_sigma": "s", "top_k": "k", "typ_p": "y", "top_p": "p", "min_p": "m",
    "xtc": "x", "temperature": "t", "infill": "i", "adaptive_p": "a",
}  # fmt: skip
#: Those that take part by default, in their order.
ORDER = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
_ALIASES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p", "typical_p": "typ_p"}
#: Texts that a repetition does not reach across, of so many bytes; llama.cpp looks through the vocabulary for each.
_MOST_BREAKERS, _BREAKER_BYTES = 16, 40
#: A bias beyond it could become infinite.
_MOST_BIAS = 1e30


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
    ignore_eos
        No token that ends an answer is chosen.
    typical_p, top_n_sigma
        Locally typical tokens of probability p together; those within n standard deviations of the largest logit
        (0 or less: all).
    xtc_probability, xtc_threshold
        How often the most likely of several tokens above the threshold are left out.
    dynatemp_range, dynatemp_exponent
        How far the temperature follows the entropy, and by which power of it.
    dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n, dry_sequence_breakers
        Penalty multiplier * base ^ (length - allowed length) on what would go on with a repetition of the last tokens
        (-1: of the whole context); repetitions end at a sequence breaker.
    mirostat, mirostat_tau, mirostat_eta
        Version of Mirostat (0: none), which takes the place of the other samplers; its target surprise in bits, and
        learning rate.
    adaptive_target, adaptive_decay
        Of the sampler ``adaptive_p``, which takes part where ``samplers`` names it.
    samplers
        The samplers that take part, in their order: names, or their letters in one text. None: ``ORDER``.
    min_keep
        Tokens that samplers leave at least.
    tells
        The sampler's ``candidates`` are filled.

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
    ignore_eos: bool = False
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: Iterable[str] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    samplers: str | Iterable[str] | None = None
    min_keep: int = 0
    tells: bool = False

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
            known = type(token) is int and isinstance(bias, (int, float)) and not isinstance(bias, bool)
            if not known or not (bias == float("-inf") or abs(bias) <= _MOST_BIAS):
                raise InvalidParamError(
                    f"{token!r}: {bias!r} is not a logit bias",
                    key="logit_bias",
                    hint="Give a mapping from token numbers to numbers.",
                )
        if not isinstance(self.ignore_eos, bool):
            raise InvalidParamError(
                f"ignore_eos is {self.ignore_eos!r}", key="ignore_eos", hint="Choose true or false."
            )
        object.__setattr__(self, "dry_sequence_breakers", _breakers(self.dry_sequence_breakers))
        if self.samplers is not None:
            object.__setattr__(self, "samplers", sampler_names(self.samplers))

    @property
    def order(self) -> tuple[str, ...]:
        """The samplers that take part, in their order."""
        return ORDER if self.samplers is None else tuple(self.samplers)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken each time, whatever else is set.

        llama.cpp would divide by a temperature that is next to nothing.
        """
        if self.temperature > COLD or (not self.mirostat and self.dynatemp_range > 0):
            return False
        names = set(self.order)
        return bool(self.mirostat) or (
            "temperature" in names
            and not names & {"infill", "adaptive_p"}
            and not self._may_drop_the_likeliest
        )

    @property
    def _may_drop_the_likeliest(self) -> bool:
        return (self.typical_p < 1 and "typ_p" in self.order) or (
            self.xtc_probability > 0 and self.xtc_threshold <= 0.5 and "xtc" in self.order
        )

    @property
    def decided_by(self) -> int:
        """How many of the most likely tokens are all that samplers choose among; 0: it may be any number."""
        whole = (
            self.mirostat or self.looks_back or "infill" in self.order
        )  # which ends a text with its own token
        if whole or self.grammar is not None or self.json_schema is not None:
            return 0
        if self.greedy:
            return 1
        idle = {"penalties", "dry"}  # as they look back at nothing
        idle |= {
            name
            for name, does_nothing in (
                ("top_n_sigma", self.top_n_sigma <= 0),
                ("typ_p", self.typical_p == 1),
                ("top_p", self.top_p == 1),
                ("min_p", self.min_p == 0),
                ("xtc", self.xtc_probability == 0),
            )
            if does_nothing
        }
        first = next((name for name in self.order if name not in idle), None)
        return self.top_k if first == "top_k" else 0

    @property
    def looks_back(self) -> int:
        """How many of the last tokens the samplers look at; -1: at all of the context."""
        found = [0]
        if "penalties" in self.order and (
            self.repeat_penalty != 1.0 or self.frequency_penalty or self.presence_penalty
        ):
            found.append(self.repeat_last_n)
        if "dry" in self.order and self.dry_multiplier:
            found.append(self.dry_penalty_last_n)
        return -1 if min(found) < 0 else max(found)

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


def sampler_names(given: str | Iterable[str]) -> tuple[str, ...]:
    """Return llama.cpp's names of samplers that are given by names (``top-k``, ``topk`` too) or by letters.

    Raises
    ------
    InvalidParamError
        There is no such sampler, or they are too many.

    >>> sampler_names("kt"), sampler_names(["Top-K", "temp"])
    (('top_k', 'temperature'), ('top_k', 'temperature'))
    """
    spelled = {letter: name for name, letter in LETTERS.items()} if isinstance(given, str) else _SPELLINGS
    found = []
    for one in given:
        key = one if isinstance(given, str) else str(one).lower()
        if key not in spelled:
            raise InvalidParamError(
                f"there is no sampler {str(one)[:40]!r}",
                key="samplers",
                hint=f"Choose among {', '.join(LETTERS)}, or their letters {''.join(LETTERS.values())}.",
            )
        found.append(spelled[key])
    if len(found) > 2 * len(LETTERS):
        raise InvalidParamError(f"{len(found)} samplers are too many", key="samplers")
    return tuple(found)


_SPELLINGS = {
    **{name.replace("_", mark): name for name in LETTERS for mark in ("_", "-", "")},
    **_ALIASES,
}


def _breakers(given: Iterable[str]) -> tuple[str, ...]:
    found = tuple(given) if not isinstance(given, str) else ()
    for one in found:
        if (
            not isinstance(one, str)
            or "\0" in one
            or not 0 < len(one.encode("utf-8", "replace")) <= _BREAKER_BYTES
        ):
            found = ()
    if not 0 < len(found) <= _MOST_BREAKERS:
        raise InvalidParamError(
            f"dry_sequence_breakers are 1 to {_MOST_BREAKERS} texts of 1 to {_BREAKER_BYTES} bytes",
            key="dry_sequence_breakers",
        )
    return found


class Sampler(Protocol):
    """Chooses tokens one after the other, and remembers them for its penalties and grammar."""

    #: Tokens that could have been chosen the last time, with their probabilities, the likeliest first: only where
    #: ``Sampling.tells``.
    candidates: list[tuple[int, float]]
    #: So many of the likeliest tokens are all that it needs to know; 0: it wants to see all.
    few: int

    def accept(self, tokens: Iterable[int]) -> None:
        """Take note of tokens that stand before what is chosen, for the penalties."""

    def sample(self, logits: Floats, index: int | None = None) -> int:
        """Choose a token from logits (n_vocab,), and accept it.

        ``index`` is the place of the row in the engine's batch where ``logits`` are as the engine gave them; they
        need not be copied then.
        """

    def sample_among(self, tokens: Array, logits: Floats) -> int:
        """Do ``sample`` where only some ``tokens`` (n,) and their logits are known, the ``few`` likeliest of all."""

    def close(self) -> None:
        """Free it."""
