"""One conversation of the server: a memory, the texts that it has read, and where it is; and the places there are.

Plain values with names for what is asked of them. Who may use one when, and how it moves, is ``conversations.py``'s.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from atlas_kit.errors import AtlasError, InvalidParamError
from atlas_kit.llama.parking import Parked
from atlas_kit.server.branches import Match, Spelling, match
from atlas_kit.server.keys import Key
from atlas_kit.server.moved import LeaseLostError
from atlas_kit.server.turns import Turns

if TYPE_CHECKING:
    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.llama.token_memory import TokenMemory
    from atlas_kit.persistence.session_state import SessionState
    from atlas_kit.settings.atlas_settings import AtlasSettings

#: Texts that a conversation remembers to have read; of more, the oldest is forgotten, and would be read anew.
MOST_BRANCHES = 64


@dataclass(eq=False)
class Conversation:
    """A memory, the texts that it has read, and where it is now.

    Attributes
    ----------
    key
        Its name.
    settings
        Of its memory; None: it has none.
    branches
        The tokens of each text that it has read, the one that was read last at the end.
    history
        The tokens that its context was read from: the context holds the end of them.
    parked
        Its inside while it is in no sequence.
    reading, reached
        The text that it is asked to read now, or None; set when that is in its context, or the work is over.
    source, followers, prefix
        Whose context it begins with a copy of; how many wait for a copy of its own context; and that, while they do.
    wants
        The number of the sequence that it shall be in next; None: any.
    slot
        Where it is else. Neither: its inside is in a file.
    learned
        Tokens that it has read and said, of all texts.
    version, saved, exact
        How often it has changed, of which version there is a file, and whether that has the context's bytes.
    size
        Bytes of main memory that its inside took when it was parked last.
    problem
        What went wrong with its file, in a sentence for whoever uses it.
    utilization, measured
        How much of its learned memory is in use, 0 to 1, and after how many steps that was measured.
    told
        What was recalled for its last answer, by who may see it (``keys.looked_at``); no file has it.
    begun
        It began with what another one read: what it knows has not been kept in its episodes yet.
    branched
        Something of a text that was left may have gone from its episodes.
    ticket, moved
        What its file may be changed with (``SessionFiles.ticket``); and whether another server has the session now.
    unread, asking
        A request has begun it, and nothing was read for that yet; and how many requests are about to use it or do.
    """

    key: Key
    settings: AtlasSettings | None
    branches: list[array[int]] = field(default_factory=list)
    history: array[int] = field(default_factory=lambda: array("i"))
    parked: Parked | None = None
    slot: Slot | None = None
    wants: int | None = None
    reading: Sequence[int] | None = None
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    source: Conversation | None = None
    followers: int = 0
    prefix: Parked | None = None
    learned: int = 0
    requests: int = 0
    created: float = field(default_factory=time.time)
    used: float = field(default_factory=time.time)
    version: int = 0
    saved: int = 0
    exact: bool = True
    size: int = 0
    problem: str | None = None
    utilization: float | None = None
    measured: int = 0
    told: dict[Key, dict[str, Any]] = field(default_factory=dict)
    begun: bool = False
    branched: bool = False
    unread: bool = False
    asking: int = 0
    ticket: int = 0
    moved: bool = False
    closed: bool = False
    lock: Turns = field(default_factory=Turns)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def dropped(self) -> int:
        """Tokens read or said that are not of the present text: what was learned of them is not unlearned."""
        return 0 if self.settings is None else max(0, self.learned - len(self.history))

    @property
    def taken(self) -> bool:
        """Whether somebody works with it, or is about to."""
        return self.lock.locked() or self.reading is not None

    def begins(self, tokens: Sequence[int]) -> None:
        """Take note of the text that it is asked to read."""
        self.reading = tokens
        self.reached.clear()

    def ends(self) -> None:
        """Take note that the work on that is over."""
        self.reading = None
        self.reached.set()

    @property
    def cold(self) -> bool:
        """Whether its inside is in a file alone."""
        return self.parked is None and self.slot is None

    @property
    def place(self) -> str:
        """Where its inside is: ``sequence``, ``memory`` or ``file``."""
        return "sequence" if self.slot is not None else "memory" if self.parked is not None else "file"

    @property
    def inside(self) -> Parked | AtlasSession | None:
        """What has its memory and its context now; only to be looked at while nobody else works with it."""
        return self.parked if self.slot is None else self.slot.session

    @property
    def memory(self) -> TokenMemory | None:
        """Its memory, where it is in main memory."""
        inside = self.inside
        return None if inside is None else inside.memory if isinstance(inside, Parked) else inside.own_memory

    def known(self, tokens: Sequence[int], spelling: Spelling) -> tuple[int, Match]:
        """Return the branch (or -1) that the longest part of a text is known from, the newest, and how much of it."""
        best, longest = -1, Match(0, 0)
        for number, branch in enumerate(self.branches):
            found = match(branch, tokens, spelling)
            if found.wanted and found.wanted >= longest.wanted:
                best, longest = number, found
        return best, longest

    def remember(self, tokens: Sequence[int], follows: int) -> None:
        """Take note of a text that was read; ``follows``: the branch that it goes on from, -1 for none."""
        text = array("i", tokens)
        if follows >= 0:
            old = self.branches[follows]
            if len(old) <= len(text) and old == text[: len(old)]:
                del self.branches[follows]
        self.branches.append(text)
        # without a memory, nothing is known but what the context holds
        del self.branches[: -1 if self.settings is None else -MOST_BRANCHES]
        self.history, self.unread = text, False
        self.version += 1

    def forget_texts(self) -> None:
        """Take note that nothing of what was read is known any more."""
        self.branches, self.history, self.learned = [], array("i"), 0
        self.told.clear()
        self.version += 1


class Answered(Protocol):
    """What was generated in a slot last, as ``generation`` has it."""

    @property
    def asked(self) -> Any:
        """What was asked for."""

    @property
    def read_so_far(self) -> int:
        """How many tokens of the text are read or known by now."""

    @property
    def conversation(self) -> Conversation | None:
        """Whose memory reads and answers."""

    outcome: Any


@dataclass(eq=False)
class Slot:
    """One sequence of the engine, whose conversation is in it, and what was generated there last."""

    number: int
    session: AtlasSession
    conversation: Conversation | None = None
    busy: bool = False
    task: str = ""
    last: Answered | None = None


def utilization(parameters: Mapping[str, Any]) -> float:
    """Return the mean share of the directions of a memory's matrices that is in use, 0 to 1."""
    from atlas_kit.memory.modules import learned_matrices
    from atlas_kit.memory.statistics import matrix_statistics

    learned = learned_matrices(parameters).values()
    found = [float(matrix_statistics(array).utilisation.mean()) for array in learned]
    return sum(found) / max(1, len(found))


