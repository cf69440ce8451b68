"""What an installed atlas_kit is: quick to start, useful without its extras, and nothing but atlas_kit."""

from __future__ import annotations

import email
import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import atlas_kit
from atlas_kit.cli._group import COMMANDS
from tests.conftest import SAMPLES, tool_environment

REPOSITORY = Path(__file__).resolve().parent.parent
HEAVY = ["numpy", "construct", "rich", "gguf", "lz4", "zstandard", "xxhash", "cryptography", "safetensors"]
#: Everything that only the extras install.
EXTRAS = ["cryptography", "safetensors", "pytest", "_pytest", "xdist", "execnet", "hypothesis", "mypy"]
EXTRAS += ["ruff", "deno", "importlinter", "grimp", "cogapp", "mkdocs", "material", "latex2mathml"]
EXTRAS += ["fsspec", "aiohttp", "s3fs", "gcsfs", "huggingface_hub", "distributed", "pandas", "pyarrow"]
EXTRAS += ["llama_cpp", "jinja2", "diskcache", "xllamacpp"]
EXTRAS += ["ipywidgets", "anywidget", "traitlets", "IPython", "jupyterlab", "jupyter_server", "tornado"]
EXTRAS += ["matplotlib", "PIL", "plotly", "playwright", "jupytext", "nbclient", "nbconvert", "threadpoolctl"]

PROBE = "import sys; {code}; print(*sorted(set(sys.modules) & set({names!r})))"


def loaded_by(code: str, names: list[str]) -> list[str]:
    """Return which of ``names`` a fresh interpreter has imported after ``code``."""
    program = PROBE.format(code=code, names=names)
    ran = subprocess.run(
        [sys.executable, "-c", program], env=tool_environment(), capture_output=True, text=True, check=True
    )
    return ran.stdout.splitlines()[-1].split()


def test_importing_the_package_imports_nothing_else():
    assert loaded_by("import atlas_kit", [*HEAVY, "click", "atlas_kit.errors", "atlas_kit.formats"]) == []


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version_imports_nothing_heavy(option):
    code = f"from atlas_kit.cli.main import run; run([{option!r}])"
    assert loaded_by(code, [*HEAVY, "click"]) == []


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "--help"], ["convert", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = f"from atlas_kit.cli.main import run; run({arguments!r})"
    assert loaded_by(code, HEAVY) == []


@pytest.mark.parametrize("sample", ["atlas/llama-7b_memory.atlas", "gguf/micro.gguf", "gguf/tiny.gguf"])
def test_a_look_at_a_small_file_needs_no_numpy(sample):
    code = f"from atlas_kit.cli.main import run; run(['inspect', {str(SAMPLES / sample)!r}])"
    assert loaded_by(code, ["numpy", "gguf", "rich", "cryptography"]) == []


@pytest.mark.parametrize("name", atlas_kit.__all__)
def test_public_names_exist(name):
    assert getattr(atlas_kit, name) is not None


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = atlas_kit.Nonsense


def test_version_is_one_fact(run_tool):
    assert run_tool("--version").stdout == f"atlas-tool {atlas_kit.__version__}\n"
    assert importlib.metadata.version("atlas-kit") == atlas_kit.__version__
    assert f"## {atlas_kit.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_console_script_is_the_module():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="atlas-tool")
    assert script.value == "atlas_kit.cli.main:main"
    assert "from atlas_kit.cli.main import main" in (REPOSITORY / "atlas_kit" / "__main__.py").read_text()


def test_the_launcher_works_without_installing():
    ran = subprocess.run(
        [sys.executable, REPOSITORY / "tools" / "atlas_tool.py", "--version"], capture_output=True, text=True
    )
    assert ran.stdout == f"atlas-tool {atlas_kit.__version__}\n"


# --- without the extras -----------------------------------------------------------------------------------

BLOCKER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from atlas_kit.cli.main import run
sys.exit(run({arguments!r}))
"""


def without_extras(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run atlas-tool in an interpreter that cannot import any extra."""
    program = BLOCKER.format(names=set(EXTRAS), arguments=[str(a) for a in arguments])
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, cwd=cwd, env=tool_environment(), capture_output=True, text=True)


