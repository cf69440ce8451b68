"""The context of a slot as a file, in llama.cpp's own form, so that llama-server's files can be read and read ours.

Little-endian: ``ggsq``, version 3, the number of tokens and the tokens (4 bytes each), then what the engine makes of a
sequence. llama-server's newer files put -1, a version and the count before the tokens, which is understood, too.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from atlas_kit.errors import FileCorruptError

MAGIC, VERSION = 0x67677371, 3
_HEAD = struct.Struct("<III")
_PACKED = -1
#: What llama.cpp puts before a sequence in main memory, with the sequence's number, and not into files.
_STATE = struct.pack("<I", 0xAF143CD8)
_LEN_STATE = 8


class SlotContext(NamedTuple):
    """The tokens of a context, and the engine's bytes of it."""

    tokens: list[int]
    data: bytes


def is_slot_file(data: bytes) -> bool:
    """Tell whether a file is a context by its first bytes."""
    return data[:4] == struct.pack("<I", MAGIC)


def written(context: SlotContext) -> bytes:
    """Return the file of a context."""
    tokens = np.asarray(context.tokens, "<i4")
    data = context.data[_LEN_STATE:] if context.data.startswith(_STATE) else context.data
    return _HEAD.pack(MAGIC, VERSION, len(tokens)) + tokens.tobytes() + data


def loadable(data: bytes, own: bytes) -> bytes:
    """Return what an engine loads of what a file holds; ``own``: what it makes of any sequence itself."""
    return own[:_LEN_STATE] + data if own.startswith(_STATE) else data


def read(data: bytes, n_vocab: int, most: int) -> SlotContext:
    """Return the context in a file.

    Parameters
    ----------
    n_vocab, most
        Tokens of the vocabulary, and of a context.

    Raises
    ------
    FileCorruptError
        It is none, ends too early, or does not fit this model.
    """
    if len(data) < _HEAD.size or not is_slot_file(data):
        raise FileCorruptError("this is not the context of a slot", key="filename")
    _, version, count = _HEAD.unpack_from(data)
    if version != VERSION or count > (len(data) - _HEAD.size) // 4:
        raise FileCorruptError("this context ends too early, or is of another version", key="filename")
    end = _HEAD.size + 4 * count
    tokens = _tokens(np.frombuffer(data[_HEAD.size : end], "<i4").tolist())
    if len(tokens) > most or any(not 0 <= token < n_vocab for token in tokens):
        raise FileCorruptError("this context does not fit this model", key="filename")
    return SlotContext(tokens, data[end:])


def _tokens(words: Sequence[int]) -> list[int]:
    if len(words) >= 3 and words[0] == _PACKED:
        return list(words[3 : 3 + max(0, words[2])])
    return list(words)
