"""Models that the commands run on: the fake one in place of llama.cpp, and a tiny real one with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_kit.llama import FakeEngine


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Put the fake engine in llama.cpp's place; what is in the dictionary goes to it."""
    options: dict[str, object] = {}

    def open_fake(path: str, **given: object) -> FakeEngine:
        known = {name: value for name, value in given.items() if name == "n_ctx"}
        engine = options.pop("engine", None) or FakeEngine(**{**known, **options})
        assert isinstance(engine, FakeEngine)
        return engine

    monkeypatch.setattr("atlas_kit.llama.loading.open_engine", open_fake)
    return options


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny Llama with random weights, a chat template and control tokens."""
    pytest.importorskip("llama_cpp")
    from tools.make_random_model import make_model

    return make_model(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama", size="tiny")
