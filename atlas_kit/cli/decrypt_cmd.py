"""``atlas-tool decrypt``."""

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
)
from atlas_kit.cli._secured import text


@command_(
    "decrypt",
    """\
Write an encrypted memory file as plain text, in place or elsewhere.

The file becomes version 2, or with --to atlas-v1 version 1, and can then be read by whoever has it. The passphrase or
key that it was encrypted with is needed; you are asked for it on a terminal. The file is replaced whole or not at all.

Examples:
  atlas-tool decrypt secret.atlas --passphrase-file pass.txt -o plain.atlas
  atlas-tool decrypt secret.atlas --passphrase-file pass.txt
""",
)
@click.argument("file", type=FILE)
@output_option("Write the plain file to OUTPUT, and leave FILE as it is.")
@click.option(
    "--to", type=click.Choice(["atlas-v1", "atlas-v2"]), default="atlas-v2", show_default=True,
    help="Version of the plain file.",
)  # fmt: skip
@force_option
@quiet_option
@json_option
@keys_options
def command(file: str, output: str | None, to: str, force: bool, as_json: bool, keys: Any) -> int:
    """Run the command."""
    from atlas_kit.operations.encryption import decrypt_file

    target = place_of(output)
    result = decrypt_file(changed(file, output), keys, target, version=int(to[-1]), force=force)
    return _render.emit_beside(result, text, as_json, target)
