"""``MemoryLab`` without a browser: what its buttons and methods do to the session, and what it sends."""

from __future__ import annotations

import base64
import csv
import datetime
import subprocess
import sys
import threading

import numpy as np
import pytest

from atlas_kit.errors import AtlasError, InvalidParamError, ModelError
from atlas_kit.llama import AtlasSession, AtlasSettings, FakeEngine
from atlas_kit.llama.recalling import Recall
from atlas_kit.settings.recommend import recommend
from atlas_kit.widgets import MemoryCompare, MemoryLab
from atlas_kit.widgets.lab.memory_lab import LIVE
from atlas_kit.widgets.lab.static_view import running_mean
from tests.conftest import SAMPLES
from tests.waiting import LONG, until
from tests.widgets.conftest import once, receive, wired

TEXT = "to be or not to be, that is the question. " * 12


@pytest.fixture
def make():
    made = []

    def make(model=None, text=TEXT, **options):
        lab = MemoryLab(model if model is not None else FakeEngine(), text, **options)
        made.append(lab)
        return lab

    yield make
    for lab in made:
        lab.close()


@pytest.fixture
def lab(make):
    return make()


class Gated(FakeEngine):
    """An engine that waits in its third decode until it may go on."""

    def __init__(self):
        super().__init__()
        self.go, self.inside = threading.Event(), threading.Event()

    def decode(self, feeds, *, hidden=False):
        if self.decodes == 2:
            self.inside.set()
            assert self.go.wait(LONG)
        return super().decode(feeds, hidden=hidden)


@pytest.fixture
def gated(make):
    lab = make(Gated())
    yield lab
    lab.session.engine.go.set()


# --- reading -------------------------------------------------------------------------------------------------


def test_it_reads_what_a_session_reads(lab):
    lab.run()
    with AtlasSession(FakeEngine()) as session:
        fed = session.feed(TEXT)
    assert lab.state == "done"
    np.testing.assert_allclose(lab.history.loss[1:], -fed.logprob[:, 1], atol=1e-4)
    np.testing.assert_allclose(lab.history.loss_model[1:], -fed.logprob[:, 0], atol=1e-4)
    assert bytes(lab.history.tokens.astype(np.uint8)).decode() == TEXT
    assert lab.history.mean[1] < lab.history.mean[0]


def test_step_reads_what_the_memory_learns_at_a_time(lab):
    lab.step()
    assert (lab.state, len(lab.history.tokens)) == ("paused", 16)
    lab.step(3)
    assert len(lab.history.tokens) == 64
    lab.run(10)
    assert (lab.state, len(lab.history.tokens)) == ("paused", 74)
    lab.run()
    assert (lab.state, len(lab.history.tokens)) == ("done", len(TEXT))


def test_stop_goes_back_to_the_beginning_and_the_memory_stays(lab):
    lab.run(100)
    lab.stop()
    assert lab.state == "idle"
    seen = lab.session.memory.tokens_seen
    lab.run(20)
    assert bytes(lab.history.tokens[100:].astype(np.uint8)).decode() == TEXT[:20]
    assert lab.session.memory.tokens_seen == seen + 20


def test_read_again_it_is_known(lab):
    lab.run()
    first = lab.history.mean[1]
    lab.run()
    assert lab.history.loss[len(TEXT) :].mean() < first / 2


def test_start_pause_start(gated):
    gated.start()
    assert gated.session.engine.inside.wait(LONG)
    gated.pause()
    gated.session.engine.go.set()
    assert gated.wait(LONG)
    count = len(gated.history.tokens)
    assert gated.state == "paused"
    gated.start()
    assert gated.wait(LONG)
    assert gated.state == "done"
    assert bytes(gated.history.tokens.astype(np.uint8)).decode() == TEXT
    assert 0 < count < len(TEXT)


def test_stop_while_running_begins_no_other_step(gated):
    gated.start()
    assert gated.session.engine.inside.wait(LONG)
    once(lambda: not gated.runner.wanted, gated.session.engine.go.set)
    gated.stop()
    assert gated.wait(LONG)
    decodes = gated.session.engine.decodes
    assert gated.state == "idle"
    assert decodes <= 4  # the one that it waited in, and what belonged to the same step
    assert not gated.runner.alive


