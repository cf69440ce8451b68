"""Two servers in processes of their own on one S3 store: one is killed, one wakes up late, the store is away.

Each session is told words that no other is told (canaries). What was saved is never lost, and no word is ever found in
another session, or in one that was gone on with elsewhere meanwhile.
"""

from __future__ import annotations

import concurrent.futures
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import tool_environment
from tests.storage.s3_server import S3Server, s3_serving
from tests.waiting import LONG, free_port

pytest.importorskip("fastapi", reason="the packages of the server are not installed")
httpx = pytest.importorskip("httpx", reason="the packages of the server are not installed")
pytest.importorskip("s3fs", reason="needs the cloud extra")
pytest.importorskip("flask_cors", reason="needs the cloud extra, and flask-cors")
pytest.importorskip("moto", reason="needs the cloud extra, and moto")
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

pytestmark = pytest.mark.slow
MODEL = Path(__file__).parents[2] / "sample_data" / "models" / "tiny-python.gguf"
#: Seconds after which one that is not heard of has no session any more. Where nobody waits for that it is as long as a
#: busy machine may stand still.
LEASE, LONG_LEASE = 2.5, 15.0
SECONDS = LONG


class Replica:
    """A server on the sample model; ``name`` is its own, and so is its spool."""

    def __init__(
        self, name: str, folder: Path, store: S3Server, url: str, wait: bool = True, lease: float = LEASE
    ) -> None:
        port = free_port()
        self.log = folder / f"{name}-{time.monotonic_ns()}.log"
        environment = {**tool_environment(), **store.environment}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "atlas_kit", "serve", "-m", str(MODEL), "--port", str(port), "-t", "1",
                    "-c", "8192", "-np", "2", "--drain-seconds", "1", "--atlas-memory-dir", url,
                    "--atlas-memory-spool", str(folder / name), "--atlas-lease-seconds", str(lease),
                    "--atlas-replica-name", name,
                ],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS)
        if wait:
            self.until(self.answers)

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return bool(self.client.get("/ready").status_code == 200)
        except httpx.HTTPError:
            return False

    def until(self, true: Callable[[], Any]) -> Any:
        end = time.monotonic() + SECONDS
        while not (found := true()):
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)
        return found

    def say(self, session: str, prompt: str, tokens: int = 4, save: bool = True) -> Any:
        """Say something, and have it saved."""
        atlas = {"session_id": session, "save_memory": save}
        body = {
            "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": tokens > 4, "atlas": atlas,
        }  # fmt: skip
        return self.client.post("/v1/completions", json=body)

    def tell(self, session: str, prompt: str) -> None:
        """Say something until it is saved: on a busy machine, a session may have to be asked for again."""

        def saved() -> bool:
            answer = self.say(session, prompt)
            assert answer.status_code in (200, 503), answer.text
            return answer.status_code == 200 and bool(answer.json()["atlas"]["saved"])

        self.until(saved)

    def heard(self, session: str, words: list[str]) -> set[str]:
        """Return which of some words a session's episodes hold."""

        def asked(word: str) -> Any:
            body = {"about": word, "dry_run": True}
            answer = self.client.post(f"/v1/atlas/sessions/{session}/forget", json=body)
            return None if answer.status_code == 503 else answer

        found = set()
        for word in words:
            answer = self.until(lambda word=word: asked(word))
            if answer.status_code != 404:
                assert answer.status_code == 200, answer.text
                found |= {word} if answer.json()["pieces"] else set()
        return found

    def store(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get("/v1/atlas/status").json()["store"]
        return found

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        self.signal(signal.SIGTERM)
        return self.process.wait(SECONDS)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait(SECONDS)
        self.client.close()


@pytest.fixture(scope="module")
def store() -> Iterator[S3Server]:
    with s3_serving() as running:
        yield running


@pytest.fixture
def start(
    store: S3Server, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Replica]]:
    started: list[Replica] = []
    url = f"s3://bucket/{request.node.name}"

    def start_one(name: str, **options: Any) -> Replica:
        started.append(Replica(name, tmp_path, store, url, **options))
        return started[-1]

    yield start_one
    for one in started:
        one.kill()


def ok(answer: Any) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def both(start: Callable[..., Replica], **options: Any) -> tuple[Replica, Replica]:
    """Start two at once."""
    found = start("one", wait=False, **options), start("two", wait=False, **options)
    for one in found:
        one.until(one.answers)
    return found


def test_sessions_move_when_their_server_is_killed(start: Callable[..., Replica]) -> None:
    one, two = both(start)
    one.tell("anna", "The heron is called Zarquon.\n")
    one.tell("bert", "The badger is called Quibble.\n")
    one.say("anna", "The otter is called Fenwick.\n", save=False)
    one.kill()
    words = ["Zarquon", "Quibble", "Fenwick", "Marlow"]
    assert two.heard("anna", words) == {"Zarquon"}
    two.tell("anna", "The stoat is called Marlow.\n")
    again = start("one")  # with the spool that it had: what is there of anna is old
    assert again.heard("anna", words) == {"Zarquon", "Marlow"}
    assert again.heard("bert", words) == {"Quibble"}
    for server in (again, two):
        assert server.end() == 0
    third = start("three")
    assert third.heard("anna", words) == {"Zarquon", "Marlow"}
    assert third.heard("bert", words) == {"Quibble"}


