"""What llama.cpp dies of, or answers nonsense for, at the first token of a model that it has loaded.

Its operations assert what loading does not look at: that the epsilon of a norm is not negative, that norms and
biases are single precision, that matrices are of a type which can be multiplied. Called by ``check_model``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from atlas_kit.errors import Remedy
from atlas_kit.formats.gguf.tables import GGMLType, ValueType, ggml_type_name
from atlas_kit.formats.gguf.tensors import TensorInfo

if TYPE_CHECKING:
    from atlas_kit.formats.findings import Report
    from atlas_kit.formats.gguf.values import MetadataField

Fields = Mapping[str, "MetadataField"]

#: Types that ggml stores and computes with, and multiplies no matrix of.
_NOT_MULTIPLIED = frozenset(
    (GGMLType.Q8_1, GGMLType.Q8_K, GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64, GGMLType.F64)
)
#: Tables of numbers that are looked up and not multiplied.
_LOOKED_UP = re.compile(r"(^|[._])(ids|tid2eid)($|[._])")
#: Vectors that are multiplied like matrices of one row.
_ROWS = re.compile(r"ffn_gate_inp|cls|dense")
_EPSILONS = (
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.group_norm_epsilon",
)
_BASES = ("rope.freq_base", "rope.freq_base_swa")
#: Further numbers that make every logit NaN when they are, and the families that use them (tried with each, October
#: 2026); all that rotate, where none is named. Elsewhere NaN is odd and harmless.
_SCALES: dict[str, tuple[str, ...]] = {
    "rope.scaling.factor": (),
    "rope.scaling.attn_factor": (),
    "logit_scale": ("granite", "granitemoe", "minicpm", "command-r", "cohere2"),
    "attention.scale": ("granite", "granitemoe"),
    "embedding_scale": ("granite", "granitemoe", "minicpm"),
    "residual_scale": ("granite", "granitemoe", "minicpm"),
    "attn_logit_softcapping": ("gemma2",),
    "final_logit_softcapping": ("gemma2", "gemma3"),
    "expert_weights_scale": ("bailingmoe", "deepseek"),
}


def check_decode(report: Report, known: Fields, architecture: str, tensors: list[TensorInfo]) -> None:
    """Check numbers and tensor types that llama.cpp takes while loading and not while computing."""
    _check_numbers(report, known, architecture)
    _check_types(report, tensors)


def _check_numbers(report: Report, known: Fields, architecture: str) -> None:
    def value(name: str) -> tuple[MetadataField | None, float]:
        item = known.get(f"{architecture}.{name}")
        return (item, item.items) if item is not None and item.type == ValueType.FLOAT32 else (None, 0.0)

    for name in _EPSILONS:
        item, number = value(name)
        if item is not None and not number >= 0:
            _wrong(
                report, item, f"the epsilon of its norms is {number:g}: llama.cpp aborts at the first token"
            )
    for name in _BASES:
        item, number = value(name)
        if item is not None and not number > 0:
            _wrong(report, item, f"a base of {number:g} for the rotation makes all logits NaN")
    scaling = known.get(f"{architecture}.rope.scaling.type")
    yarn = scaling is not None and scaling.items == "yarn"
    for name, users in _SCALES.items():
        item, number = value(name)
        if item is None:
            continue
        if math.isnan(number) and (not users or architecture in users):
            _wrong(report, item, "it is NaN, and with it everything that is computed from it")
        elif math.isnan(number):
            _odd(report, item, "it is NaN")
        elif name == "rope.scaling.factor" and (number < 0 or math.isinf(number)):
            if yarn:
                _wrong(report, item, f"a factor of {number:g} makes all logits NaN")
            else:
                _odd(report, item, f"a factor of {number:g} for positions makes no sense")


def _wrong(report: Report, item: MetadataField, message: str) -> None:
    remedy = Remedy("change-value", key=item.key)
    report.error("key-value-wrong", message, offset=item.value_offset, key=item.key, remedy=remedy)


def _odd(report: Report, item: MetadataField, message: str) -> None:
    remedy = Remedy("change-value", key=item.key)
    report.warning("key-value-odd", message, offset=item.value_offset, key=item.key, remedy=remedy)


def _check_types(report: Report, tensors: list[TensorInfo]) -> None:
    for info in tensors:
        if info.row is None or not info.elements or info.name.startswith("atlas."):
            continue
        vector = len(info.dims) <= 1
        if ("norm" in info.name or vector) and info.type != GGMLType.F32 and not _ROWS.search(info.name):
            _unusable(report, info, "added, multiplied or rotated by: llama.cpp takes only F32 for that")
        elif not vector and info.type in _NOT_MULTIPLIED and not _LOOKED_UP.search(info.name):
            _unusable(report, info, "multiplied: llama.cpp has no such operation for matrices")


def _unusable(report: Report, info: TensorInfo, what: str) -> None:
    report.error(
        "tensor-type-unusable",
        f"a tensor of type {ggml_type_name(info.type)} cannot be {what}, and aborts at the first token",
        "Convert the model again.",
        offset=info.info_offset,
        key=info.name,
    )
