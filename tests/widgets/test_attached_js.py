"""The pane "What it recalled" of a lab on a running server, in a real Chromium: pieces with their places, no field."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the packages of the server are not installed")

from playwright.sync_api import expect

from atlas_kit.widgets import MemoryLab
from tests.server import conftest as servers
from tests.server.test_trace import FACT, chat, filled, scripted
from tests.waiting import until
from tests.widgets.conftest import Stage

serve = servers.serve
QUESTION = "What is the <b>lighthouse keeper</b> called?"


def test_a_lab_on_a_server_shows_it_without_a_field_to_ask(stage: Stage, serve):
    server = serve(scripted())
    lab = MemoryLab(server.url, session="anna")
    until(lambda: server.service.conversations.traces._looked)
    stage.show(lab.recalled)
    expect(stage.page.get_by_role("status")).to_have_text("Nothing has been asked yet.")
    assert stage.page.get_by_label("Question").is_hidden()
    assert stage.page.locator(".title").inner_text().strip() == "What it recalled"
    filled(server)
    chat(server, QUESTION, recall="always")
    stage.deliver_until(
        lambda: (
            stage.page.locator(".asked").all_inner_texts() == [QUESTION]
            and "tokens can be found again" in stage.page.locator(".title").inner_text()
        )
    )
    [taken] = stage.page.locator(".answer > ol > li").all()
    assert taken.locator("pre").inner_text() == FACT
    assert taken.locator(".from b").inner_text() == lab.answer.pieces[0].place
    assert taken.locator(".from b").inner_text().startswith("user, ")
    assert "nats per token" in taken.inner_text()
    assert stage.page.get_by_label("Question").is_hidden()
    lab.close()
