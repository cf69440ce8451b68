"""What the runtime needs of a language model, whoever runs it: decode tokens, give logits and hidden states.

``LlamaEngine`` (llama_engine.py) is llama.cpp; ``FakeEngine`` (fake_engine.py) is a few lines of NumPy, so that
whatever stands on this protocol can be tested without a model. An engine knows sequences and positions and nothing
of memories.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from atlas_kit.errors import InvalidParamError, ModelError

if TYPE_CHECKING:
    from atlas_kit.llama.output_matrix import OutputRows
    from atlas_kit.llama.sampling import Sampler, Sampling

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class ModelInfo:
    """What a model is.

    Attributes
    ----------
    path, name, architecture, description
        The file; what it calls itself; its architecture; llama.cpp's own one-line description.
    identity
        64 hexadecimal digits that follow from its tensors: what a memory is bound to.
    n_vocab, n_embd, n_layer
        Tokens, width of the final hidden state, layers.
    n_ctx_train
        Tokens of context that it was trained with.
    n_params, size
        Parameters, and bytes of its tensors.
    recurrent
        It has a state instead of a cache of keys: its context has no end, and nothing of it can be taken back.
    hybrid
        Some of its layers have such a state, the others a cache.
    chat_template
        Jinja source, or None.
    build
        What computes, with its version: bytes of a context are of no use to another. Empty: nobody knows.
    """

    path: str
    name: str
    architecture: str
    description: str
    identity: str
    n_vocab: int
    n_embd: int
    n_layer: int
    n_ctx_train: int
    n_params: int
    size: int
    recurrent: bool = False
    hybrid: bool = False
    chat_template: str | None = None
    build: str = ""


class InfillTokens(NamedTuple):
    """The tokens of a vocabulary around a text with a gap: before, behind and in it; of repository and file names."""

    pre: int
    suf: int
    mid: int
    rep: int | None = None
    sep: int | None = None


@dataclass(frozen=True)
class Feed:
    """Tokens of one sequence that are decoded together.

    ``outputs`` counts the last tokens whose logits are wanted: 0 for none, ``len(tokens)`` for all.
    """

    sequence: int
    tokens: Sequence[int]
    position: int
    outputs: int


#: Place of outputs that are no views any more.
COPIED = -1


class Outputs(NamedTuple):
    """What a feed gave, one row per wanted token, for example (16, 4096) and (16, 256).

    The arrays are views that the next ``decode`` overwrites. ``index`` is the first row's place in the batch, which
    samplers of the engine understand; ``COPIED``: they are copies. ``hidden`` is the state after the final norm, with
    that of a middle layer behind it where it is shown, and only there when asked for.
    """

    logits: Floats
    hidden: Floats | None
    index: int  # type: ignore[assignment]  # what a tuple calls so, nobody asks of this one

    def copied(self) -> Outputs:
        """Return copies, which no decode overwrites."""
        return Outputs(self.logits.copy(), None if self.hidden is None else self.hidden.copy(), COPIED)


class DecodeError(ModelError):
    """A decode failed: its sequences are as they were before, but for those in ``emptied``."""

    def __init__(self, message: str, *, path: str, emptied: Collection[int]) -> None:
        super().__init__(message, path=path)
        self.emptied = frozenset(emptied)


class Engine(Protocol):
    """A language model that decodes several sequences side by side."""

    info: ModelInfo
    #: Context of one sequence, number of sequences, and tokens of one sequence that a call of ``decode`` takes.
    n_ctx: int
    n_sequences: int
    n_batch: int
    #: Tokens and outputs that a call of ``decode`` takes and gives for several sequences; not less than ``n_batch``.
    n_together: int
    n_outputs: int
    #: Sentences that a user should see once, such as settings that were chosen for safety.
    notes: list[str]
    #: How often ``decode`` was called: outputs of an earlier call are gone.
    decodes: int
    #: Held (by one thread, as often as it likes) from a decode until its outputs are used up.
    lock: threading.RLock
    #: Sequences that sessions have taken.
    taken: set[int]
    #: Whether it sleeps; it wakes by itself when it is to decode.
    asleep: bool
    #: Whether ``hidden`` holds states of a middle layer behind the final ones.
    middle: bool

    def metadata(self, key: str) -> str | None:
        """Return a value of the model's file as text; None where there is none, or a list of values."""

    @property
    def can_shift(self) -> bool:
        """Whether ``shift`` works with this model."""

    @property
    def begin(self) -> tuple[int, ...]:
        """The tokens that a text starts with (none, or the begin token)."""

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Return the tokens of a text; ``special``: names of control tokens in the text become those tokens."""

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return a token's bytes, which may be part of a character; control tokens are empty unless ``special``."""

    def is_end(self, token: int) -> bool:
        """Tell whether a token ends an answer."""

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end an answer."""

    @property
    def infill_tokens(self) -> InfillTokens | None:
        """The tokens around what is to be filled in; None where the vocabulary lacks them."""

    def decode(self, feeds: Sequence[Feed], *, hidden: bool = False) -> list[Outputs]:
        """Decode at most ``n_together`` tokens; one ``Outputs`` for each feed, in their order.

        A ``DecodeError`` leaves a single feed's sequence empty, and those of several as they were, where it can.
        """

    def show_middle(self) -> bool:
        """Give states of a middle layer, too, from now on (see ``middle_layers``); False where it cannot."""

    def forget(self, sequence: int, start: int = 0, end: int = -1) -> bool:
        """Remove positions [start, end) of a sequence (-1: to its end); False where the model cannot."""

    def shift(self, sequence: int, start: int, count: int) -> None:
        """Remove ``count`` positions from ``start`` on and move what comes behind them down by ``count``."""

    def save_sequence(self, sequence: int) -> bytes:
        """Return a sequence's whole context as bytes that ``load_sequence`` takes back."""

    def load_sequence(self, sequence: int, data: bytes) -> bool:
        """Put a saved context into a sequence; False where it does not fit this model."""

    def sampler(self, sampling: Sampling) -> Sampler:
        """Return a new sampler with the engine's vocabulary."""

    def output_rows(self) -> OutputRows:
        """Return the read-out matrix, from which logits are made."""

    def sleep(self) -> None:
        """Free what takes room until something is to be decoded; what sequences hold is lost, texts can be read."""

    def wake(self) -> None:
        """Bring it back."""

    def close(self) -> None:
        """Free the model; closing twice is fine."""


