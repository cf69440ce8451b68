"""The behaviour pane of ``MemoryCompare``: a probe text, a model, and what two memories make of the one in the other.

The comparison itself is ``operations/behaviour.py``'s; here are its controls, its thread, and the sentences when
something is missing.
"""

from __future__ import annotations

import contextlib
import html
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import ipywidgets
import numpy as np

from atlas_kit.errors import AtlasError
from atlas_kit.llama.engine import Engine
from atlas_kit.llama.loading import open_engine
from atlas_kit.llama.session import AtlasSession
from atlas_kit.operations.behaviour import WHO, Behaviour, compare_behaviour, pieces_of
from atlas_kit.widgets.compare.panes import ProbeText
from atlas_kit.widgets.compare.static_view import titles
from atlas_kit.widgets.newest import Newest

NO_MODEL = (
    "To see how the two memories predict a text, give the model that they belong to: its path here, "
    'or MemoryCompare(a, b, model="model.gguf").'
)
NO_PROBE = "Type or paste a text that both memories should read, and press Compare."


class BehaviourPane(ipywidgets.VBox):  # type: ignore[misc]
    """Controls and result.

    Parameters
    ----------
    pair
        Returns what A and B are now, and their labels.
    model
        A path, an engine, a session that lends its own, or None.
    probe
        The text to begin with.
    newest
        The thread that does the work.
    lock
        Held while the model reads: somebody else may be using it.
    secret
        What opens encrypted files.
    told
        Is called after each comparison.
    """

    def __init__(
        self,
        pair: Callable[[], tuple[Any, Any, str, str]],
        model: str | os.PathLike[str] | Engine | AtlasSession | None,
        probe: str,
        newest: Newest,
        lock: AbstractContextManager[Any] | None = None,
        secret: dict[str, Any] | None = None,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self._pair, self._newest, self._secret, self._told = pair, newest, secret or {}, told
        self._lock = lock or contextlib.nullcontext()
        self._model: Any = model
        self._opened: Engine | None = None
        self._engine: Any = None
        self.result: Behaviour | None = None
        self._quiet = False
        wide = ipywidgets.Layout(width="auto")
        self.probe = ipywidgets.Textarea(
            probe,
            placeholder=NO_PROBE,
            description="Probe text",
            rows=3,
            layout=wide,
            continuous_update=False,
        )
        self.path = ipywidgets.Text(
            placeholder="path of a GGUF model", description="Model", layout=wide, continuous_update=False
        )
        self.button = ipywidgets.Button(description="Compare", icon="play", button_style="primary")
        self.status = ipywidgets.HTML()
        self.view = ProbeText()
        self.button.on_click(lambda _: self.start())
        self.probe.observe(lambda _: self._typed(), "value")
        self.view.observe(lambda _: self._show_detail(), "selected")
        bar = ipywidgets.HBox([self.button, self.status], layout=ipywidgets.Layout(align_items="center"))
        model_row = [self.path] if model is None else []
        title = ipywidgets.HTML(
            "<h3 style='margin:8px 0 0;font-size:14px'>Behaviour: the same text through both</h3>"
        )
        super().__init__([title, self.probe, *model_row, bar, self.view])
        self.say(NO_MODEL if model is None else "" if probe else NO_PROBE)

    @property
    def ready(self) -> bool:
        """Whether there is a model and a text."""
        return bool(self.probe.value.strip() and (self._model is not None or self.path.value.strip()))

    def say(self, sentence: str, alert: bool = False) -> None:
        """Show a sentence beside the button."""
        role = ' role="alert"' if alert else ' role="status"'
        self.status.value = f"<span{role}>{html.escape(sentence)}</span>" if sentence else ""

    def _typed(self) -> None:
        if not self._quiet:
            self.start()

    def start(self) -> None:
        """Compare in the background."""
        if self.ready:
            self.say("Waiting for other figures ...")
            self._newest.submit("behaviour", self._job)
        else:
            self.say(NO_MODEL if self._model is None and not self.path.value.strip() else NO_PROBE)

    def _job(self, stale: Callable[[], bool]) -> None:
        with contextlib.suppress(_Stale):
            self.compare(stale)

    def compare(self, stale: Callable[[], bool] = lambda: False) -> Behaviour | None:
        """Compare now; a sentence in place of a result if that cannot be done."""

        def progress(done: int, total: int) -> None:
            if stale():
                raise _Stale
            self.say(f"Read {done:,} of {total:,} tokens ...")

        try:
            a, b, *labels = self._pair()
            labels = list(titles(*labels).values())[:2]
            with self._lock:
                reader = self._reader()
                found = compare_behaviour(reader, a, b, self.probe.value, progress=progress, **self._secret)
        except AtlasError as error:
            self.say(str(error), alert=True)
            return None
        self.say(f"{len(found):,} predictions compared; nothing was learned.")
        self._engine = reader.engine if isinstance(reader, AtlasSession) else reader
        self._show(found, labels)
        self._told()
        return found

    def _reader(self) -> Engine | AtlasSession:
        """Return what reads the text; a model that is given by path is opened once."""
        model: Any = self.path.value.strip() if self._model is None else self._model
        if not isinstance(model, (str, os.PathLike)):
            reader: Engine | AtlasSession = model
            return reader
        if self._opened is None or self._opened.info.path != os.fspath(model):
            self.close_model()
            self.say("Loading the model ...")
            self._opened = open_engine(os.fspath(model))
        return self._opened

    def set_probe(self, text: str) -> None:
        """Put in another text without comparing."""
        self._quiet = True
        try:
            self.probe.value = text
        finally:
            self._quiet = False

    def piece(self, token: int) -> str | None:
        """Return a token's text, if a model is open."""
        model = self._model if self._opened is None else self._opened
        engine = model.engine if isinstance(model, AtlasSession) else model
        if engine is None or isinstance(engine, (str, os.PathLike)):
            return None
        return named(pieces_of(engine, [token])[0])

    def clear(self) -> None:
        """Forget the result: it belongs to other memories."""
        self.result = None
        self.view.pieces, self.view.selected = [], 0
        self.view.shown += 1

    def _show(self, found: Behaviour, labels: list[str]) -> None:
        self.result = found
        view = self.view
        with view.hold_sync():
            view.labels, view.pieces = labels, list(found.pieces)
            view.logprob = found.logprob.round(5).tolist()
            view.js, view.gain = found.js.round(6).tolist(), found.gain.round(6).tolist()
            view.largest = {by: found.largest(12, by=by) for by in ("gain", "js")}
            view.perplexity = found.perplexity
            view.selected = next((row + 1 for row in view.largest[view.measure]), 0)
            view.detail = self.detail(view.selected)
            view.shown += 1

    def _show_detail(self) -> None:
        self.view.detail = self.detail(self.view.selected)

    def detail(self, token: int) -> dict[str, Any]:
        """Return what was expected of one token (1 to n), as JSON-ready data."""
        found = self.result
        if found is None or not 0 < token <= len(found):
            return {}
        row, engine = token - 1, self._engine
        came = int(found.tokens[token])
        likely: dict[int, Any] = {came: np.exp(found.logprob[row])}
        for who in range(len(WHO)):
            for place in range(3):
                likely.setdefault(int(found.top[row, who, place]), found.top_p[row, who, place])
        order = sorted(likely, key=lambda one: -float(likely[one].max()))
        return {
            "token": found.pieces[token],
            "expected": [
                {"piece": pieces_of(engine, [one])[0], "p": likely[one].tolist(), "came": one == came}
                for one in order
            ],
            "known": [
                {
                    "name": name,
                    "sides": np.stack((found.weights[row, :, n], found.parts[row, :, n]), axis=-1).tolist(),
                }
                for n, name in enumerate(("the model", "the learned memory", "the window"))
            ],
        }

    def close_model(self) -> None:
        """Close the model if it was opened here."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None


def named(piece: str) -> str:
    r"""Return a token's text with its white space made visible, as the page does.

    >>> named("  if x"), named("\n")
    ('␣␣if x', '⏎')
    """
    text = piece.replace("\n", "⏎").replace("\t", "⇥")
    left, right = (len(text) - len(part) for part in (text.lstrip(" "), text.rstrip(" ")))
    if left == len(text):
        return "␣" * left
    return "␣" * left + text[left : len(text) - right] + "␣" * right


class _Stale(Exception):  # noqa: N818 (no error: nobody wants the result any more)
    pass
