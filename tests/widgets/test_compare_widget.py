"""MemoryCompare without a browser: what it finds, what it says, and what it leaves alone."""

from __future__ import annotations

import doctest
import threading
import weakref

import numpy as np
import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama import AtlasSession, AtlasSettings, FakeEngine
from atlas_kit.llama.snapshots import Snapshots
from atlas_kit.memory import Memory, MemoryConfig
from atlas_kit.persistence.snapshot import load_memory
from atlas_kit.widgets import MemoryCompare
from atlas_kit.widgets.compare import behaviour_pane
from atlas_kit.widgets.newest import Newest
from tests.conftest import SAMPLES
from tests.waiting import LONG, until_gone

SMALL = AtlasSettings(features="polynomial", window_size=64, memory_dim=16, omega_window=8, chunk_size=4)
WHITENED = AtlasSettings(window_size=64, memory_dim=16, chunk_size=4)
ONE = "to be or not to be, that is the question. " * 6
TWO = "it was the best of times, it was the worst of times. " * 6
PROBE = "it was the worst question of times, or not to be"


@pytest.fixture
def engine():
    return FakeEngine(n_ctx=256, n_sequences=3)


@pytest.fixture
def pair(engine):
    with AtlasSession(engine, SMALL) as a, AtlasSession(engine, SMALL) as b:
        a.feed(ONE)
        b.feed(TWO)
        yield a, b


@pytest.fixture
def files(pair, tmp_path):
    for session, name in zip(pair, ("one.atlas", "two.atlas"), strict=True):
        session.save(tmp_path / name, context=False)
    return str(tmp_path / "one.atlas"), str(tmp_path / "two.atlas")


def done(compare):
    assert compare.wait(LONG)
    return compare


def test_examples():
    assert not doctest.testmod(behaviour_pane).failed


# --- which table opens --------------------------------------------------------------------------------------


def test_the_first_table_with_something_in_it_opens_once(pair):
    a, b = pair
    compare = done(MemoryCompare(a, b))
    assert (bool(compare.window.rows), compare._tabs.selected_index) == (True, 0)
    learned = [str(SAMPLES / "atlas" / name) for name in ("learned.atlas", "learned-more.atlas")]
    compare = done(MemoryCompare(*learned))
    assert not compare.window.rows
    assert compare.settings.rows
    assert compare._tabs.selected_index == 1
    compare._tabs.selected_index = 0  # somebody chooses
    compare._show()
    assert done(compare)._tabs.selected_index == 0


def test_a_table_that_somebody_chose_before_there_was_anything_stays(pair):
    a, _ = pair
    compare = done(MemoryCompare(a, a))
    assert not any(table.rows for table in compare._tabs.children)
    compare._tabs.selected_index = 2
    compare.window.rows = [{"id": "1", "token": "a", "a": 1, "b": 2, "difference": 1}]
    compare._open_table()
    assert compare._tabs.selected_index == 2


# --- two memories -------------------------------------------------------------------------------------------


def test_matrices_table_and_spectra_are_the_numbers(pair):
    a, b = pair
    compare = done(MemoryCompare(a, b))
    x, y = (session.memory.state.parameters["W"] for session in pair)
    for view, matrix in zip(compare.views, (x, y, y - x), strict=True):
        np.testing.assert_array_equal(view.matrix, matrix)
    limits = {view.limit_in_use for view in compare.views}
    assert limits == {float(max(np.abs(m).max() for m in (x, y, y - x)))}
    (row,) = compare.table.rows
    assert row["relative"] == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x))
    for key, name, matrix in (("a", "rank_a", x), ("b", "rank_b", y), ("d", "rank_d", y - x)):
        (series,) = (one for one in compare.spectra.series if one["key"] == key)
        np.testing.assert_allclose(series["values"], np.linalg.svd(matrix, compute_uv=False), atol=1e-5)
        share = np.array(series["values"]) / np.sum(series["values"])
        rank = np.exp(-(share[share > 0] * np.log(share[share > 0])).sum())
        assert series["rank"] == row[name] == pytest.approx(rank, rel=1e-4)
    assert compare.spectra.busy == ""


