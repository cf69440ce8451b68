"""What the server counts: totals since the start, and the same second by second for the last minutes.

Counted on the event loop, where requests come and go. Sessions are only looked at: the engine's thread, which works on
them, is never waited for. Knows no HTTP and no format; ``exposition.py`` and ``overview.py`` write it down.
"""

from __future__ import annotations

import asyncio
import math
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from types import TracebackType

    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.llama.steps import Token

#: Seconds that are kept second by second.
LONGEST_WINDOW = 900
#: Upper bounds in seconds, as other model servers have them, so that their dashboards fit.
_LATENCY = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_BETWEEN_TOKENS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
)
_WHOLE = (
    0.05,
    0.1,
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
)
#: Times that are measured: their upper bounds, and what they are.
TIMES: dict[str, tuple[Sequence[float], str]] = {
    "time_to_first_token_seconds": (_LATENCY, "Seconds from a request to its first token."),
    "inter_token_latency_seconds": (_BETWEEN_TOKENS, "Seconds from one token to the next."),
    "e2e_request_latency_seconds": (_WHOLE, "Seconds from a request to the end of its answer."),
    "request_queue_time_seconds": (_LATENCY, "Seconds that a request waited for its turn."),
}
#: What is added up, without the ``_total`` behind the name.
COUNTERS = {
    "prompt_tokens": "Tokens of the texts that were sent, whether they were known or not.",
    "cached_tokens": "Tokens of the texts that were sent and known already.",
    "read_tokens": "Tokens that were read because they were new.",
    "generated_tokens": "Tokens that were generated.",
    "reading_seconds": "Seconds that requests took to read, side by side.",
    "generating_seconds": "Seconds that requests took to generate, side by side.",
    "rollovers": "How often a full context lost its older half.",
    "memory_tokens_seen": "Tokens that memories have taken in.",
    "memory_tokens_learned": "Tokens that memories have learned.",
    "scored_tokens": "Tokens whose loss was known, with and without the memory.",
    "loss_model_nats": "Sum of the losses of the model alone, in nats.",
    "loss_memory_nats": "Sum of the losses with the memory, in nats.",
}
#: The width of the classes by which percentiles are found: each value is at most so many times the one before.
_RATIO = 1.1


class Distribution:
    """How many values lie at or below each of some bounds, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Take in a value, as often as it came."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def cumulative(self) -> list[tuple[str, int]]:
        """Return each bound as Prometheus writes it, with the number of values that it holds."""
        found, count = [], 0
        for bound, more in zip((*self.bounds, math.inf), self.counts, strict=True):
            count += more
            found.append(("+Inf" if math.isinf(bound) else repr(float(bound)), count))
        return found


class Values:
    """Values by their order of magnitude, in classes of ten percent: enough for percentiles."""

    def __init__(self) -> None:
        self._classes: Counter[int] = Counter()
        self.count, self.sum = 0, 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Take in a value, as often as it came."""
        self._classes[math.floor(math.log(max(value, 1e-9), _RATIO))] += times
        self.count += times
        self.sum += value * times

    def update(self, other: Values) -> None:
        """Take in all values of another."""
        self._classes.update(other._classes)
        self.count += other.count
        self.sum += other.sum

    def percentile(self, share: float) -> float | None:
        """Return the value that a share (0 to 1) of all lies at or below, within five percent; None without any."""
        wanted, seen = share * self.count, 0
        for number in sorted(self._classes):
            seen += self._classes[number]
            if seen >= wanted:
                return float(_RATIO ** (number + 0.5))
        return None

    def to_json(self) -> dict[str, Any]:
        """Return count, mean and percentiles; null where nothing came."""
        found: dict[str, Any] = {"count": self.count, "mean": self.sum / self.count if self.count else None}
        for percent in (50, 90, 99):
            value = self.percentile(percent / 100)
            found[f"p{percent}"] = None if value is None else float(f"{value:.3g}")
        return found


