"""``atlas-tool hash``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._options import FILE, command_, given, json_option, keys_options, one_stdin

if TYPE_CHECKING:
    from collections.abc import Iterator

_ALGORITHMS = ["sha256", "sha512", "blake2b", "sha1", "md5", "xxh3-64", "xxh3-128"]


@command_(
    "hash",
    """\
Print hashes of a file, of its content, and of each part.

`file` covers the bytes, as sha256sum does. `content` is the same for files that hold the same, whatever their
version, codecs and layout. Below come the payload of every entry, or the data of every tensor, decoded. The
SHA-256 of a model's file is what a memory file's model hash refers to.

Examples:
  atlas-tool hash llama-7b_memory.atlas
  atlas-tool hash model.gguf --algorithm xxh3-128 --json
  atlas-tool hash --file-only *.gguf
""",
)
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="FILE...")
@click.option(
    "-a",
    "--algorithm",
    type=click.Choice(_ALGORITHMS),
    default="sha256",
    show_default=True,
    help="Which hash.",
)
@click.option("--file-only", is_flag=True, help="Only the hash of the bytes.")
@json_option
@keys_options
def command(files: tuple[str, ...], algorithm: str, file_only: bool, as_json: bool, keys: Any) -> int:
    """Run the command."""
    one_stdin(files)
    from atlas_kit.operations.hash import hash_file

    results = []
    with _render.progress() as progress:
        for file in files:
            results.append(
                hash_file(given(file), algorithm, parts=not file_only, keys=keys, progress=progress)
            )
    return _render.emit_all(results, _text, as_json)


def _text(result: Any) -> Iterator[_render.Block]:
    rows = [(result.file, "file", result.path)]
    if result.content is not None:
        rows.append((result.content, "content", ""))
    rows += [(value, "part", name) for name, value in result.parts]
    yield _render.Table(["hash", "of", "name"], rows, heading=False)
