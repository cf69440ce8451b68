"""The page at ``/`` and that at ``/docs`` in a real Chromium, against a server with a listener of its own."""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the packages of the server are not installed")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from atlas_kit.llama import FakeEngine
from atlas_kit.persistence.snapshot import describe_memory
from tests.conftest import SAMPLES
from tests.server.conftest import TEMPLATE, Live, Server, fake_engine
from tests.server.scripted import ScriptedEngine
from tests.waiting import LONG, until

MARKUP = (
    "<img src=x onerror=\"document.title='run'\"> <b>bold</b> &amp; <script>document.title='run'</script>"
)


def saying(*scripts: str, **options: Any) -> FakeEngine:
    """Return an engine that gives these answers."""
    return ScriptedEngine(*scripts, template=TEMPLATE, names=(), **options)


def open_page(page: Page, server: Live, path: str = "/") -> None:
    """Open the page, and wait until it has drawn what the server sends and looks at what its session reads."""
    page.goto(server.url + path)
    expect(page.locator(".state")).to_have_attribute("data-state", "ready")
    looks_on(server)


def looks_on(server: Live, name: str | None = None) -> None:
    """Wait until a page looks at what a session reads: what was read before is not shown there."""
    traces = server.service.conversations.traces
    until(lambda: any(name in (None, key.name) for key in list(traces._looked)))


def say(page: Page, text: str) -> None:
    """Send a message, and wait for the whole answer."""
    before = page.locator(".message.assistant .facts").count()
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")
    expect(page.locator(".message.assistant .facts")).to_have_count(before + 1)


def frames(page: Page, more: int = 2) -> None:
    """Wait until the page has drawn some more of what the server sends."""
    seen = int(page.evaluate("() => document.body.dataset.frames ?? 0"))
    page.wait_for_function("(wanted) => Number(document.body.dataset.frames ?? 0) >= wanted", arg=seen + more)


def bodies(page: Page) -> list[Any]:
    """Return a list that gets what the page posts from now on."""
    found: list[Any] = []
    page.on("request", lambda request: request.method == "POST" and found.append(request.post_data_json))
    return found


# --- the conversation ------------------------------------------------------------------------------------------


def test_what_is_said_is_answered_and_the_memory_is_seen_at_work(page: Page, serve: Server):
    server = serve(saying("It is blue.", "Blue, as you said."))
    open_page(page, server)
    expect(page.locator("header .model")).to_have_text("fake.gguf")
    expect(page.locator(".tile.gap b")).to_have_text("–")
    say(page, "My boat is blue.")
    say(page, "What colour is my boat?")
    words = page.locator(".message > .words")
    assert words.all_inner_texts() == [
        "My boat is blue.", "It is blue.", "What colour is my boat?", "Blue, as you said.",
    ]  # fmt: skip
    assert re.search(r"\d+ tokens read · \d+ known already · 18 tokens in ", words_below(page))
    (session,) = server.get("/v1/atlas/stats")["sessions"]
    assert session["session_id"] == "my session"
    scored = session["scored_tokens"]
    model, memory = (session[f"loss_{who}_nats"] / scored for who in ("model", "memory"))
    expect(page.locator(".tile.model b")).to_have_text(f"{model:.3f}")
    expect(page.locator(".tile.memory b")).to_have_text(f"{memory:.3f}")
    expect(page.locator(".tile.gap b")).to_have_text(f"{model - memory:.3f}")
    seen = session["memory"]["tokens_seen"]
    expect(page.locator(".panel.memory")).to_contain_text(f"{seen} tokens have gone into this memory")
    expect(page.locator(".panel.memory")).to_contain_text(f"{session['context_tokens']} of 4,096 tokens")
    expect(page.locator(".panel.server")).to_contain_text("2 requests in")
    expect(page.locator(".panel.saves")).to_contain_text("what is learned ends with it")
    until(lambda: ink(page) > 500)


def test_what_is_read_and_said_is_shown_token_by_token(page: Page, serve: Server):
    server = serve(saying("It is blue.", "Blue, as you said."))
    open_page(page, server)
    expect(page.locator(".story")).to_contain_text("is shown here, with what was expected of each token")
    frames(page)
    say(page, "My boat is blue.")
    read = page.locator(".tokens")
    expect(read).to_have_text(
        "user>My boat is blue.</><assistant>It is blue."
    )  # nothing was expected of the first
    assert page.locator(".tokens [class*=surprise]").count() == read.inner_text().__len__()
    page.get_by_role("button", name="saved by memory").click()
    assert page.locator(".tokens [class*=surprise]").count() == 0
    read.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".story .context .came")).to_have_text(".")
    expect(page.locator(".story .because")).to_contain_text("the window knew it from")
    expect(page.locator(".story")).to_contain_text("nats")
    expect(page.locator(".read .heard")).to_contain_text("without the memory")
    page.get_by_label("New session").fill("anna")
    page.get_by_role("button", name="Begin", exact=True).click()
    expect(read).to_have_text("")
    looks_on(server, "anna")
    say(page, "I am Anna.")
    expect(read).to_have_text("user>I am Anna.</><assistant>Blue, as you said.")


