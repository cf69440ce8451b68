"""One operation on many files: what is done already is left out, the rest spread, each row put down as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from atlas_kit.errors import InvalidParamError
from atlas_kit.fleet.files import FleetFile, all_current, told_apart
from atlas_kit.fleet.pools import DaskCluster, OwnProcess, Pool, Processes, spread
from atlas_kit.fleet.table import ResultTable
from atlas_kit.fleet.tasks import THREADS, Row, Task, lost, run_many
from atlas_kit.storage.given import Progress
from atlas_kit.storage.urls import is_url


@dataclass
class FleetResult:
    """What came of it: the rows in the files' order, and how many were done before.

    ``failed`` are those whose operation did not end well, or found something.
    """

    rows: list[Row] = field(default_factory=list)
    before: int = 0

    @property
    def failed(self) -> list[Row]:
        """The rows of files that are not well."""
        return [row for row in self.rows if not row["ok"]]

    @property
    def exit_code(self) -> int:
        """The largest exit code of all files."""
        return max((int(row["exit_code"]) for row in self.rows), default=0)

    def to_json(self) -> list[Row]:
        """Return the rows."""
        return self.rows


def run_fleet(
    task: Task, files: Iterable[FleetFile], *, workers: int = 1, scheduler: str | None = None,
    table: str | None = None, progress: Progress | None = None, tell: Callable[[Row], None] | None = None,
) -> FleetResult:  # fmt: skip
    """Do a task for each of many files; what is wrong with one stops no other.

    Parameters
    ----------
    workers
        How many processes of this machine; 1 is this one.
    scheduler
        The address of a Dask scheduler, whose workers do it instead. They open the files by the same names, and have
        credentials and passphrases of their own.
    table
        Where rows are put down, JSON lines or (``.parquet``) Parquet; files that it has, unchanged, are not done again.
    tell
        Called with each new row.

    Raises
    ------
    InvalidParamError
        A secret would have to go over the network, or ``table`` is another file.
    FileAccessError
        The scheduler does not answer, or the table cannot be written.
    """
    if scheduler is not None and task.secret is not None and any(task.secret):
        raise InvalidParamError(
            "a passphrase or key is not sent to other machines",
            hint="Set ATLAS_PASSPHRASE where the workers run.",
        )
    result = FleetResult()
    known: dict[int, Row] = {}
    every = told_apart(list(files))
    with closing(ResultTable(table, task.mark)) as kept:
        missing: list[tuple[int, FleetFile]] = []
        for number, now in enumerate(all_current(every) if kept.done else every):
            row = kept.has(now)
            if row is None:
                missing.append((number, now))
            else:
                known[number] = row
        result.before = len(known)
        for number, row in _done(task, missing, workers, scheduler):
            known[number] = row
            kept.add(row)
            if tell is not None:
                tell(row)
            if progress is not None:
                progress(row["path"], len(known), len(every))
    result.rows = [known[number] for number in sorted(known)]
    return result


def _done(
    task: Task, files: list[tuple[int, FleetFile]], workers: int, scheduler: str | None
) -> Iterator[tuple[int, Row]]:
    if not files:
        return
    pool: Pool
    if scheduler is not None:
        pool = DaskCluster(scheduler)
    elif workers > 1:
        pool = Processes(workers)
    else:
        pool = OwnProcess(THREADS if any(is_url(file.name) for _, file in files) else 1)
    try:
        yield from spread(pool, partial(_numbered, task), files, partial(_died, task), partial(_failed, task))
    finally:
        pool.close()


def _numbered(task: Task, batch: list[tuple[int, FleetFile]]) -> list[tuple[int, Row]]:
    rows = run_many(task, [file for _, file in batch])
    return [(number, row) for (number, _), row in zip(batch, rows, strict=True)]


def _died(task: Task, item: tuple[int, FleetFile]) -> tuple[int, Row]:
    return item[0], lost(task, item[1], "every worker that took this file died of it")


def _failed(task: Task, item: tuple[int, FleetFile], problem: str) -> tuple[int, Row]:
    return item[0], lost(task, item[1], problem)


def task_of(name: str, options: dict[str, Any], keys: Any = None) -> Task:
    """Return a task with the secret that was given for this work, unless it comes from the environment anyway."""
    secret, others = None, []
    if keys is not None and keys.given and not keys.ambient:
        secret = (keys.passphrase, keys.key)
        others = [(one.passphrase, one.key) for one in keys.others]
    return Task(name, options, secret, tuple(others))
