"""``atlas-tool join``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from atlas_kit.cli import _render
from atlas_kit.cli._options import (
    FILE,
    command_,
    dry_run_option,
    force_option,
    given,
    json_option,
    one_stdin,
    output_option,
    place_of,
    quiet_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.join import Joined


@command_(
    "join",
    """\
Join the shards or parts of a model into one file.

Give one of them, and the others are found beside it by name; or give all, in any order. Shards are known
by what is in them (STEM-00001-of-00003.gguf, as `atlas-tool split` and llama-gguf-split make them, or renamed),
even after they were put into one file with `cat`. Parts are what a file was cut into, byte by byte: NAME.part1of3,
NAME.aa and NAME.ab, NAME-split-a, NAME.001. Where one is missing, it is named and nothing is written.

Examples:
  atlas-tool join shards/model-00001-of-00003.gguf -o whole.gguf
  atlas-tool join parts/model.gguf.aa parts/model.gguf.ab -o whole.gguf --force
  atlas-tool join parts/model.gguf.aa -o whole.gguf --dry-run
""",
)
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="FILE...")
@output_option("The file to write; - is standard output.", required=True)
@force_option
@dry_run_option
@quiet_option
@json_option
def command(files: tuple[str, ...], output: str, dry_run: bool, force: bool, as_json: bool) -> int:
    """Run the command."""
    one_stdin(*files)
    from atlas_kit.operations.join import join_files

    target = place_of(output)
    with _render.progress() as progress:
        result = join_files(
            [given(file) for file in files], target, force=force, dry_run=dry_run, progress=progress
        )
    return _render.emit_beside(result, _text, as_json, None if dry_run else target)


def _text(result: Joined) -> Iterator[_render.Block]:
    yield _render.Lines(result.inputs)
    tensors = "" if result.tensors is None else f", {_render.plural(result.tensors, 'tensor')}"
    would = "would be " if result.dry_run else ""
    yield f"-> {would}{result.output} ({_render.size(result.size)}{tensors})"
