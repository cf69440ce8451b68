"""Asked for encryption, a command encrypts or refuses; what is encrypted stays so, in every file that is left.

Swept: every command that writes, with every combination of keys, on inputs that are plain and that are encrypted; and
again with the process killed, or the disk full, in the middle of the write.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import shutil
import string
import tempfile
from pathlib import Path

import pytest

from atlas_kit.errors import AtlasError
from atlas_kit.formats.atlas import MemoryFile, tables
from atlas_kit.operations.inputs import open_given
from tests.reports.command_table import MODELS, READ_ONLY, WRITING, options_of, unlisted

pytest.importorskip("cryptography")
pytest_plugins = ["tests.cli.model_fixtures"]

#: Random, so that no codec makes it shorter and no file has it by chance.
CANARY = "".join(random.Random(7).choices(string.ascii_letters + string.digits, k=120))
OLD, NEW = "the old passphrase", "a new passphrase"
OLD_KEY, NEW_KEY = bytes(range(32)), bytes(range(32, 64))

GIVEN = {
    "nothing": [],
    "passphrase": ["--passphrase-file", "old.txt"],
    "key": ["--key-file", "old.key"],
    "environment": [],
}
NEW_GIVEN = {
    "nothing": [],
    "passphrase": ["--new-passphrase-file", "new.txt"],
    "key": ["--new-key-file", "new.key"],
}
INPUTS = {
    "plain": {},
    "plain-v1": {},
    "by-passphrase": {"passphrase": OLD},
    "by-key": {"key": OLD_KEY},
}


@pytest.fixture(autouse=True)
def quick_scrypt(monkeypatch):
    """Spend less on passphrases: thousands of files are written here."""
    monkeypatch.setattr(tables, "SCRYPT_LOG2_N", 4)


@functools.cache
def filled(kind: str) -> bytes:
    """Return a memory file of a kind."""
    version, secret = 1 if kind == "plain-v1" else 2, INPUTS[kind]
    memory = MemoryFile(version=3 if secret else version, **secret)
    memory.set("chat", CANARY, type=2)
    memory.set("other", f"something else {CANARY}")
    return memory.to_bytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with an input of each kind, its backup, and files of secrets."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.txt").write_text(f"{OLD}\n")
    (tmp_path / "new.txt").write_text(f"{NEW}\n")
    (tmp_path / "old.key").write_bytes(OLD_KEY)
    (tmp_path / "new.key").write_bytes(NEW_KEY)
    return tmp_path


def lay_out(folder: Path, kind: str) -> tuple[Path, dict[str, bytes]]:
    """Write an input and what is beside it; return it and the plain files that are there from the start."""
    path = folder / "memory.atlas"
    for old in [*folder.glob("*.atlas*"), *folder.glob(".*"), *folder.glob("out*")]:
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    path.write_bytes(filled(kind))
    shutil.copy2(path, folder / "memory.atlas.bak")
    (folder / "other-plain.atlas").write_bytes(filled("plain"))
    (folder / "payload.txt").write_text(CANARY)
    (folder / "payload.jsonl").write_text(f'{{"key": "imported", "text": "User: {CANARY}"}}\n')
    plain = ["other-plain.atlas", "payload.txt", "payload.jsonl"]
    if not INPUTS[kind]:
        plain += ["memory.atlas", "memory.atlas.bak"]
    return path, {name: (folder / name).read_bytes() for name in plain}


def leaks(folder: Path, plain: dict[str, bytes], output: bytes = b"") -> list[str]:
    """Return the names of the files that hold the payload and did not hold it before."""
    found = [] if CANARY.encode() not in output else ["standard output"]
    known = {bytes(data) for data in plain.values()}
    for path in folder.rglob("*"):
        if not path.is_file() or path.read_bytes() in known:
            continue
        if CANARY.encode() in path.read_bytes() or opens_without_a_key(path):
            found.append(path.name)
    return found


def opens_without_a_key(path: Path) -> bool:
    """Tell whether somebody without a key could read the payload, however it is coded."""
    try:
        with open_given(path) as opened:
            if opened.kind == "gguf":
                return False
            return any(CANARY.encode() in entry.data for entry in opened.memory.entries())
    except AtlasError:
        return False


CALLS = [(name, number) for name, calls in WRITING.items() for number in range(len(calls))]


def combinations(name):
    new = NEW_GIVEN if "--new-key-file" in options_of(name) else ["nothing"]
    return itertools.product(INPUTS, GIVEN, new)


def arguments_of(name, number, folder, path, given, other):
    command, *rest = WRITING[name][number](folder, path)
    return [command, *GIVEN[given], *(NEW_GIVEN[other] if other != "nothing" else []), *rest]


def test_every_command_is_in_one_table():
    assert unlisted() == []


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_command_for_models_takes_no_keys(name):
    assert not options_of(name) & {"--passphrase-file", "--key-file", "--decrypt"}


@pytest.mark.parametrize("name", READ_ONLY)
def test_a_command_that_reads_has_no_file_that_it_changes(name):
    assert not options_of(name) & {"--backup", "--in-place", "--decrypt"}
    assert name == "get" or not options_of(name) & {"--output"}


@pytest.mark.parametrize(("name", "number"), CALLS)
def test_no_plain_text_where_there_is_a_secret(folder, run_cli, monkeypatch, name, number):
    for kind, given, other in combinations(name):
        with monkeypatch.context() as patch:
            see_to_one(folder, run_cli, patch, name, number, kind, given, other)


def see_to_one(folder, run_cli, monkeypatch, name, number, kind, given, other):
    path, plain = lay_out(folder, kind)
    if given == "environment":
        monkeypatch.setenv("ATLAS_PASSPHRASE", OLD)
    arguments = arguments_of(name, number, folder, path, given, other)
    ran = run_cli(*arguments)
    assert ran.exit_code in (0, 2), ran.stderr
    assert "Traceback" not in ran.stderr
    assert "internal error" not in ran.stderr
    asked = given != "nothing" or other != "nothing" or (bool(INPUTS[kind]) and path in arguments)
    if not asked:
        return
    assert leaks(folder, plain, ran.output) == [], (kind, arguments)
    written = [f for f in folder.iterdir() if f.name.startswith(("out", ".", "new.atlas"))]
    if ran.exit_code == 2:
        assert not written, (kind, arguments)
        assert path.read_bytes() == filled(kind)
    elif "-" not in arguments:
        for one in written or [path]:
            assert one.read_bytes()[:8] == b"ATLS\x03\0\0\0", (kind, arguments)


@pytest.mark.parametrize("kind", ["by-passphrase", "by-key"])
@pytest.mark.parametrize("name", [name for name in WRITING if WRITING[name]])
def test_an_encrypted_input_needs_its_key_and_nothing_else(folder, run_cli, name, kind):
    """What can be done with the right key is done: the rule refuses no more than it must."""
    path, _ = lay_out(folder, kind)
    given = "passphrase" if kind == "by-passphrase" else "key"
    other = "key" if "--new-key-file" in options_of(name) else "nothing"
    ran = run_cli(*arguments_of(name, 0, folder, path, given, other))
    if name == "encrypt":
        assert "encrypted already" in ran.stderr
    elif name == "diff":
        assert "use --decrypt" in ran.stderr
    elif name == "export":
        assert "use --decrypt" in ran.stderr
        assert CANARY in run_cli("export", path, *GIVEN[given]).stdout
    else:
        assert ran.exit_code == 0, ran.stderr


@pytest.mark.parametrize("name", ["convert", "merge", "compress", "repair", "recover", "export"])
def test_plain_text_is_written_when_it_is_said(folder, run_cli, name):
    path, _ = lay_out(folder, "by-passphrase")
    number = {"recover": 1}.get(name, 0)
    ran = run_cli(*arguments_of(name, number, folder, path, "passphrase", "nothing"), "--decrypt")
    assert ran.exit_code == 0, ran.stderr
    if name == "export":
        assert CANARY in (folder / "out.md").read_text()
        return
    assert opens_without_a_key(folder / "out.atlas") == (name != "recover")  # a backup is put back as it is


# --- in the middle of a write -----------------------------------------------------------------------------


def in_a_child(work) -> int:
    """Run something in a forked process, and return its exit code."""
    child = os.fork()
    if not child:
        code = 99
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


FAULTS = ["fsync", "replace"]
#: One way to call each command: what is written goes through the same few functions, whatever the options.
FIRST = [(name, 0) for name, calls in WRITING.items() if calls]


def prepared(folder, name, number, kind):
    """Return the plain files that there are, and a command that has a secret."""
    path, plain = lay_out(folder, kind)
    other = "passphrase" if "--new-key-file" in options_of(name) else "nothing"
    return plain, arguments_of(name, number, folder, path, "passphrase", other)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["plain", "by-passphrase"])
def test_no_plain_text_is_left_by_a_process_that_is_killed(folder, kind, fault):
    """In the middle of the write, at the points between which a file is replaced."""
    from atlas_kit.cli.main import run

    def killed(*_: object, **__: object) -> None:
        os._exit(9)

    for name, number in FIRST:
        plain, arguments = prepared(folder, name, number, kind)

        def work(arguments=arguments) -> None:
            setattr(os, fault, killed)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            run([str(argument) for argument in arguments])

        assert in_a_child(work) in (0, 9)
        assert leaks(folder, plain) == [], arguments


@pytest.mark.parametrize("fault", [*FAULTS, "unlink", "fchmod", "link"])
@pytest.mark.parametrize("kind", ["plain", "by-passphrase"])
def test_no_plain_text_is_left_by_a_write_that_fails(folder, monkeypatch, run_cli, kind, fault):
    """The disk refuses at one of these points."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for name, number in CALLS:
        plain, arguments = prepared(folder, name, number, kind)
        with monkeypatch.context() as patch:
            patch.setattr(os, fault, full)
            ran = run_cli(*arguments)
        assert ran.exit_code in (0, 2)
        assert "internal error" not in ran.stderr, (arguments, ran.stderr)
        assert leaks(folder, plain, ran.output) == [], arguments


