"""``atlas-tool serve``: its options, and what it refuses before it listens."""

from __future__ import annotations

import json
import socket

import pytest

from atlas_kit.cli import serve_cmd
from atlas_kit.server.config import table


@pytest.fixture
def served(monkeypatch):
    """Return the configurations that the command would have served."""
    found = []
    monkeypatch.setattr("atlas_kit.server.loading.Loading", lambda config: None)  # no such model is there
    monkeypatch.setattr("atlas_kit.server.run.serve", lambda config, *, loading: found.append(config))
    for row in table():
        for variable in row.variables:
            monkeypatch.delenv(variable, raising=False)
    return found


def test_a_command_line_of_llama_server(run_cli, served):
    line = "-m m.gguf -c 4096 -np 2 -ngl 99 -t 3 -b 256 --host 0.0.0.0 --port 9 --api-key k --alias a"
    line += " --jinja --metrics --slots"
    assert run_cli("serve", *line.split()).exit_code == 0
    (config,) = served
    assert (config.model, config.n_ctx, config.n_parallel, config.n_gpu_layers) == ("m.gguf", 4096, 2, 99)
    assert (config.n_threads, config.n_batch, config.host, config.port) == (3, 256, "0.0.0.0", 9)
    assert (config.keys, config.alias) == (("k",), "a")


def test_the_seeds_spellings(run_cli, served):
    line = "--atlas --atlas-file s.atlas --atlas-no-auto-save --atlas-memory-backup-count 5 --atlas-no-load-window"
    line += " --atlas-window 2048 --atlas-blend 0.7 --atlas-polynomial 3 --atlas-memory-dim 32 --atlas-muon"
    assert run_cli("serve", "m.gguf", *line.split()).exit_code == 0
    (config,) = served
    assert config.model == "m.gguf"
    assert (config.atlas_memory_file, config.atlas_auto_save, config.atlas_memory_backup_count) == (
        "s.atlas",
        False,
        5,
    )
    assert not config.atlas_load_window
    assert config.changes == {
        "window_size": 2048,
        "blend_ratio": 0.7,
        "polynomial_degree": 3,
        "memory_dim": 32,
        "use_muon": True,
    }


def test_keys_may_be_repeated(run_cli, served):
    assert run_cli("serve", "m", "--api-key", "a", "--api-key", "b").exit_code == 0
    assert served[0].keys == ("a", "b")


def test_environment_and_file(run_cli, served, monkeypatch, tmp_path):
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"model": "file.gguf", "port": 1}))
    monkeypatch.setenv("LLAMA_ARG_PORT", "2")
    assert run_cli("serve", "--config", str(file)).exit_code == 0
    assert (served[0].model, served[0].port) == ("file.gguf", 2)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "no model is named"),
        ("m --port 65536", "port is 65536"),
        ("m --log-format xml", "log-format"),
        ("m --config none.json", "none.json"),
        ("m --atlas-blend 2", None),
    ],
)
def test_what_is_refused(run_cli, line, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_cli("serve", *line.split())
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) <= 4
    assert said is None or said in result.stderr


@pytest.mark.model
def test_a_port_that_is_taken(run_cli, samples):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_cli("serve", "-m", str(samples / "models/tiny-python.gguf"), "--port", str(port))
    assert result.exit_code == 2
    assert f"port {port}" in result.stderr


def test_short_names_have_one_dash():
    assert [serve_cmd._dashed(word) for word in ("m", "np", "ngl", "cram", "port", "no-x")] == [
        "-m",
        "-np",
        "-ngl",
        "-cram",
        "--port",
        "--no-x",
    ]
