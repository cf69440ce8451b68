"""Build the source archive and, from that, the wheel into ``dist/``; check both as an index and a user would.

    .venv/bin/python tools/dist.py          # make dist

The wheel comes from the unpacked archive, so an archive that lacks a file fails here. `twine check` reads their
metadata, the contents are compared with the checkout, and both are installed into environments of their own, where
`atlas-tool` says its version and looks into a sample.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
#: What the archive holds besides the package: enough to build it, to read it and to know its formats.
BESIDE = ("formats", "LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml")
SAMPLE = ROOT / "sample_data" / "atlas" / "llama-7b_memory.atlas"
#: What never belongs to it.
STRANGE = ("__pycache__", ".pyc", ".ipynb_checkpoints", ".DS_Store", "tests/", ".venv")


def run(*command: object, cwd: Path = ROOT) -> str:
    """Run a program and return what it says.

    Raises
    ------
    SystemExit
        With its output when it fails.
    """
    ran = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{ran.stdout}{ran.stderr}")
    return ran.stdout


def build(folder: Path) -> tuple[Path, Path]:
    """Build the archive of the checkout and the wheel of the archive; return both, in ``folder``."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder)
    (archive,) = folder.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(archive) as tar:
            # our own archive; the filter, which Debian 12's Python 3.11.2 lacks, keeps newer ones from warning
            tar.extractall(unpacked, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        (source,) = Path(unpacked).iterdir()
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=source)
    (wheel,) = folder.glob("*.whl")
    return archive, wheel


def contents(path: Path) -> list[str]:
    """Return the files in an archive or a wheel, without the folder that an archive has around them."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as opened:
            return opened.namelist()
    with tarfile.open(path) as tar:
        return [member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()]


def package_files() -> set[str]:
    """Return the files of the package in the checkout."""
    found = (path for path in (ROOT / "atlas_kit").rglob("*") if path.is_file())
    names = {path.relative_to(ROOT).as_posix() for path in found}
    return {name for name in names if not any(part in name for part in STRANGE)}


def faults(archive: Iterable[str], wheel: Iterable[str]) -> list[str]:
    """Return what is missing from the two lists of files, and what does not belong there; one sentence each."""
    found = []
    for name, files in (("the archive", set(archive)), ("the wheel", set(wheel))):
        in_package = {file for file in files if not file.split("/")[0].endswith(".data")}
        found += [f"{name} lacks {file}" for file in sorted(package_files() - in_package)]
        found += [f"{name} holds {file}" for file in sorted(files) if any(part in file for part in STRANGE)]
    tops = {file.split("/")[0] for file in archive}
    found += [f"the archive lacks {top}" for top in BESIDE if top not in tops]
    known = {"atlas_kit", "PKG-INFO", ".gitignore", *BESIDE}
    found += [f"the archive holds {top}" for top in sorted(tops - known)]
    tops = {file.split("/")[0] for file in wheel}
    found += [
        f"the wheel holds {top}"
        for top in sorted(tops - {"atlas_kit"})
        if not top.endswith((".dist-info", ".data"))
    ]
    return found


def try_out(package: Path, folder: Path) -> str:
    """Install it into an environment of its own and use it; return what it says that it is."""
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    run(programs / "python", "-m", "pip", "--disable-pip-version-check", "--quiet", "install", package)
    said = run(programs / "atlas-tool", "--version", cwd=folder)
    run(programs / "atlas-tool", "inspect", SAMPLE, cwd=folder)
    return said.strip()


def main() -> None:
    """Build, check, try out."""
    DIST.mkdir(exist_ok=True)
    for old in [*DIST.glob("atlas_kit-*.tar.gz"), *DIST.glob("atlas_kit-*.whl")]:
        old.unlink()
    archive, wheel = build(DIST)
    run(sys.executable, "-m", "twine", "check", "--strict", archive, wheel)
    if found := faults(contents(archive), contents(wheel)):
        raise SystemExit("\n".join(found))
    version = wheel.name.split("-")[1]
    for package in (wheel, archive):
        with tempfile.TemporaryDirectory() as folder:
            said = try_out(package, Path(folder) / "venv")
        if said != f"atlas-tool {version}":
            raise SystemExit(f"{package.name} says that it is {said}")
        size = package.stat().st_size
        print(f"{package.relative_to(ROOT)}: {size:,} bytes, {len(contents(package))} files, {said}")


if __name__ == "__main__":
    main()