def take_over(
    conversation: Conversation, parked: Parked, state: SessionState, info: dict[str, Any] | None = None
) -> None:
    """Let a conversation go on with what a file held."""
    assert parked.memory is not None
    conversation.parked, conversation.settings = parked, parked.memory.settings
    texts = [array("i", text) for text in state.texts]
    end = list(state.tokens)
    if end and (not texts or list(texts[-1][-1:]) != end[-1:]):
        texts.append(array("i", end))
    conversation.branches = texts[-MOST_BRANCHES:]
    conversation.branched = len(texts) > 1
    conversation.history = texts[-1] if texts else array("i")
    info = info or {}
    conversation.learned = _whole(info.get("learned"), parked.memory.tokens_seen)
    conversation.requests = max(conversation.requests, _whole(info.get("requests"), 0))
    created = info.get("created")
    if isinstance(created, (int, float)):
        conversation.created = min(conversation.created, float(created))


def about(conversation: Conversation) -> dict[str, Any]:
    """Return what a file says of a conversation, besides its memory."""
    return {
        "namespace": conversation.key.namespace,
        "name": conversation.key.name,
        "created": conversation.created,
        "used": conversation.used,
        "requests": conversation.requests,
        "learned": conversation.learned,
        "tokens": len(conversation.history),
    }


def _whole(value: Any, default: int) -> int:
    return value if isinstance(value, int) and value >= 0 else default


def gone(conversation: Conversation) -> AtlasError:
    """Return what whoever waits for a conversation is told that is not here any more."""
    if conversation.moved:
        return LeaseLostError()
    return InvalidParamError("the session was deleted meanwhile", key="session_id")
