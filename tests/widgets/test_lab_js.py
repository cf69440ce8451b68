"""``static/lab/lab.js`` in a real Chromium with the real view behind it: numbers, curves, text, keys, cleanup."""

from __future__ import annotations

import numpy as np
import pytest
from playwright.sync_api import expect

from atlas_kit.llama import FakeEngine
from atlas_kit.widgets import MemoryLab
from tests.waiting import LONG
from tests.widgets.conftest import Stage, receive

TEXT = "to be or not to be, that is the question. " * 12


@pytest.fixture
def lab():
    lab = MemoryLab(FakeEngine(), TEXT, snapshot_every=1000)
    yield lab
    lab.close()


@pytest.fixture
def read(stage: Stage, lab):
    """The view of a lab that has read its text."""
    lab.run()
    assert lab.matrices.wait(LONG)
    stage.show(lab.view)
    return stage


def inner(stage, selector):
    return stage.page.locator(selector).inner_text()


def tokens(stage):
    return stage.page.locator(".tokens [data-at]")


def test_the_numbers_are_those_of_the_history(read, lab):
    model, memory = lab.history.mean
    assert inner(read, ".tile.model b") == f"{model:.3f}"
    assert inner(read, ".tile.memory b") == f"{memory:.3f}"
    assert inner(read, ".tile.gap b") == f"{model - memory:.3f}"
    assert f"perplexity {np.exp(memory):.3g}" in inner(read, ".tile.memory small")
    assert inner(read, ".tile.read b") == str(len(TEXT))
    assert inner(read, ".state") == "done"


def test_the_running_mean_is_that_of_the_figure(read, lab):
    from atlas_kit.widgets.lab.static_view import running_mean

    mean = running_mean(np.stack((lab.history.loss_model, lab.history.loss), 1))[-1]
    shown = [inner(read, f".loss li:nth-child({k}) b") for k in (1, 2, 3)]
    assert shown == [f"{mean[0]:.2f}", f"{mean[1]:.2f}", f"{mean[0] - mean[1]:.2f}"]
    read.page.get_by_role("button", name="64", exact=True).click()
    assert inner(read, ".loss li:nth-child(2) b") != shown[1]


@pytest.mark.parametrize("dark", [False, True])
def test_the_gap_is_on_the_canvas(stage, lab, dark):
    stage.show(lab.view, dark=dark)
    blank = ink(stage)
    lab.run()
    receive(lab.view, {"method": "custom", "content": {"kind": "hello"}})
    stage.deliver()
    assert ink(stage) > 20 * max(blank, 200)


def ink(stage):
    """Return how many pixels of the loss curve are bluish."""
    return stage.page.evaluate(
        """() => {
            const c = document.querySelector(".loss canvas");
            const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
            let count = 0;
            for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 20 && d[i + 2] > d[i] + 20) count += 1;
            return count;
        }"""
    )


def test_the_text_is_there_once_and_coloured_by_loss(read, lab):
    assert read.page.locator(".tokens").evaluate("(node) => node.textContent") == TEXT
    loss = lab.history.loss
    for at in (1, int(np.nanargmax(loss)), len(TEXT) - 1):
        level = min(10, int(np.floor(loss[at] / 8 * 10 + 0.5)))
        name = read.page.locator(f"[data-at='{at}']").get_attribute("class")
        assert f"l{level}" in name.split()
        assert ("marked" in name) == (loss[at] >= 6)


def test_saved_by_memory_tells_gain_from_loss_without_colour(read, lab):
    read.page.get_by_role("button", name="saved by memory").click()
    saved = lab.history.loss_model - lab.history.loss
    gained, lost = int(np.nanargmax(saved)), int(np.nanargmin(saved))
    assert read.page.locator(f"[data-at='{gained}']").get_attribute("class").startswith("saved l10 marked")
    assert read.page.locator(f"[data-at='{lost}']").get_attribute("class").startswith("cost")
    expect(read.page.get_by_role("button", name="saved by memory")).to_have_attribute("aria-pressed", "true")


