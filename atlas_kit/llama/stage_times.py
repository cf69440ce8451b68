"""Whether it pays to decode for one half of the sessions while the other half's memories read and learn.

A decode of half as many tokens takes more than half as long: the model's weights are read for it all the same. So two
stages gain where what is done beside a decode takes longer than that fixed part, which is estimated from how long
decodes of different sizes took. Of a large model it is nearly all, of a small one nearly nothing. Knows neither engines
nor sessions.
"""

from __future__ import annotations

import math

#: What was measured counts half after so many more measurements.
HALF_LIFE = 64
_KEPT = 0.5 ** (1 / HALF_LIFE)
#: Sizes that differ by less than this share of their mean tell nothing of a fixed part.
_LEAST_SPREAD = 0.1


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

    @property
    def fixed(self) -> float:
        """Seconds of a decode that do not depend on its size; all of them, as long as all sizes are the same."""
        count, size, seconds, squares, products = self._sums
        if not count:
            return math.inf
        mean, whole = size / count, seconds / count
        spread = squares / count - mean * mean
        if spread < (_LEAST_SPREAD * mean) ** 2:
            return whole
        slope = max(0.0, (products / count - mean * whole) / spread)
        return max(0.0, whole - slope * mean)

    def gains(self, sessions: int) -> bool:
        """Whether two stages are faster for so many sessions that generate."""
        return sessions > 1 and self._tokens > 0 and self._seconds / self._tokens * sessions > self.fixed
