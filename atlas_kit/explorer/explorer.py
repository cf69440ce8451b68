"""What the file explorer shows, as JSON-ready data and buffers: one message in, one answer out. Knows no Jupyter.

Opening reads the header or the index only, and every answer is bounded, whatever the size of the file. A message is
``{"op": NAME, ...}``; the operations are the methods of ``Explorer`` named ``_op_NAME``, which say what they take.
"""

from __future__ import annotations

import importlib
import json
import os
import stat
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_kit.background import start_thread
from atlas_kit.codecs.json_text import plain
from atlas_kit.codecs.quantities import exact_size
from atlas_kit.errors import (
    AtlasError,
    FileAccessError,
    InvalidParamError,
    NoSuchFileError,
    Remedy,
    WrongKeyError,
    printable,
)
from atlas_kit.explorer.contents import Contents
from atlas_kit.explorer.items import Item, visible
from atlas_kit.formats.detect import detect
from atlas_kit.storage.atomic import atomic_write
from atlas_kit.storage.given import open_source
from atlas_kit.storage.keys import Keys, passphrase_bytes
from atlas_kit.storage.source import Source, access_error
from atlas_kit.storage.urls import is_url

if TYPE_CHECKING:
    from atlas_kit.explorer.matrix import StoredMatrix
    from atlas_kit.llama.words_only import WordsOnly
    from atlas_kit.operations.validate import FileReport
    from atlas_kit.storage.given import Given, StrPath

#: Bytes of one page of the hex view, and of a file that goes through the browser.
PAGE = 1 << 12
DOWNLOAD = 1 << 25
#: Regions that are named in one picture of the map: the widest.
LABELS = 48
#: Regions that share a pixel and are looked at for a group that all of them have.
GROUPED = 64
#: Backups that are offered: the newest.
BACKUPS = 8
#: Bytes of a file that is checked when it is opened, and the seconds that opening waits for it.
SMALL, MOMENT = 1 << 21, 0.5
#: What a model shows of language, and the value of its metadata beside which it stands.
PANES = {"tokenizer": "tokenizer.ggml.tokens", "template": "tokenizer.chat_template"}
#: Findings of files that are whole, but that not every program, or none on this machine, can use as they are.
WHOLE = frozenset({
    "big-endian", "version-1", "version-unknown", "bad-version", "wrong-key", "shard-missing", "architecture-unknown",
    "architecture-not-loadable", "pre-tokenizer-unknown", "tokenizer-unknown", "tensor-type-unknown",
    "tensor-type-removed", "tensor-type-unusable", "alignment-unmappable", "tensor-name-long", "edit-interrupted",
})  # fmt: skip
Answer = tuple[dict[str, Any], list[bytes]]


