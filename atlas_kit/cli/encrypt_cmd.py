"""``atlas-tool encrypt``."""

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
    output_option,
    place_of,
    quiet_option,
    remove_backups_option,
)
from atlas_kit.cli._secured import text


@command_(
    "encrypt",
    """\
Encrypt a memory file, in place or into another file.

The file becomes version 3: entries, keys and sizes can be read only with the passphrase or the 32 bytes of a key file
that it is encrypted with. Without --passphrase-file, --key-file and ATLAS_PASSPHRASE, you are asked for a new
passphrase on the terminal, twice. The file is replaced whole or not at all, and no plain text is written on the way.
Without the passphrase or key, nobody can read the file again.

Earlier backups are not encrypted; they are listed, and --remove-backups removes them. The disk itself may still hold
what a replaced file held: that is beyond this command.

Examples:
  atlas-tool encrypt notes.atlas -o secret.atlas --passphrase-file pass.txt
  atlas-tool encrypt notes.atlas --passphrase-file pass.txt
""",
)
@click.argument("file", type=FILE)
@output_option("Write the encrypted file to OUTPUT, and leave FILE as it is.")
@remove_backups_option
@force_option
@quiet_option
@json_option
@keys_options
def command(
    file: str, output: str | None, remove_backups: bool, force: bool, as_json: bool, keys: Any
) -> int:
    """Run the command."""
    from atlas_kit.operations.encryption import encrypt_file

    if remove_backups and output is not None:
        raise click.UsageError("--remove-backups is for a file that is changed in place")
    target = place_of(output)
    result = encrypt_file(changed(file, output), keys, target, force=force, remove_backups=remove_backups)
    return _render.emit_beside(result, text, as_json, target)
