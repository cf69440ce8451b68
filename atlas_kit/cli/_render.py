r"""The one place that writes to the terminal: results become JSON, plain text, or rich text on a terminal.

A command hands over *blocks* (facts, tables, lines); what they hold comes from files that may be hostile,
so every string is escaped here: no control character and no markup of a file reaches the terminal.
rich is imported only when the output is a terminal. Knows nothing about files.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sized
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.quantities import exact_size as exact_size
from atlas_kit.codecs.quantities import size as size
from atlas_kit.codecs.quantities import utc
from atlas_kit.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Protocol, TypeAlias, TypeVar

    Block: TypeAlias = "Facts | Table | Lines | str"

    class Result(Protocol):
        """What operations return."""

        @property
        def exit_code(self) -> int:
            """Return 0 for fine, 1 for findings or differences, 2 for unreadable input."""

        def to_json(self) -> Any:
            """Return the result as JSON-ready data."""

    R = TypeVar("R", bound=Result)


#: Above this many rows a table is written plainly even on a terminal: rich takes seconds for it.
RICH_ROWS = 500
#: On a narrower terminal columns that wrap show one or two letters a line: long lines say more there.
NARROWEST = 30
#: How many plain rows are measured together, so that a long table starts to appear at once.
PLAIN_ROWS = 1000

STYLES = {"good": "green", "bad": "bold red", "warn": "yellow", "dim": "dim", "head": "bold", "add": "green"}
STYLES |= {"remove": "red", "place": "cyan"}


#: Whether what went well is not worth a word.
_quiet = False

# Plain classes: four dataclasses here would cost every command a few per cent of its time.


class Facts:
    """Names with their values, one a line."""

    def __init__(self, rows: Sequence[tuple[str, object]]) -> None:
        self.rows = rows


class Table:
    """Columns with headings; a heading that starts with ``>`` is aligned to the right."""

    def __init__(
        self, columns: Sequence[str], rows: Iterable[Sequence[object]], heading: bool = True
    ) -> None:
        self.columns = columns
        self.rows = rows
        self.heading = heading


class Lines:
    """Lines of text, each plain or with a style of ``STYLES``."""

    def __init__(self, lines: Iterable[str | Styled]) -> None:
        self.lines = lines


class Styled:
    """Text with a style of ``STYLES``."""

    def __init__(self, text: str, style: str) -> None:
        self.text = text
        self.style = style


def emit(result: R, render: Callable[[R], Iterable[Block]], as_json: bool) -> int:
    """Write a result as JSON or as text, and return its exit code."""
    if as_json:
        from atlas_kit.codecs.json_text import dumped

        data = getattr(result, "streamed_json", result.to_json)()  # of what has a million parts
        sys.stdout.writelines(dumped(data, indent=2))
        sys.stdout.write("\n")
    else:
        show(render(result))
    return result.exit_code


def emit_all(results: Sequence[R], render: Callable[[R], Iterable[Block]], as_json: bool) -> int:
    """Write results, as JSON in one list, and return the largest exit code."""
    if as_json:
        return emit_json(results)
    show(block for result in results for block in render(result))
    return max((result.exit_code for result in results), default=0)


def emit_json(results: Sequence[R]) -> int:
    """Write results as JSON in one list, and return the largest exit code."""
    from atlas_kit.codecs.json_text import dumps

    sys.stdout.write(dumps([result.to_json() for result in results], indent=2) + "\n")
    return max((result.exit_code for result in results), default=0)


def emit_beside(
    result: R, render: Callable[[R], Iterable[Block]], as_json: bool, place: object, *, aside: bool = False
) -> int:
    """Write a result whose main product went to ``place``; on standard output nothing may follow that.

    ``aside``: what was done must be said all the same, on standard error.
    """
    if place is None or isinstance(place, str):
        return emit(result, render, as_json)
    if not aside:
        return result.exit_code
    sys.stdout.flush()
    with redirect_stdout(sys.stderr):
        return emit(result, render, as_json)


def note(text: str) -> None:
    """Say something beside the result, on standard error."""
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()


def safely(text: str) -> None:
    """Write generated text to a terminal, on which its control characters must not act."""
    from atlas_kit.errors import printable

    lines = text.split("\n")
    sys.stdout.write("\n".join("\t".join(map(printable, line.split("\t"))) for line in lines))


@contextmanager
def quietly(quiet: bool) -> Iterator[None]:
    """Show nothing meanwhile of what went well: warnings alone, and JSON."""
    global _quiet
    before, _quiet = _quiet, quiet or _quiet
    try:
        yield
    finally:
        _quiet = before


def _warnings(blocks: Iterable[Block]) -> Iterator[Block]:
    """Yield the lines that warn."""
    for block in blocks:
        if isinstance(block, Lines):
            warning = [one for one in block.lines if isinstance(one, Styled) and one.style in ("warn", "bad")]
            if warning:
                yield Lines(warning)


def show(blocks: Iterable[Block]) -> None:
    """Write blocks to standard output, with an empty line between facts and tables."""
    if _quiet:
        blocks = _warnings(blocks)
    console = _rich_console()
    first = True
    for block in blocks:
        if not first and isinstance(block, (Facts, Table)):
            sys.stdout.write("\n")
        first = False
        if console is not None and not (isinstance(block, Table) and _is_long(block)):
            _show_rich(console, block)
        else:
            _show_plain(block)


def _is_long(table: Table) -> bool:
    rows = table.rows
    return not isinstance(rows, Sized) or len(rows) > RICH_ROWS


def _split(cell: object) -> tuple[str, str]:
    """Return the printable text of a cell, and its style."""
    if isinstance(cell, Styled):
        return printable(cell.text), cell.style
    return ("" if cell is None else printable(str(cell))), ""


# --- plain ---------------------------------------------------------------------------------------------


def _show_plain(block: Block) -> None:
    write = sys.stdout.write
    if isinstance(block, str):
        write(f"{printable(block)}\n")
    elif isinstance(block, Facts):
        width = max((len(name) for name, _ in block.rows), default=0)
        for name, value in block.rows:
            write(f"{name:<{width}}  {_split(value)[0]}".rstrip() + "\n")
    elif isinstance(block, Lines):
        for line in block.lines:
            write(f"{_split(line)[0]}\n")
    else:
        _plain_table(block)


def _plain_table(table: Table) -> None:
    right = [name.startswith(">") for name in table.columns]
    head = [[name.lstrip(">") for name in table.columns]] if table.heading else []
    batch: list[list[str]] = []
    widths = [0] * len(right)
    for row in table.rows:
        batch.append([_split(cell)[0] for cell in row])
        if len(batch) == PLAIN_ROWS:
            widths = _write_rows(head + batch, widths, right)
            head, batch = [], []
    if batch:
        _write_rows(head + batch, widths, right)


def _write_rows(rows: list[list[str]], widths: list[int], right: list[bool]) -> list[int]:
    """Write rows in columns at least as wide as before, and return how wide they became."""
    columns = zip(*rows, strict=True)
    widths = [max(old, *map(_width, column)) for old, column in zip(widths, columns, strict=True)]
    for row in rows:
        cells = []
        for text, width, to_right in zip(row, widths, right, strict=True):
            gap = " " * (width - _width(text))
            cells.append(gap + text if to_right else text + gap)
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    return widths


def _width(text: str) -> int:
    """Return how many terminal columns ``text`` takes."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


