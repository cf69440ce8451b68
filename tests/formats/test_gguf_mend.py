"""Mending GGUF files: every injury; the result loads in llama.cpp and intact tensors are the same."""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_builder import (
    ARR,
    F32_T,
    HOSTILE,
    I32,
    KV,
    STR,
    U8,
    U16,
    U32,
    U64,
    Array,
    File,
    Tensor,
    build,
    padding,
    tiny_llama,
    vocab_only,
)
from llama_oracle import LlamaOracle, OracleUnavailableError

from atlas_kit.errors import AtlasError, FileCorruptError, InvalidParamError
from atlas_kit.formats.gguf.check import check_gguf, is_ok, read_records
from atlas_kit.formats.gguf.file import GGUFFile
from atlas_kit.formats.gguf.lost_file import Lost, write_lost
from atlas_kit.formats.gguf.mend import MendResult, mend_gguf
from atlas_kit.storage.given import open_source

TINY = tiny_llama()
WHOLE = TINY.bytes()
DATA = {str(tensor.name): tensor.payload for tensor in TINY.tensors}
COUNT = len(DATA)


@pytest.fixture(scope="module")
def oracle() -> Iterator[LlamaOracle | None]:
    try:
        oracle = LlamaOracle()
    except OracleUnavailableError:
        yield None  # everything but llama.cpp's word is checked all the same
        return
    with oracle:
        yield oracle


def offsets(file: File = TINY, align: int = 32) -> list[int]:
    out, running = [], 0
    for tensor in file.tensors:
        out.append(running)
        running += len(tensor.payload) + len(padding(len(tensor.payload), align))
    return out


def with_offsets(values: list[int]) -> File:
    tensors = zip(TINY.tensors, values, strict=True)
    return replace(TINY, tensors=tuple(replace(t, offset=value) for t, value in tensors))


def changed(index: int, value: int) -> bytes:
    values = offsets()
    values[index] = value
    return with_offsets(values).bytes()


def patched(at: int, data: bytes) -> bytes:
    return WHOLE[:at] + data + WHOLE[at + len(data) :]


def with_gap() -> bytes:
    """64 unused bytes behind the fourth tensor; the offsets know of them."""
    values = [value + (64 if index > 3 else 0) for index, value in enumerate(offsets())]
    head = build(with_offsets(values))[: -len(body(TINY.tensors))]
    return head + body(TINY.tensors[:4]) + bytes(64) + body(TINY.tensors[4:])


def permuted() -> bytes:
    """The data of two tensors lies in the other's place; the offsets know of it."""
    order = list(range(COUNT))
    order[3], order[7] = 7, 3
    moved = [TINY.tensors[index] for index in order]
    place = dict(zip(order, offsets(replace(TINY, tensors=tuple(moved))), strict=True))
    head = build(with_offsets([place[index] for index in range(COUNT)]))[: -len(body(TINY.tensors))]
    return head + body(moved)


def body(tensors: object) -> bytes:
    return b"".join(t.payload + padding(len(t.payload), 32) for t in tensors)  # type: ignore[attr-defined]


def at(text: bytes) -> int:
    return WHOLE.index(text)


def mappable(align: int) -> bytes:
    """An alignment below 32 with data that starts at a multiple of 32 all the same."""
    files = (tiny_llama(align=align).with_kv(KV("x.pad", STR, "p" * size)) for size in range(32))
    return next(data for data in (file.bytes() for file in files) if starts_at(data) % 32 == 0)


def starts_at(data: bytes) -> int:
    with open_source(data) as source:
        records = read_records(source)
    assert records is not None
    return records[2]


