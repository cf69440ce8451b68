"""Keep a memory in a ``.atlas`` file and load it again: where numbers that learn meet entries and bytes.

The entries are those of ``formats/atlas-memory.md``: one of JSON that describes the memory, and one tensor for each
array. Other entries of the file (a chat, preferences) stay as they are. Everything that a file says is checked
before the memory is built.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from atlas_kit.codecs import numbers
from atlas_kit.codecs.json_text import loads, named
from atlas_kit.codecs.numbers import Array as HostArray
from atlas_kit.errors import (
    AtlasError,
    DataTooLargeError,
    FileCorruptError,
    InvalidParamError,
    KeyNotFoundError,
    OutOfMemoryError,
    Remedy,
    VersionMismatchError,
    WrongModelError,
)
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.formats.atlas.tables import DTYPE_BY_NAME, DataType
from atlas_kit.formats.opening import edit_memory
from atlas_kit.memory import Memory, MemoryConfig, MemoryState, arrays, snapshot
from atlas_kit.memory.arrays import layout
from atlas_kit.memory.backend import choose
from atlas_kit.persistence import tables
from atlas_kit.persistence.entry_keys import DESCRIPTION
from atlas_kit.persistence.tables import array_key, is_array_key
from atlas_kit.storage.given import Given, StrPath
from atlas_kit.storage.keys import Keys, passphrase_bytes
from atlas_kit.storage.source import resolved

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import Entry


#: What large arrays can be rounded to, and how large the relative error |a - b| / |a| may be. The limits are what the
#: formats reach where their range suffices; numbers outside it (float16 ends at 65,504) get the next format.
LIMITS = {"q8_0": 0.025, "float16": 0.001, "bfloat16": 0.004}
#: The largest description that is written and read.
MAX_DESCRIPTION = 1 << 24
#: How much memory a configuration may ask for beside what the file's arrays take, unless the caller allows more.
MAX_BYTES = 1 << 30


@dataclass(frozen=True, repr=False)
class MemoryDescription:
    """What a file says of the memory in it; no array is read for it.

    Attributes
    ----------
    path
        The file.
    configs
        The configuration of each layer.
    batch
        The leading axes of every array.
    tokens_learned
        For each layer, summed over the batch.
    optimizer, window, dtype
        With what options it was saved.
    metadata
        What the application put there.
    model_hash
        64 hexadecimal digits, or None.
    sizes
        Group of arrays -> bytes in the file.
    """

    path: str | None
    configs: tuple[MemoryConfig, ...]
    batch: tuple[int, ...]
    tokens_learned: tuple[int, ...]
    optimizer: bool
    window: bool
    dtype: str | None
    metadata: dict[str, Any]
    model_hash: str | None
    sizes: dict[str, int]

    exit_code = 0

    def __repr__(self) -> str:
        """Say it in one line: there may be many configurations, and much of an application's own."""
        return f"<MemoryDescription of {self.path or 'bytes'}: {self.summary}>"

    @property
    def layers(self) -> int:
        """Number of memories."""
        return len(self.configs)

    def holds(self, name: str) -> bool:
        """Tell whether the file should hold the array ``name`` of each layer whose configuration asks for it."""
        return tables.is_kept(name, optimizer=self.optimizer, window=self.window, dtype=self.dtype)

    @property
    def summary(self) -> str:
        """One line: ``1 layer, matrix of 2,145 x 192, polynomial degree 2, 1,234 tokens learned``."""
        parts = [f"{self.layers:,} layer{'s' * (self.layers != 1)}"]
        if self.batch:
            parts[0] += f" of {' x '.join(map(str, self.batch))} sessions"
        kinds = {arrays.summary(config) for config in self.configs}
        parts.append(kinds.pop() if len(kinds) == 1 else "of different sizes")
        learned = max(self.tokens_learned)
        parts.append(f"{learned:,} token{'s' * (learned != 1)} learned")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON-ready data."""
        return {
            **(named("path", self.path) if self.path is not None else {}),
            "summary": self.summary,
            "layers": self.layers,
            "batch": list(self.batch),
            "config": _configs_to_json(self.configs),
            "tokens_learned": list(self.tokens_learned),
            "optimizer": self.optimizer,
            "window": self.window,
            "dtype": self.dtype,
            "metadata": self.metadata,
            "model_hash": self.model_hash,
            "bytes": self.sizes,
        }


@dataclass(frozen=True)
class LoadedMemory:
    """A memory that was loaded: for each layer what it is and what it knows.

    Attributes
    ----------
    description
        What the file says of it.
    memories, states
        One of each per layer that was asked for; layers of one configuration share a ``Memory``.
    """

    description: MemoryDescription
    memories: tuple[Memory, ...] = field(repr=False)
    states: tuple[MemoryState, ...] = field(repr=False)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the application put into the file beside the memory."""
        return self.description.metadata

    @property
    def memory(self) -> Memory:
        """The memory, where one layer was loaded."""
        self._require_one()
        return self.memories[0]

    @property
    def state(self) -> MemoryState:
        """The state, where one layer was loaded."""
        self._require_one()
        return self.states[0]

    def _require_one(self) -> None:
        if len(self.states) != 1:
            raise InvalidParamError(
                f"{len(self.states)} layers were loaded",
                key="layer",
                hint="Use memories and states, or layer=0.",
            )