def words_below(page: Page) -> str:
    return page.locator(".message.assistant .facts").last.inner_text()


def ink(page: Page) -> int:
    """Return how many pixels of the curve are bluish: the line of the memory, and what it saves."""
    return page.evaluate(
        """() => {
            const c = document.querySelector(".loss canvas");
            const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
            let count = 0;
            for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 20 && d[i + 2] > d[i] + 20) count += 1;
            return count;
        }"""
    )


def test_text_is_shown_as_text(page: Page, serve: Server):
    server = serve(saying(MARKUP))
    open_page(page, server)
    say(page, MARKUP)
    assert page.locator(".message .words").all_inner_texts() == [MARKUP, MARKUP]
    page.reload()
    expect(page.locator(".message .words")).to_have_count(2)
    assert page.locator(".message .words").all_inner_texts() == [MARKUP, MARKUP]
    assert page.locator(".log img, .log b, .log script").count() == 0
    assert "run" not in page.title()


def test_a_new_conversation_goes_on_with_the_same_memory(page: Page, serve: Server):
    server = serve(saying("Fine."))
    open_page(page, server)
    sent = bodies(page)
    say(page, "My boat is blue.")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.get_by_label("Your message")).to_be_focused()
    say(page, "What colour is it?")
    assert [[one["content"] for one in body["messages"]] for body in sent] == [
        ["My boat is blue."],
        ["What colour is it?"],
    ]
    assert {body["atlas"]["session_id"] for body in sent} == {"my session"}
    until(lambda: [one["requests"] for one in server.get("/v1/atlas/stats")["sessions"]] == [2])


def test_the_shared_memory_is_chosen_where_there_is_one(page: Page, serve: Server, tmp_path):
    server = serve(saying("Fine."), atlas_memory_file=str(tmp_path / "boat.atlas"))
    open_page(page, server)
    sent = bodies(page)
    expect(page.get_by_role("button", name="Shared memory")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".panel.saves")).to_contain_text("began anew; it is kept in boat.atlas")
    expect(page.locator(".panel.saves")).to_contain_text("Not saved yet")
    expect(page.locator(".panel.saves")).to_contain_text("Sessions with a name end with the server.")
    say(page, "My boat is blue.")
    assert "session_id" not in sent[0]["atlas"]
    assert server.run(server.service.save())
    expect(page.locator(".panel.saves")).to_contain_text("Saved 1 time, last just now")
    assert str(tmp_path) not in page.content()


def test_a_file_that_was_set_aside_is_told(page: Page, serve: Server, tmp_path):
    (tmp_path / "boat.atlas").write_bytes(b"nothing of ours")
    server = serve(saying("Fine."), atlas_memory_file=str(tmp_path / "boat.atlas"))
    open_page(page, server)
    expect(page.locator(".panel.saves .wrong")).to_contain_text(
        "could not be used, and lies beside it as boat.atlas."
    )


def test_sessions_have_their_own_memory_and_their_own_words(page: Page, serve: Server):
    server = serve(saying("Fine."))
    open_page(page, server)
    sent = bodies(page)
    say(page, "I am nobody.")
    page.get_by_label("New session").fill("anna")
    page.get_by_role("button", name="Begin", exact=True).click()
    expect(page.locator(".message")).to_have_count(0)
    say(page, "I am Anna.")
    assert sent[-1]["atlas"] == {"session_id": "anna"}
    page.reload()
    expect(page.get_by_role("button", name="anna")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".message .words").first).to_have_text("I am Anna.")
    page.get_by_role("button", name="my session").click()
    expect(page.locator(".message .words").first).to_have_text("I am nobody.")
    frames(page)
    seen = {
        one["session_id"]: one["memory"]["tokens_seen"] for one in server.get("/v1/atlas/stats")["sessions"]
    }
    expect(page.locator(".panel.memory")).to_contain_text(f"{seen['my session']} tokens have gone")


def chosen(page: Page, action: str) -> None:
    """Press a button of the chosen session."""
    page.get_by_role("group", name="The chosen session").get_by_role("button", name=action).click()


