"""What `atlas-tool serve` does beside llama.cpp's own server: each figure as a ratio to it, both in turn in one run.

    python tools/build_llama.py --server          # the peer, compiled once
    python tools/bench/server.py                  # everything (part of make bench), half an hour on 2 cores
    python tools/bench/server.py --quick          # fewer rounds, sessions and tokens: to see that it works
    python tools/bench/server.py --only throughput --on sample --save
    python tools/bench/server.py --control        # the peer against itself: what a ratio of 1 looks like here

Both are processes of their own with the same ``-m -c -np -t``, and both run all the time: what is compared takes turns
on the same prompts, each new, with the same samplers. Tokens per second are the best of the rounds, since what a busy
machine adds is never negative; beside them stands the processor time of the server for a token. Where neighbours are
busy, and for gaps and latencies, figures are medians. The clients are one process beside them (``_http.py``).

Three models: the sample model on one thread (more do not help one so small), SmolLM2-135M where ``--smollm2`` or
``ATLAS_BENCH_SMOLLM2`` says where it is, and a billion random weights. What other programs had of the processors
meanwhile stands in the result: from some per cent on, no ratio means anything. Exit 1 when a limit is missed. Where
some groups or models alone are measured and saved, the other rows stay, each with the day it was measured on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402

from tools.bench._http import Answer, RequestFailedError, ask, begin  # noqa: E402
from tools.bench._neighbours import busy_neighbours  # noqa: E402
from tools.bench._servers import OURS, TICKS, Peer, Server, find_peer, running  # noqa: E402
from tools.bench.formats import Row  # noqa: E402
from tools.bench.memory import FREE, RESULTS, keep, machine_of, measured  # noqa: E402

THREADS = len(os.sched_getaffinity(0))
SAMPLE = ROOT / "sample_data" / "models" / "tiny-python.gguf"
DOCUMENTS = ("english.txt", "argparse.py", "tarfile.py", "statistics.py", "optparse.py")
KINDS = ("peer", "off", "on")
NAMES = {"off": "memory off", "on": "with memory"}
CLIENTS = (1, 8, 50)
#: The samplers that llama-server uses by itself, said to both.
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
COMPLETIONS, CHAT, SESSIONS = "/v1/completions", "/v1/chat/completions", "/v1/atlas/sessions"
#: Tokens that a memory has read when all of it is at work: its keys are whitened, its window is not empty.
AT_WORK = 1024

LEAST_OFF, LEAST_ON = 0.90, {"sample": 0.60, "smollm2": 0.75, "1b": 0.75}
MOST_ADDED, MOST_METRICS, MOST_GAP = 0.050, 0.100, 0.5  # seconds
LEAST_PREFIX, LEAST_BUSY = 1.5, 5.0  # of the peer's speed
MOST_SECOND_TURN, MOST_AFTER_RESTART, MOST_START = 1.1, 1.3, 1.2  # of the peer's time
LARGE = 200_000_000
MOST_SAVE, MOST_LOAD, MOST_STALL = 5.0, 2.0, 0.020  # seconds
MOST_IDLE = 2e9  # bytes of a process with 1,000 sessions


@dataclass(frozen=True)
class Model:
    """A model that is served, and how: threads, context of a slot, tokens that all clients of a round generate."""

    name: str
    title: str
    path: str
    threads: int
    context: int
    tokens: int
    prompt: int
    large: int  # the memory_dim with which a memory takes about 200 MB; 0: none does


class Rate(Row):
    """A figure of which more is better: the ratio is ours by the peer's."""

    @property
    def ratio(self) -> float:
        """Ours by the peer's."""
        return self.ours / self.peer


@dataclass(frozen=True)
class Load:
    """What some clients at once took, and what they were told."""

    seconds: float
    tokens: int
    cpu: float
    answers: Sequence[Answer]

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


Body = dict[str, Any]
Message = dict[str, str]


