"""``--workers``, ``--scheduler`` and ``--table``: a command on many files, which ``fleet`` spreads.

With one of these options, or more files than the command takes otherwise, the result is a table of rows: JSON lines
for ``--json``, else what is wrong and how many files there were.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._options import FILE

if TYPE_CHECKING:
    from collections.abc import Callable

    from atlas_kit.cli._options import F
    from atlas_kit.fleet.files import FleetFile
    from atlas_kit.fleet.running import FleetResult
    from atlas_kit.fleet.tasks import Row

#: What of a command's options its task takes, by what it is called there.
_TAKEN = {
    "validate": {"data": "data", "strict": "strict", "one_shard": "one_shard"},
    "inspect": {"one_shard": "one_shard"},
    "hash": {"algorithm": "algorithm", "identity": "identity", "full": "full", "one_shard": "one_shard"},
    "compress": {"codec": "codec", "level": "level", "quantize": "quantize", "force": "force",
                 "requantize": "requantize", "decrypt": "decrypt"},
    "diff": {"tolerance": "tolerance", "strict": "strict", "one_shard": "one_shard"},
}  # fmt: skip
#: Options that only say how something is shown, or whether.
_SHOWN = {"as_json", "keys", "quiet", "files", "file", "more", "first", "second", "output", "limit"}
_PROBLEMS_SHOWN = 100


def more_files(function: F) -> F:
    """Add further files to a command that takes one."""
    return click.argument("more", nargs=-1, type=FILE, metavar="[FILE...]")(function)


def fleet_options(task: str) -> Callable[[F], F]:
    """Add the options of a fleet to a command, which is not called where they are used."""

    def decorate(function: F) -> F:
        @click.option(
            "--workers",
            type=click.IntRange(1),
            metavar="N",
            help="Spread many files over N processes of this machine.",
        )
        @click.option(
            "--scheduler", metavar="ADDRESS", help="Spread many files over a Dask cluster (tcp://HOST:8786)."
        )
        @click.option(
            "--table",
            type=FILE,
            metavar="OUT",
            help="Write a row for each file to OUT (JSON lines, or .parquet); what is in it already is not done again.",
        )
        @wraps(function)
        def wrapper(
            *args: Any, workers: int | None, scheduler: str | None, table: str | None, **kwargs: Any
        ) -> Any:
            many = bool(kwargs.get("more")) or any(map(_stands_for_many, _names(kwargs)))
            if workers is None and scheduler is None and table is None and not many:
                kwargs.pop("more", None)
                return function(*args, **kwargs)
            return _run(task, kwargs, workers, scheduler, table)

        return wrapper  # type: ignore[return-value]

    return decorate


def _stands_for_many(name: str) -> bool:
    """Tell whether the name of a file is a pattern at an address, or an address that ends in ``/``."""
    from atlas_kit.storage.urls import is_url, local_path

    if not is_url(name) or local_path(name) is not None:
        return False
    from atlas_kit.storage.remote_listing import stands_for_many

    return stands_for_many(name)


def _run(
    task: str, given: dict[str, Any], workers: int | None, scheduler: str | None, table: str | None
) -> int:
    from atlas_kit.fleet.running import run_fleet, task_of

    if workers and scheduler:
        raise click.UsageError("--workers are processes of this machine, and --scheduler those of a cluster")
    names = _names(given)
    if "-" in names:
        raise click.UsageError("standard input is not one of many files")
    if table == "-":
        raise click.UsageError("--table is a file; --json writes the rows to standard output")
    options = _options(task, given)
    started = time.monotonic()
    files = _files(task, given, names, options, table)
    with _render.progress() as progress:
        result = run_fleet(
            task_of(task, options, given.get("keys")), files, workers=workers or 1, scheduler=scheduler, table=table,
            progress=progress,
        )  # fmt: skip
    if given.get("as_json"):
        for row in result.rows:
            sys.stdout.write(json.dumps(row, ensure_ascii=True) + "\n")
        return result.exit_code
    quiet = bool(given.get("quiet"))
    _render.show(_text(task, result, time.monotonic() - started, table, quiet=quiet))
    return result.exit_code


def _names(given: dict[str, Any]) -> list[str]:
    if "first" in given:
        return [given["first"], given["second"]]
    return list(given["files"]) if "files" in given else [given["file"], *given.get("more", ())]


def _options(task: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the task's options, and refuse what cannot be said of many files."""
    taken = _TAKEN[task]
    context = click.get_current_context()
    for name, value in given.items():
        known = (
            name in taken
            or name in _SHOWN
            or (task, name) in (("hash", "file_only"), ("compress", "no_shuffle"))
        )
        default = context.get_parameter_source(name) in (None, click.core.ParameterSource.DEFAULT)
        if not known and not default and value not in (None, False):
            option = next(one.opts[-1] for one in context.command.params if one.name == name)
            raise click.UsageError(
                f"{option} is for {'two files' if task == 'diff' else 'one file'} at a time"
            )
    options = {inside: given[name] for name, inside in taken.items() if name in given}
    if task == "hash":
        if options["identity"]:
            options = {"identity": True, "full": options["full"]}
        else:
            options = {"algorithm": options["algorithm"], "parts": not given["file_only"],
                       "one_shard": options["one_shard"]}  # fmt: skip
    if task == "compress":
        options["shuffle"] = not given["no_shuffle"]
    return options


