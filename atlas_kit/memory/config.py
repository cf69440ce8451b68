"""What a memory is: sizes, features, module, objective and update rule, validated and serialisable.

A configuration holds no arrays. Symbols are the paper's (arXiv 2505.23735): decay alpha, momentum theta, step eta
(equations 32 and 33), window length c and its weights gamma (equation 9).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import schedules
from atlas_kit.memory._checks import is_number, is_whole
from atlas_kit.memory.features import FEATURE_MAPS, Features
from atlas_kit.memory.gate import Gate
from atlas_kit.memory.modules import MODULES, Matrix, Module, WhitenedMatrix
from atlas_kit.memory.objectives import L2, OBJECTIVES, DotProduct, Objective
from atlas_kit.memory.ranking import Ranking
from atlas_kit.memory.schedules import Rate, Schedule
from atlas_kit.memory.window import STORAGE

STEPS = ("token", "chunk")
DTYPES = ("float32", "float64")
RATES = ("alpha", "theta", "eta")
MOST_ETA = 1e30  # float32 holds it
MOST_RETRIES = 16  # a step is a quarter as large each time; 4^16 is beyond float32's precision
#: What a setting that is a specification may be an instance of.
SPECIFICATIONS: dict[str, tuple[type, ...]] = {
    "features": (Features,),
    "module": tuple(MODULES.values()),
    "objective": tuple(OBJECTIVES.values()),
}


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """Settings of a memory; all of them, so that a configuration and a snapshot are enough to go on.

    Parameters
    ----------
    d_k, d_v
        Width of a key or query, and of what is read.
    features
        phi: projection, centring and feature map (equation 5).
    module
        M: ``Matrix``, ``ResidualMLP`` or ``GatedMLP`` (equation 43).
    objective
        The inner loss of one token: ``L2``, ``DotProduct`` or ``CrossEntropy``.
    alpha, theta, eta
        Decay of the parameters, momentum, and step size: numbers, or schedules over the token number. All three
        may also be given per token to ``Memory.observe``. The factor 2 of the squared error's gradient is part
        of eta.
    omega_window
        c of equation 9: how many of the last tokens a gradient looks at. 1 is the Delta rule; as many as there
        are tokens is the global rule.
    gamma
        Weight of a token of age a in the window: ``gamma ** a``. 1 weighs all alike.
    use_muon
        Replace the momentum S by ``NewtonSchulz_5(S)`` in the step (equation 33).
    chunk_size
        Tokens whose gradients are taken at the same parameters (equations 34, 39 to 41). 1 is the exact
        sequential form.
    step
        ``"token"``: the optimiser steps at every token, as in the paper. ``"chunk"``: once per chunk, with
        the rates of the chunk's last token; much cheaper. ``omega_window`` must cover the chunk.
    window_size
        How many (key, target) pairs the exact cache keeps; 0 keeps only what the rule itself needs.
    window_dtype
        How the window stores keys and values: ``float16`` and ``bfloat16`` halve it. None: like ``dtype``.
    gate
        The learned blend of several predictions that the state carries along, for ``Memory.blend``; None: none.
    ranking
        Learned weights by which the window's slots are ranked, which the state carries along; None: none.
    warmup_tokens
        The first tokens of a stream fill the window (and the mean that centring subtracts) without a step.
    eta_adaptation
        Rate of the online adaptation of eta (0: off): after each chunk, log eta moves by this much times the cosine
        between what the last chunk's steps changed, decay apart, and what tokens they had not seen asked for. It
        looks one chunk back; with much momentum it finds a smaller eta than the best.
    eta_bound
        Adaptation keeps eta within this factor of where it started.
    max_norm
        A step that would take a parameter matrix beyond this Frobenius norm has diverged.
    guard
        Also evaluate a chunk's windows again behind it: steps that raise their loss by more than a tenth have
        diverged.
        Costs one more forward pass; what deep memories need.
    retries
        How often a diverged step is retried, each time a quarter as large, before it is skipped.
    strict
        Raise ``DivergedError`` instead of retrying.
    dtype
        ``float32`` to compute with, ``float64`` to check with.
    seed
        Of the fixed random directions and of the first parameters.

    Raises
    ------
    InvalidParamError
        For a setting out of range or settings that do not fit together; ``key`` names it.
    """

    d_k: int
    d_v: int
    features: Features = Features()
    module: Module = Matrix()
    objective: Objective = L2()
    alpha: Rate = 1.0
    theta: Rate = 0.0
    eta: Rate = 0.1
    omega_window: int = 1
    gamma: float = 1.0
    use_muon: bool = False
    chunk_size: int = 1
    step: str = "token"
    window_size: int = 0
    window_dtype: str | None = None
    gate: Gate | None = None
    ranking: Ranking | None = None
    warmup_tokens: int = 0
    eta_adaptation: float = 0.0
    eta_bound: float = 16.0
    max_norm: float = 1e4
    guard: bool = False
    retries: int = 3
    strict: bool = False
    dtype: str = "float32"
    seed: int = 0

    version: ClassVar[int] = 1  #: of the JSON form

    def __post_init__(self) -> None:
        for name, kinds in SPECIFICATIONS.items():
            if type(getattr(self, name)) not in kinds:
                raise InvalidParamError(
                    f"{name} is {getattr(self, name)!r}",
                    key=name,
                    hint=f"Give an object of one of: {', '.join(kind.__name__ for kind in kinds)}.",
                )
        for name in ("d_k", "d_v", "omega_window", "chunk_size"):
            _at_least(self, name, 1)
        for name in ("window_size", "warmup_tokens", "seed"):
            _at_least(self, name, 0)
        if not is_whole(self.retries) or self.retries > MOST_RETRIES:
            raise InvalidParamError(
                f"retries is {self.retries!r}, and must be a whole number from 0 to {MOST_RETRIES}",
                key="retries",
            )
        _one_of(self, "step", STEPS)
        if self.window_dtype is not None:
            _one_of(self, "window_dtype", tuple(STORAGE))
        _one_of(self, "dtype", DTYPES)
        for name in RATES:
            _rate(self, name)
        _number(self, "gamma", 0.0, 1.0)
        _number(self, "eta_adaptation", 0.0, 1.0)
        _number(self, "eta_bound", 1.0, 1e6)
        _number(self, "max_norm", 0.0, 1e30)
        if self.features.centre and self.warmup_tokens == 0:
            raise InvalidParamError(
                "centring needs tokens to take the mean of", key="warmup_tokens", hint="Try warmup_tokens=64."
            )
        for name in ("use_muon", "guard", "strict"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidParamError(
                    f"{name} is {getattr(self, name)!r}, and must be true or false", key=name
                )
        for name in ("guard", "eta_adaptation"):
            if getattr(self, name) and isinstance(self.objective, DotProduct):
                raise InvalidParamError(
                    f"the dot-product loss has no least value, which {name} needs", key=name
                )
        if self.step == "chunk" and self.omega_window < self.chunk_size:
            raise InvalidParamError(
                f"a step per {self.chunk_size} tokens that looks at {self.omega_window} would leave tokens out",
                key="omega_window",
                hint=f"Try omega_window={self.chunk_size}.",
            )
        if self.gate is not None and not isinstance(self.gate, Gate):
            raise InvalidParamError(f"{self.gate!r} is not a Gate", key="gate")
        if self.ranking is not None and not isinstance(self.ranking, Ranking):
            raise InvalidParamError(f"{self.ranking!r} is not a Ranking", key="ranking")
        if self.ranking is not None and self.ranking.metric and not isinstance(self.module, WhitenedMatrix):
            raise InvalidParamError("a metric is learned on whitened states only", key="ranking")
        self.features.d_phi(self.d_k)  # raises for a feature map that cannot be built

    @property
    def metric_width(self) -> int:
        """How many numbers of a key a metric is learned for (see ``Ranking``); 0: none is."""
        return self.d_key if self.ranking is not None and self.ranking.metric else 0

    @property
    def d_phi(self) -> int:
        """Number of features of one key."""
        return self.features.d_phi(self.d_k)

    @property
    def d_key(self) -> int:
        """Width of a key behind the projection: what the window keeps."""
        return self.features.d_key(self.d_k)

    @property
    def has_momentum(self) -> bool:
        """Whether the state carries S: theta is a schedule or not zero."""
        return isinstance(self.theta, Schedule) or self.theta != 0.0

    @property
    def stored_dtype(self) -> str:
        """How the window stores keys and values."""
        return self.window_dtype or self.dtype

    @property
    def recall(self) -> int:
        """How many of the last tokens learning needs at most: c - 1 before a chunk, and the chunk."""
        return self.omega_window - 1 + self.chunk_size

    def replace(self, **changes: Any) -> MemoryConfig:
        """Return a copy with some settings changed; an unknown one raises ``InvalidParamError``."""
        known = {field.name for field in dataclasses.fields(self)}
        for name in changes:
            if name not in known:
                raise InvalidParamError(
                    f"a memory has no setting {name!r}",
                    key=name,
                    hint=f"Settings: {', '.join(sorted(known))}.",
                )
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values; ``from_json`` reads them back."""
        out: dict[str, Any] = {"version": self.version}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            out[field.name] = schedules.to_json(value) if field.name in RATES else _to_json(value)
        return out

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> MemoryConfig:
        """Read the settings from JSON values; missing ones take their default.

        Raises
        ------
        InvalidParamError
            For an unknown setting, kind or version, and for values that do not fit.
        """
        if not isinstance(document, Mapping):
            raise InvalidParamError("the memory's configuration is not a JSON object", key="config")
        values = dict(document)
        version = values.pop("version", cls.version)
        if version != cls.version:
            raise InvalidParamError(
                f"the configuration has version {version!r}, and this atlas_kit reads {cls.version}",
                key="version",
            )
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise InvalidParamError(f"a memory has no setting {name!r}", key=name)
        for name in ("d_k", "d_v"):
            if name not in values:
                raise InvalidParamError(f"the configuration does not say {name}", key=name)
        if "features" in values:
            features = _object(values["features"], "features")
            if "map" in features:
                features["map"] = _from_kind(features["map"], FEATURE_MAPS, "features.map")
            values["features"] = _from_kind(
                {"kind": Features.kind, **features}, {Features.kind: Features}, "features"
            )
        if "module" in values:
            values["module"] = _from_kind(values["module"], MODULES, "module")
        if "objective" in values:
            values["objective"] = _from_kind(values["objective"], OBJECTIVES, "objective")
        if values.get("gate") is not None:
            values["gate"] = _from_kind(values["gate"], {Gate.kind: Gate}, "gate")
        if values.get("ranking") is not None:
            values["ranking"] = _from_kind(values["ranking"], {Ranking.kind: Ranking}, "ranking")
        for name in RATES:
            if name in values:
                values[name] = schedules.from_json(values[name], name)
        config: MemoryConfig = _build(cls, values, "config")
        return config