class Bench:
    """The models, the servers' command lines, and how long to measure."""

    def __init__(
        self, options: argparse.Namespace, peer: Peer, models: Sequence[Model], folder: Path
    ) -> None:
        self.quick, self.control = options.quick, options.control
        self.peer, self.models, self.folder = peer, models, folder
        self.ours = tuple(options.ours.split()) if options.ours else OURS
        self.interval = 4.0  # seconds between two saves of the server's own accord, where they are waited for
        self.rng = np.random.default_rng(1)
        self.failed: list[str] = []
        self._texts: dict[str, tuple[Any, list[int]]] = {}
        self._ends: dict[str, dict[str, int]] = {}

    @property
    def larger(self) -> Model:
        """A model whose tokens take long enough to see what lies between them: SmolLM2, or the next larger."""
        return self.models[min(1, len(self.models) - 1)]

    def place(self, name: str) -> str:
        """Return a folder for memories."""
        folder = self.folder / name
        folder.mkdir()
        return str(folder)

    def command(
        self, kind: str, model: Model, *, slots: int, context: int, threads: int = 0, more: Sequence[str] = ()
    ) -> list[str]:
        """Return a server's command line; ``context`` is that of a slot, ``more`` is for ours with a memory."""
        same = ["-m", model.path, "-c", str(slots * context), "-np", str(slots)]
        same += ["-t", str(threads or model.threads)]
        if kind == "peer" or self.control:
            return [*self.peer.command, *same, *self.peer.options]
        return [*self.ours, *same, *(["--atlas", *more] if kind == "on" else [])]

    def commands(self, model: Model, **how: Any) -> list[list[str]]:
        """Return the command lines of all kinds."""
        return [self.command(kind, model, **how) for kind in KINDS]

    def asks(self, kind: str, session: str | None = None) -> Body:
        """Return what a request says about memory to a server of this kind."""
        if kind != "on" or self.control:
            return {}
        # what is read again for a question is measured by tools/bench/recall.py
        return {"atlas": {"enabled": True, "recall": "off", **({"session_id": session} if session else {})}}

    def _text(self, model: Model) -> tuple[Any, list[int]]:
        if model.path not in self._texts:
            from llama_cpp import Llama

            from atlas_kit.llama.llama_library import library

            library()  # for its silence, which the package ends
            reader = Llama(model.path, vocab_only=True, verbose=False)
            text = b"".join((ROOT / "sample_data" / "documents" / name).read_bytes() for name in DOCUMENTS)
            self._texts[model.path] = reader, reader.tokenize(text, add_bos=False)
        return self._texts[model.path]

    def prompt(self, model: Model, count: int) -> list[int]:
        """Return so many tokens of the sample documents, from another place each time."""
        _, tokens = self._text(model)
        at = int(self.rng.integers(len(tokens) - count))
        return tokens[at : at + count]

    def prose(self, model: Model, count: int) -> str:
        """Return a text of about so many tokens."""
        reader, _ = self._text(model)
        text: bytes = reader.detokenize(self.prompt(model, count))
        return text.decode(errors="ignore")

    def asked(self, model: Model, tokens: int, seed: int = 0) -> Body:
        """Return what every request says: exactly so many tokens, as a stream."""
        if model.path not in self._ends:
            from atlas_kit.llama.llama_library import library

            api, vocabulary = library().api, self._text(model)[0]._model.vocab
            ends = (
                n
                for n in range(api.llama_vocab_n_tokens(vocabulary))
                if api.llama_vocab_is_eog(vocabulary, n)
            )
            self._ends[model.path] = {str(token): -100 for token in ends}
        return {
            "max_tokens": tokens, "logit_bias": self._ends[model.path], "seed": seed, "stream": True,
            "stream_options": {"include_usage": True}, **SAMPLING,
        }  # fmt: skip

    def completion(self, model: Model, prompt: Sequence[int], tokens: int, seed: int = 0) -> Body:
        """Return a request to continue a prompt."""
        return {"prompt": list(prompt), **self.asked(model, tokens, seed)}

    def chat(self, model: Model, messages: Sequence[Message], tokens: int, seed: int = 0) -> Body:
        """Return a request to answer a conversation."""
        return {"messages": list(messages), **self.asked(model, tokens, seed)}

    def bodies(self, model: Model, clients: int, *, tokens: int, prompt: int) -> list[Body]:
        """Return the requests of some clients, all of them different."""
        return [self.completion(model, self.prompt(model, prompt), tokens, seed) for seed in range(clients)]

    def _begin_sessions(self, server: Server, model: Model, count: int) -> None:
        """Give each client a session that has read ``AT_WORK`` tokens; what one has read, the others begin with."""
        known = {one["id"] for one in asyncio.run(ask(server.port, SESSIONS, method="GET")).json()["data"]}
        names = [f"client-{client}" for client in range(count)]
        for name in names:
            if name in known:
                continue
            if not known:
                text = self.completion(model, self.prompt(model, AT_WORK), 1)
                load(server, COMPLETIONS, [text | self.asks("on", name)])
            else:
                asyncio.run(ask(server.port, f"{SESSIONS}/{names[0]}/fork", {"session_id": name}))
            known.add(name)

    def turns(
        self,
        servers: Sequence[Server],
        path: str,
        bodies: Callable[[], Sequence[Body]],
        *,
        rounds: int,
        warm: bool = True,
        at_work: Model | None = None,
    ) -> dict[str, list[Load]]:
        """Put the same requests to all servers, in an order that changes; return the rounds of each.

        ``at_work``: each client has a memory of its own on this model that has read so much that all of it is at work,
        where fresh ones would spend the whole round on their first tokens.
        """
        found: dict[str, list[Load]] = {kind: [] for kind in KINDS}
        if at_work is not None and not self.control:
            self._begin_sessions(servers[KINDS.index("on")], at_work, len(bodies()))
        turn = list(zip(KINDS, servers, strict=True))
        for number in range(rounds + warm):
            given = bodies()
            for kind, server in turn[number % len(turn) :] + turn[: number % len(turn)]:
                names = [f"client-{client}" if at_work else None for client in range(len(given))]
                asked = [body | self.asks(kind, name) for body, name in zip(given, names, strict=True)]
                done = load(server, path, asked)
                if number >= warm:  # the first round warms up
                    found[kind].append(done)
        return found