def _files(
    task: str, given: dict[str, Any], names: list[str], options: dict[str, Any], table: str | None
) -> list[FleetFile]:
    from atlas_kit.fleet.files import found, pairs, placed

    if task == "diff":
        return list(pairs(given["first"], given["second"]))
    files = list(found(names))
    if task == "compress":
        if given["output"] == "-":
            raise click.UsageError("several files are written into a folder, and standard output is none")
        options["folder"] = given["output"]
        options["resume"] = table is not None
        return placed(files, given["output"])
    return files


def _text(
    task: str, result: FleetResult, seconds: float, table: str | None, *, quiet: bool
) -> Iterator[_render.Block]:
    if task in ("inspect", "hash") and not quiet:
        yield _overview(result.rows) if task == "inspect" else _hashes(result.rows)
    bad = result.failed
    lines = [_render.Styled(f"{row['path']}: {_why(row)}", "bad") for row in bad[:_PROBLEMS_SHOWN]]
    if lines:
        yield _render.Lines(lines)
    if len(bad) > _PROBLEMS_SHOWN:
        yield f"and {len(bad) - _PROBLEMS_SHOWN:,} more"
    if not quiet:
        count = len(result.rows)
        before = f", {result.before:,} done before" if result.before else ""
        well = f"{len(bad):,} not well" if bad else "all well"
        yield f"{_render.plural(count, 'file')}, {well}{before}; {seconds:,.1f} s"
        if table is not None:
            yield f"-> {table}"


def _why(row: Row) -> str:
    if row["problem"]:
        return str(row["problem"]).removeprefix(f"{row['path']}: ")
    told = row["result"] or {}
    for finding in told.get("findings", ()):
        if finding.get("severity") == "error":
            return f"[{finding['code']}] {finding['message']}"
    for problem in told.get("problems", ()):
        return f"damaged: {problem}"
    if "changes" in told:
        return f"{_render.plural(len(told['changes']), 'difference')}"
    return "not well"


def _overview(rows: list[Row]) -> _render.Table:
    told = [(row, row["result"] or {}) for row in rows]
    cells = [
        [
            "" if row["size"] is None else f"{row['size']:,}",
            one.get("format") or "",
            one.get("architecture") or "",
            f"{one['parameters']:,}" if one.get("parameters") else "",
            f"{one['count']:,}" if one.get("count") else "",
            _render.name(row["path"]),
        ]
        for row, one in told
    ]
    return _render.Table([">bytes", "format", "architecture", ">parameters", ">entries", "file"], cells)


def _hashes(rows: list[Row]) -> _render.Table:
    told = [(row, row["result"]) for row in rows if row["result"]]
    cells: list[list[object]] = [
        [one.get("identity") or one["file"], _render.name(row["path"])] for row, one in told
    ]
    return _render.Table(["hash", "file"], cells, heading=False)
