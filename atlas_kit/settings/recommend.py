"""What memory suits a model: settings with their reasons, what they cost, and what cannot be told.

Only metadata and tensor infos are read, so that it takes no time on a model of any size. The rule, by what a model
says of itself (numbers in ``RULE``):

- ``memory_dim``: 64, narrower for very narrow models: the width of the window's keys.
- ``memory_rank``: 384 directions of states that are that wide and more, 192 of narrower ones: the learned memory grows
  with it, and costs more.
- ``states``: those of a middle layer in deep models of architectures of which llama.cpp gives them; the final ones in
  all others, also in shallow ones, where they are better.
- ``window_size``: a power of two, or one and a half of it, whose keys take ``window_bytes``, or a small share of what
  the model reads per token anyway. It should hold several contexts: what is still in the context needs no second
  memory.
- ``learning_rate``: 0.3 for all. Steps are scaled by the model's own output matrix, so that one size moves the logits
  of all models alike, and they adapt while reading.
- ``candidates``: all tokens of a small vocabulary, more of a larger one, fewer of a very large one, whose rows cost
  more than they gain.
- ``chunk_size``, then ``memory_dim``: cheaper in steps (``cheaper``) until the estimate is within ``time_share`` of
  the model's own time, or within ``time_free``, which nobody notices.
- everything else: the default of ``AtlasSettings``.

What other values cost the sample model stands in ``SWEPT``, from ``tools/bench/settings_sweep.py``.

Architectures come in families (``model_facts.FAMILIES``). Attention models: the rule as it stands. Recurrent and
hybrid ones (Mamba, RWKV, Jamba ...): the same, but llama.cpp cannot shift their context. Families that cap or scale
their logits (Gemma 2, Command R, Granite ...): the same; the memory has to cap and scale as well. Encoders, diffusion
models, draft models, and what is no language model are refused: they do not predict a next token from the left.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import TruncatedError
from atlas_kit.settings.atlas_settings import AtlasSettings, settings_table
from atlas_kit.settings.model_facts import (
    FAMILIES,
    MIDDLE_STATES,
    UNKNOWN,
    ModelFacts,
    metadata_value,
    model_facts,
    require_decoder,
    whole_number,
)
from atlas_kit.storage.given import takes_source
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.memory import MemoryConfig

_ANY = math.inf


@dataclass(frozen=True)
class Rule:
    """The numbers of the rule. A table is rows of (up to, value): the first whose bound is not exceeded counts."""

    # fmt: off
    memory_dim: tuple[tuple[float, int], ...] = ((128, 32), (_ANY, 64))                            #: by width
    memory_rank: tuple[tuple[float, int], ...] = ((511, 192), (_ANY, 384))                         #: by width
    candidates: tuple[tuple[float, int], ...] = ((1024, 0), (16_384, 192), (100_000, 256), (_ANY, 128)) #: by tokens
    deep: int = 16                     #: layers from which on a middle one's states are better keys than the final ones
    chunk_size: tuple[tuple[float, int], ...] = ((5e8, 16), (_ANY, 32))                            #: by parameters
    window_least: int = 1 << 10        #: pairs
    window_most: int = 1 << 14
    window_bytes: int = 13 << 17       #: what a window may take in any case (1.6 MiB),
    window_share: float = 0.01         #: or this share of what the model reads per token
    context_used: int = 4096           #: longer contexts are not what people run
    time_share: float = 0.12           #: what the memory may add to the time of a token,
    time_free: float = 1e-3            #: or, in seconds, in any case
    cheaper: tuple[tuple[str, int], ...] = (   #: what is tried, in this order, where it adds more
        ("chunk_size", 32), ("memory_rank", 192), ("memory_rank", 128), ("memory_rank", 64), ("chunk_size", 64),
    )
    bandwidth: float = 20e9            #: bytes/s that a processor reads, and floating-point operations/s that it
    flops: float = 60e9                #: does: of the estimate only
    row_cache: int = 64 << 20          #: bytes of output rows that the runtime keeps at most
    # fmt: on


RULE = Rule()

#: Nats per token that other values cost the sample model, on text for choosing settings, from token 4,096 on.
SWEPT: dict[str, dict[str, float]] = {
    "window_size": {"1024": 0.084, "4096": 0.025},
    "learning_rate": {"0": 0.019, "0.1": 0.004, "1.0": 0.002},
    "use_muon": {"True": 0.011},
    "memory_dim": {"32": 0.007, "96": 0.0},
    "features": {"polynomial": -0.003},
    "memory_rank": {"64": 0.004, "256": -0.001},
    "even_steps": {"0": 0.001, "512": 0.001},
    "chunk_size": {"8": -0.003, "32": 0.008},
    "ranking": {"False": 0.034},
    "candidates": {"64": 0.004, "512": -0.002},
}


# --- what it recommends ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """What a memory takes beside a model.

    ``memory`` are (what, bytes), exact but for the last two; ``state_bytes`` is what a saved memory holds. ``flops``
    and ``bytes_read`` are per token while text is read or generated; ``extra_time`` is the share that they add to the
    model's own time on a processor, roughly.
    """

    memory: tuple[tuple[str, int], ...]
    state_bytes: int
    flops: int
    bytes_read: int
    seconds: float
    extra_time: float

    @property
    def total_bytes(self) -> int:
        """Sum of ``memory``."""
        return sum(size for _, size in self.memory)


@dataclass(frozen=True)
class Recommendation:
    """Settings for a model, each with its reason."""

    model: ModelFacts
    settings: AtlasSettings
    reasons: dict[str, str]
    costs: Costs
    notes: list[str] = field(default_factory=list)

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the recommendation as JSON-ready data; ``settings`` is what a configuration file holds."""
        costs = self.costs
        return {
            **named("path", self.model.path),
            "model": self.model.to_json(),
            "settings": self.settings.to_json(),
            "reasons": self.reasons,
            "memory": {
                "parts": [{"what": what, "bytes": size} for what, size in costs.memory],
                "state_bytes": costs.state_bytes,
                "total_bytes": costs.total_bytes,
            },
            "compute": {
                "estimate": True,
                "flops_per_token": costs.flops,
                "bytes_read_per_token": costs.bytes_read,
                "model_bytes_read_per_token": self.model.read_per_token,
                "seconds_per_token": costs.seconds,
                "extra_time": costs.extra_time,
            },
            "notes": self.notes,
        }


