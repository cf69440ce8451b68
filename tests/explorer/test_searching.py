"""A text or bytes are found wherever they stand, also across pieces, and asking can be stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import InvalidParamError
from atlas_kit.explorer import searching
from atlas_kit.explorer.explorer import Explorer
from atlas_kit.explorer.searching import needle, search
from atlas_kit.storage.source import BytesSource


@given(st.binary(max_size=60), st.binary(min_size=1, max_size=4), st.integers(0, 70), st.integers(1, 9))
def test_search_is_find_whatever_the_pieces(data: bytes, wanted: bytes, start: int, piece: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "PIECE", piece)
        at = min(start, len(data))
        found = search(BytesSource(data), wanted, start)
        assert (-1 if found["offset"] is None else found["offset"]) == data.find(wanted, at)
        back = search(BytesSource(data), wanted, start, back=True)
        before = data.rfind(wanted, 0, at + len(wanted) - 1)
        assert (-1 if back["offset"] is None else back["offset"]) == before


def test_a_question_ends_and_says_where_to_go_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(searching, "PIECE", 10)
    monkeypatch.setattr(searching, "BUDGET", 20)
    source = BytesSource(b"." * 45 + b"x")
    seen, at = [], 0
    while True:
        found = search(source, b"x", at)
        if found["next"] is None:
            break
        at = found["next"]
        seen.append(at)
    assert seen == [20, 40]
    assert found["offset"] == 45
    assert search(source, b"y", 40)["next"] is None


def test_letters_of_either_case_are_the_same_where_that_is_wanted():
    source = BytesSource("Grüße an ATTN_q".encode())
    assert search(source, b"attn_Q", 0, any_case=True)["offset"] == 11
    assert search(source, b"attn_Q", 0)["offset"] is None


@pytest.mark.parametrize("text", ["", "4", "4 7", "gg", "0x", "47 4", "é"])
def test_what_are_no_bytes_is_said(text: str):
    with pytest.raises(InvalidParamError):
        needle(text, "hex")


def test_the_explorer_finds_and_locates(sample_data: Path):
    with Explorer(sample_data / "gguf/tiny.gguf", moves=True) as explorer:
        found = explorer.answer({"op": "search", "text": "47 47 55 46", "form": "hex"})[0]
        assert found["offset"] == 0
        found = explorer.answer({"op": "search", "text": "LLAMA"})[0]
        assert found["offset"] > 0
        assert "error" in explorer.answer({"op": "search", "text": "x" * 5000})[0]
        place = explorer.answer({"op": "find", "name": "tokenizer.ggml.tokens"})[0]["place"]
        table = explorer.answer({"op": "item", **place})[0]["values"]
        tokens = [row[1] for row in explorer.answer({"op": "rows", "table": table, "count": 300})[0]["rows"]]
        assert explorer.answer({"op": "locate", "table": table, "text": tokens[200]})[0][
            "row"
        ] == tokens.index(tokens[200])
        assert explorer.answer({"op": "locate", "table": table, "text": "no such token"})[0]["row"] is None
