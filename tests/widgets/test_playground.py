"""The capacity playground without a browser: what it runs, what its controls do, and what it shows where none is."""

from __future__ import annotations

import base64
import re
import threading

import numpy as np
import pytest

pytest.importorskip("ipywidgets")

import ipywidgets
from matplotlib.figure import Figure

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory.trials import TRIALS, Trial
from atlas_kit.widgets import CapacityPlayground, playground
from tests.waiting import LONG

SMALL = Trial(d=8, pairs=32, streams=2)
WAIT = LONG


@pytest.fixture
def widget(monkeypatch):
    monkeypatch.setattr(playground, "PACE", 0.0)
    made = CapacityPlayground(SMALL)
    yield made
    made.close()


def click(widget, name):
    widget._buttons[name].click()


class TestRunning:
    def test_run_gives_the_curve_of_the_trial(self, widget):
        curve = widget.run()
        assert curve.trial == SMALL
        assert curve.points == SMALL.curve()
        assert 2 < curve.held < 8
        assert widget.state == "done"
        assert widget.curves == [curve]

    def test_settings_can_be_named(self, widget):
        curve = widget.run("Degree 2, Omega rule", d=4, pairs=10)
        assert curve.trial == Trial("polynomial", d=4, window=32, pairs=10)
        assert widget.trial == curve.trial
        with pytest.raises(InvalidParamError, match="no trial 'Nothing'"):
            widget.run("Nothing")
        with pytest.raises(InvalidParamError, match="no setting 'dd'"):
            widget.run(dd=4)
        with pytest.raises(InvalidParamError, match="whole number"):
            widget.run(d=-4)
        assert widget.curves == [curve]

    def test_a_setting_beyond_the_sliders_is_kept(self, widget):
        trial = Trial("polynomial", d=3, degree=4, window=100, pairs=6)
        assert widget.run(trial).trial == trial
        assert widget.trial == trial
        assert "of the order of d_k⁴" in widget.text()

    def test_curves_are_kept_for_comparison_and_the_same_one_only_once(self, widget, monkeypatch):
        first, second, third = (SMALL, Trial(d=4, pairs=8), Trial(d=4, pairs=9))
        widget.compare(first, second, first)
        assert [curve.trial for curve in widget.curves] == [second, first]
        monkeypatch.setattr(playground, "MOST_CURVES", 2)
        widget.run(third)
        assert [curve.trial for curve in widget.curves] == [first, third]
        widget.clear()
        assert widget.curves == []
        assert widget.stored is None

    def test_start_pause_step_stop(self, widget):
        widget.trial = Trial(d=4, training="converged")
        click(widget, "Step")
        assert widget.wait(WAIT)
        assert widget.state == "paused"
        assert len(widget.curves[-1].points) == 1
        click(widget, "Step")
        assert widget.wait(WAIT)
        assert len(widget.curves[-1].points) == 2
        with widget._runner.lock:  # it cannot come to its end here
            click(widget, "Start")
            assert widget.state == "running"
            assert widget._buttons["Start"].disabled
            click(widget, "Pause")
        assert widget.wait(WAIT)
        at = len(widget.curves[-1].points)
        assert len(widget.curves) == 1
        click(widget, "Start")
        assert widget.wait(WAIT)
        assert widget.state == "done"
        assert len(widget.curves[-1].points) == len(widget.trial.counts) >= at
        assert widget.curves[-1].points == widget.trial.curve()

    def test_stop_ends_the_thread_between_two_passes(self, widget, monkeypatch):
        monkeypatch.setattr("atlas_kit.widgets.live.STOP_SECONDS", LONG)
        widget.trial = Trial("deep", d=16, muon=True, training="converged")
        widget.start()
        while widget.stored is None:
            assert widget.state == "running"
        assert widget.stop()
        assert widget.state == "idle"
        for thread in [one for one in threading.enumerate() if one.name == "atlas-live"]:
            thread.join(WAIT)  # it has said that it ends, and is on its last line
            assert not thread.is_alive()
        assert len(widget.curves[-1].points) < len(widget.trial.counts)

    def test_other_settings_while_paused_begin_another_curve(self, widget):
        click(widget, "Step")
        assert widget.wait(WAIT)
        widget._controls["d"].value = 4
        widget.start()
        assert widget.wait(WAIT)
        assert [curve.trial.d for curve in widget.curves] == [8, 4]

    def test_a_failure_is_a_sentence(self, widget, monkeypatch):
        def broken(self):
            yield from ()
            raise MemoryError("no room for <this>")

        monkeypatch.setattr(Trial, "run", broken)
        widget.start()
        assert widget.wait(WAIT)
        assert widget.state == "failed"
        assert 'role="alert"' in widget._status.value
        assert "MemoryError: no room for &lt;this&gt;" in widget._status.value
        monkeypatch.undo()
        click(widget, "Start")
        assert widget.wait(WAIT)
        assert 'role="status"' in widget._status.value


