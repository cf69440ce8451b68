"""``ModelCompare``: what differs between two models, shown as it is found, and what both make of a text."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from atlas_kit.errors import AtlasError, InvalidParamError
from atlas_kit.operations.model_check import ModelCheck
from atlas_kit.widgets import ModelCompare
from tests.waiting import LONG

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"
A, B = SAMPLES / "gguf/tiny.gguf", SAMPLES / "gguf/micro.gguf"


def done(a: Path = A, b: Path = B, text: str = "") -> ModelCompare:
    compare = ModelCompare(a, b, text)
    assert compare.wait(LONG)
    return compare


def test_what_differs_is_in_tables_and_a_picture():
    compare = done()
    assert compare.found.complete
    assert len(compare.tensors.rows) == compare.found.total
    assert {row["verdict"] for row in compare.tensors.rows} >= {"other shape"}
    assert compare.metadata.rows
    assert "tokens in A" in compare.tokens.caption
    assert "<svg" in compare._picture.value
    assert compare.found.sentence() in compare._status.value


def test_the_static_forms_hold_all_of_it():
    compare = done()
    page = compare.html()
    ElementTree.fromstring(page)
    assert "<script" not in page
    assert "tiny.gguf" in compare.text()
    assert compare.png().startswith(b"\x89PNG")
    compare._tabs.selected_index = 1
    assert page != compare.html()  # the tab that is looked at is the one that opens


def test_a_text_is_read_by_both(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def check(a: str, b: str, text: bytes, **options: object) -> ModelCheck:
        asked.append((a, b, text, options["tokens"]))
        return ModelCheck("-", 10, 3.0, 4.0, 0.1, 0.2, 0.3, 0.9)

    monkeypatch.setattr("atlas_kit.operations.model_check.check_models", check)
    compare = done(text="some words")
    assert compare.read() is not None
    assert asked == [(str(A), str(B), b"some words", 2048)]
    assert "0.10000 nats" in compare._result.value
    assert "On a text" in compare.html()
    assert "Perplexity of B: 4.0000" in compare.text()


def test_a_text_that_cannot_be_read_is_a_sentence(monkeypatch: pytest.MonkeyPatch):
    def check(*_: object, **__: object) -> ModelCheck:
        raise InvalidParamError("the two <models> have different vocabularies", hint="So it is.")

    monkeypatch.setattr("atlas_kit.operations.model_check.check_models", check)
    compare = done(text="words")
    assert compare.read() is None
    assert ">The two &lt;models&gt; have different vocabularies. So it is.<" in compare._result.value
    assert not compare._go.disabled
    assert compare.read("   ") is None
    assert "There is no text to read." in compare._result.value


def test_other_vocabularies_are_told_before_both_models_are_loaded(monkeypatch: pytest.MonkeyPatch):
    def check(*_: object, **__: object) -> ModelCheck:
        raise AssertionError("loaded")

    monkeypatch.setattr("atlas_kit.operations.model_check.check_models", check)
    compare = done(A, SAMPLES / "models/tiny-python.gguf", "words")
    assert compare.read() is None
    assert ">The two models have different vocabularies. One predicts" in compare._result.value


def test_what_is_no_model_is_an_error():
    with pytest.raises(AtlasError):
        ModelCompare(A, SAMPLES / "none.gguf")
    with pytest.raises(InvalidParamError, match="no GGUF model"):
        ModelCompare(A, SAMPLES / "atlas/assistant.atlas")


def test_a_widget_that_is_closed_has_let_go():
    compare = ModelCompare(A, B)
    compare.close()
    compare.close()
    assert compare.wait(LONG)


@pytest.mark.model
def test_both_cut_a_text_that_is_typed():
    compare = done(A, SAMPLES / "models/tiny-python.gguf")
    compare._words.value = "def <b>():"
    assert compare.wait(LONG)
    shown = compare._cut_text.value
    assert "A: " in shown
    assert "B: " in shown
    assert "&lt;" in shown
    assert "<b>()" not in shown
    compare._words.value = ""
    assert compare.wait(LONG)
    assert compare._cut_text.value == ""
    compare.close()


@pytest.mark.model
def test_a_model_without_words_is_a_sentence():
    compare = done()
    compare._words.value = "words"
    assert compare.wait(LONG)
    assert "the model has no vocabulary" in compare._cut_text.value
