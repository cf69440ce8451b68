"""Parts of an inspection that are made only on request: fields of the bytes, and one entry in full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.text import text_at_start
from atlas_kit.errors import AtlasError, printable
from atlas_kit.operations.hex_line import HexLine

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from atlas_kit.formats.atlas import Entry, MemoryFile
    from atlas_kit.formats.gguf import GGUFFile, TensorInfo
    from atlas_kit.operations.tensor_numbers import TensorStats
    from atlas_kit.storage.given import Progress
    from atlas_kit.storage.source import Source

#: Bytes of a payload that the view of one entry shows.
PREVIEW = 2048


@dataclass
class OneEntry:
    """One entry, metadata field or tensor: its row, and the beginning of its payload."""

    info: dict[str, Any]
    preview: bytes = b""
    is_text: bool = False
    truncated: bool = False
    stats: TensorStats | None = None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry as JSON-ready data."""
        shown = self.preview.decode("utf-8", "replace") if self.is_text else self.preview.hex()
        return {**self.info, ("preview_text" if self.is_text else "preview_hex"): shown,
                "preview_truncated": self.truncated, "problem": self.problem,
                "stats": self.stats.to_json() if self.stats else None}  # fmt: skip


def memory_stats(memory: MemoryFile, progress: Progress | None) -> list[tuple[str, TensorStats | str]]:
    """Return the statistics of each array of numbers, or why an entry has none."""
    from atlas_kit.operations.tensor_numbers import entry_numbers, stats_of

    out: list[tuple[str, TensorStats | str]] = []
    tensors = [entry for entry in memory.entries() if entry.dtype_id]
    for number, entry in enumerate(tensors):
        try:
            out.append((entry.key, stats_of(entry_numbers(entry))))
        except AtlasError as error:
            out.append((entry.key, error.message))
        if progress:
            progress("reading tensors", number + 1, len(tensors))
    return out


def learned_memory(memory: MemoryFile) -> dict[str, Any] | None:
    """Return what the file says of the memory that learned, if it holds one."""
    from atlas_kit.persistence.snapshot import find_description

    try:
        description = find_description(memory)
    except AtlasError as error:
        return {"summary": f"cannot be read: {error.message}"}
    if description is None:
        return None
    return {name: value for name, value in description.to_json().items() if not name.startswith("path")}


def one_entry(memory: MemoryFile, key: str, path: str) -> OneEntry:
    """Return everything about one entry."""
    from atlas_kit.operations.entry_rows import EntryRow
    from atlas_kit.operations.names import not_found

    entry = memory.get(key)
    if entry is None:
        raise not_found(key, memory, path)
    one = OneEntry(EntryRow.of(entry).to_json())
    try:
        _preview(entry, one)
        if entry.dtype_id:
            from atlas_kit.operations.tensor_numbers import entry_numbers, stats_of

            one.stats = stats_of(entry_numbers(entry))
    except AtlasError as error:
        one.problem = error.message
    return one


def _preview(entry: Entry, one: OneEntry) -> None:
    """Read the whole payload, which checks it, and keep its beginning."""
    start = b""
    for chunk in entry.chunks():
        if len(start) < PREVIEW + 4:
            start += bytes(chunk[: PREVIEW + 4 - len(start)])
    one.truncated = entry.size > PREVIEW
    text = text_at_start(start[:PREVIEW], cut=one.truncated)
    if text is None:
        one.preview, one.truncated = start[:256], entry.size > 256
    else:
        one.preview, one.is_text = text.encode(), True


def model_stats(model: GGUFFile, progress: Progress | None) -> list[tuple[str, TensorStats | str]]:
    """Return the statistics of each tensor, or why it has none."""
    out: list[tuple[str, TensorStats | str]] = []
    for number, info in enumerate(model.tensor_infos):
        out.append((info.name, _tensor_stats(model, info)))
        if progress:
            progress("reading tensors", number + 1, len(model.tensor_infos))
    return out


