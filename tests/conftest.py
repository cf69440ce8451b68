"""Fixtures for every test: sample files, files that other programs wrote, two ways to run atlas-tool."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers beside each other fill the processors: BLAS threads of their own would only spin and wait for each
    # other (the tests of one file took three times as long). Read when NumPy is imported, and by child processes.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, settings

pytest_plugins = ["browser_fixtures", "closing", "engine_fixtures"]

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLES = REPOSITORY / "sample_data"
#: Files from llama.cpp, kept beside the repository because of their size.
SHARED_FIXTURES = REPOSITORY.parent / "shared" / "fixtures"

# The same cases on every machine, so that a red test is red for everyone; `make fuzz` looks for new ones.
# Deadlines measure the machine, not the code, so no profile has one.
_COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", derandomize=True, **_COMMON)
settings.register_profile("explore", derandomize=False, max_examples=1_000, print_blob=True, **_COMMON)
settings.register_profile("quick", derandomize=True, max_examples=20, **_COMMON)
settings.load_profile("same")

#: Fixtures by which a test is known to start Chromium or llama.cpp; a test that does so by itself is marked by hand.
_BROWSER_FIXTURES = {"browser", "lab_server"}
_MODEL_FIXTURES = {"real", "random_model", "tiny_model", "oracle", "decode"}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what needs a browser or a model, so that `make quick` can leave it out."""
    fixtures = set(getattr(item, "fixturenames", ()))
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if fixtures & _BROWSER_FIXTURES:
        item.add_marker("browser")
    engine = parameters.get(
        "open_engine", parameters.get("kind") if item.path.parent.name == "llama" else None
    )
    if fixtures & _MODEL_FIXTURES or engine in {"llama", "lfm2"}:
        item.add_marker("model")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def vocabularies() -> list[Path]:
    """Return the GGUF files with llama.cpp's vocabularies."""
    found = sorted((SHARED_FIXTURES / "gguf").glob("*.gguf"))
    if not found:
        pytest.skip("needs files of llama.cpp in ../shared/fixtures, which are not here")
    return found


@pytest.fixture(scope="session")
def c_library_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files that the C library wrote, for reading only."""
    from tools.make_vectors import c_library_files

    folder = tmp_path_factory.mktemp("c-library")
    for name, data in c_library_files().items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Return ``sample_data/`` itself, for reading only."""
    return SAMPLES


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Return a fresh copy of ``sample_data/`` that a test may change."""
    copy = shutil.copytree(SAMPLES, tmp_path / "sample_data", ignore=shutil.ignore_patterns("models"))
    (copy / "models").symlink_to(SAMPLES / "models")  # megabytes that nothing changes
    return Path(copy)


@dataclass(frozen=True)
class Ran:
    """What one command did."""

    exit_code: int
    output: bytes
    stdout: str
    stderr: str


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run ``atlas-tool`` in this process: ``run_cli("inspect", path).stdout``."""
    from atlas_kit.cli.main import run

    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("ATLAS_PASSPHRASE", raising=False)

    def run_here(*arguments: object, stdin: bytes | str | None = None) -> Ran:
        with CliRunner().isolation(input=stdin) as streams:
            code = run([str(argument) for argument in arguments])
            sys.stdout.flush()
            out, err = streams[0].getvalue(), streams[1].getvalue()
        return Ran(code, out, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))

    return run_here


def tool_environment(**changes: str) -> dict[str, str]:
    """Return an environment for child processes: this checkout importable, no colour, 80 columns, UTF-8."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ATLAS_", "PYTEST_", "COV_"))}
    path = os.pathsep.join(filter(None, [str(REPOSITORY), env.get("PYTHONPATH")]))
    fixed = {"PYTHONPATH": path, "NO_COLOR": "1", "COLUMNS": "80", "PYTHONUTF8": "1", "TERM": "dumb"}
    return {**env, **fixed, **changes}


@pytest.fixture(scope="session")
def run_tool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``atlas-tool`` as its own process: ``run_tool("validate", path, cwd=folder).returncode``."""

    def run(
        *arguments: object,
        cwd: Path | str = REPOSITORY,
        stdin: str | None = None,
        env: dict[str, str] | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "atlas_kit", *map(str, arguments)],
            cwd=cwd,
            env=tool_environment(**(env or {})),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


def pytest_unconfigure() -> None:
    """Close what llama-cpp-python opens when all of it is imported, and never closes: two times /dev/null."""
    package = sys.modules.get("llama_cpp._utils")
    for name in ("outnull_file", "errnull_file"):
        if package is not None:
            getattr(package, name).close()
