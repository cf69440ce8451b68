"""An answer that is asked for again, or whose question was corrected: the newest is what the memory keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.conftest import TEMPLATE, Server
from server.scripted import CHATML, ScriptedEngine
from server.test_recall import chat, engine, filled, kept, recalled, talk
from tests.waiting import until

pytest.importorskip("fastapi", reason="the packages of the server are not installed")

ASK = "Who keeps the light?"


def test_of_an_answer_that_is_asked_for_again_the_newest_is_kept(serve: Server) -> None:
    server = serve(engine("Hello.", "Bertram.", "Carla.", "Dora."))
    talk(server, "Good day")
    answers = [talk(server, "Good day", "Hello.", ASK) for _ in range(3)]
    assert kept(server) == ["Good day", "Hello.", ASK, "Dora."]
    dropped = [one["atlas"]["not_unlearned_tokens"] for one in answers]
    assert dropped == [0, len("Bertram."), len("Bertram.Carla.")]  # it is said what the branches have left
    talk(server, "Good day", "Hello.", ASK, "Dora.", "Thanks.")
    assert kept(server) == ["Good day", "Hello.", ASK, "Dora.", "Thanks.", "Dora."]


def test_the_first_answer_of_all_can_be_asked_for_again(serve: Server) -> None:
    server = serve(engine("Bertram.", "Carla."))
    for _ in range(2):
        talk(server, ASK)
    assert kept(server) == [ASK, "Carla."]


def test_what_was_left_is_recalled_no_more(serve: Server) -> None:
    made = engine("Bertram of Skagen is on duty.", "Carla of Skagen is on duty.", "Fine.")
    server = serve(made, atlas_recall="always")
    for _ in range(2):
        server.post(
            "/v1/chat/completions", messages=[{"role": "user", "content": ASK}], max_tokens=64,
            atlas={"session_id": "anna"},
        )  # fmt: skip
    filled(server)
    assert recalled(chat(server, "Who is on duty at Skagen?")) == ["Carla of Skagen is on duty."]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions"])
def test_every_api_asks_again(serve: Server, path: str) -> None:
    server = serve(engine("Bertram.", "Carla."))
    more: dict[str, Any] = {"messages": [{"role": "user", "content": ASK}], "max_tokens": 16}
    if path == "/v1/responses":
        more = {"input": ASK}
    elif path == "/v1/completions":
        more = {"prompt": ASK}
    for stream in (False, True):
        answer = server.client.post(path, json={**more, "stream": stream, "atlas": {"session_id": "anna"}})
        assert answer.is_success
    assert kept(server) == [ASK, "Carla."]


def test_a_corrected_question_is_kept_without_what_it_corrects(serve: Server) -> None:
    server = serve(engine("Hello.", "Tom!", "Tim!"))
    talk(server, "Good day")
    talk(server, "Good day", "Hello.", "My cat is called Tom.")
    talk(server, "Good day", "Hello.", "My cat is called Tim.")
    assert kept(server) == ["Good day", "Hello.", "My cat is called Tim.", "Tim!"]


def test_an_answer_that_the_client_changed_is_kept_as_it_sends_it(serve: Server) -> None:
    server = serve(engine("The keeper is Bertram.", "Fine."))
    talk(server, ASK)
    talk(server, ASK, "The keeper is Carla.", "Really?")
    assert kept(server) == [ASK, "The keeper is Carla.", "Really?", "Fine."]


def test_another_talk_that_begins_alike_takes_nothing_away(serve: Server) -> None:
    """What somebody said stays, where it may as well be the next day's talk in the same words."""
    server = serve(engine("Hello.", "Nice.", "Fine."))
    talk(server, "Hi")
    talk(server, "Hi", "Hello.", "I am called Bertram.")
    talk(server, "Hi", "Hello.", "What am I called?")
    assert kept(server)[:4] == ["Hi", "Hello.", "I am called Bertram.", "Nice."]
    talk(server, "Hi")  # the whole talk stays but for the answer that was given again
    assert "I am called Bertram." in kept(server)
    assert "Nice." in kept(server)
    talk(server, "I am called Carla.")
    assert "I am called Bertram." in kept(server)


def test_an_answer_in_the_middle_goes_alone(serve: Server) -> None:
    server = serve(engine("One.", "Two.", "Three.", "Four."))
    talk(server, "first")
    talk(server, "first", "One.", "second")
    talk(server, "first", "One.", "second", "Two.", "third")
    talk(server, "first", "One.", "second")
    assert kept(server) == ["first", "One.", "third", "Three.", "second", "Four."]


def test_who_returns_to_what_was_left_is_remembered_again(serve: Server) -> None:
    server = serve(engine("One.", "Two.", "Three.", "Four."))
    talk(server, "first")
    talk(server, "first", "One.", "second")
    talk(server, "first", "One.", "second")
    assert kept(server) == ["first", "One.", "second", "Three."]
    talk(server, "first", "One.", "second", "Two.", "third")
    assert sorted(kept(server)) == sorted(["first", "One.", "second", "Three.", "Two.", "third", "Four."])


def test_thoughts_do_not_hide_what_was_answered(serve: Server) -> None:
    thinking = TEMPLATE + "{# <think> </think> #}"
    made = ScriptedEngine(
        "<think>Hm.</think>Bertram.",
        "<think>Ah.</think>Carla.",
        "Fine.",
        template=thinking,
        names=(),
        n_ctx=512,
    )
    server = serve(made)
    for _ in range(2):
        answer = server.post(
            "/v1/chat/completions", messages=[{"role": "user", "content": ASK}], max_tokens=64,
            atlas={"session_id": "anna"},
        )  # fmt: skip
    assert answer["choices"][0]["message"]["content"] == "Carla."
    assert kept(server) == [ASK, "Carla."]
    talk(server, ASK, "Carla.", "Really?")  # it comes back without its thoughts: nobody has changed it
    assert kept(server) == [ASK, "Carla.", "Really?", "Fine."]


