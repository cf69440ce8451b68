"""What a request says about choosing tokens, as ``Sampling`` has it: names that are the same, and biases.

Knows no schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import InvalidParamError

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine

#: Entries of a bias; a text counts once, and becomes all of its tokens.
MOST_BIASES = 4096
#: Characters of all texts in it: they are tokenized while everybody waits.
MOST_BIASED_TEXT = 1 << 16
#: What a request may hold under the very names of ``Sampling``.
NAMES = (
    "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repeat_penalty", "repeat_last_n",
    "grammar", "json_schema", "ignore_eos", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold",
    "dynatemp_range", "dynatemp_exponent", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n",
    "dry_sequence_breakers", "mirostat", "mirostat_tau", "mirostat_eta", "adaptive_target", "adaptive_decay",
    "samplers", "min_keep",
)  # fmt: skip


def biases_of(engine: Engine, given: Any) -> dict[int, float]:
    """Return what is added to the logits of tokens: from ``{token: x}``, ``[[token, x]]`` or ``[[text, x]]``.

    ``false`` in the place of a number forbids a token; a text stands for each of its tokens.

    Raises
    ------
    InvalidParamError
        It is in none of these forms, or too long.
    """
    if not given:
        return {}
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, list) or len(pairs) > MOST_BIASES:
        raise _no_bias()
    found: dict[int, float] = {}
    text = 0
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise _no_bias()
        key, bias = pair
        text += len(key) if isinstance(key, str) else 0
        if text > MOST_BIASED_TEXT:
            raise InvalidParamError(
                f"the texts of a logit_bias have at most {MOST_BIASED_TEXT} characters", key="logit_bias"
            )
        if bias is False:
            bias = float("-inf")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or isinstance(key, (bool, float)):
            raise _no_bias()
        for token in _tokens_of(engine, key):
            found[token] = found.get(token, 0.0) + bias
    return found


def _tokens_of(engine: Engine, key: Any) -> list[int]:
    if isinstance(key, int):
        return [key]
    if not isinstance(key, str):
        raise _no_bias()
    if key.lstrip("-").isascii() and key.lstrip("-").isdigit():
        return [int(key[:12])]
    return engine.tokenize(key)


def _no_bias() -> InvalidParamError:
    return InvalidParamError(
        f"a logit_bias is an object {{token: number}} or a list of [token, number] or [text, number], of at most "
        f"{MOST_BIASES}; false in the place of a number forbids a token",
        key="logit_bias",
    )
