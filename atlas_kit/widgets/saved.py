"""What of a widget is saved: pages that can be looked around in without a kernel, and how they are kept up to date.

Pages are made in ``explorer/page.py``; here are matrices, in the widgets' colours, and when a page is asked for.
Knows no widget; ``Shown`` in ``base.py`` puts a page where it is saved.
"""

from __future__ import annotations

import base64
import html
import sys
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from atlas_kit.explorer.page import (
    MOST,
    MOST_ROWS,
    POINTS,
    Curve,
    Panel,
    bars,
    curves,
    document,
    facts,
    heatmap,
    page,
    part,
    picture,
    table,
    text,
)
from atlas_kit.widgets.closed import closed

if TYPE_CHECKING:
    from atlas_kit.codecs.numbers import Array

#: Cells of a matrix down and across that say their values; of one among several, fewer.
CELLS = 40, 64
FEW = 12, 16
#: Rows and columns of a matrix's picture; of one among several, fewer.
PIXELS, FEW_PIXELS = 384, 160


def matrix(
    values: Array, name: str, limit: float | None = None, transform: str = "linear",
    shape: tuple[int, int] | None = None, blocks: tuple[int, int] = (1, 1), most: tuple[int, int] = CELLS,
) -> str:  # fmt: skip
    """Return a matrix (m, n) as a picture that says under the pointer what is largest there.

    Parameters
    ----------
    limit
        The value of the strongest colour, by default the largest.
    shape, blocks
        Of which matrix these are blocks of so many rows and columns; by default they are the matrix.
    most
        Cells down and across that say their values; fewer where there are several matrices.
    """
    from atlas_kit.explorer.pooling import block, pool, pool_blocks
    from atlas_kit.widgets import colour

    if not values.size:
        return '<p class="ak-dim">There are no numbers in it.</p>'
    rows, columns = shape or values.shape
    pixels = PIXELS if most == CELLS else FEW_PIXELS
    shown = pool(values, pixels, pixels)
    finite = np.abs(shown[np.isfinite(shown)])
    limit = limit or float(finite.max(initial=0.0)) or 1.0
    png = colour.png(colour.indices(shown, limit, transform), colour.palette())
    source = base64.b64encode(png).decode("ascii")
    down, across = block(values.shape[0], most[0]), block(values.shape[1], most[1])
    step_y, step_x = down * blocks[0], across * blocks[1]
    wide, high = 640, max(60, min(420, round(640 * rows / columns)))
    cell_x, cell_y = wide * step_x / columns, high * step_y / rows
    cells = []
    for (y, x), value in np.ndenumerate(pool_blocks(values, down, across)):
        at = _places("row", y * step_y, step_y, rows), _places("column", x * step_x, step_x, columns)
        cells.append(
            f'<rect x="{x * cell_x:.1f}" y="{y * cell_y:.1f}"><title>{at[0]}, {at[1]}: {value:.4g}</title></rect>'
        )
    title = html.escape(f"{name}, {rows:,} x {columns:,}")
    return (
        f"<figure><figcaption><b>{title}</b> "
        f'<div class="ak-dim">blue to red: {-limit:.4g} to {limit:.4g}</div></figcaption>'
        f'<svg viewBox="0 0 {wide} {high}" width="{wide}" role="img" aria-label="{title}">'
        f'<image class="ak-shades" href="data:image/png;base64,{source}" width="{wide}" height="{high}" '
        f'preserveAspectRatio="none" style="image-rendering:pixelated"/>'
        f'<g class="ak-cells" style="--w:{cell_x:.2f}px;--h:{cell_y:.2f}px">'
        f"{''.join(cells)}</g></svg></figure>"
    )


def _places(what: str, first: int, step: int, count: int) -> str:
    last = min(count, first + step) - 1
    return f"{what} {first:,}" if first == last else f"{what}s {first:,} to {last:,}"


# --- kept up to date ----------------------------------------------------------------------------------------


def newest(models: Sequence[str]) -> Any:
    """Return what of these widgets is to be saved now: their ids -> media types -> contents, as JSON for a page.

    The Lab's extension asks before it saves a notebook, and when a widget was closed (``jupyter/static/still.js``).
    """
    from IPython import display
    from ipywidgets.widgets import widget as known

    found: dict[str, dict[str, str]] = {}
    for model in models:
        shown = known._instances.get(model) or closed.get(model)
        bundle = getattr(shown, "static_bundle", None)
        if bundle is not None:
            try:
                found[model] = bundle()
            except Exception:  # what one widget cannot show must not keep a notebook from being saved
                continue
    as_json: Any = display.JSON
    return as_json(found)


def shared(model: str, form: str) -> Any:
    """Return a file of what a widget shows now, as JSON for a page: ``filename``, ``type`` and ``data`` in base64."""
    from IPython import display
    from ipywidgets.widgets import widget as known

    as_json: Any = display.JSON
    shown = known._instances.get(model)
    if not hasattr(shown, "shared"):
        return as_json({"error": "The widget is gone: run its cell again."})
    try:
        data = shown.shared(form)
    except Exception as error:  # whatever it is: it must reach the reader
        said = getattr(error, "message", "") or str(error) or type(error).__name__
        return as_json({"error": f"{said[:1].upper()}{said[1:]}."})
    name = "".join(letter if letter.isalnum() else "-" for letter in type(shown).__name__)
    return as_json({
        "filename": f"{name}.{form}", "type": _TYPES[form], "data": base64.b64encode(data).decode("ascii")
    })  # fmt: skip


_TYPES = {
    "png": "image/png",
    "svg": "image/svg+xml",
    "html": "text/html",
    "csv": "text/csv",
    "txt": "text/plain",
}

#: What a program's notebook shows, by the id of its output: the widget, and what it said last.
_displayed: dict[str, tuple[weakref.ReferenceType[Any], str]] = {}


def display_for_program(shown: Any) -> None:
    """Display a widget's static forms in a notebook that a program runs, and anew after each cell that changes it."""
    from IPython import display

    show: Any = display.display
    shell: Any = sys.modules["IPython"].get_ipython()
    name = uuid4().hex
    show(shown.static_bundle(), raw=True, display_id=name)
    _displayed[name] = weakref.ref(shown), shown.text()
    if _after_cell not in shell.events.callbacks["post_run_cell"]:
        shell.events.register("post_run_cell", _after_cell)


def _after_cell(_result: object = None) -> None:
    from IPython import display

    update: Any = display.update_display
    for name, (reference, before) in list(_displayed.items()):
        shown = reference()
        if shown is None:
            del _displayed[name]
            continue
        now = shown.text()
        if now != before:
            _displayed[name] = reference, now
            update(shown.static_bundle(), raw=True, display_id=name)


__all__ = [
    "CELLS",
    "FEW",
    "MOST",
    "MOST_ROWS",
    "PIXELS",
    "POINTS",
    "Curve",
    "Panel",
    "bars",
    "curves",
    "display_for_program",
    "document",
    "facts",
    "heatmap",
    "matrix",
    "newest",
    "page",
    "part",
    "picture",
    "shared",
    "table",
    "text",
]
