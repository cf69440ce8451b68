"""The panes of ``MemoryCompare`` that are no matrices: a table, spectra, a text. Data go in, choices come out."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets

from atlas_kit.widgets.static_modules import joined

_STATIC = Path(__file__).parent.parent / "static" / "compare"
# as text: with a path, anywidget watches the file and keeps every view alive for good
_STYLE = (_STATIC / "compare.css").read_text("utf-8")


class CompareTable(anywidget.AnyWidget):
    """Rows that can be sorted, and one of them chosen; see ``static/compare/table.js`` for columns."""

    _esm = joined("compare/table.js")
    _css = _STYLE

    caption = traitlets.Unicode().tag(sync=True)
    columns = traitlets.List(traitlets.Dict()).tag(sync=True)
    rows = traitlets.List(traitlets.Dict()).tag(sync=True)
    #: Whether a row can be chosen, and the ``id`` of the one that is.
    chooses = traitlets.Bool(False).tag(sync=True)
    selected = traitlets.Unicode().tag(sync=True)


class Spectra(anywidget.AnyWidget):
    """Singular values of A, B and B - A; ``busy`` says what is being computed."""

    _esm = (_STATIC / "spectra.js").read_text("utf-8")
    _css = _STYLE

    series = traitlets.List(traitlets.Dict()).tag(sync=True)
    busy = traitlets.Unicode().tag(sync=True)


class ProbeText(anywidget.AnyWidget):
    """A text, coloured by how differently two memories saw each token coming."""

    _esm = (_STATIC / "text.js").read_text("utf-8")
    _css = _STYLE

    labels = traitlets.List(traitlets.Unicode(), ["A", "B"]).tag(sync=True)
    pieces = traitlets.List(traitlets.Unicode()).tag(sync=True)
    logprob = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    js = traitlets.List(traitlets.Float()).tag(sync=True)
    gain = traitlets.List(traitlets.Float()).tag(sync=True)
    #: For each measure the rows where it is greatest.
    largest = traitlets.Dict().tag(sync=True)
    perplexity = traitlets.Dict().tag(sync=True)
    measure = traitlets.Enum(("gain", "js"), "gain").tag(sync=True)
    #: The token that is looked at, 0 for none, and what was expected there.
    selected = traitlets.Int(0).tag(sync=True)
    detail = traitlets.Dict().tag(sync=True)
    #: Grows when all of the above belong together again: drawn then, and only then.
    shown = traitlets.Int(0).tag(sync=True)
