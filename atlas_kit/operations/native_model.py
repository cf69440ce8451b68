"""The memory that an ATLAS-native model asks for: settings under ``atlas.memory.*``, and a learned one beside it.

Writes them when a model is converted, and reads them for the runtime; what a file says is checked before it is used.
``formats/gguf.md`` describes the keys.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import (
    AtlasError,
    FileAccessError,
    FileCorruptError,
    InvalidParamError,
    VersionMismatchError,
    WrongModelError,
)
from atlas_kit.operations.inputs import Keys, StrPath
from atlas_kit.settings.atlas_settings import ADAPTIVE, AtlasSettings, SettingRow, settings_table

if TYPE_CHECKING:
    from atlas_kit.formats.gguf import GGUFFile

PREFIX = "atlas.memory."
FILE_KEY, HASH_KEY, MODEL_KEY = (PREFIX + name for name in ("file", "hash", "model"))
#: Names of settings and of files are shorter than this.
_LONGEST = 255


# --- reading -------------------------------------------------------------------------------------------


def native_settings(file: GGUFFile) -> tuple[AtlasSettings | None, str | None]:
    """Return what memory a model asks for: (settings, path of a learned memory).

    ``(None, None)`` for a model that is not ATLAS-native or whose memory is switched off. Settings that the file
    does not mention have their default. The path is in the model's folder; nothing says that the file is there.

    Raises
    ------
    FileCorruptError
        A value makes no sense; ``key`` names it.
    VersionMismatchError
        The keys are of a version that is not known.
    """
    from atlas_kit.formats.gguf.native import ATLAS_VERSION, is_native

    if not is_native(file):
        return None, None
    version, enabled = (file.metadata[key].items for key in ("atlas.version", "atlas.enabled"))
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise _wrong(file, "atlas.version", "this is not the number of a version")
    if version > ATLAS_VERSION:
        raise VersionMismatchError(
            f"the model's memory is described in version {version}, and this library reads {ATLAS_VERSION}",
            path=file.path, key="atlas.version", hint="A newer atlas_kit may read it.",
        )  # fmt: skip
    if not isinstance(enabled, bool):
        raise _wrong(file, "atlas.enabled", "this is neither true nor false")
    if not enabled:
        return None, None
    return _settings(file), _sidecar(file)


def _settings(file: GGUFFile) -> AtlasSettings:
    values = {}
    for row in settings_table():
        field = file.metadata.get(PREFIX + row.name)
        if field is not None:
            values[row.name] = _value(file, row, field.items)
    try:
        return AtlasSettings(**values)
    except InvalidParamError as error:  # each is possible, and not all together
        raise _wrong(file, f"{PREFIX}{error.key}", error.message, error.hint) from error


def _value(file: GGUFFile, row: SettingRow, value: Any) -> Any:
    """Check one value; numbers may stand in text where the setting has words as well."""
    if isinstance(value, str) and row.least is not None and row.choices and value not in row.choices:
        with contextlib.suppress(ValueError):
            value = float(value)
    if not isinstance(value, (bool, int, float, str)) or (isinstance(value, str) and len(value) > _LONGEST):
        raise _wrong(file, PREFIX + row.name, "this is no value of a setting", f"Choose {row.range}.")
    try:
        return row.check(value)
    except InvalidParamError as error:
        raise _wrong(file, PREFIX + row.name, error.message, error.hint) from error


def _sidecar(file: GGUFFile) -> str | None:
    field = file.metadata.get(FILE_KEY)
    if field is None:
        return None
    name = field.items
    if not isinstance(name, str) or not _is_plain(name):
        raise _wrong(file, FILE_KEY, "this is not the name of a file in the model's folder")
    first = file.shards[0].path
    return None if first is None else os.path.join(os.path.dirname(first), name)


def _is_plain(name: str) -> bool:
    """Whether a name stays in its folder, on any system."""
    odd = {"", ".", ".."} | {name for mark in "/\\\0" if mark in name}
    return name not in odd and len(name.encode("utf-8", "surrogateescape")) <= _LONGEST


def _wrong(file: GGUFFile, key: str, message: str, hint: str | None = None) -> FileCorruptError:
    return FileCorruptError(
        message, path=file.path, key=key, hint=hint or "Change it with: atlas-tool set, or convert again."
    )


def _sha256(path: StrPath) -> str:
    from atlas_kit.operations.hash import digest_of
    from atlas_kit.storage.files import Source

    with Source(path) as source:
        return digest_of(source.chunks(0, source.size)).hex()


# --- writing -------------------------------------------------------------------------------------------


def native_values(settings: AtlasSettings) -> dict[str, Any]:
    """Return settings as ``to_native`` takes them: one key each, in the types of ``tables.ATLAS_KEYS``."""
    values = settings.to_json()
    if values["blend_ratio"] != ADAPTIVE:
        values["blend_ratio"] = repr(values["blend_ratio"])
    return {PREFIX + name: value for name, value in values.items()}


@dataclass(frozen=True)
class BoundMemory:
    """A learned memory that was checked against a model; ``settings`` are those that it was saved with, if it says."""

    path: str
    identity: str
    settings: AtlasSettings | None
    notes: tuple[str, ...]


def check_memory(
    model: StrPath, memory: StrPath, *, keys: Keys | None = None, force: bool = False
) -> BoundMemory:
    """See that a learned memory is whole and belongs to a model.

    Raises
    ------
    WrongModelError
        It belongs to another model, or does not say to which, and ``force`` is off.
    KeyNotFoundError, FileCorruptError
        The file holds no learned memory, or a damaged one.
    InvalidParamError
        It is of another width than the model.
    """
    from atlas_kit.formats.gguf import GGUFFile, model_identity
    from atlas_kit.operations.inputs import open_memory
    from atlas_kit.persistence.snapshot import load_memory
    from atlas_kit.settings.model_facts import model_facts

    keys = Keys() if keys is None else keys  # false while its passphrase is not asked for yet
    with GGUFFile.open(model) as file:
        identity, width = model_identity(file), model_facts(file).width
    open_memory(memory, keys).close()  # asks for the passphrase, where there is one
    try:
        loaded = load_memory(memory, expect_model_hash=identity, force=force, **keys.options())
    except WrongModelError as error:
        error.hint = "Use --force to put it beside this model all the same."
        raise
    for config in loaded.description.configs:
        if (config.d_k, config.d_v) != (width, width):
            raise InvalidParamError(
                f"the memory was made for a model of width {config.d_k}, and this one has {width}",
                path=memory,
            )
    notes = []
    if loaded.description.model_hash != identity:
        notes.append("the memory does not belong to this model: loading it will need --force as well")
    return BoundMemory(os.fspath(memory), identity, _saved_settings(loaded.metadata), tuple(notes))


def _saved_settings(metadata: dict[str, Any]) -> AtlasSettings | None:
    """Return the settings that a session keeps beside its memory (``runtime.settings``), if they are readable."""
    runtime = metadata.get("runtime")
    found = runtime.get("settings") if isinstance(runtime, dict) else None
    if not isinstance(found, dict):
        return None
    known = {row.name for row in settings_table()}
    with contextlib.suppress(AtlasError):
        return AtlasSettings.from_json({name: value for name, value in found.items() if name in known})
    return None


def sidecar_of(output: StrPath) -> str:
    """Return where the memory of a native model goes: its name with ``.atlas`` instead of ``.gguf``."""
    return os.path.splitext(os.fspath(output))[0] + ".atlas"


@contextlib.contextmanager
def placed_memory(bound: BoundMemory, output: StrPath, *, force: bool = False) -> Iterator[dict[str, Any]]:
    """Copy a memory beside the model that is being written to ``output``; yield the keys that bind it.

    What is there already and is the same stays. A copy that was made is removed again when the block fails.

    Raises
    ------
    FileAccessError
        Another file is in its place, and ``force`` is off.
    """
    from atlas_kit.storage.files import CHUNK, Source, atomic_write

    target = sidecar_of(output)
    digest = _sha256(bound.path)
    made = False
    if not os.path.lexists(target) or _sha256(target) != digest:
        if os.path.lexists(target) and not force:
            raise FileAccessError(
                "another file is where the memory should go", path=target,
                hint="Move it away, or overwrite it with --force.",
            )  # fmt: skip
        made = not os.path.lexists(target)
        with Source(bound.path) as source, atomic_write(target) as out:
            for piece in source.chunks(0, source.size, CHUNK):
                out.write(piece)
    try:
        yield {FILE_KEY: os.path.basename(target), HASH_KEY: digest, MODEL_KEY: bound.identity}
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                os.unlink(target)
        raise
