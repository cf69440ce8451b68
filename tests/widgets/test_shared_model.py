"""One engine for each model's file, counted, whichever labs read with it; and labs that nobody looks at."""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc
import weakref

import ipywidgets
import numpy as np
import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama import AtlasSession, FakeEngine
from atlas_kit.widgets import MemoryLab, ending
from atlas_kit.widgets.lab import shared_model
from atlas_kit.widgets.lab.view import LabView
from tests.waiting import LONG, until, until_gone
from tests.widgets.conftest import receive, wired

TEXT = "to be or not to be, that is the question. " * 12


class OneSeat(FakeEngine):
    """An engine of a file, for one session."""

    opened: list[OneSeat] = []  # noqa: RUF012 - of all

    def __init__(self, path, **options):
        super().__init__(n_sequences=1)
        self.path, self.options, self.is_closed = path, options, False
        self.opened.append(self)

    def piece(self, token, **options):
        assert not self.is_closed
        return super().piece(token, **options)

    def close(self):
        self.is_closed = True


@pytest.fixture
def opened(monkeypatch):
    """The engines that were opened, which are no real ones."""
    monkeypatch.setattr(shared_model, "open_engine", OneSeat)
    monkeypatch.setattr(OneSeat, "opened", [])
    yield OneSeat.opened
    assert all(engine.is_closed for engine in OneSeat.opened), "a model is left open"
    assert not shared_model.in_use()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest.fixture
def make(opened, model):
    made = []

    def make(path=model, text=TEXT, **options):
        made.append(MemoryLab(path, text, memory=True, **options))
        return made[-1]

    yield make
    for lab in made:
        lab.close()


def test_a_cell_that_is_run_again_has_the_same_engine(make, opened, model):
    labs = []
    for _ in range(10):
        lab = make()
        lab.run(40)
        labs.append(weakref.ref(lab))
    assert len(opened) == shared_model.in_use() == 1
    assert not opened[0].is_closed
    lab.close()
    assert opened[0].is_closed


def test_what_is_displaced_unseen_is_gone_with_all_it_had(opened, model):
    first = MemoryLab(model, TEXT, memory=True)
    first.run(40)
    seen, memory = weakref.ref(first), weakref.ref(first.session.memory)
    del first
    second = MemoryLab(model, TEXT, memory=True)
    until_gone(seen, memory)
    second.close()


def test_a_link_is_the_same_model_and_another_file_another(make, opened, model, tmp_path):
    first = make()
    os.symlink(model, tmp_path / "link.gguf")
    second = make(tmp_path / "link.gguf")
    assert second.session.engine is first.session.engine
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    third = make(tmp_path / "other.gguf")
    second.run(20)
    third.run(20)
    assert len(opened) == shared_model.in_use() == 2


def test_a_file_that_was_written_anew_is_loaded_anew(make, opened, model):
    make()
    model.write_bytes(b"GGUF, a better one")
    make()
    assert len(opened) == 2


def test_other_options_take_the_place_of_the_engine(make, opened):
    first = make()
    first.run(40)
    second = make(engine_options={"n_ctx": 64})
    assert [engine.is_closed for engine in opened] == [True, False]
    assert shared_model.in_use() == 1
    second.run(40)
    # what the first has read can be told without its model
    assert "".join(first.words.texts(0, 40)) == TEXT[:40]
    assert "40 tokens read" in first.text()


def test_what_was_learned_can_be_saved_after_another_took_over(make, tmp_path):
    first = make()
    first.run()
    second = make()
    first.save(tmp_path / "kept.atlas")
    second.load(tmp_path / "kept.atlas")
    assert second.session.memory.tokens_seen == len(TEXT) - 1
    assert len(first.history.tokens) == len(TEXT)
    with pytest.raises(InvalidParamError, match="closed"):
        first.run()


