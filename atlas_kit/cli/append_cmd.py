"""``atlas-tool append``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _completion, _render
from atlas_kit.cli._options import (
    FILE,
    IN_PLACE,
    TakesNumbers,
    backup_option,
    command_,
    json_option,
    keys_options,
    new_option,
    quiet_option,
    read_value,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.append import Appended


@command_(
    "append",
    """\
Add a line, or a message, to an entry of a memory file.

VALUE is added to the text of the entry, on a line of its own; --exact adds just the bytes. With --role it becomes a
message of the conversation in the entry, in the form that this has: `User: ...` or JSON. An entry that does not
exist is created, and so is a file whose name ends in .atlas. `-` reads VALUE from standard input, --from from a file.

Examples:
  atlas-tool append notes.atlas greeting "and a second line"
  atlas-tool append llama-7b_memory.atlas chat_history "Thank you." --role user
  date | atlas-tool append notes.atlas log -
""",
    cls=TakesNumbers,
)
@click.argument("file", type=IN_PLACE)
@click.argument("key", shell_complete=_completion.keys)
@click.argument("value", required=False)
@click.option("--from", "source", type=FILE, metavar="SOURCE", help="Read the value from a file.")
@click.option("--role", metavar="ROLE", help="Add a message: user, assistant, system ...")
@click.option("--exact", is_flag=True, help="Add just the bytes, without a line break before them.")
@new_option
@backup_option
@quiet_option
@json_option
@keys_options
def command(
    file: str, key: str, value: str | None, source: str | None, role: str | None, exact: bool, new: bool,
    backup: int, as_json: bool, keys: Any,
) -> int:  # fmt: skip
    """Run the command."""
    from atlas_kit.operations.append import AppendOptions, append_value

    if role is not None and exact:
        raise click.UsageError("give --role or --exact, not both")
    how = AppendOptions(role, exact, new, backup)
    result = append_value(file, key, read_value(value, source), how, keys)
    return _render.emit(result, _text, as_json)


def _text(result: Appended) -> Iterator[_render.Block]:
    if result.created_file:
        yield f"created {result.path}"
    what = "" if result.messages is None else f", {_render.plural(result.messages, 'message')}"
    yield f"{'added' if result.created else 'added to'} {result.key} ({_render.size(result.size)}{what})"