# --- commands that run a model ------------------------------------------------------------------------------


@pytest.fixture
def model(fake, folder):
    """Return the name of a model whose place the fake one takes."""
    from gguf_builder import tiny_llama

    path = folder / "model.gguf"
    path.write_bytes(tiny_llama(tokenizer="none").bytes())
    return path


def calls_of(model, path):
    text = path.parent / "payload.txt"
    return {
        "learn": ["learn", model, text, "--memory-file", path],
        "run": ["run", model, "-p", "What?", "--max-tokens", "2", "--memory-file", path, "--no-chat"],
        "forget": ["forget", path, "--source", text.name],
    }


@pytest.mark.parametrize("kind", ["none", "plain", "by-passphrase", "by-key"])
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", ["learn", "run", "forget"])
def test_a_memory_that_is_learned(folder, model, run_cli, monkeypatch, name, given, kind):
    path = folder / "learned.atlas"
    (folder / "payload.txt").write_text("to be or not to be, that is the question\n" * 3)
    if kind != "none":
        secret = {"plain": [], "by-passphrase": GIVEN["passphrase"], "by-key": GIVEN["key"]}[kind]
        made = run_cli(*calls_of(model, path)["learn"], *secret)
        assert made.exit_code == 0, made.stderr
    before = path.read_bytes() if path.exists() else b""
    if given == "environment":
        monkeypatch.setenv("ATLAS_PASSPHRASE", OLD)
    ran = run_cli(*calls_of(model, path)[name], *GIVEN[given])
    fits = {"none": True, "plain": False, "by-passphrase": given in ("passphrase", "environment"),
            "by-key": given == "key"}[kind]  # fmt: skip
    if given == "nothing":
        assert (ran.exit_code == 0) == (kind == "plain" or (kind == "none" and name != "forget"))
    elif name == "forget" and kind == "none":
        assert ran.exit_code == 2
    else:
        assert ran.exit_code == (0 if fits else 2), ran.stderr
        assert path.read_bytes()[:8] == b"ATLS\x03\0\0\0" or path.read_bytes() == before
    if ran.exit_code == 2:
        assert before == (path.read_bytes() if path.exists() else b"")


