"""Rendering: what files hold never acts on a terminal, and colours appear only where they may."""

from __future__ import annotations

import io
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.cli import _render
from atlas_kit.codecs.json_text import Streamed, dumped, dumps, named
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.operations.entry_rows import PackedRows
from atlas_kit.operations.inspect import Wanted, inspect_file

pytest_plugins = ["cli_fixtures"]

HOSTILE = "a\x1b[31m\x07\u202e[bold]x[/bold]\udcff\tz"


class Terminal(io.StringIO):
    """Looks like a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def shown(blocks, monkeypatch, terminal=False, **env):
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    _render.show(blocks)
    return stream.getvalue()


BLOCKS = [
    _render.Facts([("name", HOSTILE)]),
    _render.Table(["key", ">size"], [(HOSTILE, 5), (_render.Styled(HOSTILE, "bad"), 50)]),
    _render.Lines([HOSTILE, _render.Styled(HOSTILE, "good")]),
    HOSTILE,
]


def test_plain_output_is_escaped(monkeypatch, quiet):
    text = shown(BLOCKS, monkeypatch)
    assert quiet(text)
    assert text.count("[bold]x[/bold]") == 6


@pytest.mark.parametrize("terminal_environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_terminal_without_colour(monkeypatch, terminal_environment):
    text = shown(BLOCKS, monkeypatch, terminal=True, **terminal_environment)
    assert "\x1b[3" not in text
    assert "\x07" not in text


def test_terminal_with_colour_escapes_all_the_same(monkeypatch):
    text = shown(BLOCKS, monkeypatch, terminal=True)
    assert "\x1b[1;31m" in text  # ours
    assert "\\x1b[31m" in text  # theirs, made harmless
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "[bold]" in text.replace("\n", "")


def test_columns_line_up_for_wide_characters(monkeypatch):
    text = shown([_render.Table(["key", ">n"], [("\u8a18\u61b6", 1), ("ab", 22)])], monkeypatch)
    assert text == "key    n\n\u8a18\u61b6   1\nab    22\n"


def test_long_tables_come_in_batches(monkeypatch):
    rows = [(f"k{n}", n) for n in range(2500)]
    text = shown([_render.Table(["key", ">n"], rows)], monkeypatch, terminal=True)
    assert len(text.splitlines()) == 2501


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (1 << 60, "1048576.0 TiB")],
)
def test_sizes(count, text):
    assert _render.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "not set"), (1_700_000_000, "2023-11-14 22:13:20 UTC"), (2**64 - 1, f"{2**64 - 1} (not a time)")],
)
def test_moments(seconds, text):
    assert _render.moment(seconds) == text


def test_no_progress_bar_without_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with _render.progress() as progress:
        assert progress is None


def test_progress_bar_waits_and_cleans_up(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    now = [0.0]
    monkeypatch.setattr(_render.time, "monotonic", lambda: now[0])
    with _render.progress() as progress:
        progress("quick\x1b", 1, 10)
        assert stream.getvalue() == ""
        now[0] = 1.0
        progress("slow\x1b", 5, 10)
        assert "50% [############............] slow\\x1b" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_json_is_strict_and_quiet(parse_json, quiet):
    value = {
        "n": [math.nan, math.inf, -math.inf, 1.5],
        HOSTILE: HOSTILE,
        "b": b"\x00\xff",
        "t": (1, 2),
        "e": "\U000e0001",
    }
    text = dumps(value, indent=1)
    assert quiet(text)
    back = parse_json(text)
    assert back["n"] == ["NaN", "Infinity", "-Infinity", 1.5]
    assert back["b"] == "00ff"
    assert back["e"] == "\U000e0001"


def test_names_that_are_not_utf8_keep_their_bytes():
    assert named("key", "plain") == {"key": "plain"}
    assert named("key", "a\udcff") == {"key": "a\\xff", "key_hex": "61ff"}


@given(
    st.dictionaries(
        st.text(), st.one_of(st.lists(st.dictionaries(st.text(), st.text())), st.integers(), st.floats())
    ),
    st.sampled_from([1, 2]),
)
def test_json_in_pieces_is_the_same_text(value, indent):
    """What is written element by element looks as if it had been written at once."""
    pieces = {key: Streamed(iter(item)) if isinstance(item, list) else item for key, item in value.items()}
    assert "".join(dumped(pieces, indent=indent)) == dumps(value, indent=indent)


def test_inspect_writes_entries_one_by_one(tmp_path, run_cli):
    memory = MemoryFile(created=1)
    for number in range(700):  # more than a table on a terminal has
        memory.set(f"k\u2028{number}", b"x" * number, timestamp=number)
    memory.save(tmp_path / "m.atlas")
    found = inspect_file(tmp_path / "m.atlas", Wanted(entries=True))
    text = run_cli("inspect", tmp_path / "m.atlas", "--entries", "--json").stdout
    assert text == dumps(found.to_json(), indent=2) + "\n"
    assert isinstance(found.entries, PackedRows)
    assert found.entries[3].key == "k\u20283"
    assert [row.size for row in found.entries[:3]] == [0, 1, 2]
    assert found.entries == [*found.entries]
    assert run_cli("inspect", tmp_path / "m.atlas", "--entries").stdout.count("\n") == 701
