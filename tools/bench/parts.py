"""Where a generated token's processor time goes: sessions side by side in one process, no HTTP, part by part.

    python tools/bench/parts.py                            # the sample model; 1, 8 and 50 sessions with a memory
    python tools/bench/parts.py --sessions 8 --model FILE.gguf --threads 2
    python tools/bench/parts.py --prompt 700               # memories at work: whitened after 512 tokens
    python tools/bench/parts.py --off                      # without a memory
    python tools/bench/parts.py --whole                    # without looking into the parts, which costs some itself

Prompts, samplers and settings are those of ``tools/bench/server.py``. Times are of the processor, in microseconds for
each generated token: of the thread that has the sessions, of the one beside it, and of the whole process, in which
are llama.cpp's own threads. They mean something on a busy machine, too. Each part is without those inside it.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402

from atlas_kit.llama import (  # noqa: E402
    AtlasSession,
    Sampling,
    SessionPool,
    open_engine,
    reading_one,
    side_by_side,
    token_memory,
    whitened_reading,
)
from atlas_kit.llama.batch import Batches  # noqa: E402
from atlas_kit.llama.llama_engine import LlamaEngine  # noqa: E402
from atlas_kit.llama.llama_sampler import LlamaSampler  # noqa: E402
from atlas_kit.llama.output_matrix import OutputRows  # noqa: E402
from atlas_kit.llama.reading import Reading  # noqa: E402
from atlas_kit.llama.token_memory import TokenMemory  # noqa: E402
from atlas_kit.memory import Memory, WhitenedMemory, whitened  # noqa: E402
from atlas_kit.memory.learning import Learner  # noqa: E402

SAMPLE = ROOT / "sample_data" / "models" / "tiny-python.gguf"
TEXT = ROOT / "sample_data" / "documents" / "argparse.py"
PROMPT = 32
READINGS = (side_by_side, whitened_reading)

#: What is looked into: a name for each part, and the functions that are it (owner, attribute).
PARTS: dict[str, list[tuple[Any, str]]] = {
    "decode": [(LlamaEngine, "_decode")],
    "read: logits summarized": [*((module, "summarize") for module in READINGS), (reading_one, "summary")],
    "read: memory's answer": [
        (Memory, "read_each"),
        (WhitenedMemory, "read_each"),
        (WhitenedMemory, "read_one"),
    ],
    "read: candidates": [
        (TokenMemory, "candidates_of"),
        (whitened_reading, "likely_and_beside"),
        (reading_one, "likely_and_beside"),
    ],
    "read: their rows": [(OutputRows, "times"), (OutputRows, "gathered")],
    "read: their move": [(whitened_reading, "moved"), (reading_one, "_moved")],
    "read: window": [*((module, "look_up") for module in READINGS), (reading_one, "ranked")],
    "read: gate": [*((module, "gated") for module in READINGS), (TokenMemory, "weights_of_one")],
    "read: one token": [(token_memory, "read_side_by_side"), (token_memory, "read_few")],
    "read: the rest": [(Batches, "_read_ahead")],
    "blend": [(Reading, "log_probabilities"), (Reading, "likeliest")],
    "sample": [(LlamaSampler, "sample"), (LlamaSampler, "sample_among")],
    "learn: outcome": [(Reading, "outcome")],
    "learn: what is asked for": [(token_memory, "asked_for")],
    "learn: the rest": [(TokenMemory, "learn")],
    "commit: gate": [(TokenMemory, "_learn_blend")],
    "commit: rows": [(TokenMemory, "_readout")],
    "commit: update": [(Learner, "_step"), (WhitenedMemory, "step")],
    "commit: even": [(TokenMemory, "_even")],
    "commit: sample": [(WhitenedMemory, "_sample")],
    "beside: directions": [(whitened, "varying")],
    "commit: gradient": [(Learner, "chunk")],
    "commit: the rest": [(TokenMemory, "commit")],
    "steps": [(Batches, "step")],
}


class Parts:
    """Sums the processor time of parts, each without those inside it, by thread."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self.calls: dict[tuple[str, str], int] = defaultdict(int)
        self._inside = threading.local()

    def watch(self, name: str, owner: Any, attribute: str) -> None:
        """Let a function be part of what ``name`` takes."""
        setattr(owner, attribute, self._watched(name, getattr(owner, attribute)))

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            before, started = getattr(self._inside, "seconds", 0.0), time.thread_time()
            self._inside.seconds = 0.0
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.thread_time() - started
                key = threading.current_thread().name, name
                self.seconds[key] += whole - self._inside.seconds
                self.calls[key] += 1
                self._inside.seconds = before + whole

        return watched


