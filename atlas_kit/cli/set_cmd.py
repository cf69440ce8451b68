"""``atlas-tool set``."""

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

    from atlas_kit.operations.set import Stored


@command_(
    "set",
    """\
Store one value, in place.

VALUE is text, and may be a negative number; `-` reads it from standard input, --from from a file, byte for byte. Put
`--` before any other value that begins with `-`. An existing key keeps its place, type and flags. A memory file
that does not exist yet is created if its name ends in .atlas, or with --new whatever its name. In a GGUF model, a
metadata key keeps its type unless --type says otherwise; arrays are written as JSON. The file is replaced whole or
not at all, or the change is appended and takes effect with its last write.

Examples:
  atlas-tool set notes.atlas greeting "hello there"
  date | atlas-tool set notes.atlas today -
  atlas-tool set model.gguf general.name "My model" --backup
  atlas-tool set model.gguf llama.vocab_size 3 --type i32
""",
    cls=TakesNumbers,
)
@click.argument("file", type=IN_PLACE)
@click.argument("key", shell_complete=_completion.keys)
@click.argument("value", required=False)
@click.option("--from", "source", type=FILE, metavar="SOURCE", help="Read the value from a file.")
@click.option("--npy", is_flag=True, help="The value is a .npy array; store it as a tensor.")
@click.option(
    "--type", "kind", metavar="TYPE", help="Entry type (text, context, 7) or GGUF type (u32, arr[str])."
)
@click.option("--flags", type=click.IntRange(0, 2**32 - 1), help="The application's own flags.")
@click.option(
    "--timestamp", type=click.IntRange(0, 2**64 - 1), help="Unix time of the entry, instead of now."
)
@click.option("--codec", type=click.Choice(["lz4", "zlib", "zstd", "none"]), help="How to code this payload.")
@click.option("--level", type=int, help="How hard to try; the range depends on the codec.")
@click.option(
    "--to",
    type=click.Choice(["atlas-v1", "atlas-v2", "atlas-v3"]),
    help="Version of a new file; v2 by default, and v3 with a passphrase or key.",
)
@new_option
@backup_option
@quiet_option
@json_option
@keys_options
def command(file: str, key: str, value: str | None, source: str | None, as_json: bool, **options: Any) -> int:
    """Run the command."""
    from atlas_kit.operations.set import SetOptions, set_value

    how = SetOptions(
        type=options["kind"],
        flags=options["flags"],
        timestamp=options["timestamp"],
        codec=options["codec"],
        level=options["level"],
        is_array=options["npy"],
        version=int(options["to"][-1]) if options["to"] else None,
        backup=options["backup"],
        new=options["new"],
    )
    result = set_value(file, key, read_value(value, source), how, options["keys"])
    return _render.emit(result, _text, as_json)


def _text(result: Stored) -> Iterator[_render.Block]:
    if result.created_file:
        yield f"created {result.path}"
    what = result.type if result.size is None else f"{result.type}, {_render.exact_size(result.size)}"
    yield f"{'replaced' if result.replaced else 'added'} {result.key} ({what})"
    if result.similar:
        meant = " or ".join(result.similar)
        yield _render.Lines([_render.Styled(f"note: a new key was added; did you mean {meant}?", "warn")])