def test_a_session_is_copied_saved_reset_and_deleted(page: Page, serve: Server, tmp_path):
    server = serve(saying("Fine."), atlas_memory_dir=str(tmp_path))
    open_page(page, server)
    group = page.get_by_role("group", name="The chosen session")
    for button in group.get_by_role("button").all():
        expect(button).to_be_disabled()  # it has not begun
    say(page, "My boat is blue.")
    frames(page)
    chosen(page, "Save")
    said = page.locator(".said")
    expect(said).to_have_text("Saved “my session”.")
    chosen(page, "Copy")
    page.get_by_label("Name of the copy").fill("a/copy")
    page.get_by_role("dialog").get_by_role("button", name="Copy").click()
    expect(said).to_contain_text("“a/copy” knows what “my session” does")
    expect(page.locator(".session[aria-pressed=true] b")).to_have_text("a/copy")
    say(page, "My car is red.")
    frames(page)
    chosen(page, "Reset")
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(page.locator(".message")).to_have_count(2)
    chosen(page, "Reset")
    page.get_by_role("dialog").get_by_role("button", name="Reset").click()
    expect(said).to_contain_text("it knows nothing any more")
    expect(page.locator(".message")).to_have_count(0)
    chosen(page, "Delete")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    chosen(page, "Delete")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(said).to_have_text("Deleted “a/copy”.")
    expect(page.locator(".session b")).to_have_text(["my session"])
    expect(page.locator(".session[aria-pressed=true] b")).to_have_text("my session")
    frames(page)
    assert [one["id"] for one in server.get("/v1/atlas/sessions")["data"]] == ["my session"]


def test_what_cannot_be_done_is_told(page: Page, serve: Server):
    server = serve(saying("Fine."))
    open_page(page, server)
    say(page, "My boat is blue.")
    frames(page)
    body = {"error": {"message": "The disk is full.", "code": "not_saved"}}
    page.route("**/v1/atlas/sessions/my%20session/save", lambda route: route.fulfill(status=507, json=body))
    chosen(page, "Save")
    expect(page.locator(".said.wrong")).to_have_text("The disk is full.")


def test_the_shared_memory_is_saved_and_reset(page: Page, serve: Server, tmp_path):
    server = serve(saying("Fine."), atlas_memory_file=str(tmp_path / "boat.atlas"))
    open_page(page, server)
    say(page, "My boat is blue.")
    expect(page.get_by_role("button", name="Delete")).to_be_hidden()
    expect(page.get_by_role("button", name="Copy")).to_be_hidden()
    chosen(page, "Save")
    expect(page.locator(".said")).to_have_text("Saved the shared memory.")
    expect(page.locator(".panel.saves")).to_contain_text("Saved 1 time")
    chosen(page, "Reset")
    page.get_by_role("dialog").get_by_role("button", name="Reset").click()
    expect(page.locator(".said")).to_contain_text("it knows nothing any more")
    frames(page)
    (session,) = server.get("/v1/atlas/stats")["sessions"]
    assert session["memory"]["tokens_seen"] == 0


def test_a_session_in_a_file_is_listed_and_goes_on(page: Page, serve: Server, tmp_path):
    first = serve(saying("Fine."), atlas_memory_dir=str(tmp_path))
    names = ["anna", *(f"later {number}" for number in range(first.service.engine.n_sequences))]
    for name in names:  # those that were used last come back by themselves, as many as there are sequences
        first.post("/v1/completions", prompt="My boat is blue.", max_tokens=2, atlas={"session_id": name})
    first.stop()
    server = serve(saying("Fine."), atlas_memory_dir=str(tmp_path))
    open_page(page, server)
    page.get_by_role("button", name="anna").click()
    expect(page.locator(".session[aria-pressed=true]")).to_contain_text("on disk")
    expect(page.locator(".panel.memory")).to_contain_text("lies in its file until it is used")
    expect(page.locator(".panel.saves")).to_have_text(re.compile("has a file of its own, and is there again"))
    say(page, "What colour is it?")
    expect(page.locator(".session[aria-pressed=true]")).to_contain_text("in the model")
    sessions = {one["session_id"]: one for one in server.get("/v1/atlas/stats")["sessions"]}
    assert sessions["anna"]["memory"]["tokens_seen"] > len("My boat is blue.")


def test_a_perplexity_is_written_without_an_exponent(page: Page, serve: Server):
    """On the right of the curve there is room for six characters."""
    page.goto(serve(saying("Fine.")).url)
    written = page.evaluate(
        """async (values) => {
            const { times } = await import('/static/widgets/static/lab/curves.js');
            return values.map(times);
        }""",
        [1, 2.6487, 54.598, 403.4, 999.6, 2980.96, 22026.5, 162754.8, 1.2e6, 4.85e8],
    )
    assert written == ["1.00", "2.65", "54.6", "403", "1,000", "2,980", "22,000", "163K", "1.2M", "485M"]
    change = page.evaluate(
        """async (values) => {
            const { lowered } = await import('/static/widgets/static/lab/curves.js');
            return values.map(lowered);
        }""",
        [12.4, -3.6, 0, 0.4, -0.4],
    )
    assert [text.replace("\xa0", " ") for text in change] == ["−12 %", "+4 %", "±0 %", "±0 %", "±0 %"]


