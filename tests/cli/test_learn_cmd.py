"""``learn``: documents into a memory's file, progress, stopping, and what can be wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal

import pytest

from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.llama import AtlasSession, AtlasSettings, FakeEngine
from atlas_kit.persistence.episode_entries import read_episodes

pytest_plugins = ["model_fixtures"]

TEXT = "to be or not to be, " * 40


@pytest.fixture
def files(tmp_path):
    """Return a folder with two documents."""
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text("that is the question\n" * 10)
    return tmp_path


@pytest.fixture
def learn(run_cli, fake, files, monkeypatch):
    """Run the command on the fake model; the memory is ``m.atlas``. However slow the machine, no line is due early."""
    monkeypatch.setattr("atlas_kit.cli.learn_cmd.LINE_EVERY", float("inf"))

    def run(*arguments, stdin=None):
        return run_cli("learn", files / "model.gguf", *arguments, "-m", files / "m.atlas", stdin=stdin)

    return run


def memory_of(path):
    """Return (tokens seen, settings) of the memory in a file."""
    with AtlasSession(FakeEngine(), path) as session:
        assert session.memory is not None
        return session.memory.tokens_seen, session.memory.settings


def test_it_learns(learn, files):
    result = learn(files / "a.txt", files / "b.txt")
    assert result.exit_code == 0, result.stderr
    assert "in all" in result.stdout
    assert "model alone" in result.stdout
    assert "1,008 tokens seen" in result.stdout
    assert [line.split(":")[0].rsplit("/", 1)[-1] for line in result.stderr.splitlines()] == [
        "a.txt",
        "b.txt",
    ]
    assert "tokens/s, loss" in result.stderr
    assert memory_of(files / "m.atlas")[0] == 1008


def test_how_much_text_is_kept_can_change(learn, files):
    assert learn(files / "a.txt", "--store-only").exit_code == 0
    assert "can be asked about" not in learn(files / "b.txt", "--episode-tokens", "0").stdout
    refused = learn(files / "a.txt", "--store-only")
    assert refused.exit_code == 2
    assert "this memory stores no documents" in refused.stderr
    again = learn(files / "a.txt", "--store-only", "--episode-tokens", "5000")
    assert "800 tokens of text can be asked about" in again.stdout
    assert "had to go" not in again.stdout
    less = learn(files / "b.txt", "--store-only", "--episode-tokens", "900", "--json")
    found = json.loads(less.stdout)
    assert (found["stored"] <= 900, found["stored"] + found["dropped"]) == (True, 1008 + 2)
    assert "tokens of text had to go: --episode-tokens" in learn(files / "a.txt", "--store-only").stdout


def test_text_that_another_model_read_is_kept_aside(learn, files, fake):
    assert learn(files / "a.txt", "--store-only").exit_code == 0
    other = FakeEngine()
    other.info = dataclasses.replace(other.info, identity="ab" * 32)
    fake["engine"] = other
    forced = learn(files / "b.txt", "--force")
    assert forced.exit_code == 0, forced.stderr
    assert "what was read and said beside another model is left out" in forced.stderr
    assert forced.stderr.count("m.atlas.bak") == 1
    with MemoryFile.open(files / "m.atlas.bak") as file:
        arrays = read_episodes(file)
    assert arrays is not None
    assert arrays.sources == (str(files / "a.txt"),)


def test_json(learn, files):
    result = learn(files / "a.txt", "--json", "-q")
    document = json.loads(result.stdout)
    assert result.stderr == ""
    assert document["tokens"] == len(TEXT)
    assert document["loss"] < document["loss_model"]
    assert document["memory_file"] == str(files / "m.atlas")
    assert document["memory"]["tokens_seen"] == len(TEXT) - 1
    assert document["documents"][0]["path"] == str(files / "a.txt")


def test_a_memory_goes_on(learn, files):
    learn(files / "a.txt", "--window-size", "64")
    before = (files / "m.atlas").read_bytes()
    assert learn(files / "b.txt", "--backup", "--save-every", "50").exit_code == 0
    assert memory_of(files / "m.atlas") == (1008, AtlasSettings(window_size=64))
    assert (files / "m.atlas.bak").read_bytes() == before  # what was there, not what it wrote itself
    again = learn(files / "b.txt", "--window-size", "128")
    assert again.exit_code == 2
    assert "keeps its sizes" in again.stderr


def test_the_context_is_not_kept(learn, files):
    learn(files / "a.txt")
    with AtlasSession(FakeEngine(), True) as session:
        session.load(files / "m.atlas")
        assert session.context_tokens == ()


def test_a_document_that_cannot_be_read_to_its_start(learn, files):
    result = learn("/proc/self/mem")
    assert result.exit_code == 2
    assert result.stderr.startswith("atlas-tool: /proc/self/mem: cannot read")


def test_progress_is_of_what_was_learned(learn, files, monkeypatch):
    monkeypatch.setattr("atlas_kit.cli.learn_cmd.LINE_EVERY", 0.0)
    said = learn(files / "a.txt").stderr.splitlines()
    shares = [int(line.split("%")[0].split()[-1]) for line in said[:-1]]
    assert shares == sorted(shares)
    assert shares[0] < 50 < 100 == shares[-1]


def test_a_learned_memory_makes_a_model_native(tiny_model, run_cli, files):
    """With the settings that it was learned with."""
    memory, native = files / "m.atlas", files / "n.gguf"
    ran = run_cli("learn", tiny_model, files / "a.txt", "-m", memory, "--window-size", "48", "--threads", "1")
    assert ran.exit_code == 0, ran.stderr
    assert run_cli("convert", tiny_model, native, "--memory", memory).exit_code == 0
    assert run_cli("get", native, "atlas.memory.window_size").stdout.strip() == "48"
    ran = run_cli("run", native, "-p", "to be", "--max-tokens", "1", "--threads", "1")
    assert ran.exit_code == 0, ran.stderr
    assert re.search(r"memory \d{3,} tokens seen, .* learned", ran.stderr)
    for option, code, words in (
        ("--blend-ratio=0.5", 0, "tokens seen"),
        ("--window-size=64", 2, "keeps its sizes"),
    ):
        other = files / "o.gguf"
        made = run_cli("convert", tiny_model, other, "--memory", memory, option, "--force")
        assert made.exit_code == 0, made.stderr
        ran = run_cli("run", other, "-p", "to be", "--max-tokens", "1", "--threads", "1")
        assert (ran.exit_code, words in ran.stderr) == (code, True), ran.stderr
    (files / "n.atlas").unlink()
    ran = run_cli("run", native, "-p", "to be", "--threads", "1")
    assert ran.exit_code == 2
    assert "the learned memory that the model asks for is not there" in ran.stderr


def test_standard_input(learn, files):
    assert learn("-", stdin=TEXT).exit_code == 0
    assert memory_of(files / "m.atlas")[0] == len(TEXT) - 1
    assert learn("-", "-").exit_code == 2


class Signalling(FakeEngine):
    """Interrupts this process in the middle of its fifth decode."""

    calls = 0
    times = 1

    def decode(self, feeds, *, hidden=False):
        self.calls += 1
        if self.calls == 5:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
        return super().decode(feeds, hidden=hidden)


def test_ctrl_c_saves(learn, fake, files):
    fake["engine"] = Signalling()
    result = learn(files / "a.txt", files / "b.txt", "--json")
    assert result.exit_code == 130
    assert json.loads(result.stdout)["interrupted"] is True
    assert result.stderr.endswith("interrupted\n")
    assert memory_of(files / "m.atlas")[0] == 5 * 32 - 1


def test_who_does_not_want_to_wait_keeps_the_last_saved_memory(learn, fake, files):
    fake["engine"] = engine = Signalling()
    engine.times = 3
    result = learn(files / "a.txt", "--save-every", "64")
    assert result.exit_code == 130
    assert "since the last time" in result.stderr
    assert memory_of(files / "m.atlas")[0] == 4 * 32 - 1


def test_a_killed_process_leaves_a_whole_memory(learn, fake, files, monkeypatch):
    """The process ends for good, without anything being run, while the memory is written for the third time.

    The first time is when the document is stored, before it is learned.
    """
    fake["engine"] = FakeEngine()
    replace, calls = os.replace, []

    class Killed(BaseException):
        pass

    def killed(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise Killed
        return replace(*arguments, **options)

    monkeypatch.setattr(os, "replace", killed)
    learn(files / "a.txt", "--save-every", "64")
    if len(calls) < 3:
        pytest.skip("the memory is not put into place with os.replace")
    assert memory_of(files / "m.atlas")[0] == 64 - 1


def test_a_full_disk_is_said_and_the_memory_before_stays(learn, files, monkeypatch):
    learn(files / "a.txt")
    before = (files / "m.atlas").read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = learn(files / "b.txt", "--save-every", "100")
    assert result.exit_code == 2
    assert "could not save; reading continues" in result.stderr
    assert "the disk is full" in result.stderr.splitlines()[-1]
    assert (files / "m.atlas").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no.txt"], "no such file"),
        (["."], "directory"),
        (["binary"], "NUL"),
        (["a.txt", "--save-every", "0"], "--save-every"),
        (["a.txt", "--chunk-size", "128"], "less than a step"),
        (["a.txt", "--device", "tpu"], "--device"),
        ([], "FILE"),
    ],
)
def test_misuse_is_said_in_a_sentence_and_writes_nothing(learn, files, monkeypatch, arguments, words):
    monkeypatch.chdir(files)
    (files / "binary").write_bytes(b"text\0text")
    result = learn(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not (files / "m.atlas").exists()


def test_a_memory_file_is_asked_for(run_cli, files):
    result = run_cli("learn", files / "model.gguf", files / "a.txt")
    assert result.exit_code == 2
    assert "memory-file" in result.stderr


def test_the_models_own_file_is_no_place(run_cli, fake, files):
    model = files / "model.gguf"
    model.write_bytes(b"x")
    result = run_cli("learn", model, files / "a.txt", "-m", model)
    assert result.exit_code == 2
    assert "model's own file" in result.stderr
    assert model.read_bytes() == b"x"


def test_a_real_model(tiny_model, run_cli, files):
    for _ in range(2):
        result = run_cli(
            "learn", tiny_model, files / "b.txt", "-m", files / "m.atlas", "--threads", "1", "--json"
        )
        assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["memory"]["tokens_seen"] == 2 * (document["tokens"] - 1)
    assert document["loss"] < document["loss_model"]


def test_recommended_settings(tiny_model, run_cli, files):
    file = files / "m.atlas"
    result = run_cli("learn", tiny_model, files / "b.txt", "-m", file, "--threads", "1", "--atlas-auto")
    assert result.exit_code == 0, result.stderr
    recommended = json.loads(run_cli("recommend", tiny_model, "--json").stdout)["settings"]
    shown = run_cli("learn", tiny_model, files / "b.txt", "-m", file, "--threads", "1", "--json")
    assert json.loads(shown.stdout)["memory"]["settings"] == recommended