def test_the_three_share_zoom_and_cursor(pair):
    compare = done(MemoryCompare(*pair))
    compare.views[0].cursor = (3, 2)
    compare.views[2].viewport = [1.0, 1.0, 5.0, 5.0]
    assert {view.cursor for view in compare.views} == {(3, 2)}
    assert all(view.viewport == [1, 1, 5, 5] for view in compare.views)


def test_sessions_are_copied_and_refreshed_when_asked(pair):
    a, b = pair
    compare = done(MemoryCompare(a, b))
    before = compare.b.matrices["W"].copy()
    behaviour = compare.compare_behaviour(PROBE)
    b.feed(ONE)
    np.testing.assert_array_equal(compare.b.matrices["W"], before)
    np.testing.assert_array_equal(compare.compare_behaviour().logprob, behaviour.logprob)
    compare.refresh()
    done(compare)
    np.testing.assert_array_equal(compare.b.matrices["W"], b.memory.state.parameters["W"])
    np.testing.assert_allclose(
        compare.spectrum("b").spectrum,
        np.linalg.svd(b.memory.state.parameters["W"], compute_uv=False),
        atol=1e-5,
    )


def test_memories_on_whitened_states_say_when_there_is_nothing_to_compare_yet():
    engine = FakeEngine(n_ctx=1024, n_sequences=2)
    with AtlasSession(engine, WHITENED) as a, AtlasSession(engine, WHITENED) as b:
        a.feed(ONE)
        b.feed(TWO)
        compare = done(MemoryCompare(a, b))
        assert compare._menu.options[0] == compare.matrix == "W"
        assert compare._notes.value.count("has learned nothing yet: the first 512 tokens only say") == 2
        assert "A has learned nothing yet" in compare.text()
        assert [(one["rank"], max(one["values"])) for one in compare.spectra.series] == [(0, 0)] * 3
        assert compare.png().startswith(b"\x89PNG")
        b.feed(TWO * 2)
        compare.refresh()
        done(compare)
        assert compare._notes.value.count("has learned nothing yet") == 1
        assert compare.table.rows[0]["relative"] == "Infinity"
        a.feed(ONE * 2)
        compare.refresh()
        done(compare)
        assert compare.matrix == "W"
        assert "nothing yet" not in compare._notes.value
        assert "the same row of W is another direction in the other" in compare._notes.value
        assert [one["rank"] > 1 for one in compare.spectra.series] == [True] * 3


def test_files_show_entries_too(files):
    compare = done(MemoryCompare(*files))
    assert [view.title for view in compare.views] == ["A: one.atlas", "B: two.atlas", "B − A"]
    names = {row["name"] for row in compare.entries.rows}
    assert "model_context_0.parameters.W" in names
    assert "differ" in compare.entries.caption
    assert not any("waiting" in row["before"] for row in compare.entries.rows)
    assert "same in both" in compare.window.caption
    assert sum(row["a"] + row["b"] for row in compare.window.rows) > 20
    same = done(MemoryCompare(files[0], files[0]))
    assert same.entries.rows == same.settings.rows == same.window.rows == []
    assert same.table.rows[0]["max_difference"] == 0
    assert [view.title for view in same.views][:2] != ["A: one.atlas", "B: one.atlas"]  # told apart


def test_what_it_takes(pair, files):
    a, b = pair
    memory = (a.memory.memory, a.memory.state)
    for given in (
        a,
        a.memory,
        a.memory.state,
        memory,
        load_memory(files[0]),
        dict(a.memory.state.parameters),
    ):
        compare = done(MemoryCompare(given, b.memory.state, labels=["x", "y"]))
        assert compare.table.rows[0]["max_difference"] > 0
        assert compare.a.label == "x"
    for wrong in (7, AtlasSession(a.engine, None)):
        compare = done(MemoryCompare(wrong, b))
        assert "memory" in compare._notes.value
        assert compare.views[2].layout.display == "none"
    for wrong in ("one.atlas", [a], a):
        with pytest.raises(InvalidParamError, match="two memories"):
            MemoryCompare(wrong)
    with pytest.raises(InvalidParamError, match="3 labels"):
        MemoryCompare(a, b, labels="xyz")


