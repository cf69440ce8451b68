"""From the pieces of a version 2 or 3 file to a rescue plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kit.codecs import table as codecs
from atlas_kit.errors import AtlasError, KeyRequiredError, WrongKeyError
from atlas_kit.formats.atlas import layout, scan_v2, v2
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.atlas.rescue_plan import LostPiece, Plan
from atlas_kit.formats.atlas.store import Info, decode_key
from atlas_kit.formats.atlas.verify import Verifier

if TYPE_CHECKING:
    from atlas_kit.formats.atlas.crypto import Cipher, KdfParams, Secret
    from atlas_kit.formats.atlas.entry import Entry
    from atlas_kit.formats.atlas.scan_v2 import Piece, State
    from atlas_kit.storage.source import Source

#: Different key derivations that are tried: each may take a second.
MAX_TRIES = 3


class Unlocker:
    """Finds the keys of sealed records; how to derive them is in the header, the index and every record."""

    def __init__(self, source: Source, secret: Secret | None) -> None:
        self._source = source
        self._secret = secret

    def of_file(self, state: State, pieces: list[Piece]) -> Cipher:
        """Return the keys of one file.

        Raises
        ------
        KeyRequiredError, WrongKeyError
            No secret was given; it opens nothing.
        """
        from atlas_kit.formats.atlas.crypto import unlock

        if state.header is not None and state.header.version == 3:
            return unlock(state.header.kdf, state.header.crypto[6], self._secret)
        if self._secret is None:
            raise KeyRequiredError(
                "the file is encrypted", hint="Give its passphrase or key file to repair it."
            )
        found: dict[KdfParams, list[Piece]] = {}
        for piece in pieces:
            params = self._params_of(piece)
            if params is not None:
                found.setdefault(params, []).append(piece)
        for params in sorted(found, key=lambda params: -len(found[params]))[:MAX_TRIES]:
            cipher = unlock(params, None, self._secret)
            if any(self._opens(cipher, piece) for piece in found[params]):
                return cipher
        raise WrongKeyError("the passphrase or key opens none of the entries")

    def _opens(self, cipher: Cipher, piece: Piece) -> bool:
        try:
            scan_v2.open_record(self._source, piece, cipher)
        except AtlasError:
            return False
        return True

    def _params_of(self, piece: Piece) -> KdfParams | None:
        from atlas_kit.formats.atlas.crypto import KdfParams

        if (
            piece.stored_size < layout.SEAL.size
            or piece.payload_offset + layout.SEAL.size > self._source.size
        ):
            return None
        kdf, log2_n, r, p, _, salt = layout.SEAL.unpack(
            self._source.read(piece.payload_offset, layout.SEAL.size)
        )[:6]
        return KdfParams(kdf, log2_n, r, p, salt)


def plan_v2(source: Source, pieces: list[Piece], secret: Secret | None, max_key: int) -> Plan:
    """Decide what becomes of each piece."""
    files = scan_v2.own_files(pieces)
    plan = Plan(source, Info(2, "v2"), max_key=max_key)
    unlocker = Unlocker(source, secret)
    verifier = Verifier(source.size)
    for number, mine in enumerate(files.values()):
        _take_file(plan, pieces, mine, unlocker, verifier, first=number == 0)
    if len(files) > 1:
        plan.notes.append(f"{len(files)} files are joined here; their entries are rescued into one")
    return plan


def _take_file(
    plan: Plan,
    pieces: list[Piece],
    mine: list[Piece],
    unlocker: Unlocker,
    verifier: Verifier,
    *,
    first: bool,
) -> None:
    source = plan.source
    state = scan_v2.state_of(source, mine)
    records = [piece for piece in mine if piece.kind == "record"]
    sealed = state.header.version == 3 if state.header else any(p.attributes & t.ENCRYPTED for p in records)
    cipher = None
    if sealed:
        cipher = unlocker.of_file(state, records)
        state = scan_v2.state_of(source, mine, cipher)
    if first:
        plan.info, plan.cipher = _info_of(state, sealed), cipher
        if not state.header_intact:
            plan.notes.append(
                "the header was restored from the index" if state.header else "header and index are lost"
            )
        elif state.header is not None and source.size < state.header.committed_size:
            plan.notes.append(f"the file ends at byte {source.size}, before its header says that it ends")
        elif not state.complete:
            plan.notes.append("the index was damaged, and is made anew")
    plan.segment += 1
    plan.notes += [f"an index block could not be used: {error.message}" for error in state.problems]
    gaps = _gaps(pieces) if first else []
    chosen = _newest_per_key(plan, state, cipher)
    for piece, entry in chosen:
        _take_live(plan, piece, entry, verifier, sealed)
    for piece in state.older:
        _keep_whole(plan, piece, cipher, f"an older state, of commit {piece.generation}", verifier)
    for piece in state.unproven:
        _keep_whole(plan, piece, cipher, "its head's checksum does not match", verifier)
        plan.lost.append(_piece_lost(plan, piece, cipher, "the checksum of the record's head does not match"))
    for piece in state.uncommitted:
        entry_ = _opened(plan, piece, cipher)
        if entry_ is not None and not entry_.attributes & t.REMOVED:
            plan.uncommitted.append(entry_.key)
            _keep_whole(plan, piece, cipher, "from an update that did not finish", verifier)
    if first:
        _take_gaps(plan, gaps, state)


def _newest_per_key(plan: Plan, state: State, cipher: Cipher | None) -> list[tuple[Piece, Entry]]:
    """Open the live records, in order; of two with one key the newer commit wins (a removal was lost)."""
    opened: list[tuple[Piece, Entry]] = []
    best: dict[str, Piece] = {}
    for piece in state.live:
        entry = _opened(plan, piece, cipher, report=True)
        if entry is None or entry.attributes & t.REMOVED:
            continue
        opened.append((piece, entry))
        held = best.get(entry.key)
        if held is None or (piece.generation, piece.ordinal) > (held.generation, held.ordinal):
            best[entry.key] = piece
    return [(piece, entry) for piece, entry in opened if best[entry.key] is piece]


def _opened(plan: Plan, piece: Piece, cipher: Cipher | None, *, report: bool = False) -> Entry | None:
    try:
        entry = scan_v2.open_record(plan.source, piece, cipher)
    except AtlasError as error:
        if report:
            plan.keep_gap(piece.offset, piece.size, error.message, keep=False)
        return None
    raw = entry.key.encode("utf-8", "surrogateescape")
    if not raw or 0 in raw:
        if report:
            plan.keep_gap(piece.offset, piece.size, "the record's key is not one that is allowed")
        return None
    return entry


def _take_live(plan: Plan, piece: Piece, entry: Entry, verifier: Verifier, sealed: bool) -> None:
    problem = verifier.problem(entry)
    if problem is None:
        plan.save(entry, f"mended: the record's {piece.how}" if piece.how else "intact")
        return
    stop = min(piece.payload_offset + piece.stored_size, piece.end)
    size = 0 if sealed else max(0, stop - piece.payload_offset)  # sealed bytes are of no use to anybody
    why = problem.message
    if size < piece.stored_size and not sealed:
        why = f"{piece.stored_size - size} of {piece.stored_size} payload bytes are missing"
    plan.keep_damaged(piece.offset, piece.size, entry, (piece.payload_offset, size), why)


def _keep_whole(plan: Plan, piece: Piece, cipher: Cipher | None, how: str, verifier: Verifier) -> None:
    entry = _opened(plan, piece, cipher)
    if entry is not None and verifier.problem(entry) is None and not entry.attributes & t.REMOVED:
        known = entry.codec_id in codecs.BY_ID and entry.filter_id in codecs.FILTER_NAMES
        if not known or (entry.dtype_id and entry.dtype_id not in t.DTYPE_BY_ID):
            plain = {"codec_id": 0, "filter_id": 0, "item_size": 0, "dtype_id": 0, "shape": None}
            entry = entry.replace(size=entry.stored_size, **plain)
        plan.keep(entry, entry.key, how)


def _piece_lost(plan: Plan, piece: Piece, cipher: Cipher | None, why: str) -> LostPiece:
    entry = _opened(plan, piece, cipher)
    return LostPiece(piece.offset, piece.size, why, None if entry is None else entry.key)


def _gaps(pieces: list[Piece]) -> list[tuple[int, int]]:
    """Return the ranges that are not ours, neighbours joined."""
    gaps: list[tuple[int, int]] = []
    for piece in pieces:
        if piece.kind == "gap" or piece.foreign:
            if gaps and gaps[-1][1] == piece.offset:
                gaps[-1] = (gaps[-1][0], piece.end)
            else:
                gaps.append((piece.offset, piece.end))
    return gaps


def _take_gaps(plan: Plan, gaps: list[tuple[int, int]], state: State) -> None:
    """Report what is not understood; a damaged header or index is no loss, as both are written anew."""
    header = state.header
    index = header.index_offset if header is not None else -1
    for start, end in gaps:
        top = plan.source.read_upto(start, 512)
        if start == 0 and not state.header_intact:
            plan.keep_gap(start, end - start, "the header is damaged", keep=end > layout.HEADER_V3.size)
        elif top[:8] == t.INDEX_SYNC or start == index:
            plan.keep_gap(start, end - start, "the index is damaged", keep=False)
        elif header is not None and state.header_intact and start >= header.committed_size:
            plan.keep_gap(start, end - start, "these bytes follow the committed part of the file")
        else:
            key = _key_guess(top) if state.header is None or state.header.version == 2 else None
            plan.keep_gap(start, end - start, "no intact record is here", key=key)
    known = {piece.offset for piece in plan.lost}
    for row in state.missing:
        if row.offset not in known and not any(start <= row.offset < end for start, end in gaps):
            plan.lost.append(LostPiece(row.offset, row.size, "the record that the index names is gone"))


def _key_guess(top: bytes) -> str | None:
    """Return the key that a damaged head seems to have, to tell the reader what was lost."""
    length = scan_v2.head_length(top)
    if length is None or length > len(top):
        return None
    f = v2.Fields._make(layout.ENTRY.unpack_from(top))
    start = layout.ENTRY.size + 8 * f.rank
    raw = top[start : start + f.key_length]
    return decode_key(raw) if raw and 0 not in raw else None


def _info_of(state: State, sealed: bool) -> Info:
    header = state.header
    version = 3 if sealed else 2
    if header is None:
        times = [piece.generation for piece in state.live]
        return Info(version, f"v{version}", generation=max(times, default=0))
    return Info(
        version, f"v{version}", header.created_time, header.modified_time, header.model_hash, header.reserved,
        header.total_size, header.file_flags, header.generation,
    )  # fmt: skip
