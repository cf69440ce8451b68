"""What a language model is, from its metadata and tensor infos alone: its family, its sizes, what a token costs.

Families are architectures that are alike for a memory beside the model; some cannot have one. Reads no tensor.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import ModelError

if TYPE_CHECKING:
    from atlas_kit.formats.gguf import GGUFFile


@dataclass(frozen=True)
class Family:
    """Architectures that are alike here. ``refusal`` says why they can have no memory; ``note`` what to know."""

    name: str
    members: frozenset[str]
    refusal: str = ""
    hint: str = ""
    note: str = ""


def _family(name: str, members: str, **text: str) -> Family:
    return Family(name, frozenset(members.split()), **text)


#: Architectures of which llama.cpp gives states of a middle layer, each tried with a model; and how many layers there
#: must be, so that there is one.
MIDDLE_STATES = frozenset({"llama", "qwen3", "qwen3moe"})
LEAST_LAYERS = 4

_DECODER = "Use a model that generates text."
FAMILIES = (
    _family(
        "encoder",
        "bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert t5encoder "
        "gemma-embedding gemma-embedding2 llama-embed",
        refusal="this model is an encoder: it turns text into vectors and does not generate any",
        hint=_DECODER,
    ),
    _family(
        "encoder-decoder",
        "t5",
        refusal="this model reads its whole input with an encoder, which the memory cannot follow",
        hint=_DECODER,
    ),
    _family(
        "diffusion",
        "dream llada llada-moe rnd1",
        refusal="this model fills in a text as a whole and does not generate it from left to right",
        hint=_DECODER,
    ),
    _family(
        "no text",
        "clip wavtokenizer-dec pockettts qwen3tts",
        refusal="this is a model of pictures or sound, not of text",
        hint=_DECODER,
    ),
    _family(
        "draft",
        "eagle3 dflash gemma4-assistant",
        refusal="this is a draft model, which only runs beside another one",
        hint="Give the model that it belongs to.",
    ),
    _family(
        "recurrent",
        "mamba mamba2 rwkv6 rwkv6qwen2 rwkv7 arwkv7",
        note="it has a state instead of a context, which cannot be shifted: there is nothing to forget either",
    ),
    _family(
        "hybrid",
        "jamba falcon-h1 plamo2 granitehybrid lfm2 lfm2moe nemotron_h nemotron_h_moe qwen3next kimi-linear qwen35 "
        "qwen35moe",
        note="some of its layers have a state, so its context cannot be shifted: beyond it, the end of the text is "
        "read again",
    ),
    _family(
        "capped logits",
        "gemma2 gemma3n gemma4 grok",
        note="it caps its logits; the memory's correction has to be capped in the same way",
    ),
    _family(
        "scaled logits",
        "command-r cohere2 cohere2moe granite granitemoe granite_swa graniteswitch minicpm minicpm3 grok",
        note="it scales its logits; the memory's correction has to be scaled in the same way",
    ),
)
#: The family of all others.
ATTENTION = Family("attention", frozenset())
UNKNOWN = Family(
    "unknown",
    frozenset(),
    note="this version of atlas_kit does not know the architecture, and takes it for an attention model",
)
#: ``general.type`` of files that are no models of their own.
_COMPANIONS = {
    "adapter": "this is an adapter, which changes another model",
    "mmproj": "this is a projector, which belongs to another model",
    "imatrix": "this is an importance matrix, not a model",
}


@dataclass(frozen=True)
class ModelFacts:
    """What the metadata say; ``None`` where they do not.

    Attributes
    ----------
    size, parameters
        Bytes of the file (of all shards), numbers in its tensors.
    width, vocabulary
        Of the final hidden state and of the output matrix.
    heads, heads_kv
        The most of any layer.
    tied
        Whether the output matrix is the embedding.
    experts, experts_used
        Of a mixture of experts.
    read_per_token
        Bytes of weights that one token needs: all but the embedding of other tokens and the experts that rest.
    active
        Parameters among them.
    """

    path: str
    size: int
    name: str | None
    architecture: str
    family: str
    layers: int | None
    width: int
    heads: int | None
    heads_kv: int | None
    vocabulary: int | None
    context: int | None
    tied: bool
    quantisation: str
    parameters: int
    experts: int | None
    experts_used: int | None
    logit_scale: float | None
    softcap: float | None
    read_per_token: int
    active: int

    @property
    def bits_per_weight(self) -> float:
        """Bits that a parameter takes on average (file header included)."""
        return 8 * self.size / self.parameters if self.parameters else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON-ready data."""
        facts = dataclasses.asdict(self)
        facts.pop("path")
        return {**facts, "bits_per_weight": round(self.bits_per_weight, 2)}


def require_decoder(file: GGUFFile) -> Family:
    """Return the family of a model that generates text from left to right.

    Raises
    ------
    ModelError
        It does not, or it is no model.
    """
    if file.is_vocabulary_only:
        raise ModelError("this file holds a vocabulary and no weights, so it cannot be run", path=file.path)
    architecture = file.architecture
    require_family(
        file.path,
        architecture,
        kind=file.get("general.type"),
        causal=file.get(f"{architecture}.attention.causal") is not False,
    )
    if not file.tensor_infos:
        raise ModelError("this file holds no weights, so it cannot be run", path=file.path)
    return family_of(file, str(architecture))


