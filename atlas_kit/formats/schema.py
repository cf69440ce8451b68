"""What construct lacks for this project, and the one funnel through which every parse goes.

* ``parse`` runs a schema over a buffer and turns construct's errors into ours, with the offset and the field.
* ``struct_of`` and ``dtype_of`` derive ``struct.Struct`` and NumPy dtypes from a schema, so that hot loops
  read millions of records without saying the layout a second time.
* ``field_rows`` lists a fixed layout for the specifications; ``trace`` lists every field of real bytes for
  ``inspect --hex``. Both read names and notes (``* "..."``) from the schema.

Knows nothing about any format.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import construct as cs

from atlas_kit.errors import AtlasError, FileCorruptError, TruncatedError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    import numpy as np


class BufferStream:
    """A read-only, seekable stream over a buffer; ``buf`` lets bulk constructs look without copying."""

    __slots__ = ("before", "buf", "end", "far", "left", "pos")

    def __init__(self, buf: Any, pos: int = 0) -> None:
        self.far = False  # whether loading more is a journey
        self.left = 0  # how many records are to be read yet, where that is known
        self.buf = memoryview(buf)
        self.pos = pos
        self.before: Any = None  # where the strings of the array that was read last begin, and the end
        self.end = len(self.buf)

    def read(self, count: int | None = -1) -> bytes:
        """Return up to ``count`` bytes (all that are left when negative) and move past them."""
        start = min(self.pos, self.end)
        stop = self.end if count is None or count < 0 else min(self.end, start + count)
        self.pos = stop
        return bytes(self.buf[start:stop])

    def tell(self) -> int:
        """Return the position."""
        return self.pos

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to ``offset`` from the start (0), here (1) or the end (2)."""
        self.pos = offset if whence == 0 else (self.pos if whence == 1 else self.end) + offset
        return self.pos

    def seekable(self) -> bool:
        """Streams over buffers can always seek."""
        return True

    def foresee(self, stop: int, least: int = 0) -> None:
        """Be told where what is being read is likely to end, and how far it goes at least (0: it is as likely).

        A stream that loads from far away goes by it.
        """

    def ensure(self, stop: int) -> int:
        """Make ``buf`` hold the bytes up to ``stop`` if there are so many; return how far it may be read.

        Here everything is at hand already; a stream over a growing window loads more.
        """
        return min(stop, self.end)


def parse(
    schema: Any,
    buf: Any,
    offset: int = 0,
    *,
    path: str | os.PathLike[str] | None = None,
    what: str = "structure",
    **context: Any,
) -> Any:
    """Parse ``schema`` at ``offset`` of ``buf`` (bytes, or a ``BufferStream`` where it stands).

    Every construct error becomes one of ours.

    Raises
    ------
    TruncatedError
        The buffer ends inside the structure.
    FileCorruptError
        A field contradicts the schema. ``offset`` is where the parser stood.
    """
    stream = buf if isinstance(buf, BufferStream) else BufferStream(buf, offset)
    try:
        return schema.parse_stream(stream, **context)
    except cs.StreamError as error:
        raise TruncatedError(
            f"the {what} is cut off{_field_of(error)}: the file ends at byte {stream.end}",
            path=path,
            offset=min(stream.pos, stream.end),
        ) from error
    except (cs.ConstructError, UnicodeDecodeError, struct.error, OverflowError) as error:
        reason = str(error).splitlines()
        detail = reason[-1] if reason else type(error).__name__
        raise FileCorruptError(
            f"the {what} is not valid{_field_of(error)}: {detail}", path=path, offset=stream.pos
        ) from error


def _field_of(error: Exception) -> str:
    """Return `` in field a.b`` from construct's ``(parsing) -> a -> b`` path, or nothing."""
    where = getattr(error, "path", None)
    if not where:
        return ""
    parts = [part.strip() for part in str(where).split("->")[1:]]
    # ``"name" / con * "note"`` wraps twice, so every such name appears twice
    name = ".".join(part for part, before in zip(parts, [None, *parts], strict=False) if part != before)
    return f" in field {name}" if name else ""


# --- deriving struct formats and NumPy dtypes from a schema ---------------------------------------------


def _unwrap(con: Any) -> Any:
    while isinstance(con, (cs.Renamed, cs.Enum, cs.FlagsEnum, cs.Const, cs.Adapter)):
        con = con.subcon
    return con


def _struct_code(con: Any) -> tuple[str, str]:
    """Return (byte order, struct code) of one fixed-size leaf."""
    con = _unwrap(con)
    if isinstance(con, cs.FormatField):
        return con.fmtstr[0], con.fmtstr[1:]
    if isinstance(con, (cs.Bytes, cs.Padded)):
        return "", f"{con.sizeof()}s"
    raise TypeError(f"no struct code for {con!r}")


def struct_of(schema: Any) -> struct.Struct:
    """Derive the ``struct.Struct`` of a construct ``Struct`` of fixed-size leaves, one item per field."""
    orders, codes = zip(*(_struct_code(sub) for sub in schema.subcons), strict=True)
    order = {o for o in orders if o and o != "="}
    if len(order) > 1:
        raise TypeError("a schema of mixed byte order has no single struct format")
    derived = struct.Struct((order.pop() if order else "<") + "".join(codes))
    if derived.size != schema.sizeof():
        raise TypeError(f"{derived.format} has {derived.size} bytes, the schema {schema.sizeof()}")
    return derived


