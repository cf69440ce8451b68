"""What a saved memory consists of: the fields of its description, and its arrays with their types and shapes.

One table of each, which saving, loading and the specification (``formats/atlas-memory.md``) share. Knows configurations
and no files: ``layout`` says what arrays a configuration asks for without making any of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from atlas_kit.memory import Identity, MemoryConfig, Polynomial
from atlas_kit.memory.state import COUNTERS

# fmt: off


@dataclass(frozen=True)
class ArrayRow:
    """One array of a layer. ``*`` stands for the name of a parameter.

    ``type`` is ``compute`` (the configuration's dtype), ``stored`` (that of its window) or a dtype's name; ``when`` is
    what the configuration must have for the array to be there; ``large`` ones may be rounded.
    """

    name: str
    type: str
    shape: tuple[str, ...]
    when: str
    large: bool
    note: str


_MATRIX = ("rows", "columns")
ARRAYS = (
    ArrayRow("parameters.*",          "compute", _MATRIX,             "",           True,  "the memory itself, M"),
    ArrayRow("momentum.*",            "compute", _MATRIX,             "momentum",   True,  "S, like M"),
    ArrayRow("window.key",            "stored",  ("window", "d_key"), "",           True,  "projected keys"),
    ArrayRow("window.valid",          "uint8",   ("window",),         "",           False, "0: none, or left out"),
    ArrayRow("window.value",          "stored",  ("window", "d_v"),   "values",     True,  "what a key stands for"),
    ArrayRow("window.token",          "int32",   ("window",),         "tokens",     False, "the token that came next"),
    ArrayRow("window.hidden",         "compute", ("recall", "d_v"),   "tokens",     True,  "the model's hidden state"),
    ArrayRow("window.lse",            "compute", ("recall",),         "tokens",     False, "the model's log-sum-exp"),
    ArrayRow("window.weight",         "compute", ("recall",),         "",           False, "weight of a token"),
    ArrayRow("window.alpha",          "compute", ("recall",),         "",           False, "decay at a token"),
    ArrayRow("window.theta",          "compute", ("recall",),         "",           False, "momentum rate at a token"),
    ArrayRow("window.eta",            "compute", ("recall",),         "",           False, "step size at a token"),
    ArrayRow("adaptation.log_eta",    "compute", (),                  "adaptation", False, "log of the factor on eta"),
    ArrayRow("adaptation.previous.*", "compute", _MATRIX,             "adaptation", False, "M as decay alone left it"),
    ArrayRow("adaptation.mean",       "compute", ("d_key",),          "centre",     False, "what centring subtracts"),
    ArrayRow("gate.w",                "compute", ("experts - 1", "blend"), "gate",      False, "the learned blend"),
    ArrayRow("gate.rank",             "compute", ("ranking",),        "ranking",    False, "the learned ranking"),
    ArrayRow("gate.metric",           "compute", ("d_key", "d_key"),  "metric",     False, "what turns queries"),
    *(ArrayRow(f"counters.{name}",    "int64",   (),                  "",           False, note)
      for name, note in COUNTERS.items()),
)
# fmt: on

#: What each condition of a row asks of a configuration.
CONDITIONS = {
    "momentum": "theta is a schedule or not 0",
    "values": "the objective compares with values (`l2`, `dot-product`)",
    "tokens": "the objective is `cross-entropy`",
    "adaptation": "eta_adaptation is not 0",
    "centre": "features.centre is true",
    "gate": "gate is not null",
    "ranking": "ranking is not null",
    "metric": "ranking.metric is not 0",
}
#: What each symbol in a shape stands for.
SYMBOLS = {
    "window": "the larger of window_size and recall",
    "recall": "omega_window - 1 + chunk_size",
    "d_key": "features.projection, or d_k without one",
    "d_v": "d_v",
    "experts - 1": "of gate.experts",
    "blend": "gate.features",
    "ranking": "3: cosine, match, recency",
    "rows, columns": "of each parameter, by module and features",
}


@dataclass(frozen=True)
class Expected:
    """An array that a configuration asks for, without the leading axes; ``dtype`` is the file format's name."""

    dtype: str
    shape: tuple[int, ...]
    row: ArrayRow

    def nbytes(self, batch: tuple[int, ...]) -> int:
        """Return what the array takes in memory."""
        return math.prod(batch + self.shape) * _ITEM[self.dtype]


_ITEM = {"uint8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "int32": 4, "int64": 8}


def layout(config: MemoryConfig) -> dict[str, Expected]:
    """Return what arrays a state of ``config`` has: ``"group.name"`` -> type and shape. Nothing is allocated."""
    parameters = config.module.shapes(config.d_phi, config.d_v)
    fields = config.objective.fields(config.d_v)
    has = {
        "": True,
        "momentum": config.has_momentum,
        "values": "value" in fields,
        "tokens": "token" in fields,
        "adaptation": bool(config.eta_adaptation),
        "centre": config.features.centre,
        "gate": config.gate is not None,
        "ranking": config.ranking is not None,
        "metric": config.ranking is not None and config.ranking.metric > 0,
    }
    types = {"compute": config.dtype, "stored": config.stored_dtype}
    sizes = {
        "window": max(config.window_size, config.recall),
        "recall": config.recall,
        "d_key": config.d_key,
        "d_v": config.d_v,
        "experts - 1": config.gate.experts - 1 if config.gate else 0,
        "blend": config.gate.features if config.gate else 0,
        "ranking": len(config.ranking.start) if config.ranking else 0,
    }
    out = {}
    for row in ARRAYS:
        if not has[row.when]:
            continue
        dtype = types.get(row.type, row.type)
        if row.shape == _MATRIX:
            for name, shape in parameters.items():
                out[row.name.replace("*", name)] = Expected(dtype, shape, row)
        else:
            out[row.name] = Expected(dtype, tuple(sizes[symbol] for symbol in row.shape), row)
    return out


def constants_nbytes(config: MemoryConfig) -> int:
    """Return an upper bound of what the fixed random constants take, which no array of the file speaks for."""
    count = config.d_k * config.d_key if config.features.projection is not None else 0
    if not isinstance(config.features.map, (Identity, Polynomial)):
        count += (config.d_key + 2) * config.d_phi
    return 8 * count  # they are drawn in float64


def summary(config: MemoryConfig) -> str:
    """Return a configuration in a few words: ``matrix of 2,145 x 192, polynomial degree 2``."""
    shapes = config.module.shapes(config.d_phi, config.d_v)
    if len(shapes) == 1:
        ((rows, columns),) = shapes.values()
        what = f"{config.module.kind} of {rows:,} x {columns:,}"
    elif config.module.kind == "whitened-matrix":
        what = f"matrix on whitened states, {sum(map(math.prod, shapes.values())):,} numbers"
    else:
        what = f"{config.module.kind} of {sum(map(math.prod, shapes.values())):,} numbers"
    feature_map: Any = config.features.map
    degree = f" degree {feature_map.degree}" if isinstance(feature_map, Polynomial) else ""
    return f"{what}, {feature_map.kind}{degree}"
