"""What ``make`` looks for before it does anything, on made-up machines: a folder of small scripts for programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PREPARE = REPOSITORY / "tools" / "prepare.sh"
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
#: Real programs that the script uses, and nothing else of this machine.
BORROWED = ["sh", "find", "grep", "head", "tail", "mktemp", "rm", "env", "cat"]
PYTHON = f'exec "{sys.executable}" "$@"'
OLD_PYTHON = "case $1 in -V) echo Python 3.9.2 ;; *) exit 1 ;; esac"
NO_VENV = "case $2 in *ensurepip*) exit 1 ;; esac; " + PYTHON
#: What can be installed, and what puts it there.
APT = 'echo "$@" >> apt.log; case $1 in install) shift; for name; do cp shelf/$name bin/ 2>/dev/null; done;; esac; true'


class Machine:
    """A machine on which there are only the programs that a test names."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        for name in ("bin", "shelf", "home", "fonts"):
            (folder / name).mkdir()
        for name in BORROWED:
            found = shutil.which(name)
            assert found, name
            (self.bin / name).symlink_to(found)
        (self.bin / "cp").symlink_to(str(shutil.which("cp")))
        (folder / "home" / ".fonts").mkdir()
        (folder / "home" / ".fonts" / "letters.ttf").touch()
        self.user(1000)
        self.programs = {"make": "true", "python3": PYTHON, "c++": "cat >/dev/null", "cc": "cat >/dev/null"}
        self.programs |= {"chromium": "true", "apt-get": APT}
        for name, body in self.programs.items():
            self.put(name, body)

    def put(self, name: str, body: str = "true", *, into: str = "bin") -> None:
        path = self.folder / into / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def user(self, number: int) -> None:
        self.put("id", f"echo {number}")

    def without(self, *names: str) -> Machine:
        for name in names:
            (self.bin / name).unlink()
        return self

    def prepare(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": str(self.bin), "HOME": str(self.folder / "home"), **environment}
        env.setdefault("OS_RELEASE", str(self.folder / "os-release"))
        return subprocess.run(
            [PREPARE, *arguments], cwd=self.folder, env=env, capture_output=True, text=True, check=False
        )

    @property
    def installed(self) -> list[str]:
        """What apt was asked for."""
        log = self.folder / "apt.log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def machine(tmp_path):
    """Return a machine that has everything, used by somebody who may not install."""
    return Machine(tmp_path)


def line_in(text: str) -> str:
    (line,) = re.findall(r"^  (sudo .*)$", text, re.M)
    return line.removeprefix("sudo apt-get update && ")  # a machine without apt's lists has to fetch them


def test_nothing_is_said_when_all_is_there(machine):
    ran = machine.prepare("test", "demo", "lab", "serve", "quick", "bench")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_an_ordinary_user_gets_one_line_with_everything(machine):
    ran = machine.without("make", "python3", "c++", "chromium").prepare("test")
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert line_in(ran.stderr) == "sudo apt-get install -y make python3 python3-venv g++ chromium"
    assert "CHROMIUM=none make test" in ran.stderr
    assert machine.installed == []


@pytest.mark.parametrize(
    ("targets", "line"),
    [
        (["quick"], "python3-venv"),
        (["lint"], "python3-venv"),
        (["demo"], "python3-venv g++"),
        (["lab"], "python3-venv g++"),
        (["serve"], "python3-venv g++"),
        (["bench"], "python3-venv g++ chromium"),
        (["test"], "python3-venv g++ chromium"),
        (["quick", "lab"], "python3-venv g++"),
        ([".venv/.unknown"], "python3-venv"),
    ],
)
def test_each_target_asks_for_what_it_needs(machine, targets, line):
    machine.without("c++", "chromium").put("python3", NO_VENV)
    ran = machine.prepare(*targets)
    assert ran.returncode == 2
    assert line_in(ran.stderr) == f"sudo apt-get install -y {line}"


def test_root_installs_it(machine):
    machine.without("c++", "chromium").user(0)
    machine.put("g++", "cat >/dev/null", into="shelf")
    machine.put("chromium", into="shelf")
    ran = machine.prepare("test")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "Installing with apt-get: g++ chromium\n"
    assert machine.installed == ["update", "install -y -qq --no-install-recommends g++ chromium"]


def test_a_machine_of_ci_installs_it_with_sudo(machine):
    machine.without("c++").put("sudo", 'echo sudo >> sudo.log; exec "$@"')
    machine.put("g++", "cat >/dev/null", into="shelf")
    assert machine.prepare("demo", CI="1").returncode == 0
    assert (machine.folder / "sudo.log").read_text() == "sudo\nsudo\n"


def test_ci_without_sudo_gets_the_line(machine):
    ran = machine.without("c++").prepare("demo", CI="1")
    assert ran.returncode == 2
    assert line_in(ran.stderr) == "sudo apt-get install -y g++"
    assert machine.installed == []


def test_what_apt_cannot_do_is_shown(machine):
    machine.without("c++").user(0)
    machine.put("apt-get", "echo E: Unable to locate package >&2; exit 100")
    ran = machine.prepare("demo")
    assert ran.returncode == 2
    assert "E: Unable to locate package" in ran.stdout
    assert line_in(ran.stderr) == "sudo apt-get install -y g++"


def test_an_installation_that_helps_nothing_is_no_success(machine):
    machine.without("c++").user(0)  # and the shelf is empty
    assert machine.prepare("demo").returncode == 2


def test_without_apt_the_missing_is_named_in_words(machine):
    ran = machine.without("apt-get", "c++", "chromium").prepare("test")
    assert ran.returncode == 2
    assert "sudo" not in ran.stderr
    assert "  - a C and a C++ compiler, to compile llama.cpp\n" in ran.stderr
    assert "  - Chromium or Chrome, for the tests of the widgets\n" in ran.stderr
    assert "Python" not in ran.stderr


def test_a_compiler_without_headers_is_none(machine):
    machine.put("c++", "cat >/dev/null; exit 1")
    assert "g++" in machine.prepare("demo").stderr


def test_a_compiler_of_ones_own(machine, tmp_path):
    machine.without("c++", "cc").put("mine", "cat >/dev/null")
    assert machine.prepare("demo", CC="mine", CXX="mine -O1").returncode == 0
    ran = machine.prepare("demo", CC="mine", CXX="nothing")
    assert ran.returncode == 2
    assert "CXX is 'nothing'" in ran.stderr


def test_what_is_built_needs_no_compiler(machine, tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".llama").touch()
    assert machine.without("c++").prepare("demo").returncode == 0


def test_a_virtual_environment_needs_no_other_python(machine, tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    machine.put("python", PYTHON, into=".venv/bin")
    assert machine.without("python3").prepare("quick").returncode == 0
    machine.put("python", OLD_PYTHON, into=".venv/bin")
    assert machine.prepare("quick").returncode == 2


def test_an_old_python_is_said_with_one_that_would_do(machine):
    machine.put("python3", OLD_PYTHON)
    machine.put("python3.11", PYTHON)
    machine.user(0)
    ran = machine.prepare("demo")
    assert ran.returncode == 2
    assert "python3 is Python 3.9.2. Try: PYTHON=python3.11 make demo" in ran.stderr
    assert machine.installed == []


def test_the_python_that_is_asked_for(machine):
    machine.put("python3.11", NO_VENV)
    assert line_in(machine.prepare("demo", PYTHON="python3.11").stderr).endswith("-y python3.11-venv")
    assert line_in(machine.prepare("demo", PYTHON=f"{machine.bin}/python3.11").stderr).endswith(
        "python3.11-venv"
    )
    assert line_in(machine.prepare("demo", PYTHON="python3.13").stderr).endswith("python3.13 python3.13-venv")
    assert "there is no /opt/none" in machine.prepare("demo", PYTHON="/opt/none").stderr


SHIM = """echo "pyenv: ${0##*/}: command not found" >&2
echo "The \\`${0##*/}' command exists in these Python versions:" >&2; echo "  3.12.1" >&2; exit 127"""


@pytest.mark.parametrize("name", ["python3", "python3.12"])
def test_a_shim_without_its_python_is_none(machine, name):
    machine.user(0)
    for shim in (name, "python3.13", "python3.14"):
        machine.put(shim, SHIM)
    ran = machine.prepare("demo", PYTHON=name)
    assert ran.returncode == 2
    other = "/usr/bin/python3" if name == "python3" else "python3"
    assert (
        f"  - Python 3.10 or newer: there is no {name} that starts. Try: PYTHON={other} make demo\n"
        in ran.stderr
    )
    assert "pyenv" not in ran.stdout + ran.stderr
    assert machine.installed == []


def test_a_shim_is_not_what_would_do(machine):
    machine.put("python3", OLD_PYTHON)
    machine.put("python3.14", SHIM)
    machine.put("python3.11", PYTHON)
    assert "python3 is Python 3.9.2. Try: PYTHON=python3.11 make demo" in machine.prepare("demo").stderr


# --- Chromium -----------------------------------------------------------------------------------------------


def test_chromium_is_found_where_it_may_lie(machine, tmp_path):
    assert machine.prepare("--chromium").stdout == f"{machine.bin}/chromium\n"
    machine.without("chromium").put("google-chrome")
    assert machine.prepare("--chromium").stdout == f"{machine.bin}/google-chrome\n"
    machine.without("google-chrome")
    assert machine.prepare("--chromium").returncode == 1
    kept = tmp_path / "home" / ".cache" / "ms-playwright" / "chromium-1" / "chrome-linux"
    kept.mkdir(parents=True)
    (kept / "chrome").touch()
    assert machine.prepare("--chromium").stdout == f"{kept}/chrome\n"
    assert machine.prepare("test").returncode == 0
    ran = machine.prepare("--chromium", PLAYWRIGHT_BROWSERS_PATH=str(tmp_path / "elsewhere"))
    assert (ran.returncode, ran.stdout) == (1, "")


def test_the_chromium_that_is_asked_for(machine):
    machine.put("mine")
    ran = machine.prepare("--chromium", CHROMIUM=f"{machine.bin}/mine")
    assert (ran.returncode, ran.stdout) == (0, f"{machine.bin}/mine\n")
    for nothing in ("/no/such", str(machine.bin)):  # a folder is no program
        assert machine.prepare("--chromium", CHROMIUM=nothing).returncode == 1
    ran = machine.prepare("test", CHROMIUM="/no/such")
    assert ran.returncode == 2
    assert "there is no program /no/such" in ran.stderr


def test_no_chromium_can_be_asked_for(machine):
    assert machine.prepare("--chromium", CHROMIUM="none").returncode == 1
    assert machine.without("chromium").prepare("test", CHROMIUM="none").returncode == 0


def test_ubuntu_has_chromium_as_a_snap(machine, tmp_path):
    (tmp_path / "os-release").write_text("NAME=Ubuntu\nID=ubuntu\nID_LIKE=debian\n")
    machine.without("chromium", "c++").put("snap")
    line = line_in(machine.prepare("test").stderr)
    assert line == "sudo apt-get install -y g++ && sudo snap install chromium"
    machine.without("snap")
    assert "Chromium or Chrome" in machine.prepare("test").stderr


# --- and the Makefile -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", re.findall(r"^    (\w+)\) echo", PREPARE.read_text(encoding="utf-8"), re.M)
)
def test_its_targets_are_in_the_makefile(target):
    assert re.search(rf"^{target}:", MAKEFILE, re.M)


@pytest.mark.parametrize(
    "target", ["demo", "lab", "serve", "test", "quick", "lint", "bench", "fuzz", "soak", "docs", "dist"]
)
def test_make_does_nothing_before_it(machine, tmp_path, target):
    (tmp_path / "tools").mkdir()
    for name in ("Makefile", "pyproject.toml", "tools/build_llama.py"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    machine.put("prepare.sh", "echo asked for $*, with $PYTHON; exit 2", into="tools")
    before = sorted(tmp_path.rglob("*"))
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    ran = subprocess.run(
        ["make", "--silent", "-j4", target, "PYTHON=python3.99"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert ran.stdout == f"asked for {target}, with python3.99\n"
    assert sorted(tmp_path.rglob("*")) == before


def make(folder, *arguments):
    """Run make in a copy of the repository's Makefile."""
    (folder / "tools").mkdir(exist_ok=True)
    for name in ("Makefile", "pyproject.toml", "tools/build_llama.py"):
        shutil.copy(REPOSITORY / name, folder / name)
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(
        ["make", "--silent", *arguments], cwd=folder, env=env, capture_output=True, text=True
    )


def test_make_serve_installs_the_server_and_starts_it(machine, tmp_path):
    """From a fresh clone: what is missing, the environment, llama.cpp, the server, and a folder for its memories."""
    (tmp_path / "tools").mkdir()
    machine.put("prepare.sh", "exit 0", into="tools")
    ran = make(tmp_path, "--dry-run", "serve", "SERVE=--port 9000", "MODEL=m.gguf")
    assert ran.returncode == 0, ran.stderr
    steps = [
        "tools/prepare.sh serve", "-m venv .venv", "tools/build_llama.py", "install -e '.[encryption,serve]'",
        "mkdir -p build/memories",
        ".venv/bin/atlas-tool serve -m m.gguf --atlas-memory-persist --atlas-memory-dir build/memories --port 9000",
    ]  # fmt: skip
    places = [ran.stdout.find(step) for step in steps]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize("venv", ["a b", "/home/ann lee/.venv", "", "it's", "a;b", "a:b", "50%"])
@pytest.mark.parametrize("target", ["quick", "demo", "clean", "ready"])
def test_make_refuses_a_place_that_it_cannot_name(machine, tmp_path, venv, target):
    machine.put("prepare.sh", "echo asked; exit 2", into="shelf")
    (tmp_path / "tools").mkdir()
    shutil.copy(tmp_path / "shelf" / "prepare.sh", tmp_path / "tools")
    for kept in ("a", "b", "build"):
        (tmp_path / kept).mkdir()
    make(tmp_path, "help")
    before = sorted(tmp_path.rglob("*"))
    ran = make(tmp_path, target, f"VENV={venv}")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1
    assert "VENV must be one path without spaces" in ran.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_python_below_a_folder_with_a_space(machine, tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "my tools").mkdir()
    machine.put("prepare.sh", "exit 0", into="tools")
    machine.put("python", 'echo "$@" >> asked.log; exit 1', into="my tools")
    ran = make(tmp_path, "quick", f"PYTHON={tmp_path}/my tools/python")
    assert "could not make a virtual environment" in ran.stdout
    assert (tmp_path / "asked.log").read_text() == "-m venv .venv\n"


def test_readme_shows_the_line():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    commands, _, rest = readme.partition("make test  ")
    assert "make demo  " in commands
    assert "sudo apt-get install -y make python3-venv g++ chromium fonts-dejavu-core" in rest[:600]
