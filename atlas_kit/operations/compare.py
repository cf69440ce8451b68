"""Two memories side by side, in numbers: their matrices, spectra, windows and settings, as far as they are alike.

A ``Side`` is what there is to compare about one memory, wherever it came from; what two sides do not share is said in
a sentence, and the rest is compared all the same. Entries of files are ``diff.py``'s; behaviour needs a model and is
``operations/behaviour.py``'s.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_kit.codecs.json_text import plain
from atlas_kit.codecs.numbers import Array
from atlas_kit.memory import MemoryConfig, MemoryState
from atlas_kit.memory.arrays import summary
from atlas_kit.memory.backend import to_host
from atlas_kit.memory.modules import WhitenedMatrix
from atlas_kit.memory.statistics import MatrixStatistics, matrix_distance, matrix_statistics
from atlas_kit.memory.window import latest
from atlas_kit.operations.diff import json_changes
from atlas_kit.operations.inputs import open_given
from atlas_kit.storage.given import Given, name_of
from atlas_kit.storage.keys import Keys

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import Entry, MemoryFile


#: Numbers in the tensor entries of one file that are taken for matrices, where it holds no learned memory.
MOST_NUMBERS = 1 << 26


@dataclass(frozen=True, eq=False)
class Window:
    """What an exact window holds, oldest first: stored keys (slots, d_key), and tokens (slots,) if it keeps tokens."""

    keys: Array
    tokens: Array | None

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, eq=False)
class Side:
    """One of two memories.

    Attributes
    ----------
    label
        What to call it.
    matrices
        Name -> (rows, columns), on the host.
    facts
        Settings, configuration and counters as JSON values.
    config
        Of the memory, where it is known: what its matrices mean.
    window
        None where there is none, or the states are several.
    path
        The file that it was read from.
    model
        64 hexadecimal digits of the model that it belongs to, or None.
    kind
        In a few words.
    notes
        Sentences about what was left out.
    """

    label: str
    matrices: Mapping[str, Array]
    facts: Mapping[str, Any] = field(default_factory=dict)
    config: MemoryConfig | None = None
    window: Window | None = None
    path: str | None = None
    model: str | None = None
    kind: str = ""
    notes: tuple[str, ...] = ()


# --- from what a side is made ---------------------------------------------------------------------------


def side_of_state(
    state: MemoryState,
    config: MemoryConfig | None = None,
    *,
    label: str,
    facts: Mapping[str, Any] | None = None,
    model: str | None = None,
    copy: bool = True,
) -> Side:
    """Return what there is to compare about a state; ``config`` is the configuration that it belongs to.

    ``copy``: False where nobody writes into the state's arrays.
    """
    matrices = {
        name + where: matrix
        for name, array in state.parameters.items()
        for where, matrix in _each((np.array if copy else np.asarray)(to_host(array)), len(state.batch))
    }
    counters = {name: plain(value) for name, value in state.counters.items()}
    known: dict[str, Any] = {} if config is None else {"config": config.to_json()}
    if (
        not state.batch
    ):  # what the blend has learned about whom to trust; as float32 it would have more digits again
        gates = {
            name: to_host(array).astype(np.float64).round(4).tolist() for name, array in state.gate.items()
        }
        known.update({f"gate.{name}": value for name, value in gates.items()})
    return Side(
        label,
        matrices,
        {**known, **(facts or {}), "counters": counters},
        config,
        _window(state, config),
        model=model,
        kind="" if config is None else summary(config),
    )


def _each(array: Array, lead: int) -> list[tuple[str, Array]]:
    """Return the matrices of (*batch, rows, columns) with their places, such as ``[0, 2]``."""
    if not lead:
        return [("", array)]
    return [(str(list(at)), array[at]) for at in np.ndindex(array.shape[:lead])]


def _window(state: MemoryState, config: MemoryConfig | None) -> Window | None:
    if state.batch or config is None or not config.window_size:
        return None
    count = min(int(state.counters["filled"]), config.window_size)
    names = {"key", "token"} & state.window.keys()
    ring: dict[str, Array] = {name: to_host(state.window[name])[None] for name in names}
    kept = latest(ring, count, np.atleast_1d(state.counters["seen"]))
    return Window(kept["key"][0], kept["token"][0] if "token" in kept else None)


def side_of_file(path: Given, *, label: str | None = None, keys: Keys | None = None) -> Side:
    """Return what there is to compare about a file: its learned memory, or else its tensors as matrices.

    Raises
    ------
    AtlasError
        The file cannot be read.
    """
    name = name_of(path)
    label = label or os.path.basename(name)
    keys = Keys() if keys is None else keys
    with open_given(path, keys) as opened:
        if opened.kind == "gguf":
            return Side(
                label, {}, path=name, kind="GGUF model", notes=(f"{label} is a model, not a memory.",)
            )
        if opened.kind == "atlas":
            from atlas_kit.persistence.snapshot import find_description

            if find_description(opened.memory) is not None:
                return _side_of_memory(path, label, keys)
        return _side_of_entries(opened.memory, label, name)


def _side_of_memory(path: Given, label: str, keys: Keys) -> Side:
    from atlas_kit.persistence.snapshot import load_memory

    loaded = load_memory(path, backend="numpy", **keys.options())
    description = loaded.description
    runtime = description.metadata.get("runtime")
    runtime = runtime if isinstance(runtime, dict) else {}
    facts = {name: runtime[name] for name in ("settings", "model") if name in runtime}
    facts["metadata"] = {name: value for name, value in description.metadata.items() if name != "runtime"}
    facts["rounded to"] = description.dtype
    sides = [
        side_of_state(state, config, label=label)
        for state, config in zip(loaded.states, description.configs, strict=True)
    ]
    one = len(sides) == 1
    for layer, side in enumerate(sides):
        facts.update(side.facts if one else {f"layer {layer}": dict(side.facts)})
    return Side(
        label,
        {
            name if one else f"layer {n}: {name}": m
            for n, s in enumerate(sides)
            for name, m in s.matrices.items()
        },
        facts,
        sides[0].config if one else None,
        sides[0].window if one else None,
        name_of(path),
        description.model_hash,
        description.summary,
    )


def _side_of_entries(file: MemoryFile, label: str, path: str) -> Side:
    matrices: dict[str, Array] = {}
    notes, room = [], MOST_NUMBERS
    for entry in file.entries():
        if not entry.dtype_id or not entry.shape:
            continue
        count = int(np.prod(entry.shape))
        if count > room:
            notes.append(f'The tensor "{entry.key}" of {label} is too large to be shown here.')
            continue
        room -= count
        matrices.update(_tensor(entry))
    if not matrices and not notes:
        notes.append(f"{label} holds no learned memory and no tensors, only entries.")
    model = file.model_hash.hex() if any(file.model_hash) else None
    return Side(label, matrices, {}, path=path, model=model, kind=f"{len(file)} entries", notes=tuple(notes))


def _tensor(entry: Entry) -> dict[str, Array]:
    """Return a tensor entry as matrices, (1, n) for a vector; nothing for numbers without an order."""
    from atlas_kit.operations.tensor_numbers import entry_numbers

    shape = entry.shape or ()
    numbers = np.concatenate([np.asarray(piece) for piece in entry_numbers(entry)] or [np.empty(0)])
    if numbers.size != int(np.prod(shape)) or not numbers.size:  # complex
        return {}
    array = numbers.reshape(shape if len(shape) > 1 else (1, -1))
    return {entry.key + where: matrix for where, matrix in _each(array, array.ndim - 2)}


# --- matrices -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MatrixRow:
    """How one matrix differs; None where it is on one side only, or the shapes differ.

    ``max_a``, ``max_b`` and ``max_difference`` are the greatest absolute values of A, B and B - A; ``relative`` is
    ||B - A|| / ||A||.
    """

    name: str
    shape_a: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None
    max_a: float | None
    max_b: float | None
    max_difference: float | None
    relative: float | None
    cosine: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON-ready data."""
        return {name: plain(value) for name, value in vars(self).items()}


