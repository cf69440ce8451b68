"""Mutate the sample files and watch what the library does with them.

    python tools/fuzz.py                          # for ten minutes (make fuzz)
    python tools/fuzz.py --seconds 60 --seed 7
    python tools/fuzz.py --mutants 2000 --kind gguf
    python tools/fuzz.py --again fuzz-failures/assistant.atlas-0-1234.atlas

Every mutant is opened, listed, read, checked, rescued and saved again in every way that the library has. Only
``AtlasError`` may come out, within a second of CPU time and a few times the file's size of memory. What fails
is written to a folder, with the traceback beside it. One seed gives one sequence of mutants.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from atlas_kit.errors import AtlasError  # noqa: E402
from atlas_kit.formats.atlas import MemoryFile, checksums, layout, tables, v2  # noqa: E402
from atlas_kit.storage.given import open_source  # noqa: E402
from tools.make_vectors import c_library_files  # noqa: E402

KEY = bytes(range(32))
PASSPHRASE = "correct horse battery staple"

#: Larger files are chosen rarely (smaller ones have the same fields, and more of their mutants fit into a
#: minute) or, when they are larger still, never.
LARGE, SELDOM = 48_000, 0.03
LARGEST = 800_000

#: What one mutant may cost: CPU seconds in one step, and bytes of memory, beside so many times its own size.
SECONDS = 1.0
MEMORY = 48 << 20
MEMORY_RATIO = 16
#: Address space for allocations that are never touched.
ADDRESSES = 1 << 30


# --- what is mutated -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seed:
    """An intact (or already broken) file to start from."""

    name: str
    data: bytes
    secret: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """``atlas`` or ``gguf``."""
        return "gguf" if self.name.endswith(".gguf") else "atlas"


def corpus() -> list[Seed]:
    """Return all files to start from: built ones, the C library's, samples, vocabularies where there are any."""
    seeds = [*built(), *(Seed(name, data) for name, data in c_library_files().items())]
    for folder in (ROOT / "sample_data", ROOT.parent / "shared" / "fixtures" / "gguf"):
        for path in sorted([*folder.rglob("*.atlas"), *folder.rglob("*.gguf")]):
            if path.stat().st_size <= LARGEST:
                secret = {"passphrase": PASSPHRASE} if "secret" in path.name else {}
                seeds.append(Seed(path.name, path.read_bytes(), secret))
    return seeds


def built() -> Iterator[Seed]:
    """Yield files with every feature, small."""
    import numpy as np

    def saved(version: int, *, updates: int = 0, codecs: tuple[str, ...] = ("none",), **secret: Any) -> bytes:
        memory = MemoryFile(version=version, created=5, **secret)
        for codec in codecs:
            memory.set(f"text/{codec}", "again and again " * 20, timestamp=7, codec=codec)
            memory.set(f"json/{codec}", {"a": [1, 2, {"b": None}]}, timestamp=7, codec=codec)
            if version > 1:
                memory.set(f"f4/{codec}", np.arange(60, dtype="<f4").reshape(5, 12), timestamp=7, codec=codec)
                memory.set(f"b/{codec}", bytes(64), dtype="bfloat16", timestamp=7, codec=codec)
                memory.set(f"q/{codec}", bytes(68), dtype="q8_0", shape=(2, 32), timestamp=7, codec=codec)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "seed"
            memory.save(path, durable=False)
            for number in range(updates):
                memory[f"new{number}"] = "x" * number
                memory[f"text/{codecs[0]}"] = f"changed {number}"
                memory.remove(f"new{number - 2}")
                memory.commit()
            return path.read_bytes()

    codecs = ("none", "lz4", "zlib", "zstd")
    yield Seed("built-1.atlas", saved(1))
    yield Seed("built-2.atlas", saved(2, codecs=codecs))
    yield Seed("built-2-updated.atlas", saved(2, codecs=codecs, updates=5))
    yield Seed("built-2-empty.atlas", saved(2, codecs=()))
    yield Seed("built-3.atlas", saved(3, codecs=codecs, key=KEY), {"key": KEY})
    yield Seed("built-3-updated.atlas", saved(3, updates=3, key=KEY), {"key": KEY})


# --- mutations -------------------------------------------------------------------------------------------

NUMBERS = [0, 1, 2, 7, 8, 31, 33, 64, 255, 256, 257, 0x7FFF, 0xFFFF, 65537, 1 << 20, 1 << 30, (1 << 31) - 1,
           1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 8,
           (1 << 64) - 1]  # fmt: skip


