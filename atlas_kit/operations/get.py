"""Fetch one value: an entry's payload, a metadata value, a tensor."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.text import text_at_start
from atlas_kit.errors import InvalidParamError, Remedy
from atlas_kit.formats.endings import ending_of, require_ending
from atlas_kit.operations.inputs import Opened, open_given
from atlas_kit.operations.names import not_found
from atlas_kit.operations.outputs import Output, is_path, output_file, require_free
from atlas_kit.persistence.entry_keys import EPISODES
from atlas_kit.storage.given import Given
from atlas_kit.storage.keys import Keys

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import Entry
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.operations.token_words import Words

#: ``chunks`` is looked at this far to see whether a value is text.
PEEK = 1 << 12


@dataclass
class Value:
    """One value.

    ``chunks()`` yields its bytes, checked; ``info`` is what is known about it. Of a tensor ``array`` returns what
    is stored, and ``numbers`` what that means, where the two differ: float32 of bfloat16 and of quantised
    blocks. ``stored`` names the type.
    """

    key: str
    chunks: Callable[[], Iterable[bytes]]
    size: int | None
    is_text: bool
    info: Callable[[], dict[str, Any]]
    array: Callable[[], Any] | None = field(default=None)
    numbers: Callable[[], Any] | None = field(default=None)
    stored: str = ""

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the value with what is known about it, the payload in its most readable form."""
        return self.info()


@contextmanager
def get_value(
    given: Given, key: str, keys: Keys | None = None, *, words: Words | None = None, one_shard: bool = False
) -> Iterator[Value]:
    """Open a file and find one value in it; the value can be read inside the ``with`` block.

    Parameters
    ----------
    words
        The words of a model's tokens: ``episodes`` is then what was read and said, as text.
    one_shard
        Look for the key in this file only, where it is one of a split model.

    Raises
    ------
    KeyNotFoundError
        There is no such key; the hint names similar ones.
    """
    with get_values(given, [key], keys, words=words, one_shard=one_shard) as (value,):
        yield value


@contextmanager
def get_values(
    given: Given, names: Iterable[str], keys: Keys | None = None, *, words: Words | None = None,
    one_shard: bool = False,
) -> Iterator[list[Value]]:  # fmt: skip
    """Open a file once and find several values in it, as ``get_value`` does; all of them are there."""

    def find(opened: Opened, key: str) -> Value:
        if opened.kind == "gguf":
            return _of_model(opened.gguf, key)
        return _of_memory(opened, key) if words is None else _as_text(opened, key, words)

    with open_given(given, keys, one_shard=one_shard) as opened:
        yield [find(opened, name) for name in names]


def write_value(
    value: Value, output: Output, *, npy: bool = False, raw: bool = False, force: bool = False,
    inputs: Sequence[Given] = (),
) -> None:  # fmt: skip
    """Write a value's bytes, or (``npy``) a tensor's numbers as a ``.npy`` file; a file whole or not at all.

    Parameters
    ----------
    raw
        With ``npy``: what is stored, where that is quantised or bfloat16.
    force
        Overwrite a file that exists.
    inputs
        What is never overwritten.

    Raises
    ------
    InvalidParamError
        The value is not a tensor and ``npy`` is on; or the output's name promises another kind of file.
    FileAccessError
        The output exists and ``force`` is off.
    """
    _require_fitting(value, output, npy)
    require_free(output, inputs, force)
    chunks = [npy_bytes(value, raw=raw)] if npy else value.chunks()
    if isinstance(output, (str, os.PathLike)):
        with output_file(output) as file:
            file.writelines(chunks)
    else:
        output.writelines(chunks)
        output.flush()


def _require_fitting(value: Value, output: Output, npy: bool) -> None:
    """See that a tensor's numbers, or its bytes alone, are not written under a name that promises something else."""
    if npy:
        require_ending(output, "npy")
    elif value.array is not None and is_path(output):
        if ending_of(output) == ".npy":
            raise InvalidParamError(
                "this would be the tensor's bytes alone", path=output, remedy=Remedy("as-array")
            )
        require_ending(output, "bytes")


