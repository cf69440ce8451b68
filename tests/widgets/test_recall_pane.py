"""The pane "What it recalled" without a browser: what is asked, what is shown of it, and what it leaves as it was."""

from __future__ import annotations

import datetime
import threading
from pathlib import Path

import numpy as np
import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama import AtlasSession, FakeEngine
from atlas_kit.llama.asking import Answer
from atlas_kit.llama.recalling import Piece, Recall, Recalled
from atlas_kit.widgets import MemoryLab
from atlas_kit.widgets.lab.recall_pane import RecallPane
from atlas_kit.widgets.lab.recollection import Recollection
from tests.conftest import SAMPLES
from tests.waiting import LONG
from tests.widgets.conftest import once, receive, wired

FACT = "The lantern is green.\n"
TEXT = "Nothing of note was said at the gate today.\n" * 6 + FACT + "Rain fell on the roof until noon.\n" * 6
QUESTION = "Which colour has the lantern?"
ALWAYS = Recall(mode="always", tokens=40, candidates=2)


class Gated(FakeEngine):
    """An engine that waits in a decode, from when it is told to until it may go on."""

    def __init__(self):
        super().__init__(n_ctx=512)
        self.go, self.inside, self.waits = threading.Event(), threading.Event(), False

    def decode(self, feeds, *, hidden=False):
        if self.waits:
            self.inside.set()
            assert self.go.wait(LONG)
        return super().decode(feeds, hidden=hidden)


@pytest.fixture
def make():
    made = []

    def make(model=None, text=TEXT, **options):
        lab = MemoryLab(FakeEngine(n_ctx=512) if model is None else model, text, **options)
        made.append(lab)
        return lab

    yield make
    for lab in made:
        lab.close()


@pytest.fixture
def lab(make):
    lab = make()
    lab.run()
    return lab


@pytest.fixture
def gated(make):
    lab = make(Gated())
    lab.run()
    lab.session.engine.waits = True
    yield lab
    lab.session.engine.go.set()


def sources(lab):
    return [(one.source, one.stop - one.start) for one in lab.session.episodes.episodes]


# --- asking ---------------------------------------------------------------------------------------------------


def test_an_answer_comes_with_the_piece_that_it_was_given(lab):
    answer = lab.ask(QUESTION, recall=ALWAYS, max_tokens=8)
    assert FACT in answer.pieces[0].text
    assert lab.answer is answer
    shown = lab.recalled.answer
    assert (shown["question"], shown["text"]) == (QUESTION, answer.text)
    assert shown["pieces"][0]["place"].startswith("text, line ")
    assert shown["pieces"][0]["gain"] == answer.pieces[0].gain
    assert shown["done"]
    assert shown["gate"] is None  # always: nobody asks


def test_a_question_leaves_reading_as_it_was(make):
    lab, other = make(), make()
    for one in (lab, other):
        one.run(200)
    lab.ask(QUESTION, recall=ALWAYS, max_tokens=8)
    lab.ask("rain", recall=Recall(mode="off"), max_tokens=8)
    for one in (lab, other):
        one.run()
    np.testing.assert_array_equal(lab.history.loss, other.history.loss)
    assert lab.session.context_tokens == other.session.context_tokens
    assert lab.session.memory.tokens_seen == other.session.memory.tokens_seen
    assert sources(lab) == sources(other) == [("text", len(TEXT))]


def test_the_pane_asks_in_a_thread_of_its_own_between_two_steps(gated):
    pane = gated.recalled
    pane.put(QUESTION)
    assert gated.session.engine.inside.wait(LONG)
    assert pane.busy
    assert not pane.wait(0)  # and this thread goes on
    gated.session.engine.go.set()
    assert pane.wait(LONG)
    assert (pane.busy, pane.error, pane.answer["question"]) == (False, "", QUESTION)


def test_a_question_can_be_stopped_and_the_session_is_whole(gated):
    context = gated.session.context_tokens
    gated.recalled.put(QUESTION)
    assert gated.session.engine.inside.wait(LONG)
    gated.recalled.stop()
    gated.session.engine.go.set()
    assert gated.recalled.wait(LONG)
    assert (gated.recalled.busy, gated.recalled.error, gated.answer) == (False, "Stopped.", None)
    assert gated.session.context_tokens == context
    gated.session.engine.waits = False
    assert gated.ask(QUESTION, recall=ALWAYS, max_tokens=4).pieces


