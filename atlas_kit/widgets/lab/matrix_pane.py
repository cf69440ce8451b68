"""The matrices of ``MemoryLab``: one of them as a picture, and its singular values, computed in a thread of their own.

Knows a memory's state, and nothing of models or texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets
import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.memory import MemoryState
from atlas_kit.memory.backend import to_host
from atlas_kit.memory.statistics import matrix_statistics
from atlas_kit.widgets.live import sentence
from atlas_kit.widgets.matrix import MatrixView
from atlas_kit.widgets.newest import Newest

#: Tokens between two spectra at least, and how many times longer than one took the next has to wait.
EVERY, REST = 2048, 20
#: Seconds between two pictures, where one is seen and where none is: a matrix is a hundred times as large as what else
#: a frame brings.
PICTURE_SECONDS, UNSEEN_SECONDS = 2.0, 10.0
#: The window's keys, beside the learned matrices.
KEYS = "window keys"


class MatrixPane(ipywidgets.VBox):  # type: ignore[misc]
    """A choice of matrices, and the one that is chosen.

    Parameters
    ----------
    state
        Is asked for the state of the moment.
    measured
        Is given a spectrum: ``name``, ``tokens``, ``values`` and effective ``rank``.
    failed
        Is given a sentence when a spectrum could not be computed.
    height
        Of the picture, in CSS pixels.
    """

    def __init__(
        self,
        state: Callable[[], MemoryState],
        measured: Callable[[dict[str, Any]], None],
        failed: Callable[[str], None],
        height: int,
    ) -> None:
        self._state, self._measured = state, measured
        self._newest = Newest(lambda _, error: failed(sentence(error)))
        names = self._names()
        self.choice = ipywidgets.Dropdown(
            description="matrix", options=names, value=names[0], style={"description_width": "50px"}
        )
        self.view = MatrixView(np.zeros((1, 1), np.float32), height=height)
        self.begin()
        self.choice.observe(self._chosen, "value")
        super().__init__([self.choice, self.view])

    def begin(self) -> None:
        """Show another state's matrices."""
        self._tokens, self._earliest, self._shown = 0, 0.0, 0.0
        names = self._names()
        if list(self.choice.options) != names:
            self.choice.options = names
        self.show()

    def _names(self) -> list[str]:
        state = self._state()
        return [*state.parameters, *([KEYS] if state.window["key"].size else [])]

    def _chosen(self, _: Any) -> None:
        self.show()
        self.measure(self._tokens)

    def in_view(self) -> tuple[str, Array]:
        """Return name and numbers (rows, columns) of the matrix that is chosen."""
        name, state = str(self.choice.value), self._state()
        return name, to_host(state.window["key"] if name == KEYS else state.parameters[name])

    def show(self) -> None:
        """Show the numbers of the moment; a matrix that is taller than wide lies on its side, as pages are wide."""
        name, array = self.in_view()
        rows, columns = array.shape
        turned = rows > columns
        self.view.title = f"{name}, {rows:,} x {columns:,}{', on its side' if turned else ''}"
        self.view.row_name, self.view.column_name = ("column", "row") if turned else ("row", "column")
        self.view.update(array.T if turned else array)

    def frame(self, tokens: int, *, seen: bool = True) -> None:
        """Show what is new, if the page has drawn the last picture, and measure when it is time to."""
        started = time.monotonic()
        if self.view.ready and started >= self._shown + (PICTURE_SECONDS if seen else UNSEEN_SECONDS):
            self.show()
            self._shown = started
        if tokens >= self._tokens + EVERY and started >= self._earliest:
            self.measure(tokens)

    def measure(self, tokens: int) -> None:
        """Have the spectrum computed; ``tokens`` were read."""
        name, array = self.in_view()
        copy = np.array(array, np.float32)  # the memory learns on
        self._tokens, self._earliest = tokens, float("inf")  # until this one is there

        def job(_: Callable[[], bool]) -> None:
            started = time.monotonic()
            found = matrix_statistics(copy)
            self._earliest = time.monotonic() + REST * (time.monotonic() - started)
            values = [float(f"{value:.4g}") for value in found.spectrum]
            self._measured(
                {"name": name, "tokens": tokens, "values": values, "rank": float(found.effective_rank)}
            )

        self._newest.submit("spectrum", job)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the spectrum is there."""
        return self._newest.wait(timeout)

    def stop(self) -> None:
        """Compute nothing more."""
        self._newest.stop()

    def forget(self) -> None:
        """Hold no numbers any more: nobody looks at them on a page."""
        self.view.forget()

    def parts(self) -> Iterator[ipywidgets.Widget]:
        """Every widget of this, and this."""
        yield from (self.choice, self.view, self)