def test_settings_that_are_refused_leave_the_lab_that_reads(make, opened):
    first = make()
    with pytest.raises(InvalidParamError, match="polynomial_degree"):
        make(polynomial_degree=9)
    with pytest.raises(InvalidParamError, match="no memory"):
        MemoryLab(opened[0], TEXT, memory=None)
    first.run(30)
    assert len(first.history.tokens) == 30
    assert len(opened) == 1


def test_a_lab_in_view_says_why_it_reads_no_more(make):
    first = make()
    receive(first.view, {"method": "custom", "content": {"kind": "hello", "view": "a"}})
    second = make()
    assert "Another MemoryLab" in first.view.status
    assert "earlier MemoryLab" in second.view.status
    assert first.comm is not None
    receive(
        first.view, {"method": "custom", "content": {"kind": "hello", "view": "b"}}
    )  # it was loaded again


@pytest.fixture
def cell(monkeypatch):
    """The cell that is running, and its run: a list to change."""
    now = ["cell", "run 1"]
    monkeypatch.setattr(ending, "cell", lambda: tuple(now))
    monkeypatch.setattr(ending, "_made", {})
    return now


def test_one_of_the_same_cell_is_closed_though_its_view_is_still_there(make, cell):
    first = make()
    receive(first.view, {"method": "custom", "content": {"kind": "hello", "view": "a"}})
    beside = MemoryLab(FakeEngine(), TEXT)  # of the same run
    assert first.comm is not None
    cell[1] = "run 2"
    make()
    assert first.comm is beside.comm is None
    assert set(first._repr_mimebundle_()[0]) == {"text/plain", "text/html", "image/png"}


def test_another_model_in_the_same_cell_leaves_none_behind(make, cell, tmp_path, opened):
    first = make()
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    cell[1] = "run 2"
    make(tmp_path / "other.gguf")
    assert first.comm is None
    assert [engine.is_closed for engine in opened] == [True, False]


def test_what_another_cell_shows_stays(make, cell, tmp_path):
    first = make()
    cell[:] = "another", "run 2"
    first._repr_mimebundle_()
    cell[:] = "cell", "run 3"
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    make(tmp_path / "other.gguf")
    assert first.comm is not None


def test_a_cell_that_is_run_again_leaves_no_widget_and_next_to_no_memory(make, cell):
    known = ipywidgets.widgets.widget._instances
    labs, counts, sizes = [], [], []
    tracemalloc.start()
    for run in range(5):
        cell[1] = f"run {run}"
        labs.append(make(text=TEXT))
        labs[-1].run()
        gc.collect()
        counts.append(len(known))
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert len(set(counts[1:])) == 1
    assert sizes[-1] - sizes[2] < 2 * 400_000
    # what they have read can be told all the same
    assert [len(lab.history.tokens) for lab in labs] == 5 * [len(TEXT)]
    assert "".join(labs[0].words.texts(0, len(TEXT))) == TEXT
    assert labs[0].text_to_read == TEXT
    name, matrix = labs[0].matrices.in_view()
    assert name == labs[-1].matrices.in_view()[0]
    assert np.array_equal(matrix, labs[-1].matrices.in_view()[1])
    assert labs[0].text().splitlines()[1:3] == labs[-1].text().splitlines()[1:3]


def test_a_closed_lab_whose_session_goes_on_can_be_told(make):
    with AtlasSession(FakeEngine(), memory=True) as session:
        lab = MemoryLab(session, TEXT)
        lab.run(40)
        lab.close()
        assert session.memory.tokens_seen == 39
        assert "40 tokens read" in lab.text()
        lab.close()
    other = AtlasSession(FakeEngine(), memory=True)
    lab = MemoryLab(other, TEXT)
    lab.run(40)
    other.close()
    lab.close()
    assert len(lab.history.tokens) == 40


# --- who looks -------------------------------------------------------------------------------------------------


class Gated(FakeEngine):
    """An engine that waits in each decode until it may go on."""

    def __init__(self):
        super().__init__()
        self.go = threading.Semaphore(0)

    def decode(self, feeds, *, hidden=False):
        assert self.go.acquire(timeout=LONG)
        return super().decode(feeds, hidden=hidden)


