"""Ranges and rows of sources read as one, and what the names of pieces mean."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from atlas_kit.errors import TruncatedError
from atlas_kit.storage.part_names import part_name, parts_beside, parts_of
from atlas_kit.storage.parts import JoinedSource, SliceSource
from atlas_kit.storage.source import BytesSource, open_path

DATA = bytes(range(256)) * 3


@pytest.mark.parametrize("cuts", [(), (1,), (0, 5), (3, 3, 700), (100, 200, 300)])
def test_joined_sources_read_as_one(cuts: tuple[int, ...]) -> None:
    ends = [0, *cuts, len(DATA)]
    whole = JoinedSource([BytesSource(DATA[a:b]) for a, b in itertools.pairwise(ends)])
    assert whole.size == len(DATA)
    for offset in (0, 1, 2, 3, 99, 100, 255, 699, 767, 768, 900):
        for size in (0, 1, 2, 300, 1000):
            assert whole.read_upto(offset, size) == DATA[offset : offset + size]
            if offset + size <= len(DATA):
                assert bytes(whole.view(offset, size)) == DATA[offset : offset + size]
    with pytest.raises(TruncatedError):
        whole.read(700, 100)


def test_a_part_that_became_shorter_moves_nothing(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.write_bytes(DATA)
    with open_path(first) as source:
        whole = JoinedSource([source, BytesSource(b"second")])
        first.write_bytes(DATA[:10])
        with pytest.raises(TruncatedError):
            whole.read(0, len(DATA) + 3)
        assert whole.changed()


def test_a_range_reads_as_a_file() -> None:
    part = SliceSource(BytesSource(DATA, "f"), 10, 20)
    assert (part.size, part.path, part.read_upto(0, 100)) == (20, "f", DATA[10:30])
    assert part.read_upto(19, 5) == DATA[29:30]
    assert part.read_upto(20, 5) == b""
    assert bytes(part.view(5, 15)) == DATA[15:30]
    with pytest.raises(TruncatedError):
        part.view(5, 16)
    assert SliceSource(BytesSource(DATA), 760, 100).size == 8


@pytest.mark.parametrize(
    ("names", "given"),
    [
        (["m.gguf.part1of3", "m.gguf.part2of3", "m.gguf.part3of3"], 1),
        (["m.gguf.part1of11", *(f"m.gguf.part{i}of11" for i in range(2, 12))], 4),
        (["m.gguf.part0", "m.gguf.part1"], 1),
        (["m.gguf-split-a", "m.gguf-split-b", "m.gguf-split-c"], 0),
        (["m.gguf.aa", "m.gguf.ab"], 1),
        (["m.gguf.000", "m.gguf.001"], 0),
        (["m.gguf.a", "m.gguf.b"], 1),
        (["m.part1.gguf", "m.part2.gguf"], 1),
        (["m-part-01-of-02", "m-part-02-of-02"], 1),
        (["m_00", "m_01", "m_02"], 0),
        (["xaa", "xab"], 0),
        (["modelaa", "modelab"], 0),
    ],
)
def test_pieces_are_found_by_their_names(tmp_path: Path, names: list[str], given: int) -> None:
    for name in [*names, "m.gguf", "other.gguf.aa", "m.gguf.md", "m.gguf.bak", "README.md"]:
        (tmp_path / name).touch()
    found = parts_beside(str(tmp_path / names[given]))
    assert found is not None
    assert [Path(path).name for path in found.paths] == names
    assert found.missing == []
    assert parts_of([str(tmp_path / name) for name in reversed(names)]) == found


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["m.part1of3", "m.part3of3"], ["m.part2of3"]),
        (["m.part1of4", "m.part2of4"], ["m.part3of4", "m.part4of4"]),
        (["m.part2", "m.part3"], ["m.part1"]),
        (["m.gguf.aa", "m.gguf.ac"], ["m.gguf.ab"]),
        (["m.gguf.ab", "m.gguf.ac"], ["m.gguf.aa"]),
        (["m.009", "m.010"], [f"m.{i:03d}" for i in range(1, 9)]),
        (["m-split-a", "m-split-d"], ["m-split-b", "m-split-c"]),
    ],
)
def test_a_gap_has_a_name(tmp_path: Path, names: list[str], missing: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    found = parts_beside(str(tmp_path / names[-1]))
    assert found is not None
    assert [Path(path).name for path in found.missing] == missing


def test_letters_go_on_as_coreutils_counts_them(tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    two = [a + b for a in letters[:25] for b in letters]
    four = ["z" + a + b + c for a in letters[:2] for b in letters for c in letters]
    names = [f"m.gguf.{text}" for text in two + four]
    for name in names:
        (tmp_path / name).touch()
    found = parts_beside(str(tmp_path / names[3]))
    assert found is not None
    assert [Path(path).name for path in found.paths] == names
    (tmp_path / names[700]).unlink()
    found = parts_beside(str(tmp_path / names[3]))
    assert found is not None
    assert [Path(path).name for path in found.missing] == [names[700]]


@pytest.mark.parametrize("name", ["model.gguf", "README", "a", "", "m.json", "mixtral-8x7b.gguf"])
def test_other_names_are_those_of_no_piece(tmp_path: Path, name: str) -> None:
    for other in (name, "notes.txt", "model.bin", "m.yaml"):
        if other:
            (tmp_path / other).touch()
    assert parts_beside(str(tmp_path / name)) is None
    assert parts_of([str(tmp_path / "notes.txt"), str(tmp_path / "model.bin")]) is None


def test_what_a_name_says() -> None:
    found = part_name("m.Q4_K_M.gguf.part2of3")
    assert found is not None
    assert (found.text, found.count) == ("2", 3)