def matrix_names(a: Side, b: Side) -> list[str]:
    """Return the names of all matrices: those of both sides first."""
    return [n for n in a.matrices if n in b.matrices] + [
        name for one, other in ((a, b), (b, a)) for name in one.matrices if name not in other.matrices
    ]


def compare_matrices(a: Side, b: Side) -> list[MatrixRow]:
    """Compare all matrices by name. Cheap: no decomposition is made."""
    return [_matrix_row(name, a.matrices.get(name), b.matrices.get(name)) for name in matrix_names(a, b)]


def _matrix_row(name: str, x: Array | None, y: Array | None) -> MatrixRow:
    shape_a, shape_b = (None if m is None else tuple(m.shape) for m in (x, y))
    max_a, max_b = (None if m is None else peak(m) for m in (x, y))
    if x is None or y is None or shape_a != shape_b:
        return MatrixRow(name, shape_a, shape_b, max_a, max_b, None, None, None)
    found = matrix_distance(x, y)
    apart = float(found.max_abs), float(found.relative), float(found.cosine)
    return MatrixRow(name, shape_a, shape_b, max_a, max_b, *apart)


def peak(matrix: Array) -> float:
    """Return the greatest absolute value, NaN if there is one."""
    return float(np.abs(matrix.astype(np.float64)).max(initial=0.0))


def difference(a: Side, b: Side, name: str) -> Array | None:
    """Return B - A of one matrix, at least float32; None where there is none."""
    x, y = a.matrices.get(name), b.matrices.get(name)
    if x is None or y is None or x.shape != y.shape:
        return None
    wide = np.result_type(x.dtype, y.dtype, np.float32)
    with np.errstate(all="ignore"):
        return np.asarray(y.astype(wide) - x.astype(wide))


