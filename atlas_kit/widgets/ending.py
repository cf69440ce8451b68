"""How widgets end: with all that ipywidgets keeps of them, and when the cell that made them makes others.

A cell that is run again replaces its output, and nobody sees what it made before; but ipywidgets and the notebook's Out
keep it. Knows widgets by nothing but that.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

import ipywidgets

#: What each cell's newest run made: the cell -> the run, and its widgets.
_made: dict[str, tuple[str, weakref.WeakSet[Any]]] = {}


def cell() -> tuple[str, str] | None:
    """Return the notebook's cell that is running, and which of its runs this is; None where nobody says so."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    kernel: Any = getattr(shell, "kernel", None)
    request = (kernel.get_parent() or {}) if hasattr(kernel, "get_parent") else {}
    name = request.get("metadata", {}).get("cellId")
    return (str(name), str(request.get("header", {}).get("msg_id", ""))) if name else None


def replace(widget: Any) -> None:
    """Note that the cell that is running made a widget, and close what an earlier run of it made of this class.

    What another cell shows, too, stays (``shown``).
    """
    now = cell()
    if now is None:
        return
    name, run = now
    before, others = _made.get(name, ("", weakref.WeakSet()))
    if before == run:
        others.add(widget)
        return
    kept: weakref.WeakSet[Any] = weakref.WeakSet([widget])
    _made[name] = run, kept
    for other in others:
        if type(other).__name__ == type(widget).__name__ and not getattr(other, "_elsewhere", False):
            other.close()
        else:
            kept.add(other)


def shown(widget: Any) -> None:
    """Note that the cell that is running shows a widget."""
    now = cell()
    if now is not None and not any(widget in made for name, (_, made) in _made.items() if name == now[0]):
        widget._elsewhere = True


def close(*widgets: ipywidgets.Widget) -> None:
    """Close widgets with their layouts and styles, which are widgets as well and would stay for good."""
    for widget in widgets:
        close_looks(widget)
        widget.close()


def close_parts(widget: ipywidgets.Widget) -> None:
    """Close everything below a widget that closes itself, and its own looks."""
    for part in getattr(widget, "children", ()):
        close_parts(part)
        part.close()
    close_looks(widget)


def close_looks(widget: ipywidgets.Widget) -> None:
    """Close layout and style of a widget that closes itself."""
    for name in ("layout", "style"):
        part = getattr(widget, name, None)
        if isinstance(part, ipywidgets.Widget):
            part.close()