def scalar_dtype(con: Any) -> np.dtype[Any]:
    """Derive the NumPy dtype of one construct number.

    Never hand construct's ``fmtstr`` to NumPy: ``'<L'`` has 4 bytes in ``struct`` and 8 in NumPy.
    """
    import numpy as np

    con = _unwrap(con)
    if con is cs.Flag:
        return np.dtype("u1")
    order, code = _struct_code(con)
    if code.endswith("s"):
        return np.dtype(f"V{con.sizeof()}")
    kind = "f" if code in "efd" else ("i" if code.islower() else "u")
    return np.dtype(f"{'>' if order == '>' else '<'}{kind}{con.sizeof()}")


def dtype_of(schema: Any) -> np.dtype[Any]:
    """Derive the packed NumPy record dtype of a construct ``Struct`` of fixed-size leaves."""
    import numpy as np

    return np.dtype([(sub.name, scalar_dtype(sub)) for sub in schema.subcons])


# --- listing fields ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FieldRow:
    """One row of a fixed layout's field table."""

    offset: int
    size: int
    name: str
    type: str
    note: str


def field_rows(schema: Any) -> list[FieldRow]:
    """List the fields of a construct ``Struct`` of fixed-size leaves, for specification tables."""
    rows, offset = [], 0
    for sub in schema.subcons:
        size = sub.sizeof()
        rows.append(FieldRow(offset, size, sub.name or "", type_name(sub), sub.docs or ""))
        offset += size
    return rows


_CODES = {"B": "u8", "b": "i8", "H": "u16", "h": "i16", "L": "u32", "I": "u32", "l": "i32", "i": "i32"}
_CODES |= {"Q": "u64", "q": "i64", "e": "f16", "f": "f32", "d": "f64", "?": "bool"}


def type_name(con: Any) -> str:
    """Return the short type name (``u32``, ``8 bytes``) that the specifications use.

    A construct of our own says its name in ``type_label``.
    """
    while isinstance(con, cs.Renamed):
        con = con.subcon
    label = getattr(con, "type_label", None)
    if isinstance(label, str):
        return label
    con = _unwrap(con)
    if isinstance(con, cs.FormatField):
        return _CODES.get(con.fmtstr[1:], str(con.fmtstr))
    try:
        return f"{con.sizeof()} bytes"
    except cs.SizeofError:
        return "bytes"


@dataclass(frozen=True)
class Span:
    """One field of real bytes: where it is, what it is called, what it holds."""

    offset: int
    size: int
    name: str
    value: Any
    type: str
    note: str


class _Recorder(cs.Subconstruct):  # type: ignore[misc]
    """Parses like its subcon and reports each leaf's place and value to a sink."""

    def __init__(self, subcon: Any, sink: Callable[[Span], None], note: str) -> None:
        super().__init__(subcon)
        self._sink = sink
        self._note = note

    def _parse(self, stream: Any, context: Any, path: str) -> Any:
        start = stream.tell()
        value = self.subcon._parsereport(stream, context, path)
        size = stream.tell() - start
        if size:
            name = ".".join(part.strip() for part in path.split("->")[1:])
            self._sink(Span(start, size, name, value, type_name(self.subcon), self._note))
        return value


class _TracedArray(cs.Array):  # type: ignore[misc]
    """An array whose elements appear in the path with their index."""

    def _parse(self, stream: Any, context: Any, path: str) -> list[Any]:
        count = cs.evaluate(self.count, context)
        out = []
        for index in range(count):
            context._index = index
            out.append(self.subcon._parsereport(stream, context, f"{path}[{index}]"))
        return out


def _instrument(con: Any, sink: Callable[[Span], None], note: str = "") -> Any:
    if isinstance(con, cs.Renamed):
        inner = con.subcon
        while isinstance(inner, cs.Renamed):  # ``"name" / con * "note"`` wraps twice
            inner = inner.subcon
        return cs.Renamed(_instrument(inner, sink, con.docs or note), newname=con.name)
    if isinstance(con, cs.Struct):
        return cs.Struct(*(_instrument(sub, sink) for sub in con.subcons))
    if isinstance(con, cs.Switch):
        cases = {key: _instrument(case, sink, note) for key, case in con.cases.items()}
        return cs.Switch(con.keyfunc, cases, default=_instrument(con.default, sink, note))
    if isinstance(con, cs.Array):
        return _TracedArray(con.count, _instrument(con.subcon, sink, note))
    return _Recorder(con, sink, note)


def trace(
    schema: Any, buf: Any, offset: int = 0, *, limit: int | None = None, **context: Any
) -> tuple[list[Span], Exception | None]:
    """List every field of ``schema`` over real bytes, as far as they go.

    Returns the spans and the error that ended the walk early, if one did: a damaged file shows its good
    part. ``limit`` ends the walk after that many fields.
    """
    spans: list[Span] = []

    def sink(span: Span) -> None:
        spans.append(span)
        if limit is not None and len(spans) >= limit:
            raise cs.CancelParsing

    stream = buf if isinstance(buf, BufferStream) else BufferStream(buf, offset)
    try:
        _instrument(schema, sink).parse_stream(stream, **context)
    except (cs.ConstructError, AtlasError, UnicodeDecodeError, struct.error, OverflowError) as error:
        return spans, error
    return spans, None
