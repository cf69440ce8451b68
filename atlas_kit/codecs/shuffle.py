"""Filter 1, byte shuffle: the first bytes of a block's elements, then the second bytes, and so on.

Numbers of similar size share their high bytes, so that a codec finds long runs after shuffling. Works on
blocks of ``BLOCK`` elements, so that streams of any length need bounded memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Elements in one block.
BLOCK = 32_768


def _blocks(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Cut a stream into blocks of ``size`` bytes (the last one may be shorter)."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        whole = len(held) // size * size
        if whole:
            view = bytes(held[:whole])
            del held[:whole]
            for start in range(0, whole, size):
                yield view[start : start + size]
    if held:
        yield bytes(held)


def shuffle_chunks(chunks: Iterable[bytes], item_size: int) -> Iterator[bytes]:
    """Shuffle a stream of elements of ``item_size`` bytes."""
    import numpy as np

    for block in _blocks(chunks, BLOCK * item_size):
        count = len(block) // item_size
        whole = np.frombuffer(block, np.uint8, count * item_size)
        yield whole.reshape(count, item_size).T.tobytes() + block[count * item_size :]


def unshuffle_chunks(chunks: Iterable[bytes], item_size: int) -> Iterator[bytes]:
    """Undo ``shuffle_chunks``."""
    import numpy as np

    for block in _blocks(chunks, BLOCK * item_size):
        count = len(block) // item_size
        whole = np.frombuffer(block, np.uint8, count * item_size)
        yield whole.reshape(item_size, count).T.tobytes() + block[count * item_size :]
