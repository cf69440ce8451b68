"""``atlas-tool recover``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._options import (
    IN_PLACE,
    command_,
    decrypt_option,
    force_option,
    json_option,
    keys_options,
    output_option,
    quiet_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.recover import Restored
    from atlas_kit.persistence.backups import Backups


@command_(
    "recover",
    """\
List the backups of a file, and restore one.

Commands with --backup keep the previous file as NAME.atlas.bak and older ones as NAME_<timestamp>.atlas.bak, with
--backups N no more than N; those of a GGUF model end in .gguf.bak. The newest comes first. Each is checked.
--restore puts one back: `latest` (the newest that is intact), its number in the list, its name, or a date (UTC), which
means the newest from then or before. The file that was there is kept as NAME_<timestamp>.atlas.bak, so nothing is
lost. FILE itself need not exist any more.

A backup that is not encrypted takes the place of an encrypted file only with --decrypt.

When an edit of a GGUF model in place was interrupted, the list says so, and --restore `journal` undoes it.

The exit code is 1 when there is nothing to put back.

Examples:
  atlas-tool recover llama-7b_memory.atlas
  atlas-tool recover llama-7b_memory.atlas --restore latest
  atlas-tool recover llama-7b_memory.atlas --restore 2 -o old.atlas
""",
)
@click.argument("file", type=IN_PLACE)
@click.option(
    "--restore",
    metavar="WHICH",
    help="Restore this backup: latest, a number, a name, a date, or journal.",
)
@output_option("Restore to OUTPUT instead of FILE.")
@force_option
@decrypt_option
@quiet_option
@json_option
@keys_options
def command(
    file: str, restore: str | None, output: str | None, force: bool, decrypt: bool, as_json: bool, keys: Any
) -> int:
    """Run the command."""
    from atlas_kit.operations.recover import restore_backup
    from atlas_kit.persistence.backups import list_backups

    if restore is None:
        if output is not None:
            raise click.UsageError("--output needs --restore")
        return _render.emit(list_backups(file, keys), _list, as_json)
    result = restore_backup(file, restore, output, force=force, keys=keys, decrypt=decrypt)
    return _render.emit(result, _restored, as_json)


def _list(result: Backups) -> Iterator[_render.Block]:
    if result.interrupted:
        yield f"an edit of {result.path} was interrupted: undo it with --restore journal"
    if not result.backups:
        if not result.interrupted:
            yield f"no backup of {result.path}"
        return
    rows = []
    for number, backup in enumerate(result.backups, 1):
        if backup.ok:
            state = _render.Styled("ok", "good")
        elif backup.locked:
            state = _render.Styled(f"not checked: {backup.problem}", "warn")
        else:
            state = _render.Styled(f"damaged: {backup.problem}", "bad")
        entries = "" if backup.entries is None else backup.entries
        rows.append((number, _render.moment(backup.time), backup.size, entries, state, backup.path))
    yield _render.Table([">", "time", ">size", ">entries", "state", "path"], rows)


def _restored(result: Restored) -> Iterator[_render.Block]:
    yield f"restored {result.path} from {result.backup}"
    if result.kept:
        yield f"the file that was there is now {result.kept}"