def test_a_learned_memory_beside_a_native_model_is_as_secret_as_it_was(folder, model, run_cli):
    path = folder / "learned.atlas"
    (folder / "payload.txt").write_text("to be or not to be\n")
    assert run_cli(*calls_of(model, path)["learn"]).exit_code == 0
    call = ["convert", model, folder / "native.gguf", "--memory", path, "--force"]
    ran = run_cli(*call, *GIVEN["passphrase"])
    assert ran.exit_code == 2
    assert "the file is not encrypted: nothing was written" in ran.stderr
    assert not (folder / "native.atlas").exists()
    assert run_cli(*call[:3], "--to", "atlas-gguf", *NEW_GIVEN["key"]).exit_code == 2


@pytest.mark.parametrize(
    "call", [["set", "general.name", "x"], ["rm", "general.name"], ["compress", "-o", "o.gguf"],
             ["repair", "-o", "o.gguf"]],
)  # fmt: skip
def test_a_model_is_not_encrypted_and_says_so(folder, model, run_cli, monkeypatch, call):
    command, *rest = call
    before = model.read_bytes()
    ran = run_cli(command, model, *rest, *GIVEN["key"])
    assert ran.exit_code == 2
    assert "models cannot be encrypted: nothing was written" in ran.stderr
    assert model.read_bytes() == before
    assert not (folder / "o.gguf").exists()
    monkeypatch.setenv("ATLAS_PASSPHRASE", OLD)  # for memories, and not asked of a model
    if command in ("set", "rm"):
        assert run_cli(command, model, *rest).exit_code == 0