def test_control_tokens_and_half_characters_are_in_nobodys_way(serve: Server) -> None:
    made = ScriptedEngine("Grüße, 你好 🙂.", "Grüße, 你坏 🙃.", template=CHATML, n_ctx=1024)
    server = serve(made)
    for _ in range(2):
        server.post(
            "/v1/chat/completions", messages=[{"role": "user", "content": ASK}], max_tokens=64,
            atlas={"session_id": "anna"},
        )  # fmt: skip
    assert kept(server) == [ASK, "Grüße, 你坏 🙃."]


def test_what_is_only_read_replaces_no_answer(serve: Server) -> None:
    server = serve(engine("Bertram.", "Carla."))
    talk(server, ASK)
    body = {"messages": [{"role": "user", "content": ASK}], "atlas": {"session_id": "anna"}}
    server.post("/v1/chat/completions", max_tokens=0, **body)
    assert kept(server) == [ASK, "Bertram."]


def test_of_several_answers_at_once_the_session_keeps_its_own(serve: Server) -> None:
    server = serve(engine("Bertram.", "Carla.", "Dora.", "Emil."))
    for count in (1, 3):
        server.post(
            "/v1/chat/completions", messages=[{"role": "user", "content": ASK}], max_tokens=16, n=count,
            atlas={"session_id": "anna"},
        )  # fmt: skip
    assert kept(server) == [ASK, "Carla."]


def test_it_holds_after_a_restart(serve: Server, tmp_path: Path) -> None:
    server = serve(engine("Bertram."), atlas_memory_dir=str(tmp_path))
    talk(server, ASK)
    server.stop()
    again = serve(engine("Carla."), atlas_memory_dir=str(tmp_path))
    talk(again, ASK)
    assert kept(again) == [ASK, "Carla."]


def test_who_goes_away_during_a_new_answer_keeps_one(serve: Server) -> None:
    made = engine("Bertram.", "Carla " * 60)
    server = serve(made)
    talk(server, ASK)

    body = {"messages": [{"role": "user", "content": ASK}], "stream": True, "atlas": {"session_id": "anna"}}
    with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(line for line in answer.iter_lines() if "Carla" in line)
    until(lambda: not server.service.conversations.under_way)
    first, said = kept(server)
    assert first == ASK
    assert said == "Bertram." or said.startswith("Carla")


def test_two_first_questions_are_two_talks_unless_one_is_said_to_replace_the_other(serve: Server) -> None:
    server = serve(engine("Ah.", "Oh.", "Uh."))
    talk(server, "Anna's code is 1234.")
    talk(server, "Berta's code is 1234.")
    assert kept(server) == ["Anna's code is 1234.", "Ah.", "Berta's code is 1234.", "Oh."]
    talk(server, "Berta's code is 1243.", replaces=True)
    assert kept(server) == ["Anna's code is 1234.", "Ah.", "Berta's code is 1243.", "Uh."]
    talk(server, "Berta's code is 1243.", "Uh.", "Really?", replaces=True)  # nothing is left: it goes on
    assert kept(server)[2:] == ["Berta's code is 1243.", "Uh.", "Really?", "Uh."]


def test_what_replaces_takes_the_rest_of_the_text_before_it_along_and_no_other(serve: Server) -> None:
    server = serve(engine("Hello.", "Tom!", "Nice.", "Rex!", "Fine."))
    talk(server, "Good day")
    talk(server, "Good day", "Hello.", "My cat is called Tom.")
    talk(server, "Good day", "Hello.", "My cat is called Tom.", "Tom!", "And I am Anna.")
    talk(server, "My dog is called Rex.")  # another talk
    talk(server, "Your dog is called Rex.", replaces=True)
    said = ["Good day", "Hello.", "My cat is called Tom.", "Tom!", "And I am Anna.", "Nice."]
    assert kept(server) == [*said, "Your dog is called Rex.", "Fine."]
    talk(server, "Good day", "Hello.", "What?", replaces=True)  # the text before it was the dog's
    assert kept(server) == [*said, "What?", "Fine."]


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_first_question_is_replaced_below_a_system_prompt_and_in_every_api(
    serve: Server, system: str
) -> None:
    server = serve(engine("One.", "Two.", "Three."))
    talk(server, "My cat is Tom.", system=system)
    talk(server, "My cat is Tim.", system=system, replaces=True)
    assert kept(server) == ["My cat is Tim.", "Two."]
    body = {
        "messages": [{"role": "user", "content": "My cat is Tam."}], "max_tokens": 16,
        "atlas": {"session_id": "anna", "replaces": True}, **({"system": system} if system else {}),
    }  # fmt: skip
    server.post("/v1/messages", **body)
    assert kept(server) == ["My cat is Tam.", "Three."]


@pytest.mark.parametrize("value", [1, "yes", []])
def test_whether_a_text_replaces_another_is_yes_or_no(serve: Server, value: Any) -> None:
    server = serve(engine("One."))
    body = {
        "messages": [{"role": "user", "content": "a"}],
        "atlas": {"session_id": "anna", "replaces": value},
    }
    answer = server.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("atlas.replaces")
