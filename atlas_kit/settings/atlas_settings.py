"""The settings of a memory beside a language model, under the names that users meet everywhere.

The same names stand in the API, on the command line (``--window-size``), in a configuration file, in the metadata
of a ``.atlas`` file and in an ATLAS-native model (``atlas.memory.window_size``). ``memory_config`` turns them into
what ``atlas_kit.memory`` knows.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import AtlasError, InvalidParamError

if TYPE_CHECKING:
    from atlas_kit.memory import MemoryConfig

ADAPTIVE = "adaptive"
#: What the gate looks at (see ``gate_features``), and how quickly it learns.
GATE_FEATURES, GATE_RATE = 5, 0.2
WHITENED = "whitened"
FEATURES = (WHITENED, "polynomial", "sparse", "fourier")
STATES = ("final", "middle")
LIKENESS = ("cosine", "learned")
METRIC_RATE = 1.0  #: step size of what is learned of likeness
#: What the gate starts from beside a whitened memory, for the learned part and the window: what it came to on several
#: texts, with little weight for a window that is still short, so that the first thousand tokens lose nothing.
GATE_START = ((-0.5, 0.0, 0.3, 0.0, 0.0), (-3.0, 0.3, 0.0, 1.0, 1.5))
WHITENED_AFTER = 512  #: tokens whose states say how to whiten
RECALLS = ("auto", "off", "always")
STEPS = 16  #: tokens per step of the learned memory, where nothing else is chosen


@dataclass(frozen=True)
class SettingRow:
    """One setting: its name, default, range, and what it means in one line."""

    name: str
    default: Any
    note: str
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        """The name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def range(self) -> str:
        """What is allowed, in words."""
        if isinstance(self.default, bool):
            return "true or false"
        numbers = "" if self.least is None else f"{self.least:.10g} to {self.most:.10g}"
        return " or ".join(filter(None, (numbers, *self.choices)))

    def check(self, value: Any) -> Any:
        """Return the value in this setting's own type.

        Raises
        ------
        InvalidParamError
            When it is not one of the choices and no number in range.
        """
        if isinstance(value, str) and value in self.choices:
            return value
        if isinstance(self.default, bool):
            if isinstance(value, bool):
                return value
        elif self.least is not None and self.most is not None and not isinstance(value, (bool, str)):
            whole = isinstance(self.default, int)
            try:
                number = int(value) if whole else float(value)
            except (TypeError, ValueError, OverflowError):
                number = float("nan")
            if number == value and self.least <= number <= self.most:
                return number
        raise InvalidParamError(f"{self.name} is {value!r}", key=self.name, hint=f"Choose {self.range}.")


def _row(
    default: Any, note: str, least: float | None = None, most: float | None = None, *choices: str
) -> Any:
    return field(default=default, metadata={"note": note, "least": least, "most": most, "choices": choices})


