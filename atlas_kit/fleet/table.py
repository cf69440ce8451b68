"""The table of results: a row for each file, JSON lines or Parquet, which says what need not be done again.

Rows are appended as they come, each line whole, so that whatever ends the work loses none of it. A Parquet file cannot
be appended to: it is made at the end, from the lines that lie beside it until then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import IO, Any

from atlas_kit.errors import InvalidParamError, MissingExtraError
from atlas_kit.fleet.files import FleetFile
from atlas_kit.storage.source import access_error
from atlas_kit.storage.urls import is_url, shown

Row = dict[str, Any]
_COLUMNS = ("path", "size", "mark", "task", "ok", "exit_code", "problem", "seconds", "worker", "result")


class ResultTable:
    """Rows in a file (``None``: kept nowhere); ``done`` are the keys of those that hold for the work of ``task``."""

    def __init__(self, place: str | None, task: str) -> None:
        if place is not None and is_url(place):
            raise InvalidParamError("the table is written here and not to an address", path=shown(place))
        self.place = place
        self.task = task
        self.is_parquet = place is not None and place.lower().endswith((".parquet", ".pq"))
        self._lines = f"{place}.lines" if self.is_parquet else place
        self._file: IO[bytes] | None = None
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
        """Yield the rows that are there; a line that was cut off is none."""
        if self._lines is not None and os.path.exists(self._lines):
            try:
                with open(self._lines, "rb") as file:
                    for number, line in enumerate(file):
                        row = _row(line)
                        if row is not None:
                            yield row
                        elif number == 0 and (line.endswith(b"\n") or line[:1] != b"{"):
                            raise InvalidParamError("this is not a table of results", path=self._lines)
            except OSError as error:
                raise access_error(error, self._lines) from error
        elif self.is_parquet and self.place is not None and os.path.exists(self.place):
            try:
                table = _pyarrow().parquet.read_table(self.place)
            except Exception:
                raise InvalidParamError("this is not a table of results", path=self.place) from None
            for row in table.to_pylist():
                yield {**row, "result": json.loads(row["result"]) if row.get("result") else None}

    def add(self, row: Row) -> None:
        """Put down a row at once."""
        if self._lines is None:
            return
        try:
            if self._file is None:
                self._file = self._opened(self._lines)
            self._file.write(json.dumps(row, ensure_ascii=True, default=str).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise access_error(error, self._lines, "write") from error

    def _opened(self, lines: str) -> IO[bytes]:
        if self.is_parquet and not os.path.exists(lines):
            with open(lines, "wb") as made:
                made.writelines(json.dumps(row, default=str).encode() + b"\n" for row in self.done.values())
        file = open(lines, "a+b")  # noqa: SIM115 (closed by ``close``)
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # what ended the work before cut a line off
                file.write(b"\n")
        return file

    def close(self) -> None:
        """Finish: of several rows of a file the last one counts; Parquet is written whole."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if (
            self.is_parquet
            and self.place is not None
            and self._lines is not None
            and os.path.exists(self._lines)
        ):
            self._write_parquet(self.place)
            os.unlink(self._lines)

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
        with atomic_write(place) as file:
            arrow.parquet.write_table(
                arrow.table({name: columns[name] for name in _COLUMNS}, schema=schema), file
            )


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
