"""Join the shards of a model, or the pieces that a file was cut into, into one file.

Shards are GGUF files of their own, and are known by what is in them; pieces are known by their names. Shards that
somebody put one after the other with ``cat`` are taken apart first. Nothing is guessed: a gap is an error.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import (
    AtlasError,
    FileCorruptError,
    InvalidParamError,
    NoSuchFileError,
    TruncatedError,
)
from atlas_kit.formats.detect import detect
from atlas_kit.formats.endings import require_ending
from atlas_kit.formats.foreign import recognise
from atlas_kit.formats.gguf.tables import MAGIC
from atlas_kit.operations.inputs import unknown_format
from atlas_kit.operations.outputs import (
    Output,
    output_file,
    output_name,
    require_apart,
    require_free,
    scratch_path,
)
from atlas_kit.storage.given import Given, Progress, name_of, open_source, same_file
from atlas_kit.storage.part_names import Parts, part_name, parts_beside, parts_of
from atlas_kit.storage.parts import JoinedSource
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from atlas_kit.formats.gguf import GGUFFile

#: How many missing files are named.
NAMED = 3


@dataclass
class Joined:
    """What was (or, in a dry run, would be) joined; ``kind`` says of what: shards, or parts cut by their bytes."""

    inputs: list[str]
    output: str
    kind: str
    size: int
    tensors: int | None = None
    dry_run: bool = False
    notes: list[str] = field(default_factory=list)

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            "inputs": [named("path", path) for path in self.inputs],
            **named("output", self.output),
            "kind": self.kind,
            "size": self.size,
            "tensors": self.tensors,
            "dry_run": self.dry_run,
            "notes": self.notes,
        }


def join_files(
    inputs: Sequence[Given], output: Output, *, force: bool = False, dry_run: bool = False,
    progress: Progress | None = None,
) -> Joined:  # fmt: skip
    """Join shards or pieces into one file, which is written whole or not at all.

    Parameters
    ----------
    inputs
        One of them, beside which the others lie, or all of them, in any order that their names or contents put right.

    Raises
    ------
    InvalidParamError
        There is nothing to join, or the files do not belong together.
    NoSuchFileError
        A shard, or a piece between others, is missing.
    FileCorruptError, TruncatedError
        A shard is damaged; the pieces end before the tensors do.
    """
    _require_different(inputs)
    with contextlib.ExitStack() as stack:
        sources = [_opened(given, stack) for given in inputs]
        if not dry_run:
            require_free(output, sources, force)
        if all(_is_gguf(source) for source in sources):
            shards = _shards(sources, stack)
            if shards is not None:
                return _join_shards(shards, _names_of(sources, shards), output, dry_run, progress)
        return _join_parts(sources, output, stack, force, dry_run, progress)


def _opened(given: Given, stack: contextlib.ExitStack) -> Source:
    source = open_source(given)
    if source is not given:
        stack.callback(source.close)
    return source


def _is_gguf(source: Source) -> bool:
    return source.read_upto(0, len(MAGIC)) == MAGIC


def _require_different(inputs: Sequence[Given]) -> None:
    if not inputs:
        raise InvalidParamError("there is nothing to join")
    for number, one in enumerate(inputs):
        if any(same_file(one, other) for other in inputs[:number]):
            raise InvalidParamError("this file is given twice", path=name_of(one))


# --- shards --------------------------------------------------------------------------------------------


def _shards(sources: Sequence[Source], stack: contextlib.ExitStack) -> GGUFFile | None:
    """Return the model that the sources are shards of; ``None`` where one is the first piece of a file instead."""
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.formats.gguf.shards import cut, shard_count, takes_place_of

    try:
        pieces = [piece for source in sources for piece in cut(source)]
        files = [GGUFFile.open(piece, shards=False) for piece in pieces]
    except AtlasError:
        if len(sources) == 1 and part_name(os.path.basename(sources[0].name)):
            return None  # its header may go on in the next piece
        raise
    if len(sources) == 1 and part_name(os.path.basename(sources[0].name)):
        as_shard = len(files) == 1 and takes_place_of(sources[0].name, files[0].metadata)
        alone = len(files) > 1 and parts_beside(sources[0].name) is None
        gap = not alone and shard_count(files[0].metadata) > len(files)
        if not as_shard and (gap or any(map(_is_cut_off, files))):
            return None
    if len(files) == 1 and shard_count(files[0].metadata) < 2:
        raise InvalidParamError(
            "the model is in one file already: there is nothing to join", path=sources[0].name
        )
    if len(files) == 1:
        model = GGUFFile.open(sources[0])
        stack.callback(model.close)
        return model
    return GGUFFile.of_shards(_ordered(files))


def _is_cut_off(file: GGUFFile) -> bool:
    try:
        file.require_data()
    except TruncatedError:
        return True
    return False


def _ordered(files: list[GGUFFile]) -> list[GGUFFile]:
    """Return shards in the order that they say they have; each must be there once."""
    from atlas_kit.formats.gguf.shards import shard_count

    by_number: dict[int, GGUFFile] = {}
    count = shard_count(files[0].metadata)
    for file in files:
        number = file.get("split.no")
        if shard_count(file.metadata) < 2 or not isinstance(number, int):
            raise InvalidParamError("this is a model by itself and no shard of one", path=file.path)
        if shard_count(file.metadata) != count:
            raise FileCorruptError(
                f"this is one of {shard_count(file.metadata)} shards, and {files[0].path} is one of {count}",
                path=file.path, hint="They belong to different models.",
            )  # fmt: skip
        if number in by_number:
            raise FileCorruptError(
                f"two files say that they are shard {number + 1}: {by_number[number].path} is the other",
                path=file.path, key="split.no",
            )  # fmt: skip
        by_number[number] = file
    missing = [number + 1 for number in range(count) if number not in by_number]
    if missing:
        numbers = ", ".join(map(str, missing[:NAMED])) + (", ..." if len(missing) > NAMED else "")
        raise NoSuchFileError(
            f"shard {numbers} of {count} is missing" if len(missing) == 1 else
            f"{len(missing)} of {count} shards are missing: {numbers}",
            path=files[0].path, hint="Give all shards, or any one of a set that lies in one folder.",
        )  # fmt: skip
    return [by_number[number] for number in sorted(by_number)]


def _names_of(sources: Sequence[Source], model: GGUFFile) -> list[str]:
    names = dict.fromkeys(os.fsdecode(shard.path or "-") for shard in model.shards)
    return list(names) if len(sources) == 1 else [source.name for source in sources]


def _join_shards(
    model: GGUFFile, names: list[str], output: Output, dry_run: bool, progress: Progress | None
) -> Joined:
    from atlas_kit.formats.gguf.split import joined, write_whole

    require_ending(output, "gguf")
    require_apart(output, [shard.source for shard in model.shards])
    model.require_data()
    whole = joined(model)
    size = len(whole.header) + -len(whole.header) % whole.alignment + whole.data_size
    result = Joined(names, output_name(output), "shards", size, len(whole.tensors), dry_run)
    if not dry_run:
        with scratch_path(output, ".gguf") as path:
            write_whole(
                path, model, whole,
                progress=lambda done: progress("joining shards", done, whole.data_size) if progress else None,
            )  # fmt: skip
    return result


# --- pieces --------------------------------------------------------------------------------------------


def _join_parts(
    sources: Sequence[Source], output: Output, stack: contextlib.ExitStack, force: bool, dry_run: bool,
    progress: Progress | None,
) -> Joined:  # fmt: skip
    names = [source.name for source in sources]
    parts = parts_beside(names[0]) if len(names) == 1 else parts_of(names)
    if parts is not None:
        _require_all(parts)
        if len(names) == 1:
            names = parts.paths
            require_apart(output, names)
            sources = [_opened(name, stack) for name in names]
        else:
            by_name = dict(zip(names, sources, strict=True))
            names, sources = parts.paths, [by_name[name] for name in parts.paths]
    if len(sources) < 2:
        _require_no_page(sources[0])
        raise InvalidParamError(
            "no other part of this file lies beside it", path=names[0], hint="Give all parts, in their order."
        )
    whole = JoinedSource(sources)
    kind = detect(whole)
    if kind is None:
        _require_no_page(whole)
        raise InvalidParamError(
            "joined in this order, the parts are no file of a known format", path=names[0],
            hint="Is the first part missing, or the order another one?",
        )  # fmt: skip
    result = Joined(names, output_name(output), "parts", whole.size, dry_run=dry_run)
    if kind == "gguf":
        model = _whole_model(whole, sources)
        if model.is_split:
            return _join_shards(model, names, output, dry_run, progress)
        result.tensors = len(model.tensor_infos)
    require_ending(output, kind)
    if not dry_run:
        _copy(sources, whole.size, output, progress)
    return result


def _require_no_page(source: Source) -> None:
    """Refuse a web page or another file of which nothing can be joined, and say what it is."""
    known = recognise(source)
    if known is not None and known.lost:
        raise unknown_format(source)


def _require_all(parts: Parts) -> None:
    if parts.missing:
        names = ", ".join(map(os.path.basename, parts.missing[:NAMED]))
        names += ", ..." if len(parts.missing) > NAMED else ""
        what = "a part is" if len(parts.missing) == 1 else f"{len(parts.missing)} parts are"
        raise NoSuchFileError(
            f"{what} missing: {names}", path=parts.paths[0], hint="Put all parts into one folder."
        )


def _whole_model(whole: Source, sources: Sequence[Source]) -> GGUFFile:
    """Open the file that pieces make up, and see that it is whole, and that all of them belong to it."""
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.formats.gguf.scan import align
    from atlas_kit.formats.gguf.shards import cut, end_of_data

    try:
        pieces = cut(whole)
        files = [GGUFFile.open(piece, shards=False) for piece in pieces]
        for file in files:
            file.require_data()
    except TruncatedError as error:
        raise TruncatedError(
            f"the {len(sources)} parts hold {whole.size:,} bytes, and the model needs more",
            path=sources[-1].name, hint="Is the last part missing, or not downloaded to its end?",
        ) from error  # fmt: skip
    end = whole.size - pieces[-1].size + align(end_of_data(files[-1].scan, pieces[-1]), files[-1].alignment)
    if end <= whole.size - sources[-1].size:
        raise InvalidParamError(
            "the model ends before this part begins", path=sources[-1].name,
            hint="Does the part belong to it, and is the order right?",
        )  # fmt: skip
    return files[0] if len(files) == 1 else GGUFFile.of_shards(_ordered(files))


def _copy(sources: Sequence[Source], total: int, output: Output, progress: Progress | None) -> None:
    from atlas_kit.formats.gguf.write import copy_range

    with output_file(output) as out:
        before = 0
        for source in sources:
            start = before

            def tell(done: int, start: int = start) -> None:
                if progress:
                    progress("joining parts", start + done, total)

            copy_range(source, 0, source.size, out, tell)
            before += source.size