#: Another tensor's worth of data.
OTHER = bytes(range(1, 256)) * (len(TINY.tensors[4].payload) // 255 + 1)
OTHER = OTHER[: len(TINY.tensors[4].payload)]


#: Injuries that can be mended wholly: name -> (bytes, code of the action).
MENDABLE: dict[str, tuple[bytes, str]] = {
    **{
        f"{what} {delta:+}": (replace(TINY, **{field: count + delta}).bytes(), "count-corrected")
        for what, field, count in (("pairs", "n_kv", len(TINY.kv)), ("tensors", "n_tensors", COUNT))
        for delta in (-count, -3, -1, 1, 3, 2**40)
    },
    "both counts": (replace(TINY, n_kv=0, n_tensors=0).bytes(), "count-corrected"),
    "offset beyond the file": (changed(5, 1 << 40), "offset-corrected"),
    "offset 2^64": (changed(0, 2**64 - 32), "offset-corrected"),
    "offset unaligned": (changed(0, 4), "offset-corrected"),
    "offset overlapping": (changed(5, 64), "offset-corrected"),
    "all offsets 0": (with_offsets([0] * COUNT).bytes(), "offset-corrected"),
    "all offsets shifted": (with_offsets([value + 32 for value in offsets()]).bytes(), "offset-corrected"),
    "gap": (with_gap(), "offset-corrected"),
    "order": (permuted(), "offset-corrected"),
    "no padding before data": (replace(TINY, before_data=b"").bytes(), "padding-restored"),
    "no padding at all": (replace(TINY, before_data=b"", pad_last=False).bytes(), "padding-restored"),
    "alignment 0": (TINY.with_kv(KV("general.alignment", U32, 0)).bytes(), "alignment-corrected"),
    "alignment 48": (TINY.with_kv(KV("general.alignment", U32, 48)).bytes(), "alignment-corrected"),
    "alignment too small": (TINY.with_kv(KV("general.alignment", U32, 8)).bytes(), "alignment-corrected"),
    "alignment too large": (
        with_offsets(offsets()).with_kv(KV("general.alignment", U32, 4096)).bytes(),
        "alignment-corrected",
    ),
    "alignment u64": (TINY.with_kv(KV("general.alignment", U64, 32)).bytes(), "alignment-corrected"),
    "alignment str": (TINY.with_kv(KV("general.alignment", STR, "32")).bytes(), "alignment-corrected"),
    "alignment 8, not mappable": (tiny_llama(align=8).bytes(), "alignment-corrected"),
    "equal key twice": (replace(TINY, kv=(*TINY.kv, TINY.kv[1])).bytes(), "duplicate-removed"),
    "byte-order mark": (b"\xef\xbb\xbf" + WHOLE, "prefix-removed"),
    "magic": (patched(0, b"XXXX"), "magic-restored"),
    "version": (patched(4, b"\x09"), "magic-restored"),
    "version 1": (replace(TINY, version=1).bytes(), "version-upgraded"),
    "array count small": (patched(at(b"tokenizer.ggml.tokens") + 29, b"\x05\0"), "length-corrected"),
    "array count large": (patched(at(b"tokenizer.ggml.tokens") + 29, b"\xff\xff\xff"), "length-corrected"),
    "text length small": (patched(at(b"tiny") - 8, b"\x02"), "length-corrected"),
    "text length large": (patched(at(b"tiny") - 8, b"\xff\xff\xff"), "length-corrected"),
    "key length": (patched(at(b"tokenizer.ggml.tokens") - 8, b"\x10"), "length-corrected"),
    "tensor name length": (patched(at(b"blk.0.attn_k.weight") - 8, b"\x02"), "length-corrected"),
    "tensor name length 0": (patched(at(b"blk.0.attn_k.weight") - 8, bytes(8)), "length-corrected"),
    "dimensions": (patched(at(b"blk.0.attn_k.weight") + 19, b"\x09"), "length-corrected"),
    "tensor name": (patched(at(b"blk.0.attn_k.weight") + 6, b"\xff\xfe\x00"), "name-restored"),
    "tensor name and length": (patched(at(b"blk.0.attn_k.weight") - 8, b"\xff" * 10), "name-restored"),
    "shape": (patched(at(b"blk.0.attn_k.weight") + 23, b"\x07\x00\x11"), "tensor-corrected"),
    "type": (patched(at(b"blk.0.attn_k.weight") + 39, b"\x63\x11\x77"), "tensor-corrected"),
    "length of a token": (patched(at(b"<0x7A>") - 8, b"\x07"), "length-corrected"),
    "length of a token, absurd": (patched(at(b"<0x7A>") - 4, b"\x99"), "length-corrected"),
    "bos i32": (TINY.with_kv(KV("tokenizer.ggml.bos_token_id", I32, 1)).bytes(), "type-corrected"),
    "equal tensor twice": (
        replace(TINY, tensors=(*TINY.tensors, TINY.tensors[4])).bytes(),
        "duplicate-removed",
    ),
    "alignment 16, mappable": (mappable(16), "alignment-corrected"),
    "context u64": (TINY.with_kv(KV("llama.context_length", U64, 64)).bytes(), "type-corrected"),
}

#: Injuries that cost a record that the model can do without: the same.
LOSING: dict[str, tuple[bytes, str]] = {
    "key twice": (replace(TINY, kv=(*TINY.kv, KV("general.name", STR, "other"))).bytes(), "record-left-out"),
    "array of arrays": (
        TINY.with_kv(KV("x.y", ARR, Array(ARR, [Array(U8, [1])]))).bytes(),
        "record-left-out",
    ),
    "empty key": (TINY.with_kv(KV("", U8, 1)).bytes(), "record-left-out"),
    "unknown value type": (
        replace(TINY, kv=(*TINY.kv[:4], KV("x.y", 77, raw=b"12345678"), *TINY.kv[4:])).bytes(),
        "record-left-out",
    ),
    "tensor twice": (
        replace(TINY, tensors=(*TINY.tensors, replace(TINY.tensors[4], data=OTHER))).bytes(),
        "tensor-left-out",
    ),
}


def mended(data: bytes, folder: Path, **options: bool) -> tuple[MendResult, dict[str, bytes], Path]:
    source, out = folder / "in.gguf", folder / "out.gguf"
    source.write_bytes(data)
    result = mend_gguf(source, out, **options)
    assert source.read_bytes() == data
    assert (result.lost_file is not None) == (result.lost > 0) == Path(f"{out}.lost.json").exists()
    if result.lost_file is not None:
        assert json.loads(Path(result.lost_file).read_bytes())["lost"]
    return result, tensor_bytes(out), out


def tensor_bytes(path: Path) -> dict[str, bytes]:
    with GGUFFile.open(path, shards=False) as file:
        return {name: b"".join(file.iter_raw(name)) for name in file.tensors}


@pytest.mark.parametrize("name", [*MENDABLE, *LOSING])
def test_injury_is_mended(name: str, oracle: LlamaOracle | None, tmp_path: Path) -> None:
    data, code = MENDABLE[name] if name in MENDABLE else LOSING[name]
    result, tensors, out = mended(data, tmp_path)
    assert code in [action.code for action in result.actions]
    assert tensors == DATA
    assert [fate.state for fate in result.tensors if fate.state != "dropped"] == ["intact"] * COUNT
    assert is_ok(result.after), result.after
    assert result.after == check_gguf(out)
    assert result.lost == (name in LOSING)
    assert oracle is None or oracle.load(out).ok
    with GGUFFile.open(out) as file:
        kept = {key: value.type_name for key, value in file.metadata.items() if key != "general.alignment"}
    for pair in TINY.kv:
        assert str(pair.key) in kept


def test_whole_file_stays_the_same(tmp_path: Path) -> None:
    for name, data in (("whole", WHOLE), ("bytes behind", WHOLE + b"appended" * 9), ("vocabulary", vocab())):
        result, _, out = mended(data, tmp_path)
        assert out.read_bytes() == data, name
        assert not result.changed
        assert result.lost == 0
        assert result.lost_file is None


def vocab() -> bytes:
    return vocab_only("gpt2").bytes()


def test_missing_tail_is_reported_tensor_by_tensor(oracle: LlamaOracle | None, tmp_path: Path) -> None:
    result, tensors, out = mended(WHOLE[:-20_000], tmp_path)
    fates = {fate.name: fate for fate in result.tensors}
    lost = [name for name, fate in fates.items() if fate.state != "intact"]
    assert lost
    assert [fates[name].state for name in lost] == ["damaged"] + ["missing"] * (len(lost) - 1)
    for name, payload in DATA.items():
        there = fates[name].nbytes - fates[name].missing
        assert tensors[name][:there] == payload[:there]
        assert not any(tensors[name][there:])
    assert sum(fate.missing for fate in fates.values()) > 19_000
    assert result.saved == len(TINY.kv) + COUNT - len(lost)
    assert result.lost == len(lost)
    assert {f.code for f in result.after if f.severity == "error"} == {"tensor-zeroed"}  # what it now holds
    assert oracle is None or oracle.load(out).ok


@pytest.mark.parametrize("missing", [1, 4, 8, 16, 27, 32, 100, 128, 252])
def test_cut_last_tensor_keeps_its_shape(missing: int, tmp_path: Path) -> None:
    """What is left of it may well fill another shape, or that of a tensor beside it: it is still a cut."""
    others = (Tensor("a", (32,)), Tensor("b", (39,)), Tensor("c", (32,), 1))
    file = File(kv=TINY.kv, tensors=(*others, Tensor("z", (64,), data=b"\x11" * 256)))
    path, out = tmp_path / "in.gguf", tmp_path / "out.gguf"
    path.write_bytes(file.bytes()[:-missing])
    result = mend_gguf(path, out)
    assert [(t.name, t.state, t.missing) for t in result.tensors if t.state != "intact"] == [
        ("z", "damaged", missing)
    ]
    assert result.lost == 1
    with GGUFFile.open(out) as mended:
        z = next(info for info in mended.tensors.values() if info.name == "z")
        assert z.dims == (64,)
    assert out.read_bytes() == file.bytes()[:-missing] + bytes(missing)


@pytest.mark.parametrize("tail", [128, 64])
def test_bytes_behind_the_last_tensor_do_not_change_its_shape(tail: int, tmp_path: Path) -> None:
    """llama.cpp does not mind bytes at the end, so they are no reason to doubt a shape."""
    tensors = (Tensor("a", (64,)), Tensor("b", (32,)), Tensor("c", (32,)), Tensor("z", (32,)))
    data = File(kv=TINY.kv, tensors=tensors, tail=b"\x55" * tail).bytes()
    path, out = tmp_path / "in.gguf", tmp_path / "out.gguf"
    path.write_bytes(data)
    assert not mend_gguf(path, out).actions
    assert out.read_bytes() == data


@pytest.mark.parametrize("change", ["insert", "delete"])
@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("where", [b"<0x7A>", b"tiny", b"blk.0.attn_k.weight"])
def test_bytes_lost_or_added_in_the_header_move_the_data(
    change: str, count: int, where: bytes, tmp_path: Path
) -> None:
    """Then the data is not aligned any more; it ends where the file does."""
    path, out = tmp_path / "in.gguf", tmp_path / "out.gguf"
    place = at(where) + 1
    gone = count if change == "delete" else 0
    path.write_bytes(WHOLE[:place] + b"?" * (count - gone) + WHOLE[place + gone :])
    mend_gguf(path, out)
    with GGUFFile.open(out) as mended:
        found = {name: mended.array(name).tobytes() for name in mended.tensors}
    assert len(found) >= COUNT - 1
    whole = {name: data for name, data in DATA.items() if name in found}
    assert len(whole) >= COUNT - 1
    assert {name: found[name] for name in whole} == whole


def test_damaged_tensors_can_be_left_out(tmp_path: Path) -> None:
    result, tensors, _ = mended(WHOLE[:-20_000], tmp_path, drop_damaged=True)
    intact = [fate.name for fate in result.tensors if fate.state == "intact"]
    assert list(tensors) == intact
    assert all(tensors[name] == DATA[name] for name in intact)
    assert {fate.state for fate in result.tensors} == {"intact", "dropped"}


def test_header_that_is_cut_off(tmp_path: Path) -> None:
    """A model without some of its tensors is refused; what is left of it, a vocabulary, is not."""
    result, tensors, _ = mended(WHOLE[:8000], tmp_path)
    assert result.saved == len(TINY.kv)
    assert result.lost == COUNT
    assert not tensors
    assert 0 < len(result.tensors) < COUNT
    assert {fate.state for fate in result.tensors} == {"dropped"}
    assert any("cut off" in action.message for action in result.actions)
    assert is_ok(result.after)


@pytest.mark.parametrize("how", ["cut", "zeros", "rubbish"])
def test_all_tensors_gone(how: str, tmp_path: Path) -> None:
    """Behind the metadata nothing can be read: every tensor that the header counts is lost."""
    end = at(b"token_embd.weight") - 8
    rest = len(WHOLE) - end
    behind = {"cut": b"", "zeros": bytes(rest), "rubbish": random.Random(1).randbytes(rest)}[how]
    result, tensors, _ = mended(WHOLE[:end] + behind, tmp_path)
    assert (result.saved, result.lost, tensors) == (len(TINY.kv), COUNT, {})
    assert is_ok(result.after)


def test_records_at_the_end_of_the_table_gone(tmp_path: Path) -> None:
    names = [str(tensor.name).encode() for tensor in TINY.tensors]
    start, stop = at(names[-2]) - 8, at(names[-1]) + len(names[-1]) + 4 + 8 * len(TINY.tensors[-1].dims) + 12
    result, tensors, _ = mended(WHOLE[:start] + bytes(stop - start) + WHOLE[stop:], tmp_path)
    assert result.lost == 2
    assert tensors == {name: data for name, data in DATA.items() if name.encode() not in names[-2:]}


def test_a_second_tensor_of_a_name_is_kept_beside_the_output(tmp_path: Path) -> None:
    result, _, out = mended(LOSING["tensor twice"][0], tmp_path)
    (entry,) = json.loads(Path(f"{out}.lost.json").read_bytes())["lost"]
    assert base64.b64decode(entry["base64"]) == OTHER
    assert entry["tensor"] == TINY.tensors[4].name
    (fate,) = [fate for fate in result.tensors if fate.state == "dropped"]
    assert fate.why == "a tensor before it has the same name and other data"


def test_what_is_lost_is_written_in_pieces(tmp_path: Path) -> None:
    data = random.Random(2).randbytes(3_000_001)
    pieces = [data[start : start + 99_991] for start in range(0, len(data), 99_991)]
    name = write_lost(tmp_path / "o.gguf", "in", [Lost({"a": 1}, pieces), Lost({"b": 2}), Lost({}, [b""])])
    assert name is not None
    found = json.loads(Path(name).read_bytes())
    assert [entry.keys() for entry in found["lost"]] == [
        {"a": 1, "base64": 1}.keys(),
        {"b": 2}.keys(),
        {"base64"},
    ]
    assert base64.b64decode(found["lost"][0]["base64"]) == data
    assert write_lost(tmp_path / "o.gguf", "in", []) is None
    assert not Path(name).exists()


def test_lost_and_found(tmp_path: Path) -> None:
    """What is left out is beside the output, byte for byte."""
    value = struct.pack("<iQB", U8, 1, 7)
    data = TINY.with_kv(KV("x.y", ARR, raw=struct.pack("<iQ", ARR, 1) + value)).bytes()
    result, _, out = mended(data, tmp_path)
    assert result.lost_file == f"{out}.lost.json"
    (entry,) = json.loads(Path(result.lost_file).read_bytes())["lost"]
    raw = base64.b64decode(entry["base64"])
    assert data[entry["offset"] : entry["offset"] + entry["size"]] == raw
    assert raw.endswith(value)
    assert entry["key"] == "x.y"


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "in.gguf"
    source.write_bytes(LOSING["array of arrays"][0])
    result = mend_gguf(source, tmp_path / "out.gguf", dry_run=True)
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]
    assert [action.code for action in result.actions] == ["record-left-out"]
    assert result.after == []
    assert result == mend_gguf(source, None, dry_run=True) or result.out is not None


