"""The application before it is complete: everything is answered, in the same order and with the same document."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

pytest.importorskip("fastapi", reason="the packages of the server are not installed")
httpx = pytest.importorskip("httpx", reason="the packages of the server are not installed")

from atlas_kit.server.app import begun_app, create_app, visit_routes  # noqa: E402
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
