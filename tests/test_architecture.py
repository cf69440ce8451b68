"""What holds for the whole tree: layers, sizes, and for every format a page, vectors, tests and samples."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "atlas_kit"
MODULES = sorted(PACKAGE.rglob("*.py"))
FORMATS = sorted(path.parent.name for path in PACKAGE.glob("formats/*/layout.py"))
#: Longer than this, a module answers more than one question.
MAX_LINES = 900
SKIPPED = {".git", ".venv", "build", "dist", "__pycache__", "node_modules"}


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def tracked_files() -> list[Path]:
    """Return what git would commit, or everything outside the usual ignored folders where there is no git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout
        names = [REPOSITORY / name for name in listed.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        names = [p for p in REPOSITORY.rglob("*") if not SKIPPED & set(p.relative_to(REPOSITORY).parts)]
    return [path for path in names if path.is_file() and not any(p.startswith("._") for p in path.parts)]


def test_imports_point_down():
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path.name} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_command_line_prints(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    printing = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert not printing or path.is_relative_to(PACKAGE / "cli")


#: The program's name, or an option; not a custom property of CSS (``var(--jp-...)``).
COMMAND_WORDS = re.compile(r"atlas-tool|(?<!var\()(?<!\w)--(?!ax-)[a-z][a-z-]+")


@pytest.mark.parametrize("path", [m for m in MODULES if not m.is_relative_to(PACKAGE / "cli")], ids=name_of)
def test_only_the_command_line_names_commands(path):
    """What the library says holds in a notebook and in a server too; docstrings, which nobody sees, are free."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, holders) and ast.get_docstring(n)}
    texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    hits = [f"{n.lineno}: {n.value}" for n in texts if id(n) not in docs and COMMAND_WORDS.search(n.value)]
    assert hits == []


def test_the_words_of_commands_are_found():
    for text in ("Use --force.", "(--key-file)", "try: atlas-tool repair", "--to"):
        assert COMMAND_WORDS.search(text)
    assert not COMMAND_WORDS.search("var(--jp-code-font-family)")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_page_and_vectors_and_samples(name):
    page = REPOSITORY / "formats" / f"{name}.md"
    assert page.is_file()
    assert f"atlas_kit/formats/{name}/layout.py" in page.read_text(encoding="utf-8")
    vectors = list((REPOSITORY / "formats" / "vectors").glob(f"{name}*.json"))
    assert vectors
    assert all(json.loads(path.read_text(encoding="utf-8")) for path in vectors)
    assert list((REPOSITORY / "tests" / "formats").glob(f"test_{name}*.py"))
    assert any((REPOSITORY / "sample_data" / name).iterdir())


def test_there_are_formats():
    assert FORMATS == ["atlas", "gguf"]


def test_no_path_of_one_machine_is_in_the_tree():
    # put together here, so that this file does not contain what it looks for
    roots = "|".join(("work", "root", "Users/[a-z]+", "home/[a-z]+"))
    machine = re.compile(rf"(?<![\w.~\-/])/(?:{roots})/".encode())
    hits = [name_of(path) for path in tracked_files() if machine.search(path.read_bytes())]
    assert hits == []


def test_the_tree_stays_small():
    sizes = {name_of(path): path.stat().st_size for path in tracked_files()}
    model = sizes.pop("sample_data/models/tiny-python.gguf")
    assert model < 10_000_000
    assert sum(sizes.values()) < 8 << 20
    assert max(sizes.values()) < 1 << 20
