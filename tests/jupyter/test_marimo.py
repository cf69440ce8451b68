"""The widgets in marimo: the explorer and matrices live, those of many parts as the pages that are saved of them.

marimo shows anywidgets, and nothing of ipywidgets. It is large, and gets an environment of its own, ``build/marimo``,
which sees this one's packages; it is made once, and anew when the version below changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import REPOSITORY
from tests.waiting import free_port

pytestmark = [pytest.mark.slow, pytest.mark.model]

VERSION = "marimo==0.25.2"
FOLDER = REPOSITORY / "build" / "marimo"
NOTEBOOK = """
import marimo
app = marimo.App()

@app.cell
def _():
    from atlas_kit.widgets import FileExplorer
    FileExplorer("shown.gguf")
    return

@app.cell
def _():
    from atlas_kit.widgets import MemoryLab
    lab = MemoryLab("tiny-python.gguf", "def median(data):\\n    return sorted(data)\\n" * 20)
    lab.run(60)
    lab
    return

@app.cell
def _():
    from atlas_kit.widgets import MemoryCompare
    MemoryCompare("learned.atlas", "learned.atlas", labels=("one", "two"))
    return

@app.cell
def _():
    from atlas_kit.widgets import ModelCompare
    compare = ModelCompare("tiny.gguf", "micro.gguf")
    compare.wait()
    compare
    return

@app.cell
def _():
    import numpy
    from atlas_kit.widgets import MatrixView
    MatrixView(numpy.eye(8), title="eight ones")
    return
"""


@pytest.fixture(scope="module")
def marimo() -> Path:
    """Return the program, installed where it is not there yet."""
    program, stamp = FOLDER / "bin" / "marimo", FOLDER / "ready"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != VERSION:
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER], capture_output=True)
        install = [FOLDER / "bin" / "python", "-m", "pip", "install", "--quiet", "--retries=1", VERSION]
        if made.returncode or subprocess.run(install, capture_output=True).returncode:
            pytest.skip("marimo could not be installed")
        below = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = subprocess.run([install[0], "-c", below], capture_output=True, text=True, check=True)
        (Path(site.stdout.strip()) / "tested.pth").write_text(
            f"{REPOSITORY}\n{sysconfig.get_path('purelib')}\n", encoding="utf-8"
        )
        stamp.write_text(VERSION, encoding="utf-8")
    return program


@pytest.fixture
def shown(marimo: Path, sample_data: Path, tmp_path: Path) -> Iterator[str]:
    """Run the notebook in a folder of its own; the address of its page."""
    for name in ("gguf/tiny.gguf", "gguf/micro.gguf", "atlas/learned.atlas", "models/tiny-python.gguf"):
        shutil.copy(sample_data / name, tmp_path)
    shutil.copy(tmp_path / "tiny.gguf", tmp_path / "shown.gguf")
    (tmp_path / "notebook.py").write_text(NOTEBOOK, encoding="utf-8")
    port, log = free_port(), tmp_path / "log.txt"
    home = {
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(Path.home() / ".cache"),
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [marimo, "run", "notebook.py", "--headless", "--no-token", f"--port={port}", "--host=127.0.0.1"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            env={**os.environ, **home},
        )  # fmt: skip
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    last = time.monotonic() + 120
    while True:
        assert process.poll() is None, log.read_text(errors="replace")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < last, log.read_text(errors="replace")
            time.sleep(0.2)


def test_every_widget_is_seen_and_the_explorer_lives(page: Page, shown: str, tmp_path: Path):
    page.goto(shown)
    explorer = page.locator(".ax")
    expect(explorer.get_by_role("heading", name="shown.gguf")).to_be_visible()
    explorer.get_by_role("tab", name="Tensors").click()
    explorer.get_by_role("gridcell", name="output.weight", exact=True).click()
    expect(explorer.get_by_role("article", name="output.weight")).to_be_visible()
    shutil.copy(tmp_path / "micro.gguf", tmp_path / "shown.gguf")
    expect(explorer.locator(".ax-notice")).to_contain_text("The file has changed.")
    expect(explorer.get_by_role("tab", name="Tensors")).to_have_attribute("aria-selected", "true")

    lab = page.locator(".ak", has_text="MemoryLab: tiny-python")
    expect(lab).to_be_visible()
    expect(lab).to_contain_text("the memory saves")
    lab.get_by_text("Text", exact=True).click()
    expect(lab.get_by_text("median").first).to_be_visible()
    both = page.locator(".ak", has_text="A: one and B: two")
    expect(both).to_be_visible()
    both.get_by_text("Numbers", exact=True).click()
    expect(both.get_by_text("effective rank").first).to_be_attached()
    models = page.locator(".ak", has_text="tensors differ")
    expect(models).to_be_visible()
    models.get_by_text("Metadata", exact=True).click()
    expect(models.get_by_text("general.name").first).to_be_visible()
    expect(page.get_by_text("eight ones")).to_be_visible()
