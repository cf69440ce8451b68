r"""JSON as this project writes it: strictly valid, safe on a terminal, and lossless for odd keys and numbers.

* NaN and the infinities become the strings ``"NaN"``, ``"Infinity"``, ``"-Infinity"``.
* Characters that do not print (control characters, direction overrides) are written as ``\uXXXX``.
* Keys and paths need not be UTF-8. Their field then holds a readable form with ``\xNN`` escapes, and a second
  field ``<name>_hex`` beside it holds the exact bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from atlas_kit.errors import FileCorruptError, printable


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Return ``value`` as strict JSON on which no character can act on a terminal."""
    import json  # here: most small commands print no JSON

    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)
    lines = text.split("\n")  # line by line, so that the usual line costs one call
    return "\n".join([line if line.isprintable() else _escaped(line) for line in lines])


class Streamed:
    """An array whose elements are made while it is written: a value of the object that ``dumped`` is given."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items


#: So many elements are made into text at once.
_BATCH = 256


def dumped(value: Any, *, indent: int) -> Iterator[str]:
    """Yield the text of ``dumps`` in pieces, in the memory of a few elements of a ``Streamed`` array."""
    if not isinstance(value, dict) or not any(isinstance(item, Streamed) for item in value.values()):
        yield dumps(value, indent=indent)
        return
    step, before = " " * indent, "{"
    for key, item in value.items():
        yield f"{before}\n{step}{dumps(str(key))}: "
        before = ","
        if not isinstance(item, Streamed):
            yield dumps(item, indent=indent).replace("\n", "\n" + step)
            continue
        items, opened = iter(item.items), False
        # together, as each call of the json module leaves garbage in a circle, which a command does not collect
        while batch := list(islice(items, _BATCH)):
            text = dumps(batch, indent=indent)[1:-2].replace("\n", "\n" + step)
            yield f"{',' if opened else '['}{text}"
            opened = True
        yield f"\n{step}]" if opened else "[]"
    yield "\n}"


def _escaped(line: str) -> str:
    return "".join([char if char.isprintable() else _escape(char) for char in line])


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def plain(value: Any) -> Any:
    """Return ``value`` with everything that JSON lacks put into strings or lists."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)  # members of an enum become their number
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _not_finite(value)
    if isinstance(value, str):
        return value if is_utf8(value) else printable(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, dict):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return plain(value.tolist())
    return str(value)


def _not_finite(value: float) -> str:
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def is_utf8(text: str) -> bool:
    """Tell whether ``text`` holds no bytes that were smuggled through ``surrogateescape``."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def named(name: str, text: str) -> dict[str, str]:
    """Return ``{name: text}``, and the exact bytes as ``<name>_hex`` when they are not UTF-8."""
    if is_utf8(text):
        return {name: text}
    return {name: printable(text), f"{name}_hex": to_bytes(text).hex()}


def name_from(item: dict[str, Any], name: str) -> str:
    """Undo ``named``; the hexadecimal form wins."""
    exact = item.get(f"{name}_hex")
    if exact is None:
        text = item.get(name)
        if not isinstance(text, str):
            raise FileCorruptError(f'the JSON item has no text in "{name}"')
        return text
    try:
        return bytes.fromhex(exact).decode("utf-8", "surrogateescape")
    except (ValueError, TypeError) as error:
        raise FileCorruptError(f'"{name}_hex" is not hexadecimal') from error


def to_bytes(text: str) -> bytes:
    """Return the bytes that a key was read from (lone surrogates of other origin included)."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def brief(value: Any, most: int = 120) -> str:
    """Return a text, or a value as JSON, in ``most`` characters."""
    text = value if isinstance(value, str) else dumps(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def to_utf8(text: str) -> bytes:
    r"""Return a text's bytes.

    Raises
    ------
    FileCorruptError
        It holds what is no character and has none, such as half a surrogate pair, which JSON can write as ``\ud83d``.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise FileCorruptError(
            f"\\u{code:04x} is half a surrogate pair, which is no character",
            hint="Write the other half, too, or another character.",
        ) from error


def json_bytes(value: Any, **style: Any) -> bytes:
    """Return a value as JSON in UTF-8.

    Raises
    ------
    FileCorruptError
        It holds what JSON or UTF-8 has no way to write.
    """
    import json

    try:
        return to_utf8(json.dumps(value, allow_nan=False, **style))
    except ValueError as error:
        raise FileCorruptError("it holds a number that is too large for JSON, or none") from error


def loads(text: str | bytes, *, what: str = "JSON", path: str | None = None, unique: bool = False) -> Any:
    """Parse strict JSON; every defect is a ``FileCorruptError`` in one sentence.

    ``unique``: a name that an object has twice is a defect, too: nobody can say which value is meant.
    """
    import json

    hook = pairs_once if unique else None
    try:
        return json.loads(text, parse_constant=refuse_constant, object_pairs_hook=hook)
    except UnicodeDecodeError as error:
        raise FileCorruptError(f"the {what} is not UTF-8 text", path=path, offset=error.start) from error
    except json.JSONDecodeError as error:
        raise FileCorruptError(
            f"the {what} is not valid (line {error.lineno}, column {error.colno}): {error.msg}", path=path
        ) from error
    except RecursionError as error:
        raise FileCorruptError(f"the {what} is nested too deeply", path=path) from error
    except ValueError as error:  # our own refusal, and numbers of thousands of digits
        raise FileCorruptError(f"the {what} is not valid: {digits(error)}", path=path) from error


def refuse_constant(name: str) -> Any:
    """Refuse NaN and infinities, which Python reads and JSON does not have."""
    raise ValueError(f"{name} is not a JSON number")


def pairs_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs, and refuse a name that it has twice."""
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f'an object has "{brief(printable(name), 60)}" twice')
            seen.add(name)
    return made


def digits(error: ValueError) -> str:
    """Return what is wrong in words: of a number that is too long Python names a function of its own."""
    return "a number has thousands of digits" if "int_max_str_digits" in str(error) else str(error)
