"""How fast the memory learns and reads: each figure as a ratio to the plain array operations it is made of.

    python tools/bench/memory.py                    # everything (part of make bench), some two minutes
    python tools/bench/memory.py --quick            # fewer rounds: to see that it works
    python tools/bench/memory.py --only chunk --only map
    python tools/bench/memory.py --backend cupy --save    # the same on a GPU, into tools/bench/results/

What is compared takes turns, and a time is the best of its rounds: what a busy machine adds is never negative.
Exit 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402

from atlas_kit.memory import (  # noqa: E402
    CrossEntropy,
    Features,
    Memory,
    MemoryConfig,
    Polynomial,
    ResidualMLP,
    backend,
    newton_schulz,
    presets,
    snapshot,
)
from tools.bench.formats import Row, shown  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
FREE = math.inf  # the limit of a figure that is only for information
CHUNK, SEEN, D_K, D_KEY, D_PHI, D_V = 16, 64, 2048, 64, 2144, 2048
MAP = Polynomial(degree=2, constant=False)


class Bench:
    """One library, and how long to measure with it."""

    def __init__(self, name: str, quick: bool) -> None:
        self.name, self.quick = name, quick
        self.xp = backend.choose(name)
        self.rng = np.random.default_rng(1)

    def normal(self, *shape: int, scale: float = 1.0) -> Any:
        """Draw float32 numbers: never zeros, which some processors multiply faster."""
        return self.xp.asarray(self.rng.standard_normal(shape, dtype=np.float32) * np.float32(scale))

    def wait(self) -> None:
        """Let the device finish."""
        if self.name == "cupy":
            self.xp.cuda.Device().synchronize()

    def best(self, *work: Callable[[], Any], seconds: float = 8.0, least: int = 5) -> list[float]:
        """Time in turns; return the best of each, in seconds."""
        times = [math.inf] * len(work)
        for call in work:  # warm up
            call()
            call()
        gc.collect()
        rounds, end = 0, time.perf_counter() + (seconds / 8 if self.quick else seconds)
        while rounds < least or time.perf_counter() < end:
            for i, call in enumerate(work):
                self.wait()
                start = time.perf_counter()
                call()
                self.wait()
                times[i] = min(times[i], time.perf_counter() - start)
            rounds += 1
        return times


@dataclass
class Given:
    """A readout whose errors are given: cross-entropy without the product over the vocabulary."""

    loss: Any
    error: Any

    def evaluate(self, y: Any, targets: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return as many losses and errors as there are tokens."""
        return self.loss[:, : y.shape[1]], self.error[:, : y.shape[1]]


# --- one chunk -------------------------------------------------------------------------------------------


def products(bench: Bench, rows: int, d_v: int = D_V) -> Callable[[], None]:
    """Return the plain matrix products of one chunk: forward, gradient, and the read of the next chunk."""
    xp = bench.xp
    phi, query = bench.normal(rows, SEEN, D_PHI), bench.normal(rows, CHUNK, D_PHI)
    W, error = bench.normal(rows, D_PHI, d_v), bench.normal(rows, SEEN, d_v)
    y, gradient, read = xp.empty_like(error), xp.empty_like(W), xp.empty((rows, CHUNK, d_v), np.float32)
    columns = xp.ascontiguousarray(
        phi.swapaxes(1, 2)
    )  # phi feature by feature: no slower than token by token

    def call() -> None:
        xp.matmul(columns.swapaxes(1, 2), W, out=y)
        xp.matmul(columns, error, out=gradient)
        xp.matmul(query, W, out=read)

    return call


