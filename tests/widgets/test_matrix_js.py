"""``static/matrix/matrix.js`` in a real Chromium with the real Python view behind it: pixels, keys, tiles, cleanup."""

from __future__ import annotations

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from atlas_kit.widgets import MatrixView, colour
from tests.widgets.conftest import Stage


def shade(index, colours="diverging", dark=False):
    return tuple(colour.palette(colours, dark)[index].tolist())


LOW, ZERO, HIGH = (shade(index) for index in (0, colour.SHADES // 2, colour.SHADES - 1))


def status(stage):
    return stage.page.locator(".atlas-matrix-status").inner_text()


def facts(stage):
    return stage.page.locator(".atlas-matrix-facts").inner_text()


def canvas(stage):
    return stage.page.locator(".atlas-matrix-picture canvas").first


def colours_of(stage):
    """Return every colour on the canvas."""
    found = stage.page.evaluate(
        """() => {
            const c = document.querySelector("canvas");
            const bytes = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
            const found = [...new Set(new Uint32Array(bytes.buffer))];
            return found.map((pixel) => [pixel & 255, pixel >> 8 & 255, pixel >> 16 & 255]);
        }"""
    )
    return {tuple(found) for found in found}


def press(stage, *keys):
    canvas(stage).focus()
    for key in keys:
        stage.page.keyboard.press(key)
        stage.settle()


def asked(stage, kind):
    sent = stage.page.evaluate("window.sent ?? []")
    return [message for message in sent if message["kind"] == kind]


@pytest.fixture
def large():
    """A matrix of 2,000 x 1,500 whose numbers say where they are."""
    return np.arange(3_000_000, dtype=np.float32).reshape(2000, 1500)


# --- pixels --------------------------------------------------------------------------------------------------


def test_pixels_have_the_tables_colours(stage: Stage):
    stage.show(MatrixView(np.array([[-1, 0], [1, np.nan]]), vmax=1))
    assert [stage.pixel(2, 2), stage.pixel(70, 2), stage.pixel(2, 70)] == [LOW, ZERO, HIGH]
    assert "1 NaN" in facts(stage)


@pytest.mark.parametrize("transform", colour.TRANSFORMS)
@pytest.mark.parametrize("colours", colour.COLOURS)
@pytest.mark.parametrize("dark", [False, True])
def test_the_live_picture_agrees_with_the_saved_one(stage: Stage, transform, colours, dark):
    values = np.linspace(-1.5, 1.5, 20, dtype=np.float32)[None]
    stage.show(MatrixView(values, transform=transform, colours=colours, vmax=1), dark=dark)
    width = canvas(stage).evaluate("c => c.width")
    found = [stage.pixel(round((i + 0.5) * width / 20), 3) for i in range(20)]
    table = colour.palette(colours, dark).astype(int)
    expected = table[colour.indices(values, 1.0, transform, colours)[0]]
    assert np.abs(np.array(found) - expected).max() <= 4  # at most the next shade: float32


def test_nan_and_infinities_are_checks_of_marks(stage: Stage):
    stage.show(MatrixView(np.array([[np.nan, np.inf, -np.inf, 0.0]])))
    table = colour.palette()
    for marks in ((249, 250), (251, 252), (253, 254)):
        assert {tuple(table[mark].tolist()) for mark in marks} <= colours_of(stage)
    assert "1 NaN" in facts(stage)
    assert "2 infinite" in facts(stage)
    assert "1 NaN, 2 infinite" in canvas(stage).get_attribute("aria-label")


@pytest.mark.parametrize("density", [1, 2])
def test_one_outlier_in_67_million_is_on_the_screen_at_the_extreme(browser: Browser, density):
    matrix = np.zeros((8192, 8192), np.float32)
    matrix[4321, 7777] = -5
    context = browser.new_context(device_scale_factor=density)
    stage = Stage(context.new_page()).show(MatrixView(matrix))
    assert canvas(stage).evaluate("c => [c.width, c.height]") == [320 * density, 320 * density]
    assert colours_of(stage) == {ZERO, LOW}
    context.close()


def test_a_theme_change_is_seen(stage: Stage):
    stage.show(MatrixView(np.zeros((2, 2))))
    assert stage.pixel(5, 5) == ZERO
    stage.page.evaluate("() => { document.body.style.color = '#eee'; document.body.dataset.theme = 'dark' }")
    stage.settle()
    assert stage.pixel(5, 5) == shade(colour.SHADES // 2, dark=True)


def test_bytes_that_start_anywhere_are_read(stage: Stage):
    stage.show(MatrixView(np.zeros((2, 2)), vmax=1))
    stage.page.evaluate(
        """() => { const bytes = new DataView(new ArrayBuffer(17), 1, 16);
        for (let i = 0; i < 4; i++) bytes.setFloat32(4 * i, 1, true);
        model.set("tile", bytes); model.set("frame", {...model.get("frame"), number: 7}); }"""
    )
    stage.settle()
    assert stage.pixel(5, 5) == HIGH


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_an_empty_matrix_is_said_to_be_empty(stage: Stage, shape):
    stage.show(MatrixView(np.zeros(shape)))
    press(stage, "ArrowDown", "+", "End")
    assert status(stage) == "This matrix is empty."


# --- the keyboard and the mouse ------------------------------------------------------------------------------


def test_keys_move_the_cursor_and_the_status_has_the_exact_value(stage: Stage, large):
    stage.show(MatrixView(large, rows="token", columns="feature"))
    press(stage, "ArrowDown", "ArrowRight", "ArrowRight")
    assert stage.widget.cursor == (1, 2)
    assert status(stage).startswith("token 1, feature 2: 1502.0")
    assert "strongest of these 4 × 3" in status(stage)
    assert stage.page.locator("[aria-live]").inner_text() == status(stage)
    press(stage, "End")
    assert stage.widget.cursor == (1, 1499)
    press(stage, "Control+End")
    assert stage.widget.cursor == (1999, 1499)
    press(stage, "Home", "PageUp")
    assert stage.widget.cursor == (0, 0)
    press(stage, "ArrowUp", "ArrowLeft")
    assert stage.widget.cursor == (0, 0)


def test_keys_zoom_pan_and_fit(stage: Stage, large):
    stage.show(MatrixView(large))
    press(stage, "+")
    assert stage.widget.viewport == [0.25, 0.25, 1000.25, 750.25]  # around the cursor
    press(stage, "Shift+ArrowDown", "Shift+ArrowRight")
    assert stage.widget.viewport == [250.25, 187.75, 1250.25, 937.75]
    assert "row 250–1250" in facts(stage)
    press(stage, "-")
    assert stage.widget.viewport == []
    press(stage, "+", "+", "0")
    assert stage.widget.viewport == []
    assert stage.widget.cursor == (0, 0)


def test_the_view_follows_the_cursor(stage: Stage, large):
    stage.show(MatrixView(large))
    press(stage, "+", "+", "+", "End")
    _, left, _, right = stage.widget.viewport
    assert left <= stage.widget.cursor[1] < right


def test_the_notebooks_own_keys_do_not_get_in_the_way(stage: Stage):
    stage.show(MatrixView(np.zeros((3, 3))))
    stage.page.evaluate(
        "() => document.addEventListener('keydown', (e) => (window.leaked = [...window.leaked ?? [], e.key]))"
    )
    press(stage, "ArrowDown", "0", "d", "Control+b")
    assert stage.page.evaluate("window.leaked") == ["Control", "b"]


@pytest.mark.parametrize("value", [0.1, 1 / 3, -1e-20, 16777216.0, np.nan, np.inf, -np.inf])
def test_float32_values_are_written_as_short_as_python_does(stage: Stage, value):
    stage.show(MatrixView(np.array([[value]], np.float32)))
    assert asked(stage, "value") == []
    written = status(stage).removeprefix("row 0, column 0: ")
    assert np.float32(written) == np.float32(value) or np.isnan(value)
    assert len(written) <= len(str(np.float32(value)))


def test_hovering_reads_values_without_moving_the_cursor(stage: Stage, large):
    stage.show(MatrixView(large))
    box = canvas(stage).bounding_box()
    stage.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.25)
    stage.settle()
    assert status(stage).startswith("row 500, column 750: 750750.0")
    assert stage.widget.cursor == (0, 0)
    stage.page.mouse.move(0, 0)
    stage.settle()
    assert status(stage).startswith("row 0, column 0:")


def test_a_click_sets_the_cursor_and_a_drag_pans(stage: Stage, large):
    stage.show(MatrixView(large))
    canvas(stage).click(position={"x": 120, "y": 160})
    stage.settle()
    assert stage.widget.cursor == (1000, 750)
    press(stage, "+")
    before = stage.widget.viewport
    box = canvas(stage).bounding_box()
    stage.page.mouse.move(box["x"] + 120, box["y"] + 160)
    stage.page.mouse.down()
    stage.page.mouse.move(box["x"] + 60, box["y"] + 80, steps=4)
    stage.page.mouse.up()
    stage.settle()
    assert stage.widget.viewport == [before[0] + 250, before[1] + 187.5, before[2] + 250, before[3] + 187.5]
    assert stage.widget.cursor == (1000, 750)


def test_the_wheel_scrolls_the_page_until_the_picture_has_the_focus(stage: Stage, large):
    stage.show(MatrixView(large))
    canvas(stage).hover()
    stage.page.mouse.wheel(0, -400)
    stage.settle()
    assert stage.widget.viewport == []
    canvas(stage).focus()
    stage.page.mouse.wheel(0, -400)
    stage.settle()
    top, left, bottom, right = stage.widget.viewport
    assert (bottom - top, right - left) == (1000, 750)
    assert top < 1000 < bottom
    assert left < 750 < right


def test_a_very_long_matrix_is_zoomed_along_its_length_first(stage: Stage):
    stage.show(MatrixView(np.zeros((100_000, 64), np.float32)))
    press(stage, "+", "+")
    assert stage.widget.viewport == [0.375, 0, 25_000.375, 64]


def test_buttons_have_names_and_do_the_same(stage: Stage, large):
    stage.show(MatrixView(large))
    stage.page.get_by_role("button", name="Zoom in").click()
    stage.settle()
    assert stage.widget.viewport == [500, 375, 1500, 1125]
    stage.page.get_by_role("button", name="Show the whole matrix").click()
    scale = stage.page.get_by_role("button", name="Logarithmic colour scale")
    expect(scale).to_have_attribute("aria-pressed", "false")
    scale.click()
    stage.settle()
    expect(scale).to_have_attribute("aria-pressed", "true")
    assert (stage.widget.viewport, stage.widget.transform) == ([], "symlog")


def test_numbers_are_written_into_large_cells(stage: Stage):
    stage.show(MatrixView(np.zeros((100, 100)), vmax=1))
    assert colours_of(stage) == {ZERO}
    press(stage, "+", "+", "+", "+", "+")
    assert len(colours_of(stage)) > 5  # text has edges


# --- tiles ---------------------------------------------------------------------------------------------------


def test_zooming_in_asks_for_a_tile_and_shows_exact_values(stage: Stage, large):
    stage.show(MatrixView(large))
    assert asked(stage, "tile") == []
    press(stage, "+", "+", "+")
    boxes = [message["box"] for message in asked(stage, "tile")]
    assert boxes
    assert stage.widget.get_state("frame")["frame"]["block"] == (1, 1)
    values = len(asked(stage, "value"))
    press(stage, "ArrowRight")
    assert status(stage) == "row 0, column 1: 1"
    assert len(asked(stage, "value")) == values  # the tile knew


def test_a_tile_that_came_before_is_not_asked_for_again(stage: Stage, large):
    stage.show(MatrixView(large))
    press(stage, "+", "+", "+")
    count = len(asked(stage, "tile"))
    press(stage, "0", "+", "+", "+", "0")
    assert len(asked(stage, "tile")) == count


def test_a_busy_kernel_is_asked_once_and_then_for_the_newest(stage: Stage, large):
    stage.show(MatrixView(large))
    stage.silent = True
    press(stage, "+", "+", "+", "Shift+ArrowDown", "Shift+ArrowDown", "Shift+ArrowDown", "Shift+ArrowDown")
    assert len(asked(stage, "tile")) == 1
    stage.wake()
    stage.settle()
    _, last = asked(stage, "tile")
    top, left, bottom, right = last["box"]
    viewport = stage.widget.viewport
    assert top <= viewport[0]
    assert bottom >= viewport[2]
    assert [top, left, bottom, right] == list(stage.widget.get_state("frame")["frame"]["box"])


def test_an_update_while_zoomed_in_brings_the_part_in_view(stage: Stage, large):
    stage.show(MatrixView(large, vmax=1))
    press(stage, "+", "+", "+")
    count = len(asked(stage, "tile"))
    stage.widget.update(-large)
    assert stage.deliver() == 1
    assert len(asked(stage, "tile")) == count
    assert stage.pixel(200, 200) == LOW


# --- frames --------------------------------------------------------------------------------------------------


def test_every_frame_is_acknowledged_once_it_is_drawn(stage: Stage):
    stage.show(MatrixView(np.zeros((4, 4)), vmax=1))
    for step in range(1, 4):
        stage.widget.update(np.full((4, 4), step))
        assert stage.deliver() == 1
        assert stage.widget.ready
        assert stage.pixel(5, 5) == HIGH
    assert [message["number"] for message in asked(stage, "shown")] == [0, 1, 2, 3]


def test_a_fast_learner_sends_one_frame_and_then_the_newest(stage: Stage, monkeypatch):
    monkeypatch.setattr("atlas_kit.widgets.frame_gate.PATIENCE", 1e9)
    stage.show(MatrixView(np.zeros((4, 4)), vmax=1))
    stage.silent = True
    for step in range(100):
        stage.widget.update(np.full((4, 4), 1.0 if step == 99 else -1.0))
    assert stage.deliver() == 1
    assert stage.pixel(5, 5) == LOW
    stage.wake()
    assert stage.pixel(5, 5) == HIGH


def test_a_values_answer_of_an_older_matrix_is_not_shown(stage: Stage):
    stage.show(MatrixView(np.full((2, 2), 0.25)))
    assert status(stage) == "row 0, column 0: 0.25"
    stage.widget.update(np.full((2, 2), 0.75))
    stage.deliver()
    assert status(stage) == "row 0, column 0: 0.75"


def test_two_views_of_one_model_show_the_same(stage: Stage, large):
    stage.show(MatrixView(large), views=2)
    press(stage, "+")
    pictures = stage.page.evaluate(
        "() => [...document.querySelectorAll('.atlas-matrix-picture canvas')].map((c) => c.toDataURL())"
    )
    assert len(pictures) == 2
    assert pictures[0] == pictures[1]


def test_an_error_is_a_sentence_in_the_view(stage: Stage):
    stage.show(MatrixView(np.ones((2, 2))))
    stage.widget.error = "<b>a.gguf</b>: the file is gone"
    stage.deliver()
    assert stage.page.get_by_role("alert").inner_text() == "<b>a.gguf</b>: the file is gone"


def test_a_view_that_ends_leaves_nothing(stage: Stage):
    stage.show(MatrixView(np.ones((2, 2))), views=2)
    per_view = stage.page.evaluate("listening()") / 2
    assert per_view > 0
    stage.page.evaluate("endings[0]()")
    assert stage.page.evaluate("listening()") == per_view
    stage.page.evaluate("endings[1]()")
    assert stage.page.evaluate("listening()") == 0
    assert stage.page.locator(".atlas-matrix").count() == 0
    stage.widget.update(np.zeros((2, 2)))
    assert stage.deliver() == 1  # and nothing raises


def test_a_narrow_page_gets_a_smaller_picture(stage: Stage):
    stage.page.set_viewport_size({"width": 280, "height": 600})
    stage.show(MatrixView(np.ones((512, 512))))
    assert stage.page.evaluate("document.documentElement.scrollWidth") <= 280
    stage.page.set_viewport_size({"width": 1280, "height": 900})
    stage.settle()
    assert canvas(stage).bounding_box()["width"] == 320


# --- when it is drawn ----------------------------------------------------------------------------------------

#: The clock stands still, frames of the screen come when they are told to, and pictures are counted.
HELD = """() => {
    const put = CanvasRenderingContext2D.prototype.putImageData;
    CanvasRenderingContext2D.prototype.putImageData = function(...given) {
        if (given[0].width > 1) window.pictures += 1;
        return put.apply(this, given);
    };
    window.pictures = 0;
    window.time = performance.now() + 1000;
    performance.now = () => window.time;
    window.held = new Map();
    window.requestAnimationFrame = (action) => { held.set(held.size + 1, action); return held.size; };
    window.cancelAnimationFrame = (number) => held.delete(number);
    window.screen_ = () => { const all = [...held.values()]; held.clear(); all.forEach((action) => action(time)); };
}"""


def arrives(stage, number):
    """Let a matrix come whose numbers are all the same; return how many pictures were drawn, and its pixel."""
    while not stage.widget.ready:  # the last one's acknowledgement is on its way
        stage.page.wait_for_timeout(10)
    stage.widget.update(np.full((2, 2), number), vmax=4 + number)  # another limit, too
    stage.deliver_at_once()
    return stage.page.evaluate("async () => { await null; return pictures; }"), stage.pixel(5, 5)


def test_what_comes_is_drawn_at_once_but_once_for_each_frame_of_the_screen(stage: Stage):
    stage.show(MatrixView(np.zeros((2, 2)), vmax=4))
    stage.page.evaluate(HELD)
    drawn, first = arrives(stage, 1)
    assert drawn == 1
    assert first != ZERO
    assert stage.page.evaluate("held.size") == 0  # nor is it drawn again for the limit that came with it
    drawn, shown = arrives(stage, 2)
    assert (drawn, shown) == (1, first)  # too soon: the screen has not shown the first
    stage.page.evaluate("screen_()")
    assert (stage.page.evaluate("pictures"), stage.pixel(5, 5) != first) == (2, True)
    stage.page.evaluate("() => { window.time += 17; }")
    assert arrives(stage, 3)[0] == 3


def test_what_comes_while_nobody_looks_waits_for_the_screen(stage: Stage):
    stage.show(MatrixView(np.zeros((2, 2)), vmax=4))
    stage.page.evaluate(HELD)
    stage.page.evaluate("() => Object.defineProperty(document, 'visibilityState', { get: () => 'hidden' })")
    assert arrives(stage, 1) == (0, ZERO)
    stage.page.evaluate("screen_()")
    assert stage.page.evaluate("pictures") == 1
