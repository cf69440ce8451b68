"""The bench of what words find: its peers and its counting; not its figures."""

from __future__ import annotations

import json
import sqlite3
import sys

import pytest
from episode_builder import say, store

from atlas_kit.episodes import Kind
from tools.bench import episodes


@pytest.fixture
def library():
    held = store()
    say(held, "The harbour is deep.\n" * 30 + "The master of it is Ines.\n" * 12, Kind.DOCUMENT, "a.txt")
    say(held, "My sister lives in Porto.")
    return held


def test_peers_find_what_ours_finds(library):
    for build in (episodes.ours, lambda held: episodes.fts5(episodes.segments_of(held))):
        try:
            search = build(library)
        except sqlite3.OperationalError:
            pytest.skip("this Python's SQLite has no FTS5")
        found = search("Who is the master?", False)
        assert "Ines" in library.text(found[0].start, found[0].stop)
        assert all(a.stop <= b.start or b.stop <= a.start for a in found for b in found if a is not b)
        assert [s.kind for s in search("harbour sister", True)] == [Kind.USER]


def test_hit_rates_count_documents_and_turns(library):
    recall_set = episodes.load("tune")
    rates = episodes.hit_rates(library, episodes.ours(library), recall_set)
    assert rates == {"documents": [0.0] * 3, "turns": [0.0] * 3}
    for episode in recall_set.episodes:
        say(library, episode.text, Kind[episode.kind.upper()], episode.source)
    rates = episodes.hit_rates(library, episodes.ours(library), recall_set)
    assert all(0.5 < rate[-1] <= 1 and rate == sorted(rate) for rate in rates.values())


@pytest.mark.slow
@pytest.mark.model
def test_it_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("llama_cpp")
    out = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["episodes.py", "--tokens", "5000", "--set", "tune", "--json", str(out)])
    assert episodes.main() == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["tokens"] == 5000
    assert 4 < row["bytes a token"] < 5
    assert "one search" in capsys.readouterr().out
