"""The arrays of a decode: what C finds where its pointers point, and rows that are looked at in place."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np

from atlas_kit.llama.engine import Feed
from atlas_kit.llama.llama_batch import LlamaBatch, Rows


class _Batch(ctypes.Structure):
    """``llama_batch``."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


def test_feeds_lie_behind_each_other() -> None:
    batch = LlamaBatch(SimpleNamespace(llama_batch=_Batch), 8)
    for _ in range(2):  # the second time over what was there
        batch.fill([Feed(1, [5], 9, 1), Feed(3, [6, 7, 8], 0, 2), Feed(4, [9], 2, 0)])
    struct = batch.struct
    assert struct.n_tokens == 5
    assert not struct.embd
    assert struct.token[:5] == [5, 6, 7, 8, 9]
    assert struct.pos[:5] == [9, 0, 1, 2, 2]
    assert struct.n_seq_id[:5] == [1] * 5
    assert [struct.seq_id[i][0] for i in range(5)] == [1, 3, 3, 3, 4]
    assert struct.logits[:5] == [1, 0, 1, 1, 0]
    batch.fill([Feed(0, [1, 2], 0, 0)], all_outputs=True)
    assert struct.n_tokens == 2
    assert struct.logits[:2] == [1, 1]


def test_rows_follow_where_they_move_and_how_many_there_are() -> None:
    one, other = (np.arange(12, dtype=np.float32) + start for start in (0, 100))
    rows = Rows()

    def of(array: np.ndarray, count: int) -> np.ndarray:
        return rows.rows(array.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), count, 3)

    assert of(one, 2).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert of(one, 4)[3].tolist() == [9, 10, 11]
    assert len(of(one, 1)) == 1
    assert of(other, 1).tolist() == [[100, 101, 102]]
    of(other, 1)[0, 0] = 7
    assert other[0] == 7
    assert rows.rows(None, 0, 3).shape == (0, 3)
