"""Look into a file: an overview, and on request its entries, keys, tensors, statistics, fields and byte map.

Fields (``hex``) and byte map come straight from the bytes, so that they work on damaged files too. Nothing
here imports NumPy unless numbers are asked for.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import (
    AtlasError,
    FileCorruptError,
    InvalidParamError,
    KeyRequiredError,
    MagicMismatchError,
    VersionMismatchError,
)
from atlas_kit.formats.detect import by_content, detect
from atlas_kit.formats.foreign import is_dat, recognise
from atlas_kit.formats.opening import ask_if_encrypted
from atlas_kit.operations.inputs import Opened, open_given
from atlas_kit.persistence.entry_keys import DESCRIPTION, may_hold_episodes
from atlas_kit.storage.given import Progress, takes_source
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from atlas_kit.formats.findings import Finding
    from atlas_kit.formats.gguf import GGUFFile, MetadataField, TensorInfo
    from atlas_kit.formats.gguf.chat_template import ShownTemplate
    from atlas_kit.formats.imatrix import Imatrix
    from atlas_kit.operations.byte_map import MapRegion
    from atlas_kit.operations.entry_rows import EntryRow
    from atlas_kit.operations.hex_line import HexLine
    from atlas_kit.operations.inspect_parts import OneEntry
    from atlas_kit.operations.tensor_numbers import TensorStats

#: The overview counts types and codecs of this many entries at most, and lists this many.
COUNTED = 100_000
LISTED = 20
#: Memory files of more bytes are not read through to see whether they are intact.
CHECKED = 1 << 24


class Wanted(NamedTuple):
    """Which parts to look at; with none, the overview."""

    entries: bool = False
    keys: bool = False
    tensors: bool = False
    stats: bool = False
    hex: bool = False
    map: bool = False
    entry: str | None = None
    limit: int = 200
    template: bool = False
    fits: str | None = None
    one_shard: bool = False

    @property
    def overview(self) -> bool:
        """Whether nothing in particular is wanted."""
        return not (self.bytes_only or self.parts)

    @property
    def parts(self) -> bool:
        """Whether something is wanted for which the file must be opened."""
        return (
            self.entries or self.keys or self.tensors or self.stats or self.template or self.entry is not None
        )

    @property
    def bytes_only(self) -> bool:
        """Whether something is wanted that is read from the bytes."""
        return self.hex or self.map


class Inspection:
    """What was found; parts that were not asked for are ``None``."""

    def __init__(self, path: str, kind: str, size: int) -> None:
        self.path = path
        self.kind = kind
        self.size = size
        self.overview: dict[str, Any] | None = None
        self.problems: list[str] = []
        self.entries: Sequence[EntryRow] | None = None
        self.metadata: list[MetadataField] | None = None
        self.tensors: list[TensorInfo] | None = None
        self.keys: list[str] | None = None
        self.stats: list[tuple[str, TensorStats | str]] | None = None
        self.entry: OneEntry | None = None
        self.fields: list[HexLine] | None = None
        self.fields_error: str | None = None
        self.regions: list[MapRegion] | None = None
        self.template: ShownTemplate | None = None
        self.misfits: list[str] | None = None

    @property
    def exit_code(self) -> int:
        """Return 1 when the file is damaged and shown only in part, its template fails, or it does not fit a model."""
        fails = self.template is not None and self.template.problem is not None
        return int(bool(self.problems or self.fields_error or fails or self.misfits))

    def to_json(self) -> dict[str, Any]:
        """Return every part that was asked for."""
        return self._json(list)

    def streamed_json(self) -> dict[str, Any]:
        """Return the same with the entries made one by one while they are written."""
        from atlas_kit.codecs.json_text import Streamed

        return self._json(Streamed)

    def _json(self, listed: Callable[[Iterable[Any]], Any]) -> dict[str, Any]:
        from atlas_kit.operations.gguf_values import field_to_json, tensor_to_json

        out: dict[str, Any] = {**named("path", self.path), "format": self.kind, "size": self.size}
        out.update(self.overview or {})
        out["problems"] = self.problems
        if self.entries is not None:
            out["entries"] = listed(row.to_json() for row in self.entries)
        if self.keys is not None:
            out["keys"] = [named("key", key) for key in self.keys]
        if self.metadata is not None:
            out["metadata"] = [field_to_json(row) for row in self.metadata]
        if self.tensors is not None:
            shards = len({info.path for info in self.tensors}) > 1  # each with offsets of its own
            out["tensors"] = [
                tensor_to_json(info) | ({"shard": os.path.basename(info.path or "")} if shards else {})
                for info in self.tensors
            ]
        if self.stats is not None:
            out["stats"] = [
                {**named("name", name), **({"problem": s} if isinstance(s, str) else s.to_json())}
                for name, s in self.stats
            ]
        if self.entry is not None:
            out["entry"] = self.entry.to_json()
        if self.template is not None:
            out["template"] = self.template.to_json()
        if self.misfits is not None:
            out["fits"] = not self.misfits
            out["misfits"] = self.misfits
        if self.fields is not None:
            out["fields"] = [line.to_json() for line in self.fields]
            out["fields_error"] = self.fields_error
        if self.regions is not None:
            out["regions"] = [region.to_json() for region in self.regions]
        return out


@takes_source
def inspect_file(
    source: Source, wanted: Wanted | None = None, keys: Keys | None = None, progress: Progress | None = None
) -> Inspection:
    """Look into a file of any known format.

    Raises
    ------
    AtlasError
        The file cannot be read, or nothing of it is intact; ``Wanted(hex=True)`` and ``map`` show such files as
        far as they go. Of what is damaged, the rest is shown, and ``Inspection.problems`` says so.
    """
    wanted = wanted or Wanted()
    kind = detect(source)
    result = Inspection(source.name, kind or "unknown", source.size)
    if wanted.bytes_only:
        _from_bytes(source, kind, wanted, result, Keys() if keys is None else keys)
    if not wanted.parts and not wanted.overview:
        return result
    if kind == "gguf":
        _inspect_model(source, wanted, result, progress)
        return result
    is_imatrix = kind is None and is_dat(source)
    if wanted.template and (kind is not None or is_imatrix):
        raise InvalidParamError("only a model has a chat template", path=source.name)
    if is_imatrix:
        _inspect_imatrix(source, wanted, result)
        return result
    if wanted.fits is not None and kind is not None:
        raise InvalidParamError(
            "only adapters, projectors and importance matrices fit a model, and this is none",
            path=source.name,
        )
    keys = Keys() if keys is None else keys
    try:
        _inspect_opened(source, wanted, result, keys, progress)
    except (FileCorruptError, MagicMismatchError, VersionMismatchError) as error:
        if kind in ("safetensors", "npz"):
            _inspect_carrier(source, kind, wanted, result, progress, error)
            return result
        if not _is_memory(source, kind) or not _inspect_remains(source, wanted, result, keys, progress):
            raise
        result.problems.insert(0, error.message.removeprefix("this is not a .atlas file: "))
    return result


# --- memory files --------------------------------------------------------------------------------------


def _inspect_opened(
    source: Source, wanted: Wanted, result: Inspection, keys: Keys, progress: Progress | None
) -> None:
    try:
        opened = open_given(source, keys)
    except KeyRequiredError:
        if not wanted.overview:
            raise
        result.overview = _sealed_overview(source)
        _check(source, result, Keys())
        return
    with opened:
        if opened.kind == "safetensors":
            from atlas_kit.formats.safetensors import check_safetensors

            _say_first(result, check_safetensors(source))
        _inspect_memory(opened, wanted, result, progress)
        if opened.kind == "atlas" and wanted.overview:
            _check(source, result, keys)
        elif opened.kind == "npz" and wanted.overview and source.size <= CHECKED:
            from atlas_kit.formats.npz import check_npz

            _say_first(result, check_npz(source))


def _check(source: Source, result: Inspection, keys: Keys) -> None:
    """Say of a file that could be opened what is wrong with it all the same, unless that takes long."""
    from atlas_kit.formats.atlas.check import check_atlas

    if source.size > CHECKED:
        return
    _say_first(result, check_atlas(source, **keys.options()))


def _is_memory(source: Source, kind: str | None) -> bool:
    """Tell whether a file that cannot be opened is a damaged memory file, and not some other kind under its name."""
    if kind != "atlas" and not source.name.lower().endswith(".atlas"):
        return False
    known = None if by_content(source.read_upto(0, 64), source.size) == "atlas" else recognise(source)
    return known is None or not known.lost


def _inspect_remains(
    source: Source, wanted: Wanted, result: Inspection, keys: Keys, progress: Progress | None
) -> bool:
    """Look into what is intact of a damaged memory file; tell whether anything is."""
    from atlas_kit.formats.atlas.remains import open_remains

    try:
        memory = open_remains(source, **keys.options())
    except KeyRequiredError:
        if not keys.ask_for(source.name):
            return False
        memory = open_remains(source, **keys.options())
    except AtlasError:
        return False
    if not len(memory):
        return False
    result.kind = "atlas"
    _inspect_memory(Opened(source, "atlas", memory), wanted, result, progress)
    if result.overview is not None:
        result.overview["readable"] = False
    return True


def _inspect_carrier(
    source: Source,
    kind: str,
    wanted: Wanted,
    result: Inspection,
    progress: Progress | None,
    error: AtlasError,
) -> None:
    """Look into what is intact of a damaged safetensors or npz file."""
    from atlas_kit.operations.interchange import read_remains

    try:
        memory, recorded, said = read_remains(source, kind, read=source.size <= CHECKED)
    except AtlasError:
        raise error from None
    about = f'"{error.key}": ' if error.key else ""
    result.problems.append(f"{about}{error.message.rstrip('.')}; {said}")
    _inspect_memory(Opened(source, kind, memory, recorded), wanted, result, progress)
    if result.overview is not None:
        result.overview["readable"] = False


def _inspect_memory(opened: Opened, wanted: Wanted, result: Inspection, progress: Progress | None) -> None:
    from atlas_kit.operations.entry_rows import EntryRow, PackedRows

    if wanted.template:
        raise InvalidParamError("only a model has a chat template", path=opened.name)
    memory = opened.memory
    if wanted.overview:
        _memory_overview(opened, result)
    if wanted.entries:
        result.entries = PackedRows(map(EntryRow.of, memory.entries()))
    if wanted.keys:
        result.keys = list(memory)
    if wanted.tensors:
        result.entries = PackedRows(EntryRow.of(entry) for entry in memory.entries() if entry.dtype_id)
    if wanted.stats:
        from atlas_kit.operations.inspect_parts import memory_stats

        result.stats = memory_stats(memory, progress)
    if wanted.entry is not None:
        from atlas_kit.operations.inspect_parts import one_entry

        result.entry = one_entry(memory, wanted.entry, opened.name)


def _sealed_overview(source: Source) -> dict[str, Any]:
    """Return what an encrypted file says without its key; none of it is authenticated."""
    from atlas_kit.formats.atlas import layout

    values = layout.HEADER_V3.unpack(source.read(0, layout.HEADER_V3.size))
    header = dict(zip(layout.names_of(layout.HeaderV3), values, strict=True))
    return {
        "version": 3,
        "sealed": True,
        "count": header["entry_total"],
        "created": header["created_time"],
        "modified": header["modified_time"],
        "model_hash": header["model_hash"].hex() if any(header["model_hash"]) else None,
        "opened_by": "a passphrase" if header["kdf"] else "a key file",
    }


def _memory_overview(opened: Opened, result: Inspection) -> None:
    from atlas_kit.operations.entry_rows import EntryRow

    memory = opened.memory
    count = len(memory)
    types: Counter[str] = Counter()
    codecs: Counter[str] = Counter()
    listed, payload, stored, tensors = [], 0, 0, 0
    for number, entry in enumerate(memory.entries()):
        if number >= COUNTED:
            break
        row = EntryRow.of(entry)
        types[row.type_name] += 1
        codecs[row.codec] += 1
        payload += row.size
        stored += row.stored_size
        tensors += row.dtype is not None
        if number < LISTED:
            listed.append(row)
    result.entries = listed
    facts: dict[str, Any] = {"version": memory.version, "dialect": memory.dialect}
    if opened.kind != "atlas":
        facts = {"recorded_version": opened.recorded}
    facts.update(
        count=count,
        counted=min(count, COUNTED),
        payload_size=payload,
        stored_size=stored,
        types=dict(types),
        codecs=dict(codecs),
        tensor_count=tensors,
        created=memory.created,
        modified=memory.modified,
        model_hash=memory.model_hash.hex() if any(memory.model_hash) else None,
    )
    if opened.kind == "atlas":
        facts.update(garbage=memory.garbage, generation=memory.generation)
        facts["warnings"] = [finding.to_json() for finding in memory.warnings]
    if DESCRIPTION in memory:
        from atlas_kit.operations.inspect_parts import learned_memory

        facts["memory"] = learned_memory(memory)
    if may_hold_episodes(memory):
        from atlas_kit.operations.episodes import readable

        facts["episodes"] = readable(memory)
    result.overview = facts


def _say_first(result: Inspection, findings: Sequence[Finding]) -> None:
    """Say the first error that a file has, and how many more there are."""
    errors = [finding for finding in findings if finding.severity == "error"]
    for error in errors[:1]:
        about = f'"{error.key}": ' if error.key else ""
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        result.problems.append(f"{about}{error.message}{more}")


# --- models --------------------------------------------------------------------------------------------


def _inspect_model(source: Source, wanted: Wanted, result: Inspection, progress: Progress | None) -> None:
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.formats.gguf.check import check_structure
    from atlas_kit.formats.gguf.journal import check_journal

    check_journal(source.path)
    errors, scan = check_structure(source)
    if scan.stage == "prefix" and isinstance(
        scan.error, MagicMismatchError
    ):  # only its name says that it is one
        raise scan.error
    _say_first(result, errors)
    with (
        GGUFFile(source, scan, owns_source=False)
        if errors
        else GGUFFile.open(source, shards=not wanted.one_shard, tolerant=True)
    ) as model:
        result.size = model.size
        if model.error is not None and not errors:
            model.error.path = None
            result.problems.append(str(model.error))
        for shard in model.shards[1:]:
            for error in check_structure(shard.source)[0][:1]:
                result.problems.append(f"{os.path.basename(shard.path or '')}: {error.message}")
        if wanted.overview:
            from atlas_kit.operations.model_overview import model_overview

            result.overview = model_overview(model)
        if wanted.fits is not None:
            result.misfits = _misfits(model, wanted.fits)
        if wanted.keys or wanted.entries:
            result.metadata = model.fields
        if wanted.tensors or wanted.entries:
            result.tensors = model.tensor_infos
        if wanted.stats:
            from atlas_kit.operations.inspect_parts import model_stats

            result.stats = model_stats(model, progress)
        if wanted.template:
            _template(model, result)
        if wanted.entry is not None:
            from atlas_kit.operations.inspect_parts import one_of_model

            result.entry = one_of_model(model, wanted.entry)


def _inspect_imatrix(source: Source, wanted: Wanted, result: Inspection) -> None:
    """Look into an importance matrix of the format from before GGUF."""
    from atlas_kit.formats.imatrix import read_dat
    from atlas_kit.operations.companions import imatrix_facts

    found = read_dat(source)
    result.kind = "imatrix"
    result.overview = {"companion": imatrix_facts(found)}
    if wanted.fits is not None:
        result.misfits = _misfits(found, wanted.fits)


def _misfits(companion: GGUFFile | Imatrix, path: str) -> list[str]:
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.operations.companions import misfits

    with GGUFFile.open(path) as model:
        return misfits(companion, model)


def _template(model: GGUFFile, result: Inspection) -> None:
    from atlas_kit.formats.gguf.chat_template import shown_template

    result.template = shown_template(model)
    if result.template is None:
        raise InvalidParamError("the model has no chat template", path=model.path)


# --- bytes ---------------------------------------------------------------------------------------------


def _from_bytes(source: Source, kind: str | None, wanted: Wanted, result: Inspection, keys: Keys) -> None:
    if source.path is None:
        raise InvalidParamError("only the bytes of a file can be viewed, not those of standard input")
    if kind is None and source.name.lower().endswith(".atlas"):
        kind = "atlas"  # its first bytes are damaged, which is what one wants to see
    if kind not in ("atlas", "gguf", "safetensors"):
        raise InvalidParamError(f"the bytes of {kind or 'unknown'} files cannot be shown", path=source.name)
    ask_if_encrypted(source, keys)
    if wanted.hex:
        from atlas_kit.operations.inspect_parts import hex_lines

        result.fields, result.fields_error = hex_lines(source, kind, wanted.limit, keys.options())
    if wanted.map:
        from atlas_kit.operations.byte_map import regions_of

        result.regions = regions_of(source, kind, keys.options())