def test_one_that_sleeps_and_wakes_up_late_writes_over_nothing(start: Callable[..., Replica]) -> None:
    one, two = both(start)
    one.tell("anna", "The heron is called Zarquon.\n")
    one.tell("bert", "The badger is called Quibble.\n")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        late = pool.submit(one.say, "anna", "The otter is called Fenwick.\n", 1200)  # it takes a while
        one.until(lambda: b"num_requests_running 1.0" in one.client.get("/metrics").content)
        one.signal(signal.SIGSTOP)
        two.tell("anna", "The stoat is called Marlow.\n")
        one.signal(signal.SIGCONT)
        answer = late.result(SECONDS)
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] in ("session_moved", "file_in_use")
    assert answer.headers["retry-after"]
    words = ["Zarquon", "Quibble", "Fenwick", "Marlow"]
    assert two.heard("anna", words) == {"Zarquon", "Marlow"}
    assert one.heard("anna", words) == {"Zarquon", "Marlow"}
    assert one.heard("bert", words) == {"Quibble"}
    one.tell("bert", "The shrew is called Tamsin.\n")
    assert two.heard("bert", [*words, "Tamsin"]) == {"Quibble", "Tamsin"}
    assert one.end() == 0


def test_two_that_are_asked_at_once_keep_all_that_was_said(start: Callable[..., Replica]) -> None:
    servers = both(start)
    words = ["Zarquon", "Quibble", "Fenwick", "Marlow", "Tamsin", "Ogdoad", "Wexford", "Ludwin"]
    saved: dict[str, set[str]] = {"anna": set(), "bert": set()}

    def tell(number: int) -> None:
        session, server = ("anna", "bert")[number // 2 % 2], servers[number % 2]
        server.tell(session, f"{words[number]} came home and was well.\n")
        saved[session].add(words[number])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(tell, range(len(words))))
    assert sum(map(len, saved.values())) == len(words)
    for session, told in saved.items():
        for server in servers:
            assert server.heard(session, words) == told


def test_a_store_that_goes_away_in_the_middle_of_a_save_loses_nothing(
    start: Callable[..., Replica], store: S3Server
) -> None:
    one, two = both(start, lease=LONG_LEASE)
    one.tell("anna", "The heron is called Zarquon.\n")
    try:
        store.refuses = lambda method, path: method == "PUT" and "/sessions/" in path
        told = ok(
            one.say("anna", "The badger is called Quibble.\n")
        )  # its state is put, and its record is not
        assert not told["atlas"]["saved"]
        assert "store" in told["atlas"]["problem"]
        store.refuses = lambda method, path: True
        ok(one.say("anna", "The otter is called Fenwick.\n"))
        assert one.store()["waiting"] == 1
        assert one.client.get("/ready").json()["store"] == {"reachable": False, "waiting": 1}
        assert two.say("anna", "The stoat is called Marlow.\n").json()["error"]["code"] == "store_away"
        one.kill()
        again = start("one", lease=LONG_LEASE)
        words = ["Zarquon", "Quibble", "Fenwick", "Marlow"]
        assert again.heard("anna", words) == {"Zarquon", "Quibble", "Fenwick"}
        assert again.end() != 0
        assert "stays in" in again.log.read_text()
    finally:
        store.refuses = lambda method, path: False
    last = start("one", lease=LONG_LEASE)
    last.until(lambda: last.store()["waiting"] == 0 and last.store()["reachable"])
    two.until(lambda: two.store()["reachable"])
    assert two.heard("anna", words) == {"Zarquon", "Quibble", "Fenwick"}


def test_a_server_that_ends_while_the_store_hangs_leaves_all_for_the_next(
    store: S3Server, start: Callable[..., Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"anna": "Zarquon", "bert": "Quibble", "cara": "Wombat"}
    one = start("one")
    for session in words:
        one.tell(session, "Good morning.\n")
    for session, word in words.items():
        ok(one.say(session, f"The heron is called {word}.\n", save=False))
    goes_on = threading.Event()
    monkeypatch.setattr(store, "refuses", lambda method, path: not goes_on.wait())
    one.signal(signal.SIGTERM)
    assert one.process.wait(2 * SECONDS) not in (0, None)
    goes_on.set()
    log = one.log.read_text()
    assert "could not be saved in" not in log
    one = start("one")
    for session, word in words.items():
        assert one.heard(session, [*words.values()]) == {word}
    one.until(lambda: not one.store()["waiting"])
