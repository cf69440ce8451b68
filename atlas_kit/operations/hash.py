"""Hashes of a file, of what it holds, and of each part of it.

``file`` is the hash of the bytes (what ``sha256sum`` prints). ``content`` is the same for two files that hold
the same, whatever their version, codecs and layout: it covers key, type, flags, timestamp, element type,
shape and payload of every entry in order, or metadata and tensors of a model in the file's order. The identity of
a model is what a learned memory is bound to.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named, to_bytes
from atlas_kit.errors import InvalidParamError
from atlas_kit.operations.inputs import open_given, require_kind
from atlas_kit.storage.given import Progress, takes_source
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from collections.abc import Iterable

    from atlas_kit.formats.atlas import Entry
    from atlas_kit.formats.gguf import GGUFFile

ALGORITHMS = ("sha256", "sha512", "blake2b", "sha1", "md5", "xxh3-64", "xxh3-128")


@dataclass
class Hashes:
    """Hexadecimal hashes; ``parts`` by key or tensor name, in order."""

    path: str
    algorithm: str
    file: str
    content: str | None = None
    parts: list[tuple[str, str]] = field(default_factory=list)

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the hashes as JSON-ready data."""
        parts = [{**named("name", name), "hash": value} for name, value in self.parts]
        return {**named("path", self.path), "algorithm": self.algorithm, "file": self.file,
                "content": self.content, "parts": parts}  # fmt: skip


@dataclass
class Identity:
    """Which model a file is; ``full`` covers every byte of its tensors instead of samples."""

    path: str
    identity: str
    full: bool

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the identity as JSON-ready data."""
        return {**named("path", self.path), "identity": self.identity, "full": self.full}


def new_digest(algorithm: str) -> Any:
    """Return a fresh hash object."""
    if algorithm not in ALGORITHMS:
        raise InvalidParamError(f'there is no hash "{algorithm}"', hint=f"Use {', '.join(ALGORITHMS)}.")
    if algorithm.startswith("xxh3"):
        import xxhash

        return xxhash.xxh3_64() if algorithm == "xxh3-64" else xxhash.xxh3_128()
    return hashlib.new(algorithm, usedforsecurity=False)


@takes_source
def hash_file(
    source: Source, algorithm: str = "sha256", *, parts: bool = True, keys: Keys | None = None,
    one_shard: bool = False, progress: Progress | None = None,
) -> Hashes:  # fmt: skip
    """Hash a file; with ``parts`` also its content and every entry or tensor (their payloads, decoded)."""
    result = Hashes(source.name, algorithm, _hash_bytes(source, algorithm, progress))
    if not parts:
        return result
    with open_given(source, keys, one_shard=one_shard) as opened:
        whole = new_digest(algorithm)
        if opened.kind == "gguf":
            _hash_model(opened.gguf, algorithm, whole, result, progress)
        else:
            count = len(opened.memory)
            for number, entry in enumerate(opened.memory.entries()):
                _hash_entry(entry, algorithm, whole, result)
                if progress:
                    progress("hashing entries", number + 1, count)
        result.content = whole.hexdigest()
    return result


@takes_source
def identify_model(source: Source, *, full: bool = False, progress: Progress | None = None) -> Identity:
    """Return which model a GGUF file is: the same for every file with the same tensors.

    Raises
    ------
    InvalidParamError
        It is no GGUF file, or holds no tensors.
    TruncatedError, FileCorruptError
        A tensor cannot be read.
    """
    from atlas_kit.formats.gguf import model_identity

    require_kind(source, ["gguf"], "only a GGUF model has an identity")
    with open_given(source) as opened:
        model = opened.gguf
        total = sum(info.nbytes or 0 for info in model.tensor_infos)

        def tell(done: int) -> None:
            if progress and full:
                progress("hashing tensors", done, total)

        return Identity(source.name, model_identity(model, full=full, progress=tell), full)


def _hash_bytes(source: Source, algorithm: str, progress: Progress | None) -> str:
    digest, done = new_digest(algorithm), 0
    for chunk in source.chunks(0, source.size):
        digest.update(chunk)
        done += len(chunk)
        if progress:
            progress("hashing", done, source.size)
    return str(digest.hexdigest())


def digest_of(chunks: Iterable[bytes], algorithm: str = "sha256") -> bytes:
    """Return the hash of a stream of bytes."""
    digest = new_digest(algorithm)
    for chunk in chunks:
        digest.update(chunk)
    return bytes(digest.digest())


def _frame(*items: bytes) -> bytes:
    """Join byte strings so that no two different lists give the same bytes."""
    return b"".join(len(item).to_bytes(8, "little") + item for item in items)


def _hash_entry(entry: Entry, algorithm: str, whole: Any, result: Hashes) -> None:
    digest = digest_of(entry.chunks(), algorithm)
    facts = f"{int(entry.type)} {entry.flags} {entry.timestamp} {entry.dtype} {entry.shape} {entry.size}"
    whole.update(_frame(to_bytes(entry.key), facts.encode(), digest))
    result.parts.append((entry.key, digest.hex()))


def _hash_model(
    model: GGUFFile, algorithm: str, whole: Any, result: Hashes, progress: Progress | None
) -> None:
    from atlas_kit.codecs.json_text import dumps
    from atlas_kit.formats.gguf.shards import SPLIT_KEYS
    from atlas_kit.formats.gguf.tables import PAD_KEY
    from atlas_kit.operations.gguf_values import plain_value

    for row in model.fields:
        if (
            row.key == PAD_KEY or row.key in SPLIT_KEYS
        ):  # layout: reserved space, in how many files a model lies
            continue
        value = row.items
        encoded = value.encoded() if hasattr(value, "encoded") else None
        if encoded is None:
            encoded = to_bytes(value) if isinstance(value, str) else dumps(plain_value(value)).encode()
        whole.update(_frame(to_bytes(row.key), row.type_name.encode(), encoded))
    count = len(model.tensor_infos)
    for number, info in enumerate(model.tensor_infos):
        digest = digest_of(model.iter_raw(info), algorithm)
        whole.update(_frame(to_bytes(info.name), f"{int(info.type)} {info.dims}".encode(), digest))
        result.parts.append((info.name, digest.hex()))
        if progress:
            progress("hashing tensors", number + 1, count)
