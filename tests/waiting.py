"""Waiting for what another thread, process or page does, and a port for it to listen at. Knows nothing of atlas_kit.

A busy machine may stand still for seconds at any moment: a test waits for a state, with a limit that is only there so
that a failure ends.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import socket
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
#: Seconds after which a test has failed, however busy the machine is.
LONG = 120.0
#: Ports below those that systems hand out by themselves, a thousand for each worker of pytest-xdist: nobody takes one
#: between the look and the moment in which a server listens at it.
_FIRST, _EACH, _WORKERS = 20_000, 1000, 12
_ports = itertools.count(random.randrange(_EACH))


def until(condition: Callable[[], T], seconds: float = LONG) -> T:
    """Return what a condition gives as soon as that is true.

    Raises
    ------
    AssertionError
        After so many seconds.
    """
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)
    return found


def until_gone(*references: weakref.ref[Any]) -> None:
    """Wait until nothing holds what these refer to: a thread that ends holds its last frame a moment longer."""
    until(lambda: gc.collect() >= 0 and all(reference() is None for reference in references))


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens at, and that no other test is given meanwhile."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    while True:
        port = _FIRST + _EACH * worker + next(_ports) % _EACH
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