@takes_source
def recommend(source: Source) -> Recommendation:
    """Return the settings of a memory that suit a model, and what they cost.

    Raises
    ------
    ModelError
        The model does not generate text, or the file is no model.
    MagicMismatchError, FileCorruptError, TruncatedError
        It is no GGUF file, or its header is damaged.
    """
    from atlas_kit.formats.gguf import GGUFFile

    with GGUFFile.open(source) as file:
        facts = dataclasses.replace(model_facts(file), path=source.name)
        notes = _notes(facts, file)
    settings, reasons = _settings(facts)
    return Recommendation(facts, settings, reasons, costs_of(facts, settings), notes)


def _pick(table: tuple[tuple[float, Any], ...], number: float) -> Any:
    return next(value for bound, value in table if number <= bound)


def _settings(facts: ModelFacts) -> tuple[AtlasSettings, dict[str, str]]:
    reasons = dict.fromkeys(
        (row.name for row in settings_table()),
        "the default: nothing in a model's metadata suggests another value",
    )
    settings = AtlasSettings(
        memory_dim=_pick(RULE.memory_dim, facts.width),
        memory_rank=_pick(RULE.memory_rank, facts.width),
        chunk_size=_pick(RULE.chunk_size, facts.parameters),
    )
    if facts.architecture in MIDDLE_STATES and (facts.layers or 0) >= RULE.deep:
        settings = settings.replace(states="middle")
        reasons["states"] = (
            f"in deep models, states of a middle layer tell places of a text apart better (here, of {facts.layers} "
            "layers); where llama.cpp does not give them, a new memory takes the final ones"
        )
    elif facts.architecture in MIDDLE_STATES and facts.layers:
        reasons["states"] = f"with {facts.layers} layers, the final states are the better keys"
    else:
        reasons["states"] = "the final ones: llama.cpp gives no others of this architecture"
    if facts.vocabulary is not None:
        settings = settings.replace(candidates=_pick(RULE.candidates, facts.vocabulary))
    reasons["learning_rate"] = "steps are scaled by the model's output matrix, and adapt while reading"
    reasons["features"] = (
        "states are whitened: cheaper, and worth more, than the forms of the paper, which polynomial, sparse and "
        "fourier are"
    )
    reasons["candidates"] = _candidates_reason(facts, settings)
    settings, changed = _affordable(facts, settings)
    config = _config_of(facts, settings)
    reasons["memory_dim"] = f"the window's keys are the {config.d_key} directions in which states vary most"
    reasons["memory_rank"] = (
        f"{min(settings.memory_rank, facts.width)} of {facts.width:,} directions, and two matrices of "
        f"{sized(min(settings.memory_rank, facts.width) * facts.width * 4)}"
    )
    reasons["likeness"] = (
        "the cosine: what learning it gains beside short contexts is not there beside long ones"
    )
    reasons["polynomial_degree"] = "the default, of no effect where states are whitened"
    reasons["omega_window"] = reasons["polynomial_degree"]
    reasons["use_muon"] = (
        f"Newton-Schulz steps would cost {_flop(_muon_flops(config, settings))} more per token, and gain nothing"
    )
    reasons["chunk_size"] = "tokens per step: fewer cost more, and learn sooner"
    for name in changed:
        reasons[name] += f"; other values would slow this model down by more than {RULE.time_share:.0%}"
    settings = settings.replace(window_size=_window(facts, settings))
    reasons["window_size"] = _window_reason(facts, settings)
    return settings, {name: reason + _swept(name) for name, reason in reasons.items()}


