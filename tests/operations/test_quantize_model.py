"""Models that llama.cpp quantises: types, reports, and what quantising costs on a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_builder import F32_T, tiny_llama
from llama_oracle import LlamaOracle, OracleUnavailableError

from atlas_kit.errors import InvalidParamError, MissingExtraError, ModelError
from atlas_kit.formats.gguf import GGUFFile, MetadataField, write_gguf
from atlas_kit.formats.gguf.write import TensorSource
from atlas_kit.llama import quantizer
from atlas_kit.llama.fake_engine import FakeEngine
from atlas_kit.operations.model_check import WINDOW, compare_engines
from atlas_kit.operations.quantize_model import BY_GGUF, CASTS

TINY = tiny_llama()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, sample_data: Path) -> Path:
    """Return two layers of the trained sample model, 256 wide, with weights as 16-bit floats."""
    path = tmp_path_factory.mktemp("wide") / "wide.gguf"
    with GGUFFile.open(sample_data / "models" / "tiny-python.gguf") as model:
        sources = []
        infos = [
            i for i in model.tensor_infos if not i.name.startswith("blk.") or i.name[4:6] in ("0.", "1.")
        ]
        for info in infos:
            array = model.dequantize(info)
            sources.append(
                TensorSource.from_array(info.name, array if array.ndim < 2 else array.astype("<f2"))
            )
        count = f"{model.architecture}.block_count"
        fields = [MetadataField.make(f.key, 2, f.type) if f.key == count else f for f in model.fields]
        write_gguf(path, fields, sources)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(TINY.bytes())
    return path


#: What most tensors of a model 256 wide become.
MOSTLY = {
    "q4_0": "Q4_0", "q4_1": "Q4_1", "q5_0": "Q5_0", "q5_1": "Q5_1", "q8_0": "Q8_0", "q2_k": "Q2_K", "q3_k_s": "Q3_K",
    "q3_k_m": "Q3_K", "q3_k_l": "Q3_K", "q4_k_s": "Q4_K", "q4_k_m": "Q4_K", "q5_k_s": "Q5_K", "q5_k_m": "Q5_K",
    "q6_k": "Q6_K", "iq4_nl": "IQ4_NL", "iq4_xs": "IQ4_XS", "tq1_0": "TQ1_0", "tq2_0": "TQ2_0", "mxfp4": "MXFP4",
}  # fmt: skip


def test_every_type_is_tested() -> None:
    from atlas_kit.cli.compress_cmd import _TYPES

    assert set(MOSTLY) == set(quantizer.TYPES)
    assert set(_TYPES) == {*CASTS, *quantizer.TYPES}


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("kind", MOSTLY)
def test_every_type(kind: str, wide: Path, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    out = tmp_path / "out.gguf"
    result = run_cli("compress", wide, "-o", out, "--quantize", kind, "--json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["entries"]
    with GGUFFile.open(out) as made, GGUFFile.open(wide) as model:
        assert [row["key"] for row in rows] == [info.name for info in model.tensor_infos]
        for row in rows:
            info = made.tensors[row["key"]]
            assert (row["dtype_after"], row["stored_after"]) == (info.type_name, info.nbytes)
            changed = row["dtype_before"] != row["dtype_after"]
            assert (row["error"] is not None) == changed
            if changed:  # ternary types hold three values, the others follow a number more or less closely
                assert 0 < row["error"]["relative_l2"] < (2 if kind.startswith("tq") else 0.4)
        types = [info.type_name for info in made.tensor_infos if len(info.dims) > 1]
        assert max(set(types), key=types.count) == MOSTLY[kind]
        assert {f.key for f in model.fields} <= {f.key for f in made.fields}
    assert run_cli("validate", out).exit_code == 0


@pytest.mark.model
def test_what_quantising_costs(
    wide: Path, tmp_path: Path, run_cli: Callable[..., Any], sample_data: Path
) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    text = sample_data / "documents" / "statistics.py"
    found = {}
    for kind in ("q8_0", "q4_k_m", "q2_k"):
        line = ["compress", wide, "-o", tmp_path / f"{kind}.gguf", "--quantize", kind, "--check", text]
        result = run_cli(*line, "--check-tokens", "300", "--json")
        assert result.exit_code == 0, result.stderr
        found[kind] = json.loads(result.stdout)["check"]
        assert found[kind]["tokens"] == 300
    assert 0 < found["q8_0"]["kl_mean"] < found["q4_k_m"]["kl_mean"] < found["q2_k"]["kl_mean"]
    assert found["q8_0"]["same_top"] > 0.95
    before = {one["perplexity_before"] for one in found.values()}
    assert len(before) == 1
    assert found["q8_0"]["perplexity_after"] == pytest.approx(before.pop(), rel=0.01)
    again = run_cli(
        "compress",
        wide,
        "-o",
        tmp_path / "x.gguf",
        "--quantize",
        "q4_0",
        "--check",
        text,
        "--check-tokens",
        "64",
    )
    for words in ("perplexity", "KL divergence", "same token first", "64 tokens predicted"):
        assert words in again.stdout


@pytest.mark.model
def test_llama_cpp_loads_what_it_made(model: Path, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    for kind in ("q4_0", "iq4_nl", "mxfp4", "q4_k_m"):  # its rows are too short for the last: others stand in
        out = tmp_path / f"{kind}.gguf"
        assert run_cli("compress", model, "-o", out, "--quantize", kind).exit_code == 0
    try:
        with LlamaOracle() as oracle:
            for out in tmp_path.glob("*q*.gguf"):
                assert oracle.load(out).ok, out
    except OracleUnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.model
def test_a_text_to_check_with_is_looked_at_first(
    model: Path, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    out, empty = tmp_path / "out.gguf", tmp_path / "empty.txt"
    empty.write_bytes(b"")
    for text, words in (
        (empty, "too few tokens"),
        (tmp_path / "none.txt", "no such file"),
        (tmp_path, "directory"),
    ):
        refused = run_cli("compress", model, "-o", out, "--quantize", "Q8_0", "--check", text)
        assert refused.exit_code == 2
        assert words in refused.stderr
        assert not out.exists()
    out.write_text("a text that is worth keeping")
    refused = run_cli("compress", model, "-o", out, "--quantize", "q8_0", "--check", out, "--force")
    assert refused.exit_code == 2
    assert out.read_text() == "a text that is worth keeping"


def test_a_file_that_may_not_grow_is_no_fault_of_the_model(model: Path, tmp_path: Path) -> None:
    """llama.cpp says "iostream error" of any write that fails."""
    import resource
    import signal

    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    out = tmp_path / "out.gguf"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with open(out, "w+b") as file, pytest.raises(OSError, match="too large") as caught:
            quantizer.quantize(quantizer.Job(str(model), "q4_0"), file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not isinstance(caught.value, ModelError)


def test_what_llama_cpp_refuses(model: Path, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    out = tmp_path / "out.gguf"
    once = tmp_path / "once.gguf"
    assert run_cli("compress", model, "-o", once, "--quantize", "q8_0").exit_code == 0
    refused = run_cli("compress", once, "-o", out, "--quantize", "q4_0")
    assert refused.exit_code == 2
    assert "--requantize" in refused.stderr
    assert not out.exists()
    assert run_cli("compress", once, "-o", out, "--quantize", "q4_0", "--requantize").exit_code == 0
    out.unlink()
    unknown = tiny_llama(arch="nobody")
    model.write_bytes(unknown.bytes())
    refused = run_cli("compress", model, "-o", out, "--quantize", "q4_0")
    assert refused.exit_code == 2
    assert "unknown model architecture" in refused.stderr
    model.write_bytes(TINY.bytes()[:-4000])
    assert run_cli("compress", model, "-o", out, "--quantize", "q4_0").exit_code == 2
    assert run_cli("compress", "-", "-o", out, "--quantize", "q4_0", stdin=TINY.bytes()).exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "once.gguf"]


@pytest.mark.model
def test_a_damaged_weight_ends_no_process(model: Path, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    name = "blk.0.ffn_up.weight"
    data = np.full(32 * 64, np.nan, "<f4").tobytes()
    model.write_bytes(TINY.with_tensor(name, type=F32_T, data=data).bytes())
    result = run_cli("compress", model, "-o", tmp_path / "out.gguf", "--quantize", "q4_k_m")
    if result.exit_code:
        assert "llama.cpp does not quantise" in result.stderr
        assert not (tmp_path / "out.gguf").exists()
    else:  # a llama.cpp that does not look: the error says it
        assert "inf" in result.stdout


@pytest.mark.model
def test_an_existing_output_survives_a_refusal(
    model: Path, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    out = tmp_path / "out.gguf"
    out.write_bytes(b"as it was")
    model.write_bytes(tiny_llama(arch="nobody").bytes())
    assert run_cli("compress", model, "-o", out, "--quantize", "q4_0", "--force").exit_code == 2
    assert out.read_bytes() == b"as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "out.gguf"]


def test_a_child_that_crashes_is_an_error(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends the process, the output is not there, and a sentence says it."""
    import subprocess
    import sys

    real = subprocess.Popen

    def crash(args: list[str], **options: Any) -> Any:
        code = "import os, sys; sys.stdin.read(); print('x.c:1: GGML_ASSERT(false) failed', flush=True); os.abort()"
        return real([sys.executable, "-c", code], **options)

    monkeypatch.setattr(subprocess, "Popen", crash)
    with open(tmp_path / "out", "w+b") as out, pytest.raises(ModelError, match="GGML_ASSERT"):
        quantizer.quantize(quantizer.Job(str(model), "q4_0"), out)


