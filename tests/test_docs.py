"""The documents are true: generated parts are fresh, every command is described, every example runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SAMPLES

from atlas_kit.cli._group import COMMANDS, group
from tools import reference

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
PAGES = [README, REPOSITORY / "ARCHITECTURE.md", *sorted((REPOSITORY / "formats").glob("*.md"))]
MARKDOWN = [*PAGES, *REPOSITORY.glob("C*.md"), *REPOSITORY.glob("*/README.md")]


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def test_generated_parts_are_fresh():
    command = [sys.executable, "-m", "cogapp", "--check", "--verbosity=1", "-I", ".", *map(name_of, PAGES)]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, f"run `make docs`:\n{ran.stdout}{ran.stderr}"


# --- help texts -------------------------------------------------------------------------------------------


def help_blocks(name: str) -> list[str]:
    """Return a command's own help as paragraphs."""
    command = group.get_command(None, name)
    assert command is not None
    assert command.help
    return [block.replace("\b", "").strip() for block in command.help.split("\n\n")]


def examples(name: str | None) -> list[str]:
    """Return the runnable lines of a help text."""
    text = reference.help_text(name)
    return [line.strip() for line in text.splitlines() if re.match(r" +([A-Z_]+=\S+ )?atlas-tool ", line)]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_a_sentence_a_paragraph_and_an_example(name):
    blocks = help_blocks(name)
    assert re.fullmatch(r"[A-Z][^\n]{10,90}\.", blocks[0]), "the first line is one sentence"
    assert len(blocks[1]) > 80, "then a paragraph that explains it"
    assert examples(name), "then an example that runs"
    assert all(f"atlas-tool {name}" in line for line in examples(name)[:1])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name):
    command = group.get_command(None, name)
    silent = [p.name for p in command.params if p.param_type_name == "option" and not getattr(p, "help", "")]
    assert silent == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name):
    assert f"<code>atlas-tool {name}</code>" in README.read_text(encoding="utf-8")


# --- README -----------------------------------------------------------------------------------------------


def code_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def test_readme_python_runs(samples, monkeypatch):
    monkeypatch.chdir(samples.parent)
    blocks = code_blocks(README, "python")
    assert blocks
    names: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)


def test_readme_tree_is_real():
    (tree,) = (block for block in code_blocks(README, "text") if block.startswith("atlas_kit/"))
    folders: list[str] = []
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        path = REPOSITORY.joinpath(*folders)
        assert path.exists(), f"{path} is in README's file tree"
        assert path.is_dir() == name.endswith("/")


def test_readme_names_every_top_level_folder():
    text = README.read_text(encoding="utf-8")
    for folder in ("atlas_kit", "notebooks", "tools", "formats", "tests", "sample_data"):
        assert re.search(rf"^{folder}/", text, re.M), folder


@pytest.mark.parametrize("path", MARKDOWN, ids=name_of)
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text) + re.findall(r'src="([^":]+)"', text)
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert missing == []


def test_exit_codes_are_documented_once_and_true(run_tool, samples):
    assert "Exit codes" in README.read_text(encoding="utf-8")
    assert run_tool("validate", "atlas/chat.atlas", cwd=samples).returncode == 0
    assert run_tool("validate", "broken/bit-flip.atlas", cwd=samples).returncode == 1
    assert run_tool("validate", "no-such-file.atlas", cwd=samples).returncode == 2
    assert run_tool("no-such-command", cwd=samples).returncode == 2


def test_picture_is_small():
    picture = SAMPLES / "expected" / "inspect.svg"
    assert 2_000 < picture.stat().st_size < 120_000
    assert shutil.which("atlas-tool") or picture.is_file()
