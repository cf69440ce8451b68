"""The application before it is complete: everything is answered, in the same order and with the same document."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the packages of the server are not installed")
httpx = pytest.importorskip("httpx", reason="the packages of the server are not installed")

from atlas_kit.errors import AtlasError, InvalidParamError, WrongModelError  # noqa: E402
from atlas_kit.server.app import begun_app, create_app, visit_routes  # noqa: E402
from atlas_kit.server.problems import problem_of  # noqa: E402
from tests.server.conftest import make_service  # noqa: E402


def test_endpoints_that_are_not_there_yet_are_added_when_they_are_asked_for() -> None:
    async def main() -> None:
        service = make_service()
        app, _ = begun_app(service)
        await service.start()
        try:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://server", verify=False
            ) as client:
                before = len(app.router.routes)
                assert (await client.get("/health")).status_code == 200
                assert (await client.get("/metrics")).status_code == 200
                assert len(app.router.routes) == before
                assert (await client.get("/props")).status_code == 200
                assert len(app.router.routes) > before
                assert (await client.get("/health")).status_code == 200
        finally:
            await service.stop()

    asyncio.run(main())


def test_the_document_does_not_depend_on_when_the_application_is_completed() -> None:
    app, complete = begun_app(make_service())
    complete()
    visit_routes(app)
    complete()
    assert list(app.openapi()["paths"]) == list(create_app(make_service()).openapi()["paths"])


def test_a_server_imports_nothing_before_its_first_answer_that_this_does_not_need() -> None:
    code = (
        "import sys, atlas_kit.server.run, atlas_kit.llama.scheduler, atlas_kit.server.routes.completions\n"
        "print([name for name in ('atlas_kit.memory', 'atlas_kit.formats.atlas', 'prometheus_client')"
        " if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/chat/completions", {}, "messages: this property is missing."),
        ("/v1/chat/completions", {"messages": []}, "messages: it must have at least 1 item."),
        ("/v1/chat/completions", {"messages": "hi"}, "messages: it must be a list."),
        ("/v1/completions", None, "The request has no body."),
        ("/v1/completions", {"prompt": "a", "atlas": 5}, "atlas: it must be an object."),
        (
            "/v1/completions", {"prompt": "a", "atlas": {"recall": "x"}},
            "atlas.recall: it must be 'auto', 'off' or 'always'.",
        ),
        (
            "/v1/completions", {"prompt": "a", "atlas": {"session_id": ""}},
            "atlas.session_id: it must have at least 1 character.",
        ),
        ("/v1/completions", {"prompt": "a", "temperature": 101}, "temperature: it must be at most 100."),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1.5}, "max_tokens: it must be a whole number."),
        ("/v1/completions", {"prompt": "a", "max_tokens": "many"}, "max_tokens: it must be a whole number."),
        ("/v1/completions", {"prompt": "a", "top_p": "x"}, "top_p: it must be a number."),
        ("/v1/completions", {"prompt": "a", "stream": 7}, "stream: it must be true or false."),
    ],
)  # fmt: skip
def test_what_a_request_lacks_is_said_in_plain_words(
    path: str, body: dict[str, Any] | None, message: str
) -> None:
    async def main() -> None:
        service = make_service()
        await service.start()
        try:
            transport = httpx.ASGITransport(create_app(service))
            async with httpx.AsyncClient(
                transport=transport, base_url="http://server", verify=False
            ) as client:
                text = "" if body is None else json.dumps(body)
                answer = await client.post(path, content=text, headers={"content-type": "application/json"})
        finally:
            await service.stop()
        error = answer.json()["error"]
        assert (answer.status_code, error["message"], error["code"]) == (400, message, "invalid_value")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            InvalidParamError("window_size is 5", hint="Choose 64 to 8192."),
            "window_size is 5. Choose 64 to 8192.",
        ),
        (InvalidParamError("llama.cpp does not understand this"), "llama.cpp does not understand this."),
        (InvalidParamError("a token lies outside the vocabulary"), "A token lies outside the vocabulary."),
    ],
)
def test_a_sentence_begins_with_a_capital_and_a_name_as_it_is_written(
    error: AtlasError, message: str
) -> None:
    assert problem_of(error).message == message


def test_a_client_is_told_nothing_that_it_cannot_do() -> None:
    """A program may force another model's memory; a request has no such property."""
    error = WrongModelError(bytes(32), bytes.fromhex("11" * 32), path=None, hint="Use force.")
    told = problem_of(error)
    assert (told.status, told.code) == (409, "wrong_model")
    assert "force" not in told.message
