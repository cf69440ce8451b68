"""Open and edit ``.atlas`` files with keys that may have to be asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from atlas_kit.errors import AtlasError, InvalidParamError, KeyRequiredError, Remedy, WrongKeyError
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.formats.detect import is_encrypted
from atlas_kit.storage.given import Given, name_of, open_source, path_of
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import Source


def open_memory(given: Given, keys: Keys) -> MemoryFile:
    """Open an ``.atlas`` file, asking for its passphrase if it needs one."""
    source = open_source(given)
    try:
        memory = _open(source, keys)
    except BaseException:
        if source is not given:
            source.close()
        raise
    return memory


def _open(source: Source, keys: Keys) -> MemoryFile:
    try:
        return MemoryFile.open(source, **keys.options())
    except KeyRequiredError:
        if not keys.ask_for(source.name):
            raise
        return MemoryFile.open(source, **keys.options())
    except WrongKeyError as error:
        for one in keys.others:
            with contextlib.suppress(WrongKeyError):
                return MemoryFile.open(source, **one.options())
        if keys.ask_for_another(source.name):
            return MemoryFile.open(source, **keys.others[-1].options())
        if keys.others:
            raise WrongKeyError(
                "none of the passphrases and keys is the one that the file was written with", path=source.name
            ) from error
        raise


def fitting_keys(source: Source, keys: Keys) -> Keys:
    """Return the one of several passphrases and keys that opens a file; the first where none does, or one need not."""
    if keys.others and is_encrypted(source):
        for one in (keys, *keys.others):
            try:
                MemoryFile.open(source, **one.options()).close()
            except WrongKeyError:
                continue
            except AtlasError:  # it opens, and is damaged
                pass
            return one
    return keys


def ask_if_encrypted(source: Source, keys: Keys) -> None:
    """Ask for the passphrase of an encrypted file, however damaged it is; not for that of one with a key file."""
    if keys.given or keys.ask is None or not is_encrypted(source):
        return
    from atlas_kit.formats.atlas import layout, tables

    head = source.read_upto(0, layout.HEADER_V3.size)
    names = layout.names_of(layout.HeaderV3)
    if len(head) < layout.HEADER_V3.size:
        return  # nothing of it could be opened
    if dict(zip(names, layout.HEADER_V3.unpack(head), strict=True))["kdf"] != tables.KDF_RAW:
        keys.ask_for(source.name)


@contextlib.contextmanager
def edit_memory(
    given: Given, keys: Keys, *, create: bool = False, version: int | None = None, backup: bool | int = False
) -> Iterator[MemoryFile]:
    """Lock, open and, when the block ends well, commit a memory file, asking for its passphrase if it needs one.

    A source that is open already is read as ``MemoryFile.edit`` says.

    Raises
    ------
    InvalidParamError
        There is a passphrase or a key, and the file is not encrypted: was it swapped for another?
    """
    with contextlib.ExitStack() as edit:
        if create:
            if keys.given and version not in (None, 3):
                raise InvalidParamError(
                    f"a passphrase or key was given, and version {version} cannot be encrypted: nothing was written",
                    path=path_of(given),
                    key="version",
                )
            version = 3 if keys.given else version
            secret = keys.for_writing() if version == 3 else {}
            options: dict[str, Any] = {"create": True, "version": version, **secret}
            memory = edit.enter_context(MemoryFile.edit(given, backup=backup, **options))
            require_encrypted(memory, keys)  # somebody else may have made it meanwhile
            yield memory
            return
        try:
            memory = edit.enter_context(MemoryFile.edit(given, backup=backup, **keys.options()))
        except KeyRequiredError:
            if not keys.ask_for(name_of(given)):
                raise
            memory = edit.enter_context(MemoryFile.edit(given, backup=backup, **keys.options()))
        require_encrypted(memory, keys)
        yield memory


def require_encrypted(memory: MemoryFile, keys: Keys) -> None:
    """See that a file which is to be changed is encrypted if there is a passphrase or a key.

    Raises
    ------
    InvalidParamError
        It is not: was it swapped for another?
    """
    if keys.given and memory.version < 3:
        raise InvalidParamError(
            "a passphrase or key was given, and the file is not encrypted: nothing was written",
            path=memory.path,
            remedy=Remedy("leave-secret-out"),
        )
