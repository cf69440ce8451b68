"""Ten thousand small files: what a fleet costs beside a plain loop, how it scales, and what a million would cost.

    python tools/bench/fleet.py                                  # 10,000 files, 1 and 2 workers
    python tools/bench/fleet.py --files 2000 --workers 1 2 4
    python tools/bench/fleet.py --json tools/bench/results/fleet-cpu.json

The loop calls ``validate_file`` on one file after the other. The fleet lists the folder, does the same and writes a row
for each file into a table; with two workers and more it does so in processes, which have to start first. Processor
times are of all processes together, so that other work on the machine hardly counts; the scaling is of wall times, and
counts for something on an idle machine only. A second run finds all in the table.

The model at the end is a sum: files times seconds of a processor over workers (but no sooner than the work is given
out), files times requests times latency over how many wait at once. Exit 1 when the fleet costs more than a limit
beside the loop.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from atlas_kit.fleet import Task, run_fleet  # noqa: E402
from atlas_kit.fleet.files import found  # noqa: E402
from atlas_kit.fleet.tasks import THREADS  # noqa: E402
from atlas_kit.operations.validate import validate_file  # noqa: E402

SAMPLE = ROOT / "sample_data" / "gguf" / "micro.gguf"
#: Seconds of a processor that a file may cost beside the plain loop.
LIMIT = 0.002
MILLION = 1_000_000
#: For the model: seconds of a round trip to a store, and requests that a header takes.
LATENCY, REQUESTS = 0.03, 1


def clocked(work: Callable[[], Any]) -> tuple[float, float]:
    """Return wall and processor time of some work, that of processes it started included."""
    wall, processor = time.perf_counter(), _processor()
    work()
    return time.perf_counter() - wall, _processor() - processor


def _processor(*which: int) -> float:
    every = map(resource.getrusage, which or (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in every)


def measure(count: int, workers: list[int]) -> dict[str, Any]:
    """Return the figures of one run."""
    data = SAMPLE.read_bytes()
    with tempfile.TemporaryDirectory(prefix="atlas-fleet-") as name:
        folder = Path(name) / "files"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:06}.gguf").write_bytes(data)
        files = sorted(str(path) for path in folder.iterdir())
        validate_file(files[0])  # what it imports is no file's
        loop = clocked(lambda: [validate_file(path) for path in files])
        rows = []
        for number in workers:
            table = str(Path(name) / f"{number}.jsonl")

            def work(number: int = number, table: str = table) -> None:
                result = run_fleet(Task("validate"), found([str(folder)]), workers=number, table=table)
                assert len(result.rows) == count
                assert not result.failed

            before = _processor(resource.RUSAGE_SELF)
            wall, processor = clocked(work)
            own = _processor(resource.RUSAGE_SELF) - before
            size = os.path.getsize(table)
            rows.append(
                {"workers": number, "wall_s": wall, "cpu_s": processor, "own_cpu_s": own, "table_bytes": size}
            )
        again = clocked(
            lambda: run_fleet(Task("validate"), found([str(folder)]), table=table_of(name, workers[0]))
        )
    return {
        "files": count,
        "loop": {"wall_s": loop[0], "cpu_s": loop[1]},
        "fleets": rows,
        "again_s": again[1],
    }


def table_of(folder: str, workers: int) -> str:
    return str(Path(folder) / f"{workers}.jsonl")


def told(figures: dict[str, Any]) -> list[str]:
    """Return the figures as lines, and the model of a million files."""
    count, loop = figures["files"], figures["loop"]
    lines = [f"{count:,} files of {SAMPLE.stat().st_size:,} bytes, milliseconds per file (processor; wall)"]
    lines.append(f"  plain loop   {1e3 * loop['cpu_s'] / count:8.3f} {1e3 * loop['wall_s'] / count:8.3f}")
    first = figures["fleets"][0]
    for row in figures["fleets"]:
        scaling = first["wall_s"] / row["wall_s"]
        beside = 1e3 * (row["cpu_s"] - loop["cpu_s"]) / count
        lines.append(
            f"  {row['workers']} worker{'s' if row['workers'] > 1 else ' '}    {1e3 * row['cpu_s'] / count:8.3f}"
            f" {1e3 * row['wall_s'] / count:8.3f}   {beside:+.3f} beside the loop, {scaling:.2f} times as fast as 1"
        )
    last = figures["fleets"][-1]
    if last["workers"] > 1:
        lines.append(
            f"  who gives the work out takes {1e3 * last['own_cpu_s'] / count:.3f} of it, and so keeps at most"
            f" {max(1.0, (last['cpu_s'] - last['own_cpu_s']) / last['own_cpu_s']):.0f} workers busy"
        )
    lines.append(f"  found in the table instead: {1e3 * figures['again_s'] / count:.3f} (processor)")
    per_file = first["cpu_s"] / count
    row_bytes = first["table_bytes"] / count
    lines.append("a million such files, by these figures:")
    for workers in (1, 2, 16, 64):
        waits = MILLION * REQUESTS * LATENCY / (workers * THREADS)
        gives = MILLION * last["own_cpu_s"] / count if workers > 1 and last["workers"] > 1 else 0.0
        computes = max(MILLION * per_file / workers, gives)
        lines.append(
            f"  {workers:3} workers: {_span(computes)} of computing here; in a store {REQUESTS} request of"
            f" {1e3 * LATENCY:.0f} ms each adds {_span(waits)}"
        )
    again = _span(MILLION * figures["again_s"] / count)
    lines.append(
        f"  the table takes {MILLION * row_bytes / 1e6:,.0f} MB, and to find that all is in it {again}"
    )
    return lines


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = measure(options.files, options.workers)
    print("\n".join(told(figures)))
    cost = (figures["fleets"][0]["cpu_s"] - figures["loop"]["cpu_s"]) / figures["files"]
    if options.json is not None:
        figures |= {
            "date": date.today().isoformat(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if cost > LIMIT:
        print(f"a file costs {1e3 * cost:.2f} ms beside the loop, and {1e3 * LIMIT:.0f} are allowed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
