"""Compare two files by what they mean: entries by key, models by metadata and tensors.

Version, codec and layout make no difference, and neither do times unless asked (``strict``). Payloads are
compared in bounded memory; what differs is explained as numbers, as JSON by path, as a text diff, or by the
first differing byte, whatever fits both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import is_utf8, loads, named, plain
from atlas_kit.codecs.text import as_text
from atlas_kit.errors import InvalidParamError
from atlas_kit.operations.entry_pairs import Pairs
from atlas_kit.operations.episodes import is_of_episodes
from atlas_kit.operations.inputs import Opened, open_given
from atlas_kit.operations.tensor_numbers import Difference, difference, entry_numbers
from atlas_kit.persistence.entry_keys import EPISODES
from atlas_kit.storage.given import Given, Progress
from atlas_kit.storage.keys import Keys

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import Entry, MemoryFile
    from atlas_kit.formats.gguf import GGUFFile, MetadataField, TensorInfo

#: Text and JSON above this size are compared as bytes: a diff of that length helps nobody.
READABLE = 1 << 20
#: How many lines of a text diff and how many JSON paths are kept per entry.
MAX_LINES = 400
#: difflib takes time in proportion to the product of the lines.
MAX_TEXT_LINES = 20_000


@dataclass
class Change:
    """One difference.

    ``what`` is added, removed, changed, renamed or moved; ``part`` says of what: header, entry, metadata or
    tensor. ``details`` are facts (name, before, after), ``lines`` a text diff, ``paths`` a JSON diff.
    """

    what: str
    part: str
    name: str
    details: list[tuple[str, Any, Any]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    paths: list[tuple[str, str, Any, Any]] = field(default_factory=list)
    numbers: Difference | None = None
    new_name: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the change as JSON-ready data."""
        row: dict[str, Any] = {"what": self.what, "part": self.part, **named("name", self.name)}
        if self.new_name is not None:
            row.update(named("new_name", self.new_name))
        row["details"] = [{"name": n, "before": plain(a), "after": plain(b)} for n, a, b in self.details]
        row["text_diff"] = self.lines
        row["json_diff"] = [
            {"path": path, "what": what, "before": a, "after": b} for path, what, a, b in self.paths
        ]
        row["numbers"] = self.numbers.to_json() if self.numbers else None
        return row