def load(server: Server, path: str, bodies: Sequence[Body]) -> Load:
    """Send requests at once and wait for the last answer."""

    async def all_of_them() -> list[Answer]:
        return await asyncio.gather(*(ask(server.port, path, body) for body in bodies))

    cpu = server.cpu()
    answers = asyncio.run(all_of_them())
    spent = server.cpu() - cpu
    seconds = max(answer.ended for answer in answers) - min(answer.sent for answer in answers)
    tokens = 0
    for body, answer in zip(bodies, answers, strict=True):
        came = answer.usage()["completion_tokens"]
        if came != body["max_tokens"]:  # rounds of different length are no comparison
            raise RequestFailedError(f"a client got {came} tokens instead of {body['max_tokens']}")
        tokens += came
    return Load(seconds, tokens, spent, answers)


def until_text(answer: Answer) -> float:
    """Return the seconds until a first visible text, or until the end where none was visible."""
    return (answer.ended if math.isnan(answer.first) else answer.first) - answer.sent


def clients_of(number: int) -> str:
    """Write a number of clients."""
    return f"{number} client{'s' * (number > 1)}"


def compared(
    group: str, what: str, found: Mapping[str, Sequence[Load]], bench: Bench, limits: Mapping[str, float],
    best: Callable[[Sequence[Load]], Load] = lambda rounds: max(rounds, key=lambda load: load.rate),
) -> Iterator[Row]:  # fmt: skip
    """Compare tokens per second, with the processor time for a token beside them; a limit of 0 is none."""
    peer = best(found["peer"])
    for kind in ("off", "on"):
        ours = best(found[kind])
        against = (
            f"{bench.peer.name}; CPU {ours.cpu / ours.tokens * 1e6:,.0f} us a token, "
            f"its {peer.cpu / peer.tokens * 1e6:,.0f} us"
        )
        yield Rate(
            group, f"{what}, {NAMES[kind]}", ours.rate, peer.rate, "tokens/s", against,
            limits.get(kind, 0), True,
        )  # fmt: skip


# --- throughput ------------------------------------------------------------------------------------------


def throughput(bench: Bench) -> Iterator[Row]:
    """Streaming clients at once: 1, 8 and 50 of them, and 8 that chat."""
    rounds = 2 if bench.quick else 4
    for model in bench.models:
        limits = {"off": LEAST_OFF, "on": LEAST_ON[model.name]}
        with running(*bench.commands(model, slots=max(CLIENTS), context=model.context)) as servers:
            for clients in CLIENTS:
                count = tokens_each(model, clients, bench.quick)

                def bodies(clients: int = clients, count: int = count, model: Model = model) -> list[Body]:
                    return bench.bodies(model, clients, tokens=count, prompt=model.prompt)

                found = bench.turns(servers, COMPLETIONS, bodies, rounds=rounds, at_work=model)
                yield from compared(
                    "throughput", f"{model.title}, {clients_of(clients)}", found, bench, limits
                )
            if model is not bench.larger:
                continue
            count = tokens_each(model, 8, bench.quick)

            def chats(model: Model = model, count: int = count) -> list[Body]:
                return [
                    bench.chat(
                        model, [{"role": "user", "content": bench.prose(model, model.prompt)}], count, seed
                    )
                    for seed in range(8)
                ]

            found = bench.turns(servers, CHAT, chats, rounds=rounds, at_work=model)
            yield from compared("throughput", f"{model.title}, 8 clients that chat", found, bench, limits)


