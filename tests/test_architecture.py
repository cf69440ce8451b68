"""What holds for the whole tree: layers, sizes, and for every format a page, vectors, tests and samples."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "atlas_kit"
MODULES = sorted(PACKAGE.rglob("*.py"))
FORMATS = sorted(path.parent.name for path in PACKAGE.glob("formats/*/layout.py"))
#: Longer than this, a module answers more than one question.
MAX_LINES = 900
SKIPPED = {".git", ".venv", "build", "dist", "__pycache__", "node_modules"}
SKIPPED |= {".pytest_cache", ".hypothesis", ".mypy_cache", ".ruff_cache", ".import_linter_cache"}


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


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_threads_in_the_background_end_before_the_interpreter(path):
    if path.name not in (
        "background.py",
        "llama_sampler.py",
    ):  # whose ear is waited for by the call that it hears
        found = re.findall(r"\bdaemon\b *=", path.read_text())
        assert not found, "start it with atlas_kit.background.start_thread, which stops it in time"


@pytest.mark.slow
def test_imports_point_down():
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


class Import(NamedTuple):
    """One imported name: the module that asks for it, the module that it lies in, the name, and the line."""

    by: str
    home: str
    name: str
    line: int


def module_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, modules: frozenset[str]) -> Iterator[Import]:
    """Yield what a module imports of the package at any level: at its top, in functions, for types only.

    What a package's ``__init__`` loads by its name as a string, the first time that somebody asks, does not count.
    """
    by = module_of(path)
    package = by if path.name == "__init__.py" else by.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            found = [(".".join([*up, *filter(None, [node.module])]), alias.name) for alias in node.names]
        else:
            continue
        for home, name in found:
            if f"{home}.{name}" in modules:
                yield Import(by, f"{home}.{name}", "", node.lineno)
            elif home in modules:
                yield Import(by, home, name, node.lineno)


def all_imports(paths: Iterable[Path]) -> list[Import]:
    paths = list(paths)
    modules = frozenset(map(module_of, paths))
    return [found for path in paths for found in imports_of(path, modules)]


def circles(imports: Iterable[Import]) -> list[list[str]]:
    """Return the sets of modules each of which reaches all others of its set."""
    below: dict[str, set[str]] = {}
    for found in imports:
        below.setdefault(found.by, set()).add(found.home)
        below.setdefault(found.home, set())
    reached = {}
    for module in below:
        seen, waiting = set(), [module]
        while waiting:
            for next_ in below[waiting.pop()] - seen:
                seen.add(next_)
                waiting.append(next_)
        reached[module] = seen
    found = {tuple(sorted(m for m in reached[module] if module in reached[m])) for module in below}
    return sorted(list(circle) for circle in found if circle)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_across_folders(imports: Iterable[Import], packages: frozenset[str]) -> list[str]:
    """Return the imports of a private module or name from a folder other than the importing module's own."""

    def folder(module: str) -> str:
        return module if module in packages else module.rpartition(".")[0]

    return [
        f"{found.by}:{found.line} takes {found.home} {found.name}".strip()
        for found in imports
        if folder(found.by) != folder(found.home)
        and any(map(is_private, [*found.home.split("."), found.name]))
    ]


IMPORTS = all_imports(MODULES)
PACKAGES = frozenset(module_of(path) for path in MODULES if path.name == "__init__.py")


@pytest.mark.parametrize("text", [
    "from {0} import x", "import {0}", "def f():\n    from {0} import x",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from {0} import x",
])  # fmt: skip
def test_every_kind_of_import_counts(text, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    for name, other in (("one", "p.two"), ("two", "p.three"), ("three", "p.one"), ("four", "p.one")):
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / f"{name}.py").write_text(text.format(other))
    found = all_imports(sorted((tmp_path / "p").glob("*.py")))
    assert circles(found) == [["p.one", "p.three", "p.two"]]
    assert circles([one for one in found if one.by != "p.two"]) == []


def test_what_is_private_across_folders():
    seen = [
        Import("p.a.x", "p.a._y", "z", 1),
        Import("p.a.x", "p.a.y", "_z", 1),
        Import("p.a.x", "p.b", "__v__", 1),
    ]
    wrong = [
        Import("p.a.x", "p.b._y", "z", 1),
        Import("p.a.x", "p.b.y", "_z", 2),
        Import("p.a.x", "p.b", "_z", 3),
    ]
    found = private_across_folders(seen + wrong, frozenset({"p", "p.a", "p.b"}))
    assert found == ["p.a.x:1 takes p.b._y z", "p.a.x:2 takes p.b.y _z", "p.a.x:3 takes p.b _z"]


def test_imports_run_in_no_circle():
    assert circles(IMPORTS) == []


def test_nothing_private_is_imported_from_another_folder():
    assert private_across_folders(IMPORTS, PACKAGES) == []


def test_the_array_type_is_defined_once():
    alias = re.compile(r"^ *\w+(: TypeAlias)? = np\.ndarray\[Any, Any\]$", re.MULTILINE)
    homes = [name_of(path) for path in MODULES if alias.search(path.read_text(encoding="utf-8"))]
    assert homes == ["atlas_kit/codecs/numbers.py"]


def renderers(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.FunctionDef)
            and node.returns
            and ast.unparse(node.returns).endswith("Block]")
        ):
            yield node


def test_every_renderer_says_what_it_shows():
    found = [(path, function) for path in PACKAGE.glob("cli/*.py") for function in renderers(path)]
    assert len(found) > 20
    vague = [
        f"{path.name}: {function.name}"
        for path, function in found
        if function.args.args
        and ast.unparse(function.args.args[0].annotation or ast.Constant("Any")) == "Any"
    ]
    assert vague == []


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


#: The program's name, or an option; not a custom property of CSS (``var(--jp-...)``, ``--ak-night``).
COMMAND_WORDS = re.compile(r"atlas-tool|(?<!var\()(?<!\w)--(?!a[kx]-)[a-z][a-z-]+")


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
    assert sum(sizes.values()) < 16 << 20
    assert max(sizes.values()) < 1 << 20


NAMED = re.compile(r"(?<![\w*<{/.])((?:\w+/)*\w+\.py)\b")
#: Files of other projects that a comment may name.
ELSEWHERE = {"gguf_convert_endian.py", "convert_llama_ggml_to_gguf.py", "convert_hf_to_gguf.py"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_files_that_a_module_names_are_there(path):
    named = set(NAMED.findall(path.read_text(encoding="utf-8"))) - ELSEWHERE
    known = {name_of(module) for module in MODULES}
    missing = [
        name for name in named if not any(f"/{known_name}".endswith(f"/{name}") for known_name in known)
    ]
    assert not [name for name in missing if not (REPOSITORY / name).exists()]
