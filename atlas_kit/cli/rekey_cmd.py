"""``atlas-tool rekey``."""

from __future__ import annotations

from typing import Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._options import (
    FILE,
    changed,
    command_,
    force_option,
    json_option,
    keys_options,
    new_keys_options,
    output_option,
    place_of,
    quiet_option,
    remove_backups_option,
    terminal_question,
)
from atlas_kit.cli._secured import text


@command_(
    "rekey",
    """\
Change the passphrase or key of an encrypted memory file.

--passphrase-file, --key-file or ATLAS_PASSPHRASE open the file; --new-passphrase-file or --new-key-file encrypt it
anew. You are asked for what is missing on a terminal. The file is replaced whole or not at all, and no plain text
is written on the way.

Earlier backups open with the old passphrase or key; they are listed, and --remove-backups removes them.

Examples:
  atlas-tool rekey secret.atlas --passphrase-file pass.txt --new-passphrase-file new.txt
  atlas-tool rekey secret.atlas --passphrase-file new.txt --new-passphrase-file pass.txt -o again.atlas
""",
)
@click.argument("file", type=FILE)
@output_option("Write the file with the new secret to OUTPUT, and leave FILE as it is.")
@remove_backups_option
@force_option
@quiet_option
@json_option
@keys_options
@new_keys_options
def command(
    file: str, output: str | None, remove_backups: bool, force: bool, as_json: bool, keys: Any, new_keys: Any
) -> int:
    """Run the command."""
    from atlas_kit.operations.encryption import rekey_file
    from atlas_kit.storage.keys import Keys

    if remove_backups and output is not None:
        raise click.UsageError("--remove-backups is for a file that is changed in place")
    target = place_of(output)
    if new_keys is None:
        new_keys = Keys(ask=terminal_question())
    result = rekey_file(
        changed(file, output), keys, new_keys, target, force=force, remove_backups=remove_backups
    )
    return _render.emit_beside(result, text, as_json, target)
