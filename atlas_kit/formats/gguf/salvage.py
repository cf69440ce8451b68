"""Finding what is still there in a damaged header: records one by one, whatever the counts say.

The strict parser ends at the first contradiction. This one looks at every place with three questions (is it
a pair? is it a tensor info? does something sensible follow?), and where the answers are no it searches for
the next record that can be proven by what follows it. Work is bounded, whatever the bytes are.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from atlas_kit.errors import AtlasError
from atlas_kit.formats.gguf import tables
from atlas_kit.formats.gguf.layout import Layout, layout
from atlas_kit.formats.gguf.scan import HeaderStream, align, field_of
from atlas_kit.formats.gguf.tables import ValueType
from atlas_kit.formats.gguf.tensors import TensorInfo
from atlas_kit.formats.gguf.values import MetadataField
from atlas_kit.storage.source import CHUNK, Source

#: How far behind damage the next pair is searched: a broken pair may hold a whole vocabulary.
_FAR = 64 << 20
#: The same for tensor infos, which are short; what follows the last one is tensor data.
_NEAR = 4096
_MAX_NAME = 512
#: Where the walk over strings leaves its array, the wrong length is at most so many strings back, and the
#: text that it belongs to at most so long.
_LOOK_BACK = 64
_LONGEST_TEXT = 1024
#: What one look costs of the work that may be done, in bytes.
_CALL = 16
_MAX_PARSES = 5000
_MAX_CANDIDATES = 300_000

_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_./:+\-]*")
_KEY = re.compile(rb"[A-Za-z_][A-Za-z0-9_+\-]*(\.[A-Za-z0-9_+\-]+)+")


@dataclass(frozen=True)
class LostRange:
    """Bytes of the header that no record could be made of."""

    start: int
    stop: int
    why: str


@dataclass
class Salvage:
    """The records that were found, in the file's order.

    Attributes
    ----------
    base
        Bytes before the magic (a byte-order mark, say); every offset counts from the magic.
    head_ok
        Whether magic and version are as they should be.
    healed
        Keys of pairs whose length or count was wrong and could be found out.
    cut_out
        Whether bytes of records that were made again are not in the file, so that all behind them is elsewhere.
    end
        Behind the last record.
    """

    source: Source
    version: int
    byte_order: str
    base: int = 0
    head_ok: bool = True
    tensor_count: int | None = None
    field_count: int | None = None
    fields: list[MetadataField] = field(default_factory=list)
    tensors: list[TensorInfo] = field(default_factory=list)
    lost: list[LostRange] = field(default_factory=list)
    healed: list[str] = field(default_factory=list)
    cut_out: bool = False
    end: int = 0
    stream: HeaderStream | None = field(default=None, repr=False)

    @property
    def layout(self) -> Layout:
        """The schema of this dialect."""
        return layout(self.version, self.byte_order)

    def raw(self, start: int, stop: int) -> bytes:
        """Return bytes of the header."""
        return b"" if self.stream is None else bytes(self.stream.buf[start:stop])


class TailSource(Source):
    """A source without its first ``base`` bytes."""

    def __init__(self, inner: Source, base: int) -> None:
        self.path = inner.path
        self.size = inner.size - base
        self._inner = inner
        self._base = base

    def read_upto(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``."""
        return self._inner.read_upto(self._base + offset, size)

    def view(self, offset: int, size: int) -> memoryview:
        """Return a view of a range."""
        return self._inner.view(self._base + offset, size)

    def refresh(self) -> None:
        """Take the file's present size and time."""
        self._inner.refresh()
        self.size = self._inner.size - self._base

    def close(self) -> None:
        """Leave the source open: it is its opener's to close."""


def salvage(source: Source) -> Salvage:
    """Find every record of a header. Never raises for what is in the file."""
    base = _find_magic(source)
    if base:
        source = TailSource(source, base)
    best: Salvage | None = None
    for version, order, head_ok in _dialects(source):
        found = _Walk(source, version, order, head_ok).run()
        if best is None or _value(found) > _value(best):
            best = found
        if found.head_ok and (found.fields or found.tensors):
            break
    assert best is not None
    best.base = base
    return best


