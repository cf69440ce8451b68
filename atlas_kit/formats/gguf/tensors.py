"""One tensor of a GGUF file: what its info says, and where its bytes are. Reads nothing itself."""

from __future__ import annotations

from dataclasses import dataclass

from atlas_kit.formats.gguf import tables


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's info, with what follows from it.

    Attributes
    ----------
    dims
        Lengths as stored: the fastest running dimension first.
    type
        A ``GGMLType``, or a plain number for a type that is not known.
    offset
        Where its data is, counted from the file's ``data_start``.
    info_offset, info_size
        Where the info itself is in the header.
    data_start, path
        Of the file (the shard) that it is in.
    """

    name: str
    dims: tuple[int, ...]
    type: int
    offset: int
    info_offset: int = -1
    info_size: int = -1
    data_start: int = 0
    path: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths in NumPy's order: the fastest running dimension last."""
        return self.dims[::-1]

    @property
    def type_name(self) -> str:
        """The type's name, such as ``Q8_0``."""
        return tables.ggml_type_name(self.type)

    @property
    def row(self) -> tables.GGMLTypeRow | None:
        """What is known about the type, or ``None``."""
        return tables.GGML_TYPE_BY_NUMBER.get(self.type)

    @property
    def elements(self) -> int:
        """Number of weights (exact: Python integers do not wrap)."""
        count = 1
        for dim in self.dims:
            count *= dim
        return count

    @property
    def nbytes(self) -> int | None:
        """Bytes of data; ``None`` for an unknown type or rows that are not whole blocks."""
        return tables.tensor_nbytes(self.dims, self.type)

    @property
    def row_length(self) -> int:
        """Weights in one row: the fastest running dimension (1 for a tensor without dimensions)."""
        return self.dims[0] if self.dims else 1

    @property
    def row_bytes(self) -> int | None:
        """Bytes of one row (``dims[0]`` weights); ``None`` as for ``nbytes``."""
        return tables.tensor_nbytes(self.dims[:1], self.type)

    @property
    def rows(self) -> int:
        """Number of rows: the product of all dimensions but the first."""
        count = 1
        for dim in self.dims[1:]:
            count *= dim
        return count

    @property
    def file_offset(self) -> int:
        """Where its data starts in its file."""
        return self.data_start + self.offset

    def to_schema(self) -> dict[str, object]:
        """Return the info as the schema builds it."""
        return {
            "name": self.name,
            "n_dimensions": len(self.dims),
            "dimensions": list(self.dims),
            "type": self.type,
            "offset": self.offset,
        }
