"""What the API families of conversations share: how their settings and what follows from a dialogue go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atlas_kit.server.problems import ApiError
from atlas_kit.server.request_parts import sampling_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from atlas_kit.llama.sampling import Sampler, Sampling
    from atlas_kit.server.dialogue import Dialogue
    from atlas_kit.server.schemas import Generate
    from atlas_kit.server.service import Service


def shape_of(asked: Generate, given: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the form of the answer: the API's own, or llama.cpp's ``json_schema`` at the top of a request."""
    if given is None and asked.json_schema is not None:
        return {"type": "json_schema", "json_schema": {"schema": asked.json_schema}}
    return given


def budget_for(
    service: Service, found: Dialogue, asked: int | None = None
) -> Callable[[Sampler], Sampler] | None:
    """Return what ends the thoughts after so many tokens as the request allows, or else the server."""
    return found.budget(service.engine, service.config.reasoning_budget if asked is None else asked)


def reasoning_format_of(service: Service, asked: str | None = None) -> str:
    """Return where thoughts go."""
    return asked or service.config.reasoning_format


def sampling_for(asked: Generate, service: Service, found: Dialogue) -> Sampling:
    """Return how the tokens of an answer are chosen.

    Raises
    ------
    ApiError
        A grammar was sent beside tools or a form that make one of their own.
    """
    if found.sampling and asked.grammar:
        raise ApiError(
            400,
            "A grammar and a form that follows from tools or a schema cannot both be followed.",
            param="grammar",
        )
    # the schema at the top is part of the dialogue, which may leave room for thoughts and calls
    return sampling_of(asked.model_copy(update={"json_schema": None}), service, **found.sampling)
