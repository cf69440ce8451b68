"""MatrixView without a browser: what is sent and when, exact values, links, and the pictures that stay."""

from __future__ import annotations

import base64
import io
import threading
import weakref

import numpy as np
import pytest
from matplotlib.image import imread

from atlas_kit.errors import FileAccessError, InvalidParamError
from atlas_kit.widgets import MatrixView, colour, frame_gate
from tests.waiting import LONG, until_gone
from tests.widgets.conftest import receive, wired
from tests.widgets.test_sources import Sampled


def shown(view, number):
    """Acknowledge a frame, as the browser does."""
    receive(view, {"method": "custom", "content": {"kind": "shown", "number": number}})


def ask(view, **content):
    receive(view, {"method": "custom", "content": content})


def tile_of(message):
    frame = message["state"]["frame"]
    return np.frombuffer(message["buffers"][0], "<f4").reshape(frame["size"])


@pytest.fixture
def clock(monkeypatch):
    """Stop the time that frames are waited for."""
    now = [100.0]
    monkeypatch.setattr(frame_gate.time, "monotonic", lambda: now[0])
    return now


# --- messages ------------------------------------------------------------------------------------------------


def test_an_update_is_one_message_with_shape_and_numbers():
    view = MatrixView(np.zeros((4, 4)))
    wire = wired(view)
    view.update(np.arange(6, dtype=np.float32).reshape(2, 3) - 4)
    messages = [message for message in wire.take() if "frame" in message["state"]]
    (message,) = messages
    assert message["buffer_paths"] == [["tile"]]
    assert message["state"]["frame"]["shape"] == [2, 3]
    assert message["state"]["limit"] == 4
    assert tile_of(message).tolist() == [[-4, -3, -2], [-1, 0, 1]]


def test_an_update_of_the_same_shape_sends_nothing_else():
    view = MatrixView(np.zeros((4, 4)))
    wire = wired(view)
    view.update(np.ones((4, 4)))
    assert len(wire.take()) == 1


def test_a_tile_has_512_rows_and_columns_at_most():
    view = MatrixView(np.ones((5000, 700), np.float32))
    wire = wired(view)
    view.update(np.ones((5000, 700), np.float32))
    ask(view, kind="shown", number=1)
    ask(view, kind="tile", box=[100, 0, 2100, 700])
    whole, part = wire.take()
    assert tile_of(whole).shape == (500, 350)
    assert tile_of(part).shape == (500, 350)
    assert part["state"]["frame"]["box"] == [100, 0, 2100, 700]
    assert part["state"]["frame"]["block"] == [4, 2]


def test_a_source_may_give_fewer_rows_than_asked_for():
    view = MatrixView(Sampled())
    frame = view.get_state("frame")["frame"]
    assert (frame["size"], frame["block"], frame["dtype"]) == ((100, 10), (10, 1), "Q4_0")
    assert "at least 10 NaN" in view.text()
    assert view.value(999, 9) == 9999


def test_a_box_outside_the_matrix_is_cut_to_it():
    view = MatrixView(np.ones((5, 5)))
    wire = wired(view)
    ask(view, kind="tile", box=[-9, 2, 99, 3])
    assert wire.take()[0]["state"]["frame"]["box"] == [0, 2, 5, 3]


@pytest.mark.parametrize(
    "box",
    [None, 7, "x", [], [1], [0] * 4, [3, 3, 2, 9], [9] * 4, [2**70] * 4, ["a"] * 4, [0, 0, float("inf"), 3]],
)
def test_a_box_that_is_none_is_a_sentence_and_changes_nothing(box):
    view = MatrixView(np.ones((5, 5)))
    wire = wired(view)
    ask(view, kind="tile", box=box)
    assert view.error
    shown(view, 1)
    wire.take()
    view.update(np.ones((5, 5)))
    assert wire.take()[0]["state"]["frame"]["box"] == [0, 0, 5, 5]


# --- back-pressure -------------------------------------------------------------------------------------------


