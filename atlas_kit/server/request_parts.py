"""What APIs share: what a request says about choosing tokens, what an answer tells, how texts are read.

Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from atlas_kit import __version__
from atlas_kit.llama.sampling import Sampling
from atlas_kit.server.generation import Generating
from atlas_kit.server.outcome import Generation, Outcome
from atlas_kit.server.problems import ApiError
from atlas_kit.server.sampling_parts import NAMES, biases_of
from atlas_kit.server.streams import begun_awake

if TYPE_CHECKING:
    from atlas_kit.server.schemas import Generate
    from atlas_kit.server.service import Service

T = TypeVar("T")
#: Bytes of a request whose texts are read in no time.
SHORT = 20_000


async def prepared(service: Service, size: int | None, function: Callable[[], T]) -> T:
    """Call what reads a request's texts: beside the event loop where they are long, so that nobody's stream waits.

    Of requests that come at once, the loop begins with one at a time, and looks at everything else between two.
    ``size`` is that of the request in bytes, where it says so.
    """
    async with service.turn:
        await asyncio.sleep(0)
    if size is not None and size <= SHORT:
        return function()
    return await asyncio.to_thread(function)


def awake(service: Service, asked: Generate, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Return events with signs of life before the first, as often as the request or the server says."""
    given = asked.sse_ping_interval
    return begun_awake(events, service.config.sse_ping_interval if given is None else given)


def wants_verbose(service: Service, asked: Generate) -> bool:
    """Tell whether an answer has ``__verbose``."""
    return service.config.verbose if asked.verbose is None else asked.verbose


def verbose_of(service: Service, asked: Generate, run: Generating, number: int = 0) -> dict[str, Any]:
    """Return an answer in llama-server's own shape, which tells the prompt and all settings."""
    most = -1 if run.asked.max_tokens is None else run.asked.max_tokens
    from atlas_kit.server.native_answer import NativeAnswer
    from atlas_kit.server.prompts import shown

    answer = NativeAnswer(
        run, number, service.engine.piece, run.asked.sampling, probabilities=run.asked.top_logprobs or 0
    )
    answer.text = run.outcome.text
    return answer.whole(
        streamed=None,
        model=service.model_name,
        prompt=shown(service.engine, run.asked.tokens),
        tokens=True,
        n_predict=most,
        max_tokens=most,
        n_probs=run.asked.top_logprobs or 0,
        stop=list(run.asked.stops),
        stream=bool(asked.stream),
        timings_per_token=bool(asked.timings_per_token),
    )


def new_id(prefix: str) -> str:
    """Return an id that nobody has used."""
    return prefix + secrets.token_hex(12)


def now() -> int:
    """Return the time, in Unix seconds."""
    return int(time.time())


#: Stands for the configuration of the backend: answers of equal ones can be compared.
FINGERPRINT = f"b{__version__}-atlas"


def sampling_of(asked: Generate, service: Service, **more: Any) -> Sampling:
    """Return how a request wants tokens to be chosen; what it does not say is as the server was started.

    Raises
    ------
    InvalidParamError
        A setting is out of range, or a bias is none.
    ApiError
        It brings a grammar, and the server takes none.
    """
    if asked.grammar and not service.config.grammars:
        raise ApiError(
            403, "This server takes no grammars: send a JSON schema.", param="grammar", code="no_grammars"
        )
    found = service.config.sampling
    for name in NAMES:
        value = getattr(asked, name)
        if value is not None and (name, value) != ("grammar", ""):  # as clients of llama-server send none
            found[name] = value
    if asked.top_k is not None:
        found["top_k"] = max(0, asked.top_k)
    if asked.seed is not None:
        found["seed"] = None if asked.seed == -1 else asked.seed
    if asked.logit_bias:
        found["logit_bias"] = biases_of(service.engine, asked.logit_bias)
    return Sampling(**{**found, **more})


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