def _tensor_stats(model: GGUFFile, info: TensorInfo) -> TensorStats | str:
    from atlas_kit.operations.tensor_numbers import stats_of

    try:
        return stats_of(_numbers(model, info))
    except AtlasError as error:
        return error.message


def _numbers(model: GGUFFile, info: TensorInfo) -> Iterator[np.ndarray[Any, Any]]:
    """Yield a tensor's weights as flat arrays: wide numbers as they are, everything else as float32."""
    import numpy as np

    row = info.row
    if row is None or row.dtype is None or row.size < 4:
        yield from (piece.reshape(-1) for piece in model.iter_dequantized(info))
        return
    for raw in model.iter_raw(info):
        yield np.frombuffer(raw, f"{model.byte_order}{row.dtype}")


def one_of_model(model: GGUFFile, key: str) -> OneEntry:
    """Return everything about one metadata field or tensor."""
    from atlas_kit.codecs.json_text import dumps, to_bytes
    from atlas_kit.operations.gguf_values import field_to_json, tensor_to_json
    from atlas_kit.operations.names import not_found

    row = model.metadata.get(key)
    if row is not None:
        one = OneEntry({**field_to_json(row), "offset": row.offset}, is_text=True)
        shown = (
            row.items if isinstance(row.items, str) else dumps(field_to_json(row).get("value", row.head(64)))
        )
        raw = to_bytes(shown)
        one.preview, one.truncated = raw[:PREVIEW], len(raw) > PREVIEW or (row.is_array and row.count > 64)
        return one
    info = model.tensors.get(key)
    if info is None:
        raise not_found(key, [*model.metadata, *model.tensors], model.path)
    one = OneEntry(tensor_to_json(info))
    stats = _tensor_stats(model, info)
    if isinstance(stats, str):
        one.problem = stats
        return one
    one.stats = stats
    one.preview = next(iter(model.iter_raw(info, 256)), b"")
    one.truncated = (info.nbytes or 0) > len(one.preview)
    return one


def hex_lines(
    source: Source, kind: str, limit: int, secret: dict[str, Any]
) -> tuple[list[HexLine], str | None]:
    """Return the bytes field by field, and what stopped the walk, if anything did."""
    rows: Any
    error: Exception | None
    if kind == "gguf":
        from atlas_kit.formats.gguf import hex_fields

        rows, error = hex_fields(source, limit)
        lines = [
            HexLine(r.offset, r.size, r.data, r.name, r.type, str(r.value), r.meaning or "") for r in rows
        ]
        return lines, None if error is None else _reason(error)
    if kind == "atlas":
        from atlas_kit.formats.atlas.view import hex_fields as atlas_fields

        rows, error = atlas_fields(source, limit, **secret)
        return _with_bytes(source, rows), None if error is None else _reason(error)
    from atlas_kit.operations.byte_map import safetensors_fields

    return safetensors_fields(source), None


def _reason(error: Exception) -> str:
    if isinstance(error, AtlasError):
        error.path = None
    return " ".join(str(error).split())


def _with_bytes(source: Source, spans: Any) -> list[HexLine]:
    lines = []
    for span in spans:
        data = source.read_upto(span.offset, min(span.size, 16))
        value = value_text(span.value)
        lines.append(HexLine(span.offset, span.size, data, span.name, span.type, value, span.note or ""))
    return lines


def value_text(value: Any) -> str:
    """Return a value in one short line; bytes only where they are text (the column of bytes shows them)."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        raw = bytes(value[:48])
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            return ""
        if not text or any(ord(char) < 32 and char not in "\t\r\n" for char in text):
            return ""
        return f'"{printable(text)}"' + ("..." if len(value) > 48 else "")
    if isinstance(value, int) and value >= 0x1_0000_0000_0000:
        return f"{value:#x}"
    return str(value)
