"""How fast and how small the formats are: each figure as a ratio to a well-known tool, measured in one run.

    python tools/bench/formats.py                 # everything (make bench), some three minutes
    python tools/bench/formats.py --quick         # smaller files, fewer rounds: to see that it works
    python tools/bench/formats.py --only v2-tensors --only v1-load
    python tools/bench/formats.py --json

Ours and the peer take turns, so that a busy machine disturbs both. A ratio is the median of ours by the
median of the peer's. Exit 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402

from atlas_kit.formats.atlas import MemoryFile  # noqa: E402
from atlas_kit.formats.gguf import Set, edit_metadata  # noqa: E402
from atlas_kit.operations.diff import diff_files  # noqa: E402

MIB = 1 << 20


@dataclass
class Row:
    """One figure: ours, the peer's, and how their ratio must be."""

    name: str
    what: str
    ours: float
    peer: float
    unit: str
    against: str
    limit: float
    at_least: bool = False  # the ratio is peer / ours and must be at least the limit
    note: str = ""

    @property
    def ratio(self) -> float:
        """Ours by the peer's (the other way round where more is better)."""
        return self.peer / self.ours if self.at_least else self.ours / self.peer

    @property
    def ok(self) -> bool:
        """Whether the limit is kept."""
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit


def alternate(
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    rounds: int,
    *,
    before: Callable[[], Any] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Time both in turns; return the medians, in seconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for work, spent in zip((ours, peer) if number % 2 else (peer, ours),
                               times if number % 2 else times[::-1], strict=True):  # fmt: skip
            before()
            gc.collect()
            start = clock()
            work()
            spent.append(clock() - start)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])  # the first round warms up


# --- GGUF ------------------------------------------------------------------------------------------------


def gguf_header(folder: Path, quick: bool) -> Iterator[Row]:
    """Opening the header of a model with a large vocabulary: CPU time and memory."""
    from tools.bench import gguf_header as bench

    path = folder / "header.gguf"
    bench.make_header_file(path, *((16_384, 32_182) if quick else (bench.TOKENS, bench.MERGES)))
    result = bench.measure(path, runs=3 if quick else 5)
    what = f"open a GGUF header of {result.file_mb:.1f} MB, CPU"
    yield Row("gguf-header", what, result.ours_ms / 1e3, result.theirs_ms / 1e3, "s", "gguf.GGUFReader",
              200, at_least=True, note="times less")  # fmt: skip
    yield Row(
        "gguf-memory", "the same, memory above the interpreter's", result.ours_mb, 1.0, "MB", "1 MB", 60
    )


def validate_data(folder: Path, quick: bool) -> Iterator[Row]:
    """Looking at all weights of a model, against reading its bytes through a hash: CPU time, of all threads."""
    import xxhash

    from atlas_kit.formats.gguf.check import check_gguf

    path, size = folder / "weights.gguf", (64 if quick else 512) * MIB
    for kind in ("F16", "Q4_K"):
        _write_weights(path, kind, size)

        def peer() -> None:
            digest = xxhash.xxh3_64()
            with open(path, "rb", buffering=0) as file:
                while piece := file.read(MIB):
                    digest.update(piece)

        times = alternate(
            lambda: check_gguf(path, deep=True), peer, 3 if quick else 7, clock=time.process_time
        )
        yield Row("validate-data", f"validate --data, {size // MIB} MiB of {kind}, CPU", *times, "s",
                  "reading them through XXH3", 0.6, at_least=True, note="of its speed")  # fmt: skip
        path.unlink()