# --- saving --------------------------------------------------------------------------------------------


def save_memory(
    path: StrPath,
    memory: Memory | MemoryConfig | Sequence[Memory | MemoryConfig],
    states: MemoryState | Sequence[MemoryState],
    *,
    metadata: Mapping[str, Any] | None = None,
    model_hash: bytes | str | None = None,
    version: int | None = None,
    optimizer: bool = True,
    window: bool = True,
    dtype: str | None = None,
    codec: str | None = None,
    level: int | None = None,
    backup: bool | int = False,
    force: bool = False,
    keep_other_entries: bool = True,
    entries: Mapping[str, bytes | None] | None = None,
    further: Callable[[MemoryFile], bool] | None = None,
    passphrase: str | bytes | None = None,
    key: bytes | None = None,
) -> MemoryDescription:
    """Write a memory into a file: a new one, or one whose other entries stay.

    The file is replaced whole or not at all, and what it held of an earlier memory is gone afterwards. Only where
    ``further`` allows it, and most of the file stays as it is, changes are appended instead: just as surely, and what
    they replace is gone when the file is next written whole, before it is twice as large as what it holds.

    Parameters
    ----------
    path
        The ``.atlas`` file.
    memory
        What ``states`` are states of: one for all layers, or one for each.
    states
        One state, or one for each layer, all with the same leading axes.
    metadata
        Whatever JSON can say that should stay beside the memory.
    model_hash
        32 bytes or 64 hexadecimal digits that say to which model the memory belongs; None keeps what the file says.
    version
        1, 2 or 3 for a new file: 2 by default, 3 with a passphrase or a key. A file that exists keeps its own.
    optimizer, window
        Leave these out to save space: see ``atlas_kit.memory.snapshot``.
    dtype
        Round large arrays to ``bfloat16``, ``float16`` or ``q8_0``; None keeps every bit. Where the last axis is no
        multiple of 32, float16 stands in for q8_0, and bfloat16 where the numbers leave float16's range.
    codec, level
        How to store the arrays: ``none``, ``lz4``, ``zlib`` or ``zstd`` (versions 2 and 3).
    backup
        Keep the previous file as ``NAME.bak``; a number above 1: and so many in all, older ones with their time in the
        name.
    force
        Save although the file belongs to another model.
    keep_other_entries
        False: the memory is all that the file holds afterwards.
    entries
        Further entries of bytes to write in the same go; None removes one.
    further
        Makes further changes to the opened file, and tells whether what is replaced by all of them may stay in the
        file until it is next written whole.
    passphrase, key
        The secret of a version 3 file.

    Returns
    -------
    What the file says of the memory now.

    Raises
    ------
    InvalidParamError
        A state does not fit its configuration, or the options do not fit the file.
    WrongModelError
        The file belongs to another model than ``model_hash``.
    """
    if version is not None and (isinstance(version, bool) or not isinstance(version, int) or version < 1):
        raise InvalidParamError(
            f"{version!r} is not a version of the format", key="version", hint="Use 1, 2 or 3."
        )
    resolved(path)  # what no file can be called fails before anything is computed
    written = _written(memory, states, metadata, optimizer=optimizer, window=window, dtype=dtype)
    keys = Keys(None if passphrase is None else passphrase_bytes(passphrase), key)
    new = not os.path.lexists(path)
    wanted = (3 if keys.given else 2) if version is None else version
    if new and keys.given and wanted != 3:
        raise InvalidParamError(f"version {wanted} cannot be encrypted", path=path, key="version")
    with edit_memory(path, keys, create=new, version=wanted if new else None) as file:
        if version not in (None, file.version):
            raise InvalidParamError(
                f"the file is of version {file.version}, not {version}", path=path, key="version",
                remedy=Remedy("change-version", version=str(version)),
            )  # fmt: skip
        if codec is not None and file.version == 1:
            raise InvalidParamError("version 1 stores payloads as they are", path=path, key="codec")
        if model_hash is not None:
            _claim(file, model_hash, force)
        for stale in list(file):
            if not keep_other_entries or (is_array_key(stale) and stale not in written.arrays):
                file.remove(stale)
        _fill(file, written, entries or {}, codec, level)
        may_append = further is not None and further(file) and not new and not backup
        if may_append and is_small_change(file):
            file.commit(force=force)
        else:
            file.save(backup=backup, force=force)  # whole: updates of everything would only pile up
        return _described(file)


