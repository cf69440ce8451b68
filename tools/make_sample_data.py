"""Build ``sample_data/`` from nothing: the same bytes every time (``make samples``).

Version 1 and GGUF files are written by ``sample_writers``, which shares no code with the library; versions 2
and 3 by the library itself. The damaged files are damaged here, one fault each, and the manifest says what
a reader should find in every file. ``expected/`` holds what atlas-tool says about them.

    python tools/make_sample_data.py            # write into sample_data/
    python tools/make_sample_data.py FOLDER     # write somewhere else, to compare
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from tools import sample_chat  # noqa: E402
from tools import sample_writers as w  # noqa: E402

#: The moment at which every sample was "written", and the passphrase of the encrypted one.
NOW = 1_795_311_908
PASSPHRASE = "correct horse battery staple"
DAY = 86_400


@dataclass
class Sample:
    """One file: its bytes, what it is, and what a reader should find."""

    path: str
    data: bytes
    what: str
    find: str
    made_with: list[str] = field(default_factory=list)


# --- memory files ----------------------------------------------------------------------------------------

SEED_NOTES = [
    w.Note(b"chat_history", b"User: Hello\nAssistant: Hi! How can I help?", 2, NOW),
    w.Note(b"user_prefs", b'{"theme":"dark","language":"en"}', 4, NOW),
]

TYPE_NOTES = [
    w.Note(b"generic", bytes(range(256)), 0, NOW),
    w.Note(b"text", "Gr\u00fc\u00dfe, \u4f60\u597d, \U0001f44b\n".encode(), 1, NOW + 1),
    w.Note(b"conversation", b"User: Which types are there?\nAssistant: Five.\n", 2, NOW + 2),
    w.Note(b"context", struct.pack("<8f", *(i / 8 for i in range(8))), 3, NOW + 3),
    w.Note(b"metadata", b'{"model": "llama-7b", "layers": [0, 4, 8], "note": null}', 4, NOW + 4),
    w.Note(b"of another kind", b"type 99 has no name and is kept", 99, NOW + 5),
    w.Note("k\u00e9y \u2603".encode(), b"a key may be any text", 1, NOW + 6),
    w.Note(b"not utf-8: \xff\xfe", b"and any bytes but NUL", 0, NOW + 7),
    w.Note(b"k" * 256, b"256 bytes is the longest key of version 1", 1, NOW + 8),
    w.Note(b"one byte", b"\0", 0, NOW + 9),
]


def chat_notes(days: int, turns: int = 4) -> list[w.Note]:
    """Return one conversation a day, and settings."""
    notes = [
        w.Note(key.encode(), text.encode(), 2, NOW + number * DAY)
        for number, (key, text) in enumerate(sample_chat.history(days, turns))
    ]
    return [*notes, w.Note(b"user_prefs", b'{"theme": "dark", "language": "en"}', 4, NOW)]


def memory_files() -> Iterator[Sample]:
    """Yield the intact ``.atlas`` files."""
    yield Sample(
        "atlas/llama-7b_memory.atlas",
        w.atlas_v1(SEED_NOTES, created=NOW),
        "version 1: the C library's own example, byte for byte",
        "2 entries: a conversation and JSON preferences",
    )
    yield Sample(
        "atlas/all-types.atlas",
        w.atlas_v1(TYPE_NOTES, created=NOW, modified=NOW + 9, model_hash=bytes(range(32))),
        "version 1: every type, a type without a name, unusual keys, every byte value",
        "10 entries, one of type 99, one key that is not UTF-8; the model hash is set",
    )
    yield Sample(
        "atlas/chat.atlas",
        w.atlas_v1(chat_notes(24, turns=12), created=NOW, modified=NOW + 24 * DAY),
        "version 1: 24 days of (made-up) conversations, for `compress`",
        "25 entries",
    )
    yield Sample(
        "atlas/assistant.atlas",
        assistant_v2(),
        "version 2: text, a conversation, JSON and tensors, some of them compressed",
        "7 entries, 4 of them tensors; `state/keys` and `state/values` open as views",
        made_with=["lz4", "zlib", "zstd"],
    )
    yield Sample(
        "atlas/secret.atlas",
        secret_v3(),
        f"version 3: encrypted, the passphrase is `{PASSPHRASE}`",
        "2 entries with the passphrase; without it their number and sizes",
    )
    for name, tokens in (("learned", 24), ("learned-more", 48)):
        yield Sample(
            f"atlas/{name}.atlas",
            learned(tokens),
            f"version 2: a memory that learned {tokens} tokens (see formats/atlas-memory.md), and a conversation",
            "18 entries: the conversation, the memory's description and its 16 arrays",
        )


def assistant_v2() -> bytes:
    """Return a version 2 file that uses each of its features."""
    import numpy as np

    from atlas_kit.formats.atlas import MemoryFile

    def tensor(name: str, *shape: int) -> np.ndarray:
        return np.array(w.numbers(name, int(np.prod(shape)), 0.1), dtype="<f4").reshape(shape)

    memory = MemoryFile(version=2, model_hash=bytes(range(32)), created=NOW)
    garden = sample_chat.conversation("garden", "sample", 12)
    memory.set("notes/today", "Ask about the garden again.\n", timestamp=NOW)
    memory.set("chat/garden", garden, type=2, timestamp=NOW + 1, codec="lz4")
    memory.set("settings", {"theme": "dark", "language": "en", "layers": [0, 4, 8]}, timestamp=NOW + 2)
    memory.set("state/keys", tensor("keys", 16, 32), type=3, timestamp=NOW + 3)
    bfloat16 = (tensor("values", 16, 32).view("<u4") >> 16).astype("<u2")
    memory.set("state/values", bfloat16, type=3, dtype="bfloat16", timestamp=NOW + 4)
    steps = np.cumsum(np.arange(1024, dtype="<f4").reshape(64, 16), axis=0, dtype="<f4")
    memory.set("state/steps", steps, type=3, timestamp=NOW + 5, codec="zstd", shuffle=True)
    counts = np.arange(512, dtype="<i8")
    memory.set("state/counts", counts, type=3, timestamp=NOW + 6, codec="zlib", shuffle=True)
    return saved(memory)


def secret_v3() -> bytes:
    """Return an encrypted file."""
    from atlas_kit.formats.atlas import MemoryFile

    with repeatable():
        memory = MemoryFile(version=3, created=NOW, passphrase=PASSPHRASE)
        memory.set("diary", "Nobody else should read this.\n", timestamp=NOW)
        memory.set("settings", {"theme": "dark"}, timestamp=NOW)
        return saved(memory)


def learned(tokens: int) -> bytes:
    """Return a file with a memory of the Delta rule; after 24 tokens the values that its 8 keys stand for change.

    Keys with a single 1 and a step of 1/2 keep every number a short binary fraction, so that all machines agree on it.
    """
    import tempfile

    import numpy as np

    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.memory import Memory, presets
    from atlas_kit.persistence.snapshot import save_memory

    key = np.arange(48) * 3 % 8
    context = np.arange(48) // 24
    values = ((key[:, None] + 1) * (np.arange(6) + 2 * context[:, None]) % 7 - 3).astype(np.float32)
    memory = Memory(presets.delta_rule(8, 6, window_size=16))
    state, _ = memory.observe(memory.init(), np.eye(8, dtype=np.float32)[key[:tokens]], values[:tokens])
    with repeatable(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "learned.atlas"
        with MemoryFile.edit(path, create=True) as file:
            file.set("chat/garden", sample_chat.conversation("garden", "sample", 4), type=2, timestamp=NOW)
        save_memory(path, memory, state, metadata={"note": "made of whole numbers"})
        return path.read_bytes()


def saved(memory: object) -> bytes:
    """Save to a scratch file and return its bytes."""
    import tempfile

    with repeatable(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.atlas"
        memory.save(path)
        memory.close()
        return path.read_bytes()


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Make the clock stand still and the random bytes the same ones.

    Only ever here: a file whose nonces can be foretold protects nothing, so the library has no such option.
    """
    counter = iter(range(1 << 32))

    def urandom(size: int) -> bytes:
        blocks = (hashlib.sha256(b"samples %d" % next(counter)).digest() for _ in range(size // 32 + 1))
        return b"".join(blocks)[:size]

    with (
        mock.patch("os.urandom", urandom),
        mock.patch("secrets.token_bytes", urandom),
        mock.patch("time.time", return_value=float(NOW)),
        mock.patch("time.time_ns", return_value=NOW * 10**9),
    ):
        yield


# --- model files -----------------------------------------------------------------------------------------

PIECES = ("\u2581", "e", "t", "a", "o", "\u2581t", "he", "\u2581the", "in", "er", "an", "\u2581a", "on", "re")


@dataclass(frozen=True)
class Size:
    """How large a model is, and how its matrices are encoded (ggml type and encoder)."""

    width: int
    hidden: int
    heads: int
    vocabulary: int
    wide: tuple[int, Callable[..., bytes]]
    attention: tuple[int, Callable[..., bytes]]


TINY = Size(32, 64, 2, 259 + len(PIECES), wide=(8, w.q8_0), attention=(1, w.f16))
MICRO = Size(8, 8, 1, 16, wide=(1, w.f16), attention=(1, w.f16))


def vocabulary() -> list[tuple[str, str, object]]:
    """Return the metadata of a small SentencePiece vocabulary: 3 control tokens, 256 bytes, a few pieces."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(PIECES)]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(PIECES))]
    return [
        ("tokenizer.ggml.model", "str", "llama"),
        ("tokenizer.ggml.tokens", "[str]", tokens),
        ("tokenizer.ggml.scores", "[f32]", scores),
        ("tokenizer.ggml.token_type", "[i32]", kinds),
        ("tokenizer.ggml.bos_token_id", "u32", 1),
        ("tokenizer.ggml.eos_token_id", "u32", 2),
        ("tokenizer.ggml.unknown_token_id", "u32", 0),
    ]


def architecture(name: str, size: Size = TINY) -> list[tuple[str, str, object]]:
    """Return the metadata that llama.cpp asks of a model."""
    return [
        ("general.architecture", "str", "llama"),
        ("general.name", "str", name),
        ("general.license", "str", "MIT"),
        ("llama.context_length", "u32", 64),
        ("llama.embedding_length", "u32", size.width),
        ("llama.block_count", "u32", 1),
        ("llama.feed_forward_length", "u32", size.hidden),
        ("llama.attention.head_count", "u32", size.heads),
        ("llama.attention.head_count_kv", "u32", size.heads),
        ("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5),
        ("llama.rope.dimension_count", "u32", size.width // size.heads),
    ]


def weights(size: Size = TINY, order: str = "<") -> list[w.Tensor]:
    """Return random weights of the right shapes."""

    def matrix(name: str, columns: int, rows: int, kind: int, encode: Callable[..., bytes]) -> w.Tensor:
        values = w.numbers(name, columns * rows, 0.2)
        data = encode(values) if encode is w.q8_0 else encode(values, order)
        return w.Tensor(f"{name}.weight", (columns, rows), kind, data)

    def ones(name: str) -> w.Tensor:
        return w.Tensor(f"{name}.weight", (size.width,), 0, w.f32([1.0] * size.width, order))

    parts = ("q", "k", "v", "output")
    attention = [matrix(f"blk.0.attn_{part}", size.width, size.width, *size.attention) for part in parts]
    return [
        matrix("token_embd", size.width, size.vocabulary, *size.wide),
        ones("blk.0.attn_norm"),
        *attention,
        ones("blk.0.ffn_norm"),
        matrix("blk.0.ffn_gate", size.width, size.hidden, *size.wide),
        matrix("blk.0.ffn_up", size.width, size.hidden, *size.wide),
        matrix("blk.0.ffn_down", size.hidden, size.width, *size.wide),
        ones("output_norm"),
        matrix("output", size.width, size.vocabulary, 0, w.f32),
    ]


def split_in_two() -> Iterator[Sample]:
    """Yield the tiny model as two shards, the way llama-gguf-split lays them out."""
    tensors = weights()
    half = len(tensors) // 2
    for number, part in enumerate((tensors[:half], tensors[half:])):
        kv = architecture("tiny") + vocabulary() if number == 0 else []
        kv += [
            ("split.no", "u16", number),
            ("split.count", "u16", 2),
            ("split.tensors.count", "i32", len(tensors)),
        ]
        yield Sample(
            f"gguf/tiny-split-{number + 1:05d}-of-00002.gguf",
            w.Gguf(kv, part).build(),
            f"shard {number + 1} of 2 of the same model",
            f"{len(part)} of {len(tensors)} tensors" + ("; no architecture of its own" if number else ""),
        )


def micro(order: str = "<") -> w.Gguf:
    """Return the smallest model that llama.cpp loads; the damaged ones are made from it."""
    more = [
        ("llama.vocab_size", "u32", MICRO.vocabulary),
        ("tokenizer.ggml.model", "str", "none"),
        ("sample.layers", "[u32]", [0, 1, 2]),
        ("sample.words", "[str]", ["one", "two", "three"]),
        ("sample.scale", "f64", 0.125),
    ]
    return w.Gguf(architecture("micro", MICRO) + more, weights(MICRO, order), order=order)


def model_files() -> Iterator[Sample]:
    """Yield the intact GGUF files."""
    yield Sample(
        "gguf/tiny.gguf",
        w.Gguf(architecture("tiny") + vocabulary(), weights()).build(),
        "a complete llama model of one layer with random weights (f32, f16, q8_0); llama.cpp loads it",
        "12 tensors, 18 metadata values, 273 tokens",
    )
    yield Sample(
        "gguf/vocabulary-only.gguf",
        w.Gguf(architecture("words")[:3] + vocabulary()).build(),
        "a tokenizer without tensors",
        "0 tensors, 273 tokens; fine, with a note",
    )
    yield from split_in_two()
    yield Sample(
        "gguf/micro.gguf",
        micro().build(),
        "the smallest model that llama.cpp loads, to be read byte by byte with `inspect --hex`",
        "12 tensors, 16 metadata values",
    )
    yield Sample(
        "gguf/big-endian.gguf",
        micro(">").build(),
        "the same in big-endian byte order",
        "the values of micro.gguf",
    )


# --- damaged files ---------------------------------------------------------------------------------------


def broken_memories() -> Iterator[Sample]:
    """Yield version 1 and 2 files with one fault each."""
    good = w.atlas_v1(chat_notes(6), created=NOW, modified=NOW + 6 * DAY)
    first = 104
    second = first + 32 + int.from_bytes(good[first : first + 4], "little") + 1
    second += int.from_bytes(good[first + 4 : first + 8], "little")

    yield Sample(
        "broken/truncated.atlas",
        good[: len(good) * 2 // 3],
        "a download that stopped after two thirds",
        "3 whole entries and most of a fourth",
    )
    yield Sample(
        "broken/bit-flip.atlas",
        patched(good, second + 200, bytes([good[second + 200] ^ 0x10])),
        "one bit turned over inside a payload",
        "6 of 7 entries verify; the second does not",
    )
    yield Sample(
        "broken/wrong-count.atlas",
        patched(good, 12, struct.pack("<I", 4_000_000)),
        "the header promises four million entries",
        "7 entries, all intact",
    )
    yield Sample(
        "broken/no-header.atlas",
        bytes(104) + good[104:],
        "the header was overwritten with zeros",
        "7 entries, all intact",
    )
    yield Sample(
        "broken/length-hit.atlas",
        patched(good, second + 4, struct.pack("<I", 0x7FFFFFF0)),
        "the length field of the second entry was hit",
        "7 entries: their bytes are all still there",
    )
    yield Sample(
        "broken/bad-magic.atlas",
        b"BTLS" + good[4:],
        "the first byte of the magic is wrong",
        "7 entries, all intact",
    )
    yield Sample(
        "broken/dialect-crc32.atlas",
        w.atlas_v1(SEED_NOTES, created=NOW, checksum=w.crc32),
        "written with a real CRC-32, as the C library's documents (wrongly) say",
        "2 entries; the dialect is reported",
    )
    yield Sample(
        "broken/dialect-96.atlas",
        w.atlas_v1(SEED_NOTES, created=NOW, header_size=96),
        "written with a 96-byte header, as the C library's comment (wrongly) says",
        "2 entries; the dialect is reported",
    )
    yield from broken_v2()


def broken_v2() -> Iterator[Sample]:
    """Yield damaged version 2 and 3 files."""
    good = assistant_v2()
    index = int.from_bytes(good[128:136], "little")  # header field index_offset
    libraries = ["lz4", "zlib", "zstd"]
    yield Sample(
        "broken/index-lost.atlas",
        good[:index],
        "a version 2 file without its index",
        "7 entries, all intact",
        made_with=libraries,
    )
    yield Sample(
        "broken/header-lost.atlas",
        bytes(160) + good[160:],
        "a version 2 file whose header was overwritten with zeros",
        "7 entries, all intact",
        made_with=libraries,
    )
    secret = secret_v3()
    yield Sample(
        "broken/secret-altered.atlas",
        patched(secret, 400, bytes([secret[400] ^ 1])),
        f"an encrypted file in which one bit was changed (passphrase `{PASSPHRASE}`)",
        "1 of 2 entries verifies",
    )


def broken_models() -> Iterator[Sample]:
    """Yield GGUF files with one fault each."""
    good = micro()
    count = len(good.tensors)
    yield Sample(
        "broken/wrong-tensor-count.gguf",
        good.build(n_tensors=count + 2),
        "the header promises two tensors too many",
        f"{count} tensors, all intact",
    )
    yield Sample(
        "broken/wrong-metadata-count.gguf",
        good.build(n_kv=len(good.kv) - 1),
        "the header promises one metadata value too few",
        f"{len(good.kv)} metadata values, {count} tensors, all intact",
    )
    overlap = micro()
    overlap.offsets = [
        offset - 32 if number == 2 else offset for number, offset in enumerate(good.right_offsets())
    ]
    yield Sample(
        "broken/overlap.gguf",
        overlap.build(),
        "the third tensor lies over the second",
        f"{count} tensors, two of them share bytes",
    )
    yield Sample(
        "broken/truncated.gguf",
        good.build()[:-80],
        "the last tensor is cut off",
        f"{count - 1} whole tensors and a part of the last",
    )
    double = micro()
    double.kv.insert(2, ("general.name", "str", "another name"))
    yield Sample(
        "broken/duplicate-key.gguf",
        double.build(),
        "`general.name` twice",
        f"{len(double.kv)} metadata values, one of them twice",
    )
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    yield Sample(
        "broken/huge-string.gguf",
        header + struct.pack("<Q", 1 << 63) + b"general.architecture",
        "a key that claims 2^63 bytes",
        "an error at once, without memory being asked for",
    )
    deep = struct.pack("<iQ", 9, 1) * 3_000 + struct.pack("<iQB", 0, 1, 7)
    yield Sample(
        "broken/nested-arrays.gguf",
        header + good.string("deep") + struct.pack("<i", 9) + deep,
        "an array in an array in an array, 3,000 deep",
        "an error at once, without a stack overflow",
    )
    odd = micro()
    odd.kv.append(("general.alignment", "u32", 12))
    yield Sample(
        "broken/alignment.gguf",
        odd.build(),
        "an alignment that is not a power of two",
        f"{count} tensors, once the alignment is ignored",
    )
    strange = micro()
    strange.tensors[2] = replace(strange.tensors[2], ggml_type=999)
    yield Sample(
        "broken/unknown-type.gguf",
        strange.build(),
        "a tensor of type 999",
        f"{count - 1} tensors, and one whose type is not known",
    )


def patched(data: bytes, offset: int, piece: bytes) -> bytes:
    """Return ``data`` with ``piece`` written over it."""
    return data[:offset] + piece + data[offset + len(piece) :]


# --- text, expected output, manifest ---------------------------------------------------------------------


def text_files() -> Iterator[Sample]:
    """Yield plain files to store into a memory."""
    text = "".join(sample_chat.conversation(topic, "text", 8) for topic in sample_chat.TOPICS)
    yield Sample("text/chat.txt", text.encode(), "six made-up conversations as plain text", "6 conversations")
    prefs = '{"theme": "light", "language": "de"}\n'
    yield Sample("text/prefs.json", prefs.encode(), "preferences as JSON", "2 settings")
    yield Sample(
        "text/passphrase.txt",
        f"{PASSPHRASE}\n".encode(),
        "the passphrase of the encrypted samples",
        "one line",
    )


#: Files in ``expected/`` and the command, run in ``sample_data/``, whose output they hold.
EXPECTED = {
    "inspect-atlas.txt": "atlas-tool inspect atlas/llama-7b_memory.atlas --entries",
    "inspect-atlas-2.txt": "atlas-tool inspect atlas/assistant.atlas --entries",
    "inspect-learned.txt": "atlas-tool inspect atlas/learned.atlas",
    "diff-learned.txt": "atlas-tool diff atlas/learned.atlas atlas/learned-more.atlas",
    "inspect-gguf.txt": "atlas-tool inspect gguf/tiny.gguf --keys --tensors",
    "hex-atlas.txt": "atlas-tool inspect atlas/llama-7b_memory.atlas --hex",
    "hex-gguf.txt": "atlas-tool inspect gguf/micro.gguf --hex",
    "map-gguf.txt": "atlas-tool inspect gguf/micro.gguf --map",
    "validate-broken.txt": "atlas-tool validate broken --passphrase-file text/passphrase.txt",
    "convert-json.txt": "atlas-tool convert atlas/all-types.atlas - --to json",
    "hash-gguf.txt": "atlas-tool hash gguf/tiny.gguf",
}


def output_of(command: str) -> str:
    """Return what a command prints in ``sample_data/``."""
    from tools.reference import run

    return run(command, ROOT / "sample_data").stdout


def samples() -> list[Sample]:
    """Return every sample file, in the order of the manifest."""
    parts = (memory_files, model_files, broken_memories, broken_models, text_files)
    return [sample for part in parts for sample in part()]


#: The findings of `atlas-tool validate` (with the passphrase) on the files that have any.
CODES: dict[str, list[str]] = {
    "atlas/all-types.atlas": ["key-not-utf8", "unknown-type"],
    "gguf/big-endian.gguf": ["big-endian"],
    "gguf/tiny-split-00002-of-00002.gguf": ["shard-not-first"],
    "gguf/vocabulary-only.gguf": ["vocabulary-only"],
    "broken/alignment.gguf": ["alignment-invalid"],
    "broken/bad-magic.atlas": ["bad-magic"],
    "broken/bit-flip.atlas": ["payload-checksum"],
    "broken/dialect-96.atlas": ["dialect-v1-96"],
    "broken/dialect-crc32.atlas": ["dialect-v1-crc32"],
    "broken/duplicate-key.gguf": ["key-duplicate"],
    "broken/header-lost.atlas": ["bad-magic"],
    "broken/huge-string.gguf": ["header-truncated"],
    "broken/index-lost.atlas": ["index-outside", "truncated"],
    "broken/length-hit.atlas": ["data-size"],
    "broken/nested-arrays.gguf": ["header-invalid"],
    "broken/no-header.atlas": ["bad-magic", "header-checksum"],
    "broken/overlap.gguf": ["tensor-gap", "tensor-overlap"],
    "broken/secret-altered.atlas": ["entry-authentication"],
    "broken/truncated.atlas": ["entry-count", "entry-truncated", "total-size"],
    "broken/truncated.gguf": ["tensor-data-missing"],
    "broken/unknown-type.gguf": ["tensor-type-unknown"],
    "broken/wrong-count.atlas": ["entry-count", "header-checksum"],
    "broken/wrong-metadata-count.gguf": ["metadata-count-wrong"],
    "broken/wrong-tensor-count.gguf": ["tensor-count-wrong"],
}


def manifest(files: list[Sample]) -> str:
    """Return ``MANIFEST.toml``: per file what it is, what a reader should find, its size and hash."""
    lines = [
        "# What is in this folder. Written by tools/make_sample_data.py; do not edit.",
        "# `made_with`: libraries whose version may change the compressed bytes, though never the content.",
    ]
    for sample in files:
        lines += ["", "[[file]]", f"path = {json.dumps(sample.path)}", f"what = {json.dumps(sample.what)}"]
        lines += [f"find = {json.dumps(sample.find)}"]
        if not sample.path.startswith("text/"):
            lines += [f"codes = {json.dumps(CODES.get(sample.path, []))}"]
        lines += [f"made_with = {json.dumps(versions(sample.made_with))}"] if sample.made_with else []
        lines += [f"size = {len(sample.data)}", f'sha256 = "{hashlib.sha256(sample.data).hexdigest()}"']
    return "\n".join(lines) + "\n"


def versions(libraries: list[str]) -> list[str]:
    """Return ``lz4 1.10.0`` and so on: what compressed the bytes."""
    import zlib

    import lz4
    import zstandard

    known = {
        "lz4": lz4.library_version_string(),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
        "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
    }
    return [f"{name} {known[name]}" for name in libraries]


def main(folder: Path) -> None:
    """Write everything below ``folder``."""
    files = samples()
    for part in ("atlas", "gguf", "broken", "text"):
        shutil.rmtree(folder / part, ignore_errors=True)
    for sample in files:
        target = folder / sample.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(sample.data)
    (folder / "MANIFEST.toml").write_text(manifest(files), encoding="utf-8")
    if folder.resolve() == ROOT / "sample_data":
        (folder / "expected").mkdir(exist_ok=True)
        for name, command in EXPECTED.items():
            (folder / "expected" / name).write_text(output_of(command), encoding="utf-8")
    print(f"{len(files)} files, {sum(len(s.data) for s in files):,} bytes in {os.path.relpath(folder)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "sample_data")
