"""A text goes on, as OpenAI's completions do: what is asked for, and the answer, whole or as it comes.

Knows no HTTP.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from atlas_kit.llama.steps import Token
from atlas_kit.server.generation import Generating
from atlas_kit.server.logprobs import Released, legacy_logprobs
from atlas_kit.server.native_answer import told_progress
from atlas_kit.server.outcome import Generation, Outcome
from atlas_kit.server.problems import ApiError
from atlas_kit.server.prompts import tokens_of
from atlas_kit.server.request_parts import (
    FINGERPRINT,
    limit_of,
    new_id,
    now,
    prepared,
    sampling_of,
    several,
    stops_of,
    timings_of,
    usage_of,
    verbose_of,
    wants_verbose,
)
from atlas_kit.server.said import Said
from atlas_kit.server.service import Service, settings_in
from atlas_kit.server.streams import DONE, GAP, Events, event
from atlas_kit.server.together import together

if TYPE_CHECKING:
    from atlas_kit.server.schemas import CompletionRequest

#: Tokens of an answer where nobody says how many, as at OpenAI.
MAX_TOKENS = 16
MOST_ANSWERS = 128


async def completion(
    service: Service, asked: CompletionRequest, namespace: str, size: int | None
) -> CompletionAnswer:
    """Return the answer to a request, which is yet to be generated.

    Parameters
    ----------
    namespace
        Of the API key.
    size
        Bytes of the request, where it says so.
    """
    service.require_ready()
    prompts = await prepared(service, size, lambda: _prompts(service, asked.prompt))
    return CompletionAnswer(service, asked, prompts, namespace)


class _Prompt:
    """A text to continue, and the answers to it."""

    def __init__(self, tokens: list[int], text: str) -> None:
        self.tokens, self.text = tokens, text
        self.runs: list[Generating] = []


class CompletionAnswer:
    """Continues one text or several."""

    def __init__(
        self, service: Service, asked: CompletionRequest, prompts: list[_Prompt], namespace: str
    ) -> None:
        self._service, self._asked = service, asked
        self._id, self._created = new_id("cmpl-"), now()
        atlas = asked.atlas.chosen() if asked.atlas is not None else {}
        self._count = asked.n or asked.n_cmpl or 1
        made = max(self._count, asked.best_of or 1)
        if asked.best_of and asked.best_of < self._count:
            raise ApiError(400, "best_of must not be less than n.", param="best_of")
        if asked.stream and made > self._count:
            raise ApiError(400, "The best of several answers cannot be streamed.", param="best_of")
        self._prompts = prompts
        if asked.suffix:
            self._open_gaps(asked.suffix)
        if len(self._prompts) * made > MOST_ANSWERS:
            raise ApiError(400, f"At most {MOST_ANSWERS} answers can be asked for at once.", param="n")
        self._most = asked.logprobs if asked.logprobs is not None or made == self._count else 0
        sampling, stops = sampling_of(asked, service), stops_of(asked)
        given = (asked.max_tokens, asked.n_predict)
        limit = limit_of(service, *given, MAX_TOKENS)
        for prompt in self._prompts:
            generation = Generation(
                prompt.tokens,
                sampling,
                limit,
                stops,
                self._most,
                settings_in(atlas),
                "completion",
                score_prompt=bool(asked.echo) and asked.logprobs is not None,
                progress=bool(asked.stream and asked.return_progress),
                said=Said(source=atlas.get("source") or ""),
            )
            prompt.runs = several(service, namespace, atlas, generation, made)
        self._runs = [run for prompt in self._prompts for run in prompt.runs]

    def _open_gaps(self, suffix: str) -> None:
        """Let the model fill the gap between the texts and what stands behind it."""
        engine = self._service.engine
        marks = engine.infill_tokens
        if marks is None:
            raise ApiError(
                400, "This model has no tokens for a gap in a text: leave out suffix.", param="suffix"
            )
        if self._asked.echo:
            raise ApiError(
                400, "A text with a gap is not repeated: leave out echo, or suffix.", param="suffix"
            )
        begin, behind = engine.begin, tokens_of(engine, suffix, "suffix")
        for prompt in self._prompts:
            begun = tuple(prompt.tokens[: len(begin)]) == begin
            before = prompt.tokens[len(begin) if begun else 0 :]
            prompt.tokens = [*begin, marks.pre, *before, marks.suf, *behind, marks.mid]

    @property
    def _outcomes(self) -> list[Outcome]:
        return [run.outcome for run in self._runs]

    async def whole(self) -> dict[str, Any]:
        """Return the answer in one piece."""
        released = [Released(self._piece, self._asked.logprobs is not None) for _ in self._runs]
        told: dict[Generating, list[Token]] = {run: [] for run in self._runs}
        async with contextlib.aclosing(together(self._runs)) as groups:
            async for number, tokens in groups:
                if tokens is not None:
                    told[self._runs[number]] += released[number].add(tokens)
        for number, run in enumerate(self._runs):
            told[run] += released[number].rest(stopped=run.outcome.stop is not None)
        choices: list[dict[str, Any]] = []
        for prompt in self._prompts:
            for run in self._best(prompt.runs):
                choices.append(self._whole_choice(len(choices), prompt, run, told[run]))
        return self._shape(
            choices,
            usage=usage_of(self._outcomes),
            timings=timings_of(self._runs[0].outcome),
            atlas=self._runs[0].outcome.atlas,
            **self._told(0),
        )

    def _told(self, number: int) -> dict[str, Any]:
        if not wants_verbose(self._service, self._asked):
            return {}
        return {"__verbose": verbose_of(self._service, self._asked, self._runs[number], number)}

    def _best(self, runs: list[Generating]) -> list[Generating]:
        """Return the answers that were asked for: those whose tokens were likeliest, by their mean."""
        if len(runs) == self._count:
            return runs

        def mean(run: Generating) -> float:
            found = [token.logprob for token in run.outcome.tokens if token.logprob is not None]
            return sum(found) / len(found) if found else float("-inf")

        return sorted(runs, key=mean, reverse=True)[: self._count]

    def _whole_choice(
        self, index: int, prompt: _Prompt, run: Generating, told: list[Token]
    ) -> dict[str, Any]:
        outcome, text, logprobs = run.outcome, run.outcome.text, None
        before = prompt.text if self._asked.echo else ""
        if self._asked.logprobs is not None:
            logprobs = self._logprobs(self._scored(prompt), told, len(before))
        return self._choice(index, before + text, outcome.finish_reason, logprobs)

    def _scored(self, prompt: _Prompt) -> Sequence[Any]:
        """Return the tokens of a text, where they are repeated with their log-probabilities."""
        return prompt.runs[0].outcome.prompt if self._asked.echo else ()

    def _logprobs(self, prompt: Sequence[Any], tokens: Sequence[Token], before: int) -> dict[str, Any]:
        """Return what the tokens of a text and of its answer were expected with.

        ``before`` is where the answer begins, in characters.
        """
        top = self._asked.logprobs or 0
        first = legacy_logprobs(prompt, self._piece, top=top)
        answer = legacy_logprobs(tokens, self._piece, top=top, offset=before)
        return {name: None if answer[name] is None else [*first[name], *answer[name]] for name in answer}

    @property
    def _piece(self) -> Callable[[int], bytes]:
        return self._service.engine.piece

    def _text(self, tokens: Sequence[Token]) -> str:
        return b"".join(self._piece(token.id) for token in tokens).decode("utf-8", "ignore")

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the answer as it comes."""
        asked = self._asked
        released = [Released(self._piece, self._asked.logprobs is not None) for _ in self._runs]
        prompts = [prompt for prompt in self._prompts for _ in prompt.runs]
        offsets = [len(prompt.text) if asked.echo else 0 for prompt in prompts]
        begun: set[int] = set()
        events: dict[int, Events] = {}
        more: dict[str, Any]
        async with contextlib.aclosing(together(self._runs)) as groups:
            async for number, tokens in groups:
                outcome = self._runs[number].outcome
                for one in self._runs[number].progress():
                    more = {"prompt_progress": told_progress(one)}
                    yield event(self._shape([self._choice(number, "", None)], **more))
                if tokens == []:  # nothing but progress came
                    continue
                scored: Sequence[Any] = ()
                text = "" if tokens is None else "".join(token.text for token in tokens)
                if number not in begun:
                    begun.add(number)
                    scored = self._scored(prompts[number]) if asked.logprobs is not None else ()
                    text = prompts[number].text + text if asked.echo else text
                if tokens is None:
                    told = released[number].rest(stopped=outcome.stop is not None)
                else:
                    told = released[number].add(tokens)
                if text and asked.logprobs is None:
                    if number not in events:
                        events[number] = Events(self._shape([self._choice(number, GAP, None)]))
                    yield events[number](text)
                elif text or told or scored:
                    logprobs = None
                    if asked.logprobs is not None:
                        logprobs = self._logprobs(scored, told, offsets[number])
                        offsets[number] += len(self._text(told))
                    yield event(self._shape([self._choice(number, text, None, logprobs)]))
                if tokens is None:
                    more = {"atlas": outcome.atlas, "timings": timings_of(outcome), **self._told(number)}
                    yield event(self._shape([self._choice(number, "", outcome.finish_reason)], **more))
        options = asked.stream_options
        if options is not None and options.include_usage:
            more = {"usage": usage_of(self._outcomes), "timings": timings_of(self._runs[0].outcome)}
            yield event(self._shape([], **more))
        yield DONE

    def _choice(
        self, index: int, text: str, reason: str | None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}

    def _shape(self, choices: list[Any], **more: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._service.name_for(self._asked.model),
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
            **more,
        }


