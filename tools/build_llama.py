"""Install the extra ``llama`` into the Python that runs this, built for this machine (``make`` calls it).

    .venv/bin/python tools/build_llama.py            # after pip install -e .
    .venv/bin/python tools/build_llama.py --server   # llama.cpp's own server too, for tools/bench/server.py

PyPI has llama-cpp-python as source only, so pip compiles llama.cpp: minutes, once; pip keeps the result for other
environments. What this adds to ``pip install llama-cpp-python``:

- AMX is left out. On Xeon processors that have it, gcc drops the tile configuration, and llama.cpp dies of an
  illegal instruction as soon as a quantised model decodes.
- Parts that nothing in Python calls are not compiled, and all cores are used.
- It is tried out afterwards: a kept build may come from another processor, and then it is made again.

``CMAKE_ARGS`` passes through, so ``CMAKE_ARGS=-DGGML_CUDA=on`` gives a build for an NVIDIA GPU.

``--server`` compiles ``llama-server`` from the source archive of the very release that is installed, with the same
options, so that two servers that are compared run the same kernels: some 10 minutes of one processor, once for a
release. It goes into ``build/llama-server/VERSION/``; its page and TLS are left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NO_AMX = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")
NO_COMPILER = (
    "llama.cpp is compiled from source, and no C++ compiler was found. "
    "On Debian and Ubuntu: apt-get install g++"
)
#: Decode a few tokens of a quantised model. It runs in a child process, because a wrong build kills it.
TRIAL = """
import llama_cpp as llama
from tools.make_random_model import make_model
make_model({path!r}, "llama", type="q4_0")
model = llama.Llama({path!r}, n_ctx=64, n_threads=1, verbose=False)
model.eval(model.tokenize(b"Does this build run here?"))
"""
#: Where llama.cpp's own servers are kept, each in a folder named after the release of llama-cpp-python.
SERVERS = ROOT / "build" / "llama-server"
NO_CMAKE = (
    "llama-server is compiled with CMake, and there is none. "
    "On Debian and Ubuntu: apt-get install cmake; elsewhere: pip install cmake"
)
#: One file that needs no library of ours, no page, no TLS: the parts of llama.cpp that the server is made of.
SERVER_ARGS = (
    "-DCMAKE_BUILD_TYPE=Release",  # as scikit-build-core builds llama-cpp-python
    "-DBUILD_SHARED_LIBS=OFF",
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "APP", "UI")),
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_TOOLS_INSTALL=OFF",
)


def requirements() -> list[str]:
    """Return the packages of the extra in pyproject.toml (Python 3.10 has no TOML reader)."""
    found = re.search(
        r"^llama = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found, "pyproject.toml has no extra llama"
    return re.findall(r'"([^"]*)"', found[1])


def pip(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``pip install`` and keep what it says."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "install",
        *arguments,
    ]
    return subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def is_installed() -> bool:
    """Whether the environment already has what the extra asks for: pip finds nothing to look for elsewhere."""
    return pip("--no-index", "--no-deps", *requirements()).returncode == 0


def compilers() -> tuple[str, str] | None:
    """Return the C and C++ compilers that CMake will take, None where there are none."""
    c = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    cpp = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    return (c, cpp) if c and cpp else None


def accepts(compiler: str, flags: Sequence[str]) -> bool:
    """Whether a compiler knows these options: x86 ones do, others have no AMX to leave out."""
    command = [*shlex.split(compiler), "-Werror", *flags, "-x", "c", "-c", "-", "-o", os.devnull]
    return subprocess.run(command, input=b"", capture_output=True, check=False).returncode == 0


def compiling(c: str, cpp: str) -> dict[str, str]:
    """Return the environment in which llama.cpp is compiled; what the user has set comes last and wins."""
    env = dict(os.environ)
    env.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    for name, compiler in (("CFLAGS", c), ("CXXFLAGS", cpp)):
        if accepts(compiler, NO_AMX):
            env[name] = " ".join([*NO_AMX, env.get(name, "")]).strip()
    return env


def build_environment(c: str, cpp: str) -> dict[str, str]:
    """Return the environment in which pip builds llama.cpp."""
    env = compiling(c, cpp)
    mine = ["-DLLAVA_BUILD=OFF", f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={ROOT / 'tools' / 'llama_build.cmake'}"]
    env["CMAKE_ARGS"] = f"{shlex.join(mine)} {env.get('CMAKE_ARGS', '')}".strip()
    return env


def runs() -> bool:
    """Whether the installed llama.cpp decodes a quantised model on this processor."""
    with tempfile.TemporaryDirectory() as folder:
        program = TRIAL.format(path=os.path.join(folder, "trial.gguf"))
        ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)
    return ran.returncode == 0


def build(env: dict[str, str], *options: str) -> None:
    """Let pip compile and install it.

    Raises
    ------
    SystemExit
        With the end of pip's output and one sentence.
    """
    start = time.monotonic()
    ran = pip(*options, *requirements(), env=env)
    if ran.returncode:
        print("\n".join(ran.stdout.splitlines()[-40:]), file=sys.stderr)
        raise SystemExit("llama.cpp could not be built: the reason is above")
    print(f"llama.cpp is installed, after {time.monotonic() - start:.0f} s", flush=True)


# --- llama.cpp's own server ------------------------------------------------------------------------------


def server_version() -> str:
    """Return the release of llama-cpp-python whose llama.cpp the server has to be: the installed one.

    Raises
    ------
    SystemExit
        None is installed.
    """
    try:
        return importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit("llama-cpp-python is not installed: run this without --server first") from None


def server_path(version: str) -> Path:
    """Return where the server of a release is, or would be."""
    return SERVERS / version / "llama-server"


def starts(server: Path) -> bool:
    """Whether a server is there and runs on this processor."""
    try:
        return subprocess.run([server, "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def cmake() -> str | None:
    """Return CMake: one on the path, or the one that a package brought into this environment."""
    return shutil.which("cmake") or shutil.which("cmake", path=sysconfig.get_path("scripts"))


def step(command: Sequence[str | Path], env: dict[str, str], failure: str) -> None:
    """Run one step of the build quietly.

    Raises
    ------
    SystemExit
        With the end of its output and one sentence.
    """
    ran = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if ran.returncode:
        print("\n".join(ran.stdout.splitlines()[-40:]), file=sys.stderr)
        raise SystemExit(f"{failure}: the reason is above")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack llama.cpp out of the source archive of llama-cpp-python; return its folder.

    Raises
    ------
    SystemExit
        It is not in there.
    """
    with tarfile.open(archive) as file:
        if hasattr(tarfile, "data_filter"):
            file.extractall(folder, filter="data")
        else:  # a Python of 3.10 or 3.11 without the filter
            file.extractall(folder)
    found = next(folder.glob("*/vendor/llama.cpp/tools/server"), None)
    if found is None:
        raise SystemExit(f"{archive.name} has no source of llama-server")
    return found.parent.parent


