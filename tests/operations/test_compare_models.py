"""Two models side by side: every tensor has a row, and what differs is told by what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf_builder import ARR, STR, Array, File, Tensor
from gguf_builder import KV as Pair

from atlas_kit.errors import InvalidParamError
from atlas_kit.formats.gguf.tensor_names import layer_and_role
from atlas_kit.operations.compare_models import ModelPair, compare_models, rows_of
from atlas_kit.operations.diff import DiffOptions

F32 = 0


def model(path: Path, tokens: tuple[str, ...], template: str, **tensors: np.ndarray) -> Path:
    """Write a model of F32 tensors; ``__`` in a name is a dot."""
    pairs = (
        Pair("general.architecture", STR, "llama"),
        Pair("tokenizer.ggml.tokens", ARR, Array(STR, tokens)),
        Pair("tokenizer.chat_template", STR, template),
    )
    rows = tuple(
        Tensor(name.replace("__", "."), array.shape[::-1], F32, array.astype("<f4").tobytes())
        for name, array in tensors.items()
    )
    path.write_bytes(File(pairs, rows).bytes())
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    ones = np.ones((2, 4), np.float32)
    a = model(
        tmp_path / "a.gguf", ("x", "y"), "one\ntwo\n",
        token_embd__weight=ones, blk__0__attn_q__weight=ones, blk__1__attn_q__weight=ones, blk__1__old__weight=ones,
    )  # fmt: skip
    b = model(
        tmp_path / "b.gguf", ("x", "z", "\x1b["), "one\n2\n",
        token_embd__weight=ones, blk__0__attn_q__weight=ones * 1.5, blk__1__attn_q__weight=np.ones((4, 4)),
        blk__1__new__weight=ones,
    )  # fmt: skip
    return a, b


def test_each_tensor_has_its_row(pair: tuple[Path, Path]):
    found = compare_models(*pair)
    assert {p.name: (p.layer, p.role, p.verdict) for p in found.tensors} == {
        "token_embd.weight": ("", "token_embd", "same"),
        "blk.0.attn_q.weight": ("0", "attn_q", "differs"),
        "blk.1.attn_q.weight": ("1", "attn_q", "other shape"),
        "blk.1.old.weight": ("1", "old", "only in A"),
        "blk.1.new.weight": ("1", "new", "only in B"),
    }
    errors = {p.name: p.error for p in found.tensors}
    assert errors["blk.0.attn_q.weight"] == pytest.approx(0.5)
    assert errors["token_embd.weight"] == 0
    assert errors["blk.1.attn_q.weight"] is None
    assert found.complete
    assert found.differs
    assert [row["error"] for row in rows_of(found)][:2] == [0.0, pytest.approx(0.5)]


def test_tokens_and_template_are_told_apart(pair: tuple[Path, Path]):
    found = compare_models(*pair)
    assert found.tokens == [(1, "y", "z"), (2, None, "\\x1b[")]
    assert found.token_counts == (2, 3)
    assert {"-two", "+2"} <= set(found.template)
    assert found.sentence() == (
        "4 of 5 tensors differ; 2 metadata values differ; 2 tokens differ; the chat templates differ."
    )


def test_a_template_of_one_line_or_in_one_model_only_differs_too(tmp_path: Path):
    a, b = (model(tmp_path / f"{name}.gguf", ("x",), f"{name} {'w' * 300}") for name in "ab")
    found = compare_models(a, b)
    assert found.template == ["-a " + "w" * 300, "+b " + "w" * 300]
    assert found.sentence().endswith("the chat templates differ.")
    (tmp_path / "c.gguf").write_bytes(File((Pair("general.architecture", STR, "llama"),), ()).bytes())
    assert compare_models(tmp_path / "c.gguf", b).template == ["+b " + "w" * 300]


def test_a_tolerance_makes_what_is_close_the_same(pair: tuple[Path, Path]):
    found = compare_models(*pair, DiffOptions(tolerance=0.6))
    assert {p.name: p.verdict for p in found.tensors}["blk.0.attn_q.weight"] == "same"


def test_a_model_is_the_same_as_itself(sample_data: Path):
    path = sample_data / "gguf/tiny.gguf"
    found = compare_models(path, path)
    assert not found.differs
    assert found.sentence() == "0 of 12 tensors differ; all metadata are the same; the tokens are the same."


def test_bytes_in_the_other_order_are_the_same_numbers(sample_data: Path):
    found = compare_models(sample_data / "gguf/micro.gguf", sample_data / "gguf/big-endian.gguf")
    assert {p.verdict for p in found.tensors} == {"same"}


def test_what_is_damaged_or_no_model_is_said(sample_data: Path):
    with pytest.raises(InvalidParamError, match="no GGUF model"):
        compare_models(sample_data / "gguf/tiny.gguf", sample_data / "atlas/assistant.atlas")


def test_a_comparison_goes_on_where_it_was_left(pair: tuple[Path, Path]):
    with ModelPair(*pair) as models:
        steps = models.compare()
        next(steps)
        assert "so far (1 of 5 compared)" in models.found.sentence()
        steps.close()
        assert len(list(models.compare())) == 4
        assert models.found.complete


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("blk.12.ffn_down_exps.weight", ("12", "ffn_down_exps")),
        ("enc.blk.3.attn_q.bias", ("enc.3", "attn_q.bias")),
        ("blk.9999999.x.weight", ("", "blk.9999999.x")),
        ("blk..x", ("", "blk..x")),
        ("", ("", "")),
    ],
)
def test_names_have_layers_and_roles(name: str, place: tuple[str, str]):
    assert layer_and_role(name) == place