@dataclass
class _Second:
    number: int
    sums: Counter[str] = field(default_factory=Counter)
    values: dict[str, Values] = field(default_factory=dict)


class Window(NamedTuple):
    """What came in some time: how many seconds those were, at least one; sums; and the ``TIMES``."""

    seconds: float
    sums: Counter[str]
    values: dict[str, Values]


class Recent:
    """What was counted in the last minutes, second by second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._began = clock, clock()
        self._seconds: deque[_Second] = deque()

    def _now(self) -> _Second:
        number = math.floor(self._clock())
        if not self._seconds or self._seconds[-1].number < number:
            self._seconds.append(_Second(number))
            while self._seconds[0].number < number - LONGEST_WINDOW:
                self._seconds.popleft()
        return self._seconds[-1]

    def add(self, name: str, amount: float) -> None:
        """Add to a sum."""
        self._now().sums[name] += amount  # type: ignore[assignment]

    def observe(self, name: str, value: float, times: int) -> None:
        """Take in a value."""
        self._now().values.setdefault(name, Values()).add(value, times)

    def over(self, seconds: int) -> Window:
        """Return what came in the last seconds, the one that has begun included."""
        now = self._clock()
        first = math.floor(now) - seconds
        sums: Counter[str] = Counter()
        values = {name: Values() for name in TIMES}
        for one in reversed(self._seconds):
            if one.number <= first:
                break
            sums.update(one.sums)
            for name, more in one.values.items():
                values[name].update(more)
        return Window(max(1.0, min(now - self._began, now - first - 1)), sums, values)


class Asked(Protocol):
    """What a request says of itself; see ``generation.Generation``."""

    @property
    def task(self) -> str:
        """What it asks for, in a word."""
        ...

    @property
    def tokens(self) -> Sequence[int]:
        """The text that it sends."""
        ...


class Came(Protocol):
    """What came of a request so far; see ``generation.Outcome``."""

    prompt_tokens: int
    cached_tokens: int
    read_tokens: int
    finish_reason: str | None
    seconds_waiting: float
    seconds_reading: float
    seconds_generating: float

    @property
    def text(self) -> str:
        """What was generated."""
        ...


class Metrics:
    """What one server counts.

    Parameters
    ----------
    clock
        Seconds that only grow.
    told
        Is called with each request that has ended.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, told: Callable[[Request], None] | None = None
    ) -> None:
        self.clock, self.told = clock, told
        self.began = clock()
        self.totals: Counter[str] = Counter()
        #: Requests that have ended, by what they asked for and why they ended.
        self.ended: Counter[tuple[str, str]] = Counter()
        self.times = {name: Distribution(bounds) for name, (bounds, _) in TIMES.items()}
        self.recent = Recent(clock)
        self.under_way: set[Request] = set()
        #: Most tokens that a text had, answer included.
        self.longest = 0

    def add(self, name: str, amount: float = 1) -> None:
        """Add to one of ``COUNTERS``."""
        if amount > 0:
            self.totals[name] += amount  # type: ignore[assignment]
            self.recent.add(name, amount)

    def observe(self, name: str, value: float, times: int = 1) -> None:
        """Take in one of ``TIMES``, in seconds."""
        self.times[name].add(value, times)
        self.recent.observe(name, value, times)

    def request(self, asked: Asked, outcome: Came) -> Request:
        """Return what watches over a request: a context manager around its whole life."""
        return Request(self, asked, outcome)

    def refresh(self) -> None:
        """Count what requests under way have done so far."""
        for one in self.under_way:
            one.look()

    @property
    def running(self) -> int:
        """How many requests are being answered."""
        return sum(one.session is not None for one in self.under_way)

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return len(self.under_way) - self.running


