"""Make a memory file smaller: a codec per entry, lossless; quantised numbers only when asked for.

An entry that does not get smaller by its codec is stored as it is. Quantising reports for each tensor how far
the stored numbers are from the given ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import InvalidParamError
from atlas_kit.formats.atlas import tables
from atlas_kit.formats.endings import require_ending
from atlas_kit.operations import secrecy
from atlas_kit.operations.compressed import Compressed, CompressOptions, EntryRatio
from atlas_kit.operations.convert import copy_header
from atlas_kit.operations.inputs import Opened, open_given
from atlas_kit.operations.outputs import Output, output_name, require_free, write_memory_file
from atlas_kit.operations.tensor_numbers import difference, entry_numbers
from atlas_kit.storage.given import Given, Progress
from atlas_kit.storage.keys import Keys

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import Entry, MemoryFile

QUANTIZE = {"f16": "float16", "bf16": "bfloat16", "q8_0": "q8_0"}
_FLOATS = ("float64", "float32", "float16", "bfloat16")
#: Payloads above this are judged by their beginning: coding them twice would take long.
SAMPLE = 1 << 23
_LARGE = 1 << 26
_F16_MAX = 65504.0


def compress_file(
    given: Given, output: Output, options: CompressOptions | None = None, keys: Keys | None = None,
    progress: Progress | None = None,
) -> Compressed:  # fmt: skip
    """Write a smaller copy of a memory file, of version 2 (or 3, when the source is encrypted or there is a secret)."""
    options = options or CompressOptions()
    require_free(output, [given, *([] if options.check is None else [options.check])], options.force)
    with open_given(given, keys) as opened:
        require_ending(output, "gguf" if opened.kind == "gguf" else "atlas")
        if opened.kind == "gguf":
            from atlas_kit.operations.quantize_model import quantize_model

            secrecy.require_no_secret(keys, path=opened.name)
            return quantize_model(opened, output, options, progress)
        if options.quantize is not None and options.quantize not in QUANTIZE:
            raise InvalidParamError(
                f"tensors of a memory are quantised to {', '.join(QUANTIZE)}, and not to {options.quantize}",
                path=opened.name,
            )
        if options.check is not None or options.requantize:
            raise InvalidParamError("only a model reads a text, or is quantised again", path=opened.name)
        memory = opened.memory
        out = _new_like(opened, Keys() if keys is None else keys, options.decrypt)
        rows = _plan(memory, out, options, progress)
        name = output_name(output)
        result = Compressed(opened.name, name, opened.source.size, write_memory_file(out, output))
        result.entries = _finish(rows, out)
    return result


def _new_like(opened: Opened, keys: Keys, decrypt: bool) -> MemoryFile:
    from atlas_kit.formats.atlas import MemoryFile

    usual = secrecy.ENCRYPTED if opened.recorded == secrecy.ENCRYPTED else secrecy.PLAIN
    encrypted = opened.memory.version == secrecy.ENCRYPTED
    how: dict[str, Any] = {"encrypted": encrypted, "decrypt": decrypt, "path": opened.name}
    if secrecy.output_version(None, usual, keys=keys, **how) == secrecy.ENCRYPTED:
        return MemoryFile(version=3, **keys.for_writing())
    return MemoryFile(version=2)


def _plan(
    memory: MemoryFile, out: MemoryFile, options: CompressOptions, progress: Progress | None
) -> list[tuple[EntryRatio, _Quantised | None]]:
    """Put every entry into ``out`` with how it is to be stored."""
    copy_header(memory, out)
    rows = []
    count = len(memory)
    for number, entry in enumerate(memory.entries()):
        row = EntryRatio(entry.key, entry.size, entry.stored_size, 0, "", entry.dtype, entry.dtype)
        quantised = _quantise(entry, options.quantize, row) if options.quantize and entry.dtype_id else None
        plain = entry.replace(offset=None) if quantised is None else quantised.entry
        if plain.codec_id in _known_codecs():  # others are copied as they are
            codec = options.codec_name if _worth_it(plain, options) else "none"
            wanted = {"codec": codec, "level": options.level, "shuffle": options.shuffle}
            out.set(entry.key, plain.replace(wanted=wanted))
        else:
            out.set(entry.key, entry)
        rows.append((row, quantised))
        if progress:
            progress("compressing", number + 1, count)
    return rows


def _known_codecs() -> Any:
    from atlas_kit.codecs.table import BY_ID

    return BY_ID


def _worth_it(entry: Entry, options: CompressOptions) -> bool:
    """Tell whether a large payload's beginning gets smaller; small ones are tried when they are written."""
    if entry.size <= _LARGE or options.codec_name == "none":
        return True
    from atlas_kit.codecs import table

    start = bytearray()
    for chunk in entry.chunks():
        start += chunk
        if len(start) >= SAMPLE:
            break
    row = tables.DTYPE_BY_ID.get(entry.dtype_id)
    item = row.size if row and row.block == 1 and row.size > 1 and options.shuffle else 0
    sample = bytes(start[:SAMPLE])
    codec = table.by_name(options.codec_name)
    coded = table.encode_stream([sample], codec, level=options.level, shuffle_size=item)
    return sum(map(len, coded)) < len(sample) * 0.98


