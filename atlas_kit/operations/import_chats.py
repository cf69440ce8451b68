"""Put histories and other entries that somebody wrote as JSON or JSON lines into a memory file, all of them or none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import AtlasError, InvalidParamError, Remedy
from atlas_kit.formats.opening import edit_memory, open_memory
from atlas_kit.operations import chats
from atlas_kit.operations.import_records import Record, read_records
from atlas_kit.operations.inputs import memory_to_change
from atlas_kit.storage.given import Given, name_of
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import StrPath

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import MemoryFile


@dataclass
class Imported:
    """The keys that were (or, in a dry run, would be) added, replaced and gone on with, and messages in all."""

    path: str
    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    appended: list[str] = field(default_factory=list)
    messages: int = 0
    created_file: bool = False
    dry_run: bool = False

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        lists = {"added": self.added, "replaced": self.replaced, "appended": self.appended}
        return {
            **named("path", self.path),
            **{name: [named("key", key) for key in keys] for name, keys in lists.items()},
            "messages": self.messages,
            "created_file": self.created_file,
            "dry_run": self.dry_run,
        }


@dataclass
class ImportOptions:
    """How to import. ``on_conflict``: ``refuse``, ``replace`` or ``append`` to an entry that is there.

    ``key``: of the one entry that there is. ``form``: how histories are written: ``text`` or ``json``. ``new``: make
    the file whatever its name.
    """

    key: str | None = None
    form: str = "text"
    on_conflict: str = "refuse"
    new: bool = False
    backup: bool | int = False
    dry_run: bool = False


def import_chats(
    path: StrPath, sources: Sequence[Given], options: ImportOptions | None = None, keys: Keys | None = None
) -> Imported:
    """Put the entries of JSON files into a memory file, which is made if its name ends in ``.atlas``.

    Raises
    ------
    InvalidParamError
        Something in a source makes no sense, or a key is there already; nothing was written. The sentence names the
        file and the line or the number of the conversation.
    """
    options, keys = options or ImportOptions(), Keys() if keys is None else keys
    records = [record for source in sources for record in read_records(source, options.form)]
    if not records:
        raise InvalidParamError("there is nothing to import", path=name_of(sources[0]) if sources else None)
    if options.key is not None:
        if len(records) != 1:
            raise InvalidParamError(
                f"one key was given, and there are {len(records)} entries", key=options.key,
                hint='Give each a "key" of its own.',
            )  # fmt: skip
        records[0].key = options.key
    _require_distinct(records)
    with memory_to_change(path, options.new, "entries are imported into .atlas memory files") as (given, new):
        result = Imported(os.fsdecode(path), created_file=new, dry_run=options.dry_run)
        with _opened(given, new, options, keys) as memory:
            for record in records:
                _put(memory, record, options, result)
    return result


@contextlib.contextmanager
def _opened(given: Given, new: bool, options: ImportOptions, keys: Keys) -> Iterator[MemoryFile]:
    """Yield the memory file to import into; in a dry run one of which nothing is written."""
    from atlas_kit.formats.atlas import MemoryFile

    if not options.dry_run:
        with edit_memory(given, keys, create=new, backup=options.backup) as memory:
            yield memory
    elif new:
        yield MemoryFile()
    else:
        with contextlib.closing(open_memory(given, keys)) as memory:  # what was tried is dropped
            yield memory


def _require_distinct(records: list[Record]) -> None:
    seen: dict[str, str] = {}
    for record in records:
        if record.key in seen:
            raise InvalidParamError(
                f"{record.where} has the key of {seen[record.key]}", path=record.source, key=record.key,
                hint='Give each a "key" of its own.',
            )  # fmt: skip
        seen[record.key] = record.where


def _put(memory: MemoryFile, record: Record, options: ImportOptions, result: Imported) -> None:
    held = memory.get(record.key)
    payload, chat, kind = record.payload, record.chat, record.type
    if held is not None and options.on_conflict == "refuse":
        raise InvalidParamError(
            f"{record.where}: there is an entry of this key already", path=record.source, key=record.key,
            remedy=Remedy("replace-or-append"),
        )  # fmt: skip
    if held is not None and options.on_conflict == "append":
        before = None if held.dtype_id else chats.chat_of(bytes(held.data))
        both = None if before is None or chat is None else chats.joined(before, chat)
        if both is None:
            raise InvalidParamError(
                f"{record.where}: only histories can be appended to each other",
                path=record.source,
                key=record.key,
            )
        payload, kind = both.payload(), int(held.type)
        result.appended.append(record.key)
    else:
        (result.added if held is None else result.replaced).append(record.key)
    try:
        if record.entry is not None:
            memory.set(record.key, record.entry.replace(key=record.key))
        else:
            memory.set(record.key, payload, type=kind, flags=record.flags, timestamp=record.timestamp)
    except AtlasError as error:  # a key that the file cannot have
        raise InvalidParamError(
            f"{record.where}: {error.message}", path=record.source, key=record.key
        ) from error
    result.messages += len(chat.messages) if chat is not None else 0


__all__ = ["ImportOptions", "Imported", "import_chats"]
