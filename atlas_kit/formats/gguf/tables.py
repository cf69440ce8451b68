"""The numbers and names of GGUF, with what they mean: value types, tensor types, file types, known keys.

Follows ``docs/gguf.md`` and ``include/ggml.h`` of ggml. Holds no behaviour beyond looking things up, and
imports neither NumPy nor the ``gguf`` package (its type sizes are compared with ours in a test). Numbers
that are not listed here are kept as plain integers everywhere: a new type must not stop the rest.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

MAGIC = b"GGUF"
VERSIONS = (1, 2, 3)
WRITABLE_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
#: The specification sets no upper bound; without one, padding could be made to eat the disk.
MAX_ALIGNMENT = 1 << 20
MAX_DIMS = 4
#: How deep arrays of arrays may go. Nothing real nests more than twice; 3,000 levels were an attack.
MAX_DEPTH = 16
#: ``GGUF_MAX_STRING_LENGTH`` and ``GGUF_MAX_ARRAY_ELEMENTS`` of ggml: nothing longer loads anywhere.
MAX_STRING = 1 << 30
MAX_ARRAY = 1 << 30
#: ``GGML_MAX_NAME`` less the NUL: longer tensor names are cut off or refused by llama.cpp.
MAX_TENSOR_NAME = 63


class ValueType(enum.IntEnum):
    """``gguf_metadata_value_type``: what a metadata value is."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


@dataclass(frozen=True)
class ValueTypeRow:
    """One value type: its short name, its size in bytes (``None``: it varies) and its meaning."""

    type: ValueType
    short: str
    size: int | None
    meaning: str
    since: int = 1


# fmt: off
VALUE_TYPES: tuple[ValueTypeRow, ...] = (
    ValueTypeRow(ValueType.UINT8,   "u8",   1,    "unsigned integer"),
    ValueTypeRow(ValueType.INT8,    "i8",   1,    "signed integer, two's complement"),
    ValueTypeRow(ValueType.UINT16,  "u16",  2,    "unsigned integer"),
    ValueTypeRow(ValueType.INT16,   "i16",  2,    "signed integer"),
    ValueTypeRow(ValueType.UINT32,  "u32",  4,    "unsigned integer"),
    ValueTypeRow(ValueType.INT32,   "i32",  4,    "signed integer"),
    ValueTypeRow(ValueType.FLOAT32, "f32",  4,    "IEEE 754 single precision"),
    ValueTypeRow(ValueType.BOOL,    "bool", 1,    "0 is false, 1 is true, nothing else is allowed"),
    ValueTypeRow(ValueType.STRING,  "str",  None, "length, then that many bytes of UTF-8 without a NUL"),
    ValueTypeRow(ValueType.ARRAY,   "arr",  None, "element type, length, then the elements without padding"),
    ValueTypeRow(ValueType.UINT64,  "u64",  8,    "unsigned integer", 2),
    ValueTypeRow(ValueType.INT64,   "i64",  8,    "signed integer", 2),
    ValueTypeRow(ValueType.FLOAT64, "f64",  8,    "IEEE 754 double precision", 2),
)
# fmt: on

VALUE_TYPE_BY_NUMBER: dict[int, ValueTypeRow] = {int(row.type): row for row in VALUE_TYPES}
_VALUE_TYPE_BY_NAME = {row.short: row.type for row in VALUE_TYPES}
_VALUE_TYPE_BY_NAME |= {row.type.name.lower(): row.type for row in VALUE_TYPES}
_VALUE_TYPE_BY_NAME |= {"string": ValueType.STRING, "array": ValueType.ARRAY, "float": ValueType.FLOAT32}


def value_type_name(number: int, element: int | None = None) -> str:
    """Return the short name of a value type: ``u32``, ``arr[str]``, ``type 99`` for an unknown one."""
    row = VALUE_TYPE_BY_NUMBER.get(number)
    name = row.short if row else f"type {number}"
    return f"{name}[{value_type_name(element)}]" if element is not None else name


