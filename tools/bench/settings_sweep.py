"""What each setting of a memory is worth: one at a time around the recommended ones, on text for choosing settings.

    python tools/bench/settings_sweep.py [--save] [--tokens 7000] [--only window_size] [--model FILE.gguf]

It backs the rule of ``atlas_kit.settings.recommend``. The documents are the "tune" ones of ``tools/held_out.py``, on
which nothing is ever reported. The model reads each once, and all memories listen; what counts is the loss from token
4,096 on. One process per document, as many at a time as there are processors, each with one thread.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import os
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT)]
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # read when NumPy is imported
    os.environ[_name] = "1"

import numpy as np  # noqa: E402

from atlas_kit.errors import AtlasError  # noqa: E402
from atlas_kit.llama import AtlasSession, open_engine  # noqa: E402
from atlas_kit.llama.session_states import new_memory  # noqa: E402
from atlas_kit.llama.token_memory import TokenMemory  # noqa: E402
from atlas_kit.settings.atlas_settings import AtlasSettings  # noqa: E402
from atlas_kit.settings.recommend import recommend  # noqa: E402
from tools.bench.memory import RESULTS, machine_of  # noqa: E402
from tools.held_out import HELD_OUT  # noqa: E402

MODEL = ROOT / "sample_data" / "models" / "tiny-python.gguf"
AFTER = 4096
Changes = dict[str, Any]

#: Setting -> what it is changed to; a mapping changes others with it.
VALUES: dict[str, tuple[Any, ...]] = {
    "window_size": (0, 256, 1024, 4096, 16384),
    "learning_rate": (0, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0),
    "polynomial_degree": (1, {"polynomial_degree": 3, "memory_dim": 16}),
    "memory_dim": (16, 32, 48, 96),
    "use_muon": ({"use_muon": True, "learning_rate": 0.003}, {"use_muon": True, "learning_rate": 0.03}),
    "omega_window": (16, 32, 128, 256),
    "chunk_size": (8, 32, 64),
    "candidates": (0, 32, 64, 128, 512),
    "features": ("polynomial", "sparse", "fourier"),
    "memory_rank": (64, 128, 256, 512),
    "even_steps": (0, 64, 512),
    "sharpness": (10.0, 20.0),
    "ranking": (False,),
    "states": ("final", "middle"),
    "likeness": ("cosine", "learned"),
}


def variants(base: AtlasSettings, only: list[str] | None) -> list[tuple[str, AtlasSettings]]:
    """Return (name, settings): the base, and all that differ from it in one setting."""
    found = [("recommended", base)]
    for name, values in VALUES.items():
        for value in values if not only or name in only else ():
            changes: Changes = value if isinstance(value, dict) else {name: value}
            settings = base.replace(**changes)
            if settings != base:
                found.append((", ".join(f"{key} {one}" for key, one in changes.items()), settings))
    return found


class Listener:
    """A memory that reads along, what the tokens cost it, and what it took."""

    def __init__(self, memory: TokenMemory | None) -> None:
        self.memory, self.seconds = memory, 0.0
        self.nats: list[np.ndarray[Any, Any]] = []

    def listen(self, hidden: Any, logits: Any, tokens: Any, following: Any) -> None:
        """Predict, count, learn."""
        began = time.perf_counter()
        if self.memory is not None:
            for reading, _, p in self.memory.follow(hidden, logits, tokens, following):
                self.nats.append(-np.log(np.maximum(reading.blended(p), 1e-300)))
        self.seconds += time.perf_counter() - began


def run(model: str, document: str, limit: int, only: list[str] | None) -> dict[str, dict[str, float]]:
    """Read one document with all memories; return for each the sum of its nats, how many tokens, bytes, seconds."""
    text = (Path(sysconfig.get_paths()["stdlib"]) / f"{document}.py").read_text(encoding="utf-8")
    with open_engine(model, n_threads=1) as engine:  # type: ignore[attr-defined]
        listeners = {
            name: Listener(new_memory(engine, settings))
            for name, settings in variants(recommend(model).settings, only)
        }
        tokens = engine.tokenize(text)[:limit]

        def listen(*outputs: Any) -> None:
            for listener in listeners.values():
                try:
                    listener.listen(*outputs)
                except AtlasError:  # it diverged: that is a result
                    listener.memory = None

        with AtlasSession(engine, None) as session:
            session.run(session.reading([*engine.begin, *tokens], listen=listen))
    found = {}
    for name, listener in listeners.items():
        late = np.concatenate(listener.nats)[AFTER:]
        size = math.inf if listener.memory is None else listener.memory.state_bytes
        found[name] = {
            "nats": float(late.sum()) if listener.memory is not None else math.inf,
            "count": len(late), "bytes": size, "seconds": listener.seconds / len(tokens),
        }  # fmt: skip
    return found


def main() -> int:
    """Sweep and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(MODEL), help="the sample model")
    parser.add_argument("--tokens", type=int, default=7000, help="tokens of each document at most")
    parser.add_argument(
        "--only", action="append", choices=sorted(VALUES), help="this setting (more than once)"
    )
    parser.add_argument("--document", action="append", choices=HELD_OUT["tune"], help="this document only")
    parser.add_argument(
        "--save", action="store_true", help="also write tools/bench/results/settings-sweep.json"
    )
    options = parser.parse_args()
    documents = options.document or list(HELD_OUT["tune"])
    base = recommend(options.model).settings
    print(f"{', '.join(documents)}: {options.tokens:,} tokens each at most, loss from {AFTER:,} on\n{base}\n")
    with concurrent.futures.ProcessPoolExecutor(
        len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn")
    ) as pool:
        jobs = [
            pool.submit(run, options.model, document, options.tokens, options.only) for document in documents
        ]
        runs = [job.result() for job in jobs]
    print(f"{'setting':44} {'nats':>8} {'against':>9} {'MB':>7} {'ms/token':>9}")
    table = []
    for name, settings in variants(base, options.only):
        parts = [one[name] for one in runs]
        row = {
            "name": name,
            "settings": settings.to_json(),
            "nats": sum(part["nats"] for part in parts) / max(1, sum(part["count"] for part in parts)),
            "state_bytes": max(part["bytes"] for part in parts),
            "seconds": sum(part["seconds"] for part in parts) / len(parts),
        }
        row["against"] = row["nats"] - (table[0]["nats"] if table else row["nats"])
        table.append(row)
        print(f"{name:44} {row['nats']:8.4f} {row['against']:+9.4f} {row['state_bytes'] / 1e6:7.2f} "
              f"{row['seconds'] * 1e3:9.3f}", flush=True)  # fmt: skip
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(machine_of("numpy", False) | {"documents": documents, "rows": table}, indent=1)
        (RESULTS / "settings-sweep.json").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