def learner(
    bench: Bench, rows: int, d_v: int = D_V, cross_entropy: bool = False, donate: bool = True
) -> Callable[[], None]:
    """Return a call that lets a memory learn one chunk and read as many tokens."""
    settings: dict[str, Any] = {"objective": CrossEntropy()} if cross_entropy else {}
    features = Features(map=MAP, projection=D_KEY)
    config = MemoryConfig(
        D_K, d_v, features=features, omega_window=SEEN, chunk_size=CHUNK, step="chunk", eta=0.01, **settings
    )
    memory = Memory(config, bench.name)
    keys, values = bench.normal(rows, CHUNK, D_K), bench.normal(rows, CHUNK, d_v)
    targets, readout = values, None
    if cross_entropy:
        token, lse = bench.xp.zeros((rows, CHUNK), np.int32), bench.xp.ones((rows, CHUNK), np.float32)
        targets = {"token": token, "hidden": values, "lse": lse}
        readout = Given(bench.xp.ones((rows, SEEN), np.float32), bench.normal(rows, SEEN, d_v, scale=0.1))
    state = memory.init(rows)
    for _ in range(SEEN // CHUNK):
        state, _ = memory.observe(state, keys, targets, readout=readout, donate=True)

    def call() -> None:
        nonlocal state
        state, _ = memory.observe(state, keys, targets, readout=readout, donate=donate)
        memory.read(state, keys)

    return call


def chunk(bench: Bench) -> Iterator[Row]:
    """Learning and reading one chunk, against the products in it."""
    plain = products(bench, 1)
    least = 0.6 if bench.name == "numpy" else 0.0  # one session does not fill a GPU: see ceilings
    for cross_entropy, name in ((False, "L2"), (True, "cross-entropy")):
        times = bench.best(
            plain,
            *(learner(bench, 1, cross_entropy=cross_entropy, donate=donate) for donate in (True, False)),
        )
        for donate, ours in zip((True, False), times[1:], strict=True):
            what = f"update and read a chunk, {name}, {'donated' if donate else 'state kept'}"
            limit = least if donate else 0.0  # a state that is kept is copied first
            yield Row("chunk", what, ours, times[0], "s", "its matrix products", limit, at_least=True)


# --- many sessions ---------------------------------------------------------------------------------------


def batch(bench: Bench) -> Iterator[Row]:
    """Fifty sessions in one call, against one alone: per session."""
    sessions = 8 if bench.quick else 50
    for d_v in (192, D_V):
        one, many = bench.best(learner(bench, 1, d_v), learner(bench, sessions, d_v), seconds=10)
        what = f"a chunk of {sessions} sessions, d_v {d_v:,}, for each"
        yield Row("batch", what, many / sessions, one, "s", "one session alone", 1.0)


def ceilings(bench: Bench) -> Iterator[Row]:
    """On a GPU: fifty sessions against the least time that its products and its memory allow."""
    if bench.name != "cupy":
        return
    xp, side, rows = bench.xp, 8192, 8 if bench.quick else 50
    a, b = bench.normal(side, side), bench.normal(side, side)
    c = xp.empty_like(a)
    product, copy = bench.best(lambda: xp.matmul(a, b, out=c), lambda: xp.copyto(c, a), seconds=3)
    operations, bytes_ = 2 * side**3 / product, 2 * a.nbytes / copy  # a copy reads and writes
    matrix = D_PHI * D_V
    work = 2 * matrix * (2 * SEEN + CHUNK) * rows
    traffic = (
        4 * 4 * matrix * rows
    )  # the forward pass, the update and the read read W, and the update writes it
    floor = max(work / operations, traffic / bytes_)
    against = f"{operations / 1e12:.1f} Tflop/s, {bytes_ / 1e9:.0f} GB/s"
    for cross_entropy, name in ((False, "L2"), (True, "cross-entropy")):
        (ours,) = bench.best(learner(bench, rows, cross_entropy=cross_entropy), seconds=4)
        what = f"a chunk of {rows} sessions, {name}, against the ceilings"
        yield Row("ceilings", what, ours, floor, "s", against, 0.5, at_least=True)


# --- long streams ----------------------------------------------------------------------------------------


def resident() -> float:
    """Return the process's memory in bytes."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return float(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


def length(bench: Bench) -> Iterator[Row]:
    """Time and memory per token along a stream."""
    tokens, call = (16_000 if bench.quick else 128_000), 500
    config = MemoryConfig(
        64, 64, features=Features(map=MAP), omega_window=SEEN, chunk_size=CHUNK, step="chunk",
        window_size=256, eta=0.01,
    )  # fmt: skip
    memory = Memory(config, bench.name)
    keys, values = bench.normal(call, 64), bench.normal(call, 64)
    state, times, sizes, processes = memory.init(), [], [], []
    for _ in range(tokens // call):
        bench.wait()
        start = time.perf_counter()
        state, _ = memory.observe(state, keys, values)
        memory.read(state, keys[:CHUNK])
        bench.wait()
        times.append((time.perf_counter() - start) / call)
        sizes.append(state.nbytes)
        processes.append(
            resident() if bench.name == "numpy" else memory.xp.get_default_memory_pool().used_bytes()
        )
    early = 1000 // call  # the calls up to token 1,000 also warm up
    part = len(times) // 8
    first, last = min(times[early : early + part]), min(times[-part:])
    at = np.arange(len(times)) * call / 1000
    slope = np.polyfit(at[early:], np.array(times[early:]) * 1e6, 1)[0]
    where = f"around token {tokens:,}"
    against = f"around token 1,000; slope {slope:+.4f} us per 1,000 tokens"
    yield Row("length", f"a token {where}", last, first, "s", against, 1.1)
    yield Row(
        "length", f"bytes of the state {where}", sizes[-1], sizes[early], "bytes", "around token 1,000", 1.0
    )
    yield Row("length", f"bytes of the process {where}", processes[-1], processes[early], "bytes",
              "around token 1,000", 1.01)  # fmt: skip


# --- parts -----------------------------------------------------------------------------------------------


def polynomial_map(bench: Bench) -> Iterator[Row]:
    """All products of two of 64 variables, against a copy of the result in the same layout."""
    for n in (CHUNK, SEEN, 1024):
        x = bench.normal(n, D_KEY)
        phi = MAP.apply(x, {})
        ours, copy = bench.best(lambda x=x: MAP.apply(x, {}), lambda phi=phi: phi.copy(order="K"), seconds=3)
        # a copy of 16 tokens takes 3 us, as long as two or three calls of NumPy
        limit = 4.0 if bench.name == "numpy" and n >= SEEN else FREE
        yield Row("map", f"polynomial map of {n:,} x {D_KEY}", ours, copy, "s", "a copy of its output", limit)


def others(bench: Bench) -> Iterator[Row]:
    """What has no limit: Muon, a deep memory, the exact cache, snapshots, and one token of a small memory."""
    xp, d = bench.xp, 256
    S = bench.normal(d, d)
    square, out = S @ S.T, xp.empty_like(S)

    def fifteen() -> None:
        for _ in range(15):
            xp.matmul(square, S, out=out)

    ours, peer = bench.best(lambda: newton_schulz(S), fifteen, seconds=2)
    yield Row("others", f"Muon's Newton-Schulz, {d} x {d}", ours, peer, "s", "its 15 matrix products", FREE)

    config = MemoryConfig(
        d, d, features=Features(), module=ResidualMLP(width=1024), chunk_size=CHUNK, omega_window=SEEN,
        step="chunk", eta=3e-4, guard=True,
    ).replace(features=presets.titans(d, d).features)  # fmt: skip
    memory = Memory(config, bench.name)
    keys, values = bench.normal(CHUNK, d), bench.normal(CHUNK, d)
    state, _ = memory.observe(memory.init(), bench.normal(SEEN, d), bench.normal(SEEN, d))
    x, W, h = bench.normal(SEEN, d), bench.normal(d, 1024), bench.normal(SEEN, 1024)

    def seven() -> None:
        for _ in range(2):  # forward, and once more by the guard
            x @ W
            h @ W.T
        x @ W  # back to the hidden units
        x.T @ h, h.T @ x

    ours, peer = bench.best(lambda: memory.observe(state, keys, values), seven, seconds=2)
    yield Row("others", f"deep memory, a chunk, {d}-1024-{d}", ours, peer, "s", "its matrix products", FREE)

    for slots in (1024, 8192):
        cache = Memory(MemoryConfig(D_KEY, 8, window_size=slots), bench.name)
        full, _ = cache.observe(cache.init(), bench.normal(slots, D_KEY), bench.normal(slots, 8))
        query, all_keys = bench.normal(CHUNK, D_KEY), full.window["key"]
        ours, peer = bench.best(
            lambda cache=cache, full=full, query=query: cache.lookup(full, query),
            lambda query=query, all_keys=all_keys: query @ all_keys.T,
            seconds=1,
        )
        what = f"look {CHUNK} tokens up in {slots:,}"
        yield Row("others", what, ours, peer, "s", "the product of keys", FREE)

    small = Memory(MemoryConfig(D_KEY, D_V, features=Features(map=MAP)), bench.name)
    state = small.init()
    arrays = snapshot(state)
    copies = [array.copy() for array in arrays.values()]

    def copy() -> None:
        for array in copies:
            array.copy()

    times = bench.best(lambda: snapshot(state), lambda: small.restore(arrays), copy, seconds=2)
    yield Row("others", "snapshot of 17.6 MB", times[0], times[2], "s", "a copy of the arrays", FREE)
    yield Row("others", "restore of 17.6 MB", times[1], times[2], "s", "a copy of the arrays", FREE)

    tiny = Memory(presets.delta_rule(64, 64), bench.name)
    empty, key, W = tiny.init(), bench.normal(1, 64), bench.normal(64, 64)
    ours, peer = bench.best(lambda: tiny.observe(empty, key, key), lambda: (key @ W, key.T @ key), seconds=1)
    yield Row("others", "delta rule, one token, 64 x 64", ours, peer, "s", "its two matrix products", FREE)


GROUPS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "chunk": chunk,
    "batch": batch,
    "ceilings": ceilings,
    "length": length,
    "map": polynomial_map,
    "others": others,
}


def show(row: Row) -> str:
    """Write one row of the table."""
    limit, verdict = f"{'>=' if row.at_least else '<='} {row.limit:g}", "ok" if row.ok else "MISSED"
    if row.limit in (FREE, 0):
        limit = verdict = ""
    cells = (
        row.what,
        shown(row.ours, row.unit),
        shown(row.peer, row.unit),
        f"{row.ratio:.2f}",
        limit,
        verdict,
    )
    return "{:56} {:>15} {:>15} {:>8} {:>7}  {:6}  {}".format(*cells, row.against)


def machine_of(library: str, quick: bool) -> dict[str, Any]:
    """Say what was measured on what, and when."""
    return {
        "backend": library,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "quick": quick,
    }


def machine(bench: Bench) -> dict[str, Any]:
    """Say what was measured on what, and when, with the GPU if there is one."""
    found = machine_of(bench.name, bench.quick)
    if bench.name == "cupy":
        device = bench.xp.cuda.Device()
        name = bench.xp.cuda.runtime.getDeviceProperties(device.id)["name"]
        found |= {"device": name.decode(), "cupy": bench.xp.__version__}
    return found


def processor() -> str:
    """Return the processor's name and how it multiplies matrices with how many threads."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def measured(
    groups: Mapping[str, Callable[[Any], Iterator[Row]]], bench: Any, options: argparse.Namespace
) -> list[Row]:
    """Run the groups that were asked for; without ``--json``, print each row as it comes."""
    rows: list[Row] = []
    if not options.json:
        print("{:56} {:>15} {:>15} {:>8} {:>7}".format("what", "ours", "peer", "ratio", "limit"))
    for name, group in groups.items():
        if options.only and name not in options.only:
            continue
        for row in group(bench):
            rows.append(row)
            if not options.json:
                print(show(row), flush=True)
        gc.collect()
    return rows


