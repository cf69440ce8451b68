"""The promise of bits, checked for every kind of memory: run as a program, it prints what did not hold.

``tests/memory/test_bits.py`` runs it in processes of their own, because a BLAS library chooses its kernels when it is
loaded. The last line is JSON: the libraries in use, how many comparisons were made, and those that failed.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import numpy as np
from test_hostile import CONFIGS, D_K, D_V, Stream, bits

from atlas_kit.memory import (
    L2,
    CrossEntropy,
    DotProduct,
    Exponential,
    Features,
    Gate,
    GatedMLP,
    Identity,
    Matrix,
    Memory,
    MemoryConfig,
    MemoryState,
    Polynomial,
    RandomFourier,
    ResidualMLP,
    WinnerTakeAll,
    presets,
    snapshot,
)

BATCH = (2, 3)
ALONE = (0, 1), (1, 2)  #: sessions that are compared with themselves alone
MAPS = {
    "identity": Identity(),
    "polynomial": Polynomial(2),
    "cubic": Polynomial(3, constant=False),
    "random exponential": Exponential(features=48),
    "taylor": Exponential("taylor", degree=3),
    "fourier": RandomFourier(48),
    "winners": WinnerTakeAll(features=48, active=5, binary=False),
}
MODULES = {
    "matrix": Matrix(),
    "mlp": ResidualMLP(depth=3, width=20, activation="silu"),
    "gated": GatedMLP(width=20, activation="tanh"),
}
OBJECTIVES = {"l2": L2(), "dot": DotProduct(), "next token": CrossEntropy(softcap=30.0)}
#: What a step may consist of: one token, more than fit into a tile of the kernels, some.
STEPS: dict[str, dict[str, Any]] = {
    "token": {"chunk_size": 1, "omega_window": 16},
    "chunk": {"chunk_size": 13, "omega_window": 15, "step": "chunk"},
    "scan": {"chunk_size": 6, "theta": 0.5, "alpha": 0.99},
}
REST: dict[str, Any] = {"window_size": 21, "gate": Gate(), "eta": 0.02, "gamma": 0.9}


def memories() -> Iterator[tuple[str, MemoryConfig, int]]:
    """Yield names, configurations and numbers of tokens: each part with each step, all presets, sizes of all kinds."""
    for name, config in CONFIGS.items():
        yield name, config, 23
    for step, chunk in STEPS.items():
        settings, tokens = {**REST, **chunk}, 13 if step == "token" else 29
        for name, feature_map in MAPS.items():
            features = Features(map=feature_map, projection=8, centre=True, normalize=step == "chunk")
            yield f"{name}, {step}", MemoryConfig(D_K, D_V, features, warmup_tokens=9, **settings), tokens
        for (name, module), (aim, objective) in itertools.product(MODULES.items(), OBJECTIVES.items()):
            config = MemoryConfig(D_K, D_V, Features(map=Identity()), module, objective, **settings)
            yield f"{name}, {aim}, {step}", config, tokens
            if aim == "l2":
                yield f"{name}, {step}, Muon", config.replace(use_muon=True, guard=True), min(tokens, 14)
    for name, preset in presets.PRESETS.items():
        deep = {"module": MODULES["mlp"]} if name in ("titans", "omega_net", "atlas") else {}
        deep = {"module": MODULES["gated"]} if name == "atlas_pp" else deep
        for d_k, d_v in ((1, 1), (7, 3), (D_K, 16)):
            yield f"{name} of {d_k} x {d_v}", preset(d_k, d_v, **deep, eta=0.02, window_size=5), 13
        for dtype in ("float32", "float64"):
            config = preset(256, 96, **deep, eta=0.02, chunk_size=16, dtype=dtype)
            yield f"{name} of 256 x 96, {dtype}", _projected(config, 64 if not deep else 20), 35
    wide = MemoryConfig(2048, 256, Features(projection=64), chunk_size=16, omega_window=64, step="chunk")
    yield "wide", wide, 33
    yield "projected to one", MemoryConfig(37, 1, Features(projection=1), chunk_size=3), 19


def _projected(config: MemoryConfig, width: int) -> MemoryConfig:
    features = config.features
    return config.replace(
        features=Features(features.map, width, True, True, features.normalize), warmup_tokens=20
    )


def shifted(array: Any) -> Any:
    """Return a copy that begins one number behind where arrays usually begin."""
    room = np.empty(array.size + 1, array.dtype)
    room[1:] = array.ravel()
    return room[1:].reshape(array.shape)


def check(config: MemoryConfig, tokens: int) -> Iterator[tuple[str, bool]]:
    """Yield what was compared, and whether the bits were the same."""
    memory = Memory(config)
    stream = Stream(config, BATCH, tokens=tokens)
    stream.keys = stream.keys.astype(config.dtype)
    queries = stream.keys[..., ::-1, :].copy()
    start = memory.init(BATCH)
    whole = stream.feed(memory, start)
    for cuts in (range(tokens + 1), (0, 0, 1, 5, tokens - 4, tokens)):
        state = start
        for first, last in itertools.pairwise(cuts):
            state = stream.feed(memory, state, first, last)
        yield f"split at {cuts}", bits(state) == bits(whole)
    yield "donated", bits(stream.feed(memory, memory.init(BATCH), donate=True)) == bits(whole)
    middle = stream.feed(memory, memory.restore(snapshot(stream.feed(memory, start, 0, 5))), 5)
    yield "saved and restored", bits(middle) == bits(whole)
    lengths = np.array([[0, 3, 4], [11, tokens, 1]])
    ragged = stream.feed(memory, start, lengths=lengths)
    flushed, _ = memory.flush(whole, readout=stream.readout)
    flushed_ragged, _ = memory.flush(ragged, readout=stream.readout)
    targets = stream.fields.get("value", stream.fields)
    scanned, scan, _ = memory.scan(start, stream.keys, targets, queries, readout=stream.readout)
    yield "scan and flush", bits(scanned) == bits(flushed)
    reads = read(memory, whole, queries)
    for where in ALONE:
        one = Stream(config, BATCH, tokens=tokens)
        one.keys = shifted(stream.keys[where])
        one.fields = {name: shifted(field[where]) for name, field in one.fields.items()}
        alone = one.feed(memory, memory.init())
        yield f"session {where} alone", bits(alone) == bits(whole[where])
        short = one.feed(memory, memory.init(), 0, lengths[where])
        yield f"session {where} alone, short", bits(short) == bits(ragged[where])
        same = bits(memory.flush(short, readout=one.readout)[0]) == bits(flushed_ragged[where])
        yield f"session {where} alone, short, flushed", same
        _, y, _ = memory.scan(
            memory.init(),
            one.keys,
            one.fields.get("value", one.fields),
            shifted(queries[where]),
            readout=one.readout,
        )
        yield f"session {where} alone, scanned", y.tobytes() == scan[where].tobytes()
        for name, array in read(memory, alone, shifted(queries[where])).items():
            yield f"session {where} alone, {name}", array.tobytes() == reads[name][where].tobytes()
    project = memory.config.features.project
    constants = memory._learner.constants
    keys = project(stream.keys, constants)
    for t in range(tokens):
        one_key = project(shifted(stream.keys[1, 2, t : t + 1]), constants)
        yield f"key {t} alone", one_key.tobytes() == keys[1, 2, t : t + 1].tobytes()


def read(memory: Memory, state: MemoryState, queries: Any) -> dict[str, Any]:
    """Return everything that can be read from a state, and a step of its gate."""
    found = {"read": memory.read(state, queries)}
    if memory.config.window_size:
        cache = memory.lookup(state, queries)
        found |= {"weights": cache.weights, "similarity": cache.similarity}
        if memory.config.gate is not None:
            features = np.stack((cache.similarity, cache.similarity - 1, cache.similarity * 2), axis=-1)
            chance = np.stack((cache.weights[..., 0], cache.weights[..., 1]), axis=-1)
            learned, loss = memory.learn_blend(state, features, chance)
            found |= {"gate": learned.gate["w"], "loss of the blend": loss}
            found["blend"] = memory.blend(learned, features, chance)
    return found


def main() -> int:
    """Check all; print what did not hold, then the summary."""
    from threadpoolctl import threadpool_info

    failed, made = {}, 0
    for name, config, tokens in memories():
        for what, same in check(config, tokens):
            made += 1
            if not same:
                failed.setdefault(name, []).append(what)
    blas = [library for library in threadpool_info() if library["user_api"] == "blas"]
    print(json.dumps({"blas": blas, "compared": made, "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