def tokens_each(model: Model, clients: int, quick: bool) -> int:
    """Return how many tokens each client of a round asks for: as many as its slot has room for, within the budget."""
    budget = model.tokens // 2 if quick else model.tokens
    return max(8, min(budget // clients, model.context - model.prompt - 8, 256))


def latency(bench: Bench) -> Iterator[Row]:
    """What a memory adds to a request: 32 tokens read, one generated, in a session that begins with it."""
    rounds = 5 if bench.quick else 20
    for model in bench.models:
        with running(*bench.commands(model, slots=2, context=model.context)) as servers:

            def bodies(model: Model = model) -> list[Body]:
                return bench.bodies(model, 1, tokens=1, prompt=32)

            found = bench.turns(servers, COMPLETIONS, bodies, rounds=rounds)
        times = {kind: statistics.median(load.seconds for load in loads) for kind, loads in found.items()}
        added = max(times["on"] - times["off"], 0.0)
        what = f"{model.title}, a request of 32 tokens"
        yield Row("latency", f"{what}, what a memory adds", added, MOST_ADDED, "s", "50 ms", 1.0)
        yield Row("latency", f"{what}, memory off", times["off"], times["peer"], "s", bench.peer.name, FREE)


def metrics(bench: Bench) -> Iterator[Row]:
    """How long `/metrics` takes while 50 clients stream, each with a memory."""
    clients = max(CLIENTS)
    for model in bench.models:
        commands = bench.commands(model, slots=clients, context=model.context)
        count = 2 * tokens_each(model, clients, bench.quick)
        count = min(count, model.context - model.prompt - 8)
        with running(commands[0], commands[2]) as servers:
            times = {}
            for kind, server in zip(("peer", "on"), servers, strict=True):
                given = bench.bodies(model, clients, tokens=count, prompt=model.prompt)
                bodies = [{**body, **bench.asks(kind)} for body in given]
                times[kind] = asyncio.run(_scraped(server.port, bodies))
        ours, peer = times["on"], times["peer"]
        what = f"{model.title}, /metrics while {clients} clients stream"
        yield Row(
            "metrics", f"{what}, the longest of {len(ours)}", max(ours), MOST_METRICS, "s", "100 ms", 1.0
        )
        yield Row(
            "metrics", f"{what}, median", statistics.median(ours), statistics.median(peer), "s",
            f"{bench.peer.name}; its longest {max(peer) * 1e3:,.0f} ms", FREE,
        )  # fmt: skip


async def _scraped(port: int, bodies: Sequence[Body]) -> list[float]:
    """Return how long each look at the metrics took while clients stream."""
    streams = asyncio.gather(*(ask(port, COMPLETIONS, body) for body in bodies))
    times = []
    try:
        while not streams.done():
            answer = await ask(port, "/metrics", method="GET")
            times.append(answer.ended - answer.sent)
            await asyncio.sleep(0.05)
    except BaseException:
        streams.cancel()
        with contextlib.suppress(asyncio.CancelledError, RequestFailedError):
            await streams
        raise
    await streams
    return times


# --- clients that meet -----------------------------------------------------------------------------------


def prefix(bench: Bench) -> Iterator[Row]:
    """Fifty clients at once whose prompts begin with the same 2,000 tokens, new in each round."""
    clients, shared, own, count = max(CLIENTS), 2000, 16, 32
    sample = bench.models[0]
    model = longer_context(sample, bench.folder, 4096)
    with running(*bench.commands(model, slots=clients, context=2304)) as servers:

        def bodies() -> list[Body]:
            begin = bench.prompt(sample, shared)
            return [
                bench.completion(model, begin + bench.prompt(sample, own), count, seed)
                for seed in range(clients)
            ]

        found = bench.turns(
            servers, COMPLETIONS, bodies, rounds=1 if bench.quick else 3, warm=not bench.quick
        )
    what = f"{sample.title}, {clients} clients with one prefix of {shared:,} tokens"
    yield from compared("prefix", what, found, bench, {"off": LEAST_PREFIX})


def longer_context(model: Model, folder: Path, context: int) -> Model:
    """Return a model that has this context; where its file says less, by which servers go, a copy that says so."""
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.formats.gguf.edit import Set, edit_metadata

    path = folder / f"{model.name}-{context}.gguf"
    with GGUFFile.open(model.path) as file:
        key = f"{file.architecture}.context_length"
        if file.get(key) >= context:
            return model
    if not path.exists():
        edit_metadata(model.path, [Set(key, context)], path)
    return replace(model, path=str(path))


def neighbours(bench: Bench) -> Iterator[Row]:
    """Eight clients while a process of its own keeps each processor busy; all threads, for the small model too."""
    clients, rounds = 8, 2 if bench.quick else 5
    for model in dict.fromkeys((bench.models[0], bench.larger)):
        count = max(8, tokens_each(model, clients, bench.quick) // 8)

        def bodies(model: Model = model, count: int = count) -> list[Body]:
            return bench.bodies(model, clients, tokens=count, prompt=model.prompt)

        how = {"slots": clients, "context": model.context, "threads": THREADS}
        with running(*bench.commands(model, **how)) as servers:
            alone = bench.turns(servers, COMPLETIONS, bodies, rounds=rounds, at_work=model)
            with busy_neighbours(900):
                busy = bench.turns(servers, COMPLETIONS, bodies, rounds=rounds, at_work=model)
        what = f"{model.title}, {clients_of(clients)}"
        yield from compared("neighbours", f"{what} alone, {THREADS} threads", alone, bench, {}, _median)
        yield from compared(
            "neighbours", f"{what}, busy neighbours", busy, bench, {"off": LEAST_BUSY}, _median
        )


def _median(rounds: Sequence[Load]) -> Load:
    return sorted(rounds, key=lambda load: load.rate)[len(rounds) // 2]


def gap(bench: Bench) -> Iterator[Row]:
    """Seven clients stream while an eighth sends 1,500 tokens: the longest time without a token of one of them."""
    streams, long, rounds = 7, 1500, 1 if bench.quick else 3
    model = longer_context(bench.larger, bench.folder, 2048)
    gaps: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with running(*bench.commands(model, slots=streams + 1, context=2048)) as servers:
        for _ in range(rounds):
            given = bench.bodies(model, streams, tokens=1900, prompt=model.prompt)
            late = bench.completion(model, bench.prompt(model, long), 1)
            for kind, server in zip(KINDS, servers, strict=True):
                more = bench.asks(kind)
                bodies = [{**body, **more} for body in given]
                gaps[kind].append(asyncio.run(_worst_gap(server.port, bodies, {**late, **more})))
    peer = statistics.median(gaps["peer"])
    for kind in ("off", "on"):
        what = f"{model.title}, longest gap while {long:,} tokens are read, {NAMES[kind]}"
        ours = statistics.median(gaps[kind])
        yield Row("gap", what, ours, MOST_GAP, "s", "500 ms", 1.0)
        yield Row("gap", what, ours, peer, "s", bench.peer.name, FREE)


async def _worst_gap(port: int, bodies: Sequence[Body], late: Body) -> float:
    """Return the longest time, in seconds, for which one of the streams stood still while ``late`` was read."""
    streams = [await begin(port, COMPLETIONS, body) for body in bodies]
    try:
        while min(len(stream.answer.arrivals) for stream in streams) < 8:
            await _still_running(streams)
        asked = time.perf_counter()
        answer = await ask(port, COMPLETIONS, late)
        while min(stream.answer.arrivals[-1] for stream in streams) < answer.ended:
            await _still_running(streams)
        return max(longest_gap(stream.answer.arrivals, asked, answer.ended) for stream in streams)
    finally:
        for stream in streams:
            stream.close()


def longest_gap(arrivals: Sequence[float], since: float, until: float) -> float:
    """Return the longest time between two arrivals, of those gaps that reach into the span."""
    gaps = (b - a for a, b in itertools.pairwise(arrivals) if b > since and a < until)
    return max(gaps, default=0.0)


async def _still_running(streams: Sequence[Any]) -> None:
    await asyncio.sleep(0.02)
    for stream in streams:
        if stream.done.done():
            said = stream.answer.body[-200:].decode(errors="replace")
            raise RequestFailedError(f"a stream ended before its time: status {stream.answer.status}, {said}")


# --- conversations ---------------------------------------------------------------------------------------


def conversation(bench: Bench) -> Iterator[Row]:
    """Turns after the first of a conversation of 4,000 tokens: what was read before is not read again."""
    tokens = 1000 if bench.quick else 4000
    model = longer_context(bench.larger, bench.folder, tokens + 1024)
    turns, restarts = (3, 1) if bench.quick else (6, 2)
    kept = ["--atlas-memory-dir", bench.place("conversation")]
    commands = bench.commands(model, slots=1, context=tokens + 1024, more=kept)
    text, first, later = bench.prose(model, tokens), {}, {}
    after: dict[str, list[float]] = {}
    talks = {kind: [{"role": "user", "content": text}] for kind in KINDS}

    def turn(kind: str, server: Server) -> float:
        body = bench.chat(model, talks[kind], 8) | bench.asks(kind, "conversation")
        answer = load(server, CHAT, [body]).answers[0]
        talks[kind].append({"role": "assistant", "content": answer.text()})
        talks[kind].append({"role": "user", "content": f"What about number {len(talks[kind])}? Go on."})
        return until_text(answer)

    with contextlib.ExitStack() as stack:
        servers = {
            kind: stack.enter_context(Server(command)) for kind, command in zip(KINDS, commands, strict=True)
        }
        for kind in KINDS:
            first[kind] = turn(kind, servers[kind])
            later[kind] = [math.inf]
        for _ in range(turns):
            for kind in KINDS:
                later[kind].append(turn(kind, servers[kind]))
        for _ in range(restarts):
            for kind in ("peer", "on"):
                servers[kind].stop()
                servers[kind] = stack.enter_context(Server(commands[KINDS.index(kind)]))
                after.setdefault(kind, []).append(turn(kind, servers[kind]))
    best = {kind: min(times) for kind, times in later.items()}
    what = f"{model.title}, {tokens:,} tokens"
    for kind in ("off", "on"):
        name = NAMES[kind]
        yield Row(
            "conversation", f"{what}, first turn up to its first token, {name}", first[kind], first["peer"],
            "s", bench.peer.name, FREE,
        )  # fmt: skip
        yield Row(
            "conversation", f"{what}, later turn, {name}", best[kind], best["peer"], "s", bench.peer.name,
            MOST_SECOND_TURN,
        )  # fmt: skip
    yield Row(
        "conversation", f"{what}, turn after a restart, with memory", min(after["on"]), best["peer"], "s",
        f"{bench.peer.name} without one; after one {min(after['peer']):.2g} s", MOST_AFTER_RESTART,
    )  # fmt: skip


def start(bench: Bench) -> Iterator[Row]:
    """From nothing to the first token."""
    for model in bench.models:
        times, sizes = dict.fromkeys(KINDS, math.inf), dict.fromkeys(KINDS, 0)
        body = bench.completion(model, bench.prompt(model, 4), 8)
        for _ in range(2 if bench.quick else 5):
            for kind, command in zip(
                KINDS, bench.commands(model, slots=4, context=model.context), strict=True
            ):
                with Server(command) as server:
                    answer = load(server, COMPLETIONS, [body | bench.asks(kind)]).answers[0]
                    spent = answer.sent + until_text(answer) - server.started
                    sizes[kind] = server.resident()
                times[kind] = min(times[kind], spent)
        for kind in ("off", "on"):
            # the peer needs a tenth of a second for the sample model, in which Python has only begun
            limit = FREE if model.name == "sample" else MOST_START
            what = f"{model.title}, from the start to the first token, {NAMES[kind]}"
            yield Row("start", what, times[kind], times["peer"], "s", bench.peer.name, limit)
            what = f"{model.title}, the process after its first answer, {NAMES[kind]}"
            yield Row("start", what, sizes[kind], sizes["peer"], "bytes", bench.peer.name, FREE)


# --- memories on disk and at rest --------------------------------------------------------------------------


def large(bench: Bench) -> Iterator[Row]:
    """A memory of 200 MB: saving, loading, and what other clients notice of its being saved by itself."""
    if bench.control or not bench.larger.large:
        return
    model, folder = bench.larger, bench.place("large")
    more = [
        "--atlas-memory-persist", "--atlas-memory-dir", folder,
        "--atlas-auto-save-interval", f"{bench.interval:g}",
    ]  # fmt: skip
    rounds = 1 if bench.quick else 3
    command = bench.command("on", model, slots=2, context=1024, more=more)
    learn = bench.completion(model, bench.prompt(model, 128), 8) | bench.asks("on")
    other = bench.bodies(model, 1, tokens=900, prompt=16)[0] | {"atlas": {"enabled": False}}
    times: dict[str, list[float]] = {"save": [], "load": []}
    stalls: list[float] = []
    learn_large(model, folder)
    with Server(command) as server:
        load(server, COMPLETIONS, [learn])
        for number in range(rounds):
            name = {"memory_file": f"large-{number}.atlas"}
            for action, spent in times.items():
                answer = asyncio.run(ask(server.port, f"/v1/atlas/memory/{action}", name))
                spent.append(answer.ended - answer.sent)
        size = max(path.stat().st_size for path in Path(folder).rglob("*.atlas"))
        for _ in range(rounds):
            gaps = []
            for changes in (True, False):
                if changes:
                    load(server, COMPLETIONS, [learn])
                gaps.append(asyncio.run(_longest(server.port, other, 1.5 * bench.interval)))
            stalls.append(gaps[0] - gaps[1])
    what = f"{model.title}, a memory of {size / 1e6:,.0f} MB"
    yield Row("large", f"{what}: bytes", size, LARGE, "bytes", "200 MB", 0, True)
    yield Row("large", f"{what}: save", min(times["save"]), MOST_SAVE, "s", "5 s", 1.0)
    yield Row("large", f"{what}: load", min(times["load"]), MOST_LOAD, "s", "2 s", 1.0)
    stall = max(statistics.median(stalls), 0.0)
    yield Row("large", f"{what}: what auto-save adds to a gap", stall, MOST_STALL, "s", "20 ms", 1.0)


def learn_large(model: Model, folder: str) -> None:
    """Make the memory that the server goes on with: of the paper's form, which is as large as one likes."""
    from atlas_kit.persistence.place import automatic_path

    text = ROOT / "sample_data" / "text" / "chat.txt"
    subprocess.run(
        [
            sys.executable, "-m", "atlas_kit", "learn", model.path, str(text), "--memory-file",
            automatic_path(model.path, folder), "--features", "polynomial", "--memory-dim", str(model.large),
        ],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip


async def _longest(port: int, body: Body, seconds: float) -> float:
    """Return the longest gap of a stream that is watched for a while, and begun again when it ends."""
    end, longest = time.perf_counter() + seconds, 0.0
    while time.perf_counter() < end:
        stream = await begin(port, COMPLETIONS, body)
        while not stream.done.done() and time.perf_counter() < end:
            await asyncio.sleep(0.05)
        longest = max(longest, longest_gap(stream.answer.arrivals, -math.inf, math.inf))
        stream.close()
    return longest


def sessions(bench: Bench) -> Iterator[Row]:
    """What sessions that wait for their client keep in memory."""
    if bench.control:
        return
    number, slots = (100, 8) if bench.quick else (1000, 8)
    for model in dict.fromkeys((bench.models[0], bench.larger)):
        folder = bench.place(f"sessions-{model.name}")
        more = ["--atlas-memory-dir", folder]
        with Server(bench.command("on", model, slots=slots, context=model.context, more=more)) as server:

            def visit(first: int, last: int, server: Server = server, model: Model = model) -> None:
                for at in range(first, last, slots):
                    bodies = bench.bodies(model, min(slots, last - at), tokens=8, prompt=32)
                    asked = [bench.asks("on", f"idle-{at + i}") for i in range(len(bodies))]
                    load(server, COMPLETIONS, [body | ask for body, ask in zip(bodies, asked, strict=True)])

            visit(0, slots)  # what the first ones need, none needs again
            before = server.resident()
            visit(slots, slots + number)
            after = server.resident()
            # one that has read so much that all of its memory is at work
            long = bench.completion(model, bench.prompt(model, AT_WORK), 8) | bench.asks("on", "long")
            load(server, COMPLETIONS, [long])
            told = asyncio.run(ask(server.port, "/v1/atlas/memory?session_id=long", method="GET")).json()
            server.stop()
            # the largest is its own: the others have read a sentence
            files = [path.stat().st_size for path in Path(folder).rglob("*.atlas")]
        each = max(after - before, 0) / number
        what = f"{model.title}, {number:,} idle sessions"
        yield Row("sessions", f"{what}, the process", after, MOST_IDLE, "bytes", "2 GB", 1.0)
        yield Row("sessions", f"{what}, each", each, MOST_IDLE / 1000, "bytes", "2 MB", FREE)
        what = f"{model.title}, a session of {AT_WORK:,} tokens"
        memory = float(told["memory"]["state_bytes"])
        weights = Path(model.path).stat().st_size
        yield Row("sessions", f"{what}, its memory", memory, weights, "bytes", "the model's file", FREE)
        yield Row("sessions", f"{what}, its file", max(files), weights, "bytes", "the model's file", FREE)


GROUPS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "start": start,
    "throughput": throughput,
    "latency": latency,
    "metrics": metrics,
    "prefix": prefix,
    "gap": gap,
    "conversation": conversation,
    "large": large,
    "sessions": sessions,
    "neighbours": neighbours,
}


def processor_seconds() -> tuple[float, float]:
    """Return the processor time that all processes have used, and that of this one and those it has waited for."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _, _, irq, softirq, *_ = map(int, file.readline().split()[1:])
    return (user + nice + system + irq + softirq) / TICKS, sum(os.times()[:4])


def others_share(since: tuple[float, float, float]) -> float:
    """Return which part of all processors other programs have had since (moment, all, ours), from 0 to 1."""
    moment, all_, ours = since
    now, own = processor_seconds()
    share = (now - all_ - (own - ours)) / (time.perf_counter() - moment) / (os.cpu_count() or 1)
    return min(max(share, 0.0), 1.0)


def surviving(name: str, group: Callable[[Bench], Iterator[Row]]) -> Callable[[Bench], Iterator[Row]]:
    """Return a group that says why it could not be measured, so that the others still are."""

    def rows(bench: Bench) -> Iterator[Row]:
        try:
            yield from group(bench)
        except RequestFailedError as error:
            bench.failed.append(f"{name}: {error}")
            print(f"not measured, {bench.failed[-1]}", file=sys.stderr, flush=True)

    return rows


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--quick", action="store_true", help="fewer rounds, sessions and tokens")
    found.add_argument("--json", action="store_true", help="print the results as JSON")
    found.add_argument("--only", action="append", choices=sorted(GROUPS), help="this group (more than once)")
    found.add_argument(
        "--on", action="append", choices=sorted(LEAST_ON), help="on this model (more than once)"
    )
    found.add_argument(
        "--smollm2",
        metavar="FILE",
        default=os.environ.get("ATLAS_BENCH_SMOLLM2"),
        help="SmolLM2-135M in Q4_1 (ATLAS_BENCH_SMOLLM2); without it, it is left out",
    )
    found.add_argument("--billion", metavar="FILE", help="a model of a billion weights (one of random ones)")
    found.add_argument("--peer", metavar="FILE", help="the llama-server to compare with")
    found.add_argument("--ours", metavar="COMMAND", help="what atlas-tool serve is started with")
    found.add_argument("--control", action="store_true", help="measure the peer against itself")
    found.add_argument(
        "--save",
        nargs="?",
        const="",
        metavar="NAME",
        help="also write tools/bench/results/NAME.json (server-cpu)",
    )
    return found


def models_of(options: argparse.Namespace, folder: Path) -> list[Model]:
    """Return the models that there are, small to large; the random one is made if nobody gives one."""
    wanted = options.on or list(LEAST_ON)
    found = []
    if "sample" in wanted:
        found.append(Model("sample", "sample model", str(SAMPLE), 1, 512, 6400, 32, 0))
    if "smollm2" in wanted and options.smollm2:
        found.append(Model("smollm2", "SmolLM2", options.smollm2, THREADS, 512, 640, 32, 416))
    if "1b" in wanted:
        path = options.billion
        if not path:
            from tools.make_random_model import make_model

            path = str(make_model(folder / "billion.gguf", "llama", size="1b", type="q4_0"))
        found.append(Model("1b", "1B", path, THREADS, 128, 320, 8, 216))
    if not found:
        raise SystemExit("SmolLM2 is asked for and not there: --smollm2 FILE")
    return found


def main() -> int:
    """Measure."""
    options = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end, too
    peer = find_peer(options.peer)
    with tempfile.TemporaryDirectory() as name:
        models = models_of(options, Path(name))
        bench = Bench(options, peer, models, Path(name))
        about = machine_of("llama.cpp", options.quick) | {
            "threads": THREADS,
            "peer": f"{peer.name} {peer.version}",
            "models": [model.title for model in models],
            "control": options.control,
            "load": os.getloadavg()[0],
        }
        if not options.json:
            print(f"{about['processor']}, {THREADS} processors, load {about['load']:.1f}; {about['peer']}\n")
        since = time.perf_counter(), *processor_seconds()
        rows = measured({name: surviving(name, group) for name, group in GROUPS.items()}, bench, options)
        about |= {"others": others_share(since), "not_measured": bench.failed}
        if not options.json:
            print(f"\nOther programs had {about['others']:.0%} of the processors meanwhile")
        code = keep(rows, about, options, "server-cpu", saved(options))
    return code or int(bool(bench.failed))


def saved(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows that were saved before, of which those that are measured now are replaced.

    There are none where everything is measured.
    """
    path = RESULTS / f"{options.save or 'server-cpu'}.json"
    if options.save is None or not (options.only or options.on) or not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = found["rows"]
    return [{"date": found["date"], "others": found["others"]} | row for row in rows]


if __name__ == "__main__":
    raise SystemExit(main())
