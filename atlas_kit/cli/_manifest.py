"""``hash --manifest`` and ``hash --check``: lists of hashes, in and out, in the words of ``sha256sum``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from atlas_kit.cli import _render
from atlas_kit.cli._options import given

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atlas_kit.operations.manifest import ManifestCheck


def write(files: Sequence[str], algorithm: str) -> int:
    """Print the line of each file as soon as it is known; names as the bytes that they are."""
    from atlas_kit.operations.hash import hash_file
    from atlas_kit.operations.manifest import manifest_line

    with _render.progress() as progress:
        for file in files:
            result = hash_file(given(file), algorithm, parts=False, progress=progress)
            sys.stdout.flush()
            sys.stdout.buffer.write(manifest_line(result.path, result.file))
            sys.stdout.buffer.flush()
    return 0


def check(
    files: Sequence[str],
    algorithm: str | None,
    *,
    quiet: bool,
    ignore_missing: bool,
    strict: bool,
    as_json: bool,
) -> int:
    """Check the files that lists name, and say what became of each."""
    from atlas_kit.operations.manifest import check_manifest

    results = []
    with _render.progress() as progress:
        for file in files:
            results.append(
                check_manifest(
                    given(file), algorithm, ignore_missing=ignore_missing, strict=strict, progress=progress
                )
            )
    if as_json:
        return _render.emit_json(results)
    for result in results:
        _show(result, quiet)
    return max(result.exit_code for result in results)


def _show(result: ManifestCheck, quiet: bool) -> None:
    lines: list[str | _render.Styled] = []
    for file in result.files:
        if file.problem:
            lines.append(_render.Styled(f"{file.name}: FAILED open or read", "bad"))
        elif not file.ok:
            lines.append(_render.Styled(f"{file.name}: FAILED", "bad"))
        elif not quiet:
            lines.append(f"{file.name}: OK")
    _render.show([_render.Lines(lines)])
    sys.stdout.flush()
    for file in result.files:
        if file.problem:
            _render.note(f"atlas-tool: {file.name}: {file.problem}")
    for count, one, many in (
        (result.malformed, "line is improperly formatted", "lines are improperly formatted"),
        (result.unread, "listed file could not be read", "listed files could not be read"),
        (result.different, "computed checksum did NOT match", "computed checksums did NOT match"),
    ):
        if count:
            _render.note(f"atlas-tool: WARNING: {count} {one if count == 1 else many}")
    if not result.files:
        _render.note(f"atlas-tool: {result.path}: no file was verified")
    if result.note:
        _render.note(f"atlas-tool: {result.path}: {result.note}")
