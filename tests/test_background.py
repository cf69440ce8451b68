"""Threads that work in the background are told to end, and do, before the interpreter goes."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from atlas_kit import background
from atlas_kit.background import start_thread


def ran(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_a_thread_is_stopped_and_waited_for_at_the_end():
    code = """
import threading, time
from atlas_kit.background import start_thread
stop = threading.Event()
def work():
    stop.wait()
    time.sleep(0.2)
    print("ended", flush=True)
start_thread(work, name="t", stop=stop.set)
print("main ends", flush=True)
"""
    assert ran(code).split("\n") == ["main ends", "ended", ""]


def test_a_thread_that_has_ended_is_not_stopped():
    asked = []
    thread = start_thread(lambda: None, name="t", stop=lambda: asked.append(1))
    thread.join()
    assert thread not in background._running
    background._end_all()
    assert not asked


def test_a_thread_that_does_not_end_holds_nobody_up_for_ever(monkeypatch):
    monkeypatch.setattr(background, "END_SECONDS", 0.1)
    go = threading.Event()
    thread = start_thread(go.wait, name="t", stop=lambda: None)
    background._end_all()
    assert thread.is_alive()
    go.set()
    thread.join()


def test_what_is_started_while_threads_are_stopped_is_stopped_too():
    go, later, second = threading.Event(), threading.Event(), []

    def work():
        go.wait()
        second.append(start_thread(later.wait, name="second", stop=later.set))

    start_thread(work, name="first", stop=go.set)
    background._end_all()
    assert [thread.is_alive() for thread in second] == [False]


def test_a_stop_that_fails_keeps_no_other_thread_from_being_stopped(monkeypatch):
    asked, go = [], threading.Event()

    def fails():
        raise RuntimeError("no")

    first = start_thread(go.wait, name="a", stop=fails)
    second = start_thread(go.wait, name="b", stop=lambda: (asked.append(1), go.set()))
    background._end_all()
    assert asked
    first.join()
    second.join()


@pytest.mark.parametrize(
    "code",
    [
        """
from atlas_kit.llama import AtlasSession, FakeEngine, Scheduler
scheduler = Scheduler(FakeEngine())
job = scheduler.feed(AtlasSession(scheduler.engine, True), "to be or not " * 20000)
while not scheduler.engine.decodes: pass
print("on")
""",
        """
from atlas_kit.llama import FakeEngine; from atlas_kit.widgets import MemoryLab
lab = MemoryLab(FakeEngine(), "to be or not " * 20000); lab.start(); print("on")
""",
        """
from atlas_kit.widgets.newest import Newest
import time
newest = Newest(print)
newest.submit("a", lambda stale: [time.sleep(0.001) for _ in iter(stale, True)]); print("on")
""",
    ],
    ids=["a scheduler", "a lab", "figures"],
)
def test_the_interpreter_ends_while_work_goes_on(code):
    # the first to be registered is the last to be called
    check = "import atexit, threading; atexit.register(lambda: print(threading.active_count()))\n"
    assert ran(check + code).split() == ["on", "1"]
