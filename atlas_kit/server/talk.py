"""One answer to a conversation while it is generated, taken apart into thoughts, text and calls. Knows no HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atlas_kit.server.conversation import Conversation
from atlas_kit.server.keys import Key

if TYPE_CHECKING:
    from atlas_kit.llama.steps import Token
    from atlas_kit.server.answers import Answer, AnswerParser, Part
    from atlas_kit.server.generation import Generating
    from atlas_kit.server.outcome import Outcome
    from atlas_kit.server.service import Service


class Talk:
    """An answer as it comes.

    Parameters
    ----------
    run
        What generates it.
    parser
        What takes it apart.
    """

    def __init__(self, run: Generating, parser: AnswerParser) -> None:
        self._run, self._parser = run, parser
        self.reasoning_tokens = 0

    async def ready(self) -> None:
        """Wait until nothing is wrong with what was asked for; who sends something before the parts does so."""
        await self._run.ready()

    async def parts(self) -> AsyncGenerator[tuple[list[Token], list[Part]], None]:
        """Yield the tokens as they come, in groups, and what each group adds; the last has no tokens."""
        async with contextlib.aclosing(self._run.tokens()) as groups:
            async for tokens in groups:
                yield tokens, [part for token in tokens for part in self._add(token)]
        yield [], self._parser.finish(self._run.outcome.finish_reason)

    def _add(self, token: Token) -> list[Part]:
        found = self._parser.add([token])
        answer = self.answer
        if answer.reasoning and not answer.content and not answer.calls:
            self.reasoning_tokens += token.id >= 0
        return found

    async def whole(self) -> None:
        """Wait for the end."""
        async with contextlib.aclosing(self.parts()) as parts:
            async for _ in parts:
                pass

    @property
    def answer(self) -> Answer:
        """What has come so far."""
        return self._parser.answer

    @property
    def outcome(self) -> Outcome:
        """What came of it, complete after the last part."""
        return self._run.outcome

    @property
    def finish_reason(self) -> str | None:
        """Why it ended: ``stop``, ``length`` or ``tool_calls``."""
        return self._parser.finish_reason


def foreseen(service: Service, namespace: str, atlas: Mapping[str, Any], tokens: Sequence[int]) -> int:
    """Return how many tokens of a text are known now, to the conversation that it most likely goes on with.

    It is what a stream says before it begins; whoever comes before may change it.
    """
    conversations = service.conversations
    if (name := atlas.get("session_id")) is not None:
        named = conversations.named.get(Key(namespace, name))
        candidates: tuple[Conversation, ...] = () if named is None else (named,)
    else:
        candidates = tuple(one for one in conversations.temporary_ones if one.key.namespace == namespace)
    found = (one.known(tokens, conversations.spelling)[1].wanted for one in candidates)
    return max(found, default=0)
