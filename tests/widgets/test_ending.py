"""A cell that is run again ends what it made before: whatever widget that was, with all of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest

from atlas_kit.widgets import FileExplorer, MemoryCompare, ModelCompare, ending
from tests.waiting import LONG

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"
A, B = SAMPLES / "gguf/tiny.gguf", SAMPLES / "gguf/micro.gguf"
MAKERS: dict[str, Callable[[], Any]] = {
    "MemoryCompare": lambda: MemoryCompare({"m": np.eye(4)}, {"m": np.ones((4, 4))}),
    "ModelCompare": lambda: ModelCompare(A, B),
    "FileExplorer": lambda: FileExplorer(A),
}


@pytest.fixture(params=list(MAKERS))
def make(request: pytest.FixtureRequest) -> Iterator[Callable[[], Any]]:
    made = []

    def one() -> Any:
        made.append(MAKERS[request.param]())
        if hasattr(made[-1], "wait"):
            assert made[-1].wait(LONG)
        return made[-1]

    yield one
    for widget in made:
        widget.close()


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cell that is running, and its run: a list to change."""
    now = ["cell", "run 1"]
    monkeypatch.setattr(ending, "cell", lambda: tuple(now))
    monkeypatch.setattr(ending, "_made", {})
    return now


def test_a_cell_that_is_run_again_closes_what_it_made_and_leaves_no_part(
    make: Callable[[], Any], cell: list[str]
):
    known = ipywidgets.widgets.widget._instances
    kept, counts = [], []
    for run in range(4):
        cell[1] = f"run {run}"
        kept.append(make())
        kept[-1]._repr_mimebundle_()
        counts.append(len(known))
    assert [one.comm is None for one in kept] == [True, True, True, False]
    assert len(set(counts)) == 1, counts


def test_two_of_one_run_stay_and_so_does_what_another_cell_shows(make: Callable[[], Any], cell: list[str]):
    first, second = make(), make()
    assert first.comm is not None
    cell[:] = "another", "run 2"
    second._repr_mimebundle_()
    cell[:] = "cell", "run 3"
    make()
    assert first.comm is None
    assert second.comm is not None


def test_what_was_compared_can_still_be_told(cell: list[str]):
    for kind in ("MemoryCompare", "ModelCompare"):
        widget = MAKERS[kind]()
        assert widget.wait(LONG)
        told = widget.text(), widget.html()
        widget.close()
        assert (widget.text(), widget.html()) == told
        assert set(widget._repr_mimebundle_()[0]) == {"text/plain", "text/html", "image/png"}
