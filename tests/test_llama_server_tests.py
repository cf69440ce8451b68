"""The tool that runs llama.cpp's own server tests: its list, its reading of reports, and its launcher."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tools import build_llama
from tools.llama_server_tests import (
    EXPECTED,
    FOLDER,
    LAUNCHER,
    MODELS,
    ROOT,
    Expected,
    compare,
    outcomes,
    pieces,
    prepare,
    read_list,
    run,
    table,
    write_list,
)

REPORT = """<testsuites><testsuite>
<testcase classname="unit.test_a" name="test_one"/>
<testcase classname="unit.test_a" name="test_two"><failure>no</failure></testcase>
<testcase classname="unit.test_a" name="test_three"><skipped/></testcase>
<testcase classname="unit.test_b" name="test_four[a-b]"><error>ended badly</error></testcase>
<testcase classname="unit.test_b" name="test_four[a-b]"/>
</testsuite></testsuites>"""


def test_the_list_gives_a_reason_for_each_test_that_fails():
    tests = read_list()
    assert sum(one.passes for one in tests.values()) > 100
    for name, one in tests.items():
        assert one.passes != bool(one.reason), name
        assert "not looked into" not in one.reason
        assert "not tried" not in one.reason
    head = EXPECTED.read_text(encoding="utf-8").splitlines()[1]
    assert f"{sum(one.passes for one in tests.values())} of {len(tests)} pass" in head


def test_a_list_is_read_as_it_was_written(tmp_path: Path):
    tests = {"a::b[# x]": Expected(True), "a::c[d e]": Expected(False, "it is otherwise")}
    write_list(tests, tmp_path / "list.txt")
    assert read_list(tmp_path / "list.txt") == tests
    assert read_list(tmp_path / "none.txt") == {}


def test_outcomes_and_what_is_otherwise_than_expected(tmp_path: Path):
    (tmp_path / "report.xml").write_text(REPORT, encoding="utf-8")
    found = outcomes(tmp_path / "report.xml")
    assert found == {
        "test_a::test_one": "passed", "test_a::test_two": "failed", "test_a::test_three": "skipped",
        "test_b::test_four[a-b]": "failed",
    }  # fmt: skip
    tests = {"test_a::test_one": Expected(False, "why"), "test_a::test_two": Expected(True)}
    assert compare(tests, found) == ["test_a::test_one passes now", "test_a::test_two failed"]
    assert compare({"test_a::test_one": Expected(True), "other": Expected(True)}, found) == []
    assert table(tests, found).splitlines()[-1].split() == ["all", "1", "2", "1", "1", "/", "2"]


@pytest.mark.parametrize(
    ("given", "model"),
    [
        (["--hf-repo", "ggml-org/models", "--hf-file", "tinyllamas/stories260K.gguf"], "stories.gguf"),
        (["--hf-repo", "ggml-org/tinygemma3-GGUF:Q8_0"], "stories.gguf"),
        (["--hf-repo", "ggml-org/test-model-stories260K-infill"], "infill.gguf"),
        ([], "stories.gguf"),
        (["--hf-repo", "somebody/else"], None),
    ],
)
def test_the_launcher_gives_models_by_their_files(given, model, tmp_path: Path):
    server = [sys.executable, "-c", "import sys; print(sys.argv[1:])"]
    launcher = tmp_path / "launcher"
    text = LAUNCHER.format(
        python=sys.executable, models=MODELS, folder="/models", server=server, routes=False
    )
    launcher.write_text(text, encoding="utf-8")
    command = [sys.executable, launcher, "--port", "1", "--offline", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if model is None:
        assert (done.returncode, done.stderr) == (1, "no network: somebody/else\n")
    else:
        assert done.stdout == f"{['--port', '1', '--model', f'/models/{model}']}\n"


def test_the_vocabulary_has_every_byte_and_no_token_twice():
    tokens, scores, types = pieces(512)
    assert len(tokens) == len(set(tokens)) == len(scores) == len(types) == 512
    assert tokens[1] == "<s>"
    assert types.count(6) == 256


@pytest.fixture
def sources() -> Path:
    """Return the folder with llama.cpp's own tests of the installed release."""
    pytest.importorskip("llama_cpp", reason="llama.cpp is not installed")
    folder = FOLDER / build_llama.server_version() / "tools" / "server" / "tests"
    if not folder.is_dir():
        pytest.skip("llama.cpp's own server tests were not fetched")
    return folder


@pytest.mark.model
def test_every_test_of_the_list_is_among_llama_cpp_s(sources: Path):
    for name in read_list():
        file, _, test = name.partition("::")
        text = (sources / "unit" / f"{file}.py").read_text(encoding="utf-8")
        assert f"def {test.partition('[')[0]}(" in text, name


@pytest.mark.slow
@pytest.mark.model
def test_some_of_llama_cpp_s_own_tests_do_as_the_list_says(sources: Path):
    pytest.importorskip("requests", reason="the clients of llama.cpp's own server tests are not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = [sys.executable, str(ROOT / "tools" / "atlas_tool.py"), "serve"]
    launcher = prepare(FOLDER, server, routes=False, port=port)
    try:
        found = run(launcher, ["test_tokenize"], 1, [])
    finally:
        launcher.unlink()
    assert sum(outcome == "passed" for outcome in found.values()) == 3
    assert compare(read_list(), found) == []
