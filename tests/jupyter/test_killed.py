"""A process that is killed while a lab shows its work: the kernel in mid-run, and the server that a lab looks on at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import SAMPLES, tool_environment
from tests.jupyter.labdriver import Lab, free_port, kernel_json, open_notebook, run_all, wait_for_kernel
from tests.waiting import LONG

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

MODEL = SAMPLES / "models" / "tiny-python.gguf"
CELLS = [
    """
from pathlib import Path
from atlas_kit.widgets import CapacityPlayground, MemoryCompare, MemoryLab
text = Path("sample_data/documents/statistics.py").read_text() * 30
lab = MemoryLab("sample_data/models/tiny-python.gguf", text)
lab
""",
    'MemoryCompare("sample_data/atlas/learned.atlas", "sample_data/atlas/learned-more.atlas")',
    "CapacityPlayground()",
]


def shows(page: Page, least: int) -> None:
    page.wait_for_function(
        "(least) => Number(document.querySelector('.atlas-lab')?.dataset.shown) > least",
        arg=least,
        timeout=1000 * LONG,
    )


def test_a_kernel_that_is_killed_while_a_lab_learns(
    page: Page, lab_server: Lab, notebook: Callable[..., str]
):
    open_notebook(page, lab_server, notebook(*CELLS))
    assert run_all(page) == []
    lab = page.get_by_role("group", name="MemoryLab 1")
    lab.get_by_role("button", name="Start").click()
    shows(page, 300)
    os.kill(kernel_json(page, "os.getpid()", code="import os"), signal.SIGKILL)
    page.locator(".jp-Dialog", has_text="appears to have died").get_by_role("button", name="Ok").click()
    expect(lab.locator(".away")).to_contain_text("run the cell again")
    expect(page.locator(".atlas-gone")).to_have_count(2)  # those beside it; the lab says it in its own line
    seen = int(lab.locator(".atlas-lab").get_attribute("data-shown") or 0)
    assert seen > 300  # what was seen last stays
    lab.locator(".tokens").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(lab.locator(".story")).to_contain_text("#")  # and can be looked around in

    wait_for_kernel(page)  # another one, which the server has started by itself
    assert run_all(page) == []
    expect(page.locator(".atlas-gone")).to_have_count(0)
    expect(page.locator(".atlas-lab")).to_have_count(1)
    expect(lab.locator(".away")).to_be_hidden()
    expect(lab.locator(".state")).to_have_text("idle")
    lab.get_by_role("button", name="Start").click()
    shows(page, 300)
    expect(lab.locator(".state")).to_have_text("running")
    lab.get_by_role("button", name="Stop").click()
    expect(lab.locator(".state")).to_have_text("idle")


class Served:
    """A real server of its own process on one port, that can be killed and started again."""

    def __init__(self, log: Path) -> None:
        self.port, self.log = free_port(), log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "atlas_kit", "serve", "-m", str(MODEL), "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "-t", "1", "-c", "1024", "--atlas"], env=tool_environment(), stdout=log, stderr=log
            )
        end = time.monotonic() + LONG
        while not self.answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def read(self, text: str) -> None:
        body = b'{"prompt": "%s", "max_tokens": 2, "atlas": {"session_id": "anna"}}' % text.encode()
        request = urllib.request.Request(
            f"{self.url}/v1/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=LONG):
            pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    server = Served(tmp_path / "server.log")
    server.start()
    yield server
    server.kill()


def test_a_server_that_is_killed_and_started_again(
    page: Page, lab_server: Lab, notebook: Callable[..., str], served: Served
):
    cell = f"from atlas_kit.widgets import MemoryLab\nlab = MemoryLab({served.url!r}, session='anna')\nlab"
    open_notebook(page, lab_server, notebook(cell))
    assert run_all(page) == []
    lab = page.get_by_role("group", name="MemoryLab 1")
    state, alert = lab.locator(".state"), lab.locator(".status [role=alert]")
    expect(state).to_have_text("running")
    served.read("def mean(values): return sum(values) / len(values) # " * 4)
    shows(page, 20)
    before = lab.locator(".tokens").inner_text()
    assert "mean" in before

    served.kill()
    expect(state).to_have_text("paused")
    expect(alert).to_contain_text("It is asked again.")
    expect(alert).to_contain_text(f"No server answers at {served.url}")  # once it was asked again
    assert lab.locator(".tokens").inner_text().startswith(before)  # what was seen stays

    served.start()
    expect(state).to_have_text("running")
    expect(alert).to_be_hidden()
    served.read("class Median: pass # " * 6)
    expect(lab.locator(".tokens")).to_contain_text("Median")
    expect(lab.locator(".tokens")).not_to_contain_text("mean")  # its session has begun anew
    shown = kernel_json(page, "[lab.state, lab.error, ''.join(lab.words.texts(0, len(lab.trace)))]")
    assert shown[:2] == ["running", ""]
    assert "Median" in shown[2]
