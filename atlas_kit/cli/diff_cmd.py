"""``atlas-tool diff``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._fleet import fleet_options
from atlas_kit.cli._options import (
    FILE,
    command_,
    decrypt_option,
    force_option,
    given,
    json_option,
    one_shard_option,
    one_stdin,
    place_of,
    several_keys_options,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.explorer.diff_page import PageWritten
    from atlas_kit.operations.diff import Change, Comparison

_MARKS = {"added": ("+", "add"), "removed": ("-", "remove"), "changed": ("~", "warn"),
          "renamed": (">", "place"), "moved": ("^", "place")}  # fmt: skip


@command_(
    "diff",
    """\
Compare two files by what they mean.

Memory files are compared entry by entry, whatever their version, codecs and layout: text as a text diff, JSON
by path, tensors by largest and relative error and cosine. GGUF models are compared by metadata and tensors.
Times and the order of entries count only with --strict. JSON, safetensors and npz files can take part.

--html writes a page that any browser opens, without a network: of two models the error of each tensor as a
picture, by layer, with all tensors, metadata, tokens and templates; of memory files what differs.

With --workers, --scheduler or --table, FIRST and SECOND are folders (or addresses that end in /), whose files are
compared by their names.

The exit code is 0 when there is no difference, and 1 when there is one.

Examples:
  atlas-tool diff before.atlas after.atlas
  atlas-tool diff model-f16.gguf model-q8_0.gguf --tolerance 0.01
  atlas-tool diff model-f16.gguf model-q8_0.gguf --html compared.html
  atlas-tool diff llama-7b_memory.atlas memory.json
""",
)
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@click.option(
    "--tolerance", type=click.FloatRange(0, sys.float_info.max), default=0.0, show_default=True,
    help="Treat numbers as equal if they differ by no more than this.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Also compare times and the order of entries.")
@click.option("--html", "page", type=FILE, metavar="OUTPUT", help="Write what differs as a page to OUTPUT.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; only set the exit code.")
@force_option
@decrypt_option
@one_shard_option
@json_option
@several_keys_options
@fleet_options("diff")
def command(
    first: str,
    second: str,
    tolerance: float,
    strict: bool,
    page: str | None,
    quiet: bool,
    force: bool,
    decrypt: bool,
    one_shard: bool,
    as_json: bool,
    keys: Any,
) -> int:
    """Run the command."""
    from atlas_kit.operations.diff import DiffOptions, diff_files

    one_stdin(first, second)
    if page is not None:
        from atlas_kit.explorer.diff_page import write_diff_page

        options, target = DiffOptions(tolerance, strict, one_shard), place_of(page)
        with _render.progress() as progress:
            written = write_diff_page(
                given(first), given(second), target, options, keys=keys, force=force, decrypt=decrypt,
                progress=progress,
            )  # fmt: skip
        return written.exit_code if quiet else _render.emit_beside(written, _written, as_json, target)
    with _render.progress() as progress:
        result = diff_files(
            given(first), given(second), DiffOptions(tolerance, strict, one_shard), keys, progress
        )
    return result.exit_code if quiet else _render.emit(result, _text, as_json)


def _written(result: PageWritten) -> Iterator[_render.Block]:
    yield result.sentence
    yield f"{_render.name(result.output)} shows it"


def _text(result: Comparison) -> Iterator[_render.Block]:
    if not result.changes:
        yield f"no difference in {_render.plural(result.same, 'item')}"
        return
    yield _render.Lines(line for change in result.changes for line in _lines(change))
    counts: dict[str, int] = {}
    for change in result.changes:
        counts[change.what] = counts.get(change.what, 0) + 1
    summary = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    yield f"{summary}, {result.same:,} the same"


def _lines(change: Change) -> Iterator[str | _render.Styled]:
    mark, style = _MARKS[change.what]
    part = "" if change.part == "entry" else f"{change.part} "
    to = "" if change.new_name is None else f" -> {_render.name(change.new_name)}"
    yield _render.Styled(f"{mark} {part}{_render.name(change.name)}{to}", style)
    for name, before, after in change.details:
        if before is None or after is None:
            yield f"    {name} {_value(after if before is None else before)}"
        else:
            yield f"    {name}: {_value(before)} -> {_value(after)}"
    if change.numbers is not None:
        n = change.numbers
        cosine = "undefined" if n.cosine is None else format(n.cosine, ".9g")
        yield (
            f"    {n.differing:,} of {n.count:,} numbers differ: max {n.max_abs:.6g}, "
            f"relative L2 {n.relative_l2:.6g}, cosine {cosine}"
        )
    for path, what, before, after in change.paths:
        mark, style = _MARKS[what]
        shown = (
            f"{_value(before)} -> {_value(after)}"
            if what == "changed"
            else _value(before if after is None else after)
        )
        yield _render.Styled(f"    {mark} {path}: {shown}", style)
    for line in change.lines:
        style = {"+": "add", "-": "remove", "@": "place"}.get(line[:1], "")
        yield _render.Styled(f"    {line.expandtabs()}", style)


def _value(value: Any) -> str:
    from atlas_kit.codecs.json_text import brief

    return brief(value, 200)