def is_small_change(file: MemoryFile) -> bool:
    """Tell whether to append what changed: it is less than what stays, and nothing is owed to a whole save."""
    changed = kept = 0
    for entry in file.entries():
        if entry.offset is None:
            changed += entry.size
        else:
            kept += entry.stored_size
    return changed < kept and file.file_size + changed < 2 * (kept + changed)


def memory_bytes(
    memory: Memory | MemoryConfig | Sequence[Memory | MemoryConfig],
    states: MemoryState | Sequence[MemoryState],
    *,
    metadata: Mapping[str, Any] | None = None,
    model_hash: bytes | str | None = None,
    optimizer: bool = True,
    window: bool = True,
    dtype: str | None = None,
    codec: str | None = None,
    level: int | None = None,
    entries: Mapping[str, bytes | None] | None = None,
    further: Callable[[MemoryFile], bool] | None = None,
) -> bytes:
    """Return a new version 2 file with a memory in it, which is not on any disk; parameters as in `save_memory`.

    Raises
    ------
    InvalidParamError
        A state does not fit its configuration.
    """
    written = _written(memory, states, metadata, optimizer=optimizer, window=window, dtype=dtype)
    file = MemoryFile(model_hash=model_hash or b"")
    _fill(file, written, entries or {}, codec, level)
    if further is not None:
        further(file)
    return file.to_bytes()


class _Written(NamedTuple):
    """What is written of a memory."""

    description: dict[str, Any]
    arrays: dict[
        str, tuple[HostArray, str, tuple[int, ...]]
    ]  # the key: how it is stored, its type, its shape