@pytest.fixture
def running(monkeypatch):
    monkeypatch.setattr("atlas_kit.widgets.lab.view.ANSWER_SECONDS", 0.05)
    lab = MemoryLab(Gated(), TEXT * 3)
    wired(lab.view)
    say(lab, "hello", "a")
    lab.start()
    yield lab
    lab.session.engine.go.release(10_000)
    lab.close()


def say(lab, kind, view):
    receive(lab.view, {"method": "custom", "content": {"kind": kind, "view": view}})


def test_it_rests_when_its_last_view_is_gone_and_goes_on_when_one_is_there(running):
    say(running, "bye", "a")
    until(lambda: not running.runner.wanted)
    running.session.engine.go.release(50)
    until(lambda: running.state == "paused")
    count = len(running.history.tokens)
    say(running, "hello", "b")
    until(lambda: running.state == "running")  # the thread that pauses may still be telling so
    running.session.engine.go.release(10_000)
    assert running.wait(LONG)
    assert bytes(running.history.tokens.astype(np.uint8)).decode() == TEXT * 3
    assert count < len(running.history.tokens)


def test_one_of_two_views_may_go(running):
    say(running, "hello", "b")
    running.view.comm.take()
    say(running, "bye", "a")
    assert [one["content"] for one in running.view.comm.take()] == [{"kind": "who"}]
    say(running, "here", "b")
    threading.Event().wait(0.3)
    assert not running.view.gone
    assert running.state == "running"


def test_who_comes_while_it_is_told_that_nobody_looks_is_told_of_last(monkeypatch):
    monkeypatch.setattr("atlas_kit.widgets.lab.view.ANSWER_SECONDS", 0.01)
    told, telling, go = [], threading.Event(), threading.Event()

    def looked_at(seen):
        if not seen:
            telling.set()
            assert go.wait(LONG)
        told.append(seen)

    view = LabView(dict, looked_at)
    view._came("a")
    view._went("a")
    assert telling.wait(LONG)
    comes = threading.Thread(target=view._came, args=("b",))
    comes.start()
    until(lambda: view.views == {"b"})
    go.set()
    comes.join(LONG)
    assert told == [False, True]


def test_one_that_was_left_by_a_page_that_is_no_more_does_not_count(running):
    say(running, "hello", "after the page was loaded again")
    say(running, "bye", "after the page was loaded again")
    until(lambda: running.view.gone)


def test_a_run_that_a_cell_waits_for_goes_on_unseen(monkeypatch):
    monkeypatch.setattr("atlas_kit.widgets.lab.view.ANSWER_SECONDS", 0.01)
    lab = MemoryLab(Gated(), TEXT)
    say(lab, "hello", "a")
    say(lab, "bye", "a")
    lab.session.engine.go.release(3)
    waiting = threading.Thread(target=lab.run)
    waiting.start()
    until(lambda: lab.view.gone)
    lab.session.engine.go.release(10_000)
    waiting.join(LONG)
    assert (lab.state, len(lab.history.tokens)) == ("done", len(TEXT))
    lab.close()


def test_what_the_reader_stopped_in_a_long_step_stays_so(running, monkeypatch):
    monkeypatch.setattr("atlas_kit.widgets.live.STOP_SECONDS", 0.01)
    running.stop()
    assert running.state == "running"  # in its last step
    say(running, "bye", "a")
    until(lambda: running.view.gone and not running.view._told)
    say(running, "hello", "b")
    running.session.engine.go.release(10_000)
    assert running.wait(LONG)
    assert running.state == "idle"


def test_what_the_reader_paused_stays_so(running):
    say(running, "bye", "a")
    running.session.engine.go.release(10_000)
    until(lambda: running.view.gone)
    running.stop()
    assert running.wait(LONG)
    say(running, "hello", "b")
    assert running.state in ("idle", "paused")