class Explorer:
    """A file of any kind, opened to be looked at.

    Never raises for what is in the file: ``problem`` and ``summary`` say what is wrong with it in one sentence.

    Attributes
    ----------
    path
        The file.
    contents
        What is known of it.
    problem
        Why it can be shown only in part, or not at all; else None.

    Parameters
    ----------
    moves
        Whether a message may have it show a backup of the file instead. A server that has to say which files may be
        seen does not want that.
    """

    def __init__(self, path: StrPath, passphrase: str | bytes | None = None, *, moves: bool = False) -> None:
        self.path = os.fspath(path)
        self._home = self.path
        self._moves = moves
        self._lock = threading.RLock()
        self._closed = False
        self._check: _Check | None = None
        self._words: WordsOnly | None = None
        self._item: tuple[tuple[str, int], Item] | None = None
        self.problem: AtlasError | None = None
        self.contents: Contents = Contents(open_source(b""))
        self._open(passphrase)

    def _open(self, passphrase: str | bytes | None) -> None:
        try:
            self._take(open_contents(self.path, passphrase, tolerant=True))
        except AtlasError as error:
            self.problem = error

    def _take(self, contents: Contents) -> None:
        """Look at these contents from now on."""
        if contents.source is not self.contents.source:
            self.contents.close()
        self.contents, self.problem, self._item = contents, contents.problem, None
        if self._words is not None:
            self._words.close()
            self._words = None

    @property
    def passphrase(self) -> str | bytes | None:
        """What has opened an encrypted file; None where nothing has."""
        return getattr(self.contents, "passphrase", None)

    def _require_open(self) -> None:
        if self._closed:
            raise _closed_error(self.path)

    def changed_on_disk(self) -> tuple[int, ...] | None:
        """Return what tells the file at the path from others, if it is another than what is shown; None if it is not.

        None as well where nothing is at the path, so that what was read last is all that is known, and for an address,
        which would have to be asked.
        """
        if self._closed or is_url(self.path):
            return None
        try:
            now = os.stat(self.path)
        except OSError:
            return None
        appeared = isinstance(self.problem, NoSuchFileError)
        if not (appeared or self.contents.source.changed()):
            return None
        return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns

    def close(self) -> None:
        """Release the file; questions that still come are answered with a sentence."""
        with self._lock:
            self._closed = True
            self._take(Contents(open_source(b""), _closed_error(self.path)))

    def __enter__(self) -> Explorer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- answering ------------------------------------------------------------------------------------------

    def answer(self, message: dict[str, Any]) -> Answer:
        """Return the answer to a message, and the buffers that belong to it.

        What goes wrong is an answer too: ``{"error": sentence, "hint": ..., "remedy": ..., "offset": ...}``. Every
        answer has ``"changed": true`` once the file is another than was opened. Safe to call from several threads.
        """
        buffers: list[bytes] = []
        try:
            with self._lock:
                found = self._act(**message)
            reply, buffers = found if isinstance(found, tuple) else (found, buffers)
        except AtlasError as error:
            reply = _error(error)
        except Exception as error:  # a message may hold anything: it must not reach the kernel's log
            reply = {"error": f"this cannot be shown: {printable(str(error)) or type(error).__name__}"}
        if self.contents.source.changed():
            reply["changed"] = True
        return plain(reply), buffers

    def _act(self, op: object = None, id: object = None, **given: Any) -> Any:
        """Do one operation; ``id`` is for whoever sent the message."""
        act: Callable[..., Any] | None = getattr(self, f"_op_{op}", None)
        if act is None:
            raise InvalidParamError(f"the explorer does not know the operation {op!r}")
        return act(**given)

    def _op_summary(self, check: bool = False) -> dict[str, Any]:
        """Say what the file is, what it holds, what is wrong with it; ``check``: and the findings of a small one."""
        contents = self.contents
        size = contents.source.size
        facts = [("Size", exact_size(size)), *contents.facts()]
        return {
            "name": printable(os.path.basename(self.path)), "path": printable(self.path), "kind": contents.kind,
            "title": contents.title, "size": size, "locked": contents.locked,
            "problem": None if self.problem is None else _error(self.problem),
            "backup_of": None if self.path == self._home else os.path.basename(self._home),
            "facts": [[label, printable(value)] for label, value in facts], "panes": self._panes(),
            "groupings": list(contents.groupings) if "tensors" in contents.tables else [],
            "tables": {name: table.to_json() for name, table in contents.tables.items()},
            **({"findings": found} if check and (found := self._checked_soon()) else {}),
        }  # fmt: skip

    def _checked_soon(self) -> dict[str, Any] | None:
        """Return what is wrong with a small file that is open; None where that takes longer than a moment."""
        size = self.contents.source.size
        if self._closed or not 0 < size <= SMALL or self.contents.locked:
            return None
        self._op_validate()
        assert self._check is not None
        found = self._check.wait(MOMENT).to_json(self.contents)
        return found if found["state"] == "done" else None

    def _panes(self) -> list[str]:
        """Return what a model can show of language here: ``tokenizer``, ``template``."""
        model = getattr(self.contents, "model", None)
        if not self._moves or model is None or self.problem is not None:
            return []
        return [pane for pane, key in PANES.items() if key in model.metadata]

    def _op_map(
        self, start: int = 0, stop: int | None = None, bins: int = 800, by: str = ""
    ) -> dict[str, Any]:
        """Return the regions between two offsets for a picture of ``bins`` pixels; the widest have names.

        ``by``: one of the groupings; then there are ``groups``, and an item has the number of its ``group``.
        """
        regions = self.contents.regions
        stop = regions.size if stop is None else min(stop, regions.size)
        items = regions.window(max(0, start), stop, max(1, min(bins, 4000)))
        for item in sorted(items, key=lambda i: -int(i["size"]))[:LABELS]:
            if item["count"] == 1:
                item["name"] = self._name_at(item["offset"])
        totals = [{"kind": k, "count": n, "size": size} for k, n, size in regions.totals()]
        reply = {"start": start, "stop": stop, "size": regions.size, "items": items, "totals": totals}
        if by in self.contents.groupings:
            groups = self.contents.groups(by)
            number = {name: at for at, (name, *_) in enumerate(groups)}
            for item in items:
                if item["count"] <= GROUPED:  # what shares a pixel has a colour if it has one group
                    first = regions.at(item["offset"])
                    members = (regions[first + n] for n in range(item["count"]))
                    found = {
                        self.contents.group_of(region, by) for region in members if region.kind != "padding"
                    }
                    group = found.pop() if len(found) == 1 else None
                    item["group"] = None if group is None else number[group]
            reply["groups"] = [{"name": name, "count": n, "size": size} for name, n, size in groups]
        return reply

    def _name_at(self, offset: int) -> str:
        regions = self.contents.regions
        return printable(self.contents.name_of(regions[regions.at(offset)]))

    def _op_at(self, offset: int) -> dict[str, Any]:
        """Return the region and the field that hold a byte, and the row of a table that they belong to."""
        contents = self.contents
        if not 0 <= offset < contents.regions.size:
            raise InvalidParamError(f"the file has no byte {offset}", path=self.path)
        region = contents.regions[contents.regions.at(offset)]
        fields = [line for line in contents.fields(offset, offset + 1) if line.offset <= offset]
        field = min(fields, key=lambda line: line.size, default=None)
        place = contents.place_of(region)
        return {
            "region": {"offset": region.offset, "size": region.size, "kind": region.kind,
                       "name": printable(contents.name_of(region))},
            "field": None if field is None else field.to_json(),
            "place": None if place is None else {"table": place[0], "row": place[1]},
        }  # fmt: skip

    def _op_step(self, offset: int, by: int) -> dict[str, Any]:
        """Return ``at`` for the region that comes ``by`` regions after the one at ``offset``."""
        regions = self.contents.regions
        if not len(regions):
            raise InvalidParamError("the file is empty", path=self.path)
        number = regions.at(max(0, min(offset, regions.size - 1)))
        return self._op_at(regions[max(0, min(number + by, len(regions) - 1))].offset)

    def _op_hex(self, offset: int, size: int = 512) -> Answer:
        """Return a page of bytes, and the fields that hold them."""
        source = self.contents.source
        offset = max(0, min(offset, source.size))
        data = source.read_upto(offset, min(size, PAGE))
        lines = self.contents.fields(offset, offset + len(data)) if data else []
        reply = {"offset": offset, "size": len(data), "file_size": source.size}
        return {**reply, "fields": [line.to_json() for line in lines]}, [data]

    def _op_rows(
        self,
        table: str,
        start: int = 0,
        count: int = 100,
        sort: str = "",
        descending: bool = False,
        filter: str = "",
        locate: int | None = None,
    ) -> dict[str, Any]:
        """Return rows of a table as it is sorted and filtered; ``locate`` says where one row then stands."""
        rows = self.contents.table(table)
        order = (sort, descending, filter)
        reply = rows.window(start, count, *order)
        if locate is not None:
            reply["position"] = rows.position(locate, *order)
        return {**reply, "columns": rows.to_json()["columns"], "title": rows.title}

    def _op_search(
        self, text: str, form: str = "text", start: int = 0, any_case: bool = True, back: bool = False
    ) -> dict[str, Any]:
        """Look for a text, or for bytes in hexadecimal digits, from an offset on; ``next``: where to go on."""
        from atlas_kit.explorer.searching import needle, search

        wanted = needle(str(text), form)
        return search(
            self.contents.source, wanted, int(start), any_case=any_case and form == "text", back=back
        )

    def _op_locate(self, table: str, text: str) -> dict[str, Any]:
        """Return the row of a table whose value is a text, or else begins with it, or holds it; None where none is."""
        return {"row": self.contents.table(table).locate(str(text))}

    def _op_tokenize(self, text: str, special: bool = False) -> dict[str, Any]:
        """Return how the model cuts a text into tokens. Only where the explorer is its user's own (``moves``)."""
        self._require_open()
        self._require_own("how a model cuts a text")
        from atlas_kit.explorer.language import tokens_of

        if self._words is None:
            from atlas_kit.llama.words_only import WordsOnly

            self._words = WordsOnly(self.path)
        return {"tokens": tokens_of(self._words, str(text), special)}

    def _op_template(
        self, messages: Sequence[dict[str, Any]] | None = None, answer: bool = True
    ) -> dict[str, Any]:
        """Return a conversation, by default an example, as the model's template writes it."""
        self._require_own("what a template writes")
        from atlas_kit.explorer.gguf import GGUFContents
        from atlas_kit.explorer.language import EXAMPLE, in_template

        if not isinstance(self.contents, GGUFContents):
            raise InvalidParamError("only models have chat templates", path=self.path)
        given = list(EXAMPLE if messages is None else messages)
        return {"messages": given, "text": visible(in_template(self.contents.model, given, answer))}

    def _require_own(self, what: str) -> None:
        """See that the explorer belongs to who asks: what runs for them runs in a process of theirs."""
        if not self._moves:
            raise InvalidParamError(
                f"{what} is shown in a notebook only, whose kernel is its user's own",
                path=self.path, hint="Open the file in a notebook.",
            )  # fmt: skip

    def _op_mend(self) -> Answer:
        """Return a mended copy of the file, as ``repair`` writes it, to be saved by the browser."""
        self._require_open()
        import tempfile

        from atlas_kit.operations.repair import repair_file

        source = self.contents.source
        if source.size > DOWNLOAD:
            raise InvalidParamError(
                f"the file has more than {DOWNLOAD >> 20} MiB, which is too much for the browser", path=self.path,
                remedy=Remedy("repair"),
            )  # fmt: skip
        if self.passphrase is not None:
            raise InvalidParamError(
                "an encrypted file is not mended here", path=self.path, remedy=Remedy("repair")
            )
        stem, dot, ending = os.path.basename(self.path).rpartition(".")
        with tempfile.TemporaryDirectory(prefix="atlas-kit-") as folder:
            place = os.path.join(folder, f"mended.{ending}" if dot else "mended")
            done = repair_file(self.path, place)
            if not os.path.exists(place):
                raise InvalidParamError("there is nothing to mend in this file", path=self.path)
            with open(place, "rb") as file:
                data = file.read()
        name = f"{stem}-mended.{ending}" if dot else f"{ending}-mended"
        facts = {"mended": done.mended, "lost": done.lost, "saved": done.saved}
        return {"filename": printable(name), "size": len(data), **facts}, [data]

    def _op_find(self, name: str) -> dict[str, Any]:
        """Return where a key or tensor is."""
        place = self.contents.find(name)
        return {"place": None if place is None else {"table": place[0], "row": place[1]}}

    # --- one item -------------------------------------------------------------------------------------------

    def item(self, table: str, row: int) -> Item:
        """Return one row of a table to be looked at.

        Raises
        ------
        AtlasError
            There is no such row, or it is damaged.
        """
        with self._lock:
            if self._item is None or self._item[0] != (table, row):
                self._item = ((table, row), self.contents.item(table, row))
            return self._item[1]

    def find(self, name: str) -> Item:
        """Return an entry, metadata value or tensor by its name.

        Raises
        ------
        KeyNotFoundError
            There is none.
        """
        from atlas_kit.errors import KeyNotFoundError

        with self._lock:
            place = self.contents.find(name)
            if place is None:
                raise KeyNotFoundError(
                    "there is nothing with that name in the file", path=self.path, key=name
                )
            return self.item(*place)

    def matrix(self, name: str) -> StoredMatrix:
        """Return a tensor as a tile source: ``MatrixView(explorer.matrix("token_embd.weight"))``.

        Raises
        ------
        KeyNotFoundError, InvalidParamError
            There is nothing of that name, or it is not a tensor.
        """
        found = self.find(name)
        if found.matrix is None:
            raise InvalidParamError(found.problem or "this is not a tensor", path=self.path, key=name)
        return found.matrix()

    def _op_item(self, table: str, row: int) -> dict[str, Any]:
        """Return what is known about a row, and the ways to see it."""
        item = self.item(table, row)
        reply = item.to_json()
        reply["views"] += [pane for pane in self._panes() if PANES[pane] == item.name and table == "metadata"]
        return reply

    def _op_text(self, table: str, row: int, start: int = 0) -> dict[str, Any]:
        """Return a page of an item's text."""
        return self.item(table, row).text(start)

    def _op_json(self, table: str, row: int, path: Sequence[int] = (), start: int = 0) -> dict[str, Any]:
        """Return the children of a node of an item's JSON."""
        return self.item(table, row).node(list(path), start)

    def _op_chat(self, table: str, row: int, start: int = 0) -> dict[str, Any]:
        """Return a page of an item's messages."""
        return self.item(table, row).chat(start)

    def _op_matrix(self, table: str, row: int) -> dict[str, Any]:
        """Return shape and type of an item's numbers."""
        matrix = self._matrix(table, row)
        return {"shape": list(matrix.shape), "dims": list(matrix.dims), "dtype": matrix.dtype}

    def _op_tile(
        self, table: str, row: int, y0: int, y1: int, x0: int, x1: int, rows: int, cols: int
    ) -> Answer:
        """Return a part of an item's numbers, pooled to at most (rows, cols), as float32."""
        numbers, block, share = self._matrix(table, row).sampled_tile(y0, y1, x0, x1, rows, cols)
        finite = abs(numbers[np.isfinite(numbers)])
        reply = {"rows": numbers.shape[0], "cols": numbers.shape[1], "block": block, "share": share,
                 "largest": float(finite.max(initial=0.0))}  # fmt: skip
        return reply, [numbers.astype("<f4").tobytes()]

    def _op_histogram(self, table: str, row: int) -> dict[str, Any]:
        """Return how an item's numbers are spread."""
        return self._matrix(table, row).histogram()

    def _op_range(self, table: str, row: int, percent: float) -> dict[str, Any]:
        """Return the size that so many per cent of an item's numbers do not exceed: a range for colours."""
        return {"limit": self._matrix(table, row).largest_of(float(percent))}

    def _matrix(self, table: str, row: int) -> StoredMatrix:
        found = self.item(table, row)
        if found.matrix is None:
            raise InvalidParamError(found.problem or "this is not a tensor", path=self.path, key=found.name)
        return found.matrix()

    def _op_export(self, table: str, row: int, form: str) -> Answer:
        """Return an item as a file of one form."""
        found = self.item(table, row)
        if form not in found.exports:
            raise InvalidParamError(f"this cannot be saved as {form}", path=self.path, key=found.name)
        data = found.export(form, DOWNLOAD)
        return {"filename": f"{_file_name(found.name)}.{form}", "size": len(data)}, [data]

    def export(self, name: str, path: StrPath, form: str | None = None) -> int:
        """Save an entry, metadata value or tensor of any size as a file; return its bytes.

        Parameters
        ----------
        form
            ``json``, ``txt``, ``npy`` or ``bin``; by default what the suffix of ``path`` says, else the best.

        Raises
        ------
        AtlasError
            There is nothing of that name, it is damaged, or the file cannot be written.
        """
        found = self.find(name)
        suffix = os.path.splitext(os.fspath(path))[1][1:].lower()
        form = form or (suffix if suffix in found.exports else next(iter(found.exports), ""))
        if form not in found.exports:
            raise InvalidParamError(found.problem or f"this cannot be saved as {form}", key=name)
        written = 0
        with atomic_write(path) as file:
            for piece in found.exports[form]():
                file.write(piece)
                written += len(piece)
        return written

    # --- the file as a whole --------------------------------------------------------------------------------

    def _op_unlock(self, passphrase: str) -> dict[str, Any]:
        """Open an encrypted file with its passphrase: the file that is shown, even if another has replaced it."""
        self._require_open()
        shown = self.contents.source
        if shown.path is None:  # it could not be opened so far
            self._take(open_contents(self.path, passphrase))
        elif self.contents.kind != "gguf":
            self._take(_contents_of(shown, passphrase))
        self._check = None  # with the passphrase, there is more to be found
        return self._op_summary()

    def _op_reload(self, check: bool = False) -> dict[str, Any]:
        """Open the file as it is now; ``check`` as for ``summary``."""
        self._require_open()
        self._check = None
        self._open(self.passphrase)
        return self._op_summary(check)

    def _op_backups(self) -> dict[str, Any]:
        """Return the names of the file's newest backups."""
        return {"names": self._backups()[:BACKUPS]}

    def _backups(self) -> list[str]:
        from atlas_kit.persistence.backups import backup_names

        return [name for name in backup_names(self._home) if name == printable(name)]

    def _op_open_backup(self, name: str) -> dict[str, Any]:
        """Show a backup of the file from now on, or by its name the file itself again."""
        self._require_open()
        if not self._moves or name not in (os.path.basename(self._home), *self._backups()):
            raise InvalidParamError("this is not a backup that can be shown here", path=self.path)
        path = os.path.join(os.path.dirname(self._home), name)
        self._take(open_contents(path, self.passphrase, tolerant=True))
        self.path, self._check = path, None
        return self._op_summary()

    def _op_validate(self, start: bool = True) -> dict[str, Any]:
        """Begin to check the file, in the background; the findings come with a later call."""
        if self._check is None and start:
            self._require_open()
            self._check = _Check(self.path, self.contents.source, self.passphrase)
        if self._check is None:
            return {"state": "idle"}
        return self._check.to_json(self.contents)


