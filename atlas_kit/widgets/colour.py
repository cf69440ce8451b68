"""From numbers to colours: the colour tables, the scales, and pictures of them with nothing but the standard library.

Zero is the middle of a diverging table whatever the data are, and NaN and infinity have marks of their own. The
tables are safe for colour-blind readers: ColorBrewer's RdBu, and cividis. The canvas gets the tables from here and
counts indices by the same rule (``static/matrix/matrix.js``), so that a saved picture and the live one agree.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_kit.errors import InvalidParamError

if TYPE_CHECKING:
    from matplotlib.colors import Colormap, Normalize

COLOURS = ("diverging", "sequential")
TRANSFORMS = ("linear", "symlog")
#: An odd number of shades, so that zero has one to itself; after them two shades each of NaN, +inf and -inf.
SHADES = 249
NAN, POSITIVE_INFINITY, NEGATIVE_INFINITY = 249, 251, 253
#: The page behind a picture.
BLANK = 255
#: Symlog is linear below the limit divided by this, and logarithmic above.
DECADES = 3
_KNEE = 10.0**DECADES

_DIVERGING = "053061 2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b 67001f"
_DIVERGING_DARK = "d6ecfa 92c5de 4393c3 2166ac 17395c 15171a 5c1d1a b2302b d6604d f4a582 fde5d8"
_SEQUENTIAL = "00224e 123570 3b496c 575d6d 707173 8a8678 a59c74 c3b369 e1cc55 fee838"
_NAN = "b4f000 000000"
_INFINITE = "e000e0"
_BLANK = "ffffff"


def check(colours: str, transform: str) -> None:
    """Raise `InvalidParamError` unless both names are known."""
    for what, name, known in (("colours", colours, COLOURS), ("transform", transform, TRANSFORMS)):
        if name not in known:
            raise InvalidParamError(f"{what} is {name!r}", hint=f"It is one of: {', '.join(known)}.")


def _rgb(hexadecimal: str) -> np.ndarray[Any, Any]:
    """Return colours written as hexadecimal digits as (n, 3) bytes."""
    return np.frombuffer(bytes.fromhex(hexadecimal), np.uint8).reshape(-1, 3)


def palette(colours: str = "diverging", dark: bool = False) -> np.ndarray[Any, Any]:
    """Return the table: (256, 3) bytes; the shades, then the marks of what is no number.

    On a dark page the diverging table is dark in the middle, so that an empty matrix does not dazzle.
    """
    anchors = _rgb(_SEQUENTIAL if colours == "sequential" else _DIVERGING_DARK if dark else _DIVERGING)
    at = np.linspace(0, len(anchors) - 1, SHADES)
    shades = np.stack([np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T], 1)
    shades = np.rint(shades).astype(np.uint8)
    infinite = _rgb(_INFINITE)
    return np.concatenate([shades, _rgb(_NAN), shades[-1:], infinite, shades[:1], infinite, _rgb(_BLANK)])


def scaled(values: Any, limit: float, transform: str) -> np.ndarray[Any, Any]:
    """Map values to [-1, 1], ``limit`` to 1 and zero to zero; NaN stays."""
    with np.errstate(over="ignore"):  # far beyond a tiny limit is the strongest colour, too
        ratio = np.asarray(values, np.float64) / limit
    if transform == "symlog":
        ratio = np.sign(ratio) * np.log1p(np.abs(ratio) * _KNEE) / math.log1p(_KNEE)
    return np.clip(ratio, -1, 1)


def unscaled(ratios: Any, limit: float, transform: str) -> np.ndarray[Any, Any]:
    """Return the values that `scaled` maps to these."""
    ratio = np.asarray(ratios, np.float64)
    if transform == "symlog":
        ratio = np.sign(ratio) * np.expm1(np.abs(ratio) * math.log1p(_KNEE)) / _KNEE
    return ratio * limit


def indices(
    values: Any, limit: float, transform: str = "linear", colours: str = "diverging"
) -> np.ndarray[Any, Any]:
    """Return the palette's index for each of (m, n) values; what is no number alternates between two."""
    values = np.asarray(values)
    ratio = scaled(values, limit, transform)
    share = ratio.clip(0, 1) if colours == "sequential" else (ratio + 1) / 2
    found: np.ndarray[Any, Any] = np.nan_to_num(np.floor(share * (SHADES - 1) + 0.5)).astype(np.uint8)
    checks = np.indices(values.shape).sum(0).astype(np.uint8) & 1
    for base, where in (
        (NAN, np.isnan(values)),
        (POSITIVE_INFINITY, np.isposinf(values)),
        (NEGATIVE_INFINITY, np.isneginf(values)),
    ):
        found[where] = base + checks[where]
    return found


def ticks(limit: float, transform: str = "linear", colours: str = "diverging") -> list[float]:
    """Return the values that stand beside the colour bar, the smallest first."""
    steps = [0.01, 0.1, 1.0] if transform == "symlog" else [0.5, 1.0]
    above = [limit * step for step in steps]
    return ([] if colours == "sequential" else [-value for value in reversed(above)]) + [0.0, *above]


def png(picture: np.ndarray[Any, Any], colours: np.ndarray[Any, Any]) -> bytes:
    """Write palette indices (m, n) and their table (k, 3) as a PNG file."""
    rows, columns = picture.shape
    lines = np.zeros((rows, columns + 1), np.uint8)  # a zero before each line: no filter
    lines[:, 1:] = picture
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    parts = (
        (b"IHDR", header),
        (b"PLTE", colours.tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 6)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


def colormap(colours: str = "diverging") -> Colormap:
    """Return the table for matplotlib, with NaN in its own colour."""
    from matplotlib.colors import ListedColormap

    table = palette(colours) / 255
    return ListedColormap([tuple(row) for row in table[:SHADES]], name=f"atlas {colours}").with_extremes(
        bad=tuple(table[NAN])
    )


def norm(limit: float, transform: str = "linear", colours: str = "diverging") -> Normalize:
    """Return the scale for matplotlib."""
    from matplotlib.colors import FuncNorm

    low = 0.0 if colours == "sequential" else -limit
    return FuncNorm(
        (lambda values: scaled(values, limit, transform), lambda ratios: unscaled(ratios, limit, transform)),
        vmin=low,
        vmax=limit,
    )