def test_a_newer_question_takes_the_place_of_an_older(gated):
    pane = gated.recalled
    pane.put(QUESTION)
    assert gated.session.engine.inside.wait(LONG)
    pane.put("rain?")
    gated.session.engine.go.set()
    assert pane.wait(LONG)
    assert (pane.answer["question"], pane.error, pane.busy) == ("rain?", "", False)


def test_a_control_that_needs_the_session_does_not_wait_for_an_answer(gated):
    gated.recalled.put(QUESTION)
    assert gated.session.engine.inside.wait(LONG)
    stops = gated.recalled._newest._stops
    once(lambda: gated.recalled._newest._stops > stops, gated.session.engine.go.set)
    gated.controls.press("reset")
    assert gated.recalled.wait(LONG)
    assert gated.answer is None
    assert gated.recalled.stored == 0
    assert gated.recalled.answer == {}


def test_what_goes_wrong_is_a_sentence(lab):
    lab.recalled.put("  ")
    assert lab.recalled.wait(LONG)
    assert "empty" in lab.recalled.error
    assert not lab.recalled.busy
    with pytest.raises(InvalidParamError):
        lab.ask("  ")


def test_the_page_asks_and_chooses_how(lab):
    wired(lab.recalled)
    receive(lab.recalled, {"method": "update", "state": {"mode": "always"}, "buffer_paths": []})
    receive(lab.recalled, {"method": "custom", "content": {"kind": "ask", "question": QUESTION}})
    assert lab.recalled.wait(LONG)
    assert lab.recalled.answer["pieces"]
    receive(lab.recalled, {"method": "update", "state": {"mode": "off"}, "buffer_paths": []})
    receive(lab.recalled, {"method": "custom", "content": {"kind": "ask", "question": QUESTION}})
    assert lab.recalled.wait(LONG)
    assert lab.recalled.answer["why"] == "Nothing was recalled: recall is off."


def test_a_closed_lab_answers_no_more(make):
    lab = make()
    lab.close()
    lab.recalled.put(QUESTION)
    assert not lab.recalled.busy
    assert lab.recalled.closed


# --- what can be found ------------------------------------------------------------------------------------------


def test_what_was_read_can_be_found_and_no_more(make):
    lab = make()
    assert lab.recalled.stored == 0
    lab.run(100)
    assert (lab.recalled.stored, sources(lab)) == (100, [("text", 100)])
    lab.run()
    assert sources(lab) == [("text", len(TEXT))]


def test_a_text_that_is_read_again_is_stored_once(lab, make, tmp_path):
    lab.run()
    assert sources(lab) == [("text", len(TEXT))]
    lab.run(90)
    lab.stop()
    lab.run()
    assert sources(lab) == [("text", len(TEXT))]
    lab.save(tmp_path / "memory.atlas")
    other = make()
    other.load(tmp_path / "memory.atlas")
    other.run()
    assert sources(other) == [("text", len(TEXT))]
    assert len(other.history.tokens) == len(TEXT)


def test_a_text_that_was_stopped_goes_on_where_it_was_stored(make):
    lab = make()
    lab.run(90)
    lab.stop()
    lab.run()
    assert sources(lab) == [("text", len(TEXT))]
    episode = lab.session.episodes.episodes[0]
    assert lab.session.episodes.text(episode.start, episode.stop) == TEXT


