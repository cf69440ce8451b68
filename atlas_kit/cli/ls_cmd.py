"""``atlas-tool ls``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _completion, _render
from atlas_kit.cli._options import FILE, command_, given, json_option, keys_options, one_shard_option

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from atlas_kit.formats.gguf import MetadataField, TensorInfo
    from atlas_kit.operations.entry_rows import EntryRow
    from atlas_kit.operations.ls import Listing


@command_(
    "ls",
    """\
List what a file holds, one name to a line.

For a memory file these are the keys of its entries, for a GGUF model its metadata keys and tensor names.
PATTERNs choose among them: `*` stands for anything, `?` for one character. Characters that do not print are
shown as \\xNN; --null prints the exact bytes, each name ended by a NUL, for scripts.

The exit code is 1 when there are PATTERNs and nothing matches.

Examples:
  atlas-tool ls llama-7b_memory.atlas
  atlas-tool ls -l llama-7b_memory.atlas 'chat*'
  atlas-tool ls model.gguf 'tokenizer.*'
""",
)
@click.argument("file", type=FILE)
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...", shell_complete=_completion.keys)
@click.option("-l", "--long", is_flag=True, help="Also show type, size, time and storage.")
@click.option("-0", "--null", is_flag=True, help="Print the exact bytes of each name, ended by a NUL.")
@one_shard_option
@json_option
@keys_options
def command(
    file: str, patterns: tuple[str, ...], long: bool, null: bool, one_shard: bool, as_json: bool, keys: Any
) -> int:
    """Run the command."""
    from atlas_kit.codecs.json_text import to_bytes
    from atlas_kit.operations.ls import list_file

    listing = list_file(given(file), patterns, keys, one_shard=one_shard)
    if null:
        sys.stdout.flush()
        sys.stdout.buffer.write(b"".join(to_bytes(name) + b"\0" for name in listing.names()))
        return listing.exit_code
    return _render.emit(listing, _long if long else _short, as_json)


def _short(listing: Listing) -> Iterator[_render.Block]:
    yield _render.Lines(listing.names())


def _long(listing: Listing) -> Iterator[_render.Block]:
    if listing.kind == "gguf":
        yield from model_tables(listing.metadata, listing.tensors)
    else:
        yield entry_table(listing.entries)


def entry_table(entries: Sequence[EntryRow]) -> _render.Table:
    """Return the table of entries that `ls -l` and `inspect --entries` show."""
    tensors = any(row.dtype for row in entries)
    coded = any(row.codec != "none" for row in entries)

    def cells(row: EntryRow) -> list[object]:
        out = [row.type_name, row.size]
        if coded:
            out += [row.stored_size, row.codec if row.filter == "none" else f"{row.codec}+{row.filter}"]
        out += [_render.moment(row.timestamp)]
        if tensors:
            out += [f"{row.dtype} {_render.shape(row.shape)}" if row.dtype else ""]
        return [*out, _render.name(row.key)]

    columns = ["type", ">size", *([">stored", "codec"] if coded else []), "time",
               *(["tensor"] if tensors else []), "key"]  # fmt: skip
    rows = map(cells, entries)
    return _render.Table(columns, rows if len(entries) > _render.RICH_ROWS else list(rows))


def model_tables(metadata: Sequence[MetadataField], tensors: Sequence[TensorInfo]) -> Iterator[_render.Block]:
    """Yield the tables of metadata and of tensors that `ls -l` and `inspect` show."""
    from atlas_kit.operations.gguf_values import show_value

    if metadata:
        rows = [(row.type_name, _render.name(row.key), show_value(row)) for row in metadata]
        yield _render.Table(["type", "key", "value"], rows)
    shards = list(dict.fromkeys(info.path for info in tensors))
    for shard in shards:
        if len(shards) > 1:  # offsets are in the shard, and of no use without it
            yield f"{_render.name(os.path.basename(shard or ''))}:"
        infos = [
            (
                info.type_name,
                _render.shape(info.shape),
                info.nbytes,
                info.file_offset,
                _render.name(info.name),
            )
            for info in tensors
            if info.path == shard
        ]
        yield _render.Table(["type", "shape", ">bytes", ">offset", "tensor"], infos)