def test_what_cannot_be_compared_is_said_and_the_rest_is_shown(pair, tmp_path):
    a, _ = pair
    learned = SAMPLES / "atlas" / "learned.atlas"
    compare = done(MemoryCompare(a, learned))
    assert "there is no difference to show" in compare._notes.value
    assert [view.layout.display for view in compare.views] == [None, None, "none"]
    assert [one["key"] for one in compare.spectra.series] == ["a", "b"]
    compare.views[0].cursor = (20, 9)  # places in the one are no places in the other
    assert compare.views[1].cursor == (0, 0)
    missing = done(MemoryCompare(tmp_path / "none.atlas", learned))
    assert "none.atlas" in missing._notes.value
    chat = done(MemoryCompare(SAMPLES / "atlas" / "chat.atlas", SAMPLES / "atlas" / "assistant.atlas"))
    assert chat.entries.rows
    assert len(chat.table.rows) == 4
    assert "state/keys" in chat.text()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("abc", "elements of type"),
        ([[1], [1, 2]], "not a matrix"),
        (np.ones((2, 2), complex), "complex128"),
        (np.ones((2, 2, 2)), "two axes"),
    ],
)
def test_what_is_no_matrix_is_said_with_its_name(given, words):
    compare = done(MemoryCompare({"w": given}, {"w": np.eye(2)}))
    assert words in compare._notes.value
    assert "&quot;w&quot;" in compare._notes.value
    assert compare.views[2].layout.display == "none"


def test_an_empty_matrix_is_shown_as_nothing():
    compare = done(MemoryCompare({"w": np.ones((0, 3))}, {"w": np.ones((0, 3))}))
    assert "cannot be shown" in [text.get_text() for text in compare.figure().axes[0].texts]


def test_labels_are_text_and_never_markup(pair):
    a, b = pair
    compare = done(MemoryCompare(a, b, labels=["<img src=x onerror=alert(1)>", "b"]))
    assert "<img" not in compare._heading.value
    assert "onerror=alert" not in compare.html().replace("&lt;img src=x onerror=alert(1)&gt;", "")


def test_many_matrices_can_be_chosen_by_menu_or_table():
    rng = np.random.default_rng(0)
    a, b = ({name: rng.standard_normal((4, 3)) for name in ("u", "v", "w")} for _ in range(2))
    compare = done(MemoryCompare(a, b))
    assert compare.matrix == "u"
    compare.table.selected = "w"
    done(compare)
    assert compare.matrix == "w"
    np.testing.assert_array_equal(compare.views[0].matrix, a["w"])
    np.testing.assert_allclose(compare.spectra.series[1]["values"], np.linalg.svd(b["w"], compute_uv=False))
    assert all(row["rank_d"] is not None for row in compare.table.rows)


def test_numbers_that_are_not_finite_stop_nothing():
    odd = np.ones((3, 3))
    odd[1, 1] = np.nan
    compare = done(MemoryCompare({"m": odd}, {"m": np.ones((3, 3))}))
    assert [one["key"] for one in compare.spectra.series] == ["b"]
    assert compare.table.rows[0]["max_a"] == "NaN"
    assert compare.png().startswith(b"\x89PNG")


# --- behaviour ----------------------------------------------------------------------------------------------


def test_behaviour_says_how_to_give_a_model(files):
    compare = done(MemoryCompare(*files, probe=PROBE))
    assert "give the model" in compare.behaviour.status.value
    assert compare.behaviour.view.pieces == []
    compare.behaviour.path.value = "no/such/model.gguf"
    compare.behaviour.start()
    done(compare)
    assert 'role="alert"' in compare.behaviour.status.value


