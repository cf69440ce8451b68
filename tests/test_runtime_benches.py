"""The benches of the runtime: their groups, their settings, and the memories that they feed; not their figures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from atlas_kit.llama import AtlasSession, FakeEngine
from atlas_kit.llama.token_memory import TokenMemory
from atlas_kit.settings.atlas_settings import AtlasSettings, settings_table
from tools.bench import memory, runtime, settings_sweep
from tools.bench.formats import Row

TEXT = "to be or not to be, that is the question: " * 8


def test_every_group_can_be_chosen():
    for name in runtime.GROUPS:
        assert runtime.parser().parse_args(["--only", name, "--quick"]).only == [name]
    with pytest.raises(SystemExit):
        runtime.parser().parse_args(["--only", "nothing"])


@pytest.mark.slow
def test_turns_are_taken_and_the_first_round_does_not_count():
    bench = runtime.Bench.__new__(runtime.Bench)
    bench.quick, calls = False, []
    times = bench.best(lambda: calls.append("a"), lambda: calls.append("b"), rounds=3)
    assert calls == ["a", "b"] * 4
    assert len(times) == 2
    assert all(0 <= time < 1 for time in times)


def test_rows_become_json():
    rows = [
        Row("decode", "a token", 2.0, 1.0, "s", "peer", 0.85, True),
        Row("x", "y", 1, 1, "s", "p", runtime.FREE),
    ]
    first, second = json.loads(json.dumps(memory.table_of(rows)))
    assert (first["ratio"], first["ok"], first["limit"]) == (0.5, False, 0.85)
    assert (second["ok"], second["limit"]) == (True, None)


def test_a_filled_window_is_looked_up():
    with FakeEngine() as engine:
        memory = TokenMemory(engine.output_rows(), AtlasSettings(window_size=40, chunk_size=16))
        # the fake engine has fewer tokens than the range that the bench draws from
        memory.rows.n_vocab, n_vocab = 1000, memory.rows.n_vocab
        runtime.fill(memory, np.random.default_rng(0))
        memory.rows.n_vocab = n_vocab
        keys, tokens = memory.memory.remembered(memory.state)
        assert len(tokens) == 32
        assert (tokens >= 300).all()
        np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1, rtol=1e-3)


def test_each_variant_differs_in_what_its_name_says():
    base = AtlasSettings()
    found = settings_sweep.variants(base, None)
    assert found[0] == ("recommended", base)
    assert len({name for name, _ in found}) == len(found)
    for name, settings in found[1:]:
        changed = {key for key, value in settings.to_json().items() if value != base.to_json()[key]}
        assert changed == {part.split()[0] for part in name.split(", ")}
    assert [name for name, _ in settings_sweep.variants(base, ["ranking"])] == [
        "recommended",
        "ranking False",
    ]


def test_the_sweep_knows_all_settings_but_those_that_depend_on_use():
    # what is read again for a question changes no prediction
    left_out = {"warmup_tokens", "blend_ratio", "episode_tokens", "recall", "recall_segments", "recall_gate"}
    assert set(settings_sweep.VALUES) == {row.name for row in settings_table()} - left_out


def test_a_listener_pays_what_a_session_pays():
    settings = AtlasSettings(window_size=64, memory_dim=8)
    with FakeEngine() as engine:
        tokens = engine.tokenize(TEXT)
        listener = settings_sweep.Listener(TokenMemory(engine.output_rows(), settings))
        with AtlasSession(engine, None) as session:
            session.run(session.reading([*engine.begin, *tokens], listen=listener.listen))
        with AtlasSession(engine, settings) as session:
            fed = session.feed(TEXT)
    np.testing.assert_allclose(np.concatenate(listener.nats), -fed.logprob[:, 1], rtol=1e-6)