class _Check:
    """One run of ``validate`` in a thread of its own, over the file that is shown.

    The thread's source is its own: the explorer may be reloaded or closed while it reads.
    """

    def __init__(self, path: str, source: Source, passphrase: str | bytes | None) -> None:
        self._secret = None if passphrase is None else passphrase_bytes(passphrase)
        self._report: FileReport | None = None
        self._failed = ""
        self._source = source.duplicate()
        # what could not be opened has no source: to try again says why
        self._given: Given = path if source.path is None else self._source
        try:
            # to close it is to stop: the next read ends the check
            self._thread = start_thread(self._run, name="atlas-validate", stop=self._source.close)
        except BaseException:
            self._source.close()
            raise

    def _run(self) -> None:
        from atlas_kit.operations.validate import validate_file

        try:
            with self._source:
                self._report = validate_file(self._given, Keys(self._secret))
        except Exception as error:  # whatever it is: it must reach the reader, not the kernel's log
            self._failed = f"checking stopped: {printable(str(error)) or type(error).__name__}"

    def wait(self, seconds: float) -> _Check:
        """Wait for the end, but no longer than that."""
        self._thread.join(seconds)
        return self

    def to_json(self, contents: Contents) -> dict[str, Any]:
        """Return the state, and the findings with their places."""
        if self._failed:
            return {"state": "failed", "error": self._failed}
        report = self._report
        if report is None:
            return {"state": "running"}
        rows = []
        for finding in report.findings:
            row = finding.to_json()
            place = contents.find(finding.key) if finding.key is not None else None
            row["place"] = None if place is None else {"table": place[0], "row": place[1]}
            if row["offset"] is None and place is not None:
                row["offset"] = contents.item(*place).start
            rows.append(row)
        return {"state": "done", "ok": report.ok, **_verdict(report), "findings": rows}


