"""How fast a large GGUF header opens, against ``gguf.GGUFReader``: CPU time and memory of one process each.

``make_header_file`` writes the header of a model with a large vocabulary (262,144 tokens, 514,906 merges,
about 19 MB); ``measure`` opens it with both readers in fresh interpreters. Both processes import their
reader first; the clock runs over opening alone, and memory counts everything above a bare interpreter.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

TOKENS = 262_144
MERGES = 514_906


def make_header_file(path: str | os.PathLike[str], tokens: int = TOKENS, merges: int = MERGES) -> int:
    """Write a vocabulary-only GGUF of ``tokens`` and ``merges``; return its size. Always the same bytes."""
    rng = random.Random(7)
    letters = [chr(c) for c in range(97, 123)] + ["Ġ", "é", "中", "文", "д", "я"]

    def word(low: int, high: int) -> str:
        return "".join(rng.choices(letters, k=rng.randint(low, high)))

    def string(text: str | bytes) -> bytes:
        raw = text.encode() if isinstance(text, str) else text
        return struct.pack("<Q", len(raw)) + raw

    def pair(key: str, kind: int, value: bytes) -> bytes:
        return string(key) + struct.pack("<i", kind) + value

    def strings(texts: list[str]) -> bytes:
        return struct.pack("<iQ", 8, len(texts)) + b"".join(map(string, texts))

    vocabulary = [f"<0x{i:02X}>" for i in range(256)]
    vocabulary += [word(2, 18) for _ in range(tokens - 256)] if tokens > 256 else []
    pairs = [
        pair("general.architecture", 8, string("llama")),
        pair("general.name", 8, string("header benchmark")),
        pair("llama.context_length", 4, struct.pack("<I", 131072)),
        pair("llama.embedding_length", 4, struct.pack("<I", 4096)),
        pair("llama.block_count", 4, struct.pack("<I", 32)),
        pair("tokenizer.ggml.model", 8, string("gpt2")),
        pair("tokenizer.ggml.tokens", 9, strings(vocabulary[:tokens])),
        pair("tokenizer.ggml.scores", 9, struct.pack("<iQ", 6, tokens) + bytes(4 * tokens)),
        pair("tokenizer.ggml.token_type", 9, struct.pack(f"<iQ{tokens}i", 5, tokens, *[1] * tokens)),
        pair("tokenizer.ggml.merges", 9, strings([f"{word(2, 8)} {word(2, 8)}" for _ in range(merges)])),
        pair("tokenizer.ggml.bos_token_id", 4, struct.pack("<I", 1)),
        pair("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 2)),
    ]
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs)
    data += bytes(-len(data) % 32)
    Path(path).write_bytes(data)
    return len(data)


@dataclass(frozen=True)
class HeaderResult:
    """Milliseconds of CPU to open the header, and MB of peak memory above a bare interpreter."""

    file_mb: float
    ours_ms: float
    theirs_ms: float
    ours_mb: float
    theirs_mb: float

    @property
    def ratio(self) -> float:
        """How many times less CPU than ``gguf.GGUFReader``."""
        return self.theirs_ms / self.ours_ms


_PROBE = """
import json, re, resource, sys, time
{imports}
start = time.process_time()
{work}
spent = time.process_time() - start
try:  # getrusage would report the parent's peak, which a child inherits when it is forked
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
print(json.dumps([spent * 1000, peak]))
"""
_OURS = ("import numpy\nfrom atlas_kit.formats.gguf import GGUFFile", "file = GGUFFile.open(sys.argv[1])")
_THEIRS = ("from gguf import GGUFReader", "reader = GGUFReader(sys.argv[1])")


def _probe(imports: str, work: str, path: str) -> tuple[float, float]:
    """Run one reader in a fresh interpreter; return (CPU ms, peak MB)."""
    code = _PROBE.format(imports=imports, work=work)
    out = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True)
    cpu, peak = json.loads(out.stdout)
    return float(cpu), float(peak)


def measure(path: str | os.PathLike[str] | None = None, *, runs: int = 5, rival: bool = True) -> HeaderResult:
    """Open the header with both readers: the median of ``runs`` for ours, one run (some 25 s) for theirs."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.fspath(path) if path is not None else os.path.join(folder, "header.gguf")
        if path is None:
            make_header_file(file)
        bare = _probe("", "", file)[1]
        ours = sorted(_probe(*_OURS, file) for _ in range(runs))
        theirs = _probe(*_THEIRS, file) if rival else (float("nan"), float("nan"))
        return HeaderResult(
            file_mb=os.path.getsize(file) / 1e6,
            ours_ms=ours[runs // 2][0],
            theirs_ms=theirs[0],
            ours_mb=max(peak for _, peak in ours) - bare,
            theirs_mb=theirs[1] - bare,
        )


if __name__ == "__main__":
    result = measure(rival="--ours-only" not in sys.argv)
    print(json.dumps(asdict(result) | {"ratio": result.ratio}, indent=1))
