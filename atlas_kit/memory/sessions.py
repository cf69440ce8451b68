"""Many sessions as rows of one state: leading axes flattened and given back, rows taken apart and joined.

Everything that learns sees exactly one leading axis R; only this file and ``Memory`` know others.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import backend as backends
from atlas_kit.memory.backend import Array
from atlas_kit.memory.state import MemoryState


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LearningReport:
    """What happened to the tokens that one call learned.

    Attributes
    ----------
    loss
        Inner loss of each token before it was learned, (*batch, L); NaN for tokens that were left out,
        and behind the last token of sessions that learned fewer.
    surprise
        Norm of each token's gradient with respect to the parameters, (*batch, L).
    omega_loss
        The last step's weighted sum of losses over its window (equation 9), (*batch); NaN where none was made.
    """

    loss: Array
    surprise: Array
    omega_loss: Array

    def __repr__(self) -> str:
        """Say how it went in one line."""
        loss = backends.to_host(self.loss)
        sessions = f" in each of {' x '.join(map(str, loss.shape[:-1]))} sessions" if loss.ndim > 1 else ""
        mean = f", mean loss {np.nanmean(loss):.4g}" if (loss == loss).any() else ""
        return f"<Report: {self.learned:,} tokens learned{sessions}{mean}>"

    @property
    def learned(self) -> int:
        """How many tokens were learned, at most, in a session."""
        return int(self.loss.shape[-1])


def flattened(state: MemoryState) -> MemoryState:
    """Flatten the leading axes to one; views."""
    batch = state.batch
    if len(batch) == 1:
        return state
    groups = state.groups().items()
    return MemoryState(**{name: flattened_group(arrays, batch) for name, arrays in groups})


def flattened_group(arrays: dict[str, Array], batch: tuple[int, ...]) -> dict[str, Array]:
    """Flatten the leading axes ``batch`` of arrays to one; views."""
    if not batch:
        return {name: array[None] for name, array in arrays.items()}
    if len(batch) == 1:
        return arrays
    R, lead = math.prod(batch), len(batch)
    return {name: array.reshape(R, *array.shape[lead:]) for name, array in arrays.items()}


def shaped(state: MemoryState, batch: tuple[int, ...]) -> MemoryState:
    """Give one leading axis the shape ``batch`` again; views."""
    if len(batch) == 1:
        return state
    if not batch:
        return state.map(lambda array: array[0, ...])
    return state.map(lambda array: array.reshape((*batch, *array.shape[1:])))


def shaped_report(report: LearningReport, batch: tuple[int, ...]) -> LearningReport:
    """Give a report's leading axis the shape ``batch``."""
    L = report.loss.shape[-1]
    return LearningReport(
        report.loss.reshape((*batch, L)),
        report.surprise.reshape((*batch, L)),
        report.omega_loss.reshape(batch),
    )


def real_lengths(lengths: Array | None, batch: tuple[int, ...], T: int) -> np.ndarray[Any, Any]:
    """Return how many tokens each row has, (R,) on the host."""
    if lengths is None:
        return np.full(int(np.prod(batch)), T, np.int64)
    length = backends.to_host(lengths)
    if length.shape != batch or length.dtype.kind not in "iu" or (length < 0).any() or (length > T).any():
        raise InvalidParamError(
            f"lengths must be whole numbers from 0 to {T} of the shape {batch}", key="lengths"
        )
    return length.reshape(-1).astype(np.int64)


def alike(numbers: np.ndarray[Any, Any]) -> bool:
    """Tell whether all numbers (R,) are the same."""
    return bool((numbers == numbers[:1]).all())


def no_report(xp: Any, rows: int, dtype: Any) -> LearningReport:
    """Return what is said of a call in which ``rows`` sessions learned nothing."""
    empty = xp.zeros((rows, 0), dtype)
    return LearningReport(empty, empty, xp.full((rows,), xp.nan, dtype))


def chain(xp: Any, reports: list[LearningReport]) -> LearningReport:
    """Join the reports of chunks that follow each other."""
    if len(reports) == 1:
        return reports[0]
    loss, surprise = (xp.concatenate([getattr(r, n) for r in reports], axis=1) for n in ("loss", "surprise"))
    return LearningReport(loss, surprise, reports[-1].omega_loss)


def join(
    xp: Any, rows: int, parts: list[tuple[np.ndarray[Any, Any], MemoryState, LearningReport]]
) -> tuple[MemoryState, LearningReport]:
    """Put rows that advanced apart together again; shorter reports are padded with NaN."""
    like = parts[0][1]
    out: dict[str, dict[str, Array]] = {}
    for group, arrays in like.groups().items():
        out[group] = {}
        for name, first in arrays.items():
            whole = (np if group == "counters" else xp).empty((rows, *first.shape[1:]), first.dtype)
            for where, part, _ in parts:
                whole[where] = getattr(part, group)[name]
            out[group][name] = whole
    longest = max(report.learned for _, _, report in parts)
    dtype = parts[0][2].loss.dtype
    loss, surprise = (xp.full((rows, longest), xp.nan, dtype) for _ in range(2))
    omega = xp.full((rows,), xp.nan, dtype)
    for where, _, report in parts:
        loss[where, : report.learned] = report.loss
        surprise[where, : report.learned] = report.surprise
        omega[where] = report.omega_loss
    return MemoryState(**out), LearningReport(loss, surprise, omega)
