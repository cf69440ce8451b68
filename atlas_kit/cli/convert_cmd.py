"""``atlas-tool convert``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._options import (
    FILE,
    atlas_settings_options,
    codec_options,
    command_,
    decrypt_option,
    force_option,
    given,
    json_option,
    keys_options,
    new_keys_options,
    place_of,
    quiet_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.convert import Converted

_TARGETS = ["atlas-v1", "atlas-v2", "atlas-v3", "json", "safetensors", "npz", "gguf", "atlas-gguf"]


@command_(
    "convert",
    """\
Convert a file into another format, or another version of its own.

The suffix of OUTPUT, or --to, says which format. A bare .atlas means version 2, except that JSON, safetensors and
npz files made by atlas-tool go back to the version they came from, and that what is encrypted stays encrypted. JSON
is readable and lossless: edit it and convert it back; unedited it gives the same bytes.

Version 3 is encrypted. It is written whenever FILE is encrypted or a passphrase or key is given; formats that cannot
be encrypted are then refused, unless --decrypt is given. --new-passphrase-file and --new-key-file encrypt OUTPUT
with another secret than FILE's.

A GGUF model becomes ATLAS-native with --to atlas-gguf, --auto, --memory or any setting of a memory: it carries
the settings, stock llama.cpp still loads it, and --to gguf gives its original bytes back. --memory also copies a
learned memory beside it (OUTPUT with .atlas for .gguf) and binds it to the model: one of another model is refused,
unless --force is given.

The tensors of a model go to safetensors and npz as they are stored, quantised ones as bytes, or with --dequantize
as float32 numbers; the metadata go with them as JSON, and --to gguf makes
the model of them again. --byte-order writes a model for machines with the other
byte order.

An existing OUTPUT is overwritten only with --force, and FILE never.

Examples:
  atlas-tool convert llama-7b_memory.atlas memory.json
  atlas-tool convert memory.json llama-7b_memory_edited.atlas
  atlas-tool convert notes.atlas secret.atlas --passphrase-file pass.txt
  atlas-tool convert model.gguf native.gguf --to atlas-gguf
  atlas-tool convert model-q8_0.gguf model.safetensors --dequantize
  atlas-tool convert model.gguf big-endian.gguf --byte-order big
  atlas-tool convert model.gguf model-atlas.gguf --auto --window-size 2048
""",
)
@click.argument("src", type=FILE, metavar="FILE")
@click.argument("dst", type=FILE, metavar="OUTPUT")
@click.option("--to", type=click.Choice(_TARGETS), help="Format of OUTPUT, where its suffix does not say it.")
@force_option
@codec_options
@decrypt_option
@click.option("--auto", is_flag=True, help="Make a model ATLAS-native with the settings that suit it.")
@click.option(
    "--memory", type=FILE, metavar="F", help="Bind a learned memory (.atlas) to an ATLAS-native model."
)
@click.option(
    "--no-text",
    is_flag=True,
    help="With --memory: leave out the text of what was read and said.",
)
@click.option("--dequantize", is_flag=True, help="Write a model's quantised tensors as float32.")
@click.option(
    "--byte-order",
    type=click.Choice(["little", "big"]),
    help="Write a model for machines with this byte order (llama.cpp reads only its own machine's).",
)
@quiet_option
@json_option
@keys_options
@new_keys_options
@atlas_settings_options
def command(src: str, dst: str, as_json: bool, keys: Any, new_keys: Any, chosen: Any, **options: Any) -> int:
    """Run the command."""
    from atlas_kit.operations.convert import ConvertOptions, convert_file

    if options["auto"] and chosen.config is not None:
        raise click.UsageError("--auto and --config both name every setting; give one of them")
    how = ConvertOptions(
        to=options["to"],
        force=options["force"],
        codec=options["codec"],
        level=options["level"],
        shuffle=False if options["no_shuffle"] else None,
        new_keys=new_keys,
        decrypt=options["decrypt"],
        auto=options["auto"],
        settings=chosen.over if chosen else None,
        memory=options["memory"],
        text=not options["no_text"],
        dequantize=options["dequantize"],
        byte_order={"little": "<", "big": ">", None: None}[options["byte_order"]],
    )
    output = place_of(dst)
    with _render.progress() as progress:
        result = convert_file(given(src), output, how, keys, progress)
    return _render.emit_beside(result, _text, as_json, output)


def _text(result: Converted) -> Iterator[_render.Block]:
    entries = "" if result.entries is None else f", {_render.plural(result.entries, 'entry', 'entries')}"
    yield f"{result.source} ({result.source_format}, {_render.size(result.source_size)}){entries}"
    yield f"-> {result.target} ({result.target_format}, {_render.size(result.target_size)})"
    if result.memory is not None:
        yield f"with the memory {result.memory}"
    for note in result.notes:
        yield _render.Lines([_render.Styled(f"note: {note}", "warn")])
