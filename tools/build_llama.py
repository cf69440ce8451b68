"""Install the extra ``llama`` into the Python that runs this, built for this machine (``make`` calls it).

    .venv/bin/python tools/build_llama.py          # after pip install -e .

PyPI has llama-cpp-python as source only, so pip compiles llama.cpp: minutes, once; pip keeps the result for other
environments. What this adds to ``pip install llama-cpp-python``:

- AMX is left out. On Xeon processors that have it, gcc drops the tile configuration, and llama.cpp dies of an
  illegal instruction as soon as a quantised model decodes.
- Parts that nothing in Python calls are not compiled, and all cores are used.
- It is tried out afterwards: a kept build may come from another processor, and then it is made again.

``CMAKE_ARGS`` passes through, so ``CMAKE_ARGS=-DGGML_CUDA=on`` gives a build for an NVIDIA GPU.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
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


def build_environment(c: str, cpp: str) -> dict[str, str]:
    """Return the environment in which pip builds llama.cpp; what the user has set comes last and wins."""
    env = dict(os.environ)
    env.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    mine = ["-DLLAVA_BUILD=OFF", f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={ROOT / 'tools' / 'llama_build.cmake'}"]
    env["CMAKE_ARGS"] = f"{shlex.join(mine)} {env.get('CMAKE_ARGS', '')}".strip()
    for name, compiler in (("CFLAGS", c), ("CXXFLAGS", cpp)):
        if accepts(compiler, NO_AMX):
            env[name] = " ".join([*NO_AMX, env.get(name, "")]).strip()
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


def main() -> None:
    """Build if there is none that runs here."""
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


if __name__ == "__main__":
    main()