def _write_weights(path: Path, kind: str, size: int) -> None:
    """Write a file of 16 matrices with plausible weights of a type."""
    from gguf import GGMLQuantizationType, GGUFWriter

    rng = np.random.default_rng(5)
    writer = GGUFWriter(path, "llama")
    for number in range(16):
        if kind == "F16":
            rows = size // 16 // 8192
            writer.add_tensor(
                f"m{number}", (rng.standard_normal((rows, 4096), np.float32) / 32).astype("<f2")
            )
            continue
        blocks = rng.integers(0, 256, (size // 16 // 2304, 2304), np.uint8)
        blocks.reshape(-1, 144)[:, :4] = (3, 16, 3, 16)  # a scale and a minimum, both small
        writer.add_tensor(f"m{number}", blocks, raw_dtype=GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- version 2 against safetensors -----------------------------------------------------------------------


def tensors(quick: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Return 512 MiB of float32 in 32 tensors."""
    side = 512 if quick else 2048
    rng = np.random.default_rng(1)
    return {f"layer.{n}": rng.standard_normal((side, side), dtype=np.float32) for n in range(32)}


def version_2(folder: Path, quick: bool) -> Iterator[Row]:
    """Saving, viewing and verifying large tensors."""
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    arrays = tensors(quick)
    size = sum(array.nbytes for array in arrays.values()) // MIB
    ours, peer = folder / "t.atlas", folder / "t.safetensors"

    def save(durable: bool) -> None:
        memory = MemoryFile(version=2)
        for name, array in arrays.items():
            memory[name] = array
        memory.save(ours, durable=durable)

    def save_peer_synced() -> None:
        save_file(arrays, peer)
        fd = os.open(peer, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    def fresh() -> None:
        """Let every save write a new file, on a disk that has nothing else to do."""
        ours.unlink(missing_ok=True)
        peer.unlink(missing_ok=True)
        os.sync()

    rounds = 3 if quick else 5
    what = f"v2: save {size} MiB with checksums"
    times = alternate(lambda: save(True), save_peer_synced, rounds, before=fresh)
    yield Row("v2-save", f"{what}, both with fsync", *times, "s", "safetensors save_file + fsync", 1.0)
    times = alternate(lambda: save(False), lambda: save_file(arrays, peer), rounds, before=fresh)
    yield Row("v2-save", "the same, both without fsync", *times, "s", "safetensors save_file", 1.0)
    times = alternate(lambda: save(True), lambda: save_file(arrays, peer), rounds, before=os.sync)
    yield Row(
        "v2-save", "over the file before, only ours with fsync", *times, "s", "safetensors save_file", 1.0
    )

    save(True)
    save_peer_synced()

    def view() -> None:
        with MemoryFile.open(ours) as memory:
            memory["layer.17"].array()

    def view_peer() -> None:
        with safe_open(peer, "np") as file:
            file.get_tensor("layer.17")

    yield Row("v2-view", "v2: open and view one tensor", *alternate(view, view_peer, 30), "s",
              "safetensors safe_open, get_tensor", 1.0)  # fmt: skip

    def verify() -> None:
        with MemoryFile.open(ours) as memory:
            for entry in memory.values():
                entry.verify()

    yield Row("v2-verify", f"v2: verify {size} MiB", *alternate(verify, lambda: load_file(peer), rounds), "s",
              "safetensors load_file", 0.5)  # fmt: skip


# --- version 1 against the bare hash ---------------------------------------------------------------------


def version_1(folder: Path, quick: bool) -> Iterator[Row]:
    """Validating large payloads: how much is on top of the hash itself."""
    from fnv_hash_fast import fnv1a_32

    size = (64 if quick else 512) * MIB
    path = folder / "large.atlas"
    memory = MemoryFile(version=1)
    rng = np.random.default_rng(2)
    for number in range(32):
        memory[f"part{number}"] = rng.bytes(size // 32)
    memory.save(path, durable=False)
    data = path.read_bytes()
    times = alternate(lambda: MemoryFile.load(path).close(), lambda: fnv1a_32(data), 3 if quick else 5)
    yield Row("v1-validate", f"v1: validate {size // MIB} MiB", *times, "s", "one pass of FNV-1a", 1.3)


# --- many small entries against sqlite3 ------------------------------------------------------------------


def small_entries(folder: Path, number: int, version: int) -> tuple[Path, Path]:
    """Write so many entries of 100 bytes to a memory file and to a database."""
    rng = random.Random(number)
    ours, peer = folder / f"{number}-{version}.atlas", folder / f"{number}.db"
    rows = [(f"key/{n:07d}", rng.randbytes(100)) for n in range(number)]
    memory = MemoryFile(version=version)
    for key, value in rows:
        memory[key] = value
    memory.save(ours, durable=False)
    if not peer.exists():
        with sqlite3.connect(peer) as db:
            db.execute("create table entry (key text primary key, value blob)")
            db.executemany("insert into entry values (?, ?)", rows)
        db.close()
    return ours, peer


def one_key(folder: Path, quick: bool) -> Iterator[Row]:
    """Opening a file and fetching one key, whatever the number of entries."""
    for number in (64, 65_536) if quick else (64, 65_536, 1_000_000):
        ours, peer = small_entries(folder, number, 2)
        rng = random.Random(3)

        def fetch(ours: Path = ours, number: int = number, rng: random.Random = rng) -> None:
            with MemoryFile.open(ours) as memory:
                assert len(memory[f"key/{rng.randrange(number):07d}"].data) == 100

        def fetch_peer(peer: Path = peer, number: int = number, rng: random.Random = rng) -> None:
            db = sqlite3.connect(peer)
            key = f"key/{rng.randrange(number):07d}"
            assert len(db.execute("select value from entry where key = ?", (key,)).fetchone()[0]) == 100
            db.close()

        yield Row("v2-one-key", f"v2: open, fetch one key of {number:,}", *alternate(fetch, fetch_peer, 100),
                  "s", "sqlite3 connect, select", 2.0)  # fmt: skip


def all_keys(folder: Path, quick: bool) -> Iterator[Row]:
    """Loading every small entry of a version 1 file."""
    number = 8_192 if quick else 65_536
    ours, peer = small_entries(folder, number, 1)

    def everything() -> None:
        db = sqlite3.connect(peer)
        assert len(db.execute("select * from entry").fetchall()) == number
        db.close()

    times = alternate(lambda: MemoryFile.load(ours).close(), everything, 11)
    yield Row("v1-load", f"v1: load {number:,} entries, all checksums verified", *times, "s",
              "sqlite3 select *", 4.0)  # fmt: skip


# --- starting up -----------------------------------------------------------------------------------------


def start_up(folder: Path, quick: bool) -> Iterator[Row]:
    """What a person at a terminal waits for."""
    scripts = Path(sys.executable).parent
    ours, dump = scripts / "atlas-tool", scripts / "gguf-dump"
    env = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    }

    def run(*command: object) -> Callable[[], None]:
        words = [os.fspath(word) for word in command]  # type: ignore[call-overload]

        def call() -> None:
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)

        return call

    if not ours.exists() or not dump.exists():
        print("start-up is not measured: atlas-tool or gguf-dump is not installed here", file=sys.stderr)
        return
    rounds = 5 if quick else 15
    times = alternate(run(ours, "--version"), run(sys.executable, "-c", "pass"), rounds)
    yield Row("start", "atlas-tool --version", *times, "s", "python -c pass", 5.0)
    for name in ("gguf/tiny.gguf", "atlas/llama-7b_memory.atlas"):
        gguf, file = ROOT / "sample_data" / "gguf" / "tiny.gguf", ROOT / "sample_data" / name
        if gguf.exists() and file.exists():
            times = alternate(run(ours, "inspect", file), run(dump, gguf), rounds)
            what = f"atlas-tool inspect, a small .{name.rsplit('.', 1)[1]}"
            yield Row("start", what, *times, "s", "gguf-dump of a small .gguf", 0.5)


# --- what a person waits for with large files --------------------------------------------------------------


def longer_value(folder: Path, quick: bool) -> Iterator[Row]:
    """A value that needs more room than a large model's header has; the data is a hole, so that disks are spared.

    The peer writes all of a new file; holes cost it nothing but zeros from the page cache.
    """
    tool = Path(sys.executable).parent / "gguf-new-metadata"
    if not tool.exists():
        print("a longer value is not measured: gguf-new-metadata is not installed here", file=sys.stderr)
        return
    size = (1 << 28) if quick else (1 << 32)
    path, copy = folder / "large.gguf", folder / "copy.gguf"
    _write_sparse(path, size)
    lengths = iter(range(100_000, 100_000_000, 100_000))

    def ours() -> None:
        result = edit_metadata(path, [Set("general.description", "x" * next(lengths))])
        assert result.mode == "in-place"

    def peer() -> None:
        command = [tool, path, copy, "--general-description", "x" * 100_000, "--force"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    yield Row("longer-value", f"GGUF: a longer value in a model of {size >> 20:,} MiB", *alternate(ours, peer, 3),
              "s", "gguf-new-metadata", 0.1)  # fmt: skip


def _write_sparse(path: Path, size: int) -> None:
    """Write a model of one tensor of ``size`` bytes, all of them a hole."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_tensor_info("x", (size // 16384, 4096), np.dtype(np.float32), size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = path.stat().st_size
    os.truncate(path, start + -start % 32 + size)


def entries_compared(folder: Path, quick: bool) -> Iterator[Row]:
    """Comparing two files of many small entries, of which a few differ."""
    number = 16_384 if quick else 65_536
    ours, peer = small_entries(folder, number, 2)
    other, other_peer = folder / "other.atlas", folder / "other.db"
    shutil.copy(ours, other)
    shutil.copy(peer, other_peer)
    changed = [f"key/{n:07d}" for n in range(0, number, 1000)]
    with MemoryFile.open(other) as memory:
        for key in changed:
            memory[key] = b"another value"
        memory.save()
    with sqlite3.connect(other_peer) as db:
        db.executemany(
            "update entry set value = ? where key = ?", [(b"another value", key) for key in changed]
        )
    db.close()

    def compare() -> None:
        assert len(diff_files(ours, other).changes) == len(changed)

    def compare_peer() -> None:
        before, after = ({}, {})  # type: dict[str, bytes], dict[str, bytes]
        for path, rows in ((peer, before), (other_peer, after)):
            db = sqlite3.connect(path)
            rows.update(db.execute("select key, value from entry"))
            db.close()
        assert sum(after[key] != value for key, value in before.items()) == len(changed)

    yield Row("diff", f"v2: compare two files of {number:,} entries", *alternate(compare, compare_peer, 3), "s",
              "sqlite3, two dicts", 30)  # fmt: skip


def listing(folder: Path, quick: bool) -> Iterator[Row]:
    """The memory that all entries of a file as JSON take, above the interpreter's; the peer builds the list first."""
    number = 65_536 if quick else 1_000_000
    ours, peer = small_entries(folder, number, 2)
    count = (  # of this process alone: what getrusage says may be its parent's
        "import re, sys; status = open('/proc/self/status').read(); "
        "print(re.search(r'VmHWM:\\s+(\\d+)', status)[1], file=sys.stderr)"
    )
    tool = f"from atlas_kit.cli.main import run; run(['inspect', {os.fspath(ours)!r}, '--entries', '--json'])"
    plain = (
        f"import json, sqlite3; db = sqlite3.connect({os.fspath(peer)!r}); "
        "rows = db.execute('select key, length(value), hex(substr(value, 1, 8)) from entry').fetchall(); "
        "print(json.dumps([dict(zip(('key', 'size', 'start'), row)) for row in rows], indent=2))"
    )
    env = os.environ | {"PYTHONPATH": os.fspath(ROOT)}

    def peak(code: str) -> float:
        done = subprocess.run([sys.executable, "-c", f"{code}; {count}"], check=True, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, env=env)  # fmt: skip
        return float(done.stderr.split()[-1]) / 1024

    base = peak("pass")
    yield Row("listing", f"v2: inspect --entries --json of {number:,}, memory", peak(tool) - base,
              peak(plain) - base, "MB", "sqlite3 and json.dumps, a quarter of the fields", 2.0)  # fmt: skip


# --- how small -------------------------------------------------------------------------------------------

ASK = (
    "Can you explain {name} to me?",
    "I still do not understand {name}. What does it do?",
    "How would I use {name}?",
    "Thanks! And what about {name}, is that related?",
    "My colleague mentioned {name} yesterday. Should I know it?",
)
ANSWER = (
    "Sure. {text}",
    "Good question! {text}\n\nDoes that help?",
    "{text}\n\nLet me know if you want an example.",
    "In short: {text}",
)


def chat(size: int) -> str:
    """Make up a conversation of real English: questions, and what the standard library says of itself."""
    topics = __import__("pydoc_data.topics", fromlist=["topics"]).topics
    pieces = []
    for name, text in sorted(topics.items()):
        for paragraph in text.split("\n\n"):
            words = " ".join(paragraph.split())
            if 80 < len(words) < 900 and words[0].isupper() and words.endswith((".", "!")):
                pieces.append((name.lower(), words))
    rng = random.Random(4)
    rng.shuffle(pieces)
    lines: list[str] = []
    total = 0
    for name, words in pieces:
        question, answer = rng.choice(ASK).format(name=name), rng.choice(ANSWER).format(text=words)
        lines.append(f"User: {question}\nAssistant: {answer}\n")
        total += len(lines[-1])
        if total > size:
            break
    return "".join(lines)


def compression(folder: Path, quick: bool) -> Iterator[Row]:
    """Chat-like text with lz4."""
    text = chat(200_000)
    memory = MemoryFile(codec="lz4")
    step = 50_000
    for at in range(0, len(text), step):
        memory.set(f"chat/{at}", text[at : at + step], type=2)
    memory.save(folder / "chat.atlas")
    stored = sum(entry.stored_size for entry in MemoryFile.open(folder / "chat.atlas").values())
    yield Row("lz4", f"chat-like text in entries of {step // 1000} kB, lz4", stored, len(text.encode()),
              "bytes", "as it is", 0.5)  # fmt: skip


GROUPS: dict[str, Callable[[Path, bool], Iterator[Row]]] = {
    "gguf-header": gguf_header,
    "validate-data": validate_data,
    "v2-tensors": version_2,
    "v1-validate": version_1,
    "v2-one-key": one_key,
    "v1-load": all_keys,
    "start": start_up,
    "longer-value": longer_value,
    "diff": entries_compared,
    "listing": listing,
    "lz4": compression,
}


def shown(value: float, unit: str) -> str:
    """Write a measured value shortly."""
    if unit != "s":
        return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return (
        f"{value * 1e6:.0f} us"
        if value < 1e-3
        else f"{value * 1e3:.1f} ms"
        if value < 1
        else f"{value:.2f} s"
    )


def show(row: Row) -> str:
    """Write one row of the table."""
    sign = ">=" if row.at_least else "<="
    cells = (row.what, shown(row.ours, row.unit), shown(row.peer, row.unit), f"{row.ratio:.2f}",
             f"{sign} {row.limit:g}", "ok" if row.ok else "MISSED", row.against)  # fmt: skip
    return "{:52} {:>12} {:>12} {:>8} {:>7}  {:6}  {}".format(*cells)


def main() -> int:
    """Run the groups that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller files and fewer rounds")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--only", action="append", choices=sorted(GROUPS), help="this group (more than once)")
    parser.add_argument("--folder", type=Path, help="where to put the files (a temporary folder)")
    parser.add_argument("--save", action="store_true", help="also write tools/bench/results/formats-cpu.json")
    options = parser.parse_args()
    rows: list[Row] = []
    if not options.json:
        print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, files in "
              f"{options.folder or tempfile.gettempdir()}\n")  # fmt: skip
        print("{:52} {:>12} {:>12} {:>8} {:>7}".format("what", "ours", "peer", "ratio", "limit"))
    for name, group in GROUPS.items():
        if options.only and name not in options.only:
            continue
        folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="atlas-bench-"))
        try:
            for row in group(folder, options.quick):
                rows.append(row)
                if not options.json:
                    print(show(row), flush=True)
        finally:
            shutil.rmtree(folder)
    found = [asdict(row) | {"ratio": row.ratio, "ok": row.ok} for row in rows]
    if options.save:
        from tools.bench.memory import RESULTS, machine_of

        kept = json.dumps(machine_of("numpy", options.quick) | {"rows": found}, indent=1)
        (RESULTS / "formats-cpu.json").write_text(kept + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(found, indent=1))
    elif not options.only:
        print("\nhow much damaged files give back: python tools/bench/repair_score.py")
    return int(not all(row.ok for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
