"""Memories to try: what one is made of, how it learns, and more and more pairs until recall breaks.

The storing and measuring is done by ``capacity.py``; here are settings with names, as sliders and lessons need them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory._checks import is_whole
from atlas_kit.memory.capacity import Recall, Stored, converge, free_numbers, random_pairs, stream
from atlas_kit.memory.config import MemoryConfig
from atlas_kit.memory.features import Features, Identity, Polynomial
from atlas_kit.memory.modules import GatedMLP, Matrix, Module, ResidualMLP

#: What a memory can be made of.
KINDS = ("linear", "polynomial", "deep", "gated")
TRAININGS = ("one pass", "converged")
MOST_PAIRS, MOST_FEATURES = 4096, 10_000  # a trial is to take seconds
_BOUNDS = {"d": (2, 256), "degree": (1, 8), "pairs": (0, MOST_PAIRS), "streams": (0, 64)}


@dataclasses.dataclass(frozen=True)
class Trial:
    """A memory that stores more and more pairs; keys and values have the width ``d``.

    Parameters
    ----------
    kind
        ``linear`` and ``polynomial`` are a matrix without and with features of ``degree``, weighted as in ``presets``;
        ``deep`` and ``gated`` an MLP of width 4 d without and with a gate (equation 43).
    d
        d_k and d_v.
    degree
        p of equation 5, for ``polynomial``.
    window
        c of equation 9: 1 is the Delta rule, more the Omega rule.
    muon
        Steps by ``NewtonSchulz_5`` of the gradient (equation 33).
    training
        ``one pass``: every pair is shown once, by that rule; or ``converged``, where all are shown again and again and
        the window is everything.
    pairs
        How many at most; 0 chooses a number at which recall has broken.
    streams
        How many streams of random pairs the recall is a mean of; 0 for four in one pass, one for ``converged``.
    eta
        The step in one pass; None for one that recalls about the most, whatever the width and the rule.
    seed
        Of pairs and memory.

    Raises
    ------
    InvalidParamError
        For a setting out of range.

    Examples
    --------
    >>> trial = Trial("linear", d=8, training="converged", pairs=8)
    >>> trial.curve()[-1].accuracy  # a matrix holds d_k pairs
    1.0
    """

    kind: str = "linear"
    d: int = 16
    degree: int = 2
    window: int = 1
    muon: bool = False
    training: str = "one pass"
    pairs: int = 0
    streams: int = 0
    eta: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("kind", KINDS), ("training", TRAININGS)):
            if getattr(self, name) not in choices:
                raise InvalidParamError(
                    f"{name} is {getattr(self, name)!r}",
                    key=name,
                    hint=f"Choose one of: {', '.join(choices)}.",
                )
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if not is_whole(value, least) or value > most:
                raise InvalidParamError(
                    f"{name} is {value!r}, and must be a whole number from {least} to {most:,}", key=name
                )
        if self.config.d_phi > MOST_FEATURES:
            raise InvalidParamError(
                f"degree {self.degree} of {self.d} numbers makes {self.config.d_phi:,} features",
                key="degree",
                hint=f"The limit of a trial is {MOST_FEATURES:,}.",
            )

    @functools.cached_property
    def config(self) -> MemoryConfig:
        """The memory."""
        features, module = self._parts()
        config = MemoryConfig(
            self.d, self.d, features, module, omega_window=self.window, use_muon=self.muon,
            guard=not isinstance(module, Matrix), seed=self.seed,
        )  # fmt: skip
        return config.replace(eta=_eta(config) if self.eta is None else self.eta)

    def _parts(self) -> tuple[Features, Module]:
        """Return features and module. As in the presets, the highest degree weighs most: it tells keys apart."""
        if self.kind == "polynomial":
            weights = (0.0, *[0.5] * (self.degree - 1), 1.0)
            return Features(Polynomial(self.degree, weights, constant=False), normalize=True), Matrix()
        modules: dict[str, Module] = {
            "linear": Matrix(), "deep": ResidualMLP(residual=False), "gated": GatedMLP(residual=False)
        }  # fmt: skip
        return Features(Identity()), modules[self.kind]

    @property
    def label(self) -> str:
        """The trial in a few words, with the names of ``TRIALS``.

        >>> Trial("polynomial", window=16, muon=True).label
        'degree 2, Omega rule c = 16, Muon, d = 16'
        """
        named = {"linear": "matrix", "polynomial": f"degree {self.degree}"}
        kind = named.get(self.kind, self.kind)
        rule = "Delta rule" if self.window == 1 else f"Omega rule c = {self.window}"
        learning = rule if self.training == "one pass" else "converged"
        return ", ".join([kind, learning, *["Muon"] * self.muon, f"d = {self.d}"])

    @property
    def free_numbers(self) -> float:
        """How many pairs the parameters allow: see ``capacity.free_numbers``."""
        return free_numbers(self.config)

    @property
    def most(self) -> int:
        """How many pairs are stored in the end."""
        if self.training == "converged":
            likely = round(2.5 * self.free_numbers)
        else:
            likely = (4 if self.kind == "linear" else 12) * self.d
        return self.pairs or min(likely, MOST_PAIRS)

    @property
    def counts(self) -> list[int]:
        """The numbers of pairs at which recall is measured, evenly over their logarithm."""
        first, points = (self.most / 8, 10) if self.training == "converged" else (2, 48)
        spread = np.geomspace(min(max(2, first), self.most), self.most, points)
        return [int(n) for n in np.unique(spread.round().astype(int))]

    def run(self) -> Iterator[Stored]:
        """Store more and more pairs. What is ``final`` is to be measured; the rest shows the way there."""
        streams = self.streams or (1 if self.training == "converged" else 4)
        pairs = [random_pairs(self.most, self.d, self.d, self.seed + stream) for stream in range(streams)]
        keys, values = (np.stack(part) for part in zip(*pairs, strict=True))
        if self.training == "one pass":
            yield from stream(self.config, keys, values, self.counts)
            return
        for n in self.counts:
            yield from converge(self.config, keys[:, :n], values[:, :n])

    def curve(self) -> list[Recall]:
        """Run it and return the recall at each number of pairs."""
        return [stored.recall() for stored in self.run() if stored.final]


def _eta(config: MemoryConfig) -> float:
    """Return a step size: a step changes a read by eta |h|^2, one of Muon by eta |h|, with the hidden layer h.

    An MLP that looks back wants twice as much: it starts slowly, because its output matrix is zero.
    """
    if isinstance(config.module, Matrix):
        return 0.4 if config.use_muon else 0.5
    units = config.module.shapes(config.d_phi, config.d_v)["W_out"][0]
    share = 0.4 / math.sqrt(units) if config.use_muon else 0.5 / units
    return share if config.omega_window == 1 else 2 * share


#: From the rule of linear Transformers' successors to the paper's, one change at a time; then what theory is about.
TRIALS = {
    "Matrix, Delta rule": Trial(),
    "Matrix, Omega rule": Trial(window=16),
    "Degree 2, Delta rule": Trial("polynomial"),
    "Degree 2, Omega rule": Trial("polynomial", window=32),
    "Degree 3, Omega rule": Trial("polynomial", degree=3, window=32),
    "Deep, Omega rule": Trial("deep", window=32),
    "Deep, Omega rule, Muon": Trial("deep", window=32, muon=True),
    "Gated, Omega rule, Muon": Trial("gated", window=32, muon=True),
    "Matrix, converged": Trial(training="converged"),
    "Degree 2, converged": Trial("polynomial", training="converged"),
    "Deep, converged, Muon": Trial("deep", muon=True, training="converged"),
}
