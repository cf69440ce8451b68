"""``MemoryFile``: the memory file as a mapping from key to entry, of any version.

What is on disk is read when it is asked for; changes are held in memory until ``save`` (a whole new file) or
``commit`` (changes appended to a version 2 or 3 file). Safe to use from several threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import struct
import threading
import time
from collections.abc import Iterator, MutableMapping
from typing import IO, TYPE_CHECKING, Any

from atlas_kit.errors import (
    AtlasError,
    ConflictError,
    FileCorruptError,
    InvalidParamError,
    KeyNotFoundError,
    KeyRequiredError,
    MagicMismatchError,
    Remedy,
    TruncatedError,
    VersionMismatchError,
)
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.atlas import v1
from atlas_kit.formats.atlas.entry import Entry, make_entry
from atlas_kit.formats.atlas.store import Info, Store, canonical_key, encode_key
from atlas_kit.storage import atomic
from atlas_kit.storage.given import Given, as_it_is_now, open_source, path_of, sha256_of
from atlas_kit.storage.source import Source, StrPath, access_error, resolved

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import v2
    from atlas_kit.formats.atlas.crypto import Cipher, Secret
    from atlas_kit.formats.findings import Finding


def open_store(
    source: Source, *, passphrase: str | bytes | None = None, key: bytes | None = None, verify: bool = False
) -> Store:
    """Open a file of any version for reading.

    Raises
    ------
    MagicMismatchError, VersionMismatchError, TruncatedError
        It is not a `.atlas` file, a newer one, or only the beginning of one.
    """
    top = source.read_upto(0, 8)
    if top[:4] != t.MAGIC:
        from atlas_kit.formats.foreign import foreign_error

        known = foreign_error(source)
        if known is not None:
            raise known
        what = "it is empty" if not top else "it does not start with ATLS"
        raise MagicMismatchError(
            f"this is not a .atlas file: {what}", path=source.path, offset=0, remedy=_without_magic(source)
        )
    if len(top) < 8:
        raise TruncatedError(
            "the file ends inside its header", path=source.path, offset=len(top), remedy=Remedy("recover")
        )
    version = int.from_bytes(top[4:], "little")
    if version == 1:
        return v1.StoreV1(source, verify=verify)
    if version in (2, 3):
        from atlas_kit.formats.atlas import v2

        store = v2.StoreV2(source, _secret(passphrase, key))
        if verify:
            for entry in store.entries():
                entry.verify()
        return store
    raise VersionMismatchError(
        f"the file says version {version}, and this library reads 1 to 3", path=source.path, offset=4,
        remedy=Remedy("repair-if-damaged"),
    )  # fmt: skip


def _without_magic(source: Source) -> Remedy:
    """Return what helps where the first bytes are not ours; only the name tells whether they should be."""
    if not source.size:
        return Remedy("recover")
    named = source.name.lower().removesuffix(".bak").endswith(".atlas")
    return Remedy("repair" if named else "repair-if-damaged")


class MemoryFile(MutableMapping[str, Entry]):
    """A memory file: a mapping from key to ``Entry``, in insertion order.

    Parameters
    ----------
    version
        1, 2 or 3; what ``save`` writes unless told otherwise.
    model_hash
        32 bytes (or their 64 hexadecimal digits) that say which model the memory belongs to.
    created
        Unix seconds; now by default.
    codec, level, shuffle
        How version 2 and 3 store payloads that do not say otherwise: ``none``, ``lz4``, ``zlib`` or ``zstd``.
    passphrase, key
        The secret of a version 3 file: text, or the 32 bytes of a key file.

    Examples
    --------
    >>> memory = MemoryFile()
    >>> memory["greeting"] = "hello"
    >>> memory["greeting"].text
    'hello'
    """

    def __init__(
        self,
        *,
        version: int = 2,
        model_hash: bytes | str = b"",
        created: int | None = None,
        codec: str = "none",
        level: int | None = None,
        shuffle: bool = True,
        passphrase: str | bytes | None = None,
        key: bytes | None = None,
    ) -> None:
        if version not in (1, 2, 3):
            raise VersionMismatchError(f"{version} is not a version of the format", hint="Use 1, 2 or 3.")
        now = _now() if created is None else created
        self._lock = threading.RLock()
        self._info = Info(version, f"v{version}", now, now, _hash_bytes(model_hash))
        self._store: Store | None = None
        self._replaced: dict[str, Entry] = {}  # keys of the store that have a new entry in their old place
        self._removed: set[str] = set()  # keys of the store that are gone (or are now in _added)
        self._added: dict[str, Entry] = {}  # new keys, in order
        self._dirty = False
        self._closed = False
        self._locked = ""  # the file whose lock edit() holds for us
        self._codec, self._level, self._shuffle = codec, level, shuffle
        self._secret = _secret(passphrase, key)
        self.path: str | None = None

    # --- opening --------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: Given,
        *,
        passphrase: str | bytes | None = None,
        key: bytes | None = None,
        verify: bool = False,
    ) -> MemoryFile:
        """Open a file of any version, by path, by content, or as a source that is open already and stays so.

        Payloads are read and checked when they are asked for; ``verify`` checks every one of them now.

        Raises
        ------
        AtlasError
            One of its subclasses, by what is wrong; ``atlas_kit.errors`` lists them.
        """
        source = open_source(path)
        try:
            store = open_store(source, passphrase=passphrase, key=key, verify=verify)
        except BaseException as error:
            if source is not path:
                source.close()
            if isinstance(error, AtlasError) and error.path is None:
                error.path = source.path
            raise
        return cls.of_store(store, passphrase=passphrase, key=key)

    @classmethod
    def of_store(
        cls, store: Store, *, passphrase: str | bytes | None = None, key: bytes | None = None
    ) -> MemoryFile:
        """Return what a store holds as a memory file."""
        memory = cls(version=store.info.version, passphrase=passphrase, key=key)
        memory._adopt(store)
        return memory

    @classmethod
    def load(cls, path: Given, **secret: Any) -> MemoryFile:
        """Open a file and check every payload (``open(verify=True)``)."""
        return cls.open(path, verify=True, **secret)

    @classmethod
    @contextlib.contextmanager
    def edit(
        cls,
        path: Given,
        *,
        create: bool = False,
        timeout: float = 10.0,
        backup: bool | int = False,
        version: int | None = None,
        **secret: Any,
    ) -> Iterator[MemoryFile]:
        """Lock a file, open it, and commit what the block changes: no other writer comes in between.

        Nothing is written when the block raises, or changes nothing. ``create`` starts a version 2 file
        where there is none. A source that is open already stays so, and is read if its file has not changed since.
        """
        target = path_of(path)
        with atomic.lock(target, timeout=timeout):
            if create and not os.path.exists(target):
                memory = cls(version=version or (3 if any(secret.values()) else 2), **secret)
                memory.path = os.fspath(target)
                memory._dirty = True
            else:
                memory = cls.open(as_it_is_now(path), **secret)
            memory._locked = os.path.realpath(target)
            with memory:
                yield memory
                if memory._dirty:
                    memory._write(None, None, append=not backup, backup=backup, locked=True, last=True)

    def _adopt(self, store: Store) -> None:
        self._store = store
        self._info = store.info
        self._replaced, self._removed, self._added = {}, set(), {}
        self._dirty = False
        self.path = store.source.path

    def close(self) -> None:
        """Release the file. Changes that were not saved are dropped; entries that are held stay readable."""
        with self._lock:
            self._store, self._closed = None, True
            self._replaced, self._removed, self._added, self._dirty = {}, set(), {}, False

    def _require_open(self) -> None:
        if self._closed:  # an empty mapping instead would be saved over the file
            raise InvalidParamError("the memory file is closed", path=self.path, hint="Open it again.")

    def require_unchanged(self) -> None:
        """See that what was read since opening is all of one file.

        A file that was renamed into this one's place does not matter, nor does a commit that was appended to it.

        Raises
        ------
        ConflictError
            Something else was written over the file in place.
        """
        store = self._store
        handle = None if store is None else store.source.fileno()
        if store is None or handle is None:
            return
        info = os.fstat(handle)
        if (info.st_size, info.st_mtime_ns) == store.source.identity[2:]:
            return
        if self.version > 1:
            from atlas_kit.formats.atlas.v2 import StoreV2, parse_header

            assert isinstance(store, StoreV2)
            with contextlib.suppress(AtlasError):
                now = parse_header(os.pread(handle, store.header.header_size, 0))
                # the number alone is not enough: files of the same sizes, written in the same second, share it
                if now.file_id == store.header.file_id and now.generation > store.header.generation:
                    return
        raise ConflictError(
            "the file was overwritten while it was being read", path=self.path, hint="Open it again."
        )

    def __enter__(self) -> MemoryFile:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._dirty and exc[0] is None:
            import warnings

            warnings.warn(
                "changes of a memory file were dropped: call save() or commit(), or use MemoryFile.edit()",
                ResourceWarning,
                stacklevel=2,
            )
        self.close()

    # --- about the file -------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """1, 2 or 3."""
        return self._info.version

    @property
    def dialect(self) -> str:
        """``v1``, ``v1-96``, ``v1-crc32``, ``v1-96-crc32``, ``v2`` or ``v3``."""
        return self._info.dialect

    @property
    def created(self) -> int:
        """When the memory was made, Unix seconds."""
        return self._info.created

    @property
    def modified(self) -> int:
        """When it was last changed, Unix seconds."""
        return self._info.modified

    @property
    def model_hash(self) -> bytes:
        """32 bytes that say which model the memory belongs to; zero when unset."""
        return self._info.model_hash

    @model_hash.setter
    def model_hash(self, value: bytes | str) -> None:
        self._info.model_hash = _hash_bytes(value)
        self._dirty = True

    @property
    def generation(self) -> int:
        """Number of commits that the file has seen (0 in version 1)."""
        return self._info.generation

    @property
    def warnings(self) -> list[Finding]:
        """What opening noticed: a dialect, bytes after the end."""
        return list(self._info.warnings)

    @property
    def modified_in_memory(self) -> bool:
        """Whether there are changes that were not saved."""
        return self._dirty

    @property
    def info(self) -> Info:
        """What the header says, for tools that set what is otherwise kept (times, reserved bytes, flags)."""
        return self._info

    @property
    def store(self) -> Store | None:
        """The file as it is on disk, for tools that look under the mapping."""
        return self._store

    @property
    def file_size(self) -> int:
        """Bytes of the file on disk (0 before the first save)."""
        return self._store.source.size if self._store else 0

    @property
    def total_size(self) -> int:
        """Sum over the entries of 32 + key + 1 + payload, as version 1 counts it."""
        return sum(33 + len(encode_key(entry.key)) + entry.size for entry in self.values())

    @property
    def garbage(self) -> int:
        """Bytes on disk that no entry uses, which ``compact`` would release (0 in version 1)."""
        from atlas_kit.formats.atlas import v2

        if isinstance(self._store, v2.StoreV2):
            return max(0, self._store.source.size - self._store.live_size)
        return 0

    def __repr__(self) -> str:
        where = self.path or "(not saved)"
        return f"<MemoryFile {where} version {self.version}, {len(self)} entries>"

    # --- the mapping ----------------------------------------------------------------------------------

    def _find(self, key: str) -> Entry | None:
        self._require_open()
        try:
            key = canonical_key(key)
        except InvalidParamError:
            return None
        entry = self._added.get(key) or self._replaced.get(key)
        if entry is None and self._store is not None and key not in self._removed:
            entry = self._store.find(key)
        return entry

    def __getitem__(self, key: str) -> Entry:
        with self._lock:
            entry = self._find(key)
        if entry is None:
            raise KeyNotFoundError("there is no entry with this key", path=self.path, key=key)
        return entry

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return False
        with self._lock:
            return self._find(key) is not None

    def __len__(self) -> int:
        with self._lock:
            self._require_open()
            return (len(self._store) if self._store else 0) - len(self._removed) + len(self._added)

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            self._require_open()
            keys = list(self._store.keys()) if self._store else []
            if self._removed:
                keys = [key for key in keys if key not in self._removed]
            return iter(keys + list(self._added))

    def entries(self) -> Iterator[Entry]:
        """Yield every entry in order (faster than asking for each key)."""
        with self._lock:
            self._require_open()
            store, removed, replaced = self._store, set(self._removed), dict(self._replaced)
            added = list(self._added.values())
        if store:
            for entry in store.entries():
                if entry.key not in removed:
                    yield replaced.get(entry.key, entry)
        yield from added

    def values(self) -> Any:
        """Iterate over the entries in order."""
        return self.entries()

    def items(self) -> Any:
        """Iterate over (key, entry) in order."""
        return ((entry.key, entry) for entry in self.entries())

    def __setitem__(self, key: str, value: Any) -> None:
        self.set(key, value)

    def setdefault(self, key: str, default: Any = None) -> Entry:
        """Return the entry of a key, after setting it to ``default`` if there is none."""
        with self._lock:
            entry = self._find(key)
            return self.set(key, default) if entry is None else entry

    def set(
        self,
        key: str,
        value: Any,
        *,
        type: int | None = None,  # the format's word
        flags: int | None = None,
        timestamp: int | None = None,
        codec: str | None = None,
        level: int | None = None,
        shuffle: bool | None = None,
        dtype: str | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Entry:
        """Set a key; an existing one keeps its place in the order.

        Parameters
        ----------
        value
            ``str`` (type text), ``bytes`` (generic), ``dict`` or ``list`` (JSON, metadata), an array (a
            tensor, type context; kept by reference until saved), or an ``Entry``.
        type, flags, timestamp
            Unix seconds, now by default; an ``Entry`` keeps its own.
        codec, level, shuffle
            How to store this payload, where that differs from the file's default.
        dtype, shape
            Make raw bytes a tensor, or an array of ``uint16`` ``bfloat16``.

        Raises
        ------
        InvalidParamError, KeyTooLongError, DataTooLargeError
            The file's version does not allow the key or the payload.
        """
        _require_u(type or 0, 32, "type")
        _require_u(flags or 0, 32, "flags")
        _require_u(timestamp or 0, 64, "timestamp")
        options = {"codec": codec, "level": level, "shuffle": shuffle}
        wanted = {name: option for name, option in options.items() if option is not None}
        if codec is not None:
            from atlas_kit.codecs.table import by_name

            by_name(codec)
        key = canonical_key(key)
        now = _now() if timestamp is None else timestamp
        entry = make_entry(
            key, value, type=type, flags=flags, timestamp=now, dtype=dtype, shape=shape, wanted=wanted or None
        )
        if timestamp is not None:
            entry = entry.replace(timestamp=timestamp)
        if self.version == 1:
            v1.require_key(key)
            v1.require_size(key, entry.size, old=entry.offset is not None)
        else:
            from atlas_kit.formats.atlas import v2_writer

            v2_writer.require_key(key)
        with self._lock:
            self._require_open()
            if key in self._added:
                self._added[key] = entry
            elif key in self._replaced or (
                self._store is not None and key not in self._removed and self._store.find(key) is not None
            ):
                self._replaced[key] = entry
            else:
                self._added[key] = entry
            self._dirty = True
        return entry

    def get(self, key: str, default: Any = None) -> Any:
        """Return the entry of a key, or ``default``."""
        with self._lock:
            entry = self._find(key)
        return default if entry is None else entry

    def has(self, key: str) -> bool:
        """Tell whether there is an entry of that key."""
        return key in self

    def remove(self, key: str) -> bool:
        """Remove a key; tell whether it was there."""
        with self._lock:
            if self._find(key) is None:
                return False
            key = canonical_key(key)
            if key in self._added:
                del self._added[key]
            else:
                self._replaced.pop(key, None)
                self._removed.add(key)
            self._dirty = True
            return True

    def __delitem__(self, key: str) -> None:
        if not self.remove(key):
            raise KeyNotFoundError("there is no entry with this key", path=self.path, key=key)

    def clear(self) -> None:
        """Remove every entry."""
        with self._lock:
            self._require_open()
            self._removed = set(self._store.keys()) if self._store else set()
            self._replaced, self._added, self._dirty = {}, {}, True

    def rename(self, old: str, new: str) -> None:
        """Give an entry another key; it moves to the end of the order.

        Raises
        ------
        InvalidParamError
            The new key is taken.
        """
        with self._lock:
            entry = self[old]
            if new in self:
                raise InvalidParamError("there is already an entry with this key", path=self.path, key=new)
            self.set(new, entry)
            self.remove(old)

    @property
    def count(self) -> int:
        """Number of entries."""
        return len(self)

    def encrypt_with(self, *, passphrase: str | bytes | None = None, key: bytes | None = None) -> None:
        """Have everything that is saved from now on encrypted with another secret; the file becomes version 3.

        Examples
        --------
        >>> memory = MemoryFile()
        >>> memory.encrypt_with(passphrase="another one")
        >>> memory.version
        3
        """
        secret = _secret(passphrase, key)
        if secret is None:
            raise KeyRequiredError("an encrypted file needs a passphrase or a key", path=self.path)
        with self._lock:
            self._require_open()
            self._secret, self._dirty = secret, True
            self._info = dataclasses.replace(self._info, version=3, dialect="v3")

    # --- saving ---------------------------------------------------------------------------------------

    def save(
        self,
        path: StrPath | None = None,
        *,
        version: int | None = None,
        backup: bool | int = False,
        force: bool = False,
        codec: str | None = None,
        level: int | None = None,
        shuffle: bool | None = None,
        durable: bool = True,
    ) -> None:
        """Write the whole memory to a file, atomically and durably.

        Parameters
        ----------
        path
            Where; the file that it came from by default.
        version
            1, 2 or 3; unchanged by default.
        backup
            Keep the previous file as ``NAME.bak``; a number above 1: and so many in all, older ones with their time in
            the name.
        force
            Save although another process changed the file in the meantime.
        codec, level, shuffle
            Store every payload anew in this way (otherwise stored payloads are copied as they are).
        durable
            Off: do not wait until the bytes are on the disk.

        Raises
        ------
        ConflictError
            Another process changed the file since it was opened.
        """
        recode = any(option is not None for option in (codec, level, shuffle))
        options = (codec or self._codec, level if level is not None else self._level,
                   self._shuffle if shuffle is None else shuffle, recode)  # fmt: skip
        self._write(path, version, append=False, backup=backup, force=force, options=options, durable=durable)

    def commit(self, *, force: bool = False) -> None:
        """Append the changes to a version 2 or 3 file and rewrite nothing else. Version 1 is saved whole."""
        self._write(None, None, append=True, force=force)

    def to_bytes(self) -> bytes:
        """Return what `save` would write into a new file, which need not be on any disk.

        Examples
        --------
        >>> memory = MemoryFile()
        >>> memory["greeting"] = "hello"
        >>> MemoryFile.open(memory.to_bytes())["greeting"].text
        'hello'
        """
        with self._lock, io.BytesIO() as file:
            self._require_open()
            self._write_whole(file, self.version, self._cipher_for(self.version), False, None)
            return file.getvalue()

    def compact(self) -> None:
        """Rewrite the file without what updates and removals left behind."""
        self._write(None, None, append=False)

    def _write(
        self,
        path: StrPath | None,
        version: int | None,
        *,
        append: bool,
        backup: bool | int = False,
        force: bool = False,
        locked: bool = False,
        durable: bool = True,
        last: bool = False,
        options: tuple[str, int | None, bool, bool] | None = None,
    ) -> None:
        """Write to a file, and go on from there; after the ``last`` time nobody asks for what was written."""
        with self._lock:
            self._require_open()
            target = self.path if path is None else os.fspath(path)
            if target is None:
                raise InvalidParamError("the memory has no file yet", hint="Give a path: save(path).")
            version = self.version if version is None else version
            if version not in (1, 2, 3):
                raise VersionMismatchError(f"{version} is not a version of the format", hint="Use 1, 2 or 3.")
            if version == 3 and self._secret is None:
                raise KeyRequiredError("version 3 needs a passphrase or a key", path=target)
            same = self._store is not None and self.path is not None
            if same and path is not None and self.path is not None:
                same = resolved(path) == os.path.realpath(self.path)
            if append and same and not self._dirty:
                return
            locked = locked or self._locked == resolved(target)
            with contextlib.nullcontext() if locked else atomic.lock(target):
                changed = same and self._store is not None and self._store.source.changed()
                if changed and not force:
                    raise ConflictError(
                        "another process changed the file since it was opened", path=target,
                        hint="Open it again and repeat the change, or save to another name.",
                    )  # fmt: skip
                if append and same and not changed and version == self.version and self._may_append(target):
                    cipher = self._append(target)
                else:
                    cipher = self._replace(target, version, backup, durable, options)
                if last:
                    self._dirty = False
                else:
                    self._reopen(target, cipher)

    def _may_append(self, target: str) -> bool:
        """Tell whether a commit may append to the file as it is, rather than write a new one."""
        from atlas_kit.formats.atlas import v2

        store = self._store
        if not isinstance(store, v2.StoreV2) or store.info.version != self.version:
            return False
        if store.cipher is not None and store.cipher.secret != self._secret:
            return False
        if os.stat(target).st_nlink > 1:  # the file's other name is a snapshot, and must not change
            return False
        # a sealed index is written whole by each commit: do not let old ones pile up
        return store.cipher is None or store.header.committed_size < 4 * store.live_size + (1 << 16)

    def _replace(
        self,
        target: str,
        version: int,
        backup: bool | int,
        durable: bool,
        options: tuple[str, int | None, bool, bool] | None,
    ) -> Cipher | None:
        cipher = self._cipher_for(version)
        with atomic.atomic_write(target, backup=backup, locked=True, durable=durable) as file:
            self._write_whole(file, version, cipher, durable, options)
        return cipher

    def _write_whole(
        self,
        file: IO[bytes],
        version: int,
        cipher: Cipher | None,
        durable: bool,
        options: tuple[str, int | None, bool, bool] | None,
    ) -> None:
        from atlas_kit.formats.atlas import v2_writer

        info = self._stamped(version)
        if version == 1:
            v1.write(file, info, self.entries(), len(self))
            return
        how = v2_writer.Options(*(options or (self._codec, self._level, self._shuffle)))
        v2_writer.write(file, info, self.entries(), len(self), how, cipher, durable=durable)

    def _append(self, target: str) -> Cipher | None:
        from atlas_kit.formats.atlas import v2, v2_writer

        store = self._store
        assert isinstance(store, v2.StoreV2)
        info = self._stamped(self.version)
        try:
            with open(os.path.realpath(target), "r+b") as file:
                raw = file.read(store.header.header_size)
                if v2.parse_header(raw, path=target) != store.header:
                    raise ConflictError("another process changed the file since it was opened", path=target)
                v2_writer.commit(
                    store,
                    file,
                    [*self._replaced.values(), *self._added.values()],
                    sorted(self._removed),
                    modified=info.modified,
                    model_hash=info.model_hash,
                    options=v2_writer.Options(self._codec, self._level, self._shuffle),
                )
        except BaseException as error:
            _undo_append(target, store)
            if isinstance(error, (struct.error, OverflowError)):
                raise FileCorruptError(
                    "the numbers in the file's header leave no room for an update", path=target,
                    remedy=Remedy("repair"),
                ) from error  # fmt: skip
            if isinstance(error, OSError):
                raise access_error(error, target, "write") from error
            raise
        return store.cipher

    def _stamped(self, version: int) -> Info:
        modified = _now() if self._dirty and self._store is not None else self._info.modified
        return Info(
            version, f"v{version}", self._info.created, modified, self._info.model_hash, self._info.reserved,
            file_flags=self._info.file_flags,
        )  # fmt: skip

    def _cipher_for(self, version: int) -> Cipher | None:
        if version != 3:
            return None
        from atlas_kit.formats.atlas.crypto import Cipher

        assert self._secret is not None
        held = self._store.cipher if self._store else None
        # the nonces are random, so that one salt can serve all saves of a file: scrypt is slow on purpose
        return held if held is not None and held.secret == self._secret else Cipher.fresh(self._secret)

    def _reopen(self, target: str, cipher: Cipher | None) -> None:
        from atlas_kit.formats.atlas import v2

        source = open_source(target)
        self._adopt(v2.StoreV2(source, cipher=cipher) if cipher else open_store(source))

    # --- without opening ------------------------------------------------------------------------------

    @staticmethod
    def exists(path: StrPath) -> bool:
        """Tell whether there is a file of that name that starts like a `.atlas` file."""
        try:
            with open_source(path) as source:
                return source.read_upto(0, 4) == t.MAGIC
        except AtlasError:
            return False

    @staticmethod
    def validate(
        path: StrPath, *, passphrase: str | bytes | None = None, key: bytes | None = None
    ) -> list[Finding]:
        """Check a file thoroughly and return every finding (none: it is fine)."""
        from atlas_kit.formats.atlas.check import check_atlas

        return check_atlas(path, passphrase=passphrase, key=key)

    @staticmethod
    def auto_filename(model_path: StrPath) -> str:
        """Return the memory file's name for a model: ``a/llama-7b.gguf`` -> ``llama-7b_memory.atlas``."""
        name = os.fspath(model_path).replace("\\", "/").rsplit("/", 1)[-1]
        return name.split(".gguf", 1)[0] + "_memory.atlas"

    @staticmethod
    def hash_model(path: StrPath) -> bytes:
        """Return the 32 bytes for ``model_hash``: SHA-256 of the whole model file."""
        return sha256_of(path)