def _of_memory(opened: Opened, key: str) -> Value:
    from atlas_kit.operations.entry_rows import EntryRow
    from atlas_kit.operations.json_document import entry_to_json

    memory = opened.memory
    entry = memory.get(key)
    if entry is None:
        raise not_found(key, memory, opened.name)

    def info() -> dict[str, Any]:
        return {**entry_to_json(entry), **EntryRow.of(entry).to_json()}

    start = bytes(next(iter(entry.chunks()), b"")[:PEEK])
    is_text = entry.dtype_id == 0 and text_at_start(start, cut=len(start) < entry.size) is not None
    array = (lambda: entry.array(verify=True)) if entry.dtype_id else None
    numbers = (lambda: _entry_numbers(entry)) if entry.dtype in ("bfloat16", "q8_0") else None
    return Value(entry.key, entry.chunks, entry.size, is_text, info, array, numbers, entry.dtype or "")


def _entry_numbers(entry: Entry) -> Any:
    import numpy as np

    from atlas_kit.operations.tensor_numbers import entry_numbers

    return np.concatenate([np.zeros(0, np.float32), *entry_numbers(entry)]).reshape(entry.shape or ())


def _as_text(opened: Opened, key: str, words: Words) -> Value:
    """Return what was read and said as text: before each document and turn a line that says what it is."""
    from atlas_kit.codecs.quantities import utc
    from atlas_kit.operations.episodes import texts_of
    from atlas_kit.persistence.episode_entries import read_episodes

    if key != EPISODES:
        raise InvalidParamError(
            f"only the entry {EPISODES} is turned into words", key=key, hint="Leave the model out."
        )
    arrays = read_episodes(opened.memory)
    if arrays is None:
        raise not_found(key, opened.memory, opened.name)

    def chunks() -> Iterator[bytes]:
        for one in texts_of(arrays, words):
            place = f" {one.source}:{one.line}" if one.source else ""
            head = f"[{one.kind}{place}, {utc(one.time_ms // 1000)}]"
            yield f"{head}\n{one.text.rstrip()}\n\n".encode("utf-8", "replace")

    def info() -> dict[str, Any]:
        return {"key": key, "episodes": [one.to_json() for one in texts_of(arrays, words)]}

    return Value(key, chunks, None, True, info)


def _of_model(model: GGUFFile, key: str) -> Value:
    from atlas_kit.codecs.json_text import dumps, to_bytes
    from atlas_kit.formats.gguf.tables import GGMLType
    from atlas_kit.operations.gguf_values import field_to_json, plain_value, tensor_to_json

    row = model.metadata.get(key)
    if row is not None:

        def as_text(item: Any) -> bytes:
            return dumps(item).strip('"').encode()  # NaN and infinities are texts in JSON

        def text() -> Iterator[bytes]:
            if isinstance(row.items, str):
                yield to_bytes(row.items)
            elif not row.is_array:
                yield as_text(row.items)
            else:
                for item in plain_value(row.items):
                    yield (to_bytes(one_line(item)) if isinstance(item, str) else as_text(item)) + b"\n"

        return Value(key, text, None, True, lambda: field_to_json(row, head=None))
    info = model.tensors.get(key)
    if info is None:
        raise not_found(key, [*model.metadata, *model.tensors], model.path)

    def described() -> dict[str, Any]:
        data = b"".join(model.iter_raw(info))
        return {**tensor_to_json(info), "base64": base64.b64encode(data).decode()}

    row_of = info.row
    plain = row_of is None or (row_of.dtype is not None and row_of.type != GGMLType.BF16)
    return Value(
        key, lambda: model.iter_raw(info), info.nbytes, False, described, lambda: model.array(info),
        None if plain else lambda: model.dequantize(info), info.type_name,
    )  # fmt: skip


#: What ends a line, for Python or for a terminal, and the backslash that escapes it.
_ESCAPES = {ord("\\"): "\\\\", ord("\n"): "\\n", ord("\r"): "\\r"}
_ESCAPES |= {code: f"\\x{code:02x}" for code in (0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x85)}
_ESCAPES |= {0x2028: "\\u2028", 0x2029: "\\u2029"}


def one_line(text: str) -> str:
    """Return a text with its line breaks and backslashes escaped, as Python and JSON write them."""
    return text.translate(_ESCAPES)


def npy_bytes(value: Value, *, raw: bool = False) -> bytes:
    """Return a tensor as a ``.npy`` file: its numbers, or (``raw``) what is stored."""
    if value.array is None:
        raise InvalidParamError("the value is not a tensor", key=value.key)
    import io

    import numpy as np

    out = io.BytesIO()
    array = value.array() if raw or value.numbers is None else value.numbers()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()
