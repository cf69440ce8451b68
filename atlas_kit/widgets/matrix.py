"""A matrix of any size as a canvas in a notebook: zoom, pan, exact values, a colour scale that several can share.

The browser gets tiles of at most 512 x 512 pooled numbers, one message each, and asks for others where somebody zooms
in; exact values it asks for one at a time. Frames are acknowledged, so that a fast learner does not flood the browser
(``frame_gate.py``). Drawing and keys are in ``static/matrix/matrix.js``, linked views in ``link.py``.
"""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets

from atlas_kit.errors import InvalidParamError
from atlas_kit.explorer.pooling import block
from atlas_kit.widgets import colour, saved
from atlas_kit.widgets.base import Shown, page
from atlas_kit.widgets.frame_gate import FrameGate
from atlas_kit.widgets.link import Link
from atlas_kit.widgets.sources import Array, Measured, TileSource, as_source, measure
from atlas_kit.widgets.static_modules import joined, joined_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Rows and columns of the largest tile: a megabyte per message.
TILE = 512
#: Rows of the saved picture; width to height is in between, and a number gets at most so many pixels.
PICTURE, NARROWEST, WIDEST, LARGEST_CELL = 256, 0.5, 3.0, 64

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Frame:
    """What a tile shows: the browser's side of it is described in ``static/matrix/matrix.js``."""

    number: int  # counts what was sent; the browser acknowledges it
    version: int  # counts the matrices
    shape: tuple[int, int]
    dtype: str
    box: Box  # top, left, bottom, right: the part of the matrix
    size: tuple[int, int]  # the tile's rows and columns
    block: tuple[int, int]  # rows and columns that one number stands for
    unit: float  # what the tile's numbers are multiples of
    nan: int
    infinite: int
    counted: bool  # False: at least so many of both


#: Numbers of a matrix that are saved as a table.
MOST_SAVED = 4_000_000


