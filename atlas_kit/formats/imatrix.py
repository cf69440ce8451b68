"""Importance matrices: how strongly each input of a model's matrices is used, by which quantisers choose what to keep.

Two formats of llama.cpp: tensors in a GGUF file (``NAME.in_sum2`` and ``NAME.counts``), and the ``.dat`` files from
before, which have no magic: a count, then for each matrix its name, the number of calls and the sums.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import FileCorruptError, TruncatedError
from atlas_kit.formats.foreign import DAT_LONGEST_NAME
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from atlas_kit.formats.gguf import GGUFFile


@dataclass(frozen=True)
class ImatrixEntry:
    """One matrix: inputs, how many matrices it stands for (experts), and how often it was called, least and most.

    ``counts`` are tokens in a GGUF file and calls, of a chunk of tokens each, in a ``.dat`` file.
    """

    name: str
    columns: int
    matrices: int
    counts: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """Return the entry as JSON-ready data."""
        return {
            "name": self.name,
            "columns": self.columns,
            "matrices": self.matrices,
            "counts": list(self.counts),
        }


@dataclass
class Imatrix:
    """What an importance matrix holds: entries, from how many chunks of text, of how many tokens, of which texts."""

    entries: list[ImatrixEntry] = field(default_factory=list)
    chunks: int | None = None
    chunk_size: int | None = None
    datasets: list[str] = field(default_factory=list)

    @property
    def unused(self) -> list[str]:
        """Names of matrices, or of experts in them, that the text has never called."""
        return [entry.name for entry in self.entries if entry.counts[0] == 0]


def read_dat(source: Source) -> Imatrix:
    """Read a ``.dat`` importance matrix without its numbers.

    Raises
    ------
    TruncatedError, FileCorruptError
        The file ends too early, or contradicts itself.
    """

    def number(at: int) -> int:
        return int(struct.unpack("<i", source.read(at, 4))[0])

    made, at = Imatrix(), 4
    for index in range(number(0)):
        length = number(at)
        if not 0 < length <= DAT_LONGEST_NAME:
            raise FileCorruptError(
                f"the name of matrix {index + 1} has {length} bytes", path=source.path, offset=at
            )
        name = source.read(at + 4, length).decode("utf-8", "replace")
        calls, columns = struct.unpack("<ii", source.read(at + 4 + length, 8))
        at += 12 + length
        if columns < 0 or at + 4 * columns > source.size:
            raise TruncatedError(
                "the file ends before the sums of this matrix", path=source.path, offset=at, key=name
            )
        made.entries.append(ImatrixEntry(name, columns, 1, (calls, calls)))
        at += 4 * columns
    if source.size - at >= 4:  # of files from 2024 on
        made.chunks = number(at)
    if source.size - at >= 8:
        length = number(at + 4)
        if 0 < length <= source.size - at - 8:
            made.datasets = [source.read(at + 8, length).decode("utf-8", "replace")]
    return made


def of_gguf(model: GGUFFile) -> Imatrix | None:
    """Return the importance matrix that a GGUF file is; ``None`` if it is none."""
    if model.get("general.type") != "imatrix":
        return None
    import numpy as np

    def whole(key: str) -> int | None:
        value = model.get(key)
        return value if isinstance(value, int) else None

    datasets = model.metadata.get("imatrix.datasets")
    made = Imatrix(chunks=whole("imatrix.chunk_count"), chunk_size=whole("imatrix.chunk_size"))
    made.datasets = (
        [str(text) for text in datasets.items] if datasets is not None and datasets.is_array else []
    )
    for name, info in model.tensors.items():
        if not name.endswith(".in_sum2"):
            continue
        stem = name.removesuffix(".in_sum2")
        counts = model.tensors.get(f"{stem}.counts")
        found = np.zeros(1) if counts is None or not counts.elements else model.dequantize(counts)
        made.entries.append(
            ImatrixEntry(stem, info.row_length, info.rows, (int(found.min()), int(found.max())))
        )
    return made
