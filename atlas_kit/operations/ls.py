"""List what a file holds: entries of a memory file, or metadata and tensors of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.operations.inputs import open_given
from atlas_kit.operations.names import matches
from atlas_kit.storage.given import Given
from atlas_kit.storage.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from atlas_kit.formats.gguf import MetadataField, TensorInfo
    from atlas_kit.operations.entry_rows import EntryRow


@dataclass
class Listing:
    """Entries, or metadata fields and tensors, in the file's order; ``chosen`` where patterns chose among them."""

    path: str
    kind: str
    entries: list[EntryRow] = field(default_factory=list)
    metadata: list[MetadataField] = field(default_factory=list)
    tensors: list[TensorInfo] = field(default_factory=list)
    chosen: bool = False

    @property
    def exit_code(self) -> int:
        """Return 1 when there were patterns and no name matches one."""
        return int(self.chosen and not (self.entries or self.metadata or self.tensors))

    def names(self) -> Iterable[str]:
        """Yield every key and name."""
        yield from (row.key for row in self.entries)
        yield from (row.key for row in self.metadata)
        yield from (info.name for info in self.tensors)

    def to_json(self) -> list[dict[str, Any]]:
        """Return one object per entry, key or tensor."""
        if self.kind != "gguf":
            return [row.to_json() for row in self.entries]
        from atlas_kit.operations.gguf_values import field_to_json, tensor_to_json

        return [
            *({"kind": "metadata", **field_to_json(row)} for row in self.metadata),
            *({"kind": "tensor", **tensor_to_json(info)} for info in self.tensors),
        ]


def list_file(
    given: Given, patterns: Sequence[str] = (), keys: Keys | None = None, *, one_shard: bool = False
) -> Listing:
    """List a file; with patterns (``*``, ``?``, ``[...]``) only what one of them matches."""
    with open_given(given, keys, one_shard=one_shard) as opened:
        listing = Listing(opened.name, opened.kind, chosen=bool(patterns))
        if opened.kind == "gguf":
            listing.metadata = [row for row in opened.gguf.fields if matches(row.key, patterns)]
            listing.tensors = [info for info in opened.gguf.tensor_infos if matches(info.name, patterns)]
        else:
            from atlas_kit.operations.entry_rows import EntryRow

            listing.entries = [
                EntryRow.of(entry) for entry in opened.memory.entries() if matches(entry.key, patterns)
            ]
    return listing