class Request:
    """One request from its arrival to its end; entered and left on the event loop.

    Attributes
    ----------
    asked, outcome
        What it asks for, and what came of it so far.
    session
        Where it is answered; None: it waits, or is over.
    began, generated
        When it came, and how many tokens it has had since.
    reason
        Why it ended: ``"stop"``, ``"length"``, ``"cancelled"``, ``"error"`` or what else its answer says; empty until
        then.
    """

    def __init__(self, metrics: Metrics, asked: Asked, outcome: Came) -> None:
        self._metrics, self.asked, self.outcome = metrics, asked, outcome
        self.reason = ""
        self.session: AtlasSession | None = None
        self.generated = 0
        self.began = self._last = self._looked = 0.0
        self._learned = 0
        self._seen: dict[str, float] = {}

    def __enter__(self) -> Request:
        self.began = self._last = self._metrics.clock()
        self._metrics.under_way.add(self)
        return self

    def begins(self, session: AtlasSession) -> None:
        """It is its turn."""
        self._metrics.observe("request_queue_time_seconds", self._metrics.clock() - self.began)
        self._looked = self._metrics.clock()
        self.session, self._seen, self._learned = session, _counted(session), _learned(session)

    def came(self, tokens: Sequence[Token]) -> None:
        """Some tokens came at once."""
        count, now = sum(token.id >= 0 for token in tokens), self._metrics.clock()
        if not count:
            return
        between = count
        if not self.generated:
            self._metrics.observe("time_to_first_token_seconds", now - self.began)
            between -= 1
        if between:
            self._metrics.observe("inter_token_latency_seconds", (now - self._last) / between, between)
        self.generated, self._last = self.generated + count, now
        self._metrics.add("generated_tokens", count)
        if now - self._looked >= 1:  # where nobody asks, no later than that
            self.look()

    def look(self) -> None:
        """Count what its session has done since the last look."""
        if self.session is None:
            return
        self._looked = self._metrics.clock()
        for name, value in _counted(self.session).items():
            # what is looked at while it changes may be ahead of itself for a moment: nothing is counted twice
            self._metrics.add(name, value - self._seen[name])
            self._seen[name] = max(value, self._seen[name])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        metrics, outcome = self._metrics, self.outcome
        metrics.under_way.discard(self)
        self.reason = outcome.finish_reason or "done"
        if isinstance(error, (GeneratorExit, asyncio.CancelledError)):
            self.reason = "cancelled"
        elif error is not None:
            self.reason = "error"
        metrics.ended[self.asked.task or "other", self.reason] += 1
        metrics.recent.add("requests", 1)
        metrics.recent.add(f"requests {self.reason}", 1)
        metrics.observe("e2e_request_latency_seconds", metrics.clock() - self.began)
        if self.session is not None:
            self.look()
            metrics.add("memory_tokens_learned", _learned(self.session) - self._learned)
            self.session = None
        metrics.add("prompt_tokens", outcome.prompt_tokens)
        metrics.add("cached_tokens", outcome.cached_tokens)
        metrics.add("reading_seconds", outcome.seconds_reading)
        metrics.add("generating_seconds", outcome.seconds_generating)
        metrics.recent.add("ended read_tokens", outcome.read_tokens)
        metrics.recent.add("ended generated_tokens", self.generated)
        metrics.longest = max(metrics.longest, outcome.prompt_tokens + self.generated)
        if metrics.told is not None:
            metrics.told(self)


def _counted(session: AtlasSession) -> dict[str, float]:
    """Return what a session has counted so far, by the names of ``COUNTERS``; it may be at work meanwhile."""
    counts, memory = session.counts, session.memory
    return {
        "read_tokens": counts.tokens_read,
        "rollovers": counts.rollovers,
        "memory_tokens_seen": 0 if memory is None else memory.tokens_seen,
        "scored_tokens": counts.scored,
        "loss_model_nats": counts.losses[0],
        "loss_memory_nats": counts.losses[1],
    }


def _learned(session: AtlasSession) -> int:
    """Return how many tokens a session's memory has learned; the session must be at rest."""
    return 0 if session.memory is None else int(session.memory.stats()["tokens_learned"])
