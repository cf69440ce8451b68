"""The byte ranges of a file, and the fields of a safetensors header: where everything is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atlas_kit.codecs.json_text import named
from atlas_kit.operations.hex_line import HexLine
from atlas_kit.storage.source import Source


@dataclass(frozen=True)
class MapRegion:
    """A range of bytes of one kind."""

    offset: int
    size: int
    kind: str
    name: str

    def to_json(self) -> dict[str, Any]:
        """Return the region as JSON-ready data."""
        return {"offset": self.offset, "size": self.size, "kind": self.kind, **named("name", self.name)}


def regions_of(source: Source, kind: str, secret: dict[str, Any]) -> list[MapRegion]:
    """Return the regions of a file in order, without gaps."""
    if kind == "atlas":
        from atlas_kit.formats.atlas.view import byte_map

        found = [MapRegion(r.offset, r.size, r.kind, r.name) for r in byte_map(source, **secret)]
    elif kind == "gguf":
        found = _gguf_regions(source)
    else:
        found = _safetensors_regions(source)
    return _filled(found, source.size)


def _filled(found: list[MapRegion], size: int) -> list[MapRegion]:
    """Sort regions, cut them to the file, and name what is between and behind them."""
    out: list[MapRegion] = []
    position = 0
    for region in sorted(found, key=lambda r: (r.offset, r.size)):
        start, stop = max(region.offset, position), min(region.offset + region.size, size)
        if stop <= start:
            continue
        if start > position:
            out.append(MapRegion(position, start - position, "padding", ""))
        out.append(MapRegion(start, stop - start, region.kind, region.name))
        position = stop
    if position < size:
        out.append(MapRegion(position, size - position, "unused", "after the last part"))
    return out


def _gguf_regions(source: Source) -> list[MapRegion]:
    from atlas_kit.formats.gguf import GGUFFile

    with GGUFFile.open(source, shards=False, tolerant=True) as model:
        regions = []
        first = min((row.offset for row in model.fields), default=model.header_size)
        regions.append(MapRegion(0, min(first, 24), "header", "magic, version, counts"))
        regions += [MapRegion(row.offset, row.size, "metadata", row.key) for row in model.fields]
        for info in model.tensor_infos:
            regions.append(MapRegion(info.info_offset, info.info_size, "tensor info", info.name))
            if info.nbytes:
                regions.append(MapRegion(info.file_offset, info.nbytes, "tensor", info.name))
        return regions


def _safetensors_regions(source: Source) -> list[MapRegion]:
    from atlas_kit.formats.safetensors import SafetensorsFile

    with SafetensorsFile.open(source) as file:
        regions = [
            MapRegion(0, 8, "header", "length of the header"),
            MapRegion(8, file.data_start - 8, "metadata", "the header, as JSON"),
        ]
        return regions + [MapRegion(t.offset, t.size, "tensor", t.name) for t in file.tensors.values()]


def safetensors_fields(source: Source) -> list[HexLine]:
    """Return the few fields of a safetensors file."""
    from atlas_kit.formats.safetensors import SafetensorsFile

    with SafetensorsFile.open(source) as file:
        read = file.source.read_upto
        length = file.data_start - 8
        lines = [
            HexLine(0, 8, read(0, 8), "header_length", "u64", str(length), "bytes of the JSON header"),
            HexLine(8, length, read(8, 16), "header", "JSON", "", "names, types, shapes and places"),
        ]
        for info in file.tensors.values():
            value = f"{info.dtype} {list(info.shape)}"
            lines.append(
                HexLine(
                    info.offset,
                    info.size,
                    read(info.offset, min(16, info.size)),
                    info.name,
                    "tensor",
                    value,
                    "",
                )
            )
        return lines
