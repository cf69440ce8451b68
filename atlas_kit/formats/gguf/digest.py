"""Hashes of tensors and of a whole model: the same whatever the metadata, the shards or the order are.

``hash_tensors`` reads every byte and finds accidents. ``model_identity`` reads samples, so that it takes no time on
a model of any size, and says to which model a memory belongs.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import xxhash

from atlas_kit.errors import AtlasError, InvalidParamError
from atlas_kit.formats.gguf.file import GGUFFile
from atlas_kit.formats.gguf.tensors import TensorInfo

#: First bytes of what an identity is the SHA-256 of: the samples' and that of every byte differ.
IDENTITY_TAG, FULL_IDENTITY_TAG = b"atlas-model-identity-1\0", b"atlas-model-identity-full-1\0"
#: Bytes of a sampled block, blocks of all tensors together, and the least and the most of one tensor.
BLOCK = 4096
BLOCKS, FEWEST, MOST = 4096, 2, 8


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
    whole = xxhash.xxh3_128()
    records = []
    for info, digest in zip(infos, digests, strict=True):
        if digest.xxh3_128 is None:
            return None
        records.append(_record(info, bytes.fromhex(digest.xxh3_128)))
    for record in _in_order(records):
        whole.update(record)
    return whole.hexdigest()


def _record(info: TensorInfo, digest: bytes) -> tuple[bytes, bytes]:
    """Return a tensor's name and what stands for it in the hash of a model."""
    name = info.name.encode("utf-8", "surrogateescape")
    head = struct.pack("<iI", int(info.type), len(info.dims)) + struct.pack(f"<{len(info.dims)}Q", *info.dims)
    return name, struct.pack("<Q", len(name)) + name + head + digest


def _in_order(records: list[tuple[bytes, bytes]]) -> Iterator[bytes]:
    return (record for _, record in sorted(records))


# --- identity ------------------------------------------------------------------------------------------


def model_identity(
    file: GGUFFile, *, full: bool = False, progress: Callable[[int], None] | None = None
) -> str:
    """Return which model this is, as 64 hexadecimal digits: what a memory is bound to (``model_hash``).

    It follows from the tensors' names, types, dimensions and samples of their bytes, so that it is the same for a
    model that was renamed, split, joined, reordered, made ATLAS-native or given other metadata; and it takes
    milliseconds, whatever the model's size. ``formats/gguf.md`` says how to compute it and what it cannot see.

    Parameters
    ----------
    full
        Hash every byte instead of samples: another number, for who wants to be sure.
    progress
        Is told the bytes hashed so far.

    Raises
    ------
    InvalidParamError
        The file holds no tensors, so that there is no model to tell from others.
    TruncatedError, FileCorruptError
        A tensor cannot be read, or its type is not known.
    """
    infos = file.tensor_infos
    if not infos:
        raise InvalidParamError("the file holds no tensors, so it has no identity", path=file.path)
    most = max(FEWEST, min(MOST, BLOCKS // len(infos)))
    done = 0
    records = []
    for info in infos:
        digest = hashlib.sha256(usedforsecurity=False)
        for piece in file.iter_raw(info) if full else _samples(file, info, most):
            digest.update(piece)
            done += len(piece)
        records.append(_record(info, digest.digest()))
        if progress is not None:
            progress(done)
    whole = hashlib.sha256(FULL_IDENTITY_TAG if full else IDENTITY_TAG, usedforsecurity=False)
    for record in _in_order(records):
        whole.update(record)
    return whole.hexdigest()


def _samples(file: GGUFFile, info: TensorInfo, blocks: int) -> Iterator[bytes]:
    file.iter_raw(info)  # raises unless all of the tensor's bytes are there
    _, shard = file._place(info)
    for start, length in sampled(info, blocks):
        yield shard.source.read(info.file_offset + start, length)


def sampled(info: TensorInfo, blocks: int) -> list[tuple[int, int]]:
    """Return which bytes (start, length) of a tensor its sample consists of.

    All, where they are no more than so many blocks of ``BLOCK`` bytes; else the first block, the last, and others
    between them at equal distances.
    """
    size = info.nbytes or 0
    if size <= blocks * BLOCK:
        return [(0, size)]
    return [((size - BLOCK) * number // (blocks - 1), BLOCK) for number in range(blocks)]
