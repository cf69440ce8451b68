"""At the prompt: what may have been meant, nothing said where nothing is asked for, and the Tab key for keys."""

from __future__ import annotations

import shutil

import click
import pytest
from click.shell_completion import ShellComplete

from atlas_kit.cli import _group
from atlas_kit.cli._group import COMMANDS, group
from atlas_kit.formats.atlas import MemoryFile
from tests.conftest import SAMPLES
from tests.reports.command_table import MODELS, WRITING, options_of

pytest.importorskip("cryptography")
pytest_plugins = ["tests.cli.cli_fixtures"]

#: Commands that change something and print that as their result, or run a model and have their own -q.
CHANGING = sorted({*WRITING, *MODELS})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    memory = MemoryFile()
    for key in ("greeting", "chat/monday", "chat/tuesday", "with a space", "quote'", "\x1b[31m", "caf\u00e9"):
        memory.set(key, "User: hello")
    memory.save(tmp_path / "m.atlas")
    secret = MemoryFile(version=3, key=bytes(32))
    secret.set("hidden", "x")
    secret.save(tmp_path / "s.atlas")
    (tmp_path / "key").write_bytes(bytes(32))
    shutil.copy(SAMPLES / "gguf" / "tiny.gguf", tmp_path / "model.gguf")
    (tmp_path / "chat.jsonl").write_text('{"key": "new", "text": "x"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- what may have been meant -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("inspct", "inspect"), ("insp", "inspect"), ("valdiate", "validate"), ("Convert", "convert"),
     ("reapir", "repair"), ("show", "inspect"), ("remove", "rm"), ("cat", "get"), ("serach", "grep"),
     ("quantize", "compress"), ("list", "ls"),
     ("import-chats", "import"), ("mv", "rename"), ("restore", "recover")],
)  # fmt: skip
def test_a_command_that_is_none(run_cli, typed, meant):
    ran = run_cli(typed, "x")
    assert ran.exit_code == 2
    assert f"no such command '{typed}'. Did you mean {meant}" in ran.stderr


@pytest.mark.parametrize("typed", ["x", "foobar", "\x1b[31m", "1", ""])
def test_a_word_like_no_command(run_cli, quiet, typed):
    ran = run_cli(typed)
    assert ran.exit_code == 2
    assert "Did you mean" not in ran.stderr
    assert quiet(ran.stderr)


def test_the_words_of_other_programs_lead_to_commands():
    for word, meant in _group._ALSO.items():
        assert word not in COMMANDS
        assert set(meant.split()) <= set(COMMANDS)


def test_a_new_key_that_looks_like_another(folder, run_cli, parse_json):
    ran = run_cli("set", "model.gguf", "llama.context_lenght", "4")
    assert "note: a new key was added; did you mean llama.context_length?" in ran.stdout
    ran = run_cli("set", "m.atlas", "greting", "4", "--json")
    assert parse_json(ran.stdout)["similar"] == [{"key": "greeting"}]
    assert "did you mean" not in run_cli("set", "m.atlas", "greeting", "4").stdout
    assert "did you mean" not in run_cli("set", "m.atlas", "day-1", "4").stdout
    assert "did you mean" not in run_cli("set", "m.atlas", "day-2", "4").stdout


def test_a_key_that_is_not_there_names_what_may_be_meant(folder, run_cli):
    for command in ("get", "rm", "rename"):
        more = ["x"] if command == "rename" else []
        assert "Similar: greeting" in run_cli(command, "m.atlas", "GREETING", *more).stderr
        assert "Similar: chat/monday" in run_cli(command, "m.atlas", "chat/mondya", *more).stderr
        assert "Similar: general.name" in run_cli(command, "model.gguf", "General.Name", *more).stderr
    many = MemoryFile()
    for number in range(7000):
        many.set(f"{'a' * (number % 60)}{number}", "x")
    many.set("the-last-key", "x")
    many.save(folder / "many.atlas")
    assert "Similar: the-last-key" in run_cli("get", "many.atlas", "the-last-kye").stderr


# --- quiet ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGING)
def test_what_changes_something_can_be_quiet(name):
    assert {"-q", "--quiet"} <= options_of(name)


CALLS = {
    "set": ["set", "m.atlas", "k", "v"],
    "rm": ["rm", "m.atlas", "greeting"],
    "rename": ["rename", "m.atlas", "greeting", "x"],
    "append": ["append", "m.atlas", "greeting", "x"],
    "import": ["import", "m.atlas", "chat.jsonl"],
    "export": ["export", "m.atlas", "greeting", "-o", "out.md"],
    "convert": ["convert", "m.atlas", "out.json"],
    "compress": ["compress", "m.atlas", "-o", "out.atlas"],
    "merge": ["merge", "m.atlas", "m.atlas", "-o", "out.atlas"],
    "repair": ["repair", "m.atlas", "-o", "out.atlas"],
    "encrypt": ["encrypt", "m.atlas", "--key-file", "key"],
    "decrypt": ["decrypt", "s.atlas", "--key-file", "key"],
    "rekey": ["rekey", "s.atlas", "--key-file", "key", "--new-key-file", "key"],
    "recover": ["recover", "m.atlas"],
}


