"""The bench of the server: its client, its servers, what it asks and counts; not its figures.

A program of a few lines stands for both servers: it answers at once, in as many tokens as it is asked for.
"""

from __future__ import annotations

import asyncio
import json
import sys
from types import SimpleNamespace

import pytest

from atlas_kit.formats.gguf import GGUFFile
from atlas_kit.persistence.session_file import read_session_state
from tools import build_llama
from tools.bench import _servers, memory, server
from tools.bench._http import Exchange, RequestFailedError, ask, text_of, unchunked
from tools.bench._servers import Peer, Server

STUB = """
import http.server, json, os, sys, time

options = dict(zip(sys.argv[1::2], sys.argv[2::2])) if len(sys.argv) % 2 else {}
if "--die" in sys.argv:
    sys.exit("no such model")

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, document, status=200):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def chunk(self, data):
        self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(data), data))

    def event(self, document):
        self.chunk(b"data: " + (document if isinstance(document, bytes) else json.dumps(document).encode()) + b"\\n\\n")

    def do_GET(self):
        if self.path == "/v1/atlas/sessions":
            return self.answer({"data": []})
        if self.path.startswith("/v1/atlas/memory?"):
            folder = sys.argv[sys.argv.index("--atlas-memory-dir") + 1]
            open(os.path.join(folder, "one.atlas"), "wb").write(bytes(1000))
            return self.answer({"memory": {"state_bytes": 1000}})
        self.answer({"status": "ok"}, 200 if self.path in ("/health", "/metrics") else 404)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.startswith("/v1/atlas/memory/"):
            folder = sys.argv[sys.argv.index("--atlas-memory-dir") + 1]
            os.makedirs(folder, exist_ok=True)
            open(os.path.join(folder, asked["memory_file"]), "wb").write(bytes(1000))
            return self.answer({})
        if self.path.endswith("/fork"):
            return self.answer({"id": asked["session_id"]})
        chats = self.path.startswith("/v1/chat")
        if not chats and not self.path.startswith("/v1/completions"):
            return self.answer({"error": {"message": "no such place"}}, 404)
        count = asked["max_tokens"]
        told = 3 if asked.get("prompt") == "short" else count
        usage = {"completion_tokens": told, "prompt_tokens": 1, "atlas": asked.get("atlas")}
        if not asked.get("stream"):
            return self.answer({"choices": [{"text": "a" * count}], "usage": usage})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if chats:
            self.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]})
        for number in range(count):
            if asked.get("prompt") == "fail":
                self.event({"error": {"message": "out of luck"}})
                break
            if count > 300:
                time.sleep(0.005)  # a stream that others can overtake
            self.event({"choices": [{"delta": {"content": "a"}} if chats else {"text": "a"}]})
        self.event({"choices": [], "usage": usage})
        if asked.get("prompt") != "cut":
            self.event(b"[DONE]")
        self.wfile.write(b"0\\r\\n\\r\\n")

host, port = (sys.argv[sys.argv.index(name) + 1] for name in ("--host", "--port"))

class Many(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, *_):
        pass  # a client that hung up

Many((host, int(port)), Handler).serve_forever()
"""
COMMAND = (sys.executable, "-c", STUB)