def _prompts(service: Service, given: Any) -> list[_Prompt]:
    """Return the texts to continue: tokens among strings make one of them, strings alone are several."""
    one = not isinstance(given, list) or any(isinstance(part, int) for part in given)
    if one and any(isinstance(part, list) for part in given):
        raise ApiError(
            400, "Tokens are one prompt, and lists are several: give one or the other.", param="prompt"
        )
    several = [given] if one else given
    if not 0 < len(several) <= 64:
        raise ApiError(400, "1 to 64 prompts are possible.", param="prompt")
    return [_prompt(service, [part] if isinstance(part, str) else part) for part in several]


def _prompt(service: Service, parts: Sequence[int | str]) -> _Prompt:
    engine = service.engine
    tokens: list[int] = []
    text = ""
    begins = bool(parts) and isinstance(parts[0], str)
    known: list[int] = []

    for part in [*parts, ""]:
        if isinstance(part, int):
            known.append(part)
            continue
        if any(not 0 <= token < engine.info.n_vocab for token in known):
            raise ApiError(400, "A token lies outside the vocabulary.", param="prompt")
        tokens += known
        text += b"".join(engine.piece(token) for token in known).decode("utf-8", "replace")
        known = []
        tokens += tokens_of(engine, part, "prompt")
        text += part
    return _Prompt([*engine.begin, *tokens] if begins else tokens, text)
