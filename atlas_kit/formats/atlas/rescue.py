"""Rescuing what is intact from a damaged memory file of any version, into a new file.

``scan_v1`` and ``scan_v2`` find the pieces, ``rescue_v1`` and ``rescue_v2`` decide what becomes of them; this
finds out which version the remains are, and writes. The damaged file is never touched.
"""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING

from atlas_kit.errors import InvalidParamError, KeyRequiredError, MagicMismatchError, VersionMismatchError
from atlas_kit.formats.atlas import layout, scan_v1, scan_v2, v1
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.atlas.rescue_plan import LostPiece, Plan, RescueResult, SavedEntry, max_key_of
from atlas_kit.formats.atlas.rescue_v1 import plan_v1
from atlas_kit.formats.atlas.rescue_v2 import plan_v2
from atlas_kit.storage import atomic
from atlas_kit.storage.given import Given, use_source
from atlas_kit.storage.source import Source, StrPath, resolved

if TYPE_CHECKING:
    from atlas_kit.formats.atlas.crypto import Secret
    from atlas_kit.formats.atlas.entry import Entry

__all__ = ["LostPiece", "RescueResult", "SavedEntry", "intact_entries", "plan_of", "rescue_atlas"]


def rescue_atlas(
    path: Given,
    out: StrPath | None,
    *,
    dry_run: bool = False,
    version: int | None = None,
    passphrase: str | bytes | None = None,
    key: bytes | None = None,
    durable: bool = True,
    unless_intact: bool = False,
) -> RescueResult:
    """Write every entry of a damaged file that is intact, or can be mended, to a new file.

    Damaged payloads and bytes that nobody understands are kept beside them as ``lost+found/...`` entries (the
    latter up to 16 MiB each and 64 MiB in all). A damaged version 3 file needs its passphrase or key: what
    cannot be decrypted cannot be sealed into a new file, and its sealed bytes are reported, not kept.

    Parameters
    ----------
    path, out
        The damaged file; the new one (replaced when it exists; not the same). ``None`` only with ``dry_run``.
    dry_run
        Say what would be done; write nothing.
    version
        1, 2 or 3; by default that of the damaged file.
    durable
        Off: do not wait until the bytes are on the disk.
    unless_intact
        Write nothing where there is nothing to repair, and no other version is asked for.

    Raises
    ------
    MagicMismatchError
        Nothing of a `.atlas` file is left.
    KeyRequiredError, WrongKeyError
        The file is encrypted.
    InvalidParamError
        ``out`` is the damaged file itself.
    """
    secret = _secret(passphrase, key)
    if version not in (None, 1, 2, 3):
        raise VersionMismatchError(f"{version} is not a version of the format", hint="Use 1, 2 or 3.")
    if out is None and not dry_run:
        raise InvalidParamError("no name for the rescued file was given")
    with use_source(path) as source:
        if out is not None:
            _require_other(source, out)
        return _rescue(source, out, dry_run, version, secret, durable, unless_intact)


def intact_entries(
    source: Source, *, passphrase: str | bytes | None = None, key: bytes | None = None
) -> list[Entry]:
    """Return the entries that ``rescue_atlas`` would save, readable where they are in the damaged file.

    Raises
    ------
    MagicMismatchError, KeyRequiredError, WrongKeyError
        As ``rescue_atlas`` does.
    """
    plan = plan_of(source, passphrase=passphrase, key=key)
    return [entry for entry, _ in plan.entries.values()]


def plan_of(source: Source, *, passphrase: str | bytes | None = None, key: bytes | None = None) -> Plan:
    """Return what ``rescue_atlas`` would do with a file; it raises the same."""
    return _plan(source, _secret(passphrase, key), None)


def _rescue(
    source: Source,
    out: StrPath | None,
    dry_run: bool,
    version: int | None,
    secret: Secret | None,
    durable: bool,
    unless_intact: bool,
) -> RescueResult:
    plan = _plan(source, secret, version)
    found = plan.info.version
    target = version or found
    limit = t.V1_MAX_ENTRIES if target == 1 else None
    if limit is not None and len(plan.entries) > limit and version is None:
        target, limit = 2, None
        plan.notes.append("there are more entries than version 1 allows: version 2 is written")
    plan.finish(limit)
    result = RescueResult(
        source.path, None if out is None else os.fspath(out), found, plan.info.dialect, target, dry_run,
        [SavedEntry(e.key, e.size, e.offset or 0, how) for e, how in plan.entries.values()],
        plan.lost,
        [SavedEntry(e.key, e.size, e.offset or 0, how) for e, how in plan.remains.values()],
        plan.uncommitted,
        plan.notes,
    )  # fmt: skip
    whole = unless_intact and result.intact and target == found
    if not dry_run and out is not None and not whole:
        with atomic.atomic_write(out, durable=durable) as file:
            _write(file, plan, target, secret)
    return result


