"""The thread behind slow figures: what is stopped by name, and what is not."""

from __future__ import annotations

import threading

from atlas_kit.widgets.newest import Newest
from tests.waiting import LONG


class Work:
    """Jobs that wait to be let go, and what was done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.began, self.go = threading.Event(), threading.Event()
        self.newest = Newest(lambda name, error: self.done.append(f"{name} failed: {error}"))

    def submit(self, name: str, what: str) -> None:
        def job(stale):
            self.began.set()
            self.go.wait(LONG)
            self.done.append("stale" if stale() else what)

        self.newest.submit(name, job)

    def finish(self) -> list[str]:
        self.go.set()
        assert self.newest.wait(LONG)
        return self.done


def test_stop_by_name_leaves_the_others():
    work = Work()
    work.submit("spectra", "spectra")
    assert work.began.wait(LONG)
    work.submit("behaviour", "behaviour")
    work.submit("ranks", "ranks")
    work.newest.stop("behaviour")
    assert work.finish() == ["spectra", "ranks"]


def test_stop_by_name_ends_the_job_at_work():
    work = Work()
    work.submit("behaviour", "behaviour")
    assert work.began.wait(LONG)
    work.submit("spectra", "spectra")
    work.newest.stop("behaviour")
    assert work.finish() == ["stale", "spectra"]