def test_a_step_that_ends_long_after_stop_does_not_say_that_all_was_read(gated):
    gated.start()
    assert gated.session.engine.inside.wait(LONG)
    gated.stop()  # which does not wait for ever
    assert gated.runner.alive
    gated.session.engine.go.set()
    assert gated.wait(LONG)
    assert gated.state == "idle"


def test_a_failure_is_a_sentence_and_reading_goes_on(make):
    class Failing(FakeEngine):
        fails = True

        def decode(self, feeds, *, hidden=False):
            if self.decodes == 2 and self.fails:
                type(self).fails = False
                raise ModelError("llama.cpp could not read 16 tokens", hint="Try a smaller n_batch.")
            return super().decode(feeds, hidden=hidden)

    lab = make(Failing())
    lab.start()
    assert lab.wait(LONG)
    assert lab.state == "failed"
    assert lab.error == "llama.cpp could not read 16 tokens. Try a smaller n_batch."
    assert "error: llama.cpp" in lab.text()
    lab.run()
    assert (lab.state, lab.error) == ("done", "")
    assert bytes(lab.history.tokens.astype(np.uint8)).decode() == TEXT


def test_run_raises_what_the_session_raises(make):
    class Broken(FakeEngine):
        def decode(self, feeds, *, hidden=False):
            raise ModelError("broken")

    with pytest.raises(ModelError, match="broken"):
        make(Broken()).run()


def test_there_must_be_a_text_and_a_memory(make):
    lab = make(text="")
    with pytest.raises(InvalidParamError, match="no text"):
        lab.start()
    with AtlasSession(FakeEngine(), None) as session, pytest.raises(InvalidParamError, match="no memory"):
        MemoryLab(session)


@pytest.mark.slow
def test_a_cell_can_use_the_session_between_two_steps(make):
    lab = make(text=TEXT * 10)
    lab.start()
    with lab.lock, lab.session.aside():
        aside = lab.session.feed("to be or not to be")
    assert lab.wait(LONG)
    assert (lab.state, aside.tokens) == ("done", 18)
    assert bytes(lab.history.tokens.astype(np.uint8)).decode() == lab.text_to_read


# --- settings ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "live"),
    [
        ({"learning_rate": 0.7}, True),
        ({"blend_ratio": 0.4}, True),
        ({"use_muon": True}, True),
        ({"window_size": 64}, False),
        ({"polynomial_degree": 3}, False),
        ({"learning_rate": 0.0}, False),
        ({"memory_dim": 8}, False),
    ],
)
def test_settings_act_at_once_or_at_the_next_reset(lab, change, live):
    lab.run(50)
    (name, value) = next(iter(change.items()))
    lab.set(**change)
    assert (getattr(lab.settings, name) == value) == live
    assert ("From the next Reset on" in lab.view.status) == (not live)
    lab.run(50)
    lab.reset()
    assert getattr(lab.settings, name) == value
    assert lab.view.status == ""
    lab.run()
    assert lab.state == "done"


def test_every_live_setting_can_be_retuned():
    with AtlasSession(FakeEngine()) as session:
        session.feed(TEXT)
        others = {"learning_rate": 1.0, "blend_ratio": 0.5, "use_muon": True}
        assert set(others) == set(LIVE)
        session.memory.retune(others)


def test_a_setting_out_of_range_changes_nothing(lab):
    with pytest.raises(InvalidParamError, match="polynomial_degree"):
        lab.set(polynomial_degree=9, learning_rate=0.9)
    assert lab.settings == AtlasSettings()
    assert lab.controls.learning_rate.value == pytest.approx(0.3)


def test_sliders_set_and_show_settings(lab):
    lab.controls.learning_rate.value = 0.5
    lab.controls.adaptive.value = False
    lab.controls.blend.value = 0.25
    lab.controls.window.value = 128
    assert (lab.settings.learning_rate, lab.settings.blend_ratio) == (0.5, 0.25)
    assert "window 128" in lab.view.status
    lab.controls.press("reset")
    assert lab.settings.window_size == 128
    lab.set(blend_ratio="adaptive", window_size=100)
    assert lab.controls.adaptive.value
    assert lab.controls.blend.disabled
    assert lab.controls.window.value == 100


