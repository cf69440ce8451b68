"""What a memory knows: arrays only, apart from the configuration that gives them their meaning.

A state is never changed in place, unless it is donated (``Memory.observe``); ``Memory`` returns new ones. Leading axes
(sessions, layers) are the same in all arrays. Counters live on the host, because they steer: which slot of the ring is
next, whether a chunk is full.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory.backend import Array, namespace, quiet, to_host
from atlas_kit.memory.window import decode, encode

#: name -> what it counts, per session. ``seen`` and ``filled`` are tokens, in the order in which they came.
COUNTERS = {
    "seen": "tokens observed",
    "learned": "tokens learned (those that wait for their chunk to fill are seen and not learned)",
    "filled": "tokens in the window since it was last emptied",
    "averaged": "tokens in the mean that centring subtracts",
    "steps": "steps of the optimiser",
    "retried": "times that a chunk diverged and was tried again, a quarter as large",
    "rejected": "steps that diverged at every size and were skipped",
    "dropped": "tokens that were left out because a number of theirs was NaN or infinite",
}

GROUPS = ("parameters", "momentum", "window", "adaptation", "gate", "counters")
OPTIMIZER_GROUPS = ("momentum", "adaptation")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MemoryState:
    """The arrays of a memory, in six groups, each a flat mapping of names.

    Attributes
    ----------
    parameters
        M: one matrix per name, (*batch, rows, cols).
    momentum
        S, like the parameters; empty when theta is 0.
    window
        The ring buffer: ``key`` (*batch, capacity, d_key), the target's fields, and the rates of the last tokens.
        Token number t lies in slot ``t % capacity``; the fields' capacities differ.
    adaptation
        ``log_eta`` (*batch) and ``previous.*`` (what decay alone would have made of the parameters in the last chunk)
        when eta adapts, ``mean`` (*batch, d_key) when keys are centred.
    gate
        ``w`` (*batch, experts - 1, features) of the configuration's gate and ``rank`` (*batch, 3) of its ranking,
        if it has them.
    counters
        int64 on the host, (*batch); see ``COUNTERS``.
    """

    parameters: dict[str, Array]
    momentum: dict[str, Array]
    window: dict[str, Array]
    adaptation: dict[str, Array]
    gate: dict[str, Array]
    counters: dict[str, np.ndarray[Any, Any]]

    def __repr__(self) -> str:
        """Say what there is, in one line: the arrays themselves may be megabytes."""
        lead = len(self.batch)
        sizes = (f"{n} {' x '.join(map(str, a.shape[lead:]))}" for n, a in self.parameters.items())
        sessions = f" of {' x '.join(map(str, self.batch))} sessions" if lead else ""
        most = int(self.counters["seen"].max(initial=0))
        return f"<MemoryState{sessions}: {', '.join(sizes)}; {most:,} tokens seen; {self.nbytes:,} bytes>"

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading axes, () for a single memory."""
        return tuple(self.counters["seen"].shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(int(array.nbytes) for group in self.groups().values() for array in group.values())

    def groups(self) -> dict[str, dict[str, Array]]:
        """Return the six mappings by name."""
        return {name: getattr(self, name) for name in GROUPS}

    def map(self, function: Callable[[Array], Array]) -> MemoryState:
        """Return a state with ``function`` applied to every array."""
        return MemoryState(
            **{group: {n: function(a) for n, a in arrays.items()} for group, arrays in self.groups().items()}
        )

    def __getitem__(self, index: Any) -> MemoryState:
        """Select along the leading axes: ``state[3]``, ``state[2:5]``, ``state[[0, 7]]``."""
        if not self.batch:
            raise InvalidParamError("this state has no leading axes to select from", key="batch")
        return self.map(lambda array: array[index])


def stack(states: Sequence[MemoryState]) -> MemoryState:
    """Stack states of one configuration along a new first axis: sessions that advance together."""
    states = list(states)
    if not states:
        raise InvalidParamError("there is nothing to stack", key="states")
    for group, name in sorted(
        {(g, n) for state in states for g, arrays in state.groups().items() for n in arrays}
    ):
        if name not in getattr(states[0], group):
            raise InvalidParamError(f"the states differ in {group}.{name}", key=f"{group}.{name}")
    out: dict[str, dict[str, Array]] = {}
    for group, arrays in states[0].groups().items():
        out[group] = {}
        for name, first in arrays.items():
            rows = [getattr(state, group).get(name) for state in states]
            if any(row is None or row.shape != first.shape or row.dtype != first.dtype for row in rows):
                raise InvalidParamError(f"the states differ in {group}.{name}", key=f"{group}.{name}")
            out[group][name] = namespace(first).stack(rows)
    return MemoryState(**out)


def snapshot(
    state: MemoryState, *, optimizer: bool = True, window: bool = True, copy: bool = True
) -> dict[str, np.ndarray[Any, Any]]:
    """Return a flat mapping of host arrays, ``"group.name"`` to array, for ``Memory.restore``.

    Parameters
    ----------
    optimizer
        Without it, momentum and the adaptation of eta start anew after a restore. The mean of centred keys
        always stays: the features mean nothing without it.
    window
        Without it, the window is empty after a restore, and tokens that wait for their chunk are forgotten.
    copy
        False: arrays that are on the host already are the state's own, not to be written to.
    """
    out = {}
    for group, arrays in state.groups().items():
        for name, array in arrays.items():
            if group == "window" and not window:
                continue
            if group in OPTIMIZER_GROUPS and not optimizer and name != "mean":
                continue
            out[f"{group}.{name}"] = np.array(to_host(array)) if copy else np.asarray(to_host(array))
    if not window:
        out["counters.filled"] = np.zeros_like(out["counters.filled"])
        out["counters.seen"] = out["counters.learned"].copy()
    return out


@quiet  # what a narrower type cannot hold becomes infinite
def restore(like: MemoryState, arrays: Mapping[str, Array]) -> MemoryState:
    """Return the state that ``snapshot`` took, ``like`` being an empty state of the same configuration.

    What the snapshot was told to leave out comes from ``like``. The arrays may have additional leading axes, and
    numbers may be of another width than the configuration's, in the window also bfloat16.

    Raises
    ------
    InvalidParamError
        For missing or unknown arrays, and for shapes and types that do not fit the configuration.
    """
    found: dict[str, dict[str, Array]] = {group: {} for group in GROUPS}
    if not isinstance(arrays, Mapping):
        raise InvalidParamError("a snapshot is a mapping of arrays", key="arrays")
    for full, array in arrays.items():
        group, _, name = str(full).partition(".")
        if group not in found or not name:
            raise InvalidParamError(f"{full!r} is not an array of a memory", key=str(full))
        found[group][name] = array if hasattr(array, "dtype") else np.asarray(array)
    if "seen" not in found["counters"]:
        raise InvalidParamError("the snapshot has no counters", key="counters.seen")
    batch = tuple(found["counters"]["seen"].shape)
    optional = {*OPTIMIZER_GROUPS, "window"}
    out: dict[str, dict[str, Array]] = {}
    for group, expected in like.groups().items():
        unknown = sorted(set(found[group]) - set(expected))
        if unknown:
            raise InvalidParamError(
                f"the configuration has no {group}.{unknown[0]}",
                key=f"{group}.{unknown[0]}",
                hint="The snapshot belongs to another configuration.",
            )
        out[group] = {}
        for name, model in expected.items():
            full = f"{group}.{name}"
            shape = batch + model.shape[len(like.batch) :]
            value = found[group].get(name)
            if value is None:
                if group not in optional:
                    raise InvalidParamError(f"the snapshot has no {full}", key=full)
                if name.startswith("previous."):  # as if there had been no step yet
                    model = out["parameters"][name.removeprefix("previous.")]
                    out[group][name] = model.copy()
                    continue
                row = model[(0,) * len(like.batch)]
                out[group][name] = namespace(model).broadcast_to(row, shape).copy()
                continue
            if tuple(value.shape) != shape:
                raise InvalidParamError(
                    f"{full} has the shape {tuple(value.shape)}, and the configuration asks for {shape}",
                    key=full,
                    hint="The snapshot belongs to another configuration.",
                )
            out[group][name] = _converted(value, model, full)
    return MemoryState(**out)


def _converted(value: Array, like: Array, name: str) -> Array:
    """Return a copy of ``value`` in the type and library of ``like``."""
    xp = namespace(like)
    kinds = value.dtype.kind, like.dtype.kind
    # the only numbers of 16 bits without a sign that a state holds are bfloat16's bits
    if kinds == ("u", "f") and value.dtype == np.uint16 and name.startswith("window."):
        value = decode(value, "bfloat16", str(like.dtype))
    elif kinds == ("f", "u"):
        value = encode(value, "bfloat16")
    elif kinds[0] != kinds[1] and (kinds[0] not in "iu" or kinds[1] not in "iu" or like.dtype == np.uint16):
        raise InvalidParamError(f"{name} holds {value.dtype}, and {like.dtype} was expected", key=name)
    return xp.array(to_host(value) if xp is np else value, dtype=like.dtype)