def value_type_of_name(name: str) -> tuple[ValueType, ValueType | None] | None:
    """Return (type, element type) of ``u32``, ``uint32``, ``str``, ``arr[f32]``, ``f32[]``; or ``None``."""
    text = name.strip().lower()
    nested = re.fullmatch(r"arr(?:ay)?\[(\w+)\]|(\w+)\[\]", text)
    if nested:
        element = _VALUE_TYPE_BY_NAME.get(nested[1] or nested[2])
        return None if element is None else (ValueType.ARRAY, element)
    plain = _VALUE_TYPE_BY_NAME.get(text)
    return None if plain is None else (plain, None)


class GGMLType(enum.IntEnum):
    """``ggml_type``: how the numbers of a tensor are stored. Gaps are types that ggml has removed."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42


@dataclass(frozen=True)
class GGMLTypeRow:
    """One tensor type: ``block`` weights are stored in ``size`` bytes.

    ``dtype`` is the NumPy kind and size of a plain type (``None``: quantised). ``swap`` lists the
    (offset, width) of the multi-byte numbers in a block; ``None`` where that is not known for certain: ggml reads
    some codebooks as numbers of several widths.
    """

    type: GGMLType
    block: int
    size: int
    meaning: str
    dtype: str | None = None
    swap: tuple[tuple[int, int], ...] | None = None

    @property
    def bits_per_weight(self) -> float:
        """Return the storage cost of one weight in bits."""
        return self.size * 8 / self.block


# fmt: off
GGML_TYPES: tuple[GGMLTypeRow, ...] = (
    GGMLTypeRow(GGMLType.F32,       1,   4, "single precision", "f4"),
    GGMLTypeRow(GGMLType.F16,       1,   2, "half precision", "f2"),
    GGMLTypeRow(GGMLType.Q4_0,     32,  18, "4 bits and one f16 scale per 32 weights", swap=((0, 2),)),
    GGMLTypeRow(GGMLType.Q4_1,     32,  20, "4 bits, f16 scale and minimum per 32 weights",
                swap=((0, 2), (2, 2))),
    GGMLTypeRow(GGMLType.Q5_0,     32,  22, "5 bits and one f16 scale per 32 weights", swap=((0, 2), (2, 4))),
    GGMLTypeRow(GGMLType.Q5_1,     32,  24, "5 bits, f16 scale and minimum per 32 weights",
                swap=((0, 2), (2, 2), (4, 4))),
    GGMLTypeRow(GGMLType.Q8_0,     32,  34, "8 bits and one f16 scale per 32 weights", swap=((0, 2),)),
    # 36 bytes in ggml (two f16); gguf-py still says 40, from when they were two f32
    GGMLTypeRow(GGMLType.Q8_1,     32,  36, "8 bits with scale and sum; only inside computations"),
    GGMLTypeRow(GGMLType.Q2_K,    256,  84, "2 bits in blocks of 16 with 4-bit scales and minima",
                swap=((80, 2), (82, 2))),
    GGMLTypeRow(GGMLType.Q3_K,    256, 110, "3 bits in blocks of 16 with 6-bit scales", swap=((108, 2),)),
    GGMLTypeRow(GGMLType.Q4_K,    256, 144, "4 bits in blocks of 32, 6-bit scales", swap=((0, 2), (2, 2))),
    GGMLTypeRow(GGMLType.Q5_K,    256, 176, "5 bits in blocks of 32 with 6-bit scales and minima",
                swap=((0, 2), (2, 2))),
    GGMLTypeRow(GGMLType.Q6_K,    256, 210, "6 bits in blocks of 16 with 8-bit scales", swap=((208, 2),)),
    GGMLTypeRow(GGMLType.Q8_K,    256, 292, "8 bits per 256 weights; only inside computations"),
    GGMLTypeRow(GGMLType.IQ2_XXS, 256,  66, "2.06 bits, codebook, needs an importance matrix"),
    GGMLTypeRow(GGMLType.IQ2_XS,  256,  74, "2.31 bits, codebook, needs an importance matrix"),
    GGMLTypeRow(GGMLType.IQ3_XXS, 256,  98, "3.06 bits, codebook"),
    GGMLTypeRow(GGMLType.IQ1_S,   256,  50, "1.56 bits, codebook, needs an importance matrix"),
    GGMLTypeRow(GGMLType.IQ4_NL,   32,  18, "4 bits on a curved scale per 32 weights", swap=((0, 2),)),
    GGMLTypeRow(GGMLType.IQ3_S,   256, 110, "3.44 bits, codebook"),
    GGMLTypeRow(GGMLType.IQ2_S,   256,  82, "2.5 bits, codebook"),
    GGMLTypeRow(GGMLType.IQ4_XS,  256, 136, "4.25 bits on a curved scale", swap=((0, 2), (2, 2))),
    GGMLTypeRow(GGMLType.I8,        1,   1, "8-bit integers", "i1"),
    GGMLTypeRow(GGMLType.I16,       1,   2, "16-bit integers", "i2"),
    GGMLTypeRow(GGMLType.I32,       1,   4, "32-bit integers", "i4"),
    GGMLTypeRow(GGMLType.I64,       1,   8, "64-bit integers", "i8"),
    GGMLTypeRow(GGMLType.F64,       1,   8, "double precision", "f8"),
    GGMLTypeRow(GGMLType.IQ1_M,   256,  56, "1.75 bits, codebook, needs an importance matrix"),
    GGMLTypeRow(GGMLType.BF16,      1,   2, "bfloat16: the upper half of single precision", "u2"),
    GGMLTypeRow(GGMLType.TQ1_0,   256,  54, "ternary, 1.69 bits", swap=((52, 2),)),
    GGMLTypeRow(GGMLType.TQ2_0,   256,  66, "ternary, 2.06 bits", swap=((64, 2),)),
    GGMLTypeRow(GGMLType.MXFP4,    32,  17, "4-bit floats, one shared exponent per 32 weights", swap=()),
    GGMLTypeRow(GGMLType.NVFP4,    64,  36, "4-bit floats, one 8-bit float scale per 16 weights", swap=()),
    GGMLTypeRow(GGMLType.Q1_0,    128,  18, "1 bit (a sign) and one f16 scale per 128 weights"),
    GGMLTypeRow(GGMLType.Q2_0,     64,  18, "2 bits and one f16 scale per 64 weights"),
)
# fmt: on

#: Where the scales of a block are, and of which kind: what else makes its weights worthless if it is not a number.
#: Plain types have none; those of IQ1_M lie in the upper four bits of four 16-bit numbers.
SCALES: dict[GGMLType, tuple[tuple[int, str], ...]] = {
    **dict.fromkeys(
        (GGMLType.Q4_0, GGMLType.Q5_0, GGMLType.Q8_0, GGMLType.Q1_0, GGMLType.Q2_0, GGMLType.IQ4_NL, GGMLType.IQ4_XS,
         GGMLType.IQ1_S, GGMLType.IQ2_XXS, GGMLType.IQ2_XS, GGMLType.IQ2_S, GGMLType.IQ3_XXS, GGMLType.IQ3_S),
        ((0, "f16"),),
    ),
    **dict.fromkeys((GGMLType.Q4_1, GGMLType.Q5_1, GGMLType.Q8_1, GGMLType.Q4_K, GGMLType.Q5_K),
                    ((0, "f16"), (2, "f16"))),
    GGMLType.Q2_K: ((80, "f16"), (82, "f16")),
    GGMLType.Q3_K: ((108, "f16"),),
    GGMLType.Q6_K: ((208, "f16"),),
    GGMLType.Q8_K: ((0, "f32"),),
    GGMLType.TQ1_0: ((52, "f16"),),
    GGMLType.TQ2_0: ((64, "f16"),),
    GGMLType.IQ1_M: ((48, "iq1_m"),),
    GGMLType.MXFP4: ((0, "e8m0"),),
    GGMLType.NVFP4: tuple((offset, "ue4m3") for offset in range(4)),
}  # fmt: skip

GGML_TYPE_BY_NUMBER: dict[int, GGMLTypeRow] = {int(row.type): row for row in GGML_TYPES}

#: Types that ggml once had and has removed: a reader meets them in old files only.
REMOVED_GGML_TYPES: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}


def ggml_type_name(number: int) -> str:
    """Return the name of a tensor type: ``Q8_0``, ``Q4_2 (removed)``, ``type 99`` for an unknown one."""
    row = GGML_TYPE_BY_NUMBER.get(number)
    if row is not None:
        return row.type.name
    if number in REMOVED_GGML_TYPES:
        return f"{REMOVED_GGML_TYPES[number]} (removed)"
    return f"type {number}"


def tensor_nbytes(dims: tuple[int, ...], number: int) -> int | None:
    """Return the bytes that a tensor of ``dims`` (first dimension fastest) takes.

    ``None`` when that cannot be known: an unknown type, or rows that are not whole blocks.
    """
    row = GGML_TYPE_BY_NUMBER.get(number)
    if row is None or (dims[0] if dims else 1) % row.block:
        return None
    elements = 1
    for dim in dims:  # Python integers do not wrap: 2**63 x 2**63 stays what it is
        elements *= dim
    return elements // row.block * row.size


#: ``general.file_type``: what most of the tensors are.
FILE_TYPES: dict[int, str] = {
    0: "all F32",
    1: "mostly F16",
    2: "mostly Q4_0",
    3: "mostly Q4_1",
    4: "mostly Q4_1, some F16",
    5: "mostly Q4_2 (removed)",
    6: "mostly Q4_3 (removed)",
    7: "mostly Q8_0",
    8: "mostly Q5_0",
    9: "mostly Q5_1",
    10: "mostly Q2_K",
    11: "mostly Q3_K, small",
    12: "mostly Q3_K, medium",
    13: "mostly Q3_K, large",
    14: "mostly Q4_K, small",
    15: "mostly Q4_K, medium",
    16: "mostly Q5_K, small",
    17: "mostly Q5_K, medium",
    18: "mostly Q6_K",
    19: "mostly IQ2_XXS",
    20: "mostly IQ2_XS",
    21: "mostly Q2_K, small",
    22: "mostly IQ3_XS",
    23: "mostly IQ3_XXS",
    24: "mostly IQ1_S",
    25: "mostly IQ4_NL",
    26: "mostly IQ3_S",
    27: "mostly IQ3_M",
    28: "mostly IQ2_S",
    29: "mostly IQ2_M",
    30: "mostly IQ4_XS",
    31: "mostly IQ1_M",
    32: "mostly BF16",
    33: "mostly Q4_0_4_4 (removed)",
    34: "mostly Q4_0_4_8 (removed)",
    35: "mostly Q4_0_8_8 (removed)",
    36: "mostly TQ1_0",
    37: "mostly TQ2_0",
    38: "mostly MXFP4",
    39: "mostly NVFP4",
    40: "mostly Q1_0",
    1024: "guessed",
}

#: ``tokenizer.ggml.token_type``: what each token is.
TOKEN_TYPES: dict[int, str] = {
    0: "undefined",
    1: "normal",
    2: "unknown",
    3: "control",
    4: "user defined",
    5: "unused",
    6: "byte",
}

#: ``atlas.storage_policy``: where the model's memory is kept.
STORAGE_POLICIES: dict[int, str] = {0: "none", 1: "memory", 2: "disk", 3: "hybrid"}


@dataclass(frozen=True)
class KeyRow:
    """One metadata key that is known: its type's short name and its meaning in plain words.

    ``{arch}``, ``{n}`` and ``{name}`` in ``key`` stand for one word each (the architecture, a number,
    a template's name).
    """

    key: str
    type: str
    meaning: str


# fmt: off
KNOWN_KEYS: tuple[KeyRow, ...] = (
    KeyRow("general.architecture", "str", "the model family; llama.cpp does not load without it"),
    KeyRow("general.type", "str", "what the file is: model, adapter, mmproj, imatrix"),
    KeyRow("general.quantization_version", "u32", "version of the quantised formats, if any tensor has one"),
    KeyRow("general.alignment", "u32", "every tensor starts at a multiple of this many bytes (32 if absent)"),
    KeyRow("general.file_type", "u32", "how most tensors are stored"),
    KeyRow("general.name", "str", "the model's name"),
    KeyRow("general.author", "str", "who made it"),
    KeyRow("general.version", "str", "the model's version"),
    KeyRow("general.organization", "str", "the organisation that made it"),
    KeyRow("general.basename", "str", "name without version, size or fine-tune"),
    KeyRow("general.finetune", "str", "what it was fine-tuned for"),
    KeyRow("general.description", "str", "free text about the model"),
    KeyRow("general.quantized_by", "str", "who quantised it"),
    KeyRow("general.size_label", "str", "size class, such as 7B or 8x7B"),
    KeyRow("general.license", "str", "licence as an SPDX expression"),
    KeyRow("general.license.name", "str", "licence in words"),
    KeyRow("general.license.link", "str", "where the licence's text is"),
    KeyRow("general.url", "str", "the model's web page"),
    KeyRow("general.doi", "str", "digital object identifier"),
    KeyRow("general.uuid", "str", "unique identifier"),
    KeyRow("general.repo_url", "str", "repository that holds the model"),
    KeyRow("general.source.url", "str", "web page of what it was converted from"),
    KeyRow("general.source.doi", "str", "identifier of what it was converted from"),
    KeyRow("general.source.uuid", "str", "unique identifier of what it was converted from"),
    KeyRow("general.source.repo_url", "str", "repository of what it was converted from"),
    KeyRow("general.source.huggingface.repository", "str", "Hugging Face repository it was converted from"),
    KeyRow("general.base_model.count", "u32", "how many models it descends from"),
    KeyRow("general.base_model.{n}.name", "str", "name of a model it descends from"),
    KeyRow("general.base_model.{n}.author", "str", "author of a model it descends from"),
    KeyRow("general.base_model.{n}.version", "str", "version of a model it descends from"),
    KeyRow("general.base_model.{n}.organization", "str", "organisation of a model it descends from"),
    KeyRow("general.base_model.{n}.url", "str", "web page of a model it descends from"),
    KeyRow("general.base_model.{n}.repo_url", "str", "repository of a model it descends from"),
    KeyRow("general.dataset.count", "u32", "how many datasets it was trained on"),
    KeyRow("general.dataset.{n}.name", "str", "name of a dataset it was trained on"),
    KeyRow("general.dataset.{n}.repo_url", "str", "repository of a dataset it was trained on"),
    KeyRow("general.tags", "arr[str]", "tags for searching"),
    KeyRow("general.languages", "arr[str]", "languages it understands"),
    KeyRow("general.datasets", "arr[str]", "datasets it was trained on"),
    KeyRow("general.sampling.temp", "f32", "recommended temperature"),
    KeyRow("general.sampling.top_k", "i32", "recommended top-k"),
    KeyRow("general.sampling.top_p", "f32", "recommended top-p"),
    KeyRow("general.sampling.min_p", "f32", "recommended min-p"),
    KeyRow("split.no", "u16", "number of this shard, counted from 0"),
    KeyRow("split.count", "u16", "number of shards that make up the model"),
    KeyRow("split.tensors.count", "i32", "number of tensors in all shards together"),
    KeyRow("tokenizer.ggml.model", "str", "kind: llama (SPM), gpt2 (BPE), bert (WPM), t5, rwkv, none"),
    KeyRow("tokenizer.ggml.pre", "str", "how text is cut up before byte-pair encoding"),
    KeyRow("tokenizer.ggml.tokens", "arr[str]", "the vocabulary: token number -> text"),
    KeyRow("tokenizer.ggml.token_type", "arr[i32]", "each token: 1 normal, 2 unknown, 3 control, 6 byte"),
    KeyRow("tokenizer.ggml.token_type_count", "u32", "how many token types a BERT-style model has"),
    KeyRow("tokenizer.ggml.scores", "arr[f32]", "score of each token"),
    KeyRow("tokenizer.ggml.merges", "arr[str]", "pairs that byte-pair encoding joins, best first"),
    KeyRow("tokenizer.ggml.added_tokens", "arr[str]", "tokens added after training"),
    KeyRow("tokenizer.ggml.bos_token_id", "u32", "token that begins a text"),
    KeyRow("tokenizer.ggml.eos_token_id", "u32", "token that ends a text"),
    KeyRow("tokenizer.ggml.eot_token_id", "u32", "token that ends a turn"),
    KeyRow("tokenizer.ggml.eom_token_id", "u32", "token that ends a message"),
    KeyRow("tokenizer.ggml.unknown_token_id", "u32", "token for what is not in the vocabulary"),
    KeyRow("tokenizer.ggml.seperator_token_id", "u32", "token between two texts (misspelled in the format)"),
    KeyRow("tokenizer.ggml.padding_token_id", "u32", "token that fills up"),
    KeyRow("tokenizer.ggml.cls_token_id", "u32", "token for classification"),
    KeyRow("tokenizer.ggml.mask_token_id", "u32", "token that hides a word"),
    KeyRow("tokenizer.ggml.add_bos_token", "bool", "put the begin token before every text"),
    KeyRow("tokenizer.ggml.add_eos_token", "bool", "put the end token after every text"),
    KeyRow("tokenizer.ggml.add_sep_token", "bool", "put the separator token between texts"),
    KeyRow("tokenizer.ggml.add_space_prefix", "bool", "put a space before every text"),
    KeyRow("tokenizer.ggml.remove_extra_whitespaces", "bool", "squeeze runs of spaces"),
    KeyRow("tokenizer.ggml.precompiled_charsmap", "arr[u8]", "text normalisation rules of the tokenizer"),
    KeyRow("tokenizer.huggingface.json", "str", "the tokenizer.json of Hugging Face"),
    KeyRow("tokenizer.rwkv.world", "str", "vocabulary of RWKV World"),
    KeyRow("tokenizer.chat_template", "str", "Jinja template that turns a chat into a prompt"),
    KeyRow("tokenizer.chat_template.{name}", "str", "another chat template, by name"),
    KeyRow("tokenizer.chat_templates", "arr[str]", "names of the other chat templates"),
    KeyRow("adapter.type", "str", "kind of adapter, such as lora"),
    KeyRow("adapter.lora.alpha", "f32", "scale of the LoRA adapter"),
    KeyRow("{arch}.vocab_size", "u32", "number of tokens"),
    KeyRow("{arch}.context_length", "u32", "tokens that the model was trained to see at once"),
    KeyRow("{arch}.embedding_length", "u32", "width of the model: numbers per token"),
    KeyRow("{arch}.block_count", "u32", "number of layers"),
    KeyRow("{arch}.feed_forward_length", "u32", "width of the feed-forward layer"),
    KeyRow("{arch}.use_parallel_residual", "bool", "attention and feed-forward side by side"),
    KeyRow("{arch}.tensor_data_layout", "str", "how the weights were permuted in conversion"),
    KeyRow("{arch}.expert_count", "u32", "experts per layer (mixture of experts)"),
    KeyRow("{arch}.expert_used_count", "u32", "experts that each token uses"),
    KeyRow("{arch}.expert_shared_count", "u32", "experts that every token uses"),
    KeyRow("{arch}.expert_feed_forward_length", "u32", "width of one expert"),
    KeyRow("{arch}.pooling_type", "u32", "how token states become one vector: 0 none, 1 mean, 2 first"),
    KeyRow("{arch}.logit_scale", "f32", "factor on the logits"),
    KeyRow("{arch}.final_logit_softcapping", "f32", "bound on the logits"),
    KeyRow("{arch}.attn_logit_softcapping", "f32", "bound on the attention scores"),
    KeyRow("{arch}.attention.head_count", "u32", "attention heads (an array when layers differ)"),
    KeyRow("{arch}.attention.head_count_kv", "u32", "heads of keys and values (fewer: grouped queries)"),
    KeyRow("{arch}.attention.key_length", "u32", "numbers per key of one head"),
    KeyRow("{arch}.attention.value_length", "u32", "numbers per value of one head"),
    KeyRow("{arch}.attention.max_alibi_bias", "f32", "strength of ALiBi positions"),
    KeyRow("{arch}.attention.clamp_kqv", "f32", "bound on queries, keys and values"),
    KeyRow("{arch}.attention.layer_norm_epsilon", "f32", "keeps the layer norm from dividing by zero"),
    KeyRow("{arch}.attention.layer_norm_rms_epsilon", "f32", "keeps the RMS norm from dividing by zero"),
    KeyRow("{arch}.attention.causal", "bool", "a token sees only what came before"),
    KeyRow("{arch}.attention.sliding_window", "u32", "tokens that a windowed layer sees"),
    KeyRow("{arch}.attention.sliding_window_pattern", "arr[bool]", "which layers are windowed"),
    KeyRow("{arch}.attention.scale", "f32", "factor on the attention scores"),
    KeyRow("{arch}.rope.dimension_count", "u32", "numbers per head that rotary positions turn"),
    KeyRow("{arch}.rope.freq_base", "f32", "base frequency of rotary positions"),
    KeyRow("{arch}.rope.scale_linear", "f32", "linear stretching of positions (old)"),
    KeyRow("{arch}.rope.scaling.type", "str", "how positions are stretched: none, linear, yarn, longrope"),
    KeyRow("{arch}.rope.scaling.factor", "f32", "how far positions are stretched"),
    KeyRow("{arch}.rope.scaling.original_context_length", "u32", "context length before stretching"),
    KeyRow("{arch}.rope.scaling.finetuned", "bool", "the model was trained with the stretching"),
    KeyRow("{arch}.ssm.conv_kernel", "u32", "width of the state-space convolution"),
    KeyRow("{arch}.ssm.inner_size", "u32", "inner width of the state-space layer"),
    KeyRow("{arch}.ssm.state_size", "u32", "size of the state"),
    KeyRow("{arch}.ssm.time_step_rank", "u32", "rank of the time step"),
    KeyRow("{arch}.wkv.head_size", "u32", "head size of RWKV"),
)

#: The keys that make a GGUF "ATLAS-native"; formats/gguf.md says more about ``source.*`` and ``pad``.
ATLAS_KEYS: tuple[KeyRow, ...] = (
    KeyRow("atlas.version", "u32", "version of the ATLAS keys (required)"),
    KeyRow("atlas.enabled", "bool", "use the memory with this model (required)"),
    KeyRow("atlas.layer_count", "u32", "number of layers that the memory is attached to"),
    KeyRow("atlas.head_count", "u32", "number of memory heads"),
    KeyRow("atlas.batch_size", "u32", "tokens that the memory learns from at a time"),
    KeyRow("atlas.seq_length", "u32", "longest sequence that the memory is made for"),
    KeyRow("atlas.storage_policy", "u32", "where the memory is kept: 0 none, 1 memory, 2 disk, 3 hybrid"),
    KeyRow("atlas.config", "str", "further settings as JSON"),
    KeyRow("atlas.storage_version", "u32", "version of the stored memory's format"),
    KeyRow("atlas.memory.window_size", "u32", "pairs of state and next token that the exact window keeps"),
    KeyRow("atlas.memory.learning_rate", "f64", "step size eta of the learned memory; 0 leaves it out"),
    KeyRow("atlas.memory.polynomial_degree", "u32", "degree of the feature map phi, where features is polynomial"),
    KeyRow("atlas.memory.use_muon", "bool", "orthogonalise the steps (Newton-Schulz)"),
    KeyRow("atlas.memory.memory_dim", "u32", "width that states are projected to before phi, and of the window's keys"),
    KeyRow("atlas.memory.warmup_tokens", "u32", "tokens that are watched before the memory learns"),
    KeyRow("atlas.memory.blend_ratio", "str", "weight of the window's prediction; adaptive: learned while reading"),
    KeyRow("atlas.memory.features", "str", "features of the learned memory"),
    KeyRow("atlas.memory.memory_rank", "u32", "directions of the states that a whitened memory learns on"),
    KeyRow(
        "atlas.memory.even_steps",
        "u32",
        "gradients from which a whitened memory evens its steps; 0: from the output matrix",
    ),
    KeyRow(
        "atlas.memory.states",
        "str",
        "whose states a whitened memory looks at: the final ones, or those of a middle layer",
    ),
    KeyRow("atlas.memory.omega_window", "u32", "tokens that one gradient looks at: c of the Omega rule, not whitened"),
    KeyRow("atlas.memory.chunk_size", "u32", "tokens per step of the learned memory"),
    KeyRow("atlas.memory.sharpness", "f64", "theta of the softmax over cosines in the window; learned from there"),
    KeyRow("atlas.memory.ranking", "bool", "also rank the window by what preceded and by age, learned while reading"),
    KeyRow(
        "atlas.memory.likeness",
        "str",
        "what makes a query like a key of the window: cosine, or learned while reading (whitened)",
    ),
    KeyRow("atlas.memory.candidates", "u32", "most likely tokens whose logits the memory corrects; 0: all"),
    KeyRow("atlas.memory.episode_tokens", "u32", "tokens of what was read and said that are kept; 0: none"),
    KeyRow("atlas.memory.recall", "str", "read again what helps with a question: auto, off, or always the best"),
    KeyRow("atlas.memory.recall_segments", "u32", "pieces that are read again for a question at most"),
    KeyRow("atlas.memory.recall_gate", "f64", "nats per token of the question that a piece must gain"),
    KeyRow("atlas.memory.file", "str", "a memory that was learned with this model: a file in the same folder"),
    KeyRow("atlas.memory.hash", "str", "SHA-256 of that file's bytes, as hex"),
    KeyRow("atlas.memory.model", "str", "identity of the model that the memory belongs to"),
    KeyRow("atlas.source.size", "u64", "size in bytes of the file that this one was converted from"),
    KeyRow("atlas.source.hash", "str", "XXH3-128 of that file's bytes before its tensor data"),
    KeyRow("atlas.source.padding", "str", "its padding before the data as hex, where not zeros"),
    KeyRow("atlas.source.added", "arr[str]", "the keys that the conversion added; removed on the way back"),
    KeyRow("atlas.pad", "str", "reserved space, so that metadata can grow without rewriting the file"),
)
# fmt: on

PAD_KEY = "atlas.pad"


def _pattern(key: str) -> re.Pattern[str]:
    text = re.escape(key)
    for slot, body in (("arch", r"[a-z0-9_\-]+"), ("n", r"\d+"), ("name", r"[^.]+")):
        text = text.replace(re.escape("{" + slot + "}"), body)
    return re.compile(text)


_EXACT_KEYS = {row.key: row for row in (*KNOWN_KEYS, *ATLAS_KEYS) if "{" not in row.key}
_PATTERN_KEYS: list[tuple[re.Pattern[str], KeyRow]] = []


def describe_key(key: str) -> KeyRow | None:
    """Return what is known about a metadata key, or ``None``."""
    row = _EXACT_KEYS.get(key)
    if row is not None:
        return row
    if not _PATTERN_KEYS:  # compiled when first needed: most runs never ask
        _PATTERN_KEYS.extend((_pattern(row.key), row) for row in KNOWN_KEYS if "{" in row.key)
    return next((row for pattern, row in _PATTERN_KEYS if pattern.fullmatch(key)), None)


def describe_value(key: str, value: object) -> str | None:
    """Return what a number stands for where a key has named values (``general.file_type`` 7: mostly Q8_0)."""
    named = {"general.file_type": FILE_TYPES, "atlas.storage_policy": STORAGE_POLICIES}.get(key)
    return named.get(value) if named is not None and isinstance(value, int) else None
