"""GGUF, the model files of llama.cpp: read lazily, edit, write, hash, convert to and from ATLAS-native.

``tables`` holds the numbers, ``layout`` the bytes, ``file`` the behaviour; the specification with our
additions is ``formats/gguf.md``. Names are loaded when first used, so that importing costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kit.lazy_names import lazy_names

if TYPE_CHECKING:
    from atlas_kit.formats.gguf.check import check_gguf
    from atlas_kit.formats.gguf.digest import ModelDigest, hash_tensors, model_identity
    from atlas_kit.formats.gguf.edit import Delete, EditResult, Rename, Set, edit_metadata
    from atlas_kit.formats.gguf.file import GGUFFile
    from atlas_kit.formats.gguf.journal import recover_journal
    from atlas_kit.formats.gguf.mend import MendResult, mend_gguf
    from atlas_kit.formats.gguf.native import NativeResult, to_native, to_stock
    from atlas_kit.formats.gguf.scan import HeaderScan, hex_fields, scan_header
    from atlas_kit.formats.gguf.strings import LazyStrings
    from atlas_kit.formats.gguf.tables import GGMLType, ValueType
    from atlas_kit.formats.gguf.tensors import TensorInfo
    from atlas_kit.formats.gguf.values import ArrayValue, MetadataField
    from atlas_kit.formats.gguf.write import TensorSource, write_gguf

_HOMES = {
    "ArrayValue": ".values",
    "Delete": ".edit",
    "EditResult": ".edit",
    "GGMLType": ".tables",
    "GGUFFile": ".file",
    "HeaderScan": ".scan",
    "LazyStrings": ".strings",
    "MendResult": ".mend",
    "MetadataField": ".values",
    "ModelDigest": ".digest",
    "NativeResult": ".native",
    "Rename": ".edit",
    "Set": ".edit",
    "TensorInfo": ".tensors",
    "TensorSource": ".write",
    "ValueType": ".tables",
    "check_gguf": ".check",
    "edit_metadata": ".edit",
    "hash_tensors": ".digest",
    "hex_fields": ".scan",
    "mend_gguf": ".mend",
    "model_identity": ".digest",
    "recover_journal": ".journal",
    "scan_header": ".scan",
    "to_native": ".native",
    "to_stock": ".native",
    "write_gguf": ".write",
}

__all__ = [
    "ArrayValue",
    "Delete",
    "EditResult",
    "GGMLType",
    "GGUFFile",
    "HeaderScan",
    "LazyStrings",
    "MendResult",
    "MetadataField",
    "ModelDigest",
    "NativeResult",
    "Rename",
    "Set",
    "TensorInfo",
    "TensorSource",
    "ValueType",
    "check_gguf",
    "edit_metadata",
    "hash_tensors",
    "hex_fields",
    "mend_gguf",
    "model_identity",
    "recover_journal",
    "scan_header",
    "to_native",
    "to_stock",
    "write_gguf",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
