"""What counts as a number in a setting: the tests that configuration, maps, schedules, objectives and gate share."""

from __future__ import annotations

import sys
from typing import TypeGuard


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether the value is a finite real number that a float can hold; True and False are none.

    >>> [is_number(value) for value in (1, 0.5, True, "1", float("nan"), float("inf"), 10**400)]
    [True, True, False, False, False, False, False]
    """
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )


def is_whole(value: object, least: int = 0) -> TypeGuard[int]:
    """Tell whether the value is a whole number of at least ``least``; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