def _finish(rows: list[tuple[EntryRatio, _Quantised | None]], out: MemoryFile) -> list[EntryRatio]:
    """Fill in what is known only after saving."""
    done = []
    for row, quantised in rows:
        entry = out[row.key]
        row.stored_after, row.codec, row.dtype_after = entry.stored_size, entry.codec, entry.dtype
        if quantised is not None:
            row.error = difference(entry_numbers(quantised.source), entry_numbers(entry))
        done.append(row)
    return done


# --- quantising ----------------------------------------------------------------------------------------


def _quantise(entry: Entry, how: str, row: EntryRatio) -> _Quantised | None:
    """Return an entry of fewer bits per number, or ``None`` (with a note) where that cannot be."""
    dtype = tables.DTYPE_BY_NAME[QUANTIZE[how]]
    shape = entry.shape or ()
    if entry.dtype not in _FLOATS:
        return None
    size = tables.tensor_bytes(dtype, shape)
    if size is None:
        row.note = f"kept: rows of {shape[-1] if shape else 1} numbers are not whole blocks of 32"
        return None
    if size >= entry.size:
        row.note = "kept: it is as small already"
        return None
    peak = _peak(entry)
    if peak is None or (how == "f16" and peak > _F16_MAX) or (how == "q8_0" and peak / 127 > _F16_MAX):
        row.note = f"kept: it holds numbers that {how} cannot represent"
        return None
    return _Quantised(entry, dtype, size)


def _peak(entry: Entry) -> float | None:
    """Return the largest magnitude, or ``None`` when some number is not finite."""
    import numpy as np

    peak = 0.0
    for piece in entry_numbers(entry):
        if not piece.size:
            continue
        top = float(np.abs(piece).max())
        if not np.isfinite(top):
            return None
        peak = max(peak, top)
    return peak


class _Quantised:
    """A payload that is quantised while it is read, piece by piece."""

    def __init__(self, source: Entry, dtype: tables.DType, size: int) -> None:
        self.source = source
        self.size = size
        self._dtype = dtype
        self.entry = source.replace(
            payload=self, size=size, dtype_id=dtype.id, codec_id=0, filter_id=0, item_size=0, offset=None
        )

    def chunks(self) -> Iterator[bytes]:
        """Yield the quantised bytes."""
        import numpy as np

        from atlas_kit.codecs import numbers

        for piece in _blocks(entry_numbers(self.source), self._dtype.block):
            if self._dtype.name == "bfloat16":
                yield numbers.to_bfloat16(piece.astype(np.float32)).tobytes()
            elif self._dtype.name == "q8_0":
                yield numbers.to_q8_0(piece.astype(np.float32)).tobytes()
            else:
                yield piece.astype("<f2").tobytes()

    def read(self) -> bytes:
        """Return the quantised bytes."""
        return b"".join(self.chunks())

    def view(self) -> memoryview:
        """Return the quantised bytes."""
        return memoryview(self.read())


def _blocks(pieces: Any, block: int) -> Iterator[Any]:
    """Cut a stream of flat arrays where whole blocks end."""
    import numpy as np

    held = None
    for piece in pieces:
        joined = piece if held is None or not held.size else np.concatenate([held, piece])
        whole = joined.size // block * block
        held = joined[whole:]
        if whole:
            yield joined[:whole]


__all__ = ["CompressOptions", "Compressed", "EntryRatio", "compress_file"]
