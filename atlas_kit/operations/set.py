"""Store one value in a memory file or in a model's metadata, in place and whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from atlas_kit.codecs.json_text import named
from atlas_kit.codecs.text import as_text
from atlas_kit.errors import InvalidParamError
from atlas_kit.formats.opening import edit_memory
from atlas_kit.operations import secrecy
from atlas_kit.operations.inputs import is_new, require_kind, require_metadata
from atlas_kit.operations.names import misspelled
from atlas_kit.storage.given import Given, name_of, use_source
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import Source, StrPath


@dataclass
class Stored:
    """What was stored; ``similar`` are keys that may have been meant where a new one was added."""

    path: str
    key: str
    created_file: bool
    replaced: bool
    size: int | None
    type: str
    in_place: bool = True
    similar: list[str] = field(default_factory=list)

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {**named("path", self.path), **named("key", self.key), "created_file": self.created_file,
                "replaced": self.replaced, "size": self.size, "type": self.type,
                "similar": [named("key", key) for key in self.similar]}  # fmt: skip


@dataclass
class SetOptions:
    """How to store a value. ``None`` keeps what the key had, or takes what suits the value.

    ``backup``: keep the file as it was, and so many in all. ``new``: make the file if there is none, whatever its name.
    """

    type: str | None = None
    flags: int | None = None
    timestamp: int | None = None
    codec: str | None = None
    level: int | None = None
    is_array: bool = False
    version: int | None = None
    backup: bool | int = False
    new: bool = False


def set_value(path: StrPath, key: str, value: bytes, options: SetOptions, keys: Keys | None = None) -> Stored:
    """Store ``value`` under ``key``.

    A file that does not exist yet becomes a new memory file if its name ends in ``.atlas``, or if ``options.new``.

    Raises
    ------
    NoSuchFileError
        There is no such file, and its name is not that of a memory file.
    InvalidParamError
        The type is not one that the file knows, or the value is not of that type.
    """
    keys = Keys() if keys is None else keys
    if is_new(path, options.new):
        return _set_in_memory(path, key, value, options, keys, new=True)
    with use_source(path) as source:
        kind = require_kind(source, ["atlas", "gguf"], "values can be set in .atlas and GGUF files")
        if kind == "gguf":
            return _set_in_model(source, key, value, options, keys)
        return _set_in_memory(source, key, value, options, keys, new=False)


def _set_in_memory(
    given: Given, key: str, value: bytes, options: SetOptions, keys: Keys, *, new: bool
) -> Stored:
    from atlas_kit.formats.atlas.tables import data_type_name

    with edit_memory(given, keys, create=new, version=options.version, backup=options.backup) as memory:
        old = memory.get(key)
        stored: Any = _read_npy(value) if options.is_array else value
        memory.set(
            key,
            stored,
            type=_type_number(options.type, old, stored),
            flags=(old.flags if old else 0) if options.flags is None else options.flags,
            timestamp=options.timestamp,
            codec=options.codec,
            level=options.level,
        )
        entry = memory[key]
        similar = [] if old else misspelled(key, memory)
    name = data_type_name(entry.type)
    return Stored(name_of(given), key, new, old is not None, entry.size, name, similar=similar)


def _type_number(name: str | None, old: Any, value: Any) -> int | None:
    from atlas_kit.formats.atlas.tables import DATA_TYPE_BY_NAME, DataType

    if name is not None:
        if name in DATA_TYPE_BY_NAME:
            return DATA_TYPE_BY_NAME[name]
        if name.isdecimal() and int(name) < 1 << 32:
            return int(name)
        raise InvalidParamError(
            f'there is no entry type "{name}"', hint=f"Use a number, or {', '.join(DATA_TYPE_BY_NAME)}."
        )
    if old is not None:
        return int(old.type)
    if isinstance(value, bytes):
        return int(DataType.GENERIC if as_text(value) is None else DataType.TEXT)
    return None


def _read_npy(data: bytes) -> Any:
    import io

    import numpy as np

    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise InvalidParamError(f"the value is not a .npy array: {str(error).splitlines()[0]}") from error


def _set_in_model(source: Source, key: str, value: bytes, options: SetOptions, keys: Keys) -> Stored:
    from atlas_kit.formats.gguf import GGUFFile, MetadataField, Set, ValueType, edit_metadata
    from atlas_kit.formats.gguf.tables import describe_key, value_type_name, value_type_of_name
    from atlas_kit.operations.gguf_values import parse_value

    secrecy.require_no_secret(keys, path=source.name)
    if options.is_array or options.codec or options.timestamp is not None or options.flags is not None:
        raise InvalidParamError(
            "GGUF metadata have no flags, timestamp, codec or .npy arrays", path=source.path
        )
    with GGUFFile.open(source, shards=False) as model:
        require_metadata(model, [key])
        old = model.metadata.get(key)
        similar = [] if old is not None else misspelled(key, model.metadata)
        named_type = value_type_of_name(options.type) if options.type else None
        if options.type and named_type is None:
            raise InvalidParamError(
                f'there is no GGUF type "{options.type}"', hint="Use u32, i32, f32, bool, str, arr[str] ..."
            )
        kind: int = ValueType.STRING
        element: int | None = None
        if named_type is not None:
            kind, element = named_type
        elif old is not None:
            kind, element = old.type, old.element_type
        else:
            kind, element = _usual_type(describe_key(key), value_type_of_name) or (kind, element)
    text = value.decode("utf-8", "surrogateescape")
    parsed = parse_value(text, kind, element, key)
    MetadataField.make(key, parsed, kind, element)  # say what is wrong before the file is locked
    edit_metadata(source, [Set(key, parsed, kind, element)], backup=options.backup)
    return Stored(
        source.name, key, False, old is not None, None, value_type_name(kind, element), similar=similar
    )


def _usual_type(row: Any, by_name: Any) -> Any:
    """Return the type that the specification gives a known key."""
    return by_name(row.type) if row is not None and isinstance(getattr(row, "type", None), str) else None
