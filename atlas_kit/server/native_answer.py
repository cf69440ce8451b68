"""Answers in llama-server's own shape: what came of a generation, its settings, timings and probabilities."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from atlas_kit.llama.sampling import Sampling
from atlas_kit.llama.steps import Token
from atlas_kit.server.generation import Generating
from atlas_kit.server.outcome import Outcome, Progress

Piece = Callable[[int], bytes]
#: Where a log-probability is -infinity, which JSON does not know.
_LEAST = -3.4e38
#: What a seed is that nobody has chosen.
_RANDOM = 0xFFFFFFFF


def timings(
    outcome: Outcome, *, reading: float | None = None, generating: float | None = None
) -> dict[str, Any]:
    """Return how long an answer took, in milliseconds; so far, where seconds are given."""
    read = outcome.prompt_tokens - outcome.cached_tokens
    said = outcome.completion_tokens
    prompt_ms = 1000 * (outcome.seconds_reading if reading is None else reading)
    predicted_ms = 1000 * (outcome.seconds_generating if generating is None else generating)
    # the first token comes from reading: it costs no step
    steps = max(0, said - 1)
    return {
        "cache_n": outcome.cached_tokens,
        "prompt_n": read,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / read if read else 0.0,
        "prompt_per_second": 1000 / prompt_ms * read if prompt_ms else 0.0,
        "predicted_n": said,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / steps if steps else 0.0,
        "predicted_per_second": 1000 / predicted_ms * steps if predicted_ms and steps else 0.0,
    }


def told_progress(now: Progress) -> dict[str, int]:
    """Return how much of a prompt is read, as ``prompt_progress``."""
    return {
        "total": now.total, "cache": now.cached, "processed": now.read, "time_ms": int(1000 * now.seconds),
    }  # fmt: skip


def settings_of(sampling: Sampling, *, whole: bool, ends: Sequence[int] = (), **more: Any) -> dict[str, Any]:
    """Return the settings of a generation, as ``generation_settings``.

    Parameters
    ----------
    whole
        With texts and lists.
    ends
        Tokens that end an answer, which are forbidden where they are to be ignored.
    more
        What a request says beside how tokens are chosen.
    """
    s = sampling
    found: dict[str, Any] = {
        "seed": _RANDOM if s.seed is None else s.seed,
        "temperature": s.temperature,
        "dynatemp_range": s.dynatemp_range,
        "dynatemp_exponent": s.dynatemp_exponent,
        "top_k": s.top_k,
        "top_p": s.top_p,
        "min_p": s.min_p,
        "top_n_sigma": s.top_n_sigma,
        "xtc_probability": s.xtc_probability,
        "xtc_threshold": s.xtc_threshold,
        "typical_p": s.typical_p,
        "repeat_last_n": s.repeat_last_n,
        "repeat_penalty": s.repeat_penalty,
        "presence_penalty": s.presence_penalty,
        "frequency_penalty": s.frequency_penalty,
        "dry_multiplier": s.dry_multiplier,
        "dry_base": s.dry_base,
        "dry_allowed_length": s.dry_allowed_length,
        "dry_penalty_last_n": s.dry_penalty_last_n,
        "mirostat": s.mirostat,
        "mirostat_tau": s.mirostat_tau,
        "mirostat_eta": s.mirostat_eta,
        "adaptive_target": s.adaptive_target,
        "adaptive_decay": s.adaptive_decay,
        "ignore_eos": s.ignore_eos,
        "min_keep": s.min_keep,
        "samplers": list(s.order),
        "post_sampling_probs": s.tells,
        **more,
    }
    if whole:
        bias = {**s.logit_bias, **(dict.fromkeys(ends, -math.inf) if s.ignore_eos else {})}
        found |= {
            "dry_sequence_breakers": list(s.dry_sequence_breakers),
            "logit_bias": [{"token": token, "bias": _finite(one)} for token, one in bias.items()],
            "grammar": s.grammar or "",
        }
    return found


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


class NativeAnswer:
    """One answer as it comes: its frames, and in the end itself.

    Parameters
    ----------
    run
        What generates it.
    index
        Its number among the answers to a request.
    piece
        The bytes of a token.
    sampling
        How its tokens are chosen.
    probabilities
        How many of the likeliest tokens are told; 0: none.
    milliseconds, indent
        Where it is to end early: at a line break after so much time, and at a line with less space at its beginning.
    """

    def __init__(
        self, run: Generating, index: int, piece: Piece, sampling: Sampling, *, probabilities: int = 0,
        milliseconds: int = 0, indent: int = 0,
    ) -> None:  # fmt: skip
        self.run, self.index, self._piece, self._sampling = run, index, piece, sampling
        self._probabilities, self._milliseconds, self._indent = probabilities, milliseconds, indent
        self._began = time.monotonic()
        self._first = 0.0
        self.text = ""
        self._line = -1  # where the line begins whose indentation is looked at
        self.ended = False

    @property
    def outcome(self) -> Outcome:
        """What came of it so far."""
        return self.run.outcome

    async def tokens(self) -> AsyncGenerator[list[Token], None]:
        """Yield the tokens as they come, in groups, up to where the answer is to end."""
        async with contextlib.aclosing(self.run.tokens()) as groups:
            async for group in groups:
                for number, token in enumerate(group):
                    self._take(token)
                    if self.ended:
                        yield group[: number + 1]
                        return
                yield group

    def _take(self, token: Token) -> None:
        self._first = self._first or time.monotonic()
        self.text += token.text
        if self._line >= 0 and self._indent:
            self._look_at_indentation()
        if "\n" in token.text:
            spent = 1000 * (time.monotonic() - self._first)
            if 0 < self._milliseconds < spent:
                self.ended = True
            self._line = self.text.rfind("\n") + 1

    def _look_at_indentation(self) -> None:
        line = self.text[self._line :]
        inside = line.lstrip(" \t")
        if inside and len(line) - len(inside) < self._indent:
            self.text = self.text[: self._line + len(line) - len(inside)]
            self.ended = True

    def times_so_far(self) -> dict[str, Any]:
        """Return the timings until now."""
        now = time.monotonic()
        reading = (self._first or now) - self._began
        return timings(self.outcome, reading=reading, generating=now - (self._first or now))

    def frame(self, token: Token, number: int, *, timed: bool) -> dict[str, Any]:
        """Return what a stream tells of a token, which is the answer's ``number``-th."""
        found: dict[str, Any] = {
            "index": self.index,
            "content": token.text,
            "tokens": [token.id],
            "stop": False,
            "id_slot": self.outcome.slot,
            "tokens_predicted": number,
            "tokens_evaluated": self.outcome.prompt_tokens,
        }
        if self._probabilities:
            found["completion_probabilities"] = [self._told(token)]
        if timed:
            found["timings"] = self.times_so_far()
        return found

    def progress(self, now: Progress, *, timed: bool) -> dict[str, Any]:
        """Return what a stream tells while the prompt is read."""
        found: dict[str, Any] = {
            "index": self.index,
            "content": "",
            "tokens": [],
            "stop": False,
            "id_slot": self.outcome.slot,
            "tokens_predicted": 0,
            "tokens_evaluated": self.outcome.prompt_tokens,
            "prompt_progress": told_progress(now),
        }
        if timed:
            so_far = timings(self.outcome, reading=now.seconds, generating=0.0)
            found["timings"] = {**so_far, "prompt_n": now.read - now.cached}
        return found

    def whole(
        self, *, streamed: str | None, model: str, prompt: str, tokens: bool, **settings: Any
    ) -> dict[str, Any]:
        """Return the answer, or the last frame of a stream.

        Parameters
        ----------
        streamed
            What a stream has not told of the text yet; None: nothing was streamed.
        model, prompt
            The model's name, and the text that was sent.
        tokens
            Whether the tokens are told.
        settings
            What the request said beside how tokens are chosen.
        """
        outcome = self.outcome
        said = [token for token in outcome.tokens if token.id >= 0]
        found: dict[str, Any] = {
            "index": self.index,
            "content": self.text if streamed is None else streamed,
            "tokens": [token.id for token in said] if tokens and streamed is None else [],
            "id_slot": outcome.slot,
            "stop": True,
            "model": model,
            "tokens_predicted": len(said),
            "tokens_evaluated": outcome.prompt_tokens,
            "generation_settings": settings_of(self._sampling, whole=True, **settings),
            "prompt": prompt,
            "has_new_line": "\n" in self.text,
            "truncated": outcome.truncated,
            "stop_type": self._stop_type,
            "stopping_word": outcome.stop or "",
            "tokens_cached": outcome.prompt_tokens + max(0, len(said) - 1),
            "timings": timings(outcome),
            "atlas": outcome.atlas,
        }
        if streamed is None and self._probabilities:
            found["completion_probabilities"] = [self._told(token) for token in said]
        return found

    @property
    def _stop_type(self) -> str:
        if self.ended or self.outcome.finish_reason != "stop":
            return "limit"
        return "eos" if self.outcome.stop is None else "word"

    def _told(self, token: Token) -> dict[str, Any]:
        """Return a token with the probabilities of its place."""
        top = [self._chance(one, logprob) for one, logprob in token.top[: self._probabilities]]
        name = "top_probs" if self._sampling.tells else "top_logprobs"
        return {**self._chance(token.id, token.logprob), name: top}

    def _chance(self, token: int, logprob: float | None) -> dict[str, Any]:
        data = self._piece(token)
        found: dict[str, Any] = {"id": token, "token": data.decode("utf-8", "ignore"), "bytes": list(data)}
        logprob = _LEAST if logprob is None or logprob < _LEAST else logprob
        return {**found, "prob": math.exp(logprob)} if self._sampling.tells else {**found, "logprob": logprob}


def chosen_fields(answer: dict[str, Any], wanted: Sequence[str] | None) -> dict[str, Any]:
    """Return only the fields of an answer that were asked for: ``a/b`` is the field ``b`` of ``a``; none: all.

    >>> chosen_fields({"a": {"b": 1}, "c": 2}, ["a/b", "x"])
    {'a/b': 1}
    """
    if not wanted:
        return answer
    found: dict[str, Any] = {}
    for path in wanted:
        value: Any = answer
        for name in path.split("/"):
            if not isinstance(value, dict) or name not in value:
                break
            value = value[name]
        else:
            found[path] = value
    return found