class MatrixView(Shown, anywidget.AnyWidget):
    """A matrix as a picture.

    Parameters
    ----------
    matrix
        (m, n) real numbers of any type, (n,) as one row, or a `TileSource`. It is not copied: what changes in place is
        seen with the next `update`.
    title, rows, columns
        Names of the matrix and of what its rows and columns are.
    transform
        ``"linear"`` or ``"symlog"``: logarithmic on both sides of zero, over three decades.
    colours
        ``"diverging"`` around zero, or ``"sequential"`` from zero up, for numbers that are not negative.
    vmax
        The magnitude of the strongest colour; without it, the largest finite one in the matrix.
    height
        Height of the picture in CSS pixels; its width follows from the matrix' shape.

    Raises
    ------
    InvalidParamError
        If the matrix has not two axes or no real numbers, or a name is unknown.
    """

    # Text, not paths: anywidget watches a path for the life of the process, and keeps every view alive for it.
    _esm = joined("matrix/matrix.js")
    _css = joined_style("matrix/matrix.css")
    _link: Link | None = None

    # The first three go together as one message, and are made when they are sent: nothing can mix two matrices.
    frame = traitlets.Dict().tag(sync=True, to_json=lambda _, view: asdict(view._made[0]))
    tile = traitlets.Bytes().tag(sync=True, to_json=lambda _, view: view._made[1])
    limit = traitlets.Float().tag(sync=True, to_json=lambda _, view: view.limit_in_use)
    palette = traitlets.Bytes().tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)
    row_name = traitlets.Unicode("row").tag(sync=True)
    column_name = traitlets.Unicode("column").tag(sync=True)
    transform = traitlets.Enum(colour.TRANSFORMS, "linear").tag(sync=True)
    colours = traitlets.Enum(colour.COLOURS, "diverging").tag(sync=True)
    height = traitlets.Int(320, min=32).tag(sync=True)
    error = traitlets.Unicode().tag(sync=True)
    vmax = traitlets.Float(None, allow_none=True)
    #: The part in view as top, left, bottom, right; empty for all of it.
    viewport = traitlets.List(traitlets.Float()).tag(sync=True)
    #: Row and column of the cursor.
    cursor = traitlets.Tuple(traitlets.Int(), traitlets.Int(), default_value=(0, 0)).tag(sync=True)

    def __init__(
        self,
        matrix: Any,
        *,
        title: str = "",
        rows: str = "row",
        columns: str = "column",
        transform: str = "linear",
        colours: str = "diverging",
        vmax: float | None = None,
        height: int = 320,
    ) -> None:
        colour.check(colours, transform)
        self._lock = threading.RLock()  # of the fields below; no callback runs under it
        self._gate = FrameGate()
        self._version = 0
        self._largest = 0.0  # of the last matrix that was measured; read without the lock by linked views
        self._take(matrix)
        self._make(0)
        super().__init__(
            title=title,
            row_name=rows,
            column_name=columns,
            transform=transform,
            colours=colours,
            vmax=vmax,
            height=height,
            palette=_palettes(colours),
        )
        self.on_msg(self._answer)

    # --- the matrix ------------------------------------------------------------------------------------------

    @property
    def matrix(self) -> Any:
        """The matrix in view: the array, or the `TileSource`."""
        return getattr(self._source, "array", self._source)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self._source.shape

    @property
    def ready(self) -> bool:
        """Whether an `update` would be sent at once, because the last one is on the screen."""
        return self._gate.ready

    def update(self, matrix: Any, *, vmax: float | None = None) -> None:
        """Show other numbers in the same place: one message, from any thread.

        While the browser has not drawn the last one nothing is sent; the newest follows when it has.

        Raises
        ------
        InvalidParamError
            As for the class; then the old matrix stays.
        """
        shape = self.shape
        self._take(matrix)
        if self.shape != shape:
            self.viewport, self.cursor = [], (0, 0)
        if vmax is not None:
            self.vmax = vmax
        self._send_when_ready()

    def value(self, row: int, column: int) -> Any:
        """Return one number of the matrix, exactly.

        Raises
        ------
        InvalidParamError
            If it has no such row or column.
        """
        rows, columns = self.shape
        if not (0 <= row < rows and 0 <= column < columns):
            raise InvalidParamError(f"a matrix of {rows} x {columns} has no row {row}, column {column}")
        exactly: Callable[[int, int], Any] | None = getattr(self._source, "value", None)
        if exactly is not None:
            return exactly(row, column)
        return self._source.tile(row, row + 1, column, column + 1, 1, 1)[0, 0]

    def on_cursor(self, callback: Callable[[int, int, Any], None]) -> None:
        """Call ``callback(row, column, value)`` whenever the cursor moves."""

        def moved(change: Any) -> None:
            if 0 not in self.shape:
                row, column = change.new
                callback(row, column, self.value(row, column))

        self.observe(moved, "cursor")

    def _take(self, matrix: Any) -> None:
        """Take a matrix as the one in view."""
        source = as_source(matrix)
        with self._lock:
            if self._version == 0 or self._source.shape != source.shape:
                self._box: Box = (0, 0, *source.shape)
            self._source: TileSource = source
            self._measured: Measured | None = None
            self._version += 1

    # --- the scale -------------------------------------------------------------------------------------------

    @property
    def own_limit(self) -> float:
        """The magnitude of the strongest colour, if this view were alone."""
        return self.vmax or self._largest or 1.0

    @property
    def limit_in_use(self) -> float:
        """The magnitude of the strongest colour: linked views have the largest of theirs."""
        return self.own_limit if self._link is None else self._link.limit

    @staticmethod
    def link(*views: MatrixView) -> None:
        """Let views share their colour scale, what part is in view, and the cursor."""
        Link(views)

    def forget(self) -> None:
        """Hold no numbers any more; a page that shows some keeps them."""
        self._take(np.zeros((1, 1), np.float32))
        with self._lock:
            self._make(0)

    def unlink(self) -> None:
        """Leave the others that this view is linked with."""
        if self._link is not None:
            self._link.leave(self)

    def close(self) -> None:
        """Take the view off every page."""
        self.unlink()
        self.unobserve_all()
        super().close()

    @traitlets.validate("vmax")
    def _check_vmax(self, proposal: Any) -> float | None:
        value: float | None = proposal["value"]
        if value is not None and not 0 < value < float("inf"):
            raise InvalidParamError(f"vmax is {value}", hint="Give a number above zero, or None.")
        return value

    @traitlets.observe("vmax")
    def _rescale(self, _: Any) -> None:
        if self.comm is not None:
            self.send_state("limit")
        if self._link is not None:
            self._link.rescale()

    @traitlets.observe("colours")
    def _recolour(self, change: Any) -> None:
        self.palette = _palettes(change.new)

    @traitlets.validate("cursor")
    def _keep_inside(self, proposal: Any) -> tuple[int, ...]:
        return tuple(
            max(0, min(at, length - 1)) for at, length in zip(proposal["value"], self.shape, strict=True)
        )

    @traitlets.validate("viewport")
    def _check_viewport(self, proposal: Any) -> list[float]:
        value: list[float] = proposal["value"]
        if value and not (len(value) == 4 and value[0] < value[2] and value[1] < value[3]):
            raise InvalidParamError(
                f"{value} is not a part of a matrix", hint="Give top, left, bottom, right."
            )
        return value

    # --- frames ----------------------------------------------------------------------------------------------

    def _send_when_ready(self) -> None:
        number = self._gate.ask()
        if number is not None:
            self._send_frame(number)

    def _send_frame(self, number: int) -> None:
        with self._lock:
            self._make(number)
            if self.comm is not None:
                self.send_state(("frame", "tile", "limit"))
        if self._link is not None:
            self._link.rescale(sent=self)

    def _measure(self) -> Measured:
        """Look at the whole matrix, once for each that comes."""
        with self._lock:
            if self._measured is None:
                self._measured = measure(self._source, TILE)
                self._largest = self._measured.largest
            return self._measured

    def _make(self, number: int) -> None:
        """Pool the part that is in demand."""
        source, measured = self._source, self._measure()
        top, left, bottom, right = self._box
        whole = self._box == (0, 0, *source.shape)
        pooled = measured.overview if whole else source.tile(top, bottom, left, right, TILE, TILE)
        unit = _unit(measured.largest)
        numbers = np.ascontiguousarray(pooled if unit == 1 else pooled / unit, np.float32)
        frame = Frame(
            number=number,
            version=self._version,
            shape=source.shape,
            dtype=getattr(source, "dtype", ""),
            box=self._box,
            size=numbers.shape,
            block=(block(bottom - top, numbers.shape[0]), block(right - left, numbers.shape[1])),
            unit=unit,
            nan=measured.nan,
            infinite=measured.infinite,
            counted=measured.counted,
        )
        self._made: tuple[Frame, bytes] = frame, numbers.tobytes()

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> Any:
        """Return what the browser is to know; a page that was loaded again gets the newest frame."""
        with self._lock:
            if key is None and self._gate.waiting:
                self._make(self._gate.force())
            return super().get_state(key, drop_defaults)

    # --- what the browser asks -------------------------------------------------------------------------------

    def _answer(self, _: Any, message: dict[str, Any], buffers: Any) -> None:
        try:
            if message["kind"] == "shown":
                number = self._gate.acknowledge(message["number"])
                if number is not None:
                    self._send_frame(number)
            elif message["kind"] == "tile":
                self._box = self._inside(message["box"])
                self._send_when_ready()
            elif message["kind"] == "value":
                place = {"row": message["row"], "column": message["column"]}
                text = str(self.value(place["row"], place["column"]))
                self.send({"kind": "value", "version": self._version, "text": text, **place})
        except Exception as error:  # whatever the source raises: what it reads may be gone
            self.error = str(error) or type(error).__name__
        else:
            self.error = ""

    def _inside(self, box: list[int]) -> Box:
        """Return the part of a box that is in the matrix."""
        top, left = (max(0, int(first)) for first in box[:2])
        bottom, right = (min(int(end), length) for end, length in zip(box[2:], self.shape, strict=True))
        if top >= bottom or left >= right:
            raise InvalidParamError(f"{box} is not a part of a matrix of {self.shape[0]} x {self.shape[1]}")
        return top, left, bottom, right

    # --- without a browser -----------------------------------------------------------------------------------

    def text(self) -> str:
        """Return shape, scale and what is odd, in words."""
        with self._lock:  # a smaller matrix may be on its way, and the cursor not inside it yet
            return self._in_words()

    def _in_words(self) -> str:
        measured = self._measure()
        rows, columns = self.shape
        dtype = getattr(self._source, "dtype", "")
        lines = [f"{self.title or 'matrix'}: {rows:,} x {columns:,} {dtype}".rstrip()]
        if 0 in self.shape:
            return lines[0]
        lines.append(f"largest magnitude {measured.largest:.6g}, colours up to {self.limit_in_use:.6g}")
        if measured.nan or measured.infinite:
            least = "" if measured.counted else "at least "
            lines.append(f"{least}{measured.nan:,} NaN, {measured.infinite:,} infinite")
        row, column = min(self.cursor[0], rows - 1), min(self.cursor[1], columns - 1)
        lines.append(f"{self.row_name} {row}, {self.column_name} {column}: {self.value(row, column)}")
        return "\n".join(lines)

    def sheet(self) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
        """Return the numbers of the matrix, a row for each of its rows, under the numbers of its columns.

        Raises
        ------
        InvalidParamError
            There are more than ``MOST_SAVED`` of them.
        """
        rows, columns = self._source.shape
        if rows * columns > MOST_SAVED:
            raise InvalidParamError(f"the matrix has more than {MOST_SAVED:,} numbers, too many for a table")
        numbers = self._source.tile(0, rows, 0, columns, rows, columns)
        return ["row", *map(str, range(columns))], ([n, *row] for n, row in enumerate(numbers.tolist()))

    def figure(self) -> Figure:
        """Return the matrix with its colour bar as a matplotlib figure of its own."""
        from matplotlib.figure import Figure

        rows, columns = self.shape
        height, width = picture_size(self.shape, 320)
        overview = self._measure().overview
        limit = self.limit_in_use
        figure = Figure(figsize=(width / 100 + 1.6, height / 100 + 0.8), layout="constrained")
        axes = figure.add_subplot(
            title=self.title, xlabel=self.column_name, ylabel=self.row_name, label="matrix"
        )
        picture = axes.imshow(
            overview if rows * columns else np.full((1, 1), np.nan),
            cmap=colour.colormap(self.colours),
            norm=colour.norm(limit, self.transform, self.colours),
            extent=(-0.5, max(columns, 1) - 0.5, max(rows, 1) - 0.5, -0.5),
            interpolation="nearest",
            aspect="auto",
        )
        ticks = colour.ticks(limit, self.transform, self.colours)
        bar = figure.colorbar(picture, ax=axes, ticks=ticks)
        bar.ax.set_yticklabels([f"{tick:.3g}" for tick in ticks])
        return figure

    def png(self) -> bytes:
        """Return the matrix and a colour bar, without their numbers; it needs no matplotlib."""
        self._measure()
        limit = self.limit_in_use
        picture = self._picture(limit)
        ramp = np.linspace(1, 0 if self.colours == "sequential" else -1, len(picture))
        values = colour.unscaled(ramp, limit, self.transform)[:, None]
        bar = colour.indices(np.repeat(values, 12, axis=1), limit, self.transform, self.colours)
        gap = np.full((len(picture), 6), colour.BLANK, np.uint8)
        return colour.png(np.hstack([picture, gap, bar]), colour.palette(self.colours))

    def _picture(self, limit: float) -> Array:
        """Return palette indices of the whole matrix in a size to look at."""
        height, width = picture_size(self.shape, PICTURE)
        rows, columns = self.shape
        if not rows * columns:
            return np.full((height, width), colour.BLANK, np.uint8)
        tile = self._source.tile(0, rows, 0, columns, height, width)
        large = tile[np.arange(height) * len(tile) // height][:, np.arange(width) * tile.shape[1] // width]
        return colour.indices(large, limit, self.transform, self.colours)

    def html(self) -> str:
        """Return the picture, the numbers of its colour bar, and the text."""
        ticks = colour.ticks(self.limit_in_use, self.transform, self.colours)
        marks = "".join(f"<span>{html.escape(f'{tick:.3g}')}</span>" for tick in reversed(ticks))
        style = "display:flex;flex-direction:column;justify-content:space-between;font:11px sans-serif"
        beside = f'<div style="{style}">{marks}</div>'
        return saved.part(page(self.png(), self.text(), beside, shades=self.colours == "diverging"))


def picture_size(shape: tuple[int, int], height: int) -> tuple[int, int]:
    """Return height and width in pixels: square cells, unless the matrix is very long or very wide."""
    rows, columns = (max(1, length) for length in shape)
    width = height * min(max(columns / rows, NARROWEST), WIDEST)
    return min(height, rows * LARGEST_CELL), round(min(width, columns * LARGEST_CELL))


def _palettes(colours: str) -> bytes:
    """Return the tables for a light and for a dark page."""
    return colour.palette(colours).tobytes() + colour.palette(colours, dark=True).tobytes()


def _unit(largest: float) -> float:
    """Return what to divide by so that float32 holds the numbers; nearly always 1."""
    return 1.0 if 1e-30 < largest < 1e30 or largest == 0 else largest