def test_reset_while_running_forgets_everything(gated):
    gated.start()
    assert gated.session.engine.inside.wait(LONG)
    once(lambda: not gated.runner.wanted, gated.session.engine.go.set)
    gated.reset()
    assert (gated.state, len(gated.history.tokens), gated.session.memory.tokens_seen) == ("idle", 0, 0)
    assert [one.tokens_seen for one in gated.snapshots] == [0]
    gated.run()
    assert bytes(gated.history.tokens.astype(np.uint8)).decode() == TEXT


# --- the controls --------------------------------------------------------------------------------------------


def test_buttons_do_what_they_say_and_only_those_that_make_sense_can_be_pressed(lab):
    def enabled():
        return {what for what, button in lab.controls._buttons.items() if not button.disabled}

    assert enabled() == {"start", "step", "reset"}
    lab.controls.press("step")
    assert lab.wait(LONG)
    assert (len(lab.history.tokens), enabled()) == (16, {"start", "step", "stop", "reset"})
    lab.controls.press("start")
    assert lab.wait(LONG)
    assert (lab.state, enabled()) == ("done", {"start", "step", "reset"})


def test_what_goes_wrong_in_a_button_stands_in_the_status_line(make, tmp_path):
    lab = make(text="")
    lab.controls.press("start")
    assert "no text to read" in lab.error
    lab.controls.path.value = str(tmp_path / "missing.atlas")
    lab.controls.load.click()
    assert "missing.atlas" in lab.error
    lab.controls.path.value = " "
    lab.controls.save.click()
    assert "no file name" in lab.error


def test_texts_come_from_the_field_a_list_and_a_file(make):
    document = SAMPLES / "documents" / "english.txt"
    lab = make(documents=[document])
    lab.controls.text.value = "typed"
    assert lab.text_to_read == "typed"
    lab.controls.document.value = "english.txt"
    assert lab.text_to_read == document.read_text()
    assert lab.controls.text.value == lab.text_to_read
    now = datetime.datetime.now(datetime.timezone.utc)
    content = memoryview("h\N{LATIN SMALL LETTER E WITH ACUTE}".encode() + b"\xff")
    lab.controls.upload.value = (
        {"name": "a.txt", "type": "text/plain", "size": 4, "content": content, "last_modified": now},
    )
    lab.run()
    assert bytes(lab.history.tokens.astype(np.uint8)) == bytes(content)


def test_long_texts_are_read_and_not_shown(lab):
    lab.text_to_read = "x" * 300_000
    assert lab.controls.text.value == ""
    assert "300,000 characters" in lab.controls.text.placeholder
    lab.run(40)
    assert len(lab.history.tokens) == 40


def test_a_document_that_is_not_there_is_an_error(make, tmp_path):
    with pytest.raises(AtlasError, match=r"nothing\.txt"):
        make(text=tmp_path / "nothing.txt")


@pytest.mark.parametrize(
    "name", ["missing.txt", "a/b/guide.md", "/no/such/place.py", "C:\\\\texts\\\\one.txt", "x.c"]
)
def test_the_name_of_a_missing_file_is_no_text(make, lab, name):
    with pytest.raises(AtlasError, match="no such file"):
        make(text=name)
    with pytest.raises(AtlasError, match="no such file"):
        lab.text_to_read = name
    assert lab.text_to_read == TEXT


@pytest.mark.parametrize(
    "text", ["word", "A sentence.", "3.14", "see guide.md", "e.g.", "...", "a.b.", "one\ntwo.txt"]
)
def test_a_text_is_no_file(make, text):
    assert make(text=text).text_to_read == text


def test_a_string_that_is_a_file_is_read(make, tmp_path, monkeypatch):
    (tmp_path / "my notes").write_text("to be")
    monkeypatch.chdir(tmp_path)
    assert make(text="my notes").text_to_read == "to be"


def test_what_is_typed_is_a_text_whatever_it_looks_like(lab):
    lab.controls.text.value = "missing.txt"
    assert (lab.text_to_read, lab.error) == ("missing.txt", "")