def _flip(rng: random.Random, data: bytearray, other: bytes) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _head_flip(rng: random.Random, data: bytearray, other: bytes) -> None:
    data[rng.randrange(min(len(data), 256))] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, data: bytearray, other: bytes) -> None:
    at = rng.randrange(len(data))
    size = min(rng.choice((1, 4, 16, 64, 1024)), len(data) - at)
    data[at : at + size] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))


def _number(rng: random.Random, data: bytearray, other: bytes) -> None:
    """Write a telling number where a count, a length or an offset may be."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        size = rng.choice((1, 2, 4, 4, 8, 8, 8))
        limit = rng.choice((len(data), min(len(data), 600)))
        at = rng.randrange(max(1, limit - size)) & ~rng.choice((0, 3, 7))
        near = int.from_bytes(data[at : at + size], "little") + rng.choice((-8, -1, 1, 8))
        value = rng.choice((rng.choice(NUMBERS), near, len(data) + rng.randrange(-9, 9)))
        data[at : at + size] = (value % (1 << 8 * size)).to_bytes(
            size, rng.choice(("little", "little", "big"))
        )


def _cut(rng: random.Random, data: bytearray, other: bytes) -> None:
    del data[rng.randrange(len(data)) :]


def _delete(rng: random.Random, data: bytearray, other: bytes) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 4, 8, 32, 104, 500))]


def _insert(rng: random.Random, data: bytearray, other: bytes) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice((bytes(8), rng.randbytes(rng.randrange(1, 50)), _piece(rng, bytes(data))))


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    """Put a piece of this or another file in the place of a piece of this one."""
    piece = _piece(rng, rng.choice((bytes(data), other)))
    at = rng.randrange(len(data)) & ~rng.choice((0, 7))
    data[at : at + len(piece)] = piece


def _piece(rng: random.Random, data: bytes) -> bytes:
    if not data:
        return b""
    at = rng.randrange(len(data)) & ~rng.choice((0, 7))
    return data[at : at + rng.choice((8, 32, 128, 1000))]


def _swap(rng: random.Random, data: bytearray, other: bytes) -> None:
    size = rng.choice((4, 8, 40, 128))
    one, two = (rng.randrange(len(data)) & ~7 for _ in range(2))
    if abs(one - two) >= size and max(one, two) + size <= len(data):
        data[one : one + size], data[two : two + size] = data[two : two + size], data[one : one + size]


MUTATIONS = (
    _flip,
    _flip,
    _head_flip,
    _overwrite,
    _number,
    _number,
    _number,
    _cut,
    _delete,
    _insert,
    _splice,
    _swap,
)


def mutate(rng: random.Random, seed: Seed, other: Seed) -> bytes:
    """Return a mutant of a seed; of ``.atlas`` files half with all plain checksums made right again."""
    data = bytearray(seed.data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if data:
            rng.choice(MUTATIONS)(rng, data, other.data)
    if seed.kind == "atlas" and rng.random() < 0.6:
        with contextlib.suppress(struct.error, IndexError, OverflowError):
            resum(data)
    return bytes(data)


def resum(data: bytearray) -> None:
    """Make the checksums fit, so that the checks behind them are reached."""
    if data[4:8] == b"\1\0\0\0":
        _resum_v1(data)
    else:
        _resum_v2(data)


def _resum_v1(data: bytearray) -> None:
    at = layout.HEADER_V1.size
    while at + layout.ENTRY_V1.size <= len(data):
        key_length, size = struct.unpack_from("<II", data, at)
        start = at + layout.ENTRY_V1.size + key_length + 1
        if start + size > len(data):
            break
        struct.pack_into("<I", data, at + 24, checksums.fnv1a(bytes(data[start : start + size])))
        at = start + size
    struct.pack_into("<I", data, 8, checksums.fnv1a(bytes(data[12 : layout.HEADER_V1.size])))


def _resum_v2(data: bytearray) -> None:
    heads: dict[int, int] = {}
    at = data.find(tables.ENTRY_SYNC)
    while at >= 0:
        if at + layout.ENTRY.size <= len(data):
            fields = v2.Fields._make(layout.ENTRY.unpack_from(data, at))
            end = at + fields.payload_offset
            if end + fields.stored_size <= len(data):
                payload = bytes(data[end : end + fields.stored_size])
                struct.pack_into("<Q", data, at + 16, checksums.xxh3(payload))
                heads[at] = checksums.xxh3(bytes(data[at + 16 : end]))
                struct.pack_into("<Q", data, at + 8, heads[at])
        at = data.find(tables.ENTRY_SYNC, at + 8)
    version = struct.unpack_from("<I", data, 4)[0]
    header = layout.HEADER_STRUCTS.get(version, layout.HEADER_V2)
    at = data.find(tables.INDEX_SYNC)
    while at >= 0:
        size = struct.unpack_from("<Q", data, at + 16)[0]
        if at + size <= len(data):
            for row in range(at + layout.INDEX.size + header.size, at + size - 39, 40):
                offset = struct.unpack_from("<Q", data, row + 8)[0]
                if version == 2 and offset in heads:
                    struct.pack_into("<Q", data, row + 32, heads[offset])
            struct.pack_into("<Q", data, at + 8, checksums.xxh3(bytes(data[at + 16 : at + size])))
        at = data.find(tables.INDEX_SYNC, at + 8)
    struct.pack_into("<I", data, 8, checksums.fnv1a(bytes(data[12:104])))
    struct.pack_into("<Q", data, header.size - 8, checksums.xxh3(bytes(data[: header.size - 8])))


# --- what is done with a mutant --------------------------------------------------------------------------

Step = Callable[[bytes, Path, dict[str, Any]], None]


def _tolerate(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except AtlasError as error:
        str(error)  # must not fail either
        return None


def atlas_open(data: bytes, path: Path, secret: dict[str, Any]) -> None:
    """Load with everything verified."""
    MemoryFile.load(data, **secret).close()


def atlas_read(data: bytes, path: Path, secret: dict[str, Any]) -> None:
    """List and read everything, every way."""
    memory = MemoryFile.open(path, **secret)
    len(memory), repr(memory), memory.warnings, memory.model_hash
    _tolerate(lambda: memory.garbage)
    _tolerate(lambda: memory.total_size)
    for e in memory.values():
        repr(e), e.codec, e.filter, e.dtype
        ways: tuple[Callable[[], Any], ...] = (
            lambda e=e: e.data, lambda e=e: e.text, e.json, e.verify, e.array, e.numbers,
            lambda e=e: sum(map(len, e.chunks())), lambda e=e: memory[e.key],
        )  # type: ignore[misc]  # fmt: skip
        for way in ways:
            _tolerate(way)
    for key in list(memory):
        _tolerate(lambda key=key: memory[key].data)  # type: ignore[misc]
    _tolerate(lambda: "no such key" in memory)


def atlas_change(data: bytes, path: Path, secret: dict[str, Any]) -> None:
    """Change and write: appended, and as each version."""
    memory = MemoryFile.open(path, **secret)
    with contextlib.suppress(AtlasError):
        for key in list(memory)[:2]:
            memory.remove(key)
    memory["added"] = "text"
    _tolerate(memory.commit)
    again = path.with_name("again.atlas")
    for version in (1, 2, 3):
        source = MemoryFile.open(data, **(secret or {"key": KEY}))
        if _tolerate(lambda v=version, s=source: s.save(again, version=v, durable=False) or 1):  # type: ignore[misc]
            MemoryFile.open(again, **(secret or {"key": KEY})).close()  # what was saved must open


def atlas_check(data: bytes, path: Path, secret: dict[str, Any]) -> None:
    """Check."""
    from atlas_kit.formats.atlas.check import check_atlas

    for finding in check_atlas(path, **secret):
        finding.to_json()
    check_atlas(open_source(data), deep=False)


def atlas_rescue(data: bytes, path: Path, secret: dict[str, Any]) -> None:
    """Rescue; what was rescued must be sound."""
    from atlas_kit.formats.atlas.rescue import rescue_atlas

    out = path.with_name("rescued.atlas")
    out.unlink(missing_ok=True)
    rescue_atlas(path, out, durable=False, **secret)
    MemoryFile.load(out, **secret).close()


def gguf_read(data: bytes, path: Path, secret: dict[str, Any]) -> None:
    """Read everything, every way."""
    from atlas_kit.formats.gguf import GGUFFile, hash_tensors

    file = GGUFFile.open(path, shards=False, tolerant=len(data) % 2 == 0)
    for item in file.fields:
        repr(item.key), _tolerate(lambda item=item: item.items)  # type: ignore[misc]
    for info in file.tensor_infos:
        repr((info.shape, info.type_name, info.nbytes, info.elements))
        ways: tuple[Callable[[], Any], ...] = (
            lambda i=info: file.array(i), lambda i=info: sum(map(len, file.iter_raw(i))),
            lambda i=info: file.dequantize(i), lambda i=info: sum(a.size for a in file.iter_dequantized(i)),
        )  # type: ignore[misc]  # fmt: skip
        for way in ways:
            _tolerate(way)
    file.get("general.name")
    _tolerate(lambda: hash_tensors(file))
    GGUFFile.from_bytes(data)


def gguf_check(data: bytes, path: Path, secret: dict[str, Any]) -> None:
    """Check."""
    from atlas_kit.formats.gguf import hex_fields
    from atlas_kit.formats.gguf.check import check_gguf

    for finding in check_gguf(path, deep=True, shards=False):
        finding.to_json()
    hex_fields(path, 500)


def gguf_mend(data: bytes, path: Path, secret: dict[str, Any]) -> None:
    """Mend; what was mended must open."""
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.formats.gguf.mend import mend_gguf

    out = path.with_name("mended.gguf")
    out.unlink(missing_ok=True)
    mend_gguf(path, out, drop_damaged=len(data) % 2 == 0)
    if out.exists():
        GGUFFile.open(out, shards=False).close()


STEPS: dict[str, tuple[Step, ...]] = {
    "atlas": (atlas_open, atlas_read, atlas_check, atlas_rescue, atlas_change),
    "gguf": (gguf_read, gguf_check, gguf_mend),
}


# --- watching --------------------------------------------------------------------------------------------


class Hang(BaseException):
    """A step took so long that it was interrupted."""


@dataclass
class Watch:
    """Runs steps and remembers what they did."""

    folder: Path
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    largest: float = 0.0

    def run(self, step: Step, data: bytes, secret: dict[str, Any], name: str, suffix: str) -> bool:
        """Run one step on one mutant; tell whether all was well."""
        path = self.folder / f"mutant{suffix}"
        path.write_bytes(data)
        problem = self._try(step, data, path, secret)
        if problem and problem.startswith("slow"):  # once more: another process may have been to blame
            gc.collect()
            path.write_bytes(data)
            problem = self._try(step, data, path, secret)
        if problem is None:
            return True
        self.failures.append(f"{name} {step.__name__}: {problem}")
        return False

    def _try(self, step: Step, data: bytes, path: Path, secret: dict[str, Any]) -> str | None:
        before = _reset_peak()
        start = time.process_time()
        try:
            signal.setitimer(signal.ITIMER_REAL, 20)
            try:
                step(data, path, secret)
                outcome = "fine"
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except AtlasError as error:
            if not isinstance(error.__cause__, Hang):
                str(error)
            outcome = type(error).__name__
            error.__traceback__ = None
        except Hang:
            return "hang: more than 20 seconds"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return "".join(traceback.format_exception(error))
        spent, used = time.process_time() - start, _peak() - before
        self.outcomes[f"{step.__name__}: {outcome}"] += 1
        self.slowest = max(self.slowest, spent)
        self.largest = max(self.largest, used / (MEMORY + MEMORY_RATIO * len(data)))
        if spent > SECONDS:
            return f"slow: {spent:.2f} seconds of CPU time"
        if used > MEMORY + MEMORY_RATIO * len(data):
            return f"large: {used >> 20} MiB for a file of {len(data)} bytes"
        return None


def _peak() -> int:
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _reset_peak() -> int:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _peak()


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Make huge allocations fail, hangs end, and scrypt (slow on purpose) quick."""
    real, handler = hashlib.scrypt, signal.getsignal(signal.SIGALRM)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)

    def quick(password: bytes, *, salt: bytes, n: int, r: int, p: int, **_: Any) -> bytes:
        return hashlib.sha256(b"%b/%b/%d/%d/%d" % (password, salt, n, r, p)).digest()

    def stop(*_: object) -> None:
        raise Hang

    hashlib.scrypt = quick  # type: ignore[assignment]
    signal.signal(signal.SIGALRM, stop)
    with contextlib.suppress(OSError), open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + ADDRESSES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, handler)
        hashlib.scrypt = real


