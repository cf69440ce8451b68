"""Fifty clients and random faults against ``atlas-tool serve``: a report, and exit code 1 if anything is wrong.

    python -m tools.soak                    # ten minutes (make soak)
    python -m tools.soak --time 24h --json soak.json --text soak.txt
    python -m tools.soak --time 60 --users 10 --think 1 --seed 7

In the first half the server is killed, ended and restarted again and again; in the second it lives on, and whatever
grows in it is seen. It needs about half a processor; ``--think`` says how long clients wait between two requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from tools.bench._servers import ROOT
from tools.soak import faults as harm
from tools.soak.checks import Growth, Log, Tolerance, growth, percentiles, thinned
from tools.soak.process import Sample, Server
from tools.soak.traffic import Traffic
from tools.soak.users import User

#: The first half has restarts.
RESTARTS = 0.5
#: Of the last life, so much is warming up: caches fill, and pools of threads.
WARM_UP = 0.3
#: What is seen of it for less than this says nothing of growth: caches are still filling.
LEAST_SECONDS = 180.0
MIB = 1 << 20
#: What of a process must not grow. A heap has holes, and a connection more or less is no leak.
TOLERANCES = {
    "resident_mib": Tolerance(0.08, 16.0),
    "descriptors": Tolerance(0.0, 4.0, floor=True),
    "threads": Tolerance(0.0, 4.0, floor=True),
    "memory_files": Tolerance(0.1, 4.0),
    "session_files": Tolerance(0.1, 4.0),
    "temporary_files": Tolerance(0.0, 0.5),
}


@dataclass(frozen=True)
class Options:
    """How a test is done: see ``--help``."""

    seconds: float
    users: int
    think: float
    seed: int
    interval: float
    model: Path


def seconds_of(text: str) -> float:
    """Return a time in seconds.

    >>> seconds_of("24h"), seconds_of("10m"), seconds_of("90")
    (86400.0, 600.0, 90.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: 90, 10m and 24h are")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


async def soak(options: Options, folder: Path) -> dict[str, Any]:
    """Carry out a test in a folder; return its report."""
    traffic = Traffic(lambda what: print(what, file=sys.stderr, flush=True))
    log = Log(traffic.owners)

    def heard(line: str) -> None:
        problem = log.problem(line)
        if problem is not None:
            traffic.wrong("log", problem)

    lines = _lines()
    server = Server(folder, options.model, heard)
    faults = harm.Faults(traffic, server, log, lines, options.seed)
    samples: list[Sample] = []
    try:
        with traffic.during("end"):  # nobody is there yet
            await faults.begin()
        users = [User(n, traffic, server, lines, options.think, options.seed) for n in range(options.users)]
        asking = [asyncio.create_task(one.live()) for one in users]
        beating = asyncio.create_task(traffic.beat())
        watching = asyncio.create_task(_watch(server, traffic, samples, min(5.0, options.seconds / 60)))
        await harm.plague(faults, options.seconds, options.interval, options.seconds * RESTARTS, _enough())
        traffic.over = True
        for task in asking:
            task.cancel()
        done = await asyncio.gather(*asking, return_exceptions=True)
        for error in done:
            if isinstance(error, Exception):
                traffic.wrong("client", f"{type(error).__name__}: {error}")
        for task in (watching, beating):
            task.cancel()
        await asyncio.gather(watching, beating, return_exceptions=True)
        if server.over is None:
            await _last(faults, traffic, server)
        else:
            traffic.wrong("end", f"the server was gone in the end, with {server.over}")
    finally:
        server.close()
    return report(options, traffic, log, faults, samples, server)


def _enough() -> asyncio.Event:
    """Return what is set when this process is asked to end: there is a report all the same. Twice is at once."""
    event, loop = asyncio.Event(), asyncio.get_running_loop()

    def once() -> None:
        event.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, once)
    return event


async def _last(faults: harm.Faults, traffic: Traffic, server: Server) -> None:
    """End the last life."""
    server.signal(signal.SIGTERM)
    code = await faults.ended(harm.END_SECONDS)
    if code != 0:
        traffic.wrong("end", f"the last server ended with {code}")


