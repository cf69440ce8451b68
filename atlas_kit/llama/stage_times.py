"""Whether it pays to decode for one half of the sessions while the other half's memories read and learn.

A decode of half as many tokens takes more than half as long: the model's weights are read for it all the same. So two
stages gain where what is done beside a decode takes longer than that fixed part, which is estimated from how long
decodes of different sizes took. Of a large model it is nearly all, of a small one nearly nothing.

That says what two processors could do. Where others keep them busy, two threads wait for each other's turn, and one
that does everything itself may be faster. So where two stages should gain, one is tried as well, now and then, and
whichever took less time for a token lately is gone on with. Knows neither engines nor sessions.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

#: What was measured counts half after so many more measurements.
HALF_LIFE = 64
_KEPT = 0.5 ** (1 / HALF_LIFE)
#: Sizes that differ by less than this share of their mean tell nothing of a fixed part.
_LEAST_SPREAD = 0.1
#: So many times in a row, of so many, two stages are tried where nothing is known of the fixed part, as long as what is
#: done beside takes this share of a decode at least.
TRIED, TRIED_IN, WORTH_TRYING = 4, 48, 0.125
#: So many steps of either kind are compared, by their medians, and so many in a row, of so many, are of the other kind.
COMPARED, OTHER, OTHER_IN = 16, 12, 384
#: The first steps behind a change are of neither kind.
CHANGING = 2
#: Steps of numbers of sessions that differ by more than this share are not compared.
ALIKE = 0.25


class StageTimes:
    """Mean times of decodes and of the work beside them, of which later ones count for more.

    Examples
    --------
    A decode takes 10 ms and 1 ms for each token; the work beside it 2 ms for each:

    >>> times = StageTimes()
    >>> for size in (2, 4, 8):
    ...     times.decoded(size, 0.010 + 0.001 * size)
    ...     times.went_on(size, 0.002 * size)
    >>> round(times.fixed, 6), times.gains(4), times.gains(8)
    (0.01, False, True)
    """

    def __init__(self) -> None:
        self._sums = [0.0] * 5  # of decodes: number, size, seconds, size squared, size times seconds
        self._tokens = self._seconds = 0.0
        self._asked = self._turn = self._sessions = self._since = 0
        self._stages = False  # whether the last step was in two
        self._steps = {stages: deque[float](maxlen=COMPARED) for stages in (False, True)}
        #: Seconds of all decodes.
        self.decoding = 0.0

    def decoded(self, size: int, seconds: float) -> None:
        """Take in how long a decode of ``size`` tokens took."""
        new = (1.0, size, seconds, size * size, size * seconds)
        self._sums = [_KEPT * was + one for was, one in zip(self._sums, new, strict=True)]
        self.decoding += seconds

    def went_on(self, size: int, seconds: float) -> None:
        """Take in how long it took, behind a decode, to go on with its ``size`` tokens."""
        self._tokens, self._seconds = _KEPT * self._tokens + size, _KEPT * self._seconds + seconds

    def stepped(self, two_stages: bool, size: int, seconds: float) -> None:
        """Take in how long a step took in which ``size`` tokens were decoded, with all that was done beside that."""
        self._since = self._since + 1 if two_stages == self._stages else 0
        self._stages = two_stages
        if size and self._since >= CHANGING:
            self._steps[two_stages].append(seconds / size)

    @property
    def fixed(self) -> float:
        """Seconds of a decode that do not depend on its size; all of them, as long as all sizes are the same."""
        count, size, seconds, _, products = self._sums
        if not count:
            return math.inf
        mean, whole = size / count, seconds / count
        if not self._known:
            return whole
        slope = max(0.0, (products / count - mean * whole) / self._spread)
        return max(0.0, whole - slope * mean)

    @property
    def _spread(self) -> float:
        """The sizes' variance."""
        count, size, _, squares, _ = self._sums
        return squares / count - (size / count) ** 2

    @property
    def _known(self) -> bool:
        """Whether sizes differ enough to tell."""
        return self._sums[0] > 0 and self._spread >= (_LEAST_SPREAD * self._sums[1] / self._sums[0]) ** 2

    def gains(self, sessions: int) -> bool:
        """Whether two stages are faster for so many sessions that generate.

        Where that depends on the fixed part, and all sizes are the same, two stages are tried now and then.
        """
        if sessions < 2 or not self._tokens:
            return False
        beside, fixed = self._seconds / self._tokens * sessions, self.fixed
        if beside > fixed:
            return self._faster(sessions)
        if self._known or beside < WORTH_TRYING * fixed:
            return False
        self._asked += 1
        return self._asked % TRIED_IN >= TRIED_IN - TRIED

    def _faster(self, sessions: int) -> bool:
        """Whether two stages were faster lately, or are to be looked at now."""
        if abs(sessions - self._sessions) > ALIKE * self._sessions:
            self._sessions, self._turn = sessions, 0
            for steps in self._steps.values():
                steps.clear()
        one, two = self._steps[False], self._steps[True]
        if len(two) < COMPARED // 2:
            return True
        if len(one) < COMPARED // 2:
            return False
        self._turn += 1
        best = statistics.median(two) <= statistics.median(one)
        return best if self._turn % OTHER_IN < OTHER_IN - OTHER else not best
