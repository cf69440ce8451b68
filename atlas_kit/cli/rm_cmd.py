"""``atlas-tool rm``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._options import IN_PLACE, backup_option, command_, json_option, keys_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.rm import Removed


@command_(
    "rm",
    """\
Remove entries of a memory file, or metadata keys of a GGUF model.

All KEYs are removed in one step or, when one of them is not there, none. --glob takes the KEYs as patterns;
--dry-run shows what would go.

Examples:
  atlas-tool rm notes.atlas greeting
  atlas-tool rm notes.atlas --glob 'draft-*' --dry-run
  atlas-tool rm model.gguf tokenizer.chat_template --backup
""",
)
@click.argument("file", type=IN_PLACE)
@click.argument("wanted", nargs=-1, required=True, metavar="KEY...")
@click.option("--glob", is_flag=True, help="KEYs are patterns (*, ?, [abc]).")
@click.option("--ignore-missing", is_flag=True, help="Ignore keys that are not there.")
@click.option("-n", "--dry-run", is_flag=True, help="Change nothing.")
@backup_option
@json_option
@keys_options
def command(file: str, wanted: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Run the command."""
    from atlas_kit.operations.rm import remove_keys

    return _render.emit(remove_keys(file, wanted, **options), _text, as_json)


def _text(result: Removed) -> Iterator[_render.Block]:
    verb = "would remove" if result.dry_run else "removed"
    yield _render.Lines(f"{verb} {key}" for key in result.keys)
    if not result.keys:
        yield "nothing to remove"
