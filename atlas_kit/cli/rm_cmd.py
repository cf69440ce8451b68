"""``atlas-tool rm``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _completion, _render
from atlas_kit.cli._options import (
    FILE,
    backup_option,
    changed,
    command_,
    dry_run_option,
    force_option,
    json_option,
    keys_options,
    output_option,
    place_of,
    quiet_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.rm import Removed


@command_(
    "rm",
    """\
Remove entries of a memory file, or metadata keys and tensors of a model.

All KEYs are removed in one step or, if one of them does not exist, none. FILE is changed in place; -o writes a new
file instead. A model that loses a tensor is rewritten, whole or not at all.

Examples:
  atlas-tool rm notes.atlas greeting
  atlas-tool rm notes.atlas --glob 'draft-*' --dry-run
  atlas-tool rm model.gguf tokenizer.chat_template --backup
  atlas-tool rm model.gguf output.weight -o tied.gguf
""",
)
@click.argument("file", type=FILE)
@click.argument("wanted", nargs=-1, required=True, metavar="KEY...", shell_complete=_completion.keys)
@click.option("--glob", is_flag=True, help="KEYs are patterns (*, ?, [abc]).")
@click.option("--ignore-missing", is_flag=True, help="Ignore keys that do not exist.")
@output_option("Write the result to OUTPUT, and leave FILE as it is.")
@force_option
@dry_run_option
@backup_option
@quiet_option
@json_option
@keys_options
def command(file: str, wanted: tuple[str, ...], output: str | None, as_json: bool, **options: Any) -> int:
    """Run the command."""
    from atlas_kit.operations.rm import remove_keys

    target = place_of(output)
    result = remove_keys(changed(file, output, options["dry_run"]), wanted, output=target, **options)
    return _render.emit_beside(result, _text, as_json, None if options["dry_run"] else target)


def _text(result: Removed) -> Iterator[_render.Block]:
    verb = "would remove" if result.dry_run else "removed"
    yield _render.Lines(f"{verb} {key}" for key in result.keys)
    if not result.keys:
        yield "nothing to remove"
    if result.output is not None and not result.dry_run:
        yield f"-> {result.output}"