def test_texts_have_names(make, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("Notes about the lantern.\n")
    lab = make(text="first", documents={"a chapter": "What the chapter says."})
    lab.run()
    lab.text_to_read = "second"
    lab.run()
    lab.text_to_read = file
    lab.run()
    lab.controls.document.value = "a chapter"
    lab.run()
    today = datetime.datetime.now(tz=datetime.timezone.utc)
    given = {"name": "mine.txt", "type": "", "size": 8, "content": b"uploaded", "last_modified": today}
    lab.controls.upload.value = (given,)
    lab.run()
    assert [name for name, _ in sources(lab)] == ["text", "text 2", str(file), "a chapter", "mine.txt"]


def test_what_else_is_stored_in_between_stays_apart(make):
    lab = make()
    lab.run(100)
    with lab.lock:
        lab.session.feed("A note of my own.", source="note")
    lab.run()
    assert sources(lab) == [("text", 100), ("note", 17), ("text", len(TEXT) - 100)]


def test_a_memory_that_keeps_nothing_says_so(make):
    lab = make(episode_tokens=0)
    lab.run()
    assert lab.recalled.stored == -1
    assert lab.ask(QUESTION, max_tokens=4).pieces == ()


def test_a_session_that_does_not_learn_stores_nothing(make):
    session = AtlasSession(FakeEngine(n_ctx=512))
    session.learns = False
    lab = make(session)
    lab.run()
    assert lab.recalled.stored == 0
    assert "nothing has been stored" in Recollection(lab.ask(QUESTION, max_tokens=4), Recall(), 0).why
    session.close()


# --- where nothing runs -----------------------------------------------------------------------------------------


def piece(text, gain, line=3):
    return Piece(text, "document", "notes.txt", 0, 0, 9, line, 2.5, gain)


def recollection(taken, others, mode="auto", gain=None, reason="it makes the question likelier"):
    recalled = Recalled(tuple(taken), (*taken, *others), gain, reason)
    return Recollection(
        Answer(QUESTION, "Green.", recalled, (), "stop", 0.1, 0.2), Recall(mode=mode, gate=1.0), 100
    )


def test_as_lines():
    lines = recollection([piece("one\n" * 20, 3.0)], [piece("other", 0.5)], gain=3.0).lines()
    assert lines[:2] == [f"asked: {QUESTION}", "    Green."]
    assert lines[2] == "recalled from notes.txt, line 3, 1970-01-01 00:00 UTC, +3.00 nats per token:"
    assert lines[3:11] == ["    one"] * 7 + ["    ..."]
    assert lines[11:] == ["1 other candidate read and not taken"]


LITTLE = "the best piece gains +0.25 nats per token, and the gate asks for +1.00"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (recollection([piece("a", 2.0)], [], gain=2.0), ""),
        (recollection([], [piece("a", 0.25)], gain=0.25), LITTLE),
        (recollection([], [], reason="nothing was found by its words"), "nothing was found by its words"),
        (recollection([], [], mode="off", reason="off"), "recall is off"),
    ],
)
def test_why_nothing_was_recalled(given, why):
    assert given.why == (f"Nothing was recalled: {why}." if why else "")


def test_the_page_without_a_kernel_has_the_answer_and_its_pieces_as_text(make):
    lab = make(text="<b>lantern</b> & more. " * 12)
    lab.run()
    assert "What it recalled" not in lab.html()
    lab.ask("<i>lantern</i>", recall=ALWAYS, max_tokens=4)
    page = lab.html()
    assert "What it recalled" in page
    assert "&lt;i&gt;lantern&lt;/i&gt;" in page
    assert "&lt;b&gt;lantern&lt;/b&gt; &amp; more." in page
    assert "<b>lantern" not in page
    assert "<i>lantern" not in page
    assert "recalled from text, line 1" in lab.text()


def test_the_last_answer_is_shown_until_another_memory_begins(lab, tmp_path):
    lab.ask(QUESTION, recall=ALWAYS, max_tokens=4)
    lab.save(tmp_path / "memory.atlas")
    assert "asked:" in lab.text()
    lab.load(tmp_path / "memory.atlas")
    assert "asked:" not in lab.text()
    assert lab.recalled.stored == len(TEXT)
    assert lab.ask(QUESTION, recall=ALWAYS, max_tokens=4).pieces  # it is there again


def test_a_pane_by_itself_says_what_is_written_while_it_is():
    seen = []

    def ask(question, mode, stale, told):
        from atlas_kit.llama.steps import Token

        told(Token(1, "Gre"))
        seen.append(pane.answer)
        return recollection([piece("a", 2.0)], [], gain=2.0)

    pane = RecallPane(ask)
    pane.put(QUESTION)
    assert pane.wait(LONG)
    assert seen == [{"question": QUESTION, "text": "Gre", "done": False}]
    assert pane.answer["text"] == "Green."


def test_an_answer_to_another_memory_is_not_shown():
    """The memory that was asked has made room since the last step of its answer."""

    def ask(*_):
        pane.clear()
        return recollection([piece("a", 2.0)], [], gain=2.0)

    pane = RecallPane(ask)
    pane.put(QUESTION)
    assert pane.wait(LONG)
    assert (pane.last, pane.answer, pane.busy, pane.stored) == (None, {}, False, 0)


@pytest.mark.model
def test_the_sample_model_is_asked():
    lab = MemoryLab(SAMPLES / "models" / "tiny-python.gguf", Path(SAMPLES / "documents" / "statistics.py"))
    lab.run(1200)
    lab.recalled.mode = "always"
    lab.recalled.put("How is the median of the data found?")
    assert lab.recalled.wait(LONG)
    [shown] = lab.recalled.answer["pieces"]
    assert "median" in shown["text"]
    assert "statistics.py, line " in shown["place"]
    assert shown["gain"] > -5
    lab.close()