def _written(
    memory: Memory | MemoryConfig | Sequence[Memory | MemoryConfig],
    states: MemoryState | Sequence[MemoryState],
    metadata: Mapping[str, Any] | None,
    *,
    optimizer: bool,
    window: bool,
    dtype: str | None,
) -> _Written:
    layers = (states,) if isinstance(states, MemoryState) else _tuple_of(states, MemoryState, "states")
    configs = _configs_of(memory, len(layers))
    if dtype is not None and dtype not in LIMITS:
        raise InvalidParamError(
            f"a memory cannot be stored as {dtype!r}",
            key="dtype",
            hint=f"Choose one of: {', '.join(LIMITS)}.",
        )
    stored: dict[str, tuple[HostArray, str, tuple[int, ...]]] = {}
    learned = []
    for layer, (config, state) in enumerate(zip(configs, layers, strict=True)):
        expected = layout(config)
        arrays = snapshot(state, optimizer=optimizer, window=window, copy=False)
        arrays = {
            n: a
            for n, a in arrays.items()
            if tables.is_kept(n, optimizer=optimizer, window=window, dtype=dtype)
        }
        _require_fit(expected, state, layers[0].batch, layer)
        learned.append(int(state.counters["learned"].sum()))
        for name, array in arrays.items():
            stored[array_key(layer, name)] = *_stored(array, expected[name], dtype), array.shape
    description = {
        "format": tables.FORMAT,
        "version": tables.VERSION,
        "layers": len(layers),
        "batch": list(layers[0].batch),
        "config": _configs_to_json(configs),
        "tokens_learned": learned,
        "optimizer": optimizer,
        "window": window,
        "dtype": dtype,
        "metadata": _plain_metadata(metadata),
    }
    if len(json.dumps(description)) > MAX_DESCRIPTION:
        raise DataTooLargeError(
            "the metadata are too large", key="metadata", hint="Give them an entry of their own."
        )
    return _Written(description, stored)


def _fill(
    file: MemoryFile,
    written: _Written,
    entries: Mapping[str, bytes | None],
    codec: str | None,
    level: int | None,
) -> None:
    """Put a memory, and further entries, into a file that is open."""
    file.set(DESCRIPTION, written.description, type=DataType.METADATA)
    for name, (array, kind, shape) in written.arrays.items():
        file.set(name, array, type=DataType.CONTEXT, dtype=kind, shape=shape, codec=codec, level=level)
    for name, data in entries.items():
        if data is not None:
            file.set(name, data, type=DataType.CONTEXT, codec=codec, level=level)
        elif name in file:
            file.remove(name)


def _configs_of(
    memory: Memory | MemoryConfig | Sequence[Memory | MemoryConfig], layers: int
) -> tuple[MemoryConfig, ...]:
    if layers == 0:
        raise InvalidParamError("there is no state to save", key="states")
    kinds = (Memory, MemoryConfig)
    given = (memory,) * layers if isinstance(memory, kinds) else _tuple_of(memory, kinds, "memory")
    if len(given) != layers:
        raise InvalidParamError(f"there are {len(given)} configurations for {layers} states", key="memory")
    return tuple(one.config if isinstance(one, Memory) else one for one in given)