# --- rich ----------------------------------------------------------------------------------------------


def _rich_console() -> Any:
    """Return a rich console when standard output is a capable terminal, else ``None``."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return None
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    return console if console.width >= NARROWEST else None


def _show_rich(console: Any, block: Block) -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    def text(cell: object) -> Text:
        plain, style = _split(cell)
        return Text(plain, style=STYLES.get(style, ""), overflow="fold")

    if isinstance(block, str):
        console.print(text(block), soft_wrap=True)
        return
    if isinstance(block, Lines):
        for line in block.lines:
            console.print(text(line), soft_wrap=True)
        return
    grid = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    if isinstance(block, Facts):
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in block.rows:
            grid.add_row(name, text(value))
    else:
        grid.show_header = block.heading
        for name in block.columns:
            grid.add_column(
                name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold"
            )
        for row in block.rows:
            grid.add_row(*map(text, row))
    console.print(grid)


# --- progress ------------------------------------------------------------------------------------------


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """Yield a callback ``(what, done, total)`` that draws a bar on standard error, or ``None``.

    There is no bar when standard error is not a terminal, and none for work of under half a second.
    """
    if not sys.stderr.isatty():
        yield None
        return
    started = time.monotonic()
    shown = 0.0

    def update(what: str, done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - started < 0.5 or now - shown < 0.1:
            return
        shown = now
        share = min(1.0, done / total) if total > 0 else 0.0
        bar = ("#" * int(share * 24)).ljust(24, ".")
        sys.stderr.write(f"\r\x1b[K{share:4.0%} [{bar}] {printable(what)[:40]}")
        sys.stderr.flush()

    try:
        yield update
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


# --- words for numbers ---------------------------------------------------------------------------------


def moment(seconds: int | None) -> str:
    """Return Unix seconds as a UTC time, or the number itself where no calendar reaches."""
    if seconds is None:
        return ""
    if seconds == 0:
        return "not set"
    return utc(seconds) or f"{seconds} (not a time)"


def name(text: str, width: int = 120) -> str:
    """Return a key or a name for a table; of a very long one, its start and its end."""
    text = printable(text)
    return text if len(text) <= width else f"{text[: width - 23]}...{text[-20:]}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return names with commas, of many the first and how many there are more."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(name(one, 60) for one in names[:most]) + more


def shape(dims: Sequence[int] | None) -> str:
    """Return a shape as ``2 x 3``."""
    return "" if dims is None else " x ".join(map(str, dims)) or "scalar"


def plural(count: int, one: str, many: str | None = None) -> str:
    """Return ``1 entry`` or ``2 entries``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
