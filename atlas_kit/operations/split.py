"""Split a model into shards that llama.cpp loads, named as ``llama-gguf-split`` names them."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import InvalidParamError
from atlas_kit.operations.inputs import require_kind
from atlas_kit.storage.given import Given, Progress, StrPath, check_output, takes_source
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.formats.gguf.split import Shard


@dataclass
class Part:
    """One shard: its file, how many tensors it holds, and its size."""

    path: str
    tensors: int
    size: int

    def to_json(self) -> dict[str, Any]:
        """Return the shard as JSON-ready data."""
        return {**named("path", self.path), "tensors": self.tensors, "size": self.size}


@dataclass
class Split:
    """The shards that were (or, in a dry run, would be) written."""

    path: str
    parts: list[Part] = field(default_factory=list)
    dry_run: bool = False
    notes: list[str] = field(default_factory=list)

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            **named("path", self.path),
            "shards": [part.to_json() for part in self.parts],
            "dry_run": self.dry_run,
            "notes": self.notes,
        }


@dataclass
class SplitOptions:
    """Where a shard ends: at a size in bytes, at a number of tensors, or at whichever comes first.

    ``metadata_alone`` gives the first shard no tensors. ``stem`` is what the names of the shards start with,
    path included; beside the model and by its name where it is ``None``.
    """

    max_size: int | None = None
    max_tensors: int | None = None
    metadata_alone: bool = False
    stem: StrPath | None = None
    dry_run: bool = False
    force: bool = False


@takes_source
def split_file(source: Source, options: SplitOptions, progress: Progress | None = None) -> Split:
    """Split a model, whole or in shards already, into shards; all are written or none.

    Raises
    ------
    InvalidParamError
        It is no GGUF file, no limit was given, or all of it fits into one shard.
    FileAccessError
        A shard exists and ``force`` is off, or cannot be written.
    """
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.formats.gguf.split import plan_shards

    require_kind(source, ["gguf"], "only a GGUF model is split")
    if options.max_size is None and options.max_tensors is None:
        raise InvalidParamError("a size or a number of tensors must say where to split", path=source.name)
    with GGUFFile.open(source) as model:
        model.require_data()
        shards = plan_shards(
            model, max_size=options.max_size, max_tensors=options.max_tensors,
            metadata_alone=options.metadata_alone,
        )  # fmt: skip
        if len(shards) == 1:
            raise InvalidParamError(
                "the whole model fits into one such shard: there is nothing to split", path=source.name
            )
        names = _names(model, options.stem, len(shards))
        result = Split(source.name, dry_run=options.dry_run)
        for shard, name in zip(shards, names, strict=True):
            result.parts.append(Part(name, len(shard.tensors), shard.size))
        larger = [shard.number for shard in shards if shard.size > (options.max_size or shard.size)]
        if larger:
            result.notes.append(_larger(larger))
        if not options.dry_run:
            inputs: list[Given] = [one.source for one in model.shards]
            for name in names:
                check_output(name, inputs, options.force)
            _write(model, shards, names, progress)
    return result


def _larger(numbers: Sequence[int]) -> str:
    """Return what is said of shards that are larger than the size."""
    if len(numbers) == 1:
        return f"shard {numbers[0]} is larger: one tensor, or the metadata, is too large for the size"
    return (
        f"{len(numbers)} shards are larger, the first is {numbers[0]}: one tensor, or the metadata, is too large for "
        "the size"
    )


def _names(model: GGUFFile, stem: StrPath | None, count: int) -> list[str]:
    from atlas_kit.formats.gguf.shards import shard_name, stem_of

    if stem is None:
        if model.path is None:
            raise InvalidParamError("the shards of standard input need a name")
        stem = stem_of(model.path)
    return [shard_name(os.fsdecode(stem), number, count) for number in range(1, count + 1)]


def _write(model: GGUFFile, shards: Sequence[Shard], names: Sequence[str], progress: Progress | None) -> None:
    """Write all shards; what was made is removed again when one fails."""
    from atlas_kit.formats.gguf.split import write_shard

    total = sum(shard.size for shard in shards)
    made: list[str] = []
    before = 0
    try:
        for shard, name in zip(shards, names, strict=True):
            if not os.path.lexists(name):
                made.append(name)
            start = before

            def tell(done: int, start: int = start) -> None:
                if progress:
                    progress("writing shards", start + done, total)

            write_shard(name, model, shard, len(shards), tell)
            before += shard.size
    except BaseException:
        for name in made:
            with contextlib.suppress(OSError):
                os.unlink(name)
        raise
