"""A table of what files are, to sort and plot: one row of metadata for each, as a pandas ``DataFrame``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atlas_kit.errors import MissingExtraError
from atlas_kit.fleet.files import found
from atlas_kit.fleet.running import run_fleet
from atlas_kit.fleet.tasks import THREADS, Row, Task, by_threads
from atlas_kit.storage.given import Progress


def scan(
    names: str | Sequence[str], *, threads: int = THREADS, workers: int = 1, scheduler: str | None = None,
    table: str | None = None, progress: Progress | None = None,
) -> Any:  # fmt: skip
    """Return a ``pandas.DataFrame`` with a row for each file: path, size, format, and what its metadata say.

    Of each file only the header is read. What cannot be read has its ``problem`` in a column, and stops nothing.

    Parameters
    ----------
    names
        Paths, patterns (``"s3://bucket/**/*.gguf"``), folders, or several of them.
    threads
        How many files are read at once, where no other process does it.
    workers, scheduler, table
        As for ``run_fleet``: processes of this machine, a Dask cluster, a table that says what is done already.

    Raises
    ------
    NoSuchFileError
        There is no such file at all.
    MissingExtraError
        pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise MissingExtraError("a table of files", "cloud") from None
    files = list(found([names] if isinstance(names, str) else list(names)))
    task = Task("inspect")
    if workers > 1 or scheduler is not None or table is not None:
        rows = run_fleet(
            task, files, workers=workers, scheduler=scheduler, table=table, progress=progress
        ).rows
    else:
        rows = []
        for row in by_threads(task, files, threads):
            rows.append(row)
            if progress is not None:
                progress(row["path"], len(rows), len(files))
    return pandas.DataFrame([flat(row) for row in rows])


def flat(row: Row) -> Row:
    """Return a row whose metadata are columns: plain values only, and of tensor types the one with the most bytes."""
    told = row.get("result") or {}
    made: Row = {"path": row["path"], "size": row["size"], "ok": row["ok"]}
    for name, value in told.items():
        if name not in made and (value is None or isinstance(value, (str, int, float, bool))):
            made[name] = value
    types = told.get("tensor_types")
    if isinstance(types, dict) and types:
        made["tensor_type"] = max(types, key=lambda name: types[name]["bytes"])
    problems = told.get("problems") or ()
    made["problem"] = row["problem"] or "; ".join(map(str, problems)) or None
    return made