def check_feeds(feeds: Sequence[Feed], engine: Engine, *, hidden: bool) -> int:
    """Return how many tokens some feeds are that an engine is to decode.

    Raises
    ------
    InvalidParamError
        They are none, or more than it takes, or they have more outputs than it gives (with hidden states, each token
        has one), or one of them asks for what there is not.
    """
    total, n_sequences = sum([len(feed.tokens) for feed in feeds]), engine.n_sequences
    most = engine.n_outputs if hidden else engine.n_together
    if not 0 < total <= most:
        raise InvalidParamError(f"{total} tokens are not 1 to {most} (n_batch)", key="feeds")
    if not hidden and total > engine.n_outputs and sum([one.outputs for one in feeds]) > engine.n_outputs:
        raise InvalidParamError(f"more than {engine.n_outputs} outputs are wanted", key="feeds")
    for feed in feeds:
        if not 0 <= feed.sequence < n_sequences or not 0 <= feed.outputs <= len(feed.tokens):
            raise InvalidParamError(
                f"sequence {feed.sequence} of {n_sequences} cannot give {feed.outputs} outputs for "
                f"{len(feed.tokens)} tokens",
                key="feeds",
            )
    return total


def encoded(text: str) -> bytes:
    """Return a text as UTF-8; what was no UTF-8 when Python read it becomes the bytes that it was.

    Raises
    ------
    InvalidParamError
        It holds half of a character (a lone surrogate).
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidParamError("the text holds half a character") from error
