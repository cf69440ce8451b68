"""What a memory costs beside llama.cpp: each figure as a ratio to llama.cpp alone, on a model of a real shape.

    python tools/bench/runtime.py                 # everything (part of make bench), some five minutes on 2 cores
    python tools/bench/runtime.py --quick         # fewer rounds: to see that it works
    python tools/bench/runtime.py --only decode --only learn
    python tools/bench/runtime.py --model FILE.gguf --save    # into tools/bench/results/

The model has a billion random weights: llama.cpp's speed does not depend on what they are, and for the memory they are
the worst case (every token has other candidates). The settings are what ``atlas-tool recommend`` says of it. The peer
is llama.cpp's C API called from a bare loop. What is compared takes turns, and a time is the best of its rounds: what
a busy machine adds is never negative. The group ``neighbours`` keeps every processor busy with processes of its own
for two minutes, and takes medians. llama.cpp and BLAS both get all processors that this process may use. Exit 1 when a
limit is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT)]
THREADS = len(os.sched_getaffinity(0))
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # read when NumPy is imported
    os.environ.setdefault(_name, str(THREADS))

import numpy as np  # noqa: E402

from atlas_kit.llama import AtlasSession, Sampling, open_engine  # noqa: E402
from atlas_kit.llama.engine import Feed  # noqa: E402
from atlas_kit.llama.llama_engine import LlamaEngine  # noqa: E402
from atlas_kit.llama.llama_library import library  # noqa: E402
from atlas_kit.llama.output_matrix import OutputRows  # noqa: E402
from atlas_kit.llama.token_memory import TokenMemory  # noqa: E402
from atlas_kit.llama.waiting import VARIABLES  # noqa: E402
from atlas_kit.settings.atlas_settings import AtlasSettings  # noqa: E402
from atlas_kit.settings.recommend import recommend  # noqa: E402
from tools.bench._neighbours import answer, in_company  # noqa: E402
from tools.bench.formats import Row  # noqa: E402
from tools.bench.memory import FREE, keep, learner, machine_of, measured, resident  # noqa: E402
from tools.bench.memory import Bench as MemoryBench  # noqa: E402

PROMPT, CONTEXT, BATCH = 768, 1024, 512
LEAST_DECODE, LEAST_LEARN, MOST_RESIDENT, MOST_START = 0.85, 0.60, 1.30, 1.20
LEAST_QUIET, LEAST_BUSY = 0.97, 0.35  # of the speed of threads that spin; of the speed without neighbours
GREEDY = Sampling(temperature=0)
SAMPLE = ROOT / "sample_data" / "models" / "tiny-python.gguf"


class Bare:
    """A bare loop on llama.cpp's C API: what everything is compared with."""

    def __init__(self, path: str, n_ctx: int = CONTEXT, n_batch: int = BATCH) -> None:
        lib = library()
        self.api, api = lib.api, lib.api
        params = api.llama_model_default_params()
        params.n_gpu_layers, params.use_extra_bufts = 0, not lib.has_amx  # with AMX, many builds crash
        self.model = api.llama_model_load_from_file(os.fsencode(path), params)
        context = api.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = n_ctx, n_batch, n_batch
        context.n_threads = context.n_threads_batch = THREADS
        context.no_perf = True
        self.context = api.llama_init_from_model(self.model, context)
        self.n_batch = n_batch
        self.n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.sampler = api.llama_sampler_init_greedy()

    def read(self, tokens: list[int]) -> Any:
        """Read tokens; return the last one's logits (n_vocab,)."""
        for at in range(0, len(tokens), self.n_batch):
            part = tokens[at : at + self.n_batch]
            array = (self.api.llama_token * len(part))(*part)
            if self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(part))):
                raise RuntimeError("llama_decode failed")
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, -1), (self.n_vocab,))

    def generate(self, count: int) -> None:
        """Generate tokens, the most likely each time."""
        for _ in range(count):
            self.read([self.api.llama_sampler_sample(self.sampler, self.context, -1)])

    def forget(self) -> None:
        """Empty the context."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def close(self) -> None:
        """Free everything."""
        self.api.llama_sampler_free(self.sampler)
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


class Bench:
    """The model, its settings, and how long to measure."""

    def __init__(self, model: str, quick: bool, changes: list[str] | None = None) -> None:
        self.path, self.quick, self.changes = model, quick, changes or []
        self.settings = settings_of(model, self.changes)
        self.rng = np.random.default_rng(1)

    @cached_property
    def bare(self) -> Bare:
        """llama.cpp alone."""
        return Bare(self.path)

    @cached_property
    def engine(self) -> LlamaEngine:
        """The engine under test, with room for two sessions."""
        engine = open_engine(self.path, n_ctx=CONTEXT, n_sequences=2)
        assert isinstance(engine, LlamaEngine)
        return engine

    @cached_property
    def remembering(self) -> AtlasSession:
        """A session whose window is full."""
        session = AtlasSession(self.engine, self.settings)
        fill(session.memory, self.rng)
        return session

    @cached_property
    def plain(self) -> AtlasSession:
        """A session without memory."""
        return AtlasSession(self.engine, None)

    def tokens(self, count: int) -> list[int]:
        """Draw tokens."""
        found: list[int] = self.rng.integers(300, self.bare.n_vocab - 1, count).tolist()
        return found

    def best(
        self, *work: Callable[[], Any], rounds: int, before: Callable[[], Any] = lambda: None
    ) -> list[float]:
        """Time in turns; return the best of each, in seconds."""
        times = [math.inf] * len(work)
        for number in range(1 + (2 if self.quick else rounds)):
            for i, call in enumerate(work):
                before()
                gc.collect()
                start = time.perf_counter()
                call()
                if number:  # the first round warms up
                    times[i] = min(times[i], time.perf_counter() - start)
        return times


def settings_of(model: str, changes: list[str]) -> AtlasSettings:
    """Return what is recommended for a model, with changes such as ``candidates=64``."""
    pairs = (change.split("=", 1) for change in changes)
    return recommend(model).settings.replace(**{name: json.loads(value) for name, value in pairs})


def fill(memory: TokenMemory | None, rng: np.random.Generator) -> None:
    """Fill a memory's window with random states: to read as many tokens as it holds would take a quarter of an hour."""
    assert memory is not None
    window, counters = memory.state.window, memory.state.counters
    size = memory.settings.window_size
    window["key"][:] = rng.standard_normal(window["key"].shape, np.float32)
    window["token"][:] = rng.integers(300, memory.rows.n_vocab - 1, window["token"].shape)
    window["valid"][:] = 1
    for name in ("filled", "seen", "learned"):
        counters[name][...] = size // memory.settings.chunk_size * memory.settings.chunk_size
    if (
        memory.whitened is not None
    ):  # else it would whiten the states of all these tokens, of which it keeps the last
        counters["averaged"][...] = 1


