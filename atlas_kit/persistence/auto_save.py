"""When a memory that goes on learning is saved: every so many tokens or seconds, and only when it has changed.

Decides and counts; who asks it does the saving, on whatever thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from atlas_kit.errors import InvalidParamError


class AutoSave:
    """Tells when it is time to save.

    Parameters
    ----------
    tokens
        Save whenever a multiple of so many tokens is passed; None: never for their sake.
    seconds
        Save what has changed so long after the last time; None: never for their sake.
    clock
        What gives the time in seconds.

    Examples
    --------
    >>> policy = AutoSave(tokens=100)
    >>> [policy.due(count) for count in (60, 120, 180, 180, 410)]
    [False, True, False, False, True]
    """

    def __init__(
        self,
        *,
        tokens: int | None = None,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (("tokens", tokens), ("seconds", seconds)):
            if value is not None and not (isinstance(value, (int, float)) and value > 0):
                raise InvalidParamError(f"{name} must be greater than 0, and not {value!r}", key=name)
        self._tokens, self._seconds, self._clock = tokens, seconds, clock
        self._asked = self._saved = 0
        self._last = clock()

    def due(self, count: int) -> bool:
        """Tell whether to save now that ``count`` tokens were taken in, in all; asked after each piece of work.

        A save that fails is due again at the next multiple, or after as many seconds.
        """
        every, before = self._tokens, self._asked
        self._asked = count
        passed = every is not None and count // every > before // every
        late = self._seconds is not None and self._clock() - self._last >= self._seconds
        if not self.changed(count) or not (passed or late):
            return False
        self._last = self._clock()
        return True

    def saved(self, count: int) -> None:
        """Take note that what ``count`` tokens gave is saved."""
        self._saved, self._last = count, self._clock()

    def changed(self, count: int) -> bool:
        """Tell whether ``count`` tokens are others than what was saved."""
        return count != self._saved
