"""What hosts and git run: workflows and hooks are well formed, and call what there is. Only a host knows the rest."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
HOOKS = REPOSITORY / ".pre-commit-config.yaml"
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
PROJECT = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


def commands(path: Path) -> list[str]:
    """Return the first lines that a workflow gives to a shell."""
    return [line for step in steps(path) for line in step.get("run", "").splitlines()]


def test_there_are_workflows():
    assert [path.stem for path in WORKFLOWS] == ["release", "test"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_well_formed(path):
    workflow = read(path)
    # `on` without quotes is a truth value in YAML 1.1, and GitHub reads it as the word
    assert {"name", True, "permissions", "jobs"} <= set(workflow)
    for name, job in workflow["jobs"].items():
        assert job["runs-on"], name
        assert job["timeout-minutes"] <= 60, name
        assert job["steps"][0]["uses"].startswith("actions/checkout@"), name
        assert all(("run" in step) != ("uses" in step) for step in job["steps"]), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_what_there_is(path):
    for line in commands(path):
        words = shlex.split(line)
        if words[0] == "make":
            assert all(re.search(rf"^{target}:", MAKEFILE, re.M) for target in words[1:]), line
        elif "/" in words[0] and not words[0].startswith(".venv/"):
            assert (REPOSITORY / words[0]).stat().st_mode & 0o111, line


def test_every_change_is_checked_in_three_ways():
    jobs = read(REPOSITORY / ".github" / "workflows" / "test.yml")["jobs"]
    run = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert run == {"lint": ["make lint"], "quick": ["make quick"], "everything": [".ci/run"]}


def test_every_python_that_is_promised_is_tried():
    jobs = read(REPOSITORY / ".github" / "workflows" / "test.yml")["jobs"]
    tried = jobs["quick"]["strategy"]["matrix"]["python"]
    assert all(isinstance(version, str) for version in tried), "3.10 without quotes is the number 3.1"
    (oldest,) = re.findall(r'^requires-python = ">=(.*)"$', PROJECT, re.M)
    assert tried == [oldest, "3.11", "3.12", "3.13", "3.14"]


def test_a_release_is_built_and_checked():
    assert "make dist" in commands(REPOSITORY / ".github" / "workflows" / "release.yml")


def test_the_hooks_are_what_lint_runs():
    hooks = [hook for repo in read(HOOKS)["repos"] for hook in repo["hooks"]]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy", "layers", "scripts", "documents"]
    lint = MAKEFILE.partition("\nlint:")[2].partition("\n\n")[0]
    for hook in hooks:
        program, *rest = shlex.split(hook["entry"])
        called = " ".join([program.replace(".venv/bin/", "$(BIN)/"), *rest[:1]])
        assert called.split(" --force")[0] in lint, hook["id"]


# --- the changelog --------------------------------------------------------------------------------------------


def test_the_changelog_has_dated_versions_newest_first():
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *released = re.findall(r"^## (.*)$", text, re.M)
    assert first == "Unreleased"
    found = [re.fullmatch(r"(\d+)\.(\d+)\.(\d+) - (\d{4}-\d\d-\d\d)", heading) for heading in released]
    assert all(found), released
    assert found == sorted(found, key=lambda match: tuple(map(int, match.groups()[:3])), reverse=True)
