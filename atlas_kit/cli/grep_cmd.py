"""``atlas-tool grep``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _completion, _render
from atlas_kit.cli._options import (
    FILE,
    command_,
    given,
    json_option,
    one_shard_option,
    one_stdin,
    several_keys_options,
)

if TYPE_CHECKING:
    from atlas_kit.operations.grep import Found, Match

#: Of longer lines only what is around the first match is shown; --json has all.
LONGEST = 400


@command_(
    "grep",
    """\
Search the entries of memory files, and the metadata of models.

PATTERN is a regular expression (Python's). Each line that matches is printed after its key and its number; in a model,
the elements of an array are the lines. Entries that are not text are skipped. With several FILEs, each line begins
with the file's name.

The exit code is 1 when nothing is found.

Examples:
  atlas-tool grep -i assistant llama-7b_memory.atlas
  atlas-tool grep 'bread|bicycle' sample_data/atlas/chat.atlas -l
  atlas-tool grep llama model.gguf --key 'general.*' --json
""",
)
@click.argument("pattern")
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="FILE...")
@click.option("-i", "--ignore-case", is_flag=True, help="Ignore the difference between upper and lower case.")
@click.option(
    "-F", "--fixed-strings", "fixed", is_flag=True, help="PATTERN is plain text, not a regular expression."
)
@click.option("-l", "--keys-with-matches", "only_keys", is_flag=True, help="Print only the keys.")
@click.option("-c", "--count", is_flag=True, help="Print only how many lines match for each key.")
@click.option(
    "--key", "only", multiple=True, metavar="KEY", help="Search only these keys (*, ?, [abc]).",
    shell_complete=_completion.keys,
)  # fmt: skip
@click.option("--in-keys", is_flag=True, help="Search the keys and the names of tensors, too.")
@one_shard_option
@json_option
@several_keys_options
def command(
    pattern: str, files: tuple[str, ...], only_keys: bool, count: bool, only: tuple[str, ...], as_json: bool,
    keys: Any, **options: Any,
) -> int:  # fmt: skip
    """Run the command."""
    from atlas_kit.operations.grep import GrepOptions, compiled, grep_file

    if only_keys and count:
        raise click.UsageError("give -l or -c, not both")
    one_stdin(*files)
    how = GrepOptions(only=only, **options)
    search = compiled(pattern, how)
    found = [grep_file(given(file), search, how, keys) for file in files]
    several = len(files) > 1
    _render.emit_all(found, lambda one: _text(one, several, only_keys, count), as_json)
    return min(one.exit_code for one in found)


def _text(found: Found, several: bool, only_keys: bool, count: bool) -> Iterator[_render.Block]:
    place = f"{found.path}:" if several else ""
    if only_keys:
        yield _render.Lines(f"{place}{key}" for key in found.keys)
    elif count:
        counts: dict[str, int] = {}
        for match in found.matches:
            counts[match.key] = counts.get(match.key, 0) + 1
        yield _render.Lines(f"{place}{key}:{number}" for key, number in counts.items())
    else:
        yield _render.Lines(
            f"{place}{_render.name(match.key)}:{match.line or 'key'}: {_shown(match)}"
            for match in found.matches
        )


def _shown(match: Match) -> str:
    if len(match.text) <= LONGEST:
        return match.text
    start = max(0, min(match.spans[0][0] - LONGEST // 4, len(match.text) - LONGEST))
    end = start + LONGEST
    return f"{'...' if start else ''}{match.text[start:end]}{'...' if end < len(match.text) else ''}"