def spectrum(matrix: Array) -> MatrixStatistics | None:
    """Return singular values and effective rank; None for a matrix with numbers that are not finite."""
    if not np.isfinite(matrix).all() or not matrix.size:
        return None
    return matrix_statistics(matrix.astype(np.promote_types(matrix.dtype, np.float32)))


# --- windows --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WindowDifference:
    """What two windows share.

    Attributes
    ----------
    slots_a, slots_b, shared
        Slots of each, and how many hold the same key and token (all bits alike) in both.
    tokens_shared
        How many tokens occur in both, each as often as in the window where it occurs less; None without tokens.
    tokens
        (token, times in A, times in B), greatest difference first.
    """

    slots_a: int
    slots_b: int
    shared: int
    tokens_shared: int | None
    tokens: tuple[tuple[int, int, int], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the difference as JSON-ready data."""
        return {name: plain(value) for name, value in vars(self).items()}


def compare_windows(a: Window, b: Window, most: int = 40) -> WindowDifference:
    """Compare what two windows hold; ``most``: of how many tokens to tell."""
    shared = sum((_slots(a) & _slots(b)).values())
    if a.tokens is None or b.tokens is None:
        return WindowDifference(len(a), len(b), shared, None, ())
    x, y = Counter(a.tokens.tolist()), Counter(b.tokens.tolist())
    rows = [(token, x[token], y[token]) for token in x.keys() | y.keys() if x[token] != y[token]]
    rows.sort(key=lambda row: (-abs(row[1] - row[2]), row[0]))
    return WindowDifference(len(a), len(b), shared, sum((x & y).values()), tuple(rows[:most]))


def _slots(window: Window) -> Counter[bytes]:
    tokens = np.zeros(len(window), np.int64) if window.tokens is None else window.tokens.astype(np.int64)
    return Counter(
        key.tobytes() + int(token).to_bytes(8, "little", signed=True)
        for key, token in zip(np.ascontiguousarray(window.keys), tokens, strict=True)
    )


# --- settings, and what cannot be compared --------------------------------------------------------------


def compare_facts(a: Side, b: Side) -> list[tuple[str, str, Any, Any]]:
    """Return (path, added | removed | changed, in A, in B) for settings, configuration and counters."""
    return [
        (path.removeprefix("$."), what, before, after)
        for path, what, before, after in json_changes(plain(dict(a.facts)), plain(dict(b.facts)))
    ]


def not_comparable(a: Side, b: Side) -> list[str]:
    """Return a sentence for everything that keeps the two from being compared number by number."""
    found = [*a.notes, *(note for note in b.notes if note not in a.notes)]
    if a.model and b.model and a.model != b.model:
        found.append(
            f"They belong to different models ({a.model[:12]} and {b.model[:12]}): the same position does not "
            "mean the same thing."
        )
    for side in (a, b):
        if not side.matrices and not side.notes:
            found.append(f"{side.label} has no learned matrix.")
    for name in matrix_names(a, b):
        x, y = a.matrices.get(name), b.matrices.get(name)
        if x is None or y is None:
            if a.matrices and b.matrices:
                found.append(f"{name} is only in {(b if x is None else a).label}.")
        elif x.shape != y.shape:
            found.append(
                f"{name} is {_shape(x)} in {a.label} and {_shape(y)} in {b.label}: there is no difference to show, "
                "but their spectra can be compared."
            )
    if a.config is not None and b.config is not None:
        found += _other_meaning(a.config, b.config)
    return found + _whitening(a, b)


def _other_meaning(a: MemoryConfig, b: MemoryConfig) -> list[str]:
    """Say which parts of two configurations decide what a matrix means and differ."""
    parts = [n for n in ("features", "module", "objective", "seed") if getattr(a, n) != getattr(b, n)]
    if not parts:
        return []
    return [f"They differ in {' and '.join(parts)}: equal numbers would not mean the same thing."]


def _whitening(a: Side, b: Side) -> list[str]:
    """Say of memories on whitened states which have learned nothing yet, and whether their rows mean the same."""
    kept = [
        (side, side.config.module)
        for side in (a, b)
        if side.config is not None
        and isinstance(side.config.module, WhitenedMatrix)
        and side.config.eta != 0
        and {"W", "P"} <= side.matrices.keys()
    ]
    empty = [
        f"{side.label} has learned nothing yet: the first {module.after:,} tokens only say how states are whitened."
        for side, module in kept
        if not side.matrices["W"].any()
    ]
    if empty or len(kept) < 2 or np.array_equal(a.matrices["P"], b.matrices["P"]):
        return list(dict.fromkeys(empty))
    return ["Each is whitened by a text of its own: the same row of W is another direction in the other."]


def _shape(matrix: Array) -> str:
    return " x ".join(f"{n:,}" for n in matrix.shape)