def run(model: str, sessions: int, tokens: int, options: argparse.Namespace, parts: Parts | None) -> None:
    """Generate side by side, and print what a token took."""
    context = max(512, options.prompt + tokens + 8)
    engine = open_engine(model, n_ctx=context, n_sequences=sessions, n_threads=options.threads)
    text = engine.tokenize(TEXT.read_text(encoding="utf-8"))
    memory = None if options.off else True
    pairs = (pair.split("=", 1) for pair in options.set)
    changes: dict[str, Any] = {name: json.loads(value) for name, value in pairs}
    rng = np.random.default_rng(1)
    ends = dict.fromkeys(engine.end_tokens, -100.0)
    pool, jobs, opened = SessionPool(engine), [], []
    for seed in range(sessions):
        session = AtlasSession(engine, memory, **changes)
        at = int(rng.integers(len(text) - options.prompt))
        sampling = Sampling(seed=seed, logit_bias=ends)
        opened.append(session)
        jobs.append(
            pool.generate(session, text[at : at + options.prompt], max_tokens=tokens, sampling=sampling)
        )
    while any(len(job.tokens) < tokens // 4 for job in jobs):  # until windows hold something
        pool.step()
    if parts is not None:
        parts.seconds.clear()
        parts.calls.clear()
    before = sum(len(job.tokens) for job in jobs)
    start, thread, cpu = time.perf_counter(), time.thread_time(), time.process_time()
    pool.run()
    wall = time.perf_counter() - start
    thread, cpu = time.thread_time() - thread, time.process_time() - cpu
    count = sum(len(job.tokens) for job in jobs) - before
    each = {"wall": wall, "process": cpu, "the thread with the sessions": thread}
    told = ", ".join(f"{name} {seconds / count * 1e6:,.0f}" for name, seconds in each.items())
    print(f"{sessions} sessions, {count} tokens: {count / wall:,.0f} tokens/s; us a token: {told}")
    if parts is not None:
        for (where, name), seconds in sorted(parts.seconds.items(), key=lambda item: -item[1]):
            calls = parts.calls[where, name] / count
            print(f"  {where[:16]:16} {name:28} {seconds / count * 1e6:9.1f} us  {calls:6.2f} calls")
    said = hashlib.sha256(repr([[token.id for token in job.tokens] for job in jobs]).encode()).hexdigest()
    print(f"  what was said: {said[:16]}", flush=True)
    for session in opened:
        session.close()
    engine.close()


def main() -> None:
    """Parse the command line and measure."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--model", default=str(SAMPLE))
    found.add_argument("--sessions", type=int, action="append")
    found.add_argument("--tokens", type=int, default=128, help="of each session")
    found.add_argument("--prompt", type=int, default=PROMPT, help="tokens that each session reads first")
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--off", action="store_true", help="without a memory")
    found.add_argument("--whole", action="store_true", help="without the parts")
    found.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a memory's setting")
    options = found.parse_args()
    parts = None if options.whole else Parts()
    if parts is not None:
        for name, functions in PARTS.items():
            for owner, attribute in functions:
                parts.watch(name, owner, attribute)
    for sessions in options.sessions or (1, 8, 50):
        arguments = options.model, sessions, options.tokens, options, parts
        thread = threading.Thread(
            target=run, args=arguments, name="sessions"
        )  # as a server's is not the main one
        thread.start()
        thread.join()


if __name__ == "__main__":
    main()