@pytest.mark.parametrize("kind", BY_GGUF)
def test_the_gguf_package_stands_in(
    kind: str, model: Path, tmp_path: Path, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> None:
        raise MissingExtraError("quantising to this type", "llama")

    monkeypatch.setattr(quantizer, "quantize", missing)
    model.write_bytes(tiny_llama(width=256, ff=256).bytes())
    out = tmp_path / "out.gguf"
    result = run_cli("compress", model, "-o", out, "--quantize", kind, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert "gguf package" in found["notes"][0]
    changed = [row for row in found["entries"] if row["dtype_after"] == kind.upper()]
    assert len(changed) == 16
    assert all(row["error"]["relative_l2"] < (2 if kind.startswith("tq") else 0.2) for row in changed)
    assert run_cli("validate", out).exit_code == 0
    refused = run_cli("compress", model, "-o", tmp_path / "x.gguf", "--quantize", "q4_k_m")
    assert refused.exit_code == 2
    assert "atlas-kit[llama]" in refused.stderr


def test_a_memory_has_fewer_types(samples: Path, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    memory = samples / "atlas" / "learned.atlas"
    for more in (["--quantize", "q4_k_m"], ["--check", memory], ["--requantize"]):
        result = run_cli("compress", memory, "-o", tmp_path / "x.atlas", *more)
        assert result.exit_code == 2
        assert not (tmp_path / "x.atlas").exists()


# --- the comparison ---------------------------------------------------------------------------------------------


class Offset(FakeEngine):
    """An engine whose logits are those of another, shifted or sharpened."""

    def __init__(self, factor: float, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor

    def decode(self, feeds: Any, *, hidden: bool = False) -> Any:
        return [
            out._replace(logits=out.logits * self.factor + 3) for out in super().decode(feeds, hidden=hidden)
        ]


def test_the_same_model_differs_in_nothing() -> None:
    tokens = list(np.random.default_rng(1).integers(0, 20, 700))
    found = compare_engines(FakeEngine(n_ctx=WINDOW), Offset(1.0, n_ctx=WINDOW), tokens)
    begin = len(FakeEngine().begin)
    assert found.tokens == 700 - (2 - begin if not begin else 0)
    assert found.kl_max == pytest.approx(0, abs=1e-6)
    assert found.perplexity_before == pytest.approx(found.perplexity_after, rel=1e-6)
    assert found.same_top == 1


def test_divergence_by_hand() -> None:
    tokens = list(np.random.default_rng(2).integers(0, 20, 40))
    one, two = FakeEngine(n_ctx=64), Offset(0.5, n_ctx=64)
    found = compare_engines(one, two, tokens)
    from atlas_kit.llama.engine import Feed

    fresh = FakeEngine(n_ctx=64)
    window = [*fresh.begin, *tokens]
    divergences, losses = [], []
    for at, token in enumerate(window[:-1]):
        (out,) = fresh.decode([Feed(0, [token], at, 1)])
        p, q = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (out.logits[0], out.logits[0] * 0.5))
        divergences.append(float((p * np.log(p / q)).sum()))
        losses.append(-np.log(p[window[at + 1]]))
    assert found.kl_mean == pytest.approx(np.mean(divergences), rel=1e-5)
    assert found.kl_max == pytest.approx(max(divergences), rel=1e-5)
    assert found.perplexity_before == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert found.same_top == 1  # the order stays


def test_too_few_tokens() -> None:
    with pytest.raises(InvalidParamError, match="too few"):
        compare_engines(FakeEngine(), FakeEngine(), [])


def test_vocabularies_of_one_size_with_other_tokens_cannot_be_compared() -> None:
    class Other(FakeEngine):
        def piece(self, token: int, *, special: bool = False) -> bytes:
            return super().piece(token, special=special)[::-1] + b"!"

    with pytest.raises(InvalidParamError, match="different vocabularies"):
        compare_engines(FakeEngine(n_ctx=WINDOW), Other(n_ctx=WINDOW), [1, 2, 3])
