"""The types of the scripts: what TypeScript's strict check says of the JSDoc in every one of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = REPOSITORY / "jsconfig.json"
SCRIPTS = sorted((REPOSITORY / "atlas_kit").rglob("*.js"))
#: A comment that silences the check for a line or a file, and the reason behind it.
SILENCED = re.compile(r"@ts-(?:ignore|expect-error|nocheck)\b(.*)")

#: What `make lint` and editors look at.
FOLDERS: list[str] = json.loads(CONFIG.read_text(encoding="utf-8"))["include"]

deno = pytest.importorskip("deno", reason="deno is not installed")


def check(folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run what `make lint` runs, but with the names of the files and without what was found before."""
    command = [
        deno.find_deno_bin(),
        "check",
        "--no-remote",
        "--no-lock",
        "--config",
        str(folder / CONFIG.name),
        *(name for name in FOLDERS if (folder / name).is_dir()),
    ]
    environment = {**os.environ, "NO_COLOR": "1", "DENO_DIR": str(cache), "DENO_NO_UPDATE_CHECK": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_script_holds_its_types(tmp_path):
    ran = check(REPOSITORY, tmp_path)
    assert ran.returncode == 0, ran.stderr
    checked = re.findall(r"^Check (\S+\.js)$", ran.stderr, re.MULTILINE)
    assert sorted(checked) == [path.relative_to(REPOSITORY).as_posix() for path in SCRIPTS]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("export const wrong = fill(el('p'), 3);", "TS2345"),
        ("export function untyped(what) { return what; }", "TS7006"),
        ("export const nobody = document.querySelector('p').textContent;", "TS2531"),
    ],
)
def test_the_check_finds_a_fault(tmp_path, fault, said):
    static = Path("atlas_kit/widgets/static/explorer")
    (tmp_path / static).mkdir(parents=True)
    shutil.copy(CONFIG, tmp_path)
    shutil.copy(REPOSITORY / static / "dom.js", tmp_path / static)
    script = f'import {{ el, fill }} from "./dom.js";\n{fault}\nexport const used = [el, fill];\n'
    (tmp_path / static / "faulty.js").write_text(script)
    ran = check(tmp_path, tmp_path / "cache")
    assert ran.returncode == 1
    assert said in ran.stderr


def test_lint_looks_at_the_same_folders():
    for name in ("Makefile", ".pre-commit-config.yaml"):
        assert " ".join(FOLDERS) in (REPOSITORY / name).read_text(encoding="utf-8")


def test_the_check_is_strict():
    options = json.loads(CONFIG.read_text(encoding="utf-8"))["compilerOptions"]
    assert options["checkJs"]
    assert options["strict"]
    assert not any(value is False for value in options.values())


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_nothing_is_silenced_without_a_reason(path):
    reasons = [found[1] for found in SILENCED.finditer(path.read_text(encoding="utf-8"))]
    assert all(len(reason.split()) > 2 for reason in reasons)