@dataclass
class Comparison:
    """Every difference between two files."""

    first: str
    second: str
    kind: str
    changes: list[Change] = field(default_factory=list)
    same: int = 0

    @property
    def exit_code(self) -> int:
        """Return 1 when the files differ."""
        return int(bool(self.changes))

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON-ready data."""
        return {
            **named("first", self.first),
            **named("second", self.second),
            "equal": not self.changes,
            "same": self.same,
            "changes": [change.to_json() for change in self.changes],
        }


@dataclass
class DiffOptions:
    """``tolerance``: numbers that differ by no more are equal. ``strict``: times and order count too.

    ``one_shard``: of a split model, only the file that is given.
    """

    tolerance: float = 0.0
    strict: bool = False
    one_shard: bool = False


def diff_files(
    first: Given, second: Given, options: DiffOptions | None = None, keys: Keys | None = None,
    progress: Progress | None = None,
) -> Comparison:  # fmt: skip
    """Compare two memory files (of any format that holds entries), or two models."""
    options = options or DiffOptions()
    one = options.one_shard
    with open_given(first, keys, one_shard=one) as a, open_given(second, keys, one_shard=one) as b:
        if (a.kind == "gguf") != (b.kind == "gguf"):
            raise InvalidParamError(
                f"a model and a memory file cannot be compared: {a.name} is {a.kind}, {b.name} is {b.kind}"
            )
        result = Comparison(a.name, b.name, a.kind)
        if a.kind == "gguf":
            _diff_models(a.gguf, b.gguf, options, result, progress)
        else:
            _diff_memories(a, b, options, result, progress)
    return result


# --- memory files --------------------------------------------------------------------------------------


def _diff_memories(
    a: Opened, b: Opened, options: DiffOptions, result: Comparison, progress: Progress | None
) -> None:
    first, second = a.memory, b.memory
    _diff_header(first, second, options, result)
    apart = _diff_episodes(first, second, result)
    pairs, total = Pairs(first, second), len(first)
    changes: list[tuple[int, Change]] = []
    for done, (number, entry, other) in enumerate(pairs):
        if apart and is_of_episodes(entry.key):
            continue
        if change := diff_entries(entry, other, options):
            changes.append((number, change))
        else:
            result.same += 1
        if progress:
            progress("comparing entries", done + 1, total)
    result.changes += [change for _, change in sorted(changes, key=lambda pair: pair[0])]
    removed, added = (
        {key: entry for key, entry in found.items() if not (apart and is_of_episodes(key))}
        for found in (pairs.removed, pairs.added)
    )
    _name_renamed(removed, added, result)
    result.changes += [_gone(entry) for entry in removed.values()]
    result.changes += [_come(entry) for entry in added.values()]
    if options.strict:
        _diff_order(first, second, result)


def _diff_episodes(first: MemoryFile, second: MemoryFile, result: Comparison) -> bool:
    """Compare what was read and said, and tell whether that is done; else the entries are compared one by one."""
    from atlas_kit.errors import AtlasError
    from atlas_kit.operations.episodes import counted_changes
    from atlas_kit.persistence.episode_entries import read_episodes

    if EPISODES not in first and EPISODES not in second:
        return False
    try:
        before, after = read_episodes(first), read_episodes(second)
    except AtlasError:
        return False
    if before is None and after is None:
        return False
    details: list[tuple[str, Any, Any]] = [*counted_changes(before, after)]
    what = "added" if before is None else "removed" if after is None else "changed"
    if details or what != "changed":
        result.changes.append(Change(what, "entry", EPISODES, details))
    else:
        result.same += 1
    return True


def _diff_header(first: MemoryFile, second: MemoryFile, options: DiffOptions, result: Comparison) -> None:
    names = ["model_hash", "created", "modified"] if options.strict else ["model_hash"]
    details = [
        (name, _shown(getattr(first, name)), _shown(getattr(second, name)))
        for name in names
        if getattr(first, name) != getattr(second, name)
    ]
    if details:
        result.changes.append(Change("changed", "header", "header", details))


def _shown(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _gone(entry: Entry) -> Change:
    return Change("removed", "entry", entry.key, [("size", entry.size, None)])


def _come(entry: Entry) -> Change:
    return Change("added", "entry", entry.key, [("size", None, entry.size)])


def _name_renamed(removed: dict[str, Entry], added: dict[str, Entry], result: Comparison) -> None:
    """Pair keys that went with keys that came and hold the same."""
    if not removed or not added:
        return
    from atlas_kit.operations.hash import digest_of

    def content(entry: Entry) -> tuple[Any, ...]:
        return (int(entry.type), entry.dtype, entry.shape, entry.size, digest_of(entry.chunks(), "xxh3-128"))

    sizes = {entry.size for entry in removed.values()} & {entry.size for entry in added.values()}
    sizes.discard(0)
    by_content: dict[Any, list[str]] = {}
    for key, entry in added.items():
        if entry.size in sizes:
            by_content.setdefault(content(entry), []).append(key)
    for key, entry in list(removed.items()):
        found = by_content.get(content(entry)) if entry.size in sizes else None
        if found:
            new = found.pop(0)
            del removed[key], added[new]
            result.changes.append(Change("renamed", "entry", key, new_name=new))


def _diff_order(first: MemoryFile, second: MemoryFile, result: Comparison) -> None:
    """Report the fewest keys whose moving explains another order of the common ones."""
    place = {key: number for number, key in enumerate(second)}
    common = [key for key in first if key in place]
    kept = _longest_rising([place[key] for key in common])
    result.changes += [
        Change("moved", "entry", key, [("place", number + 1, place[key] + 1)])
        for number, key in enumerate(common)
        if number not in kept
    ]


def _longest_rising(numbers: list[int]) -> set[int]:
    """Return the positions of a longest increasing subsequence (patience sorting)."""
    import bisect

    tails: list[int] = []
    at: list[int] = []
    before = [-1] * len(numbers)
    for position, number in enumerate(numbers):
        pile = bisect.bisect_left(tails, number)
        if pile == len(tails):
            tails.append(number)
            at.append(position)
        else:
            tails[pile] = number
            at[pile] = position
        before[position] = at[pile - 1] if pile else -1
    kept: set[int] = set()
    position = at[-1] if at else -1
    while position >= 0:
        kept.add(position)
        position = before[position]
    return kept


def diff_entries(a: Entry, b: Entry, options: DiffOptions) -> Change | None:
    """Compare two entries of one key; ``None`` when they mean the same."""
    from atlas_kit.operations.merge import same_payload

    names = ["type", "flags", "dtype", "shape"] + (["timestamp"] if options.strict else [])
    details = [
        (name, getattr(a, name), getattr(b, name)) for name in names if getattr(a, name) != getattr(b, name)
    ]
    change = Change("changed", "entry", a.key, details)
    if same_payload(a, b) or (a.size == b.size and not details and _same_bytes(a, b)):
        return change if details else None
    if a.dtype_id and b.dtype_id:
        if a.shape == b.shape:
            change.numbers = difference(entry_numbers(a), entry_numbers(b))
            if change.numbers.within(options.tolerance):
                quiet = options.tolerance > 0 and all(name == "dtype" for name, _, _ in details)
                return change if details and not quiet else None
        return change
    if a.size != b.size:
        change.details.append(("size", a.size, b.size))
    if _explain(a, b, change, options):
        return change
    return change if change.details else None


def _same_bytes(a: Entry, b: Entry) -> bool:
    from atlas_kit.operations.hash import digest_of

    return digest_of(a.chunks(), "xxh3-128") == digest_of(b.chunks(), "xxh3-128")


def _explain(a: Entry, b: Entry, change: Change, options: DiffOptions) -> bool:
    """Put into ``change`` how two payloads differ; ``False`` when only within the tolerance."""
    if max(a.size, b.size) <= READABLE:
        one, two = a.data, b.data
        if one[:1] in (b"{", b"[") and two[:1] in (b"{", b"["):
            found = _json_pair(one, two)
            if found is not None:
                change.paths = list(json_changes(*found, options.tolerance))
                if change.paths:
                    return True
                if options.tolerance > 0 or one == two:
                    change.details = [row for row in change.details if row[0] != "size"]
                    return False
        texts = _text_pair(one, two)
        if texts is not None:
            change.lines = _text_changes(*texts)
            return True
    change.details.append(("first differing byte", *_first_difference(a, b)))
    return True


def _json_pair(one: bytes, two: bytes) -> tuple[Any, Any] | None:
    from atlas_kit.errors import FileCorruptError

    try:
        return loads(one), loads(two)
    except FileCorruptError:
        return None


def json_changes(
    a: Any, b: Any, tolerance: float = 0.0, path: str = "$"
) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield (path, added|removed|changed, before, after) for two JSON values, at most ``MAX_LINES``."""
    found = 0
    stack = [(path, a, b)]
    while stack and found < MAX_LINES:
        path, a, b = stack.pop()
        if isinstance(a, dict) and isinstance(b, dict):
            stack += [(_member(path, key), a[key], b[key]) for key in reversed(a) if key in b]
            rows = [(_member(path, key), "removed", a[key], None) for key in a if key not in b]
            rows += [(_member(path, key), "added", None, b[key]) for key in b if key not in a]
        elif isinstance(a, list) and isinstance(b, list):
            both = min(len(a), len(b))
            stack += [(f"{path}[{n}]", a[n], b[n]) for n in reversed(range(both))]
            rows = [(f"{path}[{n}]", "removed", a[n], None) for n in range(both, len(a))]
            rows += [(f"{path}[{n}]", "added", None, b[n]) for n in range(both, len(b))]
        else:
            rows = [] if _equal(a, b, tolerance) else [(path, "changed", a, b)]
        for row in rows:
            found += 1
            yield row


