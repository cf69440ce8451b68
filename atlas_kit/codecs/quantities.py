"""Numbers of bytes and moments in time, as people read them."""

from __future__ import annotations

import re
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


def parse_time(text: str) -> int | None:
    """Return a date or a time in ISO 8601 as milliseconds since 1970, ``None`` for anything else.

    It is UTC where no zone is named; ``2026-11-30 14:00:00 UTC``, as ``utc`` writes it, is understood, too.

    Examples
    --------
    >>> parse_time("1970-01-02"), parse_time("1970-01-01T00:00:01.500+00:00"), parse_time("1970-01-01T00:00:02Z")
    (86400000, 1500, 2000)
    """
    from datetime import datetime, timezone

    # Python 3.10 knows no Z, and of fractions those of three or six digits
    text = re.sub(r"\.\d+", lambda digits: f"{digits[0]:0<7}"[:7], re.sub(r"(?: UTC|[Zz])$", "+00:00", text))
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return round((when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp() * 1000)


_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*(?:([KMGT])(i?)B?|B)?\s*", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int | None:
    """Return the bytes that ``2G``, ``1.5 GiB`` or ``4096`` stand for, ``None`` for anything else and for nothing.

    K, M, G and T count in thousands, Ki, Mi, Gi and Ti in 1,024s.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        return None
    from fractions import Fraction

    number, unit, binary = match.groups()
    step = 1024 if binary else 1000
    power = "KMGT".index(unit.upper()) + 1 if unit else 0
    return int(Fraction(number) * step**power) or None
