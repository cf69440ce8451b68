"""The controls of ``MemoryLab``: buttons, sliders, the text to read, files. They say what was asked, and do nothing.

Every control calls ``on(what, value)``: ``start``, ``pause``, ``step``, ``stop``, ``reset``; ``settings`` with a dict;
``text`` with a string or a ``Path``, and the name of what has one; ``save`` and ``load`` with a file name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ipywidgets

from atlas_kit.settings.atlas_settings import ADAPTIVE, AtlasSettings

#: Which buttons can be pressed in a state.
_ENABLED = {
    "idle": {"start", "step", "reset"},
    "running": {"pause", "stop", "reset"},
    "paused": {"start", "step", "stop", "reset"},
    "done": {"start", "step", "reset"},
    "failed": {"start", "step", "reset"},
}
_BUTTONS = {
    "start": ("Start", "play", "Read on, and learn"),
    "pause": ("Pause", "pause", "Stop here; Start continues"),
    "step": ("Step", "step-forward", "One step of the memory"),
    "stop": ("Stop", "stop", "Stop, and go back to the beginning of the text; the memory is kept"),
    "reset": ("Reset", "undo", "Forget everything; new settings take effect"),
}
_STEPS = (10, 12, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90)
_WINDOWS = (0, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
#: Characters that a text field shows; longer texts are read all the same.
MOST_CHARACTERS = 200_000


def _rates(own: float = 0.0) -> list[tuple[str, float]]:
    """Return learning rates with what a slider says of each: round ones, ``own``, and 0, with which nothing is learned.

    >>> [name for name, rate in _rates(0.37) if rate < 0.002 or 0.3 <= rate < 0.5]
    ['0 (off)', '0.001', '0.0012', '0.0015', '0.3', '0.37', '0.4']
    """
    rates = {float(f"{step}e{power}") for power in range(-4, 0) for step in _STEPS} | {10.0, 0.0, own}
    return [(f"{rate:.4g}" if rate else "0 (off)", rate) for rate in sorted(rates)]


def _row(*widgets: ipywidgets.Widget) -> ipywidgets.HBox:
    return ipywidgets.HBox(widgets, layout=ipywidgets.Layout(flex_flow="row wrap", align_items="center"))


def _wide(width: int = 246) -> dict[str, Any]:
    """Return the layout of a slider with its name before it."""
    return {"layout": ipywidgets.Layout(width=f"{width}px"), "style": {"description_width": "86px"}}


def _fold(label: str, icon: str, tip: str, panel: ipywidgets.Widget) -> ipywidgets.ToggleButton:
    """Return a button that shows and hides a panel."""
    button = ipywidgets.ToggleButton(
        description=label, icon=icon, tooltip=tip, layout=ipywidgets.Layout(width="80px")
    )

    def show(_: Any) -> None:
        panel.layout.display = "" if button.value else "none"

    button.observe(show, "value")
    show(None)
    return button


class Controls(ipywidgets.VBox):  # type: ignore[misc]
    """A row of buttons, a row of sliders, and what is folded away: text and files."""

    def __init__(
        self, documents: Mapping[str, Any], settings: AtlasSettings, on: Callable[..., None]
    ) -> None:
        self._on, self._documents, self._quiet = on, documents, False
        self._buttons = {what: self._button(what) for what in _BUTTONS}
        self._make_settings()
        self._make_text()
        self._make_files()
        self._folds = [
            _fold("Text", "pencil", "Type or open a text to read", self._writing),
            _fold("Save", "floppy-o", "Save or load the memory", self._files),
        ]
        reading = [self.document] if documents else []
        together = _row(self.blend, self.adaptive, self.muon)  # none of them stands alone in a line
        sliders = [self.learning_rate, self.window, self.degree, together]
        self._rows = [_row(*self._buttons.values(), *reading, *self._folds), _row(*sliders), together]
        super().__init__([*self._rows[:2], self._writing, self._files])
        self.show_settings(settings)
        self.show_state("idle")

    def _button(self, what: str) -> ipywidgets.Button:
        label, icon, tip = _BUTTONS[what]
        style = "primary" if what == "start" else ""
        button = ipywidgets.Button(
            description=label,
            icon=icon,
            tooltip=tip,
            button_style=style,
            layout=ipywidgets.Layout(width="82px"),
        )
        button.on_click(lambda _: self._on(what))
        return button

    # --- settings --------------------------------------------------------------------------------------------

    def _make_settings(self) -> None:
        self.learning_rate = ipywidgets.SelectionSlider(
            description="learning rate", options=_rates(), continuous_update=False,
            tooltip="takes effect at once; to and from 0 at the next Reset", **_wide(),
        )  # fmt: skip
        self.window = ipywidgets.SelectionSlider(
            description="window ↺", options=[(f"{size:,}", size) for size in _WINDOWS], continuous_update=False,
            tooltip="tokens of the exact window; takes effect at the next Reset", **_wide(),
        )  # fmt: skip
        self.degree = ipywidgets.IntSlider(
            description="degree ↺", min=1, max=3,
            tooltip="of the polynomial feature map; takes effect at the next Reset",
            continuous_update=False, **_wide(200),
        )  # fmt: skip
        self.blend = ipywidgets.FloatSlider(
            description="share", min=0, max=1, step=0.05, tooltip="how much the window counts; takes effect at once",
            continuous_update=False, **_wide(),
        )  # fmt: skip
        self.adaptive = ipywidgets.Checkbox(
            description="adaptive",
            indent=False,
            layout=ipywidgets.Layout(width="92px"),
            tooltip="the blend is learned",
        )
        self.muon = ipywidgets.Checkbox(
            description="Muon", indent=False, layout=ipywidgets.Layout(width="80px"),
            tooltip="orthogonalise the steps; takes effect at once",
        )  # fmt: skip
        for control, name in (
            (self.learning_rate, "learning_rate"),
            (self.window, "window_size"),
            (self.degree, "polynomial_degree"),
            (self.muon, "use_muon"),
        ):
            control.observe(self._setting(name), "value")
        for control in (self.adaptive, self.blend):
            control.observe(self._blended, "value")

    def _setting(self, name: str) -> Callable[[Any], None]:
        return lambda change: None if self._quiet else self._on("settings", {name: change.new})

    def _blended(self, _: Any) -> None:
        self.blend.disabled = self.adaptive.value
        if not self._quiet:
            self._on(
                "settings", {"blend_ratio": ADAPTIVE if self.adaptive.value else round(self.blend.value, 4)}
            )

    def show_settings(self, settings: AtlasSettings) -> None:
        """Put the sliders where settings are; nothing is asked for."""
        self._quiet = True
        try:
            self.learning_rate.options = _rates(settings.learning_rate)
            self.learning_rate.value = settings.learning_rate
            sizes = sorted({*_WINDOWS, settings.window_size})
            self.window.options = [(f"{size:,}", size) for size in sizes]
            self.window.value = settings.window_size
            self.degree.value, self.muon.value = settings.polynomial_degree, settings.use_muon
            self.adaptive.value = settings.blend_ratio == ADAPTIVE
            if not self.adaptive.value:
                self.blend.value = float(settings.blend_ratio)
            self.blend.disabled = self.adaptive.value
        finally:
            self._quiet = False

    # --- text and files --------------------------------------------------------------------------------------

    def _make_text(self) -> None:
        self.text = ipywidgets.Textarea(
            continuous_update=False, placeholder="Type or paste a text here, then press Start.",
            layout=ipywidgets.Layout(width="100%", height="180px"), tooltip="The text to read",
        )  # fmt: skip
        self.text.observe(lambda change: None if self._quiet else self._on("text", change.new), "value")
        self.document = ipywidgets.Dropdown(
            options=["Choose a text …", *self._documents], layout=ipywidgets.Layout(width="170px"),
            tooltip="Texts to read",
        )  # fmt: skip
        self.document.observe(self._chosen, "value")
        self.upload = ipywidgets.FileUpload(
            description="Open a file",
            tooltip="A text file from your computer",
            layout=ipywidgets.Layout(width="140px"),
        )
        self.upload.observe(self._uploaded, "value")
        self._writing = ipywidgets.VBox([self.text, self.upload])

    def _chosen(self, change: Any) -> None:
        if change.new in self._documents:
            self._on("text", self._documents[change.new], change.new)

    def _uploaded(self, change: Any) -> None:
        if change.new:
            file = change.new[0]
            text = bytes(file["content"]).decode("utf-8", "surrogateescape")
            self._on("text", text, str(file.get("name", "")))

    def show_text(self, text: str) -> None:
        """Show the text that is read next; of a long one, that it is there."""
        shown = text if len(text) <= MOST_CHARACTERS else ""
        self._quiet = True
        try:
            self.text.value = shown.encode("utf-8", "replace").decode(
                "utf-8"
            )  # bytes that are no text cannot be sent
            if text and not shown:
                self.text.placeholder = (
                    f"A text of {len(text):,} characters is loaded; type here to read another."
                )
        finally:
            self._quiet = False

    def _make_files(self) -> None:
        self.path = ipywidgets.Text(
            value="memory.atlas", description="file", continuous_update=False,
            tooltip="A .atlas file for the memory; .png, .svg, .gif, .csv or .html for what is shown",
            style={"description_width": "36px"}, layout=ipywidgets.Layout(width="320px"),
        )  # fmt: skip
        self.save = ipywidgets.Button(
            description="Save", icon="download", tooltip="Write the memory, or what is shown, to the file"
        )
        self.load = ipywidgets.Button(
            description="Load", icon="upload", tooltip="Continue with the memory in the file"
        )
        self.save.on_click(lambda _: self._on("save", self.path.value))
        self.load.on_click(lambda _: self._on("load", self.path.value))
        self._files = _row(self.path, self.save, self.load)

    # --- all of them -----------------------------------------------------------------------------------------

    def show_state(self, state: str) -> None:
        """Let those buttons be pressed that make sense."""
        for what, button in self._buttons.items():
            button.disabled = what not in _ENABLED[state]

    def press(self, what: str) -> None:
        """Press a button, as a reader would."""
        self._buttons[what].click()

    def disable(self) -> None:
        """Let nothing be pressed any more."""
        for widget in self.parts():
            if hasattr(widget, "disabled"):
                widget.disabled = True

    def parts(self) -> Iterator[ipywidgets.Widget]:
        """Every control, and this."""
        yield from self._buttons.values()
        yield from (self.learning_rate, self.window, self.degree, self.adaptive, self.blend, self.muon)
        yield from (self.text, self.document, self.upload, self.path, self.save, self.load)
        yield from (*self._folds, *self._rows, self._writing, self._files, self)