def test_one_token_has_its_story(read, lab):
    at = 300
    read.page.locator(f"[data-at='{at}']").click()
    story = inner(read, ".story")
    assert f"{lab.history.loss[at]:.2f} nats" in story
    assert f"{lab.history.loss_model[at]:.2f} nats" in story
    hit = read.page.locator(".lists > div:nth-child(2) li.hit")
    assert hit.locator("code").inner_text() == (TEXT[at] if TEXT[at] != " " else "␣")
    assert "✓" in hit.inner_text()
    assert read.page.locator(".story .knew").count() >= 1
    read.page.locator(f"[data-at='{at}']").click()  # lets go
    read.page.mouse.move(0, 0)
    assert f"#{len(TEXT) - 1}" in inner(read, ".story")


def test_of_what_came_before_a_token_the_end_is_seen(read):
    read.page.locator(".story").evaluate("(node) => { node.style.width = '150px' }")
    room, text = read.page.locator(".story .context .before").evaluate(
        """(node) => {
            const range = document.createRange();
            range.selectNodeContents(node);
            return [node, range].map((one) => [one.getBoundingClientRect().left, one.getBoundingClientRect().right]);
        }"""
    )
    assert text[0] < room[0] - 5  # it is longer than its room
    assert text[1] <= room[1] + 1


def test_a_token_says_from_which_passage_it_was_known(read, lab):
    at = 300
    source = int(lab.trace.source[at])
    assert 0 <= source < at
    read.page.locator(f"[data-at='{at}']").click()
    expect(read.page.locator(".tokens .source")).to_have_attribute("data-at", str(source))
    because = read.page.locator(".story .because")
    expect(because).to_contain_text("the window knew it from")
    because.get_by_role("button", name=f"#{source}").click()
    expect(read.page.locator(".tokens .looked")).to_have_attribute("data-at", str(source))


def test_what_an_answer_was_given_is_marked_and_can_be_gone_to(read, lab):
    lab.view.passages = [[40, 80, 500]]
    read.deliver()
    expect(read.page.locator(".tokens .passage")).to_have_count(40)
    read.page.evaluate(
        """() => {
            const lab = document.querySelector(".atlas-lab").parentElement;
            lab.classList.add("atlas-memory-lab");
            lab.dispatchEvent(new CustomEvent("atlas-show", { bubbles: true, detail: 40 }));
        }"""
    )
    expect(read.page.locator(".tokens .looked")).to_have_attribute("data-at", "40")


def test_runs_from_before_are_drawn_and_named(stage: Stage, lab):
    lab.run(200)
    lab.reset(keep="<b>slow</b>")
    stage.show(lab.view)
    expect(stage.page.locator(".former li")).to_have_count(1)
    expect(stage.page.locator(".former")).to_contain_text("<b>slow</b>")
    painted = """() => {
        const c = document.querySelector(".loss canvas");
        const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        let count = 0;
        for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 100 && d[i] > d[i + 2] + 60) count += 1;
        return count;
    }"""
    assert stage.page.evaluate(painted) > 50
    lab.forget_runs()
    stage.deliver()
    expect(stage.page.locator(".former")).to_be_hidden()
    assert stage.page.evaluate(painted) == 0


def test_keys_walk_through_the_text_and_say_what_is_there(read):
    read.page.locator(".tokens").focus()
    read.page.keyboard.press("ArrowLeft")
    last = len(TEXT) - 1
    expect(read.page.locator(".looked")).to_have_attribute("data-at", str(last))
    read.page.keyboard.press("PageUp")
    expect(read.page.locator(".looked")).to_have_attribute("data-at", str(last - 100))
    heard = read.page.locator(".heard").text_content()
    assert "nats without the memory" in heard
    assert read.page.locator(".looked").count() == 1
    read.page.keyboard.press("Escape")
    assert read.page.locator(".looked").count() == 0


def test_keys_move_the_cursors_of_the_curves(read):
    for name, says in (("Running loss", "gap"), ("Weights", "window"), ("Singular values", "σ1 =")):
        read.page.get_by_role("img", name=name).focus()
        read.page.keyboard.press("Home")
        read.page.keyboard.press("ArrowRight")
        read.page.keyboard.press("ArrowLeft")
        assert says in read.page.locator(".heard").text_content()


