"""Join memory files into one. Where several have a key, one rule says whose entry is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import InvalidParamError
from atlas_kit.formats.endings import require_ending
from atlas_kit.operations import secrecy
from atlas_kit.operations.episodes import is_of_episodes
from atlas_kit.operations.inputs import Opened, open_given
from atlas_kit.operations.outputs import Output, output_name, require_free, write_memory_file
from atlas_kit.persistence.entry_keys import CONTEXT, DESCRIPTION, EPISODES, TEXTS
from atlas_kit.persistence.tables import is_array_key
from atlas_kit.storage.given import Given
from atlas_kit.storage.keys import Keys

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import Entry

RULES = ("first", "last", "newest", "both")


@dataclass
class Conflict:
    """A key that several inputs have with different content, and the input whose entry was taken.

    ``joined``: all of them were, as one history. ``others``: the keys that further ones got.
    """

    key: str
    inputs: list[str]
    taken: str
    joined: bool = False
    others: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the conflict as JSON-ready data."""
        both = {"joined": self.joined, "others": [named("key", key) for key in self.others]}
        both = both if self.joined or self.others else {}
        return {**named("key", self.key), "inputs": self.inputs, "taken": self.taken, **both}


@dataclass
class Merged:
    """How many entries came from where, and the conflicts that the rule decided."""

    output: str
    entries: int
    size: int
    taken: list[tuple[str, int]]
    conflicts: list[Conflict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            **named("output", self.output),
            "entries": self.entries,
            "size": self.size,
            "inputs": [{**named("path", path), "entries": count} for path, count in self.taken],
            "conflicts": [conflict.to_json() for conflict in self.conflicts],
            "notes": self.notes,
        }


def merge_files(
    inputs: Sequence[Given], output: Output, *, prefer: str = "last", version: int | None = None,
    force: bool = False, keys: Keys | None = None, decrypt: bool = False, new_keys: Keys | None = None,
) -> Merged:  # fmt: skip
    """Merge memory files: keys in the order in which they first appear.

    Parameters
    ----------
    prefer
        ``first`` or ``last`` input, or the entry with the ``newest`` timestamp (of equal ones the last); or ``both``:
        histories and texts become one, the common beginning once and then what each has, the older one first; of
        others the second is kept as ``KEY (2)``. Of learned memories the last one's is taken.
    version
        Of the output; the highest of the inputs' by default, and 3 where there is a secret.
    decrypt
        Write plain text although an input is encrypted or there is a secret.
    new_keys
        Encrypt with another secret than opens the inputs.
    """
    if prefer not in RULES:
        raise InvalidParamError(f'there is no rule "{prefer}"', hint=f"Use {', '.join(RULES)}.")
    require_free(output, inputs, force)
    require_ending(output, "atlas")
    keys = Keys() if keys is None else keys
    opened: list[Opened] = []
    try:
        for given in inputs:
            opened.append(open_given(given, keys))
        new = keys if new_keys is None else new_keys
        if decrypt and new_keys is not None:
            raise InvalidParamError("another passphrase or key was given, and plain text was asked for")
        return _merge(opened, output, prefer, _version(opened, version, new, decrypt), new)
    finally:
        for one in opened:
            one.close()


def _version(opened: list[Opened], wanted: int | None, keys: Keys, decrypt: bool) -> int:
    usual = max(one.recorded or one.memory.version for one in opened)
    encrypted = [one.name for one in opened if one.memory.version == secrecy.ENCRYPTED]
    return secrecy.output_version(
        wanted, usual, encrypted=bool(encrypted), keys=keys, decrypt=decrypt, path=next(iter(encrypted), None)
    )


def _merge(opened: list[Opened], output: Output, prefer: str, version: int, keys: Keys) -> Merged:
    from atlas_kit.formats.atlas import MemoryFile

    made = MemoryFile(version=version, **(keys.for_writing() if version == 3 else {}))
    conflicts: dict[str, Conflict] = {}
    owner: dict[str, int] = {}
    notes: list[str] = []
    kept = _join_episodes(opened, made, prefer, notes)
    learned = _learned_in(opened, prefer)
    for number, one in enumerate(opened):
        for entry in one.memory.entries():
            if kept is not None and kept != number and is_of_episodes(entry.key):
                continue
            held = made.get(entry.key)
            if held is None:
                made.set(entry.key, entry)
                owner[entry.key] = number
                continue
            if prefer == "both" and not (learned is not None and _is_of_memory(entry.key)):
                _keep_both(conflicts, opened, owner, number, held, entry, made)
                continue
            wins = prefer in ("last", "both") or (prefer == "newest" and entry.timestamp >= held.timestamp)
            if learned is not None and _is_of_memory(entry.key):
                wins = number == learned
            _record(conflicts, opened, owner, number, held, entry, wins)
            if wins:
                made.set(entry.key, entry)
                owner[entry.key] = number
    for key in [key for key in made if learned is not None and _is_of_memory(key)]:
        if owner[key] != learned:  # the memory that is taken has no such array
            made.remove(key)
            del owner[key]
            conflicts.pop(key, None)
    notes += _header(made, opened, prefer)
    name = output_name(output)
    counts = [sum(1 for value in owner.values() if value == n) for n in range(len(opened))]
    taken = [(one.name, count) for one, count in zip(opened, counts, strict=True)]
    total = len(made)
    return Merged(name, total, write_memory_file(made, output), taken, list(conflicts.values()), notes)