# --- speed -----------------------------------------------------------------------------------------------


def decode(bench: Bench) -> Iterator[Row]:
    """Tokens generated one by one, behind a prompt that fills context and window."""
    prompt = bench.tokens(PROMPT)
    bench.bare.read(prompt)
    bench.plain.feed(prompt, score=False)
    bench.remembering.feed(prompt)
    # whole steps of the memory, so that every round pays for what it learns
    count, rounds = max(16, bench.settings.chunk_size), 6
    rounds = min(rounds, (CONTEXT - PROMPT) // count - 1)

    def generated(session: AtlasSession) -> Callable[[], None]:
        def call() -> None:
            done = sum(token.id >= 0 for token in session.generate(max_tokens=count, sampling=GREEDY))
            if done != count:
                raise RuntimeError(f"the model ended after {done} of {count} tokens")

        return call

    with_memory, plain, bare = bench.best(
        generated(bench.remembering),
        generated(bench.plain),
        lambda: bench.bare.generate(count),
        rounds=rounds,
    )
    against = f"bare loop, {count / bare:.2f} tokens/s"
    what = "a generated token"
    yield Row(
        "decode", f"{what}, with memory", with_memory / count, bare / count, "s", against, LEAST_DECODE, True
    )
    yield Row("decode", f"{what}, with memory", with_memory / count, plain / count, "s", "session without memory",
              LEAST_DECODE, True)  # fmt: skip
    yield Row("off", f"{what}, memory off", plain / count, bare / count, "s", against, 0.95, True)


def learn(bench: Bench) -> Iterator[Row]:
    """A prompt that is learned, against one that is only read, logits of the last token."""
    tokens = bench.tokens(64 if bench.quick else BATCH)

    def before() -> None:
        bench.bare.forget()
        bench.plain.forget_context()
        bench.remembering.forget_context()

    learned, read, bare = bench.best(
        lambda: bench.remembering.feed(tokens),
        lambda: bench.plain.feed(tokens, score=False),
        lambda: bench.bare.read(tokens),
        rounds=3,
        before=before,
    )
    before()
    count = len(tokens)
    against = f"bare loop, {count / bare:.1f} tokens/s, n_batch {BATCH}"
    yield Row(
        "learn",
        "a token of a prompt, learned",
        learned / count,
        bare / count,
        "s",
        against,
        LEAST_LEARN,
        True,
    )
    yield Row("off", "a token of a prompt, memory off", read / count, bare / count, "s", against, FREE)


def off(bench: Bench) -> Iterator[Row]:
    """Without a memory, the logits are llama.cpp's own, to the bit."""
    tokens = bench.tokens(32)
    bench.bare.forget()
    bench.engine.forget(0)
    theirs = bench.bare.read(tokens).copy()
    ours = bench.engine.decode([Feed(0, tokens, 0, 1)])[0].logits[0]
    different = float((ours != theirs).sum())
    yield Row("off", "logits that differ, of 1", 1 + different, 1.0, "", "the bare loop's", 1.0)
    bench.engine.forget(0)


# --- processes -------------------------------------------------------------------------------------------


def child(kind: str, model: str, tokens: int, changes: list[str]) -> None:
    """Run in a process of its own: load, read, and say what it takes; ``kind``: bare, plain or memory."""
    text = np.random.default_rng(2).integers(300, 4000, max(1, tokens)).tolist()
    if kind == "bare":
        bare = Bare(model, n_ctx=4096)
        bare.read(text)
        bare.generate(1)
    else:
        memory = settings_of(model, changes) if kind == "memory" else None
        session = AtlasSession(model, memory, engine_options={"n_ctx": 4096})
        session.feed(text, score=False)
        next(session.generate(max_tokens=1, sampling=GREEDY))
    print(json.dumps({"resident": resident()}), flush=True)
    os._exit(0)  # freeing is not measured


def run_child(bench: Bench, kind: str, tokens: int) -> tuple[float, float]:
    """Return seconds and resident bytes of a process."""
    command = [sys.executable, __file__, "--child", kind, "--model", bench.path, "--tokens", str(tokens)]
    command += [part for change in bench.changes for part in ("--set", change)]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - start, json.loads(done.stdout.splitlines()[-1])["resident"]


def resident_memory(bench: Bench) -> Iterator[Row]:
    """Resident memory of processes that have read a text."""
    tokens = 128 if bench.quick else 2064
    found = {kind: run_child(bench, kind, tokens)[1] for kind in ("memory", "plain", "bare")}
    what = f"a process after {tokens:,} tokens, with memory"
    for peer, name in (("plain", "session without memory"), ("bare", "bare loop")):
        yield Row("resident", what, found["memory"], found[peer], "bytes", name, MOST_RESIDENT)


def start(bench: Bench) -> Iterator[Row]:
    """From nothing to the first token."""
    times = dict.fromkeys(("memory", "plain", "bare"), math.inf)
    for _ in range(1 if bench.quick else 4):
        for kind in times:
            times[kind] = min(times[kind], run_child(bench, kind, 1)[0])
    for peer, name in (("plain", "session without memory"), ("bare", "bare loop")):
        yield Row("start", "a process up to its first token, with memory", times["memory"], times[peer], "s", name,
                  MOST_START)  # fmt: skip


# --- busy neighbours -------------------------------------------------------------------------------------


def work(kind: str, model: str, changes: list[str]) -> None:
    """Be a process that works on command: generate tokens, learn tokens, or let a memory learn chunks."""
    call: Callable[[], int]
    if kind == "generate":
        bare, count = Bare(model, n_ctx=512), 4

        def generate() -> int:
            nonlocal count
            if count % 256 == 4:  # from the same prompt again, so that a token costs the same throughout
                bare.forget()
                bare.read(list(range(5, 37)))
            bare.generate(4)
            count += 4
            return 4

        call = generate
    elif kind == "learn":
        session = AtlasSession(model, settings_of(model, changes), engine_options={"n_ctx": 512})
        rng = np.random.default_rng(5)

        def learn_some() -> int:
            tokens = rng.integers(300, session.engine.info.n_vocab, 32).tolist()
            session.feed(tokens)
            return len(tokens)

        call = learn_some
    else:
        step = learner(MemoryBench("numpy", quick=True), 1)

        def one_step() -> int:
            step()
            return 1

        call = one_step
    answer(call)


def neighbours(bench: Bench) -> Iterator[Row]:
    """With a busy process on every processor: threads as they wait here, and as OpenMP lets them spin by itself."""
    brief: dict[str, str | None] = dict.fromkeys(VARIABLES)
    spinning = {**brief, "GOMP_SPINCOUNT": "300000"}
    rounds = 2 if bench.quick else 9
    for kind, model, what, seconds in (
        ("generate", str(SAMPLE), "a generated token, sample model", 0.5),
        ("generate", bench.path, "a generated token", 1.5),
        ("learn", str(SAMPLE), "a learned token, sample model", 0.5),
    ):
        arguments = ["--work", kind, "--model", model]
        ours, theirs = in_company(
            Path(__file__), arguments, [brief, spinning], seconds=seconds, rounds=rounds
        )
        yield Row(
            "neighbours", f"{what}, alone", ours[0], theirs[0], "s", "threads that spin", LEAST_QUIET, True
        )
        yield Row("neighbours", f"{what}, busy neighbours", ours[1], ours[0], "s", "alone", LEAST_BUSY, True)
        yield Row(
            "neighbours", f"{what}, busy neighbours, spinning", theirs[1], theirs[0], "s", "alone", 0, True
        )
    one, all_ = (
        {"OPENBLAS_NUM_THREADS": str(count), "OMP_NUM_THREADS": str(count)} for count in (1, THREADS)
    )
    single, several = in_company(Path(__file__), ["--work", "step"], [one, all_], seconds=0.5, rounds=rounds)
    what, peer = "a step of the memory, one BLAS thread", f"{THREADS} BLAS threads"
    yield Row("neighbours", f"{what}, alone", single[0], several[0], "s", peer, 0, True)
    yield Row("neighbours", f"{what}, busy neighbours", single[1], single[0], "s", "alone", LEAST_BUSY, True)
    yield Row("neighbours", f"a step, {peer}, busy neighbours", several[1], several[0], "s", "alone", 0, True)


# --- long streams, files ---------------------------------------------------------------------------------


def length(bench: Bench) -> Iterator[Row]:
    """Time and memory per token along a stream: random outputs of a small model, read again and again."""
    total, call, n_vocab, n_embd = (16_000 if bench.quick else 128_000), 500, 1024, 128
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((n_vocab, n_embd), np.float32) / np.float32(math.sqrt(n_embd))
    memory = TokenMemory(
        OutputRows(lambda tokens: matrix[tokens], n_vocab, n_embd),
        AtlasSettings(window_size=512, memory_dim=32, candidates=64),
    )
    hidden = rng.standard_normal((call + 1, n_embd), np.float32) * 3
    logits, tokens = hidden @ matrix.T, rng.integers(0, n_vocab, call + 1)
    times, processes, sizes = [], [], []
    for _ in range(total // call):
        began = time.perf_counter()
        for _ in memory.follow(hidden, logits, tokens, tokens[1:]):
            pass
        times.append((time.perf_counter() - began) / call)
        processes.append(resident())
        sizes.append(memory.state_bytes)
    early = 1000 // call
    part = len(times) // 8
    first, last = min(times[early : early + part]), min(times[-part:])
    slope = np.polyfit(np.arange(len(times))[early:] * call / 1000, np.array(times[early:]) * 1e6, 1)[0]
    where = f"around token {total:,}"
    against = f"around token 1,000; slope {slope:+.3f} us per 1,000 tokens"
    yield Row("length", f"the memory's time for a token {where}", last, first, "s", against, 1.1)
    yield Row("length", f"bytes of the process {where}", processes[-1], processes[early], "bytes",
              "around token 1,000", 1.02)  # fmt: skip
    yield Row(
        "length", f"bytes of the memory {where}", sizes[-1], sizes[early], "bytes", "around token 1,000", 1.0
    )


def files(bench: Bench) -> Iterator[Row]:
    """Saving and loading: for information."""
    session = bench.remembering
    if not session.context_tokens:
        session.feed(bench.tokens(64))
    with tempfile.TemporaryDirectory() as folder:
        for context in (False, True):
            path = Path(folder) / f"{context}.atlas"
            begun = time.perf_counter()
            session.save(path, context=context)
            saved = time.perf_counter()
            session.load(path, context=context)
            loaded = time.perf_counter()
            raw = np.random.default_rng(4).bytes(path.stat().st_size)
            written = time.perf_counter()
            (Path(folder) / "raw").write_bytes(raw)
            plain = time.perf_counter() - written
            what = f"a memory of {path.stat().st_size / 1e6:.1f} MB{', with its context' * context}"
            yield Row("files", f"save {what}", saved - begun, plain, "s", "writing as many bytes", FREE)
            yield Row("files", f"load {what}", loaded - saved, plain, "s", "writing as many bytes", FREE)


GROUPS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "start": start,
    "resident": resident_memory,
    "length": length,
    "off": off,
    "decode": decode,
    "learn": learn,
    "files": files,
    "neighbours": neighbours,
}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--quick", action="store_true", help="fewer rounds and tokens")
    found.add_argument("--json", action="store_true", help="print the results as JSON")
    found.add_argument("--only", action="append", choices=sorted(GROUPS), help="this group (more than once)")
    found.add_argument("--model", metavar="FILE", help="a GGUF model (one of a billion random weights)")
    found.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting that differs"
    )
    found.add_argument(
        "--save",
        nargs="?",
        const="",
        metavar="NAME",
        help="also write tools/bench/results/NAME.json (runtime-cpu)",
    )
    found.add_argument("--child", choices=("bare", "plain", "memory"), help=argparse.SUPPRESS)
    found.add_argument("--work", choices=("generate", "learn", "step"), help=argparse.SUPPRESS)
    found.add_argument("--tokens", type=int, default=1, help=argparse.SUPPRESS)
    return found


def measure(options: argparse.Namespace, model: str) -> int:
    """Run the groups that were asked for."""
    bench = Bench(model, options.quick, options.set)
    about = machine_of("numpy", options.quick) | {
        "threads": THREADS, "settings": bench.settings.to_json(), "load": os.getloadavg()[0],
    }  # fmt: skip
    if not options.json:
        print(f"{about['processor']}, {THREADS} threads, load {about['load']:.1f}; {bench.settings}\n")
    return keep(measured(GROUPS, bench, options), about, options, "runtime-cpu")


def main() -> int:
    """Measure, or be one of the processes that are measured."""
    options = parser().parse_args()
    if options.work:
        work(options.work, options.model, options.set)
        return 0
    if options.child:
        child(options.child, options.model, options.tokens, options.set)
    if options.model:
        return measure(options, options.model)
    from tools.make_random_model import make_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "billion.gguf"
        make_model(path, "llama", size="1b", type="q4_0")
        return measure(options, str(path))


if __name__ == "__main__":
    raise SystemExit(main())