def require_family(path: Any, architecture: str | None, *, kind: Any, causal: bool) -> None:
    """Raise ``ModelError`` where a model does not generate text from left to right, or is none.

    Parameters
    ----------
    architecture, kind, causal
        ``general.architecture``, ``general.type``, and whether a token sees those before it only.
    """
    if isinstance(kind, str) and kind in _COMPANIONS:
        raise ModelError(_COMPANIONS[kind], path=path, hint="Give the model itself.")
    if architecture is None:
        raise ModelError(
            "the file does not name its architecture, so no program knows how to run it",
            path=path,
            key="general.architecture",
        )
    family = FAMILIES[0] if not causal else next((f for f in FAMILIES if architecture in f.members), None)
    if family is not None and family.refusal:
        raise ModelError(family.refusal, path=path, hint=family.hint)


def family_of(file: GGUFFile, architecture: str) -> Family:
    """Return the family of an architecture; of one that no table knows, what its keys say."""
    from atlas_kit.formats.gguf.architectures import ARCHITECTURES

    if file.get(f"{architecture}.attention.causal") is False:
        return FAMILIES[0]
    for family in FAMILIES:
        if architecture in family.members:
            return family
    if architecture in ARCHITECTURES:
        return ATTENTION
    return UNKNOWN


def model_facts(file: GGUFFile) -> ModelFacts:
    """Return what a model's metadata and tensor infos say.

    Raises
    ------
    ModelError
        It does not generate text, or does not say how wide it is.
    """
    family = require_decoder(file)
    arch = file.architecture or ""
    matrix = next(
        (file.tensors[n] for n in ("output.weight", "token_embd.weight") if n in file.tensors), None
    )
    shaped = matrix is not None and len(matrix.dims) == 2
    width = whole_number(file, f"{arch}.embedding_length") or (
        matrix.dims[0] if matrix is not None and shaped else None
    )
    if not width:
        raise ModelError(
            "the file does not say how wide the model is", path=file.path, key=f"{arch}.embedding_length"
        )
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    vocabulary = (
        (tokens.count if tokens is not None and tokens.is_array else None)
        or whole_number(file, f"{arch}.vocab_size")
        or (matrix.dims[1] if matrix is not None and shaped else None)
    )
    experts, used = (whole_number(file, f"{arch}.expert_{name}") for name in ("count", "used_count"))
    tied = "output.weight" not in file.tensors
    read, active = _per_token(file, tied, experts, used)
    return ModelFacts(
        path=os.fsdecode(file.path or "-"),
        size=file.size,
        name=_text(file, "general.name"),
        architecture=arch,
        family=family.name,
        layers=whole_number(file, f"{arch}.block_count"),
        width=width,
        heads=whole_number(file, f"{arch}.attention.head_count"),
        heads_kv=whole_number(file, f"{arch}.attention.head_count_kv"),
        vocabulary=vocabulary,
        context=whole_number(file, f"{arch}.context_length"),
        tied=tied,
        quantisation=_quantisation(file),
        parameters=sum(info.elements for info in file.tensor_infos),
        experts=experts,
        experts_used=used,
        logit_scale=_number(file, f"{arch}.logit_scale"),
        softcap=_number(file, f"{arch}.final_logit_softcapping"),
        read_per_token=read,
        active=active,
    )


def metadata_value(file: GGUFFile, key: str) -> Any:
    """Return a value as it stands in the file, without NumPy; None where there is none."""
    found = file.metadata.get(key)
    return None if found is None else found.items


def whole_number(file: GGUFFile, key: str) -> int | None:
    """Return a positive whole number; of one per layer the largest."""
    value = metadata_value(file, key)
    if isinstance(value, Sequence) and not isinstance(value, str) and 0 < len(value) <= 1 << 16:
        numbers = [v for v in value if isinstance(v, int)]
        value = max(numbers, default=None)
    good = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 32
    return value if good else None


def _number(file: GGUFFile, key: str) -> float | None:
    value = metadata_value(file, key)
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value
    return float(value) if good else None


def _text(file: GGUFFile, key: str) -> str | None:
    value = metadata_value(file, key)
    return value if isinstance(value, str) else None


def _quantisation(file: GGUFFile) -> str:
    """Return how most weights are stored, which need not be what ``general.file_type`` says."""
    sizes: dict[str, int] = {}
    for info in file.tensor_infos:
        sizes[info.type_name] = sizes.get(info.type_name, 0) + info.elements
    return max(sizes, key=lambda name: sizes[name])


def _per_token(file: GGUFFile, tied: bool, experts: int | None, used: int | None) -> tuple[int, int]:
    """Return (bytes, parameters) that one token needs."""
    rest = (used / experts) if experts and used and used < experts else 1.0
    size = count = 0.0
    for info in file.tensor_infos:
        share = rest if "_exps." in info.name else 1.0
        if info.name == "token_embd.weight" and not tied:
            share = 1 / max(1, info.rows)
        size += share * (info.nbytes or 0)
        count += share * info.elements
    return int(size), int(count)