def test_what_was_recalled_is_shown_with_its_place(page: Page, serve: Server):
    """A turn and a document, from the real engine's answer: what a user sees of the pieces."""
    server = serve(saying("Fine."), atlas=True)
    open_page(page, server)
    expect(page.locator(".recalled")).to_have_text("There is no answer yet.")
    recalled = [
        {"text": "My boat is <b>blue</b>.", "kind": "user", "line": 1, "time_ms": 1.7e12, "gain": 1.5},
        {
            "text": "Boats.",
            "kind": "document",
            "source": "boats.txt",
            "line": 1234,
            "time_ms": 0,
            "gain": None,
        },
    ]
    choice = {"index": 0, "delta": {"content": "Blue."}, "finish_reason": None}
    usage = {"prompt_tokens": 1, "completion_tokens": 1}

    def answer(atlas: Any) -> None:
        events = [{"choices": [choice]}, {"choices": [], "atlas": {"enabled": True, **atlas}, "usage": usage}]
        text = "".join(f"data: {json.dumps(one)}\n\n" for one in events) + "data: [DONE]\n\n"
        page.unroute("**/v1/chat/completions")
        page.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(body=text, headers={"content-type": "text/event-stream"}),
        )
        say(page, "What colour is it?")

    answer({"recalled": recalled})
    assert page.locator(".recalled q").all_inner_texts() == ["My boat is <b>blue</b>.", "Boats."]
    first, second = page.locator(".recalled li span").all_inner_texts()
    assert re.fullmatch(
        r"you said · Nov 1[45], 2023, .* · makes the question 4\.5 times likelier per token", first
    )
    assert second == "boats.txt · line 1,234"
    answer({"recalled": [{**recalled[0], "gain": gain} for gain in (-0.7, 8)]})  # as with recall: always
    less, more = page.locator(".recalled li span").all_inner_texts()
    assert less.endswith("makes the question 2.0 times less likely per token")
    assert more.endswith("makes the question 3,000 times likelier per token")
    answer(
        {
            "recalled": [],
            "recall": {"judged": 1, "gain": 0.1, "reason": "nothing that was found helps enough"},
        }
    )
    expect(page.locator(".recalled")).to_contain_text("Nothing that was read or said earlier helps")
    expect(page.locator(".recalled")).to_contain_text("1 piece was looked at")
    expect(page.locator(".recalled")).to_contain_text("The memory still had its part")
    answer({"recalled": [], "recall": {"judged": 1}, "blend_ratio_actual": 0})
    expect(page.locator(".recalled")).to_contain_text("So the model answered by itself.")


def test_a_real_answer_shows_what_was_read_again_for_it(page: Page, serve: Server):
    server = serve(saying("Fine."), atlas=True, atlas_recall="always")
    open_page(page, server)
    say(page, "The lighthouse keeper of Skagen is called Bertram.")
    page.get_by_role("button", name="New conversation").click()
    say(page, "What is the lighthouse keeper called?")
    assert page.locator(".recalled q").all_inner_texts() == [
        "The lighthouse keeper of Skagen is called Bertram."
    ]
    assert page.locator(".recalled li span").inner_text().startswith("you said")


def test_what_was_recalled_for_an_answer_of_another_client_is_shown(page: Page, serve: Server):
    server = serve(saying("Fine."), atlas=True)

    def chat(text: str) -> None:
        messages = [{"role": "user", "content": text}]
        server.post(
            "/v1/chat/completions", messages=messages, max_tokens=4, atlas={"session_id": "anna", "recall": "always"}
        )  # fmt: skip

    chat("The lighthouse keeper of Skagen is called Bertram.")
    open_page(page, server)
    page.get_by_role("button", name="anna").click()
    looks_on(server, "anna")
    chat("What is the lighthouse keeper called?")
    expect(page.locator(".recalled q")).to_have_text("The lighthouse keeper of Skagen is called Bertram.")
    expect(page.locator(".recalled li span")).to_contain_text("you said")


@pytest.fixture
def held():
    """Return an engine that waits in a decode until it may go on, and what lets it."""
    engine, go_on = saying("Fine, and so on. " * 20), threading.Event()
    decode = engine.decode

    def slow(*arguments: Any, **options: Any) -> Any:
        assert go_on.wait(LONG)
        return decode(*arguments, **options)

    engine.decode = slow  # type: ignore[method-assign]
    yield engine, go_on
    go_on.set()


@pytest.mark.parametrize("by", ["Escape", "button"])
def test_an_answer_can_be_stopped(page: Page, serve: Server, held, by):
    engine, go_on = held
    server = serve(engine)
    open_page(page, server)
    field = page.get_by_label("Your message")
    field.fill("Go on.")
    field.press("Enter")
    expect(page.locator(".log")).to_have_attribute("aria-busy", "true")
    frames(page)
    expect(page.locator(".session").first).to_contain_text("answers now")
    expect(page.locator(".tile.requests b")).to_have_text("1")
    if by == "Escape":
        field.press("Escape")
    else:
        page.get_by_role("button", name="Stop").click()
    expect(page.locator(".message.assistant .facts")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    go_on.set()
    expect(page.locator(".tile.requests b")).to_have_text("0")


def test_another_session_is_not_kept_waiting_by_an_answer_of_before(page: Page, serve: Server, held):
    engine, go_on = held
    server = serve(engine)
    open_page(page, server)
    field = page.get_by_label("Your message")
    field.fill("Go on.")
    field.press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.get_by_label("New session").fill("anna")
    page.get_by_role("button", name="Begin", exact=True).click()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator(".log")).to_have_attribute("aria-busy", "false")
    go_on.set()
    say(page, "I am Anna.")