def _plan(source: Source, secret: Secret | None, version: int | None) -> Plan:
    """Find out what the remains are: the header's word if it is intact, else where more bytes make sense."""
    said = _intact_version(source)
    new: list[scan_v2.Piece] = []
    old: list[scan_v1.Piece] = []
    if said != 1:
        new = list(scan_v2.Walker(source).walk())
    covered = _covered_v2(new)
    if said == 1 or (said is None and not _starts_like_v2(new)):
        old = list(scan_v1.Walker(source).walk())
    covered_old = sum(piece.size for piece in old if piece.kind == "entry" or piece.whole)
    top = source.read_upto(0, 8)
    if (
        not said
        and not covered
        and not covered_old
        and not (top[:4] == t.MAGIC and top[4:5] in (b"\1", b"\2", b"\3"))
    ):
        raise MagicMismatchError(
            "nothing of a .atlas file was found", path=source.path, hint="Is it another kind of file?"
        )
    if said is None:
        said = _likely_version(source, new, old, covered, covered_old)
    if said == 1:
        return plan_v1(source, old, max_key_of(version or 1))
    return plan_v2(source, new, secret, max_key_of(version or 2))


def _likely_version(
    source: Source, new: list[scan_v2.Piece], old: list[scan_v1.Piece], covered: int, covered_old: int
) -> int:
    """Weigh what a damaged header says, what is where the first entry would be, and what covers more bytes.

    One version may lie inside a payload of the other, so none of these is enough.
    """
    top = source.read_upto(0, 8)
    said = int.from_bytes(top[4:8], "little") if top[:4] == t.MAGIC else 0
    if _starts_like_v2(new):
        return 2
    if scan_v1.Walker(source).starts() or (said == 1 and covered_old):
        return 1
    if said in (2, 3) and (covered or not covered_old):
        return 2
    if covered and covered_old and new[-1].kind == "gap" and old[-1].kind == "entry":
        return 1  # the file's end belongs to the outer one
    return 1 if covered_old > covered or not covered else 2


def _intact_version(source: Source) -> int | None:
    """Return the version that an intact header says."""
    top = source.read_upto(0, layout.HEADER_V1.size)
    if top[:8] == t.MAGIC + b"\1\0\0\0" and v1.dialect_of(top) is not None:
        return 1
    piece = scan_v2.Walker(source).at(0) if source.size else None
    return piece.header.version if piece is not None and piece.header is not None else None


def _starts_like_v2(pieces: list[scan_v2.Piece]) -> bool:
    """Tell whether the first record is where the header would have ended (or the file was cut there)."""
    first = next((piece for piece in pieces if piece.kind != "gap"), None)
    places = (0, *(layout.HEADER_STRUCTS[version].size for version in (2, 3)))
    return first is not None and first.kind == "record" and first.offset in places


def _covered_v2(pieces: list[scan_v2.Piece]) -> int:
    scan_v2.own_files(pieces)
    return sum(piece.size for piece in pieces if piece.kind in ("record", "index") and not piece.foreign)


def _write(file: IO[bytes], plan: Plan, version: int, secret: Secret | None) -> None:
    entries = [entry for entry, _ in (*plan.entries.values(), *plan.remains.values())]
    info = plan.info
    if version == 1:
        v1.write(file, info, (entry for entry in entries), len(entries))
        return
    from atlas_kit.formats.atlas import v2_writer

    cipher = None
    if version == 3:
        from atlas_kit.formats.atlas.crypto import Cipher

        if secret is None:
            raise KeyRequiredError("version 3 needs a passphrase or a key")
        cipher = plan.cipher or Cipher.fresh(secret)
    v2_writer.write(file, info, entries, len(entries), v2_writer.Options(), cipher)


def _require_other(source: Source, out: StrPath) -> None:
    if source.path is None:
        return
    same = os.path.realpath(source.path) == resolved(out)
    if not same and os.path.exists(out):
        same = os.path.samefile(source.path, out)
    if same:
        raise InvalidParamError(
            "the rescued file must not be the damaged one", path=source.path, hint="Give another name."
        )


def _secret(passphrase: str | bytes | None, key: bytes | None) -> Secret | None:
    if passphrase is None and key is None:
        return None
    from atlas_kit.formats.atlas.crypto import Secret

    return Secret.of(passphrase, key)
