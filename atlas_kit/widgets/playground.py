"""``CapacityPlayground``: store random pairs in a memory, and watch at how many of them recall breaks.

What is stored and measured is in ``memory/trials.py`` and ``memory/capacity.py``, the thread in ``live.py``, the lines
in ``chart.py``; here are the controls. Knows no language model.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets
import numpy as np

from atlas_kit.errors import AtlasError, InvalidParamError
from atlas_kit.memory.capacity import LEVELS, Recall, Stored, held, similarity
from atlas_kit.memory.trials import KINDS, TRAININGS, TRIALS, Trial
from atlas_kit.widgets import chart
from atlas_kit.widgets.base import Shown
from atlas_kit.widgets.live import Runner, sentence
from atlas_kit.widgets.matrix import MatrixView

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Seconds from one measurement to the next when somebody watches; the arithmetic alone would be over at once.
PACE = 0.06
#: Curves that are kept; a new one takes the place of the oldest.
MOST_CURVES = 8
_OWN = "own settings"
_KIND_NAMES = {
    "linear": "matrix", "polynomial": "matrix behind polynomial features", "deep": "deep", "gated": "deep, gated"
}  # fmt: skip
_MEASURES = {"exact retrieval": "accuracy", "cosine": "cosine"}
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclasses.dataclass
class Curve:
    """What a trial gave, so far."""

    trial: Trial
    points: list[Recall] = dataclasses.field(default_factory=list)

    @property
    def held(self) -> float:
        """At how many pairs nine of ten are still told apart; NaN if that is not known."""
        return held(self.points)


class CapacityPlayground(Shown, ipywidgets.VBox):  # type: ignore[misc]
    """Store random pairs in a memory, and watch at how many of them recall breaks.

    Every run adds a curve, so that memories can be compared. The picture on the right asks for every pair: row i is
    what the memory answers to key i, and how alike it is to each of the values. A memory that recalls has a diagonal.

    Parameters
    ----------
    trial
        What to begin with: a ``Trial``, or a name in ``TRIALS``.
    **settings
        Settings of ``Trial`` that should differ, such as ``kind="polynomial", d=8, window=16``.

    Attributes
    ----------
    curves
        What was run, the newest last.

    Raises
    ------
    InvalidParamError
        For a name that is none, and settings out of range.
    """

    def __init__(self, trial: Trial | str = "Matrix, Delta rule", **settings: Any) -> None:
        self.curves: list[Curve] = []
        self.stored: Stored | None = None
        self._steps: Iterator[Stored] | None = None
        self._paced = self._single = False
        self._problem = ""
        self._runner = Runner(self._work, self._show, self._rested, self._ready)
        self._build()
        self.trial = _changed(trial, settings)
        super().__init__(self._layout())
        self.add_class("atlas-playground")
        self._show()

    # --- for programs ---------------------------------------------------------------------------------------

    @property
    def trial(self) -> Trial:
        """What the controls say; setting it sets them.

        Raises
        ------
        InvalidParamError
            When the controls contradict each other.
        """
        values = {name: control.value for name, control in self._controls.items()}
        looks_back = self._rule.value == "Omega" and values["training"] == TRAININGS[0]
        values["window"] = self._c.value if looks_back else 1
        return dataclasses.replace(self._extra, **values)

    @trial.setter
    def trial(self, trial: Trial) -> None:
        self._extra = trial  # keeps what has no control: pairs, streams, eta
        self._setting = True
        try:
            for name, control in self._controls.items():
                _set(control, getattr(trial, name))
            self._rule.value = "Delta" if trial.window == 1 else "Omega"
            if trial.window > 1:
                _set(self._c, trial.window)
            self._preset.value = next((name for name, known in TRIALS.items() if known == trial), _OWN)
        finally:
            self._setting = False
        self._enable()

    def run(self, trial: Trial | str | None = None, **settings: Any) -> Curve:
        """Run a trial to its end, at full speed, and return its curve; by default what the controls say.

        Raises
        ------
        InvalidParamError
            For a name that is none, and settings out of range.
        """
        self._runner.stop()
        self._runner.wait()
        self.trial = _changed(self.trial if trial is None else trial, settings)
        self._begin()
        self._paced = self._single = False
        self._runner.run()
        self._show()
        return self.curves[-1]

    def compare(self, *trials: Trial | str) -> list[Curve]:
        """Run several trials, one after the other; by default all of ``TRIALS`` that read every pair once."""
        chosen = trials or tuple(name for name, trial in TRIALS.items() if trial.training == "one pass")
        return [self.run(trial) for trial in chosen]

    def start(self) -> None:
        """Run what the controls say in the background, or go on with what was paused."""
        if self._runner.state == "running":
            return
        if self._runner.state != "paused" or not self.curves or self.curves[-1].trial != self.trial:
            self._begin()
        self._paced, self._single = True, False
        self._runner.start()

    def pause(self) -> None:
        """Pause; ``start`` goes on."""
        self._runner.pause()

    def step(self) -> None:
        """Store up to the next measurement, and pause."""
        if self._runner.state != "paused":
            self._begin()
        self._paced, self._single = False, True
        self._runner.start()

    def stop(self) -> bool:
        """Stop; True if that took less than half a second. The curve so far stays."""
        return self._runner.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs; False if that took longer than ``timeout`` seconds."""
        return self._runner.wait(timeout)

    def clear(self) -> None:
        """Stop, and forget all curves."""
        self._runner.stop()
        with self._runner.lock:
            self.curves.clear()
            self.stored = self._steps = None
        self._show()

    @property
    def state(self) -> str:
        """``idle``, ``running``, ``paused``, ``done`` or ``failed``."""
        return self._runner.state

    def close(self) -> None:
        """Stop and leave the page."""
        self._runner.close()
        super().close()

    # --- the controls ---------------------------------------------------------------------------------------

    def _build(self) -> None:
        row, wide = (
            {"description_width": "70px"},
            ipywidgets.Layout(width="350px"),
        )  # the longest choice is seen whole
        self._preset = ipywidgets.Dropdown(
            options=[_OWN, *TRIALS], description="Preset", style=row, layout=wide
        )
        kinds = [(_KIND_NAMES[kind], kind) for kind in KINDS]
        self._controls: dict[str, Any] = {
            "kind": ipywidgets.Dropdown(options=kinds, description="Memory", style=row, layout=wide),
            "d": ipywidgets.IntSlider(16, 4, 32, 4, description="Width d", style=row, layout=wide),
            "degree": ipywidgets.IntSlider(2, 1, 3, description="Degree p", style=row, layout=wide),
            "training": ipywidgets.Dropdown(
                options=[("once", TRAININGS[0]), ("until it converges", TRAININGS[1])],
                description="Pairs seen", style=row, layout=wide,
            ),
            "muon": ipywidgets.Checkbox(False, description="Muon", indent=True, style=row, layout=wide),
            "seed": ipywidgets.BoundedIntText(0, 0, 9999, description="Seed", style=row, layout=wide),
        }  # fmt: skip
        self._rule = ipywidgets.Dropdown(
            options=[("Delta: learn from the last pair", "Delta"), ("Omega: learn from the last c pairs", "Omega")],
            description="Rule", style=row, layout=wide,
        )  # fmt: skip
        self._c = ipywidgets.IntSlider(16, 2, 64, 2, description="Window c", style=row, layout=wide)
        self._measure = ipywidgets.ToggleButtons(
            options=list(_MEASURES.items()), description="", style={"button_width": "120px"},
            tooltips=["Share of keys whose answer is nearest to the right value", "Of answers and values, a mean"],
        )  # fmt: skip
        self._buttons = {
            name: ipywidgets.Button(description=name, icon=icon, tooltip=tip, layout=ipywidgets.Layout(width="80px"))
            for name, icon, tip in (
                ("Start", "play", "Store pairs in the background"), ("Pause", "pause", "Pause; Start continues"),
                ("Step", "step-forward", "Continue to the next measurement"), ("Stop", "stop", "End this run"),
                ("Clear", "trash", "Forget all curves"),
            )
        }  # fmt: skip
        self._status = ipywidgets.HTML()
        beside = ipywidgets.Layout(flex="1 1 420px", min_width="0", max_width=f"{chart.WIDTH + 16}px")
        self._lines = ipywidgets.HTML(layout=beside)  # not wider than the chart: the matrix stands next to it
        self.view = MatrixView(
            np.zeros((2, 2), np.float32), title="cosine of answer and stored value", rows="key asked for",
            columns="stored value", vmax=1.0, height=330,
        )  # fmt: skip
        self.view.layout = ipywidgets.Layout(flex="1 1 340px", min_width="0")
        self._setting = False
        for control in (*self._controls.values(), self._rule, self._c):
            control.observe(lambda _: self._touched(), "value")
        self._preset.observe(lambda change: self._choose(change.new), "value")
        self._measure.observe(lambda _: self._show(), "value")
        for name, button in self._buttons.items():
            button.on_click(functools.partial(self._order, name.lower()))

    def _layout(self) -> list[Any]:
        wrap = ipywidgets.Layout(flex_flow="row wrap", align_items="flex-start", grid_gap="4px 16px")
        middle = ipywidgets.Layout(flex_flow="row wrap", align_items="center", grid_gap="4px 16px")
        control = self._controls
        columns = (
            [self._preset, control["kind"], control["degree"], control["d"]],
            [control["training"], self._rule, self._c, control["muon"], control["seed"]],
        )
        return [
            ipywidgets.HBox([ipywidgets.VBox(column) for column in columns], layout=wrap),
            ipywidgets.HBox([*self._buttons.values(), self._measure], layout=middle),
            self._status,
            ipywidgets.HBox([self._lines, self.view], layout=wrap),
        ]

    def _enable(self) -> None:
        """Let only those controls be moved that change something."""
        control, once = self._controls, self._controls["training"].value == TRAININGS[0]
        control["degree"].disabled = control["kind"].value != "polynomial"
        self._rule.disabled = not once
        self._c.disabled = not once or self._rule.value == "Delta"

    def _touched(self) -> None:
        if self._setting:
            return
        self._enable()
        try:
            trial = self.trial
        except AtlasError as error:
            self._complain(error)
            return
        self._problem = ""
        self._setting = True
        try:
            self._preset.value = next((name for name, known in TRIALS.items() if known == trial), _OWN)
        finally:
            self._setting = False
        self._tell()

    def _choose(self, name: str) -> None:
        if not self._setting and name in TRIALS:
            self._problem = ""
            self.trial = TRIALS[name]
            self._tell()

    def _order(self, order: str, _: Any) -> None:
        """Do what a button says; what cannot be done is said."""
        try:
            getattr(self, order)()
        except AtlasError as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        self._problem = sentence(error)
        self._tell()

    # --- the work -------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Take the controls' settings as the next curve."""
        trial = self.trial
        self._runner.stop()
        with self._runner.lock:
            self._problem = ""
            others = [curve for curve in self.curves if curve.trial != trial]  # the same gives the same
            self.curves = [*others[-MOST_CURVES + 1 :], Curve(trial)]
            self._steps, self.stored = trial.run(), None

    def _work(self) -> bool:
        """Store more pairs, or show those stored once more; measure what is final."""
        assert self._steps is not None
        stored = next(self._steps, None)
        if stored is None:
            return False
        self.stored = stored
        if stored.final:
            self.curves[-1].points.append(stored.recall())
            if self._single:
                self._runner.pause()
            time.sleep(PACE * self._paced)
        return True

    def _ready(self) -> bool:
        return bool(self.view.ready)

    # --- showing --------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Show how the run stands: buttons and status line."""
        state = self._runner.state
        for name, off in (
            ("Start", state == "running"),
            ("Pause", state != "running"),
            ("Step", state == "running"),
        ):
            self._buttons[name].disabled = off
        problem = self._problem or self._runner.error
        role, text = ("alert", problem) if problem else ("status", self._sentence())
        value = f'<p role="{role}" style="margin:0;line-height:1.4">{html.escape(text)}</p>'
        if self._status.value != value:
            self._status.value = value

    def _rested(self) -> None:
        """Show how the run stands; at its end the last frame may not have been shown."""
        self._tell()
        if self._runner.state != "running":
            self._show_pictures()

    def _sentence(self) -> str:
        """Say what the newest curve tells."""
        if not self.curves or not self.curves[-1].points:
            return "Start stores random pairs, and asks for all of them again and again."
        curve = self.curves[-1]
        last = curve.points[-1]
        text = (
            f"{curve.trial.label}: {last.pairs:,} pairs stored, {last.accuracy:.0%} of them found again "
            f"(cosine {last.cosine:.2f})."
        )
        if not math.isnan(curve.held):
            text += f" Nine of ten were found up to {curve.held:.0f} pairs; {_allowed(curve.trial)}."
        return text

    def _show(self) -> None:
        """Show the newest of everything."""
        self._tell()
        self._show_pictures()

    def _show_pictures(self) -> None:
        self._lines.value = chart.svg(self.chart())
        stored = self.stored
        if stored is not None:
            self.view.update(self._heat(stored))

    @staticmethod
    def _heat(stored: Stored) -> np.ndarray[Any, Any]:
        """Return the cosines of answers and values of the first stream."""
        reads, values = stored.reads(), stored.values
        lead = (0,) * (reads.ndim - 2)
        return similarity(reads[lead], values[lead])

    def chart(self) -> chart.Chart:
        """Return the curves as a chart."""
        measure, name = self._measure.value, self._measure.label
        level = LEVELS["accuracy"]
        lines = [
            chart.Line(
                f"{curve.trial.label}{_holds(curve)}",
                [point.pairs for point in curve.points],
                [getattr(point, measure) for point in curve.points],
                curve.held if measure == "accuracy" else math.nan,
            )
            for curve in self.curves
            if curve.points
        ]
        limits = _limits(self.curves[-1].trial) if self.curves else []
        return chart.Chart(self._sentence(), "pairs stored", name, lines, level, limits)

    # --- static ---------------------------------------------------------------------------------------------

    def text(self) -> str:
        """Return a line per curve."""
        lines = [f"Capacity playground: {len(self.curves)} curve{'s' * (len(self.curves) != 1)}"]
        for curve in self.curves:
            end = (
                f", {curve.points[-1].accuracy:.0%} found of {curve.points[-1].pairs:,}"
                if curve.points
                else ""
            )
            lines.append(f"{curve.trial.label}{_holds(curve)}{end}; {_allowed(curve.trial)}")
        return "\n".join(lines)

    def sheet(self) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
        """Return a row for each point of each curve."""
        rows = [
            [curve.trial.label, point.pairs, point.accuracy, point.cosine]
            for curve in self.curves
            for point in curve.points
        ]
        return ["memory", "pairs stored", "found again", "cosine"], rows

    def figure(self) -> Figure:
        """Return the curves, and what the newest memory answers, as a matplotlib figure."""
        from matplotlib.figure import Figure

        from atlas_kit.widgets import colour

        figure = Figure(
            figsize=(10.5, 4.4 + 0.16 * len(self.curves)), layout="constrained", facecolor="white"
        )
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        chart.draw(left, self.chart())
        if self.stored is None:
            right.set_axis_off()
            return figure
        heat = self._heat(self.stored)
        picture = right.imshow(
            heat,
            cmap=colour.colormap(),
            norm=colour.norm(1.0),
            interpolation="nearest",
            extent=(0, *heat.shape, 0),
        )
        right.set_xlabel(self.view.column_name)
        right.set_ylabel(self.view.row_name)
        right.set_title(f"{self.view.title}: {len(heat):,} pairs", fontsize=9.5)
        figure.colorbar(picture, ax=right, shrink=0.7)
        return figure