async def _watch(server: Server, traffic: Traffic, samples: list[Sample], pause: float) -> None:
    """Look now and then at what the server uses."""
    while True:
        found = server.sample(traffic.second(), traffic.connected)
        if found is not None:
            samples.append(found)
        await asyncio.sleep(pause)


def _lines() -> list[str]:
    """Return lines of Python, of which texts are made."""
    text = (ROOT / "sample_data" / "documents" / "statistics.py").read_text(encoding="utf-8")
    return [line + "\n" for line in text.splitlines() if 8 < len(line) < 60]


# --- the report ----------------------------------------------------------------------------------------------


def figures(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Return the series that must not grow."""
    return {
        "resident_mib": [one.resident / MIB for one in samples],
        "descriptors": [float(one.descriptors) for one in samples],
        "threads": [float(one.threads) for one in samples],
        "memory_files": [float(one.memory_files) for one in samples],
        "session_files": [float(one.session_files) for one in samples],
        "temporary_files": [float(one.temporary_files) for one in samples],
    }


def last_life(samples: Sequence[Sample]) -> list[Sample]:
    """Return what was seen of the last life after its warm-up."""
    found = [one for one in samples if one.life == samples[-1].life] if samples else []
    if not found:
        return []
    begin, end = found[0].second, found[-1].second
    return [one for one in found if one.second >= begin + WARM_UP * (end - begin)]


def measured(samples: Sequence[Sample]) -> dict[str, Growth]:
    """Return how what a server uses went in its last life."""
    chosen = last_life(samples)
    times = [one.second for one in chosen]
    found = {name: growth(times, values, TOLERANCES[name]) for name, values in figures(chosen).items()}
    return {name: one for name, one in found.items() if one is not None}


def report(
    options: Options, traffic: Traffic, log: Log, faults: harm.Faults, samples: list[Sample], server: Server
) -> dict[str, Any]:
    """Return all that is known of a test."""
    grown = measured(samples)
    for name, one in grown.items():
        if one.grows and one.seconds >= LEAST_SECONDS:
            what = f"{name} grows: {one.start:.1f}, {one.middle:.1f}, {one.end:.1f}, {one.slope:.1f} an hour"
            traffic.wrong("growth", what)
    chosen = last_life(samples)
    cpu = (
        (chosen[-1].cpu - chosen[0].cpu) / (chosen[-1].second - chosen[0].second) if len(chosen) > 1 else None
    )
    own = os.times()
    return {
        "what": "python -m tools.soak",
        "verdict": "failed" if traffic.violations.count else "passed",
        "violations": {
            "count": traffic.violations.count, "kinds": dict(traffic.violations.kinds),
            "told": traffic.violations.told,
        },
        "options": {
            "seconds": options.seconds, "users": options.users, "think": options.think, "seed": options.seed,
            "interval": options.interval, "model": options.model.name,
        },
        "machine": {"processors": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "seconds": round(traffic.second(), 1),
        "machine_stood_still": {"times": traffic.stalls, "seconds": round(traffic.stalled, 1)},
        "traffic": {
            "requests": sum(one.statuses.total() for one in traffic.kinds.values()),
            "own_words_heard": traffic.heard, "kinds": traffic.to_json(),
        },
        "faults": {
            "done": dict(sorted(faults.done.items())), "skipped": faults.skipped, "lives": server.life,
            "full_disk": server.disk.how, "files_found_whole": faults.files_checked,
            "seconds_to_end": percentiles(faults.ending), "seconds_to_start": percentiles(faults.starting),
        },
        "resources": {
            "processors_used_by_server": None if cpu is None else round(cpu, 3),
            "processors_used_by_clients": round((own.user + own.system) / max(1.0, traffic.second()), 3),
            "last_life": {name: one.to_json() for name, one in grown.items()},
            "series": {
                "second": [round(one.second) for one in thinned(samples)],
                "life": [one.life for one in thinned(samples)],
                **{name: [round(one, 1) for one in values] for name, values in figures(thinned(samples)).items()},
            },
        },
        "log": {"levels": dict(log.levels), "warnings": dict(log.warnings.most_common(40))},
    }  # fmt: skip


def told(found: dict[str, Any]) -> str:
    """Return a report for people."""
    options, traffic, faults = found["options"], found["traffic"], found["faults"]
    lines = [
        f"{found['verdict'].upper()}: {options['users']} users for {found['seconds']:.0f} s, {traffic['requests']} "
        f"requests, {faults['lives']} lives of the server, {found['violations']['count']} violations",
        f"every answer was looked through for other users' words; {traffic['own_words_heard']} had its own user's",
        "",
        f"{'requests':26}{'count':>8}{'p50 s':>9}{'p95 s':>9}{'p99 s':>9}{'first s':>9}  statuses",
    ]
    for kind, one in traffic["kinds"].items():
        seconds, first = one["seconds"], one.get("seconds_to_first", {}).get("p50")
        times = "".join(f"{seconds[name]:9.3f}" if seconds else " " * 9 for name in ("p50", "p95", "p99"))
        statuses = ", ".join(f"{status} x {count}" for status, count in one["statuses"].items())
        lines.append(
            f"{kind:26}{one['count']:8}{times}{'' if first is None else f'{first:9.3f}':>9}  {statuses}"
        )
    lines += ["", f"{'faults':26}{'count':>8}"]
    lines += [f"{name:26}{count:8}" for name, count in faults["done"].items()]
    lines += [f"{name:26} skipped: {why}" for name, why in faults["skipped"].items()]
    lines += [
        f"full disk: {faults['full_disk']}; files found whole: {faults['files_found_whole']}",
        *(f"{what}: {_times(faults[name])}" for what, name in
          (("from a signal to the end", "seconds_to_end"), ("from the start to ready", "seconds_to_start"))),
        "",
        f"{'the last life, warmed up':26}{'start':>10}{'middle':>10}{'end':>10}{'per hour':>10}{'allowed':>10}",
    ]  # fmt: skip
    for name, one in found["resources"]["last_life"].items():
        values = "".join(
            f"{one[part]:10.1f}" for part in ("start", "middle", "end", "slope_per_hour", "allowed")
        )
        lines.append(f"{name:26}{values}{'  GROWS' if one['grows'] else ''}")
    used, still = found["resources"], found["machine_stood_still"]
    if still["times"]:
        lines.append(f"the machine stood still {still['times']} times, {still['seconds']:.0f} s in all")
    lines.append(
        f"processors used: {used['processors_used_by_server']} by the server, "
        f"{used['processors_used_by_clients']} by its clients"
    )
    lines += [
        "",
        "the log: " + ", ".join(f"{count} x {level}" for level, count in found["log"]["levels"].items()),
    ]
    lines += [f"{count:6} x {line}" for line, count in found["log"]["warnings"].items()]
    if found["violations"]["count"]:
        lines += [
            "",
            "violations: " + ", ".join(f"{n} x {kind}" for kind, n in found["violations"]["kinds"].items()),
        ]
        lines += [
            f"{one['second']:9.1f} s  {one['kind']}: {one['what']}" for one in found["violations"]["told"]
        ]
    return "\n".join(lines) + "\n"


def _times(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f} s" for name, value in found.items()) or "never"


def main(arguments: list[str] | None = None) -> int:
    """Carry out a test; return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--time", type=seconds_of, default="10m", help="how long: 90, 10m, 24h")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--think", type=float, default=10.0, help="seconds between two requests of a user")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--interval", type=float, help="seconds between two faults; by default a 40th of the time"
    )
    parser.add_argument("--model", type=Path, default=ROOT / "sample_data" / "models" / "tiny-python.gguf")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--text", type=Path, help="and one for people here")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the server's log and files")
    given = parser.parse_args(arguments)
    interval = given.interval or min(60.0, max(3.0, given.time / 40))
    options = Options(given.time, given.users, given.think, given.seed, interval, given.model)
    folder = Path(tempfile.mkdtemp(prefix="atlas-soak-"))
    began = perf_counter()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends the server, too
    try:
        found = asyncio.run(soak(options, folder))
        text = told(found)
        if given.json is not None:
            given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if given.text is not None:
            given.text.write_text(text, encoding="utf-8")
        print(text)
        failed = found["verdict"] != "passed"
        if failed or given.keep:
            kept = folder.with_suffix(".log")
            shutil.copy(folder / "server.log", kept)
            print(f"the server's log: {kept}")
        return int(failed)
    finally:
        if not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{perf_counter() - began:.0f} s in all")