def test_behaviour_beside_a_session_that_lends_itself(pair):
    a, b = pair
    before = a.context_tokens, a.memory.tokens_seen
    compare = done(MemoryCompare(a, b, probe=PROBE))
    found, view = compare.behaviour.result, compare.behaviour.view
    assert (a.context_tokens, a.memory.tokens_seen) == before
    assert "".join(view.pieces) == PROBE
    assert view.perplexity == found.perplexity
    assert view.largest["gain"][0] == int(np.abs(found.gain).argmax())
    assert view.selected == view.largest["gain"][0] + 1
    row = view.selected - 1
    came = next(one for one in view.detail["expected"] if one["came"])
    assert came["piece"] == view.pieces[view.selected]
    np.testing.assert_allclose(came["p"], np.exp(found.logprob[row]))
    products = [
        sum(one["sides"][side][0] * one["sides"][side][1] for one in view.detail["known"]) for side in (0, 1)
    ]
    np.testing.assert_allclose(products, came["p"][1:], rtol=1e-3)
    view.selected = 5
    assert view.detail["token"] == view.pieces[5]
    assert "perplexity of the probe" in compare.text()
    assert compare.window.rows[0]["token"][:6] != "token "  # a model is there: tokens have texts


def test_another_probe_now(pair):
    a, b = pair
    compare = done(MemoryCompare(a, b))
    assert compare.behaviour.result is None
    found = compare.compare_behaviour(PROBE)
    assert found is compare.behaviour.result
    assert compare.behaviour.probe.value == PROBE
    compare.behaviour.probe.value = "to be"
    done(compare)
    assert "".join(compare.behaviour.result.pieces) == "to be"


def test_a_memory_of_another_model_is_said_and_the_matrices_stay(files):
    other = FakeEngine(n_ctx=256)
    other.info = other.info.__class__(**{**vars(other.info), "identity": "11" * 32})
    compare = done(MemoryCompare(*files, model=other, probe=PROBE))
    assert "belongs to the model" in compare.behaviour.status.value
    assert compare.behaviour.result is None
    assert compare.spectra.series


# --- a run --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(engine):
    taken = Snapshots(every=32)
    with AtlasSession(engine, SMALL) as session:
        for at in range(0, len(ONE), 32):
            taken.offer(session)
            session.feed(ONE[at : at + 32])
        yield session, list(taken)


def test_moments_of_a_run(run):
    session, moments = run
    compare = done(MemoryCompare.over_time(moments, model=session))
    last = len(moments) - 1
    assert (compare.a.label, compare.b.label) == (moments[0].label, moments[last].label)
    peak = max(np.abs(one.arrays["W"]).max() for one in moments)
    for second, against, first in ((2, -1, 0), (3, -2, 2), (0, -2, 0), (4, 1, 1)):
        compare.slider.value, compare.against.value = second, against
        done(compare)
        x, y = moments[first].arrays["W"], moments[second].arrays["W"]
        np.testing.assert_array_equal(compare.views[0].matrix, x)
        np.testing.assert_array_equal(compare.views[1].matrix, y)
        np.testing.assert_array_equal(compare.views[2].matrix, y - x)
        assert compare.views[0].vmax == pytest.approx(max(peak, np.abs(y - x).max()))
    compare.show(0, -1)
    assert compare.b.label == moments[last].label
    assert compare.slider.value == last
    with pytest.raises(InvalidParamError, match="moments"):
        compare.show(0, last + 1)
    assert compare.b.label == moments[last].label


def test_a_lab_is_a_run(run):
    session, moments = run

    class Lab:
        snapshots, text_to_read, lock = moments, ONE, threading.RLock()

    lab = Lab()
    lab.session = session
    compare = done(MemoryCompare(lab))
    assert compare.behaviour.probe.value == ONE
    assert compare.behaviour.result.perplexity["b"] < compare.behaviour.result.perplexity["a"]
    assert len(compare._moments) == len(moments)


def test_playing_goes_through_the_moments_and_can_be_paused(run, monkeypatch):
    monkeypatch.setattr("atlas_kit.widgets.compare.memory_compare.PACE", 0.01)
    monkeypatch.setattr("atlas_kit.widgets.frame_gate.PATIENCE", 0.0)  # no page acknowledges here
    _, moments = run
    compare = done(MemoryCompare(moments))
    seen = []
    compare.slider.observe(lambda change: seen.append(change.new), "value")
    compare.start()
    assert compare._runner.wait(LONG)
    assert seen == list(range(len(moments)))
    assert not compare.playing
    assert compare.play.description == "Play"
    compare.slider.observe(lambda change: compare.pause() if change.new == 2 else None, "value")
    compare.start()
    assert compare._runner.wait(LONG)
    assert compare.slider.value == 2
    done(compare)


