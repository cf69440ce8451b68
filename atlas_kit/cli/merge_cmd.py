"""``atlas-tool merge``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._options import (
    FILE,
    command_,
    decrypt_option,
    force_option,
    given,
    json_option,
    new_keys_options,
    one_stdin,
    output_option,
    place_of,
    quiet_option,
    several_keys_options,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.merge import Merged


@command_(
    "merge",
    """\
Merge several memory files into one.

Entries keep their order and times. Where files have different entries under one key, --prefer says which
one is taken: that of the first file, of the last, or the one with the newest timestamp; each such key is
reported. --prefer both makes one history of two: their common beginning once, then the rest of each, the older one
first; of entries that are not text, the second is kept as `KEY (2)`.

OUTPUT has the highest version of the inputs unless --to says otherwise, and is encrypted if any input is, or
if a passphrase or key is given. Inputs with different secrets need each of them: give --passphrase-file or
--key-file once for each. OUTPUT is encrypted with the first, or with --new-passphrase-file or --new-key-file.

Examples:
  atlas-tool merge monday.atlas tuesday.atlas -o week.atlas
  atlas-tool merge monday.atlas tuesday.atlas -o both.atlas --prefer both
  atlas-tool merge *.atlas -o all.atlas --prefer newest
""",
)
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="A B...")
@output_option("Where the merged file goes; - is standard output.", required=True)
@click.option(
    "--prefer", type=click.Choice(["first", "last", "newest", "both"]), default="last", show_default=True,
    help="Which file's entry to take.",
)  # fmt: skip
@click.option("--to", type=click.Choice(["atlas-v1", "atlas-v2", "atlas-v3"]), help="Version of OUTPUT.")
@force_option
@decrypt_option
@quiet_option
@json_option
@several_keys_options
@new_keys_options
def command(
    files: tuple[str, ...], output: str, prefer: str, to: str | None, force: bool, decrypt: bool,
    as_json: bool, keys: Any, new_keys: Any,
) -> int:  # fmt: skip
    """Run the command."""
    from atlas_kit.operations.merge import merge_files

    if len(files) < 2:
        raise click.UsageError("give at least two files to merge")
    one_stdin(*files)
    target = place_of(output)
    version = int(to[-1]) if to else None
    result = merge_files(
        [given(file) for file in files], target, prefer=prefer, version=version, force=force, keys=keys,
        decrypt=decrypt, new_keys=new_keys,
    )  # fmt: skip
    return _render.emit_beside(result, _text, as_json, target)


def _text(result: Merged) -> Iterator[_render.Block]:
    for path, count in result.taken:
        yield f"{path}: {_render.plural(count, 'entry', 'entries')} taken"
    for conflict in result.conflicts:
        how = "joined" if conflict.joined else f"taken from {conflict.taken}"
        others = f"; kept as well: {', '.join(conflict.others)}" if conflict.others else ""
        yield _render.Lines([_render.Styled(f"conflict: {conflict.key}, {how}{others}", "warn")])
    for note in result.notes:
        yield _render.Lines([_render.Styled(f"note: {note}", "warn")])
    entries = _render.plural(result.entries, "entry", "entries")
    yield f"-> {result.output} ({entries}, {_render.size(result.size)})"
