"""What is asked for and what came of it: the values of one generation. Knows no conversation and no HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from atlas_kit.llama.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from atlas_kit.llama.steps import Token
    from atlas_kit.server.said import Said


@dataclass(frozen=True)
class Generation:
    """What is asked for.

    Attributes
    ----------
    tokens
        The whole text so far.
    sampling, max_tokens, stops
        How tokens are chosen, how many at most (None: until the model ends), and strings that end the text.
    top_logprobs
        Log-probabilities of so many most likely tokens; None: none are told.
    changes
        Settings of the memory that differ for this conversation.
    task
        What the request is called in lists of what is under way.
    score_prompt
        Also tell the log-probabilities of the text's own tokens.
    reuse
        False: nothing that is known of the text is used, and all of it is read.
    slot
        The sequence that it is to be generated in.
    around
        Makes another sampler of the sampler.
    progress
        Take down how much of the text is read after each step, and let ``tokens()`` yield an empty group then.
    keeps
        Tokens at the text's beginning that stay in a context that is full.
    said
        What of the text somebody said or wrote, for the memory's episodes; None: nothing of it is kept there.
    replaces
        The text corrects the one that was read before: what this left is no longer kept.
    """

    tokens: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stops: Sequence[str] = ()
    top_logprobs: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    task: str = ""
    score_prompt: bool = False
    reuse: bool = True
    slot: int | None = None
    around: Callable[[Sampler], Sampler] | None = None
    progress: bool = False
    keeps: int = 0
    said: Said | None = None
    replaces: bool = False


class Progress(NamedTuple):
    """How much of a text is read: all its tokens, those known before, those read or known by now, and since when."""

    total: int
    cached: int
    read: int
    seconds: float


class Scored(NamedTuple):
    """A token of the text that was sent; the first has no log-probability, nor has one that was read before."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Outcome:
    """What came of it, filled while it goes on.

    Attributes
    ----------
    prompt_tokens, cached_tokens, read_tokens
        Tokens of the text that was sent; of them, those that were known already; and those that were read now.
    prompt
        The text's own tokens, where their log-probabilities were asked for.
    shared
        The text was read for another answer to the same.
    tokens
        What was generated, end included.
    finish_reason, stop
        ``"stop"`` or ``"length"``, and the stop string that ended it.
    truncated, slot
        Whether the context was too small for it, and the number of the sequence that it happened in.
    seconds_waiting, seconds_reading, seconds_generating
        Until it was its turn; until the first token; from then to the end.
    atlas
        What the memory did, as the ``atlas`` object of an answer.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    read_tokens: int = 0
    prompt: list[Scored] = field(default_factory=list)
    shared: bool = False
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str | None = None
    stop: str | None = None
    truncated: bool = False
    slot: int = -1
    seconds_waiting: float = 0.0
    seconds_reading: float = 0.0
    seconds_generating: float = 0.0
    atlas: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What was generated."""
        return "".join(token.text for token in self.tokens)

    @property
    def completion_tokens(self) -> int:
        """How many tokens were generated; the text that was held back at the end is none."""
        return sum(token.id >= 0 for token in self.tokens)
