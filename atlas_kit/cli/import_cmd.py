"""``atlas-tool import``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _completion, _render
from atlas_kit.cli._options import (
    FILE,
    IN_PLACE,
    backup_option,
    command_,
    dry_run_option,
    given,
    json_option,
    keys_options,
    new_option,
    one_stdin,
    quiet_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.import_chats import Imported


@command_(
    "import",
    """\
Import conversations from JSON into a memory file.

A SOURCE is JSON or JSON lines as people write them: a list of messages, each with role and content; objects with `key`
and `messages` (or `text`, or `json`); an object from keys to any of these; what `export --to jsonl` writes; and what
Claude and ChatGPT export. `time` (2026-11-30T14:00:00Z) or `timestamp`, `type` and `flags` may stand beside them. What
has no key is named after its file, with a number where there are several. Conversations are stored as text
(`User: ...`) where that says the same, or with --form json as JSON.

Everything is imported, or nothing; errors name the line. A key that exists already is refused, unless --replace or
--append is given; --append keeps a common beginning only once.

Examples:
  atlas-tool import notes.atlas talk.jsonl
  atlas-tool import notes.atlas messages.json --key chat/monday --backup
  atlas-tool export llama-7b_memory.atlas --to jsonl | atlas-tool import copy.atlas -
""",
)
@click.argument("file", type=IN_PLACE)
@click.argument("sources", nargs=-1, required=True, type=FILE, metavar="SOURCE...")
@click.option(
    "--key",
    metavar="KEY",
    help="The key of the one entry that SOURCE holds.",
    shell_complete=_completion.keys,
)
@click.option("--form", type=click.Choice(["text", "json"]), default="text", show_default=True,
              help="How conversations are stored.")  # fmt: skip
@click.option("--replace", is_flag=True, help="Replace entries of the same key.")
@click.option("--append", is_flag=True, help="Continue conversations of the same key.")
@dry_run_option
@new_option
@backup_option
@quiet_option
@json_option
@keys_options
def command(
    file: str, sources: tuple[str, ...], replace: bool, append: bool, as_json: bool, keys: Any,
    **options: Any,
) -> int:  # fmt: skip
    """Run the command."""
    from atlas_kit.operations.import_chats import ImportOptions, import_chats

    if replace and append:
        raise click.UsageError("give --replace or --append, not both")
    one_stdin(*sources)
    conflict = "replace" if replace else "append" if append else "refuse"
    how = ImportOptions(on_conflict=conflict, **options)
    result = import_chats(file, [given(source) for source in sources], how, keys)
    return _render.emit(result, _text, as_json)


def _text(result: Imported) -> Iterator[_render.Block]:
    if result.created_file:
        yield f"{'would create' if result.dry_run else 'created'} {result.path}"
    for done, would, keys in (
        ("added", "would add", result.added),
        ("replaced", "would replace", result.replaced),
        ("continued", "would continue", result.appended),
    ):
        if keys:
            yield _render.Lines(f"{would if result.dry_run else done} {key}" for key in keys)
    count = len(result.added) + len(result.replaced) + len(result.appended)
    yield f"{_render.plural(count, 'entry', 'entries')}, {_render.plural(result.messages, 'message')}"
