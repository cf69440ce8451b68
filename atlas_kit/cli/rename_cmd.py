"""``atlas-tool rename``."""

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

    from atlas_kit.operations.rename import Renamed


@command_(
    "rename",
    """\
Rename entries of a memory file, or metadata keys and tensors of a model.

OLD is a name; with --glob, a pattern; with --regex, a regular expression that is searched for in each name and
replaced by NEW. With --glob, each `*` of NEW stands for what the same `*` of OLD matched; with --regex, \\1 is the
first group. All are renamed in one step or, if a new name is taken or not allowed, none. FILE is changed in place,
and of a model only the header where the new names fit; -o writes a new file instead. Renamed entries of a memory
file move to its end.

Examples:
  atlas-tool rename notes.atlas greeting welcome
  atlas-tool rename model.gguf output.weight lm_head.weight -o renamed.gguf
  atlas-tool rename model.gguf 'blk.*' 'model.layers.*' --glob --dry-run
  atlas-tool rename model.gguf '^blk\\.(\\d+)' 'layer.\\1' --regex --backup
""",
)
@click.argument("file", type=FILE)
@click.argument("old", shell_complete=_completion.keys)
@click.argument("new")
@click.option("--glob", "how", flag_value="glob", help="OLD is a pattern (*, ?, [abc]).")
@click.option("--regex", "how", flag_value="regex", help="OLD is a regular expression.")
@output_option("Write the result to OUTPUT, and leave FILE as it is.")
@force_option
@dry_run_option
@backup_option
@quiet_option
@json_option
@keys_options
def command(
    file: str,
    old: str,
    new: str,
    how: str | None,
    output: str | None,
    as_json: bool,
    keys: Any,
    **options: Any,
) -> int:
    """Run the command."""
    from atlas_kit.operations.rename import RenameOptions, rename_names

    target = place_of(output)
    source = changed(file, output, options["dry_run"])
    how_and_where = RenameOptions(how=how or "exact", output=target, **options)
    with _render.progress() as progress:
        result = rename_names(source, old, new, how_and_where, keys, progress)
    return _render.emit_beside(result, _text, as_json, None if options["dry_run"] else target)


def _text(result: Renamed) -> Iterator[_render.Block]:
    verb = "would rename" if result.dry_run else "renamed"
    yield _render.Lines(
        f"{verb} {'' if part == 'entry' else f'{part} '}{old} -> {new}" for part, old, new in result.names
    )
    if not result.names:
        yield "nothing to rename"
    if result.output is not None and not result.dry_run:
        yield f"-> {result.output}"