def _member(path: str, key: str) -> str:
    import json

    return f"{path}.{key}" if key.isidentifier() else f"{path}[{json.dumps(key)}]"


def _equal(a: Any, b: Any, tolerance: float) -> bool:
    numbers = (int, float)
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, numbers) and isinstance(b, numbers):
        return a == b or (tolerance > 0 and abs(a - b) <= tolerance)
    return type(a) is type(b) and bool(a == b)


def _text_pair(one: bytes, two: bytes) -> tuple[list[str], list[str]] | None:
    first, second = as_text(one), as_text(two)
    if first is None or second is None:
        return None
    lines = first.split("\n"), second.split("\n")
    return lines if max(map(len, lines)) <= MAX_TEXT_LINES else None


def _text_changes(one: list[str], two: list[str]) -> list[str]:
    """Return a unified diff without its heading; a missing or new final line end shows as an empty line."""
    import difflib

    lines = list(difflib.unified_diff(one, two, "a", "b", lineterm="", n=3))[2:]
    if len(lines) > MAX_LINES:
        lines = [*lines[:MAX_LINES], f"... {len(lines) - MAX_LINES} more lines"]
    return lines


def _first_difference(a: Entry, b: Entry) -> tuple[str | None, str | None]:
    """Return the first bytes that differ, with their place, of both."""
    from itertools import zip_longest

    from atlas_kit.operations.tensor_numbers import whole_items

    place = 0
    for one, two in zip_longest(whole_items(a.chunks(), 1), whole_items(b.chunks(), 1), fillvalue=b""):
        if one != two:
            at = next(
                (n for n, (x, y) in enumerate(zip(one, two, strict=False)) if x != y), min(len(one), len(two))
            )
            return _at(one, at, place), _at(two, at, place)
        place += len(one)
    return None, None


