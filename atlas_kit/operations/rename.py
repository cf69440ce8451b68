"""Give entries of a memory file, or metadata keys and tensors of a model, other names: all of them or none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import InvalidParamError
from atlas_kit.formats.opening import edit_memory, open_memory, require_encrypted
from atlas_kit.operations import secrecy
from atlas_kit.operations.inputs import require_kind, require_metadata
from atlas_kit.operations.names import no_match, not_found
from atlas_kit.operations.outputs import (
    Output,
    check_place,
    output_name,
    scratch_path,
    write_memory_file,
)
from atlas_kit.storage.given import Progress, takes_source
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import MemoryFile


@dataclass
class Renamed:
    """What was (or, in a dry run, would be) renamed: (entry, metadata or tensor; old name; new name)."""

    path: str
    output: str | None
    names: list[tuple[str, str, str]]
    dry_run: bool

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        rows = [{"part": part, **named("old", old), **named("new", new)} for part, old, new in self.names]
        return {
            **named("path", self.path),
            **named("output", self.path if self.output is None else self.output),
            "renamed": rows,
            "dry_run": self.dry_run,
        }


@dataclass
class RenameOptions:
    """How names are meant (``exact``, ``glob`` or ``regex``), and where the result goes (``None``: in place)."""

    how: str = "exact"
    output: Output | None = None
    force: bool = False
    dry_run: bool = False
    backup: bool | int = False


@takes_source
def rename_names(
    source: Source, old: str, new: str, options: RenameOptions | None = None, keys: Keys | None = None,
    progress: Progress | None = None,
) -> Renamed:  # fmt: skip
    r"""Rename what ``old`` names into ``new``.

    With ``glob``, ``*``, ``?`` and ``[...]`` match, and each ``*`` of ``new`` stands for what the ``*`` at the same
    place in ``old`` matched. With ``regex``, ``old`` is searched for in each name and replaced; ``\1`` is a group.

    Raises
    ------
    KeyNotFoundError
        Nothing has that name.
    InvalidParamError
        A new name is taken or not allowed, or a pattern makes no sense; then nothing was renamed.
    """
    options, keys = options or RenameOptions(), Keys() if keys is None else keys
    kind = require_kind(source, ["atlas", "gguf"], "names can be changed in .atlas and GGUF files")
    check_place(
        source, options.output, kind, force=options.force, backup=options.backup, dry_run=options.dry_run
    )
    change = _changer(old, new, options.how)
    if kind == "gguf":
        secrecy.require_no_secret(keys, path=source.name)
        names = _in_model(source, old, change, options, progress)
    else:
        names = _in_memory(source, old, change, options, keys)
    output = options.output
    where = None if output is None else output_name(output)
    return Renamed(source.name, where, names, options.dry_run)


def _changer(old: str, new: str, how: str) -> Callable[[str], str | None]:
    """Return a function from a name to its new one, ``None`` where it does not match."""
    if how == "exact":
        return lambda name: new if name == old else None
    if how == "regex":
        return _by_regex(old, new)
    return _by_glob(old, new)


def _by_regex(old: str, new: str) -> Callable[[str], str | None]:
    try:
        expression = re.compile(old)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidParamError(f"{old!r} is not a regular expression: {error}") from error

    def change(name: str) -> str | None:
        try:
            return expression.sub(new, name) if expression.search(name) else None
        except (re.error, IndexError) as error:
            raise InvalidParamError(f"{new!r} cannot be put in its place: {error}") from error

    return change


def _by_glob(old: str, new: str) -> Callable[[str], str | None]:
    parts = re.split(r"(\*|\?|\[!?\]?[^\]]*\])", old)
    pattern = "".join(
        "(.*)"
        if p == "*"
        else "(.)"
        if p == "?"
        else _set(p)
        if p[:1] == "[" and p[-1:] == "]"
        else re.escape(p)
        for p in parts
    )
    stars = [number for number, part in enumerate(p for p in parts if _is_wild(p)) if part == "*"]
    pieces = new.split("*")
    if len(pieces) - 1 > len(stars):
        raise InvalidParamError(f"{new!r} has more stars than {old!r}, and nothing to put there")
    expression = re.compile(pattern, re.DOTALL)

    def change(name: str) -> str | None:
        match = expression.fullmatch(name)
        if match is None:
            return None
        made = pieces[0]
        for star, piece in zip(stars, pieces[1:], strict=False):
            made += match.group(star + 1) + piece
        return made

    return change


def _is_wild(part: str) -> bool:
    return part in ("*", "?") or (part[:1] == "[" and part[-1:] == "]")


def _set(part: str) -> str:
    inside = part[1:-1]
    inside, sign = (inside[1:], "^") if inside.startswith("!") else (inside, "")
    inside = inside.replace("\\", "\\\\").replace("^", "\\^").replace("[", "\\[").replace("]", "\\]")
    return f"([{sign}{inside}])"


def _pairs(names: Iterable[str], change: Callable[[str], str | None]) -> dict[str, str]:
    """Return old and new names of what changes."""
    found = {name: change(name) for name in dict.fromkeys(names)}
    return {name: new for name, new in found.items() if new is not None}


def _require_some(found: dict[str, str], old: str, how: str, known: list[str], path: str | None) -> None:
    if found:
        return
    if how == "exact":
        raise not_found(old, known, path)
    raise no_match(old, path)


# --- models --------------------------------------------------------------------------------------------


def _in_model(
    source: Source,
    old: str,
    change: Callable[[str], str | None],
    options: RenameOptions,
    progress: Progress | None,
) -> list[tuple[str, str, str]]:
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.formats.gguf.edit import check_key
    from atlas_kit.formats.gguf.tables import PAD_KEY
    from atlas_kit.formats.gguf.tensor_edit import check_names, edit_names

    with GGUFFile.open(source, shards=options.output is not None) as model:
        keys = _pairs((key for key in model.metadata if key != PAD_KEY), change)
        if old == PAD_KEY and PAD_KEY in model.metadata:
            check_key(old)
        tensors = _pairs(model.tensors, change)
        known = [*model.metadata, *model.tensors]
        _require_some(keys | tensors, old, options.how, known, source.path)
        if options.how == "exact" and keys and tensors:
            raise InvalidParamError("a metadata key and a tensor have this name", path=source.path, key=old)
        keys = {name: new for name, new in keys.items() if name != new}
        tensors = {name: new for name, new in tensors.items() if name != new}
        if options.output is None and keys:
            require_metadata(model, keys)
        if options.dry_run:
            check_names(model, keys, tensors)
        total = model.size
    names = [("metadata", *pair) for pair in keys.items()] + [("tensor", *pair) for pair in tensors.items()]
    if options.dry_run:
        return names

    def tell(done: int) -> None:
        if progress:
            progress("writing the model", done, total)

    if options.output is None:
        if names:
            edit_names(source, keys=keys, tensors=tensors, backup=options.backup, progress=tell)
        return names
    with scratch_path(options.output, ".gguf") as path:
        edit_names(source, keys=keys, tensors=tensors, out=path, progress=tell)
    return names


# --- memory files ----------------------------------------------------------------------------------------


def _in_memory(
    source: Source, old: str, change: Callable[[str], str | None], options: RenameOptions, keys: Keys
) -> list[tuple[str, str, str]]:
    if options.dry_run or options.output is not None:
        with open_memory(source, keys) as memory:
            pairs = _plan(memory, old, change, options, source)
            if not options.dry_run:
                require_encrypted(memory, keys)
                assert options.output is not None
                _apply(memory, pairs)
                write_memory_file(memory, options.output)
    else:
        with edit_memory(source, keys, backup=options.backup) as memory:
            pairs = _plan(memory, old, change, options, source)
            _apply(memory, pairs)
    return [("entry", *pair) for pair in pairs.items()]


def _plan(
    memory: MemoryFile, old: str, change: Callable[[str], str | None], options: RenameOptions, source: Source
) -> dict[str, str]:
    from atlas_kit.formats.atlas import v1, v2_writer

    found = _pairs(memory, change)
    _require_some(found, old, options.how, list(memory), source.name)
    pairs = {name: new for name, new in found.items() if name != new}
    taken = set(memory) - set(pairs)
    for name, new in pairs.items():
        (v1 if memory.version == 1 else v2_writer).require_key(new)
        if new in taken:
            raise InvalidParamError(
                f'"{name}" cannot take this name: there is an entry with it already',
                path=source.name,
                key=new,
            )
        taken.add(new)
    return pairs


def _apply(memory: MemoryFile, pairs: dict[str, str]) -> None:
    """Rename entries, also where they change names with each other; they go to the end of the order."""
    entries = [(new, memory[name]) for name, new in pairs.items()]
    for name in pairs:
        memory.remove(name)
    for new, entry in entries:
        memory.set(new, entry)
