"""Score `repair`: injure thousands of random memory files and count how many intact entries come back.

    python tools/bench/repair_score.py                    # 3,000 injuries
    python tools/bench/repair_score.py --count 30000 --seed 7
    python tools/bench/repair_score.py --show              # one line per entry that did not come back

An entry counts as intact when none of its bytes were touched. It counts as rescued when the new file has it
under its key with the same payload, type, flags and timestamp, in the same order. ``mended`` are entries that
were hit and came back right all the same; ``wrong`` are entries in the new file that the old one did not have
(version 1 has no checksum over key, type and time, so that a hit there cannot be noticed).
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT)]

from atlas_kit.formats.atlas import MemoryFile, layout, v1  # noqa: E402
from atlas_kit.formats.atlas.check import check_atlas  # noqa: E402
from atlas_kit.formats.atlas.rescue import RescueResult, rescue_atlas  # noqa: E402
from atlas_kit.formats.atlas.rescue_plan import LOST_AND_FOUND  # noqa: E402
from atlas_kit.storage.given import open_source  # noqa: E402

KEY = bytes(range(32))  # version 3 with a raw key: scrypt is slow on purpose
WORDS = (
    "the",
    "user",
    "asked",
    "about",
    "gardens",
    "and",
    "model",
    "said",
    "tomatoes",
    "like",
    "sun",
    "water",
)


@dataclass
class Sample:
    """An intact file: its bytes, and where which entry is."""

    version: int
    data: bytes
    facts: dict[str, tuple[Any, ...]]  # in order
    ranges: dict[str, tuple[int, int]]
    past: set[tuple[Any, ...]] = field(default_factory=set)  # what keys held before, or held when removed


def fact(entry: Any) -> tuple[Any, ...]:
    """Return what of an entry must come back."""
    return entry.data, entry.type, entry.flags, entry.timestamp, entry.dtype, entry.shape


def payload(rng: random.Random, depth: int = 0) -> bytes | str:
    """Return a random payload of one of the kinds that memories hold."""
    kind = rng.randrange(8)
    size = min(int(rng.expovariate(1 / 400)) + 1, 20_000)
    if kind == 0:
        return rng.randbytes(size)
    if kind == 1:
        return bytes(size)
    if kind == 2:  # numbers with many zero bytes, which look like lengths
        return b"".join(rng.randrange(300).to_bytes(4, "little") for _ in range(size // 4 + 1))
    if kind == 3 and depth == 0:  # a memory file inside a memory file
        return sample(rng, rng.choice((1, 2)), depth=1).data
    if kind == 4:
        return b"\1" * size
    return " ".join(rng.choice(WORDS) for _ in range(size // 6 + 1))


def sample(rng: random.Random, version: int, depth: int = 0) -> Sample:
    """Make a random file; versions 2 and 3 get a few commits, so that there are older states in them."""
    secret = {"key": KEY} if version == 3 else {}
    memory = MemoryFile(version=version, created=1_700_000_000 + rng.randrange(10**7), **secret)
    codecs = ("none", "none", "lz4", "zlib", "zstd") if version > 1 else (None,)

    def put(number: int) -> None:
        key = f"{rng.choice(('note', 'chat', 'state'))}/{number}"
        memory.set(key, payload(rng, depth), type=rng.randrange(6), flags=rng.choice((0, 0, 7)),
                   timestamp=1_700_000_000 + rng.randrange(10**7), codec=rng.choice(codecs))  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.atlas"
        for number in range(rng.randint(1, 12 if depth == 0 else 4)):
            put(number)
        memory.save(path, durable=False)
        past: set[tuple[Any, ...]] = set()
        for _ in range(rng.randrange(3) if version > 1 and depth == 0 else 0):
            past.update((entry.key, *fact(entry)) for entry in memory.values())
            for key in rng.sample(list(memory), min(len(memory), rng.randrange(3))):
                if rng.random() < 0.4 and len(memory) > 1:
                    memory.remove(key)
                else:
                    memory.set(key, payload(rng, depth), timestamp=1_700_000_000 + rng.randrange(10**7))
            put(100 + rng.randrange(1000))
            memory.commit()
        data = path.read_bytes()
        facts = {entry.key: fact(entry) for entry in memory.values()}
        ranges = ranges_of(memory)
        memory.close()
    return Sample(version, data, facts, ranges, past)


def ranges_of(memory: MemoryFile) -> dict[str, tuple[int, int]]:
    """Return the bytes that each entry occupies, without the zeros that align the next one."""
    store: Any = memory.store
    if memory.version == 1:
        walked = v1.walk(store.source, layout.HEADER_V1.size, len(store))
        return {
            raw.decode("utf-8", "surrogateescape"): (at, at + 33 + fields[0] + fields[1])
            for at, fields, raw, _ in walked
        }
    ranges = {}
    for row in store.rows():
        head = layout.ENTRY.unpack(store.source.read(row.offset, layout.ENTRY.size))
        names = dict(zip(layout.names_of(layout.EntryHeader), head, strict=True))
        size = names["payload_offset"] + names["stored_size"]
        ranges[store.entry_at(row).key] = (row.offset, row.offset + size)
    return ranges


# --- injuries ----------------------------------------------------------------------------------------------

#: What an injury returns: the bytes, and the ranges of the old file that were touched (empty: a cut).
Injured = tuple[bytes, list[tuple[int, int]]]


def overwritten(data: bytes, changes: list[tuple[int, bytes]]) -> Injured:
    """Write over ``data``; what held the same bytes before was not touched."""
    out = bytearray(data)
    for at, piece in changes:
        out[at : at + len(piece)] = piece[: max(0, len(data) - at)]
    touched = [(i, i + 1) for i in range(len(data)) if data[i] != out[i]] if len(changes) < 64 else []
    return bytes(out), touched


def flip_bits(rng: random.Random, s: Sample) -> Injured:
    places = [rng.randrange(len(s.data)) for _ in range(rng.randint(1, 8))]
    changes: dict[int, int] = {}
    for at in places:
        changes[at] = changes.get(at, s.data[at]) ^ 1 << rng.randrange(8)
    return overwritten(s.data, [(at, bytes([value])) for at, value in changes.items()])


def zero_range(rng: random.Random, s: Sample) -> Injured:
    size = rng.choice((1, 16, 64, 512, 512, 4096))
    at = rng.randrange(len(s.data)) // 512 * 512 if size >= 512 else rng.randrange(len(s.data))
    return overwritten(s.data, [(at, bytes(min(size, len(s.data) - at)))])


def noise_range(rng: random.Random, s: Sample) -> Injured:
    at = rng.randrange(len(s.data))
    return overwritten(s.data, [(at, rng.randbytes(rng.randint(1, 300)))])


def cut_off(rng: random.Random, s: Sample) -> Injured:
    at = rng.randrange(len(s.data))
    return s.data[:at], [(at, len(s.data))]


def insert(rng: random.Random, s: Sample) -> Injured:
    at = rng.randrange(len(s.data))
    piece = rng.choice((rng.randbytes, bytes))(rng.randint(1, 600))
    return s.data[:at] + piece + s.data[at:], [(at, at)]


def delete(rng: random.Random, s: Sample) -> Injured:
    at = rng.randrange(len(s.data))
    end = min(len(s.data), at + rng.choice((1, 7, 64, 512, 2048)))
    return s.data[:at] + s.data[end:], [(at, end)]


def header_hit(rng: random.Random, s: Sample) -> Injured:
    size = layout.HEADER_STRUCTS[s.version].size
    at = rng.randrange(size)
    return overwritten(s.data, [(at, rng.randbytes(rng.randint(1, size - at)))])


def header_gone(rng: random.Random, s: Sample) -> Injured:
    size = layout.HEADER_STRUCTS[s.version].size
    if rng.random() < 0.5:
        return s.data[size:], [(0, size)]
    return overwritten(s.data, [(0, bytes(size))])


def count_hit(rng: random.Random, s: Sample) -> Injured:
    at, size = rng.choice(((12, 4), (32, 8)))
    return overwritten(s.data, [(at, rng.randbytes(size))])


def length_hit(rng: random.Random, s: Sample) -> Injured:
    """Hit a length field of one or two entries."""
    changes = []
    for start, _ in rng.sample(list(s.ranges.values()), min(len(s.ranges), rng.randint(1, 2))):
        if s.version == 1:
            at, size = rng.choice(((0, 4), (4, 4)))
        else:
            at, size = rng.choice(((48, 8), (56, 8), (80, 4), (84, 4), (100, 1)))
        small = rng.randrange(1, 200).to_bytes(size, "little")
        value = rng.choice((rng.randbytes(size), small, b"\xff" * size))
        changes.append((start + at, value))
    return overwritten(s.data, changes)


def index_gone(rng: random.Random, s: Sample) -> Injured:
    """Lose the newest index (in version 1, which has none, the last bytes)."""
    at = len(s.data) - 40 if s.version == 1 else int.from_bytes(s.data[128:136], "little")
    at = max(0, at)
    if rng.random() < 0.5:
        return s.data[:at], [(at, len(s.data))]
    return overwritten(s.data, [(at, rng.randbytes(len(s.data) - at))])


def several(rng: random.Random, s: Sample) -> Injured:
    """Three injuries that do not move bytes."""
    changes = [(rng.randrange(len(s.data)), rng.randbytes(rng.randint(1, 40))) for _ in range(3)]
    return overwritten(s.data, changes)


INJURIES: dict[str, Callable[[random.Random, Sample], Injured]] = {
    "bit flips": flip_bits,
    "zeroed range": zero_range,
    "noise": noise_range,
    "cut off": cut_off,
    "inserted bytes": insert,
    "deleted bytes": delete,
    "header hit": header_hit,
    "header gone": header_gone,
    "count hit": count_hit,
    "length field hit": length_hit,
    "index gone": index_gone,
    "three places": several,
}


# --- scoring -----------------------------------------------------------------------------------------------


def intact_keys(s: Sample, touched: list[tuple[int, int]]) -> list[str]:
    """Return the keys of entries of which no byte was touched."""

    def hit(start: int, end: int) -> bool:
        return any(a < end and b > start if b > a else start < a < end for a, b in touched)

    return [key for key in s.facts if not hit(*s.ranges[key])]


@dataclass
class Score:
    """Counts over many injuries."""

    injuries: int = 0
    intact: int = 0
    rescued: int = 0
    hit: int = 0
    mended: int = 0
    wrong: int = 0
    invalid: int = 0


def rescue(data: bytes, out: Path, version: int) -> tuple[RescueResult, dict[str, tuple[Any, ...]]]:
    """Rescue and read back."""
    secret = {"key": KEY} if version == 3 else {}
    with open_source(data) as source:
        result = rescue_atlas(source, out, durable=False, **secret)
    with MemoryFile.open(out, verify=True, **secret) as memory:
        return result, {entry.key: fact(entry) for entry in memory.values()}


def score_one(s: Sample, injured: Injured, out: Path, score: Score, *, tell: Callable[[str], None]) -> None:
    """Add one injury to the score."""
    data, touched = injured
    intact = intact_keys(s, touched)
    score.injuries += 1
    score.intact += len(intact)
    score.hit += len(s.facts) - len(intact)
    got: dict[str, tuple[Any, ...]] = {}
    try:
        _, got = rescue(data, out, s.version)
    except Exception as error:  # a traceback is a result, too
        if intact:
            tell(f"{type(error).__name__}: {error}")
        return
    order = [key for key in got if key in set(intact)]
    same_order = order == [key for key in intact if key in got]
    for key in s.facts:
        if got.get(key) == s.facts[key]:
            score.rescued += key in intact and same_order
            score.mended += key not in intact
        elif key in intact:
            tell(f"{key} at {s.ranges[key]}: {'other bytes' if key in got else 'missing'}")
    for key, value in got.items():
        if not key.startswith(LOST_AND_FOUND) and s.facts.get(key) != value and (key, *value) not in s.past:
            score.wrong += 1
            tell(f"wrong: {key!r}")
    secret = {"key": KEY} if s.version == 3 else {}
    errors = [finding for finding in check_atlas(out, **secret) if finding.severity == "error"]
    if errors:
        score.invalid += 1
        tell(f"the rescued file is not valid: {errors[0].code} {errors[0].message}")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=3_000, help="injuries in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="name every entry that did not come back")
    options = parser.parse_args()
    started = time.perf_counter()
    table: dict[tuple[int, str], Score] = collections.defaultdict(Score)
    cells = [(version, kind) for version in (1, 2, 3) for kind in INJURIES]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.count):
            version, kind = cells[number % len(cells)]
            rng = random.Random(f"{options.seed}/{number}")
            s = sample(rng, version)
            injured = INJURIES[kind](rng, s)

            def tell(what: str, where: str = f"{options.seed}/{number} v{version} {kind}") -> None:
                if options.show:
                    print(f"{where}: {what}")

            score_one(s, injured, Path(folder) / "out.atlas", table[version, kind], tell=tell)
    return report(table, time.perf_counter() - started)


def report(table: dict[tuple[int, str], Score], seconds: float) -> int:
    """Print the shares per version and injury; return 1 unless every intact entry came back."""
    print(f"{'injury':<18}{'v1':>10}{'v2':>10}{'v3':>10}   share of intact entries rescued")
    for kind in INJURIES:
        cells = [table[version, kind] for version in (1, 2, 3)]
        print(f"{kind:<18}" + "".join(f"{share(cell.rescued, cell.intact):>10}" for cell in cells))
    total = Score()
    for version in (1, 2, 3):
        part = Score()
        for (number, _), cell in table.items():
            for name, value in vars(cell).items():
                setattr(part, name, getattr(part, name) + (value if number == version else 0))
        for name, value in vars(part).items():
            setattr(total, name, getattr(total, name) + value)
        describe(f"version {version}", part)
    describe("all", total)
    print(f"{seconds:.0f} s")
    return 0 if total.rescued == total.intact and not total.invalid else 1


def describe(name: str, score: Score) -> None:
    """Print one line of totals."""
    print(
        f"{name}: {score.injuries} injuries, {score.rescued} of {score.intact} intact entries rescued "
        f"({share(score.rescued, score.intact)}); {score.mended} of {score.hit} hit ones mended; "
        f"{score.wrong} wrong, {score.invalid} invalid files"
    )


def share(part: int, whole: int) -> str:
    """Return a percentage that says 100 only when it is."""
    return "-" if not whole else f"{int(part / whole * 10_000) / 100:.2f} %"


if __name__ == "__main__":
    sys.exit(main())