def _value(found: Salvage) -> tuple[int, int]:
    return len(found.fields) + len(found.tensors), int(found.head_ok)


def _find_magic(source: Source) -> int:
    head = source.read_upto(0, 64)
    if head.startswith(tables.MAGIC):
        return 0
    return max(head.find(tables.MAGIC), 0)


def _dialects(source: Source) -> Iterator[tuple[int, str, bool]]:
    """Yield (version, byte order, head is as it says), the likeliest first."""
    head = source.read_upto(0, 8)
    good = head[:4] == tables.MAGIC
    if len(head) == 8:
        for order in "<>":
            (version,) = struct.unpack(order + "I", head[4:])
            if version in tables.VERSIONS:
                yield version, order, good
                if good:
                    return
    for version, order in ((3, "<"), (1, "<"), (3, ">")):
        yield version, order, False


class _Budget:
    """What may still be spent: a hostile file must not make the search quadratic."""

    def __init__(self, size: int) -> None:
        self.parses = _MAX_PARSES
        self.candidates = _MAX_CANDIDATES
        self.work = 8 * size + (1 << 20)

    @property
    def empty(self) -> bool:
        return self.parses <= 0 or self.work <= 0 or self.candidates <= 0


class _Walk:
    def __init__(self, source: Source, version: int, order: str, head_ok: bool) -> None:
        self.out = Salvage(source, version, order, head_ok=head_ok)
        self.layout = layout(version, order)
        self.stream = HeaderStream(source)
        self.out.stream = self.stream
        self.budget = _Budget(source.size)
        self.prefix = self.layout.text.prefix
        self._seen: dict[int, tuple[Any, Any]] = {}

    def run(self) -> Salvage:
        out, start = self.out, self.layout.prefix.sizeof()
        if self.stream.ensure(start) < start:
            out.end = self.stream.end
            return out
        counts = struct.Struct(self.prefix.format[0] + 2 * self.prefix.format[1:])
        out.tensor_count, out.field_count = counts.unpack_from(self.stream.buf, 8)
        at: int | None = start
        while at is not None:
            out.end = at
            at = self._step(at)
        self.stream.source = None
        return out

    def _step(self, at: int) -> int | None:
        """Take the record at ``at``, or jump over what cannot be read; return where to go on."""
        out, in_tensors = self.out, bool(self.out.tensors)
        item = None if self._finished(at, in_tensors) else self._record(at, in_tensors)
        if isinstance(item, TensorInfo):
            out.tensors.append(item)
            return at + item.info_size
        if item is not None and self._makes_sense(at + item.size):
            out.fields.append(item)
            return at + item.size
        behind = self._nameless(at) if in_tensors else None
        if behind is not None:
            return behind
        after = self._search(at, in_tensors)
        if item is not None and (after is None or after >= at + item.size):
            out.fields.append(item)  # it is whole; what follows is not
            return at + item.size
        if after is None:
            return self._guess_last(at) if in_tensors else None
        if not self._heal(at, after):
            out.lost.append(LostRange(at, after, "no record can be read here"))
        return after

    def _nameless(self, at: int) -> int | None:
        """Read a tensor info whose name is damaged, if it promises the place behind the tensor before it."""
        width, out, order = self.prefix.size, self.out, self.layout.byte_order
        if len(out.tensors) >= (out.tensor_count or 0):
            return None
        last = out.tensors[-1]
        if last.nbytes is None:
            return None
        wanted: int = align(last.offset + last.nbytes, self._alignment())
        limit = self.stream.ensure(min(self.stream.end, at + width + tables.MAX_TENSOR_NAME + 64))
        window = bytes(self.stream.buf[at:limit])
        for size in range(1, tables.MAX_TENSOR_NAME + 1):
            dims_at = width + size
            if dims_at + 4 > len(window):
                break
            (count,) = struct.unpack_from(order + "I", window, dims_at)
            stop = dims_at + 4 + count * width + 12
            if not 0 < count <= tables.MAX_DIMS or stop > len(window):
                continue
            kind, offset = struct.unpack_from(order + "iQ", window, stop - 12)
            if offset == wanted and 0 <= kind < 256:
                self._rename(at, size)
                info = self._info_at(at)
                if info is not None and info.info_size == stop:
                    out.tensors.append(info)
                    out.healed.append(info.name)
                    return at + int(stop)
        return None

    def _rename(self, at: int, size: int) -> None:
        """Give the name at ``at`` its length back (in memory), and letters where it has none."""
        start = at + self.prefix.size
        self.prefix.pack_into(self.stream.buf, at, size)
        for index in range(start, start + size):
            if not 32 < self.stream.buf[index] < 127:
                self.stream.buf[index] = ord("_")
        self._seen.clear()

    def _alignment(self) -> int:
        found = next((f.items for f in self.out.fields if f.key == "general.alignment"), None)
        good = isinstance(found, int) and 0 < found <= tables.MAX_ALIGNMENT and not found & (found - 1)
        return int(found) if good else tables.DEFAULT_ALIGNMENT  # type: ignore[arg-type]

    def _guess_last(self, at: int) -> int | None:
        """Heal the last tensor info, whose end is not known: try each number of dimensions."""
        width, out = self.prefix.size, self.out
        if len(out.tensors) + 1 != out.tensor_count:
            return None
        name = _NAME.match(bytes(self.stream.buf[at + width : self.stream.ensure(at + width + _MAX_NAME)]))
        if name is None:
            return None
        for dims in range(1, tables.MAX_DIMS + 1):
            after = at + width + name.end() + 4 + dims * width + 12
            padded = self.stream.ensure(min(self.stream.end, align(after, self._alignment())))
            if after > self.stream.end or any(self.stream.buf[after:padded]) or not self._heal_at(at, after):
                continue
            info = out.tensors[-1]
            if 0 <= info.type < 256 and info.offset % 32 == 0 and info.offset < self.stream.end:
                return after
            out.tensors.pop()
            out.healed.pop()
        return None

    def _heal(self, at: int, after: int) -> bool:
        """Read the record that ends at ``after`` again with the one length that makes it end there.

        The record at ``at`` has a wrong length in it, or the array or text before it ends too early.
        """
        last = self.out.fields[-1] if self.out.fields else None
        stale = last is not None and last.offset + last.size == at and not self.out.tensors
        if self._heal_at(at, after):
            return True
        if stale and last is not None and self._heal_at(last.offset, after):
            self.out.fields.remove(last)
            return True
        return False

    def _heal_at(self, at: int, after: int) -> bool:
        if self.stream.ensure(after) < after:
            return False
        for place, size, number in self._guesses(at, after):
            old = bytes(self.stream.buf[place : place + size])
            order = "little" if self.layout.byte_order == "<" else "big"
            self.stream.buf[place : place + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
            self._seen.clear()
            pair, info = self._both(at)
            if info is not None and at + info.info_size == after:
                self.out.tensors.append(info)
                self.out.healed.append(info.name)
                return True
            if pair is not None and at + pair.size == after and not self.out.tensors:
                self.out.fields.append(pair)
                self.out.healed.append(pair.key)
                return True
            self.stream.buf[place : place + size] = old
            self._seen.clear()
        return False

    def _guesses(self, at: int, after: int) -> Iterator[tuple[int, int, int]]:
        """Yield (place, bytes, number) of lengths in the record at ``at`` that may be the wrong one."""
        width, buf, order = self.prefix.size, self.stream.buf, self.layout.byte_order
        name = _NAME.match(bytes(buf[at + width : min(after, at + width + _MAX_NAME)]))
        if name is None:
            return
        yield at, width, name.end()
        value = at + width + name.end() + 4
        if value + width > after or self._name_size(at) != name.end():
            return
        (kind,) = struct.unpack_from(order + "i", buf, value - 4)
        if kind == ValueType.STRING and b"\0" not in buf[value + width : after]:
            yield value, width, after - value - width
        if kind == ValueType.ARRAY and value + 4 + width <= after:
            (element,) = struct.unpack_from(order + "i", buf, value)
            count = self._count_between(element, value + 4 + width, after)
            if count is not None:
                yield value + 4, width, count
            elif element == ValueType.STRING:
                yield from self._inner_lengths(value + 4, after)
        dims, rest = divmod(after - value - 12, width)
        if not rest and 0 < dims <= tables.MAX_DIMS:
            yield value - 4, 4, dims

    def _inner_lengths(self, place: int, after: int) -> Iterator[tuple[int, int, int]]:
        """Yield the one length in an array of strings that is wrong, if the others then end at ``after``.

        ``place`` is where the array's count is. A wrong length shows where the walk leaves the array, or a
        few strings before that.
        """
        width, unpack, buf = self.prefix.size, self.prefix.unpack_from, self.stream.buf
        (count,) = unpack(buf, place)
        starts: list[int] = []
        pos = place + width
        while len(starts) < count and pos + width <= after:
            starts.append(pos)
            pos += width + int(unpack(buf, pos)[0])
        for index in range(len(starts) - 1, max(-1, len(starts) - 1 - _LOOK_BACK), -1):
            first = starts[index] + width
            for end in range(first, min(after, first + _LONGEST_TEXT) + 1):
                if self.budget.empty:
                    return
                if self._ends_at(end, count - index - 1, after):
                    yield starts[index], width, end - first

    def _ends_at(self, pos: int, count: int, after: int) -> bool:
        """Tell whether ``count`` strings from ``pos`` end exactly at ``after``."""
        width, unpack, buf, first = self.prefix.size, self.prefix.unpack_from, self.stream.buf, pos
        self.budget.work -= _CALL
        if count > (after - pos) // width:
            return False
        for _ in range(count):
            if pos + width > after:
                break
            pos += width + int(unpack(buf, pos)[0])
        self.budget.work -= min(pos, after) - first
        return pos == after

    def _count_between(self, element: int, start: int, stop: int) -> int | None:
        """Return how many elements take up exactly the bytes from ``start`` to ``stop``."""
        row = tables.VALUE_TYPE_BY_NUMBER.get(element)
        if row is not None and row.size:
            return None if (stop - start) % row.size else (stop - start) // row.size
        if element != ValueType.STRING:
            return None
        count, unpack, width = 0, self.prefix.unpack_from, self.prefix.size
        while start + width <= stop:
            start += width + int(unpack(self.stream.buf, start)[0])
            count += 1
        return count if start == stop else None

    def _finished(self, at: int, in_tensors: bool) -> bool:
        """Tell whether padding or the end of the file follows."""
        return at >= self.stream.end or (
            in_tensors and not any(self.stream.buf[at : self.stream.ensure(at + self.prefix.size)])
        )

    def _record(self, at: int, in_tensors: bool) -> MetadataField | TensorInfo | None:
        """Return the record at ``at``: a pair or a tensor info, whichever makes more sense."""
        pair, info = self._both(at)
        if in_tensors:
            return info
        if pair is None or info is None:
            if pair is None:
                return info
            raw = pair.key.encode("utf-8", "surrogateescape")
            after = self._makes_sense(at + pair.size, padding=bool(raw))
            return pair if _KEY.fullmatch(raw) or after else None
        after_pair = self._makes_sense(pair.offset + pair.size)
        after_info = self._makes_sense(info.info_offset + info.info_size)
        if after_pair != after_info:
            return pair if after_pair else info
        return pair if len(self.out.fields) < (self.out.field_count or 0) else info

    def _both(self, at: int) -> tuple[MetadataField | None, TensorInfo | None]:
        """Parse both kinds of record at ``at`` (remembered: looking ahead asks twice)."""
        found = self._seen.get(at)
        if found is None:
            if len(self._seen) > 64:
                self._seen.clear()
            found = self._seen[at] = (self._pair_at(at), self._info_at(at))
        return found

    def _parse(self, schema: Any, at: int) -> Any:
        self.stream.pos = at
        try:
            return schema._parse(self.stream, {}, "")
        except AtlasError:
            return None
        finally:
            self.budget.work -= max(0, self.stream.pos - at)

    def _name_size(self, at: int) -> int | None:
        """Return the length of the name at ``at`` if it can be one."""
        if self.stream.ensure(at + self.prefix.size) < at + self.prefix.size:
            return None
        size = int(self.prefix.unpack_from(self.stream.buf, at)[0])
        return size if size <= min(_MAX_NAME, self.stream.end - at) else None

    def _pair_at(self, at: int) -> MetadataField | None:
        if self._name_size(at) is None:
            return None
        item = self._parse(self.layout.key_value, at)
        return None if item is None else field_of(item, at, self.stream.pos)

    def _info_at(self, at: int) -> TensorInfo | None:
        if not self._name_size(at):
            return None
        item = self._parse(self.layout.tensor_info, at)
        if item is None or not _sensible(item["name"]):
            return None
        trusted = bool(self.out.tensors) and at == self.out.end and "." in item["name"]
        if not trusted and (
            abs(item["type"]) >= 1 << 16 or any(dim >= 1 << 40 for dim in item["dimensions"])
        ):
            return None
        return TensorInfo(
            item["name"], tuple(item["dimensions"]), item["type"], item["offset"], at, self.stream.pos - at
        )

    def _makes_sense(self, at: int, *, padding: bool = True) -> bool:
        """Tell whether a header can go on at ``at``: a record, padding, or the end."""
        if at >= self.stream.end:
            return at == self.stream.end
        if not any(self.stream.buf[at : self.stream.ensure(at + self.prefix.size)]):
            return padding
        pair, info = self._both(at)
        return info is not None or (pair is not None and _sensible(pair.key))

    def _search(self, at: int, in_tensors: bool) -> int | None:
        """Return where the next record that can be proven starts, if there is one."""
        out = self.out
        if self.budget.empty or at >= self.stream.end:
            return None
        if in_tensors and len(out.tensors) >= (out.tensor_count or 0):
            return None
        if not in_tensors and len(out.fields) >= (out.field_count or 0) and not out.tensor_count:
            return None
        goal = min(self.stream.end, at + (_NEAR if in_tensors else _FAR))
        pattern = _starts(self.prefix)
        done = at + 1
        while done < goal:  # in pieces: nothing more is loaded than is needed
            stop = self.stream.ensure(min(goal, done + CHUNK + _MAX_NAME))
            self.budget.work -= stop - done
            for match in pattern.finditer(bytes(self.stream.buf[done:stop])):
                self.budget.candidates -= 1
                if self.budget.empty:
                    return None
                if self._proven(done + match.start(), in_tensors):
                    return done + match.start()
            done = stop - self.prefix.size if stop < goal else goal
        return None

    def _proven(self, at: int, in_tensors: bool) -> bool:
        size = self._name_size(at)
        if not size:
            return False
        start = at + self.prefix.size
        name = bytes(self.stream.buf[start : self.stream.ensure(start + size)])
        if not (_KEY if not in_tensors else _NAME).fullmatch(name):
            return False
        self.budget.parses -= 1
        item = self._record(at, in_tensors)
        if item is None:
            return False
        if isinstance(item, TensorInfo):
            return self._makes_sense(at + item.info_size)
        return self._makes_sense(at + item.size)


def _starts(prefix: struct.Struct) -> re.Pattern[bytes]:
    """Return a pattern for the length (1 to 255) and first letter of a name."""
    nuls = rb"\x00{%d}" % (prefix.size - 1)
    little = prefix.format.startswith("<")
    length = rb"[\x01-\xff]" + nuls if little else nuls + rb"[\x01-\xff]"
    return re.compile(rb"(?=" + length + rb"[A-Za-z_])", re.DOTALL)


def _sensible(name: str) -> bool:
    """Tell whether a name looks like one that somebody gave."""
    return 0 < len(name) <= _MAX_NAME and name.isprintable() and "\ufffd" not in name
