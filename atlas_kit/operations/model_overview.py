"""A GGUF model at a glance."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from atlas_kit.operations.companions import companion_facts

if TYPE_CHECKING:
    from atlas_kit.formats.gguf import GGUFFile

#: (name in the overview, key; ``{arch}`` is the architecture)
_KEYS = (
    ("name", "general.name"),
    ("type", "general.type"),
    ("license", "general.license"),
    ("context_length", "{arch}.context_length"),
    ("embedding_length", "{arch}.embedding_length"),
    ("block_count", "{arch}.block_count"),
    ("head_count", "{arch}.attention.head_count"),
    ("expert_count", "{arch}.expert_count"),
    ("tokenizer", "tokenizer.ggml.model"),
    ("pre_tokenizer", "tokenizer.ggml.pre"),
)


def model_overview(model: GGUFFile) -> dict[str, Any]:
    """Return what one wants to know first, as JSON-ready data."""
    from atlas_kit.formats.gguf.shards import shard_count

    arch = _text(model, "general.architecture")
    facts: dict[str, Any] = {
        "version": model.version or _claimed_version(model),
        "byte_order": "big-endian" if model.byte_order == ">" else "little-endian",
        "architecture": arch,
    }
    for name, key in _KEYS:
        facts[name] = _scalar(model, key.format(arch=arch))
    file_type = _scalar(model, "general.file_type")
    facts["file_type"] = _file_type(file_type) if isinstance(file_type, int) else None
    tokens = model.metadata.get("tokenizer.ggml.tokens")
    facts["vocabulary_size"] = tokens.count if tokens is not None and tokens.is_array else None
    facts["chat_template"] = "tokenizer.chat_template" in model.metadata
    facts["alignment"] = model.alignment
    facts["metadata_count"] = len(model.fields)
    facts["tensor_count"] = len(model.tensor_infos)
    facts["parameters"] = sum(info.elements for info in model.tensor_infos)
    facts["tensor_types"] = _types(model)
    facts["tensor_bytes"] = sum(info.nbytes or 0 for info in model.tensor_infos)
    facts["header_size"] = model.header_size
    count = shard_count(model.metadata)
    alone = count > 1 and not model.is_split
    number = model.get("split.no", 0)
    number = number + 1 if isinstance(number, int) else None
    facts["shard"] = {"number": number, "count": count} if alone else None
    facts["shards"] = [str(shard.path) for shard in model.shards] if model.is_split else []
    facts["vocabulary_only"] = model.is_vocabulary_only and model.error is None
    facts["readable"] = model.error is None
    facts["atlas"] = {
        key: _scalar(model, key)
        for key in model.metadata
        if key.startswith("atlas.") and _is_scalar(model, key)
    }
    facts["companion"] = companion_facts(model) if model.error is None else None
    return facts


def _claimed_version(model: GGUFFile) -> int:
    """Return the version that a header which cannot be read says it has."""
    return int.from_bytes(model.source.read_upto(4, 4), "little")


def _types(model: GGUFFile) -> dict[str, dict[str, int]]:
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for info in model.tensor_infos:
        count[info.type_name] += 1
        size[info.type_name] += info.nbytes or 0
    return {name: {"count": number, "bytes": size[name]} for name, number in count.most_common()}


def _file_type(number: int) -> str:
    from atlas_kit.formats.gguf.tables import FILE_TYPES

    return FILE_TYPES.get(number, f"type {number}")


def _is_scalar(model: GGUFFile, key: str) -> bool:
    row = model.metadata.get(key)
    return row is not None and not row.is_array


def _scalar(model: GGUFFile, key: str) -> Any:
    return model.metadata[key].items if _is_scalar(model, key) else None


def _text(model: GGUFFile, key: str) -> str | None:
    value = _scalar(model, key)
    return value if isinstance(value, str) else None
