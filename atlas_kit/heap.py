"""Memory that is free in the heap, which the C library keeps for later. Knows nothing of what it was used for."""

from __future__ import annotations

import contextlib
import ctypes


def give_back() -> None:
    """Give memory that is free in the heap back to the system, where the C library can."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