@pytest.mark.parametrize("name", CALLS)
def test_quiet_says_nothing_of_what_went_well(folder, run_cli, name):
    shutil.copy(folder / "m.atlas", folder / "m.atlas.bak")
    loud = run_cli(*CALLS[name], *(["--dry-run"] if name == "repair" else []))
    shutil.copy(folder / "m.atlas.bak", folder / "m.atlas")
    for out in folder.glob("out.*"):
        out.unlink()
    call = CALLS[name]
    if name == "decrypt":
        run_cli("encrypt", "s.atlas", "--key-file", "key")
    ran = run_cli(*call, "-q")
    assert ran.exit_code == loud.exit_code, ran.stderr
    if name != "encrypt":  # which names the backup that is not encrypted
        assert (ran.stdout, ran.stderr) == ("", "")
    assert loud.stdout
    wrong = run_cli(
        *[word.replace("m.atlas", "no.atlas").replace("s.atlas", "no.atlas") for word in call[:2]], "-q"
    )
    assert wrong.exit_code in (1, 2)


#: What writes a file that may be another than the one it reads.
WRITES = {
    "rm": [*CALLS["rm"], "-o", "out.atlas"],
    "rename": [*CALLS["rename"], "-o", "out.atlas"],
    **{
        name: CALLS[name]
        for name in ("convert", "compress", "merge", "export", "encrypt", "decrypt", "rekey")
    },
    "repair": ["repair", "damaged.atlas", "-o", "out.atlas"],
    "join": ["join", "shard-00001-of-00003.gguf", "-o", "out.gguf"],
}


@pytest.mark.parametrize("name", WRITES)
def test_results_call_what_was_read_and_what_was_written_alike(folder, run_cli, parse_json, name):
    (folder / "damaged.atlas").write_bytes((folder / "m.atlas").read_bytes()[:-200])
    run_cli("split", "model.gguf", "--max-tensors", "5", "-o", "shard", "-q")
    call = WRITES[name]
    found = parse_json(run_cli(*call, "--json").stdout)
    several = name in ("merge", "join")
    read = found["inputs"][0]["path"] if several else found["path"]
    assert read == call[1]
    written = next((word for word in call if word.startswith("out.")), call[1])
    assert found["output"] == written
    assert (folder / written).is_file()


@pytest.mark.parametrize("name", ["set", "append", "import", "rename", "rm", "encrypt"])
def test_results_of_changes_in_place_name_the_file(folder, run_cli, parse_json, name):
    assert parse_json(run_cli(*CALLS[name], "--json").stdout)["path"] == "m.atlas"


def test_quiet_still_warns(samples, run_cli):
    broken = samples / "broken" / "truncated.atlas"
    ran = run_cli("repair", broken, "-o", samples / "out.atlas", "-q")
    assert ran.exit_code == 1
    assert "damaged chat/004-python" in ran.stdout
    assert "saved" not in ran.stdout


# --- the Tab key -----------------------------------------------------------------------------------------------------


def offered(*words, last, monkeypatch):
    """Return what the Tab key offers behind words."""
    monkeypatch.setenv("COMP_WORDS", " ".join(["atlas-tool", *words, last]))
    completion = ShellComplete(group, {}, "atlas-tool", "_ATLAS_TOOL_COMPLETE")
    return [item.value for item in completion.get_completions(list(words), last)]


@pytest.mark.parametrize(
    "words",
    [["get", "m.atlas"], ["get", "m.atlas", "greeting"], ["set", "m.atlas"], ["rm", "m.atlas"],
     ["rm", "-n", "m.atlas"], ["rename", "m.atlas"], ["append", "m.atlas"], ["ls", "m.atlas"], ["export", "m.atlas"],
     ["inspect", "m.atlas", "--entry"], ["grep", "x", "m.atlas", "--key"],
     ["import", "m.atlas", "chat.jsonl", "--key"]],
)  # fmt: skip
def test_keys_are_completed(folder, monkeypatch, words):
    assert offered(*words, last="chat/", monkeypatch=monkeypatch) == ["chat/monday", "chat/tuesday"]
    everything = offered(*words, last="", monkeypatch=monkeypatch)
    plain = {"greeting", "chat/monday", "chat/tuesday"} - set(words)
    assert set(everything) == plain  # what a shell would have to quote is not offered


def test_keys_of_models_and_of_secrets(folder, monkeypatch):
    assert offered("get", "model.gguf", last="general.n", monkeypatch=monkeypatch) == ["general.name"]
    assert "token_embd.weight" in offered("get", "model.gguf", last="token", monkeypatch=monkeypatch)
    assert offered("get", "s.atlas", last="h", monkeypatch=monkeypatch) == []
    assert offered("get", "--key-file", "key", "s.atlas", last="h", monkeypatch=monkeypatch) == ["hidden"]


@pytest.mark.parametrize("name", ["none.atlas", "key", ".", "-", "damaged.atlas"])
def test_nothing_is_said_where_there_are_no_keys(folder, monkeypatch, capsys, name):
    (folder / "damaged.atlas").write_bytes((folder / "m.atlas").read_bytes()[:70])
    assert offered("get", name, last="", monkeypatch=monkeypatch) == []
    assert capsys.readouterr() == ("", "")


def test_every_argument_that_is_a_key_is_completed():
    """A new command with a key is found here."""
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        params = {param.name: param for param in command.params}
        if "file" in params or "files" in params:
            for param in params.values():
                if param.name in ("key", "names", "wanted", "old", "only", "entry", "patterns"):
                    assert param._custom_shell_complete is not None, (name, param.name)
