"""What is recommended for a model: facts, rule, costs, refusals; for any metadata."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from gguf_builder import (
    ARR,
    BOOL,
    F32,
    I32,
    KV,
    Q4_0_T,
    Q8_0_T,
    STR,
    U32,
    U64,
    Array,
    File,
    Tensor,
    kv_bytes,
    split_llama,
    tensor_bytes,
    tiny_llama,
    vocab_only,
)

from atlas_kit.cli.recommend_cmd import automatic_command, run_command
from atlas_kit.errors import AtlasError, MagicMismatchError, ModelError
from atlas_kit.formats.gguf import GGUFFile
from atlas_kit.formats.gguf.architectures import ARCHITECTURES
from atlas_kit.memory import Memory
from atlas_kit.settings.atlas_settings import AtlasSettings, settings_table
from atlas_kit.settings.model_facts import FAMILIES, model_facts, require_decoder
from atlas_kit.settings.recommend import RULE, SWEPT, Recommendation, costs_of, recommend


def header_of(
    path: Path, *, arch: str = "llama", width: int, layers: int, ff: int, vocabulary: int, tied: bool = True,
    context: int | None = 8192, heads: int = 32, kv: int = 8, kind: int = Q4_0_T, experts: int = 0,
    pairs: tuple[KV, ...] = (),
) -> Path:  # fmt: skip
    """Write a model of a real shape without its weights: a hole in the file stands for them."""
    keyed = [("embedding_length", width), ("block_count", layers), ("vocab_size", vocabulary)]
    keyed += [("attention.head_count", heads), ("attention.head_count_kv", kv)]
    keyed += [("context_length", context)] if context else []
    keyed += [("expert_count", experts), ("expert_used_count", 2)] if experts else []
    values = (
        KV("general.architecture", STR, arch),
        KV("tokenizer.ggml.model", STR, "gpt2"),
        *(KV(f"{arch}.{name}", U32, value) for name, value in keyed),
        *pairs,
    )
    small = kv * width // heads
    shapes: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (width, vocabulary))]
    shapes += [] if tied else [("output.weight", (width, vocabulary))]
    for layer in range(layers):
        shapes += [
            (f"blk.{layer}.attn_{n}.weight", (width, s))
            for n, s in (("q", width), ("k", small), ("v", small))
        ]
        shapes.append((f"blk.{layer}.attn_output.weight", (width, width)))
        if experts:
            shapes += [
                (f"blk.{layer}.ffn_{n}_exps.weight", (width, ff, experts)) for n in ("gate", "up", "down")
            ]
        else:
            shapes += [(f"blk.{layer}.ffn_{n}.weight", (width, ff)) for n in ("gate", "up", "down")]
    tensors = [Tensor(name, dims, kind) for name, dims in shapes]
    data = File(values, n_tensors=len(tensors)).bytes()
    offset = 0
    for tensor in tensors:
        data += tensor_bytes(tensor, offset)
        offset += tensor.nbytes + -tensor.nbytes % 32
    with open(path, "wb") as out:
        out.write(data)
        out.truncate(len(data) + -len(data) % 32 + offset)
    return path


ONE_BILLION = {"width": 2048, "layers": 16, "ff": 8192, "vocabulary": 128_256}


def of(file: File) -> Recommendation:
    return recommend(file.bytes())


# --- facts ---------------------------------------------------------------------------------------------------


def test_facts_of_a_small_model() -> None:
    facts = of(tiny_llama(layers=3, kind=Q8_0_T)).model
    assert (facts.architecture, facts.family, facts.layers, facts.width) == ("llama", "attention", 3, 32)
    assert (facts.heads, facts.heads_kv, facts.vocabulary, facts.context) == (2, 2, 288, 64)
    assert (facts.tied, facts.quantisation, facts.name) == (False, "Q8_0", "tiny")
    assert facts.parameters == 2 * 288 * 32 + 32 + 3 * (2 * 32 + 4 * 32 * 32 + 3 * 32 * 64)
    untied = facts.parameters - 287 * 32  # of the embedding, one row
    assert facts.active == untied
    assert of(tiny_llama(tied=True)).model.tied


def test_only_working_experts_are_read(tmp_path: Path) -> None:
    path = header_of(tmp_path / "m.gguf", width=512, layers=2, ff=1024, vocabulary=1024, experts=8)
    facts = recommend(path).model
    assert (facts.experts, facts.experts_used) == (8, 2)
    experts = 2 * 3 * 512 * 1024 * 8
    assert facts.active == facts.parameters - experts + experts // 4
    assert any("2 of 8 experts" in note for note in recommend(path).notes)


def test_heads_that_differ_by_layer() -> None:
    model = tiny_llama().with_kv(KV("llama.attention.head_count", ARR, Array(I32, [2, 4])))
    assert of(model).model.heads == 4


def test_a_split_model_is_taken_as_a_whole(tmp_path: Path) -> None:
    for index, part in enumerate(split_llama(2)):
        (tmp_path / f"m-0000{index + 1}-of-00002.gguf").write_bytes(part.bytes())
    facts = recommend(tmp_path / "m-00002-of-00002.gguf").model
    assert facts.parameters == of(tiny_llama()).model.parameters


def test_no_tensor_data_is_read(tmp_path: Path) -> None:
    whole = tiny_llama()
    file = GGUFFile.from_bytes(whole.bytes())
    cut = whole.bytes()[: file.data_start]
    assert recommend(cut).settings == of(whole).settings


# --- the rule ------------------------------------------------------------------------------------------------


def test_what_other_values_cost_is_what_the_sweep_found() -> None:
    results = Path(__file__).resolve().parents[2] / "tools" / "bench" / "results" / "settings-sweep.json"
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    found = {row["name"]: row["against"] for row in rows}
    found["use_muon True"] = min(nats for name, nats in found.items() if name.startswith("use_muon"))
    for name, costs in SWEPT.items():
        for value, nats in costs.items():
            assert nats == round(found[f"{name} {value}"], 3) + 0.0, (name, value)
    # nothing that takes no more room is clearly better than what is recommended
    most = rows[0]["state_bytes"] * 1.1
    assert min(row["against"] for row in rows if row["state_bytes"] <= most) > -0.005


def test_a_model_that_is_cut_off_is_noted() -> None:
    whole = tiny_llama().bytes()
    assert not any("cut off" in note for note in recommend(whole).notes)
    assert any("cut off" in note for note in recommend(whole[:-1]).notes)


def test_every_setting_has_a_reason(tmp_path: Path) -> None:
    result = recommend(header_of(tmp_path / "m.gguf", **ONE_BILLION))
    assert list(result.reasons) == [row.name for row in settings_table()]
    assert all(result.reasons.values())


def test_the_rule_by_size(tmp_path: Path) -> None:
    small = recommend(
        header_of(tmp_path / "s.gguf", width=256, layers=9, ff=768, vocabulary=4096, kind=Q8_0_T)
    )
    large = recommend(header_of(tmp_path / "l.gguf", **ONE_BILLION))
    assert (
        small.settings.learning_rate == large.settings.learning_rate
    )  # steps are scaled by the model's own rows
    assert small.settings.window_size <= large.settings.window_size
    assert (small.settings.memory_rank, large.settings.memory_rank) == (192, 384)
    # of a large vocabulary every token has other candidates, and their rows are what costs
    middle = recommend(header_of(tmp_path / "m.gguf", width=576, layers=30, ff=1536, vocabulary=49152))
    assert [one.settings.candidates for one in (small, middle, large)] == [192, 256, 128]
    assert middle.settings.memory_rank == 384
    assert [one.settings.states for one in (small, middle, large)] == ["final", "middle", "middle"]
    assert middle.costs.state_bytes < 16_000_000
    assert of(tiny_llama()).settings.candidates == 0
    assert small.settings.memory_dim == large.settings.memory_dim == 64
    for result in (small, large):
        assert result.settings.window_size in [n << power for power in range(9, 17) for n in (2, 3)]


def test_a_small_model_keeps_less_than_four_megabytes(tmp_path: Path) -> None:
    path = header_of(
        tmp_path / "s.gguf", width=256, layers=9, ff=768, vocabulary=4096, context=512, kind=Q8_0_T
    )
    assert recommend(path).costs.state_bytes <= 4_000_000


def test_a_wide_shallow_model_gets_a_cheaper_memory(tmp_path: Path) -> None:
    path = header_of(tmp_path / "m.gguf", width=16384, layers=1, ff=256, vocabulary=2000, heads=64, kv=1)
    result = recommend(path)
    assert result.settings.memory_rank < AtlasSettings().memory_rank
    assert result.costs.extra_time <= RULE.time_share or result.costs.seconds <= RULE.time_free
    assert "slow" in result.reasons["memory_rank"]


def test_settings_go_into_the_command(tmp_path: Path) -> None:
    result = recommend(header_of(tmp_path / "a model.gguf", **ONE_BILLION))
    words = shlex.split(run_command(result))
    assert words[:4] == ["atlas-tool", "run", str(tmp_path / "a model.gguf"), "--atlas"]
    chosen = dict(zip(words[4::2], words[5::2], strict=True))
    rows = {row.option: row for row in settings_table()}
    changed = {
        rows[option].name: value if value in rows[option].choices else json.loads(value)
        for option, value in chosen.items()
    }
    assert AtlasSettings().replace(**changed) == result.settings
    assert shlex.split(automatic_command(result))[-1] == "--atlas-auto"


# --- costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"features": "sparse"},
        {"features": "fourier", "memory_dim": 16},
        {"learning_rate": 0.0},
        {"window_size": 0},
        {"memory_dim": 4096},
        {"features": "polynomial", "polynomial_degree": 1, "chunk_size": 64, "omega_window": 64},
    ],
    ids=str,
)
def test_bytes_are_those_of_a_real_memory(changes: dict[str, Any]) -> None:
    facts = of(tiny_llama(width=64, ff=64)).model
    settings = AtlasSettings(window_size=128).replace(**changes)
    costs = costs_of(facts, settings)
    memory = Memory(settings.memory_config(facts.width, n_vocab=facts.vocabulary))
    state = memory.init()
    assert costs.state_bytes == state.nbytes
    parts = dict(
        zip(("matrix", "window", "rest", "constants"), (size for _, size in costs.memory), strict=False)
    )
    assert parts["matrix"] == sum(a.nbytes for a in state.parameters.values())
    assert parts["window"] == sum(state.window[n].nbytes for n in ("key", "token", "valid"))
    assert parts["matrix"] + parts["window"] + parts["rest"] == state.nbytes
    assert parts["constants"] >= sum(a.nbytes for a in memory._learner.constants.values())
    assert costs.total_bytes == sum(size for _, size in costs.memory)


def test_the_cache_of_rows_is_that_of_the_runtime() -> None:
    from atlas_kit.llama import output_matrix as rows

    assert RULE.row_cache == rows.CACHE_BYTES


def test_more_work_is_estimated_to_cost_more() -> None:
    facts = of(tiny_llama(width=256, heads=4)).model
    plain = costs_of(facts, AtlasSettings())
    for changes in ({"use_muon": True}, {"window_size": 1 << 20}, {"chunk_size": 8}, {"features": "sparse"}):
        more = costs_of(facts, AtlasSettings().replace(**changes))
        assert (more.flops, more.seconds) > (plain.flops, plain.seconds), changes
    none = costs_of(facts, AtlasSettings(learning_rate=0.0))
    assert none.flops < plain.flops


def test_json(tmp_path: Path) -> None:
    result = recommend(header_of(tmp_path / "m.gguf", **ONE_BILLION))
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert AtlasSettings.from_json(document["settings"]) == result.settings
    assert document["memory"]["total_bytes"] == sum(part["bytes"] for part in document["memory"]["parts"])
    assert document["compute"]["estimate"] is True
    assert document["model"]["width"] == 2048


# --- families, and what is refused ---------------------------------------------------------------------------


def test_every_architecture_of_a_family_is_known() -> None:
    named = {name for family in FAMILIES for name in family.members}
    assert named <= ARCHITECTURES


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_families(family: Any) -> None:
    arch = sorted(family.members)[0]
    model = tiny_llama(arch=arch)
    if family.refusal:
        with pytest.raises(ModelError, match=family.refusal[:20]):
            of(model)
        return
    result = of(model)
    assert family.note in result.notes
    assert result.model.family == next(f.name for f in FAMILIES if arch in f.members)


def test_recurrent_and_hybrid_models_say_that_they_cannot_shift() -> None:
    for arch in ("mamba", "rwkv7", "jamba", "lfm2"):
        assert any("shifted" in note for note in of(tiny_llama(arch=arch)).notes), arch
    model = tiny_llama(arch="novel").with_kv(KV("novel.ssm.state_size", U32, 16))
    assert any("shifted" in note for note in of(model).notes)


def test_an_unknown_architecture_is_said_to_be_unknown() -> None:
    result = of(tiny_llama(arch="novel"))
    assert result.model.family == "unknown"
    assert any("does not know the architecture" in note for note in result.notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ((KV("llama.attention.causal", BOOL, 0),), "encoder"),
        ((KV("general.type", STR, "adapter"),), "adapter"),
        ((KV("general.type", STR, "mmproj"),), "projector"),
        ((KV("general.architecture", U32, 1),), "architecture"),
        ((KV("general.architecture", STR, "clip"),), "pictures"),
    ],
)
def test_refusals(changes: tuple[KV, ...], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        of(tiny_llama().with_kv(*changes))


def test_files_without_weights() -> None:
    with pytest.raises(ModelError, match="vocabulary and no weights"):
        of(vocab_only())
    with pytest.raises(ModelError, match="no weights"):
        of(File((KV("general.architecture", STR, "llama"),)))
    with pytest.raises(ModelError, match="architecture"):
        of(File())
    with pytest.raises(MagicMismatchError):
        recommend(b"ATLS" + bytes(100))


def test_decoders_pass() -> None:
    assert require_decoder(GGUFFile.from_bytes(tiny_llama().bytes())).name == "attention"


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ((KV("llama.context_length", STR, "long"),), "no context length"),
        ((KV("llama.pooling_type", U32, 3),), "embeddings"),
        ((KV("llama.final_logit_softcapping", F32, 30.0),), "caps or scales"),
        ((KV("llama.logit_scale", F32, 0.0625),), "caps or scales"),
        ((KV("atlas.version", U32, 1),), "ATLAS-native"),
        ((KV("tokenizer.ggml.model", STR, "none"),), "tokenizer"),
    ],
)
def test_notes(pairs: tuple[KV, ...], words: str) -> None:
    assert any(words in note for note in of(tiny_llama().with_kv(*pairs)).notes)
    assert "how good" in of(tiny_llama()).notes[-1]


HOSTILE = [
    KV("llama.embedding_length", U32, 0),
    KV("llama.embedding_length", U32, 2**32 - 1),
    KV("llama.embedding_length", ARR, Array(U32, [])),
    KV("llama.embedding_length", ARR, Array(STR, ["x"])),
    KV("llama.context_length", U32, 0),
    KV("llama.context_length", U64, 2**64 - 1),
    KV("llama.block_count", I32, -1),
    KV("llama.vocab_size", U32, 2**32 - 1),
    KV("tokenizer.ggml.tokens", U32, 3),
    KV("tokenizer.ggml.model", ARR, Array(STR, ["gpt2"])),
    KV("llama.attention.head_count", STR, "two"),
    KV("llama.expert_count", U32, 2**32 - 1),
    KV("llama.logit_scale", F32, float("nan")),
    KV("llama.final_logit_softcapping", F32, float("inf")),
    KV("general.name", U32, 7),
    KV("general.type", ARR, Array(STR, ["model"])),
]


@pytest.mark.parametrize("pair", HOSTILE, ids=lambda p: f"{p.key}={p.value}"[:60])
def test_hostile_values_give_a_result_or_a_sentence(pair: KV) -> None:
    try:
        result = of(tiny_llama().with_kv(pair))
    except AtlasError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - either is fine
    else:
        json.dumps(result.to_json(), allow_nan=False)
        assert kv_bytes(pair)


@pytest.mark.parametrize("dims", [(), (32,), (32, 0), (2**40, 2**40), (0, 288)])
def test_hostile_shapes(dims: tuple[int, ...]) -> None:
    model = tiny_llama().with_tensor("output.weight", dims=dims, data=b"").without("llama.embedding_length")
    try:
        json.dumps(of(model).to_json(), allow_nan=False)
    except AtlasError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - either is fine


def test_facts_without_a_recommendation() -> None:
    facts = model_facts(GGUFFile.from_bytes(tiny_llama().bytes()))
    assert facts.path == "-"
    assert facts.bits_per_weight > 30
