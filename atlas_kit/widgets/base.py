"""What every widget shows where no kernel and no JavaScript is: text, HTML and a PNG.

A saved notebook on a web page, an exported HTML file and a terminal get these instead of the live view.
This module knows no widget library; it finds the live view's own bundle further along the bases.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import html
import io
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import InvalidParamError
from atlas_kit.widgets.closed import closed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
#: Code keeps its columns: a page's own style for ``pre`` need not.
CODE = "font-family:var(--jp-code-font-family,monospace)"


class Shown:
    """The static side of a widget: first in the bases of every public one.

    A subclass gives `text` and `figure`; the rest follows from them.
    """

    #: Whether one that is closed can still say what was seen last; if not, its picture stays the one saved before.
    _tells_when_closed = True

    def close(self) -> None:
        """Take the view off every page; the picture of what was seen last stays there."""
        comm = getattr(self, "comm", None)
        if comm is not None and self._tells_when_closed:
            closed[comm.comm_id] = self
        with_view: Any = super()
        with_view.close()
        if self._tells_when_closed:  # also to a cell that shows it anew, which ipywidgets would not do
            self.__dict__.pop("_repr_mimebundle_", None)

    def text(self) -> str:
        """Return a few plain lines: for terminals, tests and screen readers."""
        raise NotImplementedError

    def figure(self) -> Figure:
        """Return the picture as a matplotlib figure of its own, for papers; pyplot does not know it."""
        raise NotImplementedError

    def png(self) -> bytes:
        """Return the picture as a PNG file of 256 colours: a fifth of the size, where matrices look like noise."""
        from PIL import Image  # matplotlib draws with it, too

        drawn, file = io.BytesIO(), io.BytesIO()
        with pages_style(), _quiet():
            self.figure().savefig(drawn, format="png", dpi=DPI, bbox_inches="tight")
        picture = Image.open(drawn).convert("RGBA")
        picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, "png")
        return file.getvalue()

    def svg(self) -> str:
        """Return the picture as SVG, which stays sharp at any size."""
        drawn = io.StringIO()
        with _quiet():
            self.figure().savefig(drawn, format="svg", bbox_inches="tight")
        return drawn.getvalue()

    def sheet(self) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
        """Return what is shown as a table: names of the columns, and rows of texts and numbers.

        Raises
        ------
        InvalidParamError
            It is no table.
        """
        raise InvalidParamError("there is no table in what is shown")

    def csv(self) -> str:
        """Return what is shown as a table in CSV, with the names of the columns in its first line."""
        columns, rows = self.sheet()
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(value) for value in row] for row in rows)
        return file.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save what is shown as a file: ``.png``, ``.svg``, ``.html`` (a page of its own), ``.csv`` or ``.txt``.

        Raises
        ------
        InvalidParamError
            The name ends otherwise, or there is no table to be saved as ``.csv``.
        FileAccessError
            The file cannot be written.
        """
        from atlas_kit.storage.atomic import atomic_write

        data = self.shared(os.path.splitext(os.fspath(path))[1][1:].lower())
        with atomic_write(path) as file:
            file.write(data)

    def shared(self, form: str) -> bytes:
        """Return the bytes of a file of one of the forms that ``save`` knows."""
        if form == "png":
            return self.png()
        if form == "html":
            from atlas_kit.explorer.page import document

            return document(self.html(), self.text().partition("\n")[0]).encode("utf-8", "replace")
        makers = {"svg": self.svg, "csv": self.csv, "txt": self.text}
        if form not in makers:
            raise InvalidParamError(
                f"a widget cannot be saved as {form!r}", hint="Take png, svg, html, csv or txt."
            )
        return makers[form]().encode("utf-8", "replace")

    def html(self) -> str:
        """Return the picture and the text as a piece of HTML that loads nothing and runs nothing."""
        return page(self.png(), self.text())

    def __repr__(self) -> str:
        return self.text()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """Return the live view with the static ones beside it: data and metadata, as IPython asks for them."""
        view = getattr(super(), "_repr_mimebundle_", lambda **_: None)
        # of one that is closed a page would look for the model, and say that there is none
        closed = getattr(self, "comm", self) is None
        live = view(**options) if is_watched() and not closed else None
        data, metadata = live if isinstance(live, tuple) else (live or {}, {})
        return {**data, **self.static_bundle()}, metadata

    def static_bundle(self) -> dict[str, str]:
        """Return what is saved of the widget as it is now: media types -> contents.

        A notebook that is saved in JupyterLab, or run by a program, asks for it anew (``saved.py``), so that what was
        seen last is what is saved.
        """
        picture = base64.b64encode(self.png()).decode("ascii")
        return {"text/plain": self.text(), "text/html": self.html(), "image/png": picture}

    def _ipython_display_(self) -> None:
        """Display the widget where a program runs the notebook; elsewhere IPython asks for the bundle above."""
        if is_watched():
            raise NotImplementedError
        from atlas_kit.widgets.saved import display_for_program

        display_for_program(self)


@contextlib.contextmanager
def pages_style() -> Iterator[None]:
    """Draw figures for a page, which may be light or dark, whatever the notebook's own style is."""
    from matplotlib import style

    with style.context("atlas_kit.widgets.page", after_reset=True):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Draw letters that matplotlib's font lacks as boxes, without a warning above the widget for each of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _cell(value: Any) -> Any:
    """Return a cell of a table; a text that a spreadsheet would take for a formula is marked as a text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def is_watched() -> bool:
    """Tell whether somebody may be looking at the front end that runs this cell.

    A program that only executes a notebook, such as ``nbconvert --execute``, allows no input. The view would be saved
    with a state that an exported page prefers to the picture, and cannot draw without a network. Voila serves what it
    executes.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    kernel: Any = getattr(shell, "kernel", None)
    if not hasattr(kernel, "get_parent") or os.environ.get("SERVER_SOFTWARE", "").startswith("voila"):
        return True
    request = kernel.get_parent() or {}
    return bool(request.get("content", {}).get("allow_stdin", True))


def page(png: bytes, text: str, beside: str = "", shades: bool = False) -> str:
    """Write a picture with its text below as HTML.

    ``beside`` is HTML that stands at the picture's right. ``shades``: it is a matrix, which is darker on a dark page.
    """
    first = html.escape(text.partition("\n")[0], quote=True)
    source = base64.b64encode(png).decode("ascii")
    kind = ' class="ak-shades"' if shades else ""
    return (
        '<figure style="margin:0">'
        '<div style="display:flex;align-items:stretch;gap:6px">'
        f'<img{kind} src="data:image/png;base64,{source}" alt="{first}" style="max-width:100%">{beside}</div>'
        f'<figcaption><pre style="margin:.4em 0 0;{CODE}">{html.escape(text)}</pre></figcaption></figure>'
    )