def test_only_the_newest_follows_an_acknowledgement(clock):
    view = MatrixView(np.zeros((1, 1)))
    wire = wired(view)
    for step in range(1, 100):
        view.update([[step]])
    (first,) = wire.take()
    assert tile_of(first) == 1
    assert not view.ready
    shown(view, first["state"]["frame"]["number"])
    (second,) = wire.take()
    assert tile_of(second) == 99
    shown(view, second["state"]["frame"]["number"])
    assert wire.take() == []
    assert view.ready


def test_a_browser_that_went_away_is_waited_for_two_seconds(clock):
    view = MatrixView(np.zeros((1, 1)))
    wire = wired(view)
    view.update([[1]])
    view.update([[2]])
    clock[0] += frame_gate.PATIENCE + 0.1
    view.update([[3]])
    assert [float(tile_of(message)[0, 0]) for message in wire.take()] == [1, 3]


def test_an_acknowledgement_of_an_older_frame_opens_nothing(clock):
    view = MatrixView(np.zeros((1, 1)))
    wire = wired(view)
    view.update([[1]])
    shown(view, 1)
    view.update([[2]])
    view.update([[3]])
    shown(view, 1)
    assert len(wire.take()) == 2


def test_a_page_that_is_loaded_again_gets_the_newest(clock):
    view = MatrixView(np.zeros((1, 1)))
    wired(view)
    for step in (1, 2):
        view.update([[step]])
    state = view.get_state()
    assert np.frombuffer(state["tile"], "<f4") == 2
    assert state["frame"]["version"] == 3


def test_it_can_be_read_while_a_smaller_matrix_comes():
    view = MatrixView(np.arange(9.0).reshape(3, 3))
    view.cursor = (2, 2)
    seen = []
    view.observe(lambda _: seen.append(view.text()), "viewport")
    view.viewport = [0, 0, 2, 2]
    view.update([[7.0, 8.0]])  # sets the part in view before the cursor
    assert seen[-1].endswith("row 0, column 1: 8.0")