def test_a_learning_rate_of_zero_is_shown_as_such(make):
    lab = make(learning_rate=0)
    assert lab.controls.learning_rate.value == 0
    assert lab.controls.learning_rate.label == "0 (off)"
    lab.controls.learning_rate.value = 0.3
    assert "learning rate 0.3" in lab.view.status


def test_a_load_that_fails_does_not_go_back(lab, tmp_path):
    lab.run(100)
    with pytest.raises(AtlasError):
        lab.load(tmp_path / "missing.atlas")
    assert (lab.state, lab.facts()["at"]) == ("paused", 100)


def test_it_says_what_the_context_of_the_model_holds(make):
    lab = make(FakeEngine(n_ctx=128))
    lab.run(100)
    assert lab.facts()["context"] == 128
    assert "still in the model's own context of 128 tokens" in lab.text()
    lab.run(100)
    assert "own context" not in lab.text()
    assert "context full: 128 tokens" in [one.get_text() for one in lab.figure().axes[0].texts]


# --- files and snapshots -------------------------------------------------------------------------------------


def test_save_and_load(lab, make, tmp_path):
    lab.set(learning_rate=0.6)
    lab.run()
    lab.controls.path.value = str(tmp_path / "memory.atlas")
    lab.controls.save.click()
    assert "Saved to" in lab.view.status
    other = make()
    other.load(tmp_path / "memory.atlas")
    assert other.session.memory.tokens_seen == lab.session.memory.tokens_seen
    assert other.settings.learning_rate == 0.6
    assert other.controls.learning_rate.value == pytest.approx(0.6)
    assert len(other.history.tokens) == 0
    other.run(50)
    assert other.history.mean[1] < 0.2  # it knows the text, and what came before


def test_a_file_that_cannot_be_loaded_leaves_the_lab_as_it_was(lab, tmp_path):
    lab.run(100)
    (tmp_path / "bad.atlas").write_bytes(b"nothing of the kind")
    with pytest.raises(AtlasError):
        lab.load(tmp_path / "bad.atlas")
    assert lab.session.memory.tokens_seen == 99
    lab.run(20)
    assert lab.state == "paused"


@pytest.mark.slow
def test_snapshots_can_be_compared_over_time(make):
    lab = make(snapshot_every=64)
    lab.run()
    seen = [one.tokens_seen for one in lab.snapshots]
    assert seen[0] == 0
    assert seen[-1] == len(TEXT) - 1
    assert len(seen) > 4
    compare = MemoryCompare(lab)
    assert "503 tokens" in compare.text()
    compare.close()


# --- two labs ------------------------------------------------------------------------------------------------


def test_a_second_lab_takes_over_and_both_say_so(gated, make):
    engine = gated.session.engine
    gated.start()
    assert engine.inside.wait(LONG)
    once(lambda: not gated.runner.wanted, engine.go.set)
    with AtlasSession(engine) as session:
        second = make(session)
        assert "earlier MemoryLab" in second.view.status
        assert "Another MemoryLab" in gated.view.status
        assert gated.wait(LONG)
        assert all(button.disabled for button in gated.controls._buttons.values())
        with pytest.raises(InvalidParamError, match="closed"):
            gated.start()
        second.run()
        assert second.state == "done"


def test_one_that_made_room_stays_so_whenever_its_step_ends(gated, make, monkeypatch):
    for place in ("live", "lab.memory_lab"):
        monkeypatch.setattr(f"atlas_kit.widgets.{place}.STOP_SECONDS", 0.01)
    engine, tell, made_room = gated.session.engine, gated.runner._on_state, threading.Event()
    gated.start()
    assert engine.inside.wait(LONG)
    gated.runner._on_state = lambda: (made_room.wait(LONG), tell())
    once(lambda: gated.runner.closed, engine.go.set)
    with AtlasSession(engine) as session:
        make(session)
        made_room.set()
        assert gated.wait(LONG)
        assert all(button.disabled for button in gated.controls._buttons.values())
        assert "Another MemoryLab" in gated.view.status


def test_the_same_session_can_be_shown_again(make):
    with AtlasSession(FakeEngine()) as session:
        first = make(session)
        first.run(64)
        second = make(session)
        second.run(64)
        assert session.memory.tokens_seen == 128 - 1
        second.close()
        assert make(session).view.status == ""


