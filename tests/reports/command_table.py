"""Which commands write, and which only read: every command of ``atlas-tool`` is in one of the two tables.

A command in neither fails the tests that use them, so that a new one cannot be forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from atlas_kit.cli._group import group

#: Commands that write no memory file, and why what they give out is meant to be read.
READ_ONLY = {
    "inspect": "shows what a file holds",
    "validate": "reports findings",
    "ls": "lists",
    "get": "gives out one value, wherever it is asked to put it",
    "ask": "answers, and makes indexes of memories that are not encrypted",
    "perplexity": "measures on memories that it makes and drops",
    "recall": "measures on memories that it makes and drops",
    "recommend": "looks at a model",
    "hash": "reports hashes",
    "completion": "prints a script",
    "grep": "prints what it finds",
}
#: Commands that write models, which are never encrypted, or the bytes of a file's parts as they are.
MODELS = {"split", "join"}
#: What writes memory files in a process of its own; tests/server/test_encryption.py is about its files.
SERVES = {"serve"}

Arguments = list[str]
#: The ways to call a command that writes: from a folder, the input and whether it is a memory that a model learned.
WRITING: dict[str, list[Callable[[Path, Path], Arguments]]] = {
    "convert": [
        lambda d, f: ["convert", f, d / "out.atlas"],
        lambda d, f: ["convert", f, d / "out.atlas", "--to", "atlas-v1"],
        lambda d, f: ["convert", f, d / "out.atlas", "--to", "atlas-v2"],
        lambda d, f: ["convert", f, d / "out.atlas", "--to", "atlas-v3"],
        lambda d, f: ["convert", f, d / "out.json"],
        lambda d, f: ["convert", f, d / "out.safetensors"],
        lambda d, f: ["convert", f, d / "out.npz"],
        lambda d, f: ["convert", f, "-", "--to", "json"],
        lambda d, f: ["convert", f, "-", "--to", "atlas-v2"],
        lambda d, f: ["convert", f, d / "out.atlas", "--to", "atlas-v2", "--codec", "none"],
    ],
    "repair": [
        lambda d, f: ["repair", f, "-o", d / "out.atlas"],
        lambda d, f: ["repair", f, "-o", d / "out.atlas", "--to", "atlas-v2"],
        lambda d, f: ["repair", f, "-o", "-"],
    ],
    "compress": [
        lambda d, f: ["compress", f, "-o", d / "out.atlas"],
        lambda d, f: ["compress", f, "-o", d / "out.atlas", "--codec", "none"],
        lambda d, f: ["compress", f, "-o", "-", "--codec", "none"],
    ],
    "merge": [
        lambda d, f: ["merge", f, f, "-o", d / "out.atlas"],
        lambda d, f: ["merge", f, d / "other-plain.atlas", "-o", d / "out.atlas"],
        lambda d, f: ["merge", d / "other-plain.atlas", f, "-o", d / "out.atlas", "--to", "atlas-v2"],
        lambda d, f: ["merge", f, f, "-o", d / "out.atlas", "--to", "atlas-v1"],
    ],
    "set": [
        lambda d, f: ["set", f, "more", "some text"],
        lambda d, f: ["set", f, "more", "some text", "--backup"],
        lambda d, f: ["set", d / "new.atlas", "more", "--from", d / "payload.txt"],
        lambda d, f: ["set", d / "new.atlas", "more", "--from", d / "payload.txt", "--to", "atlas-v1"],
        lambda d, f: ["set", d / "new.atlas", "more", "--from", d / "payload.txt", "--to", "atlas-v3"],
    ],
    "rename": [
        lambda d, f: ["rename", f, "other", "renamed"],
        lambda d, f: ["rename", f, "o*", "p*", "--glob", "--backup"],
        lambda d, f: ["rename", f, "other", "renamed", "-o", d / "out.atlas"],
        lambda d, f: ["rename", f, "other", "renamed", "-o", "-"],
    ],
    "diff": [
        lambda d, f: ["diff", f, d / "other-plain.atlas", "--html", d / "out.html"],
    ],
    "rm": [
        lambda d, f: ["rm", f, "other"],
        lambda d, f: ["rm", f, "other", "--backup"],
        lambda d, f: ["rm", f, "other", "-o", d / "out.atlas"],
    ],
    "recover": [
        lambda d, f: ["recover", f, "--restore", "latest"],
        lambda d, f: ["recover", f, "--restore", "latest", "-o", d / "out.atlas"],
    ],
    "append": [
        lambda d, f: ["append", f, "chat", "some more"],
        lambda d, f: ["append", f, "chat", "some more", "--role", "user", "--backup"],
        lambda d, f: ["append", d / "new.atlas", "more", "--from", d / "payload.txt"],
    ],
    "import": [
        lambda d, f: ["import", f, d / "payload.jsonl"],
        lambda d, f: ["import", f, d / "payload.jsonl", "--key", "chat", "--append", "--backup"],
        lambda d, f: ["import", d / "new.atlas", d / "payload.jsonl"],
    ],
    "export": [
        lambda d, f: ["export", f, "-o", d / "out.md"],
        lambda d, f: ["export", f, "-o", d / "out.jsonl"],
        lambda d, f: ["export", f, "-o", d / "out.sqlite"],
        lambda d, f: ["export", f, "-o", d / "out", "--each"],
    ],
    "encrypt": [
        lambda d, f: ["encrypt", f],
        lambda d, f: ["encrypt", f, "-o", d / "out.atlas"],
    ],
    "rekey": [
        lambda d, f: ["rekey", f],
        lambda d, f: ["rekey", f, "-o", d / "out.atlas"],
    ],
    # Only these say by their name that plain text is meant.
    "decrypt": [],
    # These need a model, and are swept with one.
    "run": [],
    "learn": [],
    "forget": [],
}


def unlisted() -> list[str]:
    """Return the commands that are in no table, or in more than one."""
    tables = [READ_ONLY, SERVES, MODELS, WRITING]
    return [name for name in group.list_commands(None) if sum(name in table for table in tables) != 1]


def options_of(name: str) -> set[str]:
    """Return the names of a command's options."""
    command = group.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    return {option for parameter in command.params for option in parameter.opts}