def _to_json(value: Any) -> Any:
    """Turn a specification into JSON values, its kind first."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Ranking) and not value.metric:
            del fields["metric"]  # earlier versions read what has none
        kind = getattr(type(value), "kind", None)
        return {"kind": kind, **fields} if isinstance(kind, str) else fields
    return list(value) if isinstance(value, tuple) else value


def _from_kind(document: Any, table: Mapping[str, type], key: str) -> Any:
    """Build the specification that ``document["kind"]`` names."""
    values = _object(document, key)
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in table:
        raise InvalidParamError(
            f"{kind!r} is not a kind of {key}", key=key, hint=f"Choose one of: {', '.join(table)}."
        )
    return _build(table[kind], values, key)


def _object(document: Any, key: str) -> dict[str, Any]:
    if not isinstance(document, Mapping):
        raise InvalidParamError(f"{key} is not a JSON object", key=key)
    return dict(document)


def _build(cls: type, values: dict[str, Any], key: str) -> Any:
    """Call a specification's constructor; unknown names and wrong types become our error."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise InvalidParamError(f"the settings of {key} do not fit: {error}", key=key) from error


def _at_least(config: MemoryConfig, name: str, least: int) -> None:
    value = getattr(config, name)
    if not is_whole(value, least):
        raise InvalidParamError(
            f"{name} is {value!r}, and must be a whole number of at least {least}", key=name
        )


def _one_of(config: MemoryConfig, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in choices:
        raise InvalidParamError(
            f"{name} is {value!r}", key=name, hint=f"Choose one of: {', '.join(choices)}."
        )


def _number(config: MemoryConfig, name: str, least: float, most: float) -> None:
    value = getattr(config, name)
    if not is_number(value) or not least <= value <= most:
        raise InvalidParamError(f"{name} is {value!r}, and must be from {least:g} to {most:g}", key=name)


def most_of(rate: str) -> float:
    """Return the upper end of what alpha, theta or eta may be; the lower is 0."""
    return MOST_ETA if rate == "eta" else 1.0


def _rate(config: MemoryConfig, name: str) -> None:
    """Check a number, or both ends of a schedule: it never leaves them."""
    value = getattr(config, name)
    most = most_of(name)
    for rate in (value.start, value.end) if isinstance(value, Schedule) else (value,):
        if not is_number(rate) or not 0.0 <= rate <= most:
            raise InvalidParamError(f"{name} is {rate!r}, and must be from 0 to {most:g}", key=name)