def _at(chunk: bytes, at: int, place: int) -> str:
    shown = chunk[at : at + 8].hex(" ")
    return f"{shown or 'end'} at {place + at}"


# --- models --------------------------------------------------------------------------------------------


def _diff_models(
    a: GGUFFile, b: GGUFFile, options: DiffOptions, result: Comparison, progress: Progress | None
) -> None:
    changes, same = diff_metadata(a, b, options)
    result.changes += changes
    result.same += same
    total = len(a.tensors)
    for number, (name, info) in enumerate(a.tensors.items()):
        twin = b.tensors.get(name)
        if twin is None:
            result.changes.append(Change("removed", "tensor", name, [("tensor", _tensor_text(info), None)]))
        elif change := _diff_tensors(a, b, info, twin, options):
            result.changes.append(change)
        else:
            result.same += 1
        if progress:
            progress("comparing tensors", number + 1, total)
    result.changes += [
        Change("added", "tensor", name, [("tensor", None, _tensor_text(info))])
        for name, info in b.tensors.items()
        if name not in a.tensors
    ]


def diff_metadata(a: GGUFFile, b: GGUFFile, options: DiffOptions) -> tuple[list[Change], int]:
    """Compare the metadata of two models; return what differs, and how many values are the same."""
    ours, theirs = _pairs(a, options), _pairs(b, options)
    changes: list[Change] = []
    same = 0
    for key, row in ours.items():
        other = theirs.get(key)
        if other is None:
            changes.append(Change("removed", "metadata", key, [("value", _field_text(row), None)]))
        elif change := _diff_fields(row, other, options):
            changes.append(change)
        else:
            same += 1
    changes += [
        Change("added", "metadata", key, [("value", None, _field_text(row))])
        for key, row in theirs.items()
        if key not in ours
    ]
    return changes, same