def _tuple_of(values: Any, kinds: type | tuple[type, ...], key: str) -> tuple[Any, ...]:
    """Return an iterable as a tuple; see that all in it are of these classes."""
    found = tuple(values) if isinstance(values, Iterable) else (values,)
    for value in found:
        if not isinstance(value, kinds):
            names = [kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
            raise InvalidParamError(f"{type(value).__name__} is not a {' or '.join(names)}", key=key)
    return found


def _require_fit(
    expected: Mapping[str, arrays.Expected], state: MemoryState, batch: tuple[int, ...], layer: int
) -> None:
    """See that a state has the arrays that its configuration asks for, so that what is saved can be loaded."""
    found = {f"{group}.{name}": a for group, arrays in state.groups().items() for name, a in arrays.items()}
    for name in sorted(expected.keys() ^ found.keys()):
        have, lack = ("configuration", "state") if name in expected else ("state", "configuration")
        raise InvalidParamError(f"the {have} of layer {layer} has {name}, and the {lack} has not", key=name)
    for name, array in found.items():
        shape, kind = (*batch, *expected[name].shape), _numpy_name(expected[name].dtype)
        if tuple(array.shape) != shape or array.dtype.name != kind:
            raise InvalidParamError(
                f"{name} of layer {layer} is {array.dtype.name}{list(array.shape)}, not {kind}{list(shape)}",
                key=name,
            )


def _numpy_name(dtype: str) -> str:
    """Return the NumPy name of an array's dtype in a state, where bfloat16 is kept as its bits."""
    return "uint16" if dtype == "bfloat16" else dtype


def _stored(array: HostArray, expected: arrays.Expected, wanted: str | None) -> tuple[HostArray, str]:
    """Return what to store for an array and as which dtype: the array itself, or its numbers rounded."""
    if wanted is None or not expected.row.large:
        return array, expected.dtype
    exact = numbers.from_bfloat16(array) if expected.dtype == "bfloat16" else array
    forms = list(LIMITS)[list(LIMITS).index(wanted) :]
    if array.shape[-1] % numbers.Q8_0_BLOCK:
        forms = [form for form in forms if form != "q8_0"]
    for form in forms:
        row = DTYPE_BY_NAME[form]
        if row.size / row.block >= array.dtype.itemsize:
            continue
        rounded, back = _rounded(exact, form)
        with np.errstate(all="ignore"):
            error = np.linalg.norm((exact.astype(np.float64) - back).ravel())
            limit = LIMITS[form] * np.linalg.norm(exact.astype(np.float64).ravel())
        if error <= limit:  # false for NaN, too
            return rounded, form
    return array, expected.dtype


def _rounded(array: HostArray, form: str) -> tuple[HostArray, HostArray]:
    """Return numbers in a narrow form, and what a reader makes of it."""
    with np.errstate(all="ignore"):  # the caller looks at the error
        if form == "q8_0":
            out = numbers.to_q8_0(array)
            return out, numbers.from_q8_0(out)
        if form == "bfloat16":
            out = numbers.to_bfloat16(array)
            return out, numbers.from_bfloat16(out)
        return array.astype(np.float16), array.astype(np.float16)


def _configs_to_json(configs: Sequence[MemoryConfig]) -> Any:
    out = [config.to_json() for config in configs]
    return out[0] if all(config == configs[0] for config in configs) else out


def _plain_metadata(metadata: Mapping[str, Any] | None) -> Any:
    try:
        return json.loads(json.dumps(dict(metadata or {}), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidParamError(f"the metadata are not JSON: {error}", key="metadata") from error


def _claim(file: MemoryFile, model_hash: bytes | str, force: bool) -> None:
    """Write the model's hash into the file, unless the file belongs to another model."""
    before = file.model_hash
    file.model_hash = model_hash
    if any(before) and before != file.model_hash and not force:
        raise WrongModelError(
            before, file.model_hash, path=file.path, hint="Save to another name, or use force to replace it."
        )


# --- what a file says ----------------------------------------------------------------------------------


@contextlib.contextmanager
def opened_memory(
    given: Given | MemoryFile, *, passphrase: str | bytes | None = None, key: bytes | None = None
) -> Iterator[MemoryFile]:
    """Open a file for as long as the block lasts; one that is open already stays open."""
    if isinstance(given, MemoryFile):
        yield given
        return
    with MemoryFile.open(given, passphrase=passphrase, key=key) as file:
        yield file


def describe_memory(
    given: Given | MemoryFile, *, passphrase: str | bytes | None = None, key: bytes | None = None
) -> MemoryDescription:
    """Return what a file (by path, its bytes, or opened) says of the memory in it, without reading an array.

    Raises
    ------
    KeyNotFoundError
        The file holds no memory of this kind.
    FileCorruptError, VersionMismatchError
        Its description is damaged, or of a newer form.
    """
    with opened_memory(given, passphrase=passphrase, key=key) as file:
        return _described(file)


def find_description(file: MemoryFile) -> MemoryDescription | None:
    """Return the description of the memory in an opened file; None where there is none.

    Raises
    ------
    FileCorruptError, VersionMismatchError
        There is one, and it cannot be read.
    """
    entry = file.get(DESCRIPTION)
    if entry is None or entry.type != DataType.METADATA or entry.size > MAX_DESCRIPTION:
        return None
    data = entry.data
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if isinstance(document, dict) and document.get("format") == tables.FORMAT:
        return _described(file)
    return None  # something of another program that chose the same key


def _described(file: MemoryFile) -> MemoryDescription:
    entry: Entry | None = file.get(DESCRIPTION)
    if entry is None:
        raise KeyNotFoundError(
            "the file holds no learned memory", path=file.path, key=DESCRIPTION,
            remedy=Remedy("inspect"),
        )  # fmt: skip
    if entry.size > MAX_DESCRIPTION:
        raise _damaged(file, DESCRIPTION, f"the description has {entry.size:,} bytes, which is too many")
    with _about(file, DESCRIPTION):
        document = loads(entry.data, what="description")
    if not isinstance(document, dict) or document.get("format") != tables.FORMAT:
        raise _damaged(file, DESCRIPTION, "this is not the description of a memory")
    newest = document.get("version")
    if isinstance(newest, int) and newest < 1:
        raise _damaged(file, DESCRIPTION, f"{newest} is not a version of a memory")
    if isinstance(newest, int) and newest > tables.VERSION:
        raise VersionMismatchError(
            f"the memory is of version {newest}, and this library reads {tables.VERSION}",
            path=file.path, key=DESCRIPTION, hint="A newer atlas_kit may read it.",
        )  # fmt: skip
    for row in tables.DESCRIPTION_FIELDS:
        value = document.get(row.name, ...)
        kinds = tables.JSON_TYPES[row.type]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            what = "is missing" if value is ... else f"is not a {row.type}"
            raise _damaged(file, DESCRIPTION, f'the field "{row.name}" {what}')
    configs = _read_configs(file, document)
    batch, learned = (_whole_numbers(file, document, name) for name in ("batch", "tokens_learned"))
    if len(learned) != len(configs):
        raise _damaged(
            file, DESCRIPTION, f"there are {len(learned)} numbers of tokens for {len(configs)} layers"
        )
    if document["dtype"] is not None and document["dtype"] not in LIMITS:
        raise _damaged(file, DESCRIPTION, f"{document['dtype']!r} is not a type that arrays are rounded to")
    return MemoryDescription(
        file.path,
        configs,
        batch,
        learned,
        document["optimizer"],
        document["window"],
        document["dtype"],
        document["metadata"],
        file.model_hash.hex() if any(file.model_hash) else None,
        _sizes(file, configs),
    )


def _read_configs(file: MemoryFile, document: dict[str, Any]) -> tuple[MemoryConfig, ...]:
    layers, given = document["layers"], document["config"]
    if not 1 <= layers <= len(file):
        raise _damaged(file, DESCRIPTION, f"a file of {len(file)} entries cannot hold {layers} layers")
    if isinstance(given, list) and len(given) != layers:
        raise _damaged(file, DESCRIPTION, f"there are {len(given)} configurations for {layers} layers")
    configs = []
    for one in given if isinstance(given, list) else [given]:
        with _about(file, DESCRIPTION):
            config = MemoryConfig.from_json(one)
        if layers * getattr(config.module, "depth", 1) > len(file):  # before anything lists that many arrays
            raise _damaged(
                file, DESCRIPTION, f"a file of {len(file)} entries cannot hold a memory of that depth"
            )
        configs.append(config)
    return tuple(configs) if isinstance(given, list) else tuple(configs) * layers


def _whole_numbers(file: MemoryFile, document: dict[str, Any], name: str) -> tuple[int, ...]:
    values = document[name]
    if any(isinstance(value, bool) or not isinstance(value, int) or value < 0 for value in values):
        raise _damaged(file, DESCRIPTION, f'the field "{name}" is not a list of whole numbers')
    return tuple(values)


def _sizes(file: MemoryFile, configs: Sequence[MemoryConfig]) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for layer, config in enumerate(configs):
        for name in layout(config):
            entry = file.get(array_key(layer, name))
            if entry is not None:
                sizes[name.partition(".")[0]] += entry.stored_size
    return dict(sizes)


# --- loading -------------------------------------------------------------------------------------------


def load_memory(
    given: Given | MemoryFile,
    *,
    layer: int | None = None,
    backend: str | None = None,
    optimizer: bool = True,
    window: bool = True,
    expect_model_hash: bytes | str | None = None,
    force: bool = False,
    max_bytes: int = MAX_BYTES,
    passphrase: str | bytes | None = None,
    key: bytes | None = None,
) -> LoadedMemory:
    """Load a memory, so that going on from it is bit by bit as if it had never been saved.

    That is what a file holds that was saved with the default options; what was left out starts anew, and what was
    rounded comes back in the configuration's dtype.

    Parameters
    ----------
    given
        The ``.atlas`` file by path, its bytes, or an opened one, which stays open.
    layer
        Load only this layer.
    backend
        See ``Memory``.
    optimizer, window
        False: start these anew, although the file may hold them: also where they are damaged.
    expect_model_hash
        32 bytes or 64 hexadecimal digits: refuse a memory of another model, or of none that it names.
    force
        Load it all the same.
    max_bytes
        How much memory the configuration may ask for beside what the file's arrays take; a damaged one could ask
        for anything.
    passphrase, key
        The secret of a version 3 file.

    Raises
    ------
    KeyNotFoundError
        The file holds no memory of this kind.
    WrongModelError
        The memory belongs to another model.
    FileCorruptError
        Something is missing, of another shape or type than the configuration asks for, or makes no sense; ``key``
        names the entry.
    VersionMismatchError
        The memory was saved in a newer form.
    """
    choose(backend)
    with opened_memory(given, passphrase=passphrase, key=key) as file:
        description = _described(file)
        if expect_model_hash is not None and not force:
            expected = MemoryFile(model_hash=expect_model_hash).model_hash
            if file.model_hash != expected:
                raise WrongModelError(
                    file.model_hash, expected, path=file.path, hint="Use force to load it anyway."
                )
        configs = description.configs
        if layer is not None and (
            isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < len(configs)
        ):
            raise InvalidParamError(
                f"the file holds layers 0 to {len(configs) - 1}", path=file.path, key="layer"
            )
        chosen = range(len(configs)) if layer is None else (layer,)

        def wanted(name: str) -> bool:
            return description.holds(name) and tables.is_kept(
                name, optimizer=optimizer, window=window, dtype=None
            )

        _require_arrays(file, description, wanted, max_bytes)
        memories: dict[MemoryConfig, Memory] = {}
        states = []
        for number in chosen:
            config = configs[number]
            with _about(file, DESCRIPTION):
                memory = memories[config] = memories.get(config) or Memory(config, backend)
                state = _restored(file, description, wanted, memory, number)
                if not (optimizer and window):
                    state = memory.restore(snapshot(state, optimizer=optimizer, window=window, copy=False))
            states.append(state)
        return LoadedMemory(description, tuple(memories[configs[number]] for number in chosen), tuple(states))


def _require_arrays(
    file: MemoryFile, description: MemoryDescription, wanted: Callable[[str], bool], max_bytes: int
) -> None:
    """See that every array is there, none too many, all of the right shape, before anything is built."""
    known = {DESCRIPTION}
    beside = sum(map(arrays.constants_nbytes, set(description.configs)))
    for layer, config in enumerate(description.configs):
        for name, expected in layout(config).items():
            entry_key = array_key(layer, name)
            entry = file.get(entry_key) if description.holds(name) else None
            shape = description.batch + expected.shape
            if entry is not None:
                known.add(entry_key)
            if not wanted(name):
                if entry is None or entry.shape != shape:
                    beside += expected.nbytes(description.batch)
                continue
            if entry is None:
                raise _damaged(file, entry_key, "this array of the memory is missing", _do_without(name))
            if entry.shape is not None and entry.shape != shape:
                raise _misshapen(file, entry_key, entry.shape, shape)
    for entry_key in file:
        if is_array_key(entry_key) and entry_key not in known:
            raise _damaged(file, entry_key, "the memory's configuration has no such array")
    if beside > max_bytes:
        raise DataTooLargeError(
            f"the memory would take {beside:,} bytes on top of what the file holds of it", path=file.path,
            key=DESCRIPTION, hint="If that is meant, allow it with max_bytes.",
        )  # fmt: skip


def _do_without(name: str) -> str | None:
    """Say how to load a memory of which the array ``name`` is lost."""
    if not tables.is_kept(name, optimizer=True, window=False, dtype=None):
        return "Load the rest with window=False."
    if not tables.is_kept(name, optimizer=False, window=True, dtype=None):
        return "Load the rest with optimizer=False."
    return None


def _restored(
    file: MemoryFile,
    description: MemoryDescription,
    wanted: Callable[[str], bool],
    memory: Memory,
    layer: int,
) -> MemoryState:
    arrays = {
        name: _read(file, array_key(layer, name), expected, description.batch)
        for name, expected in layout(memory.config).items()
        if wanted(name)
    }
    try:
        return memory.restore(arrays)
    except InvalidParamError as error:  # its key is the array's name
        raise _damaged(file, array_key(layer, error.key or ""), error.message) from error


def _read(file: MemoryFile, key: str, expected: arrays.Expected, batch: tuple[int, ...]) -> HostArray:
    """Read one array: any float type for numbers, the exact type for integers."""
    entry = file[key]
    if entry.dtype is None:
        array = npy_array(file, entry)
        dtype = array.dtype.name
    else:
        plainly = not entry.codec_id and not entry.filter_id
        array = entry.array(verify=plainly)  # what is coded is checked while it is decoded
        dtype = entry.dtype
    exact = "int" in expected.dtype
    if dtype == "q8_0" and not exact:
        array = numbers.from_q8_0(array)
    elif dtype == "bfloat16" and not exact:
        if expected.dtype == dtype:
            return _shaped(file, key, array, batch + expected.shape)
        array = numbers.from_bfloat16(array)
    elif dtype != expected.dtype if exact else array.dtype.kind != "f":
        raise _damaged(file, key, f"the array holds {dtype}, and {expected.dtype} was expected")
    array = _shaped(file, key, array, batch + expected.shape)
    with np.errstate(over="ignore", invalid="ignore"):  # an infinity is found when the state is restored
        if expected.dtype == "bfloat16":
            return numbers.to_bfloat16(array)
        return array.astype(expected.dtype, copy=False)


def _shaped(file: MemoryFile, key: str, array: HostArray, shape: tuple[int, ...]) -> HostArray:
    if array.shape != shape:
        raise _misshapen(file, key, array.shape, shape)
    return array


def npy_array(file: MemoryFile, entry: Entry) -> HostArray:
    """Read a ``.npy`` payload: what version 1 makes of a tensor. Nothing beyond the payload is allocated."""
    import warnings

    from numpy.lib import format as npy

    data = entry.data
    stream = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers written by Python 2 are still read
            version = npy.read_magic(stream)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = header(stream)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
            raise _damaged(file, entry.key, "the .npy payload is not what its header says")
        array = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
    except AtlasError:
        raise
    except Exception as error:  # NumPy's parser lets out many classes over damaged headers
        raise _damaged(file, entry.key, "the payload is neither a tensor nor a .npy array") from error
    return array.astype(array.dtype.newbyteorder("="), copy=False)


# --- errors --------------------------------------------------------------------------------------------


def _damaged(file: MemoryFile, key: str, message: str, hint: str | None = None) -> FileCorruptError:
    return FileCorruptError(message, path=file.path, key=key, hint=hint)


def _misshapen(
    file: MemoryFile, key: str, found: tuple[int, ...], wanted: tuple[int, ...]
) -> FileCorruptError:
    return _damaged(
        file, key, f"the array has the shape {list(found)}, and the description asks for {list(wanted)}"
    )


@contextlib.contextmanager
def _about(file: MemoryFile, key: str) -> Iterator[None]:
    """Turn what the memory says of values that came from a file into an error about that file."""
    try:
        yield
    except InvalidParamError as error:
        raise FileCorruptError(
            error.message, path=file.path, key=key, hint=error.hint, remedy=error.remedy
        ) from error
    except AtlasError as error:
        error.path = error.path or file.path
        error.key = error.key or key
        raise
    except MemoryError as error:
        raise OutOfMemoryError("there is not enough RAM for this memory", path=file.path, key=key) from error
    except (
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:  # such as sizes beyond what NumPy can express
        raise _damaged(file, key, f"the configuration cannot be used: {error}") from error
