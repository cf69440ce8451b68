"""Files that the command tests work on, and a way to see exactly what a command printed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from atlas_kit.formats.atlas import MemoryFile


def fill(memory: MemoryFile) -> MemoryFile:
    """Put one entry of every sort into a memory file."""
    memory.set("greeting", "hello\nworld\n", timestamp=1_700_000_000)
    memory.set("prefs", b'{"theme": "dark", "size": [1, 2.5, null]}', type=4, timestamp=1_700_000_001)
    memory.set("blob", bytes(range(256)), type=99, flags=7, timestamp=1_700_000_002)
    memory.set("caf\u00e9/\U0001f9e0", "\u00fcml\u00e4ut", timestamp=1_700_000_003)
    memory.set("bad\udcff\x1b[31m[bold]", b"x\x1b]0;title\x07", timestamp=1_700_000_004)
    return memory


def add_tensors(memory: MemoryFile) -> MemoryFile:
    """Add tensors of plain, narrow and blocked types."""
    rng = np.random.default_rng(1)
    memory.set("weights", rng.standard_normal((8, 64)).astype(np.float32), timestamp=5)
    memory.set("half", rng.standard_normal((3, 32)).astype(np.float16), timestamp=6)
    memory.set("brain", np.arange(12, dtype=np.uint16).reshape(3, 4) + 16000, dtype="bfloat16", timestamp=7)
    memory.set("blocks", bytes(range(68)), dtype="q8_0", shape=(2, 32), type=3, timestamp=8)
    memory.set("ints", np.array([[-1, 2], [3, 2**40]], dtype=np.int64), timestamp=9)
    memory.set("nan", np.array([np.nan, np.inf, 1.5], dtype=np.float32), timestamp=10)
    memory.set("scalar", np.array(2.5), timestamp=11)
    memory.set("none", np.zeros((0, 4), np.float32), timestamp=12)
    return memory


@pytest.fixture
def files(tmp_path: Path) -> SimpleNamespace:
    """Return paths: version 1, version 2 with tensors, version 2 with codecs, and a small GGUF model."""
    v1, v2, coded = tmp_path / "one.atlas", tmp_path / "two.atlas", tmp_path / "coded.atlas"
    fill(MemoryFile(version=1, created=1_600_000_000, model_hash="ab" * 32)).save(v1)
    add_tensors(fill(MemoryFile(created=1_600_000_000))).save(v2)
    memory = add_tensors(fill(MemoryFile(created=1_600_000_000)))
    memory.set("chat", "User: hello there\nAssistant: hello to you\n" * 300, timestamp=13, codec="lz4")
    for number, codec in enumerate(("lz4", "zlib", "zstd")):
        grid = np.linspace(0, 1, 4096, dtype=np.float32)
        memory.set(f"grid-{codec}", grid, codec=codec, timestamp=14 + number)
    memory.save(coded)
    gguf = tmp_path / "model.gguf"
    write_model(gguf)
    return SimpleNamespace(v1=v1, v2=v2, coded=coded, gguf=gguf, folder=tmp_path)


def write_model(path: Path) -> None:
    """Write a tiny model with the gguf package."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_file_type(0)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "\u00e9", "\x1b[31m"])
    rng = np.random.default_rng(2)
    writer.add_tensor("token_embd.weight", rng.standard_normal((4, 64)).astype(np.float32))
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def strict_json(text: str) -> object:
    """Parse JSON as strictly as the standard is."""

    def refuse(name: str) -> object:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def is_quiet(text: str) -> bool:
    """Tell whether text holds no character that acts on a terminal."""
    return all(char == "\n" or char.isprintable() for char in text)


@pytest.fixture
def parse_json() -> object:
    """Return the strict JSON parser."""
    return strict_json


@pytest.fixture
def quiet() -> object:
    """Return the check that text cannot act on a terminal."""
    return is_quiet