def _pairs(model: GGUFFile, options: DiffOptions) -> dict[str, MetadataField]:
    """Return the metadata, without keys of layout: room for later edits, the number of files."""
    from atlas_kit.formats.gguf.shards import SPLIT_KEYS
    from atlas_kit.formats.gguf.tables import PAD_KEY

    skipped = () if options.strict else (PAD_KEY, *SPLIT_KEYS)
    return {key: row for key, row in model.metadata.items() if key not in skipped}


def _field_text(row: MetadataField) -> str:
    from atlas_kit.operations.gguf_values import show_value

    return show_value(row)


def _tensor_text(info: TensorInfo) -> str:
    return f"{info.type_name} {list(info.shape)}"


def _diff_fields(a: MetadataField, b: MetadataField, options: DiffOptions) -> Change | None:
    change = Change("changed", "metadata", a.key)
    if a.type_name != b.type_name:
        change.details.append(("type", a.type_name, b.type_name))
    if a.is_array and b.is_array:
        _diff_arrays(a, b, change, options)
    elif a.is_array or b.is_array or not _equal_values(a.items, b.items, options.tolerance):
        change.details.append(("value", _field_text(a), _field_text(b)))
        if isinstance(a.items, str) and isinstance(b.items, str) and "\n" in a.items + b.items:
            change.details.pop()
            lines = a.items.split("\n"), b.items.split("\n")
            change.lines = _text_changes(*lines)
    return change if change.details or change.lines else None


def _equal_values(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (a != a and b != b) or (tolerance > 0 and abs(a - b) <= tolerance)
    return bool(a == b)


def _diff_arrays(a: MetadataField, b: MetadataField, change: Change, options: DiffOptions) -> None:
    """Compare two arrays: first their bytes, and only where those differ element by element."""
    from atlas_kit.operations.gguf_values import plain_value

    encoded = getattr(a.items, "encoded", None), getattr(b.items, "encoded", None)
    if a.count == b.count and all(encoded) and encoded[0]() == encoded[1]():  # type: ignore[misc]
        return
    one, two = plain_value(a.items), plain_value(b.items)
    differing = [
        n
        for n, (x, y) in enumerate(zip(one, two, strict=False))
        if not _equal_values(x, y, options.tolerance)
    ]
    if len(one) != len(two):
        change.details.append(("length", len(one), len(two)))
    if differing:
        change.details.append(("differing elements", len(differing), len(differing)))
        change.details += [(f"[{n}]", _element(one[n]), _element(two[n])) for n in differing[:5]]


def _element(value: Any) -> Any:
    return value if is_utf8(str(value)) else plain(value)


def _diff_tensors(
    a: GGUFFile, b: GGUFFile, one: TensorInfo, two: TensorInfo, options: DiffOptions
) -> Change | None:
    from atlas_kit.errors import AtlasError
    from atlas_kit.operations.hash import digest_of

    change = Change("changed", "tensor", one.name)
    if one.type_name != two.type_name:
        change.details.append(("type", one.type_name, two.type_name))
    if one.shape != two.shape:
        change.details.append(("shape", list(one.shape), list(two.shape)))
        return change
    hashes = digest_of(a.iter_raw(one)).hex(), digest_of(b.iter_raw(two)).hex()
    if hashes[0] == hashes[1] and not change.details and a.byte_order == b.byte_order:
        return None
    try:
        change.numbers = difference(
            (piece.reshape(-1) for piece in a.iter_dequantized(one)),
            (piece.reshape(-1) for piece in b.iter_dequantized(two)),
        )
    except AtlasError:  # a type without a way back to numbers still has a hash
        change.numbers = None
    if change.numbers is not None and change.numbers.within(options.tolerance):
        alike = options.tolerance > 0 or (not change.details and a.byte_order != b.byte_order)
        if alike:
            return None
    change.details.append(("sha256", *hashes))
    return change
