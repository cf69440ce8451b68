"""Numbers of bytes and moments in time, as people read them."""

from __future__ import annotations

import pytest

from atlas_kit.codecs.quantities import exact_size, parse_size, size, utc


@pytest.mark.parametrize(
    ("count", "short", "exact"),
    [
        (0, "0 B", "0 bytes"),
        (1023, "1023 B", "1023 bytes"),
        (1024, "1.0 KiB", "1.0 KiB (1,024 bytes)"),
        (1_572_864, "1.5 MiB", "1.5 MiB (1,572,864 bytes)"),
        (5 << 50, "5120.0 TiB", "5120.0 TiB (5,629,499,534,213,120 bytes)"),
    ],
)
def test_sizes(count, short, exact):
    assert size(count) == short
    assert exact_size(count) == exact


def test_a_size_that_is_not_known():
    assert size(None) == "?"


def test_times():
    assert utc(1) == "1970-01-01 00:00:01 UTC"
    assert utc(253_402_300_799) == "9999-12-31 23:59:59 UTC"
    assert utc(86_400, "%Y-%m-%dT%H:%M:%SZ") == "1970-01-02T00:00:00Z"
    assert [utc(seconds) for seconds in (0, -1, 253_402_300_800, 1 << 63)] == [None] * 4


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("2G", 2_000_000_000),
        ("2GB", 2_000_000_000),
        ("2g", 2_000_000_000),
        ("2GiB", 2 << 30),
        ("1.5 MiB", 3 << 19),
        ("0.1K", 100),
        ("7B", 7),
        ("1T", 10**12),
        *((text, None) for text in ("", "0", "0.1", "-1", "G", "1e9", "2X", "1,5G", "9" * 40, "\u0662G")),
    ],
)
def test_sizes_as_people_write_them(text, size):
    assert parse_size(text) == size