def test_close_ends_the_thread_and_closes_what_it_opened(gated):
    gated.start()
    assert gated.session.engine.inside.wait(LONG)
    once(lambda: not gated.runner.wanted, gated.session.engine.go.set)
    gated.close()
    assert gated.wait(LONG)
    assert gated.session.sequence == -1
    assert gated.view.comm is None
    assert all(widget.comm is None for widget in (*gated.controls.parts(), *gated.matrices.parts()))


def test_a_session_that_was_given_stays_open(make):
    with AtlasSession(FakeEngine()) as session:
        make(session).close()
        session.feed("it still reads")


# --- what is sent --------------------------------------------------------------------------------------------


def frames(wire):
    return [message["content"] for message in wire.take() if message.get("method") == "custom"]


def test_frames_wait_for_the_page_and_bring_everything_in_order(lab, monkeypatch):
    monkeypatch.setattr("atlas_kit.widgets.frame_gate.PATIENCE", 1e9)
    wire = wired(lab.view)
    receive(lab.view, {"method": "custom", "content": {"kind": "hello"}})
    (first,) = frames(wire)
    assert (first["from"], first["texts"]) == (0, [])
    lab.run()
    assert frames(wire) == []  # not drawn yet
    receive(lab.view, {"method": "custom", "content": {"kind": "shown", "number": first["number"]}})
    (second,) = frames(wire)
    assert "".join(second["texts"]) == TEXT
    assert second["facts"]["at"] == second["facts"]["total"] == len(TEXT)
    assert dict(second["names"])[ord("t")] == "t"


def test_a_page_that_was_loaded_again_gets_everything_in_pieces(lab, monkeypatch):
    monkeypatch.setattr("atlas_kit.widgets.lab.view.MOST_TOKENS", 200)
    lab.run()
    wire = wired(lab.view)
    receive(lab.view, {"method": "custom", "content": {"kind": "hello"}})
    texts, starts = [], []
    while waiting := frames(wire):
        for frame in waiting:
            texts += frame["texts"]
            starts.append(frame["from"])
            receive(lab.view, {"method": "custom", "content": {"kind": "shown", "number": frame["number"]}})
    assert "".join(texts) == TEXT
    assert starts == [0, 200, 400]


def test_characters_of_several_tokens_stand_with_the_last(make):
    lab = make(text="a\N{EURO SIGN}b")  # every byte is a token
    lab.run()
    assert lab.words.texts(0, 5) == ["a", "", "", "\N{EURO SIGN}", "b"]
    assert lab.words.name(0xE2) == "\\xe2"


# --- to compare and to pass on ------------------------------------------------------------------------------


def test_runs_from_before_stay_for_comparison(lab):
    lab.run(200)
    last = lab.history.loss.copy()
    lab.set(learning_rate=0.9)
    lab.reset()
    lab.run(20)
    lab.reset()  # too short to be compared
    lab.run(100)
    lab.reset(keep="quick")
    lab.run(100)
    lab.reset(keep="quick")
    assert lab.runs == ["learning rate 0.9, window 1,024", "quick", "quick (2)"]
    first = lab.view.runs[0]
    assert (first["at"][0], first["at"][-1]) == (1, 199)
    assert first["loss"][-1] == pytest.approx(running_mean(last[:, None])[-1, 0], abs=1e-3)
    lab.forget_runs("quick")
    assert len(lab.runs) == 2
    lab.forget_runs()
    assert lab.runs == []


