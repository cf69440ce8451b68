"""``atlas-tool export``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _completion, _render
from atlas_kit.cli._options import (
    FILE,
    command_,
    decrypt_option,
    force_words_option,
    given,
    json_option,
    keys_options,
    output_option,
    place_of,
    quiet_option,
    words_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.export import Exported


@command_(
    "export",
    """\
Export the conversations of a memory file.

They are written as Markdown to read, as JSON lines (one conversation to a line, which `import` takes back), or as an
SQLite database with the tables conversations and messages. The suffix of OUTPUT, or --to, says which; without -o,
Markdown goes to standard output. --each writes a file for each conversation into the folder OUTPUT.

Entries of type conversation are exported, or those that a KEY names (*, ?, [abc]) if they are text. A conversation is
text with `User:` and `Assistant:` at the start of lines, or JSON with role and content. With --model, what was said
to and by that model is a conversation, too, called `episodes`. Writing an encrypted memory's conversations to files
needs --decrypt.

The exit code is 1 when there is nothing to export.

Examples:
  atlas-tool export llama-7b_memory.atlas
  atlas-tool export sample_data/atlas/chat.atlas -o chats.jsonl
  atlas-tool export sample_data/atlas/chat.atlas 'chat/*garden' -o gardens/ --each
  atlas-tool export sample_data/atlas/chat.atlas -o chats.sqlite
  atlas-tool export talk.atlas --model sample_data/models/tiny-python.gguf
""",
)
@click.argument("file", type=FILE)
@click.argument("patterns", nargs=-1, metavar="[KEY]...", shell_complete=_completion.keys)
@output_option("Where they go: .md, .jsonl or .sqlite, or with --each a folder.")
@click.option(
    "--to",
    type=click.Choice(["markdown", "jsonl", "sqlite"]),
    help="Format of OUTPUT, where its suffix does not say it.",
)
@click.option("--each", is_flag=True, help="Write a file for each conversation into the folder OUTPUT.")
@words_option
@force_words_option
@decrypt_option
@quiet_option
@json_option
@keys_options
def command(
    file: str, patterns: tuple[str, ...], output: str | None, to: str | None, each: bool, model: str | None,
    force: bool, decrypt: bool, as_json: bool, keys: Any,
) -> int:  # fmt: skip
    """Run the command."""
    from atlas_kit.operations.export import export_chats

    if each and output is None:
        raise click.UsageError("--each needs -o FOLDER")
    if as_json and output is None:
        raise click.UsageError(
            "--json says what was written to -o OUTPUT; conversations as JSON are --to jsonl"
        )
    source, words = given(file), None
    if model is not None:
        from atlas_kit.operations.token_words import words_of

        words = words_of(model, source, force=force, keys=keys)
    target = place_of("-" if output is None else output)
    result = export_chats(
        source, target, patterns, to=to, each=each, force=force, decrypt=decrypt, words=words, keys=keys
    )
    if not isinstance(target, str):  # the conversations themselves are on standard output
        for line in _left_out(result):
            _render.note(line)
    return _render.emit_beside(result, _text, as_json, target)


def _left_out(result: Exported) -> Iterator[str]:
    for key in result.skipped:
        yield f"left out {key}: it is not text"
    if not result.keys:
        yield "there is no conversation"


def _text(result: Exported) -> Iterator[_render.Block]:
    for line in _left_out(result):
        yield _render.Lines([_render.Styled(line, "warn")])
    if result.keys:
        count = _render.plural(len(result.keys), "conversation")
        files = f", {_render.plural(len(result.files), 'file')}" if len(result.files) > 1 else ""
        yield f"{count}, {_render.plural(result.messages, 'message')}"
        yield f"-> {result.output} ({result.format}{files})"