# --- asked on a terminal --------------------------------------------------------------------------------------

#: How commands that read are called with one memory file.
READING = {
    "inspect": ["inspect", "FILE", "--entries", "--stats"],
    "validate": ["validate", "FILE"],
    "diff": ["diff", "FILE", "FILE"],
    "ls": ["ls", "FILE"],
    "get": ["get", "FILE", "chat"],
    "hash": ["hash", "FILE"],
    "grep": ["grep", "something", "FILE"],
    "export": ["export", "FILE"],
}


@pytest.mark.parametrize(
    "name", [name for name in [*READ_ONLY, *WRITING] if "--passphrase-file" in options_of(name)]
)
def test_who_sits_at_a_terminal_is_asked(folder, run_cli, monkeypatch, name, model):
    """Once, for a file that needs a passphrase; all commands that can open such a file do so."""
    asked = []

    def ask(question, confirm):
        asked.append(question)
        return NEW.encode() if confirm else OLD.encode()

    path, _ = lay_out(folder, "plain" if name == "encrypt" else "by-passphrase")
    if name in ("learn", "run", "forget", "ask"):
        text = folder / "payload.txt"
        text.write_text("to be or not to be\n")
        path.unlink()
        assert run_cli("learn", model, text, "--memory-file", path, *GIVEN["passphrase"]).exit_code == 0
    monkeypatch.setattr("atlas_kit.cli._options.terminal_question", lambda: ask)
    monkeypatch.setattr("atlas_kit.cli.rekey_cmd.terminal_question", lambda: ask)
    calls = {
        **READING, **calls_of(model, path), "decrypt": ["decrypt", path],
        "ask": ["ask", model, "What?", "-m", path, "--max-tokens", "2", "--no-chat"],
    }  # fmt: skip
    call = calls[name] if name in calls else WRITING[name][0](folder, path)
    ran = run_cli(*[path if word == "FILE" else word for word in call])
    assert ran.exit_code == 0, ran.stderr
    new = {"encrypt": ["New passphrase"], "rekey": [f"Passphrase for {path}", "New passphrase"]}
    expected = new.get(name, [f"Passphrase for {path}"])
    if name == "recover":
        expected = [f"Passphrase for {path}.bak"]
    assert asked == expected


def test_the_answer_on_a_terminal_is_not_shown(folder):
    """With a terminal of its own; and nobody is asked where standard input is none."""
    import pty
    import subprocess
    import sys

    from tests.conftest import tool_environment

    path, _ = lay_out(folder, "by-passphrase")
    command = [sys.executable, "-m", "atlas_kit", "get", str(path), "chat"]
    master, terminal = pty.openpty()
    with subprocess.Popen(
        command, stdin=terminal, stdout=subprocess.PIPE, stderr=terminal, env=tool_environment()
    ) as process:
        os.close(terminal)
        shown = os.read(master, 1000)
        while b"Passphrase" not in shown:
            shown += os.read(master, 1000)
        os.write(master, f"{OLD}\n".encode())
        assert process.stdout is not None
        assert process.stdout.read() == CANARY.encode()
    with contextlib.suppress(OSError):  # the other end is closed
        shown += os.read(master, 1000)
    os.close(master)
    assert OLD.encode() not in shown
    ran = subprocess.run(
        command, input=f"{OLD}\n".encode(), capture_output=True, env=tool_environment(), check=False
    )
    assert ran.returncode == 2
    assert b"is encrypted" in ran.stderr


def test_the_file_of_a_secret_is_not_overwritten(tmp_path, run_cli):
    """With it the only way into the encrypted file would be gone, also where --force is given."""
    plain, secret, key, link = (tmp_path / name for name in ("plain.atlas", "pass.txt", "key", "link"))
    memory = MemoryFile()
    memory["k"] = "v"
    memory.save(plain)
    secret.write_bytes(b"words\n")
    key.write_bytes(bytes(range(32)))
    link.symlink_to(secret)
    before = {path: path.read_bytes() for path in (plain, secret, key)}
    for line in (
        ["encrypt", plain, "-o", secret, "--passphrase-file", secret],
        ["encrypt", plain, "-o", link, "--passphrase-file", secret],
        ["encrypt", plain, "-o", key, "--key-file", key],
        ["convert", plain, key, "--to", "atlas-v3", "--new-key-file", key],
        ["compress", plain, "-o", secret, "--passphrase-file", secret],
    ):
        refused = run_cli(*line, "--force")
        assert refused.exit_code == 2
        assert "the output is the file of the passphrase or key" in refused.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_what_is_said_of_a_plain_file_can_be_wanted(folder, run_cli):
    path, _ = lay_out(folder, "plain")
    said = run_cli("decrypt", path, "-o", folder / "out.atlas").stderr
    assert "the file is not encrypted. See what it holds with: atlas-tool inspect" in said
    assert "Encrypt it" not in said
    assert "Encrypt it with: atlas-tool encrypt" in run_cli("rekey", path, "--new-key-file", "new.key").stderr


