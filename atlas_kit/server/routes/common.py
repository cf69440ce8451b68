"""What endpoints share: the service, who asks, and what a request says about choosing tokens."""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any

from fastapi import Depends, Request

from atlas_kit.llama.sampling import Sampling
from atlas_kit.server.generation import Outcome
from atlas_kit.server.problems import ApiError
from atlas_kit.server.schemas import Generate
from atlas_kit.server.schemas_sampling import NAMES, biases_of
from atlas_kit.server.service import Service


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


def sampling_of(asked: Generate, service: Service, **more: Any) -> Sampling:
    """Return how a request wants tokens to be chosen; what it does not say is as the server was started.

    Raises
    ------
    InvalidParamError
        A setting is out of range, or a bias is none.
    """
    found = service.config.sampling
    for name in NAMES:
        if (value := getattr(asked, name)) is not None:
            found[name] = value
    if asked.top_k is not None:
        found["top_k"] = max(0, asked.top_k)
    if asked.seed is not None:
        found["seed"] = None if asked.seed == -1 else asked.seed
    if asked.logit_bias:
        found["logit_bias"] = biases_of(service.engine, asked.logit_bias)
    return Sampling(**{**found, **more})


def stops_of(asked: Generate) -> list[str]:
    """Return the strings that end an answer."""
    stops = [asked.stop] if isinstance(asked.stop, str) else list(asked.stop or ())
    if len(stops) > 64:
        raise ApiError(400, "At most 64 stop strings are possible.", param="stop")
    return [stop for stop in stops if stop]


def limit_of(service: Service, *given: int | None) -> int | None:
    """Return how many tokens an answer may have; None: until the model ends it."""
    found = next((one for one in given if one is not None), service.config.n_predict)
    return None if found < 0 else found


def usage_of(outcomes: list[Outcome]) -> dict[str, Any]:
    """Return what an answer took, in tokens."""
    prompt = outcomes[0].prompt_tokens if outcomes else 0
    completion = sum(one.completion_tokens for one in outcomes)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": outcomes[0].cached_tokens if outcomes else 0},
    }
