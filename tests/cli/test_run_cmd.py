"""``run``: answers, the interactive form, the memory's file, stopping, and what can be wrong."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from atlas_kit import MemoryFile
from atlas_kit.llama import AtlasSession, AtlasSettings, FakeEngine
from tools import reference

pytest_plugins = ["model_fixtures"]

TEXT = "to be or not to be, " * 20


@pytest.fixture
def run_model(run_cli, fake, tmp_path):
    """Run the command on the fake model, greedily, with short answers."""

    def run(*arguments, stdin=None):
        model = tmp_path / "model.gguf"
        return run_cli("run", model, "--temperature", "0", "--max-tokens", "12", *arguments, stdin=stdin)

    return run


class Signalling(FakeEngine):
    """Sends this process a signal in the middle of decoding."""

    def __init__(self, at: int, times: int = 1, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.at, self.times, self.number, self.calls = at, times, number, 0

    def decode(self, feeds, *, hidden=False):
        self.calls += 1
        if self.calls == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
        return super().decode(feeds, hidden=hidden)


def seen(path) -> int:
    """Return how many tokens the memory in a file has taken in."""
    with AtlasSession(FakeEngine(), path) as session:
        return session.memory.tokens_seen


# --- one answer ---------------------------------------------------------------------------------------------


def test_the_answer_and_nothing_else_goes_to_standard_output(run_model):
    result = run_model("-p", TEXT, "--atlas")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "to be or not"
    assert "read 400 tokens" in result.stderr
    assert "generated 12 tokens" in result.stderr
    assert "with the memory" in result.stderr
    empty, line, end = result.stderr.split("\n")  # the answer has not ended its line
    assert (empty, end) == ("", "")
    assert line.isprintable()
    assert "\\x" not in line


def test_quiet(run_model):
    assert run_model("-p", TEXT, "--atlas", "-q").stderr == ""


def test_without_a_memory(run_model):
    result = run_model("-p", TEXT)
    assert result.exit_code == 0
    assert result.stdout != "to be or not"
    assert "memory none" in result.stderr


def test_a_prompt_from_a_file_or_standard_input(run_model, tmp_path):
    (tmp_path / "p.txt").write_text(TEXT)
    assert run_model("-f", tmp_path / "p.txt", "--atlas").stdout == "to be or not"
    assert run_model("-f", "-", "--atlas", stdin=TEXT).stdout == "to be or not"


def test_stop_strings_and_length(run_model):
    assert run_model("-p", TEXT, "--atlas", "--stop", " or").stdout == "to be"
    assert run_model("-p", TEXT, "--atlas", "--max-tokens", "5").stdout == "to be"
    assert run_model("-p", TEXT, "--atlas", "--max-tokens", "0").stdout == ""


def test_a_seed_repeats_an_answer(run_model):
    options = ("-p", "hello", "--temperature", "1.5", "--max-tokens", "40", "--seed")
    assert (
        run_model(*options, "7").stdout == run_model(*options, "7").stdout != run_model(*options, "8").stdout
    )


@pytest.mark.parametrize(
    "prompt", ["na\u00efve \u2603 \U0001f600 e\u0301 \u202e", "a\x1b[31m\x07", "\ufeff", " "]
)
def test_odd_prompts(run_model, prompt):
    result = run_model("-p", prompt, "--atlas")
    assert result.exit_code == 0
    assert "Traceback" not in result.stderr


def test_bytes_that_are_not_utf8(tiny_model, run_tool):
    ran = subprocess.run(
        [sys.executable, "-m", "atlas_kit", "run", str(tiny_model), "-p", b"caf\xe9", "--max-tokens", "2", "-q"],
        env=reference.environment(), capture_output=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


def test_notes_of_the_engine_are_said_once(run_model, fake):
    fake["engine"] = engine = FakeEngine()
    engine.notes.append("this CPU is odd")
    result = run_model("-p", "hello", "--max-tokens", "1")
    assert result.stderr.count("note: this CPU is odd") == 1


# --- the memory's file ----------------------------------------------------------------------------------------


def test_the_memory_is_kept(run_model, tmp_path):
    file = tmp_path / "m.atlas"
    assert run_model("-p", TEXT, "-m", file).exit_code == 0
    first = seen(file)
    assert first == 400 + 12 - 1
    # a new process has read nothing yet, and the memory knows how it goes on
    result = run_model("-p", "to be or", "-m", file)
    assert result.stdout.startswith(" not to be")
    assert seen(file) > first


def test_read_only_changes_nothing(run_model, tmp_path):
    file = tmp_path / "m.atlas"
    run_model("-p", TEXT, "-m", file)
    before = file.read_bytes()
    result = run_model("-p", "to be or", "-m", file, "--read-only")
    assert result.stdout.startswith(" not to be")
    assert file.read_bytes() == before
    missing = run_model("-p", "hello", "-m", tmp_path / "no.atlas", "--read-only")
    assert missing.exit_code == 2
    assert "no memory to read from" in missing.stderr
    assert not (tmp_path / "no.atlas").exists()


def test_going_on_with_the_context_gives_what_never_stopping_gives(run_model, tmp_path):
    whole = run_model("-p", TEXT, "--atlas", "--max-tokens", "24").stdout
    file = tmp_path / "m.atlas"
    first = run_model("-p", TEXT, "-m", file, "--continue").stdout
    rest = run_model("-p", "", "-m", file, "--continue").stdout
    assert first + rest == whole


def test_other_entries_stay(run_model, tmp_path):
    file = tmp_path / "m.atlas"
    with MemoryFile.edit(file, create=True) as memory:
        memory.set("greeting", "hello")
    assert run_model("-p", TEXT, "-m", file).exit_code == 0
    assert seen(file) > 0
    with MemoryFile.open(file) as memory:
        assert memory["greeting"].data == b"hello"


def test_settings_imply_a_memory_and_fit_the_one_that_is_there(run_model, tmp_path):
    file = tmp_path / "m.atlas"
    result = run_model("-p", TEXT, "-m", file, "--window-size", "64")
    assert result.exit_code == 0
    assert run_model("-p", TEXT, "-m", file, "--blend-ratio", "0.5").exit_code == 0
    with AtlasSession(FakeEngine(), file) as session:
        assert session.memory.settings == AtlasSettings(window_size=64, blend_ratio=0.5)
    other = run_model("-p", TEXT, "-m", file, "--window-size", "128")
    assert other.exit_code == 2
    assert "keeps its sizes" in other.stderr
    assert "memory 4" in run_model("-p", TEXT, "--window-size", "32").stderr


def test_a_config_file(run_model, tmp_path):
    config, file = tmp_path / "c.json", tmp_path / "m.atlas"
    config.write_text('{"window_size": 48}')
    assert run_model("-p", TEXT, "-m", file, "--config", config).exit_code == 0
    with AtlasSession(FakeEngine(), file) as session:
        assert session.memory.settings.window_size == 48


def test_backup(run_model, tmp_path):
    file = tmp_path / "m.atlas"
    run_model("-p", TEXT, "-m", file)
    before = seen(file)
    run_model("-p", TEXT, "-m", file, "--backup")
    assert seen(tmp_path / "m.atlas.bak") == before < seen(file)


def test_an_encrypted_memory(run_model, tmp_path):
    pytest.importorskip("cryptography")
    file, secret = tmp_path / "m.atlas", tmp_path / "pass.txt"
    secret.write_text("open sesame\n")
    assert run_model("-p", TEXT, "-m", file, "--passphrase-file", secret).exit_code == 0
    assert b"runtime" not in file.read_bytes()
    result = run_model("-p", "to be or", "-m", file, "--passphrase-file", secret)
    assert result.stdout.startswith(" not to be")
    locked = run_model("-p", "hello", "-m", file)
    assert locked.exit_code == 2
    assert "passphrase" in locked.stderr


@pytest.mark.parametrize("go_on", [False, True])
def test_an_encrypted_memory_is_derived_once(go_on, run_model, tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    from atlas_kit.formats.atlas import crypto

    file, secret, derived = tmp_path / "m.atlas", tmp_path / "pass.txt", []
    secret.write_text("open sesame\n")
    more = ["--continue"] if go_on else []
    run_model("-p", TEXT, "-m", file, "--passphrase-file", secret, *more)
    master = crypto._master
    monkeypatch.setattr(crypto, "_master", lambda *given: derived.append(1) or master(*given))
    result = run_model("-p", "to be", "-m", file, "--passphrase-file", secret, "--read-only", *more)
    assert result.exit_code == 0, result.stderr
    assert len(derived) == 1


def test_another_models_memory_is_refused_with_both_names(run_model, fake, tmp_path):
    file = tmp_path / "m.atlas"
    run_model("-p", TEXT, "-m", file)
    fake["engine"] = other = FakeEngine()
    other.info = dataclasses.replace(other.info, identity="ab" * 32)
    before = file.read_bytes()
    result = run_model("-p", TEXT, "-m", file)
    assert result.exit_code == 2
    assert "ab" * 8 in result.stderr
    assert "00" * 8 in result.stderr
    assert "--force" in result.stderr
    assert file.read_bytes() == before
    fake["engine"] = other
    assert run_model("-p", TEXT, "-m", file, "--force").exit_code == 0


def test_a_damaged_memory_names_the_backup_that_would_load(run_model, tmp_path):
    file, backup = tmp_path / "m.atlas", tmp_path / "m.atlas.bak"
    run_model("-p", TEXT, "-m", file)
    data = bytearray(file.read_bytes())
    shutil.copy(file, backup)
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    result = run_model("-p", TEXT, "-m", file)
    assert result.exit_code == 2
    assert f"{backup} would load: atlas-tool recover {file} --restore 1" in result.stderr
    assert result.stderr.count("\n") == 1
    assert file.read_bytes() == data
    backup.write_bytes(data[:1000])
    result = run_model("-p", TEXT, "-m", file)
    assert "None of its backups would load" in result.stderr
    backup.unlink()
    file.write_bytes(b"")
    assert run_model("-p", TEXT, "-m", file).exit_code == 2
    assert file.read_bytes() == b""


def test_a_memory_that_could_not_be_saved_is_refused_at_once(run_model, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place, words in (
        (tmp_path, "folder"),
        (tmp_path / "no" / "m.atlas", "no such folder"),
        (tmp_path / "model.gguf" / "m.atlas", "no such folder"),
        ("", "not a file name"),
        ("/dev/full", "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / ("m" * 300), "too long"),
    ):
        result = run_model("-p", TEXT, "-m", place)
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr


def test_a_full_disk_loses_nothing(run_model, tmp_path, monkeypatch):
    file = tmp_path / "m.atlas"
    run_model("-p", TEXT, "-m", file)
    before = file.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = run_model("-p", TEXT, "-m", file)
    assert result.exit_code == 2
    assert "the disk is full" in result.stderr
    assert "Traceback" not in result.stderr
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".tmp") == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "learn"])
def test_what_somebody_else_saved_meanwhile_is_kept(run_cli, run_model, fake, tmp_path, command):
    file, other, text = tmp_path / "m.atlas", tmp_path / "other.atlas", tmp_path / "t.txt"
    text.write_text(TEXT)
    run_model("-p", TEXT * 2, "-m", other)

    class Meanwhile(FakeEngine):
        def decode(self, feeds, *, hidden=False):
            if other.exists():
                os.replace(other, file)
            return super().decode(feeds, hidden=hidden)

    fake["engine"] = Meanwhile()
    options = ("-p", TEXT, "--max-tokens", "12") if command == "run" else (text,)
    result = run_cli(command, tmp_path / "model.gguf", *options, "-m", file)
    assert result.exit_code == 0, result.stderr
    assert f"their memory is kept as {file}.bak" in result.stderr
    assert seen(tmp_path / "m.atlas.bak") == 800 + 12 - 1
    assert seen(file) < 800
    again = run_cli(command, tmp_path / "model.gguf", *options, "-m", file)
    assert "somebody else" not in again.stderr


# --- stopping -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_saves_what_was_read(run_model, fake, tmp_path, number):
    file = tmp_path / "m.atlas"
    fake["engine"] = Signalling(at=5, number=number)
    before = signal.getsignal(number)
    result = run_model("-p", TEXT, "-m", file)
    assert result.exit_code == 130
    assert result.stderr.endswith("interrupted\n")
    assert seen(file) == 5 * 32 - 1
    assert signal.getsignal(number) is before


def test_ctrl_c_while_answering(run_model, fake, tmp_path):
    file = tmp_path / "m.atlas"
    fake["engine"] = Signalling(at=400 // 32 + 1 + 5)
    result = run_model("-p", TEXT, "-m", file)
    assert result.exit_code == 130
    assert result.stdout == "to be"
    assert seen(file) == 400 + 5 - 1


def test_who_does_not_want_to_wait_saves_nothing(run_model, fake, tmp_path):
    file = tmp_path / "m.atlas"
    fake["engine"] = Signalling(at=5, times=3)
    result = run_model("-p", TEXT, "-m", file)
    assert result.exit_code == 130
    assert "was not saved" in result.stderr
    assert not file.exists()


def test_an_error_while_answering_keeps_what_was_read(run_model, tmp_path, fake):
    from atlas_kit.errors import ModelError

    class Breaks(FakeEngine):
        calls = 0

        def decode(self, feeds, *, hidden=False):
            self.calls += 1
            if self.calls == 8:
                raise ModelError("llama_decode returned -3")
            return super().decode(feeds, hidden=hidden)

    fake["engine"] = Breaks()
    file = tmp_path / "m.atlas"
    result = run_model("-p", TEXT, "-m", file)
    assert result.exit_code == 2
    assert "llama_decode returned -3" in result.stderr
    assert seen(file) == 7 * 32 - 1


def test_a_reader_that_goes_away(tiny_model, tmp_path):
    line = (
        f"{sys.executable} -m atlas_kit run {tiny_model} -p 'hello hello' --max-tokens 400 --seed 1 "
        f"-m {tmp_path / 'm.atlas'} --threads 1 | head -c 3; exit ${{PIPESTATUS[0]}}"
    )
    ran = subprocess.run(["bash", "-c", line], env=reference.environment(), capture_output=True)
    assert ran.returncode == 141, ran.stderr
    assert b"Traceback" not in ran.stderr
    assert (tmp_path / "m.atlas").exists()


# --- the interactive form ---------------------------------------------------------------------------------------


def test_lines_are_answered_and_the_end_of_the_file_leaves(run_model, tmp_path):
    result = run_model("--atlas", stdin=f"{TEXT}\nto be or not\n")
    assert result.exit_code == 0
    first, second, rest = result.stdout.split("\n")
    assert first == "to be or not"
    assert second.startswith(" to be")
    assert rest == ""


def test_slash_commands(run_model, tmp_path):
    file, other = tmp_path / "m.atlas", tmp_path / "other.atlas"
    lines = [TEXT, "/stats", "/save", f"/save {other}", "/reset context", "/reset memory", "/reset",
             f"/load {other}", "/stats", "/help", "/quit", "never read"]  # fmt: skip
    result = run_model("-m", file, stdin="\n".join(lines))
    assert result.exit_code == 0, result.stderr
    out = result.stdout
    assert out.count("412 tokens seen") + out.count("411 tokens seen") == 2
    assert f"saved {file}" in out
    assert f"loaded {other}" in out
    for word in ("context emptied", "memory emptied", "context and memory emptied", "/help", "/quit"):
        assert word in out
    assert "never" not in out
    assert seen(other) == seen(file) == 411


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/foo", "there is no /foo; /help lists what there is"),
        ("/", "there is no /;"),
        ("/save", "no --memory-file"),
        ("/save /no/such/folder/m.atlas", "folder"),
        ("/save /dev/null", "not a regular file"),
        ("/load", "which file?"),
        ("/load nothing.atlas", "no such file"),
        ("/reset everything", "empties context or memory"),
    ],
)
def test_slash_commands_that_go_wrong_say_so_and_go_on(run_model, line, words):
    result = run_model("--atlas", stdin=f"{line}\n/stats\n")
    assert result.exit_code == 0
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert "model" in result.stdout


def test_lines_that_go_on_and_lines_that_are_text(run_model, fake):
    fake["engine"] = engine = FakeEngine()
    read = []
    tokenize = engine.tokenize
    engine.tokenize = lambda text, **options: read.append(text) or tokenize(text, **options)
    run_model("--max-tokens", "1", stdin="a\\\nb\n /stats\n\n\nlast\\")
    assert read == ["a\nb", "\n /stats", "\nlast\n"]


def test_ctrl_c_stops_an_answer_and_not_the_program(run_model, fake):
    fake["engine"] = Signalling(at=400 // 32 + 1 + 5)
    result = run_model("--atlas", stdin=f"{TEXT}\n/stats\n")
    assert result.exit_code == 0
    assert result.stdout.startswith("to be\n")
    assert "405 tokens" in result.stdout or "404 tokens" in result.stdout


def test_ctrl_c_twice_leaves_and_saves(run_model, fake, tmp_path):
    fake["engine"] = Signalling(at=5, times=2)
    file = tmp_path / "m.atlas"
    result = run_model("-m", file, stdin=f"{TEXT}\n/stats\n")
    assert "model" not in result.stdout
    assert seen(file) == 5 * 32 - 1


def test_invalid_bytes_on_standard_input(run_model):
    assert run_model("--atlas", stdin=b"caf\xe9 \xff\n/stats\n").exit_code == 0


# --- a chat ---------------------------------------------------------------------------------------------------


@pytest.fixture
def chatting(fake):
    """Put an engine with a chat template in place; return what it was asked to read."""
    pytest.importorskip("jinja2")
    fake["engine"] = engine = FakeEngine()
    loop = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    template = loop + "{% if add_generation_prompt %}<ai>{% endif %}"
    engine.info = dataclasses.replace(engine.info, chat_template=template)
    read = []
    tokenize = engine.tokenize

    def listening(text, *, special=False):
        if not special:
            read.append(text)
        return tokenize(text)

    engine.tokenize = listening
    return read


def test_a_chat(run_model, chatting):
    result = run_model("--system", "Be kind.", "--max-tokens", "1", stdin="Hi\nAnd?\n/reset context\nOh\n")
    assert result.exit_code == 0, result.stderr
    assert chatting == [
        "<system>Be kind.</><user>Hi</><ai>",
        "</><user>And?</><ai>",
        "<system>Be kind.</><user>Oh</><ai>",
    ]


def test_no_chat(run_model, chatting):
    assert run_model("--no-chat", "-p", "Hi", "--max-tokens", "1").exit_code == 0
    assert chatting == ["Hi"]


def test_a_system_prompt_needs_a_chat(run_model):
    result = run_model("--system", "Be kind.", "-p", "Hi")
    assert result.exit_code == 2
    assert "no chat template" in result.stderr


# --- what can be wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-p", ""], "the prompt is empty"),
        (["-p", "a", "-f", "b"], "not both"),
        (["-p", "a", "--no-atlas", "--window-size", "3"], "--no-atlas"),
        (["-p", "a", "--no-atlas", "-m", "m.atlas"], "--no-atlas"),
        (["-p", "a", "--no-chat", "--system", "b"], "--system"),
        (["-p", "a", "--continue"], "--memory-file"),
        (["-p", "a", "--grammar-file", "g", "--json-schema", "{}"], "not both"),
        (["-p", "a", "--grammar-file", "/no/such/grammar"], "no such file"),
        (["-p", "a", "--json-schema", "{no json"], "not JSON"),
        (["-p", "a", "--temperature", "-1"], "temperature"),
        (["-p", "a", "--top-p", "2"], "top_p"),
        (["-p", "a", "--top-k", "-1"], "Choose 0 to 16777216."),
        (["-p", "a", "--max-tokens", "-2"], "--max-tokens"),
        (["-p", "a", "--seed", str(1 << 63)], "seed"),
        (["-p", "a", "--config", "/no/such/config"], "no such file"),
        (["-f", "/no/such/prompt"], "no such file"),
        (["-p", "a", "--atlas", "--learning-rate", "0", "--window-size", "0"], "both 0"),
    ],
)
def test_misuse_is_said_in_a_sentence(run_model, options, words):
    result = run_model(*options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_prompt_that_is_no_text(run_model, tmp_path):
    (tmp_path / "p").write_bytes(b"\x7fELF\0\0")
    result = run_model("-f", tmp_path / "p")
    assert result.exit_code == 2
    assert "NUL" in result.stderr


# --- a real model -----------------------------------------------------------------------------------------------


def run_real(run_cli, *arguments, stdin=None):
    return run_cli(
        "run", *arguments, "--temperature", "0", "--max-tokens", "8", "--threads", "1", stdin=stdin
    )


def test_a_real_model(tiny_model, run_cli, tmp_path):
    file = tmp_path / "m.atlas"
    first = run_real(run_cli, tiny_model, "-p", "hello there", "-m", file, "--continue")
    assert first.exit_code == 0, first.stderr
    assert first.stdout
    again = run_real(run_cli, tiny_model, "-p", "hello there", "--atlas")
    assert again.stdout == first.stdout
    chat = run_real(run_cli, tiny_model, "-m", file, "--continue", stdin="and?\n/stats\n")
    assert chat.exit_code == 0, chat.stderr
    assert re.search(r"\d+ tokens seen", chat.stdout)


def test_json_schema_with_a_real_model(tiny_model, run_cli):
    result = run_cli(
        "run",
        tiny_model,
        "-p",
        "hi",
        "--json-schema",
        '{"type": "boolean"}',
        "--atlas",
        "--threads",
        "1",
        "-q",
    )
    assert result.stdout.strip() in ("true", "false"), result.stderr


def test_models_that_are_none(tiny_model, run_cli, tmp_path, samples):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_model.read_bytes()[:-5000])
    for path, words in (
        (tmp_path / "no.gguf", "no such file"),
        (samples / "text" / "chat.txt", "not a GGUF file"),
        (samples / "gguf" / "vocabulary-only.gguf", "no weights"),
        (cut, "ends"),
        (tmp_path, ""),
    ):
        result = run_real(run_cli, path, "-p", "hello")
        assert result.exit_code == 2, path
        assert words in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.model
def test_an_encoder(run_cli, tmp_path):
    pytest.importorskip("llama_cpp")
    from tools.make_random_model import make_model

    result = run_real(run_cli, make_model(tmp_path / "bert.gguf", "bert", size="tiny"), "-p", "hello")
    assert result.exit_code == 2
    assert "encoder" in result.stderr


def test_a_context_too_small(tiny_model, run_cli):
    result = run_real(run_cli, tiny_model, "-p", "hello", "--n-ctx", "2")
    assert result.exit_code == 2
    assert "n_ctx" in result.stderr


# --- what is read again ---------------------------------------------------------------------------------------

TALK = "The key lies under the blue stone.\n/reset context\nWhere is the key?\n/recall\n"


def chat(run_cli, model, *arguments, stdin):
    return run_cli("run", model, "--temperature", "0", "--max-tokens", "4", *arguments, stdin=stdin)


def test_a_chat_recalls_what_was_said(run_cli, tiny_model, tmp_path):
    file = tmp_path / "m.atlas"
    result = chat(run_cli, tiny_model, "-m", file, "--recall", "always", stdin=TALK)
    assert result.exit_code == 0, result.stderr
    assert any(line.startswith("[from user, 20") for line in result.stderr.splitlines())
    assert "\\x0a" not in result.stderr
    assert "for the last answer: it makes the question likelier" in result.stdout
    assert "    The key lies under the blue stone." in result.stdout
    with AtlasSession(str(tiny_model), file, engine_options={"n_ctx": 256}) as session:
        said = [session.episodes.text(one.start, one.stop) for one in session.episodes.episodes]
        assert said[0::2] == ["The key lies under the blue stone.", "Where is the key?"]
        assert session.memory.settings.recall == "always"


def test_a_chat_that_shall_not_recall(run_cli, tiny_model):
    off = chat(run_cli, tiny_model, "--atlas", "--recall", "off", stdin=TALK)
    assert "[from" not in off.stderr
    assert "for the last answer: off" in off.stdout
    typed = chat(run_cli, tiny_model, "--atlas", stdin="/recall\n/recall off\n/recall maybe\n" + TALK)
    assert "nothing was asked yet" in typed.stdout
    assert "recall is off now" in typed.stdout
    assert "/recall can be auto, off, always, not maybe" in typed.stderr
    assert "for the last answer: off" in typed.stdout
    without = chat(run_cli, tiny_model, stdin="/recall\n")
    assert "nothing is kept that could be recalled" in without.stderr


def test_plain_text_goes_on_as_it_did(run_cli, tiny_model, tmp_path):
    result = chat(run_cli, tiny_model, "-m", tmp_path / "m.atlas", "--no-chat", "-p", "Where is", stdin="")
    assert result.exit_code == 0
    with AtlasSession(str(tiny_model), tmp_path / "m.atlas", engine_options={"n_ctx": 256}) as session:
        said = [session.episodes.text(one.start, one.stop) for one in session.episodes.episodes]
        assert said[0] == "Where is"
