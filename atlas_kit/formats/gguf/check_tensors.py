"""The list of tensors compared with what llama.cpp creates for the model family, in both directions.

"wrong number of tensors" is all that llama.cpp says when a tensor is left over; here each has its name. Where
a key may change the list, or the family is not in the table (``architectures``), findings are warnings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import Remedy
from atlas_kit.formats.gguf import architectures
from atlas_kit.formats.gguf.architectures import MAX_LAYERS, Plan
from atlas_kit.formats.gguf.tensors import TensorInfo

if TYPE_CHECKING:
    from atlas_kit.formats.findings import Report
    from atlas_kit.formats.gguf.values import MetadataField

Fields = Mapping[str, "MetadataField"]


def check_tensors(
    report: Report, known: Fields, architecture: str, tensors: list[TensorInfo], tokens: int | None
) -> None:
    """Compare the tensors with what llama.cpp creates for the family, in both directions.

    ``tokens`` is the size of the vocabulary, ``None`` if that is not known.
    """
    foreign = [info for info in tensors if info.name.startswith("atlas.")]
    for info in foreign:
        _unexpected(report, info, certain=True)
    values = _values(known, architecture)
    experts = values.get("expert_count")
    plan = architectures.plan_of(architecture, experts=isinstance(experts, int) and experts > 0)
    rest = [info for info in tensors if info not in foreign] if foreign else tensors
    if plan is None:
        _check_untabled(report, architecture, rest)
        return
    odd = sorted(key for key in values if key in architectures.ALTERING_KEYS)
    if values.get("rope.scaling.type") == "longrope" and architecture != "phi3":
        odd.append("rope.scaling.type")
    if odd:
        names = ", ".join(odd[:5])
        message = f"the list of tensors cannot be checked for certain: it may depend on {names}"
        report.note("tensor-list-uncertain", message)
    _compare(report, plan, values, rest, tokens, architecture, certain=not odd)


def _values(known: Fields, architecture: str) -> dict[str, Any]:
    """Return the keys of the architecture, without its name; arrays as lists."""
    prefix, out = f"{architecture}.", {}
    for key, item in known.items():
        if key.startswith(prefix):
            value = item.items
            out[key[len(prefix) :]] = value.tolist() if item.is_array and item.count < 1024 else value
    return out


def _unexpected(report: Report, info: TensorInfo, *, certain: bool, prefix: str = "") -> None:
    report.add(
        "tensor-unexpected",
        "error" if certain else "warning",
        "llama.cpp has no use for this tensor: it says 'wrong number of tensors' and refuses the file"
        if certain
        else "no tensor of this name is known of this model family: llama.cpp may refuse the file",
        "Convert the model again." if "\0" in info.name else "",  # nobody can type it
        offset=info.info_offset,
        key=info.name,
        remedy=Remedy("remove-prefix", pattern=f"{prefix}*")
        if prefix and info.name.startswith(prefix)
        else None
        if "\0" in info.name
        else Remedy("remove-tensor", key=info.name),
    )


def _check_untabled(report: Report, architecture: str, tensors: list[TensorInfo]) -> None:
    message = f"which tensors a {architecture} model must have is not known here: the list was not checked"
    report.note("tensor-list-unknown", message)
    for info in tensors:
        if "atlas" in info.name:
            _unexpected(report, info, certain=False)


def _expected(
    plan: Plan, layers: int, fused: frozenset[int]
) -> Iterator[tuple[str, tuple[str, ...], int, bool]]:
    """Yield (name, dimensions, layer, required) of every tensor that the plan speaks of."""
    for part, required in ((plan.model, True), (plan.model_optional, False)):
        for name, dims in part.items():
            yield name, dims, 0, required
    for layer in range(layers):
        for part, required in ((plan.block, True), (plan.block_optional, False)):
            for name, dims in part.items():
                if layer not in fused or not re.match(r"attn_[qkv]\.", name):
                    yield f"blk.{layer}.{name}", dims, layer, required
        if layer in fused:
            yield f"blk.{layer}.attn_qkv.weight", ("E", "Q+K+W"), layer, True
            yield f"blk.{layer}.attn_qkv.bias", ("Q+K+W",), layer, False


def _compare(
    report: Report,
    plan: Plan,
    values: dict[str, Any],
    tensors: list[TensorInfo],
    tokens: int | None,
    architecture: str,
    *,
    certain: bool,
) -> None:
    layers = values.get("block_count")
    if not isinstance(layers, int) or not 0 < layers <= MAX_LAYERS:
        return
    there = {info.name: info for info in tensors}
    fused = frozenset(
        layer for layer in range(layers) if plan.fused and f"blk.{layer}.attn_qkv.weight" in there
    )
    sizes = [architectures.sizes(values, layer, tokens) for layer in range(layers)]
    _check_rotation(report, values, sizes[0], architecture)
    wanted = set()
    expected = list(_expected(plan, layers, fused))
    prefix = _prefix_of([name for name, _, _, required in expected if required], there)
    for name, dims, layer, required in expected:
        info = there.get(name)
        wanted.add(name)
        if info is not None:
            shape = [architectures.evaluate(dim, sizes[layer]) for dim in dims]
            _check_dimensions(report, info, shape, certain=certain)
        elif required:
            report.add(
                "tensor-missing",
                "error" if certain else "warning",
                f"a {architecture} model of {layers} layers needs this tensor and it is missing",
                "" if prefix else "The file is incomplete: copy, download or convert it again.",
                key=name,
                remedy=Remedy("remove-prefix", pattern=f"{prefix}*") if prefix else None,
            )
    for info in tensors:
        if info.name not in wanted and not _is_scale(info.name, there):
            _unexpected(report, info, certain=certain, prefix=prefix)


def _prefix_of(required: list[str], there: Mapping[str, TensorInfo]) -> str:
    """Return what stands before the names of all required tensors (``model.``), or nothing."""
    if not required or required[0] in there:
        return ""
    before = [name.removesuffix(required[0]) for name in there if name.endswith(required[0])]
    if len(before) != 1 or not re.fullmatch(r"[\w.:/-]*[./:_-]", before[0]):
        return ""
    return before[0] if all(f"{before[0]}{name}" in there for name in required) else ""


def _is_scale(name: str, there: Mapping[str, TensorInfo]) -> bool:
    """Tell whether this is the scale that may come with a weight."""
    for suffix in (".input_scale", ".scale"):
        stem = name.removesuffix(suffix)
        if stem != name:
            return stem.rpartition(".")[2] in architectures.SCALED and f"{stem}.weight" in there
    return False


def _check_rotation(
    report: Report, values: dict[str, Any], sizes: Mapping[str, int], architecture: str
) -> None:
    rotated, head = values.get("rope.dimension_count"), sizes.get("k")
    if architecture not in architectures.FULL_ROTATION or not isinstance(rotated, int) or head is None:
        return
    if rotated != head:
        message = f"{rotated} dimensions are rotated, and llama.cpp wants all {head} of a head"
        report.error("key-value-wrong", message, key=f"{architecture}.rope.dimension_count")


def _check_dimensions(report: Report, info: TensorInfo, shape: list[int | None], *, certain: bool) -> None:
    if None in shape:
        return
    wanted = [size or 0 for size in shape]
    given = list(info.dims)
    if given + [1] * (4 - len(given)) != wanted + [1] * (4 - len(wanted)):
        report.add(
            "tensor-shape-wrong",
            "error" if certain else "warning",
            f"its shape is {_shape(given)}, and the model's keys ask for {_shape(wanted)}",
            "A key or the tensor is wrong: convert the model again.",
            offset=info.info_offset,
            key=info.name,
        )


def _shape(dims: list[int]) -> str:
    return " x ".join(map(str, dims)) or "a single number"
