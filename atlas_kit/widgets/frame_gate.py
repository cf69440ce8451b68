"""Which pictures are sent to a browser: never a second before the first is on the screen, and then the newest.

The notebook's protocol has no back-pressure: a loop that sends a picture per step fills every queue up to the browser.
So the browser acknowledges what it has drawn. Knows nothing of widgets.
"""

from __future__ import annotations

import threading
import time

#: Seconds after which a frame counts as lost: the page was closed or reloaded, or it is in the background.
PATIENCE = 2.0


class FrameGate:
    """Lets one frame out at a time; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = self._seen = 0
        self._sent_at = 0.0
        self._waiting = False

    @property
    def ready(self) -> bool:
        """Whether a frame would be sent at once."""
        return self._seen >= self._number or time.monotonic() - self._sent_at > PATIENCE

    @property
    def waiting(self) -> bool:
        """Whether there is something newer than the frame that was sent last."""
        return self._waiting

    def ask(self) -> int | None:
        """Return the number of the frame to be sent now; None if it has to wait for an acknowledgement."""
        with self._lock:
            if self.ready:
                return self._next()
            self._waiting = True
            return None

    def acknowledge(self, number: int) -> int | None:
        """Note that a frame was drawn; return the number of the one to be sent now, if one waits."""
        with self._lock:
            self._seen = max(self._seen, min(number, self._number))
            return self._next() if self._waiting and self.ready else None

    def force(self) -> int:
        """Return the number of a frame that goes now, whatever was drawn: the page was loaded again."""
        with self._lock:
            return self._next()

    def _next(self) -> int:
        self._number += 1
        self._sent_at = time.monotonic()
        self._waiting = False
        return self._number
