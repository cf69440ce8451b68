"""``static/lab/recalled.js`` in a real Chromium with the real pane behind it: asking, pieces, keys, both themes."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from atlas_kit.llama import FakeEngine
from atlas_kit.llama.asking import Answer
from atlas_kit.llama.recalling import Piece, Recall, Recalled
from atlas_kit.widgets import MemoryLab
from atlas_kit.widgets.lab.recall_pane import RecallPane
from atlas_kit.widgets.lab.recollection import Recollection
from tests.waiting import LONG
from tests.widgets.conftest import Stage

QUESTION = "Which colour has the <b>lantern</b>?"
TAKEN = Piece("The lantern\nis <i>green</i>.", "document", "notes.txt", 0, 0, 9, 3, 7.25, 3.5)
OTHERS = (
    Piece("The harbour " + "x" * 300, "user", "", 0, 20, 29, 1, 2.5, 0.25),
    Piece("Rain.", "document", "notes.txt", 0, 30, 33, 9, 1.0, -0.5),
)


def came(pieces=(TAKEN,), others=OTHERS, gain=3.5, mode="auto"):
    recalled = Recalled(tuple(pieces), (*pieces, *others), gain, "it makes the question likelier")
    return Recollection(
        Answer(QUESTION, "It is <u>green</u>.", recalled, (), "stop", 0.1, 0.2),
        Recall(mode=mode, gate=1.0),
        1234,
    )


@pytest.fixture
def pane():
    return RecallPane(lambda question, mode, stale, told: came(mode=mode))


@pytest.fixture
def shown(stage: Stage, pane):
    stage.show(pane)
    return stage


def ask(stage, question="green?"):
    stage.page.get_by_label("Question").fill(question)
    stage.page.keyboard.press("Enter")
    stage.settle()
    assert stage.widget.wait(LONG)
    stage.deliver()


def test_before_the_first_question(shown):
    expect(shown.page.get_by_role("status")).to_have_text("Nothing has been asked yet.")
    assert shown.page.locator(".answer").is_hidden()
    assert shown.page.get_by_role("button", name="Stop").is_hidden()


def test_an_answer_with_its_pieces_is_text(shown):
    ask(shown)
    assert shown.page.locator(".asked").inner_text() == QUESTION
    assert shown.page.locator(".text").inner_text() == "It is <u>green</u>."
    [taken] = shown.page.locator(".answer > ol > li").all()
    assert taken.locator("pre").inner_text() == TAKEN.text
    assert taken.locator(".from b").inner_text() == TAKEN.place
    assert "+3.50 nats per token" in taken.inner_text()
    assert "found 7.25" in taken.inner_text()
    assert shown.page.locator(".answer i i, .answer u, .asked b, pre i").count() == 0
    assert "1,234 tokens can be found again" in shown.page.locator(".title").inner_text()


def test_other_candidates_are_folded_and_open_by_key(shown):
    ask(shown)
    other = shown.page.get_by_text("Rain.")
    assert not other.is_visible()
    shown.page.locator("summary").focus()
    shown.page.keyboard.press("Enter")
    assert other.is_visible()
    assert shown.page.locator("summary").inner_text() == "2 other candidates"
    assert "−0.50 nats per token" in shown.page.locator("details").inner_text()


def test_the_gate_stands_where_it_is_between_gains(shown):
    ask(shown)
    shown.page.locator("summary").click()
    track, fill, gate = (
        shown.page.locator("details li").first.locator(part).bounding_box()
        for part in (".track", ".fill", ".gate")
    )
    assert fill["x"] + fill["width"] < gate["x"] < track["x"] + track["width"]
    taken = shown.page.locator(".answer > ol li").first
    assert (
        taken.locator(".fill").bounding_box()["width"]
        > taken.locator(".gate").bounding_box()["x"] - track["x"]
    )


def test_why_nothing_was_recalled_is_said(stage: Stage):
    stage.show(RecallPane(lambda *_: came(pieces=(), gain=0.25)))
    ask(stage)
    expect(stage.page.get_by_role("status")).to_contain_text("the gate asks for +1.00")
    assert stage.page.locator("summary").inner_text() == "2 candidates"


def test_how_to_recall_is_chosen(shown, pane):
    shown.page.get_by_label("Recall").select_option("always")
    shown.settle()
    assert pane.mode == "always"
    ask(shown)
    assert pane.last.recall.mode == "always"
    assert shown.page.locator(".gate").count() == 0


def test_keys_stay_in_the_field_and_escape_stops(shown, pane):
    shown.page.evaluate("document.addEventListener('keydown', () => { window.leaked = true; })")
    pane.busy = True
    shown.deliver()
    assert shown.page.get_by_role("button", name="Stop").is_visible()
    shown.page.get_by_label("Question").focus()
    shown.page.keyboard.press("Escape")
    shown.page.keyboard.press("a")
    shown.settle()
    assert [one["kind"] for one in shown.page.evaluate("window.sent")] == ["stop"]
    assert not shown.page.evaluate("window.leaked")


def test_an_empty_question_is_not_sent(shown):
    ask(shown, "   ")
    assert not shown.page.evaluate("window.sent")


def test_an_error_is_an_alert(stage: Stage):
    def fails(*_):
        raise OSError("the model is gone")

    stage.show(RecallPane(fails))
    ask(stage)
    expect(stage.page.get_by_role("alert")).to_have_text("the model is gone")
    expect(stage.page.locator(".answer")).to_be_hidden()


def test_a_memory_that_keeps_nothing_cannot_be_asked(shown, pane):
    pane.stored = -1
    shown.deliver()
    assert shown.page.get_by_label("Question").is_disabled()
    expect(shown.page.get_by_role("status")).to_contain_text("keeps no text")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [420, 1000])
def test_nothing_is_wider_than_the_page_and_text_can_be_read(stage: Stage, pane, dark, width):
    stage.page.set_viewport_size({"width": width, "height": 800})
    stage.show(pane, dark=dark)
    ask(stage)
    stage.page.locator("summary").click()
    wide, most = stage.page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= most
    ink, paper = stage.page.evaluate(
        """() => ["color", "backgroundColor"].map((name) => {
            const [r, g, b] = getComputedStyle(document.querySelector("pre"))[name].match(/[\\d.]+/g).map(Number);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        })"""
    )
    assert abs(ink - paper) > 110


def test_the_lab_has_it(stage: Stage):
    lab = MemoryLab(FakeEngine(n_ctx=512), "The lantern is green. " * 12)
    lab.run()
    stage.show(lab.recalled)
    stage.page.get_by_label("Recall").select_option("always")
    ask(stage, "Which colour has the lantern?")
    assert "lantern" in stage.page.locator(".answer > ol pre").first.inner_text()
    assert "264 tokens" in stage.page.locator(".title").inner_text()
    lab.close()


def test_nothing_is_left_behind(shown):
    shown.page.evaluate("window.endings.forEach((end) => end())")
    assert shown.page.evaluate("window.listening()") == 0
    assert shown.page.locator(".atlas-recall").count() == 0