def test_a_refusal_is_told_and_what_was_said_comes_back(page: Page, serve: Server):
    server = serve(saying("Fine."))
    open_page(page, server)
    body = {"error": {"message": "Too many wait already.", "code": "too_many_requests"}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, json=body))
    page.get_by_label("Your message").fill("Hello")
    page.get_by_label("Your message").press("Enter")
    expect(page.locator(".chat .wrong")).to_have_text("Too many wait already.")
    expect(page.get_by_label("Your message")).to_have_value("Hello")
    expect(page.locator(".message")).to_have_count(0)
    page.unroute("**/v1/chat/completions")
    say(page, "Hello")
    expect(page.locator(".chat .wrong")).to_be_hidden()


def test_a_page_that_nobody_sees_holds_no_connection_for_long(page: Page, serve: Server):
    server = serve(saying("Fine."))
    open_page(page, server)
    unseen = """(hidden) => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/metrics/stream")):
        page.evaluate(unseen, True)
    expect(page.locator(".state")).to_have_attribute("data-state", "ready")
    with page.expect_request("**/metrics/stream"):
        page.evaluate(unseen, False)
    frames(page)


def test_a_server_that_ends_is_told(page: Page, serve: Server):
    server = serve(saying("Fine."))
    open_page(page, server)
    server.service.stopping = True
    expect(page.locator(".state")).to_have_attribute("data-state", re.compile("stopping|away"))
    server.service.stopping = False
    expect(page.locator(".state")).to_have_attribute("data-state", "ready")  # it asks again by itself


# --- what the memory did, in the conversation ------------------------------------------------------------------


def test_what_the_memory_foresaw_is_shaded_in_the_conversation(page: Page, serve: Server):
    server = serve(saying("The boat is blue, the boat is blue, the boat is blue.", n_ctx=1024))
    open_page(page, server)
    frames(page)
    text = "My boat is blue. " * 12
    say(page, text)
    worth = page.locator(".message .worth")
    expect(worth).to_contain_text("Shaded words were likelier through the memory.")
    expect(worth).to_contain_text(re.compile(r"It lowered the perplexity of these \d+ tokens by \d+"))
    said, answered = page.locator(".message .words").all()
    assert said.inner_text() == text.strip()  # a text stays what it was, however it is shaded
    assert answered.inner_text() == "The boat is blue, the boat is blue, the boat is blue."
    assert said.locator("mark").count() > 10
    assert "times likelier with the memory" in str(said.locator("mark").first.get_attribute("title"))
    shaded = page.locator(".words mark").all_inner_texts()
    page.reload()
    expect(page.locator(".words mark")).to_have_text(shaded)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".empty")).to_contain_text(re.compile(r"holds \d+ tokens of what was said before"))


def test_an_answer_is_given_without_the_memory_as_well(page: Page, serve: Server):
    server = serve(saying("Blue.", "Green, perhaps.", "As you like."))
    open_page(page, server)
    say(page, "My boat is blue. What colour is it?")
    frames(page)
    before = server.get("/v1/atlas/memory", session_id="my session")
    sent = bodies(page)
    page.get_by_role("button", name="Answer without the memory").click()
    alone = page.locator(".message .alone .words")
    expect(alone).to_have_text("Green, perhaps.")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_label("Your message")).to_be_focused()
    assert sent[0]["atlas"] == {"enabled": False}
    assert [one["content"] for one in sent[0]["messages"]] == ["My boat is blue. What colour is it?"]
    assert server.get("/v1/atlas/memory", session_id="my session") == before  # it heard nothing of that
    expect(page.get_by_role("button", name="Answer without the memory")).to_have_count(0)
    say(page, "Thank you.")
    assert [one["content"] for one in sent[1]["messages"]][1] == "Blue."
    page.reload()
    expect(alone).to_have_text("Green, perhaps.")


def test_markup_is_no_markup_where_it_is_shaded(page: Page, serve: Server):
    server = serve(saying(MARKUP, n_ctx=2048))
    open_page(page, server)
    frames(page)
    say(page, f"{MARKUP} {MARKUP} {MARKUP}")
    expect(page.locator(".words mark").first).to_be_visible()
    assert page.locator(".message .words").last.inner_text() == MARKUP
    assert page.locator(".words b, .words img, .words script").count() == 0
    assert page.title() == "atlas: a model with a memory"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"x" * 900_000, "notes.txt is too long for one message."),
        (b"", "notes.txt is empty."),
        (b"a\0b", "notes.txt holds no text."),
    ],
)
def test_what_is_no_text_for_a_message_is_told(page: Page, serve: Server, content, said):
    open_page(page, serve(saying("Fine.")))
    take(page, content)
    expect(page.locator(".chat .wrong")).to_have_text(said)
    expect(page.get_by_label("Your message")).to_have_value("")


def test_a_message_is_taken_from_a_file(page: Page, serve: Server):
    open_page(page, serve(saying("Fine.")))
    page.get_by_label("Your message").fill("Read this:")
    take(page, "My boat is blue, and “schön”.\n".encode())
    expect(page.get_by_label("Your message")).to_have_value("Read this:\nMy boat is blue, and “schön”.\n")
    expect(page.get_by_label("Your message")).to_be_focused()
    expect(page.locator(".message")).to_have_count(0)  # nothing is sent before somebody says so


def take(page: Page, content: bytes) -> None:
    """Choose a file for the message."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Text file").click()
    chooser.value.set_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": content})