# --- files with different secrets ---------------------------------------------------------------------------------


@pytest.fixture
def three(folder):
    """Return files that a passphrase, another one and a key open, and the options that open all of them."""
    for name, secret in (("a", {"passphrase": OLD}), ("b", {"passphrase": NEW}), ("c", {"key": OLD_KEY})):
        memory = MemoryFile(version=3, **secret)
        memory.set(name, CANARY)
        memory.save(folder / f"{name}.atlas")
    return ["--passphrase-file", "old.txt", "--passphrase-file", "new.txt", "--key-file", "old.key"]


def opened_by(path, **secret):
    with MemoryFile.open(path, **secret) as memory:
        return list(memory)


def test_files_with_different_secrets_are_merged(three, folder, run_cli):
    files = ["a.atlas", "b.atlas", "c.atlas"]
    assert run_cli("merge", *files, "-o", "out.atlas", *three).exit_code == 0
    assert opened_by("out.atlas", passphrase=OLD) == ["a", "b", "c"]
    new = ["--new-passphrase-file", "new.txt"]
    assert run_cli("merge", *files, "-o", "out.atlas", *three, *new, "--force").exit_code == 0
    assert opened_by("out.atlas", passphrase=NEW) == ["a", "b", "c"]
    refused = run_cli("merge", *files, "-o", "out2.atlas", *three, *new, "--decrypt")
    assert (refused.exit_code, (folder / "out2.atlas").exists()) == (2, False)


@pytest.mark.parametrize(
    "line",
    [["diff", "b.atlas", "c.atlas"], ["validate", "a.atlas", "b.atlas", "c.atlas"], ["hash", "a.atlas", "c.atlas"],
     ["grep", CANARY, "a.atlas", "b.atlas", "c.atlas"],
     ["validate", "a.atlas", "b.atlas", "c.atlas", "--workers", "2"]],
)  # fmt: skip
def test_files_with_different_secrets_are_read(three, run_cli, line):
    ran = run_cli(*line, *three)
    assert ran.exit_code == (1 if line[0] == "diff" else 0), ran.stderr
    assert run_cli(*line, *three[:2]).exit_code == (1 if line[0] == "validate" else 2)


def test_a_secret_that_is_missing_is_said(three, folder, run_cli):
    ran = run_cli("merge", "a.atlas", "b.atlas", "-o", "out.atlas", *three[:2])
    assert ran.exit_code == 2
    assert "b.atlas: the passphrase is not the one" in ran.stderr
    assert "once for each secret" in ran.stderr
    ran = run_cli("merge", "a.atlas", "b.atlas", "-o", "out.atlas", *three[:2], *three[4:])
    assert "b.atlas: none of the passphrases and keys is the one" in ran.stderr
    assert not (folder / "out.atlas").exists()


def test_a_terminal_asks_for_each_file(three, run_cli, monkeypatch):
    from atlas_kit.cli import _options

    asked = []

    def ask(question: str, confirm: bool) -> bytes:
        asked.append(question)
        return (NEW if "b.atlas" in question else OLD).encode()

    monkeypatch.setattr(_options, "terminal_question", lambda: ask)
    assert run_cli("merge", "a.atlas", "b.atlas", "-o", "out.atlas").exit_code == 0
    assert asked == ["Passphrase for a.atlas", "Passphrase for b.atlas"]
    assert opened_by("out.atlas", passphrase=OLD) == ["a", "b"]


def test_the_output_is_none_of_several_secrets(three, folder, run_cli):
    (folder / "c.txt.atlas").write_text(OLD)
    ran = run_cli(
        "merge",
        "a.atlas",
        "b.atlas",
        "-o",
        "c.txt.atlas",
        *three,
        "--passphrase-file",
        "c.txt.atlas",
        "--force",
    )
    assert ran.exit_code == 2
    assert (folder / "c.txt.atlas").read_text() == OLD