CORE = [
    ("inspect", "atlas/llama-7b_memory.atlas"),
    ("inspect", "atlas/assistant.atlas"),
    ("inspect", "gguf/tiny.gguf", "--stats"),
    ("inspect", "gguf/micro.gguf", "--hex"),
    ("inspect", "gguf/micro.gguf", "--map"),
    ("validate", "atlas/chat.atlas", "gguf/tiny.gguf"),
    ("convert", "atlas/llama-7b_memory.atlas", "out.json"),
    ("convert", "atlas/llama-7b_memory.atlas", "out.atlas"),
    ("convert", "atlas/assistant.atlas", "out.safetensors"),
    ("convert", "atlas/assistant.atlas", "out.npz"),
    ("convert", "gguf/micro.gguf", "out.gguf", "--to", "atlas-gguf"),
    ("repair", "broken/truncated.atlas", "-o", "out.atlas"),
    ("compress", "atlas/chat.atlas", "-o", "out.atlas"),
    ("diff", "atlas/chat.atlas", "atlas/chat.atlas"),
    ("ls", "atlas/chat.atlas"),
    ("hash", "gguf/tiny.gguf"),
]


@pytest.mark.parametrize("arguments", CORE, ids=" ".join)
def test_core_commands_need_no_extra(arguments, samples):
    ran = without_extras(*arguments, cwd=samples)
    assert ran.returncode == (1 if arguments[0] == "repair" else 0), ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr


def test_what_needs_an_extra_says_which(samples):
    (samples / "pass.txt").write_text("correct horse battery staple\n")
    ran = without_extras("ls", "atlas/secret.atlas", "--passphrase-file", "pass.txt", cwd=samples)
    assert ran.returncode == 2
    assert "atlas-kit[encryption]" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


#: What runs a model; the words after the command do not matter, because nothing is read before llama.cpp is there.
RUNNING = {
    "run": ("gguf/tiny.gguf", "-p", "Hello"),
    "learn": ("gguf/tiny.gguf", "text/passphrase.txt", "--memory-file", "out.atlas"),
    "perplexity": ("gguf/tiny.gguf", "text/passphrase.txt"),
    "recall": ("gguf/tiny.gguf",),
}


@pytest.mark.parametrize("command", sorted(set(RUNNING) & set(COMMANDS)))
def test_running_a_model_needs_the_extra_llama(command, samples):
    ran = without_extras(command, *RUNNING[command], cwd=samples)
    assert ran.returncode == 2
    assert 'Try: pip install "atlas-kit[llama]"' in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_opening_a_model_needs_the_extra_llama(samples):
    program = BLOCKER.format(names=set(EXTRAS), arguments=[]).partition("from atlas_kit")[0]
    program += "from atlas_kit.llama import open_engine; open_engine('gguf/tiny.gguf')"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=samples, env=tool_environment(), capture_output=True, text=True
    )
    last = ran.stderr.splitlines()[-1]
    assert "MissingExtraError" in last
    assert "atlas-kit[llama]" in last


def test_the_runtime_loads_llama_cpp_when_a_model_is_opened():
    names = ["llama_cpp", "jinja2", "gguf"]
    assert loaded_by("from atlas_kit.llama import AtlasSession, open_engine", names) == []


# --- the wheel --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_wheel_holds_only_atlas_kit(tmp_path):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    ran = subprocess.run(
        [*command, "--wheel-dir", tmp_path, REPOSITORY], capture_output=True, text=True, cwd=tmp_path
    )
    if ran.returncode and "No matching distribution found for hatchling" in ran.stderr:
        pytest.skip("building a wheel needs hatchling, and no package index can be reached")
    assert ran.returncode == 0, ran.stderr
    (wheel,) = tmp_path.glob("atlas_kit-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        fields = email.message_from_bytes(archive.read(metadata))
    for_jupyter = f"{metadata.split('.dist-info')[0]}.data/data"
    allowed = (
        "atlas_kit/",
        metadata.split("/")[0],
        f"{for_jupyter}/share/jupyter",
        f"{for_jupyter}/etc/jupyter",
    )
    assert [name for name in names if not name.startswith(allowed)] == []
    assert "atlas_kit/py.typed" in names
    files = (p for suffix in ("py", "js", "css") for p in (REPOSITORY / "atlas_kit").rglob(f"*.{suffix}"))
    assert {p.relative_to(REPOSITORY).as_posix() for p in files} <= set(names)
    core = {r.split(">")[0] for r in fields.get_all("Requires-Dist") if "extra ==" not in r}
    assert core == {
        *("click", "rich", "numpy", "construct", "lz4", "zstandard", "xxhash", "fnv-hash-fast", "gguf"),
    }
    assert fields["License-Expression"] == "MIT"


def test_the_blocker_blocks(tmp_path):
    program = BLOCKER.format(names=set(EXTRAS), arguments=["--version"])
    program = program.replace("sys.exit(", "import cryptography; sys.exit(")
    ran = subprocess.run(
        [sys.executable, "-c", program], env=tool_environment(), capture_output=True, text=True
    )
    assert "No module named 'cryptography'" in ran.stderr
