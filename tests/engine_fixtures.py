"""Engines to test with: the fake one, and llama.cpp with tiny models of random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.llama import FakeEngine

SIZES = {"n_ctx": 64, "n_batch": 32, "n_sequences": 2}


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that makes a model with random weights, once."""
    pytest.importorskip("gguf", reason="gguf is not installed")
    from tools.make_random_model import make_model

    folder, made = tmp_path_factory.mktemp("models"), {}

    def make(arch: str = "llama", type: str = "f16", **changes: Any) -> Path:
        key = (arch, type, *sorted(changes.items()))
        if key not in made:
            made[key] = make_model(folder / f"{arch}-{len(made)}.gguf", arch, type=type, **changes)
        return made[key]

    return make


@pytest.fixture
def real(random_model: Callable[..., Path]) -> Iterator[Callable[..., Any]]:
    """Return a function that opens llama.cpp with a tiny model."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from atlas_kit.llama.llama_engine import LlamaEngine

    opened = []

    def open_engine(
        arch: str = "llama", type: str = "f16", *, path: Path | None = None, **options: Any
    ) -> Any:
        engine = LlamaEngine(path or random_model(arch, type), **{**SIZES, "n_threads": 1, **options})
        opened.append(engine)
        return engine

    yield open_engine
    for engine in opened:
        engine.close()


@pytest.fixture(params=["fake", "llama"])
def open_engine(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return a function that opens either engine."""
    if request.param == "fake":
        return lambda **options: FakeEngine(**{**SIZES, **options})
    opened: Callable[..., Any] = request.getfixturevalue("real")
    return opened


@pytest.fixture
def engine(open_engine: Callable[..., Any]) -> Any:
    """Return either engine."""
    return open_engine()