def _keep_both(
    conflicts: dict[str, Conflict], opened: list[Opened], owner: dict[str, int], number: int,
    held: Entry, entry: Entry, made: Any,
) -> None:  # fmt: skip
    """Put two entries of one key into the output: as one history, or the second under another key."""
    if same_payload(held, entry):
        return
    both = _joined(held, entry)
    _record(conflicts, opened, owner, number, held, entry, False)
    newest = max(held.timestamp, entry.timestamp)
    if both is not None:
        made.set(entry.key, both, type=int(held.type), flags=held.flags, timestamp=newest)
        conflicts[entry.key].joined = True
        return
    tried, key = 2, f"{entry.key} (2)"
    while key in made or any(key in one.memory for one in opened):
        tried += 1
        key = f"{entry.key} ({tried})"
    made.set(key, entry)
    owner[key] = number
    conflicts[entry.key].others.append(key)


def _joined(held: Entry, entry: Entry) -> bytes | None:
    """Return one history of two, the older one's own messages first; None where they are none."""
    from atlas_kit.operations import chats

    if held.type != entry.type or not all(
        chats.is_history(int(e.type), bool(e.dtype_id)) for e in (held, entry)
    ):
        return None
    older, newer = sorted((held, entry), key=lambda one: one.timestamp)
    first, second = chats.chat_of(bytes(older.data)), chats.chat_of(bytes(newer.data))
    both = None if first is None or second is None else chats.joined(first, second)
    return None if both is None else both.payload()


def _learned_in(opened: list[Opened], prefer: str) -> int | None:
    """Return the number of the input whose learned memory is taken, whole; None where at most one has any."""
    having = [n for n, one in enumerate(opened) if DESCRIPTION in one.memory]
    if len(having) < 2:
        return None
    if prefer == "newest":
        return max(having, key=lambda n: (opened[n].memory[DESCRIPTION].timestamp, n))
    return having[0] if prefer == "first" else having[-1]


def _is_of_memory(key: str) -> bool:
    """Tell whether an entry of this key is of use only together with the others of one learned memory."""
    return key in (DESCRIPTION, CONTEXT, TEXTS) or is_array_key(key)


def _join_episodes(opened: list[Opened], made: Any, prefer: str, notes: list[str]) -> int | None:
    """Put the episodes of several inputs together into the output.

    Returns the number of the input whose own are taken instead, -1 where none's are, and None where at most one input
    has any.
    """
    from atlas_kit.operations.episodes import joined
    from atlas_kit.persistence.episode_entries import put_episodes, read_episodes

    having = [n for n, one in enumerate(opened) if EPISODES in one.memory]
    if len(having) < 2:
        return None
    found = [(n, read_episodes(opened[n].memory)) for n in having]
    several = [(n, arrays) for n, arrays in found if arrays is not None]
    if len(several) < 2:
        return None
    hashes = {opened[n].memory.model_hash for n, _ in several if any(opened[n].memory.model_hash)}
    if len(hashes) > 1:  # the numbers of their tokens mean other words
        times = {n: opened[n].memory.modified for n, _ in several}
        chosen = several[0][0] if prefer == "first" else several[-1][0]
        chosen = max(times, key=lambda n: (times[n], n)) if prefer == "newest" else chosen
        notes.append(
            f"what was read and said is that of {opened[chosen].name}: the others' models are others"
        )
        return chosen
    arrays = joined([arrays for _, arrays in several])
    put_episodes(made, arrays)
    notes.append(f"what was read and said was joined: {len(arrays):,} tokens of {len(several)} inputs")
    return -1


def _record(
    conflicts: dict[str, Conflict], opened: list[Opened], owner: dict[str, int], number: int,
    held: Entry, entry: Entry, wins: bool,
) -> None:  # fmt: skip
    """Note a key that two inputs have, unless both have the same under it."""
    conflict = conflicts.get(entry.key)
    if conflict is None:
        if same_payload(held, entry) and held.type == entry.type and held.flags == entry.flags:
            return
        first = opened[owner[entry.key]].name
        conflict = conflicts[entry.key] = Conflict(entry.key, [first], first)
    conflict.inputs.append(opened[number].name)
    if wins:
        conflict.taken = opened[number].name


def same_payload(first: Entry, second: Entry) -> bool:
    """Tell whether two entries hold the same bytes as the same kind of tensor, in bounded memory."""
    from atlas_kit.operations.hash import digest_of

    kind = (first.size, first.dtype, first.shape)
    if kind != (second.size, second.dtype, second.shape):
        return False
    if first.size <= 1 << 22:
        return first.data == second.data
    return digest_of(first.chunks(), "xxh3-128") == digest_of(second.chunks(), "xxh3-128")


def _header(made: Any, opened: list[Opened], prefer: str) -> list[str]:
    """Choose the header's fields, and say where the inputs contradict each other."""
    infos = [one.memory.info for one in opened]
    chosen = infos[0] if prefer == "first" else infos[-1]
    if prefer == "newest":
        chosen = max(infos, key=lambda info: info.modified)
    made.info.created = min(info.created for info in infos)
    made.info.modified = max(info.modified for info in infos)
    hashes = {info.model_hash for info in infos if any(info.model_hash)}
    made.info.model_hash = chosen.model_hash if any(chosen.model_hash) else next(iter(hashes), bytes(32))
    if len(hashes) > 1:
        return ["the inputs belong to different models: their model hashes differ"]
    return []


__all__ = ["RULES", "Conflict", "Merged", "merge_files"]
