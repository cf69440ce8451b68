"""What destroyed weights look like: every sign by itself, and silence about what sound models have."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_builder import F16_T, F32_T, Q8_0_T, File, Tensor, tiny_llama, weights

from atlas_kit.formats.findings import Finding, Report
from atlas_kit.formats.gguf import GGUFFile
from atlas_kit.formats.gguf.check import check_gguf
from atlas_kit.formats.gguf.tables import GGML_TYPE_BY_NUMBER, GGML_TYPES, SCALES, GGMLType
from atlas_kit.formats.safetensors import NewTensor, check_safetensors, write_safetensors
from atlas_kit.formats.weights.regions import KINDS, Region
from atlas_kit.formats.weights.scan import check_weights
from atlas_kit.storage.given import open_source

MIB = 1 << 20


def random_f16(count: int, seed: int = 1) -> bytes:
    return (np.random.default_rng(seed).standard_normal(count) * 0.05).astype("<f2").tobytes()


def big_llama(kind: int = F16_T) -> File:
    """A tiny Llama whose feed-forward matrices have 0.8 MB, so that downloads have something to break."""
    file = tiny_llama(layers=2, width=96, ff=4096, kind=kind)
    return replace(
        file,
        tensors=tuple(
            replace(t, data=weights(f"{n:04d}0000", t.dims, t.type)) for n, t in enumerate(file.tensors)
        ),
    )


def scan(data: bytes, *regions: Region) -> list[Finding]:
    report = Report()
    check_weights(report, open_source(data), regions)
    return report.findings()


def codes(findings: list[Finding]) -> set[str]:
    return {finding.code for finding in findings if finding.severity != "note"}


# --- numbers --------------------------------------------------------------------------------------------------


def test_every_type_has_its_place() -> None:
    """Each type has numbers of its own, scales, or only whole numbers; and every scale is inside its block."""
    integers = {GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64}
    for row in GGML_TYPES:
        assert (row.type in SCALES) == (row.dtype is None)
        for offset, kind in SCALES.get(row.type, ()):
            width = 8 if kind == "iq1_m" else KINDS[kind].width
            assert offset + width <= row.size
    assert integers < {row.type for row in GGML_TYPES if row.dtype}


@pytest.mark.parametrize("kind", sorted(SCALES))
def test_scales_that_are_no_numbers_are_found(kind: GGMLType) -> None:
    """A block with small scales and any quants is sound; the same with a NaN for a scale is not."""
    row = GGML_TYPE_BY_NUMBER[kind]
    rng = np.random.default_rng(int(kind))
    blocks = rng.integers(0, 256, (256, row.size), np.uint8)
    for offset, name in SCALES[kind]:
        width = 8 if name == "iq1_m" else KINDS[name].width
        blocks[:, offset : offset + width] = 1 if width == 1 else 0
    dims = (row.block * 16, 16)
    sound = File((), (Tensor("w", dims, int(kind), blocks.tobytes()),))
    assert not codes(check_gguf(open_source(sound.bytes()), deep=True)) & {
        "tensor-not-finite",
        "tensor-absurd",
    }
    for offset, name in SCALES[kind]:
        broken = blocks.copy()
        width = 8 if name == "iq1_m" else KINDS[name].width
        broken[200, offset : offset + width] = 0xFF
        file = File((), (Tensor("w", dims, int(kind), broken.tobytes()),))
        found = [f for f in check_gguf(open_source(file.bytes()), deep=True) if f.key == "w"]
        (finding,) = [f for f in found if f.code in ("tensor-not-finite", "tensor-absurd")]
        assert finding.severity == "error"
        assert finding.offset == len(file.bytes()) - -(-blocks.nbytes // 32) * 32 + 200 * row.size + offset


@pytest.mark.parametrize(
    ("kind", "dtype", "value", "code"),
    [
        ("f32", "<f4", np.nan, "tensor-not-finite"),
        ("f32", "<f4", -np.nan, "tensor-not-finite"),
        ("f32", "<f4", np.inf, "tensor-not-finite"),
        ("f32", "<f4", -np.inf, "tensor-not-finite"),
        ("f32", "<f4", 1e30, "tensor-absurd"),
        ("f32", "<f4", -1e30, "tensor-absurd"),
        ("f64", "<f8", -np.inf, "tensor-not-finite"),
        ("f16", "<f2", np.nan, "tensor-not-finite"),
        ("f16", "<f2", -np.inf, "tensor-not-finite"),
    ],
)
def test_numbers(kind: str, dtype: str, value: float, code: str) -> None:
    numbers = np.random.default_rng(1).standard_normal(4096).astype(dtype)
    width = numbers.itemsize
    region = Region("w", 0, numbers.nbytes, 64 * width, width, ((0, kind),))
    assert scan(numbers.tobytes(), region) == []
    numbers[1234] = value
    (finding,) = scan(numbers.tobytes(), region)
    assert (finding.code, finding.offset, finding.key) == (code, 1234 * width, "w")
    assert finding.message.startswith("1 of its numbers")


def test_large_numbers_in_a_vector_are_its_own_business() -> None:
    """Factors of frequencies are 1e30 where a dimension is not rotated."""
    numbers = np.full(64, 1e30, "<f4")
    assert scan(numbers.tobytes(), Region("rope_freqs.weight", 0, 256, 256, 4, ((0, "f32"),), False)) == []


def test_many_broken_tensors_are_told_in_a_few_lines() -> None:
    file = big_llama()
    file = replace(file, tensors=tuple(replace(t, data=b"\xff" * len(t.payload)) for t in file.tensors))
    found = check_gguf(open_source(file.bytes()), deep=True)
    assert 0 < len(found) <= 8
    assert any("more tensors" in finding.message for finding in found)


# --- what sound models have -----------------------------------------------------------------------------------


def unused_rows() -> File:
    """The last 200 tokens of the vocabulary were never used."""
    file = tiny_llama(width=96, kind=F16_T)
    data = bytearray(weights("token_embd.weight", (96, 288), F16_T))
    data[88 * 192 :] = bytes(200 * 192)
    return file.with_tensor("token_embd.weight", data=bytes(data))


def biases() -> File:
    file = big_llama()
    more = [Tensor(f"blk.{n}.attn_{x}.bias", (96,), F32_T, bytes(384)) for n in (0, 1) for x in "qkv"]
    return replace(file, tensors=(*file.tensors, *more))


def repeated_heads() -> File:
    """Eight heads of keys that were copied for 8 times as many."""
    head = random_f16(96 * 12)
    return tiny_llama(width=96, heads=8, kind=F16_T).with_tensor("blk.0.attn_k.weight", data=head * 8)


def tied() -> File:
    """The output matrix is the embedding, written once more; and a layer of a merge is there twice."""
    file = big_llama()
    same = {t.name: t.payload for t in file.tensors}
    file = file.with_tensor("output.weight", data=same["token_embd.weight"])
    return file.with_tensor("blk.1.ffn_up.weight", data=same["blk.0.ffn_up.weight"])


def ones() -> File:
    return big_llama().with_tensor("output_norm.weight", data=np.ones(96, "<f4").tobytes())


@pytest.mark.parametrize("make", [big_llama, unused_rows, biases, repeated_heads, tied, ones])
@pytest.mark.parametrize("deep", [False, True])
def test_sound_models_are_not_suspected(make: Callable[[], File], deep: bool) -> None:
    assert codes(check_gguf(open_source(make().bytes()), deep=deep)) <= {"tensor-many-zeros"}


def test_a_matrix_of_zeros_is_worth_a_warning() -> None:
    file = big_llama().with_tensor("blk.0.ffn_up.weight", data=bytes(96 * 4096 * 2))
    assert check_gguf(open_source(file.bytes())) == []
    (finding,) = check_gguf(open_source(file.bytes()), deep=True)
    assert (finding.code, finding.severity) == ("tensor-all-zeros", "warning")
    assert "other layers hold numbers there" in finding.hint
    both = file.with_tensor("blk.1.ffn_up.weight", data=bytes(96 * 4096 * 2))
    (finding,) = check_gguf(open_source(both.bytes()), deep=True)
    assert "a part that is not used" in finding.hint


def test_a_template_without_weights_is_no_broken_download() -> None:
    file = big_llama()
    file = replace(file, tensors=tuple(replace(t, data=bytes(len(t.payload))) for t in file.tensors))
    for deep in (False, True):
        found = check_gguf(open_source(file.bytes()), deep=deep)
        assert [(f.code, f.severity) for f in found] == [("tensor-all-zeros", "warning")]


@pytest.mark.parametrize("deep", [False, True])
def test_room_that_a_download_reserved_for_all_weights_is_no_template(deep: bool, tmp_path: Path) -> None:
    data = big_llama().bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with GGUFFile.open(path) as model:
        start = min(info.file_offset for info in model.tensor_infos)
    os.truncate(path, start)
    os.truncate(path, len(data))
    (finding,) = check_gguf(path, deep=deep)
    assert (finding.code, finding.severity) == ("tensor-zeroed", "error")
    assert "all weights are zeros" in finding.message


# --- zeros that are lost data -----------------------------------------------------------------------------------


def _zeroed(data: bytes, start: int, stop: int) -> bytes:
    return data[:start] + bytes(stop - start) + data[stop:]


@pytest.mark.parametrize("kind", [F32_T, F16_T, Q8_0_T])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("lost", [5000, MIB, 2 * MIB - 13])
def test_zeroed_tail(kind: int, deep: bool, lost: int) -> None:
    data = big_llama(kind).bytes()
    (finding,) = check_gguf(open_source(_zeroed(data, len(data) - lost, len(data))), deep=deep)
    assert (finding.code, finding.severity) == ("tensor-zeroed", "error")
    assert finding.offset is not None
    assert abs(finding.offset - (len(data) - lost)) < 64  # bytes that were zeros before, too
    assert "up to the end" in finding.message


@pytest.mark.parametrize("deep", [False, True])
def test_zeros_from_one_matrix_to_the_next(deep: bool) -> None:
    file = big_llama()
    for name in ("blk.1.ffn_up.weight", "blk.1.ffn_down.weight"):
        file = file.with_tensor(name, data=bytes(96 * 4096 * 2))
    (finding,) = check_gguf(open_source(file.bytes()), deep=deep)
    assert finding.code == "tensor-zeroed"


def test_a_lost_segment_in_the_middle() -> None:
    data = big_llama().bytes()
    start = len(data) // 2 + 777
    (finding,) = check_gguf(open_source(_zeroed(data, start, start + MIB)))
    assert finding.code == "tensor-zeroed"
    (finding,) = check_gguf(open_source(_zeroed(data, start, start + 40_000)), deep=True)
    assert finding.code == "tensor-zeroed"


def test_a_hole_in_the_file(tmp_path: Path) -> None:
    data = big_llama().bytes()
    path = tmp_path / "model.gguf"
    start, stop = 3 * MIB + 64 * 1024, 3 * MIB + 96 * 1024
    with path.open("wb") as file:
        file.write(data[:start])
        file.seek(stop)
        file.write(data[stop:])
    (finding,) = check_gguf(path)
    assert finding.code == "tensor-zeroed"
    os.truncate(path, 4 * MIB)
    os.truncate(path, len(data))
    assert len([f for f in check_gguf(path) if f.code == "tensor-zeroed"]) == 2


# --- data that are there twice -----------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [65536, MIB, 1_000_000, 123_457])
def test_a_download_that_was_resumed_too_early(early: int) -> None:
    data = big_llama().bytes()
    at = len(data) // 2 + 12_345
    longer = data[:at] + data[at - early :]
    (finding,) = [f for f in check_gguf(open_source(longer)) if f.severity == "error"]
    assert (finding.code, finding.offset) == ("data-repeated", at)
    assert f"{early} bytes too early" in finding.message
    assert codes(check_gguf(open_source(longer[: len(data)]), deep=True)) & {
        "data-repeated",
        "tensor-not-finite",
    }
    if early % 2 == 0:  # the numbers are plausible, only not where they belong
        found = check_gguf(open_source(longer[: len(data)]), deep=True)
        assert [f.offset for f in found if f.code == "data-repeated"] == [at]


@pytest.mark.parametrize("kind", [F16_T, Q8_0_T])
def test_a_download_that_was_begun_again(kind: int) -> None:
    data = big_llama(kind).bytes()
    at = len(data) // 3
    findings = check_gguf(open_source(data[:at] + data))
    assert [f.code for f in findings if f.severity == "error"] == ["data-repeated"]
    assert "begun again" in next(f.message for f in findings if f.code == "data-repeated")


def test_shifted_blocks_have_impossible_scales() -> None:
    data = big_llama(Q8_0_T).bytes()
    at = len(data) // 2
    shifted = (data[:at] + data[at - MIB :])[: len(data)]
    found = codes(check_gguf(open_source(shifted), deep=True))
    assert {"tensor-not-finite", "data-repeated"} <= found


# --- safetensors ---------------------------------------------------------------------------------------------------


def _safetensors(path: Path, numbers: np.ndarray, dtype: str = "F16") -> bytes:
    with path.open("wb") as file:
        raw = numbers.tobytes()
        write_safetensors(file, [NewTensor("w", dtype, numbers.shape, lambda: [raw])])
    return path.read_bytes()


def test_safetensors(tmp_path: Path) -> None:
    numbers = np.frombuffer(random_f16(1024 * 1000), "<f2").reshape(1000, 1024).copy()
    data = _safetensors(tmp_path / "w.safetensors", numbers)
    assert check_safetensors(data, deep=True) == []
    assert codes(check_safetensors(data[:-9999] + bytes(9999))) == {"tensor-zeroed"}
    numbers[7, 3] = np.nan
    data = _safetensors(tmp_path / "w.safetensors", numbers)
    assert check_safetensors(data) == []
    assert codes(check_safetensors(data, deep=True)) == {"tensor-not-finite"}