@pytest.fixture(scope="module")
def stub():
    """Return a server that answers at once."""
    if not sys.platform.startswith("linux"):
        pytest.skip("/proc tells what a server costs")
    with Server(COMMAND) as running:
        yield running


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Return a bench of two small models, with the stub as peer and as ours."""
    options = server.parser().parse_args(["--quick"])
    models = [
        server.Model(name, name, str(server.SAMPLE), 1, 512, 400, 8, 64) for name in ("sample", "smollm2")
    ]
    found = server.Bench(options, Peer("stub", "1", COMMAND), models, tmp_path)
    found.ours, found.interval = COMMAND, 0.1
    monkeypatch.setattr(found, "prompt", lambda model, count: list(range(count)))
    monkeypatch.setattr(found, "prose", lambda model, count: "word " * count)
    monkeypatch.setattr(found, "asked", lambda model, tokens, seed=0: {"max_tokens": tokens, "stream": True})
    return found


# --- the client ------------------------------------------------------------------------------------------


def asking(prompt, tokens):
    return {"prompt": prompt, "max_tokens": tokens, "stream": True}


def answer_of(stub, path, body):
    return asyncio.run(ask(stub.port, path, body))


def test_a_stream_is_counted_as_its_server_says(stub):
    answer = answer_of(stub, server.COMPLETIONS, asking([1, 2], 7))
    assert answer.usage()["completion_tokens"] == 7
    assert answer.text() == "a" * 7
    assert answer.sent <= answer.first <= answer.ended
    assert answer.arrivals == sorted(answer.arrivals)


def test_an_answer_in_one_piece(stub):
    answer = answer_of(stub, server.COMPLETIONS, {"prompt": "a", "max_tokens": 3})
    assert answer.usage()["completion_tokens"] == 3
    assert answer.arrivals == []


def test_the_first_text_of_a_chat_is_not_its_role(stub):
    async def first() -> list[bool]:
        exchange = Exchange(b"")
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        found = []
        for data in (
            head,
            b'2f\r\ndata: {"choices": [{"delta": {"role": "assistant"}}]}\n\n\r\n',
            b'2f\r\ndata: {"choices": [{"delta": {"content": "a"}}]}\n\n\r\n',
        ):
            exchange.data_received(data)
            found.append(exchange.answer.first == exchange.answer.first)
        return found

    assert asyncio.run(first()) == [False, False, True]


@pytest.mark.parametrize(
    ("prompt", "said"), [("cut", "a stream has no end"), ("fail", "a stream failed.*out of luck")]
)
def test_a_stream_that_fails_is_not_counted(stub, prompt, said):
    answer = answer_of(stub, server.COMPLETIONS, asking(prompt, 2))
    with pytest.raises(RequestFailedError, match=said):
        answer.usage()


def test_a_refusal_is_an_error_with_its_words(stub):
    with pytest.raises(RequestFailedError, match=r"POST /v1/other: status 404.*no such place"):
        answer_of(stub, "/v1/other", {})


def test_nobody_there_is_an_error():
    with pytest.raises(RequestFailedError, match="POST /v1/completions"):
        asyncio.run(ask(_servers.free_port(), server.COMPLETIONS, {}))


def test_a_cut_connection_is_an_error():
    async def cut() -> None:
        exchange = Exchange(b"")
        exchange.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")
        exchange.connection_lost(None)
        await exchange.done

    with pytest.raises(RequestFailedError, match="cut: by the server"):
        asyncio.run(cut())


def test_chunks_are_joined_wherever_they_were_cut():
    assert unchunked(b"3\r\nabc\r\na;name=x\r\n0123456789\r\n0\r\n\r\n") == b"abc0123456789"


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({"choices": [{"text": "a"}]}, "a"),
        ({"choices": [{"delta": {"content": "b"}}]}, "b"),
        ({"choices": [{"delta": {"reasoning_content": "c"}}]}, "c"),
        ({"choices": [{"delta": {}}]}, ""),
        ({"choices": []}, ""),
    ],
)
def test_text_of_an_event(event, text):
    assert text_of(event) == text


# --- the servers -----------------------------------------------------------------------------------------


def test_a_server_that_does_not_start_says_why():
    with pytest.raises(RequestFailedError, match="ended with 1: no such model"):
        Server((*COMMAND, "--die", "1"))


def test_what_a_server_costs_is_known(stub):
    before = stub.cpu()
    for _ in range(3):
        server.load(stub, server.COMPLETIONS, [asking([1], 200)] * 8)
    assert stub.cpu() >= before
    assert stub.resident() > 1_000_000


def test_a_server_ends_when_it_is_asked():
    with Server(COMMAND) as running:
        assert running.stop() == -15


def test_the_native_server_is_the_peer_where_it_is_there(monkeypatch):
    monkeypatch.setattr(build_llama, "starts", lambda path: True)
    peer = _servers.find_peer()
    assert peer.name == "llama-server"
    assert _servers.find_peer("/some/llama-server").command == ("/some/llama-server",)


def test_another_peer_is_named(monkeypatch):
    monkeypatch.setattr(build_llama, "starts", lambda path: False)
    versions = {"llama-cpp-python": "1", "xllamacpp": "2"}
    monkeypatch.setattr(_servers.importlib.metadata, "version", lambda name: versions[name])
    peer = _servers.find_peer()
    assert (peer.name, peer.version) == ("xllamacpp", "2")
    with pytest.raises(SystemExit, match="is no server that runs here"):
        _servers.find_peer("/some/llama-server")


def test_no_peer_is_one_sentence(monkeypatch):
    def nothing(name: str) -> str:
        raise _servers.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(build_llama, "starts", lambda path: False)
    monkeypatch.setattr(_servers.importlib.metadata, "version", nothing)
    with pytest.raises(SystemExit, match=r"build_llama\.py --server"):
        _servers.find_peer()


# --- what is asked ---------------------------------------------------------------------------------------


def test_both_servers_get_the_same_settings(bench):
    model = bench.models[0]
    peer, off, on = bench.commands(model, slots=8, context=100, more=["--atlas-memory-dim", "32"])
    same = ["-m", model.path, "-c", "800", "-np", "8", "-t", "1"]
    assert off == [*COMMAND, *same]
    assert peer == [*COMMAND, *same, *bench.peer.options]
    assert on == [*COMMAND, *same, "--atlas", "--atlas-memory-dim", "32"]


def test_only_ours_hears_of_memory(bench):
    assert bench.asks("peer", "anna") == bench.asks("off", "anna") == {}
    assert bench.asks("on") == {"atlas": {"enabled": True, "recall": "off"}}
    assert bench.asks("on", "anna") == {"atlas": {"enabled": True, "recall": "off", "session_id": "anna"}}


def test_the_control_is_the_peer_three_times(bench):
    bench.control = True
    commands = bench.commands(bench.models[0], slots=2, context=64, more=["--atlas-memory-dim", "32"])
    assert commands[0] == commands[1] == commands[2]
    assert bench.asks("on") == {}


def test_clients_ask_for_what_their_slots_hold(tmp_path):
    options = server.parser().parse_args(["--smollm2", "FILE", "--billion", "FILE"])
    models = server.models_of(options, tmp_path)
    assert [model.name for model in models] == list(server.LEAST_ON)
    for model in models:
        for clients in server.CLIENTS:
            tokens = server.tokens_each(model, clients, quick=False)
            assert 8 <= tokens <= model.context - model.prompt


def test_a_model_that_is_not_there_is_left_out(tmp_path, monkeypatch):
    options = server.parser().parse_args(["--billion", "FILE"])
    options.smollm2 = None
    assert [model.name for model in server.models_of(options, tmp_path)] == ["sample", "1b"]
    options.on = ["smollm2"]
    with pytest.raises(SystemExit, match="--smollm2 FILE"):
        server.models_of(options, tmp_path)


def test_another_context_changes_nothing_else(bench, tmp_path):
    model = server.longer_context(bench.models[0], tmp_path, 4096)
    with GGUFFile.open(model.path) as longer, GGUFFile.open(server.SAMPLE) as sample:
        assert longer.get("llama.context_length") == 4096
        assert list(longer.tensors) == list(sample.tensors)
    assert server.longer_context(bench.models[0], tmp_path, 4096) == model
    assert server.longer_context(bench.models[0], tmp_path, 512) is bench.models[0]


# --- what is counted -------------------------------------------------------------------------------------


def test_more_tokens_per_second_are_better():
    slow, quick = (
        server.Rate("x", "y", rate, 100.0, "tokens/s", "peer", 0.9, True) for rate in (80.0, 110.0)
    )
    assert (slow.ratio, slow.ok, quick.ratio, quick.ok) == (0.8, False, 1.1, True)
    assert "MISSED" in memory.show(slow)
    (row,) = json.loads(json.dumps(memory.table_of([slow])))
    assert (row["ratio"], row["ok"], row["limit"]) == (0.8, False, 0.9)


def test_gaps_count_where_they_reach_into_the_span():
    arrivals = [0.0, 3.0, 3.5, 4.5, 9.0, 9.1]
    assert server.longest_gap(arrivals, 3.2, 4.0) == 1.0
    assert server.longest_gap(arrivals, 3.2, 5.0) == 4.5
    assert server.longest_gap(arrivals, 1.0, 3.2) == 3.0
    assert server.longest_gap([1.0], 0.0, 2.0) == 0.0


def test_a_load_knows_its_rate(stub):
    assert server.Load(2.0, 100, 0.1, []).rate == 50
    done = server.load(stub, server.COMPLETIONS, [asking([1], 5), asking([2], 7)])
    assert done.tokens == 12
    assert done.rate == 12 / done.seconds


def test_a_client_that_got_less_than_it_asked_for_spoils_a_round(stub):
    with pytest.raises(RequestFailedError, match="got 3 tokens instead of 5"):
        server.load(stub, server.COMPLETIONS, [asking("short", 5)])


@pytest.mark.model
def test_no_request_ends_before_its_time(bench):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    real = server.Bench(server.parser().parse_args([]), bench.peer, bench.models, bench.folder)
    asked = real.completion(bench.models[0], [1, 2, 3], 9)
    assert (asked["prompt"], asked["max_tokens"], asked["stream"]) == ([1, 2, 3], 9, True)
    assert asked["logit_bias"]
    assert set(asked["logit_bias"].values()) == {-100}
    assert len(real.prompt(bench.models[0], 50)) == 50
    assert real.prose(bench.models[0], 50)


def test_rounds_take_turns_and_the_first_does_not_count(bench, monkeypatch):
    order: list[str] = []

    def load(asked, path, bodies):
        order.append(asked)
        return server.Load(1.0, len(order), 0.0, bodies)

    monkeypatch.setattr(server, "load", load)
    found = bench.turns(["a", "b", "c"], server.COMPLETIONS, lambda: [{"seed": 1}], rounds=2)
    assert order == [*"abc", *"bca", *"cab"]
    assert [load.tokens for load in found["peer"]] == [6, 8]
    assert found["on"][0].answers == [{"seed": 1, "atlas": {"enabled": True, "recall": "off"}}]


def test_memories_are_at_work_before_the_first_round(bench, monkeypatch):
    """One session reads, the others begin with what it has read, and none twice."""
    model, did = bench.models[0], []

    def load(asked, path, bodies):
        did.append((asked, [body.get("atlas", {}).get("session_id") for body in bodies]))
        return server.Load(1.0, 1, 0.0, bodies)

    async def ask(port, path, body=None, method="POST"):
        if method == "POST":
            did.append((path, body["session_id"]))
        return SimpleNamespace(json=lambda: {"data": []})

    monkeypatch.setattr(server, "load", load)
    monkeypatch.setattr(server, "ask", ask)
    monkeypatch.setattr(bench, "prompt", lambda model, count: [count])
    servers = [SimpleNamespace(port=port) for port in range(3)]
    bench.turns(servers, server.COMPLETIONS, lambda: [{}, {}], rounds=1, warm=False, at_work=model)
    assert did == [
        (servers[2], ["client-0"]),
        ("/v1/atlas/sessions/client-0/fork", "client-1"),
        (servers[0], [None, None]),
        (servers[1], [None, None]),
        (servers[2], ["client-0", "client-1"]),
    ]


def test_what_others_use_is_what_is_left(monkeypatch):
    monkeypatch.setattr(server, "processor_seconds", lambda: (130.0, 25.0))
    monkeypatch.setattr(server.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(server.time, "perf_counter", lambda: 20.0)
    assert server.others_share((10.0, 110.0, 10.0)) == 0.25
    assert server.others_share((10.0, 130.0, 10.0)) == 0.0


def test_the_time_of_all_processes_is_more_than_ours():
    if not sys.platform.startswith("linux"):
        pytest.skip("/proc tells what all processes have used")
    everything, own = server.processor_seconds()
    assert everything > own > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(server.GROUPS))
def test_every_group_measures_what_it_says(stub, bench, name, monkeypatch):
    monkeypatch.setattr(server, "learn_large", lambda model, folder: None)  # the stub makes its own file
    rows = list(server.GROUPS[name](bench))
    assert rows
    for row in rows:
        assert row.name == name
        assert row.ours >= 0
        assert row.peer > 0
        assert isinstance(row.ok, bool)
    json.dumps(memory.table_of(rows))


@pytest.mark.slow
def test_the_large_memory_is_of_the_papers_form(bench, tmp_path):
    """Its size follows from the width of the keys, which that of the default memory does not."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    small = server.replace(bench.models[0], large=64)
    server.learn_large(small, str(tmp_path))
    (file,) = tmp_path.glob("*.atlas")
    settings = read_session_state(file).settings
    assert (settings["features"], settings["memory_dim"]) == ("polynomial", 64)


