"""``atlas-tool split``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._options import (
    FILE,
    SIZE,
    command_,
    dry_run_option,
    given,
    is_standard_output,
    json_option,
    quiet_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.split import Split


@command_(
    "split",
    """\
Split a GGUF model into shards that llama.cpp loads.

The shards are called STEM-00001-of-00003.gguf and so on, STEM being the model's own name unless -o says another;
llama.cpp is given the first one and finds the others beside it. --max-size counts the whole file: 2G is
2,000,000,000 bytes, 2GiB is 2,147,483,648. With --max-tensors as well, whichever limit is reached first counts. A
tensor is never cut: one that is larger than the size gets a shard of its own. MODEL stays as it is; one that
is in shards already is split afresh. `atlas-tool join` puts the shards together again, to the same bytes.

Examples:
  atlas-tool split model.gguf --max-size 20K
  atlas-tool split model.gguf --max-tensors 4 -o parts
  atlas-tool split model.gguf --max-size 2G --max-tensors 3 --dry-run
""",
)
@click.argument("model", type=FILE)
@click.option("--max-size", type=SIZE, metavar="SIZE", help="No shard is larger than this: 2G, 500M, 1.5GiB.")
@click.option(
    "--max-tensors", type=click.IntRange(1), metavar="N", help="No shard has more tensors than this."
)
@click.option("--metadata-alone", is_flag=True, help="Put no tensors into the first shard.")
@click.option("-o", "--output", "stem", type=click.Path(), metavar="STEM", help="Start of the shards' names.")
@click.option("-f", "--force", is_flag=True, help="Overwrite shards that exist.")
@dry_run_option
@quiet_option
@json_option
def command(model: str, as_json: bool, **options: Any) -> int:
    """Run the command."""
    from atlas_kit.operations.split import SplitOptions, split_file

    if options["max_size"] is None and options["max_tensors"] is None:
        raise click.UsageError("say where to split: --max-size SIZE, --max-tensors N, or both")
    if options["stem"] is not None and is_standard_output(options["stem"]):
        raise click.UsageError(
            "shards are files: -o names what their names start with, and not standard output"
        )
    with _render.progress() as progress:
        result = split_file(given(model), SplitOptions(**options), progress)
    return _render.emit(result, _text, as_json)


def _text(result: Split) -> Iterator[_render.Block]:
    rows = [(part.tensors, f"{part.size:,}", part.path) for part in result.parts]
    yield _render.Table([">tensors", ">bytes", "shard"], rows)
    for note in result.notes:
        yield _render.Lines([_render.Styled(f"note: {note}", "warn")])
    verb = "would write" if result.dry_run else "wrote"
    yield f"{verb} {_render.plural(len(result.parts), 'shard')} of {result.path}"