def test_an_answer_that_is_cut_off_says_so(page: Page, serve: Server):
    server = serve(saying("And so on, " * 100, n_ctx=2048))
    open_page(page, server)
    say(page, "Go on.")
    expect(page.locator(".message.assistant .facts")).to_contain_text("where this page cuts answers off")


# --- what it has learned ---------------------------------------------------------------------------------------


def test_the_matrix_of_the_memory_is_seen_and_follows_what_it_learns(page: Page, serve: Server):
    server = serve(saying("Fine.", "Fine again."))
    open_page(page, server)
    frames(page)
    expect(page.locator(".matrix")).to_be_hidden()  # there is nothing to be seen yet
    asked: list[str] = []
    page.on("request", lambda request: "/memory/matrix" in request.url and asked.append(request.url))
    say(page, "My boat is blue, and it is fast. " * 18)  # the first 512 tokens change nothing
    expect(page.locator(".matrix")).to_be_visible()
    assert asked == []  # nobody sees it yet
    page.locator(".matrix .beside").scroll_into_view_if_needed()
    picture = page.locator(".matrix canvas[role=img]")
    expect(picture).to_have_attribute("aria-label", re.compile("arrow keys move the cursor"))
    (memory,) = (one.memory for one in server.service.conversations.named.values())
    rows, columns = next(iter(memory.state.parameters.values())).shape
    expect(page.locator(".matrix")).to_contain_text(f"{rows} × {columns} float32")
    expect(page.locator(".matrix")).to_contain_text(re.compile(r"that \d+ steps of learning have changed"))
    until(lambda: colours(page) > 20)
    assert all("session_id=my+session" in url for url in asked)
    before = page.locator(".matrix .beside").inner_text()
    say(page, "My car is red, and it is slow. " * 2)
    expect(page.locator(".matrix .beside")).not_to_have_text(before)
    picture.focus()
    page.keyboard.press("ArrowRight")
    array = next(iter(memory.state.parameters.values()))
    exact = pytest.approx(float(array[0, 1]), rel=1e-5)  # it comes a moment later
    said = re.compile(r"feature 0, correction 1: (-?[\d.e-]+)")

    def shown() -> Any:
        return said.search(page.locator(".atlas-matrix-status").inner_text())

    until(lambda: (found := shown()) and float(found[1]) == exact)
    page.get_by_label("New session").fill("anna")
    page.get_by_role("button", name="Begin", exact=True).click()
    expect(page.locator(".matrix")).to_be_hidden()


def colours(page: Page) -> int:
    """Return how many different colours the picture of the matrix has."""
    return page.evaluate(
        """() => {
            const c = document.querySelector(".matrix canvas[role=img]");
            const d = new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer);
            return new Set(d).size;
        }"""
    )


def test_a_memory_is_downloaded_as_a_file(page: Page, serve: Server, tmp_path):
    server = serve(saying("Fine."), api_key=("right-key",), headers={"authorization": "Bearer right-key"})
    page.goto(server.url)
    page.get_by_label("Key", exact=True).fill("right-key")
    page.keyboard.press("Enter")
    expect(page.locator(".state")).to_have_attribute("data-state", "ready")
    say(page, "My boat is blue.")
    frames(page)
    with page.expect_download() as waited:
        chosen(page, "Download")
    assert waited.value.suggested_filename == "my-session.atlas"
    waited.value.save_as(tmp_path / "boat.atlas")
    seen = server.get("/v1/atlas/memory", session_id="my session")["memory"]["tokens_learned"]
    assert sum(describe_memory(tmp_path / "boat.atlas").tokens_learned) == seen
    page.route(
        "**/memory/file*", lambda route: route.fulfill(status=429, json={"error": {"message": "Later."}})
    )
    chosen(page, "Download")
    expect(page.locator(".said.wrong")).to_have_text("Later.")


