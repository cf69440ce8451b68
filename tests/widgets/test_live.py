"""``Runner`` and ``Turns``: who works when. Threads wait for each other by events; steps are counted, not seconds."""

from __future__ import annotations

import itertools
import threading
import weakref

import pytest

from atlas_kit.errors import InvalidParamError, ModelError
from atlas_kit.widgets import live
from atlas_kit.widgets.live import Runner, Turns
from tests.waiting import LONG, until_gone
from tests.widgets.conftest import once


class Steps:
    """Work that counts itself, and can be made to wait within a step."""

    def __init__(self, most=10**9):
        self.count, self.most = 0, most
        self.go, self.inside = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self):
        self.count += 1
        self.inside.set()
        assert self.go.wait(LONG)
        return self.count < self.most

    def held(self):
        """Let the next step wait."""
        self.go.clear()
        self.inside.clear()

    def reached(self):
        assert self.inside.wait(LONG)


@pytest.fixture
def steps():
    return Steps()


@pytest.fixture
def runner(steps):
    runner = Runner(steps)
    yield runner
    steps.go.set()
    runner.close()
    assert runner.wait(LONG)


def test_it_runs_to_the_end(steps, runner):
    steps.most = 5
    runner.run()
    assert (runner.state, steps.count, runner.alive) == ("done", 5, False)


def test_stop_lets_no_step_begin(steps, runner, monkeypatch):
    monkeypatch.setattr(live, "STOP_SECONDS", LONG)
    steps.held()
    runner.start()
    steps.reached()
    assert runner.state == "running"
    once(lambda: not runner.wanted, steps.go.set)
    assert runner.stop()
    assert (runner.state, steps.count) == ("idle", 1)


def test_stop_does_not_wait_for_a_step_without_end(steps, runner, monkeypatch):
    monkeypatch.setattr(live, "STOP_SECONDS", 0.01)
    steps.held()
    runner.start()
    steps.reached()
    assert not runner.stop()
    assert runner.alive
    steps.go.set()
    assert runner.wait(LONG)
    assert (runner.state, steps.count) == ("idle", 1)


def test_start_twice_is_one_thread(steps, runner):
    steps.held()
    runner.start()
    steps.reached()
    runner.start()
    assert sum(thread.name == "atlas-live" for thread in threading.enumerate()) == 1
    steps.go.set()
    runner.stop()


def test_start_after_stop_goes_on_with_the_same_thread(steps, runner, monkeypatch):
    monkeypatch.setattr(live, "STOP_SECONDS", 0)
    steps.held()
    runner.start()
    steps.reached()
    runner.stop()
    runner.start()  # the step is still in progress
    steps.most = 3
    steps.go.set()
    assert runner.wait(LONG)
    assert (runner.state, steps.count) == ("done", 3)


def test_pause_and_go_on(steps, runner):
    runner.start(lambda: steps.count >= 4)
    assert runner.wait(LONG)
    assert (runner.state, steps.count) == ("paused", 4)
    runner.pause()
    assert runner.state == "paused"
    steps.most = 6
    runner.run()
    assert (runner.state, steps.count) == ("done", 6)


def test_stop_while_paused_is_idle_and_nothing_runs(steps, runner):
    runner.run(lambda: True)
    assert runner.state == "paused"
    assert runner.stop()
    assert (runner.state, steps.count) == ("idle", 1)


def test_pause_before_the_start_changes_nothing(runner):
    runner.pause()
    assert runner.state == "idle"


def test_what_the_work_raises_becomes_a_sentence_and_the_next_start_goes_on():
    failures = [ModelError("llama.cpp ran out", hint="Try less."), None]

    def work():
        failure = failures.pop(0)
        if failure:
            raise failure
        return bool(failures)

    runner = Runner(work)
    runner.start()
    assert runner.wait(LONG)
    assert (runner.state, runner.error) == ("failed", "llama.cpp ran out. Try less.")
    runner.run()
    assert (runner.state, runner.error) == ("done", "")


def test_run_raises_what_the_work_raised():
    runner = Runner(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner.run()
    assert runner.error == "ZeroDivisionError: division by zero"


def test_a_frame_that_fails_is_a_failure_too(steps):
    def show():
        raise ValueError("the page is gone")

    runner = Runner(steps, show)
    runner.start()
    assert runner.wait(LONG)
    assert (runner.state, runner.error, steps.count) == ("failed", "ValueError: the page is gone", 1)


def test_frames_wait_until_the_page_is_ready(monkeypatch):
    monkeypatch.setattr(live, "FRAME_SECONDS", 0)
    monkeypatch.setattr(live, "FRAME_SHARE", 1e9)
    shown, ready = [], [True]
    steps = Steps(10)

    def show():
        shown.append(steps.count)
        ready[0] = False

    runner = Runner(steps, show, ready=lambda: ready[0] or steps.count == 7)
    runner.run()
    assert shown == [1, 7]


def test_frames_take_a_tenth_of_the_time_at_most(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    shown, steps = [], Steps(100)

    def work():
        now[0] += 0.05
        return steps()

    def show():
        now[0] += 0.1
        shown.append(steps.count)

    Runner(work, show).run()
    # a frame of 0.1 s in every second: 18 steps of 0.05 s are left
    assert [b - a for a, b in itertools.pairwise(shown)] == pytest.approx([18] * (len(shown) - 1), abs=1)


def test_states_are_told_in_order_and_a_listener_that_fails_ends_nothing(steps):
    told = []

    def tell():
        told.append(runner.state)
        raise RuntimeError("no page")

    runner = Runner(steps, on_state=tell)
    steps.most = 3
    runner.start()
    assert runner.wait(LONG)
    assert (sorted(told), steps.count) == (["done", "running"], 3)
    assert "no page" in runner.error


def test_start_from_a_listener_goes_on():
    count = [0]

    def work():
        count[0] += 1
        return False

    def tell():
        if runner.state == "done" and count[0] < 3:
            runner.start()

    runner = Runner(work, on_state=tell)
    runner.start()
    assert runner.wait(LONG)
    assert (runner.state, count[0]) == ("done", 3)


def test_closed_is_closed(runner):
    runner.close()
    with pytest.raises(InvalidParamError, match="closed"):
        runner.start()


def test_a_dropped_runner_ends_its_thread():
    steps = Steps()
    steps.held()
    runner = Runner(steps)
    runner.start()
    steps.reached()
    thread, gone = runner._thread, weakref.ref(runner)
    del runner
    steps.go.set()
    thread.join(LONG)
    assert not thread.is_alive()
    until_gone(gone)


def test_no_step_is_done_while_somebody_holds_the_lock(steps, runner):
    runner.start()
    for _ in range(20):
        with runner.lock:
            count = steps.count
            steps.inside.clear()
            assert not steps.inside.wait(0.002)
            assert steps.count == count
        assert steps.inside.wait(LONG)


def test_turns_let_guests_in_before_the_worker():
    turns, order = Turns(), []
    turns.__enter__()
    guest = threading.Thread(target=lambda: _with(turns, lambda: order.append("guest")))
    guest.start()
    while not turns._waiting:
        pass

    def work():
        with turns.last():
            order.append("worker")

    worker = threading.Thread(target=work)
    worker.start()
    turns.__exit__()
    guest.join(LONG)
    worker.join(LONG)
    assert order == ["guest", "worker"]


def test_turns_are_re_entrant():
    turns = Turns()
    with turns, turns, turns.last():
        pass


def _with(turns, work):
    with turns:
        work()
