"""Hashes of tensors and of a whole model: the same whatever the metadata, the shards or the order are."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import xxhash

from atlas_kit.errors import AtlasError
from atlas_kit.formats.gguf.file import GGUFFile
from atlas_kit.formats.gguf.tensors import TensorInfo


@dataclass(frozen=True)
class TensorDigest:
    """The hashes of one tensor's bytes as hex; ``None`` and ``error`` where they cannot be read."""

    name: str
    type_name: str
    dims: tuple[int, ...]
    nbytes: int | None
    xxh3_64: str | None
    xxh3_128: str | None
    error: AtlasError | None = None


@dataclass(frozen=True)
class ModelDigest:
    """The hashes of a model: ``whole`` is ``None`` when a tensor could not be read."""

    tensors: tuple[TensorDigest, ...]
    whole: str | None

    def by_name(self) -> dict[str, TensorDigest]:
        """Return the tensors' hashes by name (of duplicates the first)."""
        found: dict[str, TensorDigest] = {}
        for tensor in self.tensors:
            found.setdefault(tensor.name, tensor)
        return found


def hash_tensors(file: GGUFFile, progress: Callable[[int], None] | None = None) -> ModelDigest:
    """Hash every tensor, and the model as a whole, in one pass and bounded memory.

    ``whole`` is the XXH3-128 of, for each tensor in the order of its name's bytes: length of the name (u64),
    name, type (i32), number of dimensions (u32), dimensions (u64 each), XXH3-128 of its bytes; numbers are
    little-endian. So editing metadata, moving or reordering tensors, splitting and joining do not change it.
    ``progress`` is told the bytes hashed so far.
    """
    done = 0
    digests = []
    for info in file.tensor_infos:
        digest = _hash_one(file, info)
        digests.append(digest)
        done += digest.nbytes or 0
        if progress is not None:
            progress(done)
    return ModelDigest(tuple(digests), _whole(file.tensor_infos, digests))


def _hash_one(file: GGUFFile, info: TensorInfo) -> TensorDigest:
    short, long = xxhash.xxh3_64(), xxhash.xxh3_128()
    try:
        for piece in file.iter_raw(info):
            short.update(piece)
            long.update(piece)
    except AtlasError as error:
        return TensorDigest(info.name, info.type_name, info.dims, info.nbytes, None, None, error)
    return TensorDigest(
        info.name, info.type_name, info.dims, info.nbytes, short.hexdigest(), long.hexdigest()
    )


def _whole(infos: list[TensorInfo], digests: list[TensorDigest]) -> str | None:
    records = []
    for info, digest in zip(infos, digests, strict=True):
        if digest.xxh3_128 is None:
            return None
        name = info.name.encode("utf-8", "surrogateescape")
        head = struct.pack("<iI", int(info.type), len(info.dims)) + struct.pack(
            f"<{len(info.dims)}Q", *info.dims
        )
        records.append((name, struct.pack("<Q", len(name)) + name + head + bytes.fromhex(digest.xxh3_128)))
    whole = xxhash.xxh3_128()
    for _, record in sorted(records):
        whole.update(record)
    return whole.hexdigest()