def test_the_state_is_one_line_on_a_narrow_page_with_a_key(page: Page, serve: Server, sized):
    sized(400, "light")
    server = serve(saying("Fine."), api_key=("right-key",))
    page.goto(server.url)
    page.get_by_label("Key", exact=True).fill("right-key")
    page.keyboard.press("Enter")
    state = page.locator("header .state")
    expect(state).to_have_attribute("data-state", "ready")
    for words in ("ready", "not connected"):
        state.evaluate("(node, words) => { node.textContent = words; }", words)
        lines = "(n) => n.getBoundingClientRect().height / parseFloat(getComputedStyle(n).fontSize)"
        assert 0 < state.evaluate(lines) < 2
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 400


# --- the key ---------------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_and_stays_in_the_tab(page: Page, serve: Server):
    server = serve(saying("Fine."), api_key=("right-key",))
    page.goto(server.url)
    field = page.get_by_label("Key", exact=True)
    expect(field).to_be_focused()
    page.keyboard.press("Escape")
    expect(field).to_be_visible()
    field.fill("wrong-key")
    field.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("does not take that key")
    page.get_by_label("Key", exact=True).fill("right-key")
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator(".state")).to_have_attribute("data-state", "ready")
    say(page, "Hello")
    page.reload()
    expect(page.locator(".state")).to_have_attribute("data-state", "ready")
    assert page.evaluate("() => JSON.stringify(localStorage)") == "{}"
    assert "right-key" not in page.url + page.content()
    page.get_by_role("button", name="Forget key").click()
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    assert page.evaluate("() => sessionStorage.getItem('atlas-key')") is None


def test_only_pages_and_their_files_are_open_without_a_key(serve: Server):
    server = serve(api_key=("right-key",))
    files = ("server/static/page.js", "server/static/page.css", "widgets/static/lab/curves.js")
    for path in ("/", "/docs", *(f"/static/{name}" for name in files)):
        answer = server.client.get(path)
        assert answer.status_code == 200, path
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert server.client.get("/atlas").headers["location"] == "/"
    for path in (
        "/openapi.json",
        "/static",
        "/v1/models",
        "/docs/oauth2-redirect",
        "/STATIC/server/static/page.js",
    ):
        assert server.client.get(path).status_code == 401, path


@pytest.mark.parametrize(
    "path",
    [
        "server/static/../app.py", "server/static/..%2fapp.py", "server/static/%2e%2e/app.py", "server/app.py",
        "server/static/", "widgets/static/..%2f..%2fserver/app.py", "widgets/static//etc/passwd",
        "swagger/../__init__.py",
        "server/static/..%5capp.py", "server/static/page.js%00.html", "../v1/models",
    ],
)  # fmt: skip
def test_nothing_else_of_the_machine_is_offered(serve: Server, path):
    import http.client

    server = serve(api_key=("right-key",))
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=LONG)  # sends a path as it is
    connection.request("GET", f"/static/{path}")
    answer = connection.getresponse()
    assert answer.status in (400, 404)
    assert b"import" not in answer.read()
    connection.close()
    assert server.client.post("/static/server/static/page.js", json={}).status_code == 405


# --- how it looks and is used ----------------------------------------------------------------------------------


@pytest.fixture
def sized(page: Page):
    """Return a function that gives the page a size and colours."""

    def size(width: int, scheme: Any) -> None:
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)

    yield size
    size(1280, None)


@pytest.mark.parametrize("width", [1280, 1000, 400])
def test_everything_has_room(page: Page, serve: Server, sized, width):
    sized(width, "light")
    server = serve(saying("It is blue, and it is long. " * 9))
    open_page(page, server)
    say(page, "My boat is blue. " * 4)
    frames(page)
    for root in ("document.documentElement", "document.querySelector('main')"):
        assert page.evaluate(f"() => {root}.scrollWidth") <= width
    lines = "(n) => n.getClientRects().length ? n.scrollHeight / parseFloat(getComputedStyle(n).fontSize) : 0"
    for label in page.locator(".panel.loss dt, .panel.loss small").all():
        assert 0 < label.evaluate(lines) < 2, label.inner_text()  # one line each, and nothing cut off
        assert label.evaluate("(n) => n.scrollWidth <= n.clientWidth"), label.inner_text()
    tops = page.locator(".talk, .right, .left").evaluate_all(
        "(all) => all.map((n) => n.getBoundingClientRect()).map((b) => [b.left, b.top, b.right, b.bottom])"
    )
    for one, other in ((0, 1), (0, 2), (1, 2)):
        a, b = tops[one], tops[other]
        apart = a[2] <= b[0] + 1 or b[2] <= a[0] + 1 or a[3] <= b[1] + 1 or b[3] <= a[1] + 1
        assert apart, (one, other)
    page.locator(".panel.server").scroll_into_view_if_needed()
    if width > 860:  # the head stays where it is, whatever is scrolled to
        assert page.locator("header").bounding_box()["y"] == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_axe_finds_nothing(page: Page, serve: Server, sized, width, scheme):
    sized(width, scheme)
    server = serve(saying("It is blue, and it is long. " * 9), api_key=("right-key",))
    page.goto(server.url)
    page.get_by_label("Key", exact=True).fill("wrong-key")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    assert findings(page) == []
    page.get_by_label("Key", exact=True).fill("right-key")
    page.keyboard.press("Enter")
    expect(page.locator(".state")).to_have_attribute("data-state", "ready")
    assert findings(page) == []
    say(page, "My boat is blue. " * 5)
    expect(page.locator(".words mark").first).to_be_visible()
    page.locator(".matrix .beside").scroll_into_view_if_needed()
    expect(page.locator(".matrix canvas[role=img]")).to_be_visible()
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, json={}))
    page.get_by_label("Your message").fill("Hello")
    page.get_by_label("Your message").press("Enter")
    expect(page.locator(".chat .wrong")).to_be_visible()
    assert findings(page) == []
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    dark = page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 23)"
    assert dark == (scheme == "dark")


