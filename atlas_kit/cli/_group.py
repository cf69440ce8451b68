"""The command group: a table of names, so that help and completion import no command's module."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import click

from atlas_kit import __version__
from atlas_kit.cli._options import CONTEXT, HelpfulCommand


class Row(NamedTuple):
    """One command: the module that holds its ``command``, and its line in the overview."""

    module: str
    summary: str


#: The commands as `atlas-tool --help` lists them: under a heading, in the order of everyday use.
SECTIONS = {
    "Look into files": {
        "inspect": Row("inspect_cmd", "Show what a file is and what it holds."),
        "validate": Row("validate_cmd", "Check files and explain everything that is wrong."),
        "diff": Row("diff_cmd", "Compare two files by what they mean."),
        "hash": Row("hash_cmd", "Print hashes of a file, its content and each part."),
        "ls": Row("ls_cmd", "List entries, or metadata and tensors."),
        "get": Row("get_cmd", "Print or save values."),
        "grep": Row("grep_cmd", "Search entries and metadata."),
    },
    "Change files": {
        "set": Row("set_cmd", "Store one value."),
        "append": Row("append_cmd", "Add a line or a message to an entry."),
        "rm": Row("rm_cmd", "Remove entries, metadata keys or tensors."),
        "rename": Row("rename_cmd", "Rename entries, metadata keys or tensors."),
        "import": Row("import_cmd", "Import conversations from JSON into a memory file."),
        "encrypt": Row("encrypt_cmd", "Encrypt a memory file."),
        "decrypt": Row("decrypt_cmd", "Write an encrypted memory file as plain text."),
        "rekey": Row("rekey_cmd", "Change the passphrase or key of an encrypted file."),
    },
    "Make new files": {
        "convert": Row("convert_cmd", "Convert between .atlas, JSON, safetensors, npz and GGUF."),
        "export": Row("export_cmd", "Export conversations as Markdown, JSON lines or SQLite."),
        "compress": Row("compress_cmd", "Make a file smaller."),
        "merge": Row("merge_cmd", "Merge several memory files into one."),
        "split": Row("split_cmd", "Split a model into shards."),
        "join": Row("join_cmd", "Join the shards or parts of a model into one file."),
    },
    "Rescue files": {
        "repair": Row("repair_cmd", "Rescue what is intact in a damaged file."),
        "recover": Row("recover_cmd", "List backups and restore one."),
    },
    "Run models with a memory": {
        "run": Row("run_cmd", "Generate text, with a memory that learns while it reads."),
        "serve": Row("serve_cmd", "Serve a model over HTTP, with a memory that outlives a restart."),
        "learn": Row("learn_cmd", "Read documents into a memory."),
        "ask": Row("ask_cmd", "Ask about what was read or said; answers name their sources."),
        "forget": Row("forget_cmd", "Forget part of what a memory has read and heard."),
        "perplexity": Row(
            "perplexity_cmd", "Measure what a memory is worth: perplexity with and without it."
        ),
        "recall": Row("recall_cmd", "Measure what a memory recalls, over distance."),
        "recommend": Row("recommend_cmd", "Recommend the memory that suits a model."),
    },
    "Set up the shell": {
        "completion": Row("completion_cmd", "Print the shell completion script."),
    },
}
COMMANDS = {name: row for section in SECTIONS.values() for name, row in section.items()}

#: Names under which a command is called as well; help and completion leave them out.
ALIASES = {"info": "inspect"}


#: What other programs call it, and people try.
_ALSO = {
    "add": "set append", "cat": "get", "change-password": "rekey", "check": "validate", "chat": "run",
    "checksum": "hash", "compare": "diff", "cp": "convert", "decode": "decrypt", "del": "rm", "delete": "rm",
    "dump": "inspect export", "edit": "set", "extract": "get export", "find": "grep", "fix": "repair",
    "gguf-split": "split join", "head": "inspect", "list": "ls", "load": "import",
    "lock": "encrypt", "mv": "rename", "open": "inspect", "passwd": "rekey", "print": "get", "put": "set import",
    "query": "ask grep", "quantise": "compress", "quantize": "compress", "read": "get", "recrypt": "rekey",
    "remove": "rm", "rescue": "repair", "restore": "recover", "search": "grep", "server": "serve",
    "sha256sum": "hash", "show": "inspect", "train": "learn", "undo": "recover", "unlock": "decrypt",
    "verify": "validate hash", "view": "inspect", "write": "set",
}  # fmt: skip


def _meant_by(name: str) -> list[str]:
    """Return the commands that a word may mean which is none."""
    import difflib

    word = name.lower()
    if word in _ALSO:
        return _ALSO[word].split()
    begun = [one for one in COMMANDS if len(word) > 1 and one.startswith(word)]
    begun += [one for one in COMMANDS if len(one) > 2 and word.startswith(f"{one}-")]
    close = begun or difflib.get_close_matches(word, [*COMMANDS, *_ALSO], 3, 0.7)
    meant = (one for found in close for one in (_ALSO[found].split() if found in _ALSO else [found]))
    return list(dict.fromkeys(meant))[:3]


class LazyGroup(HelpfulCommand, click.Group):
    """A group that imports a command when it is called and knows its summary without that."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        row = COMMANDS.get(ALIASES.get(cmd_name, cmd_name))
        if row is None:
            return None
        command = importlib.import_module(f"atlas_kit.cli.{row.module}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which ones could be meant."""
        name = args[0]
        if (
            name not in COMMANDS
            and name not in ALIASES
            and not name.startswith("-")
            and not ctx.resilient_parsing
        ):
            close = _meant_by(name)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise click.UsageError(f"No such command '{name}'.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, the summaries of all sections in one column."""
        width = max(map(len, COMMANDS))
        for heading, section in SECTIONS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), row.summary) for name, row in section.items()])


HELP = """\
See, check, rescue, convert, shrink and compare the memory of a language model.

Works on .atlas memory files (versions 1, 2 and 3) and on GGUF model files; safetensors, npz and JSON
come in and go out through `convert`. Most commands only read, or write a new file; set, append, rm, rename,
import, encrypt, decrypt, rekey, forget and recover change a file in place, whole or not at all. `-` stands
for standard input or output.

A passphrase or key, from an option or ATLAS_PASSPHRASE, opens what is encrypted and encrypts what is written: a
command that has one writes no plain text unless --decrypt or `decrypt` says so.

--json prints strict JSON: NaN and infinities are strings, and a key or path that is not UTF-8 is shown with
\\xNN escapes, its exact bytes in hexadecimal beside it (`key_hex`, `path_hex`).

Examples:
  atlas-tool inspect llama-7b_memory.atlas
  atlas-tool validate models/ --json
  atlas-tool diff before.atlas after.atlas

Exit codes:
    0  fine
    1  findings or differences, or nothing found
    2  misuse, or a file that cannot be read
  130  interrupted

Environment:
  ATLAS_PASSPHRASE   passphrase of encrypted files
  ATLAS_KIT_DEBUG    set to 1 to see where an error came from
  NO_COLOR           set to turn colours off
"""


@click.command(cls=LazyGroup, help=HELP, context_settings=CONTEXT)
@click.version_option(__version__, "-V", "--version", prog_name="atlas-tool", message="%(prog)s %(version)s")
def group() -> None:
    """Do nothing but hold the commands."""
