"""A model for machines of the other byte order: every number of the header, and of the tensors' data, turned round.

Plain tensors are numbers of one width. Of the blocks of quantised ones, ``GGMLTypeRow.swap`` says where numbers of
several bytes are; types of which it does not say so cannot be converted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from atlas_kit.errors import InvalidParamError
from atlas_kit.formats.gguf.shards import SPLIT_KEYS
from atlas_kit.formats.gguf.write import Progress, TensorSource, write_gguf

if TYPE_CHECKING:
    from atlas_kit.formats.gguf.file import GGUFFile
    from atlas_kit.formats.gguf.tables import GGMLTypeRow
    from atlas_kit.formats.gguf.tensors import TensorInfo
    from atlas_kit.storage.source import StrPath

#: About so many bytes are turned round at a time.
_PIECE = 1 << 20
#: Big-endian files exist since version 3.
BIG_ENDIAN_VERSION = 3


def write_in_byte_order(
    path: StrPath, model: GGUFFile, byte_order: str, *, progress: Progress | None = None
) -> int:
    """Write a model, of all its shards, in ``byte_order`` (``"<"`` or ``">"``); return the file's size.

    Raises
    ------
    InvalidParamError
        It has this byte order already, or a tensor of a type whose blocks cannot be turned round.
    """
    model.require_writable()
    model.require_all_shards()
    if model.byte_order == byte_order:
        name = "big" if byte_order == ">" else "little"
        raise InvalidParamError(f"the file is {name}-endian already", path=model.path)
    model.require_data()
    tensors = [
        TensorSource(info.name, info.dims, info.type, swapped_data(model, info), info.nbytes or 0)
        for info in model.tensor_infos
    ]
    fields = [item for item in model.fields if item.key not in SPLIT_KEYS]
    version = max(model.version, BIG_ENDIAN_VERSION)
    return write_gguf(path, fields, tensors, version=version, byte_order=byte_order, progress=progress)


def swapped_data(model: GGUFFile, info: TensorInfo) -> Callable[[], Iterator[bytes]]:
    """Return a function that yields the bytes of a tensor in the other byte order.

    Raises
    ------
    InvalidParamError
        It is not known where in its blocks numbers of several bytes are.
    """
    row = info.row
    if row is None or (row.dtype is None and row.swap is None):
        raise InvalidParamError(
            f"{info.type_name} cannot be converted to another byte order", path=info.path, key=info.name
        )
    return partial(_pieces, model, info, row)


def _pieces(model: GGUFFile, info: TensorInfo, row: GGMLTypeRow) -> Iterator[bytes]:
    whole = max(1, _PIECE // row.size) * row.size
    for piece in model.iter_raw(info, whole):
        yield _turned(piece, row)


def _turned(data: bytes, row: GGMLTypeRow) -> bytes:
    import numpy as np

    if row.dtype is not None:
        return bytes(np.frombuffer(data, row.dtype).byteswap().tobytes())
    blocks = np.frombuffer(data, np.uint8).reshape(-1, row.size).copy()
    for offset, size in row.swap or ():
        blocks[:, offset : offset + size] = blocks[:, offset : offset + size][:, ::-1].copy()
    return bytes(blocks.tobytes())