def warm_up(watch: Watch, seeds: list[Seed]) -> None:
    """Run every step on an intact file of its kind once, so that imports are not counted."""
    for kind in STEPS:
        for seed in [seed for seed in seeds if seed.kind == kind][:6]:
            for step in STEPS[kind]:
                (watch.folder / f"mutant.{kind}").write_bytes(seed.data)
                with contextlib.suppress(AtlasError):
                    step(seed.data, watch.folder / f"mutant.{kind}", seed.secret)


def resealed(seeds: list[Seed]) -> list[Seed]:
    """Seal the sample that has a passphrase again, under the quick stand-in for scrypt."""
    out = []
    for seed in seeds:
        if "passphrase" in seed.secret:
            with tempfile.TemporaryDirectory() as folder, contextlib.suppress(AtlasError):
                memory = MemoryFile(version=3, created=5, **seed.secret)
                memory.update({"diary": "text", "settings": {"a": 1}})
                memory.save(Path(folder) / "f", durable=False)
                seed = Seed(seed.name, (Path(folder) / "f").read_bytes(), seed.secret)
        out.append(seed)
    return out


def fuzz(
    *, seed: int, mutants: int | None = None, seconds: float | None = None, kind: str | None = None,
    out: Path | None = None, progress: bool = False,
) -> tuple[int, Watch]:  # fmt: skip
    """Run so many mutants, or for so long; return how many, and what was seen."""
    scratch = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        watch = Watch(Path(folder))
        seeds = [s for s in corpus() if kind is None or s.kind == kind]
        warm_up(watch, seeds)
        start, shown, number = time.monotonic(), time.monotonic(), 0
        weights = [1.0 if len(s.data) <= LARGE else SELDOM for s in seeds]
        with limits():
            seeds = resealed(seeds)
            while (mutants is None or number < mutants) and (
                seconds is None or time.monotonic() - start < seconds
            ):
                rng = random.Random(f"{seed}/{number}")
                base, other = rng.choices(seeds, weights, k=2)
                data = mutate(rng, base, other)
                name = f"{base.name.rsplit('.', 1)[0]}-{seed}-{number}"
                for step in STEPS[base.kind]:
                    if not watch.run(step, data, base.secret, name, f".{base.kind}"):
                        keep(out, name, base.kind, data, watch.failures[-1])
                number += 1
                if progress and time.monotonic() - shown > 5:
                    shown = time.monotonic()
                    print(f"\r{number} mutants, {len(watch.failures)} failures ", end="", file=sys.stderr)
        if progress:
            print(file=sys.stderr)
    return number, watch


