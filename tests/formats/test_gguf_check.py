"""The GGUF checker: every rule by itself, all findings at once, and its verdict beside llama.cpp's own."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_builder import (
    ARR,
    BOOL,
    F16_T,
    F32,
    F32_T,
    F64,
    F64_T,
    GGML,
    HOSTILE,
    I32,
    I32_T,
    KV,
    Q4_K_T,
    Q8_0_T,
    STR,
    U8,
    U16,
    U32,
    U64,
    Array,
    File,
    Tensor,
    bpe_tokens,
    split_llama,
    spm_tokens,
    tiny_llama,
    vocab_only,
    weights,
)
from llama_oracle import LlamaOracle, OracleUnavailableError, Verdict

from atlas_kit.errors import NoSuchFileError
from atlas_kit.formats.findings import Finding
from atlas_kit.formats.gguf import architectures
from atlas_kit.formats.gguf.check import MAX_PER_CODE, check_gguf, is_ok
from atlas_kit.formats.gguf.tables import GGML_TYPES, GGMLTypeRow
from atlas_kit.storage.given import open_source

TINY = tiny_llama()
BPE = tiny_llama(tokenizer="gpt2")
BARE = tiny_llama(tokenizer="none")
TOKENS, SCORES, TYPES = spm_tokens()


@pytest.fixture(scope="module")
def oracle() -> Iterator[LlamaOracle]:
    try:
        oracle = LlamaOracle()
    except OracleUnavailableError as error:
        pytest.skip(str(error))
    with oracle:
        yield oracle


def check(data: bytes | File, *, deep: bool = False) -> list[Finding]:
    return check_gguf(open_source(data if isinstance(data, bytes) else data.bytes()), deep=deep)


def arr(kind: int, items: object) -> Array:
    return Array(kind, items)  # type: ignore[arg-type]


def tokens(*last: object) -> KV:
    return KV("tokenizer.ggml.tokens", ARR, arr(STR, [*TOKENS[: -len(last)], *last]))


def with_tensor(*tensors: Tensor, base: File = TINY) -> File:
    return replace(base, tensors=(*base.tensors, *tensors))


def moved(index: int, offset: int) -> File:
    tensors = list(TINY.tensors)
    tensors[index] = replace(tensors[index], offset=offset)
    return replace(TINY, tensors=tuple(tensors))


#: name -> (file, codes that must be found). Whether llama.cpp loads it is not said here: llama.cpp is asked.
CASES: dict[str, tuple[File, str]] = {
    # whole files
    "tiny": (TINY, ""),
    "tied": (tiny_llama(tied=True), ""),
    "f16": (tiny_llama(kind=F16_T), ""),
    "q8_0": (tiny_llama(kind=Q8_0_T), ""),
    "bpe": (BPE, ""),
    "no vocabulary": (BARE, ""),
    "vocabulary only": (vocab_only(), "vocabulary-only"),
    "vocabulary only, bpe": (vocab_only("gpt2"), "vocabulary-only"),
    "version 2": (replace(TINY, version=2), ""),
    "no padding at the end": (replace(TINY, pad_last=False), ""),
    "bytes behind": (replace(TINY, tail=b"x" * 1000), "trailing-bytes"),
    "bytes behind a vocabulary": (replace(vocab_only(), tail=b"\xff" * 99), "trailing-bytes vocabulary-only"),
    # header
    "one pair too few": (replace(TINY, n_kv=len(TINY.kv) - 1), "metadata-count-wrong"),
    "one pair too many": (replace(TINY, n_kv=len(TINY.kv) + 1), "metadata-count-wrong"),
    "one tensor too few": (replace(TINY, n_tensors=len(TINY.tensors) - 1), "tensor-count-wrong"),
    "one tensor too many": (replace(TINY, n_tensors=len(TINY.tensors) + 1), "tensor-count-wrong"),
    "vocabulary, one pair too few": (replace(vocab_only(), n_kv=7), "metadata-count-wrong"),
    "version 1": (replace(TINY, version=1), "version-1"),
    "big-endian": (replace(TINY, order=">"), "big-endian"),
    # keys and values
    "equal key twice": (replace(TINY, kv=(*TINY.kv, TINY.kv[1])), "key-duplicate"),
    "empty key": (TINY.with_kv(KV("", U8, 1)), "key-empty"),
    "key with NUL": (TINY.with_kv(KV("a\0b", U8, 0)), "key-unprintable"),
    "very long key": (TINY.with_kv(KV("a" * 70000, U8, 0)), ""),
    "text not UTF-8": (TINY.with_kv(KV("general.author", STR, b"\xff")), "text-not-utf8"),
    "boolean 2": (TINY.with_kv(KV("tokenizer.ggml.add_bos_token", BOOL, 2)), "bool-invalid"),
    "booleans 2": (TINY.with_kv(KV("x.y", ARR, arr(BOOL, [0, 1, 2]))), "bool-invalid"),
    "array of arrays": (TINY.with_kv(KV("x.y", ARR, arr(ARR, [arr(U8, [1])]))), "array-nested"),
    "unknown value type in the middle": (
        replace(TINY, kv=(*TINY.kv[:4], KV("x.y", 77, raw=b"12345678"), *TINY.kv[4:])),
        "record-damaged",
    ),
    "unknown keys": (TINY.with_kv(KV("atlas.version", U32, 1), KV("atlas.x", ARR, arr(F32, [1.0]))), ""),
    # general
    "no architecture": (TINY.without("general.architecture"), "architecture-missing"),
    "architecture u32": (TINY.with_kv(KV("general.architecture", U32, 4)), "key-type-wrong"),
    "architecture unknown": (tiny_llama(arch="lllama"), "architecture-unknown"),
    "architecture reserved": (vocab_only(arch="gptj"), "architecture-not-loadable"),
    "architecture clip": (vocab_only(arch="clip"), "architecture-not-loadable"),
    "name u32": (TINY.with_kv(KV("general.name", U32, 1)), "key-type-wrong"),
    "file type str": (TINY.with_kv(KV("general.file_type", STR, "x")), "key-type-wrong"),
    "file type unknown": (TINY.with_kv(KV("general.file_type", U32, 9999)), ""),
    "split.count u32": (TINY.with_kv(KV("split.count", U32, 1)), "key-type-wrong"),
    "split.count 1": (TINY.with_kv(KV("split.count", U16, 1)), ""),
    "split.count without split.no": (TINY.with_kv(KV("split.count", U16, 3)), "key-missing"),
    # alignment
    **{
        f"alignment {a}": (tiny_llama(align=a), "alignment-large" if a > 1 << 20 else "")
        for a in (64, 4096, 1 << 21)
    },
    "alignment 0": (TINY.with_kv(KV("general.alignment", U32, 0)), "alignment-invalid"),
    "alignment 48": (TINY.with_kv(KV("general.alignment", U32, 48)), "alignment-invalid"),
    "alignment u64": (TINY.with_kv(KV("general.alignment", U64, 32)), "alignment-invalid"),
    "alignment 8": (tiny_llama(align=8), "alignment-unmappable"),
    "alignment 16, by chance mappable": (
        tiny_llama(align=16).with_kv(KV("general.name", STR, "tiny" + "x" * 16)),
        "alignment-small",
    ),
    # hyperparameters
    "no context length": (TINY.without("llama.context_length"), "key-missing"),
    "no width": (TINY.without("llama.embedding_length"), "key-missing"),
    "no layers": (TINY.without("llama.block_count"), "key-missing"),
    "no epsilon": (TINY.without("llama.attention.layer_norm_rms_epsilon"), "key-missing"),
    "no heads": (TINY.without("llama.attention.head_count"), "tensor-shape-wrong"),
    "no key-value heads": (TINY.without("llama.attention.head_count_kv"), ""),
    "no feed-forward": (TINY.without("llama.feed_forward_length"), "tensor-shape-wrong"),
    "no rotation": (TINY.without("llama.rope.dimension_count"), ""),
    "context u64": (TINY.with_kv(KV("llama.context_length", U64, 64)), "key-type-wrong"),
    "epsilon f64": (
        TINY.with_kv(KV("llama.attention.layer_norm_rms_epsilon", F64, 1e-5)),
        "key-type-wrong",
    ),
    "0 layers": (TINY.with_kv(KV("llama.block_count", U32, 0)), "key-value-wrong"),
    "10,000 layers": (TINY.with_kv(KV("llama.block_count", U32, 10_000)), "key-value-wrong"),
    "one layer more": (TINY.with_kv(KV("llama.block_count", U32, 3)), "tensor-missing"),
    "one layer less": (TINY.with_kv(KV("llama.block_count", U32, 1)), "tensor-unexpected"),
    "feed-forward per layer": (TINY.with_kv(KV("llama.feed_forward_length", ARR, arr(I32, [64, 64]))), ""),
    "feed-forward, 3 of 2": (
        TINY.with_kv(KV("llama.feed_forward_length", ARR, arr(U32, [64] * 3))),
        "key-value-wrong",
    ),
    "feed-forward arr[u64]": (
        TINY.with_kv(KV("llama.feed_forward_length", ARR, arr(U64, [64, 64]))),
        "key-type-wrong",
    ),
    "5 heads": (TINY.with_kv(KV("llama.attention.head_count", U32, 5)), "key-value-wrong"),
    "5 key-value heads": (TINY.with_kv(KV("llama.attention.head_count_kv", U32, 5)), "tensor-shape-wrong"),
    "half rotation": (TINY.with_kv(KV("llama.rope.dimension_count", U32, 8)), "key-value-wrong"),
    "unknown scaling": (TINY.with_kv(KV("llama.rope.scaling.type", STR, "x")), "key-value-wrong"),
    "linear scaling": (TINY.with_kv(KV("llama.rope.scaling.type", STR, "linear")), ""),
    "experts, none used": (TINY.with_kv(KV("llama.expert_count", U32, 4)), "key-value-wrong"),
    "no experts, 4 used": (TINY.with_kv(KV("llama.expert_used_count", U32, 4)), "key-value-wrong"),
    # vocabulary
    "no tokenizer": (TINY.without("tokenizer.ggml.model"), "tokenizer-missing"),
    "tokenizer unknown": (TINY.with_kv(KV("tokenizer.ggml.model", STR, "xyz")), "tokenizer-unknown"),
    "tokenizer without bytes": (
        BPE.with_kv(KV("tokenizer.ggml.model", STR, "plamo2")),
        "tokenizer-incomplete",
    ),
    "no tokens": (TINY.without("tokenizer.ggml.tokens"), "tokenizer-incomplete"),
    "tokens arr[u32]": (
        TINY.with_kv(KV("tokenizer.ggml.tokens", ARR, arr(U32, [1] * 288))),
        "key-type-wrong",
    ),
    "token twice": (TINY.with_kv(tokens("<s>")), "token-duplicate"),
    "tokens equal up to a NUL": (TINY.with_kv(tokens("x\0a", "x\0b")), "token-duplicate"),
    "two empty tokens": (TINY.with_kv(tokens("", "")), ""),
    "token not UTF-8": (TINY.with_kv(tokens(b"\xff\xfe")), ""),
    "no scores": (TINY.without("tokenizer.ggml.scores"), ""),
    "scores short": (
        TINY.with_kv(KV("tokenizer.ggml.scores", ARR, arr(F32, SCORES[:-1]))),
        "tokenizer-lengths-differ",
    ),
    "scores long": (
        TINY.with_kv(KV("tokenizer.ggml.scores", ARR, arr(F32, [*SCORES, 0.0]))),
        "tokenizer-lengths-differ",
    ),
    "scores f64": (TINY.with_kv(KV("tokenizer.ggml.scores", ARR, arr(F64, SCORES))), "key-type-wrong"),
    "scores scalar": (TINY.with_kv(KV("tokenizer.ggml.scores", F32, 1.0)), "key-type-wrong"),
    "types short": (
        TINY.with_kv(KV("tokenizer.ggml.token_type", ARR, arr(I32, TYPES[:-1]))),
        "tokenizer-lengths-differ",
    ),
    "types u32": (TINY.with_kv(KV("tokenizer.ggml.token_type", ARR, arr(U32, TYPES))), "key-type-wrong"),
    "type 99": (
        TINY.with_kv(KV("tokenizer.ggml.token_type", ARR, arr(I32, [*TYPES[:-1], 99]))),
        "token-type-invalid",
    ),
    "no merges": (BPE.without("tokenizer.ggml.merges"), "tokenizer-incomplete"),
    "merges f32": (BPE.with_kv(KV("tokenizer.ggml.merges", ARR, arr(F32, [1.0]))), "key-type-wrong"),
    "no pre-tokenizer": (BPE.without("tokenizer.ggml.pre"), "pre-tokenizer-missing"),
    "pre-tokenizer unknown": (BPE.with_kv(KV("tokenizer.ggml.pre", STR, "x")), "pre-tokenizer-unknown"),
    "pre-tokenizer of SPM unknown": (TINY.with_kv(KV("tokenizer.ggml.pre", STR, "x")), ""),
    "bos i32": (TINY.with_kv(KV("tokenizer.ggml.bos_token_id", I32, 1)), "key-type-wrong"),
    "bos beyond": (TINY.with_kv(KV("tokenizer.ggml.bos_token_id", U32, 99999)), "token-id-invalid"),
    "add_bos u32": (TINY.with_kv(KV("tokenizer.ggml.add_bos_token", U32, 1)), "key-type-wrong"),
    "no vocabulary, no size": (BARE.without("llama.vocab_size"), "tensor-shape-wrong"),
    # tensors
    "tensor missing": (TINY.without_tensor("blk.1.attn_q.weight"), "tensor-missing"),
    "tensor misshapen": (TINY.with_tensor("blk.1.attn_q.weight", dims=(16, 64)), "tensor-shape-wrong"),
    "tensor with ones": (TINY.with_tensor("output_norm.weight", dims=(32, 1, 1)), ""),
    "extra atlas tensor": (with_tensor(Tensor("atlas.mem", (4,))), "tensor-unexpected"),
    "extra block tensor": (with_tensor(Tensor("blk.0.atlas_mem", (4,))), "tensor-unexpected"),
    "extra layer": (with_tensor(Tensor("blk.9.attn_q.weight", (32, 32))), "tensor-unexpected"),
    "optional bias": (with_tensor(Tensor("blk.0.attn_q.bias", (32,))), ""),
    "optional scale": (with_tensor(Tensor("blk.0.attn_q.scale", (1,))), ""),
    "scale of nothing": (with_tensor(Tensor("blk.0.attn_norm.scale", (1,))), "tensor-unexpected"),
    "rope frequencies": (with_tensor(Tensor("rope_freqs.weight", (8,))), ""),
    "rope frequencies, 9": (with_tensor(Tensor("rope_freqs.weight", (9,))), "tensor-shape-wrong"),
    "tensor without a name": (with_tensor(Tensor("", (8,))), "tensor-name-odd tensor-unexpected"),
    "tensor twice": (with_tensor(TINY.tensors[3]), "tensor-duplicate"),
    "tensor twice up to a NUL": (
        with_tensor(Tensor("output_norm.weight\0x", (8,))),
        "tensor-name-odd tensor-duplicate",
    ),
    "integer weights": (TINY.with_tensor("token_embd.weight", type=I32_T), "tensor-type-unusable"),
    "double weights": (
        TINY.with_tensor("output_norm.weight", type=F64_T, data=bytes(256)),
        "tensor-type-unusable",
    ),
    "short rows": (
        TINY.with_tensor("output_norm.weight", type=Q4_K_T, data=bytes(144)),
        "tensor-row-not-blocks",
    ),
    "removed type": (TINY.with_tensor("output_norm.weight", type=4, data=bytes(128)), "tensor-type-removed"),
    "type 999": (TINY.with_tensor("output_norm.weight", type=999, data=bytes(128)), "tensor-type-unknown"),
    "offset unaligned": (moved(5, 4), "tensor-offset-unaligned"),
    "offset overlapping": (moved(5, 32), "tensor-overlap"),
    "offset far away": (moved(5, 1 << 40), "tensor-gap tensor-data-missing"),
    "gap": (
        TINY.with_tensor("blk.0.attn_q.weight", data=bytes(32 * 32 * 4 + 64)),
        "tensor-gap",
    ),
    "no padding before data": (
        replace(TINY, before_data=b"", pad_last=False),
        "tensor-data-missing",
    ),
    "weights not numbers": (TINY.with_tensor("output_norm.weight", data=b"\xff" * 128), ""),
}

#: The same for the files that are made to hurt.
HURTING = {
    "empty": "file-empty",
    "magic-only": "header-truncated",
    "cut-in-counts": "header-truncated",
    "header-only": "architecture-missing tokenizer-missing",
    "n-kv-2-63": "metadata-count-wrong",
    "n-tensors-2-40": "tensor-count-wrong",
    "key-length-2-63": "header-truncated",
    "string-length-2-64": "header-truncated",
    "array-2-30-bools": "header-truncated",
    "array-unknown-type": "header-invalid",
    "nested-array": "array-nested",
    "nested-3000": "header-invalid",
    "value-type-13": "header-invalid",
    "empty-key": "key-empty",
    "duplicate-key": "key-duplicate",
    "key-not-utf8": "key-unprintable text-not-utf8",
    "n-dims-million": "header-invalid",
    "dims-overflow": "tensor-too-large",
    "dims-minus-1": "tensor-too-large",
    "dim-zero": "tensor-empty",
    "offset-2-64": "tensor-gap tensor-data-missing",
    "offset-unaligned": "tensor-offset-unaligned",
    "data-missing": "tensor-data-missing",
    "type-unknown": "tensor-type-unknown",
    "type-removed": "tensor-type-removed",
    "row-not-blocks": "tensor-row-not-blocks",
    "name-too-long": "tensor-name-long",
    "alignment-3": "alignment-invalid",
    "alignment-2-31": "alignment-large",
    "byte-token-minus-1": "token-byte-invalid",
    "magic-ggml": "not-gguf",
    "version-4": "version-unknown",
    "version-swapped": "big-endian",
    "many-duplicates": "key-duplicate",
    "many-tensors": "tensor-duplicate",
}


@pytest.mark.parametrize("name", CASES)
def test_finding(name: str) -> None:
    file, codes = CASES[name]
    found = {finding.code for finding in check(file)}
    assert set(codes.split()) <= found
    if not codes:
        assert not found


@pytest.mark.parametrize("name", HURTING)
def test_hostile_file_is_explained(name: str) -> None:
    assert set(HURTING[name].split()) <= {finding.code for finding in check(HOSTILE[name]())}


def _verdict(oracle: LlamaOracle, path: Path) -> Verdict:
    """Return whether llama.cpp loads a file and, if there is more than a vocabulary, decodes two tokens."""
    verdict = oracle.load(path)
    tensors = int.from_bytes(path.read_bytes()[8:16], "little")
    return oracle.decode(path) if verdict.ok and tensors else verdict


@pytest.mark.parametrize("name", [*CASES, *HOSTILE])
def test_verdict_is_that_of_llama_cpp(name: str, oracle: LlamaOracle, tmp_path: Path) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(CASES[name][0].bytes() if name in CASES else HOSTILE[name]())
    verdict, findings = _verdict(oracle, path), check_gguf(path)
    assert is_ok(findings) == verdict.ok, (verdict.reason, findings)


@pytest.mark.parametrize("seed", range(4))
def test_verdict_on_mutants_is_that_of_llama_cpp(seed: int, oracle: LlamaOracle, tmp_path: Path) -> None:
    """Random damage to the header: bits, bytes, cuts, insertions."""
    dice = random.Random(seed)
    bases = [tiny_llama(layers=1), tiny_llama(layers=1, tokenizer="gpt2"), vocab_only("gpt2"), vocab_only()]
    whole = [(file.bytes(), _header_size(file)) for file in bases]
    path = tmp_path / "file.gguf"
    for _ in range(150):
        data, header = dice.choice(whole)
        mutant = _mutant(bytearray(data), header, dice)
        path.write_bytes(mutant)
        verdict, findings = _verdict(oracle, path), check_gguf(path)
        assert is_ok(findings) == verdict.ok, (verdict.reason, findings, mutant[:64].hex())


def _header_size(file: File) -> int:
    data = sum(len(t.payload) + -len(t.payload) % 32 for t in file.tensors)
    return len(file.bytes()) - data


def _mutant(data: bytearray, header: int, dice: random.Random) -> bytes:
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        at = dice.randrange(min(header, len(data)))
        kind = dice.randrange(6)
        if kind < 3:
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 3:
            data[at] = dice.randrange(256)
        elif kind == 4:
            del data[at : at + dice.randrange(1, 40)]
        else:
            data[at:at] = dice.randbytes(dice.randrange(1, 40))
    return bytes(data[: dice.randrange(1, len(data))] if dice.random() < 0.1 else data)


def test_all_findings_at_once() -> None:
    broken = (
        TINY.with_kv(
            KV("", U8, 1),
            KV("x.y", ARR, arr(ARR, [arr(U8, [1])])),
            KV("tokenizer.ggml.bos_token_id", I32, 1),
            KV("llama.context_length", U64, 1),
            tokens("<s>"),
        )
        .without("llama.attention.layer_norm_rms_epsilon")
        .with_tensor("blk.0.attn_q.weight", type=999)
        .with_tensor("blk.1.attn_q.weight", dims=(16, 64))
        .without_tensor("blk.1.ffn_up.weight")
    )
    broken = with_tensor(Tensor("atlas.mem", (4,)), base=broken)
    data = replace(broken, kv=(*broken.kv, broken.kv[1])).bytes()[:-64]
    found = [finding.code for finding in check(data)]
    for code in (
        "key-empty",
        "array-nested",
        "key-type-wrong",
        "token-duplicate",
        "key-missing",
        "key-duplicate",
        "tensor-type-unknown",
        "tensor-shape-wrong",
        "tensor-missing",
        "tensor-unexpected",
        "tensor-data-missing",
    ):
        assert code in found, found
    assert found.count("key-type-wrong") == 2


def test_offsets_point_at_the_bytes() -> None:
    data = moved(5, 4).bytes()
    (finding,) = [f for f in check(data) if f.code == "tensor-offset-unaligned"]
    assert finding.key == TINY.tensors[5].name
    assert finding.offset is not None
    assert data[finding.offset : finding.offset + 8] == (4).to_bytes(8, "little")

    data = TINY.with_kv(KV("tokenizer.ggml.bos_token_id", I32, 1)).bytes()
    (finding,) = [f for f in check(data) if f.code == "key-type-wrong"]
    assert (
        finding.offset == data.index(b"tokenizer.ggml.bos_token_id") + len("tokenizer.ggml.bos_token_id") + 4
    )

    data = TINY.with_kv(tokens("<s>")).bytes()
    (finding,) = [f for f in check(data) if f.code == "token-duplicate"]
    assert finding.offset is not None
    assert data[finding.offset : finding.offset + 3] == b"<s>"

    data = replace(TINY, n_kv=1).bytes()
    assert [f.offset for f in check(data) if f.code == "metadata-count-wrong"] == [16]


def test_findings_of_one_kind_are_bounded() -> None:
    found = [f for f in check(HOSTILE["many-duplicates"]()) if f.code == "key-duplicate"]
    assert len(found) == MAX_PER_CODE + 1
    assert found[-1].message == f"and {4999 - MAX_PER_CODE} more of the same kind"


def test_every_finding_can_be_shown() -> None:
    for name, make in HOSTILE.items():
        for finding in check(make()):
            assert finding.message, name
            assert finding.severity in ("error", "warning", "note")
            assert finding.code == finding.code.lower()
            assert " " not in finding.code
            assert finding.to_json()["message"].isprintable()


@pytest.mark.parametrize(
    ("kind", "data", "at"),
    [
        (F32_T, b"\0" * 124 + b"\xff" * 4, 124),
        (F16_T, b"\0" * 6 + b"\x00\x7c" + b"\0" * 56, 6),
        (30, b"\0" * 4 + b"\x80\x7f" + b"\0" * 58, 4),
        (Q8_0_T, b"\x00\xfc" + b"\0" * 32, 0),
    ],
)
def test_deep_looks_for_numbers_that_are_not_finite(kind: int, data: bytes, at: int) -> None:
    size = 32 * 32 // GGML[kind][0] * GGML[kind][1]
    file = TINY.with_tensor(
        "blk.0.attn_q.weight", type=kind, data=data + weights("w", (size // 2,), F16_T)[len(data) :]
    )
    assert check(file) == []
    found = [f for f in check(file, deep=True) if f.code == "tensor-not-finite"]
    (finding,) = found
    assert (finding.severity, finding.key) == ("error", "blk.0.attn_q.weight")
    assert finding.offset is not None
    assert file.bytes()[finding.offset : finding.offset + 2] == data[at : at + 2]


def test_deep_is_silent_about_sound_weights() -> None:
    for kind in (F32_T, F16_T, Q8_0_T):
        assert check(tiny_llama(kind=kind), deep=True) == []


# --- what llama.cpp dies of after loading ----------------------------------------------------------------------

WIDE = tiny_llama(layers=1, width=256, ff=256)
NAN, INF = float("nan"), float("inf")
NUMBERS = {
    "attention.layer_norm_rms_epsilon": (NAN, -1e-5, -INF, 0.0, -0.0, 1e30, INF),
    "rope.freq_base": (NAN, 0.0, -1.0, 1e-30, 1e38, INF),
    "rope.scaling.factor": (NAN, 0.0, 1e-30, 4.0),
    "rope.scaling.attn_factor": (NAN, 1.0),
    "logit_scale": (NAN,),
}


def _typed(file: File, name: str, kind: GGMLTypeRow) -> File:
    info = next(tensor for tensor in file.tensors if tensor.name == name)
    count = math.prod(info.dims)
    return file.with_tensor(name, type=int(kind.type), data=bytes(count // kind.block * kind.size))


def _decoding() -> Iterator[tuple[str, File]]:
    for key, values in NUMBERS.items():
        for value in values:
            yield f"{key} {value}", TINY.with_kv(KV(f"llama.{key}", F32, value))
    for value in (NAN, -1.0, INF, 0.0):
        yarn = KV("llama.rope.scaling.type", STR, "yarn")
        yield f"yarn {value}", TINY.with_kv(yarn, KV("llama.rope.scaling.factor", F32, value))
    for heads in (1, 2, 4, 8, 32):
        keys = ("llama.attention.head_count", "llama.attention.head_count_kv")
        yield f"{heads} heads", TINY.with_kv(*(KV(key, U32, heads) for key in keys))
    for size in (0, 1, 2**32 - 1):
        yield f"context {size}", TINY.with_kv(KV("llama.context_length", U32, size))
    yield "no end", TINY.without("tokenizer.ggml.eos_token_id")
    for kind in GGML_TYPES:
        for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_down.weight", "output.weight"):
            yield f"{name} {kind.type.name}", _typed(WIDE, name, kind)
        for name in ("output_norm.weight", "blk.0.attn_norm.weight"):
            yield f"{name} {kind.type.name}", _typed(WIDE, name, kind)
    for kind, size in ((0, 128), (1, 64), (30, 64), (2, 18), (28, 256)):
        yield f"bias {kind}", with_tensor(Tensor("blk.0.attn_q.bias", (32,), kind, bytes(size)))
    for kind, size in ((0, 32), (1, 16), (28, 64)):
        yield f"frequencies {kind}", with_tensor(Tensor("rope_freqs.weight", (8,), kind, bytes([1] * size)))


def test_verdict_at_the_first_tokens_is_that_of_llama_cpp(oracle: LlamaOracle, tmp_path: Path) -> None:
    """Two tokens are decoded in a child: its death, or logits that are no numbers, are the verdict."""
    path, wrong, died = tmp_path / "file.gguf", [], 0
    for name, file in _decoding():
        path.write_bytes(file.bytes())
        verdict, findings = oracle.decode(path), check_gguf(path)
        died += not (verdict.ok and verdict.finite)
        if is_ok(findings) != (verdict.ok and verdict.finite):
            wrong.append((name, verdict.ok, verdict.finite, verdict.reason, findings))
    assert not wrong
    assert died > 80


# --- model families -----------------------------------------------------------------------------------------


def _family(name: str, kind: str) -> File:
    """Build a model of a family from the table, with its own sizes."""
    keys: dict[str, KV] = {}

    def put(key: str, value: object, of: int = U32) -> None:
        keys[key] = KV(f"{name}.{key}", of, value)

    sizes = {
        "context_length": 48,
        "embedding_length": 96,
        "block_count": 2,
        "feed_forward_length": 104,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "vocab_size": 288,
        "rope.dimension_count": 24,
    }
    if kind == "moe":
        sizes |= {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 36}
    for key, value in sizes.items():
        put(key, value)
    plan = architectures.plan_of(name, experts=kind == "moe")
    assert plan is not None
    for key in plan.keys:
        if key == "rope.dimension_sections":
            put(key, arr(I32, [4, 4, 4, 0]), ARR)
        elif key == "use_parallel_residual":
            put(key, 1, BOOL)
        elif key not in keys:
            number = key.endswith(("sliding_window", "count", "step", "length", "pattern", "kernel", "size"))
            put(key, 2 if number else 1e-5, U32 if number else F32)
    pairs = [KV("general.architecture", STR, name), *keys.values(), *_spm()]
    pairs.append(KV("tokenizer.ggml.token_type_count", U32, 2))
    values = {key: pair.value for key, pair in keys.items()}
    tensors = []
    for layer in range(-1, 2):
        known = architectures.sizes(values, max(layer, 0), 288)
        for tensor, dims in (plan.model if layer < 0 else plan.block).items():
            shape = tuple(architectures.evaluate(dim, known) or 0 for dim in dims)
            tensors.append(Tensor(tensor if layer < 0 else f"blk.{layer}.{tensor}", shape))
    return File(tuple(pairs), tuple(tensors))


def _spm() -> tuple[KV, ...]:
    return tuple(pair for pair in TINY.kv if str(pair.key).startswith("tokenizer."))


#: Families whose further demands (scaling factors, sections) the little builder above does not meet.
_DEMANDING = {"apertus"}
FAMILIES = sorted(
    (name, kind)
    for name in architectures.ARCHITECTURES - _DEMANDING
    for kind in ("dense", "moe")
    if architectures.plan_of(name, experts=kind == "moe")
)


@pytest.mark.parametrize(("name", "kind"), FAMILIES)
def test_table_of_families_is_true(name: str, kind: str, oracle: LlamaOracle, tmp_path: Path) -> None:
    """What the table says loads; one tensor less, one more, or one misshapen does not."""
    whole, path = _family(name, kind), tmp_path / "file.gguf"
    last = whole.tensors[-1]
    variants: dict[str, tuple[File, str]] = {
        "whole": (whole, ""),
        "less": (whole.without_tensor(str(last.name)), "tensor-missing"),
        "more": (with_tensor(Tensor("blk.0.strange.weight", (4,)), base=whole), "tensor-unexpected"),
        "misshapen": (whole.with_tensor(str(last.name), dims=(*last.dims, 3)), "tensor-shape-wrong"),
    }
    for variant, (file, code) in variants.items():
        path.write_bytes(file.bytes())
        verdict, findings = oracle.load(path), check_gguf(path)
        found = {finding.code: finding.severity for finding in findings}
        assert verdict.ok == (variant == "whole"), verdict.reason
        if code:
            assert code in found, (variant, findings)
        if "tensor-list-uncertain" not in found:
            assert is_ok(findings) == verdict.ok, (variant, verdict.reason, findings)


def test_tensor_lists_that_cannot_be_known_are_no_errors() -> None:
    unknown = File(
        tuple(replace(p, key=str(p.key).replace("llama.", "mamba.")) for p in TINY.kv), TINY.tensors
    )
    unknown = unknown.with_kv(KV("general.architecture", STR, "mamba"))
    assert {f.code: f.severity for f in check(unknown)} == {"tensor-list-unknown": "note"}
    altered = with_tensor(Tensor("blk.0.more.weight", (4,)), base=TINY).with_kv(
        KV("llama.expert_shared_feed_forward_length", U32, 8)
    )
    found = {f.code: f.severity for f in check(altered)}
    assert found == {"tensor-list-uncertain": "note", "tensor-unexpected": "warning"}


def test_companions_are_not_judged_as_models() -> None:
    adapter = File(
        (
            KV("general.type", STR, "adapter"),
            KV("general.architecture", STR, "llama"),
            KV("adapter.type", STR, "lora"),
        ),
        (Tensor("blk.0.attn_q.weight.lora_a", (8, 2)),),
    )
    assert [(f.code, f.severity) for f in check(adapter)] == [("not-a-model", "note")]


# --- shards -------------------------------------------------------------------------------------------------

SHARDS = split_llama(3)


def _split(folder: Path, shards: list[File], stem: str = "m") -> Path:
    for number, shard in enumerate(shards, 1):
        (folder / f"{stem}-{number:05d}-of-{len(shards):05d}.gguf").write_bytes(shard.bytes())
    return folder / f"{stem}-00001-of-{len(shards):05d}.gguf"


def _damage_second(path: Path) -> Path:
    second = path.with_name(path.name.replace("00001", "00002", 1))
    os.truncate(second, second.stat().st_size - 2000)
    return path


SPLITS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "whole": (lambda d: _split(d, SHARDS), ""),
    "missing": (lambda d: (_split(d, SHARDS), (d / "m-00002-of-00003.gguf").unlink())[0], "shard-missing"),
    "swapped": (lambda d: _split(d, [SHARDS[0], SHARDS[2], SHARDS[1]]), "shard-wrong"),
    "total": (
        lambda d: _split(d, [SHARDS[0].with_kv(KV("split.tensors.count", I32, 99)), *SHARDS[1:]]),
        "split-count-wrong",
    ),
    "no total": (lambda d: _split(d, [SHARDS[0].without("split.tensors.count"), *SHARDS[1:]]), "key-missing"),
    "renamed": (lambda d: _split(d, SHARDS).rename(d / "x.gguf"), "shard-name-wrong"),
    "twice": (
        lambda d: _split(d, [SHARDS[0], with_tensor(SHARDS[0].tensors[0], base=SHARDS[1]), SHARDS[2]]),
        "tensor-duplicate",
    ),
    "broken": (lambda d: _split(d, [SHARDS[0], SHARDS[1].with_kv(KV("", U8, 1)), SHARDS[2]]), "shard-broken"),
    "cut": (lambda d: _damage_second(_split(d, SHARDS)), "shard-broken"),
    "u32": (
        lambda d: _split(d, [SHARDS[0], SHARDS[1].with_kv(KV("split.no", U32, 1)), SHARDS[2]]),
        "shard-broken",
    ),
    "tensor missing": (
        lambda d: _split(d, [SHARDS[0], replace(SHARDS[1], tensors=SHARDS[1].tensors[1:]), SHARDS[2]]),
        "split-count-wrong tensor-missing",
    ),
}


@pytest.mark.parametrize("name", SPLITS)
def test_split_models(name: str, oracle: LlamaOracle, tmp_path: Path) -> None:
    make, codes = SPLITS[name]
    path = make(tmp_path)
    verdict, findings = oracle.load(path), check_gguf(path)
    assert set(codes.split()) <= {f.code for f in findings}
    assert is_ok(findings) == verdict.ok, (verdict.reason, findings)


def test_other_shards_are_fine_by_themselves(tmp_path: Path) -> None:
    _split(tmp_path, SHARDS)
    (finding,) = check_gguf(tmp_path / "m-00002-of-00003.gguf")
    assert (finding.code, finding.severity) == ("shard-not-first", "note")
    assert check_gguf(tmp_path / "m-00001-of-00003.gguf", shards=False) == []


# --- real files ---------------------------------------------------------------------------------------------


def test_real_vocabularies_are_fine(vocabularies: list[Path], oracle: LlamaOracle) -> None:
    for path in vocabularies:
        assert [f.code for f in check_gguf(path)] == ["vocabulary-only"], path.name
        assert oracle.load(path).ok


def test_real_model_and_its_damage(repository: Path, oracle: LlamaOracle, tmp_path: Path) -> None:
    model = repository.parent / "shared" / "models" / "tiny-python-q8_0.gguf"
    if not model.exists():
        pytest.skip("needs the trained model in ../shared/models, which is not here")
    assert check_gguf(model, deep=True) == []
    data, path, dice = model.read_bytes(), tmp_path / "file.gguf", random.Random(5)
    path.write_bytes(data)
    for _ in range(60):
        at = dice.randrange(129_189)
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(bytes([data[at] ^ 1 << dice.randrange(8)]))
        verdict, findings = oracle.load(path), check_gguf(path)
        assert is_ok(findings) == verdict.ok, (at, verdict.reason, findings)
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(data[at : at + 1])


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NoSuchFileError):
        check_gguf(tmp_path / "nothing.gguf")


def test_bpe_builder_is_a_whole_alphabet() -> None:
    assert len(set(bpe_tokens()[0])) == 260


def test_oracle_survives_what_kills_llama_cpp(oracle: LlamaOracle, tmp_path: Path) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(tiny_llama(align=8).bytes())
    verdict = oracle.load(path)
    assert verdict.crashed
    assert "aligned" in verdict.reason
    path.write_bytes(TINY.bytes())
    assert oracle.load(path).ok