def findings(page: Page) -> list[str]:
    """Return what axe-core finds."""
    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]


def test_colours_are_chosen_and_kept(page: Page, serve: Server, sized):
    sized(1280, "light")
    server = serve(saying("Fine."))
    open_page(page, server)
    page.get_by_role("button", name="Dark colours").click()
    grid = "() => getComputedStyle(document.querySelector('.loss canvas')).getPropertyValue('--grid')"
    assert page.evaluate(grid) == "#30353d"  # a canvas reads nothing but a plain colour
    page.reload()
    page.get_by_role("button", name="Light colours").click()
    assert page.evaluate(grid) == "#e1e4e9"
    page.evaluate("() => localStorage.clear()")


def test_everything_is_within_reach_of_the_keyboard(page: Page, serve: Server):
    server = serve(saying("Fine."))
    open_page(page, server)
    say(page, "My boat is blue.")
    frames(page)
    field = page.get_by_label("Your message")
    field.fill("One")
    field.press("Shift+Enter")
    field.type("Two")
    assert field.input_value() == "One\nTwo"
    reached = set()
    page.evaluate("() => document.activeElement.blur()")
    for _ in range(24):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                """() => {
                    const { id, className, textContent, tagName } = document.activeElement;
                    return id || className || textContent || tagName;
                }"""
            )
        )
    assert {"say", "log", "session", "API", "New conversation", "main", "Begin"} <= reached
    assert "CANVAS" in reached
    page.locator(".session").first.focus()
    frames(page)
    expect(page.locator(".session").first).to_be_focused()  # though it is drawn again


@pytest.mark.model
@pytest.mark.slow
def test_a_real_model_learns_while_it_is_talked_to(page: Page, serve: Server, real: Any, tmp_path):
    engine = real(path=SAMPLES / "models" / "tiny-python.gguf", n_ctx=512, n_batch=128)
    server = serve(engine, atlas_memory_file=str(tmp_path / "boat.atlas"))
    open_page(page, server)
    text = "Return the colour of the boat, which is blue, or None where there is no boat. " * 6
    say(page, text)
    page.get_by_role("button", name="New conversation").click()
    say(page, text)
    frames(page)
    expect(page.locator(".tile.gap b")).to_have_text(re.compile(r"^(?=.*[1-9])\d+\.\d+$"))  # above 0
    until(lambda: ink(page) > 500)


# --- the API ---------------------------------------------------------------------------------------------------


def test_the_api_is_shown_without_another_host(page: Page, serve: Server):
    server = serve(fake_engine(), api_key=("right-key",))
    page.goto(server.url)
    page.get_by_label("Key", exact=True).fill("right-key")
    page.keyboard.press("Enter")
    expect(page.locator(".state")).to_have_attribute("data-state", "ready")
    page.get_by_role("link", name="API").click()
    expect(page.locator(".opblock-summary-path").get_by_text("/v1/atlas/stats")).to_be_visible()
    expect(page.locator(".version-pragma")).to_have_count(
        0
    )  # shown where the document is of no version it knows
    page.locator(".opblock", has_text="/v1/models").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table")).to_contain_text("fake.gguf")


def test_every_endpoint_of_the_document_has_a_summary_and_a_place(serve: Server):
    document = serve().get("/openapi.json")
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            assert one.get("summary"), (method, path)
            assert one.get("tags"), (method, path)
            assert not one["summary"].endswith(".")
    ours = {"/metrics", "/v1/atlas/metrics", "/v1/atlas/metrics/stream", "/v1/atlas/stats"}
    assert ours <= set(document["paths"])
    assert "/" not in document["paths"]