def download(version: str, folder: Path, env: dict[str, str]) -> Path:
    """Let pip fetch the source archive of a release; return its path."""
    name = "llama-cpp-python"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    command += ["--no-deps", "--no-binary", name, "--dest", str(folder), f"{name}=={version}"]
    step(command, env, "the source of llama-server could not be fetched")
    return next(folder.glob("llama_cpp_python-*.tar.gz"))


def build_server() -> Path:
    """Compile ``llama-server`` for the installed release, if it is not there yet; return its path.

    Raises
    ------
    SystemExit
        With one sentence: no compiler, no CMake, no source, or a build that fails or does not run here.
    """
    version = server_version()
    server = server_path(version)
    if starts(server):
        print(f"llama-server of llama-cpp-python {version} is there: {server}")
        return server
    found, tool = compilers(), cmake()
    if found is None:
        raise SystemExit(NO_COMPILER)
    if tool is None:
        raise SystemExit(NO_CMAKE)
    env = compiling(*found)
    print(
        f"Compiling llama-server of llama-cpp-python {version}: some 10 minutes of one processor", flush=True
    )
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = unpack(download(version, folder, env), folder)
        asked = [*SERVER_ARGS, *shlex.split(env.get("CMAKE_ARGS", ""))]
        failure = "llama-server could not be built"
        step([tool, "-S", source, "-B", folder / "build", *asked], env, failure)
        step([tool, "--build", folder / "build", "--target", "llama-server"], env, failure)
        server.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / "build" / "bin" / "llama-server", server)
    if not starts(server):
        raise SystemExit("llama-server was built and does not run here. Try: CMAKE_ARGS=-DGGML_NATIVE=OFF")
    print(f"llama-server is built, after {time.monotonic() - start:.0f} s: {server}", flush=True)
    return server


# --- the command -----------------------------------------------------------------------------------------


def install() -> None:
    """Build the package if there is none that runs here."""
    if is_installed() and runs():
        return
    found = compilers()
    if found is None:
        raise SystemExit(NO_COMPILER)
    env = build_environment(*found)
    print("Installing llama.cpp; the first time it is compiled: 2 to 6 minutes on two cores", flush=True)
    build(env)
    if runs():
        return
    print("pip had kept a build that does not run on this processor: building again", flush=True)
    build(env, "--no-cache-dir", "--force-reinstall", "--no-deps", "--no-binary=llama-cpp-python")
    if not runs():
        raise SystemExit(
            "llama.cpp was built and does not run here. Try: CMAKE_ARGS=-DGGML_NATIVE=OFF make demo"
        )


def main(arguments: Sequence[str] = ()) -> None:
    """Build what is asked for, if it is not there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--server", action="store_true", help="build llama.cpp's own server, and nothing else"
    )
    if parser.parse_args(arguments).server:
        build_server()
    else:
        install()


if __name__ == "__main__":
    main(sys.argv[1:])
