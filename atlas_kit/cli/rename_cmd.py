"""``atlas-tool rename``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._options import (
    IN_PLACE,
    backup_option,
    command_,
    json_option,
    keys_options,
    quiet_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.rename import Renamed


@command_(
    "rename",
    """\
Give an entry, or a metadata key of a model, another key.

Everything else of the entry stays: payload, type, flags, time and how it is stored. A new key that is taken is refused,
unless --force is given. The file is replaced whole or not at all, or the change is appended.

Examples:
  atlas-tool rename notes.atlas greeting salutation
  atlas-tool rename model.gguf general.name general.basename --backup
""",
)
@click.argument("file", type=IN_PLACE)
@click.argument("key")
@click.argument("new_key")
@click.option("-f", "--force", is_flag=True, help="Replace an entry that has the new key.")
@backup_option
@quiet_option
@json_option
@keys_options
def command(
    file: str, key: str, new_key: str, force: bool, backup: int, quiet: bool, as_json: bool, keys: Any
) -> int:
    """Run the command."""
    from atlas_kit.operations.rename import rename_key

    result = rename_key(file, key, new_key, force=force, backup=backup, keys=keys)
    return _render.emit(result, lambda one: () if quiet else _text(one), as_json)


def _text(result: Renamed) -> Iterator[_render.Block]:
    instead = ", in place of another entry" if result.replaced else ""
    yield f"renamed {result.key} to {result.new_key}{instead}"
