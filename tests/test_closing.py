"""What a run says at its end, and that every reason for skipping a test here has words."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import closing
import pytest

TESTS = Path(__file__).resolve().parent
#: A small run with everything that can be left out.
SMALL = {
    "tests/codecs/test_a.py": """
        import pytest

        def test_runs(): pass
        def test_in_a_browser(): pytest.skip("no Chromium")
        @pytest.fixture
        def device(): pytest.skip("CuPy is not installed")
        def test_on_a_device(device): pass
        def test_on_a_device_again(device): pass
        @pytest.mark.skipif(True, reason="the moon is not full")
        def test_at_night(): pass
        @pytest.mark.xfail
        def test_of_a_known_fault(): assert False
    """,
    "tests/memory/test_b.py": """
        import pytest
        pytest.importorskip("llama_cpp_that_nobody_has")
        def test_never_seen(): pass
    """,
    "tests/test_c.py": "def test_of_the_whole(): pass\ndef test_left_out(): pass\n",
}


def run(folder: Path, *arguments: str, files: dict[str, str] = SMALL) -> list[str]:
    """Run pytest with the plugin, and nothing of this repository, on ``files``; return what it printed."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.splitlines()
        path.write_text("\n".join(line.removeprefix(" " * 8) for line in lines))
    (folder / "pytest.ini").touch()
    command = [sys.executable, "-m", "pytest", "-p", "closing", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "COLUMNS": "100", "NO_COLOR": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    return ran.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [["-p", "no:xdist"], ["-n", "2"]], ids=["alone", "xdist"])
def test_the_last_lines_say_what_was_not_tested(tmp_path, workers):
    *lines, last = run(tmp_path, *workers, "-rs", "-k", "not left_out")
    assert re.fullmatch(r"=+ 2 passed, [45] skipped.* in [0-9.]+s =+", last)  # what .ci/run looks for
    at = next(i for i, line in enumerate(lines) if "not tested here" in line)
    assert lines[at + 1 :] == [
        "2 tests of the GPU (no CuPy with a CUDA device)",
        "1 test of the browser (no Chromium)",
        "1 test (the moon is not full)",
        "all tests of tests/memory/test_b.py (llama-cpp-python is not installed)",
        "1 test left out by choice (not left_out)",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [["-p", "no:xdist"], ["-n", "2"]], ids=["alone", "xdist"])
def test_the_time_of_each_layer_is_said(tmp_path, workers):
    lines = run(tmp_path, *workers)
    layers = dict(
        re.fullmatch(r" *[0-9.]+ s  (\w+) \((.*)\)", line).groups() for line in lines if " s  " in line
    )
    assert layers == {"codecs": "6 tests", "repository": "2 tests"}


@pytest.mark.slow
def test_a_whole_run_says_so(tmp_path):
    *lines, last = filter(None, run(tmp_path, files={"tests/test_c.py": SMALL["tests/test_c.py"]}))
    assert "2 passed" in last
    assert lines[-1] == "Nothing was left out."
    assert not any("not tested" in line for line in lines)


@pytest.mark.slow
def test_nothing_is_said_when_nothing_ran(tmp_path):
    assert not any("Nothing was left out" in line for line in run(tmp_path, "--collect-only"))


@pytest.mark.parametrize(
    ("node", "layer"),
    [
        ("tests/cli/test_x.py::test_y[a/b]", "cli"),
        ("tests/test_docs.py::test_x", "repository"),
        ("elsewhere/test_x.py::test_y", "elsewhere"),
        ("test_x.py::test_y", "repository"),
    ],
)
def test_layers(node, layer):
    assert closing.layer_of(node) == layer


# --- every reason has words ---------------------------------------------------------------------------------

ASKING = {"skip", "skipif", "importorskip"}


def constant_part(node: ast.expr | None) -> str | None:
    """Return a string that stands in the source, without what an f-string fills in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(constant_part(part) or "" for part in node.values)
    return None


def reasons(path: Path) -> list[str]:
    """Return the reasons for which tests of a file are skipped, as far as they stand in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ASKING
        ):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}.get("reason")
        given = given or (node.args[0] if node.args and node.func.attr != "skipif" else None)
        found.append(constant_part(given))
    return [reason for reason in found if reason is not None]


def test_every_reason_has_words():
    found = {r for p in TESTS.rglob("*.py") if p != Path(__file__) for r in reasons(p)}
    assert {"cryptography", "CuPy is not installed", "root may write everywhere"} <= found
    without = sorted(reason for reason in found if not closing.in_words(reason)[0])
    assert without == [], "say in tests/closing.py what is not tested for each of these reasons"
