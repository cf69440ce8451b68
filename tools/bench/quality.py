"""What a memory is worth on text that the sample model has never read: perplexity against its rivals, in one pass each.

    python tools/bench/quality.py [--save] [--quick] [--threads N]
    python tools/bench/quality.py --model GGUF --text FILE... [--n-ctx 8192] [--limit 24576] [--set NAME=JSON]...
        [--threads N] [--save-as NAME]

All memories read the same states and logits (``atlas_kit.operations.perplexity``), each document starts with an empty
one, and what counts are the tokens from 4,096 on. ``knn`` is the whole history with full states and the same gate, and
grows without bound; ``atlas`` keeps at most 4 MB, window included. Exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT)]

from atlas_kit.llama import AtlasSession, Sampling  # noqa: E402
from atlas_kit.llama.llama_engine import LlamaEngine  # noqa: E402
from atlas_kit.llama.session_states import new_memory  # noqa: E402
from atlas_kit.operations.perplexity import Comparison, Rival, compare  # noqa: E402
from atlas_kit.settings.atlas_settings import AtlasSettings  # noqa: E402
from atlas_kit.settings.recommend import recommend  # noqa: E402
from tools.bench.memory import processor  # noqa: E402

MODEL = ROOT / "sample_data" / "models" / "tiny-python.gguf"
DOCUMENTS = ROOT / "sample_data" / "documents"
CODE = ("argparse.py", "tarfile.py", "statistics.py", "optparse.py")
ENGLISH = ("english.txt",)
RESULTS = Path(__file__).resolve().parent / "results" / "quality.json"
AFTER = 4096
BUDGET = 4_000_000
KINDS = ("none", "window", "knn-fixed", "knn", "omega", "atlas")

missed: list[str] = []


def row(what: str, value: str, limit: str = "", holds: bool = True) -> None:
    """Print a row, and remember a limit that is missed."""
    print(f"{what:76} {value:>22}   {limit}{'' if holds else '  MISSED'}", flush=True)
    if not holds:
        missed.append(what)


def read(names: tuple[str, ...], folder: Path = DOCUMENTS) -> list[tuple[str, str]]:
    """Return (name, text) of documents."""
    return [(name, (folder / name).read_text(encoding="utf-8")) for name in names]


def nats(result: Comparison, kind: str) -> float:
    """Mean loss from ``AFTER`` on."""
    value = result.results[kind].perplexity_after
    assert value is not None
    return math.log(value)


def against_rivals(
    engine: LlamaEngine, names: tuple[str, ...], settings: AtlasSettings, limit: int | None
) -> dict[str, Any]:
    """Compare the memory at its full size with all rivals."""
    started = time.perf_counter()
    found = compare(engine, read(names), KINDS, settings=settings, after=AFTER, limit=limit)
    print(
        f"\n{', '.join(names)}: {found.tokens:,} tokens, {found.scored_after:,} from {AFTER:,} on", flush=True
    )
    for kind, score in found.results.items():
        weight = "" if score.weight is None else f" (weight {score.weight:g})"
        print(
            f"  {kind + weight:24} {score.perplexity:8.2f} {score.perplexity_after:8.2f}"
            f"  {score.state_bytes / 1e6:7.2f} MB"
            f"  {score.seconds:6.1f} s"
        )
    state = found.results["atlas"].state_bytes
    none, atlas, knn = (nats(found, kind) for kind in ("none", "atlas", "knn"))
    lower = 1 - math.exp(atlas - none)
    english = names == ENGLISH
    name = "English" if english else "Python"
    bound = "" if english else "limit >= 40 %"
    row(f"{name}: perplexity below the model's own", f"{lower:.1%}", bound, english or lower >= 0.40)
    row(f"{name}: everything that the memory keeps", f"{state:,} bytes", f"limit {BUDGET:,}", state <= BUDGET)
    fixed = nats(found, "knn-fixed")
    row(
        f"{name}: nats against kNN-LM, one weight",
        f"{atlas - fixed:+.4f}",
        "limit <= 0",
        english or atlas <= fixed,
    )
    share = (none - atlas) / (none - knn)
    row(
        f"{name}: share of the gain of kNN-LM with the same gate",
        f"{share:.1%}",
        "limit >= 90 %",
        english or share >= 0.9,
    )
    print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)
    return {**found.to_json(), "lower": lower, "share": share, "against_fixed": atlas - fixed}


def of_the_learned_part(
    engine: LlamaEngine, names: tuple[str, ...], settings: AtlasSettings, limit: int | None
) -> dict[str, Any]:
    """Say what the learned memory adds to a window of 1,024."""
    found = compare(
        engine, read(names), ("none", "window", "atlas"), settings=settings.replace(window_size=1024), after=AFTER,
        limit=limit,
    )  # fmt: skip
    gain = nats(found, "window") - nats(found, "atlas")
    kind = "English" if names == ENGLISH else "Python"
    row(f"{kind}: what the learned memory adds to a window of 1,024, nats", f"{gain:.4f}", "limit >= 0.08",
        names == ENGLISH or gain >= 0.08)  # fmt: skip
    return {**found.to_json(), "gain": gain}


def of_candidates(
    engine: LlamaEngine, names: tuple[str, ...], settings: AtlasSettings, limit: int | None
) -> dict[str, Any]:
    """Compare the default number of candidates with the exact form, with the window and for the learned part alone."""
    losses = {}
    for count in (0, settings.candidates, 64):
        found = compare(
            engine,
            read(names),
            ("omega", "atlas"),
            settings=settings.replace(candidates=count),
            after=AFTER,
            limit=limit,
        )
        losses[str(count)] = {kind: found.results[kind].perplexity for kind in ("omega", "atlas")}
    exact, ours = losses["0"], losses[str(settings.candidates)]
    for kind in ("atlas", "omega"):
        worse = ours[kind] / exact[kind] - 1
        what = f"{kind}: perplexity of {settings.candidates} candidates against all {engine.info.n_vocab:,} tokens"
        row(what, f"{worse:+.2%}",
            "limit <= 1 %", worse <= 0.01)  # fmt: skip
    return losses


def of_stopping(
    model: str, settings: AtlasSettings, limit: int | None, threads: int | None
) -> dict[str, Any]:
    """Learn the first half, save, load in a new process, read the second half without learning."""
    ((_, text),) = read(("statistics.py",))
    with tempfile.TemporaryDirectory() as folder, LlamaEngine(model, n_threads=threads) as engine:
        tokens = engine.tokenize(text)[:limit]
        half = len(tokens) // 2
        path = str(Path(folder) / "half.atlas")
        with AtlasSession(engine, settings) as session:
            session.feed(tokens[:half])
            session.save(path)
            here = [t.id for t in session.generate(max_tokens=32, sampling=Sampling(seed=1))]
        with AtlasSession(engine, settings) as session:
            session.feed(tokens[:half])
            going_on = session.feed(tokens[half:]).perplexity
        with AtlasSession(engine, settings) as session:
            session.feed(tokens[:half])
            session.learns = False
            same_process = session.feed(tokens[half:]).perplexity
        with AtlasSession(engine, None) as session:
            alone = session.feed(tokens).logprob[half:, 1]
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            there, read_only, learning = pool.apply(_elsewhere, (model, path, tokens[half:], threads))
    none = math.exp(-alone.mean())
    row("saved, loaded anew, read-only: against read-only without stopping", f"{read_only / same_process - 1:+.3%}",
        "limit 2 %", abs(read_only / same_process - 1) <= 0.02)  # fmt: skip
    row("saved, loaded anew, learning on: against never having stopped", f"{learning / going_on - 1:+.3%}",
        "limit 2 %", abs(learning / going_on - 1) <= 0.02)  # fmt: skip
    row(
        "read-only against learning on (what not learning the second half costs)",
        f"{read_only / going_on - 1:+.1%}",
    )
    row(
        "save, load, generate: the same 32 tokens as going on",
        str(here == there),
        "limit True",
        here == there,
    )
    return {
        "none": none, "going_on": going_on, "read_only_same_process": same_process, "read_only_new_process": read_only,
        "learning_new_process": learning, "same_tokens": here == there,
    }  # fmt: skip


def _elsewhere(model: str, path: str, rest: list[int], threads: int | None) -> tuple[list[int], float, float]:
    """Do in a new process what comes after saving."""
    with LlamaEngine(model, n_threads=threads) as engine:
        with AtlasSession(engine, path) as session:
            session.load(path)
            tokens = [t.id for t in session.generate(max_tokens=32, sampling=Sampling(seed=1))]
        found = []
        for learn in (False, True):
            with AtlasSession(engine, path, learn=learn) as session:
                session.load(path)
                found.append(session.feed(rest).perplexity)
    return tokens, found[0], found[1]


#: Tokens of a stretch on which no memory may be worse than the model alone by more than this, in nats per token.
STRETCH, WORST = 1000, 0.005
#: What the recommended memory must gain over the one that was recommended before, in nats per token, and what it may
#: take: bytes, and time against that one's.
MORE, LARGEST, SLOWER = 0.05, 16_000_000, 1.2
#: Tokens between two looks at what was found so far.
OFTEN = 2048


class Timed(Rival):
    """A rival that also counts its own time on the processor, which others on a busy machine do not lengthen."""

    busy = 0.0

    def listen(self, *outputs: Any) -> None:
        """Read what followed some tokens."""
        began = time.thread_time()
        super().listen(*outputs)
        self.busy += time.thread_time() - began


def of_texts(
    model: str, paths: list[str], n_ctx: int | None, limit: int | None, changes: list[str], threads: int | None,
    results: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """Say what the recommended memory, and what was recommended before, gain on texts beyond the model's context.

    ``final`` is the recommended one on final states, where it looks at those of a middle layer. What is found is
    written to ``results`` every ``OFTEN`` tokens, beside the texts that are there.
    """
    chosen = recommend(model).settings.replace(
        **{name: json.loads(value) for name, _, value in (one.partition("=") for one in changes)}
    )
    memories = {
        "none": None,
        "polynomial": chosen.replace(
            features="polynomial", candidates=256, states="final", chunk_size=16, likeness="cosine"
        ),
        **({"final": chosen.replace(states="final")} if chosen.looks_inside else {}),
        "atlas": chosen,
    }
    found: dict[str, Any] = {"texts": {}}
    if results is not None and results.exists():
        found = json.loads(results.read_text(encoding="utf-8"))
    with LlamaEngine(model, n_ctx=n_ctx, n_threads=threads) as engine:
        found |= {"model": engine.info.name, "file": Path(model).name}
        for path in paths:
            tokens = engine.tokenize(Path(path).read_text(encoding="utf-8"))[:limit]
            rivals = {
                name: Timed(name, None if one is None else new_memory(engine, one))
                for name, one in memories.items()
            }
            read, name = 0, Path(path).stem

            def listen(*outputs: Any, rivals: dict[str, Timed] = rivals, name: str = name) -> None:
                nonlocal read
                for rival in rivals.values():
                    rival.listen(*outputs)
                before, read = read, read + len(outputs[-1])
                if results is not None and before // OFTEN < read // OFTEN:
                    found["texts"][name] = _of_text(rivals, engine.n_ctx)
                    _write(found, results)

            with AtlasSession(engine, None) as session:
                session.run(session.reading([*engine.begin, *tokens], listen=listen))
            text = found["texts"][name] = _of_text(rivals, engine.n_ctx)
            _print(path, text)
            if results is not None:
                _write(found, results)
    return found


def _of_text(rivals: dict[str, Timed], after: int) -> dict[str, Any]:
    """Return what memories gain on a text that is read, or on its beginning."""
    losses = {name: -np.log(rival.found[:, 3]) for name, rival in rivals.items()}
    count = len(losses["none"])
    found: dict[str, Any] = {
        "tokens": count, "n_ctx": after, "date": time.strftime("%Y-%m-%d"), "processor": processor(), "memories": {},
    }  # fmt: skip
    for name, rival in rivals.items():
        gain = losses["none"] - losses[name]
        late = slice(after, None) if count > after else slice(0, 0)
        found["memories"][name] = {
            "perplexity_after": math.exp(losses[name][late].mean()) if count > after else None,
            "gain": float(gain[late].mean()) if count > after else None,
            "stretches": [
                float(gain[at : at + STRETCH].mean()) for at in range(0, count - STRETCH + 1, STRETCH)
            ],
            "state_bytes": 0 if rival.memory is None else rival.memory.state_bytes,
            "seconds": rival.busy / count,
            "states": None if rival.memory is None else rival.memory.settings.states,
        }
    return found


def _print(path: str, text: dict[str, Any]) -> None:
    print(f"\n{path}: {text['tokens']:,} tokens, context {text['n_ctx']:,}", flush=True)
    memories = text["memories"]
    for name, one in memories.items():
        if one["gain"] is not None:
            print(
                f"  {name:12} {one['perplexity_after']:8.3f}  {one['gain']:+.4f} nats"
                f"  {one['state_bytes'] / 1e6:6.2f} MB  {1e6 * one['seconds']:6.0f} us a token"
            )
    ours, earlier = memories["atlas"], memories["polynomial"]
    worst = min(ours["stretches"], default=0.0)
    what = "the worst of all stretches of 1,000 tokens, nats"
    row(what, f"{worst:+.4f}", f"limit >= -{WORST}", worst >= -WORST)
    if ours["gain"] is not None:
        more, longer = ours["gain"] - earlier["gain"], ours["seconds"] / earlier["seconds"]
        row("more than what was recommended before, nats", f"{more:+.4f}", f"limit >= {MORE}", more >= MORE)
        row("its time against that one's", f"{longer:.2f}", f"limit <= {SLOWER}", longer <= SLOWER)
    size = ours["state_bytes"]
    row("what it keeps", f"{size:,} bytes", f"limit {LARGEST:,}", size <= LARGEST)


def _write(found: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Measure, print, and save if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="6,000 tokens of one document each: minutes less, limits may be missed",
    )
    parser.add_argument("--text", nargs="+", default=[], help="texts to read instead of the sample documents")
    parser.add_argument("--n-ctx", type=int, help="with --text: the context; its own by default")
    parser.add_argument("--limit", type=int, help="with --text: tokens of each")
    parser.add_argument("--threads", type=int, help="threads of the model; its own choice by default")
    parser.add_argument(
        "--save-as", metavar="NAME", help="with --text: write quality-NAME.json beside the other results"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=JSON", help="with --text: another setting"
    )
    args = parser.parse_args()
    if args.text:
        results = RESULTS.with_name(f"quality-{args.save_as}.json") if args.save_as else None
        of_texts(args.model, args.text, args.n_ctx, args.limit, args.set, args.threads, results)
        return 1 if missed else 0
    settings = recommend(args.model).settings
    limit, code = (6000, CODE[2:3]) if args.quick else (None, CODE)
    print(f"settings: {settings.to_json()}")
    found: dict[str, Any] = {"settings": settings.to_json()}
    with LlamaEngine(args.model, n_threads=args.threads) as engine:
        found["model"] = engine.info.name
        found["python"] = against_rivals(engine, code, settings, limit)
        found["english"] = against_rivals(engine, ENGLISH, settings, limit)
        found["window_1024"] = of_the_learned_part(engine, code, settings, limit)
        found["window_1024_english"] = of_the_learned_part(engine, ENGLISH, settings, limit)
        found["candidates"] = of_candidates(
            engine, code[:1] if args.quick else ("optparse.py",), settings, limit
        )
    found["stopping"] = of_stopping(args.model, settings, limit, args.threads)
    found["machine"] = {
        "cpus": multiprocessing.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    if args.save:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"\n{len(missed)} limits missed" if missed else "\nall limits hold")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