def _changed(trial: Trial | str, settings: dict[str, Any]) -> Trial:
    """Return a trial by its name, with some settings changed."""
    if isinstance(trial, str):
        if trial not in TRIALS:
            raise InvalidParamError(
                f"there is no trial {trial!r}", key="trial", hint=f"Choose one of: {', '.join(TRIALS)}."
            )
        trial = TRIALS[trial]
    unknown = settings.keys() - {field.name for field in dataclasses.fields(Trial)}
    if unknown:
        raise InvalidParamError(f"a trial has no setting {min(unknown)!r}", key=min(unknown))
    return dataclasses.replace(trial, **settings)


def _set(control: Any, value: Any) -> None:
    """Set a control, beyond its ends too: a slider would stop there."""
    if hasattr(control, "max"):
        control.max, control.min = max(control.max, value), min(control.min, value)
    control.value = value


def _holds(curve: Curve) -> str:
    return "" if math.isnan(curve.held) else f": holds {curve.held:.0f}"


def _allowed(trial: Trial) -> str:
    """Say what theory allows."""
    free = f"{trial.free_numbers:,.0f}"
    return {
        "linear": f"d_k = {trial.d} (proposition 1)",
        "polynomial": f"its {free} features are of the order of d_k{_power(trial.degree)} (proposition 2)",
    }.get(trial.kind, f"it has {free} parameters per number of a value (theorem 1)")


def _power(degree: int) -> str:
    """Return an exponent as it is written behind a letter.

    >>> [_power(degree) for degree in (1, 2, 12)]
    ['', '²', '¹²']
    """
    return "" if degree == 1 else str(degree).translate(_RAISED)


def _limits(trial: Trial) -> list[tuple[float, str]]:
    """Return the numbers of pairs at which theory expects an end."""
    limits = [(float(trial.d), f"d_k = {trial.d}")]
    if trial.kind == "polynomial":
        limits.append(
            (trial.free_numbers, f"{trial.free_numbers:,.0f} features, O(d_k{_power(trial.degree)})")
        )
    elif trial.kind != "linear":
        limits.append((trial.free_numbers, f"{trial.free_numbers:,.0f} parameters per output"))
    return limits
