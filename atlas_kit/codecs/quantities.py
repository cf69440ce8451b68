"""Numbers of bytes and moments in time, as people read them."""

from __future__ import annotations

import time

_YEAR_10000 = 253_402_300_800


def size(count: int | None) -> str:
    """Return a number of bytes as people read it: ``1.5 MiB``."""
    if count is None:
        return "?"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def exact_size(count: int) -> str:
    """Return a number of bytes both ways: ``1.5 MiB (1,572,864 bytes)``."""
    return f"{count} bytes" if count < 1024 else f"{size(count)} ({count:,} bytes)"


def utc(seconds: int, form: str = "%Y-%m-%d %H:%M:%S UTC") -> str | None:
    """Return Unix seconds as a time in UTC, ``None`` for 0 (unset) and where no calendar reaches."""
    return time.strftime(form, time.gmtime(seconds)) if 0 < seconds < _YEAR_10000 else None