def table_of(rows: list[Row]) -> list[dict[str, Any]]:
    """Return rows as JSON-ready data."""
    return [
        asdict(row)
        | {"ratio": row.ratio, "ok": row.ok, "limit": None if row.limit in (FREE, 0) else row.limit}
        for row in rows
    ]


def replaced(before: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of which those that were measured anew stand where they stood, and new ones behind their group."""

    def of(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["name"], row["what"].partition(", the longest of")[0], row["against"][:6], row["unit"]

    known = {of(row): row for row in now}
    rows = [known.pop(of(row), row) for row in before]
    for row in known.values():
        last = max((at for at, one in enumerate(rows) if one["name"] == row["name"]), default=len(rows) - 1)
        rows.insert(last + 1, row)
    return rows


def keep(
    rows: list[Row],
    about: dict[str, Any],
    options: argparse.Namespace,
    name: str,
    before: Sequence[dict[str, Any]] = (),
) -> int:
    """Print the rows as JSON and save them under a name, where that was asked for; return the exit code.

    ``before``: rows of another day, of which those stay that were not measured now.
    """
    found = table_of(rows)
    if before:
        found = replaced(before, [{"date": about["date"], "others": about["others"]} | row for row in found])
    text = json.dumps(about | {"rows": found}, indent=1)
    if options.json:
        print(text)
    if options.save is not None:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{options.save or name}.json").write_text(text + "\n", encoding="utf-8")
    return int(not all(row.ok for row in rows))


def main() -> int:
    """Run the groups that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sessions")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--only", action="append", choices=sorted(GROUPS), help="this group (more than once)")
    parser.add_argument("--backend", choices=backend.BACKENDS, default="numpy", help="the array library")
    parser.add_argument(
        "--save", nargs="?", const="", metavar="NAME",
        help="also write tools/bench/results/NAME.json (memory-cpu, or memory- and the device)",
    )  # fmt: skip
    options = parser.parse_args()
    bench = Bench(options.backend, options.quick)
    about = machine(bench)
    if not options.json:
        print(f"{about.get('device', about['processor'])}, {about['cores']} CPUs, Python {about['python']}, "
              f"NumPy {about['numpy']}, load {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    name = "memory-" + about.get("device", "cpu").lower().replace(" ", "-")
    return keep(measured(GROUPS, bench, options), about, options, name)


if __name__ == "__main__":
    raise SystemExit(main())
