"""What llama.cpp asks of a model beyond sound bytes: its keys and their types, and its vocabulary.

Follows ``llama_model_loader``, ``llama_model_base::load_hparams`` and ``llama_vocab::impl::load``; tensors
are looked at in ``check_tensors``, other shards by the caller (``check_shards``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from atlas_kit.errors import Remedy
from atlas_kit.formats.gguf import architectures
from atlas_kit.formats.gguf.architectures import MAX_LAYERS
from atlas_kit.formats.gguf.check_decode import check_decode
from atlas_kit.formats.gguf.check_keys import check_keys, check_shard_name
from atlas_kit.formats.gguf.check_tensors import check_tensors
from atlas_kit.formats.gguf.tables import ValueType, value_type_name
from atlas_kit.formats.gguf.tensors import TensorInfo

if TYPE_CHECKING:
    from atlas_kit.formats.findings import Report
    from atlas_kit.formats.gguf.values import MetadataField

Fields = Mapping[str, "MetadataField"]
#: Takes pairs and tensors of the first shard and the number of all; returns the tensors of all, ``None`` if some miss.
Join = Callable[[Fields, list[TensorInfo], int], "list[TensorInfo] | None"]

_U32, _F32, _STR, _BOOL, _U16 = (
    ValueType.UINT32,
    ValueType.FLOAT32,
    ValueType.STRING,
    ValueType.BOOL,
    ValueType.UINT16,
)
#: ``general.type`` of files that are no models of their own.
_COMPANIONS = {
    "adapter": "a LoRA adapter: llama.cpp loads it beside its model",
    "mmproj": "a projector: llama.cpp loads it beside its model",
    "imatrix": "an importance matrix: llama-quantize reads it",
}
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")

# fmt: off
#: Keys that llama.cpp reads with one type and no other ("{}" is the architecture).
_TYPES: dict[str, ValueType] = {
    "general.name": _STR, "general.file_type": _U32,
    "{}.context_length": _U32, "{}.embedding_length": _U32, "{}.block_count": _U32, "{}.vocab_size": _U32,
    "{}.expert_count": _U32, "{}.expert_used_count": _U32,
    "{}.attention.key_length": _U32, "{}.attention.value_length": _U32,
    "{}.attention.layer_norm_epsilon": _F32, "{}.attention.layer_norm_rms_epsilon": _F32,
    "{}.rope.dimension_count": _U32, "{}.rope.freq_base": _F32, "{}.rope.scaling.type": _STR,
    "{}.rope.scaling.factor": _F32, "{}.rope.scaling.finetuned": _BOOL,
    "{}.rope.scaling.original_context_length": _U32, "{}.logit_scale": _F32, "{}.pooling_type": _U32,
    "{}.attention.causal": _BOOL, "{}.use_parallel_residual": _BOOL,
}
#: Keys of the vocabulary, the same; read before anything else of a model that has tensors, too.
_VOCABULARY_TYPES: dict[str, ValueType] = {
    "tokenizer.ggml.model": _STR, "tokenizer.ggml.pre": _STR, "tokenizer.ggml.token_type_count": _U32,
    **{f"tokenizer.ggml.{name}_token_id": _U32 for name in (
        "bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask", "fim_pre", "fim_suf",
        "fim_mid", "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle")},
    **{f"tokenizer.ggml.{name}": _BOOL for name in (
        "add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix", "remove_extra_whitespaces")},
}
# fmt: on
#: Keys that hold a u32 or an array of one number a layer.
_PER_LAYER = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")

_TOKENIZERS = ("llama", "bert", "gpt2", "t5", "rwkv", "plamo2", "plamo3", "gemma4", "hybriddna", "whitespace")
#: Tokenizers that need a token for each byte.
_ALL_BYTES = ("plamo2", "plamo3")
_NO_VOCABULARY = ("none", "no_vocab")
_BPE = ("gpt2", "gemma4", "hybriddna", "whitespace")
_PRE_NAMES = (
    "default minicpm5 llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano "
    "deepseek-llm deepseek-coder deepseek-v3 spark2_5 youtu falcon mpt starcoder gpt-2 phi-2 jina-es "
    "jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jais-2 gemma4 "
    "granite-embed-multi-311m sarvam-moe jina-v1-en jina-v2-code roberta-bpe whitespace refact command-r "
    "qwen2 deepseek-r1-qwen kormo f2llmv2 qwen35 stablelm2 olmo dbrx smaug-bpe poro-chat glm4 chatglm-bpe "
    "viking jais tekken smollm codeshell bloom gpt3-finnish exaone exaone4 exaone-moe chameleon "
    "minerva-7b megrez gpt-4o llama4 kanana2 talkie granite-embed-multi-97m tiny_aya cohere2moe superbpe "
    "trillion granite-docling bailingmoe bailingmoe2 llada-moe seed-coder hunyuan hunyuan-dense hy_v4 "
    "joyai-llm kimi-k2 ufakzeka grok-2 afmoe laguna minimax-m2 solar-open mellum2 "
    "glm5 k2-horizon mmbert"
)
_PRE_TOKENIZERS = frozenset(_PRE_NAMES.split())
_BYTE_TOKEN = re.compile(rb"<0x[0-9A-Fa-f]{2}>")


def check_model(
    report: Report,
    fields: list[MetadataField],
    tensors: list[TensorInfo],
    join: Join | None,
    path: str | None = None,
) -> None:
    """Check what the records of one file say as a model; ``join`` finds and checks its other shards, if asked to."""
    known: dict[str, MetadataField] = {}
    for item in fields:
        known.setdefault(item.key, item)
    number, count = _check_split(report, known)
    check_shard_name(report, path, known)
    family = known.get("general.architecture")
    name = str(family.items) if family is not None and family.type == _STR else ""
    check_keys(report, known, frozenset(required_types(name)))
    if number:
        return
    if _is_companion(report, known):
        return
    architecture = _check_architecture(report, known)
    _check_types(report, known, architecture, vocabulary_only=not tensors)
    tokens = _check_vocabulary(report, known, architecture)
    if count != 1:
        found = join(known, tensors, count) if join is not None and count else None
        if found is None:
            return
        tensors = found
    if not tensors:
        report.note("vocabulary-only", "the file holds a vocabulary and no tensors: it is not a model to run")
    elif architecture is not None:
        _check_layers(report, known, architecture)
        check_tensors(report, known, architecture, tensors, tokens)
        if architecture not in architectures.NOT_LOADABLE:
            check_decode(report, known, architecture, tensors)


# --- what kind of file ------------------------------------------------------------------------------------


def _check_split(report: Report, known: Fields) -> tuple[int, int]:
    """Check the ``split.*`` keys; return (number, count) of a shard, count 0 if they cannot be understood."""
    count, number = known.get("split.count"), known.get("split.no")
    if count is None:
        return 0, 1
    wrong = False
    for key, wanted in (("split.count", _U16), ("split.no", _U16), ("split.tensors.count", ValueType.INT32)):
        wrong = not _has_type(report, known.get(key), wanted) or wrong
    if wrong:
        return 0, 0
    if count.items > 1 and number is None:
        hint = "Add split.no, or remove split.count if the model is whole."
        report.error("key-missing", "split.count is there and split.no is not", hint, key="split.no")
        return 0, 0
    if number is not None and number.items and count.items > 1:
        message = f"this is shard {number.items + 1} of {count.items}: llama.cpp is given the first one"
        report.note("shard-not-first", message, offset=number.value_offset, key="split.no")
        return int(number.items), int(count.items)
    return 0, max(1, int(count.items))


def _is_companion(report: Report, known: Fields) -> bool:
    kind = known.get("general.type")
    value = kind.items if kind is not None and kind.type == _STR else ""
    if value not in _COMPANIONS:
        return False
    message = f"this is not a model but {_COMPANIONS[value]}"
    report.note("not-a-model", message, key="general.type", offset=kind.value_offset if kind else None)
    return True


def _check_architecture(report: Report, known: Fields) -> str | None:
    item = known.get("general.architecture")
    if item is None:
        remedy = Remedy("set-value", key="general.architecture", value="llama")
        message = "the file does not say which model family it is: llama.cpp cannot load it"
        report.error("architecture-missing", message, key="general.architecture", remedy=remedy)
        return None
    if not _has_type(report, item, _STR):
        return None
    name = str(item.items)
    where = item.value_offset
    if name in architectures.NOT_LOADABLE:
        message = f"llama.cpp does not load {name!r} as a model: {architectures.NOT_LOADABLE[name]}"
        report.error("architecture-not-loadable", message, offset=where, key=item.key)
    elif name not in architectures.ARCHITECTURES:
        message = f"model family {name!r} is not one that llama.cpp knows (October 2026)"
        hint = "Is it spelt right? A newer llama.cpp may know it."
        report.error("architecture-unknown", message, hint, offset=where, key=item.key)
        return None
    return name


# --- keys -------------------------------------------------------------------------------------------------


def _has_type(report: Report, item: MetadataField | None, wanted: ValueType) -> bool:
    """Check the type of a key that may be absent."""
    if item is None or item.type == wanted:
        return True
    message = f"the value is a {item.type_name}, and llama.cpp accepts only a {value_type_name(wanted)}"
    remedy = Remedy("set-type", key=item.key, type=value_type_name(wanted))
    report.error("key-type-wrong", message, offset=item.value_offset, key=item.key, remedy=remedy)
    return False


def required_types(architecture: str) -> dict[str, ValueType]:
    """Return the keys that llama.cpp reads with one type and no other, of a model of that family."""
    named = {key.format(architecture): kind for key, kind in _TYPES.items()}
    split = {"split.no": _U16, "split.count": _U16, "split.tensors.count": ValueType.INT32}
    return named | _VOCABULARY_TYPES | split


def _check_types(report: Report, known: Fields, architecture: str | None, *, vocabulary_only: bool) -> None:
    for key, wanted in _VOCABULARY_TYPES.items():
        _has_type(report, known.get(key), wanted)
    if known.get("general.name") is not None:
        _has_type(report, known["general.name"], _STR)
    _has_type(report, known.get("general.file_type"), _U32)
    if architecture is None or vocabulary_only or architecture in architectures.NOT_LOADABLE:
        return
    for key, wanted in _TYPES.items():
        if key.startswith("{}"):
            _has_type(report, known.get(key.format(architecture)), wanted)
    experts = _number(known.get(f"{architecture}.expert_count")) or 0
    plan = architectures.plan_of(architecture, experts=experts > 0)
    for name in (*architectures.COMMON_KEYS, *(plan.keys if plan else ())):
        if f"{architecture}.{name}" not in known:
            message = "llama.cpp needs this key and it is missing"
            missing = f"{architecture}.{name}"
            report.error("key-missing", message, key=missing, remedy=Remedy("set-missing", key=missing))


def _check_layers(report: Report, known: Fields, architecture: str) -> None:
    """Check the numbers that llama.cpp asserts: it dies of them."""
    blocks = known.get(f"{architecture}.block_count")
    layers = _number(blocks)
    if blocks is not None and layers is not None and not 0 < layers <= MAX_LAYERS:
        message = (
            f"a model of {layers} layers is outside what llama.cpp allows (1 to {MAX_LAYERS}): it aborts"
        )
        report.error("key-value-wrong", message, offset=blocks.value_offset, key=blocks.key)
    for name in _PER_LAYER:
        _check_per_layer(report, known.get(f"{architecture}.{name}"), layers)
    experts, used = (
        _number(known.get(f"{architecture}.expert_{name}")) or 0 for name in ("count", "used_count")
    )
    if experts < used or (experts and not used):
        message = f"{used} of {experts} experts are used: llama.cpp aborts"
        report.error("key-value-wrong", message, key=f"{architecture}.expert_used_count")
    if not experts and architectures.needs_experts(architecture):
        report.error("key-missing", "this family is a mixture of experts", key=f"{architecture}.expert_count")
    scaling = known.get(f"{architecture}.rope.scaling.type")
    if scaling is not None and scaling.type == _STR and scaling.items not in _ROPE_SCALINGS:
        message = f"scaling {scaling.items!r} is not known ({', '.join(_ROPE_SCALINGS)}): llama.cpp aborts"
        report.error("key-value-wrong", message, offset=scaling.value_offset, key=scaling.key)


def _check_per_layer(report: Report, item: MetadataField | None, layers: int | None) -> None:
    if item is None:
        return
    if not item.is_array:
        _has_type(report, item, _U32)
    elif item.element_type not in (ValueType.UINT32, ValueType.INT32, ValueType.BOOL):
        message = f"the value is {item.type_name}, and llama.cpp accepts a u32, or arr[u32] of one a layer"
        report.error("key-type-wrong", message, offset=item.value_offset, key=item.key)
    elif layers is not None and item.count != layers:
        message = f"there are {item.count} numbers for {layers} layers"
        report.error("key-value-wrong", message, offset=item.value_offset, key=item.key)


def _number(item: MetadataField | None) -> int | None:
    value = None if item is None or item.is_array else item.items
    return value if isinstance(value, int) else None


# --- vocabulary -------------------------------------------------------------------------------------------


def _check_vocabulary(report: Report, known: Fields, architecture: str | None) -> int | None:
    """Check the ``tokenizer.ggml.*`` arrays against each other; return the number of tokens."""
    model = known.get("tokenizer.ggml.model")
    if model is None:
        message = "the file does not say which tokenizer it uses: llama.cpp cannot load it"
        report.error("tokenizer-missing", message, "Convert the model again.", key="tokenizer.ggml.model")
        return None
    if model.type != _STR:
        return None
    name = str(model.items)
    if name in _NO_VOCABULARY:
        return _number(known.get(f"{architecture}.vocab_size")) or 0
    if name not in _TOKENIZERS:
        message = f"tokenizer {name!r} is not one that llama.cpp knows"
        hint = f"It knows {', '.join(_TOKENIZERS)} and none."
        report.error("tokenizer-unknown", message, hint, offset=model.value_offset, key=model.key)
        return None
    if name in _BPE:
        _check_bpe(report, known, name)
    tokens = _array(report, known, "tokens", (_STR,), required=True)
    if tokens is None:
        return None
    count = tokens.count
    for key, kinds in (("scores", (_F32, ValueType.INT32)), ("token_type", (ValueType.INT32,))):
        _check_beside(report, _array(report, known, key, kinds), count)
    _check_tokens(report, tokens, known)
    if name in _ALL_BYTES:
        there = set(tokens.items.iter_raw())
        lacking = [byte for byte in range(256) if b"<0x%02X>" % byte not in there]
        if lacking:
            message = f"{len(lacking)} of the 256 byte tokens are missing, such as <0x{lacking[0]:02X}>"
            report.error("tokenizer-incomplete", message, offset=tokens.value_offset, key=tokens.key)
    _check_special(report, known, count)
    return count


def _array(
    report: Report, known: Fields, name: str, kinds: tuple[ValueType, ...], *, required: bool = False
) -> MetadataField | None:
    """Return an array of the vocabulary if it is there and of a type that llama.cpp takes."""
    key = f"tokenizer.ggml.{name}"
    item = known.get(key)
    if item is None:
        if required:
            message = "llama.cpp needs this part of the vocabulary and it is missing"
            report.error("tokenizer-incomplete", message, "Convert the model again.", key=key)
        return None
    if not item.is_array or item.element_type not in kinds:
        wanted = " or ".join(value_type_name(ValueType.ARRAY, kind) for kind in kinds)
        message = f"the value is {item.type_name}, and llama.cpp accepts only {wanted}"
        report.error("key-type-wrong", message, offset=item.value_offset, key=key)
        return None
    return item


def _check_bpe(report: Report, known: Fields, name: str) -> None:
    pre = known.get("tokenizer.ggml.pre")
    kind = pre.items if pre is not None and pre.type == _STR else None
    _array(report, known, "merges", (_STR,), required=kind != "kimi-k2")
    if name == "gemma4":
        return
    if pre is None or kind == "":
        message = (
            "how text is cut up before byte-pair encoding is not said: llama.cpp guesses, and answers worse"
        )
        report.warning("pre-tokenizer-missing", message, "Convert the model again.", key="tokenizer.ggml.pre")
    elif kind is not None and kind not in _PRE_TOKENIZERS:
        message = f"pre-tokenizer {kind!r} is not one that llama.cpp knows (October 2026)"
        hint = "Is it spelt right? A newer llama.cpp may know it."
        report.error("pre-tokenizer-unknown", message, hint, offset=pre.value_offset, key=pre.key)


def _check_beside(report: Report, item: MetadataField | None, tokens: int) -> None:
    if item is None or item.count == tokens:
        return
    message = f"there are {item.count} of them for {tokens} tokens"
    if item.count < tokens:
        report.error("tokenizer-lengths-differ", message, offset=item.value_offset, key=item.key)
    else:
        report.warning("tokenizer-lengths-differ", message, offset=item.value_offset, key=item.key)


def _check_tokens(report: Report, item: MetadataField, known: Fields) -> None:
    """Check that tokens differ, and that byte tokens name a byte."""
    tokens = list(item.items.iter_raw())
    cut = [raw.partition(b"\0")[0] for raw in tokens] if _any_nul(tokens) else tokens
    if len(set(cut)) != len(cut):
        _check_repeated(report, item, cut)
    types = known.get("tokenizer.ggml.token_type")
    if types is None or not types.is_array or types.element_type != ValueType.INT32:
        return
    for index, kind in enumerate(types.items.tolist()[: len(tokens)]):
        if kind == 6 and not _BYTE_TOKEN.fullmatch(tokens[index]):
            text = tokens[index][:20].decode("utf-8", "replace")
            message = f"token {index} should stand for one byte, as in <0x0A>, and is {text!r}"
            report.warning("token-byte-invalid", message, offset=item.items.offset_of(index), key=item.key)
        elif not 0 <= kind <= 6:
            message = f"token {index} is of type {kind}, which does not exist (there are 0 to 6)"
            report.warning("token-type-invalid", message, offset=types.value_offset, key=types.key)


def _any_nul(tokens: list[bytes]) -> bool:
    return any(b"\0" in raw for raw in tokens)


def _check_repeated(report: Report, item: MetadataField, tokens: list[bytes]) -> None:
    seen: dict[bytes, int] = {}
    for index, raw in enumerate(tokens):
        first = seen.setdefault(raw, index)
        if first != index and raw:  # llama.cpp gives each empty token a name of its own
            text = raw[:40].decode("utf-8", "replace")
            message = f"tokens {first} and {index} are the same, {text!r}: llama.cpp aborts"
            hint = "Convert the model again."
            report.error("token-duplicate", message, hint, offset=item.items.offset_of(index), key=item.key)


def _check_special(report: Report, known: Fields, tokens: int) -> None:
    for key in _VOCABULARY_TYPES:
        item = known.get(key)
        value = _number(item) if key.endswith("_token_id") else None
        if item is not None and value is not None and value >= tokens and item.type == _U32:
            message = f"token {value} does not exist: there are {tokens}"
            report.warning("token-id-invalid", message, offset=item.value_offset, key=key)
