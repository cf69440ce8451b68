"""``lab/attached.py``: a lab that looks at a session of a running server."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("fastapi", reason="the packages of the server are not installed")

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama import FakeEngine
from atlas_kit.widgets import MemoryLab
from atlas_kit.widgets.lab.attached import AttachedLab
from atlas_kit.widgets.lab.recollection import Recollection
from tests.server import conftest as servers
from tests.server.conftest import Live
from tests.server.test_trace import FACT, QUESTION, chat, filled, scripted
from tests.waiting import until
from tests.widgets.conftest import receive, wired

serve = servers.serve
TEXT = "to be or not to be, that is the question. "


def read(server: Live, text: str = TEXT, session: str | None = "anna") -> dict:
    atlas = {} if session is None else {"session_id": session}
    return server.post("/v1/completions", prompt=text, max_tokens=2, temperature=0, atlas=atlas)


@pytest.fixture
def labs():
    opened: list[AttachedLab] = []
    yield lambda *given, **options: opened.append(MemoryLab(*given, **options)) or opened[-1]
    for lab in opened:
        lab.close()


def test_a_lab_shows_what_a_session_reads_and_says(serve, labs):
    server = serve()
    lab = labs(server.url, session="anna")
    assert (lab.state, len(lab.history.tokens)) == ("running", 0)
    assert lab.text().startswith(f"MemoryLab: session 'anna' at {server.url}, running\n0 tokens seen")
    until(lambda: server.service.conversations.traces._looked)
    answer = read(server)
    length = len(TEXT) - 1 + answer["usage"]["completion_tokens"]
    until(lambda: len(lab.trace) == length and lab.facts()["seen"] == answer["atlas"]["tokens_seen"])
    model, memory = lab.history.mean
    assert memory == pytest.approx(answer["atlas"]["omega_loss"], rel=1e-4)
    assert model == pytest.approx(answer["atlas"]["model_loss"], rel=1e-4)
    assert "".join(lab.words.texts(0, len(TEXT) - 1)) == TEXT[1:]
    assert lab.words.name(ord("b")) == "b"
    facts = lab.facts()
    assert facts["window_size"] == server.service.settings.window_size
    assert 0 < facts["window"] <= facts["window_size"]
    assert facts["learning_rate_set"] == server.service.settings.learning_rate
    assert f"loss {model:.3f} nats without memory" in lab.text()
    assert lab.png().startswith(b"\x89PNG")
    assert TEXT[1:].strip() in re.sub("<[^>]*>", "", lab.html())
    lab.close()
    assert lab.state == "done"


def test_a_lab_shows_what_was_recalled_for_an_answer(serve, labs):
    server = serve(scripted())
    lab = labs(server.url, session="anna")
    assert lab.answer is None
    assert "What it recalled" not in lab.html()
    filled(server)
    answer = chat(server, QUESTION, recall="always")
    until(lambda: lab.recalled.answer.get("question") == QUESTION)
    [piece] = lab.answer.pieces
    assert (lab.answer.question, lab.answer.text) == (QUESTION, answer["choices"][0]["message"]["content"])
    assert (piece.text, piece.kind, piece.gain) == (FACT, "user", answer["atlas"]["recalled"][0]["gain"])
    shown = lab.recalled.answer
    assert (shown["pieces"][0]["place"], shown["why"], shown["gate"]) == (piece.place, "", None)
    assert lab.recalled.stored > len(FACT)
    assert f"recalled from {piece.place}" in lab.text()
    assert FACT in lab.html()
    chat(server, "And now?", recall="off")
    until(lambda: lab.recalled.answer["question"] == "And now?")
    assert lab.recalled.answer["why"] == "Nothing was recalled: recall is off."
    chat(server, "Hello?", session="bert")
    read(server)  # what comes of it comes behind what bert was asked
    until(lambda: lab.words.texts(len(lab.trace) - 2, len(lab.trace)))
    assert lab.answer.question == "And now?"


def test_a_lab_that_comes_later_shows_what_was_recalled_last(serve, labs):
    server = serve(scripted())
    filled(server)
    chat(server, QUESTION, recall="always")
    lab = labs(server.url, session="anna")
    until(lambda: lab.answer is not None)
    assert (lab.answer.question, [piece.text for piece in lab.answer.pieces]) == (QUESTION, [FACT])
    assert not len(lab.trace)


def test_nothing_is_asked_from_a_lab_that_looks_on(serve, labs):
    lab = labs(serve().url, session="anna")
    lab.recalled.put("Hello?")
    assert (lab.recalled.asks, lab.recalled.busy, lab.recalled.answer) == (False, False, {})


TOLD = {
    "question": "q", "answer": "a", "finish_reason": "stop", "seconds": 1.5, "stored_tokens": 9,
    "recall": {"mode": "auto", "gate": 0.3, "reason": "it helps", "gain": 1.0, "judged": 1},
    "recalled": [], "candidates": [],
}  # fmt: skip
PIECE = {
    "text": "t", "kind": "user", "source": "", "time_ms": 0, "start": 0, "stop": 1, "line": 1, "score": 1.0,
    "gain": None,
}  # fmt: skip


def test_what_a_server_tells_becomes_what_an_answer_here_is():
    given = Recollection.of_server(
        {**TOLD, "recalled": [PIECE], "candidates": [PIECE, {**PIECE, "text": "u"}]}
    )
    assert given.lines() == ["asked: q", "    a", "recalled from user, 1970-01-01 00:00 UTC:", "    t",
                             "1 other candidate read and not taken"]  # fmt: skip
    assert (given.gate, given.stored) == (0.3, 9)
    assert Recollection.of_server({**TOLD, "stored_tokens": None}).stored == -1


@pytest.mark.parametrize(
    "told",
    [
        [], {}, {**TOLD, "question": 3}, {**TOLD, "recall": None}, {**TOLD, "recalled": [{}]},
        {**TOLD, "recalled": [{**PIECE, "time_ms": 1 << 70}]}, {**TOLD, "recalled": [{**PIECE, "gain": float("nan")}]},
        {**TOLD, "candidates": [{**PIECE, "stop": float("inf")}]}, {**TOLD, "seconds": "soon"},
        {**TOLD, "recall": {**TOLD["recall"], "mode": "never"}},
        {**TOLD, "recall": {**TOLD["recall"], "gate": float("inf")}},
    ],
)  # fmt: skip
def test_what_no_server_tells_is_one_error(told):
    with pytest.raises(ValueError, match="this is not what a server recalled"):
        Recollection.of_server(told)


def test_the_shared_memory_is_looked_at_without_a_name(serve, labs, tmp_path):
    server = serve(atlas_memory_file=str(tmp_path / "m.atlas"))
    lab = labs(server.url)
    until(lambda: server.service.conversations.traces._looked)
    read(server, session=None)
    until(lambda: len(lab.trace) >= len(TEXT) - 1)
    assert "the shared memory" in lab.text()


def test_a_key_is_sent_and_shown_nowhere(serve, labs):
    server = serve(api_key=("right-key",), headers={"authorization": "Bearer right-key"})
    with pytest.raises(InvalidParamError, match="the server wants another API key"):
        MemoryLab(server.url, session="anna")
    with pytest.raises(InvalidParamError, match="the server wants another API key"):
        MemoryLab(server.url, session="anna", key="wrong-key")
    lab = labs(server.url, session="anna", key="right-key")
    until(lambda: server.service.conversations.traces._looked)
    read(server)
    until(lambda: len(lab.trace) >= len(TEXT) - 1)
    assert "right-key" not in lab.text() + lab.html() + repr(lab.view.get_state())


def test_a_server_that_goes_away_is_told_and_found_again(serve, labs):
    server = serve()
    lab = labs(server.url, session="anna")
    until(lambda: server.service.conversations.traces._looked)
    server.service.stopping = True  # streams end, and new ones are refused
    until(lambda: lab.state == "paused")
    assert lab.error.endswith("It is asked again.")
    server.service.stopping = False
    until(lambda: lab.state == "running")
    assert lab.error == ""
    read(server)
    until(lambda: len(lab.trace) >= len(TEXT) - 1)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:9", "no server answers at http://127.0.0.1:9"),
        ("http://", "this is no address of a server"),
        ("http://user:secret@127.0.0.1:9", "this is no address of a server"),
    ],
)
def test_where_there_is_no_server_one_sentence_says_so(url, said):
    with pytest.raises(InvalidParamError, match=said) as caught:
        MemoryLab(url, session="anna")
    assert "secret" not in str(caught.value)


def test_where_nothing_is_shared_a_session_must_be_named(serve):
    with pytest.raises(InvalidParamError, match="there is no shared memory: name a session"):
        MemoryLab(serve().url)


def test_a_cell_that_is_run_again_takes_over(serve, labs):
    server = serve()
    first = labs(server.url, session="anna")
    other = labs(server.url, session="bert")
    second = labs(server.url, session="anna")
    until(lambda: not first._thread.is_alive())
    assert (first.state, other.state, second.state) == ("done", "running", "running")
    assert first.view.status.startswith("Another MemoryLab looks at this session now")


def test_closing_ends_the_thread_while_nothing_comes(serve):
    server = serve()
    lab = MemoryLab(server.url, session="anna")
    until(lambda: server.service.conversations.traces._looked)
    lab.close()
    lab.close()
    assert not lab._thread.is_alive()
    until(lambda: not server.service.conversations.traces._looked)


def test_a_lab_that_nobody_sees_asks_nothing_and_goes_on_when_it_is_seen(serve, labs, monkeypatch):
    monkeypatch.setattr("atlas_kit.widgets.lab.view.ANSWER_SECONDS", 0.05)
    server = serve()
    lab = labs(server.url, session="anna")
    looked = server.service.conversations.traces._looked
    until(lambda: looked)
    wired(lab.view)
    for kind in ("hello", "bye"):
        receive(lab.view, {"method": "custom", "content": {"kind": kind, "view": "a"}})
    until(lambda: not looked)
    until(lambda: lab.state == "paused")
    receive(lab.view, {"method": "custom", "content": {"kind": "hello", "view": "b"}})
    until(lambda: looked)
    read(server)
    until(lambda: len(lab.trace) >= len(TEXT) - 1)
    assert (lab.state, lab.view.status) == ("running", "")


def test_what_a_closed_lab_has_seen_can_be_told(serve, labs):
    server = serve()
    lab = labs(server.url, session="anna")
    until(lambda: server.service.conversations.traces._looked)
    read(server)
    until(lambda: len(lab.trace) >= len(TEXT) - 1)
    count = len(lab.trace)
    lab.close()
    assert len(lab._trace) == 0  # it lies on the shelf
    assert len(lab.history.tokens) == count
    assert "".join(lab.words.texts(0, len(TEXT) - 1)) == TEXT[1:]
    assert "loss" in lab.text()
    assert set(lab._repr_mimebundle_()[0]) == {"text/plain", "text/html", "image/png"}


def test_whatever_is_no_address_is_a_model_as_before():
    lab = MemoryLab(FakeEngine(), TEXT)
    assert type(lab) is MemoryLab
    lab.close()