def test_characters_of_several_tokens_are_one_span(stage: Stage):
    lab = MemoryLab(FakeEngine(), "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{EURO SIGN}5 " * 3)
    lab.run()
    stage.show(lab.view)
    assert stage.page.locator(".tokens").evaluate("(node) => node.textContent") == lab.text_to_read
    assert tokens(stage).count() == len(lab.text_to_read)
    stage.page.locator("[data-at='4']").click()  # the second byte of é
    assert inner(stage, ".story .came") == "\\xa9"
    lab.close()


def test_markup_in_the_text_stays_text(stage: Stage):
    lab = MemoryLab(FakeEngine(), "<img src=x onerror=alert(1)><b>")
    lab.run()
    stage.show(lab.view)
    assert stage.page.locator(".tokens img, .tokens b").count() == 0
    assert stage.page.locator(".tokens").evaluate("(node) => node.textContent") == lab.text_to_read
    lab.close()


def test_frames_add_and_a_reset_clears(stage: Stage, lab):
    stage.show(lab.view)
    assert "Press Start" in inner(stage, ".story")
    for count in (16, 32):
        lab.step()
        stage.deliver()
        assert tokens(stage).count() == count
    lab.reset()
    stage.deliver()
    assert tokens(stage).count() == 0
    assert inner(stage, ".tile.gap b") == "–"


def test_a_view_that_opens_later_has_everything_and_disturbs_no_other(stage: Stage, lab):
    lab.run()
    stage.show(lab.view, views=2)
    for number in (0, 1):
        pane = stage.page.locator(".tokens").nth(number)
        assert pane.evaluate("(node) => node.textContent") == TEXT


def test_only_the_newest_tokens_are_in_the_page(stage: Stage, lab):
    lab.text_to_read = "abcdefgh" * 1000
    lab.run()
    stage.show(lab.view)
    while stage.deliver():
        pass
    assert 5000 < tokens(stage).count() <= 6000
    assert stage.page.locator(".tokens").evaluate("(node) => node.textContent").endswith("abcdefgh")
    assert stage.page.locator(".atlas-lab").get_attribute("data-shown") == "8000"


def test_a_page_that_is_not_heard_gets_no_second_frame(stage: Stage, lab, monkeypatch):
    monkeypatch.setattr("atlas_kit.widgets.frame_gate.PATIENCE", 1e9)
    stage.show(lab.view)
    lab.step()
    stage.deliver()
    stage.silent = True
    lab.step()
    stage.deliver()
    # one frame; whether it left in the middle of the step is a question of the moment
    shown = tokens(stage).count()
    assert 16 < shown <= 32
    lab.step()
    stage.deliver()
    assert tokens(stage).count() == shown
    stage.wake()
    assert tokens(stage).count() == 48


def test_a_loss_while_the_context_holds_everything_is_no_alarm(stage: Stage):
    lab = MemoryLab(FakeEngine(n_ctx=256), "".join(map(chr, range(32, 127))) * 20, learning_rate=5.0)
    lab.trace.extend(
        {
            name: np.zeros((1, *getattr(lab.trace, name).shape[1:]), getattr(lab.trace, name).dtype)
            for name in ("tokens", "loss", "parts", "weights", "top", "top_p")
        }
        | {"loss": np.array([[1.0, 2.0]], np.float32), "tokens": np.array([65], np.int32)}
    )
    stage.show(lab.view)
    assert "early" in stage.page.locator(".tile.gap").get_attribute("class")
    assert "worse" not in stage.page.locator(".tile.gap").get_attribute("class")
    assert "own context still holds everything" in inner(stage, ".tile.gap small")
    lab.close()


def test_a_greeting_is_repeated_until_it_is_answered(stage: Stage, lab):
    stage.silent = True
    lab.run(32)
    stage.show(lab.view)
    stage.page.wait_for_function("window.sent.filter((one) => one.kind === 'hello').length >= 3")
    expect(stage.page.locator(".away")).to_contain_text("does not answer")
    stage.waiting.clear()
    stage.silent = False
    stage.page.wait_for_function("document.querySelector('.atlas-lab').dataset.shown === '32'")
    expect(stage.page.locator(".away")).to_be_hidden()


