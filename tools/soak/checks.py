"""What is counted as a violation, from figures and texts alone: growth, words in the wrong place, lines of a log.

Knows no server and no client, so that the tests can show that every check fails where it should.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

#: What a canary looks like: a word that no text of Python or English has in it.
CANARY = re.compile(r"zq[a-z0-9]{12}")
#: Lines of a traceback, as Python writes them and as the server's log does.
TRACEBACK = re.compile(r"Traceback \(most recent call last\)|^\s+\S+\.py:\d+ in ")
LEVEL = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ([A-Z]+) ")
_ASIDE = re.compile(r"starts anew|cannot be used|another model's")
#: Of a longer series, so many values make a report.
SHOWN = 120
#: Violations that are written out; of the others, the number is.
MOST_TOLD = 200


def new_canary(chance: random.Random) -> str:
    """Return a word that nothing else says."""
    return "zq" + "".join(chance.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=12))


def strangers(text: str, own: Iterable[str], all_of_them: Mapping[str, str]) -> list[str]:
    """Return whose canaries are in a text besides one's own; ``all_of_them``: the owner of each."""
    mine = set(own)
    return sorted(
        {all_of_them[word] for word in CANARY.findall(text) if word in all_of_them and word not in mine}
    )


@dataclass(frozen=True)
class Tolerance:
    """How much a figure may grow, from the first quarter of what is measured to the last.

    Attributes
    ----------
    share
        A part of what it was.
    least
        And so much besides, in the figure's own unit.
    floor
        Whether the lowest values are compared, for figures that move up and down with what goes on.
    """

    share: float
    least: float
    floor: bool = False


@dataclass(frozen=True)
class Growth:
    """How a figure went: its values at the start, in the middle and at the end of what is measured, and its slope.

    ``slope`` is the median of the slopes between its points, per hour, so that single values do not move it.
    """

    start: float
    middle: float
    end: float
    slope: float
    seconds: float
    allowed: float
    grows: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "start": round(self.start, 3), "middle": round(self.middle, 3), "end": round(self.end, 3),
            "slope_per_hour": round(self.slope, 3), "seconds": round(self.seconds, 1),
            "allowed": round(self.allowed, 3), "grows": self.grows,
        }  # fmt: skip


def growth(times: Sequence[float], values: Sequence[float], tolerance: Tolerance) -> Growth | None:
    """Return how a figure went after its warm-up; None for less than 8 values.

    Parameters
    ----------
    times, values
        Seconds, and the figure at each.
    tolerance
        What is still no growth.
    """
    if len(values) < 8:
        return None
    quarter = len(values) // 4

    def level(part: Sequence[float]) -> float:
        return sorted(part)[len(part) // 10] if tolerance.floor else median(part)

    start, end = level(values[:quarter]), level(values[-quarter:])
    middle = level(values[(len(values) - quarter) // 2 :][:quarter])
    allowed = tolerance.share * abs(start) + tolerance.least
    slope = _slope(times, values) * 3600
    # a step in the beginning is no growth: what grows is higher in the end than in the middle, too
    grows = end - start > allowed and end > middle and slope > 0
    return Growth(start, middle, end, slope, times[-1] - times[0], allowed, grows)


def _slope(times: Sequence[float], values: Sequence[float]) -> float:
    step = max(1, len(values) // SHOWN)
    points = list(zip(times[::step], values[::step], strict=False))
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for number, earlier in enumerate(points)
        for later in points[number + 1 :]
        if later[0] > earlier[0]
    ]
    return median(slopes) if slopes else 0.0


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the slow end of times, in seconds."""
    ordered = sorted(values)
    if not ordered:
        return {}
    return {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("most", 1.0))
    }


def thinned(values: Sequence[Any]) -> list[Any]:
    """Return as many values of a series as make a picture."""
    step = max(1, -(-len(values) // SHOWN))
    return list(values[::step])


@dataclass
class Log:
    """What a server's log says: lines of each level, and what must not be in it.

    Attributes
    ----------
    secrets
        Words that clients said.
    harmed
        Names of files that were damaged, and may be set aside.
    anything_aside
        Whether all files may be: the model is another one.
    """

    secrets: Mapping[str, str] = field(default_factory=dict)
    harmed: set[str] = field(default_factory=set)
    anything_aside: bool = False
    levels: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)

    def problem(self, line: str) -> str | None:
        """Count a line; return what is wrong with it."""
        if any(one in self.secrets for one in CANARY.findall(line)):
            return "the log has a client's words in it"
        if TRACEBACK.search(line):
            return "the log has a traceback in it"
        found = LEVEL.match(line)
        level = found[1] if found else "other"
        self.levels[level] += 1
        if found is None and line.strip():
            self.warnings[_shape(line)] += 1
            return f"the log has a line that is not its own: {line.strip()[:200]}"
        if _CUT_SHORT.search(
            line
        ):  # clients that read slowly, at the end; that it is bounded is looked at elsewhere
            self.warnings[_shape(line[20:])] += 1
            return None
        if level in ("ERROR", "CRITICAL"):
            return f"the log tells of an error: {line.strip()[:200]}"
        if _ASIDE.search(line) and not self.anything_aside and not any(one in line for one in self.harmed):
            return f"a memory was not used that nobody has damaged: {line.strip()[:200]}"
        if level == "WARNING":
            self.warnings[_shape(line[20:])] += 1
        return None


_CUT_SHORT = re.compile(r" ERROR Cancel \d+ running task\(s\), timeout graceful shutdown exceeded\s*$")


def _shape(line: str) -> str:
    """Return a line without its numbers, so that lines of one kind are counted together."""
    return re.sub(r"\b[0-9a-f]{12,}\b|\d+", "#", re.sub(r" request_id=\S+", "", line)).strip()[:160]


@dataclass
class Violations:
    """What must not have happened, with its moment."""

    count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    told: list[dict[str, Any]] = field(default_factory=list)

    def add(self, kind: str, what: str, moment: float = 0.0) -> None:
        """Note that something went wrong; ``moment``: in seconds since the start."""
        self.count += 1
        self.kinds[kind] += 1
        if len(self.told) < MOST_TOLD:
            self.told.append({"second": round(moment, 1), "kind": kind, "what": what[:600]})