def _verdict(report: FileReport) -> dict[str, str]:
    """Say what the findings come to, in a word and in a sentence."""
    errors = {finding.code for finding in report.findings if finding.severity == "error"}
    if not report.findings:
        return {"verdict": "sound", "sentence": "Nothing is wrong with this file."}
    if report.ok:
        return {"verdict": "sound", "sentence": "The file can be used as it is."}
    if errors <= WHOLE:
        return {
            "verdict": "cannot be used as it is",
            "sentence": "The file is not damaged, but it cannot be used here as it is.",
        }
    return {"verdict": "damaged", "sentence": "The file is damaged."}


def open_contents(
    path: StrPath, passphrase: str | bytes | None = None, *, tolerant: bool = False
) -> Contents:
    """Open a file of any kind; of one that is damaged, what is intact.

    Parameters
    ----------
    tolerant
        A passphrase that is not the file's is its ``problem``, and the file stays locked.

    Raises
    ------
    NoSuchFileError, FileAccessError
        It cannot be read, or is no regular file.
    WrongKeyError
        The passphrase is not the file's.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise NoSuchFileError("there is no such file", path=path) from error
    except OSError as error:
        raise access_error(error, path) from error
    except ValueError as error:  # a NUL in the path
        raise FileAccessError("the name is not a valid path", path=path) from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise FileAccessError(f"it is {what}", path=path)
    source = open_source(path)
    try:
        try:
            return _contents_of(source, passphrase)
        except WrongKeyError as error:
            if not tolerant:
                raise
            locked = _contents_of(source, None)
            locked.problem = error
            return locked
    except BaseException:
        source.close()
        raise


def _contents_of(source: Source, passphrase: str | bytes | None) -> Contents:
    kind = detect(source)
    if kind == "gguf":
        from atlas_kit.explorer.gguf import GGUFContents

        return GGUFContents(source)
    if kind == "atlas":
        from atlas_kit.explorer.atlas import AtlasContents

        return AtlasContents(source, passphrase)
    what = "the file is empty" if not source.size else "this is neither a .atlas nor a GGUF file"
    return Contents(source, InvalidParamError(what, hint="Its bytes are shown." if source.size else None))


def preload() -> None:
    """Import what opening a file will need, so that the first one need not wait for it."""
    for name in ("gguf", "atlas"):
        importlib.import_module(f"atlas_kit.explorer.{name}")


def pack(reply: dict[str, Any], buffers: Sequence[bytes]) -> bytes:
    """Return an answer as bytes: u32 little-endian length of the JSON, JSON (``buffers``: their lengths), buffers."""
    head = json.dumps({**reply, "buffers": [len(part) for part in buffers]}, allow_nan=False).encode()
    return b"".join([len(head).to_bytes(4, "little"), head, *buffers])


def _closed_error(path: str) -> AtlasError:
    return FileAccessError("the explorer was closed", path=path, hint="Open the file again.")


def _error(error: AtlasError) -> dict[str, Any]:
    key = f'"{error.key}": ' if error.key else ""
    return {
        "error": printable(key + error.message),
        "hint": printable(error.advice),
        "remedy": None if error.remedy is None else error.remedy.to_json(),
        "offset": error.offset,
    }


def _file_name(name: str) -> str:
    """Return a name that any file system takes."""
    kept = "".join(char if char.isalnum() or char in "-_." else "_" for char in printable(name))
    return kept.strip("._")[:80] or "value"


__all__ = ["DOWNLOAD", "Explorer", "pack", "preload"]