def test_input_is_never_the_output(tmp_path: Path) -> None:
    source = tmp_path / "in.gguf"
    source.write_bytes(WHOLE)
    (tmp_path / "link.gguf").symlink_to(source)
    for out in (source, tmp_path / "link.gguf"):
        with pytest.raises(InvalidParamError):
            mend_gguf(source, out)
    with pytest.raises(InvalidParamError):
        mend_gguf(source, None)
    assert source.read_bytes() == WHOLE


@pytest.mark.parametrize("data", [b"", b"GGUF", b"\x89PNG\r\n\x1a\n" * 500, bytes(5000)])
def test_what_is_no_gguf_is_an_error(data: bytes, tmp_path: Path) -> None:
    source = tmp_path / "in.gguf"
    source.write_bytes(data)
    with pytest.raises(FileCorruptError):
        mend_gguf(source, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_other_metadata_keeps_its_bytes(tmp_path: Path) -> None:
    pair = KV("x.y", STR, b"\xff not UTF-8 \x80")
    result, _, out = mended(replace(TINY.with_kv(pair), n_kv=3).bytes(), tmp_path)
    assert b"\xff not UTF-8 \x80" in out.read_bytes()
    assert result.lost == 0


def test_types_that_cannot_be_known_do_not_stop_the_rest(tmp_path: Path) -> None:
    odd = [
        replace(tensor, type=999, data=tensor.payload + bytes(32))
        if ".attn_k." in str(tensor.name)
        else tensor
        for tensor in TINY.tensors
    ]
    result, tensors, out = mended_unread(replace(TINY, tensors=tuple(odd), n_kv=0).bytes(), tmp_path)
    assert [f.code for f in result.after if f.severity == "error"] == ["tensor-type-unknown"] * 2
    assert all(tensors[name] == payload for name, payload in DATA.items() if name in tensors)
    assert DATA["blk.0.attn_k.weight"] in out.read_bytes()


def mended_unread(data: bytes, folder: Path) -> tuple[MendResult, dict[str, bytes], Path]:
    """Mend a file of which some tensors cannot be read."""
    source, out = folder / "in.gguf", folder / "out.gguf"
    source.write_bytes(data)
    result = mend_gguf(source, out)
    with GGUFFile.open(out) as file:
        known = [name for name, info in file.tensors.items() if info.nbytes is not None]
        return result, {name: b"".join(file.iter_raw(name)) for name in known}, out


def test_absurd_sizes_are_not_filled_up(tmp_path: Path) -> None:
    huge = Tensor("blk.9.huge.weight", (1 << 20, 1 << 15), F32_T, b"", offset=offsets()[-1])
    result, tensors, out = mended(replace(TINY, tensors=(*TINY.tensors, huge)).bytes(), tmp_path)
    assert out.stat().st_size < 10 * len(WHOLE)
    assert [fate.name for fate in result.tensors if fate.state == "dropped"] == ["blk.9.huge.weight"]
    assert tensors == DATA


def test_progress_counts_tensor_bytes(tmp_path: Path) -> None:
    source, seen = tmp_path / "in.gguf", []
    source.write_bytes(WHOLE)
    mend_gguf(source, tmp_path / "out.gguf", progress=seen.append)
    assert sum(seen) == sum(map(len, DATA.values()))


def test_result_as_json(tmp_path: Path) -> None:
    result, _, _ = mended(WHOLE[:-100], tmp_path)
    told = json.loads(json.dumps(result.to_json()))
    assert told["lost"] == 1
    assert told["tensors"][-1]["state"] == "damaged"
    assert told["actions"][0]["code"] == "tensor-damaged"


def test_hostile_files_only_raise_our_errors(tmp_path: Path) -> None:
    source, out = tmp_path / "in.gguf", tmp_path / "out.gguf"
    for name, make in HOSTILE.items():
        source.write_bytes(make())
        try:
            mend_gguf(source, out)
        except AtlasError:
            continue
        assert out.stat().st_size < 40 * len(make()) + (2 << 20), name


@pytest.mark.slow
def test_mutants_are_mended_or_explained(tmp_path: Path) -> None:
    """Damage anywhere in the header costs at most what it hit."""
    dice = random.Random(7)
    header = len(WHOLE) - len(body(TINY.tensors))
    kept = 0
    for _ in range(250):
        at = dice.randrange(24, header)
        try:
            result, tensors, _ = mended_unread(patched(at, dice.randbytes(dice.randrange(1, 9))), tmp_path)
        except AtlasError as error:
            pytest.fail(str(error))
        kept += sum(tensors.get(name) == payload for name, payload in DATA.items())
        whole = [fate.name for fate in result.tensors if fate.state == "intact"]
        assert all(tensors[name] == DATA.get(name, tensors[name]) for name in whole)
    assert kept / 250 / COUNT > 0.99


def test_split_shards_are_mended_one_by_one(tmp_path: Path) -> None:
    shard = replace(
        TINY,
        kv=(KV("split.no", U16, 1), KV("split.count", U16, 2), KV("split.tensors.count", I32, COUNT)),
        n_tensors=COUNT - 1,
    )
    result, tensors, _ = mended(shard.bytes(), tmp_path)
    assert tensors == DATA
    assert [finding.code for finding in result.after] == ["shard-not-first"]
