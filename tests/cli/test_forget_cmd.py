"""``forget``: what it shows, what it asks for, and what it says that stays."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from atlas_kit.episodes import Episodes, Kind
from atlas_kit.llama import AtlasSession, FakeEngine
from atlas_kit.persistence.session_file import read_session_state, write_session_state

pytest_plugins = ["model_fixtures"]

SAMPLE = Path(__file__).resolve().parents[2] / "sample_data" / "models" / "tiny-python.gguf"
SECRET = "the parcel lies under the blue stone"


@pytest.fixture
def memory(tmp_path):
    """Return the file of a memory beside the fake model, which has read a document and heard a turn."""
    path = tmp_path / "m.atlas"
    episodes = Episodes(FakeEngine().piece, 257)
    for kind, source, text in ((Kind.DOCUMENT, "a.txt", "to be or not to be\n" * 9), (Kind.USER, "", SECRET)):
        episodes.begin(kind, source, 1_700_000_000_000)
        episodes.append(list(text.encode()))
    with AtlasSession(FakeEngine(), True) as session:
        session.feed("to be")
        write_session_state(path, dataclasses.replace(session.state(), episodes=episodes.arrays()))
    return path


@pytest.fixture
def no_vocabulary(fake, tmp_path):
    """Return a model that only llama.cpp could turn into words: the fake one is in its place."""
    from gguf_builder import tiny_llama

    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_llama(tokenizer="none").bytes())
    return path


def test_a_document_goes(run_cli, memory):
    result = run_cli("forget", memory, "--source", "a.txt", "-n")
    assert result.exit_code == 0, result.stderr
    assert "would forget 171 tokens of 1 document\n" in result.stdout
    assert "left: 36 tokens of 1 turn of talk\n" in result.stdout
    assert "a.txt:1" in result.stdout
    assert (
        "would also remove, since it holds text: the saved context, the window of its last tokens"
        in result.stdout
    )
    assert len(read_session_state(memory).episodes) == 207
    result = run_cli("forget", memory, "--source", "a.txt")
    assert "forgot 171 tokens of 1 document\n" in result.stdout
    assert "matrix learned stays; --rebuild" in result.stdout
    assert len(read_session_state(memory).episodes) == 36
    result = run_cli("forget", memory, "--source", "b.txt")
    assert (result.exit_code, result.stdout) == (1, "nothing to forget\n")


def test_words_are_found_with_the_model(run_cli, memory, no_vocabulary):
    asked = ("forget", memory, "--about", "blue parcel", "-m", no_vocabulary, "--force")
    result = run_cli(*asked, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["tokens"], found["turns"], found["documents"]) == (36, 1, 0)
    assert found["pieces"] == [
        {"kind": "user", "source": "", "time_ms": 1_700_000_000_000, "line": 1, "tokens": 36, "text": SECRET}
    ]
    assert found["rebuilt_from_tokens"] is None
    assert run_cli(*asked).exit_code == 1


def test_it_is_learned_again(run_cli, memory, no_vocabulary):
    result = run_cli("forget", memory, "--before", "2024-01-01", "--rebuild", "-m", no_vocabulary, "--force")
    assert result.exit_code == 0, result.stderr
    assert "the memory was learned again from 0 tokens" in result.stdout
    assert "left: nothing" in result.stdout
    assert int(read_session_state(memory).memory.counters["seen"]) == 0


def test_the_vocabulary_is_read_from_the_model_alone(run_cli, memory, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("atlas_kit.llama.loading.open_engine", fail)
    result = run_cli("forget", memory, "--about", "blue", "-m", SAMPLE)
    assert result.exit_code == 2
    assert "another model's" in result.stderr
    result = run_cli("forget", memory, "--about", "nowhere", "-m", SAMPLE, "--force")
    assert result.exit_code == 1, result.stderr


def test_backups(run_cli, memory):
    memory.with_name("m.atlas.bak").write_bytes(memory.read_bytes())
    result = run_cli("forget", memory, "--source", "a.txt")
    assert "backups may still hold it, remove them with --remove-backups: m.atlas.bak" in result.stdout
    result = run_cli("forget", memory, "--source", "a.txt", "--remove-backups")
    assert result.exit_code == 0
    assert "removed 1 backup: m.atlas.bak" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say what to forget: --source, --about or --before"),
        (("--about", "x"), "--about needs --model"),
        (("--source", "x", "--rebuild"), "--rebuild needs --model"),
        (("--before", "tomorrow"), '"tomorrow" is not a date'),
        (("--about", "...", "-m", SAMPLE, "--force"), "no word in it"),
    ],
)
def test_misuse(arguments, said, run_cli, memory):
    before = memory.read_bytes()
    result = run_cli("forget", memory, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert memory.read_bytes() == before


def test_many_pieces_are_cut_short(run_cli, memory):
    state = read_session_state(memory)
    episodes = Episodes.from_arrays(state.episodes, FakeEngine().piece, 257)
    for number in range(30):
        episodes.begin(Kind.USER, "", number)
        episodes.append(list(b"a turn"))
    write_session_state(memory, dataclasses.replace(state, episodes=episodes.arrays()))
    result = run_cli("forget", memory, "--before", "1970-01-02", "-n")
    assert "... and 10 more (--json)" in result.stdout