def _swept(name: str) -> str:
    """Say what other values of a setting cost the sample model."""
    costs = ", ".join(f"{value.lower()} {nats:+.3f}" for value, nats in SWEPT.get(name, {}).items())
    return f" [{costs}]" if costs else ""


def _candidates_reason(facts: ModelFacts, settings: AtlasSettings) -> str:
    if facts.vocabulary is None:
        return "the default: the file does not say how many tokens there are"
    if not settings.candidates:
        return f"the vocabulary has only {facts.vocabulary:,} tokens"
    return f"the most likely of {facts.vocabulary:,} tokens, each a row of the output matrix; recent tokens are added"


def _affordable(facts: ModelFacts, settings: AtlasSettings) -> tuple[AtlasSettings, set[str]]:
    """Make settings cheaper, step by step, until the model hardly notices; return which were changed."""
    changed = set()
    for name, value in RULE.cheaper:
        costs = costs_of(facts, settings)
        if costs.seconds <= RULE.time_free or costs.extra_time <= RULE.time_share:
            break
        now = getattr(settings, name)
        if value > now if name == "chunk_size" else value < now:
            settings = settings.replace(**{name: value})
            changed.add(name)
    return settings, changed


def _window(facts: ModelFacts, settings: AtlasSettings) -> int:
    allowed = max(RULE.window_bytes, int(RULE.window_share * facts.read_per_token))
    pairs = allowed // _pair_bytes(facts, settings)
    power = 1 << max(1, pairs.bit_length() - 1)
    return max(
        RULE.window_least, min(power + power // 2 if pairs >= power + power // 2 else power, RULE.window_most)
    )


def _pair_bytes(facts: ModelFacts, settings: AtlasSettings) -> int:
    """Return what one pair takes in the window: float16 key, token, and whether it counts."""
    return 2 * min(settings.memory_dim, facts.width) + 4 + 1


def _window_reason(facts: ModelFacts, settings: AtlasSettings) -> str:
    size = sized(settings.window_size * _pair_bytes(facts, settings))
    used = min(facts.context or RULE.context_used, RULE.context_used)
    contexts = settings.window_size / used
    return (
        f"{contexts:.3g} contexts of {used:,} tokens, for {size}; "
        f"the model reads {sized(facts.read_per_token)} a token"
    )


# --- what it costs ---------------------------------------------------------------------------------------


def costs_of(facts: ModelFacts, settings: AtlasSettings) -> Costs:
    """Return what a memory with these settings takes beside a model; nothing is allocated for it."""
    from atlas_kit.memory.arrays import constants_nbytes, layout

    config = _config_of(facts, settings)
    arrays = {name: expected.nbytes(()) for name, expected in layout(config).items()}

    def taken(*prefixes: str) -> int:
        return sum(size for name, size in arrays.items() if name.startswith(prefixes))

    pairs = ("window.key", "window.token", "window.valid")
    matrix = taken("parameters.")
    more = ", whitening and a bias for every token" if settings.whitened else ""
    rows = min(RULE.row_cache, 4 * facts.width * (facts.vocabulary or RULE.row_cache))
    memory = (
        (f"learned memory, {_rows_of(config):,} x {facts.width:,} float32{more}", matrix),
        (f"window, {max(config.window_size, config.recall):,} keys and tokens", taken(*pairs)),
        (
            f"hidden states of the last {config.recall} tokens, blend, counters",
            sum(arrays.values()) - matrix - taken(*pairs),
        ),
        ("fixed random projection", constants_nbytes(config) // 2),  # drawn in float64, kept in float32
        ("room for one step", arrays["parameters.W"]),
        ("rows of the output matrix, at most", rows),
    )
    flops, read = _work(facts, settings, config)
    seconds = flops / RULE.flops + read / RULE.bandwidth
    alone = max(facts.read_per_token / RULE.bandwidth, 2 * facts.active / RULE.flops, 1e-9)
    return Costs(memory, sum(arrays.values()), int(flops), int(read), seconds, seconds / alone)


def _config_of(facts: ModelFacts, settings: AtlasSettings) -> MemoryConfig:
    return settings.memory_config(facts.width, n_vocab=facts.vocabulary or 0)


def _rows_of(config: MemoryConfig) -> int:
    """Return how many features the learned memory has."""
    return config.module.shapes(config.d_phi, config.d_v)["W"][0]


def _work(facts: ModelFacts, settings: AtlasSettings, config: MemoryConfig) -> tuple[float, float]:
    """Return (floating-point operations, bytes read) per token, reading and learning."""
    if settings.whitened:
        return _whitened_work(facts, settings, config)
    width, features = facts.width, config.d_phi if settings.learning_rate else 0
    chunk = config.chunk_size
    looked_at = max(config.omega_window, chunk)  # tokens that one gradient looks at
    candidates = min(settings.candidates or (facts.vocabulary or 1 << 16), facts.vocabulary or _ANY)
    matrix = features * width
    read = (
        2 * width * config.d_key + 2 * matrix + 2 * config.window_size * config.d_key + 2 * candidates * width
    )
    # random features cost a product with their directions, monomials about one operation each
    mapped = features * (1 if settings.features == "polynomial" else 2 * config.d_key)
    step = looked_at * (mapped + 4 * matrix + 4 * candidates * width) + 2 * matrix if features else 0.0
    moved = 4 * matrix + 2 * config.window_size * config.d_key + 4 * candidates * width
    moved += 3 * 4 * matrix / chunk
    muon = _muon_flops(config, settings) if settings.use_muon else 0.0
    return read + mapped + step / chunk + muon, moved


def _whitened_work(facts: ModelFacts, settings: AtlasSettings, config: MemoryConfig) -> tuple[float, float]:
    """Return ``_work`` of a memory on whitened states: two products to read, and few more for a step."""
    width, rank, vocabulary = facts.width, _rows_of(config), facts.vocabulary or 1 << 16
    learns = settings.learning_rate > 0
    candidates = min(settings.candidates or vocabulary, vocabulary) if learns else 0
    matrix = rank * width
    looked_up = 2 * config.window_size * config.d_key
    looked_up *= 2 if settings.likeness == "learned" else 1  # and once more, for the mean of what was found
    read: float = 2 * matrix * (1 + learns) + looked_up + 4 * candidates * width
    step = 2 * matrix * (1 + learns) + (
        4 * 128 * width if learns else 0
    )  # of each token: again, made even, learned
    moved: float = 4 * matrix * (1 + learns) + looked_up + 4 * candidates * width
    moved += 3 * 4 * matrix / config.chunk_size if learns else 0
    muon = _muon_flops(config, settings) if settings.use_muon else 0.0
    return read + step + muon, moved


def _muon_flops(config: MemoryConfig, settings: AtlasSettings) -> float:
    """Return what five Newton-Schulz steps cost per token: X X^T, its square, and their product with X."""
    short_side, long_side = sorted((_rows_of(config), config.d_v))
    return 5 * (4.0 * short_side**2 * long_side + 2.0 * short_side**3) / settings.chunk_size


# --- what it does not know -------------------------------------------------------------------------------


def _notes(facts: ModelFacts, file: GGUFFile) -> list[str]:
    notes = [family.note for family in (*FAMILIES, UNKNOWN) if family.name == facts.family and family.note]
    arch = facts.architecture
    if facts.family not in ("capped logits", "scaled logits") and (facts.logit_scale or facts.softcap):
        notes.append("it caps or scales its logits; the memory's correction has to follow")
    if facts.family in ("attention", "unknown") and _stateful(file, arch):
        notes.append("it seems to have layers with a state, whose context cannot be shifted")
    if facts.context is None:
        notes.append(f"the file names no context length; {RULE.context_used:,} tokens are assumed")
    if facts.vocabulary is None or metadata_value(file, "tokenizer.ggml.model") in (None, "none", "no_vocab"):
        notes.append("the file holds no tokenizer, so the model cannot be given text")
    if whole_number(file, f"{arch}.pooling_type"):
        notes.append("it was made for embeddings: what it generates may make no sense")
    if any(info.nbytes is None for info in file.tensor_infos):
        notes.append("some tensors are of a type that is not known; their size is missing in the estimate")
    if facts.experts:
        notes.append(
            f"{facts.experts_used or '?'} of {facts.experts} experts work on a token: other processors than the "
            "estimate's may wait longer for memory"
        )
    try:
        file.require_data()
    except TruncatedError as error:
        notes.append(f"the file is cut off, so it cannot be run as it is: {error.message}")
    if "atlas.version" in file.metadata:
        notes.append(
            "the file is ATLAS-native: it carries settings of its own, which are used unless others are chosen"
        )
    notes.append("in brackets: what other values cost the sample model, in nats per token")
    notes.append(
        "metadata do not say how good a model is, what it was trained on, or how large its numbers are: compare "
        "learning rates by the perplexity that they give"
    )
    return notes


def _stateful(file: GGUFFile, arch: str) -> bool:
    return any(key.startswith((f"{arch}.ssm.", f"{arch}.wkv.")) for key in file.metadata)


def short(count: int) -> str:
    """Return a large number as people say it: ``1.2 billion``."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:,}"


def sized(count: float) -> str:
    """Return a number of bytes: ``16.8 MiB``."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power:
            return f"{count / (1 << power):.3g} {unit}"
    return f"{count:.0f} bytes"


def _flop(count: float) -> str:
    for size, unit in ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,.0f} FLOP"


__all__ = [
    "RULE",
    "SWEPT",
    "Costs",
    "ModelFacts",
    "Recommendation",
    "Rule",
    "costs_of",
    "recommend",
    "require_decoder",
]
