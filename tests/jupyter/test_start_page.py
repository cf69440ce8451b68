"""``make lab`` opens the notebooks' own page, on which each is one click away, and lists each of them once."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import REPOSITORY
from tests.jupyter.conftest import Unpacked
from tests.jupyter.labdriver import running_lab
from tools import notebooks


@pytest.fixture
def options() -> list[str]:
    """What the Makefile gives to ``jupyter lab``."""
    recipe = re.search(r"^lab:.*\n((?:\t.*\n|  .*\n)+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    text = recipe[1].replace("\\\n", " ")
    globs = re.search(r"\$\(foreach name,(.*?),--ContentsManager.hide_globs=\$\(name\)\)", text)
    assert globs
    hidden = [f"--ContentsManager.hide_globs={name}" for name in shlex.split(globs[1])]
    return re.findall(r"--LabApp\.\S+", text) + hidden


def test_make_lab_opens_the_start_page(options: list[str], wheel: Unpacked, tmp_path, page: Page):
    shutil.copytree(REPOSITORY / "notebooks", tmp_path / "notebooks")
    shutil.copytree(REPOSITORY / "tools" / "lab", tmp_path / "tools" / "lab")
    (start,) = (one.partition("=")[2] for one in options if one.startswith("--LabApp.default_url"))
    with running_lab(tmp_path, environment=wheel.environment, arguments=tuple(options)) as lab:
        page.goto(lab.at(start.lstrip("/")))
        rendered = page.locator(".jp-MarkdownViewer")
        expect(rendered.locator("td a")).to_have_count(len(notebooks.sources()))
        names = [source.with_suffix(".ipynb").name for source in notebooks.sources()]
        expect(page.locator(".jp-DirListing-itemText")).to_have_text([*names, "README.md"])
        rendered.get_by_role("link", name="How much can it hold?").click()
        expect(page.locator(".jp-NotebookPanel")).to_contain_text("4. How much can it hold?")
        page.wait_for_load_state("networkidle")
        page.goto("about:blank")  # or it asks a server that is gone
