"""The settings that an ATLAS-native model carries under ``atlas.memory.*``: reading them, and what to write.

What a file says is checked before it is used. ``formats/gguf.md`` describes the keys.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import FileCorruptError, InvalidParamError, Remedy, VersionMismatchError
from atlas_kit.settings.atlas_settings import ADAPTIVE, AtlasSettings, SettingRow, settings_table

if TYPE_CHECKING:
    from atlas_kit.formats.gguf import GGUFFile

PREFIX = "atlas.memory."
FILE_KEY, HASH_KEY, MODEL_KEY = (PREFIX + name for name in ("file", "hash", "model"))
#: Names of settings and of files are shorter than this.
_LONGEST = 255


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
        raise _wrong(file, PREFIX + row.name, "this value is not allowed", f"Choose {row.range}.")
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
        message, path=file.path, key=key, hint=hint, remedy=None if hint else Remedy("change-value", key=key)
    )


def native_values(settings: AtlasSettings) -> dict[str, Any]:
    """Return settings as ``to_native`` takes them: one key each, in the types of ``tables.ATLAS_KEYS``."""
    values = settings.to_json()
    if values["blend_ratio"] != ADAPTIVE:
        values["blend_ratio"] = repr(values["blend_ratio"])
    return {PREFIX + name: value for name, value in values.items()}
