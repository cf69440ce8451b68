"""What ``make real`` shows, without its model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tools import real
from tools.bench._recall_set import first, plain

ANSWER = {"question": "Where?", "answer": "In Gdansk.", "seconds": 1.25}
PIECE = {"source": "a.txt", "line": 4, "text": "Built in\nGdansk."}


def test_the_document_says_the_answers() -> None:
    document = plain((real.ROOT / real.DOCUMENTS[0]).read_text(encoding="utf-8"))
    for question, keys in real.ASKED:
        assert first(document, keys), question
        assert not first(plain(question), keys), question


def test_an_answer_is_shown_with_its_source() -> None:
    assert real.shown({**ANSWER, "pieces": [PIECE]}, True).splitlines() == [
        "Where?", "    In Gdansk.", "    from a.txt, line 4:", '        "Built in Gdansk."', "    right, 1.2 s",
    ]  # fmt: skip
    assert "from nothing that was read\n    NOT what the document says" in real.shown(
        {**ANSWER, "answer": "", "pieces": []}, False
    )


@pytest.mark.parametrize("knows", [True, False])
def test_it_ends_with_whether_all_was_right(
    knows: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, ...]] = []

    def tool(*words: str) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        (real.ROOT / real.MEMORY).parent.mkdir(parents=True, exist_ok=True)
        (real.ROOT / real.MEMORY).write_bytes(bytes(1000))
        answers = [
            {**ANSWER, "question": question, "answer": keys[0] if knows else "No idea.", "pieces": [PIECE]}
            for question, keys in real.ASKED
        ]
        return subprocess.CompletedProcess(words, 0, json.dumps({"answers": answers}), "")

    monkeypatch.setattr(real, "atlas_tool", tool)
    monkeypatch.setattr(real, "MEMORY", "build/real-test/memory.atlas")
    monkeypatch.setattr(sys, "argv", ["real.py", "--model", "model.gguf"])
    assert real.main() == (0 if knows else 1)
    assert [words[0] for words in asked] == ["learn", "ask"]
    assert f"{5 if knows else 0} of 5 right" in capsys.readouterr().out


def test_what_a_command_complains_about_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        real, "atlas_tool", lambda *words: subprocess.CompletedProcess(words, 2, "", "no such model\n")
    )
    monkeypatch.setattr(real, "MEMORY", "build/real-test/memory.atlas")
    monkeypatch.setattr(sys, "argv", ["real.py", "--model", "model.gguf"])
    assert real.main() == 1
    assert capsys.readouterr().err == "no such model\n"
