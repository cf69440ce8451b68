"""What is done to one file: an operation by its name, with options that can be sent to another process or machine.

``run_one`` never raises for what is wrong with a file: a row says it. Knows nothing of pools and tables.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from atlas_kit.errors import AtlasError, FileAccessError, InvalidParamError
from atlas_kit.fleet.files import FleetFile
from atlas_kit.storage.given import sha256_of
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import Source
from atlas_kit.storage.urls import is_url, local_path, shown

Row = dict[str, Any]

#: So many files of stores are worked on at once in one process: most of the time each waits.
THREADS = 16


@dataclass(frozen=True)
class Task:
    """One operation for many files.

    ``options`` are JSON-ready; ``secret`` is (passphrase, key) for processes of this machine, and None where workers
    look into their own environment; ``others`` are what else may open a file.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    secret: tuple[bytes | None, bytes | None] | None = field(default=None, repr=False)
    others: tuple[tuple[bytes | None, bytes | None], ...] = field(default=(), repr=False)

    @property
    def mark(self) -> str:
        """What the same work would have, too: the operation and its options, in few letters."""
        text = json.dumps([self.name, self.options], sort_keys=True, default=str)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def keys(self) -> Keys:
        """Return what opens encrypted files where the work is done."""
        if self.secret is not None:
            return Keys(*self.secret, others=[Keys(*one) for one in self.others])
        value = os.environ.get("ATLAS_PASSPHRASE")
        return Keys(passphrase=os.fsencode(value), ambient=True) if value else Keys()


def run_many(task: Task, files: Sequence[FleetFile]) -> list[Row]:
    """Do the work for several files: what a worker is sent at once. Those of stores are waited for together."""
    if len(files) < 2 or not any(is_url(file.name) for file in files):
        return [run_one(task, file) for file in files]
    return list(by_threads(task, files))


def by_threads(task: Task, files: Sequence[FleetFile], threads: int = THREADS) -> Iterator[Row]:
    """Do the work in so many threads, and yield the rows in the files' order; who stops does not wait for the rest."""
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(max(1, min(threads, len(files))))
    try:
        yield from pool.map(lambda file: run_one(task, file), files)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def run_one(task: Task, file: FleetFile) -> Row:
    """Do the work for one file, and return its row."""
    started = time.monotonic()
    row: Row = {"path": file.path, "size": file.size, "mark": file.mark, "task": task.mark, "ok": False,
                "exit_code": 2, "problem": None, "result": None}  # fmt: skip
    try:
        result = _OPERATIONS[task.name](file, task.keys(), row, **task.options)
        row["exit_code"] = result.exit_code
        row["ok"] = result.exit_code == 0
        row["result"] = result.to_json()
    except AtlasError as error:
        row["problem"] = error.sentence(error.advice)
    except MemoryError:
        row["problem"] = "there is not enough memory for this"
    except Exception as error:  # one file must not end the work on the others
        row["problem"] = f"internal error: {type(error).__name__}"
    row["seconds"] = round(time.monotonic() - started, 4)
    row["worker"] = f"{socket.gethostname()}:{os.getpid()}"
    return row


def lost(task: Task, file: FleetFile, problem: str) -> Row:
    """Return the row of a file whose work never came to an end."""
    return {"path": file.path, "size": file.size, "mark": file.mark, "task": task.mark, "ok": False, "exit_code": 2,
            "problem": problem, "result": None, "seconds": None, "worker": None}  # fmt: skip


def _opened(file: FleetFile, row: Row) -> Source:
    """Open a file, and put down of which size and state it was."""
    from atlas_kit.storage.given import open_source

    source = open_source(file.name)
    if row["size"] is None:
        row["size"] = source.size
    row["mark"] = row["mark"] or getattr(source, "state", "")
    return source


def _validate(file: FleetFile, keys: Keys, row: Row, **options: Any) -> Any:
    from atlas_kit.operations.validate import validate_file

    try:
        source = _opened(file, row)
    except AtlasError:
        return validate_file(file.name, keys, **options)  # which makes a finding of it
    with source:
        return validate_file(source, keys, **options)


def _inspect(file: FleetFile, keys: Keys, row: Row, **options: Any) -> Any:
    from atlas_kit.operations.inspect import Wanted, inspect_file

    with _opened(file, row) as source:
        return inspect_file(source, Wanted(**options), keys)


def _hash(
    file: FleetFile, keys: Keys, row: Row, *, identity: bool = False, full: bool = False, **options: Any
) -> Any:
    from atlas_kit.operations.hash import hash_file, identify_model

    with _opened(file, row) as source:
        if identity:
            return identify_model(source, full=full)
        return hash_file(source, keys=keys, **options)


def _compress(
    file: FleetFile, keys: Keys, row: Row, *, folder: str, resume: bool = False, **options: Any
) -> Any:
    """Compress into ``folder``; with ``resume``, what is there already and is the same is from a run that was ended."""
    from atlas_kit.operations.compress import compress_file
    from atlas_kit.operations.compressed import CompressOptions
    from atlas_kit.operations.outputs import make_folder

    if not file.other:
        raise InvalidParamError("its address leads out of the folder that results go to", path=file.path)
    output = f"{folder.rstrip('/')}/{file.other}"
    here = local_path(output) if is_url(output) else output
    if here is not None:
        make_folder(os.path.dirname(here))
    wanted = CompressOptions(**options)
    with _opened(file, row) as source:
        try:
            return compress_file(source, output, wanted, keys)
        except FileAccessError as error:
            if not resume or error.remedy is None or error.remedy.name != "overwrite":
                raise
            with tempfile.TemporaryDirectory(prefix="atlas-kit-") as place:
                again = os.path.join(place, os.path.basename(file.other))
                result = compress_file(source, again, wanted, keys)
                if sha256_of(again) != sha256_of(output) and not _same_secret(again, output, keys):
                    raise
            result.output = shown(output)
            return result


def _same_secret(one: str, two: str, keys: Keys) -> bool:
    """Tell whether two encrypted files hold the same: their bytes never are, for each is sealed anew."""
    from atlas_kit.formats.detect import is_encrypted
    from atlas_kit.operations.hash import hash_file

    try:
        if not is_encrypted(one) or not is_encrypted(two):
            return False
        return hash_file(one, keys=keys).content == hash_file(two, keys=keys).content
    except AtlasError:
        return False


def _diff(file: FleetFile, keys: Keys, row: Row, **options: Any) -> Any:
    from atlas_kit.operations.diff import DiffOptions, diff_files

    if not file.name or not file.other:
        raise InvalidParamError(
            f"the file is only in the {'first' if file.name else 'second'} folder", path=file.path
        )
    with _opened(file, row) as source:
        return diff_files(source, file.other, DiffOptions(**options), keys)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "validate": _validate, "inspect": _inspect, "hash": _hash, "compress": _compress, "diff": _diff,
}  # fmt: skip
