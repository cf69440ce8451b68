"""Convert a file into another format, or another version of its own, and say what could not come along."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import InvalidParamError, Remedy
from atlas_kit.formats.detect import detect
from atlas_kit.formats.endings import require_ending
from atlas_kit.operations import secrecy
from atlas_kit.operations.inputs import Opened, open_given, unknown_format
from atlas_kit.operations.outputs import (
    Output,
    is_path,
    output_file,
    output_name,
    require_apart,
    require_free,
    scratch_path,
    write_memory_file,
)
from atlas_kit.storage.given import Given, Progress, use_source
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.operations.native_model import BoundMemory
    from atlas_kit.settings.atlas_settings import AtlasSettings
    from atlas_kit.storage.given import StrPath

TARGETS = ("atlas-v1", "atlas-v2", "atlas-v3", "json", "safetensors", "npz", "gguf", "atlas-gguf")

#: What a file name's ending says; ``.atlas`` is decided by what the source says of itself.
SUFFIXES = {".json": "json", ".safetensors": "safetensors", ".npz": "npz", ".gguf": "gguf"}


@dataclass
class Converted:
    """What was converted into what; ``notes`` say in plain words what the target cannot hold.

    ``memory`` is the learned memory beside an ATLAS-native model.
    """

    source: str
    source_format: str
    target: str
    target_format: str
    source_size: int
    target_size: int
    entries: int | None
    notes: list[str] = field(default_factory=list)
    memory: str | None = None

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            **named("path", self.source),
            **named("output", self.target),
            **named("source", self.source),  # as version 0.1.0 has it, and target
            "source_format": self.source_format,
            **named("target", self.target),
            "target_format": self.target_format,
            "source_size": self.source_size,
            "target_size": self.target_size,
            "entries": self.entries,
            **(named("memory", self.memory) if self.memory is not None else {}),
            "notes": self.notes,
        }


def target_of(output: Output, wanted: str | None) -> str | None:
    """Return the target format: as asked for, or by the output's suffix (``atlas`` for ``.atlas``).

    Raises
    ------
    InvalidParamError
        Neither says it.
    """
    if wanted is not None:
        if wanted not in TARGETS:
            raise InvalidParamError(f'there is no format "{wanted}"', hint=f"Use {', '.join(TARGETS)}.")
        return wanted
    if is_path(output):
        name = os.fsdecode(output).lower()
        if name.endswith((".atlas", ".atlas.bak")):
            return "atlas"
        if name.endswith((".atlas.gguf", ".atlas-gguf")):
            return "atlas-gguf"
        found = SUFFIXES.get(os.path.splitext(name)[1])
        if found:
            return found
    raise InvalidParamError(
        "the output's name does not say its format",
        path=output_name(output),
        remedy=Remedy("choose-format", formats=", ".join(TARGETS)),
    )


@dataclass
class ConvertOptions:
    """Choices that are not part of the target's name.

    ``new_keys`` encrypts with another secret than opens the source; ``decrypt`` allows plain text where there is a
    secret.

    ``text``: False leaves what was read and said out of the ``memory`` that is put beside the model.
    ``auto``, ``settings`` and ``memory`` make a model ATLAS-native. ``settings`` are given what is to be changed
    (what is recommended with ``auto``, what ``memory`` was learned with, or the defaults) and return what is written.

    ``dequantize`` makes float32 of a model's quantised tensors in safetensors and npz; ``byte_order`` (``"<"`` or
    ``">"``) writes a model for machines of the other one.
    """

    to: str | None = None
    force: bool = False
    codec: str | None = None
    level: int | None = None
    shuffle: bool | None = None
    new_keys: Keys | None = None
    decrypt: bool = False
    auto: bool = False
    settings: Callable[[AtlasSettings], AtlasSettings] | None = None
    memory: StrPath | None = None
    text: bool = True
    dequantize: bool = False
    byte_order: str | None = None

    @property
    def native(self) -> bool:
        """Whether these choices are about the memory of a model."""
        return self.auto or self.settings is not None or self.memory is not None


def convert_file(
    given: Given, output: Output, options: ConvertOptions | None = None, keys: Keys | None = None,
    progress: Progress | None = None,
) -> Converted:  # fmt: skip
    """Convert ``given`` and write the result to ``output``, whole or not at all.

    Raises
    ------
    InvalidParamError
        The source cannot become that format, or the output is the input.
    FileAccessError
        The output exists and ``force`` is off.
    """
    options, keys = options or ConvertOptions(), Keys() if keys is None else keys
    target = target_of(output, options.to)
    require_free(output, [given], options.force)
    with use_source(given) as source:
        return _convert(source, output, target, options, keys, progress)


def _convert(
    source: Source, output: Output, target: str | None, options: ConvertOptions, keys: Keys,
    progress: Progress | None,
) -> Converted:  # fmt: skip
    kind = detect(source)
    if kind == "gguf":
        if options.byte_order or target in ("safetensors", "npz"):
            secrecy.require_no_secret(options.new_keys, keys, path=source.name)
            return _convert_tensors(source, output, target, options, progress)
        return _convert_model(source, output, target, options, keys)
    if options.dequantize or options.byte_order:
        raise InvalidParamError(
            "only a GGUF model is dequantised, or written in another byte order", path=source.name
        )
    if options.native:
        raise InvalidParamError(
            "only a GGUF model can be given a memory's settings", path=source.name,
            remedy=Remedy("leave-settings-out"),
        )  # fmt: skip
    if kind is None:
        raise unknown_format(source)
    if target in ("gguf", "atlas-gguf"):
        if target == "gguf" and kind in ("safetensors", "npz"):
            made = _model_of_arrays(source, kind, output, options, keys, progress)
            if made is not None:
                return made
        if kind == "safetensors":
            raise InvalidParamError(
                "a GGUF model also needs the configuration and the vocabulary, which are not in this file",
                path=source.name,
                hint="llama.cpp's convert_hf_to_gguf.py makes one of the folder with all of them.",
            )
        raise InvalidParamError(
            "only a GGUF model can be converted to GGUF", path=source.name,
            hint="Memory files convert to .atlas, JSON, safetensors and npz.",
        )  # fmt: skip
    require_ending(output, _kind_of(target))
    with open_given(source, keys) as opened:
        target = _secret_target(opened, str(target), options, keys)
        if not str(target).startswith("atlas") and (options.codec or options.level is not None):
            raise InvalidParamError("only .atlas files have a codec and a level", path=source.name)
        result = Converted(
            opened.name, _format_name(opened), output_name(output), str(target), source.size, 0,
            len(opened.memory),
        )  # fmt: skip
        result.notes = _notes(opened.memory, str(target))  # before saving, which reopens the memory
        result.target_size = _write(opened.memory, output, str(target), options, keys, progress)
    return result


def _secret_target(opened: Opened, target: str, options: ConvertOptions, keys: Keys) -> str:
    """Return the target with its version: encrypted if the source is, or if anybody gave a secret."""
    new = keys if options.new_keys is None else options.new_keys
    if options.decrypt and options.new_keys is not None:
        raise InvalidParamError("another passphrase or key was given, and plain text was asked for")
    encrypted = opened.memory.version == secrecy.ENCRYPTED
    how: dict[str, Any] = {
        "encrypted": encrypted,
        "keys": new,
        "decrypt": options.decrypt,
        "path": opened.name,
    }
    if not target.startswith("atlas"):
        secrecy.require_plain(target, **how)
        return target
    wanted = int(target[-1]) if target != "atlas" else None
    return f"atlas-v{secrecy.output_version(wanted, opened.recorded or 2, **how)}"


def _kind_of(target: str | None) -> str:
    """Return the kind of file that a target is."""
    return "gguf" if target == "atlas-gguf" else "atlas" if str(target).startswith("atlas") else str(target)


def _format_name(opened: Opened) -> str:
    return f"atlas-v{opened.memory.version}" if opened.kind == "atlas" else opened.kind


def _write(
    memory: MemoryFile, output: Output, target: str, options: ConvertOptions, keys: Keys,
    progress: Progress | None,
) -> int:  # fmt: skip
    if target.startswith("atlas-v"):
        version = int(target[-1])
        if version == 1 and options.codec not in (None, "none"):
            raise InvalidParamError(
                "version 1 has no codecs", remedy=Remedy("choose-format", formats="atlas-v2")
            )
        if version == 3:
            memory = encrypted(memory, keys if options.new_keys is None else options.new_keys)
        coding = {"codec": options.codec, "level": options.level, "shuffle": options.shuffle}
        return write_memory_file(memory, output, version=version, **coding)
    from atlas_kit.operations import interchange, json_document

    with output_file(output) as file:
        if target == "json":
            json_document.write_document(memory, file, progress)
        elif target == "safetensors":
            interchange.write_as_safetensors(memory, file)
        else:
            interchange.write_as_npz(memory, file)
        return file.tell()


def encrypted(memory: MemoryFile, keys: Keys) -> MemoryFile:
    """Return a memory file of version 3 with the same header and entries."""
    from atlas_kit.formats.atlas import MemoryFile

    return copy_into(memory, MemoryFile(version=3, **keys.for_writing()))


def copy_into(memory: MemoryFile, made: MemoryFile) -> MemoryFile:
    """Give a new memory file the header and the entries of another; payloads are not read for it."""
    copy_header(memory, made)
    for entry in memory.entries():
        made.set(entry.key, entry)
    return made


def copy_header(memory: MemoryFile, made: MemoryFile) -> None:
    """Give a new memory file the times, model hash and flags of another."""
    ours, theirs = made.info, memory.info
    ours.created, ours.modified = theirs.created, theirs.modified
    ours.model_hash, ours.reserved = theirs.model_hash, theirs.reserved
    ours.file_flags = theirs.file_flags


def _notes(memory: MemoryFile, target: str) -> list[str]:
    """Say what is not taken over: bytes outside of the format, and what the target has no field for."""
    notes = [
        f"{warning.message}; they were not taken over"
        for warning in memory.warnings
        if warning.code in ("trailing-bytes", "uncommitted-bytes")
    ]
    if target != "atlas-v1":
        return notes
    tensors = sum(1 for entry in memory.entries() if entry.dtype_id)
    if tensors:
        notes.append(
            f"version 1 has no tensors: {tensors} of them became .npy files, which version 1 holds as bytes"
        )
    if memory.info.file_flags:
        notes.append("version 1 has no file flags, so they were dropped")
    return notes


# --- models --------------------------------------------------------------------------------------------


def _convert_model(
    source: Source, output: Output, target: str | None, options: ConvertOptions, keys: Keys
) -> Converted:
    from atlas_kit.formats.gguf import GGUFFile, to_native, to_stock
    from atlas_kit.formats.gguf.shards import takes_place_of

    if options.dequantize:
        raise InvalidParamError(
            "a model is dequantised into safetensors or npz", path=source.name,
            remedy=Remedy("choose-format", formats="safetensors, npz"),
        )  # fmt: skip
    if options.native and target == "gguf" and options.to is None:
        target = "atlas-gguf"
    if target not in ("gguf", "atlas-gguf"):
        raise InvalidParamError(
            "a GGUF model converts to atlas-gguf, and back to gguf, and its tensors to safetensors and npz",
            path=source.name, remedy=Remedy("choose-format", formats="atlas-gguf, gguf, safetensors, npz"),
        )  # fmt: skip
    if options.native and target == "gguf":
        raise InvalidParamError(
            "a stock GGUF file has no settings of a memory",
            remedy=Remedy("choose-format", formats="atlas-gguf"),
        )
    require_ending(output, "gguf")
    secrecy.require_no_secret(options.new_keys, keys if options.memory is None else None, path=source.name)
    if source.path is None:
        raise InvalidParamError("a model is converted from a file, not from standard input")
    with GGUFFile.open(source) as model:
        native, size = "atlas.version" in model.metadata, model.size
        as_shard = is_path(output) and takes_place_of(output_name(output), model.metadata)
        if options.native or model.is_split:
            model.require_data()
    if options.to is None and target == "gguf" and not native:
        raise InvalidParamError(
            "the model is a stock GGUF file already", path=source.name,
            remedy=Remedy("make-native"),
        )  # fmt: skip
    source_format = "atlas-gguf" if native else "gguf"
    result = Converted(source.name, source_format, output_name(output), target, size, 0, None)
    with (
        _native_values(source, output, options, keys, result) as values,
        scratch_path(output, ".gguf") as path,
    ):
        done = to_native(source, path, values=values) if target == "atlas-gguf" else to_stock(source, path)
        result.target_size = done.size
        result.notes += done.notes
    if as_shard:
        result.notes.append("this is the first shard alone, by its name: the other shards belong beside it")
    if done.exact is False:
        result.notes.append("the model's own metadata were edited since; the edits were kept")
    return result


def _convert_tensors(
    source: Source, output: Output, target: str | None, options: ConvertOptions, progress: Progress | None
) -> Converted:
    """Write the tensors of a model in a format of arrays, or the model in another byte order."""
    from atlas_kit.formats.gguf import GGUFFile

    if options.native or (options.byte_order and target != "gguf"):
        raise InvalidParamError(
            "only a GGUF file has a byte order, and only one with the settings of a memory is ATLAS-native",
            remedy=Remedy("choose-format", formats="gguf"),
        )
    require_ending(output, _kind_of(target))
    with GGUFFile.open(source) as model:
        named = "atlas-gguf" if "atlas.version" in model.metadata else "gguf"
        result = Converted(source.name, named, output_name(output), str(target), model.size, 0, None)
        require_apart(output, [shard.source for shard in model.shards])
        if options.byte_order:
            from atlas_kit.formats.gguf.byte_order import write_in_byte_order

            with scratch_path(output, ".gguf") as path:
                result.target_size = write_in_byte_order(path, model, options.byte_order)
            if model.version < 3:
                result.notes.append("the file is of version 3 now, the first with a byte order")
            return result
        from atlas_kit.operations.model_arrays import write_model_arrays

        with output_file(output) as file:
            result.notes += write_model_arrays(
                model, file, str(target), dequantize=options.dequantize, progress=progress
            )
            result.target_size = file.tell()
    return result


def _model_of_arrays(
    source: Source, kind: str, output: Output, options: ConvertOptions, keys: Keys, progress: Progress | None
) -> Converted | None:
    """Make a model of the arrays that one was converted to; ``None`` where they are others."""
    from atlas_kit.operations.model_from_arrays import holds_model, write_model_of_arrays

    if not holds_model(source, kind):
        return None
    secrecy.require_no_secret(options.new_keys, keys, path=source.name)
    require_ending(output, "gguf")
    result = Converted(source.name, kind, output_name(output), "gguf", source.size, 0, None)
    with scratch_path(output, ".gguf") as path:
        result.target_size, result.notes = write_model_of_arrays(source, kind, path, progress)
    return result


@contextlib.contextmanager
def _native_values(
    model: Source, output: Output, options: ConvertOptions, keys: Keys, result: Converted
) -> Iterator[dict[str, Any]]:
    """Yield the ``atlas.memory.*`` values that were asked for; put the memory into its place."""
    if not options.native:
        yield {}
        return
    from atlas_kit.operations import native_model
    from atlas_kit.settings import native

    bound = None
    with contextlib.ExitStack() as placed:
        if options.memory is not None:
            if not is_path(output):
                raise InvalidParamError(
                    "the memory is put beside the model, which is impossible on standard output",
                    hint="Name a file.",
                )
            memory = placed.enter_context(use_source(options.memory))  # what is checked is what is copied
            bound = native_model.check_memory(
                model, memory, keys=keys, force=options.force, decrypt=options.decrypt, text=options.text
            )
            result.memory = native_model.sidecar_of(output)
            result.notes += bound.notes
        settings = _native_settings(model, options, bound)
        values = native.native_values(settings)
        if bound is not None and is_path(output):
            values |= placed.enter_context(native_model.placed_memory(bound, output, force=options.force))
        yield values


def _native_settings(model: Source, options: ConvertOptions, bound: BoundMemory | None) -> AtlasSettings:
    from atlas_kit.settings.atlas_settings import AtlasSettings
    from atlas_kit.settings.recommend import recommend

    learned = bound.settings if bound else None
    base = recommend(model).settings if options.auto else learned or AtlasSettings()
    return options.settings(base) if options.settings else base


__all__ = ["TARGETS", "ConvertOptions", "Converted", "convert_file", "is_path", "target_of"]