def test_what_was_lost_on_the_way_is_asked_for_again(stage: Stage, lab):
    stage.show(lab.view)
    lab.run(32)
    stage.wire.take()  # the connection stalls
    receive(lab.view, {"method": "custom", "content": {"kind": "shown", "number": lab.view._gate._number}})
    lab.run(32)
    stage.deliver()
    stage.page.wait_for_function("document.querySelector('.atlas-lab').dataset.shown === '64'")
    assert stage.page.locator(".tokens").evaluate("(node) => node.textContent") == TEXT[:64]


def test_a_view_says_when_it_ends(read):
    read.page.evaluate("window.endings.forEach((end) => end())")
    hello, *_, bye = read.page.evaluate("window.sent")
    assert (hello["kind"], bye) == ("hello", {"kind": "bye", "view": hello["view"]})


def test_an_error_is_an_alert(read, lab):
    lab.controls.path.value = "nowhere/missing.atlas"
    lab.controls.load.click()
    read.deliver()
    expect(read.page.get_by_role("alert")).to_contain_text("missing.atlas")


def test_nothing_is_left_behind(read):
    read.page.evaluate("window.endings.forEach((end) => end())")
    assert read.page.evaluate("window.listening()") == 0
    assert read.page.locator(".atlas-lab").count() == 0


@pytest.mark.parametrize(("first", "cut"), [(4.0, False), (40.0, True)])
def test_no_loss_is_clipped_without_a_word(stage: Stage, first, cut):
    """The first few are wild: they are in view, or it is said how high they reach."""
    lab = MemoryLab(FakeEngine(), "x")
    stage.show(lab.view)
    rows = {name: np.zeros((400, *array.shape[1:]), array.dtype) for name, array in lab.trace.rows().items()}
    rows["loss"][:] = np.linspace(3.5, 3, 400)[:, None]
    rows["loss"][:4] = first
    lab.trace.extend(rows)
    lab.view.show()
    stage.deliver()
    drawn = stage.page.evaluate(
        """() => new Promise((done) => {
            const pen = CanvasRenderingContext2D.prototype, said = [], high = [], line = pen.lineTo;
            pen.fillText = (text) => said.push(text);
            pen.lineTo = function (x, y) { high.push(y); return line.call(this, x, y); };
            dispatchEvent(new Event("resize"));
            document.querySelector(".loss [aria-label^='Tokens of'] button").click();
            requestAnimationFrame(() => setTimeout(() => done({ said, top: Math.min(...high) })));
        })"""
    )
    assert any(text.startswith("▴ up to") for text in drawn["said"]) is cut
    assert (drawn["top"] < 0) is cut  # it leaves through the upper edge, and is no flat line along it
    lab.close()


def test_a_run_is_saved_as_a_film(read, tmp_path):
    with read.page.expect_download() as coming:
        read.page.get_by_role("button", name="WebM").click()
    assert coming.value.suggested_filename == "MemoryLab.webm"
    coming.value.save_as(tmp_path / "run.webm")
    film = (tmp_path / "run.webm").read_bytes()
    assert film.startswith(bytes.fromhex("1a45dfa3"))  # EBML, as WebM is
    assert b"webm" in film[:64]
    assert len(film) > 10_000
    assert read.page.locator("canvas[aria-hidden]").count() == 0


def test_a_run_that_has_not_begun_is_no_film(stage: Stage):
    lab = MemoryLab(FakeEngine(), "x")
    stage.show(lab.view)
    stage.page.get_by_role("button", name="WebM").click()
    stage.page.get_by_text("Nothing has been read yet.", exact=True).wait_for()
    stage.page.evaluate("delete window.MediaRecorder")
    lab.text_to_read = "to be or not to be"
    lab.run()
    lab.view.show()
    stage.deliver()
    stage.page.get_by_role("button", name="WebM").click()
    stage.page.get_by_text("This browser records no WebM: save the run as .gif instead.").wait_for()
    lab.close()