def _undo_append(target: str, store: v2.StoreV2) -> None:
    """Cut off what a failed commit wrote (a full disk), so that it can be repeated; under the lock."""
    from atlas_kit.formats.atlas.v2 import parse_header

    with contextlib.suppress(OSError, AtlasError), open(os.path.realpath(target), "r+b") as file:
        if parse_header(file.read(store.header.header_size)) == store.header:  # not committed after all
            file.truncate(store.header.committed_size)
            store.source.refresh()


def _secret(passphrase: str | bytes | None, key: bytes | None) -> Secret | None:
    if passphrase is None and key is None:
        return None
    from atlas_kit.formats.atlas.crypto import Secret

    return Secret.of(passphrase, key)


def _now() -> int:
    """Return Unix seconds; ``SOURCE_DATE_EPOCH`` makes builds of sample files reproducible."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(fixed) if fixed.isdigit() else int(time.time())


def _hash_bytes(value: bytes | str) -> bytes:
    if isinstance(value, str):
        try:
            value = bytes.fromhex(value)
        except ValueError:
            raise InvalidParamError("a model hash as text must be 64 hexadecimal digits") from None
    if len(value) > 32:
        raise InvalidParamError(f"a model hash has 32 bytes, and this one has {len(value)}")
    return value.ljust(32, b"\0")


def _require_u(value: int, bits: int, name: str) -> None:
    if not 0 <= value < 1 << bits:
        raise InvalidParamError(f"{name} must be from 0 to 2^{bits} - 1, and is {value}")
