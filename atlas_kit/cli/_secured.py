"""What ``encrypt``, ``decrypt`` and ``rekey`` say of what they did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kit.cli import _render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.encryption import Secured

_SAID = {
    "encrypted": "is encrypted",
    "decrypted": "is plain text",
    "rekeyed": "is encrypted with the new passphrase or key",
}
_BACKUPS = {"encrypted": "are not encrypted", "rekeyed": "open with the old passphrase or key"}


def text(result: Secured) -> Iterator[_render.Block]:
    """Yield the result as text."""
    entries = _render.plural(result.entries, "entry", "entries")
    yield f"{result.output} {_SAID[result.what]} ({entries})"
    if result.other_names:
        yield _render.Lines(
            [
                _render.Styled(
                    "the file had another name (a hard link), which still holds what it held", "warn"
                )
            ]
        )
    if not result.backups:
        return
    names = _render.listed(result.backups)
    if result.backups_removed:
        yield f"removed {_render.plural(len(result.backups), 'backup')}: {names}"
        return
    said = f"backups {_BACKUPS[result.what]}, and stay until they are deleted: {names}"
    yield _render.Lines([_render.Styled(said, "warn")])