def test_what_is_measured_anew_takes_its_place_and_the_rest_stays(tmp_path, monkeypatch):
    def row(name, what, ours):
        return {"name": name, "what": what, "ours": ours, "against": "llama-server; CPU 1", "unit": "s"}

    monkeypatch.setattr(server, "RESULTS", tmp_path)
    options = server.parser().parse_args(["--save", "--only", "gap"])
    assert server.saved(options) == []
    rows = [row("start", "a", 1), row("gap", "a", 2), row("metrics", "a, the longest of 3", 3)]
    text = json.dumps({"date": "1999-12-31", "others": 0.5, "rows": rows})
    (tmp_path / "server-cpu.json").write_text(text)
    before = server.saved(options)
    assert [one["date"] for one in before] == ["1999-12-31"] * 3
    assert server.saved(server.parser().parse_args(["--save"])) == []
    now = [
        row("gap", "a", 7),
        row("gap", "b", 8),
        row("metrics", "a, the longest of 9", 9),
        row("new", "a", 1),
    ]
    found = memory.replaced(before, now)
    assert [(one["name"], one["ours"], "date" in one) for one in found] == [
        ("start", 1, True), ("gap", 7, False), ("gap", 8, False), ("metrics", 9, False), ("new", 1, False),
    ]  # fmt: skip


def test_every_group_can_be_chosen():
    for name in server.GROUPS:
        assert server.parser().parse_args(["--only", name, "--quick"]).only == [name]
    with pytest.raises(SystemExit):
        server.parser().parse_args(["--only", "nothing"])


def test_a_group_that_fails_leaves_the_others(capsys):
    def failing(bench):
        yield "a row"
        raise RequestFailedError("a server ended with 1")

    bench = SimpleNamespace(failed=[])
    assert list(server.surviving("gap", failing)(bench)) == ["a row"]
    assert bench.failed == ["gap: a server ended with 1"]
    assert "not measured, gap" in capsys.readouterr().err