def keep(out: Path | None, name: str, kind: str, data: bytes, why: str) -> None:
    """Write a failing mutant and its story to the folder."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.{kind}").write_bytes(data)
        (out / f"{name}.txt").write_text(why, encoding="utf-8", errors="replace")


def again(path: Path) -> int:
    """Run all steps on one file that failed before, with the errors as they come."""
    data = path.read_bytes()
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        secret = {"passphrase": PASSPHRASE} if path.name.startswith("secret") else {}
        secret = {"key": KEY} if path.name.startswith("built-3") else secret
        watch = Watch(Path(folder))
        kind = path.suffix[1:]
        warm_up(watch, corpus())
        with limits():
            for step in STEPS[kind]:
                start = time.process_time()
                well = watch.run(step, data, secret, path.name, path.suffix)
                print(
                    f"{step.__name__:14} {'fine' if well else 'FAILED'} {time.process_time() - start:.2f} s"
                )
                status |= not well
        for failure in watch.failures:
            print(failure)
    return status


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, help="run for so long (600)")
    parser.add_argument("--minutes", type=float, help="run for so long")
    parser.add_argument("--mutants", type=int, help="run so many")
    parser.add_argument("--seed", type=int, default=zlib.crc32(os.urandom(8)), help="the sequence to run")
    parser.add_argument("--kind", choices=sorted(STEPS), help="only files of this kind")
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"), help="folder for what failed")
    parser.add_argument("--again", type=Path, metavar="FILE", help="run one mutant that failed once more")
    parser.add_argument("--quiet", action="store_true", help="print failures only")
    options = parser.parse_args()
    if options.again:
        return again(options.again)
    seconds = options.minutes * 60 if options.minutes is not None else options.seconds
    if seconds is None and options.mutants is None:
        seconds = 600
    number, watch = fuzz(
        seed=options.seed, mutants=options.mutants, seconds=seconds, kind=options.kind, out=options.out,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    if not options.quiet:
        for outcome, count in sorted(watch.outcomes.items()):
            print(f"{count:8} {outcome}")
    print(
        f"{number} mutants of seed {options.seed}, {len(watch.failures)} failures; the slowest step took "
        f"{watch.slowest:.2f} s of CPU time, the largest {watch.largest:.0%} of the memory allowed"
    )
    for failure in watch.failures[:20]:
        print(f"\n{failure}", file=sys.stderr)
    if watch.failures:
        print(f"\nThe mutants are in {options.out}/", file=sys.stderr)
    return int(bool(watch.failures))


if __name__ == "__main__":
    raise SystemExit(main())
