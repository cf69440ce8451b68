"""``ask``: answers with their sources, JSON, and what can be wrong."""

from __future__ import annotations

import json

import pytest

pytest_plugins = ["model_fixtures"]

BRIDGE = "The bridge was built in 1932 by Anna Rask.\n"


@pytest.fixture
def ask(run_cli, fake, tmp_path):
    """Run the command on the fake model and a memory of one document."""
    (tmp_path / "notes.txt").write_text(BRIDGE + "The lake is deep.\n")
    fake |= {"n_ctx": 512, "n_batch": 128}
    learned = run_cli(
        "learn", tmp_path / "model.gguf", tmp_path / "notes.txt", "-m", tmp_path / "m.atlas", "--store-only"
    )
    assert learned.exit_code == 0, learned.stderr
    assert "61 tokens of text can be asked about" in learned.stdout

    def run(*arguments, file="m.atlas"):
        return run_cli("ask", tmp_path / "model.gguf", *arguments, "-m", tmp_path / file, "--max-tokens", "4")

    return run


def test_an_answer_names_its_source(ask, tmp_path):
    before = (tmp_path / "m.atlas").read_bytes()
    result = ask("Who built the bridge?", "--recall", "always")
    assert result.exit_code == 0, result.stderr
    assert f"from {tmp_path / 'notes.txt'}, line 1, 20" in result.stdout
    assert BRIDGE.strip() in result.stdout
    assert "nats per token" in result.stdout
    assert (tmp_path / "m.atlas").read_bytes() == before


def test_several_questions_are_named(ask):
    result = ask("Who built the bridge?", "Zzz?", "--recall", "always")
    assert result.stdout.startswith("Who built the bridge?\n")
    assert "Zzz?\n" in result.stdout
    assert "from nothing that was stored: nothing was found" in result.stdout


def test_what_was_not_taken(ask):
    gate = ("--recall", "auto", "--recall-gate", "90")
    short = ask("Who built the bridge?", *gate)
    assert "from nothing that was stored: nothing that was found helps enough" in short.stdout
    assert BRIDGE.strip() not in short.stdout
    verbose = ask("Who built the bridge?", *gate, "-v")
    assert "not from" in verbose.stdout
    assert BRIDGE.strip() in verbose.stdout
    assert "nothing that was stored: off" in ask("Who built the bridge?", "--recall", "off").stdout


def test_json(ask, tmp_path):
    result = ask("Who built the bridge?", "Who?", "--recall", "always", "--json")
    document = json.loads(result.stdout)
    assert document["memory_file"] == str(tmp_path / "m.atlas")
    assert document["tokens_stored"] == 61
    first = document["answers"][0]
    assert first["question"] == "Who built the bridge?"
    assert first["pieces"][0]["source"] == str(tmp_path / "notes.txt")
    assert first["pieces"][0]["line"] == 1
    assert first["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Who?", "--recall", "maybe"], "--recall"),
        (["Who?", "--recall-segments", "0"], "--recall-segments"),
        (["Who?", "--recall-gate", "nan"], "gate is nan"),
        ([" "], "the question is empty"),
        ([], "QUESTION"),
    ],
)
def test_what_is_wrong(ask, arguments, words):
    result = ask(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_files_that_cannot_be_asked(ask, run_cli, tmp_path):
    none = ask("Who?", file="none.atlas")
    assert (none.exit_code, "there is no memory to read from" in none.stderr) == (2, True)
    (tmp_path / "empty.txt").write_text("")
    options = ("--episode-tokens", "0", "-m", tmp_path / "matrix.atlas")
    assert run_cli("learn", tmp_path / "model.gguf", tmp_path / "notes.txt", *options).exit_code == 0
    result = ask("Who?", file="matrix.atlas")
    assert result.exit_code == 2
    assert "there is nothing in this memory to ask about" in result.stderr
    assert ask("Who?", file="-").exit_code == 2


def test_on_a_terminal_answers_appear_as_they_come(capsys):
    from atlas_kit.cli.ask_cmd import _Live
    from atlas_kit.llama.asking import Answer
    from atlas_kit.llama.recalling import Recalled
    from atlas_kit.llama.steps import Token

    live = _Live(named=True, verbose=False)
    for question in ("Who?", "When?"):
        live(question)
        for text in (" ", " Anna", " Rask\x1b.", ""):
            live(Token(1, text, None))
            shown = capsys.readouterr().out if text == " Anna" else ""
            assert shown == "" or shown.endswith("Anna")
        live(Answer(question, "Anna Rask.", Recalled(reason="off"), (), "stop", 0.1, 0.2))
    found = capsys.readouterr().out
    assert "\x1b" not in found
    assert found.count("from nothing that was stored: off\n") == 1


@pytest.mark.parametrize("gate", ["101", "-101", "nan", "x"])
def test_a_gate_out_of_range_is_refused(ask, gate):
    assert ask("Who?", "--recall-gate", gate).exit_code == 2