def test_updates_from_many_threads_never_mix_two_matrices():
    view = MatrixView(np.zeros((1, 1)))
    wire = wired(view)

    def learn(side):
        for _ in range(50):
            view.update(np.full((side, side), side, np.float32))
            shown(view, 10**9)

    threads = [threading.Thread(target=learn, args=(side,)) for side in (3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    frames = [message for message in wire.take() if "frame" in message["state"]]
    assert frames
    for message in frames:
        tile, (side, _) = tile_of(message), message["state"]["frame"]["shape"]
        assert tile.shape == (side, side)
        assert (tile == side).all()


# --- values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "text"),
    [
        (np.array([[0.1]], np.float32), "0.1"),
        (np.array([[0.1]], np.float16), "0.1"),
        (np.array([[1 / 3]]), "0.3333333333333333"),
        (np.array([[2**63 - 1]]), "9223372036854775807"),
        (np.array([[True]]), "True"),
        (np.array([[np.nan]]), "nan"),
    ],
)
def test_values_are_those_of_the_matrix_and_not_of_the_tile(matrix, text):
    view = MatrixView(matrix)
    wire = wired(view)
    ask(view, kind="value", row=0, column=0)
    (message,) = wire.take()
    assert message["content"] == {"kind": "value", "version": 1, "row": 0, "column": 0, "text": text}


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_numbers_that_float32_cannot_hold_are_shown_all_the_same(scale):
    view = MatrixView(np.array([[-1.0, 0.5]]) * scale)
    wire = wired(view)
    view.update(view.matrix)
    (message,) = wire.take()
    unit = message["state"]["frame"]["unit"]
    assert (tile_of(message).astype(float) * unit / message["state"]["limit"]).tolist() == [[-1, 0.5]]


def test_nan_and_infinity_are_counted_and_do_not_set_the_scale():
    matrix = np.zeros((600, 600), np.float32)
    matrix[1, 1:4] = np.nan
    matrix[5, 5], matrix[6, 6], matrix[7, 7] = np.inf, -np.inf, -8
    view = MatrixView(matrix)
    frame = view.get_state("frame")["frame"]
    assert (frame["nan"], frame["infinite"]) == (3, 2)
    assert view.get_state("limit")["limit"] == 8
    assert "3 NaN, 2 infinite" in view.text()


def test_a_place_outside_the_matrix_is_a_sentence():
    with pytest.raises(InvalidParamError, match="no row 2, column 0"):
        MatrixView(np.ones((2, 2))).value(2, 0)


class Lost:
    """A source whose file went away."""

    shape = (4, 4)
    gone = False

    def tile(self, y0, y1, x0, x1, rows, cols):
        if self.gone:
            raise FileAccessError("the file is gone", path="a.gguf")
        return np.ones((y1 - y0, x1 - x0), np.float32)


def test_a_source_that_fails_says_so_in_the_view_and_recovers():
    source = Lost()
    view = MatrixView(source)
    wired(view)
    source.gone = True
    ask(view, kind="value", row=0, column=0)
    assert view.error == "a.gguf: the file is gone"
    source.gone = False
    ask(view, kind="value", row=0, column=0)
    assert view.error == ""


def test_the_cursor_gives_the_exact_value_and_stays_inside():
    view = MatrixView(np.arange(6).reshape(2, 3))
    seen = []
    view.on_cursor(lambda row, column, value: seen.append((row, column, int(value))))
    receive(view, {"method": "update", "state": {"cursor": [1, 1]}, "buffer_paths": []})
    view.cursor = (9, 9)
    assert seen == [(1, 1, 4), (1, 2, 5)]


def test_another_shape_starts_from_the_whole_matrix():
    view = MatrixView(np.ones((10, 10)))
    view.viewport, view.cursor = [2, 2, 4, 4], (9, 9)
    ask(view, kind="tile", box=[1, 1, 5, 5])
    view.update(np.ones((3, 3)))
    assert (view.viewport, view.cursor) == ([], (0, 0))
    assert view.get_state()["frame"]["box"] == (0, 0, 3, 3)


# --- arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{"colours": "jet"}, {"transform": "log"}, {"vmax": 0}, {"vmax": -1}])
def test_arguments_that_make_no_sense_are_refused(arguments):
    with pytest.raises(InvalidParamError):
        MatrixView(np.ones((2, 2)), **arguments)


def test_a_matrix_that_is_none_leaves_the_old_one():
    view = MatrixView(np.ones((2, 2)))
    with pytest.raises(InvalidParamError):
        view.update(np.ones((2, 2, 2)))
    assert view.shape == (2, 2)


def test_a_limit_is_kept_until_another_is_given():
    view = MatrixView(np.ones((2, 2)), vmax=5)
    wire = wired(view)
    view.update(np.full((2, 2), 9))
    assert wire.take()[-1]["state"]["limit"] == 5
    view.vmax = None
    assert wire.take()[-1]["state"]["limit"] == 9
    with pytest.raises(InvalidParamError):
        view.vmax = float("nan")


def test_a_part_that_is_none_is_refused():
    view = MatrixView(np.ones((4, 4)))
    with pytest.raises(InvalidParamError, match="not a part"):
        view.viewport = [3, 0, 1, 2]


# --- links ---------------------------------------------------------------------------------------------------


def test_linked_views_share_scale_part_cursor_and_transform():
    small, large = MatrixView(np.ones((4, 4))), MatrixView(np.full((4, 4), -7.0))
    wires = wired(small), wired(large)
    MatrixView.link(small, large)
    assert [message["state"]["limit"] for message in wires[0].take()] == [7]
    receive(small, {"method": "update", "state": {"viewport": [0, 0, 2, 2]}, "buffer_paths": []})
    small.cursor, large.transform = (1, 3), "symlog"
    assert (large.viewport, large.cursor, small.transform) == ([0, 0, 2, 2], (1, 3), "symlog")


def test_a_linked_views_update_rescales_the_others_with_one_small_message():
    first, second = MatrixView(np.ones((4, 4))), MatrixView(np.ones((4, 4)))
    MatrixView.link(first, second)
    wires = wired(first), wired(second)
    first.update(np.full((4, 4), 3.0))
    (update,), (rescale,) = wires[0].take(), wires[1].take()
    assert update["state"]["limit"] == 3
    assert rescale["state"] == {"limit": 3.0}


def test_an_unlinked_view_has_its_own_scale_again():
    first, second = MatrixView(np.ones((4, 4))), MatrixView(np.full((4, 4), 2.0))
    MatrixView.link(first, second)
    wire = wired(first)
    first.unlink()
    assert wire.take()[-1]["state"]["limit"] == 1
    second.cursor = (2, 2)
    assert first.cursor == (0, 0)
    assert second.limit_in_use == 2


def test_a_second_link_replaces_the_first():
    a, b, c = (MatrixView(np.full((2, 2), size)) for size in (1.0, 2.0, 3.0))
    MatrixView.link(a, b)
    MatrixView.link(b, c)
    assert [view.limit_in_use for view in (a, b, c)] == [1, 3, 3]


def test_linked_views_may_learn_in_different_threads():
    views = [MatrixView(np.ones((8, 8))) for _ in range(3)]
    MatrixView.link(*views)
    for view in views:
        wired(view)

    def learn(view, seed):
        rng = np.random.default_rng(seed)
        for _ in range(100):
            view.update(rng.standard_normal((8, 8)))
            shown(view, 10**9)

    threads = [threading.Thread(target=learn, args=(view, i), daemon=True) for i, view in enumerate(views)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive(), "the views wait for each other"


def test_a_closed_view_is_let_go():
    views = [MatrixView(np.ones((2, 2))) for _ in range(2)]
    MatrixView.link(*views)
    views[0].on_cursor(print)
    gone = weakref.ref(views[0])
    views[0].close()
    del views[0]
    until_gone(gone)


# --- pictures that stay --------------------------------------------------------------------------------------


def picture_of(view):
    return np.rint(imread(io.BytesIO(view.png()), format="png")[..., :3] * 255).astype(int)


def test_an_outlier_is_in_the_saved_picture_in_the_strongest_colour():
    matrix = np.zeros((8192, 8192), np.float32)
    matrix[5000, 100] = -1e3
    strongest = colour.palette()[0]
    assert (picture_of(MatrixView(matrix))[:, :200] == strongest).all(-1).any()


def test_all_forms_are_there_and_html_has_the_bars_numbers():
    view = MatrixView(np.array([[1.5, -2.5]]), title="W <0>")
    data, _ = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert base64.b64decode(data["image/png"]) == view.png()
    assert "W &lt;0&gt;: 1 x 2 float64" in data["text/html"]
    assert ">-2.5<" in data["text/html"]
    assert data["text/plain"].startswith("W <0>: 1 x 2 float64\nlargest magnitude 2.5")


@pytest.mark.parametrize("shape", [(1, 1), (0, 5), (5, 0), (1, 3000), (3000, 1), (2, 2)])
def test_every_shape_has_every_form(shape):
    view = MatrixView(np.ones(shape), title="W")
    assert str(shape[0]) in view.text().replace(",", "")
    assert picture_of(view).size
    assert view.html().startswith('<section class="ak">')
    assert view.html().count("<figure") == 1
    view.figure().savefig(io.BytesIO(), format="png")


@pytest.mark.parametrize("transform", colour.TRANSFORMS)
@pytest.mark.parametrize("colours", colour.COLOURS)
def test_a_figure_has_a_colour_bar_with_the_views_limit(transform, colours):
    values = np.array([[1.0, -4.0], [np.nan, np.inf]])
    figure = MatrixView(values, title="W", rows="token", transform=transform, colours=colours).figure()
    picture, bar = figure.axes
    assert (picture.get_title(), picture.get_ylabel()) == ("W", "token")
    assert picture.images[0].get_clim() == ((0 if colours == "sequential" else -4), 4)
    assert bar.get_yticklabels()[-1].get_text() == "4"
