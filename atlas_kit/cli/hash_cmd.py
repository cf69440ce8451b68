"""``atlas-tool hash``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._fleet import fleet_options
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
    from collections.abc import Iterator

    from atlas_kit.operations.hash import Hashes, Identity

_ALGORITHMS = ["sha256", "sha512", "blake2b", "sha1", "md5", "xxh3-64", "xxh3-128"]


@command_(
    "hash",
    """\
Print hashes of a file, of its content, and of each part.

`file` covers the bytes, as sha256sum does. `content` is the same for files that hold the same, whatever their
version, codecs and layout. Below come the payload of every entry, or the data of every tensor, decoded.

--identity says which model a GGUF file is: what a learned memory is bound to (its model hash). It follows from
samples of the tensors, so that it takes no time on a model of any size, and stays the same when the file is
renamed, split or given other metadata. With --full it covers every byte, and is another number.

--manifest prints a list of hashes for sha256sum -c, and --check takes such lists as FILEs (also those of sha512sum,
md5sum and other programs) and checks the files that they name, from the current directory: OK or FAILED for each,
and the exit code 1 where one differs or cannot be read.

--workers, --scheduler and --table hash many files at once, also those of a store; what is in the table and unchanged
is not read again.

Examples:
  atlas-tool hash llama-7b_memory.atlas
  atlas-tool hash model.gguf --identity
  atlas-tool hash model.gguf --algorithm xxh3-128 --json
  atlas-tool hash --file-only *.gguf
  atlas-tool hash --manifest *.atlas > SHA256SUMS
  atlas-tool hash --check SHA256SUMS --quiet
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
@click.option("--identity", is_flag=True, help="Only which model a GGUF file is.")
@click.option("--full", is_flag=True, help="With --identity: from every byte instead of samples.")
@click.option("--manifest", is_flag=True, help="Print lines that sha256sum -c understands.")
@click.option(
    "-c", "--check", is_flag=True, help="FILEs are lists of hashes: check the files that they name."
)
@click.option("-q", "--quiet", is_flag=True, help="With --check: show only files that fail.")
@click.option("--ignore-missing", is_flag=True, help="With --check: ignore files that do not exist.")
@click.option("--strict", is_flag=True, help="With --check: also exit with 1 for malformed lines.")
@one_shard_option
@json_option
@several_keys_options
@fleet_options("hash")
@click.pass_context
def command(
    context: click.Context, files: tuple[str, ...], algorithm: str, file_only: bool, identity: bool, full: bool,
    one_shard: bool, manifest: bool, check: bool, quiet: bool, ignore_missing: bool, strict: bool, as_json: bool,
    keys: Any,
) -> int:  # fmt: skip
    """Run the command."""
    one_stdin(*files)
    from atlas_kit.operations.hash import hash_file, identify_model

    if (quiet or ignore_missing or strict) and not check:
        raise click.UsageError("--quiet, --ignore-missing and --strict belong to --check")
    if (check or manifest) and (check == manifest or file_only or identity or full or one_shard):
        raise click.UsageError("--check and --manifest each stand alone")
    if manifest and as_json:
        raise click.UsageError("--manifest prints lines for sha256sum, and no JSON")
    if full and not identity:
        raise click.UsageError("--full needs --identity")
    chosen = context.get_parameter_source("algorithm") is not click.core.ParameterSource.DEFAULT
    if identity and (file_only or chosen):
        raise click.UsageError("--identity stands alone: it is always the same hash")
    if manifest or check:
        from atlas_kit.cli import _manifest

        if manifest:
            return _manifest.write(files, algorithm)
        return _manifest.check(
            files, algorithm if chosen else None, quiet=quiet, ignore_missing=ignore_missing, strict=strict,
            as_json=as_json,
        )  # fmt: skip
    results: list[Hashes | Identity] = []
    with _render.progress() as progress:
        for file in files:
            if identity:
                results.append(identify_model(given(file), full=full, progress=progress))
                continue
            results.append(
                hash_file(
                    given(file),
                    algorithm,
                    parts=not file_only,
                    keys=keys,
                    one_shard=one_shard,
                    progress=progress,
                )
            )
    return _render.emit_all(results, _text, as_json)


def _text(result: Hashes | Identity) -> Iterator[_render.Block]:
    from atlas_kit.operations.hash import Identity

    if isinstance(result, Identity):
        what = "full identity" if result.full else "identity"
        yield f"{result.identity}  {what}  {result.path}"
        return
    rows = [(result.file, "file", result.path)]
    if result.content is not None:
        rows.append((result.content, "content", ""))
    rows += [(value, "part", name) for name, value in result.parts]
    yield _render.Table(["hash", "of", "name"], rows, heading=False)
