"""What memories of sessions that go on side by side are about to read, read at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atlas_kit.codecs.numbers import Array
from atlas_kit.llama.token_memory import TokenMemory, read_each


def read_ahead(
    memories: Sequence[TokenMemory], hidden: Array, logits: Sequence[Array], current: Sequence[int]
) -> None:
    """Let memories of sessions that go on side by side read what each is about to be asked for.

    Each finds its answer, the same to the bit, when it reads that.

    Parameters
    ----------
    hidden, logits, current
        (R, n_embd), R times (n_vocab,), (R,): a state for each, its logits, and the token they are of.
    """
    kinds: dict[Any, list[int]] = {}
    for row, memory in enumerate(memories):
        if (kind := memory.kind) is not None:
            memory.commit()
            kinds.setdefault(kind, []).append(row)
    for rows in kinds.values():
        if len(rows) > 1:
            group, tokens = [memories[row] for row in rows], [int(current[row]) for row in rows]
            readings = read_each(group, hidden[rows], [logits[row] for row in rows], tokens)
            for one, reading, token in zip(group, readings, tokens, strict=True):
                one.will_read(reading, token)
