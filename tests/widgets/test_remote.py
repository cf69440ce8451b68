"""``remote.py`` and comparisons with it: memories of running servers side by side, or beside files."""

from __future__ import annotations

import doctest
import http.server
import threading

import numpy as np
import pytest

from tests.waiting import LONG

pytest.importorskip("fastapi", reason="the packages of the server are not installed")

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama import FakeEngine
from atlas_kit.widgets import MemoryCompare, ServerMemory, remote
from tests.server import conftest as servers
from tests.server.conftest import Live, fake_engine
from tests.widgets.test_attached import TEXT, read

serve = servers.serve
OTHER = "it was the best of times, it was the worst of times. "


@pytest.fixture
def compared():
    opened: list[MemoryCompare] = []

    def open_(*given, **options) -> MemoryCompare:
        opened.append(MemoryCompare(*given, **options))
        assert opened[-1].wait(LONG)
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


def parameters(server: Live, name: str | None = "anna") -> dict:
    (found,) = (one for key, one in server.service.conversations.named.items() if key.name == name)
    return found.memory.state.parameters


def test_examples():
    assert not doctest.testmod(remote).failed


def test_the_memories_of_two_servers_are_compared(serve, compared):
    first, second = serve(), serve()
    read(first, TEXT * 2)
    read(second, OTHER * 2)
    widget = compared(first.url, second.url, session="anna")
    hosts = [server.url.removeprefix("http://") for server in (first, second)]
    assert [widget.a.label, widget.b.label] == [f"anna at {host}" for host in hosts]
    for side, server in ((widget.a, first), (widget.b, second)):
        for name, array in parameters(server).items():
            assert np.array_equal(side.matrices[name], array)
    assert all(f"anna at {host}" in widget.text() for host in hosts)
    assert "differ" in widget.entries.caption
    assert widget.png().startswith(b"\x89PNG")


def test_two_sessions_of_one_server_and_a_file(serve, compared, tmp_path):
    server = serve()
    read(server, TEXT * 2)
    read(server, OTHER * 2, session="ben")
    widget = compared(server.url, session=("anna", "ben"))
    assert widget.a.label.startswith("anna at ")
    assert widget.b.label.startswith("ben at ")
    path, fetched = tmp_path / "anna.atlas", ServerMemory(server.url, "anna").fetch()
    path.write_bytes(fetched.view(0, fetched.size))
    beside = compared(server.url, str(path), session="anna")
    assert all(row.max_difference == 0 for row in beside.rows())


def test_both_read_a_text(serve, compared):
    server = serve()
    read(server, TEXT * 3)
    read(server, OTHER * 3, session="ben")
    engine = FakeEngine(n_ctx=256, n_sequences=2)
    widget = compared(server.url, model=engine, session=("anna", "ben"), probe=TEXT)
    found = widget.compare_behaviour()
    assert found is not None
    assert found.perplexity["a"] < found.perplexity["b"]


def test_looking_again_shows_what_was_learned_since(serve, compared):
    server = serve()
    read(server, TEXT * 2)
    read(server, TEXT * 2, session="ben")
    widget = compared(server.url, session=("anna", "ben"))
    assert all(row.max_difference == 0 for row in widget.rows())
    read(server, OTHER * 12)  # more than the states that say how to whiten: nothing is learned before
    assert all(row.max_difference == 0 for row in widget.rows())  # it was looked at before
    widget.refresh()
    assert widget.wait(LONG)
    assert any(row.max_difference > 0 for row in widget.rows())


def test_a_memory_that_has_not_changed_is_not_fetched_again(serve):
    server = serve()
    read(server)
    memory = ServerMemory(server.url, "anna")
    first = memory.fetch()
    assert memory.fetch() is first
    read(server, OTHER)
    assert memory.fetch() is not first


def test_the_shared_memory_is_taken_where_no_session_is_named(serve, compared, tmp_path):
    server = serve(atlas_memory_file=str(tmp_path / "m.atlas"))
    read(server, TEXT * 2, session=None)
    read(server, TEXT * 2)
    widget = compared(server.url, session=(None, "anna"))
    assert widget.a.label.startswith("shared memory at ")
    assert widget.a.matrices


def test_a_key_is_sent_and_shown_nowhere(serve, compared):
    server = serve(api_key=("right-key",), headers={"authorization": "Bearer right-key"})
    read(server, TEXT * 2)
    read(server, OTHER * 2, session="ben")
    widget = compared(server.url, session=("anna", "ben"), key="right-key")
    assert widget.a.matrices
    shown = widget.text() + widget.html() + repr(ServerMemory(server.url, key="right-key"))
    assert "right-key" not in shown
    wrong = compared(server.url, session=("anna", "ben"), key=("right-key", "wrong-key"))
    assert wrong.a.matrices
    assert wrong.b.notes == (f"{wrong.b.label}: the server wants another API key",)
    assert "the server wants another API key" in wrong._notes.value


@pytest.mark.parametrize(
    ("url", "session", "said"),
    [
        ("http://127.0.0.1:9", "anna", "no server answers at http://127.0.0.1:9. Is it running?"),
        (None, "nobody", "there is no session of this name"),
        (None, None, "name a session: requests without one share no memory here"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(serve, compared, url, session, said):
    server = serve()
    read(server, TEXT * 2)
    widget = compared(
        server.url, url or server.url, session=("anna", session), model=fake_engine(), probe=TEXT
    )
    assert widget.b.notes == (f"{widget.b.label}: {said}",)
    assert widget.compare_behaviour() is None
    assert said.split(".")[0] in widget.behaviour.status.value


def test_what_is_none_of_our_servers_is_told():
    class Stranger(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(InvalidParamError, match="is no such server"):
            ServerMemory(f"http://127.0.0.1:{server.server_port}", "anna").fetch()
        thread.join()


def test_a_memory_that_is_too_large_is_not_kept(serve, monkeypatch):
    server = serve()
    read(server)
    monkeypatch.setattr(remote, "MOST_BYTES", 100)
    with pytest.raises(InvalidParamError, match="more than 0 MiB"):
        ServerMemory(server.url, "anna").fetch()


def test_what_makes_no_sense_is_refused():
    with pytest.raises(InvalidParamError, match="no address of one is given"):
        MemoryCompare({"a": np.eye(2)}, {"a": np.eye(2)}, session="anna")
    with pytest.raises(InvalidParamError, match="there are two sides"):
        MemoryCompare("http://127.0.0.1:9", session=("a", "b", "c"))
    with pytest.raises(InvalidParamError, match="two memories are needed"):
        MemoryCompare("http://127.0.0.1:9", session="anna")
