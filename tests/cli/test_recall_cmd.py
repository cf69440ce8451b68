"""``recall``: the table, JSON, and what can be wrong."""

from __future__ import annotations

import json

import pytest

from atlas_kit.llama import FakeEngine

pytest_plugins = ["model_fixtures"]


@pytest.fixture
def recall(run_cli, fake, tmp_path):
    """Run the command on the fake model with few facts, nearby."""

    def run(*arguments):
        return run_cli("recall", tmp_path / "model.gguf", "--facts", "3", "--distances", "40,150", *arguments)

    fake["n_embd"] = 64
    return run


@pytest.mark.slow
def test_the_table(recall):
    result = recall("--template", "Call {name} {value}.")
    assert result.exit_code == 0, result.stderr
    for words in (
        "distance",
        "model alone",
        "with memory",
        "chance: 0.01%",
        "33.3%",
        "context of 512 tokens",
    ):
        assert words in result.stdout
    assert "such as: Call" in result.stdout
    assert result.stderr == ""


@pytest.mark.slow
def test_json(recall):
    document = json.loads(recall("--json", "--window-size", "100", "--seed", "5").stdout)
    assert document["seed"] == 5
    assert [row["distance"] for row in document["results"]] == [40, 150]
    assert all(row["facts"] == 3 for row in document["results"])
    assert {"accuracy", "accuracy_model", "nats", "nats_model"} <= set(document["results"][0])
    assert document["memory"]["settings"]["window_size"] == 100
    assert document["chance_planted"] == 1 / 3


@pytest.mark.slow
def test_filler_from_a_file(recall, tmp_path):
    filler = tmp_path / "filler.txt"
    filler.write_text("Some words that bury a fact.\n" * 100)
    document = json.loads(recall("--filler", filler, "--json").stdout)
    assert document["filler"] == "given"


@pytest.mark.slow
def test_a_shorter_context_can_be_asked_for(recall):
    document = json.loads(recall("--n-ctx", "160", "--json").stdout)
    assert document["n_ctx"] == 160
    assert [row["reach"] for row in document["results"]] == ["context", "window"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--facts", "0"], "facts"),
        (["--distances", "1,x"], "not a list of whole numbers"),
        (["--distances", "0"], "distance"),
        (["--template", "{name}"], "{value}"),
        (["--filler", "no.txt"], "no such file"),
        (["--filler", __file__, "--distances", "1000000"], "are needed"),
    ],
)
def test_misuse_is_said_in_a_sentence(recall, arguments, words):
    result = recall(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_ctrl_c_shows_what_is_known_so_far(recall, fake):
    import os
    import signal

    class Signalling(FakeEngine):
        calls = 0

        def decode(self, feeds, *, hidden=False):
            self.calls += 1
            if self.calls == 60:
                os.kill(os.getpid(), signal.SIGINT)
            return super().decode(feeds, hidden=hidden)

    fake["engine"] = Signalling(n_ctx=512, n_embd=64)
    result = recall("--json")
    assert result.exit_code == 130
    assert json.loads(result.stdout)["interrupted"] is True


def test_a_real_model(tiny_model, run_cli):
    result = run_cli(
        "recall", tiny_model, "--facts", "2", "--distances", "64,600", "--threads", "1", "--json"
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["results"][1]["nats"] < document["results"][1]["nats_model"]
