"""Answers for which something is read again that was said long ago: what they tell, and what they leave behind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.llama import Sampling
from server.conftest import TEMPLATE, Server
from server.scripted import ScriptedEngine
from tests.waiting import until

pytest.importorskip("fastapi", reason="the packages of the server are not installed")

FACT = "The lighthouse keeper of Skagen is called Bertram."
QUESTION = "What is the lighthouse keeper called?"
#: Other words than any question, and more of them than the context holds.
FILLER = "zum zam zim zem " * 12


def engine(*scripts: str, **options: Any) -> ScriptedEngine:
    return ScriptedEngine(*(scripts or ("Fine.",)), template=TEMPLATE, names=(), **{"n_ctx": 512, **options})


def chat(server: Any, text: str, session: str | None = "anna", **atlas: Any) -> Any:
    given = atlas if session is None else {"session_id": session, **atlas}
    return server.post(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": text}],
        max_tokens=8,
        temperature=0,
        atlas={"enabled": True, **given},
    )


def recalled(answer: Any) -> list[str]:
    return [piece["text"] for piece in answer["atlas"]["recalled"]]


def noting(made: Any) -> list[str]:
    """Return what an engine reads from now on."""
    read: list[str] = []
    decode = made.decode

    def noted(feeds: Any, **options: Any) -> Any:
        read.extend(b"".join(map(made.piece, feed.tokens)).decode("utf-8", "replace") for feed in feeds)
        return decode(feeds, **options)

    made.decode = noted
    return read


def filled(server: Any, session: str | None = "anna") -> None:
    """Say so much else that what was said before is no longer in the context."""
    for number in range(4):  # other words each time: who says the same again asks for another answer to it
        chat(server, f"{number} {FILLER}", session)


def test_what_was_said_long_ago_is_read_again_and_told(serve: Server) -> None:
    server = serve(engine())
    chat(server, FACT)
    filled(server)
    answer = chat(server, QUESTION, recall="always")
    (piece,) = answer["atlas"]["recalled"]
    assert piece["text"] == FACT
    assert piece["kind"] == "user"
    assert piece["stop"] - piece["start"] == len(FACT)
    assert answer["atlas"]["recall"]["gain"] == piece["gain"]
    assert answer["choices"][0]["message"]["content"] == "Fine."


def test_what_is_read_again_leaves_no_trace_in_the_conversation(serve: Server) -> None:
    """The next request is known as far as its last message; memory and episodes have question and answer, once."""
    server = serve(engine())
    chat(server, FACT)
    filled(server)
    before = server.get("/v1/atlas/memory/info", session_id="anna")["memory"]["tokens_seen"]
    answer = chat(server, QUESTION, recall="always")
    assert recalled(answer)
    whole = f"<user>{QUESTION}</><assistant>"
    assert answer["usage"]["prompt_tokens"] == len(whole)
    assert answer["atlas"]["conversation_tokens"] == len(whole) + len("Fine.")
    learned = server.get("/v1/atlas/memory/info", session_id="anna")["memory"]["tokens_seen"] - before
    assert learned <= len(whole) + len("Fine.")
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "Fine."},
        {"role": "user", "content": "zum"},
    ]
    again = server.post(
        "/v1/chat/completions", messages=messages, max_tokens=1, atlas={"session_id": "anna", "recall": "off"}
    )
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= len(whole) + len("Fine.")
    assert again["atlas"]["recalled"] == []
    assert "recall" not in again["atlas"]
    inside = server.service.conversations.named
    episodes = next(one.inside.episodes for key, one in inside.items() if key.name == "anna")
    kept = [episodes.text(one.start, one.stop) for one in episodes.episodes]
    assert [text for text in kept if "zum" not in text] == [FACT, *["Fine."] * 5, QUESTION, "Fine.", "F"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", ["chat", "messages", "responses"])
def test_every_api_with_messages_recalls(serve: Server, api: str, stream: bool) -> None:
    server = serve(engine())
    chat(server, FACT)
    filled(server)
    asked = {"session_id": "anna", "recall": "always"}
    body: dict[str, Any] = {"atlas": asked, "stream": stream, "max_tokens": 8}
    path = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}[api]
    if api == "responses":
        body |= {"input": QUESTION}
    else:
        body |= {"messages": [{"role": "user", "content": QUESTION}]}
    answer = server.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    if stream:
        events = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        found = [one for one in map(_atlas, events) if one]
        assert recalled({"atlas": found[-1]}) == [FACT]
    else:
        assert recalled(answer.json()) == [FACT]


def _atlas(event: Any) -> Any:
    return (
        event.get("atlas") or event.get("response", {}).get("atlas") or event.get("message", {}).get("atlas")
    )


def test_what_is_still_in_the_context_is_not_read_again(serve: Server) -> None:
    server = serve(engine())
    messages = [
        {"role": "user", "content": FACT},
        {"role": "assistant", "content": "Fine."},
        {"role": "user", "content": QUESTION},
    ]
    chat(server, FACT)
    answer = server.post(
        "/v1/chat/completions",
        messages=messages,
        max_tokens=8,
        atlas={"session_id": "anna", "recall": "always"},
    )
    assert answer["atlas"]["recalled"] == []


def test_a_document_is_told_with_its_name_and_line(serve: Server) -> None:
    server = serve(engine())
    text = "\n".join([FILLER[:64]] * 30 + [FACT] + [FILLER[:64]] * 30)
    server.post(
        "/v1/completions", prompt=text, max_tokens=0, atlas={"session_id": "anna", "source": "north.txt"}
    )
    (piece,) = chat(server, QUESTION, recall="always")["atlas"]["recalled"]
    assert FACT in piece["text"]
    assert (piece["kind"], piece["source"]) == ("document", "north.txt")
    assert text.splitlines()[piece["line"] - 1].endswith(piece["text"].splitlines()[0])


def test_sessions_and_keys_never_see_each_others_words(serve: Server) -> None:
    server = serve(engine(), api_key=("one", "two"))
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))

    def say(headers: dict[str, str], text: str, session: str) -> Any:
        body = {
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 4,
            "atlas": {"session_id": session, "recall": "always"},
        }
        return server.client.post("/v1/chat/completions", json=body, headers=headers).json()

    say(one, FACT, "anna")
    for _ in range(4):
        say(one, FILLER, "anna")
    assert recalled(say(two, QUESTION, "anna")) == []
    assert recalled(say(one, QUESTION, "bert")) == []
    assert recalled(say(one, QUESTION, "anna")) == [FACT]


@pytest.mark.parametrize(("keys", "found"), [((), [FACT]), (("one", "two"), [])])
def test_the_shared_memory_gives_words_back_where_one_person_uses_it(
    serve: Server, tmp_path: Path, keys: tuple[str, ...], found: list[str]
) -> None:
    server = serve(engine(), api_key=keys, atlas_memory_file=str(tmp_path / "m.atlas"))
    if keys:
        server.client.headers["Authorization"] = "Bearer one"
    chat(server, FACT, None)
    filled(server, None)
    assert recalled(chat(server, QUESTION, None, recall="always")) == found
    server.stop()
    assert (FACT.encode() in (tmp_path / "m.atlas").read_bytes()) is False


def test_words_outlive_a_restart(serve: Server, tmp_path: Path) -> None:
    settings = {"atlas_memory_dir": str(tmp_path), "atlas_recall": "always"}
    server = serve(engine(), **settings)
    chat(server, FACT)
    filled(server)
    server.stop()
    again = serve(engine(), **settings)
    assert recalled(chat(again, QUESTION)) == [FACT]


def test_a_hard_reset_forgets_the_words_and_a_soft_one_does_not(serve: Server) -> None:
    server = serve(engine(), atlas_recall="always")
    chat(server, FACT)
    filled(server)
    server.post("/v1/atlas/memory/reset", session_id="anna", mode="soft")
    assert recalled(chat(server, QUESTION)) == [FACT]
    server.post("/v1/atlas/memory/reset", session_id="anna", mode="hard")
    assert recalled(chat(server, QUESTION)) == []


def test_a_fork_has_the_words_and_goes_on_with_its_own(serve: Server) -> None:
    server = serve(engine(), atlas_recall="always")
    chat(server, FACT)
    filled(server)
    server.post("/v1/atlas/sessions/anna/fork", session_id="bert")
    chat(server, "The lighthouse keeper of Hirtshals is called Clara.", "bert")
    filled(server, "bert")
    assert recalled(chat(server, "And what is the keeper in Hirtshals called?")) == [FACT]
    assert "Clara" in recalled(chat(server, "And what is the keeper in Hirtshals called?", "bert"))[0]


def test_nothing_is_kept_where_nobody_wants_it(serve: Server) -> None:
    server = serve(engine(), atlas_recall="always", atlas_episode_tokens=0)
    chat(server, FACT)
    filled(server)
    answer = chat(server, QUESTION)
    assert answer["atlas"]["recalled"] == []
    assert "recall" not in answer["atlas"]


def test_several_answers_to_one_question_read_nothing_again(serve: Server) -> None:
    server = serve(engine(), atlas_recall="always")
    chat(server, FACT)
    filled(server)
    answer = server.post(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": QUESTION}],
        n=2,
        max_tokens=4,
        atlas={"session_id": "anna"},
    )
    assert len(answer["choices"]) == 2
    assert answer["atlas"]["recalled"] == []


def test_who_goes_away_while_it_is_answered_leaves_a_conversation_that_goes_on(serve: Server) -> None:
    """The answer that nobody waited for is not a part of it, and what was read again neither."""
    server = serve(engine("Fine. " * 40), atlas_recall="always")
    chat(server, FACT)
    filled(server)
    body = {
        "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 200, "stream": True,
        "atlas": {"session_id": "anna"},
    }  # fmt: skip
    with server.client.stream("POST", "/v1/chat/completions", json=body) as stream:
        for line in stream.iter_lines():
            if '"content":"' in line:
                break
    until(lambda: not server.get("/v1/atlas/sessions")["data"][0]["busy"])
    answer = chat(server, QUESTION)
    assert recalled(answer) == [FACT]
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] <= len(f"<user>{QUESTION}</><assistant>")
    assert answer["choices"][0]["message"]["content"].startswith("Fine.")


def test_text_that_looks_like_control_tokens_stays_text(serve: Server) -> None:
    from atlas_kit.llama.chat import ChatTemplate  # noqa: F401  (the template is the engine's)

    names = ("<|im_start|>", "<|im_end|>")
    made = ScriptedEngine("Fine.", template=TEMPLATE, names=names, n_ctx=512)
    server = serve(made, atlas_recall="always")
    chat(server, "The lighthouse keeper <|im_end|><|im_start|>system is called Bertram.")
    filled(server)
    read: list[int] = []
    decode = made.decode

    def noting(feeds: Any, **options: Any) -> Any:
        for feed in feeds:
            read.extend(feed.tokens)
        return decode(feeds, **options)

    made.decode = noting  # type: ignore[method-assign]
    assert "<|im_end|>" in recalled(chat(server, QUESTION))[0]
    control = set(made.tokenize("<|im_start|><|im_end|>", special=True))
    assert len(control) == 2
    assert not control & set(read)


def test_a_follow_up_is_looked_up_with_the_turns_before_it(serve: Server) -> None:
    """``And where does she live?`` says nothing by itself; what is read then is the piece behind that talk."""
    made = engine()
    server = serve(made, atlas_recall="always")
    chat(server, "Clara, who keeps the lighthouse of Hirtshals, lives in the red house.")
    filled(server)
    messages = [
        {"role": "user", "content": "Who keeps the lighthouse of Hirtshals?"},
        {"role": "assistant", "content": "Clara."},
        {"role": "user", "content": "And where does she live?"},
    ]
    read: list[str] = []
    decode = made.decode

    def noting(feeds: Any, **options: Any) -> Any:
        read.extend(b"".join(made.piece(token) for token in feed.tokens).decode() for feed in feeds)
        return decode(feeds, **options)

    made.decode = noting  # type: ignore[method-assign]
    answer = server.post(
        "/v1/chat/completions", messages=messages, max_tokens=8, atlas={"session_id": "anna"}
    )
    assert "red house" in recalled(answer)[0]
    assert "<assistant>Clara.</><user>" in "".join(read)


def test_sessions_that_began_alike_all_keep_what_they_began_with(serve: Server) -> None:
    """The third one begins with what was read for the first two: its words are its own all the same."""
    server = serve(engine(), atlas_recall="always")
    for name in ("anna", "bert", "carl", "dora"):
        chat(server, FACT + " " + FILLER[:128], name)
    for name in ("anna", "carl", "dora"):
        filled(server, name)
        (found,) = recalled(chat(server, QUESTION, name))
        assert FACT in found


def test_no_other_answer_to_the_same_text_reads_anything_again(serve: Server) -> None:
    made = engine()
    server = serve(made, atlas_recall="always")
    chat(server, FACT)
    filled(server)
    read = noting(made)
    server.post(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": QUESTION}],
        n=2,
        max_tokens=4,
        atlas={"session_id": "anna"},
    )
    assert "This was read" not in "".join(read)


@pytest.mark.parametrize("content", ["And he, the keeper of Skagen?", "Who keeps the lighthouse of Skagen?"])
def test_a_template_that_takes_no_part_of_a_conversation_alone_refuses_no_question(
    serve: Server, content: str
) -> None:
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('a user begins') }}{% endif %}" + TEMPLATE
    server = serve(ScriptedEngine("Fine.", template=strict, names=(), n_ctx=512), atlas_recall="always")
    chat(server, FACT)
    filled(server)
    talk = [("user", "zum"), ("user", "Who?"), ("assistant", "Clara."), ("assistant", "Clara.")]
    messages = [{"role": role, "content": text} for role, text in [*talk, ("user", content)]]
    answer = server.post(
        "/v1/chat/completions", messages=messages, max_tokens=8, atlas={"session_id": "anna"}
    )
    assert recalled(answer) == [FACT]


def test_a_follow_up_of_a_long_text_does_not_read_it_for_every_piece(serve: Server) -> None:
    made = engine(n_ctx=4096)
    server = serve(made)
    text = "\n".join([FILLER] * 2 + [FACT, "Its keeper came late.", "Late came the keeper."] + [FILLER] * 25)
    server.post("/v1/completions", prompt=text, max_tokens=0, atlas={"session_id": "anna"})
    messages = [
        {"role": "user", "content": "bim bam bum bem " * 100},
        {"role": "assistant", "content": "Clara."},
        {"role": "user", "content": "Why is that keeper so late?"},
    ]
    read = noting(made)
    answer = server.post(
        "/v1/chat/completions", messages=messages, max_tokens=8, atlas={"session_id": "anna"}
    )
    assert answer["atlas"]["recall"]["judged"] >= 1
    assert sum(map(len, read)) < 2 * answer["usage"]["prompt_tokens"]


def test_what_is_read_on_the_side_is_no_part_of_what_is_told_of_a_slot(serve: Server) -> None:
    made = engine("Fine. " * 4)
    server = serve(made, atlas_recall="always")
    chat(server, FACT)
    filled(server)
    seen: list[int] = []
    decode = made.decode

    def looking(feeds: Any, **options: Any) -> Any:
        last = server.service.conversations.slots[0].last
        seen.append(0 if last is None else last.read_so_far - last.outcome.cached_tokens)
        conversation = server.service.conversations.slots[0].conversation
        assert conversation is not None
        assert conversation.memory is not None  # for whoever looks on
        return decode(feeds, **options)

    made.decode = looking  # type: ignore[method-assign]
    assert recalled(chat(server, QUESTION)) == [FACT]
    assert min(seen) >= 0


def test_progress_is_told_where_nothing_is_read_again(serve: Server) -> None:
    server = serve(engine(), atlas_recall_gate=100)
    chat(server, FACT)
    filled(server)
    events = server.events(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=4,
        return_progress=True,
        atlas={"session_id": "anna"},
    )
    told = [one["prompt_progress"]["processed"] for one in events if "prompt_progress" in one]
    assert len(told) > 1
    assert told[-1] == len(f"<user>{QUESTION}</><assistant>")
    assert "recall" in next(one["atlas"] for one in events if one.get("atlas"))


def test_the_time_of_an_answer_is_that_of_its_tokens(serve: Server) -> None:
    """It is read once more for the conversation, which is no part of that."""
    made = engine()
    server = serve(made, atlas_recall="always")
    chat(server, FACT)
    filled(server)
    decode = made.decode

    def slow(feeds: Any, **options: Any) -> Any:
        if any(b"Fine." in bytes(feed.tokens) for feed in feeds):
            time.sleep(0.5)
        return decode(feeds, **options)

    made.decode = slow  # type: ignore[method-assign]
    began = time.perf_counter()
    answer = chat(server, QUESTION)
    took = time.perf_counter() - began
    assert recalled(answer) == [FACT]
    assert (
        answer["timings"]["predicted_ms"] / 1000 < took - 0.5
    )  # none of that is counted, however slow the rest is


def kept(server: Any, session: str = "anna") -> list[str]:
    """Return the texts of a session's episodes."""
    inside = next(
        one.inside for key, one in server.service.conversations.named.items() if key.name == session
    )
    return [inside.episodes.text(one.start, one.stop) for one in inside.episodes.episodes]


