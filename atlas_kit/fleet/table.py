"""The table of results: a row for each file, JSON lines or Parquet, which says what need not be done again.

Rows are appended as they come, each line whole, so that whatever ends the work loses none of it, and several runs may
write to one table. A Parquet file cannot be appended to: it is made anew at the end, with the lines that lie beside it
until then.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any

from atlas_kit.errors import InvalidParamError, MissingExtraError
from atlas_kit.fleet.files import FleetFile
from atlas_kit.storage.atomic import lock
from atlas_kit.storage.source import access_error
from atlas_kit.storage.urls import is_url, shown

Row = dict[str, Any]
_COLUMNS = ("path", "size", "mark", "task", "ok", "exit_code", "problem", "seconds", "worker", "result")


class ResultTable:
    """Rows in a file (``None``: kept nowhere); ``done`` are the keys of those that hold for the work of ``task``."""

    def __init__(self, place: str | None, task: str) -> None:
        if place is not None and is_url(place):
            raise InvalidParamError("the table is written here and not to an address", path=shown(place))
        if place is not None and os.path.exists(place) and not os.path.isfile(place):
            raise InvalidParamError("the table of results is a file, and this is none", path=place)
        self.place = place
        self.task = task
        self.is_parquet = place is not None and place.lower().endswith((".parquet", ".pq"))
        self._lines = f"{place}.lines" if self.is_parquet else place
        self._fd: int | None = None
        self.done: dict[tuple[str, int | None, str], Row] = {}
        if self.is_parquet:
            _pyarrow()  # said before the work, not after it
        for row in self.rows():
            if row.get("task") == task and row.get("problem") is None and row.get("exit_code") in (0, 1):
                self.done[row["path"], row.get("size"), str(row.get("mark"))] = row

    def has(self, file: FleetFile) -> Row | None:
        """Return the row of a file that was done before and is the same still."""
        return self.done.get((file.path, file.size, file.mark)) if file.mark else None

    def rows(self) -> Iterator[Row]:
        """Yield the rows that are there, older ones first; a line that was cut off is none."""
        if self.is_parquet and self.place is not None and _has_bytes(self.place):
            try:
                table = _pyarrow().parquet.read_table(self.place)
            except Exception:
                raise InvalidParamError("this is not a table of results", path=self.place) from None
            for row in table.to_pylist():
                yield {**row, "result": json.loads(row["result"]) if row.get("result") else None}
        if self._lines is not None and _has_bytes(self._lines):
            try:
                with open(self._lines, "rb") as file:
                    for number, line in enumerate(file):
                        row = _row(line)
                        if row is not None:
                            yield row
                        elif number == 0 and (line.endswith(b"\n") or line[:1] != b"{"):
                            raise InvalidParamError("this is not a table of results", path=self._lines)
            except FileNotFoundError:  # another run has just finished with it
                return
            except OSError as error:
                raise access_error(error, self._lines) from error

    def add(self, row: Row) -> None:
        """Put down a row at once, whole also where another run writes to the same table."""
        if self._lines is None:
            return
        line = json.dumps(row, ensure_ascii=True, default=str).encode() + b"\n"
        try:
            if self._fd is None:
                self._fd = self._opened(self._lines)
            while line:
                line = line[os.write(self._fd, line) :]
        except OSError as error:
            raise access_error(error, self._lines, "write") from error

    def _opened(self, lines: str) -> int:
        """Open the lines to append to; shared, so that nobody who is done removes them meanwhile."""
        while True:
            fd = os.open(lines, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            fcntl.flock(fd, fcntl.LOCK_SH)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(lines)):
                    break
            os.close(fd)
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":  # what ended the work before cut a line off
            os.write(fd, b"\n")
        return fd

    def close(self) -> None:
        """Finish: of several rows of a file the last one counts; Parquet is written whole."""
        try:
            if self.is_parquet and self.place is not None and self._lines is not None:
                self._finish(self.place, self._lines)
        finally:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _finish(self, place: str, lines: str) -> None:
        with lock(place):
            if not os.path.exists(lines):
                return
            if self._fd is None:
                self._fd = self._opened(lines)
            self._write_parquet(place)
            with contextlib.suppress(OSError):  # another run still adds to them, and will do this again
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(lines)

    def _write_parquet(self, place: str) -> None:
        from atlas_kit.storage.atomic import atomic_write

        latest = {(row["path"], row.get("task")): row for row in self.rows()}
        arrow = _pyarrow()
        columns = {name: [row.get(name) for row in latest.values()] for name in _COLUMNS if name != "result"}
        columns["result"] = [json.dumps(row.get("result"), default=str) for row in latest.values()]
        kinds = {
            "size": arrow.int64(),
            "ok": arrow.bool_(),
            "exit_code": arrow.int64(),
            "seconds": arrow.float64(),
        }
        schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in _COLUMNS])
        with atomic_write(place, locked=True) as file:
            arrow.parquet.write_table(
                arrow.table({name: columns[name] for name in _COLUMNS}, schema=schema), file
            )


def _has_bytes(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("path"), str) else None


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("a Parquet table", "cloud") from None
    return pyarrow