def test_no_more_runs_than_can_be_told_apart(lab):
    for number in range(7):
        lab.run(40)
        lab.reset(keep=str(number))
    assert lab.runs == ["2", "3", "4", "5", "6"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "begins"),
    [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.GIF", b"GIF89a"), ("a.html", b"<!doctype html>")],
)
def test_a_run_can_be_passed_on(lab, tmp_path, name, begins):
    lab.run(120)
    lab.controls.path.value = str(tmp_path / name)
    lab.controls.save.click()
    assert lab.error == ""
    assert "Saved to" in lab.view.status
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_a_table_has_every_token(lab, tmp_path):
    lab.run(120)
    lab.export(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert "".join(row["text"] for row in rows) == TEXT[:120]
    assert rows[0]["loss"] == ""
    assert float(rows[100]["loss"]) == pytest.approx(lab.history.loss[100], rel=1e-4)


def test_an_animation_moves_and_ends(lab, tmp_path):
    from PIL import Image

    with pytest.raises(InvalidParamError, match="nothing has been read"):
        lab.export(tmp_path / "a.gif")
    lab.run(200)
    lab.export(tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 30


def test_a_kind_that_there_is_not(lab, tmp_path):
    with pytest.raises(InvalidParamError, match=r"\.png, \.svg"):
        lab.export(tmp_path / "a.webm")
    assert list(tmp_path.iterdir()) == []


# --- where things were read -----------------------------------------------------------------------------------


def test_a_token_that_the_window_knew_says_from_where(lab):
    lab.run(400)
    source, tokens = lab.trace.source, lab.trace.tokens
    known = np.flatnonzero(source >= 0)
    assert len(known) > 200
    assert (source[known] < known).all()
    assert (tokens[source[known]] == tokens[known]).all()
    # the window finds it by what stood before it, too
    before = source[known] > 0
    assert (tokens[source[known][before] - 1] == tokens[known[before] - 1]).mean() > 0.9


def test_nothing_is_claimed_of_a_window_from_before(make):
    with AtlasSession(FakeEngine()) as session:
        session.feed("something else altogether: 1234567890 " * 4)
        lab = make(session)
        lab.run(120)
        source = lab.trace.source
        known = np.flatnonzero(source >= 0)
        assert (lab.trace.tokens[source[known]] == lab.trace.tokens[known]).all()


def test_the_pieces_of_an_answer_lie_where_they_were_read(make):
    lab = make(FakeEngine(n_ctx=512), "The lantern in the hall is green. The harbour is yellow. " * 4)
    lab.run()
    lab.ask("lantern", recall=Recall(mode="always"), max_tokens=4)
    (first, end, asked) = lab.view.passages[0]
    assert "".join(lab.words.texts(first, end)) == lab.answer.pieces[0].text
    assert asked == len(lab.trace) - 1
    assert lab.recalled.answer["pieces"][0]["at"] == first
    lab.reset()
    assert lab.view.passages == []


# --- without a page ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_shows_itself_before_and_after_reading(lab):
    assert "nothing has been read" not in lab.text()
    for _ in range(2):
        assert lab.png().startswith(b"\x89PNG")
        bundle, _ = lab._repr_mimebundle_()
        assert {"text/plain", "text/html", "image/png"} <= set(bundle)
        assert base64.b64encode(b"\x89PNG")[:4].decode() in bundle["text/html"]
        lab.run()
    assert "perplexity" in lab.text()
    assert [axes.get_label() for axes in lab.figure().axes][:4] == ["loss", "weights", "matrix", "<colorbar>"]


@pytest.mark.slow
def test_the_page_has_the_text_coloured_and_escaped(make):
    lab = make(text="<script>alert(1)</script> & so on " * 4)
    lab.run()
    page = lab.html()
    assert "<script" not in page
    assert "nats without memory" in page
    assert page.count('<span style="background') == len(lab.text_to_read) - 1
    for tab in ("Curves", "Text", "Matrix", "In words"):
        assert f"{tab}</label>" in page
    assert "with memory" in page  # the values under the pointer
    assert "row 0, column 0: " in page


@pytest.mark.slow
def test_the_window_alone_has_no_learned_matrix_to_speak_of(make):
    lab = make(learning_rate=0)
    lab.run()
    assert lab.state == "done"
    assert lab.png()


def test_no_window(make):
    lab = make(window=0)
    lab.run()
    assert (lab.state, lab.facts()["window"]) == ("done", 0)


@pytest.mark.slow
def test_spectra_are_those_of_the_matrix(lab):
    lab.run()
    assert lab.matrices.wait(LONG)
    name, array = lab.matrices.in_view()
    spectrum = lab.view.spectrum
    np.testing.assert_allclose(
        spectrum["values"], np.linalg.svd(array, compute_uv=False), rtol=1e-2, atol=1e-3
    )
    assert (spectrum["name"], spectrum["tokens"]) == (name, len(TEXT))
    lab.matrices.choice.value = "window keys"
    assert lab.matrices.wait(LONG)
    assert lab.view.spectrum["name"] == "window keys"


@pytest.mark.slow
def test_the_interpreter_ends_while_a_lab_runs():
    code = (
        "from atlas_kit.llama import FakeEngine; from atlas_kit.widgets import MemoryLab\n"
        "lab = MemoryLab(FakeEngine(), 'to be or not ' * 20000); lab.start(); print(lab.state)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert ran.stdout.strip() == "running"


# --- a real model --------------------------------------------------------------------------------------------


@pytest.mark.model
def test_the_sample_model_learns_a_document():
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = SAMPLES / "models" / "tiny-python.gguf"
    lab = MemoryLab(model, SAMPLES / "documents" / "statistics.py", engine_options={"n_threads": 1})
    try:
        assert lab.settings == recommend(model).settings
        assert lab.settings != AtlasSettings()
        lab.run(700)
        without, with_memory = lab.history.mean
        assert with_memory < without - 0.2
        begin = len(lab.session.engine.begin)
        assert lab.text_to_read.startswith("".join(lab.words.texts(begin, 700)))
    finally:
        lab.close()


# --- texts that take long to be cut into tokens --------------------------------------------------------------------


class SlowToCut(FakeEngine):
    """An engine that cuts texts when it is told to."""

    def __init__(self):
        super().__init__()
        self.go, self.texts = threading.Event(), []

    def tokenize(self, text, **options):
        self.texts.append(text)
        if len(text) > 100:
            assert self.go.wait(LONG)
        return super().tokenize(text, **options)


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr("atlas_kit.widgets.lab.memory_lab.SOON", 200)
    lab = MemoryLab(SlowToCut(), "a long one. " * 50)
    yield lab
    lab.session.engine.go.set()
    lab.close()


def test_a_long_text_is_cut_beside_the_cell_that_starts_and_says_so(slow):
    slow.start()
    until(lambda: slow.view.status)
    assert slow.view.status == "Cutting 600 characters into tokens ..."
    assert (slow.state, slow.facts()["total"]) == ("running", 0)
    slow.session.engine.go.set()
    assert slow.wait(LONG)
    assert "Cutting" not in slow.view.status
    assert (slow.state, slow.facts()["total"], len(slow.history.tokens)) == ("done", 600, 600)


def test_a_text_that_is_read_again_is_not_cut_again(slow):
    slow.session.engine.go.set()
    for _ in range(3):
        slow.run()
        assert (slow.state, slow.facts()["total"]) == ("done", 600)
        slow.reset()
    slow.run()
    slow.run()  # where something stands before it, there may be no begin token
    slow.run()
    assert slow.session.engine.texts.count("a long one. " * 50) == 2


def test_another_text_that_is_chosen_while_one_is_cut_is_the_one_that_is_read(slow):
    slow.start()
    slow.text_to_read = "a short one"  # waits half a second for the other, at most
    slow.session.engine.go.set()
    assert slow.wait(LONG)
    slow.run()
    assert "".join(slow.words.texts(0, 100)) == "a short one"
    assert slow.facts()["total"] == len("a short one")


def test_a_text_that_is_none_for_the_model_is_a_sentence(make, monkeypatch):
    monkeypatch.setattr(FakeEngine, "tokenize", lambda *_, **__: [])
    lab = make()
    with pytest.raises(InvalidParamError, match="no text to read"):
        lab.run()
    assert (lab.state, "no text to read" in lab.error) == ("failed", True)


def test_it_reads_as_many_tokens_at_a_time_as_fit_into_the_context(monkeypatch):
    """Else the rest of each portion would be read by itself, which takes as long as many more."""
    engine = FakeEngine()
    lab = MemoryLab(engine, "to be or not to be, that is the question. " * 200)
    lab.run(3000)  # the portion has grown by then
    sizes, decode = [], engine.decode

    def counted(feeds, **options):
        sizes.extend(len(feed.tokens) for feed in feeds)
        return decode(feeds, **options)

    monkeypatch.setattr(engine, "decode", counted)
    lab.run(3000)
    lab.close()
    assert sum(sizes) == 3000
    assert len(sizes) <= 3000 // min(engine.n_batch, engine.n_ctx // 2) + 2
