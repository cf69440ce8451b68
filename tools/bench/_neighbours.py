"""Speed beside busy processes: what is measured runs in processes of its own, in turn alone and with company.

A worker loads once, then works for as long as its standard input says and answers with the seconds that one piece of
work took. Workers that differ in how their threads wait take turns. The neighbours are loops in Python, one on each
processor, that end by themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

#: A loop on one processor, bounded in time, that does not outlive the process that started it.
BUSY = """
import os, time
os.sched_setaffinity(0, {{{processor}}})
end = time.monotonic() + {seconds}
while time.monotonic() < end and os.getppid() == {parent}:
    pass
"""


@contextlib.contextmanager
def busy_neighbours(seconds: float) -> Iterator[None]:
    """Keep every processor that this process may use busy, for a limited time."""
    programs = [
        BUSY.format(processor=processor, seconds=seconds, parent=os.getpid())
        for processor in sorted(os.sched_getaffinity(0))
    ]
    running = [subprocess.Popen([sys.executable, "-c", program]) for program in programs]
    try:
        time.sleep(0.2)  # until they have started
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def answer(work: Callable[[], int]) -> None:
    """Work as standard input says; ``work`` does a little and returns how many pieces that was."""
    work()
    print(json.dumps(None), flush=True)
    for line in sys.stdin:
        pieces, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < float(line):
            pieces += work()
        print(json.dumps(spent / pieces), flush=True)


class Worker:
    """A process that works on command.

    Parameters
    ----------
    command
        Starts a process that calls ``answer``.
    environment
        Variables that differ from this process's; None removes one.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str | None]) -> None:
        changed = {**os.environ, **environment}
        kept = {name: value for name, value in changed.items() if value is not None}
        self._process = subprocess.Popen(
            [sys.executable, *command], env=kept, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def _answer(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a process that was to be measured has ended")
        return float(json.loads(line) or 0)

    def measure(self, seconds: float) -> float:
        """Let it work; return the seconds for one piece."""
        assert self._process.stdin is not None
        print(seconds, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def in_company(
    program: Path,
    arguments: list[str],
    variants: list[Mapping[str, str | None]],
    *,
    seconds: float,
    rounds: int,
) -> list[tuple[float, float]]:
    """Return, for each variant of the environment, the median seconds of a piece: alone, and with busy neighbours."""
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in variants]
    with contextlib.ExitStack() as stack:
        workers = []
        for environment in variants:
            workers.append(Worker([str(program), *arguments], environment))
            stack.callback(workers[-1].close)
        for number in range(rounds):
            turn = list(enumerate(workers))[:: 1 if number % 2 else -1]
            for i, worker in turn:
                times[i][0].append(worker.measure(seconds))
            with busy_neighbours(10 + 5 * seconds * len(workers)):
                for i, worker in turn:
                    times[i][1].append(worker.measure(seconds))
    return [(statistics.median(quiet), statistics.median(busy)) for quiet, busy in times]