@dataclass(frozen=True)
class AtlasSettings:
    """What can be chosen about a memory; the defaults work with every model.

    Raises
    ------
    InvalidParamError
        For a setting out of range; ``key`` names it.
    """

    # fmt: off
    window_size: int = _row(1024, "pairs of state and next token that the exact window keeps", 0, 1 << 24)
    learning_rate: float = _row(0.3, "step size eta of the learned memory; 0 leaves it out", 0.0, 100.0)
    polynomial_degree: int = _row(2, "degree of the feature map phi, where features is polynomial", 1, 3)
    use_muon: bool = _row(False, "orthogonalise the steps (Newton-Schulz)")
    memory_dim: int = _row(64, "width that states are projected to before phi, and of the window's keys", 1, 4096)
    warmup_tokens: int = _row(0, "tokens that are watched before the memory learns", 0, 1 << 24)
    blend_ratio: float | str = _row(
        ADAPTIVE, "weight of the window's prediction; adaptive: learned while reading", 0.0, 1.0, ADAPTIVE
    )
    features: str = _row(WHITENED, "features of the learned memory", None, None, *FEATURES)
    memory_rank: int = _row(192, "directions of the states that a whitened memory learns on", 1, 4096)
    even_steps: int = _row(
        256, "gradients from which a whitened memory evens its steps; 0: from the output matrix", 0, 4096
    )
    states: str = _row(
        "final", "whose states a whitened memory looks at: the final ones, or those of a middle layer", None, None,
        *STATES
    )
    omega_window: int = _row(64, "tokens that one gradient looks at: c of the Omega rule, not whitened", 1, 1024)
    chunk_size: int = _row(STEPS, "tokens per step of the learned memory", 1, 256)
    sharpness: float = _row(14.0, "theta of the softmax over cosines in the window; learned from there", 0.01, 1000.0)
    ranking: bool = _row(True, "also rank the window by what preceded and by age, learned while reading")
    likeness: str = _row(
        "cosine", "what makes a query like a key of the window: cosine, or learned while reading (whitened)", None,
        None, *LIKENESS
    )
    candidates: int = _row(192, "most likely tokens whose logits the memory corrects; 0: all", 0, 1 << 24)
    episode_tokens: int = _row(
        1_000_000, "tokens of what was read and said that are kept; 0: none", 0, 1 << 30
    )
    recall: str = _row(
        "auto", "read again what helps with a question: auto, off, or always the best", None, None, *RECALLS
    )
    recall_segments: int = _row(1, "pieces that are read again for a question at most", 1, 16)
    recall_gate: float = _row(0.1, "nats per token of the question that a piece must gain", -100.0, 100.0)
    # fmt: on

    def __post_init__(self) -> None:
        for row in settings_table():
            object.__setattr__(self, row.name, row.check(getattr(self, row.name)))
        if self.omega_window < self.chunk_size:
            raise InvalidParamError(
                f"omega_window is {self.omega_window}, less than a step's {self.chunk_size} tokens",
                key="omega_window",
                hint=f"Choose at least {self.chunk_size}, or a smaller chunk_size.",
            )
        if not self.window_size and not self.learning_rate:
            raise InvalidParamError(
                "window_size and learning_rate are both 0, so there is no memory", key="window_size"
            )

    def replace(self, **changes: Any) -> AtlasSettings:
        """Return a copy with some settings changed; an unknown name raises ``InvalidParamError``."""
        known = {row.name for row in settings_table()}
        for name in changes:
            if name not in known:
                raise InvalidParamError(
                    f"there is no setting {name!r}", key=name, hint=f"Settings: {', '.join(sorted(known))}."
                )
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> AtlasSettings:
        """Read settings from JSON values; missing ones take their default.

        Raises
        ------
        InvalidParamError
            For an unknown name or a value out of range.
        """
        return cls().replace(**dict(document))

    @classmethod
    def from_saved(cls, document: Mapping[str, Any]) -> AtlasSettings:
        """Read the settings that were kept beside a memory; a name that is not known (any more) is passed over.

        Raises
        ------
        InvalidParamError
            For a value out of range.
        """
        known = {row.name for row in settings_table()}
        earlier = {"even_steps": 0} if "memory_rank" in document else BEFORE_WHITENING
        return cls.from_json(
            {**earlier, **{name: value for name, value in document.items() if name in known}}
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> AtlasSettings:
        """Read settings from a JSON file, such as ``{"window_size": 2048}``.

        Raises
        ------
        InvalidParamError
            When it is not a JSON object of settings.
        """
        from atlas_kit.storage.given import open_source

        try:
            with open_source(path) as source:
                document = json.loads(source.read(0, min(source.size, 1 << 20)))
        except (ValueError, RecursionError) as error:
            raise InvalidParamError(f"this is not JSON: {error}", path=path) from error
        if not isinstance(document, dict):
            raise InvalidParamError("this is not a JSON object of settings", path=path)
        try:
            return cls.from_json(document)
        except AtlasError as error:
            error.path = os.fspath(path)
            raise

    @property
    def whitened(self) -> bool:
        """Whether states are whitened: the learned memory is the cheap one then, and not one of the paper's."""
        return self.features == WHITENED

    @property
    def looks_inside(self) -> bool:
        """Whether the memory looks at states of a middle layer, which not every engine gives."""
        return self.whitened and self.states != "final"

    def memory_config(
        self, n_embd: int, scale: float = 1.0, softcap: float | None = None, n_vocab: int = 0
    ) -> MemoryConfig:
        """Return the memory that corrects a final hidden state of ``n_embd`` numbers.

        ``scale`` and ``softcap`` are what the model does to its logits (see ``CrossEntropy``), ``n_vocab`` how many
        of them there are.

        Raises
        ------
        InvalidParamError
            When the settings do not fit together or the width.
        """
        from atlas_kit.memory import CrossEntropy, Features, Gate, MemoryConfig

        if self.whitened:
            return self._whitened_config(n_embd, scale, softcap, n_vocab)
        learns = self.learning_rate > 0
        projection = self.memory_dim if self.memory_dim < n_embd else None
        return MemoryConfig(
            n_embd,
            n_embd,
            Features(self._map() if learns else _map_of("identity"), projection=projection, normalize=True),
            objective=CrossEntropy(scale, softcap),
            eta=self.learning_rate,
            # the window of a gradient is c tokens before the chunk's last one
            omega_window=max(self.omega_window - self.chunk_size + 1, self.chunk_size),
            chunk_size=self.chunk_size,
            step="chunk",
            use_muon=self.use_muon,
            window_size=self.window_size,
            window_dtype="float16",
            gate=Gate(1 + learns + (self.window_size > 0), GATE_FEATURES, rate=GATE_RATE),
            ranking=self._ranking() if self.window_size else None,
            warmup_tokens=self.warmup_tokens if learns else NEVER,
        )

    def _whitened_config(
        self, n_embd: int, scale: float, softcap: float | None, n_vocab: int
    ) -> MemoryConfig:
        from atlas_kit.memory import CrossEntropy, Features, Gate, MemoryConfig, WhitenedMatrix

        learns = self.learning_rate > 0
        key = min(self.memory_dim, n_embd)
        rank = min(max(self.memory_rank, key), n_embd) if learns else key
        start = (*([GATE_START[0]] * learns), *([GATE_START[1]] * (self.window_size > 0)))
        return MemoryConfig(
            n_embd,
            n_embd,
            Features(_map_of("identity"), projection=key if key < n_embd else None),
            WhitenedMatrix(rank, n_vocab if learns else 0, WHITENED_AFTER, self.even_steps if learns else 0),
            CrossEntropy(scale, softcap),
            eta=self.learning_rate,
            omega_window=WHITENED_AFTER + 1,  # states that are kept, to whiten them
            chunk_size=self.chunk_size,
            step="chunk",
            use_muon=self.use_muon,
            window_size=self.window_size,
            window_dtype="float16",
            gate=Gate(1 + learns + (self.window_size > 0), GATE_FEATURES, rate=GATE_RATE, start=start),
            ranking=self._ranking(METRIC_RATE * (self.likeness == "learned")) if self.window_size else None,
            warmup_tokens=self.warmup_tokens if learns else NEVER,
        )

    def _ranking(self, metric: float = 0.0) -> Any:
        from atlas_kit.memory import Ranking

        default = Ranking()
        if self.ranking:
            return Ranking((self.sharpness, *default.start[1:]), metric=metric)
        return Ranking((self.sharpness, 0.0, 0.0), (0.0, 0.0, 0.0), metric=metric)

    def _map(self) -> Any:
        from atlas_kit.memory import Polynomial

        if self.features != "polynomial":
            return _map_of(self.features)
        degree = self.polynomial_degree
        # what all keys share is left out and products weigh more: see presets.py for why not 1/i!
        return Polynomial(degree, (0.0, 0.25, *(1.0,) * (degree - 1)), constant=False)


#: Defaults that are others now, for documents that know no ``memory_rank``.
BEFORE_WHITENING = {"features": "polynomial", "candidates": 256, "even_steps": 0}
#: A warm-up that never ends.
NEVER = 1 << 60


def _map_of(name: str) -> Any:
    from atlas_kit.memory import Identity, RandomFourier, WinnerTakeAll

    if name == "sparse":
        return WinnerTakeAll(2048, 32)
    return RandomFourier(2048, 4.0) if name == "fourier" else Identity()


def settings_table() -> tuple[SettingRow, ...]:
    """Return all settings: what the command line, the documents and ``atlas.memory.*`` are made from."""
    return tuple(
        SettingRow(row.name, row.default, **row.metadata) for row in dataclasses.fields(AtlasSettings)
    )