def test_a_spectrum_is_that_of_its_moment_however_fast_they_pass(run):
    _, moments = run
    compare = MemoryCompare(moments)
    for _ in range(4):
        for second in range(len(moments)):
            compare.show(0, second)
    done(compare)
    expected = [np.linalg.svd(one.arrays["W"], compute_uv=False) for one in moments]
    for (_, first, second), found in compare._spectra.items():
        if second is None:
            np.testing.assert_allclose(found.spectrum, expected[first], atol=1e-5)
        else:
            change = moments[second].arrays["W"] - moments[first].arrays["W"]
            np.testing.assert_allclose(found.spectrum, np.linalg.svd(change, compute_uv=False), atol=1e-5)
    assert [len(one["values"]) for one in compare.spectra.series] == [32, 32, 32]


# --- what stays ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_text_picture_and_page_stand_alone(files, engine):
    compare = done(MemoryCompare(*files, model=engine, probe=PROBE + "<script>"))
    data, _ = compare._repr_mimebundle_()
    assert {"text/plain", "text/html", "image/png"} <= data.keys()
    assert data["text/plain"].splitlines()[0].startswith("A: one.atlas, 1 layer")
    assert "W 152 x 32: max |A| " in data["text/plain"]
    page = data["text/html"]
    assert "data:image/png;base64," in page
    assert "<script>" not in page
    assert "&lt;" in page
    assert "http" not in page.replace("data:image", "")
    figure = compare.figure()
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:3] == ["A: one.atlas", "B: two.atlas", "B − A"]
    spectra = next(axis for axis in figure.axes if axis.get_yscale() == "log")
    assert len(spectra.lines) == 3
    assert [label.get_text().split(",")[0] for label in spectra.get_legend().get_texts()] == titles[:3]


def test_a_closed_comparison_computes_no_more(pair):
    compare = MemoryCompare(*pair, probe=PROBE)
    compare.close()
    assert compare.wait(LONG)
    compare.close()


def test_config_and_state_make_a_side():
    config = MemoryConfig(4, 4, window_size=4)
    memory = Memory(config)
    rng = np.random.default_rng(0)
    state, _ = memory.observe(memory.init(), rng.standard_normal((6, 4)), rng.standard_normal((6, 4)))
    compare = done(MemoryCompare((config, memory.init()), (memory, state), labels=["empty", "learned"]))
    assert compare.table.rows[0]["relative"] == "Infinity"
    assert "0 slots are the same" in compare.window.caption


# --- the thread ---------------------------------------------------------------------------------------------


def test_the_newest_job_of_a_name_is_done_and_errors_are_told():
    started, go, did, failed = threading.Event(), threading.Event(), [], []
    newest = Newest(lambda name, error: failed.append((name, str(error))))

    def slow(stale):
        started.set()
        go.wait(LONG)
        did.append(("slow", stale()))

    def broken(_):
        raise ValueError("no")

    newest.submit("a", slow)
    assert started.wait(LONG)
    for number in range(3):
        newest.submit("a", lambda _, number=number: did.append(number))
    newest.submit("b", broken)
    assert not newest.wait(0.01)
    go.set()
    assert newest.wait(LONG)
    assert did == [("slow", True), 2]
    assert failed == [("b", "no")]
    newest.submit("a", lambda stale: did.append(stale()))
    assert newest.wait(LONG)
    assert did[-1] is False


def test_stopping_forgets_what_waits():
    started, go, did = threading.Event(), threading.Event(), []
    newest = Newest(lambda *_: None)

    def slow(stale):
        started.set()
        go.wait(LONG)
        did.append(stale())

    newest.submit("a", slow)
    newest.submit("b", lambda _: did.append("b"))
    assert started.wait(LONG)
    newest.stop()
    go.set()
    assert newest.wait(LONG)
    assert did == [True]


def test_a_thread_that_is_done_keeps_nothing_alive():
    class Owner:
        pass

    owner, newest = Owner(), Newest(lambda *_: None)
    gone = weakref.ref(owner)
    newest.submit("a", lambda _, owner=owner: None)
    assert newest.wait(LONG)
    del owner
    until_gone(gone)
