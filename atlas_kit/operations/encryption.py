"""Encrypt a memory file, decrypt one, change the secret of one: in place or into another file, whole or not at all.

No plain text is written on the way but by ``decrypt_file``: what is written is encrypted before it is anywhere.
Knows no terminal.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import AtlasError, InvalidParamError, KeyRequiredError, Remedy
from atlas_kit.formats.detect import is_encrypted
from atlas_kit.formats.endings import require_ending
from atlas_kit.formats.opening import open_memory
from atlas_kit.operations.inputs import require_kind
from atlas_kit.operations.outputs import Output, output_name, require_free, write_memory_file
from atlas_kit.operations.secrecy import ENCRYPTED, PLAIN
from atlas_kit.persistence.backups import backup_names, beside, remove_backups
from atlas_kit.persistence.index_places import drop_indexes
from atlas_kit.storage.given import Given, name_of, path_of, use_source

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.storage.keys import Keys
    from atlas_kit.storage.source import StrPath


@dataclass
class Secured:
    """What was written, and what beside it can still be read without the new secret.

    Attributes
    ----------
    what
        ``encrypted``, ``decrypted`` or ``rekeyed``.
    output
        Where it was written; the file itself in place.
    backups, backups_removed
        The names of backups that are not encrypted, or only with the secret that was; and whether they are gone.
    other_names
        Whether the old content has another name on the disk (a hard link), which still holds it.
    """

    path: str
    what: str
    output: str
    version: int
    entries: int
    backups: list[str] = field(default_factory=list)
    backups_removed: bool = False
    other_names: bool = False

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            **named("path", self.path),
            "what": self.what,
            **named("output", self.output),
            "version": self.version,
            "entries": self.entries,
            "backups": [named("name", name) for name in self.backups],
            "backups_removed": self.backups_removed,
            "other_names": self.other_names,
        }


def encrypt_file(
    given: Given,
    keys: Keys,
    output: Output | None = None,
    *,
    force: bool = False,
    remove_backups: bool = False,
) -> Secured:
    """Encrypt a memory file that is not, with ``keys``; ask for a new passphrase if there is none.

    Parameters
    ----------
    output
        Where to; the file itself is replaced by default.
    force
        Overwrite ``output``.
    remove_backups
        Remove the file's backups that are not encrypted.

    Raises
    ------
    InvalidParamError
        It is encrypted already, or no memory file.
    KeyRequiredError
        There is no passphrase, and nobody to ask.
    """
    with _opened(given, None, output, force) as memory:
        result = _result(given, "encrypted", output, ENCRYPTED, memory)
        memory.encrypt_with(**keys.for_writing())
        _write(memory, output, ENCRYPTED)
    if output is None:
        path = path_of(given)
        drop_indexes(path)  # they hold its words for all to read
        result.backups = [name for name in backup_names(path) if _can_be_read(beside(path, name))]
        _see_to_backups(path, result, remove_backups)
    return result


def decrypt_file(
    given: Given, keys: Keys, output: Output | None = None, *, version: int = PLAIN, force: bool = False
) -> Secured:
    """Write an encrypted memory file as plain text, of ``version`` 1 or 2.

    Raises
    ------
    InvalidParamError
        It is not encrypted, or no memory file.
    KeyRequiredError, WrongKeyError
        The passphrase or key is missing or another.
    """
    with _opened(given, keys, output, force) as memory:
        _require_encrypted(given, memory, Remedy("inspect"))  # as it is
        result = _result(given, "decrypted", output, version, memory)
        _write(memory, output, version)
    return result


def rekey_file(
    given: Given, keys: Keys, new_keys: Keys, output: Output | None = None, *, force: bool = False,
    remove_backups: bool = False,
) -> Secured:  # fmt: skip
    """Encrypt a memory file with another passphrase or key; ask for a new passphrase if there is none.

    ``remove_backups`` removes the file's backups, which the old secret opens.

    Raises
    ------
    InvalidParamError
        It is not encrypted, or no memory file.
    KeyRequiredError, WrongKeyError
        The old passphrase or key is missing or another; or there is no new one.
    """
    with _opened(given, keys, output, force) as memory:
        _require_encrypted(given, memory, Remedy("encrypt"))
        if not new_keys.given and new_keys.ask is None:
            raise KeyRequiredError(
                "there is no new passphrase or key", path=name_of(given), remedy=Remedy("give-new-secret")
            )
        result = _result(given, "rekeyed", output, ENCRYPTED, memory)
        memory.encrypt_with(**new_keys.for_writing())
        _write(memory, output, ENCRYPTED)
    if output is None:
        path = path_of(given)
        result.backups = backup_names(path)
        _see_to_backups(path, result, remove_backups)
    return result


@contextlib.contextmanager
def _opened(given: Given, keys: Keys | None, output: Output | None, force: bool) -> Any:
    """Yield the memory file; without keys one that is encrypted is not opened."""
    from atlas_kit.storage.keys import Keys

    require_free(output, [given], force)
    require_ending(output, "atlas")
    with use_source(given) as source:
        require_kind(source, ["atlas"], "only .atlas memory files can be encrypted")
        try:
            memory = open_memory(source, Keys() if keys is None else keys)
        except KeyRequiredError:
            if keys is None:
                raise InvalidParamError(
                    "the file is encrypted already", path=name_of(given), remedy=Remedy("rekey")
                ) from None
            raise
        with contextlib.closing(memory):
            yield memory


def _require_encrypted(given: Given, memory: MemoryFile, remedy: Remedy) -> None:
    if memory.version != ENCRYPTED:
        raise InvalidParamError("the file is not encrypted", path=name_of(given), remedy=remedy)


def _result(given: Given, what: str, output: Output | None, version: int, memory: MemoryFile) -> Secured:
    name = name_of(given) if output is None else output_name(output)
    other_names = output is None and os.stat(path_of(given)).st_nlink > 1
    return Secured(name_of(given), what, name, version, len(memory), other_names=other_names)


def _write(memory: MemoryFile, output: Output | None, version: int) -> None:
    if output is None:
        memory.save(version=version)
    else:
        write_memory_file(memory, output, version=version)


def _can_be_read(backup: str) -> bool:
    """Tell whether a backup can be read without a secret; one that went away cannot."""
    try:
        return not is_encrypted(backup)
    except AtlasError:
        return False


def _see_to_backups(path: StrPath, result: Secured, remove: bool) -> None:
    if remove and result.backups:
        remove_backups(path, result.backups)
        result.backups_removed = True


__all__ = ["Secured", "decrypt_file", "encrypt_file", "rekey_file"]