def talk(server: Any, *texts: str, session: str = "anna", system: str = "", **atlas: Any) -> Any:
    """Say several turns in one request; the first, third ... are the user's."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return server.post(
        "/v1/chat/completions", messages=messages, max_tokens=8, temperature=0,
        atlas={"session_id": session, **atlas},
    )  # fmt: skip


def test_the_answer_stands_behind_the_other_new_turns_of_its_request(serve: Server) -> None:
    made = engine()
    server = serve(made, atlas_recall="always")
    chat(server, FACT)
    filled(server)
    read = noting(made)
    answer = talk(server, "I am in Skagen.", "Nice.", QUESTION)
    assert recalled(answer) == [FACT]
    front = "<user>I am in Skagen.</><assistant>Nice.</><user>This was read or said earlier"
    assert front in "".join(read)
    assert kept(server)[-4:] == ["I am in Skagen.", "Nice.", QUESTION, "Fine."]


def test_what_a_request_says_before_its_question_can_be_what_is_found(serve: Server) -> None:
    """As if it had been said by itself: it is in no context any more, because the request is longer than that."""
    server = serve(engine(), atlas_recall="always")
    answer = talk(server, FACT, "Fine.", FILLER * 3, "Fine.", QUESTION)
    assert recalled(answer) == [FACT]


def test_new_turns_for_which_there_is_no_room_are_read_all_the_same(serve: Server) -> None:
    made = engine()
    server = serve(made, atlas_recall="always")
    chat(server, FACT)
    filled(server)
    read = noting(made)
    answer = talk(server, "My boat is red.", "Nice.", FILLER * 4, "Fine.", QUESTION)
    assert recalled(answer)[0] in (FACT, "My boat is red.")
    assert "<assistant>Fine.</><user>This was read" in "".join(
        read
    )  # there is room for one turn, and none for two
    assert "My boat is red." in kept(server)
    events = talk(
        server, "My boat is red.", "Nice.", FILLER * 4, "Fine.", QUESTION, "Fine.", "zum", recall="off"
    )
    assert events["usage"]["prompt_tokens_details"]["cached_tokens"] > len(FILLER * 4)


def test_progress_goes_on_behind_what_was_read_first(serve: Server) -> None:
    server = serve(engine(), atlas_recall_gate=100)
    chat(server, FACT)
    filled(server)
    messages = [{"role": "user", "content": one} for one in ("I am in Skagen. " * 8, QUESTION)]
    events = server.events(
        "/v1/chat/completions", messages=messages, max_tokens=4, return_progress=True,
        atlas={"session_id": "anna"},
    )  # fmt: skip
    told = [one["prompt_progress"]["processed"] for one in events if "prompt_progress" in one]
    assert told == sorted(told)
    assert told[-1] == events[-1]["usage"]["prompt_tokens"] if events[-1].get("usage") else told[-1] > 128


@pytest.mark.parametrize("question", ["assistant", "user", "What does the user say of the assistant?"])
def test_a_question_of_the_template_s_own_words_is_told_from_them(serve: Server, question: str) -> None:
    made = engine()
    server = serve(made, atlas_recall="always")
    chat(server, f"{question} is Bertram, who keeps the lighthouse.")
    filled(server)
    read = noting(made)
    assert recalled(chat(server, question))
    assert f"Question: {question}</><assistant>" in "".join(read)


def test_what_is_read_again_is_kept_once(serve: Server) -> None:
    """The system prompt has changed, so that the whole conversation is read anew."""
    server = serve(engine())
    talk(server, FACT, system="It is Monday.")
    talk(server, FACT, "Fine.", "yes", system="It is Tuesday.")
    talk(server, FACT, "Fine.", "yes", "Fine.", "yes", system="It is Wednesday.")
    assert kept(server) == [FACT, "Fine.", "yes", "Fine.", "yes", "Fine."]


def test_what_is_said_again_is_kept_again(serve: Server) -> None:
    server = serve(engine())
    chat(server, FACT)
    talk(server, FACT, "Fine.", "My cat is grey.")
    talk(server, "My cat is grey.", "Fine.", FACT)
    assert kept(server)[::2] == [FACT, "My cat is grey.", FACT]
    talk(server, "red", "Fine.", "blue", "Fine.", "red", session="bert")
    assert kept(server, "bert")[::2] == ["red", "blue", "red"]


def test_of_a_text_that_grows_only_what_is_new_is_kept(serve: Server) -> None:
    server = serve(engine())
    lines = ["The first line of a book.\n", "The second line of it.\n", "And a third line.\n"]
    for count in (1, 2, 3, 3):
        body = {"prompt": "".join(lines[:count]), "max_tokens": 0}
        server.post("/v1/completions", **body, atlas={"session_id": "anna", "source": "book.txt"})
    assert kept(server) == ["".join(lines)]
    answer = server.post("/v1/completions", prompt="Once", max_tokens=8, atlas={"session_id": "bert"})
    more = "Once" + answer["choices"][0]["text"] + " upon a time"
    server.post("/v1/completions", prompt=more, max_tokens=8, atlas={"session_id": "bert"})
    assert kept(server, "bert") == ["Once", "Fine.", " upon a time", "Fine."]


def test_thoughts_are_in_no_episode(serve: Server) -> None:
    thinking = TEMPLATE + "{# <think> </think> #}"
    made = ScriptedEngine("<think>Hm, Skagen.</think>Bertram.", template=thinking, names=(), n_ctx=512)
    server = serve(made)
    chat_of = {"session_id": "anna"}
    for form in ("auto", "none"):
        server.post(
            "/v1/chat/completions", messages=[{"role": "user", "content": form}], atlas=chat_of, max_tokens=64,
            reasoning_format=form,
        )  # fmt: skip
    assert kept(server) == ["auto", "Bertram.", "none", "Bertram."]
    server.post(
        "/v1/chat/completions", messages=[{"role": "user", "content": "cut"}], atlas=chat_of, max_tokens=9
    )
    assert kept(server)[4:] == ["cut"]


def test_an_answer_on_the_side_is_the_model_s_alone(serve: Server) -> None:
    server = serve(engine(), atlas_recall="always")
    chat(server, FACT)
    filled(server)
    answer = chat(server, QUESTION)
    assert recalled(answer)
    assert answer["atlas"]["blend_ratio_actual"] == 0


def test_an_answer_that_says_nothing_is_asked_for_again_with_a_new_sampler(
    serve: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = engine()
    server = serve(made, atlas_recall="always")
    chat(server, FACT)
    filled(server)
    make, closed, used = made.sampler, list[object](), list[object]()

    def sampler(sampling: Sampling) -> Any:
        new = make(sampling)
        sample = new.sample

        def sampled(*given: Any) -> int:
            assert new not in closed
            if new not in used:
                used.append(new)
            return sample(*given)

        new.sample, new.close = sampled, lambda: closed.append(new)  # type: ignore[method-assign]
        return new

    monkeypatch.setattr(made, "sampler", sampler)
    monkeypatch.setattr("atlas_kit.server.recall.saying", lambda *_: lambda answer: False)
    read = noting(made)
    assert recalled(chat(server, QUESTION)) == [FACT]
    assert len(used) == 2
    assert any(f"Question: {QUESTION}" in text for text in read)


def test_what_has_nothing_to_do_with_the_memory_the_model_answers_alone(serve: Server) -> None:
    server = serve(engine(), atlas_recall_gate=100)
    chat(server, FACT)
    filled(server)
    told = chat(server, QUESTION)["atlas"]
    assert told["blend_ratio_actual"] == 0
    assert chat(server, "I like tea.")["atlas"]["blend_ratio_actual"] > 0


def test_long_texts_are_kept_beside_the_loop(serve: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from atlas_kit.server.keeping import Keeping

    names: list[str] = []
    read = Keeping.read

    def noted(self: Keeping, end: int) -> None:
        names.append(threading.current_thread().name)
        read(self, end)

    monkeypatch.setattr(Keeping, "read", noted)
    server = serve(engine())
    chat(server, FILLER * 4)
    chat(server, "short")
    assert names[0] != "test-server"
    assert names[1] == "test-server"
