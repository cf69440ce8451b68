"""Which memory a session starts with: what was asked for, as settings or as the file that holds it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import AtlasError, InvalidParamError, NoSuchFileError
from atlas_kit.settings.atlas_settings import AtlasSettings

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.llama.engine import Engine
    from atlas_kit.storage.given import StrPath


def choose(
    engine: Engine, memory: Any, changes: Mapping[str, Any]
) -> tuple[AtlasSettings | None, str | None]:
    """Return the settings of the memory that is asked for, and the file to load it from.

    Neither: no memory. A file alone: with the settings that it holds, changed as asked for.
    """
    if memory is None or memory is False:
        if changes:
            raise InvalidParamError(
                f"{', '.join(changes)} make no sense without a memory", key="memory", hint="Try memory=True."
            )
        return None, None
    if isinstance(memory, AtlasSettings):
        return memory.replace(**changes), None
    if isinstance(memory, str) and memory == "auto":
        if not Path(engine.info.path).is_file():
            raise InvalidParamError(
                'memory "auto" needs a model file: settings are recommended from its metadata, and '
                f"{engine.info.path!r} is none",
                key="memory",
                hint="Try memory=True.",
            )
        from atlas_kit.settings.recommend import recommend

        return recommend(engine.info.path).settings.replace(**changes), None
    if memory is True:
        return native_or_default(of_native(engine), changes)
    if isinstance(memory, (str, os.PathLike)):
        return None, os.fspath(memory)
    raise InvalidParamError(
        f"a memory cannot be {memory!r}", key="memory", hint='Give True, "auto", AtlasSettings or a path.'
    )


def native_or_default(
    native: tuple[AtlasSettings | None, str | None], changes: Mapping[str, Any]
) -> tuple[AtlasSettings, str | None]:
    """Return what ``of_native`` gave with some settings changed, or else the defaults; the file must be there.

    Raises
    ------
    NoSuchFileError
        The learned memory is not beside the model.
    InvalidParamError
        The settings do not fit.
    """
    settings, sidecar = native
    if sidecar is not None and not os.path.lexists(sidecar):
        raise NoSuchFileError(
            "the learned memory that the model asks for is not there", path=sidecar,
            hint="Put it beside the model, or name another memory or none.",
        )  # fmt: skip
    return (settings or AtlasSettings()).replace(**changes), sidecar


def of_native(engine: Engine) -> tuple[AtlasSettings | None, str | None]:
    """Return what an ATLAS-native model asks for: settings, and the file of a learned memory; None for any other."""
    if not Path(engine.info.path).is_file():
        return None, None
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.settings.native import native_settings

    with GGUFFile.open(engine.info.path) as file:
        return native_settings(file)


def settings_of(file: StrPath | MemoryFile, **secret: Any) -> AtlasSettings:
    """Return the settings of the memory in a file; ``secret`` is a passphrase or a key, where it is encrypted.

    Raises
    ------
    AtlasError
        When the file holds no memory, or one that was not made by a session.
    """
    from atlas_kit.persistence.session_file import saved_settings

    found = saved_settings(file, **secret)
    try:
        return AtlasSettings.from_saved(found)
    except AtlasError as error:
        if error.path is None:
            error.path = os.fspath(file) if isinstance(file, (str, os.PathLike)) else file.path
        raise
