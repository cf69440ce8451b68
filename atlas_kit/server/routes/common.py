"""What endpoints share: the service, who asks, and what a request says about choosing tokens."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request

from atlas_kit import __version__
from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.sampling import Sampling
from atlas_kit.server.generation import Generating, Generation, Outcome
from atlas_kit.server.problems import ApiError
from atlas_kit.server.schemas import Generate
from atlas_kit.server.service import Service

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine


def the_service(request: Request) -> Service:
    """Return the service that answers."""
    found: Service = request.app.state.service
    return found


TheService = Annotated[Service, Depends(the_service)]


def namespace_of(request: Request) -> str:
    """Return the namespace of whoever asks: that of the API key."""
    found: str = request.scope["state"]["namespace"]
    return found


def new_id(prefix: str) -> str:
    """Return an id that nobody has used."""
    return prefix + secrets.token_hex(12)


def now() -> int:
    """Return the time, in Unix seconds."""
    return int(time.time())


#: Settings of samplers that requests hold as they are; those beyond OpenAI's and the commonest are not listed there.
_PLAIN = tuple(
    one.name
    for one in dataclasses.fields(Sampling)
    if one.name not in ("top_k", "seed", "logit_bias", "tells")
)
#: Stands for the configuration of the backend: answers of equal ones can be compared.
FINGERPRINT = f"b{__version__}-atlas"


def sampling_of(asked: Generate, engine: Engine | None = None, **more: Any) -> Sampling:
    """Return how a request wants tokens to be chosen; ``engine`` reads the texts that biases are for.

    Raises
    ------
    InvalidParamError
        A setting is out of range, or a bias is none.
    """
    found: dict[str, Any] = {}
    for name in _PLAIN:
        if (value := getattr(asked, name, None)) is not None:
            found[name] = value
    if asked.top_k is not None:
        found["top_k"] = max(0, asked.top_k)
    if asked.seed is not None and asked.seed != -1:
        found["seed"] = asked.seed
    if asked.logit_bias:
        found["logit_bias"] = _biases(asked.logit_bias, engine)
    return Sampling(**{**found, **more})


def _biases(given: Any, engine: Engine | None) -> dict[int, float]:
    """Return what is added to the logits of tokens: ``{id: x}``, ``[[id, x]]``, ``[[text, x]]``; false forbids."""
    found: dict[int, float] = {}
    for what, bias in given.items() if isinstance(given, Mapping) else given:
        if isinstance(what, str) and what.lstrip("-").isdecimal():
            what = int(what)
        if bias is True:
            raise InvalidParamError("a bias is a number, or false", key="logit_bias")
        tokens = [what]
        if isinstance(what, str):
            if engine is None:
                raise InvalidParamError("a key is not a token number", key="logit_bias")
            tokens = engine.tokenize(what)
        for token in tokens:
            found[token] = float("-inf") if bias is False or bias is None else float(bias)
    return found


def reseeded(sampling: Sampling, number: int) -> Sampling:
    """Return how the answer of a number is chosen: with a seed of its own, where one is given."""
    if sampling.seed is None or not number:
        return sampling
    seed = (sampling.seed + number + (1 << 63)) % (1 << 64) - (1 << 63)
    return dataclasses.replace(sampling, seed=seed)


def several(
    service: Service, namespace: str, atlas: dict[str, Any], asked: Generation, count: int
) -> list[Generating]:
    """Return so many answers to one text, which is read once; the first is the session's own."""
    first = service.generate(namespace, atlas, asked)
    return [first, *(first.copy(reseeded(asked.sampling, number)) for number in range(1, count))]


def stops_of(asked: Generate) -> list[str]:
    """Return the strings that end an answer."""
    stops = [asked.stop] if isinstance(asked.stop, str) else list(asked.stop or ())
    if len(stops) > 64:
        raise ApiError(400, "At most 64 stop strings are possible.", param="stop")
    return [stop for stop in stops if stop]


def limit_of(service: Service, *given: int | None) -> int | None:
    """Return how many tokens an answer may have; None: until the model ends it.

    Where nobody says anything, they are as many as the context holds: a memory would let a model go on for ever.
    """
    limit = service.config.n_predict
    found = next((one for one in given if one is not None), limit if limit >= 0 else service.engine.n_ctx)
    return None if found < 0 else found


def usage_of(outcomes: list[Outcome]) -> dict[str, Any]:
    """Return what answers took, in tokens; a text that several share is read once."""
    read = [one for one in outcomes if not one.shared]
    prompt = sum(one.prompt_tokens for one in read)
    completion = sum(one.completion_tokens for one in outcomes)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in read)},
    }


def timings_of(outcome: Outcome) -> dict[str, Any]:
    """Return how long an answer took, as llama-server tells it: in milliseconds, and tokens per second."""
    read = outcome.prompt_tokens - outcome.cached_tokens
    said = outcome.completion_tokens
    found: dict[str, Any] = {"cache_n": outcome.cached_tokens}
    for name, count, seconds in (
        ("prompt", read, outcome.seconds_reading),
        ("predicted", said, outcome.seconds_generating),
    ):
        found[f"{name}_n"] = count
        found[f"{name}_ms"] = seconds * 1000
        found[f"{name}_per_token_ms"] = seconds * 1000 / count if count else 0.0
        found[f"{name}_per_second"] = count / seconds if seconds else 0.0
    return found