class TestControls:
    def test_presets_set_the_controls_and_controls_find_the_preset(self, widget):
        for name, trial in TRIALS.items():
            widget._preset.value = name
            assert widget.trial == trial
        widget._preset.value = "Matrix, Delta rule"
        widget._controls["kind"].value = "polynomial"
        assert widget._preset.value == "Degree 2, Delta rule"
        widget._controls["seed"].value = 3
        assert widget._preset.value == "own settings"

    def test_only_what_matters_can_be_moved(self, widget):
        control = widget._controls
        widget._preset.value = "Matrix, Delta rule"
        assert control["degree"].disabled
        assert widget._c.disabled
        widget._preset.value = "Degree 2, Omega rule"
        assert not control["degree"].disabled
        assert not widget._c.disabled
        control["training"].value = "converged"
        assert widget._rule.disabled
        assert widget._c.disabled
        assert widget.trial.window == 1

    def test_settings_that_contradict_each_other_are_said(self, widget):
        widget.trial = Trial("polynomial", d=32)
        widget._controls["degree"].max = 8
        widget._controls["degree"].value = 6
        assert 'role="alert"' in widget._status.value
        assert "features" in widget._status.value
        click(widget, "Start")
        assert widget.curves == []
        widget._controls["degree"].value = 2
        assert 'role="status"' in widget._status.value

    def test_every_control_has_a_name(self, widget):
        def leaves(box):
            for child in getattr(box, "children", ()):
                yield from leaves(child)
            if not getattr(box, "children", ()):
                yield box

        for leaf in leaves(widget):
            if isinstance(
                leaf, (ipywidgets.Dropdown, ipywidgets.IntSlider, ipywidgets.Checkbox, ipywidgets.Button)
            ):
                assert leaf.description


class TestShowing:
    def test_the_picture_is_what_the_memory_answers(self, widget):
        widget.run()
        heat = widget.view.matrix
        assert heat.shape == (32, 32)
        reads, values = widget.stored.reads()[0], widget.stored.values[0]
        cosine = reads[30] @ values[7] / np.linalg.norm(reads[30]) / np.linalg.norm(values[7])
        assert heat[30, 7] == pytest.approx(cosine, rel=1e-5)
        newest, oldest = np.diag(heat)[-4:].mean(), np.diag(heat)[:12].mean()
        assert newest > 0.6 > 0.4 > oldest  # what came last is remembered best

    def test_text_names_what_is_held_and_what_theory_says(self, widget):
        assert "0 curves" in widget.text()
        widget.compare(SMALL, Trial("polynomial", d=8, window=8), Trial("deep", d=4, pairs=8))
        text = widget.text()
        assert re.search(
            r"matrix, Delta rule, d = 8: holds \d+, \d+% found of 32; d_k = 8 \(proposition 1\)", text
        )
        assert "44 features" in text
        assert "theorem 1" in text

    def test_the_chart_marks_theory_and_follows_the_measure(self, widget):
        widget.run("Degree 2, Omega rule", d=8)
        chart = widget.chart()
        assert [x for x, _ in chart.limits] == [8, 44]
        assert chart.lines[0].y == [point.accuracy for point in widget.curves[0].points]
        widget._measure.value = "cosine"
        assert widget.chart().lines[0].y == [point.cosine for point in widget.curves[0].points]
        assert "cosine" in widget._lines.value

    def test_static_forms(self, widget):
        empty = widget._repr_mimebundle_()[0]  # before anything ran, too
        widget.run()
        bundle, _ = widget._repr_mimebundle_()
        assert {"text/plain", "text/html", "image/png"} <= set(bundle)
        assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
        assert len(bundle["image/png"]) > len(empty["image/png"])
        assert "<script" not in bundle["text/html"]
        assert isinstance(widget.figure(), Figure)
        assert len(widget.figure().axes) == 3  # curves, picture, colour bar
