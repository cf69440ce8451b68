"""A JupyterLab on what is really shipped: the wheel, built once, and its extension of the server and the Lab.

One server per worker and session: starting it takes seconds, and pages do not disturb each other.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import REPOSITORY, SAMPLES
from tests.jupyter.labdriver import Lab, notebook_json, open_lab, running_lab

if TYPE_CHECKING:
    from browser_fixtures import Watch
    from playwright.sync_api import BrowserContext, Page


@dataclass(frozen=True)
class Unpacked:
    """A wheel as pip would lay it out."""

    packages: Path  #: what goes to site-packages
    data: Path  #: what goes below sys.prefix: share/, etc/

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which Python and Jupyter find this wheel before any other atlas_kit."""
        return {
            "PYTHONPATH": str(self.packages),
            "JUPYTER_PATH": str(self.data / "share" / "jupyter"),
            "JUPYTER_CONFIG_PATH": str(self.data / "etc" / "jupyter"),
        }


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    """Build the wheel of this checkout and unpack it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "installed")
    (data,) = (folder / "installed").glob("*.data")
    return Unpacked(folder / "installed", data / "data")


@pytest.fixture(scope="session")
def lab_server(wheel: Unpacked, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Return a JupyterLab in a folder of its own, with a copy of ``sample_data/`` in it."""
    root = tmp_path_factory.mktemp("lab")
    shutil.copytree(SAMPLES, root / "sample_data")
    with running_lab(root, environment=wheel.environment) as lab:
        yield lab


@pytest.fixture(scope="module")
def _lab_page(_context: tuple[BrowserContext, Watch], lab_server: Lab) -> Page:
    page = _context[0].new_page()
    open_lab(page, lab_server)
    return page


@pytest.fixture
def lab_page(_lab_page: Page, _context: tuple[BrowserContext, Watch]) -> Iterator[Page]:
    """Return a page with JupyterLab in it, which the tests of a module share: loading it takes seconds."""
    yield _lab_page
    _lab_page.evaluate("window.jupyterapp.commands.execute('application:close-all').then(() => null)")
    _context[1].check()


@pytest.fixture
def notebook(lab_server: Lab, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """Write a notebook of code cells into the Lab's folder; returns its path for ``open_notebook``.

    Its kernel ends with the test: a lab may read a text then that has no end in a test's time.
    """

    def write(*sources: str) -> str:
        path = lab_server.root / f"{request.node.originalname}.ipynb"
        path.write_text(notebook_json(*sources), encoding="utf-8")
        return path.name

    yield write
    lab_server.end_kernels()
